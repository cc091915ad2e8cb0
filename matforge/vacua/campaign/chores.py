"""The chores of the search: plain functions, which can be called one after the other in one process too."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from matforge.model import WithReport
from matforge.vacua.campaign import covers
from matforge.vacua.campaign.accounts import add_counts, check_complete, digest
from matforge.vacua.campaign.problem import Tuning, unpack
from matforge.vacua.geometry import Geometry
from matforge.vacua.region import Region

if TYPE_CHECKING:
    import pyarrow as pa

SHUFFLE_SEED = 20250106
"""Fixed: neighbouring h are alike, so unshuffled blocks would differ greatly in cost."""


def prepare(kind: str) -> Any:
    """Compile a group of kernels beside the building of the cover, instead of after it."""
    began = time.process_time()
    covers.compiled(kind)
    return WithReport(None, {"cpu_s": _spent(began)})


def cover_part(problem: Mapping[str, Any], part: int) -> Any:
    """Build one sub-box of the cover, unless the whole cover is cached.

    Returns
    -------
    dict
        ``directory``, where it is, and ``cpu_s``.
    """
    from matforge.vacua import cover

    geometry, region, tuning = unpack(problem)
    final = covers.cover_dir(geometry, region, tuning)
    path = final.with_name(f"{final.name}-part{part}")
    cpu_s = 0.0
    if not covers.whole(final):
        covers.compiled("cover")
        began = time.process_time()
        if not covers.whole(path):
            built = cover.build_part(
                geometry, region, part, covers.N_PARTS, leaf=tuning.leaf, cp=tuning.conjugation
            )
            covers.publish(path, lambda beside: cover.save_part(built, beside))
        cpu_s = _spent(began)
    return WithReport({"directory": str(path), "cpu_s": cpu_s}, {"cpu_s": cpu_s})


def cover(problem: Mapping[str, Any], parts: Sequence[Mapping[str, Any]]) -> Any:
    """Join the sub-boxes, and list every h that can occur, shuffled.

    Returns
    -------
    dict
        ``problem``, ``h`` (m, 2 h12 + 2) int32, ``counts``. Reports the number of blocks, and how a
        strategy should group and batch them.
    """
    from matforge.vacua import lattice

    geometry, region, tuning = unpack(problem)
    covers.compiled("completion")  # lists h with the same kernels
    began = time.process_time()
    boxes = covers.joined(geometry, region, tuning, [part["directory"] for part in parts])
    h = lattice.union_of_h(boxes, region)
    h = h[np.random.default_rng(SHUFFLE_SEED).permutation(len(h))]
    report = {
        "blocks": -(-len(h) // tuning.block),
        "block": tuning.block,
        "group": tuning.group,
        "batch": tuning.batch,
        "boxes": len(boxes.children),
        "h": len(h),
        "cpu_s": _spent(began),
    }
    counts = {**report, "h_digest": digest(h), "cpu_s": report["cpu_s"] + sum(p["cpu_s"] for p in parts)}
    return WithReport({"problem": dict(problem), "h": h, "counts": counts}, report)


def isd_chunk(problem: Mapping[str, Any], h: Any, group: int, unfinished: Any = None) -> Any:
    """Visit the cover for a block of h: every f that can belong to a vacuum, with its starts.

    Parameters
    ----------
    problem : mapping
        See :func:`~matforge.vacua.campaign.problem.problem_of`.
    h : array (k, 2 h12 + 2)
        The block; ignored if ``unfinished`` is given.
    group : int
        Which shard its vacua will go to; passed on in the report.
    unfinished : Unfinished, optional
        Boxes that another chunk left when its budget was spent.

    Returns
    -------
    dict
        ``fluxes`` (m, 4 h12 + 4) int32 [f | h], ``moduli`` (m, h12) and ``tau`` (m,) starts,
        ``unfinished`` a list of pieces, ``counts``.
    """
    from matforge.vacua import completion

    geometry, region, tuning = unpack(problem)
    covers.compiled("completion")
    began = time.process_time()
    boxes = covers.opened(geometry, region, tuning)
    found = completion.complete_block(boxes, geometry, region, h, budget=tuning.budget, unfinished=unfinished)
    pieces = completion.split_unfinished(found.unfinished, 2) if found.unfinished is not None else []
    first = unfinished is None
    counts = {
        **found.counters,
        "h_begun": len(h) if first else 0,
        "h_begun_digest": digest(h) if first else 0,
        "starts_digest": digest(found.fluxes),
        "pieces_left": len(pieces),
        "pieces_done": 0 if first else 1,
        "cpu_s": _spent(began),
    }
    result = {
        "fluxes": found.fluxes,
        "moduli": found.moduli,
        "tau": found.tau,
        "unfinished": pieces,
        "counts": counts,
    }
    report = {
        "group": group,
        "starts": len(found.fluxes),
        "unfinished": len(pieces),
        "cpu_s": counts["cpu_s"],
    }
    return WithReport(result, report)


def newton_refine(problem: Mapping[str, Any], fluxes: Any, moduli: Any, tau: Any, group: int) -> Any:
    """Solve from each start; keep what converges, add complex conjugates, fold, keep the region."""
    from matforge.vacua import newton

    geometry, region, tuning = unpack(problem)
    covers.compiled("newton")
    began = time.process_time()
    solved = newton.solve(geometry, fluxes, moduli, tau)
    good = solved.converged
    vacua = _canonical(geometry, region, fluxes[good], solved.moduli[good], solved.tau[good], tuning)
    counts = {
        "newton_starts": len(fluxes),
        "newton_starts_digest": digest(fluxes),
        "converged": int(good.sum()),
        "cpu_s": _spent(began),
    }
    found = len(vacua[0])
    return WithReport(
        {"vacua": vacua, "counts": counts}, {"group": group, "vacua": found, "cpu_s": counts["cpu_s"]}
    )


def shard_write(problem: Mapping[str, Any], group: int, refined: Sequence[Any], counts: Sequence[Any]) -> Any:
    """Deduplicate a group's vacua, write them as ``shards/vacua-<group>.parquet`` and stage the new ones."""
    from matforge.vacua import domain, table

    geometry, region, _ = unpack(problem)
    publish = problem.get("publish")
    if publish:
        covers.compiled("newton")
    began = time.process_time()
    fluxes, moduli, tau = _stack([part["vacua"] for part in refined], geometry.h12)
    keep = domain.deduplicate(fluxes, moduli, tau)
    name = f"shards/vacua-{group:06d}.parquet"
    shard = table.unpolished(fluxes[keep], moduli[keep], tau[keep])
    table.write(_run_dir() / name, shard)
    if publish:
        final = table.canonical(geometry, region, fluxes[keep], moduli[keep], tau[keep])
        _stage(publish, geometry, final, f"{group:06d}")
    total = add_counts([*counts, *(part["counts"] for part in refined)])
    total["cpu_s"] = total.get("cpu_s", 0.0) + _spent(began)
    return WithReport(
        {"file": name, "rows": len(keep), "counts": total},
        {"group": group, "shard": name, "rows": len(keep), "cpu_s": _spent(began)},
    )


