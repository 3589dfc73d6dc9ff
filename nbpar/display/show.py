"""Where things appear: the notebook's streams, displays and prompt numbers, or a terminal's."""

from __future__ import annotations

import sys
from typing import Any

DIM, PLAIN = "\x1b[2m", "\x1b[0m"


def _shell() -> Any:
    from IPython.core.getipython import get_ipython

    return get_ipython()


def execution_count() -> int:
    shell = _shell()
    return shell.execution_count if shell is not None else 1


def new_sources(world: Any) -> dict[str, tuple[int, str]]:
    """Cells that the ranks have not seen: file name → (prompt number, source)."""
    import linecache

    shell = _shell()
    if shell is None:
        return {}
    sent = world.sent_sources
    known = getattr(shell.compile, "_filename_map", {})
    fresh = {name: count for name, count in known.items() if name not in sent and name in linecache.cache}
    sent.update(fresh)
    return {name: (count, "".join(linecache.getlines(name))) for name, count in fresh.items()}


def emit(name: str, value: Any) -> None:
    """A piece of a rank's output."""
    shell = _shell()
    if name == "stdout":
        sys.stdout.write(value)
    elif name == "stderr":
        sys.stderr.write(value)
    elif shell is None:
        sys.stdout.write(f"{value.get('data', {}).get('text/plain', '')}\n")
    elif name == "clear":
        shell.display_pub.clear_output(wait=value["wait"])
    else:
        flush()
        shell.display_pub.publish(
            data=value["data"],
            metadata=value["metadata"],
            transient=value.get("transient") or {},
            update=value.get("update", False),
        )


def flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


def note(line: str) -> None:
    """One line for the person."""
    sys.stdout.write(f"nbpar: {line}\n")


def closing(line: str) -> None:
    """The line that ends a cell, dim where colours are known: text, which costs a kernel a tenth of what a display does."""
    colours = hasattr(_shell(), "kernel")
    sys.stdout.write(f"{DIM}{line}{PLAIN}\n" if colours else f"{line}\n")


def has_page() -> bool:
    """Whether there is a page that draws: a kernel's, not a terminal's."""
    return hasattr(_shell(), "kernel")


def is_batch() -> bool:
    """Whether nbclient runs the notebook (nbconvert, papermill), which it tells by this argument: nobody sees a widget then."""
    return "--HistoryManager.hist_file=:memory:" in sys.argv


def panels(bundle: tuple[dict[str, Any], dict[str, Any]], place: str = "") -> str:
    """Shows a MIME bundle (data, metadata), in the same place if one is given; its place."""
    import uuid

    data, metadata = bundle
    name = place or uuid.uuid4().hex
    flush()
    _shell().display_pub.publish(data=data, metadata=metadata, transient={"display_id": name}, update=bool(place))
    return name
