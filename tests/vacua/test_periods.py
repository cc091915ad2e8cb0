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
Z = np.array([0.13 + 2.3j, -0.41 + 3.1j])
TAU = 0.2 + 1.7j
FLUXES = np.array([3, -2, 1, 4, 0, 5, -1, 2, 7, 0, -3, 1])


def as_complex(pairs):
    values = np.array(pairs, dtype=float)
    return values[..., 0] + 1j * values[..., 1]


def distance(found, wanted):
    """Largest difference over the largest entry."""
    return np.abs(np.asarray(found) - wanted).max() / np.abs(wanted).max()


def golden(key):
    """Values with integer invariants where the file has them."""
    return as_complex([{**p, **p["with_GW_exponentials_use_gvs_False"]}[key] for p in POINTS["points"]])


GOLDEN_FLUXES = np.array([p["flux_f_then_h"] for p in POINTS["points"]])
OF_Z = {
    "prepotential": sg.prepotential,
    "period_vector": sg.periods,
    "mirror_volume": sg.mirror_volume,
    "gauge_kinetic_N": sg.gauge_kinetic_matrix,
    "ISD_matrix_M": sg.isd_matrix,
    "kahler_potential_cs_only": sg.kahler_potential_cs,
    "d_periods": sg.d_periods,
    "J": sg.isd_completion_matrix,
    "A": sg.dual_isd_matrix,
}
OF_TAU = {"kahler_potential_total": sg.kahler_potential, "kahler_metric_z1z2tau": sg.kahler_metric}
OF_FLUXES = {
    "W": sg.superpotential,
    "DW": sg.covariant_derivatives,
    "V_noscale": sg.scalar_potential,
    "W0_gauge_invariant_sqrt2overpi_expK2": sg.w0,
}


@pytest.fixture(scope="module")
def values():
    """Everything at the twelve reference points and, last, at the point of this module; compiled once."""

    def everything(model, z, tau, fluxes):
        found = {key: function(model, z) for key, function in OF_Z.items()}
        found |= {key: function(model, z, tau) for key, function in OF_TAU.items()}
        found |= {key: function(model, z, tau, fluxes) for key, function in OF_FLUXES.items()}
        return found

    z = np.vstack([as_complex([p["moduli"] for p in POINTS["points"]]), Z])
    tau = np.append(as_complex([p["tau"] for p in POINTS["points"]]), TAU)
    found = sg.batched(everything)(MODEL, z, tau, np.vstack([GOLDEN_FLUXES, FLUXES]))
    return {key: np.asarray(value) for key, value in found.items()}


