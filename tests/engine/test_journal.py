"""The journal: nothing that was handed over is lost, and nothing that is damaged is believed."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from matforge.engine.journal import Journal, JournalError, decode, encode, read

RECORDS: list[dict[str, Any]] = [
    {"e": "run", "v": 1, "id": "matforge_workflow-1"},
    {"e": "add", "c": {"id": "chore-a-0001", "payload": ["segments/1-driver.seg", 9, 4, 1]}},
    {"e": "end", "id": "chore-a-0001", "s": "completed", "p": {"x": 1.5, "text": 'ünïcode\n"}'}},
    {"e": "end", "id": "chore-b-0002", "s": "failed", "f": {"kind": "exception", "message": "boom"}},
]

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
RECORD = st.dictionaries(st.text(min_size=1, max_size=5).filter(lambda k: k not in ("seq", "crc")), PLAIN)


def written(path: Path, records: list[dict[str, Any]] = RECORDS) -> bytes:
    """A journal of these records; its bytes."""
    journal = Journal(path)
    for record in records:
        journal.append(record)
    journal.close()
    return path.read_bytes()


def numbered(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records as they are read back."""
    return [{"seq": n, **record} for n, record in enumerate(records)]


# ---------------------------------------------------------------- one line


@settings(deadline=None, max_examples=50)
@given(RECORD)
def test_every_record_of_plain_types_comes_back_as_it_was(record: dict[str, Any]) -> None:
    line = encode({"seq": 0, **record})
    assert line.count(b"\n") == 1
    assert decode(line[:-1]) == {"seq": 0, **record}


def test_a_line_with_any_byte_changed_is_not_a_record() -> None:
    line = encode(RECORDS[2])[:-1]
    for offset in range(len(line)):
        for change in (0x01, 0x20, 0xFF):
            assert decode(line[:offset] + bytes([line[offset] ^ change]) + line[offset + 1 :]) is None


def test_a_line_that_was_cut_short_is_not_a_record() -> None:
    line = encode(RECORDS[2])[:-1]
    assert all(decode(line[:length]) is None for length in range(len(line)))


# ---------------------------------------------------------------- reading


def test_what_was_written_is_read_back_with_its_numbers(tmp_path: Path) -> None:
    data = written(tmp_path / "journal")
    records, tail = read(tmp_path / "journal")
    assert records == numbered(RECORDS)
    assert (tail.end, tail.torn) == (len(data), 0)


def test_a_journal_cut_at_any_byte_keeps_exactly_the_whole_records_before_it(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    data = written(path)
    ends = [0]
    while ends[-1] < len(data):
        ends.append(data.index(b"\n", ends[-1]) + 1)
    for cut in range(len(data) + 1):
        path.write_bytes(data[:cut])
        whole = sum(0 < end <= cut for end in ends)
        records, tail = read(path)
        assert records == numbered(RECORDS[:whole])
        assert (tail.end, tail.torn) == (ends[whole], cut - ends[whole])
        again = Journal.reopen(path, tail, len(records))
        again.append({"e": "resume"})
        again.close()
        assert read(path)[0] == numbered([*RECORDS[:whole], {"e": "resume"}])


@pytest.mark.parametrize("change", [0x01, 0x20, 0x80, None])
def test_a_journal_damaged_at_any_byte_is_refused_or_loses_its_torn_end(
    tmp_path: Path, change: int | None
) -> None:
    path = tmp_path / "journal"
    data = written(path)
    starts = [0]
    while starts[-1] < len(data):
        starts.append(data.index(b"\n", starts[-1]) + 1)
    for offset in range(len(data)):
        changed = ord("\n") if change is None else data[offset] ^ change
        if changed == data[offset]:
            continue
        path.write_bytes(data[:offset] + bytes([changed]) + data[offset + 1 :])
        if offset == len(data) - 1:  # the last newline: indistinguishable from a torn write
            assert read(path)[0] == numbered(RECORDS[:-1])
            continue
        line = max(start for start in starts if start <= offset)
        with pytest.raises(JournalError) as refused:
            read(path)
        assert f"damaged at byte {line} " in str(refused.value)
        assert str(path) in str(refused.value)
        assert f"truncate -s {line})" in str(refused.value)


def test_cutting_a_damaged_journal_where_the_sentence_says_makes_it_readable(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    data = bytearray(written(path))
    data[data.index(b"completed")] ^= 1
    path.write_bytes(data)
    with pytest.raises(JournalError) as refused:
        read(path)
    os.truncate(path, int(str(refused.value).rpartition("truncate -s ")[2].partition(")")[0]))
    assert read(path)[0] == numbered(RECORDS[:2])


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_missing_line_is_noticed(tmp_path: Path, missing: int) -> None:
    path = tmp_path / "journal"
    lines = written(path).splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:missing] + lines[missing + 1 :]))
    at = sum(map(len, lines[:missing]))
    with pytest.raises(JournalError, match=f"has record {missing + 1} at byte {at}, where {missing} belongs"):
        read(path)


def test_a_line_that_stands_twice_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    lines = written(path).splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], lines[1], *lines[2:]]))
    with pytest.raises(JournalError, match="has record 1 at byte"):
        read(path)


