"""Chores are spread over the agents of an allocation, whatever ends, connects or leaves meanwhile."""

from __future__ import annotations

import tempfile
from pathlib import Path

from allocations import Allocation
from hypothesis import given, settings
from hypothesis import strategies as st

from matforge.executors.protocol import Task
from matforge.model import Resources

CORES = 4
WIDTHS = (1, 1, 1, 2, 4)


def loads(allocation: Allocation) -> list[int]:
    return [agent.block.load for agent in allocation.agents]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_agent_stays_idle_while_the_head_of_the_queue_would_fit_there(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as home:
        allocation = Allocation(Path(home), nodes=data.draw(st.integers(1, 6)), cores=CORES)
        silent, lanes = list(allocation.agents), allocation.lanes
        recorded: list[Task] = []
        ended = set()
        for _ in range(data.draw(st.integers(1, 40))):
            what = data.draw(st.sampled_from(["connect", "submit", "finish", "dismiss"]))
            busy = [agent for agent in allocation.agents if agent.link.in_flight]
            if what == "connect" and silent:
                allocation.connect([silent.pop(data.draw(st.integers(0, len(silent) - 1)))])
                lanes.dispatch(0.0)
            elif what == "submit":
                widths = data.draw(st.lists(st.sampled_from(WIDTHS), max_size=12))
                alone = data.draw(st.booleans()) and data.draw(st.booleans())
                more = [allocation.task(Resources(cores_per_task=n), alone=alone) for n in widths]
                recorded += more
                lanes.submit(more, 0.0)
            elif what == "finish" and busy:
                agent = data.draw(st.sampled_from(busy))
                handles = sorted(agent.link.in_flight)
                handles = handles[: data.draw(st.integers(1, len(handles)))]
                ended.update(agent.link.in_flight[handle] for handle in handles)
                allocation.finish(agent, handles)
            elif what == "dismiss" and len([a for a in allocation.agents if a.open]) > 1:
                allocation.fleet.dismiss(data.draw(st.sampled_from([a for a in allocation.agents if a.open])))
            begun = ended.union(*(agent.link.in_flight.values() for agent in allocation.agents))
            waiting = recorded[len(begun) :]
            assert begun == {task.attempt for task in recorded[: len(begun)]}  # in their order
            for agent in allocation.agents:
                assert 0 <= agent.block.load < agent.slots + CORES  # the last may have to wait there
                assert agent.alone is None or list(agent.link.in_flight.values()) == [agent.alone]
            if waiting:
                head = waiting[0]
                fitting = [
                    agent
                    for agent in allocation.agents
                    if agent.open and agent.block.load < agent.slots and not (head.alone and agent.block.load)
                ]
                assert not fitting


def test_chores_are_spread_evenly_and_replaced_where_they_end(tmp_path: Path) -> None:
    allocation = Allocation(tmp_path, nodes=8, cores=CORES)
    allocation.connect(allocation.agents)
    allocation.lanes.submit([allocation.task() for _ in range(16)], 0.0)
    assert loads(allocation) == [2] * 8
    allocation.lanes.submit([allocation.task() for _ in range(100)], 0.0)
    assert loads(allocation) == [CORES] * 8
    for agent in allocation.agents[::2]:
        allocation.finish(agent, sorted(agent.link.in_flight)[:3])
    assert loads(allocation) == [CORES] * 8
    in_flight = {a.chore_id for agent in allocation.agents for a in agent.link.in_flight.values()}
    assert f"chore-{32 + 12}" in in_flight  # the next twelve in their order
    assert f"chore-{32 + 12 + 1}" not in in_flight


def test_short_chores_are_given_ahead_once_it_is_known_that_they_are_short(tmp_path: Path) -> None:
    allocation = Allocation(tmp_path, nodes=3, cores=CORES)
    allocation.connect(allocation.agents)
    allocation.lanes.submit([allocation.task() for _ in range(1000)], 0.0)
    assert loads(allocation) == [CORES] * 3
    allocation.finish(allocation.agents[0], sorted(allocation.agents[0].link.in_flight)[:1], wall_s=0.001)
    assert min(loads(allocation)) > CORES
