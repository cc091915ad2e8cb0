"""The run directory: chores, results, metadata, and the two layouts behind one interface.

*Full*: a directory for every chore, for people. *Packed*: append-only segments, because a
directory for each of a million chores is an attack on a parallel file system. Which one a chore
uses is decided when it is added; a :class:`~matforge.model.Location` says where its pieces lie.

The driver writes payloads and metadata; workers write results. What a worker wrote carries the
attempt's tag in its name and gets its final name here, once the attempt is accepted.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from matforge.engine import segments
from matforge.engine.locations import location_of, read, sync_path
from matforge.engine.status import replace_text
from matforge.model import Attempt, Location, MatForgeError, UsageError, why_unwritable

WORKFLOW_PREFIX = "matforge_workflow-"
JOURNAL_NAME = "journal.jsonl"
LOG_NAME = "matforge_workflow.log"
LOCK_NAME = "run.lock"
OUT_NAME = "out"
SEGMENTS_NAME = "segments"
FULL_LIMIT = 10_000
"""Chores that get a directory of their own in the ``auto`` layout; warm chores beyond are packed."""
LAYOUTS = ("auto", "full", "packed")
RESULT_NAME = "result.pickle"
STREAM_NAMES = ("stdout", "stderr")
SMALL_PAYLOAD = 4096
"""Bytes; payloads up to this size stand in the journal too, if they have a file of their own."""
_to_json = json.JSONEncoder(separators=(",", ":")).encode


class StorageError(MatForgeError):
    """The run directory cannot be written; the text names the file and the reason."""


def check_layout(layout: str) -> None:
    """Raise :class:`UsageError` if there is no such layout."""
    if layout not in LAYOUTS:
        raise UsageError(f"The layout must be one of {', '.join(LAYOUTS)}, not {layout!r}.")


def storage_sentence(path: Path, error: OSError) -> str:
    """One sentence for a person about a write that failed."""
    what = why_unwritable(error, "choose another folder with --dir")
    return f"{path} cannot be written: {what}."


def create_run_dir(base: Path, now: float) -> Path:
    """Make ``base/matforge_workflow-YYYYMMDD_HHMMSS[-n]``, never one that exists.

    Raises
    ------
    UsageError
        If the folder cannot be created.
    """
    stem = WORKFLOW_PREFIX + datetime.fromtimestamp(now).strftime("%Y%m%d_%H%M%S")
    try:
        base.mkdir(parents=True, exist_ok=True)
        for n in range(1, 10_000):
            path = base / (stem if n == 1 else f"{stem}-{n}")
            try:
                path.mkdir()
            except FileExistsError:
                continue
            (path / OUT_NAME / "registry").mkdir(parents=True)
            sync_path(base)
            return path.resolve()
    except OSError as error:
        raise UsageError(storage_sentence(base, error)) from error
    raise UsageError(f"{base} already holds 10,000 runs of this second.")


def find_run(path: Path) -> Path:
    """The run directory that ``path`` is, or the only one that it holds.

    Raises
    ------
    UsageError
        If there is none, or more than one.
    """
    if (path / JOURNAL_NAME).is_file():
        return path.resolve()
    if not path.is_dir():
        raise UsageError(f"{path} does not exist; give the directory of a run.")
    runs = sorted(p.parent for p in path.glob(f"{WORKFLOW_PREFIX}*/{JOURNAL_NAME}"))
    if len(runs) == 1:
        return runs[0].resolve()
    if not runs:
        raise UsageError(f"{path} is not a run and holds none (no {JOURNAL_NAME} in it).")
    shown = ", ".join(p.name for p in runs[-3:])
    raise UsageError(f"{path} holds {len(runs)} runs; give one of them, for example {shown}.")


class RunStore:
    """Reads and writes one run directory.

    Parameters
    ----------
    path : Path
        The run directory.
    layout : str
        ``auto``, ``full`` or ``packed``.
    epoch : int
        Which driver of the run this is; names the driver's own segment.

    Raises
    ------
    UsageError
        If there is no such layout.
    """

    def __init__(self, path: Path, *, layout: str = "auto", epoch: int = 1) -> None:
        check_layout(layout)
        self.path = path
        self.layout = layout
        self.epoch = epoch
        self.expected = 0
        """How many chores are known to come; ``auto`` packs all of a run that is known to be large."""
        self._unsynced: dict[Path, None] = {}
        """Files, and directories with new names in them, that a synced journal may not be ahead of."""
        self._segment: IO[bytes] | None = None
        self._segment_name = f"{SEGMENTS_NAME}/{epoch}-driver.seg"

    # -- layout

    def directory_for(self, chore_id: str, sequence: int, *, job: bool) -> str | None:
        """Relative directory of the chore numbered ``sequence``, or None if it is packed."""
        packed = self.layout == "packed" or (
            self.layout == "auto" and max(self.expected, sequence) > FULL_LIMIT
        )
        return f"{OUT_NAME}/{chore_id}" if job or not packed else None

    def _append(self, kind: str, chore_id: str, data: bytes) -> Location:
        if self._segment is None:
            path = self.path / self._segment_name
            path.parent.mkdir(exist_ok=True)
            self._segment = path.open("ab")
            self._unsynced.update(dict.fromkeys((path.parent, self.path)))
        return segments.append(self._segment, self._segment_name, kind, chore_id, f"e{self.epoch}", data)

    # -- chores

    def put_payload(self, chore_id: str, directory: str | None, data: bytes) -> Location:
        """Write a chore's pickled arguments."""
        try:
            if directory is None:
                return self._append("chore", chore_id, data)
            (self.path / directory).mkdir(parents=True, exist_ok=True)
            name = f"{directory}/chore.pickle"
            path = self.path / name
            path.write_bytes(data)
            if len(data) > SMALL_PAYLOAD:
                self._unsynced.update(dict.fromkeys((path, path.parent, path.parent.parent)))
            return location_of(name, data)
        except OSError as error:
            raise StorageError(storage_sentence(self.path, error)) from error

    def put_result(self, chore_id: str, data: bytes) -> Location:
        """Pack a result that the driver has itself, because another run has made it."""
        try:
            return self._append("result", chore_id, data)
        except OSError as error:
            raise StorageError(storage_sentence(self.path, error)) from error

    def put_metadata(self, chore_id: str, directory: str | None, metadata: dict[str, Any]) -> None:
        """Write what a person debugging wants; replaced when the chore ends."""
        try:
            if directory is None:
                self._append("metadata", chore_id, _to_json(metadata).encode())
            else:
                folder = self.path / directory
                folder.mkdir(exist_ok=True)
                replace_text(folder / "metadata.json", json.dumps(metadata, indent=1))
        except OSError as error:
            raise StorageError(storage_sentence(self.path, error)) from error

    def put_function(self, name: str, data: bytes) -> str:
        """Write a pickled callable once; returns its file name under ``out/registry``."""
        path = self.path / OUT_NAME / "registry" / name
        try:
            beside = path.with_name(f".{name}.new")
            beside.write_bytes(data)
            os.replace(beside, path)
        except OSError as error:
            raise StorageError(storage_sentence(path, error)) from error
        self._unsynced.update(dict.fromkeys((path, path.parent)))
        return name

    def flush(self, *, sync: bool = False) -> None:
        """Hand what was packed to the operating system, and to the disk if ``sync``; before any journal
        record that points to it."""
        place = self.path / self._segment_name
        try:
            if self._segment is not None:
                self._segment.flush()
                if sync:
                    os.fdatasync(self._segment.fileno())
            while sync and self._unsynced:
                place = next(iter(self._unsynced))
                sync_path(place)
                del self._unsynced[place]
        except OSError as error:
            raise StorageError(storage_sentence(place, error)) from error

    # -- results

    def accept(
        self, attempt: Attempt, directory: str | None, result: Location | None, *, printed: bool = False
    ) -> Location | None:
        """Give the files of an accepted attempt their final names; the result's final location.

        Parameters
        ----------
        directory : str or None
            The chore's; None if it is packed.
        result : Location or None
            What the attempt published, if it did.
        printed : bool
            Whether a packed chore left its streams in ``out/<chore_id>``.
        """
        if directory is not None or printed:
            folder = directory or f"{OUT_NAME}/{attempt.chore_id}"
            for name in STREAM_NAMES:
                self._rename(f"{folder}/{name}", attempt)
        if result is None or result.path.startswith(f"{SEGMENTS_NAME}/"):
            return result
        # large results have a file of their own even where the chore is packed
        name = f"{directory or f'{OUT_NAME}/{attempt.chore_id}'}/{RESULT_NAME}"
        self._rename(name, attempt)
        return Location(name, result.offset, result.length, result.crc)

    def _rename(self, name: str, attempt: Attempt) -> None:
        final = f"{self.path}/{name}"
        try:
            os.replace(f"{final}.{attempt.tag}", final)
        except FileNotFoundError:
            pass  # the message is trusted; whoever reads a result that is missing says so
        except OSError as error:
            raise StorageError(storage_sentence(Path(final), error)) from error

    def read(self, where: Location) -> bytes:
        """The bytes at a location, checked."""
        return read(self.path, where)

    def close(self) -> None:
        """Write out and close the driver's segment."""
        if self._segment is not None:
            file, self._segment = self._segment, None
            try:
                file.close()
            except OSError as error:
                raise StorageError(storage_sentence(Path(file.name), error)) from error

    def abandon(self) -> None:
        """Close the driver's segment, whether or not all of it can be written."""
        with suppress(StorageError):
            self.close()
