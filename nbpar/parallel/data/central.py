"""`--aggregate central`: as with a parameter server, gradients come together on rank 0 and weights are sent from there.

Rank 0 sends the sum of the gradients back too, so that what a cell reads from `.grad` (to clip it, say) is alike on all ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from nbpar.parallel.data.ranks import Ranks


@contextmanager
def updated_on_root(ranks: Ranks) -> Iterator[None]:
    """After each optimiser's step, every rank has the weights of rank 0."""

    def send(optimiser: Any, args: Any, kwargs: Any) -> None:
        with torch.no_grad(), torch._C.DisableTorchFunction():
            weights = [weight for group in optimiser.param_groups for weight in group["params"] if not weight.is_meta]
            kinds = {(weight.dtype, weight.device) for weight in weights}
            for kind in sorted(kinds, key=str):
                same = [weight for weight in weights if (weight.dtype, weight.device) == kind]
                flat = ranks.from_root(torch.cat([weight.reshape(-1) for weight in same]))
                if ranks.rank:
                    for weight, part in zip(same, flat.split([weight.numel() for weight in same]), strict=True):
                        weight.copy_(part.view(weight.shape))

    hook = register_optimizer_step_post_hook(send)
    try:
        yield
    finally:
        hook.remove()
