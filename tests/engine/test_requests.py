"""What people ask of a driver: only of the living one, done once, journalled before it is told."""

from __future__ import annotations

import fnmatch
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matforge.chore import Call
from matforge.engine.events import Cancel
from matforge.engine.journal import Journal
from matforge.engine.lock import RunLock
from matforge.engine.requests import (
    POLL_S,
    REQUESTS_NAME,
    Answer,
    Inbox,
    Request,
    ask,
    cancel_chores,
    matching,
)
from matforge.engine.run import Run
from matforge.engine.store import LOCK_NAME, RunStore
from matforge.model import ChoreState, MatForgeError, OutputReference, UsageError
from matforge.packing import pack


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """A run of two chores, each with a chore that needs it, and one more that needs that."""
    made = Run(RunStore(tmp_path, layout="packed"), Journal(tmp_path / "journal.jsonl"))
    first, second = made.add(call("fit", 1)), made.add(call("plot", 2))
    middle = made.add(call("after", OutputReference(first.id)))
    made.add(call("last", OutputReference(middle.id)))
    made.add(call("after", OutputReference(second.id)))
    yield made
    made.store.close()
    made.journal.abandon()


def call(name: str, argument: object) -> Call:
    payload, inputs = pack(((argument,), {}))
    return Call(name, payload, inputs, name)


def put(run_dir: Path, name: str, document: object) -> Path:
    """A request as another process would leave it."""
    path = run_dir / REQUESTS_NAME / f"{name}.request"
    path.parent.mkdir(exist_ok=True)
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def asked(*chores: str, driver: str = "me", version: int = 1) -> dict[str, object]:
    return {"version": version, "driver": driver, "chores": list(chores)}


# ---------------------------------------------------------------- patterns

IDS = st.lists(st.text("ab-*?[]1", min_size=1, max_size=6), unique=True, min_size=1, max_size=8)


@given(IDS, st.data())
def test_patterns_mean_what_a_shell_would_match_in_the_order_of_the_run(
    ids: list[str], data: st.DataObject
) -> None:
    patterns = data.draw(st.lists(st.sampled_from([*ids, "*", "a*", "?", "*1"]), min_size=1, max_size=3))
    wanted = [n for n in ids if any(n == p or (p not in ids and fnmatch.fnmatchcase(n, p)) for p in patterns)]
    missing = [p for p in patterns if p not in ids and not any(fnmatch.fnmatchcase(n, p) for n in ids)]
    if missing:
        with pytest.raises(LookupError) as refused:
            matching(patterns, ids)
        assert refused.value.args[0] == missing[0]
    else:
        assert matching(patterns, ids) == wanted


def test_where_one_chore_is_unknown_nothing_is_cancelled(run: Run) -> None:
    answer, instructions = cancel_chores(run, ["chore-fit-0001", "chore-plto-0002"])
    assert answer == Answer(unknown="chore-plto-0002")
    assert instructions == []
    assert run.graph.counts[ChoreState.CANCELLED] == 0


def test_cancelling_tells_the_chores_their_dependents_and_what_had_ended(run: Run) -> None:
    cancel_chores(run, ["chore-plot-0002"])
    answer, instructions = cancel_chores(run, ["chore-[fp]*"])
    assert answer == Answer(
        cancelled=("chore-fit-0001",),
        dependents=("chore-after-0003", "chore-last-0004"),
        ended=("chore-plot-0002",),
    )
    assert not [i for i in instructions if isinstance(i, Cancel)]
    assert run.graph.counts[ChoreState.CANCELLED] == 5


def test_a_chore_that_is_running_is_stopped_by_the_executor(run: Run) -> None:
    submit = run.submit_next()
    assert submit is not None
    answer, instructions = cancel_chores(run, [submit.id])
    assert answer.cancelled == (submit.id,)
    assert instructions == [Cancel(submit.id, submit.number)]


# ---------------------------------------------------------------- the inbox


def test_a_request_is_taken_once_and_only_by_the_driver_that_it_names(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path, "me")
    mine = put(tmp_path, "1", asked("a", "b"))
    others = put(tmp_path, "2", asked("a", driver="another"))
    later = put(tmp_path, "3", asked("a", version=99))
    assert inbox.take(0.0) == [Request("1", ("a", "b"))]
    assert inbox.take(POLL_S) == []
    assert mine.exists()
    assert not others.exists()
    assert not later.exists()


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"driver": "me"}', '{"driver":"me","version":1,"chores":3}']
)
def test_a_request_that_makes_no_sense_is_thrown_away(text: str, tmp_path: Path) -> None:
    inbox = Inbox(tmp_path, "me")
    path = put(tmp_path, "1", text)
    assert inbox.take(0.0) == []
    assert not path.exists()


