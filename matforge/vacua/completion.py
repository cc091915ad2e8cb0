"""Compiled ISD completion: all f that an h can have in a region, each with starting points for Newton's method.

At a vacuum f = c0 h + s J(z) h (arXiv:2501.03984, section 3). In the frame of a box, and after a constant rotation, this is

    f^ = c0 h' + s (h~ + sum_a S_a h~ delta_a + rest),    |rest| <= q |h~|,    h' = Sigma^T h~ orthogonal to h~,

with delta_a in [-1, 1], |c0| <= 1/2, and f^ . h~ = N exactly: the tadpole does not depend on z. A visit of one box for one h
drops whatever this cannot reach, and either asks the two halves of the box or, at a leaf, writes down one start per f:

* no f is known yet: bound s h^T A h = N; enclose f^ in slabs; while more than a few integer f are expected there, ask the
  halves, else enumerate them;
* a list of f is known: solve f^ = y_0 h' + y_1 h~ + sum_a y_a S_a h~ for each; y = (c0, s, s delta_a) up to
  s q |h~| times the norm of a row of the inverse, so f is dropped if c0, s, delta or |tau| leave the region.

The boxes still to visit are a stack, the lists an arena beside it: a run may stop after any visit and go on elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numba import njit

from matforge.vacua.cover import PAD, slopes_times, to_frame
from matforge.vacua.kernels import INNER, JIT, arrays_of
from matforge.vacua.lattice import FULL, LIMIT, OVERFLOW, Lattice, enumerate_box, lattice, lowest_s, reduce

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from matforge.vacua.cover import Cover
    from matforge.vacua.geometry import Geometry
    from matforge.vacua.region import Region

FEW = 8.0
"""Boxes are halved while more f than this are expected."""
TOLERANCE = 1e-9
"""Relative room for rounding in every comparison."""

DONE, OUT_OF_BUDGET, STACK_FULL, ARENA_FULL, OUT_FULL, TOO_LARGE = range(6)
COUNTERS = ("steps", "nodes_visited", "nodes_with_list", "enumerations", "f_enumerated", "f_tested", "f_kept", "starts")
STEPS, VISITS, LISTS, ENUMERATIONS, ENUMERATED, TESTED, KEPT, STARTS = range(8)


class Work(NamedTuple):
    """Arrays of one run; n = 2 h12 + 2, d = 2 h12."""

    y: NDArray[np.float64]  # (n,) h~
    f: NDArray[np.float64]  # (n,) f^
    v: NDArray[np.float64]  # (d, n) S_a h~
    frame: NDArray[np.float64]  # (n - 1, n) slab directions
    rest: NDArray[np.float64]  # (n - 1, n) what is left of the vectors while directions are chosen
    flat: NDArray[np.float64]  # (2, n - 1) slab limits: constant part, part proportional to s
    matrix: NDArray[np.float64]  # (n, 2 n) linear system and its inverse
    error: NDArray[np.float64]  # (n,) norms of the rows of the inverse
    solve: NDArray[np.float64]  # (2 n, n) from f to (c0, s, s delta), then to its slab coordinates
    bounds: NDArray[np.float64]  # (5,) |h~|^2, lower and upper bound of h^T A h on the box, q |h~|, last s q |h~|
    euclid: NDArray[np.int64]  # (n, n + 1) unimodular rows and their products with Sigma h


def work_of(n: int) -> Work:
    """Empty arrays of a run."""
    d = n - 2
    shapes = ((n,), (n,), (d, n), (n - 1, n), (n - 1, n), (2, n - 1), (n, 2 * n), (n,), (2 * n, n), (5,))
    return Work(*(np.zeros(shape) for shape in shapes), np.zeros((n, n + 1), dtype=np.int64))


@njit(**INNER)
def sublattice(h, i, lat, euclid):
    """Basis of {f : f^T Sigma h = 0} into lat.whole and a p with p^T Sigma h = gcd(h) into euclid[0]; returns the gcd.

    Euclid's algorithm on the entries of Sigma h, carried along by the rows of a unimodular matrix; 0 on overflow or h = 0.
    """
    n = euclid.shape[0]
    p = n // 2
    for r in range(n):
        for c in range(n):
            euclid[r, c] = 1 if r == c else 0
        euclid[r, n] = h[i, p + r] if r < p else -h[i, r - p]
    while True:
        least = -1
        others = 0
        for r in range(n):
            if euclid[r, n] != 0:
                others += 1
                if least < 0 or abs(euclid[r, n]) < abs(euclid[least, n]):
                    least = r
        if least < 0:
            return 0
        if others == 1:
            break
        for r in range(n):
            if r != least and euclid[r, n] != 0:
                times = np.int64(np.floor(euclid[r, n] / euclid[least, n] + 0.5))
                for c in range(n + 1):
                    euclid[r, c] -= times * euclid[least, c]
                    if abs(euclid[r, c]) > LIMIT:
                        return 0
    sign = 1 if euclid[least, n] > 0 else -1
    for c in range(n + 1):
        swap = euclid[0, c]
        euclid[0, c] = sign * euclid[least, c]
        if least > 0:
            euclid[least, c] = swap
    for r in range(1, n):
        for c in range(n):
            lat.whole[r - 1, c] = euclid[r, c]
    return euclid[0, n]


@njit(**INNER)
def tadpole_bounds(nodes, row, work):
    """Fill work.bounds from h~ and S_a h~: h^T A h = |h~|^2 + sum_a (h~ . S_a h~) delta_a +- q |h~|^2, and 1 / (1 + eta) of it."""
    n = work.y.shape[0]
    d = n - 2
    square = 0.0
    for c in range(n):
        square += work.y[c] * work.y[c]
    reach = 0.0
    for a in range(d):
        dot = 0.0
        for c in range(n):
            dot += work.v[a, c] * work.y[c]
        reach += abs(dot)
    eta = nodes[row, 2 * d]
    q = nodes[row, 2 * d + 1]
    work.bounds[0] = square
    work.bounds[1] = max(square / (1.0 + eta), square * (1.0 - q) - reach)
    work.bounds[2] = min(square * (1.0 + eta), square * (1.0 + q) + reach)
    work.bounds[3] = q * np.sqrt(square)


@njit(**INNER)
def slabs(work, s):
    """Orthonormal directions orthogonal to h~ and limits |u . f^| <= flat[0] + s flat[1].

    The directions are those of h' / 2 and s S_a h~ (without their part along h~), always the longest that is left first.
    """
    n = work.y.shape[0]
    p = n // 2
    d = n - 2
    square = work.bounds[0]
    rest = work.rest
    for c in range(p):
        rest[0, c] = -0.5 * work.y[p + c]
        rest[0, p + c] = 0.5 * work.y[c]
    for a in range(d):
        dot = 0.0
        for c in range(n):
            dot += work.v[a, c] * work.y[c]
        for c in range(n):
            rest[1 + a, c] = s * (work.v[a, c] - dot / square * work.y[c])
    for k in range(n - 1):
        best = k
        longest = -1.0
        for r in range(k, n - 1):
            norm = 0.0
            for c in range(n):
                norm += rest[r, c] * rest[r, c]
            if norm > longest:
                best = r
                longest = norm
        if longest < 1e-20 * square:  # dependent vectors: any direction that is left will do
            for axis in range(n):
                norm = 1.0 - work.y[axis] * work.y[axis] / square
                for j in range(k):
                    norm -= work.frame[j, axis] * work.frame[j, axis]
                if norm * n >= 0.999:  # the squares add up to at least 1
                    for c in range(n):
                        rest[best, c] = (1.0 if c == axis else 0.0) - work.y[axis] * work.y[c] / square
                        for j in range(k):
                            rest[best, c] -= work.frame[j, axis] * work.frame[j, c]
                    longest = norm
                    break
        scale = 1.0 / np.sqrt(longest)
        for c in range(n):
            work.frame[k, c] = rest[best, c] * scale
            rest[best, c] = rest[k, c]
        for r in range(k + 1, n - 1):
            dot = 0.0
            for c in range(n):
                dot += rest[r, c] * work.frame[k, c]
            for c in range(n):
                rest[r, c] -= dot * work.frame[k, c]
        flat = 0.0
        for c in range(p):
            flat += work.frame[k, p + c] * work.y[c] - work.frame[k, c] * work.y[p + c]
        slope = work.bounds[3]
        for a in range(d):
            dot = 0.0
            for c in range(n):
                dot += work.v[a, c] * work.frame[k, c]
            slope += abs(dot)
        work.flat[0, k] = (0.5 + PAD) * abs(flat)
        work.flat[1, k] = slope


@njit(**INNER)
def rotated(nodes, row, x, at, y):
    """y = Sigma^T L^T x[at], the frame in which f is compared with c0 h' + s A~ h~."""
    n = y.shape[0]
    p = n // 2
    to_frame(nodes, row, x, at, y)
    for c in range(p):
        swap = y[c]
        y[c] = -y[p + c]
        y[p + c] = swap


