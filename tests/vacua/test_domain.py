"""Folding into the fundamental domain: invariances as properties, edges one by one."""

import time
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from matforge.vacua import domain, load_geometry
from matforge.vacua import periods as sg
from matforge.vacua.domain import EDGE

NAMES = ("octic", "p11169", "ks-h12-3b")
GEOMETRIES = {name: load_geometry(name) for name in NAMES}
MODELS = {name: sg.model_of(geometry) for name, geometry in GEOMETRIES.items()}
RHO = complex(0.5, np.sqrt(0.75))

EDGES = [k + d for k in (-1.5, -0.5, 0.0, 0.5, 1.5) for d in (-1e-9, -1e-15, 0.0, 1e-15, 1e-9)]
axions = st.one_of(st.sampled_from(EDGES), st.floats(-3, 3))
quanta = st.integers(-20, 20)
taus = st.one_of(
    st.builds(complex, axions, st.floats(0.05, 10)),
    st.floats(0.05, 3.09).map(
        lambda angle: complex(np.cos(angle), np.sin(angle))
    ),  # on the arc, and below it
    st.sampled_from([1j, RHO, RHO - 1, RHO + 3, 1j - 2, -1 / (1j + 3)]),
)


@st.composite
def rows(draw, name=None):
    """One row: a geometry's name, fluxes (1, 4h+4), z (1, h), tau (1,)."""
    name = name or draw(st.sampled_from(NAMES))
    h = GEOMETRIES[name].h12
    fluxes = draw(st.lists(quanta, min_size=4 * h + 4, max_size=4 * h + 4))
    t = np.array(draw(st.lists(st.floats(1.8, 4), min_size=h, max_size=h)))
    re = np.array(draw(st.lists(axions, min_size=h, max_size=h)))
    z = re + 1j * np.linalg.solve(GEOMETRIES[name].cone_coordinates, t)
    tau = draw(taus)
    # a rotation at a fixed point moves a tau that lies near it, but not on it
    folded = domain.fold_tau(np.zeros((1, 4), int), np.array([tau]))[1][0]
    assume(not any(1e-12 < abs(folded - point) < 1e-5 for point in (1j, RHO)))
    return name, np.array([fluxes]), z[None, :], np.array([tau])


def sizes(model, z, tau, fluxes):
    """``|W_0|``, and the size of what cancels in it."""
    f, h = jnp.split(jnp.abs(fluxes), 2)
    largest = jnp.sum(f + jnp.abs(tau) * h) * jnp.abs(sg.periods(model, z)).max()
    return jnp.abs(sg.w0(model, z, tau, fluxes)), jnp.exp(sg.kahler_potential(model, z, tau) / 2) * largest


def same_superpotential(name, before, after):
    (w0, scale), (other, other_scale) = (
        (float(x[0]) for x in sg.batched(sizes)(MODELS[name], z, tau, fluxes))
        for fluxes, z, tau in (before, after)
    )
    assert abs(w0 - other) <= 1e-10 * max(scale, other_scale) + 1e-12


def in_domain(geometry, fluxes, z, tau):
    slack = 1e-9
    assert np.all(z.real > -0.5 + EDGE - slack)
    assert np.all(z.real <= 0.5 + EDGE + slack)
    assert np.all((tau.real > -0.5 + EDGE - slack) & (tau.real <= 0.5 + EDGE + slack))
    size = np.abs(tau)
    assert np.all(size >= 1 - EDGE - slack)
    assert np.all((size > 1 + EDGE) | (tau.real >= -EDGE))
    for row in fluxes:
        nonzero = row[row != 0]
        assert not len(nonzero) or nonzero[0] > 0
    assert fluxes.dtype == np.int64


@settings(deadline=None)  # the first example compiles
@given(rows())
@example(("octic", np.ones((1, 8), int), np.array([[-1.5 + 2j]]), np.array([0.3 + 2j])))
def test_folding_keeps_the_superpotential_and_the_tadpole(row):
    name, *before = row
    after = domain.canonical(GEOMETRIES[name], *before)
    in_domain(GEOMETRIES[name], *after)
    assert sg.tadpole(after[0]) == sg.tadpole(before[0])
    same_superpotential(name, before, after)


@given(rows())
def test_folding_twice_changes_nothing(row):
    name, *before = row
    once = domain.canonical(GEOMETRIES[name], *before)
    twice = domain.canonical(GEOMETRIES[name], *once)
    for a, b in zip(once, twice, strict=True):
        assert np.array_equal(a, b)


