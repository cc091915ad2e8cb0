"""Vaults of others: push a labelled set to a data set on a Hub, fetch what others pushed."""

from __future__ import annotations

import io
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from matforge.model import MatForgeError, UsageError
from matforge.vulcan.budget import CommitBudget
from matforge.vulcan.errors import Failure, RefusedError, judge
from matforge.vulcan.frames import to_pandas
from matforge.vulcan.hub import MAIN, HubRepository, pull_revision
from matforge.vulcan.send import LONGEST_WAIT_S
from matforge.vulcan.settings import check_repo, token_setting
from matforge.vulcan.vault import catalogue, intake, places
from matforge.vulcan.vault.curated import Vault

if TYPE_CHECKING:
    import pandas as pd

FOLDER = "community"
IF_EXISTS = ("error", "append", "new_version")
_TRIES = 4


class UnreachableError(MatForgeError):
    """The Hub cannot be reached, or asks to wait."""


@dataclass(frozen=True)
class Pushed:
    """What a push did."""

    path: str
    rows: int
    commit: str | None
    """None if the repository held exactly this already."""
    pull_request: int | None = None


@dataclass
class Exchange:
    """A data set that holds vaults.

    Parameters
    ----------
    repo, token, endpoint : str
        Token and endpoint may be None.
    sleep : callable
        For waiting between tries; tests give their own.
    """

    repo: str
    token: str | None = None
    endpoint: str | None = None
    sleep: Callable[[float], object] = time.sleep

    def __post_init__(self) -> None:
        token = token_setting(self.token, None, os.environ)
        self.hub = HubRepository(check_repo(self.repo), token, self.endpoint)

    def ask(self, question: Callable[[], Any]) -> Any:
        """Ask, again where the Hub stumbles.

        Raises
        ------
        RefusedError, UnreachableError
            If it refuses us, or goes on stumbling.
        """
        for tries in range(_TRIES):
            try:
                return question()
            except MatForgeError:
                raise
            except Exception as error:
                verdict = judge(error, time.time())
            if verdict.kind in (Failure.CONFIGURATION, Failure.REJECTED):
                raise RefusedError(f"The Hub refuses {self.repo}: {verdict.message}")
            wait = max(verdict.wait_s or 0.0, 2.0**tries)
            if tries == _TRIES - 1 or wait > LONGEST_WAIT_S:
                break
            self.sleep(wait)
        raise UnreachableError(f"{self.repo} cannot be reached now: {verdict.message}")


def push(
    vault: Vault,
    label: str,
    repo: str,
    *,
    by: str,
    create_pr: bool = True,
    if_exists: str = "error",
    token: str | None = None,
    endpoint: str | None = None,
    sleep: Callable[[float], object] = time.sleep,
) -> Pushed:
    """Push the vacua of a label, as ``community/<by>_<label>.parquet``, in one commit or pull request.

    Parameters
    ----------
    vault : Vault
    label : str
    repo : str
        The data set, ``owner/name``.
    by : str
        Whose set it is; made of the same characters as a label.
    create_pr : bool
        Open a pull request (again: the open one is used); else commit to main.
    if_exists : str
        If there is another such file: ``error``, ``append`` (to its vacua), or ``new_version``
        (``…_v2.parquet``).
    token, endpoint, sleep : optional

    Raises
    ------
    UsageError
        If there is nothing to push, or another file is there.
    RefusedError, UnreachableError
        If the Hub refuses us, or cannot be reached.
    """
    places.check_label(label)
    places.check_label(by)
    if if_exists not in IF_EXISTS:
        raise UsageError(f"if_exists is one of {', '.join(IF_EXISTS)}, not {if_exists!r}.")
    table = _labelled(vault, label)
    there = Exchange(repo, token, endpoint, sleep)
    if there.ask(lambda: _planned(there, table, by, label, if_exists)).content is None:
        return Pushed(_path(by, label), table.num_rows, None)
    pull = there.ask(lambda: _pull(there, by, label)) if create_pr else None
    return _commit(there, vault, lambda: _planned(there, table, by, label, if_exists), pull)


@dataclass(frozen=True)
class _Plan:
    """What a push puts where, and on which commit that rests."""

    path: str
    rows: int
    content: bytes | None
    """None if the repository holds exactly this already."""
    head: str


def _path(by: str, label: str) -> str:
    return f"{FOLDER}/{by}_{label}.parquet"


def _planned(there: Exchange, table: pa.Table, by: str, label: str, if_exists: str) -> _Plan:
    head, path = there.hub.head(MAIN), _path(by, label)
    old, content = there.hub.read(path), _bytes(table)
    if old == content:
        return _Plan(path, table.num_rows, None, head)
    if old is not None:
        if if_exists == "error":
            raise UsageError(
                f"{path} is in {there.repo} already; choose if_exists='append' or 'new_version'."
            )
        if if_exists == "append":
            table = _joined(_parsed(old, path), table)
            content = _bytes(table)
        else:
            path = _free(there, path)
    return _Plan(path, table.num_rows, content, head)


