"""What other meshes, micro-batches and schedules would cost: all answers beforehand, so that a page can look them up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from nbpar.plan.mesh import RANKS, Mesh
from nbpar.plan.plan import KINDS, Plan, divided
from nbpar.plan.schedule import SCHEDULES

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
    largest = max(plan.figures.rows, 1)
    over = over_columns if plan.columns else over_stages
    plans = (one for ranks in RANKS for one in over(plan, ranks))
    return [answer(one) for one in plans if one.mesh.data * one.micro <= largest]


def over_stages(plan: Plan, ranks: int) -> Iterator[Plan]:
    for mesh in meshes(ranks, len(plan.layers)):
        owners = plan.owners if mesh.model == plan.mesh.model else divided(plan.layers, mesh.model)
        for micro in MICRO if mesh.model > 1 else (1,):
            for schedule in SCHEDULES if micro > 1 else ("gpipe",):
                yield replace(plan, mesh=mesh, owners=owners, micro=micro, schedule=schedule)


def over_columns(plan: Plan, ranks: int) -> Iterator[Plan]:
    for mesh in meshes(ranks, ranks):
        if mesh.model in plan.figures.columns:
            yield replace(plan, mesh=mesh, columns=plan.figures.columns[mesh.model].layers)
        elif mesh.model == 1:
            yield replace(plan, mesh=mesh, columns=())


def answer(plan: Plan) -> Answer:
    memory = tuple(tuple(plan.memory[stage][kind] for kind in KINDS) for stage in range(plan.mesh.model))
    return Answer(plan.mesh, plan.micro, plan.schedule, memory, plan.waiting, max(plan.sent))