@settings(deadline=None)  # the first example compiles
@given(rows(), st.integers(-2, 2), st.integers(0, 3), st.booleans(), st.booleans())
def test_equivalent_vacua_fold_onto_the_same_fluxes(row, shift, i, invert, flip):
    name, fluxes, z, tau = row
    geometry = GEOMETRIES[name]
    wanted = domain.canonical(geometry, fluxes, z, tau)
    half, i = fluxes.shape[1] // 2, i % geometry.h12
    sigma = sg.sigma_matrix(geometry.h12)
    step = geometry.monodromy(i) if shift > 0 else -sigma @ geometry.monodromy(i).T @ sigma  # its inverse
    t = np.linalg.matrix_power(step, abs(shift))
    other = np.hstack([fluxes[:, :half] @ t.T, fluxes[:, half:] @ t.T])
    moved = z + shift * np.eye(geometry.h12)[i]
    same_superpotential(name, (fluxes, z, tau), (other, moved, tau))
    s = tau
    if invert:
        other, s = np.hstack([other[:, half:], -other[:, :half]]), -1 / tau
    other, s = np.hstack([other[:, :half] + shift * other[:, half:], other[:, half:]]), s + shift
    found = domain.canonical(geometry, -other if flip else other, moved, s)
    assert np.array_equal(found[0], wanted[0])
    assert np.abs(found[1] - wanted[1]).max() < 1e-9
    assert abs(found[2] - wanted[2]).max() < 1e-9 or wanted[2][0] in (1j, RHO)


@settings(deadline=None)  # the first example compiles
@given(rows())
def test_the_cp_image_has_the_conjugate_superpotential(row):
    name, *before = row
    geometry = GEOMETRIES[name]
    image = domain.complex_conjugate(geometry, *before)
    assert sg.tadpole(image[0]) == sg.tadpole(before[0])
    same_superpotential(name, before, image)
    back = domain.complex_conjugate(geometry, *image)
    for a, b in zip(before, back, strict=True):
        assert np.array_equal(a, b)


def test_a_vacuum_on_the_edge_is_folded_once():
    octic = GEOMETRIES["octic"]
    fluxes = np.tile([1, 2, 3, 4, 0, 1, 0, 2], (6, 1))
    z = np.array([[x + 2j] for x in (-0.5, -0.5 + 1e-9, -0.5 - 1e-9, 0.5 + 1e-9, -1.5, -0.5 + 1e-5)])
    folded, moduli, _ = domain.canonical(octic, fluxes, z, np.full(6, 3j))
    assert moduli.real[:, 0] == pytest.approx([0.5, 0.5, 0.5, 0.5, 0.5, -0.5], abs=2e-5)
    assert np.array_equal(folded[0], folded[1])
    assert np.array_equal(folded[0], folded[2])
    assert np.array_equal(folded[3], folded[5])
    assert not np.array_equal(folded[0], folded[4])


def test_the_left_half_of_the_arc_is_identified_with_the_right_half():
    fluxes = np.array([[1, 2, 3, 4, 0, 1, 0, 2]] * 3)
    tau = np.exp(1j * np.array([1.2, np.pi - 1.2, np.pi - 1.2])) * np.array([1, 1 - 1e-10, 1 + 1e-10])
    folded, found = domain.fold_tau(fluxes, tau)
    assert np.abs(found - np.exp(1.2j)).max() < 1e-9
    assert folded.tolist() == [fluxes[0].tolist(), *[[0, 1, 0, 2, -1, -2, -3, -4]] * 2]


def test_at_the_fixed_points_equivalent_fluxes_become_one():
    octic = GEOMETRIES["octic"]
    f, h = np.array([3, -1, 0, 2]), np.array([1, 0, 5, -2])
    z = np.full((3, 1), 0.1 + 2j)
    orbit = np.array([np.r_[f, h], np.r_[h, -f], np.r_[-f, -h]])
    assert len(np.unique(domain.canonical(octic, orbit, z, np.full(3, 1j))[0], axis=0)) == 1
    orbit = np.array([np.r_[f, h], np.r_[h - f, -f], np.r_[h, h - f]])
    for tau in (RHO, RHO + 1e-10, RHO - 1e-10j):
        assert len(np.unique(domain.canonical(octic, orbit, z, np.full(3, tau))[0], axis=0)) == 1


