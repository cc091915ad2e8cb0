"""Compiled ISD completion: all f that an h can have in a region, each with starting points for Newton's method.

At a vacuum f = c0 h + s J(z) h (arXiv:2501.03984, section 3). In the frame of a box (`matforge.vacua.cover`), and after the
constant rotation Sigma^T, this is

    f^ = 2 c0 (h' / 2) + s (h~ + sum_m C_m h~ phi_m(delta) + rest),    |rest| <= q |h~|,    h' = Sigma^T h~ orthogonal to h~,

with delta in [-1, 1]^d, |c0| <= 1/2, and f^ . h~ = N exactly: the tadpole does not depend on z. A visit of one box for one h
drops whatever this cannot reach, and either asks the two halves of the box or, at a leaf, writes down one start per f:

* no f is known yet: bound s h^T A h = N; enclose f^ in slabs along orthonormal directions; while more than a few integer f
  are expected in them, ask the halves, else enumerate them;
* a list of f is known: for each, the slabs, and the solution of the equation for delta, s and c0, whose linear part is
  inverted once per (box, h) and whose quadratic part is iterated with a bound on the error.

The boxes still to visit are a stack, the lists an arena beside it: a run may stop after any visit and go on elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numba import njit

from matforge.vacua.cover import PAD, generators
from matforge.vacua.kernels import CONE, INNER, JIT, arrays_of
from matforge.vacua.lattice import (
    FREE, FULL, LIMIT, LIMITS, OFFSET, ORIGIN, OVERFLOW, REAL, SPARE, WHOLE, enumerate_box, lowest_s, reduce, work_arrays,
)  # fmt: skip

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from matforge.vacua.cover import Cover
    from matforge.vacua.geometry import Geometry
    from matforge.vacua.region import Region

FEW = 8.0
"""Boxes are halved while more f than this are expected."""
TOLERANCE = 1e-9
"""Relative room for rounding in every comparison."""
DEPENDENT = 1e-14
"""A direction is taken to depend on the earlier ones if this is left of its square, in units of |h~|^2."""
ROUNDS = 3
"""Times the quadratic part is iterated; each multiplies the error by the Lipschitz constant, about 0.2."""

DONE, OUT_OF_BUDGET, STACK_FULL, ARENA_FULL, OUT_FULL, TOO_LARGE = range(6)
COUNTERS = ("steps", "nodes_visited", "nodes_with_list", "enumerations", "f_enumerated", "f_tested", "f_kept", "starts")
STEPS, VISITS, LISTS, ENUMERATIONS, ENUMERATED, TESTED, KEPT, STARTS = range(8)

Y, BOUNDS, LEFT, FLAT, SLOPED, SHIFT, WIDTH, PHI, VALUE, LINEAR, ERROR, DELTA, RADIUS, NEXT, NEXT_RADIUS = range(FREE, FREE + 15)
"""Single rows of the real work array; n = 2 h12 + 2, d = 2 h12, M = generators (h' / 2, then the phi_m, the constant last).

h~ (n); see below (9); squares of what is left of the linear columns (d + 1); limits |u . f^ - s shift| <= flat + s sloped
and that shift (n); the limits for the largest N (n); phi_m (M); quad . phi (d + 2); solve . f (d + 1); norms of the rows
of the inverse (d + 1); delta, its radius (d) and the next of both.
"""
U, COLUMN, PULL, INVERSE, SOLVE, QUAD, SLOPE, ROWS = range(FREE + 16, FREE + 16 + 8 * 16, 16)
"""Where matrices begin: orthonormal directions u, the first along h~ (n, n); components of the columns along them (n, M);
the directions as they act on an integer f (n, n); inverse of the triangle of linear columns in the order of the directions (n, n);
from f to (2 c0, s delta) if the phi_m beyond the linear ones vanished (d + 1, n); what those add, over s, the last row being
h^T A h / |h~|^2 (d + 2, M); bounds on the derivatives of quad . phi along delta (d + 2, d)."""
SQUARE, LENGTH, LOWEST, HIGHEST, REST, S, C0, S_LOW, S_HIGH = range(9)
"""Entries of the row BOUNDS: |h~|^2, |h~|, lowest and highest h^T A h, q, then s, c0 and the range of s of one f."""
EUCLID = SPARE
"""Row of the integer work array: unimodular rows and their products with Sigma h (n); then the order of the directions."""


@njit(**INNER)
def sublattice(h, i, whole, n):
    """Basis of {f : f^T Sigma h = 0} into WHOLE and a p with p^T Sigma h = gcd(h) into EUCLID; returns the gcd.

    Euclid's algorithm on the entries of Sigma h, carried along by the rows of a unimodular matrix; 0 on overflow or h = 0.
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
def project(work, columns, k, square, n, m):
    """Make direction k of unit length from work[U + k], whose square is given, and project it out of the columns."""
    scale = 1.0 / np.sqrt(square)
    for c in range(m):
        work[COLUMN + k, c] = 0.0
    for i in range(n):
        x = work[U + k, i] * scale
        work[U + k, i] = x
        for c in range(m):
            work[COLUMN + k, c] += x * columns[i * m + c]
    for i in range(n):
        x = work[U + k, i]
        for c in range(m):
            columns[i * m + c] -= x * work[COLUMN + k, c]


@njit(**INNER)
def prepare(nodes, row, h, i, work, columns, n, m):
    """h~, the columns, their components along h~, and bounds of h^T A h on the box.

    h^T A h = |h~|^2 (1 + sum_m (h~ . C_m h~) phi_m / |h~|^2 +- q) and A~ lies between 1 / (1 + eta) and 1 + eta.
    """
    base = 2 * (n - 2) + 3
    for c in range(n):
        work[Y, c] = 0.0
    for j in range(n):
        x = float(h[i, j])
        for c in range(n):
            work[Y, c] += nodes[row, base + j * n + c] * x
    for c in range(n * m):
        columns[c] = 0.0
    square = 0.0
    for j in range(n):
        x = work[Y, j]
        square += x * x
        work[U, j] = x
        at = base + n * n + j * n * m
        for c in range(n * m):
            columns[c] += nodes[row, at + c] * x
    project(work, columns, 0, square, n, m)
    length = np.sqrt(square)
    reach = nodes[row, base - 2] * length
    for c in range(1, m - 1):
        reach += abs(work[COLUMN, c])
    mean = length + work[COLUMN, m - 1]
    eta = 1.0 + nodes[row, base - 3]
    work[BOUNDS, SQUARE] = square
    work[BOUNDS, LENGTH] = length
    work[BOUNDS, LOWEST] = max(square / eta, length * (mean - reach))
    work[BOUNDS, HIGHEST] = min(square * eta, length * (mean + reach))
    work[BOUNDS, REST] = nodes[row, base - 2]


@njit(**INNER)
def directions(work, columns, order, s, n, m):
    """Orthonormal directions orthogonal to h~, and slabs |u . f^ - s shift| <= flat + s sloped.

    They are made from h' / 2 and s C_a h~, always the longest that is left first. False if these are linearly dependent:
    the last directions are then arbitrary.
    """
    square = work[BOUNDS, SQUARE]
    weight = 1.0
    for c in range(n - 1):
        x = 0.0
        for i in range(n):
            x += columns[i * m + c] * columns[i * m + c]
        work[LEFT, c] = weight * x
        weight = s * s
    regular = True
    for k in range(1, n):
        best = 0
        for c in range(1, n - 1):
            if work[LEFT, c] > work[LEFT, best]:
                best = c
        order[EUCLID + n, k] = best
        size = 0.0
        for i in range(n):
            x = columns[i * m + best]
            work[U + k, i] = x
            size += x * x
        if size < DEPENDENT * square:
            regular = False
            axis = 0
            size = 0.0
            while size * n < 0.9:  # over all axes what is left adds up to n - k
                size = 1.0
                for j in range(k):
                    size -= work[U + j, axis] ** 2
                axis += 1
            for i in range(n):
                x = 1.0 if i == axis - 1 else 0.0
                for j in range(k):
                    x -= work[U + j, axis - 1] * work[U + j, i]
                work[U + k, i] = x
        project(work, columns, k, size, n, m)
        wide = work[BOUNDS, REST] * work[BOUNDS, LENGTH]
        for c in range(1, m - 1):
            wide += abs(work[COLUMN + k, c])
        work[FLAT, k] = (1.0 + 2.0 * PAD) * abs(work[COLUMN + k, 0])
        work[SLOPED, k] = wide
        work[SHIFT, k] = work[COLUMN + k, m - 1]
        weight = 1.0
        for c in range(n - 1):
            work[LEFT, c] -= weight * work[COLUMN + k, c] ** 2
            weight = s * s
        work[LEFT, best] = -1.0
    return regular


@njit(**INNER)
def limits(work, tadpole, s_low, s_high):
    """Range of s for one N on this box into BOUNDS; whether it is not empty."""
    low = max(s_low, tadpole / work[BOUNDS, HIGHEST] * (1.0 - TOLERANCE))
    high = min(s_high, tadpole / work[BOUNDS, LOWEST] * (1.0 + TOLERANCE))
    work[BOUNDS, S_LOW] = low
    work[BOUNDS, S_HIGH] = high
    return low <= high


@njit(**INNER)
def width(work, k):
    """Limit on |u_k . f^ - s shift| with s in the middle of its range, for all s of the range."""
    high = work[BOUNDS, S_HIGH]
    half = 0.5 * (high - work[BOUNDS, S_LOW])
    return (work[FLAT, k] + high * work[SLOPED, k] + half * abs(work[SHIFT, k])) * (1.0 + TOLERANCE)


@njit(**INNER)
def expected(work, gcd, first, last, s_low, s_high, n):
    """Number of f expected in the slabs: the f of one N have a lattice of covolume |h~| / gcd (A has determinant 1)."""
    total = 0.0
    for tadpole in range(first, last + 1, gcd):
        if limits(work, tadpole, s_low, s_high):
            volume = gcd / work[BOUNDS, LENGTH]
            for k in range(1, n):
                volume *= 2.0 * width(work, k)
            total += volume
    return total


@njit(**INNER)
def pull_back(nodes, row, work, n):
    """PULL = u Sigma^T L^T: the directions as they act on an integer f."""
    p = n // 2
    base = 2 * (n - 2) + 3
    for k in range(1, n):
        for c in range(n):
            x = 0.0
            for i in range(p):
                x += work[U + k, p + i] * nodes[row, base + c * n + i]
                x -= work[U + k, i] * nodes[row, base + c * n + p + i]
            work[PULL + k, c] = x


@njit(**INNER)
def enumerate_f(work, whole, gcd, first, last, s_low, s_high, n, out, start):
    """Write all f of the slabs of a box with N = first, first + gcd, ..., last into ``out`` (columns f, N); their number."""
    limits(work, last, s_low, s_high)
    for k in range(1, n):
        scale = width(work, k)
        work[WIDTH, k] = scale
        for j in range(n):
            at = WHOLE + j if j < n - 1 else EUCLID
            x = 0.0
            for c in range(n):
                x += work[PULL + k, c] * whole[at, c]
            work[REAL + j, k - 1] = x / scale
    if not reduce(work, whole, n - 1, n):
        return OVERFLOW
    count = 0
    for tadpole in range(first, last + 1, gcd):
        if not limits(work, tadpole, s_low, s_high):
            continue
        times = tadpole // gcd
        middle = 0.5 * (work[BOUNDS, S_LOW] + work[BOUNDS, S_HIGH])
        radius = 0.0
        for k in range(1, n):
            x = width(work, k) / work[WIDTH, k]
            work[LIMITS, k - 1] = x
            radius += x * x
            work[OFFSET, k - 1] = times * work[REAL + n - 1, k - 1] - middle * work[SHIFT, k] / work[WIDTH, k]
        for c in range(n):
            entry = times * whole[EUCLID, c]
            whole[ORIGIN, c] = entry
            if abs(entry) > LIMIT:
                return OVERFLOW
        found = enumerate_box(work, whole, n - 1, n, radius, tadpole, out, start + count)
        if found < 0:
            return found
        count += found
    return count


@njit(**INNER)
def invert(work, order, n, m):
    """Solve the linear part once for all f: SOLVE, ERROR, and what the other phi_m do in QUAD and SLOPE."""
    d = n - 2
    for k in range(n - 1, 0, -1):
        unknown = order[EUCLID + n, k]
        size = 0.0
        for c in range(n):
            work[SOLVE + unknown, c] = 0.0
        for c in range(m):
            work[QUAD + unknown, c] = 0.0
        for j in range(k, n):  # row k of the inverse of the triangle COLUMN[k, order[j]]
            x = 1.0 if j == k else 0.0
            for i in range(k + 1, j + 1):
                x -= work[COLUMN + k, order[EUCLID + n, i]] * work[INVERSE + i, j]
            x /= work[COLUMN + k, unknown]
            work[INVERSE + k, j] = x
            size += x * x
            for c in range(n):
                work[SOLVE + unknown, c] += x * work[PULL + j, c]
            for c in range(d + 1, m):
                work[QUAD + unknown, c] += x * work[COLUMN + j, c]
        work[ERROR, unknown] = np.sqrt(size)
    for c in range(m):
        x = work[COLUMN, c] / work[BOUNDS, LENGTH]
        work[QUAD + d + 1, c] = x if c < m - 1 else x + 1.0
    for k in range(d + 2):
        at = 1 + 2 * d
        for a in range(d):
            work[SLOPE + k, a] = abs(work[QUAD + k, 1 + a]) + 4.0 * abs(work[QUAD + k, 1 + d + a])
        for a in range(d):
            for b in range(a + 1, d):
                x = abs(work[QUAD + k, at])
                work[SLOPE + k, a] += x
                work[SLOPE + k, b] += x
                at += 1


@njit(**INNER)
def in_slabs(work, f, at, n):
    """Whether f[at] lies in all slabs, for the range of s in BOUNDS."""
    middle = 0.5 * (work[BOUNDS, S_LOW] + work[BOUNDS, S_HIGH])
    for k in range(1, n):
        x = -middle * work[SHIFT, k]
        for c in range(n):
            x += work[PULL + k, c] * f[at, c]
        if abs(x) > width(work, k):
            return False
    return True


@njit(**INNER)
def refine(work, f, at, n, m):
    """Whether f[at] can solve the equation on the box; delta, its radius, s and c0 are left in work.

    With t_a = (solve . f)_a |h~|^2 / N and 1 / s = (|h~|^2 / N) (quad_last . phi +- q),

        delta_a = t_a (quad_last . phi) - quad_a . phi +- q (|t_a| + |h~| error_a),

    a contraction on small boxes: from delta = 0 +- 1 on, the radius is multiplied by the slopes. Rejected are |delta_a| > 1,
    s outside the range that N allows, |c0| > 1/2 and |tau| < 1, each with the error against the rejection.
    """
    d = n - 2
    rest = work[BOUNDS, REST]
    scale = work[BOUNDS, SQUARE] / f[at, n]
    for k in range(d + 1):
        x = 0.0
        for c in range(n):
            x += work[SOLVE + k, c] * f[at, c]
        work[LINEAR, k] = x
        work[NEXT, k] = 0.0
        work[NEXT_RADIUS, k] = 1.0
    work[PHI, 0] = 0.0
    work[PHI, m - 1] = 1.0
    for rounds in range(ROUNDS + 1):
        pair = 1 + 2 * d
        for a in range(d):
            x = work[NEXT, a]
            work[DELTA, a] = x
            work[RADIUS, a] = work[NEXT_RADIUS, a]
            work[PHI, 1 + a] = x
            work[PHI, 1 + d + a] = 2.0 * x * x - 1.0
            for b in range(a + 1, d):
                work[PHI, pair] = x * work[NEXT, b]
                pair += 1
        for k in range(d + 1, -1, -1):
            x = 0.0
            wide = 0.0
            for c in range(m):
                x += work[QUAD + k, c] * work[PHI, c]
            for b in range(d):
                wide += work[SLOPE + k, b] * work[RADIUS, b]
            work[VALUE, k] = x
            if k == d + 1:
                value = x
                reach = wide + rest
            elif k > 0:
                t = work[LINEAR, k] * scale
                x = t * value - x
                wide += abs(t) * reach + rest * work[BOUNDS, LENGTH] * work[ERROR, k]
                if abs(x) - wide > 1.0 + TOLERANCE:
                    return False
                x = min(max(x, -1.0), 1.0)
                work[NEXT, k - 1] = x
                work[NEXT_RADIUS, k - 1] = min(wide, 1.0 + abs(x))
            else:
                wide += rest * work[BOUNDS, LENGTH] * work[ERROR, 0]
    low = max(work[BOUNDS, S_LOW], (1.0 - TOLERANCE) / (scale * (value + reach)))
    high = work[BOUNDS, S_HIGH]
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


@njit(**INNER)
def rough_start(work, n):
    """Where the linear columns are dependent: the centre of the box, with s in the middle of its range and c0 = 0."""
    for a in range(n - 2):
        work[DELTA, a] = 0.0
        work[RADIUS, a] = 1.0
    work[BOUNDS, S] = 0.5 * (work[BOUNDS, S_LOW] + work[BOUNDS, S_HIGH])
    work[BOUNDS, C0] = 0.0


@njit(**INNER)
def write_start(real, nodes, row, work, n, starts, out):
    """Write the start (Re z, Im z, c0, s) at DELTA."""
    d = n - 2
    half = d // 2
    for j in range(half):
        im = 0.0
        for a in range(half, d):
            im += real[CONE + j, a - half] * np.exp(nodes[row, a] + nodes[row, d + a] * work[DELTA, a])
        starts[out, j] = nodes[row, j] + nodes[row, d + j] * work[DELTA, j]
        starts[out, half + j] = im
    starts[out, d] = work[BOUNDS, C0]
    starts[out, d + 1] = work[BOUNDS, S]


@njit(**INNER)
def push(stack, state, i, node, start, length):
    """Put one box on the stack."""
    top = state[0]
    stack[top, 0] = i
    stack[top, 1] = node
    stack[top, 2] = start
    stack[top, 3] = length
    state[0] = top + 1


@njit(**JIT)
def run(
    real, nodes, children, axis, h, n_max, s_low, s_high, few, budget, work, columns, whole, stack, arena, fluxes, starts,
    state, counters,
):  # fmt: skip
    """Visit boxes until the stack is empty, the budget is spent or an array is full; the status says which.

    ``stack`` (k, 4) int64: row of h, node, first row of its list in the arena, length of the list or -1. ``arena``
    (., n + 1) int64: f and N. ``state`` (5,): height of the stack, of the arena, rows of output, the h whose
    sublattice is in ``whole`` and its gcd. Every array that is full leaves the visit undone, to be repeated with a larger one.
    """
    n = h.shape[1]
    m = columns.shape[0] // n
    limit = counters[STEPS] + budget
    while state[0] > 0:
        if counters[STEPS] >= limit:
            return OUT_OF_BUDGET
        item = state[0] - 1
        i = stack[item, 0]
        row = stack[item, 1]
        start = stack[item, 2]
        length = stack[item, 3]
        child = children[row]
        if item + 2 > stack.shape[0]:
            return STACK_FULL
        if state[3] != i:
            state[4] = sublattice(h, i, whole, n)
            state[3] = i
            if state[4] == 0:
                return TOO_LARGE
        gcd = state[4]
        prepare(nodes, row, h, i, work, columns, n, m)
        counters[STEPS] += 1
        low = work[BOUNDS, LOWEST]
        first = gcd * int(np.ceil(s_low * low * (1.0 - TOLERANCE) / gcd))
        last = gcd * int(np.floor(min(float(n_max), s_high * work[BOUNDS, HIGHEST] * (1.0 + TOLERANCE)) / gcd))
        if first > last:  # no N that h and s allow on this box
            state[0] = item
            state[1] -= max(length, 0)
            continue
        regular = directions(work, columns, whole, min(s_high, last / low), n, m)
        if length < 0:
            counters[VISITS] += 1
            if child >= 0 and expected(work, gcd, first, last, s_low, s_high, n) > few:
                state[0] = item
                for side in range(2):
                    push(stack, state, i, child + 1 - side, 0, -1)
                continue
        pull_back(nodes, row, work, n)
        if length < 0:
            start = state[1]
            length = enumerate_f(work, whole, gcd, first, last, s_low, s_high, n, arena, start)
            if length == FULL:
                return ARENA_FULL
            if length == OVERFLOW:
                return TOO_LARGE
            counters[ENUMERATIONS] += 1
            counters[ENUMERATED] += length
            stack[item, 2] = start
            stack[item, 3] = length
            state[1] = start + length
        top = state[1]
        if top + 2 * length > arena.shape[0]:
            return ARENA_FULL
        if child < 0 and state[2] + length > fluxes.shape[0]:
            return OUT_FULL
        counters[STEPS] += length
        counters[LISTS] += 1
        counters[TESTED] += length
        if regular and length > 0:
            invert(work, whole, n, m)
        below = 0
        above = 0
        for at in range(start, start + length):
            if not limits(work, arena[at, n], s_low, s_high) or not in_slabs(work, arena, at, n):
                continue
            if not regular:
                rough_start(work, n)
            elif not refine(work, arena, at, n, m):
                continue
            counters[KEPT] += 1
            if child < 0:
                out = state[2]
                for c in range(n):
                    fluxes[out, c] = arena[at, c]
                    fluxes[out, n + c] = h[i, c]
                write_start(real, nodes, row, work, n, starts, out)
                state[2] = out + 1
                continue
            where = work[DELTA, axis[row]]
            radius = work[RADIUS, axis[row]]
            for c in range(n + 1):
                x = arena[at, c]
                arena[top + below, c] = x
                arena[top + length + above, c] = x
            below += int(where <= radius)
            above += int(where >= -radius)
        state[1] = start
        state[0] = item
        for side in range(2):
            count = below if side == 1 else above
            if count > 0:
                push(stack, state, i, child + 1 - side, state[1], count)
                source = top if side == 1 else top + length
                for r in range(source, source + count):
                    for c in range(n + 1):
                        arena[state[1], c] = arena[r, c]
                    state[1] += 1
    return DONE


class Unfinished(NamedTuple):
    """Boxes that were not visited; complete in itself. m h, k boxes, r listed f; n = 2 h12 + 2."""

    h: NDArray[np.int64]  # (m, n)
    boxes: NDArray[np.int64]  # (k, 4): row of h, node, first row of the list, its length or -1 if no f is known yet
    lists: NDArray[np.int64]  # (r, n + 1): f and N


class BlockResult(NamedTuple):
    """What the visit of a block found; m starts (several for one flux vector), n = 2 h12 + 2, h = h12."""

    fluxes: NDArray[np.int32]  # (m, 2 n) [f | h]
    moduli: NDArray[np.complex128]  # (m, h) start of z
    tau: NDArray[np.complex128]  # (m,) start of tau
    unfinished: Unfinished | None
    counters: dict[str, int]


def first_boxes(cover: Cover, h_block: ArrayLike) -> Unfinished:
    """All roots of the cover for every h of a block: the work of a block before anything is done."""
    h = np.ascontiguousarray(h_block, dtype=np.int64)
    roots = np.asarray(cover.roots, dtype=np.int64)
    boxes = np.zeros((len(h) * len(roots), 4), dtype=np.int64)
    boxes[:, 0] = np.repeat(np.arange(len(h)), len(roots))
    boxes[:, 1] = np.tile(roots, len(h))
    boxes[:, 3] = -1
    return Unfinished(h, boxes, np.zeros((0, h.shape[1] + 1), dtype=np.int64))


def _roomy(array: NDArray, rows: int) -> NDArray:
    """A copy with room for that many rows."""
    result = np.zeros((rows, *array.shape[1:]), dtype=array.dtype)
    result[: len(array)] = array
    return result


def complete_block(
    cover: Cover,
    geometry: Geometry,
    region: Region,
    h_block: ArrayLike | None = None,
    *,
    budget: int | None = None,
    unfinished: Unfinished | None = None,
    few: float = FEW,
) -> BlockResult:
    """Visit all boxes of the cover for a block of h; every f with its starting points.

    The set of (flux, start) does not depend on how h are put into blocks, nor on where a budget ends a run.

    Parameters
    ----------
    cover
        The boxes (`matforge.vacua.cover`).
    region
        Its ``s`` and ``n_max``; its box must be that of the cover.
    h_block
        (k, 2 h12 + 2) integers; not used when ``unfinished`` is given.
    budget
        Largest number of counted steps (a box visited or an f tested is one); None for no limit.
    unfinished
        Boxes returned by an earlier call, or a part of them (`split_unfinished`).
    few
        Boxes are halved while more f than this are expected.

    Raises
    ------
    OverflowError
        If an integer would exceed `matforge.vacua.lattice.LIMIT`: never a silent loss.
    """
    todo = first_boxes(cover, h_block) if unfinished is None else unfinished
    n = todo.h.shape[1]
    real = arrays_of(geometry).real
    stack = _roomy(todo.boxes[::-1], len(todo.boxes) + 1024)
    arena = _roomy(todo.lists, len(todo.lists) + 4096)
    fluxes = np.zeros((4096, 2 * n), dtype=np.int32)
    starts = np.zeros((4096, n))
    state = np.array([len(todo.boxes), len(todo.lists), 0, -1, 0])
    counters = np.zeros(len(COUNTERS), dtype=np.int64)
    m = generators(geometry.h12)
    work, whole = work_arrays(n, ROWS, m)
    columns = np.zeros(n * m)
    h = np.ascontiguousarray(todo.h, dtype=np.int64)
    left = 2**62 if budget is None else int(budget)
    while True:
        status = run(
            real, cover.nodes, cover.children, cover.axis, h, int(region.n_max), lowest_s(region),
            float(region.s[1]) + PAD, float(few), left - counters[STEPS], work, columns, whole, stack, arena,
            fluxes, starts, state, counters,
        )  # fmt: skip
        if status in (DONE, OUT_OF_BUDGET):
            break
        if status == STACK_FULL:
            stack = _roomy(stack, 2 * len(stack))
        elif status == ARENA_FULL:
            arena = _roomy(arena, 2 * len(arena))
        elif status == OUT_FULL:
            fluxes, starts = _roomy(fluxes, 2 * len(fluxes)), _roomy(starts, 2 * len(starts))
        else:
            raise OverflowError(f"an integer of the completion of h = {h[state[3]].tolist()} exceeds {LIMIT}")
    rest = None
    if state[0] > 0:
        rest = _compact(Unfinished(h, stack[: state[0]][::-1], arena[: state[1]]))
    found = int(state[2])
    counters[STARTS] = found
    half = n // 2 - 1
    return BlockResult(
        fluxes[:found].copy(),
        starts[:found, :half] + 1j * starts[:found, half : 2 * half],
        starts[:found, -2] + 1j * starts[:found, -1],
        rest,
        dict(zip(COUNTERS, counters.tolist(), strict=True)),
    )


def _compact(todo: Unfinished) -> Unfinished:
    """Keep the h and lists that the boxes still need; lists in the order of the stack from its foot upwards."""
    boxes = todo.boxes.copy()
    used, boxes[:, 0] = np.unique(boxes[:, 0], return_inverse=True)
    lengths = np.maximum(boxes[:, 3], 0)
    foot = np.cumsum(lengths[::-1])[::-1] - lengths  # the last box lies at the foot of the stack
    rows = np.concatenate([np.arange(b[2], b[2] + max(b[3], 0)) for b in boxes[::-1]]).astype(np.int64)
    boxes[:, 2] = foot
    return Unfinished(todo.h[used].copy(), boxes, todo.lists[rows].copy())


def split_unfinished(todo: Unfinished, pieces: int) -> list[Unfinished]:
    """Share boxes among several pieces (fewer if there are not enough), alternately, for separate calls."""
    parts = [todo.boxes[k::pieces] for k in range(min(pieces, len(todo.boxes)))]
    return [_compact(Unfinished(todo.h, part, todo.lists)) for part in parts]
