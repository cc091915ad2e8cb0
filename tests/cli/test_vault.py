"""The commands of the vault."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest

from matforge.cli.app import run
from matforge.vulcan.vault import Vault
from tests.vulcan.staging import forge
from tests.vulcan.vacua import octic, octic_vacua


class Done(NamedTuple):
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


Command = Callable[..., Done]


@pytest.fixture
def vault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run ``matforge vault …`` in this process, because loading JAX takes longer than all the rest."""
    folders = {"MATFORGE_VAULT": "vault", "MATFORGE_SESSION_DIR": "sessions", "MATFORGE_CACHE_DIR": "cache"}
    for variable, name in folders.items():
        monkeypatch.setenv(variable, str(tmp_path / name))

    def call(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["matforge", "vault", *arguments])
        with pytest.raises(SystemExit) as ended:
            run()
        return Done(int(ended.value.code or 0), *capsys.readouterr())

    return call


def test_vacua_are_designated_listed_taken_back_and_removed(vault: Command, tmp_path: Path) -> None:
    file = tmp_path / "vacua.parquet"
    octic_vacua(3).to_parquet(file)
    words = ["--label", "paper", "--by", "me@example.org"]
    done = vault("designate", str(file), *words, "--geometry", "octic", "--tag", "a")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "3 vacua designated as paper: numbers 1 to 3\n"
    again = vault("designate", str(file), *words, "--geometry", "octic")
    assert again.returncode == 2
    assert "the same vacuum is there already (rows 0, 1, 2)" in again.stderr
    listed = vault("ls", "--tag", "a", "--json")
    assert [row["designated_id"] for row in json.loads(listed.stdout)] == [1, 2, 3]
    assert vault("retract", "2", "--reason", "why", "--by", "me").returncode == 0
    assert "2 vacua" in vault("ls").stderr
    assert vault("retract", "9", "--reason", "why", "--by", "me").returncode == 2
    assert vault("purge", "--older-than", "0h", "--yes").stdout == "1 vacua removed\n"
    assert Vault(tmp_path / "vault").query()["designated_id"].tolist() == [1, 3]


def test_a_write_of_a_forge_is_promoted(vault: Command, tmp_path: Path) -> None:
    shard = forge(tmp_path / "staging").write(octic_vacua(2), octic(), tadpole_charge=3)
    done = vault(
        "promote", "--run-id", shard.run_id, "--label", "x", "--by", "me", "--geometry", "octic",
        "--repo", "me/forge", "--staging-dir", str(tmp_path / "staging"),
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "2 vacua designated as x: numbers 1 to 2\n")


def test_what_is_not_there_is_told_in_one_sentence(vault: Command) -> None:
    for arguments in (
        ["designate", "none.parquet", "--label", "x", "--by", "me"],
        ["ls", "--geometry", "octik"],
        ["push", "--label", "x", "--repo", "me/vault", "--by", "me"],
    ):
        done = vault(*arguments)
        assert done.returncode == 2, arguments
        assert len(done.stderr.strip().splitlines()) == 1
    assert (
        "There is no file none.parquet"
        in vault("designate", "none.parquet", "--label", "x", "--by", "me").stderr
    )
    assert vault("sessions").stdout == "nothing found\n"
    assert vault("clear-cache").stdout == "nothing to remove\n"


def test_what_cannot_be_written_is_told_in_one_sentence(vault: Command, tmp_path: Path) -> None:
    file = tmp_path / "vacua.parquet"
    octic_vacua(2).to_parquet(file)
    words = ["designate", str(file), "--label", "x", "--by", "me", "--geometry", "octic"]
    assert vault(*words).returncode == 0
    wrong = {
        str(file / "x.parquet"): "a part of the path is a file",
        str(tmp_path): "there is a folder of that name",
        str(tmp_path / "nowhere" / "x.parquet"): "the folder does not exist",
    }
    for output, why in wrong.items():
        done = vault("ls", "-o", output)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"matforge: {output} cannot be written: {why}")
        assert done.stderr.count("\n") == 1
    done = vault(*words, "--vault", str(file))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "vacua.parquet cannot be used: there is a file of that name." in done.stderr
    assert vault("ls", "-o", str(tmp_path / "out.parquet")).returncode == 0
    assert len(pd.read_parquet(tmp_path / "out.parquet")) == 2
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no device that is always full")
def test_a_table_for_a_device_goes_there_and_a_full_one_can_be_tried_again(vault: Command) -> None:
    done = vault("ls", "-o", "/dev/full")
    assert done.returncode == 75
    assert done.stderr == "matforge: /dev/full cannot be written: the disk is full; free some space.\n"
    assert not Path("/dev/full").is_file()
    assert vault("ls", "-o", "/dev/null").returncode == 0
    assert not Path("/dev/null").is_file()
