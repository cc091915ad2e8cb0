"""Cones given by walls."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from matforge.vacua import cone


def test_a_square_cone_keeps_its_four_walls_and_drops_the_diagonal():
    walls = np.array([[1, 0, 1], [0, 1, 1], [-1, 0, 1], [0, -1, 1], [0, 0, 3]])
    assert cone.irredundant(walls).tolist() == walls[:4].tolist()


def test_of_parallel_walls_the_first_is_kept_in_primitive_form():
    assert cone.irredundant(np.array([[2, 0], [0, 1], [1, 0], [3, 3]])).tolist() == [[1, 0], [0, 1]]


def test_a_wedge_closed_by_its_own_negative_has_no_interior():
    assert cone.has_interior(np.array([[1, 0], [0, 1]]))
    assert not cone.has_interior(np.array([[1, 0], [0, 1], [-1, -1]]))


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 9))
def test_redundant_walls_are_those_that_change_nothing(seed, h, n):
    rng = np.random.default_rng(seed)
    inner = rng.integers(1, 4, h)
    walls = rng.integers(-3, 4, (n, h))
    walls = walls[walls @ inner > 0]  # a cone with an interior, and no zero row
    if not len(walls):
        return
    kept = cone.irredundant(walls)
    points = rng.normal(size=(2000, h))
    assert np.array_equal((points @ walls.T > 0).all(1), (points @ kept.T > 0).all(1))
    for row in walls:
        assert cone.in_cone(kept.astype(float), row.astype(float))
