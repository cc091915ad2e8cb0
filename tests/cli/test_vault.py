"""The commands of the vault."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from matforge.vulcan.vault import Vault
from tests.vulcan.staging import forge
from tests.vulcan.vacua import octic, octic_vacua

ROOT = Path(__file__).parents[2]


def vault(folder: Path, *arguments: str) -> Any:
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "MATFORGE_VAULT": str(folder / "vault"),
        "MATFORGE_SESSION_DIR": str(folder / "sessions"), "MATFORGE_CACHE_DIR": str(folder / "cache"),
    }  # fmt: skip
    command = [sys.executable, "-m", "matforge", "vault", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_vacua_are_designated_listed_taken_back_and_removed(tmp_path: Path) -> None:
    file = tmp_path / "vacua.parquet"
    octic_vacua(3).to_parquet(file)
    words = ["--label", "paper", "--by", "me@example.org"]
    done = vault(tmp_path, "designate", str(file), *words, "--geometry", "octic", "--tag", "a")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "3 vacua designated as paper: numbers 1 to 3\n"
    again = vault(tmp_path, "designate", str(file), *words, "--geometry", "octic")
    assert again.returncode == 2
    assert "the same vacuum is there already (rows 0, 1, 2)" in again.stderr
    listed = vault(tmp_path, "ls", "--tag", "a", "--json")
    assert [row["designated_id"] for row in json.loads(listed.stdout)] == [1, 2, 3]
    assert vault(tmp_path, "retract", "2", "--reason", "why", "--by", "me").returncode == 0
    assert "2 vacua" in vault(tmp_path, "ls").stderr
    assert vault(tmp_path, "retract", "9", "--reason", "why", "--by", "me").returncode == 2
    assert vault(tmp_path, "purge", "--older-than", "0h", "--yes").stdout == "1 vacua removed\n"
    assert Vault(tmp_path / "vault").query()["designated_id"].tolist() == [1, 3]


def test_a_write_of_a_forge_is_promoted(tmp_path: Path) -> None:
    shard = forge(tmp_path / "staging").write(octic_vacua(2), octic(), tadpole_charge=3)
    done = vault(
        tmp_path, "promote", "--run-id", shard.run_id, "--label", "x", "--by", "me", "--geometry", "octic",
        "--repo", "me/forge", "--staging-dir", str(tmp_path / "staging"),
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "2 vacua designated as x: numbers 1 to 2\n")


def test_what_is_not_there_is_told_in_one_sentence(tmp_path: Path) -> None:
    for arguments in (
        ["designate", "none.parquet", "--label", "x", "--by", "me"],
        ["ls", "--geometry", "octik"],
        ["push", "--label", "x", "--repo", "me/vault", "--by", "me"],
    ):
        done = vault(tmp_path, *arguments)
        assert done.returncode == 2, arguments
        assert len(done.stderr.strip().splitlines()) == 1
    assert vault(tmp_path, "sessions").stdout == "nothing found\n"
    assert vault(tmp_path, "clear-cache").stdout == "nothing to remove\n"