def merge(problem: Mapping[str, Any], plan: Mapping[str, Any], shards: Sequence[Mapping[str, Any]]) -> Any:
    """The end of the search: one canonical table, and the summary.

    Raises
    ------
    RuntimeError
        If a shard holds another number of rows than its chore wrote, or not every h and every
        start was done: a missing block must never look like a result.
    """
    from matforge.vacua import summary, table

    geometry, region, _ = unpack(problem)
    covers.compiled("newton")
    began = time.process_time()
    run_dir = _run_dir()
    fluxes, moduli, tau = _stack([_read_shard(run_dir, shard) for shard in shards], geometry.h12)
    vacua = table.canonical(geometry, region, fluxes, moduli, tau)
    counts = add_counts([plan["counts"], *(shard["counts"] for shard in shards)])
    counts["cpu_s"] = counts.get("cpu_s", 0.0) + _spent(began)
    check_complete(counts)
    table.write(run_dir / "vacua.parquet", vacua)
    if problem.get("publish"):
        # nothing, unless a shard comes from elsewhere than shard_write
        _stage(problem["publish"], geometry, vacua, "rest")
    document = summary.document(geometry, region, vacua, counts, len(shards), run_dir)
    summary.write(run_dir / "summary.json", document)
    return WithReport(document, {"vacua": vacua.num_rows})


CHORES = (prepare, cover_part, cover, isd_chunk, newton_refine, shard_write, merge)


# ---------------------------------------------------------------- their parts


def _spent(began: float) -> float:
    return round(time.process_time() - began, 6)


def _run_dir() -> Path:
    return Path(os.environ["MATFORGE_RUN_DIR"])


def _stage(target: Mapping[str, str], geometry: Geometry, vacua: pa.Table, batch: str) -> None:
    """Stage those vacua of a batch, as they stand in the final table, that no other batch has staged."""
    from matforge.vulcan.results import stage_batch

    stage_batch(target, geometry, vacua, _run_dir(), batch)


def _canonical(geometry: Geometry, region: Region, fluxes: Any, moduli: Any, tau: Any, tuning: Tuning) -> Any:
    """Fold, keep the region, add the conjugates, deduplicate."""
    from matforge.vacua import domain

    if tuning.conjugation:
        images = domain.complex_conjugate(geometry, fluxes, moduli, tau)
        fluxes, moduli, tau = (
            np.concatenate([a, np.asarray(b, dtype=a.dtype)])
            for a, b in zip((fluxes, moduli, tau), images, strict=True)
        )
    fluxes, moduli, tau = domain.canonical(geometry, fluxes, moduli, tau)
    inside = region.contains(geometry, moduli, tau)
    fluxes, moduli, tau = fluxes[inside], moduli[inside], tau[inside]
    keep = domain.deduplicate(fluxes, moduli, tau)
    return _narrow(fluxes[keep]), moduli[keep], tau[keep]


def _narrow(fluxes: Any) -> Any:
    """As 32-bit integers, which files and chores hold; never wrapped."""
    if len(fluxes) and np.abs(fluxes).max() >= 2**31:
        raise OverflowError(f"a flux quantum of {np.abs(fluxes).max()} is beyond 32 bits")
    return fluxes.astype(np.int32)


def _stack(parts: Iterable[Any], h12: int) -> tuple[Any, Any, Any]:
    """Concatenate (fluxes, moduli, tau) triples; there may be none."""
    n = 2 * h12 + 2
    empty = (np.zeros((0, 2 * n), np.int32), np.zeros((0, h12), complex), np.zeros(0, complex))
    columns = zip(empty, *(part for part in parts if len(part[2])), strict=True)
    fluxes, moduli, tau = (np.concatenate(column) for column in columns)
    return fluxes, moduli, tau


def _read_shard(run_dir: Path, shard: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    from matforge.vacua import table

    content = table.read(run_dir / shard["file"])
    if content.num_rows != shard["rows"]:
        raise RuntimeError(
            f"{run_dir / shard['file']} has {content.num_rows} rows, but {shard['rows']} were written; "
            "it was changed, so the search is not complete."
        )
    return table.arrays(content)
