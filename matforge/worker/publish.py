"""How a worker puts results into the run directory.

Every file carries the attempt's tag, so that an attempt that has been given up can overwrite
nothing; the driver gives accepted files their final names. In the packed layout every slot process
has a segment of its own.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import IO

from matforge.engine import results, segments
from matforge.engine.locations import sync_path
from matforge.model import Location

RESULT = "result.pickle"
OUT = "out"
SEGMENTS = "segments"


class Publisher:
    """Writes the results of one slot process.

    Parameters
    ----------
    run_dir : Path
        The run directory.
    segment : str
        File name of this process's segment; made when it is first needed.
    sync : bool
        Whether every result, and the directory entry of its file, is put on the disk before it is
        reported (``durability="power"``).
    """

    def __init__(self, run_dir: Path, segment: str, *, sync: bool = False) -> None:
        self._run_dir = run_dir
        self._segment_name = f"{SEGMENTS}/{segment}"
        self._segment: IO[bytes] | None = None
        self._sync = sync

    def result(
        self, chore_id: str, tag: str, directory: str | None, data: bytes | results.Pieces
    ) -> Location:
        """Write a pickled result; one with large buffers gets a file of its own in either layout.

        Raises
        ------
        OSError
            If it cannot be written; nothing of it is left then.
        """
        if directory is None:
            if isinstance(data, bytes):
                return self._append(chore_id, tag, data)
            directory = f"{OUT}/{chore_id}"
            (self._run_dir / directory).mkdir(exist_ok=True)
        path = self._run_dir / directory / f"{RESULT}.{tag}"
        beside = path.with_name(f"{path.name}.new")
        try:
            with beside.open("wb", buffering=0) as file:
                where = results.write(file, f"{directory}/{path.name}", data)
                if self._sync:
                    os.fsync(file.fileno())
            os.replace(beside, path)
        except OSError:
            with suppress(OSError):
                beside.unlink()
            raise
        if self._sync:
            sync_path(path.parent)
        return where

    def _append(self, chore_id: str, tag: str, data: bytes) -> Location:
        if self._segment is None:
            path = self._run_dir / self._segment_name
            path.parent.mkdir(exist_ok=True)
            self._segment = path.open("xb", buffering=0)
            if self._sync:
                sync_path(path.parent)
        where = segments.append(self._segment, self._segment_name, "result", chore_id, tag, data)
        if self._sync:
            os.fdatasync(self._segment.fileno())
        return where
