"""The ledger: whatever several publishers do, a run is in one batch, and what was noted stays."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
)

from matforge.vulcan.ledger import (
    COMMITTED,
    DISSOLVED,
    Batch,
    Ledger,
    LedgerError,
    NumberTakenError,
    Part,
    Run,
    View,
)

REPO = "me/forge"


def part(*runs: str, path: str = "data/a.parquet") -> Part:
    return Part(
        path, "0" * 64, 10, 2 * len(runs), "train", tuple(Run(run, f"{run}.parquet", 2) for run in runs)
    )


def freeze(ledger: Ledger, view: View, *runs: str) -> Batch:
    return ledger.freeze(view, REPO, "main", [part(*runs)], "_outbox/x", 1.0, {"salt": "s"})


def test_a_batch_is_read_back_as_it_was_frozen(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    batch = freeze(ledger, ledger.read(), "a", "b")
    assert ledger.read().batches == [batch]
    assert ledger.read().batches[0].splits == {"salt": "s"}
    assert batch.shards == {"a": "a.parquet", "b": "b.parquet"}
    assert (batch.rows, batch.open) == (4, True)


def test_a_run_is_found_at_its_place_once_it_is_committed(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    batch = freeze(ledger, ledger.read(), "a", "b")
    assert ledger.read().locate("b") == []
    ledger.settle(batch, COMMITTED, 2.0, commit="f00")
    assert ledger.read().locate("b") == [("data/a.parquet", 2, 2, "f00")]
    assert ledger.read().locate("c") == []


def test_who_read_the_ledger_before_another_froze_is_refused(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    old = ledger.read()
    freeze(ledger, ledger.read(), "a")
    with pytest.raises(NumberTakenError):
        freeze(ledger, old, "a")
    with pytest.raises(ValueError, match="is in batch 1 already"):
        freeze(ledger, ledger.read(), "a")


def test_the_first_outcome_holds(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    batch = freeze(ledger, ledger.read(), "a")
    assert ledger.settle(batch, COMMITTED, 2.0, commit="f00")
    assert not ledger.settle(batch, DISSOLVED, 3.0)
    assert ledger.read().batches[0].outcome == COMMITTED


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"repo": 1}'])
def test_a_damaged_ledger_is_named_and_nothing_guessed(content: str, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    freeze(ledger, ledger.read(), "a")
    (tmp_path / "_ledger" / "000001.json").write_text(content)
    with pytest.raises(LedgerError, match=r"000001\.json is damaged"):
        ledger.read()


def test_where_there_are_no_hard_links_creating_is_still_exclusive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno
    import os

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    ledger = Ledger(tmp_path)
    old = ledger.read()
    batch = freeze(ledger, old, "a")
    with pytest.raises(NumberTakenError):
        freeze(ledger, old, "b")
    assert ledger.read().batches == [batch]
    (tmp_path / "_ledger" / "000002.json").touch()  # a publisher was killed in between
    assert ledger.read().batches == [batch]
    assert freeze(ledger, ledger.read(), "b").number == 3


def test_a_folder_has_a_name_of_its_own_that_stays(tmp_path: Path) -> None:
    first = Ledger(tmp_path / "a").source()
    assert Ledger(tmp_path / "a").source() == first
    assert Ledger(tmp_path / "b").source() != first


class Publishers(RuleBasedStateMachine):
    """Several publishers with views of any age, and a model of what must be true."""

    views = Bundle("views")

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.ledger = Ledger(Path(self._folder.name))
        self.open: dict[int, set[str]] = {}
        self.ended: dict[int, tuple[str, set[str]]] = {}
        self.proposed: dict[int, int] = {}

    def teardown(self) -> None:
        self._folder.cleanup()

    @property
    def held(self) -> set[str]:
        """Runs that no other batch may have."""
        committed = [runs for outcome, runs in self.ended.values() if outcome == COMMITTED]
        return set().union(*self.open.values(), *committed)

    @rule(target=views)
    def look(self) -> View:
        return self.ledger.read()

    @rule(view=consumes(views), runs=st.sets(st.sampled_from("abcdefgh"), min_size=1))
    def freeze(self, view: View, runs: set[str]) -> None:
        current = view.last == len(self.open) + len(self.ended)
        try:
            batch = freeze(self.ledger, view, *sorted(runs))
        except NumberTakenError:
            assert not current
        except ValueError:
            assert any(view.batch_of(run) for run in runs)
        else:
            assert current
            assert not runs & self.held
            self.open[batch.number] = runs

    @precondition(lambda self: self.open)
    @rule(data=st.data(), outcome=st.sampled_from([COMMITTED, DISSOLVED]))
    def settle(self, data: st.DataObject, outcome: str) -> None:
        number = data.draw(st.sampled_from(sorted(self.open)))
        batch = next(b for b in self.ledger.read().batches if b.number == number)
        assert self.ledger.settle(batch, outcome, 2.0, commit="f00")
        assert not self.ledger.settle(batch, outcome, 3.0)
        self.ended[number] = (outcome, self.open.pop(number))

    @precondition(lambda self: self.open)
    @rule(data=st.data(), pull=st.integers(1, 9))
    def propose(self, data: st.DataObject, pull: int) -> None:
        number = data.draw(st.sampled_from(sorted(self.open)))
        batch = next(b for b in self.ledger.read().batches if b.number == number)
        self.ledger.propose(batch, pull)
        self.proposed.setdefault(number, pull)

    @rule(name=st.sampled_from([".000009.json.x.tmp", "000001.outcome.json.bak", "notes"]))
    def leave_rubbish(self, name: str) -> None:
        self.ledger.folder.mkdir(exist_ok=True)
        (self.ledger.folder / name).write_text("{")

    @rule(target=views)
    def come_back(self) -> View:
        self.ledger = Ledger(self.ledger.staging_dir)
        return multiple()  # type: ignore[return-value]

    @invariant()
    def what_was_noted_is_there(self) -> None:
        view = self.ledger.read()
        assert {b.number: set(b.shards) for b in view.batches if b.open} == self.open
        ended = {b.number: (b.outcome, set(b.shards)) for b in view.batches if not b.open}
        assert ended == self.ended
        assert {b.number: b.pull_request for b in view.batches if b.pull_request} == self.proposed
        assert {run for run in "abcdefgh" if view.batch_of(run)} == self.held


TestPublishers = Publishers.TestCase
TestPublishers.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
