"""Enter and leave the model-parallel mode around a cell, on all ranks."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from nbpar.errors import OptionError, PeerFailed, Unsupported, suggest
from nbpar.parallel.report import Report

from .build import SMALL
from .channel import Channel, connect
from .session import Options, Session, meet
from .transfer import forget
from .whole import make_whole

_HOWS = ("layers", "tensor")
_BALANCES = ("params", "memory", "time")
KNOWN = ("micro", "place", "balance", "how", "keep", "out", "build", "units", "group", "failed")


@contextmanager
def mode(options: Mapping[str, object], namespace: dict[str, Any], report: Report | None = None) -> Iterator[Report]:
    """Run what is inside with the layers of the namespace's models on different ranks. Entered by all ranks alike.

    options: micro (int or "auto"), place ("name=rank,…"), balance ("params" | "memory" | "time"),
    keep (names that stay on their ranks), out (names that come home however large they are);
    group (a process group, default all ranks), units (submodules as one step),
    build (bytes of parameters that the cell makes before it drops those of other ranks),
    failed (called with an exception before this rank waits for the others, so that a caller may stop them).
    At the start, tensors in `namespace` are real and equal on all ranks; at the end they are again, under the same objects.
    Raises Unsupported where a line cannot run without risking a wrong number, CollectiveMismatch where ranks disagree.
    """
    if options.get("how") == "tensor":
        from nbpar.parallel.tensor.mode import mode as in_columns

        with in_columns(options, namespace, report) as told:
            yield told
        return
    chosen = parse(options)
    if report is None:
        report = Report()
    if dist.get_world_size(options.get("group")) == 1:  # type: ignore[arg-type]
        yield report
        return
    link = Channel(options.get("group"))  # type: ignore[arg-type]
    with splitting(link, chosen, namespace, report, options.get("failed")):
        yield report


@contextmanager
def splitting(link: Channel, chosen: Options, namespace: dict[str, Any], report: Report, tell: object = None) -> Iterator[Session]:
    """The layers are split over the ranks of this channel. tell: see `mode`'s `failed`."""
    report.details["whole"] = False  # until the end: a caller must not use what a cell left that is not whole
    session = Session(link, chosen, namespace, report.say)
    report.at_end = session.at_end
    connect(link)
    error: BaseException | None = None
    try:
        try:
            with session.running():
                yield session
        except BaseException as raised:
            error = raised
            if callable(tell):
                tell(error)
        if error is None or (isinstance(error, Exception) and not isinstance(error, PeerFailed)):
            _end(session, report, error, tell)
        if error is not None:
            raise error
    finally:
        forget()
        connect(None)


def _end(session: Session, report: Report, error: BaseException | None, tell: object) -> None:
    try:
        _meet(session, error)
        _finish(session, report, error)
    except Exception as late:
        if callable(tell) and late is not error:
            tell(late)
        raise


def _meet(session: Session, error: BaseException | None) -> None:
    try:
        meet(session, error)
    except PeerFailed as late:
        raise error or late from None  # the others were stopped because of this very error


def _finish(session: Session, report: Report, error: BaseException | None) -> None:
    """Make everything whole; after an error too, as one process keeps what the cell did before it."""
    link = session.channel
    if error is not None:
        traceback.clear_frames(error.__traceback__)  # they hold graphs
        traceback.clear_frames(getattr(sys, "last_traceback", None))
    try:
        with torch._C.DisableTorchFunction():
            kept = {} if link.in_mesh else session.kept()  # what stays on its ranks is there once
            held = make_whole(session.namespace, kept)
    except Unsupported as stuck:
        if error is None:
            raise
        report.say(str(stuck))
        return
    report.details["whole"] = True
    if not link.in_mesh:
        report.details["kept"] = kept
    if session.placed:
        counts = [list(session.placed.values()).count(rank) for rank in range(link.size)]
        what = "stage" if link.in_mesh else "rank"
        report.say(f"layers by {what}: " + ", ".join(map(str, counts)))
    else:
        report.say("nothing was split: no module with parameters was called (a layer's .forward does not count, its call does)")
    report.details.update(
        placed=dict(session.placed),
        operations=link.operations,
        messages=link.messages,
        broadcasts=link.broadcasts,
        bytes=link.bytes,
        written_back=held,
        by_operation=dict(session.units.why),
    )


def parse(options: Mapping[str, object]) -> Options:
    """Options from a magic's line. Raises OptionError."""
    for name in options:
        if name not in KNOWN:
            raise OptionError(f"unknown option {name!r}.{suggest(name, KNOWN)}")
    balance = str(options.get("balance") or "params")
    if balance not in _BALANCES:
        raise OptionError(f"--balance {balance}: one of {', '.join(_BALANCES)}.{suggest(balance, _BALANCES)}")
    how = str(options.get("how") or "layers")
    if how not in _HOWS:
        raise OptionError(f"--how {how}: one of {', '.join(_HOWS)}.{suggest(how, _HOWS)}")
    if how == "tensor":
        raise OptionError("--how tensor: with %%parallel model, or a mesh of one row")
    keep = options.get("keep") or ()
    names = tuple(keep.split(",")) if isinstance(keep, str) else tuple(map(str, keep))  # type: ignore[call-overload]
    return Options(
        micro=_micro(options.get("micro")),
        place=_places(options.get("place")),
        balance=balance,
        keep=names,
        out=tuple(map(str, options.get("out") or ())),  # type: ignore[call-overload]
        build=int(options.get("build", SMALL)),  # type: ignore[call-overload]
        units=bool(options.get("units", True)),
    )


def _micro(text: object) -> int:
    if text == "auto":
        return 0
    if text is None:
        return 1
    if not str(text).isdigit() or int(str(text)) < 1:
        raise OptionError(f"--micro {text}: a number of micro-batches, or auto")
    return int(str(text))


def _places(text: object) -> dict[str, int]:
    if not text:
        return {}
    if isinstance(text, Mapping):
        return {str(name): int(rank) for name, rank in text.items()}
    places = {}
    for item in str(text).split(","):
        name, equals, rank = item.partition("=")
        if not equals or not rank.strip().isdigit():
            raise OptionError(f"--place {item}: write name=rank, as in --place encoder=0,decoder=1")
        places[name.strip()] = int(rank)
    return places