def test_a_journal_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match=r"nowhere cannot be read: No such file"):
        read(tmp_path / "nowhere")
    with pytest.raises(JournalError, match="cannot be read: Is a directory"):
        read(tmp_path)


def test_an_empty_journal_has_no_records(tmp_path: Path) -> None:
    (tmp_path / "journal").touch()
    records, tail = read(tmp_path / "journal")
    assert (records, tail.end, tail.torn) == ([], 0, 0)


# ---------------------------------------------------------------- writing and syncing


def test_records_are_in_the_file_after_a_flush_and_not_before(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.append({"e": "a"})
    assert (tmp_path / "journal").read_bytes() == b""
    journal.flush(0.0)
    assert read(tmp_path / "journal")[0] == [{"seq": 0, "e": "a"}]
    journal.close()


def test_syncs_are_a_second_apart(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.append({})
    assert journal.will_sync(1000.0)
    journal.flush(1000.0)
    assert journal.sync_due is None
    journal.append({})
    assert not journal.will_sync(1000.5)
    journal.flush(1000.5)
    assert journal.sync_due == 1001.0
    assert not journal.will_sync(1000.999)
    assert journal.will_sync(1001.0)
    journal.flush(1001.0)
    assert journal.sync_due is None
    assert not journal.will_sync(2000.0)
    journal.close()


def test_a_clock_that_is_set_back_does_not_put_off_a_sync(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.append({})
    journal.flush(1000.0)
    journal.append({})
    journal.flush(10.0)
    assert journal.sync_due is None
    journal.close()


def test_with_power_durability_every_flush_syncs(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal", sync_every_write=True)
    for now in (1000.0, 1000.1, 1000.2):
        journal.append({})
        journal.flush(now)
        assert journal.sync_due is None
    journal.close()


def test_closing_writes_what_is_queued_and_may_be_repeated(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.append({"e": "a"})
    journal.close()
    journal.close()
    journal.abandon()
    assert len(read(tmp_path / "journal")[0]) == 1


def test_abandoning_writes_nothing_more_and_leaves_no_open_file(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    journal = Journal(tmp_path / "journal")
    journal.append({"e": "a"})
    journal.abandon()
    assert (tmp_path / "journal").read_bytes() == b""
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_write_that_fails_half_way_is_taken_back_and_tried_again(tmp_path: Path) -> None:
    """A real limit on the size of files stands for a disk that is full for a while."""
    path = tmp_path / "journal"
    journal = Journal(path)
    journal.append({"e": "a"})
    journal.flush(0.0)
    size = path.stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, limits[1]))
    try:
        journal.append({"e": "b", "text": "longer than what is left"})
        for _ in range(2):
            with pytest.raises(OSError, match="too large"):
                journal.flush(0.1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    records, tail = read(path)
    assert (len(records), tail.torn) == (1, 10)
    journal.append({"e": "c"})
    journal.close()
    assert [r["e"] for r in read(path)[0]] == ["a", "b", "c"]


# ---------------------------------------------------------------- any order of writes and crashes


class JournalMachine(RuleBasedStateMachine):
    """Appends, flushes, crashes (with any part of the last write on the disk) and reopens."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.path = self.folder / "journal"
        self.journal: Journal | None = Journal(self.path)
        self.flushed: list[dict[str, Any]] = []
        self.queued: list[dict[str, Any]] = []
        self.now = 0.0

    @precondition(lambda self: self.journal)
    @rule(record=RECORD)
    def append(self, record: dict[str, Any]) -> None:
        assert self.journal is not None
        self.journal.append(record)
        self.queued.append({"seq": len(self.flushed) + len(self.queued), **record})

    @precondition(lambda self: self.journal)
    @rule(seconds=st.sampled_from([0.0, 0.4, 5.0]))
    def flush(self, seconds: float) -> None:
        assert self.journal is not None
        self.now += seconds
        self.journal.flush(self.now)
        self.flushed += self.queued
        self.queued = []
        due = self.journal.sync_due
        assert due is None or due > self.now

    @precondition(lambda self: self.journal)
    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        """Die in the middle of handing the queue to the operating system."""
        assert self.journal is not None
        self.journal.abandon()
        self.journal = None
        whole = b"".join(encode(record) for record in self.queued)
        part = data.draw(st.integers(0, len(whole)))
        with self.path.open("ab") as file:
            file.write(whole[:part])
        while self.queued and part >= len(line := encode(self.queued[0])):
            part -= len(line)
            self.flushed.append(self.queued.pop(0))
        self.queued = []

    @precondition(lambda self: self.journal is None)
    @rule()
    def reopen(self) -> None:
        records, tail = read(self.path)
        self.journal = Journal.reopen(self.path, tail, len(records))

    @invariant()
    def everything_flushed_is_there(self) -> None:
        records, tail = read(self.path)
        assert records == self.flushed
        assert self.journal is None or tail.torn == 0

    def teardown(self) -> None:
        if self.journal is not None:
            self.journal.abandon()
        shutil.rmtree(self.folder)


JournalMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
TestJournalThroughCrashes = JournalMachine.TestCase
