"""`nbpar.save` and `nbpar.load`: checkpoints of what stayed on the ranks, and of ordinary modules."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nbpar import ranks
from nbpar.errors import OptionError
from nbpar.remote import GIVEN, VALUE, home
from nbpar.values.refs import RankRef

FACTS = "nbpar.json"
STORE = "__import__('nbpar.parallel.model.store', fromlist=['store'])"
READ = "_nbpar_read_"  # names of what is read


def save(values: Any, path: str | os.PathLike[str]) -> None:
    """Writes a module, an optimiser or a dict of them as a checkpoint of torch.distributed.checkpoint, a folder.

    What stayed on the ranks is written by the ranks, each its part; an optimiser goes with its module, in one dict:
    `nbpar.save({"model": model, "adam": adam}, "run7")`. Gradients are not written. All ranks must see the folder.
    Raises CannotTravel if the ranks have ended, OptionError where ordinary values and those of ranks are mixed.
    """
    named, place = _named(values), os.path.abspath(path)
    if refs := _refs(named):
        _run(f"{STORE}.write({VALUE}, {GIVEN})", named, place)
        mode = refs[0].mode
    else:
        from nbpar.parallel.model import store

        store.write(named, place, alone=True)
        mode = "data"
    describe(place, list(named), mode)
    for ref in refs:
        ref.saved = os.fspath(path)


def describe(place: str, names: list[str], mode: str) -> None:
    """Says in a checkpoint's folder what is in it, and that it is complete. mode: that of the cell that left it."""
    Path(place, FACTS).write_text(json.dumps({"names": names, "mode": mode}))


def load(*what: Any) -> Any:
    """`load(path)`: what was saved, on the ranks, whose number may have changed. `load(values, path)`: into values that are there.

    The first gives a RankRef, or a dict of them; `.gather()` brings one to the notebook. It unpickles: read only what you
    trust. The second fills modules of the notebook, or what stayed on the ranks, in place, and gives them back.
    Raises OptionError if the checkpoint is of something else.
    """
    *values, path = what
    place = os.path.abspath(path)
    if len(values) > 1 or not Path(place, FACTS).exists():
        raise OptionError(f"nbpar.load: {os.fspath(path)!r} is no checkpoint of nbpar.save: nbpar.load(path) or load(model, path).")
    return _into(values[0], path, place) if values else _anew(path, place)


def gathered(path: str) -> Any:
    """What `load(path)` gives, as values of this process: for ranks that cannot see the folder."""
    from nbpar.parallel.model import store

    return store.whole(path)


def _into(values: Any, path: Any, place: str) -> Any:
    named = _named(values)
    if refs := _refs(named):
        _run(f"{STORE}.fill({VALUE}, {GIVEN})", named, place)
        for ref in refs:
            ref.saved = os.fspath(path)
    else:
        from nbpar.parallel.model import store

        store.fill(named, place, alone=True)
    return values


def _anew(path: Any, place: str) -> Any:
    from IPython.core.getipython import get_ipython

    facts = json.loads(Path(place, FACTS).read_text())
    shell: Any = get_ipython()
    world = ranks.current() or ranks.ensure(shell.user_ns)
    names = {f"{READ}{number}": name for number, name in enumerate(facts["names"])}
    world.namespace[GIVEN] = place
    split = facts["mode"] == "model"
    code = f"[{', '.join(names)}] = {STORE}.read({GIVEN}, split={split}).values()"
    try:
        world.run(code, "bare", quiet=True, keep=tuple(names))
        found = {name: world.namespace[key] for key, name in names.items()}
    finally:
        for key in (GIVEN, *names):
            world.namespace.pop(key, None)
    for name, ref in found.items():
        ref.name, ref.mode, ref.saved = name or Path(place).name, facts["mode"], os.fspath(path)
        ref.reason = f"It was read from {os.fspath(path)!r}."
    return found[""] if list(found) == [""] else found


def _named(values: Any) -> dict[str, Any]:
    return dict(values) if isinstance(values, Mapping) else {"": values}


def _refs(named: Mapping[str, Any]) -> list[RankRef]:
    refs = [value for value in named.values() if isinstance(value, RankRef)]
    if refs and len(refs) < len(named):
        here = [name for name, value in named.items() if not isinstance(value, RankRef)]
        raise OptionError(f"{', '.join(here)}: in the notebook, the others are on the ranks; gather those or keep these (--keep).")
    return refs


def _run(code: str, named: dict[str, Any], place: str) -> None:
    """On the ranks, with these values and the folder by their names in nbpar's own cells."""
    for ref in named.values():
        world = home(ref)
    names = {VALUE: named, GIVEN: place}
    world.namespace.update(names)
    try:
        world.run(code, "bare", quiet=True, out=())
    finally:
        for name in names:
            world.namespace.pop(name, None)
