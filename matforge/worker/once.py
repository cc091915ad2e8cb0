"""Things that should happen once on a node."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def single_flight(kind: str) -> Iterator[None]:
    """Hold a node-local lock while a kind of kernel is compiled."""
    folder = Path(tempfile.gettempdir()) / f"matforge-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    with (folder / f"{kind}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def compiled_cache_dir() -> Path:
    """Per-user cache directory."""
    base = os.environ.get("MATFORGE_CACHE_DIR")
    path = Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "matforge"
    path.mkdir(parents=True, exist_ok=True)
    return path
