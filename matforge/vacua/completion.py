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
from matforge.vacua.kernels import INNER, JIT
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
ROUNDS = 1
"""Times the quadratic part is iterated at a visit; each multiplies the error by the Lipschitz constant, about 0.2."""
SKIP = 3
"""A list goes down this many levels between visits, shared by where delta is known to be."""
MANY = 32.0
"""Where this many times more f are expected than `FEW`, the halves of a box are not even looked at."""

DONE, OUT_OF_BUDGET, STACK_FULL, ARENA_FULL, OUT_FULL, TOO_LARGE = range(6)
COUNTERS = ("steps", "nodes_visited", "nodes_with_list", "enumerations", "f_enumerated", "f_tested", "f_kept", "starts")
STEPS, VISITS, LISTS, ENUMERATIONS, ENUMERATED, TESTED, KEPT, STARTS = range(8)

Y, BOUNDS, LEFT, FLAT, SLOPED, CENTRE, WIDTH, UNIT, PHI, LINEAR, ERROR, RADIUS = range(FREE, FREE + 12)
"""Single rows of the real work array; n = 2 h12 + 2, d = 2 h12, M = generators (h' / 2, then the phi_m, the constant last).

h~ (n); see below (9); squares of what is left of the linear columns (d + 1); slabs: constant part and part proportional to s
of their width, then centre and width for one N, and the widths that are the unit of the enumeration (n); phi_m (M);
solve . f (d + 1); norms of the rows of the inverse (d + 1); radii of delta (d).
"""
U, COLUMN, QUAD, SLOPE, ROWS = range(FREE + 12, FREE + 12 + 5 * 16, 16)
"""Where matrices begin. U: orthonormal directions, the first along h~ (n, n). COLUMN: components of the columns along them (n, M),
and beside these, from M on, the directions as they act on an integer f (n, n). QUAD: what the phi_m beyond the linear ones add to
(2 c0, s delta), over s, and in the last row h^T A h / |h~|^2 (d + 2, M); beside these the matrix from f to (2 c0, s delta) without
them (n), and the inverse it is made with (n). SLOPE: bounds on the derivatives of quad . phi along delta (d + 2, d)."""
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
def prepare(boxes, frames, generators, row, h, i, s_low, s_high, n_max, work, columns, order, n, m):
    """Everything about one h on one box: h~, bounds of h^T A h, orthonormal directions and slabs.

    The columns are h' / 2 and C_m h~. h^T A h = |h~|^2 (1 + sum_m (h~ . C_m h~) phi_m / |h~|^2 +- q), and A~ lies between
    1 / (1 + eta) and 1 + eta. The directions, u_0 along h~ and the others orthogonal to it, are made from h' / 2 and s C_a h~, always
    the longest that is left first; with them |u . f^ - s shift| <= flat + s sloped. Returns 0 if no N is possible, 1 if the
    columns are linearly dependent (the last directions are then arbitrary), 2 otherwise.
    """
    for c in range(n):
        work[Y, c] = 0.0
    for j in range(n):
        x = float(h[i, j])
        for c in range(n):
            work[Y, c] += frames[row, j, c] * x
    for c in range(n * m):
        columns[c] = 0.0
    size = 0.0
    for j in range(n):
        x = work[Y, j]
        size += x * x
        work[U, j] = x
        for c in range(n * m):
            columns[c] += generators[row, j, c] * x
    square = size
    length = np.sqrt(square)
    q = boxes[row, 2 * n - 3]
    answer = 2
    weight = 1.0
    for k in range(n):
        if k > 0:
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
                x = columns[best * n + i]
                work[U + k, i] = x
                size += x * x
            if size < DEPENDENT * square:
                answer = 1
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
        for i in range(n):
            work[U + k, i] *= size
        spread = q * length
        for c in range(m):
            x = 0.0
            for i in range(n):
                x += work[U + k, i] * columns[c * n + i]
            work[COLUMN + k, c] = x
            if c > 0 and c < m - 1:
                spread += abs(x)
            if c < n - 1 and (k == 0 or work[LEFT, c] >= 0.0):  # not yet made into a direction
                for i in range(n):
                    columns[c * n + i] -= x * work[U + k, i]
                work[LEFT, c] -= x * x if c == 0 else (weight * x) ** 2
        work[FLAT, k] = (1.0 + 2.0 * PAD) * abs(work[COLUMN + k, 0])
        work[SLOPED, k] = spread
        if k == 0:
            mean = length + work[COLUMN, m - 1]
            eta = 1.0 + boxes[row, 2 * n - 4]
            low = max(square / eta, length * (mean - spread))
            high = min(square * eta, length * (mean + spread))
            work[BOUNDS, SQUARE] = square
            work[BOUNDS, LENGTH] = length
            work[BOUNDS, LOWEST] = low
            work[BOUNDS, HIGHEST] = high
            work[BOUNDS, REST] = q
            weight = min(s_high, n_max / low)
            if s_low * low > n_max * (1.0 + TOLERANCE):  # even the smallest tadpole is too large
                return 0
            for c in range(n - 1):
                x = 0.0
                for i in range(n):
                    x += columns[c * n + i] ** 2
                work[LEFT, c] = x if c == 0 else weight * weight * x
    return answer