def test_the_folder_is_listed_at_most_once_in_the_interval(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path, "me")
    assert inbox.take(100.0) == []
    put(tmp_path, "1", asked())
    assert inbox.take(100.0 + POLL_S / 2) == []
    assert inbox.due == 100.0 + POLL_S
    assert inbox.take(inbox.due) == [Request("1")]


def test_a_clock_that_was_set_back_does_not_make_the_driver_deaf(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path, "me")
    inbox.take(1e9)
    put(tmp_path, "1", asked())
    assert inbox.take(100.0) == [Request("1")]


def test_a_folder_that_vanished_is_no_reason_to_stop(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path, "me")
    (tmp_path / REQUESTS_NAME).rmdir()
    assert inbox.take(0.0) == []
    inbox.answer(Request("1"), Answer())


def test_answers_that_nobody_fetched_are_gone_with_the_next_driver(tmp_path: Path) -> None:
    Inbox(tmp_path, "me").answer(Request("1"), Answer())
    assert len(list((tmp_path / REQUESTS_NAME).iterdir())) == 1
    Inbox(tmp_path, "next")
    assert list((tmp_path / REQUESTS_NAME).iterdir()) == []


# ---------------------------------------------------------------- asking


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[RunLock]:
    """The lock of a driver: this process."""
    held = RunLock(tmp_path / LOCK_NAME)
    held.acquire(time.time())
    yield held
    held.release()


def serve(run_dir: Path, lock: RunLock, answer: Answer) -> Callable[[float], None]:
    """Lets the driver do one round whenever the asker waits."""
    inbox = Inbox(run_dir, lock.token)
    rounds = iter(range(1000))

    def work(seconds: float) -> None:
        for request in inbox.take(next(rounds) * POLL_S):
            assert request.chores == ("chore-a*",)
            inbox.answer(request, answer)

    return work


def test_whoever_asks_gets_the_drivers_answer_and_leaves_nothing_behind(
    tmp_path: Path, lock: RunLock
) -> None:
    answer = Answer(("chore-a-1",), ("chore-b-2",), ("chore-a-3",))
    assert ask(tmp_path, ["chore-a*"], pause=serve(tmp_path, lock, answer)) == answer
    assert list((tmp_path / REQUESTS_NAME).iterdir()) == []


def test_an_unknown_chore_is_wrong_use_and_the_nearest_are_named(
    run: Run, tmp_path: Path, lock: RunLock
) -> None:
    run.flush(0.0)
    with pytest.raises(UsageError, match=r"no chore 'chore-a\*' \(did you mean .*chore-after-0003"):
        ask(tmp_path, ["chore-a*"], pause=serve(tmp_path, lock, Answer(unknown="chore-a*")))


def test_a_run_that_nobody_drives_cannot_be_asked(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Nobody drives"):
        ask(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_driver_that_ends_without_an_answer_is_not_waited_for(tmp_path: Path, lock: RunLock) -> None:
    with pytest.raises(MatForgeError, match="ended before it answered"):
        ask(tmp_path, pause=lambda seconds: lock.release())
    assert list((tmp_path / REQUESTS_NAME).iterdir()) == []


def test_an_answer_given_with_the_last_breath_is_heard(tmp_path: Path, lock: RunLock) -> None:
    work = serve(tmp_path, lock, Answer(("chore-a-1",)))

    def last_breath(seconds: float) -> None:
        work(seconds)
        lock.release()

    assert ask(tmp_path, ["chore-a*"], pause=last_breath).cancelled == ("chore-a-1",)


def test_a_driver_that_does_not_answer_is_given_up_and_the_request_withdrawn(
    tmp_path: Path, lock: RunLock
) -> None:
    with pytest.raises(MatForgeError, match="not answered in 0 s"):
        ask(tmp_path, timeout=0.0)
    assert list((tmp_path / REQUESTS_NAME).iterdir()) == []


def test_a_run_that_cannot_be_written_to_is_named(tmp_path: Path, lock: RunLock) -> None:
    (tmp_path / REQUESTS_NAME).write_text("in the way")
    with pytest.raises(MatForgeError, match=f"{REQUESTS_NAME} cannot be written"):
        ask(tmp_path)
