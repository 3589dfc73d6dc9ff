"""The World: N ranks, from their start to their end."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import IO, Any

from nbpar.display.stream import name_ranks
from nbpar.errors import LaunchError, OptionError, RankDied
from nbpar.ranks import guard, launch, machine
from nbpar.ranks import hosts as places
from nbpar.ranks.channel import KEY, Hub, Message
from nbpar.ranks.snapshots import Snapshots
from nbpar.ranks.surroundings import Surroundings
from nbpar.values import KernelEnd

START_SECONDS = 120  # a cold disk can take long to import torch
ONE_HOST = {"UCX_TLS": "self,sm"}  # MPICH's transport: no network, no listening port
LOOK = 0.5  # seconds between two looks at whether all hosts are there
ALIKE = {"nbpar": "nbpar", "python": "Python", "torch": "torch", "mpi": "MPI"}  # facts that must agree
TAIL = 400  # characters of a rank's output that are remembered
SETTLE = 0.25  # seconds for what follows from a death: other deaths, and the launcher's own end


@dataclass(frozen=True)
class Settings:
    """What a person may choose about a world.

    interface: where to listen for ranks, encrypted. None: where the hosts are reached from, on one host Unix sockets.
    """

    size: int | None = None
    backend: str = "mpi"
    mpiexec: str | None = None
    mpi_args: str = ""
    device: str = "cpu"
    interface: str | None = None
    hosts: tuple[places.Host, ...] = ()

    @property
    def most(self) -> int:
        """How many ranks there may be."""
        return sum(host.slots for host in self.hosts) if self.hosts else 512 if places.slurm_size() is None else 8192

    @property
    def default_size(self) -> int:
        return self.most if self.hosts else places.slurm_size() or machine.default_size()

    def count(self) -> int:
        """How many ranks the world has. Raises OptionError if it cannot have so many."""
        size = self.default_size if self.size is None else self.size
        if not 1 <= size <= self.most:
            where = "these hosts" if self.hosts else "this host"
            raise OptionError(f"-n {size}: a world on {where} has between 1 and {self.most} ranks. Type for example `-n 2`.")
        return size


class World:
    """N ranks that belong to one notebook.

    size: number of ranks; pids, hosts: of the ranks' processes, by rank; hurt: whether the ranks must make their communicators
    anew before the next cell.
    """

    def __init__(self, settings: Settings, namespace: dict[str, Any]) -> None:
        self.settings, self.size = settings, settings.count()
        self.namespace = namespace
        self.facts: list[dict[str, Any]] = []
        self.said: dict[int, str] = {}  # the end of what each rank has printed
        self.memory: dict[int, int] = {}  # bytes that ranks held when they last said so
        self.produced: dict[int, int] = {}  # output received, by rank
        self.unshown: list[Message] = []  # output that came while no cell took it: the next one shows it
        self.sent_sources: set[str] = set()  # file names of the cells whose text the ranks have
        self.snapshots = Snapshots()
        self.surroundings: Surroundings  # since the start
        self.cell = 0
        self.hurt = False
        self.fresh = True  # no cell has been run
        self.start_seconds = 0.0  # that the last start took, until a person has been told
        self.values = KernelEnd(namespace, self.size)
        self.spread = False  # over several hosts
        self._look_at = 0.0
        self._interrupts = 0  # so far
        self._hub: Hub | None = None
        self._launcher: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    # ---- what a notebook asks -------------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether the ranks are there. They may have died since the last cell: the next one finds out and replaces them."""
        return self._hub is not None

    @property
    def pids(self) -> list[int]:
        """Process ids by rank, on the ranks' hosts; empty before the first start."""
        return [fact["pid"] for fact in self.facts]

    @property
    def hosts(self) -> list[str]:
        """Host names by rank; empty before the first start."""
        return [fact["host"] for fact in self.facts]

    def __repr__(self) -> str:
        if not self.running:
            return f"<World of {self.size} ranks, stopped>"
        where = self.hosts[0] if len(set(self.hosts)) == 1 else f"{len(set(self.hosts))} hosts"
        return f"<World of {self.size} ranks on {where}, backend {self.settings.backend}>"

    def run(self, code: str, mode: str = "each", **options: Any) -> Any:
        """Runs a cell on the ranks; what `%%parallel` calls. The value of the cell's last expression, if it shows one.

        options: those of the magic, with `_` for `-` and as values: `run(code, "data", batch=("X", "y"), quiet=True)`.
        Raises what the cell raised if all ranks raised it alike, CellError if only some failed, RankDied, LaunchError,
        KeyboardInterrupt. Must be called in the kernel's main thread, as cells are.
        """
        from nbpar.run import run_cell

        return run_cell(self, code, mode, options)

    # ---- start and stop -------------------------------------------------------------------------------------------------

    def start(self) -> World:
        """Starts the ranks and waits until each has reported. Does nothing if they run. Raises LaunchError."""
        if self.running:
            return self
        settings, begin = self.settings, time.perf_counter()
        launcher = launch.find(settings.mpiexec, full=bool(settings.mpi_args or settings.hosts))
        try:
            self._start(launcher)
        except LaunchError as error:
            if not error.early:
                raise
            self._start(launcher)  # MPICH names its memory by the launcher's process id: one long gone may have left that name
        self.start_seconds = time.perf_counter() - begin
        return self

    def told(self) -> float:
        """Seconds that the start took, for the one who tells; 0 if that was told before."""
        seconds, self.start_seconds = self.start_seconds, 0.0
        return seconds

    def _start(self, launcher: launch.Launcher) -> None:
        machine.allow_files(3 * self.size + 1024)  # three connections a rank, and what the notebook has open
        self._hub = Hub(self._reach(launcher))
        self._log = tempfile.TemporaryFile()
        self.facts, self.said, self.memory, self.hurt, self.fresh = [], {}, {}, False, True
        self.produced = dict.fromkeys(range(self.size), 0)
        self.unshown = []
        self.sent_sources = set()
        self.surroundings = Surroundings()
        try:
            self._launcher = self._launch(launcher, self._environment(self._hub.environment))
            self.facts = self._handshake(launcher)
            self.said.clear()
        except BaseException:
            self._tear_down()
            raise
        self.values = KernelEnd(self.namespace, self.size, shared=not self.spread)

    def _reach(self, launcher: launch.Launcher) -> str | None:
        """The address at which ranks reach the kernel, None for Unix sockets; whether they are spread over several hosts."""
        settings = self.settings
        names = [host.name for host in settings.hosts] or (places.of_slurm() if launcher.kind == "srun" else ())
        self.spread = bool(names)
        return settings.interface or (places.own_address(names) if names else None)

    def _launch(self, launcher: launch.Launcher, own: dict[str, str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            launcher.command(self.size, self.settings.mpi_args, self.settings.hosts, own),
            env={**({} if self.spread else ONE_HOST), **os.environ, **own},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # signals for the notebook's process group do not reach the ranks
        )

    def stop(self) -> None:
        """Ends the ranks; nothing of them is left when it returns. What the notebook holds stays."""
        if not self.running:
            return
        assert self._hub and self._launcher
        if not self.fresh:  # else they have nothing to end in good order, and may be importing what first cells need
            for rank in range(self.size):
                self._hub.send("main", rank, Message("exit"))
            try:
                self._launcher.wait(2)
            except subprocess.TimeoutExpired:
                pass
        self._tear_down()

    def lost(self) -> str:
        """What would end with the ranks, in words."""
        return self.values.lost(self.snapshots.saved) if self.running else ""

    def restart(self) -> World:
        """Fresh processes, the same variables."""
        self.stop()
        return self.start()

    def resized(self, size: int) -> Settings:
        """The settings of a world like this one with `size` ranks. Raises OptionError if it cannot have them."""
        settings = replace(self.settings, size=size)
        settings.count()
        return settings

    @property
    def again(self) -> str:
        """How ranks come after these have died."""
        return "The next %%parallel cell starts new ranks."

    def _environment(self, channel: dict[str, str]) -> dict[str, str]:
        """What the ranks must have, besides what the notebook has."""
        here = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        path = os.pathsep.join(dict.fromkeys([here, *(p for p in sys.path if p)]))
        return {
            **channel,
            guard.KERNEL: f"{os.uname().nodename}:{os.getpid()}",
            "NBPAR_SIZE": str(self.size),
            "NBPAR_SPREAD": str(int(self.spread)),
            "NBPAR_BACKEND": self.settings.backend,
            "NBPAR_DEVICE": self.settings.device,
            "NBPAR_SEED": str(secrets.randbelow(2**31)),
            "PYTHONHASHSEED": str(secrets.randbelow(2**32)),
            "PYTHONPATH": path,
        }

    def _handshake(self, launcher: launch.Launcher) -> list[dict[str, Any]]:
        assert self._hub and self._launcher and self._log
        facts: dict[int, dict[str, Any]] = {}
        deadline = time.monotonic() + START_SECONDS
        guarded: set[int] = set()
        while len(facts) < self.size or len(guarded) < self.size:
            ended = self._launcher.poll() is not None
            for message in self._hub.receive(SETTLE if ended else 0.1):
                if message.kind == "ready":
                    facts[message.rank] = message.header
                elif message.kind == "guard":
                    guarded.add(message.rank)
                elif message.kind == "output":
                    self.note_output(message)
                    self._log.write("".join(str(text) for _, text in message.header).encode())
                elif message.kind == "failed":
                    raise LaunchError(self._explain(launcher, f"rank {message.rank} did not start: {message.header['text']}"))
                elif message.kind == "exit":
                    how = describe_exit(message.header["code"])
                    raise LaunchError(self._explain(launcher, f"rank {message.rank} ended before it was ready ({how})"), early=True)
            if ended:
                what = f"it ended with {self._launcher.returncode} before the ranks were ready"
                raise LaunchError(self._explain(launcher, what), early=True)
            if time.monotonic() > deadline:
                missing = name_ranks(sorted(set(range(self.size)) - set(facts)))
                raise LaunchError(self._explain(launcher, f"after {START_SECONDS} s nothing was heard of rank {missing}"))
            if any(fact["size"] != self.size for fact in facts.values()):
                library = next(iter(facts.values()))["mpi"]
                raise LaunchError(
                    f"{launcher.path} started {self.size} processes, but each believes that it is alone: the launcher does "
                    f"not belong to the MPI library that mpi4py loads ({library}). Type `%parallel start --mpiexec PATH`."
                )
        self._check_alike(facts)
        return [facts[rank] for rank in range(self.size)]

    def _check_alike(self, facts: dict[int, dict[str, Any]]) -> None:
        for name, what in ALIKE.items():
            found = {fact[name]: fact["host"] for fact in facts.values()}
            if len(found) > 1:
                versions = ", ".join(f"{version} on {host}" for version, host in found.items())
                raise LaunchError(f"The hosts do not have the same {what}: {versions}. Use one environment on all of them.")

    def _explain(self, launcher: launch.Launcher, what: str) -> str:
        text = f"The ranks did not start: {what}.\nLauncher: {launcher.path} ({launcher.why})."
        if said := self._log_tail():
            text += f"\nIt said:\n{said}"
        return text

    def _log_tail(self) -> str:
        if self._log is None:
            return ""
        self._log.seek(0)
        text = self._log.read().decode(errors="replace")
        key = self._hub.environment.get(KEY) if self._hub else None
        return (text.replace(key, "…") if key else text).strip()[-2000:]  # launchers can be told to print the environment

    def _tear_down(self) -> None:
        """Ends all processes by their ids: the ranks by way of their guards, the launcher by its process group, our own."""
        if self._launcher is not None:
            if self._launcher.poll() is None:
                for rank in range(self.size):
                    if self._hub:
                        self._hub.send("guard", rank, Message("kill", {"signal": int(signal.SIGKILL)}))
                try:
                    self._launcher.wait(SETTLE)
                except subprocess.TimeoutExpired:
                    os.killpg(self._launcher.pid, signal.SIGKILL)
                    self._launcher.wait()
            self._launcher = None
        if self._hub is not None:
            self._hub.close()
            self._hub = None
        if self._log is not None:
            self._log.close()
            self._log = None

    # ---- while a cell runs ----------------------------------------------------------------------------------------------

    def send(self, rank: int, message: Message) -> None:
        """To a rank's main thread."""
        assert self._hub
        self._hub.send("main", rank, message)

    def abort(self, rank: int, reason: str) -> None:
        """Ends that rank's waiting for others, wherever it waits."""
        self.hurt = True
        self.tell(rank, "abort", (self.cell, reason))

    def interrupt(self, rank: int) -> None:
        """KeyboardInterrupt in that rank, if it runs the current cell."""
        self.hurt = True
        assert self._hub
        self._interrupts += 1
        for role in ("side", "guard"):
            self._hub.send(role, rank, Message("interrupt", (self.cell, self._interrupts)))

    def tell(self, rank: int, kind: str, header: Any = None) -> None:
        """To a rank's I/O thread."""
        assert self._hub
        self._hub.send("side", rank, Message(kind, header))

    def nudge(self) -> None:
        """Ends the waiting in `events`; also from a signal's handler."""
        if self._hub is not None:
            self._hub.nudge()

    def renew(self) -> None:
        """After an aborted cell: all ranks make their communicators anew before they do anything else."""
        if self.hurt:
            for rank in range(self.size):
                self.send(rank, Message("renew"))
            self.hurt = False

    def note_output(self, message: Message) -> None:
        """Counts a rank's output and remembers its end, in case the rank dies. A line may come in pieces."""
        for name, value in message.header:
            self.produced[message.rank] += len(value) if isinstance(value, str) else 1
            if name in ("stdout", "stderr"):
                self.said[message.rank] = (self.said.get(message.rank, "") + value[-TAIL:])[-TAIL:]

    def check(self) -> RankDied | None:
        """What happened to the ranks while no cell ran: None, or a death, after which the world is stopped."""
        try:
            for _ in self.answers(0):
                pass
        except RankDied as death:
            return death
        return None

    def answers(self, timeout: float) -> Iterator[Message]:
        """The same as `events`, up to `timeout` seconds, while no cell takes output, which is kept."""
        for message in self.events(timeout):
            if message.kind == "output":
                self.note_output(message)
                self.unshown.append(message)
            else:
                yield message

    def events(self, timeout: float) -> Iterator[Message]:
        """What ranks said; waits up to `timeout` seconds. Raises RankDied, after which the world is stopped, if one has ended."""
        assert self._hub and self._launcher
        for message in self._hub.receive(timeout):
            if message.kind == "exit":
                raise self._fell(message)
            if message.role != "guard":
                yield message
        if self._launcher.poll() is not None:
            raise self._fell(next((m for m in self._hub.receive(SETTLE) if m.kind == "exit"), None))
        if self.spread and time.monotonic() >= self._look_at:
            self._look_for_hosts()

    def _look_for_hosts(self) -> None:
        """A host that was cut off says nothing; its connections end for want of heartbeats."""
        assert self._hub
        self._look_at = time.monotonic() + LOOK
        gone = [rank for rank in range(self.size) if not self._hub.send("guard", rank, Message("there"))]
        if not gone:
            return
        if last := next((m for m in self._hub.receive(SETTLE) if m.kind == "exit"), None):
            raise self._fell(last)
        host = self.facts[gone[0]]["host"]
        there, lost = [rank for rank in range(self.size) if self.facts[rank]["host"] == host], self.lost()
        self._tear_down()
        text = f"{host} cannot be reached any more: nothing was heard of rank {name_ranks(there)}. {after(lost, self.again)}"
        raise RankDied(text, rank=gone[0], host=host, reason="its host cannot be reached")

    def _fell(self, first: Message | None) -> RankDied:
        """A rank ended: the error that says so. The launcher ends the others, and we see to it."""
        status = self._launcher.poll() if self._launcher else None
        facts, lost = self.facts, self.lost()
        self._tear_down()
        if first is None:
            return RankDied(
                f"The launcher ended ({describe_exit(status or 0)}) and took the ranks with it. {after(lost, self.again)}",
                rank=-1, host=os.uname().nodename, reason=describe_exit(status or 0),
            )  # fmt: skip
        rank, reason = first.rank, describe_exit(first.header["code"])
        if first.header["out_of_memory"]:
            reason += f" because memory ran out ({self._held({rank: first.header['peak']})})"
        host, pid = facts[rank]["host"], facts[rank]["pid"]
        text = f"rank {rank} (process {pid} on {host}) ended: {reason}."
        if line := self.said.get(rank, "").rstrip().rpartition("\n")[2].strip():
            text += f" Its last line of output: {line!r}."
        return RankDied(f"{text} {after(lost, self.again)}", rank=rank, host=host, reason=reason)

    def _held(self, peak: dict[int, int]) -> str:
        """What the ranks on the host of the one that died held, in words. peak: of that one."""
        host = self.facts[next(iter(peak))]["host"]
        held = {rank: self.memory[rank] for rank in self.memory if self.facts[rank]["host"] == host} | peak
        return ", ".join(f"rank {rank} held {held[rank] / 2**30:.1f} GiB" for rank in sorted(held))


def after(lost: str, again: str) -> str:
    """What a death means for the variables, and what comes next."""
    kept = f"{lost} The other variables" if lost else "Its variables"
    return f"{kept} are in the notebook. {again}"


def describe_exit(code: int) -> str:
    """'killed by SIGKILL' or 'exit code 3'."""
    if code < 0:
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"killed by signal {-code}"
    return f"exit code {code}"
