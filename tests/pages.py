"""The code blocks of the documents, and how a page of them is run.

What a fenced block is for stands in its first line and, if need be, in a comment right before it:

=====================================  ===========================================================
```` ```python ````                    run; all of a page share one process, namespace and folder
```` ```python title=NAME ````         not run but saved as NAME in that folder (any language)
```` ```bash ````                      run with ``bash -e`` in that folder
``<!-- slow: why -->``                 the next block is left out of the quick run of its page
``<!-- not run: why -->``              the next block is never run; REASONS holds what may be said
any other language                     shown, not run
=====================================  ===========================================================

A comment ``# -> text`` promises what a block prints: each is looked for in what it printed, in
order; ``...`` stands for anything within a line.

Run as a program (``python tests/pages.py``) it reads blocks as JSON and runs them.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import traceback
import types
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
REASONS = {"installs", "needs a checkout of MatEnsemble"}
"""Why a block may be exempt from being run."""

FENCE = re.compile(
    r"(?:^<!-- (?P<mark>not run|slow): (?P<why>[^\n]*) -->\n+)?"
    r"^```(?P<language>\w*)(?: title=(?P<title>\S+))?\n(?P<source>.*?)^```$",
    flags=re.MULTILINE | re.DOTALL,
)
PROMISE = re.compile(r"# -> (.*)$", flags=re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: str
    line: int
    """Number of the block's first line of code, from 1."""
    language: str
    source: str
    title: str | None = None
    mark: str | None = None
    why: str | None = None

    @property
    def runs(self) -> bool:
        """Whether it is run (or saved) at all."""
        return self.mark != "not run" and (self.title is not None or self.language in ("python", "bash"))

    def missing(self, printed: str) -> str | None:
        """The first promise that ``printed`` does not keep."""
        lines = iter(printed.splitlines())
        for promise in PROMISE.findall(self.source):
            pattern = ".*".join(re.escape(part) for part in promise.strip().split("..."))
            if not any(re.search(pattern, line) for line in lines):
                return str(promise)
        return None


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text()
    return [
        Block(
            page=page.name,
            line=text.count("\n", 0, found.start("source")) + 1,
            **{key: found[key] for key in ("language", "source", "title", "mark", "why")},
        )
        for found in FENCE.finditer(text)
    ]


def run_page(chosen: list[Block], folder: Path, *, timeout: float) -> list[str]:
    """Run blocks in a fresh process with ``folder`` as its working directory.

    Returns
    -------
    list of str
        What each block printed.

    Raises
    ------
    AssertionError
        If a block failed; with its page, its line and what it wrote.
    """
    ended = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps([asdict(block) for block in chosen]),
        cwd=folder,
        env={**os.environ, "PATH": f"{_commands(folder)}:{os.environ['PATH']}", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert ended.returncode == 0, ended.stderr
    printed: list[str] = json.loads((folder / ".printed.json").read_text())
    return printed


def _commands(folder: Path) -> Path:
    """A folder of commands that stand for this interpreter and this MatForge."""
    where = folder / ".bin"
    where.mkdir()
    for name, before in {"python": "", "python3": "", "matforge": "-m matforge"}.items():
        (where / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {before} "$@"\n')
        (where / name).chmod(0o755)
    return where


# ---------------------------------------------------------------- in the page's own process


def _main() -> None:
    chosen = [Block(**fields) for fields in json.load(sys.stdin)]
    main = types.ModuleType("__main__")  # what a script would be: pickled by value, as a user's is
    sys.modules["__main__"] = main
    sys.path[0] = os.getcwd()
    printed = []
    for block in chosen:
        try:
            printed.append(_run(block, vars(main)))
        except BaseException:
            traceback.print_exc()
            print(f"The block at {block.page}:{block.line} failed.", file=sys.stderr)
            sys.stderr.flush()
            os._exit(1)  # a run that is still going must not keep the page
    Path(".printed.json").write_text(json.dumps(printed))


def _run(block: Block, namespace: dict[str, Any]) -> str:
    """What the block printed."""
    if block.title is not None:
        Path(block.title).write_text(block.source)
        return ""
    if block.language == "bash":
        return subprocess.run(
            ["bash", "-e", "-c", block.source], check=True, stdout=subprocess.PIPE, text=True
        ).stdout
    out = io.StringIO()
    lined = "\n" * (block.line - 1) + block.source  # so that a traceback names the page's own line
    with contextlib.redirect_stdout(out):
        exec(compile(lined, block.page, "exec"), namespace)
    return out.getvalue()


if __name__ == "__main__":
    _main()
