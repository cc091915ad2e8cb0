"""Compiled steps of one visit: what can be said of the f of one h on one box of the cover.

In the frame of a box (`matforge.vacua.cover`), and after the constant rotation Sigma^T, a vacuum satisfies

    f^ = 2 c0 (h' / 2) + s (h~ + sum_m C_m h~ phi_m(delta) + rest),    |rest| <= q |h~|,

with h' = Sigma^T h~ orthogonal to h~, delta in [-1, 1]^d, |c0| <= 1/2, and f^ . h~ = N exactly: the tadpole
does not depend on z. The functions here bound s h^T A h = N, enclose f^ in slabs, turn the slabs into a box
for the enumeration of integer f, and solve the equation for delta, s and c0 of a given f, with a bound on
the error.

All work on rows of one real and one integer array, named below; see `matforge.vacua.kernels` for the reason.
Throughout n = 2 h12 + 2, d = 2 h12, and m is the number of columns (`matforge.vacua.cover.generators`).
"""

from __future__ import annotations

import numpy as np
from numba import njit

from matforge.vacua.cover import PAD
from matforge.vacua.kernels import INNER
from matforge.vacua.lattice import FREE, LIMIT, LIMITS, OFFSET, ORIGIN, REAL, SPARE, WHOLE

TOLERANCE = 1e-9
"""Relative room for rounding in every comparison."""
DEPENDENT = 1e-14
"""A direction is taken to depend on the earlier ones if this is left of its square, in units of |h~|^2."""

Y, BOUNDS, LEFT, FLAT, SLOPED, CENTRE, WIDTH, UNIT = range(FREE, FREE + 8)
PHI, LINEAR, ERROR, RADIUS, TURNED = range(FREE + 8, FREE + 13)
"""Single rows of the real work array.

h~ (n); BOUNDS, see below; squares of what is left of the linear columns (d + 1); the slabs: constant part
of the width and part proportional to s, then centre and width for one N, and the widths that are the unit
of the enumeration (n); phi_m (m); solve . f (d + 1); norms of the rows of the inverse (d + 1); radii of
delta (d); Sigma u (n).
"""
U, COLUMN, PULL, QUAD, SOLVE, SLOPE, ROWS = range(FREE + 13, FREE + 13 + 7 * 16, 16)
"""Where the matrices begin.

U: orthonormal directions, the first along h~ (n, n). COLUMN: components of the columns along them (n, m).
PULL: the directions as they act on an integer f (n, n). QUAD: what the phi_m beyond the linear ones add to
(2 c0, s delta), over s, and in the last row h^T A h / |h~|^2 (d + 2, m). SOLVE: from f to (2 c0, s delta)
without them (d + 1, n). SLOPE: bounds on the derivatives of quad . phi along delta (d + 2, d). Beside
COLUMN, from m on, is a copy of PULL; beside QUAD is what becomes of that when the linear part is inverted,
and then the inverse itself.
"""
SQUARE, LENGTH, LOWEST, HIGHEST, REST, S, C0, S_LOW, S_HIGH = range(9)
"""Entries of BOUNDS: |h~|^2, |h~|, lowest and highest h^T A h, q, then s, c0 and the range of s of one f."""
EUCLID = SPARE
"""Row of the integer work array: n unimodular rows and their products with Sigma h, then ORDER."""


@njit(**INNER)
def sublattice(h, i, whole, n):
    """Basis of {f : f^T Sigma h = 0} into WHOLE, a p with p^T Sigma h = gcd(h) into EUCLID; returns the gcd.

    Euclid's algorithm on the entries of Sigma h, carried along by the rows of a unimodular matrix; 0 on
    overflow or for h = 0.
    """
    p = n // 2
    for r in range(n):
        for c in range(n):
            whole[EUCLID + r, c] = 1 if r == c else 0
        whole[EUCLID + r, n] = h[i, p + r] if r < p else -h[i, r - p]
    while True:
        least = -1
        others = 0
        size = 0
        for r in range(n):
            x = abs(whole[EUCLID + r, n])
            if x != 0:
                others += 1
                if least < 0 or x < size:
                    least = r
                    size = x
        if least < 0:
            return 0
        if others == 1:
            break
        for r in range(n):
            if r != least:
                times = int(np.floor(whole[EUCLID + r, n] / whole[EUCLID + least, n] + 0.5))
                for c in range(n + 1):
                    x = whole[EUCLID + r, c] - times * whole[EUCLID + least, c]
                    whole[EUCLID + r, c] = x
                    if abs(x) > LIMIT:
                        return 0
    sign = 1 if whole[EUCLID + least, n] > 0 else -1
    for c in range(n + 1):
        x = whole[EUCLID, c]
        whole[EUCLID, c] = sign * whole[EUCLID + least, c]
        if least > 0:
            whole[EUCLID + least, c] = x
        for r in range(1, n):
            if c < n:
                whole[WHOLE + r - 1, c] = whole[EUCLID + r, c]
    return size


