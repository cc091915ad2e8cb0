"""Moving shards between the folders of the staging area."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from matforge.vulcan import layout
from matforge.vulcan.shard import ShardGoneError, StagedShard
from matforge.vulcan.writer import move_to


def move(staging: Path, name: str, state: str, target: str) -> bool:
    """Move a shard from one state to another; False if it is not there."""
    source = staging / state / name
    if not source.exists():
        return False
    try:
        move_to(StagedShard(source), staging, target)
    except ShardGoneError:
        return False
    return True


def fail(staging: Path, name: str, state: str, content: Mapping[str, Any]) -> None:
    """Move a shard to ``failed/`` with a note that says why."""
    note = layout.error_of(staging / layout.FAILED_DIRNAME / name)
    note.parent.mkdir(exist_ok=True)
    beside = layout.beside(note)
    beside.write_text(json.dumps(content, indent=1), encoding="utf-8")
    os.replace(beside, note)
    move(staging, name, state, layout.FAILED_DIRNAME)


def clean(outbox: Path, used: Collection[str], staging: Path) -> None:
    """Remove what killed publishers left in the outbox."""
    with suppress(FileNotFoundError):
        for folder in outbox.iterdir():
            if str(folder.relative_to(staging)) not in used:
                shutil.rmtree(folder, ignore_errors=True)