@njit(**INNER)
def enumerate_f(nodes, row, work, lat, gcd, first, last, s_low, s_high, out, start, stop):
    """Write all f of the slabs of a box with N = first, first + gcd, ..., last into ``out`` (columns f, N); their number."""
    n = work.y.shape[0]
    m = n - 1
    wide = min(s_high, last / work.bounds[1])
    for j in range(m + 1):
        if j < m:
            rotated(nodes, row, lat.whole, j, work.f)
        else:
            rotated(nodes, row, work.euclid, 0, work.f)
        for k in range(m):
            dot = 0.0
            for c in range(n):
                dot += work.f[c] * work.frame[k, c]
            dot /= work.flat[0, k] + wide * work.flat[1, k]
            if j < m:
                lat.real[j, k] = dot
            else:
                work.rest[0, k] = dot
    if not reduce(lat):
        return OVERFLOW
    count = 0
    for tadpole in range(first, last + 1, gcd):
        times = tadpole // gcd
        s = min(s_high, tadpole / work.bounds[1])
        radius = 0.0
        for k in range(m):
            lat.offset[k] = times * work.rest[0, k]
            limit = (work.flat[0, k] + s * work.flat[1, k]) / (work.flat[0, k] + wide * work.flat[1, k])
            lat.limit[k] = limit * (1.0 + TOLERANCE)
            radius += lat.limit[k] * lat.limit[k]
        for c in range(n):
            lat.origin[c] = times * work.euclid[0, c]
            if abs(lat.origin[c]) > LIMIT:
                return OVERFLOW
        found = enumerate_box(lat, radius, tadpole, out, start + count, stop)
        if found < 0:
            return found
        count += found
    return count


