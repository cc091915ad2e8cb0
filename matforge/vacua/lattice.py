"""Compiled lattice steps: LLL reduction, lattice points in a box, and the h that can occur at all.

A lattice is given twice, row by row: a real work array holds m basis vectors in the coordinates of some
metric, an integer one the same vectors. Reduction (Lenstra, Lenstra, Lovasz 1982) changes both; enumeration
(Fincke and Pohst 1985) walks the tree of coefficients depth first. Floating point decides only how fast a
step is and, with a tolerance, what is kept; the vectors themselves are exact: whatever could leave
``LIMIT`` is reported, never wrapped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import njit

from matforge.vacua.cover import PAD
from matforge.vacua.kernels import JIT

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from matforge.vacua.cover import Cover
    from matforge.vacua.region import Region

LIMIT = 2**30
"""Largest entry of a lattice vector: 32-bit storage and products of two entries in 64 bits are then safe."""
SWAPS = 2000
"""LLL stops after this many steps; the basis is a basis all the same, only the enumeration is slower."""
LOVASZ = 0.9
"""Parameter of the exchange condition of LLL."""
MANY = 1_000_000
"""Rows of h that are gathered before duplicates are dropped."""
FULL = -1
OVERFLOW = -2


REAL, STAR, MU, PARTIAL = 0, 16, 32, 48
NORM, USED, NOW, LAST, OFFSET, LIMITS, FREE = range(66, 73)
"""Rows of the real work array: basis, Gram-Schmidt vectors and coefficients, partial sums, then single rows.

