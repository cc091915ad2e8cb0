"""One sync: gather, compact, freeze, send, settle; see :mod:`matforge.vulcan.sync`."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from matforge.lease import HeldError
from matforge.model import MatForgeError, UsageError
from matforge.vulcan import layout, shelf, waiting
from matforge.vulcan.budget import CommitBudget
from matforge.vulcan.catalog import refresh
from matforge.vulcan.compact import Loaded, compact, keep_apart
from matforge.vulcan.errors import Failure, RefusedError, SplitsChangedError, Verdict
from matforge.vulcan.hub import MAIN, pull_number, pull_revision
from matforge.vulcan.lease import StagingLease
from matforge.vulcan.ledger import (
    COMMITTED,
    DISSOLVED,
    OUTBOX_DIRNAME,
    Batch,
    Ledger,
    NumberTakenError,
    Part,
    View,
)
from matforge.vulcan.parts import keep
from matforge.vulcan.remote import Later, Remote
from matforge.vulcan.report import SyncReport
from matforge.vulcan.send import Sender
from matforge.vulcan.shard import (
    DamagedShardError,
    ShardGoneError,
    StagedShard,
    WrongRepositoryError,
    load,
)
from matforge.vulcan.splits import SplitSpec
from matforge.vulcan.sync import Settings

BATCH_BYTES = 256 * 2**20
"""Staged bytes that one commit takes unless the caller counts shards: they are in memory at once."""
BATCH_SHARDS = 10_000
"""And shards: a small one takes ten times its bytes in memory."""
READERS = 4
"""Shards read at a time."""
REJECTIONS = 3
"""Shards rejected one after the other, with nothing taken in between, that mean it is not the shards."""


class _Stop(Exception):
    """End this sync; what is left is for the next."""


class Publisher:
    """One sync, holding the folder's lease."""

    def __init__(self, settings: Settings, lease: StagingLease) -> None:
        self.settings, self._lease = settings, lease
        self.staging = settings.staging_dir
        self.ledger = Ledger(self.staging)
        self.budget = CommitBudget(self.staging, settings.budget, settings.window_s, settings.clock)
        self.remote = Remote(settings, self.ledger)
        self.sender = Sender(
            self.remote.hub,
            self.budget,
            settings.max_retries,
            settings.clock,
            settings.sleep,
            settings.stopping,
        )
        self.report = SyncReport(dry_run=settings.dry_run)
        self._passed: set[str] = set()
        """Names of shards that this sync leaves alone."""
        self._halves: list[set[str]] = []
        """Parts of a batch that was rejected, to be sent by themselves."""
        self._rejected = 0

    def run(self) -> SyncReport:
        """Do it."""
        try:
            self._begin()
            self._resume()
            while self._next():
                pass
        except _Stop:
            pass
        except Later as error:
            self._note(error.verdict)
        except RefusedError as error:
            error.report = self.report
            raise
        except HeldError as error:
            self.report.stopped = str(error)
        finally:
            refresh(self.staging, (layout.SYNCED_DIRNAME,))  # so that no reader has to
            self.report.n_remaining = len(layout.contents(self.staging, layout.PENDING_DIRNAME).shards)
            if self.settings.dry_run:
                self.report.n_remaining -= self.report.n_committed
        return self.report

    # ------------------------------------------------------------ what an earlier sync left

    def _begin(self) -> None:
        problem = self.budget.problem()
        if problem:
            self.report.errors.append(problem)
        if self.settings.dry_run:
            return
        state = waiting.read(self.staging, self.settings.clock())
        if state and state.repo == self.settings.repo:
            self.report.not_before = state.not_before
            self._stop(f"the Hub asked to wait: {state.why}")
        used = {batch.outbox for batch in self.ledger.read().batches if batch.open}
        shelf.clean(self.staging / OUTBOX_DIRNAME, used, self.staging)

    def _resume(self) -> None:
        for batch in self.ledger.read().open(self.settings.repo):
            if self.settings.dry_run:
                if batch.pull_request is None:
                    self._pretend(len(batch.shards), batch.rows, len(batch.parts))
            elif (pull := pull_number(batch.revision)) is None:
                self._send(self._restored(batch), again=True)
            else:
                self._review(batch, pull)

    def _restored(self, batch: Batch) -> Batch | None:
        """The batch, if its files are in the outbox or can be made again; else it is dissolved."""
        folder = self.staging / batch.outbox
        if all(_is(folder / part.path, part.size) for part in batch.parts):
            return batch
        shutil.rmtree(folder, ignore_errors=True)
        whole = self._load(self.staging / layout.PENDING_DIRNAME / name for name in batch.shards.values())
        if len(whole) == len(batch.shards):
            made = self._write(
                whole, SplitSpec.from_dict(batch.splits), folder, batch.parts[0].split == "", ()
            )
            if {(p.path, p.sha256) for p in made} == {(p.path, p.sha256) for p in batch.parts}:
                return batch
        if self.remote.ask(lambda: self.remote.hub.holds(batch.parts, batch.revision)):
            self._committed(batch, self.remote.ask(lambda: self.remote.hub.head(batch.revision)))
        else:
            self.ledger.settle(batch, DISSOLVED, self.settings.clock(), why="its files were lost")
        return None

    def _review(self, batch: Batch, pull: int) -> None:
        """See what became of a pull request."""
        status = self.remote.ask(lambda: self.remote.hub.pull_status(pull))
        if status == "open":
            if batch.pull_request is None:  # the answer, or the note of it, was lost
                self._send(self._restored(batch), again=True)
            return
        if status == "merged" and self.remote.ask(lambda: self.remote.hub.holds(batch.parts, MAIN)):
            self._committed(batch, self.remote.ask(lambda: self.remote.hub.head(MAIN)))
            return
        why = f"pull request {pull} was {status} without it"
        if self.ledger.settle(batch, DISSOLVED, self.settings.clock(), why=why) and batch.pull_request:
            for name in batch.shards.values():
                self._fail(name, why, layout.IN_REVIEW_DIRNAME)
        self._drop(batch)

    # ------------------------------------------------------------ new batches

    def _next(self) -> bool:
        """Publish one more batch; False if there is nothing left to do."""
        view = self.ledger.read()
        shards = self._gather(view)
        if not shards:
            return bool(self._halves)
        if self.settings.stopping():
            self._stop("it was asked to end")
        if self.settings.dry_run:
            self._passed.update(shard.path.name for shard in shards)
            self._pretend(len(shards), sum(shard.record.n_rows for shard in shards), 0)
            return True
        if not self.budget.remaining():
            self._out_of_budget()
        revision = self._revision()
        spec = self._splits(shards, revision)
        outbox = Path(OUTBOX_DIRNAME) / f"{view.last + 1:06d}-{secrets.token_hex(4)}"
        published = [p.path for b in view.batches if b.outcome != DISSOLVED for p in b.parts]
        parts = self._write(shards, spec, self.staging / outbox, not self.settings.compact, published)
        self._lease.check()
        try:
            batch = self.ledger.freeze(
                view, self.settings.repo, revision, parts, str(outbox), self.settings.clock(), spec.as_dict()
            )
        except NumberTakenError:
            shutil.rmtree(self.staging / outbox, ignore_errors=True)
            return True
        self._send(batch, again=False)
        return True

    def _gather(self, view: View) -> list[Loaded]:
        """The next shards, checked; those of earlier batches are put where they belong."""
        only = self._halves.pop() if self._halves else None
        while chosen := self._choose(view, only):
            shards = self._load(chosen)
            if shards or only is not None:
                return shards
        return []

    def _choose(self, view: View, only: set[str] | None) -> list[Path]:
        """The files that the next batch is made of."""
        chosen: list[Path] = []
        n_bytes = 0
        for path in layout.contents(self.staging, layout.PENDING_DIRNAME).shards:
            if path.name in self._passed or (only is not None and path.name not in only):
                continue
            home = view.batch_of(layout.ShardName.parse(path.name).run_id)  # type: ignore[union-attr]
            if home is not None:
                self._passed.add(path.name)
                if home.outcome == COMMITTED and not self.settings.dry_run:
                    shelf.move(self.staging, path.name, layout.PENDING_DIRNAME, layout.SYNCED_DIRNAME)
                continue
            n_bytes += _size(path)
            if chosen and self.settings.max_batch is None and n_bytes > BATCH_BYTES:
                break
            chosen.append(path)
            if len(chosen) == (self.settings.max_batch or BATCH_SHARDS):
                break
        return chosen

    def _load(self, paths: Iterable[Path]) -> list[Loaded]:
        """The shards that are whole and for us; of the others it is noted why not."""
        with ThreadPoolExecutor(READERS) as pool:
            found = list(pool.map(self._read, paths))
        for path, shard in found:
            if isinstance(shard, Loaded):
                continue
            self._passed.add(path.name)
            if isinstance(shard, DamagedShardError) and not self.settings.dry_run:
                self._fail(path.name, str(shard))
            elif not isinstance(shard, ShardGoneError):
                self.report.errors.append(str(shard))
        return [shard for _, shard in found if isinstance(shard, Loaded)]

    def _read(self, path: Path) -> tuple[Path, Loaded | MatForgeError]:
        try:
            return path, Loaded(path, *load(path, self.settings.repo))
        except (DamagedShardError, ShardGoneError, WrongRepositoryError) as error:
            return path, error

    def _write(
        self, shards: list[Loaded], spec: SplitSpec, folder: Path, apart: bool, published: Iterable[str]
    ) -> list[Part]:
        return keep_apart(shards, folder) if apart else compact(shards, spec, folder, published)

    def _splits(self, shards: list[Loaded], revision: str) -> SplitSpec:
        """As frozen in the repository; for a new one by geometry, or by row if there is only one."""
        frozen = self.remote.splits(revision)
        wanted = self.settings.splits
        if frozen is not None:
            if wanted is not None and wanted != frozen:
                known = frozen.as_dict()
                raise UsageError(f"The splits of {self.settings.repo} are frozen as {known}; leave them out.")
            return frozen
        if wanted is not None:
            return wanted
        return SplitSpec(by="row" if self._one_geometry(shards[0].record.geometry_id) else "geometry")

    def _one_geometry(self, geometry_id: str) -> bool:
        """Whether all that is staged is of this geometry, not only what the first commit takes."""
        for path in layout.contents(self.staging, layout.PENDING_DIRNAME).shards:
            with suppress(DamagedShardError, ShardGoneError):
                if StagedShard(path).record.geometry_id != geometry_id:
                    return False
        return True

    # ------------------------------------------------------------ sending

    def _send(self, batch: Batch | None, *, again: bool) -> None:
        if batch is None:
            return
        before = self.sender.commits
        message = f"{self.settings.commit_prefix}: {len(batch.shards)} shards, {batch.rows} rows"
        outbox, remote = self.staging / batch.outbox, self.remote
        try:
            sent = self.sender.send(
                batch, outbox, lambda revision: remote.beside(batch, revision), message, again=again
            )
        except SplitsChangedError as error:
            # it is not there, and cannot come there late: the commit before it is no longer the newest
            self.ledger.settle(batch, DISSOLVED, self.settings.clock(), why=str(error))
            self._drop(batch)
            return
        self.report.n_commits += self.sender.commits - before
        if sent.commit is not None:
            self._rejected = 0
            if sent.answered:
                self.remote.accepted(batch.revision, sent.commit)
            if self.sender.commits > before:
                self.report.commit_oids.append(sent.commit)
            self._landed(batch, sent.commit)
        elif sent.out_of_budget:
            self._out_of_budget()
        elif sent.verdict is not None:
            self._refused(batch, sent.verdict)

    def _landed(self, batch: Batch, commit: str) -> None:
        pull = pull_number(batch.revision)
        if pull is None:
            self._committed(batch, commit)
            return
        self.ledger.propose(batch, pull)
        for name in batch.shards.values():
            shelf.move(self.staging, name, layout.PENDING_DIRNAME, layout.IN_REVIEW_DIRNAME)
        self.report.n_in_review += len(batch.shards)
        self.report.n_files += len(batch.parts)

    def _committed(self, batch: Batch, commit: str) -> None:
        self.ledger.settle(batch, COMMITTED, self.settings.clock(), commit=commit)
        for name in batch.shards.values():
            for state in (layout.PENDING_DIRNAME, layout.IN_REVIEW_DIRNAME):
                shelf.move(self.staging, name, state, layout.SYNCED_DIRNAME)
        # readers take the rows of many shards from the files that were published
        keep(self.staging, [self.staging / batch.outbox / part.path for part in batch.parts])
        self._drop(batch)
        waiting.clear(self.staging)
        self.report.n_committed += len(batch.shards)
        self.report.n_rows += batch.rows
        self.report.n_files += len(batch.parts)

    def _drop(self, batch: Batch) -> None:
        shutil.rmtree(self.staging / batch.outbox, ignore_errors=True)

    def _refused(self, batch: Batch, verdict: Verdict) -> None:
        if verdict.kind is Failure.CONFIGURATION:
            raise RefusedError(f"The Hub refuses {self.settings.repo}: {verdict.message}")
        if verdict.kind is not Failure.REJECTED:
            raise Later(verdict)
        # refused for what it holds, so it is not there: its shards may go into other batches
        self.ledger.settle(batch, DISSOLVED, self.settings.clock(), why=verdict.message)
        self._drop(batch)
        names = sorted(batch.shards.values())
        if len(names) > 1:
            self._halves += [set(names[len(names) // 2 :]), set(names[: len(names) // 2])]
            return
        self._rejected += 1
        if self._rejected >= REJECTIONS:
            raise RefusedError(f"The Hub rejects one shard after the other: {verdict.message}")
        self._fail(names[0], verdict.message)

    def _fail(self, name: str, why: str, state: str = layout.PENDING_DIRNAME) -> None:
        content = {"why": why, "at": self.settings.clock(), "repo": self.settings.repo}
        shelf.fail(self.staging, name, state, content)
        self._passed.add(name)
        self.report.n_failed += 1
        self.report.errors.append(f"{name}: {why}")

    def _revision(self) -> str:
        if not self.settings.create_pr:
            return self.settings.revision or MAIN
        if self.report.pull_request is None:
            self.report.pull_request = self.remote.pull_request()
        return pull_revision(self.report.pull_request)

    # ------------------------------------------------------------ ends

    def _pretend(self, shards: int, rows: int, files: int) -> None:
        if not self.budget.take():
            self._out_of_budget()
        self.report.n_commits += 1
        self.report.commit_oids.append(None)
        self.report.n_committed += shards
        self.report.n_rows += rows
        self.report.n_files += files

    def _out_of_budget(self) -> None:
        self.report.not_before = self.budget.next_free()
        wait = max(0.0, self.report.not_before - self.settings.clock())
        self._stop(
            f"the budget of {self.budget.budget} commits is spent; the next slot is free in {wait:.0f} s"
        )

    def _note(self, verdict: Verdict) -> None:
        """The Hub cannot or will not now: note until when, so that the next sync does not even ask."""
        self.report.stopped = f"{verdict.kind}: {verdict.message}"
        if verdict.wait_s:
            now = self.settings.clock()
            self.report.not_before = now + verdict.wait_s
            noted = waiting.Waiting(self.settings.repo, self.report.not_before, verdict.message, now)
            waiting.write(self.staging, noted)

    def _stop(self, why: str) -> None:
        self.report.stopped = why
        raise _Stop


def _is(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except FileNotFoundError:
        return False


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
