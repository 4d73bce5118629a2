"""A realtime process for each test that asks for one."""

import pytest

from tests.server.realtime.world import World


@pytest.fixture
def world():
    """Makes worlds, and ends them."""
    made = []

    def make(*projects, **options):
        made.append(World(*projects, **options))
        return made[-1]

    yield make
    for one in made:
        one.end()
