"""Nothing is missed: the same set from other boxes, other regions, other roads; and against JAX.

The fast tests take N_flux <= 6 of Dataset B's region (134 vacua); the slow ones take all of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from matforge.vacua import domain, load_geometry, newton, table
from matforge.vacua.campaign import Tuning, search
from matforge.vacua.region import Region

GEOMETRY = load_geometry("p11169")


def find(base: Path, im_z: str, n_max: int, **options: Any) -> pa.Table:
    """The vacua of a region of p11169."""
    return search(GEOMETRY, Region.parse(GEOMETRY, im_z, ":10", n_max), basedir=base, workers=2, **options)


def as_set(vacua: pa.Table) -> set[tuple[Any, ...]]:
    """Vacua as (flux, z to six digits), by which they are told apart."""
    fluxes, moduli, _ = table.arrays(vacua)
    rounded = np.round(np.concatenate([moduli.real, moduli.imag], axis=1), 6) + 0.0
    return {(*f, *z) for f, z in zip(fluxes.tolist(), rounded.tolist(), strict=True)}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """N_flux <= 6."""
    return find(tmp_path_factory.mktemp("small"), "2:5", 6)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """N_flux <= 10: 6,097."""
    return find(tmp_path_factory.mktemp("full"), "2:5", 10)


def check_other_boxes(vacua: pa.Table, base: Path, n_max: int, leaf: float) -> None:
    assert as_set(find(base, "2:5", n_max, tuning=Tuning(leaf=leaf))) == as_set(vacua)


def check_larger_region(vacua: pa.Table, base: Path, n_max: int) -> None:
    larger = find(base, "1.95:5.2", n_max)
    _, moduli, tau = table.arrays(larger)
    inside = Region.parse(GEOMETRY, "2:5", ":10", n_max).contains(GEOMETRY, moduli, tau)
    assert larger.num_rows > vacua.num_rows
    assert as_set(larger.filter(pa.array(inside))) == as_set(vacua)


def check_conjugation(vacua: pa.Table) -> None:
    images = domain.complex_conjugate(GEOMETRY, *table.arrays(vacua))
    fluxes, moduli, tau = domain.canonical(GEOMETRY, *images)
    assert as_set(table.unpolished(fluxes, moduli, tau)) == as_set(vacua)


def test_other_boxes_give_the_same_vacua(small: pa.Table, tmp_path: Path) -> None:
    assert small.num_rows == 134
    check_other_boxes(small, tmp_path, 6, 0.16)


def test_a_larger_region_restricted_to_this_one_gives_the_same_vacua(small: pa.Table, tmp_path: Path) -> None:
    check_larger_region(small, tmp_path, 6)


def test_the_set_is_closed_under_complex_conjugation(small: pa.Table) -> None:
    check_conjugation(small)


def test_both_newton_solvers_agree_on_every_vacuum_from_perturbed_starts(small: pa.Table) -> None:
    fluxes, moduli, tau = table.arrays(small)
    rng = np.random.default_rng(7)
    moduli = moduli + 0.02 * (rng.normal(size=moduli.shape) + 1j * rng.normal(size=moduli.shape))
    ours = newton.solve(GEOMETRY, fluxes, moduli, tau, backend="numba")
    reference = newton.solve(GEOMETRY, fluxes, moduli, tau, backend="jax")
    assert np.array_equal(ours.converged, reference.converged)
    good = ours.converged
    assert good.sum() > 0.9 * len(good)
    assert np.abs(ours.moduli - reference.moduli)[good].max() < 1e-8
    assert np.allclose(ours.w0_abs[good], reference.w0_abs[good], rtol=1e-9)
    assert reference.residual[good].max() < 1e-12


def test_a_random_search_finds_nothing_outside_the_set(small: pa.Table) -> None:
    """Random h and f near the image of random points, as samplers draw them; everything found is known."""
    from matforge.vacua import kernels

    known = as_set(small)
    region = Region.parse(GEOMETRY, "2:5", ":10", 6)
    rng = np.random.default_rng(11)
    every_h = np.unique(table.arrays(small)[0][:, 6:], axis=0)
    rows: list[Any] = []
    for _ in range(3000):
        h = every_h[rng.integers(len(every_h))]
        z = rng.uniform(-0.5, 0.5, 2) + 1j * rng.uniform(2, 5, 2)
        f = rng.uniform(-0.5, 0.5) * h + rng.uniform(0.87, 4) * (kernels.isd_matrix(GEOMETRY, z) @ SIGMA @ h)
        rows.append((np.concatenate([np.rint(f), h]).astype(int), z, 1.5j))
    fluxes, starts, tau = (np.array(column) for column in zip(*rows, strict=True))
    n_flux = table.tadpole(fluxes)
    keep = (n_flux >= 1) & (n_flux <= 6)
    solved = newton.solve(GEOMETRY, fluxes[keep], starts[keep], tau[keep])
    good = solved.converged
    found = domain.canonical(GEOMETRY, fluxes[keep][good], solved.moduli[good], solved.tau[good])
    inside = region.contains(GEOMETRY, found[1], found[2])
    drawn = as_set(table.unpolished(*(column[inside] for column in found)))
    assert len(drawn) > 20
    assert drawn <= known


SIGMA = np.block([[np.zeros((3, 3)), np.eye(3)], [-np.eye(3), np.zeros((3, 3))]])


@pytest.mark.slow
@pytest.mark.parametrize("leaf", [0.07, 0.15])
def test_other_boxes_give_the_same_6097_vacua(full: pa.Table, tmp_path: Path, leaf: float) -> None:
    assert full.num_rows == 6097
    check_other_boxes(full, tmp_path, 10, leaf)


@pytest.mark.slow
def test_a_larger_region_restricted_to_this_one_gives_the_same_6097_vacua(
    full: pa.Table, tmp_path: Path
) -> None:
    check_larger_region(full, tmp_path, 10)


@pytest.mark.slow
def test_the_whole_set_is_closed_under_complex_conjugation(full: pa.Table) -> None:
    check_conjugation(full)


@pytest.mark.slow
def test_the_search_without_conjugation_gives_the_same_6097_vacua(full: pa.Table, tmp_path: Path) -> None:
    assert as_set(find(tmp_path, "2:5", 10, tuning=Tuning(conjugation=False))) == as_set(full)
