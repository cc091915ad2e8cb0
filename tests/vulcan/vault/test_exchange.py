"""Sharing vaults through a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from matforge.model import UsageError
from matforge.vulcan.errors import RefusedError
from matforge.vulcan.vault import Vault, fetch, listing, push
from matforge.vulcan.vault.exchange import Pushed, UnreachableError, clear_cache
from tests.vulcan.hub import LoopbackHub
from tests.vulcan.hub.faults import COMMIT
from tests.vulcan.staging import REPO, Clock
from tests.vulcan.vacua import octic, octic_vacua

PATH = "community/me_paper.parquet"


@pytest.fixture
def vault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Vault:
    monkeypatch.setenv("MATFORGE_CACHE_DIR", str(tmp_path / "cache"))
    found = Vault(tmp_path / "vault")
    found.designate(octic_vacua(3), "paper", "me@example.org", model=octic())
    return found


def send(vault: Vault, hub: LoopbackHub, **options: Any) -> Pushed:
    return push(
        vault, "paper", REPO, by="me", endpoint=hub.endpoint, token="x", sleep=Clock().sleep,
        **{"create_pr": False, **options},
    )  # fmt: skip


def test_what_is_pushed_is_fetched_by_others(hub: LoopbackHub, vault: Vault) -> None:
    done = send(vault, hub)
    assert (done.path, done.rows, done.pull_request) == (PATH, 3, None)
    assert listing(REPO, endpoint=hub.endpoint) == [PATH]
    theirs, ours = fetch(REPO, endpoint=hub.endpoint), vault.load(label="paper")
    assert [list(f) for f in theirs["flux"]] == [list(f) for f in ours["flux"]]
    assert theirs["tau_im"].tolist() == ours["tau_im"].tolist()
    assert set(theirs["vault"]) == {PATH}
    again = send(vault, hub)
    assert again.commit is None
    assert hub.count(COMMIT) == 1


def test_a_push_opens_one_pull_request(hub: LoopbackHub, vault: Vault) -> None:
    hub.faults.add(r"^POST /api/datasets/.*/discussions$", 504, after=True)
    hub.faults.add(COMMIT, 504, after=True)
    done = send(vault, hub, create_pr=True)
    assert done.pull_request == 1
    assert list(hub.repositories[REPO].pulls) == [1]
    assert len(hub.repositories[REPO].history("refs/pr/1")) == 1
    assert PATH not in hub.repositories[REPO].files()
    hub.repositories[REPO].merge(1)
    assert len(fetch(REPO, PATH, endpoint=hub.endpoint)) == 3


def test_a_file_that_is_there_is_not_replaced_unless_one_says_how(hub: LoopbackHub, vault: Vault) -> None:
    send(vault, hub)
    vault.designate(octic_vacua(2, 10), "paper", "me", model=octic())
    vault.retract(1, "why", "me")
    with pytest.raises(UsageError, match="is in me/forge already"):
        send(vault, hub)
    assert send(vault, hub, if_exists="append").rows == 5
    assert send(vault, hub, if_exists="new_version").path == "community/me_paper_v2.parquet"
    assert send(vault, hub, if_exists="new_version").path == "community/me_paper_v3.parquet"
    with pytest.raises(UsageError, match="one of error, append, new_version"):
        send(vault, hub, if_exists="replace")


def test_vacua_of_two_vaults_are_joined_although_their_numbers_are_the_same(
    hub: LoopbackHub, vault: Vault, tmp_path: Path
) -> None:
    send(vault, hub)
    other = Vault(tmp_path / "other")
    other.designate(octic_vacua(3, first=1), "paper", "me", model=octic())  # numbers 1 to 3 again, one new
    assert send(other, hub, if_exists="append").rows == 4
    found = fetch(REPO, PATH, endpoint=hub.endpoint)
    assert sorted(list(f) for f in found["flux"]) == sorted(octic_vacua(4)["flux"])


def test_what_lies_in_memory_of_python_is_read_without_threads(
    hub: LoopbackHub, vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those let go of it some time after the read, and a command that ended just then was aborted."""
    sources: list[Any] = []
    threads: list[bool] = []
    read_table = pq.read_table

    def noting(source: Any, *arguments: Any, **options: Any) -> pa.Table:
        sources.append(source)
        return read_table(source, *arguments, **options)

    class Noting(pq.ParquetFile):  # type: ignore[misc]
        def read(self, *arguments: Any, use_threads: bool = True, **options: Any) -> pa.Table:
            threads.append(use_threads)
            return super().read(*arguments, use_threads=use_threads, **options)

    monkeypatch.setattr(pq, "read_table", noting)
    monkeypatch.setattr(pq, "ParquetFile", Noting)
    vault.retract(1, "why", "me")
    send(vault, hub)
    vault.designate(octic_vacua(1, first=4), "paper", "me", model=octic())
    send(vault, hub, if_exists="append")
    assert len(fetch(REPO, PATH, endpoint=hub.endpoint)) == 3
    assert all(isinstance(source, str | Path) for source in sources)
    assert len(threads) > 0
    assert not any(threads)


