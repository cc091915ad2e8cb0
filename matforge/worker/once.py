"""Things that should happen once on a node, however many slots need them.

For use inside chores: a cold compilation takes seconds, and a node full of slots that all compile
the same kernel at once takes them for every slot.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from matforge.model import MatForgeError


@contextmanager
def single_flight(kind: str) -> Iterator[None]:
    """Let one process of this user at a time on this node run the body for a ``kind``.

    The others wait, and then find what the first has left in :func:`compiled_cache_dir`. The lock
    is one of the node (in its temporary directory, never on a shared file system), and ends with
    the process that holds it, so a process that was killed blocks nobody.

    Raises
    ------
    MatForgeError
        If the folder of the locks belongs to somebody else.
    """
    path = _lock_folder() / f"{_file_name(kind)}.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _lock_folder() -> Path:
    """A folder of this user's only; everybody may write to the one it lies in."""
    path = Path(tempfile.gettempdir()) / f"matforge-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise MatForgeError(
            f"{path} is not a folder of yours alone; remove it, or set TMPDIR to a folder that is."
        )
    return path


def _file_name(kind: str) -> str:
    """A file name for any text: readable where possible, and different for different texts."""
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", kind)[:80].lstrip(".")
    return plain if plain == kind else f"{plain}-{hashlib.sha256(kind.encode()).hexdigest()[:12]}"


def compiled_cache_dir() -> Path:
    """The per-user directory for compiled kernels, made if it is missing.

    ``$MATFORGE_CACHE_DIR``, else ``$XDG_CACHE_HOME/matforge``, else ``~/.cache/matforge``; where
    that cannot be written, a private folder of the node.

    Raises
    ------
    MatForgeError
        If that last resort belongs to somebody else.
    """
    named = os.environ.get("MATFORGE_CACHE_DIR")
    shared = os.environ.get("XDG_CACHE_HOME")
    try:
        path = Path(named) if named else Path(shared or Path.home() / ".cache") / "matforge"
        path.mkdir(parents=True, exist_ok=True)
        if os.access(path, os.W_OK | os.X_OK):
            return path
    except (OSError, RuntimeError):  # RuntimeError: no home directory
        pass
    path = _lock_folder() / "cache"
    path.mkdir(mode=0o700, exist_ok=True)
    return path
