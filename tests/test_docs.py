"""What the documents say is true: their Python runs, and what is generated is current."""

from __future__ import annotations

import contextlib
import io
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


def blocks(page: Path, language: str) -> list[str]:
    """Fenced blocks of that language."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


def run_script(source: str, folder: Path, name: str) -> str:
    """Run a block as a script in ``folder``; what it printed."""
    path = folder / name
    path.write_text(source)
    ended = subprocess.run([sys.executable, name], cwd=folder, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_the_python_of_the_readme_prints_what_it_says(tmp_path: Path) -> None:
    for number, source in enumerate(blocks(ROOT / "README.md", "python")):
        printed = run_script(source, tmp_path, f"readme{number}.py").split()
        promised = re.findall(r"print\(.*\)  # (.*)", source)
        assert printed == promised


def test_the_python_of_the_tutorial_runs_in_order(tmp_path: Path) -> None:
    search, check, campaign = blocks(ROOT / "docs" / "tutorial.md", "python")
    find = [sys.executable, "-m", "matforge", "vacua", "search", "--dir", "runs", "-q"]
    assert subprocess.run(find, cwd=tmp_path, capture_output=True, timeout=240).returncode == 0
    residual = run_script(search + check, tmp_path, "look.py").strip().splitlines()[-1]
    assert float(residual.strip("[]")) < 1e-12
    value, chores = run_script(campaign, tmp_path, "campaign.py").split()
    assert abs(float(value) - 3.14159) < 0.1
    assert int(chores) >= 21


@pytest.mark.parametrize("name", ["architecture.md", "commands.md"])
def test_what_is_generated_is_current(name: str) -> None:
    generate = runpy.run_path(str(ROOT / "docs" / "generate.py"), run_name="docs")
    text = (ROOT / "docs" / name).read_text()
    assert generate["page"](name, text) == text, "run docs/generate.py"
    assert set(generate["PAGES"]) == {"architecture.md", "commands.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_link_between_pages_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_command_shown_is_a_command_with_these_options(page: Path) -> None:
    import typer
    from typer.main import get_command

    from matforge.cli.app import app

    text = page.read_text()
    shown = re.findall(
        r"^(?:\S*bin/)?(matforge [^\n#`&|]*)", "\n".join(blocks(page, "bash")), flags=re.MULTILINE
    )
    shown += re.findall(r"`(matforge [a-z][^`…]*)`", text)
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
