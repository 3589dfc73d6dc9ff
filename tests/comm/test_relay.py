"""Who hands values on to whom."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nbpar.comm.relay import branch, way


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=40), st.data())
def test_every_rank_is_reached_once_and_every_host_over_the_network_once(hosts: list[str], data: st.DataObject) -> None:
    ranks = data.draw(st.lists(st.sampled_from(range(len(hosts))), min_size=1, unique=True).map(sorted))
    ways = {rank: way(rank, ranks, hosts) for rank in ranks}
    sent = [(rank, child) for rank in ranks for child in ways[rank].children]
    assert sorted(child for _, child in sent) == ranks[1:] and ways[ranks[0]].parent is None
    assert all(ways[child].parent == rank for rank, child in sent)
    across = [hosts[child] for rank, child in sent if hosts[rank] != hosts[child]]
    assert sorted(across) == sorted({hosts[rank] for rank in ranks} - {hosts[ranks[0]]})


def test_a_thousand_ranks_are_ten_steps_away() -> None:
    ranks = range(1000)
    depth = {0: 0}
    for rank in ranks[1:]:
        parent = branch(rank, ranks).parent
        assert parent is not None
        depth[rank] = depth[parent] + 1
    assert max(depth.values()) <= 10 and len(branch(0, ranks).children) == 10