@njit(**INNER)
def pull_back(nodes, row, x, at, shift, solve, to):
    """solve[to] = x[at, shift:shift + n] Sigma^T L^T: a direction of the frame as it acts on an integer f."""
    n = solve.shape[1]
    p = n // 2
    base = 2 * (n - 2) + 3
    for c in range(p):  # f^ = (-E^T f2, E^-1 f1 - E^-1 R f2)
        top = 0.0
        bottom = 0.0
        for i in range(c, p):
            top += x[at, shift + p + i] * nodes[row, base + i * p + c]
        for i in range(p):
            bottom += x[at, shift + p + i] * nodes[row, base + (p + i) * p + c]
        for i in range(c + 1):
            bottom -= x[at, shift + i] * nodes[row, base + (2 * p + c) * p + i]
        solve[to, c] = top
        solve[to, p + c] = bottom


@njit(**INNER)
def linear_system(nodes, row, work):
    """work.solve = B^-1 Sigma^T L^T with B = (h', h~, S_a h~), work.error = norms of the rows of B^-1; False if B is singular.

    Below it, the slab directions in the same form.
    """
    for k in range(work.y.shape[0] - 1):
        pull_back(nodes, row, work.frame, k, 0, work.solve, work.y.shape[0] + k)
    n = work.y.shape[0]
    p = n // 2
    x = work.matrix
    for r in range(n):
        x[r, 0] = -work.y[p + r] if r < p else work.y[r - p]
        x[r, 1] = work.y[r]
        for a in range(n - 2):
            x[r, 2 + a] = work.v[a, r]
        for c in range(n):
            x[r, n + c] = 1.0 if r == c else 0.0
    for k in range(n):
        best = k
        for r in range(k + 1, n):
            if abs(x[r, k]) > abs(x[best, k]):
                best = r
        pivot = x[best, k]
        if pivot * pivot < 1e-18 * work.bounds[0]:
            return False
        for c in range(k, 2 * n):
            swap = x[best, c]
            x[best, c] = x[k, c]
            x[k, c] = swap / pivot
        for r in range(n):
            times = x[r, k]
            if r != k and times != 0.0:
                for c in range(k, 2 * n):
                    x[r, c] -= times * x[k, c]
    for r in range(n):
        total = 0.0
        for c in range(n):
            total += x[r, n + c] * x[r, n + c]
        work.error[r] = np.sqrt(total)
        pull_back(nodes, row, x, r, n, work.solve, r)
    return True