@njit(**INNER)
def limits(work, tadpole, s_low, s_high, n, m):
    """For one N: the range of s on this box, and CENTRE and WIDTH with |u_k . f^ - centre| <= width; whether s is possible."""
    low = max(s_low, tadpole / work[BOUNDS, HIGHEST] * (1.0 - TOLERANCE))
    high = min(s_high, tadpole / work[BOUNDS, LOWEST] * (1.0 + TOLERANCE))
    work[BOUNDS, S_LOW] = low
    work[BOUNDS, S_HIGH] = high
    for k in range(1, n):
        shift = work[COLUMN + k, m - 1]
        work[CENTRE, k] = 0.5 * (low + high) * shift
        half = 0.5 * (high - low) * abs(shift)
        work[WIDTH, k] = (work[FLAT, k] + high * work[SLOPED, k] + half) * (1.0 + TOLERANCE)
    return low <= high


@njit(**INNER)
def pull_back(nodes, row, work, n, m):
    """PULL, beside COLUMN: u Sigma^T L^T, the directions as they act on an integer f."""
    p = n // 2
    base = 2 * (n - 2) + 3
    for k in range(1, n):
        for c in range(n):
            x = 0.0
            for i in range(p):
                x += work[U + k, p + i] * nodes[row, base + c * n + i]
                x -= work[U + k, i] * nodes[row, base + c * n + p + i]
            work[COLUMN + k, m + c] = x


@njit(**INNER)
def metric(work, whole, n, m):
    """Basis of the f with f^T Sigma h = 0, and last the particular one, in slab coordinates, as fractions of WIDTH."""
    for k in range(1, n):
        scale = work[WIDTH, k]
        work[UNIT, k] = scale
        for j in range(n):
            at = WHOLE + j if j < n - 1 else EUCLID
            x = 0.0
            for c in range(n):
                x += work[COLUMN + k, m + c] * whole[at, c]
            work[REAL + j, k - 1] = x / scale


@njit(**INNER)
def offset(work, whole, times, n):
    """Set the box of the enumeration for N = times gcd(h), and the point it is relative to; its squared half diagonal."""
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
    """Solve the linear part once for all f, by back substitution along whole rows: QUAD, SOLVE beside it, ERROR and SLOPE."""
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
                for c in range(d + 1, last):
                    work[QUAD + unknown, c] -= x * work[at, c]
        for c in range(last):
            work[QUAD + unknown, c] *= size
        size = 0.0
        for c in range(m + n, last):
            size += work[QUAD + unknown, c] ** 2
        work[ERROR, unknown] = np.sqrt(size)
        if k == 0:
            work[QUAD + unknown, m - 1] += 1.0
        else:
            for c in range(d + 1):
                work[QUAD + unknown, c] = 0.0
        at = 1 + 2 * d
        for a in range(d):
            work[SLOPE + unknown, a] = abs(work[QUAD + unknown, 1 + a]) + 4.0 * abs(work[QUAD + unknown, 1 + d + a])
        for a in range(d):
            for b in range(a + 1, d):
                x = abs(work[QUAD + unknown, at])
                work[SLOPE + unknown, a] += x
                work[SLOPE + unknown, b] += x
                at += 1


