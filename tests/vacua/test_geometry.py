"""Geometry files: what is read, what is checked, and what the messages say."""

import copy
import json
import subprocess
import sys

import numpy as np
import pytest

from matforge.vacua import Geometry, InputError, list_geometries, load_geometry
from matforge.vacua.periods import sigma_matrix

NAMES = ("ks-h12-2b", "ks-h12-3b", "ks-h12-4b", "octic", "p11169")


@pytest.fixture
def octic():
    return load_geometry("octic").to_dict()


@pytest.fixture
def p11169():
    return load_geometry("p11169").to_dict()


def complaint(data):
    with pytest.raises(InputError) as caught:
        Geometry.from_dict(data, "my.json")
    message = str(caught.value)
    assert message.startswith("my.json: ")
    assert message.endswith((".", "?"))
    assert "\n" not in message
    return message


def test_the_five_bundled_geometries_are_listed_and_load():
    assert tuple(list_geometries()) == NAMES
    for name in NAMES:
        geometry = load_geometry(name)
        assert geometry.name == name
        assert geometry.kappa.shape == (geometry.h12,) * 3
        assert geometry.gv_charges.shape == (len(geometry.gv_exact), geometry.h12)


def test_physics_layer_imports_neither_jax_nor_numba_nor_pandas():
    code = (
        "import sys, matforge.vacua as v, matforge.vacua.region, matforge.vacua.domain, "
        "matforge.vacua.newton, matforge.vacua.plots; v.load_geometry('p11169').hash; "
        "print([m for m in ('jax', 'numba', 'pandas', 'scipy', 'matplotlib', 'pyarrow') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_an_unknown_export_is_an_attribute_error():
    import matforge.vacua

    assert "search" in dir(matforge.vacua)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = matforge.vacua.nothing


def test_derived_numbers_of_the_octic():
    octic = load_geometry("octic")
    assert octic.b.tolist() == [44 / 24]
    assert octic.k0 == pytest.approx(1j * 1.2020569031595942 * -296 / (8 * np.pi**3), rel=1e-15)
    assert octic.gv_exact[4] == 467876474625249316800  # beyond 64 bits
    assert octic.gv_invariants[4] == float(467876474625249316800)


@pytest.mark.parametrize("name", NAMES)
def test_a_geometry_survives_its_own_dictionary(name, tmp_path):
    geometry = load_geometry(name)
    path = tmp_path / "copy.json"
    path.write_text(json.dumps(geometry.to_dict()))
    again = load_geometry(path)
    assert again == geometry
    assert hash(again) == hash(geometry)
    assert again.to_dict() == geometry.to_dict()
    assert load_geometry(str(path)).gv_exact == geometry.gv_exact


def test_the_hash_sees_the_topology_and_nothing_else(p11169):
    reference = load_geometry("p11169").hash
    other = copy.deepcopy(p11169)
    other.update(name="x", description="y", note="z", ks_id=7)
    other["gv_charges"].reverse()
    other["gv_invariants"].reverse()
    other["kahler_cone_hyperplanes"] = [[0, 2], [1, 0]]  # scaled, reordered, without the redundant wall
    assert Geometry.from_dict(other).hash == reference
    other["gv_invariants"][0] += 1
    assert Geometry.from_dict(other).hash != reference
    assert len({load_geometry(name).hash for name in NAMES}) == len(NAMES)


def test_arrays_cannot_be_written_to():
    with pytest.raises(ValueError, match="read-only"):
        load_geometry("octic").kappa[0, 0, 0] = 3


def test_cone_coordinates_are_the_distances_to_the_walls():
    identity = np.eye(2)
    assert np.array_equal(load_geometry("p11169").cone_coordinates, identity)
    assert load_geometry("p11169").walls.tolist() == [[1, 0], [0, 1]]
    three = load_geometry("ks-h12-3b")
    assert three.is_simplicial
    assert three.cone_coordinates.tolist() == [[1, 0, 0], [2, 0, 1], [0, 1, 0]]
    four = load_geometry("ks-h12-4b")
    assert four.walls.shape == (4, 4)
    inside = np.linalg.solve(four.cone_coordinates, np.ones(4))
    assert np.all(four.kahler_cone_hyperplanes @ inside > 0)


@pytest.mark.parametrize("name", NAMES)
def test_monodromies_are_symplectic_and_commute(name):
    geometry = load_geometry(name)
    sigma = sigma_matrix(geometry.h12)
    matrices = [geometry.monodromy(i) for i in range(geometry.h12)]
    for a in matrices:
        assert a.dtype == np.int64
        assert np.array_equal(a.T @ sigma @ a, sigma)
        for b in matrices:
            assert np.array_equal(a @ b, b @ a)
    with pytest.raises(InputError, match="no monodromy"):
        geometry.monodromy(geometry.h12)


def test_an_unknown_name_gets_the_nearest_ones():
    with pytest.raises(InputError, match=r"no geometry 'octik': did you mean octic\?"):
        load_geometry("octik")
    with pytest.raises(InputError, match="known are ks-h12-2b"):
        load_geometry("zzzzzz")


def test_unknown_missing_and_repeated_keys_are_named(octic, tmp_path):
    assert "unknown key 'eulr_characteristic', did you mean euler_characteristic?" in complaint(
        {**octic, "eulr_characteristic": 1}
    )
    del octic["c2"]
    assert "missing c2: add it." in complaint(octic)
    path = tmp_path / "twice.json"
    path.write_text('{"name": "a", "name": "b"}')
    with pytest.raises(InputError, match="'name' stands there twice"):
        load_geometry(path)


def test_integral_floats_are_integers_and_halves_are_not(octic):
    octic["c2"] = [44.0]
    octic["intersection_numbers"] = [[[2.0]]]
    assert Geometry.from_dict(octic) == load_geometry("octic")
    assert "c2[0] is 44.5, but an integer belongs there" in complaint({**octic, "c2": [44.5]})
    assert "h12 is 0.5" in complaint({**octic, "h12": 0.5})
    assert "h12 is True" in complaint({**octic, "h12": True})
    assert "gv_invariants[1] is nan" in complaint({**octic, "gv_invariants": [1, float("nan"), 3, 4, 5]})
    assert "a_matrix[0][0] is inf" in complaint({**octic, "a_matrix": [[float("inf")]]})


def test_shapes_are_checked_by_key_and_index(p11169):
    assert "c2 has 3 entries, but 2 belong there" in complaint({**p11169, "c2": [1, 2, 3]})
    assert "intersection_numbers[1][0] has 1 entries" in complaint(
        {**p11169, "intersection_numbers": [[[9, 3], [3, 1]], [[3], [1, 0]]]}
    )
    assert "gv_charges[0] has 3 entries" in complaint({**p11169, "gv_charges": [[1, 0, 0]]})
    assert "gv_invariants has 19 entries" in complaint(
        {**p11169, "gv_invariants": p11169["gv_invariants"][:-1]}
    )
    assert "c2 is 3, but a list belongs there" in complaint({**p11169, "c2": 3})
    assert "name is 3, but text belongs there" in complaint({**p11169, "name": 3})


def test_asymmetry_is_found_with_its_index(p11169):
    assert "intersection_numbers is not symmetric at [0][1][0]" in complaint(
        {**p11169, "intersection_numbers": [[[9, 3], [3, 1]], [[4, 1], [1, 0]]]}
    )
    assert "a_matrix is not symmetric at [0][1]" in complaint({**p11169, "a_matrix": [[4.5, 0.5], [1.5, 0]]})


def test_data_without_integral_monodromy_is_refused(p11169):
    assert "a_matrix[0][0] = 4 does not fit" in complaint({**p11169, "a_matrix": [[4, 1.5], [1.5, 0]]})
    assert "a_matrix[0][1] = 1 does not fit" in complaint({**p11169, "a_matrix": [[4.5, 1], [1, 0]]})
    assert "c2[0] = 103 does not fit" in complaint({**p11169, "c2": [103, 36]})


def test_inconsistent_topology_is_refused(octic, p11169):
    assert "2 (h12 - h11) is -296" in complaint({**octic, "euler_characteristic": 296})
    assert "maximum_degree is 0" in complaint({**octic, "maximum_degree": 0})
    assert "h12 is 0" in complaint({**octic, "h12": 0})
    assert "gv_charges[4] repeats gv_charges[0]" in complaint(
        {**octic, "gv_charges": [[1], [2], [3], [4], [1]]}
    )
    assert "gv_charges[0] is zero" in complaint({**octic, "gv_charges": [[0], [2], [3], [4], [5]]})
    assert "negative area" in complaint({**octic, "gv_charges": [[-1], [2], [3], [4], [5]]})
    assert "leave no interior" in complaint({**octic, "kahler_cone_hyperplanes": [[1], [-1]]})
    assert "need 2 independent rows" in complaint({**p11169, "kahler_cone_hyperplanes": [[1, 0]]})
    assert "kahler_cone_hyperplanes[1] is zero" in complaint({**octic, "kahler_cone_hyperplanes": [[1], [0]]})


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.json: cannot be read"):
        load_geometry(tmp_path / "nowhere.json")
    bad = tmp_path / "bad.json"
    bad.write_text('{\n"name": }')
    with pytest.raises(InputError, match="is not JSON \\(line 2"):
        load_geometry(bad)
    bad.write_text("[1]")
    with pytest.raises(InputError, match="a JSON object"):
        load_geometry(bad)
    bad.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="UTF-8"):
        load_geometry(bad)


def test_a_geometry_without_instantons_is_allowed(octic):
    empty = Geometry.from_dict({**octic, "gv_charges": [], "gv_invariants": []})
    assert empty.gv_charges.shape == (0, 1)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("intersection_numbers", [[[9 * 10**25, 3], [3, 1]], [[3, 1], [1, 0]]]),
        ("a_matrix", [[1e300, 1.5], [1.5, 0]]),
        ("kahler_cone_hyperplanes", [[2**40, 0], [0, 1]]),
        ("gv_invariants", [10**400, *([1] * 19)]),
    ],
)
def test_numbers_beyond_what_can_be_computed_with_are_refused(p11169, key, value):
    message = complaint({**p11169, key: value})
    assert f"{key}[0]" in message
    assert "out of bounds" in message


def test_a_file_that_is_nested_beyond_reason_is_refused_and_a_byte_order_mark_is_not(tmp_path, p11169):
    path = tmp_path / "deep.json"
    path.write_text("[" * 100_000)
    with pytest.raises(InputError, match="nested too deeply"):
        load_geometry(path)
    path.write_text(json.dumps(p11169), "utf-8-sig")
    assert load_geometry(path) == load_geometry("p11169")
