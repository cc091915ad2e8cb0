"""How a run begins, and how it is taken up again.

:func:`begin` makes a run directory and :func:`reopen` continues one from its journal alone, so
resuming needs no script: functions, strategy and settings were stored when the run began.
"""

from __future__ import annotations

import functools
import gc
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from matforge._version import __version__
from matforge.chore import Call, ChoreRegistry
from matforge.engine import arbitration, journal, salvage
from matforge.engine.cache import Cache
from matforge.engine.lock import RunLock
from matforge.engine.records import Ending
from matforge.engine.run import Run
from matforge.engine.status import StatusWriter, last_sequence
from matforge.engine.store import (
    JOURNAL_NAME,
    LOCK_NAME,
    LOG_NAME,
    OUT_NAME,
    RunStore,
    StorageError,
    create_run_dir,
    storage_sentence,
)
from matforge.executors import choose
from matforge.executors.protocol import Executor, RunContext
from matforge.manager import FluxManager
from matforge.model import ChoreState, MatForgeError, UsageError
from matforge.session import Session, open_log
from matforge.settings import Settings
from matforge.steering import Entry
from matforge.stored import (
    NO_DEFAULTS,
    STRATEGY_FILE,
    Defaults,
    as_it_is_now,
    check_functions,
    check_names,
    described,
    load_strategy,
    pickle_strategy,
    put_functions,
    stored_functions,
)
from matforge.strategy import AdaptiveStrategy, FutureProcessingStrategy

log = logging.getLogger("matforge")

RUNS_FILE = "MATFORGE_RUNS_FILE"
"""Environment variable: a file that gets a line for every run that is begun."""
_NOT_STORED = ("basedir", "quiet")
"""Settings that belong to where and how a run is looked at, not to the run."""


# ---------------------------------------------------------------- begin


def begin(
    settings: Settings,
    registry: ChoreRegistry,
    calls: Sequence[Call],
    strategy: FutureProcessingStrategy | None = None,
    *,
    executor: Executor | None = None,
    held: bool = False,
    defaults: Defaults = NO_DEFAULTS,
) -> Session:
    """Make a run directory, write down everything a resume needs, and start.

    With ``held`` the run stays open for more chores (:meth:`FluxManager.add`) until it is released.

    Raises
    ------
    UsageError
        If a setting is wrong, or a chore can never fit; before anything is made.
    """
    settings.check()
    with _storage_told(settings.basedir), ExitStack() as undo:
        executor = executor or _executor(settings)
        undo.callback(executor.close, kill=True)
        calls = [defaults.call(call) for call in calls]
        _check_fit(calls, executor)
        strategy = strategy or AdaptiveStrategy()
        check_functions(registry)
        check_names(strategy, registry)
        frozen = pickle_strategy(strategy)
        now = executor.now()
        run_dir = create_run_dir(settings.basedir, now)
        _note_run(run_dir)
        lock = _locked(run_dir, now, undo)
        power = settings.durability == "power"
        store = RunStore(run_dir, layout=settings.layout)
        store.expected = len(calls)
        undo.callback(store.abandon)
        functions = put_functions(registry, defaults, store)
        store.put_function(STRATEGY_FILE, frozen)
        record = journal.Journal(run_dir / JOURNAL_NAME, sync_every_write=power)
        undo.callback(record.abandon)
        record.append(_run_record(run_dir, settings, functions, now))
        run = Run(store, record, fits=_fits(executor))
        for call in calls:
            run.add(call)
        record.append({"e": "submitted", "n": len(calls)})
        run.flush(now)
        session = _session(
            run, executor, strategy, functions, settings, lock, started_at=now, fresh=True, held=held
        )
        session.start(undo)
    return session


def _note_run(run_dir: Path) -> None:
    """Tell whoever started this process, through a file, which runs it has begun and can be resumed."""
    if name := os.environ.get(RUNS_FILE):
        with open(name, "a") as file:
            file.write(f"{run_dir.resolve()}\n")


@contextmanager
def _storage_told(place: Path) -> Iterator[None]:
    """Whatever the disk refuses while a run is opened is one sentence for a person."""
    try:
        yield
    except OSError as error:
        raise StorageError(storage_sentence(Path(error.filename or place), error)) from error


def _locked(run_dir: Path, now: float, undo: ExitStack) -> RunLock:
    lock = RunLock(run_dir / LOCK_NAME)
    undo.callback(lock.release)
    try:
        lock.acquire(now)
    except OSError as error:
        raise StorageError(storage_sentence(lock.path, error)) from error
    return lock


def _check_fit(calls: Sequence[Call], executor: Executor) -> None:
    why = _fits(executor)
    for call in calls:
        if sentence := why(call.resources):
            raise UsageError(f"Chore {call.name!r} can never run here. {sentence}")


