"""How a cell that failed is told: which ranks, with which traceback, and as which exception."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from nbpar.display.stream import name_ranks
from nbpar.errors import CellError, CollectiveMismatch
from nbpar.ranks.postmortem import rebuilt
from nbpar.ranks.task import Failure, Reply

if TYPE_CHECKING:
    from nbpar.exchange import Exchange
    from nbpar.ranks.world import World

AS_BEFORE = "The notebook's variables are as they were before the cell."


def shared_failure(failures: Mapping[int, Failure], size: int) -> Failure | None:
    """The one failure that all `size` ranks share, or None if they ended differently or had parted ways."""
    first = next(iter(failures.values()))
    same = all(failure.identity == first.identity and not failure.mismatch for failure in failures.values())
    return first if same and len(failures) == size else None


def raise_failure(world: World, exchange: Exchange, failures: Mapping[int, Failure], *, kept: bool) -> NoReturn:
    """Raises what the notebook should see: the interrupt, the ranks' own exception, CollectiveMismatch or CellError.

    kept: whether the cell's results so far are in the notebook.
    """
    replies = exchange.replies
    if exchange.interrupted:
        raise interrupted(failures, kept, world.namespace)
    if exchange.stuck:
        raise CollectiveMismatch(f"{exchange.stuck}\n{AS_BEFORE}")
    if parted := next((failure for failure in failures.values() if failure.mismatch), None):
        raise CollectiveMismatch(f"{parted.text}\n{AS_BEFORE}")
    if shared := shared_failure(failures, len(replies)):
        error = original(shared)
        raise error.with_traceback(rebuilt(error, shared.postmortem, world.namespace))
    roots = {rank: failure for rank, failure in failures.items() if not failure.follows} or dict(failures)
    text = describe(world, roots, failures, replies)
    error = CellError(text, {rank: failure.traceback for rank, failure in failures.items()})
    error._render_traceback_ = text.splitlines  # type: ignore[method-assign]
    root = next(iter(roots.values()))
    raise error.with_traceback(rebuilt(error, root.postmortem, world.namespace)) from original(root)


def raise_unanswered(world: World, failures: Mapping[int, Failure]) -> NoReturn:
    """The cell has ended, but its values could not be compared or sent."""
    lines = describe(world, failures, failures, {}).splitlines()[:-1]
    lines.append("Raised after the cell, as its variables were looked at: its changes are not, or not all, in the notebook.")
    error = CellError("\n".join(lines), {rank: failure.traceback for rank, failure in failures.items()})
    error._render_traceback_ = lambda: lines  # type: ignore[method-assign]
    raise error from original(next(iter(failures.values())))


def interrupted(failures: Mapping[int, Failure], kept: bool, namespace: dict[str, Any]) -> KeyboardInterrupt:
    """The interrupt, shown with the place where it met the first rank."""
    error = KeyboardInterrupt()
    met = next((failure for failure in failures.values() if failure.interrupted), None)
    lines = [*(met.traceback if met else ["KeyboardInterrupt"]), *([] if kept else [AS_BEFORE])]
    error._render_traceback_ = lambda: lines  # type: ignore[attr-defined]
    return error.with_traceback(rebuilt(error, met.postmortem if met else None, namespace))


def original(failure: Failure) -> BaseException:
    """The rank's exception itself where it can travel, shown with the rank's own traceback."""
    error: BaseException | None = None
    try:
        error = pickle.loads(failure.exception) if failure.exception else None
    except Exception:
        error = None
    compiled = failure.postmortem is not None and bool(failure.postmortem.frames)
    if not isinstance(error, BaseException) or (isinstance(error, SyntaxError) and not compiled):
        # IPython shows a SyntaxError with all frames that lead to it: of a cell that does not compile, these are nbpar's alone.
        error = CellError(f"{failure.kind}: {failure.text}")
    lines = failure.traceback
    error._render_traceback_ = lambda: lines  # type: ignore[attr-defined]
    return error


def describe(world: World, roots: Mapping[int, Failure], failures: Mapping[int, Failure], replies: Mapping[int, Reply]) -> str:
    """Each different failure once, under its ranks, then a line for every rank that only waited."""
    blocks: dict[tuple[Any, ...], list[int]] = {}
    for rank, failure in roots.items():
        blocks.setdefault(failure.identity, []).append(rank)
    lines: list[str] = []
    for ranks in blocks.values():
        lines.append(f"### rank {name_ranks(ranks)} of {world.size} on {world.hosts[ranks[0]]}")
        lines += roots[ranks[0]].traceback
    for rank, failure in failures.items():
        if rank not in roots:
            lines.append(f"rank {rank} {waiting(failure)}")
    if well := [rank for rank, reply in replies.items() if not reply.failure]:
        lines.append(f"rank {name_ranks(well)} ended well")
    lines.append(AS_BEFORE)
    return "\n".join(lines)


def waiting(failure: Failure) -> str:
    """Of a rank that did nothing wrong: 'was waiting in all_reduce #17 of 3×3, line 6'."""
    if failure.wait:
        return f"was waiting {failure.wait}"
    return f"was stopped in line {failure.line}" if failure.line else "was stopped"
