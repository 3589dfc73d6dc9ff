from collections.abc import Iterator

import pytest

from tests.values.world import World


@pytest.fixture(scope="session")
def two_ranks() -> Iterator[World]:
    world = World(2)
    yield world
    world.close()


@pytest.fixture(scope="session")
def three_ranks() -> Iterator[World]:
    world = World(3)
    yield world
    world.close()


@pytest.fixture
def world(two_ranks: World) -> World:
    two_ranks.fresh()
    return two_ranks


@pytest.fixture
def world3(three_ranks: World) -> World:
    three_ranks.fresh()
    return three_ranks
