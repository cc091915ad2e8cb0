"""Compiled lattice steps: LLL reduction, enumeration of lattice points in a box, and the h that can occur at all.

A lattice is given twice, row by row: ``real`` (m, k) holds basis vectors in the coordinates of some metric, ``whole`` (m, n)
the same vectors as integers. Reduction (Lenstra, Lenstra, Lovasz 1982) changes both; enumeration (Fincke and
Pohst 1985) walks the tree of coefficients depth first. Floating point decides only how fast a step is and, with a
tolerance, what is kept; the vectors themselves are exact: whatever could leave ``LIMIT`` is reported, never wrapped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numba import njit

from matforge.vacua.cover import PAD, row_width, to_frame
from matforge.vacua.kernels import INNER, JIT

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from matforge.vacua.cover import Cover
    from matforge.vacua.region import Region

LIMIT = 2**30
"""Largest entry a lattice vector may have: 32-bit storage and products of two entries in 64 bits are then safe."""
SWAPS = 2000
"""LLL stops after this many steps; the basis is a basis all the same, only the enumeration is slower."""
FULL = -1
OVERFLOW = -2


class Lattice(NamedTuple):
    """A basis of m vectors with k real and n integer coordinates, its Gram-Schmidt data and the state of a search."""

    real: NDArray[np.float64]  # (m, k) basis, one vector a row
    whole: NDArray[np.int64]  # (m, n)
    star: NDArray[np.float64]  # (m, k) Gram-Schmidt vectors
    mu: NDArray[np.float64]  # (m, m) Gram-Schmidt coefficients
    norm: NDArray[np.float64]  # (m,) squared lengths of star
    partial: NDArray[np.float64]  # (m + 1, k) offset plus the chosen multiples of the vectors from this level on
    used: NDArray[np.float64]  # (m + 1,) squared length of partial outside the span of the lower vectors
    now: NDArray[np.float64]  # (m,) coefficient at each level
    last: NDArray[np.float64]  # (m,) and its last value
    offset: NDArray[np.float64]  # (k,) what every point is shifted by
    limit: NDArray[np.float64]  # (k,) bound on the modulus of each real coordinate
    origin: NDArray[np.int64]  # (n,) integer vector of the offset


def lattice(m: int, n: int) -> Lattice:
    """Empty arrays for m vectors of m real and n integer coordinates."""
    real = ((m, m), (m, n), (m, m), (m, m), (m,), (m + 1, m), (m + 1,), (m,), (m,), (m,), (m,), (n,))
    return Lattice(*(np.zeros(s, dtype=np.int64 if i in (1, 11) else np.float64) for i, s in enumerate(real)))


@njit(**INNER)
def reduce(lat):
    """LLL-reduce the basis in place (both forms); False if an integer would leave the limit."""
    real = lat.real
    whole = lat.whole
    star = lat.star
    mu = lat.mu
    norm = lat.norm
    m = real.shape[0]
    n = whole.shape[1]
    k = 0
    steps = 0
    while k < m:
        steps += 1
        for c in range(m):
            star[k, c] = real[k, c]
        for j in range(k):
            dot = 0.0
            for c in range(m):
                dot += real[k, c] * star[j, c]
            mu[k, j] = dot / norm[j]
            for c in range(m):
                star[k, c] -= mu[k, j] * star[j, c]
        dot = 0.0
        for c in range(m):
            dot += star[k, c] * star[k, c]
        norm[k] = max(dot, 1e-300)
        for j in range(k - 1, -1, -1):
            times = np.floor(mu[k, j] + 0.5)
            if times != 0.0:
                if not abs(times) < LIMIT:
                    return False
                for c in range(m):
                    real[k, c] -= times * real[j, c]
                for i in range(j):
                    mu[k, i] -= times * mu[j, i]
                mu[k, j] -= times
                exact = np.int64(times)
                for c in range(n):
                    whole[k, c] -= exact * whole[j, c]
                    if abs(whole[k, c]) > LIMIT:
                        return False
        if k == 0 or steps > SWAPS or norm[k] >= (0.9 - mu[k, k - 1] ** 2) * norm[k - 1]:
            k += 1
        else:
            for c in range(m):
                swap = real[k, c]
                real[k, c] = real[k - 1, c]
                real[k - 1, c] = swap
            for c in range(n):
                other = whole[k, c]
                whole[k, c] = whole[k - 1, c]
                whole[k - 1, c] = other
            k -= 1
    return True


@njit(**INNER)
def enumerate_box(lat, radius, tag, out, start, stop):
    """Write every origin + lattice vector whose point offset + vector lies in the box |x_c| <= limit_c into ``out``.

    Also |x|^2 <= radius. Rows of ``out`` (int32) are the n integers and ``tag``; they go to start, start + 1, ... below
    ``stop``. Returns the number of rows, FULL if there is no room, OVERFLOW if an integer leaves the limit.
    A level is bounded by the component along its Gram-Schmidt vector: by what is left of the radius, and by the width of
    the box in that direction; the last level by every side of the box.
    """
    real = lat.real
    whole = lat.whole
    star = lat.star
    partial = lat.partial
    norm = lat.norm
    m = real.shape[0]
    n = whole.shape[1]
    for c in range(m):
        partial[m, c] = lat.offset[c]
    lat.used[m] = 0.0
    count = 0
    level = m - 1
    enter = True
    while level < m:
        if enter:
            along = 0.0
            width = 0.0
            for c in range(m):
                along += partial[level + 1, c] * star[level, c]
                width += lat.limit[c] * abs(star[level, c])
            centre = -along / norm[level]
            reach = min(width / norm[level], np.sqrt(max(radius - lat.used[level + 1], 0.0) / norm[level]))
            low = centre - reach
            high = centre + reach
            if level == 0:
                for c in range(m):
                    x = partial[1, c]
                    y = real[0, c]
                    if abs(y) * 1e12 > lat.limit[c]:
                        a = (-lat.limit[c] - x) / y
                        b = (lat.limit[c] - x) / y
                        low = max(low, min(a, b))
                        high = min(high, max(a, b))
                    elif abs(x) > lat.limit[c] * (1.0 + 1e-9):
                        high = low - 1.0
            lat.now[level] = np.ceil(low - 1e-9)
            lat.last[level] = np.floor(high + 1e-9)
            enter = False
        times = lat.now[level]
        if not times <= lat.last[level]:
            level += 1
            continue
        lat.now[level] = times + 1.0
        if level > 0:
            along = 0.0
            for c in range(m):
                partial[level, c] = partial[level + 1, c] + times * real[level, c]
                along += partial[level, c] * star[level, c]
            lat.used[level] = lat.used[level + 1] + along * along / norm[level]
            level -= 1
            enter = True
            continue
        if start + count >= stop:
            return FULL
        for c in range(n):
            total = float(lat.origin[c])
            exact = lat.origin[c]
            for j in range(m):
                times = lat.now[j] - 1.0
                total += times * whole[j, c]
                exact += np.int64(times) * whole[j, c]
            if not abs(total) < LIMIT:
                return OVERFLOW
            out[start + count, c] = exact
        out[start + count, n] = tag
        count += 1
    return count


COARSE = 0.27
"""Size of the boxes at which the union of h is enumerated."""


@njit(**JIT)
def gather_h(nodes, children, lat, y, n_max, s_low, coarse, stack, state, out):
    """Enumerate the h of coarse boxes until the stack of boxes is empty (0), ``out`` is full (1) or an integer overflows (2).

    On a box A~ >= 1 / (1 + eta), hence N = s h^T A h >= s_low |h~|^2 / (1 + eta); h is kept up to sign, and only if a multiple
    of gcd(h), which divides N, lies between that and n_max. ``state`` (2,): height of the stack, rows of ``out``.
    """
    n = y.shape[0]
    while state[0] > 0:
        row = stack[state[0] - 1]
        eta = nodes[row, 2 * (n - 2)]
        if nodes[row, 2 * (n - 2) + 2] > coarse and children[row] >= 0:
            if state[0] + 1 > stack.shape[0]:
                return 1
            stack[state[0] - 1] = children[row] + 1
            stack[state[0]] = children[row]
            state[0] += 1
            continue
        for j in range(n):
            to_frame(nodes, row, lat.whole, j, y)
            for c in range(n):
                lat.real[j, c] = y[c]
        if not reduce(lat):
            return 2
        radius = n_max / s_low * (1.0 + eta) * (1.0 + 1e-9)
        for c in range(n):
            lat.limit[c] = np.sqrt(radius)
        start = state[1]
        found = enumerate_box(lat, radius, 0, out, start, out.shape[0])
        if found < 0:
            return -found
        kept = start
        for i in range(start, start + found):
            g = 0
            sign = 0
            for c in range(n):
                x = out[i, c]
                if sign == 0 and x != 0:
                    sign = 1 if x > 0 else -1
                a = abs(x)
                while a > 0:
                    rest = g % a
                    g = a
                    a = rest
            if sign < 1:
                continue
            to_frame(nodes, row, out, i, y)
            square = 0.0
            for c in range(n):
                square += y[c] * y[c]
            if s_low * square / (1.0 + eta) <= (n_max // g) * g * (1.0 + 1e-9):
                for c in range(n):
                    out[kept, c] = out[i, c]
                kept += 1
        state[1] = kept
        state[0] -= 1
    return 0


def unique_rows(rows: NDArray[np.int32]) -> NDArray[np.int32]:
    """Distinct rows in lexicographic order, for (m, n) integers of any size."""
    if len(rows) == 0:
        return rows
    low = rows.min(axis=0).astype(np.int64)
    spans = (rows.max(axis=0) - low + 1).tolist()
    digits = 1
    for span in spans:
        digits *= int(span)
    if digits >= 2**62:
        return np.unique(rows, axis=0)
    packed = np.zeros(len(rows), dtype=np.int64)
    for column, span in enumerate(spans):
        packed = packed * span + (rows[:, column] - low[column])
    packed = np.unique(packed)
    result = np.empty((len(packed), rows.shape[1]), dtype=rows.dtype)
    for column in range(rows.shape[1] - 1, -1, -1):
        result[:, column] = packed % spans[column] + low[column]
        packed //= spans[column]
    return result


def union_of_h(cover: Cover, region: Region, *, coarse: float = COARSE) -> NDArray[np.int32]:
    """All h that can belong to a vacuum of the region, up to sign: a superset, from coarse boxes.

    Parameters
    ----------
    cover
        Boxes that cover the region in Im z.
    region
        Its ``n_max`` and ``s`` bound s h^T A(z) h = N_flux <= n_max.
    coarse
        Boxes are taken at this size or as leaves.

    Returns
    -------
    (m, 2 h12 + 2) int32
        Distinct h, the first non-zero entry positive, in lexicographic order.

    Raises
    ------
    OverflowError
        If an entry would exceed `LIMIT`.
    """
    n = dimension(cover)
    lat = lattice(n, n)
    lat.whole[:] = np.eye(n, dtype=np.int64)
    stack = np.zeros(4096, dtype=np.int64)
    stack[: len(cover.roots)] = cover.roots[::-1]
    state = np.array([len(cover.roots), 0])
    out = np.zeros((1 << 16, n + 1), dtype=np.int32)
    s_low = lowest_s(region)
    while status := gather_h(
        cover.nodes, cover.children, lat, np.zeros(n), int(region.n_max), s_low, coarse, stack, state, out
    ):
        if status == 2:
            raise OverflowError(f"an entry of h exceeds {LIMIT}: the region is too large for this search")
        stack = np.concatenate((stack, np.zeros_like(stack)))
        known = unique_rows(out[: state[1], :n])
        out = np.zeros((2 * len(out), n + 1), dtype=np.int32)
        out[: len(known), :n] = known
        state[1] = len(known)
    return unique_rows(out[: state[1], :n])


def dimension(cover: Cover) -> int:
    """Length n = 2 h12 + 2 of h, from the width of a row of the cover."""
    h = 1
    while row_width(h) < cover.nodes.shape[1]:
        h += 1
    return 2 * h + 2


def lowest_s(region: Region) -> float:
    """Lower end of s that a vacuum of the region can have, below it by the tolerance at the edge."""
    return max(float(region.s[0]), 0.75**0.5) - PAD