def test_a_tau_near_the_real_axis_is_folded_all_the_way():
    fluxes, tau = np.array([[1, 0, 0, 0, 0, 0, 1, 0]]), np.array([0.3819660113 + 1e-6j])
    folded, found = domain.fold_tau(fluxes, tau)
    in_domain(None, domain.sign_rule(folded), np.zeros((1, 1)), found)


def test_rows_that_are_not_finite_or_not_in_the_half_plane_are_left_alone():
    octic = GEOMETRIES["octic"]
    fluxes = np.ones((3, 8), int)
    z = np.array([[np.nan + 1j], [0.2 + 1j], [0.2 + 1j]])
    folded, _, tau = domain.canonical(octic, fluxes, z, np.array([2j, np.nan, 0.1 - 0.5j]))
    assert np.array_equal(folded, fluxes)
    assert tau[2] == 0.1 - 0.5j


def test_the_compiled_fold_agrees_with_numpy():
    rng = np.random.default_rng(3)
    geometry = GEOMETRIES["p11169"]
    fluxes = rng.integers(-30, 30, (500, 12))
    z = rng.uniform(-2, 2, (500, 2)) + 1j * rng.uniform(2, 5, (500, 2))
    tau = rng.uniform(-2, 2, 500) + 1j * rng.uniform(0.05, 3, 500)
    tau[:3] = 1j, RHO, -1 / (RHO + 2)
    compiled = jax.jit(lambda *row: domain.canonical(geometry, *row, xp=jnp))
    for a, b in zip(compiled(fluxes, z, tau), domain.canonical(geometry, fluxes, z, tau), strict=True):
        assert np.allclose(a, b, rtol=0, atol=1e-12)
        assert a.dtype == b.dtype


@pytest.mark.parametrize("name", ["octic", "p11169", "ks-h12-2b", "ks-h12-3b", "ks-h12-4b"])
def test_conjugation_maps_periods_to_conjugate_periods(name):
    geometry = load_geometry(name)
    s, sigma = domain.conjugation_matrix(geometry), sg.sigma_matrix(geometry.h12)
    assert np.array_equal(s.T @ sigma @ s, -sigma)
    assert np.array_equal(s @ s, np.eye(len(s), dtype=int))
    y = np.linalg.solve(geometry.cone_coordinates, np.full(geometry.h12, 2.0))
    z = np.linspace(-0.3, 0.4, geometry.h12) + 1j * y
    points = np.vstack([z, -z.conj(), *[z] * geometry.h12])  # the shape that other tests compile for
    pi, image = np.asarray(sg.batched(sg.periods)(sg.model_of(geometry), points))[:2]
    assert np.abs(image - s @ pi.conj()).max() < 1e-13 * np.abs(pi).max()


def test_images_of_a_vacuum_are_vacua():
    geometry, model = GEOMETRIES["p11169"], MODELS["p11169"]
    z, tau = np.array([[0.7 + 2.2j, -1.4 + 3.1j]]), np.array([1.3 + 0.4j])
    h = np.array([1.0, -2, 0, 3, 1, -1]) * 2**20  # so large that rounding f to integers does not matter
    f = np.asarray(sg.batched(sg.complete)(model, z, tau, h[None])[0])
    fluxes = np.rint(np.concatenate([f, h]))[None].astype(int)
    images = [(fluxes, z, tau), domain.complex_conjugate(geometry, fluxes, z, tau)]
    images += [domain.canonical(geometry, *image) for image in images]
    f, z, tau = (np.concatenate(column) for column in zip(*images, strict=True))

    def relative(model, *at):
        return jnp.abs(sg.covariant_derivatives(model, *at)).max() / jnp.abs(sg.superpotential(model, *at))

    assert sg.batched(relative)(model, z, tau, f).max() < 1e-4
    assert len({tuple(row[0][0]) for row in images}) == 4