def _fits(executor: Executor) -> Any:
    capacity = executor.capacity()
    return functools.partial(
        arbitration.why_unfit,
        total_cores=capacity.total_cores,
        total_gpus=capacity.total_gpus,
        node_memory=capacity.memory_per_node,
    )


def _executor(settings: Settings) -> Executor:
    return choose.make(
        settings.executor,
        settings.workers,
        sync=settings.durability == "power",
        affinity=settings.affinity,
    )


def _run_record(
    run_dir: Path, settings: Settings, functions: Mapping[str, Entry], now: float
) -> dict[str, Any]:
    return {
        "e": "run",
        "v": journal.FORMAT_VERSION,
        "id": run_dir.name,
        "t": now,
        "matforge": __version__,
        "settings": {
            one.name: getattr(settings, one.name) for one in fields(settings) if one.name not in _NOT_STORED
        },
        "functions": described(functions),
        "sys_path": [p for p in sys.path if p],
    }


# ---------------------------------------------------------------- reopen


@dataclass(frozen=True)
class Script:
    """What a script brings that goes on with a run of its own: it finds its chores by their content."""

    registry: ChoreRegistry
    calls: Sequence[tuple[str, Call]]
    """Ids in the script's pipeline, and the calls."""
    strategy: FutureProcessingStrategy
    defaults: Defaults = NO_DEFAULTS


def reopen(
    run_dir: Path,
    *,
    executor: str | None = None,
    workers: int | None = None,
    quiet: bool = False,
    made: Executor | None = None,
    script: Script | None = None,
) -> Session:
    """Continue a run from its journal.

    Parameters
    ----------
    run_dir : Path
    executor, workers
        Default: as before.
    quiet : bool
        Do not say where the run writes.
    made : Executor, optional
        Instead of one by name.
    script : Script, optional
        Its functions and its strategy take the place of the stored ones, and chores are added that
        the run does not have yet.

    Raises
    ------
    MatForgeError
        If another driver holds it, or the journal is damaged, or was written before the script
        had submitted everything (and no script is given that does so now).
    """
    now = time.time() if made is None else made.now()
    with _storage_told(run_dir), ExitStack() as undo:
        lock = _locked(run_dir, now, undo)
        if lock.seized:
            journal.Journal.detach(run_dir / JOURNAL_NAME)
        with _no_garbage():
            records, tail = journal.read(run_dir / JOURNAL_NAME)
        first = _first(run_dir, records, whole=script is None)
        settings = _settings(run_dir, first, executor, workers, quiet)
        settings.check()
        maker = made or _executor(settings)
        undo.callback(maker.close, kill=True)
        if script is not None:
            check_names(script.strategy, script.registry)
            _check_fit([script.defaults.call(call) for _, call in script.calls], maker)
        epoch = 2 + sum(r["e"] == "resume" for r in records)
        power = settings.durability == "power"
        store = RunStore(run_dir, layout=settings.layout, epoch=epoch)
        store.expected = max((r["n"] for r in records if r["e"] == "submitted"), default=0)
        undo.callback(store.abandon)
        record = _reopened_journal(run_dir, tail, len(records), power)
        undo.callback(record.abandon)
        run = Run(store, record, epoch=epoch, fits=_fits(maker))
        with _no_garbage():
            run.replay(records)
        run.resumed(now, tail.torn)
        lost = salvage.look_over(run, records)
        swept = salvage.sweep_run(run)
        alias: dict[str, str] = {}
        sys.path += [path for path in first["sys_path"] if path not in sys.path]
        stored = stored_functions(records)
        functions = {name: as_it_is_now(run_dir, entry) for name, entry in stored.items()}
        changed = [name for name, entry in functions.items() if entry != stored[name]]
        if script is not None:
            functions |= put_functions(script.registry, script.defaults, store)
            record.append({"e": "functions", "functions": described(functions)})
            alias = _find_chores(run, script)
        # the epoch must be known before anything of it can be started
        run.flush(now)
        strategy = _strategy_again(run, script)
        fresh = not any(r["e"] == "decide" and r["o"] == "start" for r in records)
        session = _session(
            run, maker, strategy, functions, settings, lock,
            started_at=first["t"], fresh=fresh, sys_path=first["sys_path"],
        )  # fmt: skip
        session.rename(alias)
        if tail.torn:
            log.warning("cut off %d bytes of a write that never finished", tail.torn)
        if lost:
            named = ", ".join(lost[:10])
            log.warning("%d results are missing or damaged and are made again: %s", len(lost), named)
        if changed and script is None:
            log.warning(
                "the cache is not used for %s: modules that it needs have changed", ", ".join(changed)
            )
        if swept:
            log.info("removed %d files of attempts that nobody had accepted", swept)
        session.start(undo)
    return session


