"""Enter and leave mode `hybrid`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from typing import Any

import torch.distributed as dist

from nbpar.errors import OptionError, suggest
from nbpar.parallel.data.call import Splitter
from nbpar.parallel.data.context import read_remote
from nbpar.parallel.data.mode import Options as DataOptions
from nbpar.parallel.data.mode import mode as split_rows
from nbpar.parallel.data.mode import splitting as splitting_rows
from nbpar.parallel.data.mode import streams
from nbpar.parallel.data.ranks import Ranks
from nbpar.parallel.model.channel import Channel
from nbpar.parallel.model.mode import KNOWN as OF_MODEL
from nbpar.parallel.model.mode import mode as split_layers
from nbpar.parallel.model.mode import parse
from nbpar.parallel.model.mode import splitting as splitting_layers
from nbpar.parallel.report import Report
from nbpar.parallel.tensor.mode import KNOWN as OF_TENSOR
from nbpar.parallel.tensor.mode import splitting as splitting_tensors
from nbpar.parallel.tensor.ranks import Ranks as TensorRanks
from nbpar.plan.mesh import Mesh, mesh_of

from .columns import Columns
from .replicas import Pieces, Replicas
from .shards import ShardColumns

Group = dist.ProcessGroup

OF_DATA = tuple(field.name for field in fields(DataOptions))


@contextmanager
def mode(options: Mapping[str, object], namespace: dict[str, Any], report: Report) -> Iterator[None]:
    """The batch is split over the rows of a mesh of all ranks, the layers over its columns.

    options: mesh ("2x2"), those of mode `data` and those of mode `model`. Raises OptionError, Unsupported.
    """
    mesh = read_mesh(options.get("mesh"))
    given = {name: value for name, value in options.items() if name != "mesh"}
    for name in given:
        if name not in (*OF_DATA, *OF_MODEL):
            raise OptionError(f"%%parallel hybrid has no option {name!r}.{suggest(name, (*OF_DATA, *OF_MODEL))}")
    of_data = {name: value for name, value in given.items() if name in OF_DATA}
    of_model = {name: value for name, value in given.items() if name in OF_MODEL}
    if mesh.data == 1 or mesh.model == 1:
        border = split_rows(of_data, namespace, report) if mesh.model == 1 else split_layers(of_model, namespace, report)
        with border:
            yield
        return
    chosen = DataOptions.of(of_data)
    axis = tensors_split if of_model.get("how") == "tensor" else layers_split
    with groups(mesh) as (row, column), axis(mesh, row, column, of_model, namespace, report) as (ranks, splitter):
        in_step = len(set(ranks.objects(streams()))) == 1
        with splitting_rows(chosen, ranks, namespace, report, splitter, in_step=in_step, eager=True):
            yield


@contextmanager
def layers_split(  # noqa: PLR0917
    mesh: Mesh, row: Group, column: Group, options: Mapping[str, object], namespace: dict[str, Any], report: Report
) -> Iterator[tuple[Ranks, Callable[..., Splitter]]]:
    """Each rank of a row holds some of the layers. Gives the ranks that share the rows of a batch, and what splits calls."""
    layers = parse(options)
    link = Channel(row, everyone=dist.group.WORLD)
    ranks = Columns(mesh, row, column)
    with splitting_layers(link, layers, namespace, report, options.get("failed")) as session:
        link.on_read, ranks.dispatch = read_remote, session.dispatch
        session.micro = Pieces(layers.micro, session.dispatch, report.say, session.cores)
        yield ranks, partial(Replicas, session=session)


@contextmanager
def tensors_split(  # noqa: PLR0917
    mesh: Mesh, row: Group, column: Group, options: Mapping[str, object], namespace: dict[str, Any], report: Report
) -> Iterator[tuple[Ranks, Callable[..., Splitter]]]:
    """Each rank of a row holds some columns of each layer."""
    for name in options:
        if name not in OF_TENSOR:
            raise OptionError(f"%%parallel hybrid --how tensor has no option {name!r}.{suggest(name, OF_TENSOR)}")
    shared = TensorRanks(row, everyone=dist.group.WORLD)
    with splitting_tensors(shared, namespace, report, options.get("failed")) as session:
        yield ShardColumns(mesh, column), partial(Replicas, session=session)


def read_mesh(text: object) -> Mesh:
    """Raises OptionError where there is none, or not as many ranks as it has places."""
    if text is None:
        raise OptionError("%%parallel hybrid needs --mesh DATAxMODEL, as in --mesh 2x2")
    mesh = mesh_of("hybrid", text)  # type: ignore[arg-type]
    size = dist.get_world_size()
    if mesh.size != size:
        raise OptionError(f"--mesh {mesh} is for {mesh.size} ranks, and there are {size}: write -n {mesh.size}")
    return mesh


@contextmanager
def groups(mesh: Mesh) -> Iterator[tuple[dist.ProcessGroup, dist.ProcessGroup]]:
    """This rank's row and column of the mesh. All ranks make all groups, in one order."""
    rank = dist.get_rank()
    rows = [[replica * mesh.model + stage for stage in range(mesh.model)] for replica in range(mesh.data)]
    columns = [list(mesh.holders(stage)) for stage in range(mesh.model)]
    own = [group for ranks in (*rows, *columns) if (group := dist.new_group(ranks)) and rank in ranks]
    try:
        yield own[0], own[1]
    finally:
        for group in own:
            dist.destroy_process_group(group)
