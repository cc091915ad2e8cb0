"""Results that other runs of the folder have made already: looked up when a chore becomes ready.

Files are read and written by threads of their own, so that a slow file system stalls nothing; what
they find comes back to the manager's thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matforge.chore import Chore, content_key
from matforge.engine import events, results, sketch
from matforge.engine.cache import Cache, digest_at
from matforge.engine.cache import Entry as CacheEntry
from matforge.engine.locations import read
from matforge.engine.run import Run
from matforge.engine.store import OUT_NAME, RESULT_NAME
from matforge.fingerprint import SEEDED
from matforge.model import Attempt, Location
from matforge.sources import Sources
from matforge.steering import Entry

log = logging.getLogger("matforge")

KEY_VERSION = "matforge-cache-2"
_THREADS = 2


@dataclass(frozen=True, slots=True)
class _Asked:
    """All that is needed to look for a chore's result, taken in the manager's thread."""

    chore: Chore
    attempt: Attempt
    directory: str | None
    payload: bytes | None
    inputs: tuple[Location, ...]
    fingerprint: str
    seed: int


@dataclass(frozen=True, slots=True)
class _Found:
    """A result that was found: where a link to it lies, or its bytes, which are to be packed."""

    entry: CacheEntry
    where: Location | None = None
    data: bytes | None = None


class Recall:
    """Looks for the results of chores with ``cache=``, and keeps those that had to be made.

    Parameters
    ----------
    run : Run
    cache : Cache, optional
        Without one nothing is found and nothing kept.
    functions : mapping
        With their fingerprints.
    request : callable
        Has a function called in the manager's thread.
    seed_of : callable
        The seed of a chore.
    """

    def __init__(
        self,
        run: Run,
        cache: Cache | None,
        functions: Mapping[str, Entry],
        request: Callable[[Callable[[], None]], None],
        seed_of: Callable[[Chore], int],
    ) -> None:
        self._run = run
        self._cache = cache
        self._functions = functions
        self._request = request
        self._seed_of = seed_of
        self._keys: dict[str, str] = {}
        """By chore id, of those that were looked for in vain."""
        self._digests: dict[Location, tuple[str, list[str]] | None] = {}
        """By result: what it is, and whose code it names."""
        self._looking: set[str] = set()
        """Chores that are looked for now, or of which what was found is on its way here."""
        self._sources = Sources()
        self._threads: ThreadPoolExecutor | None = None
        self._closed = False
        self._complained = False

    def look(self) -> None:
        """Look for the results of chores that have become ready; they are held meanwhile."""
        run = self._run
        if run.graph.lookups:
            run.store.flush()  # arguments and results may still be in memory
        while run.graph.lookups:
            node = run.graph.nodes[run.graph.lookups.popleft()]
            if not node.held:
                continue
            record = run.records[node.id]
            entry = self._functions.get(record.chore.function or "")
            if self._cache is None or entry is None or not entry.fingerprint:
                run.graph.handle(events.Released(node.id))
                continue
            inputs = [run.records[name].result for name in record.chore.inputs]
            asked = _Asked(
                record.chore,
                Attempt(node.id, run.epoch, node.number + 1),
                record.directory,
                run.small_payloads.get(node.id),
                tuple(where for where in inputs if where is not None),
                entry.fingerprint,
                self._seed_of(record.chore),
            )
            self._looking.add(node.id)
            self._start(self._look, asked, self._cache)

    def keep(self, chore: Chore, report: Mapping[str, Any]) -> None:
        """A chore has completed: keep its result, if it was looked for."""
        key, where = self._keys.pop(chore.id, None), self._run.records[chore.id].result
        if key is not None and where is not None:
            assert self._cache is not None
            self._start(self._keep, key, chore, where, dict(report), self._cache)

    def close(self) -> None:
        """Finish what is being kept; nothing that is found from now on is of use."""
        self._closed = True
        if self._threads is not None:
            self._threads.shutdown()
        self._run.lossy |= self._looking  # what was found for them lies in their folders

    def _start(self, work: Callable[..., None], *arguments: Any) -> None:
        if self._threads is None:  # most runs need none
            self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="matforge-cache")
        self._threads.submit(work, *arguments)

    # -- in threads

    def _look(self, asked: _Asked, cache: Cache) -> None:
        if self._closed:
            return
        key, found = "", None
        try:
            key = self._key(asked)
            if key and (entry := cache.find(key)) is not None:
                found = self._take(entry, asked, cache)
        except Exception as error:  # a cache that fails is no reason for a run to fail
            self._complain(error)
        self._request(lambda: self._answer(asked, key, found))

    def _key(self, asked: _Asked) -> str:
        """What the result depends on; empty if that cannot be told."""
        payload = asked.payload
        if payload is None:
            payload = read(self._run.store.path, asked.chore.payload)
        names = self._sources.named_in(payload)
        digests: list[str] = []
        for where in asked.inputs:
            if (known := self._digest(where)) is None:
                return ""
            digests.append(known[0])
            names += known[1]
        # a pickle has functions and classes of modules by name, so it does not change when they do
        code = self._sources.digest(names)
        seed = str(asked.seed) if code or asked.fingerprint.endswith(SEEDED) else ""
        return content_key(KEY_VERSION, asked.fingerprint, code, seed, payload, *digests)

    def _digest(self, where: Location) -> tuple[str, list[str]] | None:
        if where not in self._digests:
            run_dir = self._run.store.path
            found = digest_at(run_dir, where)
            names = [] if found is None else self._sources.named_in(results.pickle_of(run_dir, where))
            self._digests[where] = None if found is None else (found, names)
        return self._digests[where]

    def _take(self, entry: CacheEntry, asked: _Asked, cache: Cache) -> _Found | None:
        if asked.directory is None and entry.length < results.LARGE:
            data = cache.read(entry)
            return None if data is None else _Found(entry, data=data)
        folder = asked.directory or f"{OUT_NAME}/{asked.chore.id}"
        name = f"{folder}/{RESULT_NAME}.{asked.attempt.tag}"
        target = self._run.store.path / name
        target.parent.mkdir(exist_ok=True)
        if not cache.place(entry, target):
            return None
        return _Found(entry, Location(name, 0, entry.length, entry.crc))

    def _keep(self, key: str, chore: Chore, where: Location, report: dict[str, Any], cache: Cache) -> None:
        try:
            cache.keep(key, self._run.store.path, where, report=report, made=self._made(chore))
        except Exception as error:  # as above
            self._complain(error)

    def _made(self, chore: Chore) -> dict[str, Any]:
        run_dir: Path = self._run.store.path
        return {
            "function": chore.function,
            "arguments": sketch.sketch_call(read(run_dir, chore.payload), chore.inputs),
            "version": chore.policy.cache,
            "fingerprint": self._functions[chore.function or ""].fingerprint,
            "run": run_dir.name,
            "chore": chore.id,
            "at": time.time(),
        }

    def _complain(self, error: Exception) -> None:
        if not self._complained:
            self._complained = True
            log.warning("the cache cannot be used: %s", error)

    # -- in the manager's thread

    def _answer(self, asked: _Asked, key: str, found: _Found | None) -> None:
        run, name = self._run, asked.chore.id
        self._looking.discard(name)
        if not run.graph.nodes[name].held:  # cancelled meanwhile
            if found is not None and found.where is not None:
                with suppress(OSError):
                    (run.store.path / found.where.path).unlink()
            return
        if found is None:
            if key:
                self._keys[name] = key
            run.graph.handle(events.Released(name))
            return
        log.info("%s is taken from the cache: %s made it", name, found.entry.made.get("run"))
        run.recalled(asked.attempt, key, found.where, found.data, found.entry.report, time.time())