@njit(**INNER)
def possible(work, regular, f, at, s_low, s_high):
    """Whether f[at] can be reached from the box; its linear solution is left in work.f.

    Every rejection has its reason: N does not fit s on this box; f^ lies outside a slab; or the linear solution, widened by
    the bound on the rest, has s outside the range that N allows, |c0| > 1/2, |s delta_a| > s, or |tau| < 1.
    """
    n = work.y.shape[0]
    tadpole = f[at, n]
    low = max(s_low, tadpole / work.bounds[2] * (1.0 - TOLERANCE))
    high = min(s_high, tadpole / work.bounds[1] * (1.0 + TOLERANCE))
    if low > high:
        return False
    for k in range(n - 1):
        total = 0.0
        for c in range(n):
            total += work.solve[n + k, c] * f[at, c]
        if abs(total) > (work.flat[0, k] + high * work.flat[1, k]) * (1.0 + TOLERANCE):
            return False
    if not regular:
        return True
    for k in range(n):
        total = 0.0
        for c in range(n):
            total += work.solve[k, c] * f[at, c]
        work.f[k] = total
    rest = high * work.bounds[3] * (1.0 + TOLERANCE)
    low = max(low, work.f[1] - rest * work.error[1])
    high = min(high, work.f[1] + rest * work.error[1])
    if low > high:
        return False
    rest = high * work.bounds[3] * (1.0 + TOLERANCE)
    work.bounds[4] = rest
    if abs(work.f[0]) - rest * work.error[0] > 0.5 + PAD:
        return False
    for k in range(2, n):
        if abs(work.f[k]) - rest * work.error[k] > high * (1.0 + TOLERANCE):
            return False
    c0 = min(0.5 + PAD, abs(work.f[0]) + rest * work.error[0])
    return high * high + c0 * c0 >= 1.0 - PAD


@njit(**INNER)
def write_start(geo, nodes, row, h, i, work, regular, arena, at, low, high, fluxes, starts, out):
    """Write [f | h] and the start (Re z, Im z, c0, s) that the linear solution gives, moved into the leaf and into [low, high]."""
    n = work.y.shape[0]
    p = n // 2
    d = n - 2
    if not regular:  # no direction is known: the centre, with s and c0 from the projections on h~ and h'
        rotated(nodes, row, arena, at, work.f)
        c0 = 0.0
        for c in range(p):
            c0 += work.f[p + c] * work.y[c] - work.f[c] * work.y[p + c]
        for c in range(n):
            work.f[c] = 0.0
        work.f[0] = c0 / work.bounds[0]
        work.f[1] = arena[at, n] / work.bounds[0]
    s = min(max(work.f[1], low), high)
    for c in range(n):
        fluxes[out, c] = arena[at, c]
        fluxes[out, n + c] = h[i, c]
    for a in range(d):
        delta = min(max(work.f[2 + a] / s, -1.0), 1.0)
        work.f[2 + a] = nodes[row, a] + nodes[row, d + a] * delta
    for j in range(p - 1):
        starts[out, j] = work.f[2 + j]
        im = 0.0
        for a in range(p - 1):
            im += geo.inverse_cone[j, a] * np.exp(work.f[2 + p - 1 + a])
        starts[out, p - 1 + j] = im
    starts[out, d] = min(max(work.f[0], -0.5), 0.5)
    starts[out, d + 1] = s