def test_of_two_pushes_at_once_neither_is_lost(hub: LoopbackHub, vault: Vault, tmp_path: Path) -> None:
    send(vault, hub)
    slow, fast = Vault(tmp_path / "slow"), Vault(tmp_path / "fast")
    slow.designate(octic_vacua(1, first=4), "paper", "me", model=octic())
    fast.designate(octic_vacua(1, first=5), "paper", "me", model=octic())
    hub.faults.add(
        r"^POST /api/datasets/.*/preupload/", 503, headers={"Retry-After": "0"},
        hook=lambda: send(fast, hub, if_exists="append"),
    )  # fmt: skip
    assert send(slow, hub, if_exists="append").rows == 5
    assert len(fetch(REPO, PATH, endpoint=hub.endpoint)) == 5


def test_trouble_is_told_in_one_sentence(hub: LoopbackHub, vault: Vault) -> None:
    with pytest.raises(UsageError, match="no vacua with the label"):
        push(vault, "other", REPO, by="me", endpoint=hub.endpoint)
    with pytest.raises(UsageError, match="A label"):
        push(vault, "paper", REPO, by="../me", endpoint=hub.endpoint)
    with pytest.raises(RefusedError, match="me/none"):
        push(vault, "paper", "me/none", by="me", endpoint=hub.endpoint)
    hub.faults.add(COMMIT, 503, times=4)
    with pytest.raises(UnreachableError, match="503"):
        send(vault, hub)
    hub.faults.add(COMMIT, 429, headers={"Retry-After": "3600"})
    with pytest.raises(UnreachableError, match="429"):
        send(vault, hub)
    with pytest.raises(UsageError, match="has no community/x"):
        fetch(REPO, "community/x.parquet", endpoint=hub.endpoint)
    with pytest.raises(UsageError, match="lies at community"):
        fetch(REPO, "../secret", endpoint=hub.endpoint)


def test_what_was_fetched_is_kept_until_the_cache_is_cleared_which_never_touches_the_vault(
    hub: LoopbackHub, vault: Vault, tmp_path: Path
) -> None:
    send(vault, hub)
    fetch(REPO, PATH, endpoint=hub.endpoint)
    asked = len(hub.log)
    assert len(fetch(REPO, PATH, endpoint=hub.endpoint)) == 3
    assert len(hub.log) == asked
    (tmp_path / "sessions").mkdir()
    before = sorted(vault.folder.rglob("*"))
    assert clear_cache() == [str(tmp_path / "cache" / "vault")]
    assert (tmp_path / "sessions").exists()
    assert clear_cache(tmp_path / "sessions") == [str(tmp_path / "sessions")]
    assert sorted(vault.folder.rglob("*")) == before
    fetch(REPO, PATH, endpoint=hub.endpoint)
    assert len(hub.log) > asked