@njit(**INNER)
def possible(work, f, spans, at, rounds, n, m):
    """Whether f[at] can solve the equation on the box; where is left in spans[at] (delta, radius), s and c0 in BOUNDS.

    It has to lie in all slabs. Then, with t_a = (solve . f)_a |h~|^2 / N and 1 / s = (|h~|^2 / N) (quad_last . phi +- q),

        delta_a = t_a (quad_last . phi) - quad_a . phi +- q (|t_a| + |h~| error_a),

    a contraction on small boxes: from what is known of delta, each round multiplies the radius by the slopes. Rejected are
    |delta_a| > 1, s outside the range that N allows, |c0| > 1/2 and |tau| < 1, each with the error against the rejection.
    ``rounds`` = 0 stands for linearly dependent columns: only the slabs are tested, and the start is the centre.
    """
    d = n - 2
    for k in range(1, n):
        x = -work[CENTRE, k]
        for c in range(n):
            x += work[COLUMN + k, m + c] * f[at, c]
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
            x += work[QUAD + k, m + c] * f[at, c]
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


@njit(**JIT)
def run(
    nodes, children, axis, h, n_max, s_low, s_high, few, skip, budget, work, columns, whole, stack, arena, spans, fluxes,
    starts, state, counters,
):  # fmt: skip
    """Visit boxes until the stack is empty, the budget is spent or an array is full; the status says which.

    ``stack`` (k, 5) int64: row of h, node, first row of its list in the arena, length of the list or -1 if no f is known yet, and
    how many levels to go down before the next visit. ``arena`` (., n + 1) int64: f and N. ``spans`` (., 2 d): where delta is
    for each of them, centre and radius in units of the box. ``state`` (5,): height of the stack, of the arena, rows of
    output, the h whose sublattice is in ``whole`` and its gcd. ``fluxes`` (., 2 n) and ``starts`` (., d + 3: delta, c0, s, node)
    are the output. A full array leaves the visit undone, to be repeated with a larger one.
    """
    n = h.shape[1]
    m = columns.shape[0] // n
    d = n - 2
    limit = counters[STEPS] + budget
    while state[0] > 0:
        if counters[STEPS] >= limit:
            return OUT_OF_BUDGET
        item = state[0] - 1
        i = stack[item, 0]
        row = stack[item, 1]
        start = stack[item, 2]
        length = stack[item, 3]
        levels = stack[item, 4]
        child = children[row]
        cut = axis[row]
        if item + 2 > stack.shape[0]:
            return STACK_FULL
        end = start + max(length, 0)
        split = length < 0
        if levels == 0 or child < 0:
            levels = 1
            if state[3] != i:
                state[4] = sublattice(h, i, whole, n)
                state[3] = i
                if state[4] == 0:
                    return TOO_LARGE
            gcd = state[4]
            rounds = prepare(nodes, row, h, i, s_low, s_high, n_max, work, columns, whole, n, m)
            low = s_low * work[BOUNDS, LOWEST] * (1.0 - TOLERANCE)
            high = min(float(n_max), s_high * work[BOUNDS, HIGHEST] * (1.0 + TOLERANCE))
            first = gcd * int(np.ceil(low / gcd))
            last = gcd * int(np.floor(high / gcd))
            if rounds == 0 or first > last:  # no N that h and s allow on this box
                counters[STEPS] += 1
                state[0] = item
                state[1] -= end - start
                continue
            if split:
                counters[VISITS] += 1
                expected = 0.0
                for tadpole in range(first, last + 1, gcd):
                    if limits(work, tadpole, s_low, s_high, n, m):
                        volume = gcd / work[BOUNDS, LENGTH]
                        for k in range(1, n):
                            volume *= 2.0 * work[WIDTH, k]
                        expected += volume
                if expected > few and child >= 0:
                    levels = 2 if expected > MANY * few else 1
                else:
                    split = False
            if not split:
                pull_back(nodes, row, work, n, m)
            if length < 0 and not split:
                start = state[1]
                end = start
                metric(work, whole, n, m)
                if not reduce(work, whole, n - 1, n):
                    return TOO_LARGE
                for tadpole in range(first, last + 1, gcd):
                    if limits(work, tadpole, s_low, s_high, n, m):
                        radius = offset(work, whole, tadpole // gcd, n)
                        if radius < 0.0:
                            return TOO_LARGE
                        found = enumerate_box(work, whole, n - 1, n, radius, tadpole, arena, end)
                        if found == FULL:
                            return ARENA_FULL
                        if found == OVERFLOW:
                            return TOO_LARGE
                        end += found
                counters[ENUMERATIONS] += 1
                counters[ENUMERATED] += end - start
                for at in range(start, end):
                    for a in range(d):
                        spans[at, a] = 0.0
                        spans[at, d + a] = 1.0
                stack[item, 2] = start
                stack[item, 3] = end - start
                state[1] = end
            if end > start:
                if child < 0 and state[2] + end - start > fluxes.shape[0]:
                    return OUT_FULL
                counters[STEPS] += end - start
                counters[LISTS] += 1
                counters[TESTED] += end - start
                levels = skip
                if rounds == 2:
                    invert(work, whole, n, m)
                    rounds = ROUNDS
                else:
                    rounds = 0
            tadpole = 0
            kept = start
            for at in range(start, end):
                if arena[at, n] != tadpole:
                    tadpole = arena[at, n]
                    limits(work, tadpole, s_low, s_high, n, m)
                if work[BOUNDS, S_LOW] > work[BOUNDS, S_HIGH] or not possible(work, arena, spans, at, rounds, n, m):
                    continue
                out = state[2]
                for c in range(n):
                    x = arena[at, c]
                    arena[kept, c] = x
                    if child < 0:
                        fluxes[out, c] = x
                        fluxes[out, n + c] = h[i, c]
                arena[kept, n] = tadpole
                for c in range(2 * d):
                    spans[kept, c] = spans[at, c]
                    if child < 0 and c < d:
                        starts[out, c] = spans[at, c]
                if child < 0:
                    starts[out, d] = work[BOUNDS, C0]
                    starts[out, d + 1] = work[BOUNDS, S]
                    starts[out, d + 2] = row
                    state[2] = out + 1
                kept += 1
            counters[KEPT] += kept - start
            if child < 0:
                kept = start
            end = kept
            stack[item, 3] = -1 if split else end - start
            stack[item, 4] = levels
            if not split:
                state[1] = end
        # share the list among the halves of the box
        if 2 * end - start > arena.shape[0]:
            return ARENA_FULL
        counters[STEPS] += 1
        state[0] = item
        state[1] = start
        lower = 0
        upper = 0
        for at in range(start, end):
            x = spans[at, cut]
            y = spans[at, d + cut]
            for side in range(1, -1, -1):
                low = max(2.0 * (x - y) + 1.0 - 2.0 * side, -1.0)
                high = min(2.0 * (x + y) + 1.0 - 2.0 * side, 1.0)
                if low > high + TOLERANCE:
                    continue
                to = end + upper if side == 1 else start + lower
                for c in range(n + 1):
                    arena[to, c] = arena[at, c]
                for c in range(2 * d):
                    spans[to, c] = spans[at, c]
                spans[to, cut] = 0.5 * (low + high)
                spans[to, d + cut] = 0.5 * abs(high - low) + TOLERANCE
                upper += side
                lower += 1 - side
        for side in range(2):
            length = -1 if split else upper if side == 1 else lower
            if child < 0 or length == 0:
                continue
            stack[state[0], 0] = i
            stack[state[0], 1] = child + side
            stack[state[0], 2] = state[1]
            stack[state[0], 3] = length
            stack[state[0], 4] = levels - 1
            state[0] += 1
            for at in range(length):
                if side == 1:
                    for c in range(n + 1):
                        arena[state[1] + at, c] = arena[end + at, c]
                    for c in range(2 * d):
                        spans[state[1] + at, c] = spans[end + at, c]
            state[1] += max(length, 0)
    return DONE


class Unfinished(NamedTuple):
    """Boxes that were not visited; complete in itself. m h, k boxes, r listed f; n = 2 h12 + 2."""

    h: NDArray[np.int64]  # (m, n)
    boxes: NDArray[np.int64]  # (k, 5) row of h, node, first row of its list, its length (-1: no f is known yet), levels
    lists: NDArray[np.int64]  # (r, n + 1) f and N
    spans: NDArray[np.float64]  # (r, 4 h) where delta is: centre and radius


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
    boxes = np.zeros((len(h) * len(roots), 5), dtype=np.int64)
    boxes[:, 0] = np.repeat(np.arange(len(h)), len(roots))
    boxes[:, 1] = np.tile(roots, len(h))
    boxes[:, 3] = -1
    n = h.shape[1]
    return Unfinished(h, boxes, np.zeros((0, n + 1), dtype=np.int64), np.zeros((0, 2 * n - 4)))


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
    h = np.ascontiguousarray(todo.h, dtype=np.int64)
    stack = _roomy(todo.boxes[::-1], len(todo.boxes) + 1024)
    arena, spans = _roomy(todo.lists, len(todo.lists) + 4096), _roomy(todo.spans, len(todo.lists) + 4096)
    fluxes, starts = np.zeros((4096, 2 * n), dtype=np.int32), np.zeros((4096, n + 1))
    state = np.array([len(todo.boxes), len(todo.lists), 0, -1, 0])
    counters = np.zeros(len(COUNTERS), dtype=np.int64)
    m = generators(geometry.h12)
    work, whole = work_arrays(n, ROWS, m + 2 * n)
    columns = np.zeros(n * m)
    left = 2**62 if budget is None else int(budget)
    while True:
        status = run(
            cover.nodes, cover.children, cover.axis, h, int(region.n_max), lowest_s(region), float(region.s[1]) + PAD,
            float(few), SKIP, left - int(counters[STEPS]), work, columns, whole, stack, arena, spans, fluxes, starts,
            state, counters,
        )  # fmt: skip
        if status in (DONE, OUT_OF_BUDGET):
            break
        if status == STACK_FULL:
            stack = _roomy(stack, 2 * len(stack))
        elif status == ARENA_FULL:
            arena, spans = _roomy(arena, 2 * len(arena)), _roomy(spans, 2 * len(spans))
        elif status == OUT_FULL:
            fluxes, starts = _roomy(fluxes, 2 * len(fluxes)), _roomy(starts, 2 * len(starts))
        else:
            raise OverflowError(f"an integer of the completion of h = {h[state[3]].tolist()} exceeds {LIMIT}")
    rest = None
    if state[0] > 0:
        rest = _compact(Unfinished(h, stack[: state[0]][::-1], arena[: state[1]], spans[: state[1]]))
    found = int(state[2])
    counters[STARTS] = found
    moduli, tau = _points(cover, geometry, starts[:found])
    return BlockResult(
        fluxes[:found].copy(), moduli, tau, rest, dict(zip(COUNTERS, counters.tolist(), strict=True))
    )


def _points(
    cover: Cover, geometry: Geometry, starts: NDArray[np.float64]
) -> tuple[NDArray[np.complex128], NDArray[np.complex128]]:
    """z (m, h) and tau (m,) of rows (delta, c0, s, node)."""
    d = 2 * geometry.h12
    boxes = cover.nodes[starts[:, d + 2].astype(np.int64), : 2 * d]
    x = boxes[:, :d] + boxes[:, d:] * starts[:, :d]
    im_z = np.exp(x[:, d // 2 :]) @ np.linalg.inv(geometry.cone_coordinates).T
    return x[:, : d // 2] + 1j * im_z, starts[:, d] + 1j * starts[:, d + 1]


def _compact(todo: Unfinished) -> Unfinished:
    """Keep the h and lists that the boxes still need; lists in the order of the stack from its foot upwards."""
    boxes = todo.boxes.copy()
    used, boxes[:, 0] = np.unique(boxes[:, 0], return_inverse=True)
    lengths = np.maximum(boxes[:, 3], 0)
    foot = np.cumsum(lengths[::-1])[::-1] - lengths  # the last box lies at the foot of the stack
    rows = np.concatenate([np.arange(b[2], b[2] + max(b[3], 0)) for b in boxes[::-1]]).astype(np.int64)
    boxes[:, 2] = foot
    return Unfinished(todo.h[used].copy(), boxes, todo.lists[rows].copy(), todo.spans[rows].copy())


def split_unfinished(todo: Unfinished, pieces: int) -> list[Unfinished]:
    """Share boxes among several pieces (fewer if there are not enough), alternately, for separate calls."""
    parts = [todo.boxes[k::pieces] for k in range(min(pieces, len(todo.boxes)))]
    return [_compact(Unfinished(todo.h, part, todo.lists, todo.spans)) for part in parts]
