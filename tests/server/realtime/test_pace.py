"""The paces of projects in one process, by a clock of the test's own."""

import pytest

from server.base.limits import DEFAULT_TIERS
from server.realtime import pace
from server.realtime.pace import Pace, Paces

FREE = DEFAULT_TIERS["free"]


class Clock:
    now = 50.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_a_burst_passes_and_then_so_many_a_second():
    one = Pace()
    delays = [one.delay(100.0, 10, 5) for _ in range(16)]
    assert delays[:6] == [0.0] * 6
    assert delays[6:] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert one.delay(200.0, 10, 5) == 0.0


def test_who_is_refused_takes_no_turn():
    one = Pace()
    for _ in range(20):
        one.delay(100.0, 1, 1, 10)
    after = one.next
    assert one.delay(100.0, 1, 1, 5) > 5
    assert one.next == after


def test_frames_go_at_the_projects_rate_and_others_are_not_concerned(clock):
    paces = Paces(clock)

    def send(project, count):
        for _ in range(count):
            clock.now += paces.frame(project, FREE)

    send("loud", 2_000)
    rate = pace.FRAMES * FREE.realtime_messages
    assert clock.now - 50.0 == pytest.approx(2_000 / rate - 1, rel=0.01)
    before = clock.now
    send("other", 10)
    assert clock.now == before


def test_deliveries_go_at_many_times_the_rate(clock):
    paces = Paces(clock)

    for _ in range(100):
        clock.now += paces.deliveries("loud", FREE, 200)
    rate = pace.DELIVERIES * FREE.realtime_messages
    assert clock.now - 50.0 == pytest.approx(20_000 / rate, rel=0.1)


def test_a_storm_of_openings_is_spread_and_then_refused(clock):
    paces = Paces(clock)
    opened = [paces.opening("p", FREE) is not None for _ in range(500)]
    most = FREE.realtime_connections
    allowed = most / pace.AHEAD + most / pace.OPENINGS * pace.MOST_SECONDS
    assert opened.count(True) == pytest.approx(allowed, abs=3)


def test_the_paces_of_many_projects_are_bounded(clock):
    paces = Paces(clock)

    for number in range(3 * pace.KEPT):
        paces.frame(f"p{number}", FREE)
        clock.now += 1.0
    assert len(paces._paces) <= pace.KEPT