@njit(**JIT)
def run(geo, nodes, children, axis, h, n_max, s_low, s_high, few, budget, work, lat, stack, arena, fluxes, starts, state, counters):
    """Visit boxes until the stack is empty, the budget is spent or an array is full; the status says which.

    ``stack`` (k, 4) int64: row of h, node, first row of its list in the arena, length of the list or -1. ``arena``
    (., n + 1) int32: f and N. ``state`` (5,): height of the stack, of the arena, rows of output, the h whose
    sublattice is in ``lat`` and its gcd. Every array that is full leaves the visit undone, to be repeated with a larger one.
    """
    n = work.y.shape[0]
    limit = counters[STEPS] + budget
    while state[0] > 0:
        if counters[STEPS] >= limit:
            return OUT_OF_BUDGET
        if state[0] + 2 > stack.shape[0]:
            return STACK_FULL
        item = state[0] - 1
        i = stack[item, 0]
        row = stack[item, 1]
        start = stack[item, 2]
        length = stack[item, 3]
        if length >= 0 and state[1] + 2 * length > arena.shape[0]:
            return ARENA_FULL
        child = children[row]
        if state[3] != i:
            state[4] = sublattice(h, i, lat, work.euclid)
            state[3] = i
            if state[4] == 0:
                return TOO_LARGE
        gcd = state[4]
        to_frame(nodes, row, h, i, work.y)
        slopes_times(nodes, row, work.y, work.v)
        tadpole_bounds(nodes, row, work)
        counters[STEPS] += 1
        if s_low * work.bounds[1] > n_max * (1.0 + TOLERANCE):  # even the smallest tadpole is too large
            state[0] -= 1
            state[1] -= max(length, 0)
            continue
        slabs(work, min(s_high, n_max / work.bounds[1]))
        if length < 0:
            counters[VISITS] += 1
            first = gcd * np.int64(np.ceil(s_low * work.bounds[1] * (1.0 - TOLERANCE) / gcd))
            last = gcd * np.int64(np.floor(min(float(n_max), s_high * work.bounds[2] * (1.0 + TOLERANCE)) / gcd))
            if first > last:  # no N that h and s allow
                state[0] -= 1
                continue
            expected = 0.0
            if child >= 0:
                for tadpole in range(first, last + 1, gcd):
                    s = min(s_high, tadpole / work.bounds[1])
                    volume = gcd / np.sqrt(work.bounds[0])
                    for k in range(n - 1):
                        volume *= 2.0 * (work.flat[0, k] + s * work.flat[1, k])
                    expected += volume
            if expected > few:
                for side in range(2):
                    stack[item + side, 0] = i
                    stack[item + side, 1] = child + 1 - side
                    stack[item + side, 3] = -1
                state[0] += 1
                continue
            start = state[1]
            length = enumerate_f(
                nodes, row, work, lat, gcd, first, last, s_low, s_high, arena, start, arena.shape[0]
            )
            if length == FULL:
                return ARENA_FULL
            if length == OVERFLOW:
                return TOO_LARGE
            counters[ENUMERATIONS] += 1
            counters[ENUMERATED] += length
            if length == 0:
                state[0] -= 1
                continue
            stack[item, 2] = start
            stack[item, 3] = length
            state[1] = start + length
            if state[1] + 2 * length > arena.shape[0]:
                return ARENA_FULL
        counters[STEPS] += length
        counters[LISTS] += 1
        counters[TESTED] += length
        if child < 0 and state[2] + length > fluxes.shape[0]:
            return OUT_FULL
        regular = linear_system(nodes, row, work)
        top = state[1]
        low_count = 0
        high_count = 0
        cut = 2 + axis[row]
        for at in range(start, start + length):
            low = True
            high = True
            if not possible(work, regular, arena, at, s_low, s_high):
                continue
            if regular and child >= 0:
                rest = work.bounds[4] * work.error[cut]
                low = work.f[cut] <= rest
                high = work.f[cut] >= -rest
            counters[KEPT] += 1
            if child < 0:
                write_start(geo, nodes, row, h, i, work, regular, arena, at, s_low, s_high, fluxes, starts, state[2])
                state[2] += 1
                continue
            if low:
                for c in range(n + 1):
                    arena[top + low_count, c] = arena[at, c]
                low_count += 1
            if high:
                for c in range(n + 1):
                    arena[top + length + high_count, c] = arena[at, c]
                high_count += 1
        state[1] = start
        state[0] -= 1
        for side in range(2):
            count = high_count if side == 0 else low_count
            source = top + length if side == 0 else top
            if count > 0:
                stack[state[0], 0] = i
                stack[state[0], 1] = child + 1 - side
                stack[state[0], 2] = state[1]
                stack[state[0], 3] = count
                state[0] += 1
                for r in range(count):
                    for c in range(n + 1):
                        arena[state[1] + r, c] = arena[source + r, c]
                state[1] += count
    return DONE


