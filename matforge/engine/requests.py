"""What people ask of a living driver, through files in the run directory.

A request is a file in ``requests/`` that appears whole, by a rename, and so is its answer. That
needs no port and no signal, works from every host that sees the folder, and whoever may write to
the run may ask. A request names the driver that it is meant for (the token of its lock), so what
was asked of a driver that has died is never done to the next one.
"""

from __future__ import annotations

import fnmatch
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matforge.chore import nearest
from matforge.engine.events import Instruction
from matforge.engine.graph import Graph
from matforge.engine.history import chore_ids
from matforge.engine.lock import holder
from matforge.engine.run import Run
from matforge.engine.status import replace_text
from matforge.engine.store import LOCK_NAME, StorageError, storage_sentence
from matforge.model import MatForgeError, UsageError

log = logging.getLogger("matforge")

FORMAT_VERSION = 1
REQUESTS_NAME = "requests"
POLL_S = 1.0
"""How often a driver looks for requests: one listing of a small folder."""
_REQUEST, _ANSWER = ".request", ".answer"
_LOOK_S = 0.05


@dataclass(frozen=True, slots=True)
class Request:
    """Cancel these chores (ids or patterns), or the whole run if none is named."""

    id: str
    chores: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a request."""

    cancelled: tuple[str, ...] = ()
    """Chores that were named and had not ended: they will not run, or are being stopped."""
    dependents: tuple[str, ...] = ()
    """Chores that need one of those, and so will not run either."""
    ended: tuple[str, ...] = ()
    """Chores that were named and had ended before."""
    unknown: str = ""
    """An id or pattern that no chore of the run matches; then nothing was done."""


# ---------------------------------------------------------------- the driver's side


class Inbox:
    """The requests to one driver.

    Parameters
    ----------
    run_dir : Path
    token : str
        The token of the driver's lock; requests to others are thrown away.
    """

    def __init__(self, run_dir: Path, token: str) -> None:
        self._folder = run_dir / REQUESTS_NAME
        self._token = token
        self._taken: set[str] = set()
        self._looked = float("-inf")
        with suppress(OSError):  # a disk that refuses is told by whatever has to be written
            self._folder.mkdir(exist_ok=True)
            for path in self._folder.glob(f"*{_ANSWER}"):
                path.unlink()  # nobody came for it while the last driver lived

    @property
    def due(self) -> float:
        """When to look again."""
        return self._looked + POLL_S

    def take(self, now: float) -> list[Request]:
        """New requests; looks at the folder at most every :data:`POLL_S` seconds."""
        if 0 <= now - self._looked < POLL_S:
            return []
        self._looked = now
        try:
            # a listing, because some network file systems show a folder's time of change late
            names = sorted(name for name in os.listdir(self._folder) if name.endswith(_REQUEST))
        except OSError:
            return []
        found = [self._read(name) for name in names if name not in self._taken]
        return [request for request in found if request is not None]

    def _read(self, name: str) -> Request | None:
        self._taken.add(name)
        try:
            data = json.loads((self._folder / name).read_text())
            if data["driver"] == self._token and data["version"] == FORMAT_VERSION:
                chores = tuple(map(str, data["chores"]))
                log.info("asked to cancel %s", ", ".join(chores) or "the run")
                return Request(name.removesuffix(_REQUEST), chores)
            log.info("the request %s is for another driver, or of another version", name)
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("the request %s cannot be read: %s", name, error)
        self._remove(name)
        return None

    def _remove(self, name: str) -> None:
        with suppress(OSError):  # it is not looked at twice
            (self._folder / name).unlink()

    def answer(self, request: Request, answer: Answer) -> None:
        """Tell whoever asked; what has been done stays done if that fails."""
        document = {"version": FORMAT_VERSION, **asdict(answer)}
        try:
            replace_text(self._folder / f"{request.id}{_ANSWER}", json.dumps(document))
        except OSError as error:
            log.warning("the answer to the request %s cannot be written: %s", request.id, error)
        self._remove(f"{request.id}{_REQUEST}")


def cancel_chores(run: Run, patterns: Sequence[str]) -> tuple[Answer, list[Instruction]]:
    """Cancel the chores that the patterns mean, and all that depends on them.

    Returns
    -------
    answer : Answer
        With nothing done, if a pattern matches no chore.
    instructions : list
        For the executor.
    """
    try:
        named = matching(patterns, run.records)
    except LookupError as error:
        return Answer(unknown=str(error.args[0])), []
    nodes = run.graph.nodes
    over = [name for name in named if (state := nodes[name].state) is not None and state.final]
    ended = set(over)
    cancelled = [name for name in named if name not in ended]
    dependents = _dependents(run.graph, cancelled)
    instructions = [step for name in cancelled for step in run.decisions.cancel(name)]
    return Answer(tuple(cancelled), tuple(dependents), tuple(over)), instructions


def matching(patterns: Iterable[str], known: Iterable[str]) -> list[str]:
    """The chores that ids and shell patterns mean, in the order of the run.

    Raises
    ------
    LookupError
        If one of them means none; its argument is that one.
    """
    ids = list(known)
    everything = set(ids)
    wanted: set[str] = set()
    for pattern in patterns:
        if pattern in everything:
            wanted.add(pattern)
            continue
        matches = re.compile(fnmatch.translate(pattern)).match
        found = [name for name in ids if matches(name)]
        if not found:
            raise LookupError(pattern)
        wanted.update(found)
    return [name for name in ids if name in wanted]


def _dependents(graph: Graph, chore_ids: Sequence[str]) -> list[str]:
    """All that needs one of these, directly or not, and has not ended; in the order of the run."""
    found: set[str] = set()
    stack = list(chore_ids)
    while stack:
        for name in graph.nodes[stack.pop()].dependents:
            if name not in found:
                found.add(name)
                stack.append(name)
    return sorted(found - set(chore_ids), key=lambda name: graph.nodes[name].sequence)


# ---------------------------------------------------------------- the asker's side


def ask(
    run_dir: Path,
    chores: Sequence[str] = (),
    *,
    timeout: float = 30.0,
    pause: Callable[[float], object] = time.sleep,
) -> Answer:
    """Ask the living driver of a run to cancel chores, or to end the run if none is named.

    Parameters
    ----------
    chores : sequence of str
        Ids, or shell patterns such as ``chore-isd*``.
    timeout : float
        Seconds to wait for the answer.

    Raises
    ------
    UsageError
        If nobody drives the run, or a pattern matches no chore.
    MatForgeError
        If there is no answer in time, or the driver ended meanwhile.
    StorageError
        If the request cannot be written.
    """
    driver = _driver(run_dir)
    if driver is None:
        raise UsageError(f"Nobody drives the run in {run_dir}, so there is nothing to cancel.")
    folder = run_dir / REQUESTS_NAME
    name = secrets.token_hex(8)
    request, answer = folder / f"{name}{_REQUEST}", folder / f"{name}{_ANSWER}"
    document = {"version": FORMAT_VERSION, "driver": driver, "chores": list(chores)}
    try:
        folder.mkdir(exist_ok=True)
        replace_text(request, json.dumps(document))
    except OSError as error:
        raise StorageError(storage_sentence(folder, error)) from error
    try:
        data = _wait_for(answer, run_dir, driver, timeout, pause)
    finally:
        for path in (request, answer):
            with suppress(OSError):
                path.unlink()
    if unknown := data["unknown"]:  # the nearest are looked for here: a driver has better things to do
        raise UsageError(f"The run has no chore {unknown!r}{nearest(unknown, chore_ids(run_dir))}.")
    return Answer(tuple(data["cancelled"]), tuple(data["dependents"]), tuple(data["ended"]))


def _wait_for(
    path: Path, run_dir: Path, driver: str, timeout: float, pause: Callable[[float], object]
) -> Mapping[str, Any]:
    deadline = time.monotonic() + timeout
    while True:
        alive = _driver(run_dir) == driver  # asked first: its last deed may be the answer
        with suppress(FileNotFoundError):
            found: dict[str, Any] = json.loads(path.read_text())
            return found
        if not alive:
            raise MatForgeError(f"The driver of {run_dir} ended before it answered.")
        if time.monotonic() >= deadline:
            raise MatForgeError(
                f"The driver of {run_dir} has not answered in {timeout:g} s; nothing was cancelled."
            )
        pause(_LOOK_S)


def _driver(run_dir: Path) -> str | None:
    """Token of the living driver."""
    held = holder(run_dir / LOCK_NAME)
    return None if held is None else str(held.get("token", ""))