def _labelled(vault: Vault, label: str) -> pa.Table:
    frame = vault.load(label=label)
    if frame.empty:
        raise UsageError(f"The vault has no vacua with the label {label!r}.")
    return pa.Table.from_pandas(frame.drop(columns=["file"]), preserve_index=False).replace_schema_metadata(
        None
    )


def _bytes(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _parsed(data: bytes, path: str) -> pa.Table:
    try:
        return catalogue.parse(data)
    except (pa.ArrowException, OSError) as error:
        raise MatForgeError(f"{path} of the repository cannot be read: {error}") from error


def _joined(old: pa.Table, new: pa.Table) -> pa.Table:
    """The old vacua, and of the new ones those that are not among them.

    Numbers do not tell: two vaults of one person have given the same number to different vacua.
    """
    known = set(intake.keys_of(old))
    keep = pa.array([key not in known for key in intake.keys_of(new)], pa.bool_())
    return pa.concat_tables([old, new.filter(keep)], promote_options="permissive")


def _free(there: Exchange, path: str) -> str:
    taken = set(there.hub.files())
    version = 2
    while (name := f"{path.removesuffix('.parquet')}_v{version}.parquet") in taken:
        version += 1
    return name


def _pull(there: Exchange, by: str, label: str) -> int:
    mark = f"[{by}_{label}]"
    found = there.hub.pull_with(mark)
    return there.hub.open_pull(f"vault: {label} {mark}", "Curated vacua.") if found is None else found


def _commit(there: Exchange, vault: Vault, planned: Callable[[], _Plan], pull: int | None) -> Pushed:
    """Send what is planned, on what the repository held when it was; planned anew for every try."""
    budget, revision = CommitBudget(vault.folder), MAIN if pull is None else pull_revision(pull)
    last: _Plan | None = None

    def send() -> Pushed:
        nonlocal last
        if last is not None and there.hub.read(last.path, revision) == last.content:
            # the answer was lost, the commit was not
            return Pushed(last.path, last.rows, there.hub.head(revision), pull)
        plan = planned()
        if plan.content is None:
            return Pushed(plan.path, plan.rows, None, pull)
        operations = there.hub.operations({plan.path: plan.content})
        there.hub.upload(operations, revision)
        if not budget.take():
            raise UnreachableError("The budget of commits is spent; come back within the hour.")
        last = plan
        # the branch of a pull request is ours alone
        parent = plan.head if pull is None else None
        commit = there.hub.commit(operations, revision, f"vault: {plan.path}", parent)
        return Pushed(plan.path, plan.rows, commit, pull)

    found = there.ask(send)
    assert isinstance(found, Pushed)
    return found


def listing(
    repo: str, *, token: str | None = None, endpoint: str | None = None,
    sleep: Callable[[float], object] = time.sleep,
) -> list[str]:  # fmt: skip
    """The vaults that a data set holds."""
    there = Exchange(repo, token, endpoint, sleep)
    files = there.ask(there.hub.files)
    return [path for path in files if path.startswith(f"{FOLDER}/") and path.endswith(".parquet")]


def fetch(
    repo: str,
    path: str | None = None,
    *,
    token: str | None = None,
    endpoint: str | None = None,
    refresh: bool = False,
    sleep: Callable[[float], object] = time.sleep,
) -> pd.DataFrame:
    """The vacua of one vault of a data set, or of all; kept in the cache.

    Raises
    ------
    RefusedError, UnreachableError
        If the Hub refuses us, or cannot be reached and the cache has nothing.
    UsageError
        If there is no such vault.
    """
    there = Exchange(repo, token, endpoint, sleep)
    paths = [path] if path is not None else listing(repo, token=token, endpoint=endpoint, sleep=sleep)
    tables = []
    for one in paths:
        if not one.startswith(f"{FOLDER}/") or ".." in one.split("/"):
            raise UsageError(f"A vault of a data set lies at {FOLDER}/NAME.parquet, not at {one!r}.")
        local = places.cache_dir(os.environ) / repo / one
        if refresh or not local.is_file():
            data = there.ask(partial(there.hub.read, one))
            if data is None:
                raise UsageError(f"{repo} has no {one}.")
            table = _parsed(data, one)
            catalogue.write_table(local, table)
        else:
            table = pq.read_table(local, partitioning=None)
        tables.append(table.append_column("vault", pa.repeat(one, table.num_rows)))
    if not tables:
        return to_pandas(catalogue.SCHEMA.empty_table())
    return to_pandas(pa.concat_tables(tables, promote_options="permissive"))


def clear_cache(session: Path | None = None) -> list[str]:
    """Empty the cache of fetched vaults; never touches a vault.

    Parameters
    ----------
    session : Path, optional
        A folder of sessions that is to go too.

    Returns
    -------
    list of str
        The folders that were removed.
    """
    chosen = [places.cache_dir(os.environ), *([session] if session is not None else [])]
    removed = [str(folder) for folder in chosen if folder.is_dir()]
    for folder in removed:
        shutil.rmtree(folder)
    return removed
