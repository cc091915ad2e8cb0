"""What the documents say is true: every block runs, and what is generated is current."""

from __future__ import annotations

import contextlib
import io
import re
import runpy
import subprocess
from pathlib import Path

import pytest

from tests.pages import REASONS, ROOT, Block, blocks, run_page

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
SHOWN = {"", "json", "mermaid", "py", "text"}
"""Languages of blocks that are only shown."""


def _runs(page: Path, *, slow: bool) -> bool:
    return any(block.runs and (block.mark == "slow") is slow for block in blocks(page))


QUICK = [page for page in PAGES if _runs(page, slow=False)]
LONG = [page for page in PAGES if _runs(page, slow=True)]


def check(chosen: list[Block], folder: Path, *, timeout: float) -> None:
    """Run the blocks of a page and compare what they print with what they promise."""
    printed = run_page(chosen, folder, timeout=timeout)
    broken = [
        f"{block.page}:{block.line} promises {missing!r} but printed:\n{text}"
        for block, text in zip(chosen, printed, strict=True)
        if (missing := block.missing(text)) is not None
    ]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("page", QUICK, ids=lambda p: p.name)
def test_the_blocks_of_a_page_run_in_order_and_print_what_they_promise(page: Path, tmp_path: Path) -> None:
    chosen = [block for block in blocks(page) if block.runs and block.mark is None]
    check(chosen, tmp_path, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize("page", LONG, ids=lambda p: p.name)
def test_the_blocks_of_a_page_run_together_with_those_that_take_their_time(
    page: Path, tmp_path: Path
) -> None:
    check([block for block in blocks(page) if block.runs], tmp_path, timeout=900)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_block_of_a_page_is_run_or_says_why_not(page: Path) -> None:
    text, found = page.read_text(), blocks(page)
    assert len(re.findall(r"^```", text, flags=re.MULTILINE)) == 2 * len(found)
    assert len(re.findall(r"<!-- (?:not run|slow):", text)) == sum(block.mark is not None for block in found)
    assert {block.why for block in found if block.mark == "not run"} <= REASONS
    assert {block.language for block in found if not block.runs and block.mark is None} <= SHOWN


def test_few_blocks_are_never_run() -> None:
    assert len(REASONS) <= 2
    assert sum(block.mark == "not run" for page in PAGES for block in blocks(page)) <= 4


def test_a_block_that_breaks_its_promise_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nprint('one')\nprint(2.5)\n# -> one\n# -> 2.4...\n```\n")
    (block,) = blocks(page)
    (tmp_path / "run").mkdir()
    assert block.missing(run_page([block], tmp_path / "run", timeout=60)[0]) == "2.4..."


def test_a_block_that_fails_is_told_with_its_page_and_line(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("text\n\n```python\nx = 1\n```\n\n```bash\nfalse\necho never\n```\n")
    (tmp_path / "run").mkdir()
    with pytest.raises(AssertionError, match=r"page\.md:8 failed"):
        run_page(blocks(page), tmp_path / "run", timeout=60)


def test_what_is_generated_from_the_code_is_current() -> None:
    generate = runpy.run_path(str(ROOT / "docs" / "generate.py"), run_name="docs")
    for path, text in generate["pages"]().items():
        assert path.read_text() == text, f"run docs/generate.py: {path.name} is not current"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_link_between_pages_leads_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", page.read_text()):
        if "://" in target:
            continue
        there = page.parent / target if target else page
        assert there.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.*)$", there.read_text(), flags=re.MULTILINE)
            known = [re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads]
            assert anchor in known, f"{target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_command_shown_is_a_command_with_these_options(page: Path) -> None:
    import typer
    from typer.main import get_command

    from matforge.cli.app import app

    typed = "\n".join(block.source for block in blocks(page) if block.language == "bash")
    shown = re.findall(r"^(?:\S*bin/)?(matforge [^\n#`&|]*)", typed, flags=re.MULTILINE)
    shown += re.findall(r"`(matforge [a-z][^`…]*)`", page.read_text())
    for line in shown:
        words = line.split()[1:]
        command, context = get_command(app), typer.Context(get_command(app))
        while words and hasattr(command, "commands") and words[0] in command.commands:
            command = command.commands[words.pop(0)]
            context = typer.Context(command, parent=context)
        assert words != [] or not hasattr(command, "commands"), line
        known = {
            option for parameter in command.params for option in [*parameter.opts, *parameter.secondary_opts]
        }
        before = words[: words.index("--")] if "--" in words else words
        unknown = {w for w in before if w.startswith("-") and w not in known}
        assert not unknown, f"{page.name}: {line}"


def test_nothing_in_the_project_names_this_machine_or_a_registry() -> None:
    words = [
        "py" + "pi.org",
        "python" + "hosted",
        "deb.debian" + ".org",
        "registry" + ".npmjs",
        "/work" + "/",
        "/ro" + "ot/",
    ]
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if files.returncode:
        pytest.skip("not a git checkout")
    for name in files.stdout.split():
        path = ROOT / name
        with contextlib.suppress(UnicodeDecodeError, FileNotFoundError):
            text = io.StringIO(path.read_text()).read()
            assert not [word for word in words if word in text], name
