"""Writes what the documents take from the code: state diagram, tables of the commands, reference.

python docs/generate.py          rewrites the pages
python docs/generate.py --check  exits with 1 if one is not current
"""

from __future__ import annotations

import ast
import enum
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matforge
from matforge.engine.graph import TRANSITIONS
from matforge.model import FailureKind
from matforge.policy import RULES

DOCS = Path(__file__).parent
WIDTH = 100
"""Columns after which a signature is broken between two parameters."""
GLUE = "\0"
"""Stands for a space at which a signature must not be broken."""
HALVES = ("Recording",)
"""Classes whose methods are told as those of the public class that is made of them."""
HIDDEN = {
    *("add", "controls", "layers", "load", "problem", "read_result", "record_call", "release", "run"),
    *("seed_of", "as_dict", "from_dict"),
}
"""Members that other modules of ours use: public, but of no use in a script."""
GIVEN = {"Chore", "Delayed", "Event", "Failure", "FluxManager", "Graph", "Results", "RunFuture", "View"}
"""What nobody makes, because a call gives it: its fields are shown, not its constructor."""

SECTIONS: dict[str, tuple[str, list[str]]] = {
    "Building a run": (
        "A pipeline records chores; nothing runs before `submit()`.",
        ["Pipeline", "Delayed", "OutputReference", "Resources", "ChoreRegistry", "seed"],
    ),
    "Running and results": (
        "What `submit()` returns, and the ways to wait for results.",
        ["RunFuture", "Results", "as_completed", "CommandResult", "ChoreExecutor", "Graph"],
    ),
    "When something fails": (
        "Every error that MatForge raises on purpose is a `MatForgeError` whose text is one sentence.",
        [
            "MatForgeError",
            "UsageError",
            "RunFailedError",
            "InterruptedRunError",
            "ChoreFailedError",
            "Failure",
            "FailureKind",
        ],
    ),
    "Strategies": (
        "See [how to choose and write a strategy](strategies.md). `load` is in `matforge.strategies`.",
        [
            "FutureProcessingStrategy",
            "Event",
            "View",
            "ChoreSpec",
            "Spawn",
            "Cancel",
            "Reprioritise",
            "Stop",
            "Decision",
            "WithReport",
            "AdaptiveStrategy",
            "NonAdaptiveStrategy",
            "load",
        ],
    ),
    "Inside": (
        "What events and records hold; a script seldom needs these.",
        ["Chore", "ChoreType", "ChoreState", "FluxManager"],
    ),
}
"""Title of a section to what it says first and the public names in it, in reading order."""

ELSEWHERE = {"Delayed": "delayed", "Results": "session", "Graph": "drawing", "load": "strategies"}
"""Names in the reference that the root has not, to their modules."""


# ---------------------------------------------------------------- parts of pages


def diagram() -> str:
    """The transitions as a Mermaid state diagram."""
    lines = ["```mermaid", "stateDiagram-v2"]
    for (before, after), reason in TRANSITIONS.items():
        source = "[*]" if before is None else before.name
        lines.append(f"    {source} --> {after.name}: {reason.replace(';', ',').replace(':', ',')}")
    finals = sorted({after.name for _, after in TRANSITIONS if after.final})
    lines += [f"    {name} --> [*]" for name in finals]
    return "\n".join([*lines, "```"])


def commands() -> str:
    """Every command with its help, its arguments and its options."""
    from typer.main import get_command

    from matforge.cli.app import app

    return "\n\n".join(_sections("matforge", get_command(app)))


def _sections(name: str, command: Any) -> Iterator[str]:
    if hasattr(command, "commands"):
        for child, inner in command.commands.items():
            yield from _sections(f"{name} {child}", inner)
        return
    arguments = [_placeholder(p) for p in command.params if p.param_type_name == "argument"]
    title = f"### `{' '.join([name, *arguments])}`"
    table = "\n".join(["| | |", "|---|---|", *map(_row, command.params)])
    yield "\n\n".join([title, inspect.cleandoc(command.help), table])


def _placeholder(argument: Any) -> str:
    text = argument.name.upper() + ("..." if argument.nargs == -1 else "")
    return text if argument.required else f"[{text}]"


