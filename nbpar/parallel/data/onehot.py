"""`F.one_hot` looks at the values of its labels to say what is wrong with them, and inside a call these are rows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nbpar.parallel.data import context


def unseen(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same without a look, in split calls and trials with a given number of classes. The whole call tells of errors."""

    def one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
        inside = context.running is not None or context.record is not None
        if not inside or num_classes <= 0 or tensor.dtype != torch.int64 or tensor.is_meta:
            return original(tensor, num_classes)
        zeros = torch.zeros((*tensor.shape, num_classes), dtype=torch.int64, device=tensor.device)
        return zeros.scatter(-1, tensor.unsqueeze(-1), 1)

    return one_hot