@pytest.mark.parametrize("key", [*list(OF_Z)[:6], *OF_TAU, *OF_FLUXES])
def test_every_quantity_agrees_with_the_reference_points(key, values):
    for row, wanted in zip(values[key][:-1], golden(key), strict=True):
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
    instantons = jax.jit(sg.instantons)
    for point in json.loads((DATA / "p11169_instantons.json").read_text())["points"]:
        value, gradient, _, _ = instantons(MODEL, as_complex(point["moduli"]))
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
    shifted = sg.batched(sg.periods)(model, np.vstack([z, z + np.eye(h), z]))
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
    """Second derivatives by (Re z, Re tau, Im z, Im tau), by fourth-order differences of compiled values."""
    start = np.concatenate([z.real, [tau.real], z.imag, [tau.imag]])
    n = len(start)
    nodes, weights = np.array([-2, -1, 1, 2]) * step, np.array([1, -8, 8, -1]) / (12 * step)
    eye = np.eye(n)
    moved = start + np.array(
        [[[[a * eye[i] + b * eye[j] for b in nodes] for a in nodes] for j in range(n)] for i in range(n)]
    )
    point = (moved[..., : n // 2] + 1j * moved[..., n // 2 :]).reshape(-1, n // 2)
    fixed = [np.broadcast_to(x, (len(point), *np.shape(x))) for x in rest]
    found = function(MODEL, point[:, :-1], point[:, -1], *fixed)
    return np.einsum("ijab,a,b->ij", np.asarray(found).reshape(n, n, 4, 4), weights, weights)


def test_the_metric_is_the_mixed_second_derivative_of_the_kahler_potential(values):
    hessian = real_hessian(sg.batched(sg.kahler_potential), Z, TAU)
    xx, xy, yx, yy = hessian[:3, :3], hessian[:3, 3:], hessian[3:, :3], hessian[3:, 3:]
    mixed = (xx + yy + 1j * (xy - yx)) / 4
    assert distance(values["kahler_metric_z1z2tau"][-1], mixed) < 1e-7


def test_the_gauge_kinetic_matrix_meets_its_definition(values):
    n, pi, d_pi = (values[key][-1] for key in ("gauge_kinetic_N", "period_vector", "d_periods"))
    bra = pi.conj() @ sg.sigma_matrix(2)
    k_i = -(d_pi @ bra) / (pi @ bra)  # derivative of -log(-i Pi^dagger Sigma Pi)
    covariant = d_pi + k_i[:, None] * pi
    assert distance(n, n.T) < 1e-14
    assert distance(n @ pi[3:], pi[:3]) < 1e-12
    assert distance(covariant[:, 3:].conj() @ n, covariant[:, :3].conj()) < 1e-12
    assert np.linalg.eigvalsh(n.imag).max() < 0


def test_isd_matrices_are_symplectic_and_positive(values):
    m, j, a = (values[key][-1] for key in ("ISD_matrix_M", "J", "A"))
    sigma = sg.sigma_matrix(2)
    assert np.array_equal(m, m.T)
    assert np.linalg.eigvalsh(m).min() > 0
    assert distance(m @ sigma @ m, sigma) < 1e-11
    assert distance(j @ j, -np.eye(6)) < 1e-11
    assert distance(a @ m, np.eye(6)) < 1e-11
    assert np.linalg.det(a) == pytest.approx(1, abs=1e-9)


def test_the_potential_is_the_norm_of_the_f_terms_and_not_negative(values):
    d_w, metric, k = (values[key][-1] for key in ("DW", "kahler_metric_z1z2tau", "kahler_potential_total"))
    wanted = np.exp(k) * np.einsum("ij,i,j", np.linalg.inv(metric).T, d_w, d_w.conj())
    assert values["V_noscale"][-1] == pytest.approx(wanted.real, rel=1e-12)
    assert wanted.real > 0
    assert abs(wanted.imag) < 1e-12 * wanted.real


@pytest.fixture(scope="module")
def vacua():
    """Points that real fluxes make vacua (nothing here asks for integers), with everything at them."""

    def everything(model, z, tau, h):
        fluxes = jnp.concatenate([sg.complete(model, z, tau, h), h])
        return {
            "fluxes": fluxes,
            "DW": sg.covariant_derivatives(model, z, tau, fluxes),
            "A": sg.dual_isd_matrix(model, z),
            "K": sg.kahler_potential(model, z, tau),
            "W": sg.superpotential(model, z, tau, fluxes),
            "metric": sg.kahler_metric(model, z, tau),
            "matrix": sg.mass_matrix(model, z, tau, fluxes),
            "masses": sg.masses_squared(model, z, tau, fluxes),
        }

    rng = np.random.default_rng(1)
    z = rng.uniform(-0.5, 0.5, (4, 2)) + 1j * rng.uniform(2, 4, (4, 2))
    tau = rng.uniform(-0.5, 0.5, 4) + 1j * rng.uniform(1, 4, 4)
    found = sg.batched(everything)(MODEL, z, tau, rng.integers(-3, 4, (4, 6)).astype(float))
    return [
        {key: np.asarray(v[k]) for key, v in found.items()} | {"z": z[k], "tau": tau[k]} for k in range(4)
    ]


def test_completed_fluxes_solve_the_vacuum_equations(vacua):
    for at in vacua:
        f, h = at["fluxes"][:6], at["fluxes"][6:]
        assert np.abs(at["DW"]).max() < 1e-10
        assert f @ sg.sigma_matrix(2) @ h == pytest.approx(at["tau"].imag * (h @ at["A"] @ h), rel=1e-11)


def test_masses_agree_with_the_numerical_hessian_of_the_potential(vacua):
    potential = sg.batched(sg.scalar_potential)
    for at in vacua[:3]:
        hessian, g = real_hessian(potential, at["z"], at["tau"], at["fluxes"]), at["metric"]
        # K_IJbar d phi^I d conj(phi^J) = (1/2) dx^T G dx in x = (Re phi, Im phi)
        kinetic = 2 * np.block([[g.real, g.imag], [-g.imag, g.real]])
        wanted = np.sort(np.linalg.eigvals(np.linalg.solve(kinetic, hessian)).real)
        assert at["masses"] == pytest.approx(wanted, rel=1e-5, abs=1e-7 * wanted.max())


def test_masses_have_the_no_scale_structure(vacua):
    for at in vacua:
        w = np.exp(at["K"] / 2) * abs(at["W"])
        assert distance(at["matrix"], at["matrix"].conj().T) < 1e-14
        # the upper right block is V_ab = 2 e^K conj(W) Z_ab
        x = np.linalg.svd(at["matrix"][:3, 3:], compute_uv=False) / (2 * w)
        wanted = np.sort(np.concatenate([(x + w) ** 2, (x - w) ** 2]))
        assert at["masses"] == pytest.approx(wanted, rel=1e-9, abs=1e-11 * wanted.max())
        assert at["masses"].min() > -1e-12 * at["masses"].max()


def test_a_geometry_without_instantons_is_the_cubic_polynomial():
    from matforge.vacua import Geometry

    data = {**load_geometry("octic").to_dict(), "gv_charges": [], "gv_invariants": []}
    model = sg.model_of(Geometry.from_dict(data))
    z = jnp.array([0.2 + 1.5j])
    wanted = -2 * z[0] ** 3 / 6 + z[0] ** 2 / 2 + 44 / 24 * z[0] + model.k0 / 2
    assert abs(jax.jit(sg.prepotential)(model, z) - wanted) < 1e-14


def test_everything_is_computed_in_double_precision(values):
    assert {v.dtype.name for v in values.values()} == {"complex128", "float64"}
    assert sg.model_of(P11169).kappa.dtype == jnp.float64
