"""Stage the result of a search, once, however often it is asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from matforge._version import __version__
from matforge.vulcan.forge import Vulcan

ROWS_A_SHARD = 100_000


def target_of(forge: Vulcan) -> dict[str, str]:
    """What a chore has to know to stage into the same folder: plain types, no token."""
    return {"repo": forge.repo, "staging_dir": str(forge.staging_dir), "project": forge.project}


def stage_result(target: Mapping[str, str], geometry: Any, vacua: pa.Table, run_dir: Path) -> list[str]:
    """Stage a table of vacua in ``pending/``; no network, no token.

    The run ids are made of the run directory, so that a chore that is run again after it was killed
    stages nothing twice.

    Parameters
    ----------
    target : mapping
        From :func:`target_of`.
    geometry : Geometry
    vacua : Table
        Of distinct vacua.
    run_dir : Path

    Returns
    -------
    list of str
        The run ids.
    """
    forge = Vulcan(repo=target["repo"], staging_dir=target["staging_dir"], project=target["project"])
    where = hashlib.sha256(str(run_dir.resolve()).encode()).hexdigest()[:12]
    found = []
    for number, begin in enumerate(range(0, vacua.num_rows, ROWS_A_SHARD)):
        shard = forge.write(
            vacua.slice(begin, ROWS_A_SHARD).replace_schema_metadata(None),
            geometry,
            solver={"name": "newton"},
            provenance={"run": run_dir.name, "matforge": __version__},
            run_id=f"{run_dir.name}-{where}-{number:06d}",
        )
        found.append(shard.run_id)
    return found
