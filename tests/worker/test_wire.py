"""What travels between driver, agent and slot."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matforge.executors import protocol
from matforge.executors.channel import AgentLink, profile_of
from matforge.executors.protocol import Finished, Lost, Started, Task, Withdrawn
from matforge.model import Attempt, Failure, FailureKind, Lane, Location, Resources, Usage
from matforge.worker import wire

HEADERS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(HEADERS, st.binary())
def test_a_packet_comes_out_as_it_went_in(header: Any, blob: bytes) -> None:
    assert wire.unpack(wire.pack(header, blob)) == (header, blob)


def test_executors_and_workers_agree_on_what_travels() -> None:
    assert wire.INLINE_LIMIT == protocol.INLINE_LIMIT


def test_the_configuration_is_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "agent.json"
    config = wire.AgentConfig(
        "/run", 1, 2, "ipc:///x", "agent-2", "token", "/tmp/x", 4, curve={"secret": "s"}
    )
    config.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert wire.AgentConfig.load(str(path)) == config
    with pytest.raises(FileExistsError):
        config.save(path)


@pytest.mark.parametrize(
    ("resources", "command", "job", "once"),
    [
        (Resources(), False, False, False),
        (Resources(isolated=True), False, True, True),
        (Resources(), False, True, True),
        (Resources(num_tasks=2), False, True, False),
        (Resources(), True, True, False),
    ],
)
def test_only_lonely_functions_use_a_slot_up(
    resources: Resources, command: bool, job: bool, once: bool
) -> None:
    assert profile_of(resources, command=command, job=job).once is once


def task(number: int, payload: bytes | Location, **more: Any) -> Task:
    return Task(Attempt(f"c{number}", 1, 1), "c", more.pop("resources", Resources()), payload=payload, **more)


def test_profiles_are_told_once_and_shared_by_equal_resources() -> None:
    link = AgentLink()
    tasks = [task(i, b"p", resources=Resources(env={"A": "1"}), function="f") for i in range(3)]
    first = wire.decode(link.tasks_message(tasks)[0])
    assert list(first["profiles"]) == ["0"]
    assert {line[wire.TaskField.PROFILE] for line in first["tasks"]} == {0}
    again = wire.decode(link.tasks_message([task(4, b"", function="f", lane=Lane.JOB)])[0])
    assert list(again["profiles"]) == ["1"]


def test_payloads_follow_each_other_in_one_frame() -> None:
    link = AgentLink()
    where = Location("out/c1/chore.pickle", 0, 5, 1)
    header, blobs = link.tasks_message([task(0, b"one"), task(1, where), task(2, b""), task(3, b"two")])
    assert blobs == b"onetwo"
    lines = wire.decode(header)["tasks"]
    assert [line[wire.TaskField.PAYLOAD] for line in lines] == [3, where.as_list(), 0, 3]


def test_reports_find_their_attempts_and_late_ones_are_dropped() -> None:
    link = AgentLink()
    link.host = "node"
    link.tasks_message([task(i, b"") for i in range(4)])
    usage = [7, 1.0, 2.0, 3.0, 4]
    failure = Failure(FailureKind.WORKER_LOST, "gone")
    there = replace(failure, host="node", attempt=1)
    message = {
        "r": [
            [wire.STARTED, 0, 7],
            [wire.FINISHED, 9, usage, ["s", 0, 3, 1], 3, None, None, False],
            [wire.FINISHED, 0, usage, ["s", 0, 2, 1], 2, {"a": 1}, None, True],
            [wire.LOST, 1, failure.as_dict()],
            [wire.FINISHED, 0, usage, ["s", 0, 2, 1], 2, None, None, True],
            [wire.WITHDRAWN, 3],
            [wire.WITHDRAWN, 3],
            [wire.STARTED, 0, 7],
        ]
    }
    found = link.reports(message, [b"", b"xxxokno"], 0.0)
    assert found == [
        Started(Attempt("c0", 1, 1), "node", 7),
        Finished(
            Attempt("c0", 1, 1), Usage("node", *usage), Location("s", 0, 2, 1), b"ok", {"a": 1}, printed=True
        ),
        Lost(Attempt("c1", 1, 1), there),
        Withdrawn(Attempt("c3", 1, 1)),
    ]
    assert link.lose_all(failure) == [Lost(Attempt("c2", 1, 1), there, alone=True)]
    assert link.lose_all(failure) == []


@pytest.mark.parametrize(("count", "alone"), [(1, True), (2, False), (3, False)])
def test_of_a_loss_that_the_agent_itself_tells_of_it_is_known_too_whether_anything_else_was_there(
    count: int, alone: bool
) -> None:
    off = Failure(FailureKind.NODE_LOST, "off")
    link = AgentLink()
    link.tasks_message([task(i, b"") for i in range(count)])
    told = [[wire.LOST, i, off.as_dict()] for i in range(min(count, 2))]
    found = [*link.reports({"r": told}, [b"", b""], 0.0), *link.lose_all(off)]
    assert found == link.lost
    assert [one.attempt.chore_id for one in link.lost] == [f"c{i}" for i in range(count)]
    assert {one.alone for one in link.lost} == {alone}


def test_what_is_sent_to_an_agent_that_is_ending_is_not_blamed_for_it() -> None:
    off = Failure(FailureKind.NODE_LOST, "off")
    link = AgentLink()
    link.tasks_message([task(1, b"")])
    (first,) = link.reports({"r": [[wire.LOST, 0, off.as_dict()]]}, [b"", b""], 0.0)
    link.tasks_message([task(2, b"")])
    (second,) = link.lose_all(off)
    assert isinstance(first, Lost)
    assert first.alone
    assert not second.alone


def test_when_an_agents_time_is_over_what_began_early_is_blamed_and_nothing_else() -> None:
    link = AgentLink()
    tasks = [task(i, b"") for i in range(4)]
    link.tasks_message(tasks)
    link.reports({"r": [[wire.STARTED, 0, 7]]}, [b"", b""], 1.0)
    link.reports({"r": [[wire.STARTED, 0, 7], [wire.STARTED, 1, 7]]}, [b"", b""], 3.0)
    link.begin(tasks[2].attempt, 2.0)
    link.reports({"r": [[wire.STARTED, 2, 7]]}, [b"", b""], 4.0)
    lost = link.lose_all(Failure(FailureKind.WALLTIME, "over"), early=2.5)
    # the last one has never been heard to run
    assert {one.attempt.chore_id: one.alone for one in lost} == {
        "c0": True,
        "c1": False,
        "c2": True,
        "c3": False,
    }
