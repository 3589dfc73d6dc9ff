"""Who holds what and what it will cost: plain data, no processes, no IPython.

The package can be called: `nbpar.plan(model, batch, mode, mesh)`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from nbpar.plan.plan import make

        return make(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