@njit(**INNER)
def columns_of(boxes, frames, generators, row, h, i, work, flat, columns):
    """h~, the columns h' / 2 and C_m h~, their components along h~, and bounds of h^T A h on the box.

    h^T A h = |h~|^2 (1 + sum_m (h~ . C_m h~) phi_m / |h~|^2 +- q), and A~ lies between 1 / (1 + eta) and 1
    + eta. ``flat`` and ``columns`` are the same memory, (n m,) and (n, m); the part along h~ is taken out
    of the linear ones.
    """
    n, m = columns.shape
    for c in range(n):
        work[Y, c] = 0.0
    for j in range(n):
        x = float(h[i, j])
        for c in range(n):
            work[Y, c] += frames[row, j, c] * x
    for c in range(n * m):
        flat[c] = 0.0
    square = 0.0
    for j in range(n):
        x = work[Y, j]
        square += x * x
        for c in range(n * m):
            flat[c] += generators[row, j, c] * x
    length = np.sqrt(square)
    for c in range(m):
        work[COLUMN, c] = 0.0
    for j in range(n):
        x = work[Y, j] / length
        work[U, j] = x
        for c in range(m):
            work[COLUMN, c] += x * columns[j, c]
    q = boxes[row, 2 * n - 3]
    eta = 1.0 + boxes[row, 2 * n - 4]
    spread = q * length
    for c in range(1, m - 1):
        spread += abs(work[COLUMN, c])
    mean = length + work[COLUMN, m - 1]
    work[BOUNDS, SQUARE] = square
    work[BOUNDS, LENGTH] = length
    work[BOUNDS, LOWEST] = max(square / eta, length * (mean - spread))
    work[BOUNDS, HIGHEST] = min(square * eta, length * (mean + spread))
    work[BOUNDS, REST] = q


@njit(**INNER)
def directions(work, columns, order, s):
    """Orthonormal directions orthogonal to h~, and slabs |u . f^ - s shift| <= flat + s sloped along them.

    They are made from h' / 2 and s C_a h~, always the longest that is left first. False if these are linearly
    dependent: the last directions are then arbitrary, and the slabs along them as thin as the rest allows.
    """
    n, m = columns.shape
    square = work[BOUNDS, SQUARE]
    spread = work[BOUNDS, REST] * work[BOUNDS, LENGTH]
    for c in range(n - 1):
        size = 0.0
        for i in range(n):
            x = columns[i, c] - work[U, i] * work[COLUMN, c]
            columns[i, c] = x
            size += x * x
        work[LEFT, c] = size if c == 0 else s * s * size
    regular = True
    for k in range(1, n):
        best = 0
        size = -1.0
        for c in range(n - 1):
            if work[LEFT, c] > size:
                size = work[LEFT, c]
                best = c
        order[EUCLID + n, k] = best
        work[LEFT, best] = -1.0
        size = 0.0
        for i in range(n):
            x = columns[i, best]
            work[U + k, i] = x
            size += x * x
        if size < DEPENDENT * square:
            regular = False
            best = -1
            size = 0.0
            while size * n < 0.9:  # over all axes what is left adds up to n - k
                best += 1
                size = 1.0
                for j in range(k):
                    size -= work[U + j, best] ** 2
            for i in range(n):
                x = 1.0 if i == best else 0.0
                for j in range(k):
                    x -= work[U + j, best] * work[U + j, i]
                work[U + k, i] = x
        size = 1.0 / np.sqrt(size)
        for c in range(m):
            work[COLUMN + k, c] = 0.0
        for i in range(n):
            x = work[U + k, i] * size
            work[U + k, i] = x
            for c in range(m):
                work[COLUMN + k, c] += x * columns[i, c]
        for i in range(n):
            x = work[U + k, i]
            for c in range(n - 1):
                columns[i, c] -= x * work[COLUMN + k, c]
        size = spread
        for c in range(1, m - 1):
            size += abs(work[COLUMN + k, c])
        for c in range(n - 1):
            x = work[COLUMN + k, c]
            work[LEFT, c] -= x * x if c == 0 else (s * x) ** 2
        work[FLAT, k] = (1.0 + 2.0 * PAD) * abs(work[COLUMN + k, 0])
        work[SLOPED, k] = size
    return regular


