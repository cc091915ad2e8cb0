"""What a sync asks of the repository, with patience, and what it puts there beside the data."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from matforge.model import UsageError
from matforge.vulcan import card, layout, picture
from matforge.vulcan.errors import Failure, RefusedError, SplitsChangedError, Verdict, judge
from matforge.vulcan.hub import HubRepository
from matforge.vulcan.ledger import Batch, Ledger
from matforge.vulcan.send import LONGEST_WAIT_S, Beside
from matforge.vulcan.splits import SplitSpec
from matforge.vulcan.sync import Settings

T = TypeVar("T")


class Later(Exception):
    """The Hub cannot, or will not, now."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.message)
        self.verdict = verdict


class Remote:
    """The repository of one sync."""

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        self._settings, self._ledger = settings, ledger
        self.hub = HubRepository(settings.repo, settings.token, settings.endpoint)
        self._files: dict[tuple[str, str], bytes | None] = {}
        self._heads: dict[str, str] = {}
        """The newest commit of a revision when its files were read."""
        self._made: dict[str, bytes] = {}

    def ask(self, question: Callable[[], T]) -> T:
        """Ask something that is no commit, again if the Hub stumbles.

        Raises
        ------
        Later
            If it goes on stumbling, or asks to wait for long.
        RefusedError
            If it refuses us.
        """
        tries = 0
        while True:
            try:
                return question()
            except (RefusedError, UsageError):
                raise
            except Exception as error:
                verdict = judge(error, self._settings.clock())
            if verdict.kind in (Failure.CONFIGURATION, Failure.REJECTED):
                raise RefusedError(f"The Hub refuses {self._settings.repo}: {verdict.message}")
            wait = max(verdict.wait_s or 0.0, 2.0**tries)
            if tries >= self._settings.max_retries or wait > LONGEST_WAIT_S or self._settings.stopping():
                raise Later(verdict)
            self._settings.sleep(wait)
            tries += 1

    # ------------------------------------------------------------ card and index

    def splits(self, revision: str) -> SplitSpec | None:
        """How the repository is split, if it says so."""

        def look() -> card.Index | None:
            self._catch_up(revision)
            return self._index(revision)

        index = self.ask(look)
        return None if index is None else index.splits

    def beside(self, batch: Batch, revision: str) -> Beside:
        """Card and index as they shall be with this batch, from what the repository holds just now.

        Raises
        ------
        SplitsChangedError
            If it is split in another way than the batch by now.
        """
        head = self._catch_up(revision)
        splits = SplitSpec.from_dict(batch.splits)
        index = self._index(revision) or card.Index(splits)
        if index.splits != splits and any(part.split for part in batch.parts):
            raise SplitsChangedError(f"{self._settings.repo} is split as {index.splits.as_dict()} by now")
        view = self._ledger.read()
        beside = [b for b in view.open(self._settings.repo) if b.pull_request and b.revision == revision]
        counted = {b.number: b for b in [*view.committed(self._settings.repo), *beside, batch]}
        index.count(self._ledger.source(), counted.values())
        old = self._file(card.CARD_NAME, revision)
        drawn = self._picture(batch) if self._settings.pictures else None
        new = card.render(self._settings.repo, index, old.decode("utf-8", "replace") if old else None, drawn)
        self._made = {card.INDEX_NAME: index.dump(), card.CARD_NAME: new}
        return Beside({**self._made, **({picture.PICTURE_NAME: drawn} if drawn else {})}, head)

    def _picture(self, batch: Batch) -> bytes | None:
        """Drawn with the last commit of a sync only: the others would be out of date at once."""
        staging = self._settings.staging_dir
        waiting = {path.name for path in layout.contents(staging, layout.PENDING_DIRNAME).shards}
        if waiting - set(batch.shards.values()):
            return None
        files = [staging / batch.outbox / part.path for part in batch.parts]
        return picture.draw([*picture.published_files(staging), *files])

    def accepted(self, revision: str, commit: str) -> None:
        """What was made last is now what the repository holds, as of this commit."""
        self._files.update({(name, revision): content for name, content in self._made.items()})
        self._heads[revision] = commit

    def _catch_up(self, revision: str) -> str:
        """The newest commit; what was read before it is forgotten, for others may have changed it."""
        head = self.hub.head(revision)
        if head != self._heads.get(revision):
            for name in (card.INDEX_NAME, card.CARD_NAME):
                self._files.pop((name, revision), None)
            self._heads[revision] = head
        return head

    def _index(self, revision: str) -> card.Index | None:
        data = self._file(card.INDEX_NAME, revision)
        return None if data is None else card.Index.parse(data)

    def _file(self, name: str, revision: str) -> bytes | None:
        if (name, revision) not in self._files:
            self._files[name, revision] = self.hub.read(name, revision)
        return self._files[name, revision]

    # ------------------------------------------------------------ pull request

    def pull_request(self) -> int:
        """The open pull request of this folder, or a new one."""
        mark = f"[{self._ledger.source()[:8]}]"

        def find() -> int:
            # asked first every time: the answer to an opening may have been lost
            found = self.hub.pull_with(mark)
            title = f"{self._settings.commit_prefix}: new vacua {mark}"
            return self.hub.open_pull(title, "Shards staged by a forge.") if found is None else found

        return self.ask(find)