@st.composite
def found_vacua(draw):
    """Copies of a few vacua, some with equal fluxes, in any order; and how many are distinct."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, copies = draw(st.integers(1, 8)), draw(st.integers(1, 4))
    fluxes = rng.integers(-2, 3, (n, 8))
    if n > 2:
        fluxes[1] = fluxes[0]  # one flux vector with two vacua
    z = rng.integers(-4, 5, (n, 1)) / 8 + 1j * (2 + np.arange(n) / 10)[:, None]
    tau = rng.uniform(-0.5, 0.5, n) + 2j
    pick = rng.permutation(np.repeat(np.arange(n), copies))
    z = z[pick] + 1e-11 * (rng.normal(size=(len(pick), 1)) + 1j * rng.normal(size=(len(pick), 1)))
    return fluxes[pick], z, tau[pick] + 1e-11 * rng.normal(size=len(pick)), n


def bits(fluxes, z, tau):
    return [(f.tobytes(), a.tobytes(), b.tobytes()) for f, a, b in zip(fluxes, z, tau, strict=True)]


@given(found_vacua(), st.integers(0, 100), st.randoms(use_true_random=False))
def test_deduplication_depends_neither_on_the_order_nor_on_the_batches(vacua, cut, random):
    *arrays, n = vacua
    kept = domain.deduplicate(*arrays)
    assert len(kept) == n
    wanted = bits(*(a[kept] for a in arrays))
    order = list(range(len(arrays[0])))
    random.shuffle(order)
    shuffled = [a[order] for a in arrays]
    again = domain.deduplicate(*shuffled)
    assert bits(*(a[again] for a in shuffled)) == wanted
    cut %= len(order) + 1
    parts = [[a[s] for a in shuffled] for s in (slice(0, cut), slice(cut, None))]
    merged = [
        np.concatenate(columns)
        for columns in zip(*([a[domain.deduplicate(*part)] for a in part] for part in parts), strict=True)
    ]
    again = domain.deduplicate(*merged)
    assert bits(*(a[again] for a in merged)) == wanted


@given(found_vacua(), st.randoms(use_true_random=False))
def test_the_canonical_order_does_not_feel_the_last_digits(vacua, random):
    fluxes, z, tau, n = vacua
    kept = domain.deduplicate(fluxes, z, tau)
    fluxes, z = fluxes[kept], z[kept]
    order = list(range(n))
    random.shuffle(order)
    jitter = z[order] * (1 + 1e-13)
    first, second = domain.canonical_order(fluxes, z), domain.canonical_order(fluxes[order], jitter)
    assert np.array_equal(fluxes[first], fluxes[order][second])
    assert np.abs(z[first] - jitter[second]).max() < 1e-9
    n_flux = sg.tadpole(fluxes[first])
    assert np.all(np.diff(n_flux) >= 0)
    assert np.array_equal(first, domain.canonical_order(fluxes, z, sg.tadpole(fluxes)))
    for a, b in pairwise(first):
        key = [(int(sg.tadpole(fluxes[k])), *fluxes[k].tolist()) for k in (a, b)]
        assert key[0] <= key[1]


def test_wide_fluxes_are_told_apart():
    fluxes = np.zeros((4, 8), dtype=np.int64)
    fluxes[:, 0], fluxes[:, 7] = [2**40, 2**40, -(2**40), 0], [2**40, 2**40 + 1, 0, 0]
    fluxes[:, 3] = [-(2**45), -(2**45), 2**45, 0]
    z = np.full((4, 1), 2j)
    assert domain.deduplicate(fluxes, z, z[:, 0]).tolist() == [2, 3, 0, 1]


def test_nothing_in_nothing_out():
    empty = np.zeros((0, 12), int), np.zeros((0, 2), complex), np.zeros(0, complex)
    assert [len(a) for a in domain.canonical(GEOMETRIES["p11169"], *empty)] == [0, 0, 0]
    assert len(domain.deduplicate(*empty)) == 0
    assert len(domain.canonical_order(*empty[:2])) == 0


@pytest.mark.slow
def test_three_hundred_thousand_rows_take_two_seconds():
    rng = np.random.default_rng(1)
    fluxes = np.tile(rng.integers(-60, 60, (75000, 12)), (4, 1))
    z = np.tile(rng.uniform(-1.5, 1.5, (75000, 2)) + 1j * rng.uniform(2, 5, (75000, 2)), (4, 1))
    tau = np.tile(rng.uniform(-1, 1, 75000) + 1j * rng.uniform(0.3, 10, 75000), 4)
    z = z + 1e-11 * rng.normal(size=z.shape)
    start = time.process_time()
    folded = domain.canonical(GEOMETRIES["p11169"], fluxes, z, tau)
    kept = domain.deduplicate(*folded)
    spent = time.process_time() - start
    assert len(kept) == 75000
    assert spent < 4  # 1.5 s on an idle core; room for a busy one
