"""One publisher a folder, and short waits for a file that is being changed."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from matforge.lease import HeldError, place
from matforge.vulcan import lease as leases
from matforge.vulcan.errors import BusyError
from matforge.vulcan.lease import BriefLease, StagingLease


def test_a_folder_is_published_by_one_and_free_afterwards(tmp_path: Path) -> None:
    with StagingLease(tmp_path), pytest.raises(BusyError, match="wait for it, or end it first"):
        StagingLease(tmp_path).__enter__()
    with StagingLease(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_the_lease_is_renewed_beside_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    renewed = threading.Event()
    monkeypatch.setattr(leases, "RENEW_S", 0.01)

    class Watched(StagingLease):
        def renew(self, now: float) -> None:
            renewed.set()

    with Watched(tmp_path):
        assert renewed.wait(30)


def test_who_was_overtaken_finds_out(tmp_path: Path) -> None:
    with StagingLease(tmp_path) as lease:
        lease.check()
        lease.path.write_text(json.dumps({"token": "theirs", **place(), "pid": 1, "start": ""}))
        with pytest.raises(BusyError, match="taken over by another publisher"):
            lease.check()
    assert lease.path.exists()


def test_a_file_being_changed_is_waited_for(tmp_path: Path) -> None:
    path, order = tmp_path / "file", []
    first = BriefLease(path)
    first.__enter__()

    def second() -> None:
        with BriefLease(path):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    order.append("first")
    first.__exit__()
    thread.join(30)
    assert order == ["first", "second"]


def test_patience_ends(tmp_path: Path) -> None:
    with BriefLease(tmp_path / "file"), pytest.raises(HeldError):
        BriefLease(tmp_path / "file", patience_s=0.0).__enter__()
