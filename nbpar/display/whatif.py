"""What-if as pictures: a grid for where nothing moves, and the answers for the page's sliders."""

from __future__ import annotations

from typing import Any

from nbpar.display.closing import size_of
from nbpar.display.grid import Cell, Grid, level
from nbpar.display.split import WORDS
from nbpar.plan.plan import KINDS, Plan
from nbpar.plan.whatif import MICRO, Answer, answers


def grid(plan: Plan, found: list[Answer]) -> Grid:
    """Meshes of the plan's number of ranks × micro-batches: memory and waiting, predicted."""
    mine = [answer for answer in found if answer.mesh.size == plan.mesh.size and answer.schedule in (plan.schedule, "gpipe")]
    meshes = list(dict.fromkeys(answer.mesh for answer in mine))
    largest = max((answer.fullest for answer in mine), default=0)
    best = {(answer.mesh, answer.micro): answer for answer in mine}
    columns = [micro for micro in MICRO if any(answer.micro == micro for answer in mine)]
    cells = [[_cell(best.get((mesh, micro)), largest) for micro in columns] for mesh in meshes]
    return Grid(
        "what-if",
        f"What other meshes of {plan.mesh.size} ranks would cost (predicted): bytes of the fullest rank, share of a step waited",
        "mesh \\ micro-batches",
        tuple(f"{mesh} (data x model)" for mesh in meshes),
        tuple(map(str, columns)),
        tuple(map(tuple, cells)),
        tuple(f"up to {size_of(best[mesh, 1].sent)} sent by a rank and step" for mesh in meshes),
        explained=False,
    )


def _cell(answer: Answer | None, largest: int) -> Cell:
    if answer is None:
        return Cell("none", "–")
    return Cell(level(answer.fullest, largest), f"{size_of(answer.fullest)}, {answer.waiting:.0%}")


def state(plan: Plan, found: list[Answer]) -> dict[str, Any]:
    """For the page. part: what ranks of a replica hold one of. Each answer: data, model, micro, schedule, memory by part and
    kind in KiB, waiting in ‰, bytes sent."""
    return {
        "part": "shard" if plan.columns else "stage",
        "kinds": [WORDS[kind] for kind in KINDS],
        "now": [plan.mesh.data, plan.mesh.model, plan.micro, plan.schedule],
        "notes": list(plan.notes),
        "answers": [
            [
                answer.mesh.data,
                answer.mesh.model,
                answer.micro,
                answer.schedule,
                [[-(-amount // 1024) for amount in stage] for stage in answer.memory],
                round(answer.waiting * 1000),
                answer.sent,
            ]
            for answer in found
        ],
    }


def predicted(plan: Plan) -> tuple[Grid, dict[str, Any]]:
    found = answers(plan)
    return grid(plan, found), state(plan, found)
