"""A notebook's namespace and ranks in real processes, joined by pipes: the values layer without a world around it."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import traceback
import types
from typing import Any

from nbpar import cell as cells
from nbpar.values import KernelEnd, Merged, Packed, RankEnd

SPAWN = multiprocessing.get_context("spawn")


class CellFailed(Exception):
    pass


def serve(pipe: Any, rank: int, size: int, shared: bool) -> None:
    """A rank's process: loads, runs, replies, answers."""
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    namespace = main.__dict__
    namespace.update(rank=lambda: rank, In=[""], Out={}, _="", get_ipython=None)
    del namespace["rank"]
    end = RankEnd(namespace, rank, size, shared=shared)
    while True:
        what, *args = pipe.recv()
        try:
            if what == "cell":
                number, code, frames, extra, options = args
                end.load(frames, extra)
                os.environ["RANK"] = str(rank)
                exec(compile(code, f"<cell {number}>", "exec"), namespace)
                answer = end.reply(number, **options)
            elif what == "ask":
                answer = end.answer(args[0])
            elif what == "eval":
                answer = [pickle.dumps(eval(args[0], {"end": end, "namespace": namespace}))]
            pipe.send([bytes(frame) for frame in answer])
        except BaseException:
            pipe.send(traceback.format_exc())


class World:
    """Ranks that live through many notebooks: `fresh()` begins a new one."""

    def __init__(self, size: int, *, shared: bool = True) -> None:
        self.size, self.shared = size, shared
        os.environ["PYTHONHASHSEED"] = "0"
        self.pipes, self.processes = [], []
        for rank in range(size):
            ours, theirs = SPAWN.Pipe()
            process = SPAWN.Process(target=serve, args=(theirs, rank, size, shared), daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)
        self.fresh()

    def fresh(self) -> dict[str, Any]:
        self.namespace: dict[str, Any] = {"__name__": "__main__"}
        self.end = KernelEnd(self.namespace, self.size, shared=self.shared)
        self.number = 0
        return self.namespace

    def do(self, code: str) -> None:
        """A cell in the notebook itself."""
        exec(compile(code, "<notebook>", "exec"), self.namespace)

    def run(
        self, code: str, *, reads: str | None = None, on: list[int] | None = None, everything: bool = False, **options: Any
    ) -> Merged:
        """A parallel cell. Raises CellFailed, with nothing merged, if it fails on a rank."""
        self.number += 1
        ranks = on or list(range(self.size))
        names = cells.names(code).reads if reads is None else reads.split()
        self.packed: Packed = self.end.pack(names, cell=self.number, everything=everything)
        frames = [bytes(frame) for frame in self.packed.frames]
        for rank in ranks:
            extra = [bytes(frame) for frame in self.packed.extra.get(rank, [])]
            self.pipes[rank].send(("cell", self.number, code, frames, extra, options))
        replies = [self.pipes[rank].recv() for rank in ranks]
        if any(isinstance(reply, str) for reply in replies):
            self.end.forget()
            raise CellFailed("\n".join(reply for reply in replies if isinstance(reply, str)))
        self.asked = 0
        out, keep = options.get("out"), options.get("keep", ())
        self.merged = self.end.merge(replies, lambda request: self.ask(ranks, request), out=out, keep=keep, ranks=ranks)
        return self.merged

    def ask(self, ranks: list[int], request: bytes) -> list[list[bytes]]:
        self.asked += 1
        for rank in ranks:
            self.pipes[rank].send(("ask", request))
        answers = [self.pipes[rank].recv() for rank in ranks]
        assert not any(isinstance(answer, str) for answer in answers), answers
        return answers

    def look(self, rank: int, expression: str) -> Any:
        """Evaluates an expression about a rank's `end` and `namespace`."""
        self.pipes[rank].send(("eval", expression))
        answer = self.pipes[rank].recv()
        assert not isinstance(answer, str), answer
        return pickle.loads(answer[0])

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()
