"""What ``matforge status`` says of single chores, as JSON types and as text."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matforge.engine import results
from matforge.engine.history import (
    Story,
    files_of,
    is_consequence,
    read_stories,
    seed_of,
    standing,
    streams_of,
)
from matforge.engine.locations import read
from matforge.engine.sketch import sketch, sketch_call
from matforge.engine.status import timestamp
from matforge.model import ChoreState, Location, MatForgeError
from matforge.worker.processes import tail

STDERR_LINES = 10
"""Lines of standard error that are shown of each of many failures."""


# ---------------------------------------------------------------- one chore


def describe(run_dir: Path, story: Story, *, with_result: bool = False) -> dict[str, Any]:
    """Everything that a person debugging wants of one chore, from either layout.

    Parameters
    ----------
    with_result : bool
        Whether to read the result, which may be large.
    """
    chore = story.chore
    assert chore is not None
    needs = read_stories(run_dir, chore.inputs)
    dependencies = {name: _word(needs[name].state) if name in needs else "unknown" for name in chore.inputs}
    told: dict[str, Any] = {
        "chore_id": story.id,
        "state": _state(run_dir, story, dependencies),
        "name": chore.name,
        "function": chore.function,
        "arguments": _sketched(run_dir, chore.payload, sketch_call, chore.inputs),
        "resources": {name: getattr(chore.resources, name) for name in chore.resources.__slots__},
        "dependencies": dependencies,
        "parent": chore.parent,
        "nice": chore.nice,
        "key": chore.key,
        "seed": seed_of(run_dir, chore),
        "failure": story.failure.as_dict() if story.failure else None,
        "report": story.report,
        "attempts": story.attempts,
        "result": None if story.result is None else _place(story.result),
        "payload": _place(chore.payload),
        "files": [str(path.relative_to(run_dir)) for path in files_of(run_dir, story.id)],
        **{name: tail(path) for name, path in streams_of(run_dir, story.id).items()},
    }
    if with_result and story.result is not None:
        told["value"] = _sketched(run_dir, story.result, sketch, ())
    return told


def _word(state: ChoreState | None) -> str:
    return "not ended" if state is None else state.value


def _state(run_dir: Path, story: Story, dependencies: dict[str, str]) -> str:
    """How the chore stands; what is not in the journal is told by the run's and the chore's files."""
    if story.state is not None:
        return story.state.value
    if standing(run_dir)["workflow"]["driver"] is None:
        return "not done; nobody drives the run"
    if story.cancelling:
        return "being cancelled"
    if any(state != ChoreState.COMPLETED.value for state in dependencies.values()):
        return "blocked"
    return "running" if streams_of(run_dir, story.id) else "ready or running"


def _place(where: Location) -> dict[str, Any]:
    return {"path": where.path, "offset": where.offset, "length": where.length}


def _sketched(run_dir: Path, where: Location, make: Any, inputs: tuple[str, ...]) -> str:
    try:
        data = results.view(run_dir, where)
        return str(make(read(run_dir, where) if data is None else data, inputs))
    except MatForgeError as error:
        return f"<{error}>"


def text(told: dict[str, Any]) -> str:
    """The description for a person."""
    lines = [f"{label:<10} {value}" for label, value in _rows(told) if value not in ("", None)]
    failure = told["failure"] or {}
    for label, block in (
        ("traceback", failure.get("traceback", "")),
        ("stdout", told.get("stdout", "")),
        ("stderr", told.get("stderr", "") or failure.get("stderr", "")),
    ):
        if block.strip():
            lines += [f"{label}:", textwrap.indent(block.rstrip(), "    ")]
    return "\n".join(lines)


def _rows(told: dict[str, Any]) -> list[tuple[str, Any]]:
    failure, state = told["failure"], told["state"]
    if failure:
        state += f" ({failure['kind']}): {failure['message']}"
    call = f"{told['function']}({told['arguments']})" if told["function"] else told["arguments"]
    rows = [
        ("chore", told["chore_id"]),
        ("state", state),
        ("root cause", failure.get("root") if failure else None),
        ("call" if told["function"] else "command", call),
        ("resources", _resources(told["resources"])),
        ("needs", ", ".join(f"{name} ({state})" for name, state in told["dependencies"].items())),
        ("parent", told["parent"]),
        ("nice", told["nice"] or None),
        ("key", told["key"]),
        ("seed", told["seed"]),
        ("report", told["report"] or None),
    ]
    rows += [("attempt", attempt_line(attempt)) for attempt in told["attempts"]]
    if told["result"]:
        rows.append(("result", f"{told['result']['length']:,} bytes in {_where(told['result'])}"))
    rows.append(("value", told.get("value")))
    rows += [("" if i else "files", name) for i, name in enumerate(told["files"])]
    if not told["files"]:
        rows.append(("files", f"packed: arguments in {_where(told['payload'])}"))
    return rows


def _where(place: dict[str, Any]) -> str:
    return f"{place['path']} at byte {place['offset']}" if place["offset"] else str(place["path"])


def _resources(wants: dict[str, Any]) -> str:
    parts = [f"tasks {wants['num_tasks']}, cores a task {wants['cores_per_task']}"]
    parts += [f"GPUs a task {wants['gpus_per_task']}"] if wants["gpus_per_task"] else []
    parts += [name for name in ("mpi", "isolated") if wants[name]]
    parts += [f"env {wants['env']}"] if wants["env"] else []
    parts += [] if wants["inherit_env"] else ["without the driver's environment"]
    return ", ".join(parts)


def attempt_line(attempt: dict[str, Any]) -> str:
    """One attempt on one line."""
    start = f"{attempt['number']} (driver {attempt['epoch']}): {attempt['outcome']}"
    if not attempt["host"]:
        return start
    return (
        f"{start}; {attempt['host']} slot {attempt['slot']}, {timestamp(attempt['started_at'])}, "
        f"{attempt['wall_s']:.3f} s, {attempt['cpu_s']:.3f} s of CPU, {attempt['max_rss'] / 2**20:.0f} MiB"
    )


# ---------------------------------------------------------------- failures


def failures(stories: Sequence[Story]) -> list[dict[str, Any]]:
    """Every failure, in the order in which they happened."""
    return [
        {
            "chore_id": story.id,
            **(story.failure.as_dict() if story.failure else {}),
            "attempts": story.attempts,
        }
        for story in stories
    ]


def failures_text(stories: Sequence[Story]) -> str:
    """Every failure: each root cause with its evidence, then what failed because of it."""
    if not stories:
        return "No chore failed."
    consequences: dict[str, list[Story]] = {}
    roots = []
    for story in stories:
        if story.failure is not None and is_consequence(story.failure):
            consequences.setdefault(story.failure.root or "", []).append(story)
        else:
            roots.append(story)
    known = {story.id for story in roots}
    lines: list[str] = []
    for story in roots:
        lines += [*_evidence(story), *(_consequence(s) for s in consequences.get(story.id, ())), ""]
    orphans = [s for root, found in consequences.items() if root not in known for s in found]
    return "\n".join([*lines, *map(_consequence, orphans)]).rstrip()


def _evidence(story: Story) -> list[str]:
    failure = story.failure
    assert failure is not None
    message = failure.message.removeprefix(f"{story.id}: ")
    lines = [f"{story.id} failed ({failure.kind.value}): {message}"]
    lines += [f"    attempt {attempt_line(attempt)}" for attempt in story.attempts]
    lines += [f"    | {line}" for line in failure.stderr.rstrip().splitlines()[-STDERR_LINES:]]
    return lines


def _consequence(story: Story) -> str:
    failure = story.failure
    assert failure is not None
    return f"  {story.id} failed ({failure.kind.value}): root cause {failure.root}"
