"""What was published, and what is on its way: a set of files each of which is created once.

``_ledger/000007.json`` says which shards batch 7 consists of, into which files they were put and
with which checksums; it is the moment from which these shards belong to that batch and no other.
``_ledger/000007.review.json`` says in which pull request they lie, ``_ledger/000007.outcome.json``
how it ended: committed, or dissolved. Nothing is ever changed, and creating is exclusive, so two
publishers (one of which was thought to be dead) cannot both freeze a shard: the second finds its
number taken, reads the ledger again, and sees it.

A frozen batch is always sent again as it is. So it does not matter whether an answer was lost after
the Hub had done its work: the same files under the same names are there once.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matforge.model import MatForgeError
from matforge.vulcan import layout

LEDGER_DIRNAME = "_ledger"
OUTBOX_DIRNAME = "_outbox"
"""The files of the batches that are on their way, under their paths in the repository."""
FORMAT = 1
COMMITTED, DISSOLVED = "committed", "dissolved"
_NAME = re.compile(r"(\d{6,})\.(json|review\.json|outcome\.json)")


class LedgerError(MatForgeError):
    """A file of the ledger cannot be read; the text names it."""


class NumberTakenError(MatForgeError):
    """Another publisher froze a batch since the ledger was read."""


@dataclass(frozen=True)
class Run:
    """One shard's place in a published file."""

    run_id: str
    shard: str
    """Name of the shard's file."""
    rows: int


@dataclass(frozen=True)
class Part:
    """One file in the repository."""

    path: str
    sha256: str
    size: int
    rows: int
    split: str
    runs: tuple[Run, ...]
    """In their order in the file; a shard whose rows are in several files has a run in each."""


@dataclass(frozen=True)
class Batch:
    """Shards that are published together."""

    number: int
    repo: str
    revision: str
    parts: tuple[Part, ...]
    outbox: str
    """Folder with the files, relative to the staging folder."""
    frozen_at: float
    splits: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """How its rows were split, for a repository that does not say so yet."""
    pull_request: int | None = None
    outcome: str | None = None
    """:data:`COMMITTED`, :data:`DISSOLVED` or None (on its way)."""
    commit: str | None = None

    @property
    def shards(self) -> dict[str, str]:
        """Names of the shards' files by run id."""
        return {run.run_id: run.shard for part in self.parts for run in part.runs}

    @property
    def rows(self) -> int:
        """Rows of all files."""
        return sum(part.rows for part in self.parts)

    @property
    def open(self) -> bool:
        """Whether it is still on its way."""
        return self.outcome is None


@dataclass
class View:
    """The ledger as it was at one moment."""

    batches: list[Batch] = field(default_factory=list)
    last: int = 0
    """The highest number there is."""

    def __post_init__(self) -> None:
        held = [b for b in self.batches if b.outcome != DISSOLVED]
        self._home = {run_id: batch for batch in held for run_id in batch.shards}

    def batch_of(self, run_id: str) -> Batch | None:
        """The batch that holds a run, unless that was dissolved."""
        return self._home.get(run_id)

    def open(self, repo: str) -> list[Batch]:
        """The batches on their way to a repository, oldest first."""
        return [b for b in self.batches if b.open and b.repo == repo]

    def committed(self, repo: str) -> list[Batch]:
        """What a repository was given."""
        return [b for b in self.batches if b.outcome == COMMITTED and b.repo == repo]

    def locate(self, run_id: str) -> list[tuple[str, int, int, str | None]]:
        """Where a run is published: path, first row, rows, commit."""
        batch = self.batch_of(run_id)
        if batch is None or batch.outcome != COMMITTED:
            return []
        found = []
        for part in batch.parts:
            first = 0
            for run in part.runs:
                if run.run_id == run_id:
                    found.append((part.path, first, run.rows, batch.commit))
                first += run.rows
        return found