@njit(**INNER)
def limits(work, tadpole, s_low, s_high, n, m):
    """For one N: the range of s on this box, and CENTRE and WIDTH with |u_k . f^ - centre| <= width.

    Returns whether any s is possible.
    """
    low = max(s_low, tadpole / work[BOUNDS, HIGHEST] * (1.0 - TOLERANCE))
    high = min(s_high, tadpole / work[BOUNDS, LOWEST] * (1.0 + TOLERANCE))
    work[BOUNDS, S_LOW] = low
    work[BOUNDS, S_HIGH] = high
    for k in range(1, n):
        shift = work[COLUMN + k, m - 1]
        half = 0.5 * (high - low) * abs(shift)
        work[CENTRE, k] = 0.5 * (low + high) * shift
        work[WIDTH, k] = (work[FLAT, k] + high * work[SLOPED, k] + half) * (1.0 + TOLERANCE)
    return low <= high


@njit(**INNER)
def pull_back(frames, row, work, n, m):
    """PULL, and its copy beside COLUMN: u Sigma^T L^T, the directions as they act on an integer f."""
    p = n // 2
    for k in range(1, n):
        for i in range(p):
            work[TURNED, i] = work[U + k, p + i]
            work[TURNED, p + i] = -work[U + k, i]
        for c in range(n):
            x = 0.0
            for i in range(n):
                x += work[TURNED, i] * frames[row, c, i]
            work[PULL + k, c] = x
            work[COLUMN + k, m + c] = x


@njit(**INNER)
def metric(work, whole, n):
    """Basis of {f : f^T Sigma h = 0}, and last the particular f, in slab coordinates in units of WIDTH."""
    for k in range(1, n):
        scale = work[WIDTH, k]
        work[UNIT, k] = scale
        for j in range(n):
            at = WHOLE + j if j < n - 1 else EUCLID
            x = 0.0
            for c in range(n):
                x += work[PULL + k, c] * whole[at, c]
            work[REAL + j, k - 1] = x / scale


@njit(**INNER)
def offset(work, whole, times, n):
    """Set the box of the enumeration for N = times gcd(h), and the point it is relative to.

    Returns its squared half diagonal, or -1 if an integer leaves the limit.
    """
    radius = 0.0
    for k in range(1, n):
        scale = work[UNIT, k]
        x = work[WIDTH, k] / scale
        work[LIMITS, k - 1] = x
        radius += x * x
        work[OFFSET, k - 1] = times * work[REAL + n - 1, k - 1] - work[CENTRE, k] / scale
    for c in range(n):
        x = times * whole[EUCLID, c]
        whole[ORIGIN, c] = x
        if abs(x) > LIMIT:
            return -1.0
    return radius


@njit(**INNER)
def invert(work, order, n, m):
    """Invert the linear part once for all f, by back substitution along whole rows.

    Fills QUAD, SOLVE, ERROR and SLOPE.
    """
    d = n - 2
    last = m + 2 * n
    for k in range(n - 1, -1, -1):
        unknown = order[EUCLID + n, k] if k > 0 else d + 1
        size = 1.0 / (work[COLUMN + k, unknown] if k > 0 else work[BOUNDS, LENGTH])
        for c in range(last):
            x = 0.0
            if c < m + n:
                x = work[COLUMN + k, c]
            elif c == m + n + k:  # a unit matrix, which becomes the inverse of the triangle
                x = 1.0
            work[QUAD + unknown, c] = x
        if k > 0:
            for j in range(k + 1, n):
                x = work[COLUMN + k, order[EUCLID + n, j]]
                at = QUAD + order[EUCLID + n, j]
                for c in range(last):
                    work[QUAD + unknown, c] -= x * work[at, c]
        for c in range(last):
            work[QUAD + unknown, c] *= size
        size = 0.0
        for c in range(m + n, last):
            size += work[QUAD + unknown, c] ** 2
        work[ERROR, unknown] = np.sqrt(size)
        for c in range(n):
            work[SOLVE + unknown, c] = work[QUAD + unknown, m + c]
        if k == 0:
            work[QUAD + unknown, m - 1] += 1.0
        else:
            for c in range(d + 1):
                work[QUAD + unknown, c] = 0.0
        at = 1 + 2 * d
        for a in range(d):
            x = abs(work[QUAD + unknown, 1 + d + a])
            work[SLOPE + unknown, a] = abs(work[QUAD + unknown, 1 + a]) + 4.0 * x  # 2 delta^2 - 1 has slope 4
        for a in range(d):
            for b in range(a + 1, d):
                x = abs(work[QUAD + unknown, at])
                work[SLOPE + unknown, a] += x
                work[SLOPE + unknown, b] += x
                at += 1


