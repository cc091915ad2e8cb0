"""The exhaustive search as chores: cover, ISD chunks, Newton refines, shard writes, merge.

Data flow (each arrow is an :class:`~matforge.model.OutputReference`; nothing large passes through
the driver)::

    prepare (kernels)
    cover_part x 8 -> cover -> isd_chunk (a block of h) -> newton_refine (a slice of its starts)
                                   |  leftover boxes: isd_chunk again      |
                                   +--------> shard_write (a group of blocks) -> merge

``cover_part`` and ``cover`` are recorded at the start; all else is spawned by a strategy (default:
``refine_promising``) from the small reports that the chores return.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matforge.chore import ChoreRegistry
from matforge.model import MatForgeError
from matforge.vacua.campaign.chores import CHORES
from matforge.vacua.campaign.covers import N_PARTS
from matforge.vacua.campaign.problem import Tuning, problem_of
from matforge.vacua.geometry import Geometry
from matforge.vacua.region import Region

if TYPE_CHECKING:
    import pyarrow as pa

    from matforge.pipeline import Pipeline
    from matforge.session import Session
    from matforge.strategy import FutureProcessingStrategy

__all__ = ["Tuning", "problem_of", "record", "registry", "result_file", "search", "start"]

DEFAULT_STRATEGY = "refine_promising"


def registry() -> ChoreRegistry:
    """The chores of the search by name, for a pipeline and for strategies."""
    entries = ChoreRegistry()
    for function in CHORES:
        entries.register(function, name=function.__name__)
    return entries


def record(pipe: Pipeline, problem: Mapping[str, Any]) -> None:
    """Record the chores that the search begins with; a strategy spawns the rest."""
    pipe.call("prepare", "completion", nice=-1)
    parts = [pipe.call("cover_part", problem, part) for part in range(N_PARTS)]
    pipe.call("cover", problem, parts)
    pipe.call("prepare", "newton", nice=1)


def start(
    geometry: Geometry,
    region: Region,
    *,
    tuning: Tuning | None = None,
    strategy: FutureProcessingStrategy | None = None,
    basedir: str | os.PathLike[str] | None = None,
    executor: str | None = None,
    workers: int | None = None,
    layout: str | None = None,
    log_delay: float = 1.0,
    quiet: bool = True,
    publish: Mapping[str, str] | None = None,
) -> Session:
    """Begin a search and return the running session.

    With ``publish`` (from :func:`matforge.vulcan.results.target_of`) each batch of vacua is staged by the
    chore that writes its shard.

    Raises
    ------
    InputError, UsageError
        If something is wrong with the request; before any work.
    """
    from matforge.pipeline import Pipeline
    from matforge.strategies import load

    pipe = Pipeline(
        basedir,
        executor=executor,
        workers=workers,
        layout=layout,
        name="vacua",
        campaign=geometry.name,
        registry=registry(),
    )
    record(pipe, problem_of(geometry, region, tuning, publish))
    future = pipe.submit(
        processing_strategy=strategy or load(DEFAULT_STRATEGY)(), log_delay=log_delay, quiet=quiet
    )
    return future.session


def search(
    geometry: Geometry | str,
    region: Region | Mapping[str, Any],
    **options: Any,
) -> pa.Table:
    """Every flux vacuum of a region, as a table.

    Parameters
    ----------
    geometry : Geometry or str
        A geometry, or the name or file of one.
    region : Region or mapping
        The box to search; a mapping has the keys of :meth:`Region.as_dict`.
    **options
        Those of :func:`start`: ``workers``, ``basedir``, ``strategy``, ``tuning``, ...

    Returns
    -------
    pyarrow.Table
        One row per vacuum modulo the overall sign of the fluxes; columns in
        :mod:`matforge.vacua.table`. The same table lies in ``vacua.parquet`` of the run.

    Raises
    ------
    InputError, UsageError
        If something is wrong with the request; before any work.
    RunFailedError
        If a chore failed: there is no partial answer.
    """
    from matforge.vacua import table
    from matforge.vacua.geometry import load_geometry

    if not isinstance(geometry, Geometry):
        geometry = load_geometry(geometry)
    if not isinstance(region, Region):
        region = Region.from_dict(geometry, region)
    session = start(geometry, region, **options)
    session.wait()
    session.outcome()
    return table.read(result_file(session.run_dir, "vacua.parquet"))


def result_file(run_dir: Path, name: str) -> Path:
    """A file that the merge writes.

    Raises
    ------
    MatForgeError
        If it is not there: somebody has removed it, or the strategy let the run end without a merge.
    """
    if not (run_dir / name).is_file():
        raise MatForgeError(
            f"{run_dir} ended without a merge (see its strategy), or somebody has removed its {name}."
        )
    return run_dir / name
