"""A place where agents cannot live is told from a chore that kills them."""

from __future__ import annotations

from matforge.executors.channel import node_lost
from matforge.executors.protocol import Lost
from matforge.executors.restarts import RESTART_WINDOW_S, RESTARTS, Restarts
from matforge.model import Attempt

OFF = node_lost("off")


def lost(*names: str) -> list[Lost]:
    return [Lost(Attempt(name, 1, 1), OFF, len(names) == 1) for name in names]


def test_agents_that_end_idle_or_busy_within_a_minute_are_enough() -> None:
    ends = Restarts()
    found = [ends.count(float(n), lost("a", "b") if n % 2 else []) for n in range(RESTARTS)]
    assert found == [False] * (RESTARTS - 1) + [True]


def test_ends_over_a_longer_time_or_with_finished_chores_between_are_not() -> None:
    ends = Restarts()
    assert not any(ends.count(n * RESTART_WINDOW_S / (RESTARTS - 1.5), []) for n in range(20))
    ends = Restarts()
    for n in range(20):
        assert not ends.count(float(n), [])
        ends.works()


def test_those_that_never_connect_are_enough_however_long_each_has_taken() -> None:
    ends = Restarts()
    found = [ends.count(n * 10 * RESTART_WINDOW_S, [], connected=False) for n in range(RESTARTS)]
    assert found == [False] * (RESTARTS - 1) + [True]
    ends = Restarts()
    for n in range(20):
        assert not ends.count(n * 10 * RESTART_WINDOW_S, [], connected=False)
        ends.works()


def test_a_chore_that_kills_its_agents_until_it_is_set_aside_counts_once_and_many_such_are_enough() -> None:
    ends = Restarts()
    story = [
        [ends.count(0.0, lost(name, "work")) for _ in range(2)]
        + [ends.count(0.0, lost(name)) for _ in range(3)]
        for name in "abcd"
    ]
    assert not any(map(any, story[:3]))
    assert any(story[3])