These are: squared lengths of the Gram-Schmidt vectors; squared length used up, coefficient and last
coefficient at each level; offset of every point; bounds on its coordinates. Rows from FREE on are not used
here.
"""
WHOLE, ORIGIN, SPARE = 0, 16, 17
"""Rows of the integer work array: basis, integer vector of the offset."""


@njit(**JIT)
def reduce(work, whole, m, n):
    """LLL-reduce m vectors of m real and n integer coordinates in place; False if one leaves the limit."""
    k = 0
    steps = 0
    while k < m:
        steps += 1
        for c in range(m):
            work[STAR + k, c] = work[REAL + k, c]
        for j in range(k):
            dot = 0.0
            for c in range(m):
                dot += work[REAL + k, c] * work[STAR + j, c]
            dot /= work[NORM, j]
            work[MU + k, j] = dot
            for c in range(m):
                work[STAR + k, c] -= dot * work[STAR + j, c]
        size = 1e-300
        for c in range(m):
            size += work[STAR + k, c] * work[STAR + k, c]
        work[NORM, k] = size
        for j in range(k - 1, -1, -1):
            times = np.floor(work[MU + k, j] + 0.5)
            if times != 0.0:
                if not abs(times) < LIMIT:
                    return False
                exact = int(times)
                for c in range(m):
                    work[REAL + k, c] -= times * work[REAL + j, c]
                    work[MU + k, c] -= times * (work[MU + j, c] if c < j else 1.0 if c == j else 0.0)
                for c in range(n):
                    entry = whole[WHOLE + k, c] - exact * whole[WHOLE + j, c]
                    whole[WHOLE + k, c] = entry
                    if abs(entry) > LIMIT:
                        return False
        if k == 0 or steps > SWAPS or size >= (LOVASZ - work[MU + k, k - 1] ** 2) * work[NORM, k - 1]:
            k += 1
        else:
            for c in range(m):
                dot = work[REAL + k, c]
                work[REAL + k, c] = work[REAL + k - 1, c]
                work[REAL + k - 1, c] = dot
            for c in range(n):
                entry = whole[WHOLE + k, c]
                whole[WHOLE + k, c] = whole[WHOLE + k - 1, c]
                whole[WHOLE + k - 1, c] = entry
            k -= 1
    return True


@njit(**JIT)
def enumerate_box(work, whole, m, n, radius, tag, out, start):
    """Write every origin + lattice vector whose point offset + vector lies in the box |x_c| <= limit_c into
    ``out``.

    Also |x|^2 <= radius. Rows of ``out`` (int64) are the n integers and ``tag``, from row ``start`` on.
    Returns the number of rows, FULL if there is no room, OVERFLOW if an integer leaves the limit. A level
    is bounded by the component along its Gram-Schmidt vector: by what is left of the radius, and by the
    width of the box in that direction; the last level by every side of the box.
    """
    for c in range(m):
        work[PARTIAL + m, c] = work[OFFSET, c]
    work[USED, m] = 0.0
    count = 0
    level = m - 1
    enter = True
    while level < m:
        if enter:
            along = 0.0
            width = 0.0
            for c in range(m):
                along += work[PARTIAL + level + 1, c] * work[STAR + level, c]
                width += work[LIMITS, c] * abs(work[STAR + level, c])
            size = work[NORM, level]
            width = min(width / size, np.sqrt(max(radius - work[USED, level + 1], 0.0) / size))
            low = -along / size - width
            high = -along / size + width
            if level == 0:
                for c in range(m):
                    x = work[PARTIAL + 1, c]
                    y = work[REAL, c]
                    side = work[LIMITS, c]
                    if abs(y) * 1e12 > side:
                        y = 1.0 / y
                        width = abs(side * y)
                        low = max(low, -x * y - width)
                        high = min(high, -x * y + width)
                    elif abs(x) > side * (1.0 + 1e-9):
                        high = low - 1.0
            work[NOW, level] = np.ceil(low - 1e-9)
            work[LAST, level] = np.floor(high + 1e-9)
        times = work[NOW, level]
        enter = False
        if not times <= work[LAST, level]:
            level += 1
            continue
        work[NOW, level] = times + 1.0
        if level > 0:
            along = 0.0
            for c in range(m):
                x = work[PARTIAL + level + 1, c] + times * work[REAL + level, c]
                work[PARTIAL + level, c] = x
                along += x * work[STAR + level, c]
            work[USED, level] = work[USED, level + 1] + along * along / work[NORM, level]
            level -= 1
            enter = True
            continue
        if start + count >= out.shape[0]:
            return FULL
        for c in range(n):
            exact = whole[ORIGIN, c]
            total = float(exact)
            for j in range(m):
                times = work[NOW, j] - 1.0
                total += times * whole[WHOLE + j, c]
                exact += int(times) * whole[WHOLE + j, c]
            if not abs(total) < LIMIT:
                return OVERFLOW
            out[start + count, c] = exact
        out[start + count, n] = tag
        count += 1
    return count


COARSE = 0.4
"""Size of the boxes at which the union of h is enumerated."""


def unique_rows(rows: NDArray[np.int64]) -> NDArray[np.int64]:
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
    n = cover.frames.shape[1]
    work, whole = work_arrays(n)
    whole[:n, :n] = np.eye(n, dtype=np.int64)
    out = np.zeros((1 << 14, n + 1), dtype=np.int64)
    s_low, n_max = lowest_s(region), int(region.n_max)
    todo = [int(root) for root in cover.roots[::-1]]
    found: list[NDArray[np.int64]] = [np.zeros((0, n), dtype=np.int64)]
    while todo:
        row = todo.pop()
        child = int(cover.children[row])
        eta, _, size = cover.boxes[row, -3:]
        if size > coarse and child >= 0:
            todo += [child + 1, child]
            continue
        frame = cover.frames[row]
        # A~ >= 1 / (1 + eta), hence N = s h^T A h >= s_low |h~|^2 / (1 + eta)
        radius = n_max / s_low * (1 + eta) * (1 + 1e-9)
        work[REAL : REAL + n, :n] = whole[:n, :n] @ frame
        work[LIMITS, :n] = np.sqrt(radius)
        if not reduce(work, whole, n, n):
            raise OverflowError(f"an entry of h exceeds {LIMIT}: the region is too large for this search")
        while (count := enumerate_box(work, whole, n, n, radius, 0, out, 0)) == FULL:
            out = np.zeros((2 * len(out), n + 1), dtype=np.int64)
        if count == OVERFLOW:
            raise OverflowError(f"an entry of h exceeds {LIMIT}: the region is too large for this search")
        h = out[:count, :n]
        first = h[np.arange(count), np.argmax(h != 0, axis=1)]
        h = h[first > 0]
        gcd = np.gcd.reduce(h, axis=1)  # it divides N
        square = ((h @ frame) ** 2).sum(axis=1)
        found.append(h[square * n_max <= radius * (n_max // gcd * gcd) * (1 + 1e-9)])
        if sum(map(len, found)) > MANY:
            found = [unique_rows(np.concatenate(found))]
    return unique_rows(np.concatenate(found)).astype(np.int32)


def work_arrays(n: int, rows: int = FREE, width: int = 0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Real and integer work arrays for vectors of n integers, with room for more rows."""
    return np.zeros((rows, max(width, n + 1))), np.zeros((SPARE + n + 1, n + 1), dtype=np.int64)


def lowest_s(region: Region) -> float:
    """Lower end of s that a vacuum of the region can have, below it by the tolerance at the edge."""
    return max(float(region.s[0]), 0.75**0.5) - PAD
