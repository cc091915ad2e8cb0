"""The Python on the pages about publishing and the vault runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("page", "printed"), [("publishing.md", "me/vacua-"), ("vault.md", "[-2, -3, 0, -1, 1, 2, 0, 0]")]
)
def test_the_python_of_the_page_runs_and_prints_what_it_should(
    page: str, printed: str, tmp_path: Path
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), flags=re.DOTALL)
    assert blocks
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert printed in done.stdout