class Ledger:
    """The ledger of one staging folder."""

    def __init__(self, staging_dir: Path) -> None:
        self.staging_dir = Path(staging_dir)
        self.folder = self.staging_dir / LEDGER_DIRNAME

    # ------------------------------------------------------------ reading

    def read(self) -> View:
        """Everything there is.

        Raises
        ------
        LedgerError
            If a file cannot be read: what it says decides what is sent, so nothing is guessed.
        """
        names = self._names()
        numbers = sorted({int(match[1]) for match in names.values()})
        batches = [batch for number in numbers if (batch := self._batch(number, names)) is not None]
        return View(batches, numbers[-1] if numbers else 0)

    def _names(self) -> dict[str, re.Match[str]]:
        try:
            entries = os.listdir(self.folder)
        except FileNotFoundError:
            return {}
        return {name: match for name in entries if (match := _NAME.fullmatch(name)) is not None}

    def _batch(self, number: int, names: Mapping[str, Any]) -> Batch | None:
        content = self._load(f"{number:06d}.json")
        if content is None:
            return None
        outcome = self._load(f"{number:06d}.outcome.json") if f"{number:06d}.outcome.json" in names else None
        review = self._load(f"{number:06d}.review.json") if f"{number:06d}.review.json" in names else None
        try:
            parts = tuple(
                Part(**{**part, "runs": tuple(Run(*run) for run in part["runs"])})
                for part in content["parts"]
            )
            return Batch(
                number, content["repo"], content["revision"], parts, content["outbox"], content["frozen_at"],
                content["splits"],
                pull_request=(review or {}).get("pull_request"),
                outcome=(outcome or {}).get("outcome"), commit=(outcome or {}).get("commit"),
            )  # fmt: skip
        except (KeyError, TypeError) as error:
            raise LedgerError(f"{self.folder / f'{number:06d}.json'} is damaged ({error!r}).") from error

    def _load(self, name: str) -> dict[str, Any] | None:
        path = self.folder / name
        try:
            text = path.read_text("utf-8")
            if not text:
                return None
            data = json.loads(text)
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise LedgerError(
                f"{path} is damaged: it is not JSON ({error}). Put it back from a copy; without it, what the "
                "batch published would be published again."
            ) from error
        if not isinstance(data, dict):
            raise LedgerError(f"{path} is damaged: a JSON object belongs there.")
        return data

    def source(self) -> str:
        """What tells this staging folder from others that publish into the same repository."""
        self._create("source.json", {"format": FORMAT, "source": secrets.token_hex(8)})
        content = self._load("source.json")
        return str((content or {})["source"])

    # ------------------------------------------------------------ writing

    def freeze(
        self,
        view: View,
        repo: str,
        revision: str,
        parts: Iterable[Part],
        outbox: str,
        now: float,
        splits: Mapping[str, Any] | None = None,
    ) -> Batch:
        """Make a batch of these files, as the next after ``view``.

        Raises
        ------
        NumberTakenError
            If the ledger has grown since ``view`` was read; nothing was written.
        ValueError
            If a run is in another batch already.
        """
        batch = Batch(view.last + 1, repo, revision, tuple(parts), outbox, now, dict(splits or {}))
        for run_id in batch.shards:
            home = view.batch_of(run_id)
            if home is not None:
                raise ValueError(f"{run_id} is in batch {home.number} already")
        content = {
            "format": FORMAT,
            "repo": repo,
            "revision": revision,
            "outbox": outbox,
            "frozen_at": now,
            "splits": dict(batch.splits),
            "parts": [_plain(part) for part in batch.parts],
        }
        if not self._create(f"{batch.number:06d}.json", content):
            raise NumberTakenError(f"batch {batch.number} was made by another publisher meanwhile.")
        return batch

    def propose(self, batch: Batch, pull_request: int) -> None:
        """Note that a batch lies in a pull request."""
        self._create(f"{batch.number:06d}.review.json", {"format": FORMAT, "pull_request": pull_request})

    def settle(
        self, batch: Batch, outcome: str, now: float, commit: str | None = None, why: str = ""
    ) -> bool:
        """Note how a batch ended; False if that was noted before (which then holds)."""
        content = {"format": FORMAT, "outcome": outcome, "commit": commit, "settled_at": now, "why": why}
        return self._create(f"{batch.number:06d}.outcome.json", content)

    def _create(self, name: str, content: Mapping[str, Any]) -> bool:
        """Create a file whole, or not at all if there is one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / name
        beside = layout.beside(path)
        try:
            with beside.open("w", encoding="utf-8") as file:
                json.dump(content, file, separators=(",", ":"))
                file.flush()
                os.fsync(file.fileno())
            _link(beside, path)
        except FileExistsError:
            return False
        finally:
            with suppress(OSError):
                beside.unlink()
        layout.sync_folder(self.folder)
        return True


def _plain(part: Part) -> dict[str, Any]:
    return {
        "path": part.path, "sha256": part.sha256, "size": part.size, "rows": part.rows, "split": part.split,
        "runs": [[run.run_id, run.shard, run.rows] for run in part.runs],
    }  # fmt: skip


def _link(beside: Path, path: Path) -> None:
    """Give a complete file its name, unless that is taken."""
    try:
        os.link(beside, path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        # no hard links here: take the name with an empty file, which every reader passes over
        if not (path.is_file() and path.stat().st_size == 0):
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
        os.replace(beside, path)


def leftovers(folder: Path) -> Iterator[Path]:
    """What a killed publisher was writing into the ledger."""
    with suppress(FileNotFoundError):
        yield from sorted(folder.glob(".*.tmp"))