def _row(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        label = f"`{parameter.name.upper()}`"
    else:
        label = ", ".join(f"`{option}`" for option in [*parameter.opts, *parameter.secondary_opts])
    text = parameter.help.replace("|", "\\|")
    if isinstance(parameter.default, int | float) and not isinstance(parameter.default, bool):
        text += f" Default: {parameter.default:g}."
    return f"| {label} | {text} |"


def failures() -> str:
    """Every kind of failure, what it means, and what trying again costs."""
    lines = ["| kind | a chore fails so when | another try |", "|---|---|---|"]
    for kind in FailureKind:
        rule = RULES[kind]
        cost = {None: "never", 0: "costs none of its `retries`"}.get(rule.cost, "costs one of its `retries`")
        pause = ", after a pause" if rule.pauses else ""
        lines.append(f"| {kind.value} | {rule.why} | {cost}{pause} |")
    return "\n".join(lines)


PARTS: dict[str, Callable[[], str]] = {
    "state diagram": diagram,
    "commands": commands,
    "kinds of failure": failures,
}
"""What a page may have generated parts of, to what makes them; two comments enclose each."""


def renewed(text: str) -> str:
    """The text of a page with its generated parts made anew."""
    for name, make in PARTS.items():
        begin, end = f"<!-- {name}: generated by docs/generate.py -->", f"<!-- end of the {name} -->"
        if begin in text:
            head, rest = text.split(begin)
            _, tail = rest.split(end)
            text = f"{head}{begin}\n{make()}\n{end}{tail}"
    return text


# ---------------------------------------------------------------- the reference


def reference() -> str:
    """The page of all public names, from their signatures and docstrings.

    Raises
    ------
    SystemExit
        If a public name has no place in :data:`SECTIONS`, or a place is for no public name.
    """
    placed = {name for _, names in SECTIONS.values() for name in names}
    public = {name for name in matforge.__all__ if not name.startswith("__")}
    if wrong := sorted((public ^ placed) - set(ELSEWHERE)):
        sys.exit(f"docs/generate.py: SECTIONS and matforge.__all__ disagree about {', '.join(wrong)}.")
    lines = [
        "# Reference",
        "",
        "<!-- generated by docs/generate.py from the docstrings: change those, not this page -->",
        "",
        "The public names. What a script makes is in `matforge` itself: `from matforge import Pipeline`.",
        "",
    ]
    for title, (_, names) in SECTIONS.items():
        links = ", ".join(f"[`{name}`](#{name.lower()})" for name in names)
        lines.append(f"* [{title}](#{title.lower().replace(' ', '-')}): {links}")
    for title, (says, names) in SECTIONS.items():
        lines += ["", f"## {title}", "", says]
        for name in names:
            lines += ["", f"### {name}", "", *entry(name, found(name))]
    return "\n".join(lines) + "\n"


def found(name: str) -> Any:
    """The thing of that name."""
    home = importlib.import_module(f"matforge.{ELSEWHERE[name]}") if name in ELSEWHERE else matforge
    return getattr(home, name)


def entry(name: str, thing: Any) -> list[str]:
    """The Markdown lines of one public name."""
    if not inspect.isclass(thing):
        if not callable(thing):  # a union of types has no docstring of its own
            return [f"`{' | '.join(part.__name__ for part in thing.__args__)}`"]
        return [*signature(name, thing), "", *markdown(inspect.getdoc(thing) or "")]
    lines = []
    enumeration, error = issubclass(thing, enum.Enum), issubclass(thing, Exception)
    if not (enumeration or error or name in GIVEN):
        lines += [*signature(name, thing), ""]
    bases = [base.__name__ for base in thing.__bases__ if error or base.__name__ == "Future"]
    if bases:
        lines += [f"A kind of {' and '.join(f'`{base}`' for base in bases)}.", ""]
    lines += markdown(inspect.getdoc(thing) or "")
    if enumeration:
        lines += ["", "Values: " + ", ".join(f"`{m.name}` ({m.value})" for m in thing) + "."]
    else:
        lines += attributes(thing)
        for label, method in methods(thing):
            lines += [
                "",
                f"#### {label}",
                "",
                *signature(label, method),
                "",
                *markdown(inspect.getdoc(method) or ""),
            ]
    return lines


def methods(cls: type) -> Iterator[tuple[str, Any]]:
    """Public functions of a class with docstrings of their own, in the order of the source.

    Those of a part that it is made of, and that has no entry of its own, come first.
    """
    parts = [base for base in cls.__bases__ if base.__name__ in HALVES]
    for name, member in (pair for one in (*parts, cls) for pair in vars(one).items()):
        plain = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        hidden = name.startswith("_") or name in HIDDEN
        if not hidden and inspect.isfunction(plain) and plain.__doc__:
            yield f"{cls.__name__}.{name}", plain


def attributes(cls: type) -> list[str]:
    """Fields that say what they are (all, of what is given) and properties, as a list."""
    told = dict(fields_of(cls))
    every = cls.__name__ in GIVEN and "Attributes\n---" not in (inspect.getdoc(cls) or "")
    for name, member in vars(cls).items():
        if isinstance(member, property):
            told[name] = (inspect.getdoc(member) or "").split("\n\n")[0]
    listed = [
        f"* `{name}`{f': {flowing(text)}' if text else ''}"
        for name, text in told.items()
        if not (name.startswith("_") or name in HIDDEN) and (text or every)
    ]
    return ["", "*Attributes*", "", *listed] if listed else []


def fields_of(cls: type) -> Iterator[tuple[str, str]]:
    """Each annotated field of a class, and the string that stands below it."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(tree, ast.ClassDef)
    for field, text in zip(tree.body, [*tree.body[1:], None], strict=True):
        match field, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(said))):
                yield name, said
            case ast.AnnAssign(target=ast.Name(id=name)), _:
                yield name, ""


class _Bare(str):
    """An annotation that prints as it is written in the source, without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _bare(annotation: Any) -> Any:
    return _Bare(annotation) if isinstance(annotation, str) else annotation


def signature(name: str, thing: Any) -> list[str]:
    """How it is called, as a block; broken after commas if it is long."""
    shape = inspect.signature(thing)
    kept = [p for p in shape.parameters.values() if p.name not in ("self", "cls")]
    silent = inspect.isclass(thing) or shape.return_annotation in (None, "None")
    shape = shape.replace(
        parameters=[p.replace(annotation=_bare(p.annotation)) for p in kept],
        return_annotation=inspect.Signature.empty if silent else _bare(shape.return_annotation),
    )
    lines = textwrap.wrap(glued(f"{name}{shape}"), WIDTH, subsequent_indent="    ", break_long_words=False)
    return ["```py", *(line.replace(GLUE, " ") for line in lines), "```"]


def glued(text: str) -> str:
    """The signature with every space glued that does not stand between two parameters."""
    depth, out = 0, []
    for before, letter in zip(" " + text, text, strict=False):
        depth += (letter in "([{") - (letter in ")]}")
        out.append(GLUE if letter == " " and not (before == "," and depth == 1) else letter)
    return "".join(out)


# ---------------------------------------------------------------- docstrings


def flowing(text: str) -> str:
    """Roles and double backticks as Markdown, in one line."""
    text = re.sub(r":\w+:`~?(?:[a-z_]+\.)*([\w.]+)`", r"`\1`", text)
    return " ".join(text.replace("``", "`").split())


def markdown(docstring: str) -> list[str]:
    """A numpy-style docstring as Markdown lines."""
    pieces = re.split(r"^(\w[\w ]*)\n-{3,}\n", docstring, flags=re.MULTILINE)
    lines = prose(pieces[0])
    for title, body in zip(pieces[1::2], pieces[2::2], strict=True):
        lines += ["", f"*{title}*", ""]
        lines += prose(body) if title in ("Notes", "Examples") else fields(body)
    return lines


def prose(text: str) -> list[str]:
    """Paragraphs; what is indented or typed at a prompt becomes a block."""
    lines: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        if paragraph.startswith((">>>", "    ")):
            shown = re.sub(r" *# doctest: \+SKIP", "", textwrap.dedent(paragraph))
            lines += ["```py", *shown.splitlines(), "```", ""]
        elif paragraph.startswith("* "):
            lines += [f"* {flowing(item)}" for item in re.split(r"^\* ", paragraph, flags=re.MULTILINE)[1:]]
            lines.append("")
        else:
            lines += [*textwrap.wrap(flowing(paragraph.removesuffix("::")), 120), ""]
    return lines[:-1]


def fields(body: str) -> list[str]:
    """``name : type`` with an indented text below, as a list."""
    lines = []
    for head, text in re.findall(r"^(\S.*)\n?((?:[ ]+.*\n?|\n)*)", body, flags=re.MULTILINE):
        name, _, kind = head.partition(" : ")
        label = ", ".join(f"`{n.strip()}`" for n in name.split(","))
        told = flowing(text)
        lines.append(f"* {label}{f' ({flowing(kind)})' if kind else ''}{f': {told}' if told else ''}")
    return lines


# ---------------------------------------------------------------- the pages


def pages() -> dict[Path, str]:
    """Every page, as it should be."""
    parts = {path: renewed(path.read_text()) for path in sorted(DOCS.glob("*.md"))}
    return {**parts, DOCS / "reference.md": reference()}


if __name__ == "__main__":
    for path, text in pages().items():
        current = path.read_text() if path.exists() else ""
        if "--check" in sys.argv and text != current:
            sys.exit(f"docs/{path.name} is not what the code says; run docs/generate.py.")
        path.write_text(text)
