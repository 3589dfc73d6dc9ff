"""What other meshes, micro-batches and schedules would cost: all answers beforehand, so that a page can look them up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from nbpar.plan.mesh import Mesh
from nbpar.plan.plan import KINDS, Plan, divided
from nbpar.plan.schedule import SCHEDULES

RANKS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
MICRO = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Answer:
    """Predicted. memory: bytes by kind of each stage's fullest rank; waiting: share of a step; sent: bytes of the busiest rank."""

    mesh: Mesh
    micro: int
    schedule: str
    memory: tuple[tuple[int, ...], ...]
    waiting: float
    sent: int

    @property
    def fullest(self) -> int:
        return max(map(sum, self.memory))


def meshes(ranks: int, layers: int) -> Iterator[Mesh]:
    """All shapes of so many ranks that give each stage a layer."""
    for model in range(1, ranks + 1):
        if ranks % model == 0 and model <= max(1, layers):
            yield Mesh(ranks // model, model)


def answers(plan: Plan) -> list[Answer]:
    """For each mesh of up to 64 ranks, and for each number of micro-batches and schedule where they matter."""
    found = []
    largest = max(plan.figures.rows, 1)
    for ranks in RANKS:
        for mesh in meshes(ranks, len(plan.layers)):
            if mesh.data > largest:
                continue
            owners = plan.owners if mesh.model == plan.mesh.model else divided(plan.layers, mesh.model)
            for micro in MICRO if mesh.model > 1 else (1,):
                if micro * mesh.data > max(largest, mesh.data):
                    continue
                for schedule in SCHEDULES if micro > 1 else ("gpipe",):
                    found.append(answer(replace(plan, mesh=mesh, owners=owners, micro=micro, schedule=schedule)))
    return found


def answer(plan: Plan) -> Answer:
    memory = tuple(tuple(plan.memory[stage][kind] for kind in KINDS) for stage in range(plan.mesh.model))
    return Answer(plan.mesh, plan.micro, plan.schedule, memory, plan.waiting, max(plan.sent))
