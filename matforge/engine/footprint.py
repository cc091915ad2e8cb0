"""What a run takes of the disk, told by the sizes of files and the heads of packed records."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matforge.engine import segments
from matforge.engine.cache import FOLDER
from matforge.engine.salvage import OF_AN_ATTEMPT
from matforge.engine.store import JOURNAL_NAME, OUT_NAME, SEGMENTS_NAME

REGISTRY = "registry"
_KIND = re.compile(r"chore-(.+)-\d{4,}$")
_FILES = {"result.pickle": "results", "stdout": "streams", "stderr": "streams",
          "chore.pickle": "arguments", "metadata.json": "metadata"}  # fmt: skip
_RECORDS = {"result": "results", "chore": "arguments", "metadata": "metadata"}
PARTS = ("results", "streams", "arguments", "metadata", "leftovers", "functions", "journal", "other")
"""What the files of a run are; ``leftovers`` are of attempts that did not count (or that run now), ``other``
is what chores wrote themselves."""


@dataclass
class Footprint:
    """Bytes of one run."""

    run_dir: Path
    files: int = 0
    parts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    kinds: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """By name of the chores."""

    @property
    def total(self) -> int:
        """All bytes."""
        return sum(self.parts.values())

    def add(self, part: str, size: int, chore_id: str = "") -> None:
        """Count bytes, of a chore or of the run."""
        self.parts[part] += size
        if found := _KIND.match(chore_id):
            self.kinds[found[1]] += size

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"run_dir": str(self.run_dir), "bytes": self.total, "files": self.files, "parts": self.parts,
                "kinds": dict(self.kinds)}  # fmt: skip


def part_of(name: str) -> str:
    """What a file in a chore's folder is."""
    return "leftovers" if OF_AN_ATTEMPT.search(name) else _FILES.get(name, "other")


def measure(run_dir: Path) -> Footprint:
    """What a run takes; it may be running.

    A result that the cache shares is counted here as well.
    """
    found = Footprint(run_dir)
    for entry in _entries(run_dir):
        if entry.name == OUT_NAME:
            for chore in _entries(Path(entry.path)):
                _measure_folder(found, chore)
        elif entry.name == SEGMENTS_NAME:
            for segment in _entries(Path(entry.path)):
                _measure_segment(found, Path(segment.path))
        else:
            is_ours = entry.name == JOURNAL_NAME or entry.name.startswith(("status", "matforge_workflow"))
            for file in _files(entry):
                found.files += 1
                found.add("journal" if is_ours else "other", _size(file))
    return found


def _measure_folder(found: Footprint, chore: os.DirEntry[str]) -> None:
    for file in _files(chore):
        found.files += 1
        part = "functions" if chore.name == REGISTRY else part_of(file.name)
        found.add(part, _size(file), chore.name)


def _measure_segment(found: Footprint, path: Path) -> None:
    """Packed pieces by kind and chore; what a torn end holds, and the records' heads, are the run's."""
    try:
        rest = path.stat().st_size
        for kind, chore_id, length in segments.sizes(path):
            found.add(_RECORDS.get(kind, "other"), length, chore_id)
            rest -= length
    except OSError:  # gone meanwhile
        return
    found.files += 1
    found.add("metadata", max(0, rest))


def measure_cache(base: Path) -> tuple[int, int]:
    """Bytes of the cache of a folder that nothing else holds, and of those that runs share with it."""
    own = shared = 0
    folder = base / FOLDER
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                found = os.lstat(os.path.join(root, name))
            except OSError:
                continue
            if found.st_nlink > 1:
                shared += found.st_size
            else:
                own += found.st_size
    return own, shared


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from sorted(entries, key=lambda entry: entry.name)
    except OSError:  # gone meanwhile, or not ours to read
        return


def _files(entry: os.DirEntry[str]) -> Iterator[os.DirEntry[str]]:
    if not entry.is_dir(follow_symlinks=False):
        yield entry
        return
    for inner in _entries(Path(entry.path)):
        yield from _files(inner)


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat(follow_symlinks=False).st_size
    except OSError:
        return 0
