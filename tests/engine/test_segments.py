"""Segments: what was appended is found again, and nothing that was torn."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matforge.engine import segments
from matforge.engine.locations import read
from matforge.model import Location

RECORDS = [
    ("chore", "chore-a-0001", "e1", b"arguments"),
    ("result", "chore-a-0001", "e1a1", b""),
    ("result", "chore-ü-0002", "e2a13", bytes(range(256)) * 3),
    ("metadata", "c", "", b"{}"),
]


def write(path: Path, records: list[tuple[str, str, str, bytes]] = RECORDS) -> list[Location]:
    path.parent.mkdir(exist_ok=True)
    with path.open("ab") as file:
        return [segments.append(file, f"{path.parent.name}/{path.name}", *r) for r in records]


def test_what_is_appended_is_read_at_its_location(tmp_path: Path) -> None:
    places = write(tmp_path / "segments" / "1-1-1.seg")
    assert [read(tmp_path, where) for where in places] == [r[3] for r in RECORDS]


def test_an_index_is_rebuilt_by_scanning(tmp_path: Path) -> None:
    path = tmp_path / "segments" / "1-1-1.seg"
    places = write(path) + write(path)  # closed and opened again
    found = list(segments.scan(path, "segments/1-1-1.seg", note=pytest.fail))
    assert [(r.kind, r.chore_id, r.tag) for r in found] == [r[:3] for r in RECORDS] * 2
    assert [r.where for r in found] == places


def test_an_unbuffered_file_serves_as_well(tmp_path: Path) -> None:
    path = tmp_path / "s.seg"
    with path.open("xb", buffering=0) as file:
        places = [segments.append(file, "s.seg", *r) for r in RECORDS]
    assert [r.where for r in segments.scan(path, "s.seg")] == places


def test_cut_at_any_byte_the_whole_records_are_found_and_the_cut_is_told(tmp_path: Path) -> None:
    path = tmp_path / "segments" / "s.seg"
    places = write(path)
    data = path.read_bytes()
    ends = [0, *(where.offset + where.length for where in places)]
    for length in range(len(data) + 1):
        path.write_bytes(data[:length])
        notes: list[str] = []
        found = list(segments.scan(path, "segments/s.seg", note=notes.append))
        whole = sum(end <= length for end in ends) - 1
        assert [r.where for r in found] == places[:whole]
        assert len(notes) == (length not in ends)
        assert all(str(path) in n and f"byte {ends[whole]}" in n for n in notes)


@given(st.data())
def test_a_changed_byte_is_never_taken_for_data(data: st.DataObject) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "segments" / "s.seg"
        places = write(path)
        whole = bytearray(path.read_bytes())
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at] ^= data.draw(st.integers(1, 255))
        path.write_bytes(whole)
        notes: list[str] = []
        found = list(segments.scan(path, "segments/s.seg", note=notes.append))
        intact = [w for w in places if w.offset + w.length <= at]
        assert [r.where for r in found] == intact
        assert len(notes) == 1


def test_a_record_of_a_later_version_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "s.seg"
    write(path)
    data = bytearray(path.read_bytes())
    data[4] = 9
    path.write_bytes(data)
    notes: list[str] = []
    assert list(segments.scan(path, note=notes.append)) == []
    assert "version 9" in notes[0]


def test_a_disk_that_fills_up_leaves_nothing_behind(tmp_path: Path) -> None:
    with open("/dev/full", "ab", buffering=0) as file, pytest.raises(OSError, match="No space"):
        segments.append(file, "full", "result", "chore-a-0001", "e1a1", b"x" * 100)


def test_a_record_that_could_only_be_begun_is_taken_back(tmp_path: Path) -> None:
    import resource
    import signal

    path = tmp_path / "s.seg"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with path.open("xb", buffering=0) as file:
            first = segments.append(file, "s.seg", *RECORDS[0])
            resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
            with pytest.raises(OSError):
                segments.append(file, "s.seg", *RECORDS[2])
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            last = segments.append(file, "s.seg", *RECORDS[3])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert [r.where for r in segments.scan(path, "s.seg", note=pytest.fail)] == [first, last]


@pytest.mark.parametrize("kind", ["", "far too long"])
def test_a_kind_that_has_no_room_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="kind"):
        segments.header(kind, "c", "t", b"")


def test_an_id_that_has_no_room_is_refused() -> None:
    with pytest.raises(ValueError, match="too long"):
        segments.header("result", "c" * 70_000, "t", b"")
