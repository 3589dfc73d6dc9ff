"""What a notebook has set for its process, torch and numpy: cells run under it, and what they set holds in the notebook."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any


def torch() -> Any:
    return sys.modules["torch"]


def numpy() -> Any:
    return sys.modules["numpy"]


def get_deterministic() -> tuple[bool, bool]:
    return torch().are_deterministic_algorithms_enabled(), torch().is_deterministic_algorithms_warn_only_enabled()


def put_deterministic(setting: tuple[bool, bool]) -> None:
    torch().use_deterministic_algorithms(setting[0], warn_only=setting[1])


def get_torch_print() -> dict[str, Any]:
    return dict(vars(torch()._tensor_str.PRINT_OPTS))


def put_torch_print(options: Mapping[str, Any]) -> None:
    for name, value in options.items():
        setattr(torch()._tensor_str.PRINT_OPTS, name, value)


def get_numpy_print() -> dict[str, Any]:
    return {name: value for name, value in numpy().get_printoptions().items() if name != "formatter"}  # which holds functions


def working_folder() -> str:
    """Empty where it has been removed."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""


def go_to(folder: str) -> None:
    """Where it is there: another host may not have it."""
    with contextlib.suppress(OSError):
        os.chdir(folder)


def put_path(folders: list[str]) -> None:
    sys.path[:] = folders


@dataclasses.dataclass(frozen=True)
class Setting:
    get: Callable[[], Any]
    put: Callable[[Any], Any]


SETTINGS = {
    "sys": {
        "working folder": Setting(working_folder, go_to),
        "folders of modules": Setting(lambda: list(sys.path), put_path),
    },
    "torch": {
        "default dtype": Setting(lambda: torch().get_default_dtype(), lambda dtype: torch().set_default_dtype(dtype)),
        "gradients": Setting(lambda: torch().is_grad_enabled(), lambda on: torch().set_grad_enabled(on)),
        "deterministic": Setting(get_deterministic, put_deterministic),
        "matrix products": Setting(
            lambda: torch().get_float32_matmul_precision(), lambda precision: torch().set_float32_matmul_precision(precision)
        ),
        "printed tensors": Setting(get_torch_print, put_torch_print),
    },
    "numpy": {
        "errors": Setting(lambda: numpy().geterr(), lambda what: numpy().seterr(**what)),
        "printed arrays": Setting(get_numpy_print, lambda options: numpy().set_printoptions(**options)),
    },
}


def capture() -> dict[str, Any]:
    """The settings of the libraries that are imported, by name."""
    return {
        f"{library}: {name}": setting.get()
        for library, settings in SETTINGS.items()
        if library == "sys" or hasattr(sys.modules.get(library), "__version__")
        for name, setting in settings.items()
    }


def restore(wanted: Mapping[str, Any], now: Mapping[str, Any] | None = None) -> None:
    """Sets what is not so already; those of libraries that are not imported are left out. now: what `capture` gives."""
    for key, value in (capture() if now is None else now).items():
        if key in wanted and wanted[key] != value:
            library, _, name = key.partition(": ")
            SETTINGS[library][name].put(wanted[key])


def changes(before: Mapping[str, Any]) -> dict[str, Any]:
    """What was set since `capture` gave this."""
    return {key: value for key, value in capture().items() if before.get(key) != value}
