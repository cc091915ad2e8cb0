"""A disk that loses power: what is on it after a crash is what was synced, and little else."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

Losses = Callable[[bytes, bytes], bytes | None]
"""What is left of a file, from what was synced of it and what it held; None: not even its name."""


def dropped(synced: bytes, held: bytes) -> bytes:
    """Every write after the last sync is gone."""
    return synced


def torn(synced: bytes, held: bytes) -> bytes:
    """Of what was written after the last sync, half is there."""
    return held[: (len(synced) + len(held)) // 2] if held.startswith(synced) else held[: len(held) // 2]


def zeroed(synced: bytes, held: bytes) -> bytes:
    """The length is that of all writes, but what was not synced reads as zeros."""
    return synced + bytes(max(0, len(held) - len(synced)))


@dataclass
class _File:
    synced: bytes = b""
    name: str = ""
    """Where it was when it, or its directory, was last synced; empty if it never was."""


@dataclass
class Disk:
    """Watches all syncs of this process below ``root``; each is passed on to the system.

    A file is known by its inode, so a file that was replaced is not mistaken for its successor.
    """

    root: Path
    at_sync: Callable[[int], object] = lambda count: None
    """Called before each sync takes effect, with how many there were."""
    syncs: int = 0
    _files: dict[int, _File] = field(default_factory=dict)

    def note(self, descriptor: int) -> None:
        """A sync of what the descriptor stands for."""
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if not path.is_relative_to(self.root):
            return
        self.at_sync(self.syncs)
        self.syncs += 1
        if path.is_dir():
            for entry in os.scandir(path):
                if entry.is_file():
                    self._files.setdefault(entry.inode(), _File()).name = self._relative(Path(entry.path))
        else:
            file = self._files.setdefault(path.stat().st_ino, _File())
            file.synced, file.name = path.read_bytes(), self._relative(path)

    def _relative(self, path: Path) -> str:
        return str(path.relative_to(self.root))

    def after_power_failure(self, run_dir: Path, copy: Path, losses: Losses, *, names: bool) -> Path:
        """The run directory as the disk has it; with ``names``, unsynced names are undone too."""
        for path in sorted(run_dir.rglob("*")):
            target = copy / path.relative_to(run_dir)
            if path.is_dir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            file = self._files.get(path.stat().st_ino, _File())
            if names:
                if not file.name:
                    continue
                target = copy / (self.root / file.name).relative_to(run_dir)
            left = losses(file.synced, path.read_bytes())
            if left is not None:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(left)
        return copy


def _sync(disk: Disk, real: Callable[[int], None], descriptor: int) -> None:
    disk.note(descriptor)
    real(descriptor)


@contextmanager
def watched(root: Path) -> Iterator[Disk]:
    """Watch the syncs below a folder."""
    disk = Disk(root)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("fsync", "fdatasync"):
            patch.setattr(os, name, functools.partial(_sync, disk, getattr(os, name)))
        yield disk
