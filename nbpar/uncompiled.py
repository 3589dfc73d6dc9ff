"""Dispatch modes that torch's compiler stays out of: its import takes 1.5 s on every rank, and each operator some 20 µs.

torch marks the `__torch_dispatch__` of every mode as not to be compiled, and imports the compiler to do so.
"""

from __future__ import annotations

from torch.utils._python_dispatch import TorchDispatchMode


class Mode(TorchDispatchMode):
    """One that torch does not mark: compiled code never runs under it."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False
