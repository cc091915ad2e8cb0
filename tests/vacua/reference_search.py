"""The whole search in one process, serially: what the campaign of chores must reproduce."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from matforge.vacua import completion, cover, domain, lattice, newton_numba

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from matforge.vacua.geometry import Geometry
    from matforge.vacua.region import Region


class Found(NamedTuple):
    """Vacua modulo sign, canonical and sorted, with the counts and CPU seconds of each stage."""

    fluxes: NDArray[np.int64]
    moduli: NDArray[np.complex128]
    tau: NDArray[np.complex128]
    n_flux: NDArray[np.int64]
    w0_abs: NDArray[np.float64]
    report: dict[str, Any]

    def by_n_flux(self, n_max: int) -> list[int]:
        """Number of vacua with N_flux = 1, 2, ..., n_max."""
        return np.bincount(self.n_flux, minlength=n_max + 1)[1:].tolist()


def tadpole(fluxes: NDArray[np.int64]) -> NDArray[np.int64]:
    """N_flux = f^T Sigma h of rows [f | h]."""
    f1, f2, h1, h2 = np.split(np.asarray(fluxes, dtype=np.int64), 4, axis=1)
    return (f1 * h2 - f2 * h1).sum(axis=1)


def accept(
    geometry: Geometry, region: Region, fluxes: Any, result: Any, cp: bool
) -> tuple[Any, Any, Any, Any]:
    """Converged solutions in the region with their CP images, folded and deduplicated."""
    inside = result.converged & region.contains(geometry, result.moduli, result.tau)
    f, z, tau, w0 = (np.asarray(x)[inside] for x in (fluxes, result.moduli, result.tau, result.w0_abs))
    if cp:
        images = domain.complex_conjugate(geometry, f, z, tau)
        f, z, tau = (np.concatenate(pair) for pair in zip((f, z, tau), images, strict=True))
        w0 = np.concatenate((w0, w0))
    f, z, tau = domain.canonical(geometry, f, z, tau)
    inside = region.contains(geometry, z, tau)
    f, z, tau, w0 = f[inside], z[inside], tau[inside], w0[inside]
    keep = domain.deduplicate(f, z, tau)
    return f[keep], z[keep], tau[keep], w0[keep]


def search(
    geometry: Geometry,
    region: Region,
    *,
    leaf: float = 0.1,
    cp: bool = True,
    few: float = completion.FEW,
    block: int = 256,
    tree: cover.Cover | None = None,
    budget: int | None = None,
) -> Found:
    """Find all vacua of a region; ``tree`` is a cover to use, ``budget`` splits every block into many
    calls."""
    clock = time.process_time
    report: dict[str, Any] = dict.fromkeys(("cover_s", "union_s", "blocks_s", "newton_s", "fold_s"), 0.0)
    then = clock()
    tree = cover.build(geometry, region, leaf=leaf, cp=cp) if tree is None else tree
    report["cover_s"], then = clock() - then, clock()
    every_h = lattice.union_of_h(tree, region)
    report["union_s"] = clock() - then
    report |= {"nodes": len(tree.children), "h": len(every_h), "starts": 0, "converged": 0}
    order = np.random.default_rng(0).permutation(len(every_h))
    counters: dict[str, int] = dict.fromkeys(completion.COUNTERS, 0)
    parts = []
    for first in range(0, len(order), block):
        todo: list[completion.Unfinished | None] = [None]
        while todo:
            then = clock()
            rest = todo.pop()
            some = every_h[order[first : first + block]]
            part = completion.complete_block(
                tree, geometry, region, some, few=few, unfinished=rest, budget=budget
            )
            report["blocks_s"], then = report["blocks_s"] + clock() - then, clock()
            if part.unfinished is not None:
                todo += completion.split_unfinished(part.unfinished, 2)
            counters = {name: counters[name] + part.counters[name] for name in counters}
            result = newton_numba.solve(geometry, part.fluxes, part.moduli, part.tau)
            report["newton_s"], then = report["newton_s"] + clock() - then, clock()
            report["starts"] += len(part.fluxes)
            report["converged"] += int(result.converged.sum())
            parts.append(accept(geometry, region, part.fluxes, result, cp))
            report["fold_s"] += clock() - then
    then = clock()
    f, z, tau, w0 = (np.concatenate(column) for column in zip(*parts, strict=True))
    keep = domain.deduplicate(f, z, tau)
    keep = keep[domain.canonical_order(f[keep], z[keep])]
    report["fold_s"] += clock() - then
    return Found(f[keep], z[keep], tau[keep], tadpole(f[keep]), w0[keep], report | counters)
