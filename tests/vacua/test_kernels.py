"""The compiled kernels against the reference in JAX, and the bounds of the cover at random points."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matforge.vacua import completion, cover, kernels, lattice, load_geometry, periods
from matforge.vacua.region import Region

NAMES = ["octic", "p11169", "ks-h12-2b", "ks-h12-3b"]


def random_point(name: str, rng: np.random.Generator) -> np.ndarray:
    """A point of the cone, well inside convergence."""
    geometry = load_geometry(name)
    h = geometry.h12
    t = rng.uniform(2.0, 4.0, h)
    return rng.uniform(-0.5, 0.5, h) + 1j * np.linalg.solve(geometry.cone_coordinates, t)


@pytest.mark.parametrize("name", NAMES)
def test_compiled_matrices_agree_with_jax(name: str) -> None:
    geometry, rng = load_geometry(name), np.random.default_rng(3)
    model = periods.model_of(geometry)
    for _ in range(5):
        z = random_point(name, rng)
        for compiled, reference in (
            (kernels.periods, periods.periods),
            (kernels.gauge_kinetic, periods.gauge_kinetic_matrix),
            (kernels.isd_matrix, periods.isd_matrix),
        ):
            ours, theirs = np.asarray(compiled(geometry, z)), np.asarray(reference(model, z))
            assert np.abs(ours - theirs).max() < 1e-10 * np.abs(theirs).max()


@pytest.mark.parametrize("name", ["octic", "p11169"])
def test_the_bounds_of_every_box_hold_at_random_points(name: str) -> None:
    geometry, rng = load_geometry(name), np.random.default_rng(5)
    tree = cover.build(geometry, Region.parse(geometry, "2:5", ":10", 4), leaf=0.2)
    h = geometry.h12
    d, n = 2 * h, 2 * h + 2
    sigma = np.block([[np.zeros((h + 1, h + 1)), np.eye(h + 1)], [-np.eye(h + 1), np.zeros((h + 1, h + 1))]])
    for row in rng.choice(len(tree.children), size=min(60, len(tree.children)), replace=False):
        box = tree.boxes[row]
        centre, half, eta, q = box[:d], box[d : 2 * d], box[2 * d], box[2 * d + 1]
        lower = np.linalg.inv(tree.frames[row])  # L^-1: frames[j, i] = (L^T)_ij = L_ji
        columns = tree.columns[row].reshape(n, n, -1)[:, :, 1:]
        for _ in range(10):
            delta = rng.uniform(-1, 1, d)
            at = centre + half * delta
            z = at[:h] + 1j * np.linalg.solve(geometry.cone_coordinates, np.exp(at[h:]))
            a = sigma.T @ kernels.isd_matrix(geometry, z) @ sigma
            change = lower @ a @ lower.T - np.eye(n)
            pairs = [delta[i] * delta[j] for i in range(d) for j in range(i + 1, d)]
            phi = np.concatenate([delta, 2 * delta**2 - 1, pairs, [1.0]])
            rest = change - np.einsum("jim,m->ij", columns, phi)
            assert np.linalg.norm(change, 2) <= eta
            assert np.linalg.norm(rest, 2) <= q


def test_the_union_of_h_holds_every_short_vector() -> None:
    geometry = load_geometry("octic")
    region = Region.parse(geometry, "2:7", ":30", 3)
    tree = cover.build(geometry, region)
    known = {tuple(h) for h in lattice.union_of_h(tree, region).tolist()}
    rng = np.random.default_rng(9)
    sigma = np.block([[np.zeros((2, 2)), np.eye(2)], [-np.eye(2), np.zeros((2, 2))]])
    found = 0
    for h in np.ndindex(9, 9, 9, 9):
        vector = np.array(h) - 4
        if not vector.any() or vector[np.flatnonzero(vector)[0]] < 0:
            continue
        z = rng.uniform(-0.5, 0.5, 1) + 1j * np.exp(rng.uniform(np.log(2), np.log(7), 1))
        a = sigma.T @ kernels.isd_matrix(geometry, z) @ sigma
        # N = s h^T A h is a multiple of gcd(h) for some s of the region
        step = np.gcd.reduce(vector)
        ratios = np.arange(step, 4, step) / (vector @ a @ vector)
        if ((ratios >= np.sqrt(0.75)) & (ratios <= 30)).any():
            found += 1
            assert tuple(vector) in known
    assert found > 10


@settings(max_examples=15, deadline=None)
@given(budget=st.integers(50, 5000), pieces=st.integers(1, 4))
def test_a_block_finds_the_same_starts_whatever_its_budget(budget: int, pieces: int) -> None:
    geometry = load_geometry("octic")
    region = Region.parse(geometry, "2:7", ":30", 3)
    tree = cover.build(geometry, region)
    h = lattice.union_of_h(tree, region)[:40]
    whole = completion.complete_block(tree, geometry, region, h)
    parts, todo = [], [None]
    while todo:
        found = completion.complete_block(tree, geometry, region, h, budget=budget, unfinished=todo.pop())
        parts.append(found)
        if found.unfinished is not None:
            todo += completion.split_unfinished(found.unfinished, pieces)
    rows = np.concatenate(
        [np.c_[p.fluxes, p.moduli.real, p.moduli.imag, p.tau.real, p.tau.imag] for p in parts]
    )
    wanted = np.c_[whole.fluxes, whole.moduli.real, whole.moduli.imag, whole.tau.real, whole.tau.imag]
    assert np.array_equal(np.unique(rows, axis=0), np.unique(wanted, axis=0))
    assert len(rows) == len(wanted)
