"""Regions: how they are written, and what is refused."""

import json
import math

import numpy as np
import pytest

from matforge.vacua import InputError, Region, load_geometry
from matforge.vacua.geometry import Geometry
from matforge.vacua.region import PRESETS, S_LOWEST, instanton_ratio, preset

OCTIC = load_geometry("octic")
P11169 = load_geometry("p11169")


def refused(geometry, **kwargs):
    with pytest.raises(InputError) as caught:
        Region.parse(geometry, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_one_range_serves_every_modulus():
    assert Region.parse(P11169, "2:5", "2:10", 4) == Region(((2.0, 5.0), (2.0, 5.0)), (2.0, 10.0), 4)
    assert Region.parse(P11169, "2:5,2:4").im_z == ((2.0, 5.0), (2.0, 4.0))
    assert (
        Region.parse(P11169, (2, 5)) == Region.parse(P11169, [(2, 5), (2, 5)]) == Region.parse(P11169, "2:5")
    )


def test_the_lower_end_of_s_defaults_to_the_edge_of_the_fundamental_domain():
    assert math.sqrt(3) / 2 == S_LOWEST
    for spelling in (":10", "0.866:10", (None, 10), (S_LOWEST, 10)):
        assert Region.parse(OCTIC, "2:7", spelling).s == (S_LOWEST, 10.0)


def test_s_below_the_fundamental_domain_is_refused():
    assert "fundamental domain of tau begins at sqrt(3)/2" in refused(OCTIC, im_z="2:7", s="0.5:10")
    assert "fundamental domain begins" in refused(OCTIC, im_z="2:7", s="0.8659:0.866")
    assert "must be the smaller one" in refused(OCTIC, im_z="2:7", s=":0.5")


def test_integral_bounds_on_the_tadpole_are_integers():
    assert Region.parse(OCTIC, "2:7", nmax="10").n_max == Region.parse(OCTIC, "2:7", nmax=10.0).n_max == 10
    assert isinstance(Region.parse(OCTIC, "2:7", nmax=np.int64(3)).n_max, int)
    for bad in ("2.5", 2.5, "ten", float("nan"), "nan", "inf", True, None):
        assert refused(OCTIC, im_z="2:7", nmax=bad).startswith("nmax is ")
    assert "give 1 or more" in refused(OCTIC, im_z="2:7", nmax=0)


@pytest.mark.parametrize(
    "bad", ["3:2", "2:2", "2", "2:3:4", "a:3", ":3", "2:", "", "nan:3", "2:nan", "2:inf"]
)
def test_malformed_ranges_are_refused(bad):
    assert refused(OCTIC, im_z=bad).startswith("Im z ")


def test_the_wrong_number_of_ranges_is_refused():
    assert "3 ranges" in refused(P11169, im_z="2:3,2:3,2:3")
    assert "one modulus" in refused(OCTIC, im_z="2:3,2:3")


def test_a_box_outside_the_kahler_cone_is_refused():
    assert "outside the Kähler cone of octic" in refused(OCTIC, im_z="-1:3")
    assert "Im z2 starts at 0," in refused(P11169, im_z="2:3,0:3")


def test_the_octic_is_refused_where_its_series_diverges():
    for low in (0.5, 1.5, 1.7, 1.71):
        assert "start at 1.795 or above" in refused(OCTIC, im_z=f"{low}:3")
    for low in (1.795, 1.8, 2.0):
        Region.parse(OCTIC, f"{low}:3")


def test_what_the_message_proposes_is_accepted():
    assert "start at 0.358, 3.575 or above" in refused(P11169, im_z="0.1:4,1:5")
    Region.parse(P11169, "0.358:4,3.575:5")


def test_the_ratio_falls_along_a_ray_and_is_invariant_under_a_change_of_basis():
    ratios = [instanton_ratio(P11169, [x, x]) for x in (0.5, 1.0, 2.0, 4.0)]
    assert ratios == sorted(ratios, reverse=True)
    three = load_geometry("ks-h12-3b")
    t = np.array([1.0, 1.2, 0.9])
    y = np.linalg.solve(three.cone_coordinates, t)
    areas = three.gv_charges @ y
    degrees = np.rint(three.gv_charges @ np.linalg.solve(three.cone_coordinates, np.ones(3)))
    sizes = abs(three.gv_invariants) * areas**3 * np.exp(-2 * np.pi * areas)
    assert instanton_ratio(three, t) == pytest.approx(
        sizes[degrees == 5].sum() / sizes[degrees == 4].sum(), rel=1e-12
    )


def test_degrees_without_invariants_do_not_hide_a_series_that_diverges():
    data = OCTIC.to_dict()
    unlisted = Geometry.from_dict({**data, "maximum_degree": 9})
    assert instanton_ratio(unlisted, [1.75]) == instanton_ratio(OCTIC, [1.75]) > 0.5
    assert "start at 1.795 or above" in refused(unlisted, im_z="1.7:3")
    gap = Geometry.from_dict(
        {**data, "gv_invariants": [0 if n % 2 else x for n, x in enumerate(OCTIC.gv_exact)]}
    )
    step = instanton_ratio(gap, [1.75])
    assert step == pytest.approx((instanton_ratio(OCTIC, [1.75]) * ratio_of_degree_four(1.75)) ** 0.5)


def ratio_of_degree_four(t):
    """Of the octic: degree 4 over degree 3."""
    data = OCTIC.to_dict()
    shorter = {key: data[key][:4] for key in ("gv_charges", "gv_invariants")}
    return instanton_ratio(Geometry.from_dict({**data, **shorter, "maximum_degree": 4}), [t])


def test_a_metric_that_is_not_positive_is_refused():
    data = P11169.to_dict()
    negative = {"intersection_numbers": (-P11169.kappa).astype(int).tolist()}
    assert "is not positive at Im z = [2.0, 2.0]" in refused(
        Geometry.from_dict({**data, **negative}), im_z="2:5"
    )
    # a second positive eigenvalue, though the volume is positive
    product = np.zeros((2, 2, 2), dtype=int)
    product[0, 0, 0] = product[1, 1, 1] = 6
    other = {"intersection_numbers": product.tolist(), "a_matrix": [[3.0, 0.0], [0.0, 3.0]], "c2": [36, 36]}
    assert "correct its intersection_numbers" in refused(Geometry.from_dict({**data, **other}), im_z="2:5")


def test_a_geometry_without_instantons_converges_everywhere():
    data = {**OCTIC.to_dict(), "gv_charges": [], "gv_invariants": []}
    assert Region.parse(Geometry.from_dict(data), "0.1:3").im_z == ((0.1, 3.0),)
    one = {**data, "gv_charges": [[1]], "gv_invariants": [29504], "maximum_degree": 1}
    assert "does not converge" in refused(Geometry.from_dict(one), im_z="1:3")  # weighed against degree 0
    Region.parse(Geometry.from_dict(one), "2:3")


def square_cone():
    """A made-up geometry whose cone has four walls in three dimensions."""
    kappa = np.zeros((3, 3, 3), int)
    for index in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)):
        kappa[index] = 1
    data = {
        "name": "square",
        "description": "",
        "h11": 5,
        "h12": 3,
        "euler_characteristic": -4,
        "intersection_numbers": kappa.tolist(),
        "c2": [24, 24, 24],
        "a_matrix": [[0, 0, 0]] * 3,
        "gv_charges": [[1, 0, 1], [0, 1, 1], [-1, 0, 1], [0, -1, 1], [0, 0, 2]],
        "gv_invariants": [1, 1, 1, 1, 1],
        "kahler_cone_hyperplanes": [[1, 0, 1], [0, 1, 1], [-1, 0, 1], [0, -1, 1]],
        "maximum_degree": 2,
    }
    return Geometry.from_dict(data)


