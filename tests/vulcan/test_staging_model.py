"""Staging against a model: whatever is written, moved, lost and put back, every row is where it must be."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from matforge.model import UsageError
from matforge.vulcan import StagedShard, VulcanReader, layout, sources
from matforge.vulcan.layout import FAILED_DIRNAME, IN_REVIEW_DIRNAME, PENDING_DIRNAME, STATES, SYNCED_DIRNAME
from matforge.vulcan.shard import load
from matforge.vulcan.writer import list_shards, move_to
from tests.vulcan.batches import REPO, forge, vacua

STATE = st.sampled_from(STATES)
GEOMETRY = st.sampled_from([{"h11": 3, "h12": 2, "ks_id": ks, "triang_id": 0} for ks in (1, 2, 3)])


class Staging(RuleBasedStateMachine):
    """Two handles on one folder, as two workers have."""

    shards = Bundle("shards")

    @initialize()
    def begin(self) -> None:
        self.base = Path(tempfile.mkdtemp())
        self.handles = [forge(self.base), forge(self.base)]
        self.staging = self.handles[0].staging_dir
        self.expected: dict[str, tuple[str, list[float]]] = {}
        """By run id: state, and the values of one column."""
        self.calls = 0
        self.reader = VulcanReader.from_local(self.staging, source="local")

    def teardown(self) -> None:
        shutil.rmtree(self.base, ignore_errors=True)

    def path_of(self, run_id: str) -> Path:
        state = self.expected[run_id][0]
        (found,) = [s.parquet_path for s in list_shards(self.staging, state) if s.run_id == run_id]
        return found

    @rule(target=shards, geometry=GEOMETRY, rows=st.integers(1, 3), who=st.integers(0, 1), own=st.booleans())
    def write(self, geometry: dict[str, int], rows: int, who: int, own: bool) -> str:
        self.calls += 1
        frame = vacua(rows, self.calls, **({"score": 1.5} if own else {}))
        shard = self.handles[who].write(frame, geometry, tadpole_charge=1)
        self.expected[shard.run_id] = (PENDING_DIRNAME, frame["tau_im"].tolist())
        return shard.run_id

    @rule(target=shards, name=st.sampled_from("abc"), who=st.integers(0, 1))
    def write_under_an_id_of_ones_own(self, name: str, who: int) -> object:
        frame = vacua(2, ord(name))
        shard = self.handles[who].write(frame, {"h12": 2, "cicy_id": 7}, tadpole_charge=1, run_id=name)
        if name in self.expected:
            assert shard.parquet_path.parent.name == self.expected[name][0]
            return multiple()
        self.expected[name] = (PENDING_DIRNAME, frame["tau_im"].tolist())
        return name

    @rule(name=st.sampled_from("abc"), who=st.integers(0, 1))
    def write_something_else_under_it(self, name: str, who: int) -> None:
        if name in self.expected:
            with pytest.raises(UsageError, match="taken"):
                self.handles[who].write(vacua(2, 1), {"h12": 2, "cicy_id": 7}, tadpole_charge=1, run_id=name)

    @rule(who=st.integers(0, 1))
    def write_a_batch_that_is_wrong(self, who: int) -> None:
        with pytest.raises(UsageError, match="tau_im"):
            self.handles[who].write(vacua(2, tau_im=[1.0, -1.0]), {"h12": 2}, tadpole_charge=1)

    @rule(run_id=shards, state=STATE)
    def move(self, run_id: str, state: str) -> None:
        move_to(StagedShard(self.path_of(run_id)), self.staging, state)
        self.expected[run_id] = (state, self.expected[run_id][1])

    @rule()
    def put_back_by_hand(self) -> None:
        for path in (self.staging / FAILED_DIRNAME).glob("*"):
            (self.staging / PENDING_DIRNAME).mkdir(exist_ok=True)
            path.rename(self.staging / PENDING_DIRNAME / path.name)
        for run_id, (state, values) in self.expected.items():
            if state == FAILED_DIRNAME:
                self.expected[run_id] = (PENDING_DIRNAME, values)

    @rule(run_id=shards, text=st.sampled_from([None, "", "{}", "[1]"]))
    def lose_a_sidecar(self, run_id: str, text: str | None) -> None:
        sidecar = layout.sidecar_of(self.path_of(run_id))
        if text is None:
            sidecar.unlink(missing_ok=True)
        else:
            sidecar.write_text(text)

    @rule(run_id=shards)
    def die_while_writing(self, run_id: str) -> None:
        layout.beside(self.path_of(run_id)).write_bytes(b"half")

    @rule(run_id=consumes(shards))
    def trim(self, run_id: str) -> None:
        path = self.path_of(run_id)
        path.unlink()
        layout.sidecar_of(path).unlink(missing_ok=True)
        del self.expected[run_id]

    @rule()
    def another_reader(self) -> None:
        self.reader = VulcanReader.from_local(self.staging, source="local")

    @invariant()
    def every_shard_is_in_its_folder_and_whole(self) -> None:
        for state in STATES:
            found = {shard.run_id: shard.n_rows for shard in list_shards(self.staging, state)}
            assert found == {r: len(v) for r, (s, v) in self.expected.items() if s == state}
            for shard in list_shards(self.staging, state):
                load(shard.parquet_path, REPO)

    @invariant()
    def every_row_is_read_once(self) -> None:
        living = {
            run_id: values
            for run_id, (state, values) in self.expected.items()
            if state in (PENDING_DIRNAME, SYNCED_DIRNAME, IN_REVIEW_DIRNAME)
        }
        assert sorted(self.reader.query(columns=["tau_im"])["tau_im"]) == sorted(
            value for values in living.values() for value in values
        )
        assert set(self.reader.catalog()["run_id"]) == set(living)


@pytest.mark.parametrize("parts", [False, True])
def test_every_row_stays_where_it_must_be(parts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if parts:
        monkeypatch.setattr(sources, "FEW", 0)
        monkeypatch.setattr(sources, "MANY", 3)
    Staging.TestCase.settings = settings(
        deadline=None, max_examples=12, stateful_step_count=20, suppress_health_check=list(HealthCheck)
    )
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(Staging, settings=Staging.TestCase.settings)
