"""The exhaustive search as chores: cover, ISD chunks, Newton refines, shard writes, merge.

Data flow (each arrow is an :class:`~matforge.model.OutputReference`; nothing large passes through
the driver)::

    prepare (kernels)
    cover_part x 8 -> cover -> isd_chunk (a block of h) -> newton_refine (a slice of its starts)
                                   |  leftover boxes: isd_chunk again      |
                                   +--------> shard_write (a group of blocks) -> merge

``cover_part`` and ``cover`` are recorded at the start; all else is spawned by a strategy (default:
``refine_promising``) from the small reports that the chores return. The functions here are plain:
they can be called one after the other in one process as well.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from matforge.chore import ChoreRegistry
from matforge.model import MatForgeError, UsageError, WithReport
from matforge.vacua.geometry import Geometry
from matforge.vacua.region import Region

if TYPE_CHECKING:
    import pyarrow as pa

    from matforge.pipeline import Pipeline
    from matforge.session import Session
    from matforge.strategy import FutureProcessingStrategy
    from matforge.vacua.cover import Cover

N_PARTS = 8
"""Sub-boxes of the cover that are built by a chore each; fixed, so that the cover is always the same."""
LEAF = 0.1
"""Largest change of the ISD matrix from the centre of a leaf to a face."""
BLOCK = 256
"""Values of h in a chunk."""
BUDGET = 2_000_000
"""Counted steps after which a chunk hands back its unfinished boxes (about a second)."""
BATCH = 8192
"""Starts in a refine."""
GROUP = 32
"""Blocks whose vacua go into one shard."""
DIGEST_SEED = 1
"""Fixed: digests of different chores are compared."""
SHUFFLE_SEED = 20250106
"""Fixed: neighbouring h are alike, so unshuffled blocks would differ greatly in cost."""
DEFAULT_STRATEGY = "refine_promising"


@dataclass(frozen=True, slots=True)
class Tuning:
    """How the work is cut up; none of it changes the answer."""

    leaf: float = LEAF
    block: int = BLOCK
    budget: int = BUDGET
    batch: int = BATCH
    group: int = GROUP
    conjugation: bool = True
    """Search Re z1 >= 0 only and add the complex conjugate images."""

    def __post_init__(self) -> None:
        for name in ("block", "budget", "batch", "group"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise UsageError(f"{name} must be a whole number of at least 1, not {value!r}.")
        if not 0.005 <= self.leaf <= 0.3:
            raise UsageError(f"leaf must lie between 0.005 and 0.3, not {self.leaf!r}.")


# ---------------------------------------------------------------- chores


def prepare(kind: str) -> Any:
    """Compile a group of kernels beside the building of the cover, instead of after it."""
    began = time.process_time()
    _compile(kind)
    return WithReport(None, {"cpu_s": _spent(began)})


def cover_part(problem: Mapping[str, Any], part: int) -> Any:
    """Build one sub-box of the cover, unless the whole cover is cached; returns its directory."""
    from matforge.vacua import cover

    began = time.process_time()
    geometry, region, tuning = _unpack(problem)
    final = _cover_dir(geometry, region, tuning)
    path = final.with_name(f"{final.name}-part{part}")
    if not _whole(final):
        _compile("cover")
        if not _whole(path):
            built = cover.build_part(geometry, region, part, N_PARTS, leaf=tuning.leaf, cp=tuning.conjugation)
            _publish(path, lambda beside: cover.save_part(built, beside))
    return WithReport(str(path), {"cpu_s": _spent(began)})


def cover(problem: Mapping[str, Any], parts: Sequence[str]) -> Any:
    """Join the sub-boxes, and list every h that can occur, shuffled.

    Returns
    -------
    dict
        ``problem``, ``directory`` of the cover, ``h`` (m, 2 h12 + 2) int32. Reports the number of
        blocks, and how a strategy should group and batch them.
    """
    from matforge.vacua import cover as tree
    from matforge.vacua import lattice

    began = time.process_time()
    geometry, region, tuning = _unpack(problem)
    final = _cover_dir(geometry, region, tuning)
    if not _whole(final):
        _publish(final, lambda beside: tree.assemble(list(parts), beside))
        for part in parts:
            shutil.rmtree(part, ignore_errors=True)
    boxes = tree.open_cover(final)
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
    counts = {**report, "h_digest": _digest(h)}
    return WithReport({"problem": dict(problem), "h": h, "counts": counts}, report)


def isd_chunk(problem: Mapping[str, Any], h: Any, group: int, unfinished: Any = None) -> Any:
    """Visit the cover for a block of h: every f that can belong to a vacuum, with its starts.

    Parameters
    ----------
    problem : mapping
        See :func:`problem_of`.
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

    began = time.process_time()
    geometry, region, tuning = _unpack(problem)
    boxes = _open(geometry, region, tuning)
    _compile("completion")
    found = completion.complete_block(boxes, geometry, region, h, budget=tuning.budget, unfinished=unfinished)
    pieces = completion.split_unfinished(found.unfinished, 2) if found.unfinished is not None else []
    first = unfinished is None
    counts = {
        **found.counters,
        "h_begun": len(h) if first else 0,
        "h_begun_digest": _digest(h) if first else 0,
        "starts_digest": _digest(found.fluxes),
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

    began = time.process_time()
    geometry, region, tuning = _unpack(problem)
    _compile("newton")
    solved = newton.solve(geometry, fluxes, moduli, tau)
    good = solved.converged
    vacua = _canonical(geometry, region, fluxes[good], solved.moduli[good], solved.tau[good], tuning)
    counts = {
        "newton_starts": len(fluxes),
        "newton_starts_digest": _digest(fluxes),
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

    began = time.process_time()
    geometry, region, _ = _unpack(problem)
    fluxes, moduli, tau = _stack([part["vacua"] for part in refined], geometry.h12)
    keep = domain.deduplicate(fluxes, moduli, tau)
    name = f"shards/vacua-{group:06d}.parquet"
    shard = table.unpolished(fluxes[keep], moduli[keep], tau[keep])
    table.write(_run_dir() / name, shard)
    if problem.get("publish"):
        _compile("newton")
        final = table.canonical(geometry, region, fluxes[keep], moduli[keep], tau[keep])
        _stage(problem, f"{group:06d}", final)
    total = _add_counts([*counts, *(part["counts"] for part in refined)])
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

    began = time.process_time()
    geometry, region, _ = _unpack(problem)
    run_dir = _run_dir()
    fluxes, moduli, tau = _stack([_read_shard(run_dir, shard) for shard in shards], geometry.h12)
    _compile("newton")
    vacua = table.canonical(geometry, region, fluxes, moduli, tau)
    counts = _add_counts([plan["counts"], *(shard["counts"] for shard in shards)])
    counts["cpu_s"] = counts.get("cpu_s", 0.0) + _spent(began)
    _check_complete(counts)
    table.write(run_dir / "vacua.parquet", vacua)
    if problem.get("publish"):
        _stage(problem, "rest", vacua)  # nothing, unless a shard comes from elsewhere than shard_write
    document = summary.document(geometry, region, vacua, counts, len(shards), run_dir)
    summary.write(run_dir / "summary.json", document)
    return WithReport(document, {"vacua": vacua.num_rows})


CHORES = (prepare, cover_part, cover, isd_chunk, newton_refine, shard_write, merge)


# ---------------------------------------------------------------- their parts


def problem_of(
    geometry: Geometry,
    region: Region,
    tuning: Tuning | None = None,
    publish: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Everything a chore has to know, in plain types."""
    tuning = tuning or Tuning()
    return {
        "geometry": geometry.to_dict(),
        "region": region.as_dict(),
        "tuning": {name: getattr(tuning, name) for name in Tuning.__slots__},
        **({"publish": dict(publish)} if publish else {}),
    }


def _unpack(problem: Mapping[str, Any]) -> tuple[Geometry, Region, Tuning]:
    return _unpacked(json.dumps(problem, sort_keys=True))


@lru_cache(maxsize=4)
def _unpacked(text: str) -> tuple[Geometry, Region, Tuning]:
    problem = json.loads(text)
    geometry = Geometry.from_dict(problem["geometry"])
    return geometry, Region.from_dict(geometry, problem["region"]), Tuning(**problem["tuning"])


def _spent(began: float) -> float:
    return round(time.process_time() - began, 6)


def _run_dir() -> Path:
    return Path(os.environ["MATFORGE_RUN_DIR"])


def _cover_dir(geometry: Geometry, region: Region, tuning: Tuning) -> Path:
    """Where the cover is cached: it depends on neither N_flux nor s, so searches share it."""
    from matforge.vacua import cover, kernels
    from matforge.worker.once import compiled_cache_dir

    # the code is part of the name, so that a cover of another version is never taken for ours
    code = "".join(Path(str(module.__file__)).read_text() for module in (cover, kernels))
    name = f"{cover.key(geometry, region, tuning.leaf, tuning.conjugation)}-{zlib.crc32(code.encode()):08x}"
    return Path(compiled_cache_dir()) / "covers" / name


MANIFEST = "manifest.json"


def _whole(path: Path) -> bool:
    """Whether a published directory is there and undamaged; a damaged one is removed."""
    try:
        stored = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError):
        stored = None
    if stored is not None and stored == _contents(path):
        return True
    shutil.rmtree(path, ignore_errors=True)
    return False


def _contents(path: Path) -> dict[str, list[int]]:
    """Length and CRC-32 of each file."""
    files = sorted(p for p in path.iterdir() if p.name != MANIFEST)
    return {p.name: [p.stat().st_size, zlib.crc32(p.read_bytes())] for p in files}


def _publish(path: Path, write: Any) -> None:
    """Let ``write`` fill a directory beside ``path`` and give it that name; a second writer is harmless."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    beside.parent.mkdir(parents=True, exist_ok=True)
    write(beside)
    (beside / MANIFEST).write_text(json.dumps(_contents(beside)))
    try:
        beside.rename(path)
    except OSError:
        if not path.is_dir():
            raise
        shutil.rmtree(beside, ignore_errors=True)  # another process published the same first


@lru_cache(maxsize=2)
def _opened(path: str) -> Cover:
    from matforge.vacua import cover

    return cover.open_cover(path)


def _open(geometry: Geometry, region: Region, tuning: Tuning) -> Cover:
    """The cached cover; built again if somebody cleared the cache meanwhile."""
    from matforge.vacua import cover

    path = _cover_dir(geometry, region, tuning)
    if not path.is_dir():  # the cover chore has checked it; only a cleared cache is looked for here
        with _single_flight(f"vacua-cover-{path.name}"):
            if not _whole(path):
                parts = []
                for part in range(N_PARTS):
                    parts.append(path.with_name(f".{path.name}-rebuilt{part}"))
                    built = cover.build_part(
                        geometry, region, part, N_PARTS, leaf=tuning.leaf, cp=tuning.conjugation
                    )
                    cover.save_part(built, parts[-1])
                _publish(path, lambda beside: cover.assemble(parts, beside))
                for item in parts:
                    shutil.rmtree(item, ignore_errors=True)
    return _opened(str(path))


def _single_flight(kind: str) -> Any:
    from matforge.worker.once import single_flight

    return single_flight(kind)


@lru_cache(maxsize=8)
def _compile(kind: str) -> None:
    """Compile a group of kernels once a node, or load it from numba's cache; once a process."""
    from matforge.vacua import warm

    with _single_flight(f"vacua-{kind}"):
        warm.KINDS[kind]()


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
    return fluxes[keep].astype(np.int32), moduli[keep], tau[keep]


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


def _digest(rows: Any) -> int:
    """A number that adds up: the sum over rows of a hash of each, so order and cuts do not matter.

    Two sets of rows with equal sums are the same, but for a chance of about 2^-64.
    """
    values = np.asarray(rows, dtype=np.int64).astype(np.uint64)
    odd = np.random.default_rng(DIGEST_SEED).integers(1, 2**63, values.shape[1], dtype=np.uint64) * 2 + 1
    mixed = (values * odd).sum(axis=1, dtype=np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # splitmix64's finaliser
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return int((mixed ^ (mixed >> np.uint64(31))).sum(dtype=np.uint64))


def _check_complete(counts: dict[str, Any]) -> None:
    """Refuse a search of which a part was left out or done twice; drops the digests."""
    done = {"h": "h_begun", "starts": "newton_starts", "pieces_left": "pieces_done"}
    for wanted, found in done.items():
        pairs = [(counts.get(wanted, 0), counts.get(found, 0))]
        pairs += [(counts.pop(f"{wanted}_digest", 0) % 2**64, counts.pop(f"{found}_digest", 0) % 2**64)]
        if any(a != b for a, b in pairs):
            raise RuntimeError(
                f"{pairs[0][1]} of {pairs[0][0]} were done ({found} of {wanted}), or not the right ones: the "
                "strategy did not spawn everything exactly once, so the search is not complete."
            )


def _stage(problem: Mapping[str, Any], batch: str, vacua: pa.Table) -> None:
    """Stage those vacua of a batch, as they stand in the final table, that no other batch has staged."""
    from matforge.vulcan.results import stage_batch

    stage_batch(problem["publish"], _unpack(problem)[0], vacua, _run_dir(), batch)


def _add_counts(counts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    total: dict[str, Any] = {}
    for part in counts:
        for name, value in part.items():
            if isinstance(value, int | float):
                total[name] = total.get(name, 0) + value
    return total


# ---------------------------------------------------------------- the search


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

    With ``publish`` (from :func:`matforge.vulcan.results.target_of`) each batch of
    vacua is staged by the chore that writes its shard.

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
        If it is not there: the strategy let the run end without a merge.
    """
    if not (run_dir / name).is_file():
        raise MatForgeError(f"{run_dir} ended without a merge, so there is no {name}: see its strategy.")
    return run_dir / name
