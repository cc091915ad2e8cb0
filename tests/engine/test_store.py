"""The run directory: two layouts behind one interface, and one sentence for whatever the disk refuses."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pytest

from matforge.engine import segments
from matforge.engine.locations import DamagedError, location_of
from matforge.engine.store import (
    FULL_LIMIT,
    JOURNAL_NAME,
    RunStore,
    StorageError,
    create_run_dir,
    find_run,
    storage_sentence,
)
from matforge.model import Attempt, UsageError

NOW = 1.7e9
ATTEMPT = Attempt("chore-a-0001", 1, 2)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A new run directory."""
    return create_run_dir(tmp_path, NOW)


@contextmanager
def full_disk(limit: int = 0) -> Iterator[None]:
    """No file of this process may grow beyond ``limit`` bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)


# ---------------------------------------------------------------- run directories


def test_a_run_directory_is_named_after_the_moment_and_never_shared(tmp_path: Path) -> None:
    base = tmp_path / "not" / "yet"
    stem = "matforge_workflow-" + datetime.fromtimestamp(NOW).strftime("%Y%m%d_%H%M%S")
    names = [create_run_dir(base, NOW).name for _ in range(3)]
    assert names == [stem, f"{stem}-2", f"{stem}-3"]
    assert (base / stem / "out" / "registry").is_dir()


def test_a_run_directory_that_cannot_be_made_is_told_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="file cannot be written: there is a file of that name; choose"):
        create_run_dir(tmp_path / "file", NOW)
    with pytest.raises(UsageError, match="a part of the path is a file, not a folder"):
        create_run_dir(tmp_path / "file" / "below", NOW)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "the disk is full; free some space"),
        (errno.EDQUOT, "your quota is used up"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EACCES, "you may not write there"),
        (errno.EIO, "input/output error"),
    ],
)
def test_every_reason_of_a_disk_has_its_sentence(number: int, said: str) -> None:
    sentence = storage_sentence(Path("runs"), OSError(number, os.strerror(number)))
    assert sentence.startswith(f"runs cannot be written: {said}")
    assert sentence.endswith(".")


def test_a_run_is_found_by_its_directory_or_by_the_folder_that_holds_only_it(tmp_path: Path) -> None:
    run_dir = create_run_dir(tmp_path, NOW)
    (run_dir / JOURNAL_NAME).touch()
    assert find_run(run_dir) == find_run(tmp_path) == run_dir


def test_a_folder_with_no_run_or_with_many_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere does not exist; give the directory of a run"):
        find_run(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="is not a run and holds none"):
        find_run(tmp_path)
    for _ in range(4):
        (create_run_dir(tmp_path, NOW) / JOURNAL_NAME).touch()
    with pytest.raises(UsageError, match=r"holds 4 runs; give one of them, for example matforge.*-4\."):
        find_run(tmp_path)


# ---------------------------------------------------------------- layouts


@pytest.mark.parametrize(
    ("layout", "expected", "sequence", "job", "full"),
    [
        ("full", 0, 10**6, False, True),
        ("packed", 0, 1, False, False),
        ("packed", 0, 1, True, True),
        ("auto", 5, 5, False, True),
        ("auto", 0, FULL_LIMIT, False, True),
        ("auto", 0, FULL_LIMIT + 1, False, False),
        ("auto", FULL_LIMIT + 1, 1, False, False),
        ("auto", FULL_LIMIT + 1, 1, True, True),
    ],
)
def test_the_layout_follows_the_size_of_the_run_and_jobs_always_have_a_directory(
    tmp_path: Path, layout: str, expected: int, sequence: int, job: bool, full: bool
) -> None:
    store = RunStore(tmp_path, layout=layout)
    store.expected = expected
    directory = store.directory_for("chore-a-0001", sequence, job=job)
    assert directory == ("out/chore-a-0001" if full else None)


def test_an_unknown_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="The layout must be one of auto, full, packed, not 'flat'"):
        RunStore(tmp_path, layout="flat")


@pytest.mark.parametrize("directory", ["out/chore-a-0001", None])
@pytest.mark.parametrize("sync", [False, True])
def test_a_payload_is_read_back_from_either_layout(run_dir: Path, directory: str | None, sync: bool) -> None:
    store = RunStore(run_dir)
    data = [b"payload %d" % n for n in range(3)]
    places = [store.put_payload(f"chore-{n}", directory and f"{directory}{n}", data[n]) for n in range(3)]
    store.flush(sync=sync)
    assert [store.read(place) for place in places] == data
    store.close()


def test_metadata_is_a_file_in_one_layout_and_a_record_in_the_other(run_dir: Path) -> None:
    store = RunStore(run_dir, layout="packed", epoch=3)
    store.put_metadata("chore-a-0001", "out/chore-a-0001", {"x": 1})
    store.put_metadata("chore-b-0002", None, {"x": 2})
    store.close()
    assert json.loads((run_dir / "out/chore-a-0001/metadata.json").read_text()) == {"x": 1}
    (record,) = segments.scan(run_dir / "segments/3-driver.seg", "segments/3-driver.seg")
    assert (record.kind, record.chore_id) == ("metadata", "chore-b-0002")
    assert json.loads(store.read(record.where)) == {"x": 2}


def test_another_driver_of_the_same_epoch_goes_on_behind_what_is_there(run_dir: Path) -> None:
    """A driver may die before its epoch reaches the journal; its segment must not be overwritten."""
    places = []
    for text in (b"first", b"second"):
        store = RunStore(run_dir, layout="packed")
        places.append(store.put_payload("chore-a-0001", None, text))
        store.close()
    assert [store.read(place) for place in places] == [b"first", b"second"]


# ---------------------------------------------------------------- what workers leave


def leave(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(name)


def test_an_accepted_attempt_gets_the_final_names_and_others_keep_theirs(run_dir: Path) -> None:
    folder = run_dir / "out/chore-a-0001"
    leave(folder, "result.pickle.e1a2", "stdout.e1a2", "stderr.e1a2", "result.pickle.e1a1", "stdout.e1a1")
    where = location_of("out/chore-a-0001/result.pickle.e1a2", b"result.pickle.e1a2")
    store = RunStore(run_dir)
    final = store.accept(ATTEMPT, "out/chore-a-0001", where)
    assert final is not None
    assert store.read(final) == b"result.pickle.e1a2"
    assert {p.name for p in folder.iterdir()} == {
        "result.pickle", "stdout", "stderr", "result.pickle.e1a1", "stdout.e1a1",
    }  # fmt: skip


def test_a_failed_attempt_leaves_its_streams_and_no_result(run_dir: Path) -> None:
    folder = run_dir / "out/chore-a-0001"
    leave(folder, "result.pickle.e1a2", "stdout.e1a2", "stderr.e1a2")
    assert RunStore(run_dir).accept(ATTEMPT, "out/chore-a-0001", None) is None
    assert {p.name for p in folder.iterdir()} == {"result.pickle.e1a2", "stdout", "stderr"}


def test_what_a_packed_chore_printed_gets_its_final_names(run_dir: Path) -> None:
    folder = run_dir / "out/chore-a-0001"
    leave(folder, "stdout.e1a2", "stderr.e1a2")
    where = location_of("segments/1-1-0.seg", b"x", 10)
    store = RunStore(run_dir, layout="packed")
    assert store.accept(ATTEMPT, None, where, printed=True) == where
    assert {p.name for p in folder.iterdir()} == {"stdout", "stderr"}


def test_a_result_that_was_renamed_by_a_driver_that_died_is_accepted_again(run_dir: Path) -> None:
    leave(run_dir / "out/chore-a-0001", "result.pickle")
    where = location_of("out/chore-a-0001/result.pickle.e1a2", b"result.pickle")
    store = RunStore(run_dir)
    final = store.accept(ATTEMPT, "out/chore-a-0001", where)
    assert final is not None
    assert store.read(final) == b"result.pickle"


def test_a_result_that_cannot_be_renamed_is_told_with_its_name(run_dir: Path) -> None:
    folder = run_dir / "out/chore-a-0001"
    leave(folder, "result.pickle.e1a2")
    (folder / "result.pickle").mkdir()
    where = location_of("out/chore-a-0001/result.pickle.e1a2", b"result.pickle.e1a2")
    with pytest.raises(
        StorageError, match=r"chore-a-0001/result.pickle cannot be written: there is a folder"
    ):
        RunStore(run_dir).accept(ATTEMPT, "out/chore-a-0001", where)


def test_bytes_that_are_missing_cut_short_or_changed_are_never_returned(run_dir: Path) -> None:
    store = RunStore(run_dir)
    where = store.put_payload("chore-a-0001", "out/chore-a-0001", b"payload")
    path = run_dir / where.path
    path.write_bytes(b"payloae")
    with pytest.raises(DamagedError, match="its checksum differs"):
        store.read(where)
    path.write_bytes(b"payl")
    with pytest.raises(DamagedError, match="ends at byte 4, before byte 7"):
        store.read(where)
    path.unlink()
    with pytest.raises(DamagedError, match="cannot be read: No such file"):
        store.read(where)


# ---------------------------------------------------------------- disks that refuse


def test_a_full_disk_is_told_at_every_write(run_dir: Path) -> None:
    store = RunStore(run_dir, layout="packed")
    with full_disk():
        with pytest.raises(StorageError, match="cannot be written: file too large"):
            store.put_payload("chore-a-0001", "out/chore-a-0001", b"payload")
        with pytest.raises(StorageError, match="cannot be written"):
            store.put_metadata("chore-a-0001", "out/chore-a-0001", {})
        with pytest.raises(StorageError, match="registry/f cannot be written"):
            store.put_function("f", b"pickle")
        store.put_payload("chore-a-0001", None, b"payload")
        with pytest.raises(StorageError, match=r"1-driver\.seg cannot be written"):
            store.flush()
        with pytest.raises(StorageError, match="too large"):
            store.close()
    store.close()


def test_a_file_where_a_folder_is_expected_is_told(run_dir: Path) -> None:
    (run_dir / "segments").touch()
    (run_dir / "out" / "chore-a-0001").touch()
    store = RunStore(run_dir)
    with pytest.raises(StorageError, match="there is a file of that name"):
        store.put_payload("chore-a-0001", None, b"")
    with pytest.raises(StorageError, match="there is a file of that name"):
        store.put_metadata("chore-a-0001", "out/chore-a-0001", {})


def test_a_function_is_stored_under_its_name_and_replaced_whole(run_dir: Path) -> None:
    store = RunStore(run_dir)
    for data in (b"first", b"second"):
        assert store.put_function("square-0123", data) == "square-0123"
    assert [p.name for p in (run_dir / "out/registry").iterdir()] == ["square-0123"]
    assert (run_dir / "out/registry/square-0123").read_bytes() == b"second"