def test_a_box_that_leaves_a_cone_which_is_not_simplicial_is_refused():
    square = square_cone()
    assert not square.is_simplicial
    assert np.array_equal(square.cone_coordinates, np.eye(3))
    assert Region.parse(square, "1:2,1:2,3:4").im_z[2] == (3.0, 4.0)
    assert "lies outside the Kähler cone of square" in refused(square, im_z="1:2,1:2,1.5:4")


def test_a_region_survives_json():
    region = Region.parse(P11169, "2:5,2:4", ":10", 7)
    assert Region.from_dict(P11169, json.loads(json.dumps(region.as_dict()))) == region
    with pytest.raises(InputError, match="unknown key 'n_maxx', did you mean n_max"):
        Region.from_dict(P11169, {**region.as_dict(), "n_maxx": 3})
    with pytest.raises(InputError, match="missing s"):
        Region.from_dict(P11169, {"im_z": [[2, 3], [2, 3]], "n_max": 3})


def test_containment_is_judged_in_cone_coordinates():
    three = load_geometry("ks-h12-3b")
    region = Region.parse(three, "1:2", ":10")
    t = np.array(
        [[1.5, 1.5, 1.5], [1 - 1e-9, 1.5, 2 + 1e-9], [0.9, 1.5, 1.5], [1.5, 1.5, 1.5], [np.nan, 1.5, 1.5]]
    )
    z = 0.3 + 1j * np.linalg.solve(three.cone_coordinates, t.T).T
    tau = np.array([2j, 10j, 2j, 0.5j, 2j])
    assert region.contains(three, z, tau).tolist() == [True, True, False, False, False]
    assert region.contains(three, z, tau, tolerance=0).tolist() == [True, False, False, False, False]
    assert region.contains(three, z[0], tau[0])


def test_the_presets_are_accepted_and_their_counts_add_up():
    assert {"p11169-slice", "p11169-full", "p11169-n14", "octic-n10", "ks-h12-2b-n6"} == set(PRESETS)
    for name, entry in PRESETS.items():
        assert entry.name == name
        region = entry.region(load_geometry(entry.geometry))
        assert region.n_max == entry.n_max
        if entry.by_n_flux is not None:
            assert len(entry.by_n_flux) == entry.n_max
            assert sum(entry.by_n_flux) == entry.expected
    assert [PRESETS[n].expected for n in ("p11169-slice", "p11169-full", "p11169-n14")] == [21, 6097, 58009]


def test_an_unknown_preset_gets_the_nearest_ones():
    assert preset("octic-n10").geometry == "octic"
    with pytest.raises(InputError, match="did you mean p11169-full"):
        preset("p11169-ful")
