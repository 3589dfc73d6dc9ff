"""What the notebook asks of values that stayed on the ranks: calls, flags, copies. Each is a cell of the mode that left them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nbpar import ranks
from nbpar.errors import CannotTravel
from nbpar.values.refs import LostRef, RankRef

if TYPE_CHECKING:
    from nbpar.ranks.world import World

ANSWER, VALUE, GIVEN = "_nbpar_answer", "_nbpar_value", "_nbpar_given"  # names in those cells

CALL = f"""with __import__("torch").no_grad():
    {ANSWER} = {VALUE}(*{GIVEN}[0], **{GIVEN}[1])"""
COPY = f"{ANSWER} = __import__('copy').deepcopy({VALUE})"
STATE = f"{ANSWER} = __import__('copy').deepcopy({VALUE}.state_dict(*{GIVEN}[0], **{GIVEN}[1]))"
SHAPES = f"{ANSWER} = [(n, tuple(p.shape), str(p.dtype), p.requires_grad) for n, p in {VALUE}.named_parameters()]"


def home(ref: RankRef) -> World:
    """The world that holds the value. Raises CannotTravel, with the last checkpoint, if that has ended."""
    world = ranks.current()
    if world is None or not world.values.holds(ref):
        raise CannotTravel(str(LostRef.of(ref)))
    return world


def ask(ref: RankRef, code: str, *given: Any, value: Any = None) -> Any:
    """Runs code on the ranks, with the value (or several values that go with it) and what is given by name; its answer."""
    world = home(ref)
    names = {VALUE: ref if value is None else value, GIVEN: given}
    world.namespace.update(names)
    try:
        world.run(code, ref.mode, quiet=True, out=(ANSWER,))
        return world.namespace.get(ANSWER)
    finally:
        for name in (*names, ANSWER):
            world.namespace.pop(name, None)


def call(ref: RankRef, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`ref(*args, **kwargs)` on the ranks, without gradients; a module's training flag is as it stands."""
    return ask(ref, CALL, args, kwargs)


def gather(*refs: Any) -> Any:
    """What stayed on the ranks, as ordinary objects in the notebook; what is there is given back as it is.

    Several values are brought together, so that an optimiser is that of the model: `model, opt = nbpar.gather(model, opt)`.
    The ranks keep theirs as long as a variable leads to it. Raises CannotTravel if the ranks have ended.
    """
    stayed = [ref for ref in refs if isinstance(ref, RankRef)]
    for ref in stayed:
        home(ref)
    found = iter(ask(stayed[0], COPY, value=stayed) if stayed else ())
    values = [next(found) if isinstance(ref, RankRef) else ref for ref in refs]
    return values[0] if len(refs) == 1 else tuple(values)


def flag(ref: RankRef, code: str) -> RankRef:
    """Changes the value where it is."""
    ask(ref, code)
    return ref