@njit(**INNER)
def possible(work, f, spans, at, rounds, n, m):
    """Whether f[at] can solve the equation on the box; leaves delta, radius in spans[at], s and c0 in BOUNDS.

    It has to lie in all slabs. Then, with t_a = (solve . f)_a |h~|^2 / N and
    1 / s = (|h~|^2 / N) (quad_last . phi +- q),

        delta_a = t_a (quad_last . phi) - quad_a . phi +- q (|t_a| + |h~| error_a),

    a contraction on small boxes: from what is known of delta, each round multiplies the radius by the slopes.
    Rejected are delta outside of what was known before (at first [-1, 1]), s outside the range that N allows,
    |c0| > 1/2 and |tau| < 1, each with the error against the rejection. ``rounds`` = 0 stands for linearly
    dependent columns: only the slabs are tested, and the start is what is known already.
    """
    d = n - 2
    for k in range(1, n):
        x = -work[CENTRE, k]
        for c in range(n):
            x += work[PULL + k, c] * f[at, c]
        if abs(x) > work[WIDTH, k]:
            return False
    rest = work[BOUNDS, REST]
    low = work[BOUNDS, S_LOW]
    high = work[BOUNDS, S_HIGH]
    work[BOUNDS, S] = 0.5 * (low + high)
    work[BOUNDS, C0] = 0.0
    if rounds == 0:
        return True
    scale = work[BOUNDS, SQUARE] / f[at, n]
    for k in range(d + 1):
        x = 0.0
        for c in range(n):
            x += work[SOLVE + k, c] * f[at, c]
        work[LINEAR, k] = x
    work[PHI, 0] = 0.0
    work[PHI, m - 1] = 1.0
    value = 0.0
    reach = 0.0
    wide = 0.0
    for _ in range(rounds):
        pair = 1 + 2 * d
        for a in range(d):
            x = spans[at, a]
            work[PHI, 1 + a] = x
            work[PHI, 1 + d + a] = 2.0 * x * x - 1.0
            work[RADIUS, a] = spans[at, d + a]
            for b in range(a + 1, d):
                work[PHI, pair] = x * spans[at, b]
                pair += 1
        for k in range(d + 1, -1, -1):
            x = 0.0
            wide = 0.0
            for c in range(1 if k > d else d + 1, m):
                x += work[QUAD + k, c] * work[PHI, c]
            for b in range(d):
                wide += work[SLOPE + k, b] * work[RADIUS, b]
            if k > d:
                value = x
                reach = wide + rest
                continue
            wide += rest * work[BOUNDS, LENGTH] * work[ERROR, k]
            if k > 0:
                t = work[LINEAR, k] * scale
                x = t * value - x
                wide += abs(t) * reach
                if abs(x - spans[at, k - 1]) > wide + work[RADIUS, k - 1] + TOLERANCE:
                    return False
                if wide < work[RADIUS, k - 1]:
                    x = min(max(x, -1.0), 1.0)
                    spans[at, k - 1] = x
                    spans[at, d + k - 1] = wide
    low = max(low, (1.0 - TOLERANCE) / (scale * (value + reach)))
    if value > reach:
        high = min(high, (1.0 + TOLERANCE) / (scale * (value - reach)))
    if low > high:
        return False
    s = min(max(1.0 / (scale * value), low), high)
    c0 = 0.5 * (work[LINEAR, 0] - s * x)
    wide = 0.5 * (wide * high + max(high - s, s - low) * abs(x)) + PAD
    work[BOUNDS, S] = s
    work[BOUNDS, C0] = min(max(c0, -0.5), 0.5)
    if abs(c0) - wide > 0.5:
        return False
    c0 = min(0.5 + PAD, abs(c0) + wide)
    return high * high + c0 * c0 >= 1.0 - PAD