class Unfinished(NamedTuple):
    """Boxes that were not visited; complete in itself. m h, k boxes, r listed f; n = 2 h12 + 2."""

    h: NDArray[np.int32]  # (m, n)
    boxes: NDArray[np.int64]  # (k, 4): row of h, node, first row of the list, its length or -1 if no f is known yet
    lists: NDArray[np.int32]  # (r, n + 1): f and N


class BlockResult(NamedTuple):
    """What the visit of a block found; m starts (several for one flux vector), n = 2 h12 + 2, h = h12."""

    fluxes: NDArray[np.int32]  # (m, 2 n) [f | h]
    moduli: NDArray[np.complex128]  # (m, h) start of z
    tau: NDArray[np.complex128]  # (m,) start of tau
    unfinished: Unfinished | None
    counters: dict[str, int]


def first_boxes(cover: Cover, h_block: ArrayLike) -> Unfinished:
    """All roots of the cover for every h of a block: the work of a block before anything is done."""
    h = np.ascontiguousarray(h_block, dtype=np.int32)
    roots = np.asarray(cover.roots, dtype=np.int64)
    boxes = np.zeros((len(h) * len(roots), 4), dtype=np.int64)
    boxes[:, 0] = np.repeat(np.arange(len(h)), len(roots))
    boxes[:, 1] = np.tile(roots, len(h))
    boxes[:, 3] = -1
    return Unfinished(h, boxes, np.zeros((0, h.shape[1] + 1), dtype=np.int32))


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
    geo = arrays_of(geometry)
    stack = _roomy(todo.boxes[::-1], len(todo.boxes) + 1024)
    arena = _roomy(todo.lists, len(todo.lists) + 4096)
    fluxes = np.zeros((4096, 2 * n), dtype=np.int32)
    starts = np.zeros((4096, n))
    state = np.array([len(todo.boxes), len(todo.lists), 0, -1, 0])
    counters = np.zeros(len(COUNTERS), dtype=np.int64)
    work, lat = work_of(n), lattice(n - 1, n)
    h = np.ascontiguousarray(todo.h, dtype=np.int32)
    left = 2**62 if budget is None else int(budget)
    while True:
        status = run(
            geo, cover.nodes, cover.children, cover.axis, h, int(region.n_max), lowest_s(region),
            float(region.s[1]) + PAD, float(few), left - counters[STEPS], work, lat, stack, arena, fluxes, starts,
            state, counters,
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