def _find_chores(run: Run, script: Script) -> dict[str, str]:
    """Add a script's calls to a run that may have them: ids in the run, where they are others."""
    ids: dict[str, str] = {}
    for name, call in script.calls:
        call = script.defaults.call(call)
        inputs = tuple(ids[needed] for needed in call.inputs)
        ids[name] = run.add(replace(call, inputs=inputs)).id
    run.journal.append({"e": "submitted", "n": len(ids)})
    return {name: there for name, there in ids.items() if name != there}


def _strategy_again(run: Run, script: Script | None) -> FutureProcessingStrategy:
    if script is None:
        return load_strategy(run.store.path, run.decisions.strategy_state)
    run.store.put_function(STRATEGY_FILE, pickle_strategy(script.strategy))
    return load_strategy(run.store.path, run.decisions.strategy_state)


@contextmanager
def _no_garbage() -> Iterator[None]:
    """Look for no garbage where none is made: with millions of new objects that takes as long as the rest."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _reopened_journal(run_dir: Path, tail: journal.Tail, sequence: int, power: bool) -> journal.Journal:
    path = run_dir / JOURNAL_NAME
    try:
        return journal.Journal.reopen(path, tail, sequence, sync_every_write=power)
    except OSError as error:
        raise StorageError(storage_sentence(path, error)) from error


def _first(run_dir: Path, records: list[dict[str, Any]], *, whole: bool = True) -> dict[str, Any]:
    if not records or records[0]["e"] != "run":
        raise MatForgeError(f"{run_dir} was ended before it had begun; start it again instead.")
    if records[0]["v"] > journal.FORMAT_VERSION:
        raise MatForgeError(
            f"{run_dir} was written by MatForge {records[0]['matforge']}, which is newer than this "
            f"{__version__}; resume it with that version."
        )
    if whole and not any(r["e"] == "submitted" for r in records):
        raise MatForgeError(
            f"{run_dir} was ended before its script had submitted all chores; run the script again."
        )
    return records[0]


def _settings(
    run_dir: Path, first: dict[str, Any], executor: str | None, workers: int | None, quiet: bool
) -> Settings:
    stored = dict(first["settings"])
    stored["executor"] = executor or stored["executor"]
    stored["workers"] = workers if workers is not None else stored["workers"]
    return Settings(basedir=run_dir.parent, quiet=quiet, **stored)


# ---------------------------------------------------------------- both


def _session(
    run: Run,
    executor: Executor,
    strategy: FutureProcessingStrategy,
    functions: Mapping[str, Entry],
    settings: Settings,
    lock: RunLock,
    *,
    started_at: float,
    fresh: bool,
    held: bool = False,
    sys_path: Sequence[str] | None = None,
) -> Session:
    run_dir = run.store.path
    status = StatusWriter(
        run_dir,
        {"id": run_dir.name, "name": settings.name, "campaign": settings.campaign},
        started_at,
        settings.log_delay,
        sequence=last_sequence(run_dir),
    )
    paths = list(sys_path) if sys_path is not None else [p for p in sys.path if p]
    script = os.path.dirname(os.path.abspath(sys.argv[0])) if sys.argv and sys.argv[0] else ""
    context = RunContext(
        run_dir,
        run_dir.name,
        run.epoch,
        {"PYTHONPATH": os.pathsep.join(dict.fromkeys([*paths, script] if script else paths))},
    )
    session: Session | None = None

    def on_end(ending: Ending) -> None:
        if session is not None:
            session.note(ending)

    cache = Cache(settings.basedir.resolve(), sync=settings.durability == "power")
    manager = FluxManager(
        run, executor, strategy, functions,
        status=status, context=context, lock=lock, fresh=fresh, held=held, seed=settings.seed,
        buffer_time=settings.buffer_time, on_end=on_end, cache=cache,
    )  # fmt: skip
    session = Session(run_dir, manager, run)
    _recall(session, status, started_at)
    open_log(run_dir)
    if not (settings.quiet or os.environ.get("MATFORGE_QUIET")):
        print(
            f"MatForge writes to {run_dir}\n  status   {run_dir / 'status.json'}\n"
            f"  log      {run_dir / LOG_NAME}\n  results  {run_dir / OUT_NAME}",
            file=sys.stderr,
        )
    return session


def _recall(session: Session, status: StatusWriter, when: float) -> None:
    """Tell a new session what had ended, and was written down, before it began."""
    run = session.engine
    yet_to_come = {ending.chore.id for ending in run.unwritten}
    for chore_id, record in run.records.items():
        node = run.graph.nodes[chore_id]
        if chore_id in yet_to_come or node.state is None or not node.state.final:
            continue
        session.remember(chore_id, record.result, node.failure, node.state)
        if node.failure is not None and node.state is ChoreState.FAILED:
            status.failed(chore_id, node.failure, when)
