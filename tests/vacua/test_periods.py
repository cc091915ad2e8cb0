"""Special geometry in JAX against published values, other formulas, and automatic differentiation."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from matforge.vacua import list_geometries, load_geometry
from matforge.vacua import periods as sg

DATA = Path(__file__).parent / "data"
P11169 = load_geometry("p11169")
MODEL = sg.model_of(P11169)
POINTS = json.loads((DATA / "p11169_points.json").read_text())
Z = jnp.array([0.13 + 2.3j, -0.41 + 3.1j])
TAU = jnp.asarray(0.2 + 1.7j)
FLUXES = jnp.array([3, -2, 1, 4, 0, 5, -1, 2, 7, 0, -3, 1])


def as_complex(pairs):
    values = np.array(pairs, dtype=float)
    return values[..., 0] + 1j * values[..., 1]


def distance(found, wanted):
    """Largest difference over the largest entry."""
    return np.abs(np.asarray(found) - wanted).max() / np.abs(wanted).max()


def golden(key):
    """Values with integer invariants where the file has them."""
    return as_complex([{**p, **p["with_GW_exponentials_use_gvs_False"]}[key] for p in POINTS["points"]])


GOLDEN_Z = as_complex([p["moduli"] for p in POINTS["points"]])
GOLDEN_TAU = as_complex([p["tau"] for p in POINTS["points"]])
GOLDEN_FLUXES = np.array([p["flux_f_then_h"] for p in POINTS["points"]])


@pytest.mark.parametrize(
    ("key", "function"),
    [
        ("prepotential", sg.prepotential),
        ("period_vector", sg.periods),
        ("mirror_volume", sg.mirror_volume),
        ("gauge_kinetic_N", sg.gauge_kinetic_matrix),
        ("ISD_matrix_M", sg.isd_matrix),
        ("kahler_potential_cs_only", sg.kahler_potential_cs),
    ],
)
def test_functions_of_z_agree_with_the_reference_points(key, function):
    found = sg.batched(function)(MODEL, GOLDEN_Z)
    for row, wanted in zip(found, golden(key), strict=True):
        assert distance(row, wanted) < 1e-10


@pytest.mark.parametrize(
    ("key", "function"),
    [
        ("W", sg.superpotential),
        ("DW", sg.covariant_derivatives),
        ("V_noscale", sg.scalar_potential),
        ("W0_gauge_invariant_sqrt2overpi_expK2", sg.w0),
    ],
)
def test_functions_of_the_fluxes_agree_with_the_reference_points(key, function):
    found = sg.batched(function)(MODEL, GOLDEN_Z, GOLDEN_TAU, GOLDEN_FLUXES)
    for row, wanted in zip(found, golden(key), strict=True):
        assert distance(row, wanted) < 1e-10


def test_total_kahler_potential_and_metric_agree_with_the_reference_points():
    found = sg.batched(sg.kahler_potential)(MODEL, GOLDEN_Z, GOLDEN_TAU)
    assert distance(found, golden("kahler_potential_total")) < 1e-10
    found = sg.batched(sg.kahler_metric)(MODEL, GOLDEN_Z, GOLDEN_TAU)
    for row, wanted in zip(found, golden("kahler_metric_z1z2tau"), strict=True):
        assert distance(row, wanted) < 1e-10


def test_sigma_and_tadpole_agree_with_the_reference_points():
    assert sg.sigma_matrix(2).tolist() == POINTS["sigma"]
    assert sg.tadpole(GOLDEN_FLUXES).tolist() == [p["N_flux"] for p in POINTS["points"]]
    sigma = sg.sigma_matrix(2)
    assert sg.tadpole(GOLDEN_FLUXES[0]) == GOLDEN_FLUXES[0, :6] @ sigma @ GOLDEN_FLUXES[0, 6:]


def test_the_tadpole_is_exact_beyond_53_bits_and_refuses_floats():
    big = np.zeros(12, dtype=np.int64)
    big[0], big[9] = 2**31 + 1, 2**31 - 1
    assert sg.tadpole(big) == 2**62 - 1
    with pytest.raises(TypeError, match="integers only"):
        sg.tadpole(np.ones(12))


def test_instantons_agree_with_forty_digits():
    for point in json.loads((DATA / "p11169_instantons.json").read_text())["points"]:
        value, gradient, _, _ = sg.instantons(MODEL, jnp.asarray(as_complex(point["moduli"])))
        for found, key in ((value, "F_inst"), (gradient[0], "dF_inst_dz1"), (gradient[1], "dF_inst_dz2")):
            wanted = complex(*map(float, point[key]))
            assert abs(found - wanted) <= 1e-13 * abs(wanted)


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_polylogarithms_are_exact_to_rounding(order):
    angles = np.linspace(0.1, 6.2, 7)
    w = np.array([r * np.exp(1j * a) for r in (1e-9, 1e-4, 0.05, 0.2, 0.5) for a in angles])
    found = np.asarray(sg.polylog(order, jnp.asarray(w)))
    with mpmath.workdps(30):
        wanted = np.array([complex(mpmath.polylog(order, complex(x))) for x in w])
    assert (np.abs(found - wanted) / np.abs(wanted)).max() < 1.5e-15


@pytest.mark.parametrize("name", list_geometries())
def test_periods_change_by_the_integer_monodromies(name):
    geometry = load_geometry(name)
    model, h = sg.model_of(geometry), geometry.h12
    y = np.linalg.solve(geometry.cone_coordinates, np.linspace(1.9, 2.4, h))
    z = np.linspace(-0.4, 0.3, h) + 1j * y
    shifted = sg.batched(sg.periods)(model, np.vstack([z, z + np.eye(h)]))
    for i in range(h):
        assert distance(shifted[1 + i], geometry.monodromy(i) @ np.asarray(shifted[0])) < 1e-13


def test_derivatives_of_prepotential_and_periods_agree_with_automatic_differentiation():
    def derivative(function):
        return jax.jacfwd(lambda z: function(MODEL, z), holomorphic=True)

    @jax.jit
    def both(z):
        ours = (*sg.prepotential_derivatives(MODEL, z)[1:], sg.d_periods(MODEL, z), sg.d2_periods(MODEL, z))
        third = derivative(lambda m, z: sg.prepotential_derivatives(m, z)[2])(z)
        pi1, pi2 = derivative(sg.periods)(z).T, derivative(lambda m, z: sg.d_periods(m, z))(z)
        f1 = derivative(sg.prepotential)
        return ours, (f1(z), jax.jacfwd(f1, holomorphic=True)(z), third, pi1, jnp.moveaxis(pi2, 1, 2))

    for ours, theirs in zip(*both(Z), strict=True):
        assert distance(ours, np.asarray(theirs)) < 1e-13


def real_hessian(function, z, tau, *rest, step=2e-3):
    """Second derivatives by (Re z, Re tau, Im z, Im tau), by fourth-order differences of the function's values."""
    start = np.concatenate([z.real, [tau.real], z.imag, [tau.imag]])
    n = len(start)
    nodes, weights = np.array([-2, -1, 1, 2]) * step, np.array([1, -8, 8, -1]) / (12 * step)
    eye = np.eye(n)
    moved = start + np.array(
        [[[[a * eye[i] + b * eye[j] for b in nodes] for a in nodes] for j in range(n)] for i in range(n)]
    )
    point = (moved[..., : n // 2] + 1j * moved[..., n // 2 :]).reshape(-1, n // 2)
    fixed = [np.broadcast_to(x, (len(point), *np.shape(x))) for x in rest]
    values = sg.batched(function)(MODEL, point[:, :-1], point[:, -1], *fixed)
    return np.einsum("ijab,a,b->ij", np.asarray(values).reshape(n, n, 4, 4), weights, weights)


def test_the_metric_is_the_mixed_second_derivative_of_the_kahler_potential():
    hessian = real_hessian(sg.kahler_potential, Z, TAU)
    xx, xy, yx, yy = hessian[:3, :3], hessian[:3, 3:], hessian[3:, :3], hessian[3:, 3:]
    mixed = (xx + yy + 1j * (xy - yx)) / 4
    assert distance(sg.kahler_metric(MODEL, Z, TAU), mixed) < 1e-7


def test_the_gauge_kinetic_matrix_meets_its_definition():
    n = np.asarray(sg.gauge_kinetic_matrix(MODEL, Z))
    pi, d_pi = np.asarray(sg.periods(MODEL, Z)), np.asarray(sg.d_periods(MODEL, Z))
    bra = pi.conj() @ sg.sigma_matrix(2)
    k_i = -(d_pi @ bra) / (pi @ bra)  # derivative of -log(-i Pi^dagger Sigma Pi)
    covariant = d_pi + k_i[:, None] * pi
    assert distance(n, n.T) < 1e-14
    assert distance(n @ pi[3:], pi[:3]) < 1e-12
    assert distance(covariant[:, 3:].conj() @ n, covariant[:, :3].conj()) < 1e-12
    assert np.linalg.eigvalsh(n.imag).max() < 0


def test_isd_matrices_are_symplectic_and_positive():
    m, j, a = (np.asarray(f(MODEL, Z)) for f in (sg.isd_matrix, sg.isd_completion_matrix, sg.dual_isd_matrix))
    sigma = sg.sigma_matrix(2)
    assert np.array_equal(m, m.T)
    assert np.linalg.eigvalsh(m).min() > 0
    assert distance(m @ sigma @ m, sigma) < 1e-11
    assert distance(j @ j, -np.eye(6)) < 1e-11
    assert distance(a @ m, np.eye(6)) < 1e-11
    assert np.linalg.det(a) == pytest.approx(1, abs=1e-9)


def test_completed_fluxes_solve_the_vacuum_equations():
    h = jnp.array([1.0, -2, 0, 3, 1, -1])
    f = sg.complete(MODEL, Z, TAU, h)
    d_w = sg.covariant_derivatives(MODEL, Z, TAU, jnp.concatenate([f, h]))
    assert np.abs(np.asarray(d_w)).max() < 1e-10
    n_flux = float(f @ sg.sigma_matrix(2) @ h)
    assert n_flux == pytest.approx(float(TAU.imag * (h @ sg.dual_isd_matrix(MODEL, Z) @ h)), rel=1e-12)


def test_the_potential_is_the_norm_of_the_f_terms_and_not_negative():
    d_w = np.asarray(sg.covariant_derivatives(MODEL, Z, TAU, FLUXES))
    inverse = np.linalg.inv(np.asarray(sg.kahler_metric(MODEL, Z, TAU))).T
    wanted = np.exp(sg.kahler_potential(MODEL, Z, TAU)) * np.einsum("ij,i,j", inverse, d_w, d_w.conj())
    assert float(sg.scalar_potential(MODEL, Z, TAU, FLUXES)) == pytest.approx(wanted.real, rel=1e-12)
    assert wanted.real > 0
    assert abs(wanted.imag) < 1e-12 * wanted.real


def vacuum(seed):
    """A point that real fluxes make a vacuum: the mass formula does not ask for integers."""
    rng = np.random.default_rng(seed)
    z = jnp.array(rng.uniform(-0.5, 0.5, 2) + 1j * rng.uniform(2, 4, 2))
    tau = jnp.array(rng.uniform(-0.5, 0.5) + 1j * rng.uniform(1, 4))
    h = jnp.array(rng.integers(-3, 4, 6), dtype=float)
    return z, tau, jnp.concatenate([sg.complete(MODEL, z, tau, h), h])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_masses_agree_with_the_numerical_hessian_of_the_potential(seed):
    z, tau, fluxes = vacuum(seed)
    hessian = real_hessian(sg.scalar_potential, z, tau, fluxes)
    g = np.asarray(sg.kahler_metric(MODEL, z, tau))
    # K_IJbar d phi^I d conj(phi^J) = (1/2) dx^T G dx in x = (Re phi, Im phi)
    kinetic = 2 * np.block([[g.real, g.imag], [-g.imag, g.real]])
    wanted = np.sort(np.linalg.eigvals(np.linalg.solve(kinetic, hessian)).real)
    found = np.asarray(sg.masses_squared(MODEL, z, tau, fluxes))
    assert found == pytest.approx(wanted, rel=1e-5, abs=1e-8 * wanted.max())


@pytest.mark.parametrize("seed", [4, 5])
def test_masses_have_the_no_scale_structure(seed):
    z, tau, fluxes = vacuum(seed)
    scale = float(jnp.exp(sg.kahler_potential(MODEL, z, tau) / 2))
    w = scale * abs(complex(sg.superpotential(MODEL, z, tau, fluxes)))
    matrix = np.asarray(sg.mass_matrix(MODEL, z, tau, fluxes))
    assert distance(matrix, matrix.conj().T) < 1e-14
    singular = np.linalg.svd(matrix[:3, 3:], compute_uv=False) / (2 * w)  # e^(K/2) |Z|, as V_ab = 2 e^K conj(W) Z
    wanted = np.sort(np.concatenate([(singular + w) ** 2, (singular - w) ** 2]))
    found = np.asarray(sg.masses_squared(MODEL, z, tau, fluxes))
    assert found == pytest.approx(wanted, rel=1e-9, abs=1e-11 * wanted.max())
    assert found.min() > -1e-12 * found.max()


def test_a_geometry_without_instantons_is_the_cubic_polynomial():
    from matforge.vacua import Geometry

    data = {**load_geometry("octic").to_dict(), "gv_charges": [], "gv_invariants": []}
    model = sg.model_of(Geometry.from_dict(data))
    z = jnp.array([0.2 + 1.5j])
    wanted = -2 * z[0] ** 3 / 6 + z[0] ** 2 / 2 + 44 / 24 * z[0] + model.k0 / 2
    assert abs(sg.prepotential(model, z) - wanted) < 1e-14


def test_everything_is_computed_in_double_precision():
    assert sg.periods(MODEL, Z).dtype == jnp.complex128
    assert sg.masses_squared(MODEL, Z, TAU, FLUXES).dtype == jnp.float64
