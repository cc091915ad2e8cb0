"""What docs/durability.md promises is shown by tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "durability.md").read_text()
NAMED = re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE)


def test_every_promise_names_a_test() -> None:
    table = PAGE.split("## Promises")[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 15
    assert [row for row in rows if "::test_" not in row] == []


def test_every_test_that_is_named_exists() -> None:
    missing = [f"{file}::{name}" for file, name in NAMED if f"def {name}(" not in (TESTS / file).read_text()]
    assert missing == []


def test_every_test_of_durability_of_the_whole_run_is_told() -> None:
    told = {name for _, name in NAMED}
    for file in ("test_killed.py", "test_kills.py"):
        found = re.findall(r"^def (test_\w+)", (TESTS / "durability" / file).read_text(), flags=re.MULTILINE)
        assert set(found) <= told
