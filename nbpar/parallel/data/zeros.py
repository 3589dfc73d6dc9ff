"""Factors that are zero now. A trial by values does not see that rows meet behind one, as in `h + alpha * h.mean(0)` while a
schedule has alpha at 0; parameters are not zero in a trial."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from nbpar.parallel.data.memory import Own, is_elsewhere, is_strided, memory, tensors
from nbpar.parallel.data.operators import operator
from nbpar.uncompiled import Mode

HIDDEN = "a factor in it is zero now, and would hide that its rows meet"
# Which arguments of these are factors.
PRODUCTS = {
    **dict.fromkeys(("mul", "mul_", "mm", "bmm", "mv", "dot", "vdot", "convolution", "linear", "matmul"), slice(0, 2)),
    **dict.fromkeys(("addmm", "addmm_", "addbmm", "baddbmm", "addmv", "addr", "addcmul", "addcmul_"), slice(1, 3)),
    **dict.fromkeys(("lerp", "lerp_"), slice(2, 3)),
    **dict.fromkeys(("where", "div", "div_"), slice(0, 1)),
}
ANY, ALL = torch._C.TensorBase.any, torch._C.TensorBase.all  # as they are outside of this mode
COUNTS = ("alpha", "value")  # numbers by which a part is multiplied that is added


class Dependence:
    """Which tensors depend on the rows of a call, by their memory; and whether a factor of one was zero that does not.

    weights: tensors that are no such factors.
    """

    def __init__(self, rows: Iterable[Tensor], weights: Iterable[Tensor] = ()) -> None:
        self.hidden = False
        self._rows, self._weights = memory(rows), memory(weights)
        self._made: dict[int, Any] = {}  # inside, of nothing that depends on them: first states are zeros

    def depend(self, tensor: Tensor) -> bool:
        """Whether its values may depend on the rows."""
        return tensor.untyped_storage()._cdata in self._rows if is_strided(tensor) else is_elsewhere(tensor)

    def before(self, function: Any, args: Sequence[Any], kwargs: dict[str, Any], given: Sequence[Tensor]) -> None:
        """An operator is about to run. given: the tensors among its arguments."""
        name = operator(function).name
        factors = PRODUCTS.get(name)
        if self.hidden or not any(map(self.depend, given)):
            return
        if any(_is_number(kwargs.get(count)) and not kwargs[count] for count in COUNTS):
            self.hidden = True
        elif factors is not None:
            self.hidden = any(map(self._alike if name == "where" else self._zero, args[factors]))

    def after(self, given: Sequence[Tensor], result: Any) -> None:
        """What it has given."""
        (self._rows if any(map(self.depend, given)) else self._made).update(memory(tensors(result)))

    def _zero(self, factor: Any) -> bool:
        if not isinstance(factor, Tensor):
            return _is_number(factor) and not factor
        return self._is_schedule(factor) and not _read(factor, ANY)

    def _alike(self, condition: Tensor) -> bool:
        """All or nothing is chosen."""
        return self._is_schedule(condition) and _read(condition, ANY) == _read(condition, ALL)

    def _is_schedule(self, value: Tensor) -> bool:
        """Whether its values may be others in another call, of which this one does not tell."""
        if not is_strided(value) or self.depend(value) or not value.numel():
            return False
        address = value.untyped_storage()._cdata
        return address not in self._weights and (value.numel() == 1 or address not in self._made)


class Watch(Mode):
    """Tells `rows` what runs. Raises RuntimeError before anything but `own` memory is written to."""

    def __init__(self, rows: Dependence, own: Own) -> None:
        super().__init__()
        self.rows, self.own = rows, own

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = tensors(args, kwargs)
        self.own.guard(function, args, kwargs)
        self.rows.before(function, args, kwargs, given)
        result = function(*args, **kwargs)
        self.rows.after(given, result)
        self.own.made(function, given, result)
        return result


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _read(tensor: Tensor, question: Any) -> bool:
    with _disable_current_modes(), torch._C.DisableTorchFunction():
        return bool(torch._C.TensorBase.tolist(question(tensor)))
