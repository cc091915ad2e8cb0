"""One data-set repository on a Hub, through the official client."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

MAIN = "main"
_PATHS_A_CALL = 500
_PULL = "refs/pr/"


class Published(Protocol):
    """A file that should be in the repository."""

    @property
    def path(self) -> str:
        """Its path there."""

    @property
    def sha256(self) -> str:
        """Of its contents, hexadecimal."""

    @property
    def size(self) -> int:
        """In bytes."""


def pull_revision(number: int) -> str:
    """The branch of a pull request."""
    return f"{_PULL}{number}"


def pull_number(revision: str) -> int | None:
    """The pull request that a branch belongs to, if any."""
    return int(revision.removeprefix(_PULL)) if revision.startswith(_PULL) else None


class HubRepository:
    """A data set on a Hub.

    Parameters
    ----------
    repo : str
        ``owner/name``.
    token : str, optional
        Default: that of the machine's login.
    endpoint : str, optional
        Address of the Hub; default: the client's (``HF_ENDPOINT``).
    """

    def __init__(self, repo: str, token: str | None = None, endpoint: str | None = None) -> None:
        self.repo = repo
        self._token, self._endpoint = token, endpoint

    @cached_property
    def api(self) -> Any:
        """The client."""
        from huggingface_hub import HfApi

        return HfApi(endpoint=self._endpoint, token=self._token, library_name="matforge")

    def operations(self, files: Mapping[str, Path | bytes]) -> list[Any]:
        """What :meth:`upload` and :meth:`commit` work on."""
        from huggingface_hub import CommitOperationAdd

        return [CommitOperationAdd(path, content) for path, content in files.items()]

    def upload(self, operations: Sequence[Any], revision: str) -> None:
        """Send the contents of large files ahead; no commit, so nobody counts it."""
        self.api.preupload_lfs_files(
            self.repo, operations, repo_type="dataset", revision=revision, free_memory=False
        )

    def commit(
        self, operations: Sequence[Any], revision: str, message: str, parent: str | None = None
    ) -> str:
        """One commit; its oid. With ``parent`` only if that is the newest commit, else the Hub says 412."""
        info = self.api.create_commit(
            self.repo, operations, commit_message=message, repo_type="dataset", revision=revision,
            parent_commit=parent,
        )  # fmt: skip
        return str(info.oid)

    def head(self, revision: str) -> str:
        """Oid of the newest commit."""
        return str(self.api.repo_info(self.repo, repo_type="dataset", revision=revision).sha)

    def holds(self, files: Sequence[Published], revision: str) -> bool:
        """Whether all these files are there with exactly these contents."""
        wanted = {file.path: file for file in files}
        paths = list(wanted)
        for first in range(0, len(paths), _PATHS_A_CALL):
            chunk = paths[first : first + _PATHS_A_CALL]
            found = self.api.get_paths_info(self.repo, chunk, repo_type="dataset", revision=revision)
            there = {info.path: info for info in found}
            if not all(path in there and _same(there[path], wanted[path]) for path in chunk):
                return False
        return True

    def read(self, path: str, revision: str = MAIN) -> bytes | None:
        """Contents of a file, or None if there is none."""
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        with tempfile.TemporaryDirectory() as folder:
            try:
                local = self.api.hf_hub_download(
                    self.repo, path, repo_type="dataset", revision=revision, local_dir=folder
                )
            except LocalEntryNotFoundError:
                raise  # it could not be asked for; that does not mean that there is none
            except EntryNotFoundError:
                return None
            return Path(local).read_bytes()

    def files(self, revision: str = MAIN) -> list[str]:
        """Paths of all files."""
        return sorted(self.api.list_repo_files(self.repo, repo_type="dataset", revision=revision))

    # ------------------------------------------------------------ pull requests

    def pull_with(self, mark: str) -> int | None:
        """The newest open pull request whose title contains ``mark``."""
        found = self.api.get_repo_discussions(
            self.repo, repo_type="dataset", discussion_type="pull_request", discussion_status="open"
        )
        return max((one.num for one in found if one.is_pull_request and mark in one.title), default=None)

    def open_pull(self, title: str, description: str) -> int:
        """A new pull request that changes nothing yet; its number."""
        pull = self.api.create_pull_request(self.repo, title, description=description, repo_type="dataset")
        return int(pull.num)

    def pull_status(self, number: int) -> str:
        """``open``, ``merged`` or ``closed``."""
        status = str(self.api.get_discussion_details(self.repo, number, repo_type="dataset").status)
        return "open" if status == "draft" else status


def _same(info: Any, wanted: Published) -> bool:
    if getattr(info, "size", None) != wanted.size:
        return False
    # a file that went to the Hub as a regular one has git's oid; its size and its name, which is a hash
    # of the shards in it, have to do
    return info.lfs is None or info.lfs.sha256 == wanted.sha256


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
