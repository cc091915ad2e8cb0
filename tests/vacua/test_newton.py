"""Newton's method in JAX, against published vacua; that the backends agree is tested elsewhere."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from matforge.vacua import InputError, load_geometry
from matforge.vacua import periods as sg
from matforge.vacua.domain import canonical
from matforge.vacua.newton import NewtonResult, solve

DATA = Path(__file__).parent / "data"
P11169 = load_geometry("p11169")
OCTIC = load_geometry("octic")
GOLDEN = json.loads((DATA / "p11169_points.json").read_text())["newton_vacua"]


def as_complex(pairs):
    values = np.array(pairs, dtype=float)
    return values[..., 0] + 1j * values[..., 1]


FLUXES = np.array([v["flux_f_then_h"] for v in GOLDEN])
Z, TAU = (as_complex([v[key] for v in GOLDEN]) for key in ("z_start", "tau_start"))


def test_the_published_solver_s_vacua_are_reached_from_its_starts():
    result = solve(P11169, FLUXES, Z, TAU, backend="jax")
    assert isinstance(result, NewtonResult)
    assert result.converged.tolist() == [True] * 5
    assert np.abs(result.moduli - as_complex([v["z_end"] for v in GOLDEN])).max() < 1e-11
    assert np.abs(result.tau - as_complex([v["tau_end"] for v in GOLDEN])).max() < 1e-11
    wanted = np.abs(as_complex([v["W0_gauge_invariant"] for v in GOLDEN]))
    assert np.abs(result.w0_abs / wanted - 1).max() < 1e-11
    assert result.residual.max() < 1e-12
    assert result.n_iterations.max() <= 10
    assert [a.dtype.name for a in result] == [
        "complex128",
        "complex128",
        "float64",
        "int32",
        "bool",
        "float64",
    ]


def test_residual_and_superpotential_are_those_of_the_periods():
    result = solve(P11169, FLUXES, Z, TAU, backend="jax", max_iterations=1)
    assert not result.converged.any()
    model = sg.model_of(P11169)

    def ours(model, z, tau, fluxes):
        scale = jnp.sqrt(2 / jnp.pi) * jnp.exp(sg.kahler_potential(model, z, tau) / 2)
        d_w = sg.covariant_derivatives(model, z, tau, fluxes)
        return scale * jnp.abs(d_w).sum(), jnp.abs(sg.w0(model, z, tau, fluxes))

    residual, w0_abs = sg.batched(ours)(model, result.moduli, result.tau, FLUXES)
    assert result.residual == pytest.approx(np.asarray(residual), rel=1e-10)
    assert result.w0_abs == pytest.approx(np.asarray(w0_abs), rel=1e-12)


def test_a_row_does_not_depend_on_the_rows_beside_it():
    rng = np.random.default_rng(7)
    pick = rng.integers(0, 5, 1500)  # more than one chunk
    starts = Z[pick] + 0.05 * rng.normal(size=(1500, 2))
    together = solve(P11169, FLUXES[pick], starts, TAU[pick], backend="jax")
    for rows in ([1499], [3, 1030, 77]):
        alone = solve(P11169, FLUXES[pick[rows]], starts[rows], TAU[pick[rows]], backend="jax")
        for a, b in zip(alone, together, strict=True):
            assert np.array_equal(a, b[rows])


def test_hopeless_starts_are_reported_and_never_raise():
    fluxes = np.concatenate([FLUXES, np.zeros((1, 12), dtype=int), FLUXES[:1], FLUXES[:1]])
    z = np.concatenate([-Z.conj() * 0.01, Z[:1], [[np.nan, 2j]], Z[:1]])
    tau = np.concatenate([TAU, [1j], [2j], [-1j]])
    result = solve(P11169, fluxes, z, tau, backend="jax")
    assert not result.converged[5:7].any() or result.residual[5] == 0  # zero fluxes solve everything
    assert not result.converged[6]
    assert not result.converged[7]
    assert not np.isfinite(result.residual[6:]).any()


def test_no_starts_give_no_rows():
    result = solve(P11169, np.zeros((0, 12), dtype=int), np.zeros((0, 2)), np.zeros(0), backend="jax")
    assert [len(a) for a in result] == [0] * 6
    assert result.moduli.shape == (0, 2)


def test_wrong_shapes_types_and_backends_are_refused():
    with pytest.raises(InputError, match="moduli have shape"):
        solve(P11169, FLUXES, Z[:, :1], TAU, backend="jax")
    with pytest.raises(InputError, match="flux quanta are integers"):
        solve(P11169, FLUXES + 0.5, Z, TAU, backend="jax")
    with pytest.raises(InputError, match="did you mean numba"):
        solve(P11169, FLUXES, Z, TAU, backend="nunba")


def octic_rows():
    """The published rows in our basis: fluxes, z, tau, N_flux."""
    change = np.array([[-1, 0, 0, 0], [0, -1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 1]])
    change = change @ np.array([[0, 0, 1, 0], [0, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, 0]])
    rows = json.loads((DATA / "octic_published.json").read_text())["rows"]
    fluxes = np.array([np.concatenate([change @ r["F"], change @ r["H"]]) for r in rows])
    z = np.array([[complex(*r["t"])] for r in rows])
    tau = np.array([complex(r["c"], r["s"]) for r in rows])
    return fluxes, z, tau, np.array([r["n_flux"] for r in rows])


def test_every_published_octic_vacuum_is_one_of_ours():
    fluxes, z, tau, n_flux = octic_rows()
    assert np.array_equal(sg.tadpole(fluxes), n_flux)
    result = solve(OCTIC, fluxes, z, tau, backend="jax")
    low = z[:, 0].imag < 1.8  # there the two truncations of the instanton series differ
    assert result.converged[~low].all()
    assert np.abs(result.moduli - z)[~low].max() < 3.6e-3
    assert (np.abs(result.tau - tau) / np.abs(tau))[~low].max() < 1e-2
    folded, moduli, _ = canonical(OCTIC, fluxes[~low], result.moduli[~low], result.tau[~low])
    assert np.array_equal(sg.tadpole(folded), n_flux[~low])
    assert np.all((moduli.real > -0.5) & (moduli.real <= 0.5 + 1e-6))


@pytest.mark.slow  # ten seconds of compilation each
@pytest.mark.parametrize("name", ["ks-h12-3b", "ks-h12-4b"])
def test_geometries_whose_cone_is_not_an_orthant_are_solved(name):
    geometry = load_geometry(name)
    h, rng = geometry.h12, np.random.default_rng(5)
    model = sg.model_of(geometry)
    z = (
        rng.uniform(-0.5, 0.5, (20, h))
        + 1j * np.linalg.solve(geometry.cone_coordinates, rng.uniform(3, 4, (h, 20))).T
    )
    tau = rng.uniform(-0.5, 0.5, 20) + 1j * rng.uniform(2, 4, 20)
    h_fluxes = rng.integers(-3, 4, (20, 2 * h + 2)) * 1000  # so large that rounding f moves the vacuum little
    f = np.rint(sg.batched(sg.complete)(model, z, tau, jnp.asarray(h_fluxes))).astype(int)
    result = solve(geometry, np.hstack([f, h_fluxes]), z, tau, backend="jax")
    solved = result.residual < 1e-12 * result.w0_abs  # quanta this large leave rounding above 1e-12
    assert solved.all()
    assert np.abs(result.moduli - z).max() < 0.05
    assert (result.moduli.imag @ geometry.walls.T > 0).all()
