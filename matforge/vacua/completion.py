"""Compiled ISD completion: all f that an h can have in a region, each with starting points for Newton's
method.

At a vacuum f = c0 h + s J(z) h (arXiv:2501.03984, section 3). A visit of one box of the cover for one h
(`matforge.vacua.visit`) drops whatever this cannot reach, and either asks the two halves of the box or, at
a leaf, writes down one start per f:

* no f is known yet: bound the tadpole and enclose f in slabs; while more than a few integer f are expected in
  them, ask the halves, else enumerate them;
* a list of f is known: test each against the slabs and solve for delta, s and c0, with a bound on the
  error; share what is left among the halves.

The boxes still to visit are a stack, the lists an arena beside it: a run may stop after any visit and go on
elsewhere, and no array that is full ever drops anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numba import njit

from matforge.vacua.cover import PAD, generators
from matforge.vacua.kernels import INNER, JIT
from matforge.vacua.lattice import FULL, LIMIT, OVERFLOW, enumerate_box, lowest_s, reduce, work_arrays
from matforge.vacua.visit import (
    BOUNDS,
    C0,
    HIGHEST,
    LENGTH,
    LOWEST,
    ROWS,
    S_HIGH,
    S_LOW,
    TOLERANCE,
    WIDTH,
    S,
    columns_of,
    directions,
    invert,
    limits,
    metric,
    offset,
    possible,
    pull_back,
    sublattice,
)  # fmt: skip

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from matforge.vacua.cover import Cover
    from matforge.vacua.geometry import Geometry
    from matforge.vacua.region import Region

FEW = 8.0
"""Boxes are halved while more f than this are expected."""
MANY = 32.0
"""Where this many times more f are expected than `FEW`, the halves of a box are not even looked at."""
ROUNDS = 1
"""Times the equation for delta is iterated at a visit; the next visit goes on from there."""

DONE, OUT_OF_BUDGET, STACK_FULL, ARENA_FULL, OUT_FULL, TOO_LARGE = range(6)
COUNTERS = (
    "steps",
    "nodes_visited",
    "nodes_with_list",
    "enumerations",
    "f_enumerated",
    "f_tested",
    "f_kept",
    "starts",
)
STEPS, VISITS, LISTS, ENUMERATIONS, ENUMERATED, TESTED, KEPT, STARTS = range(8)
TOP, FILLED, WRITTEN, CURRENT, GCD = range(5)
"""State of a run: height of the stack, rows of the arena and of the output, the h whose sublattice is
known, its gcd."""


@njit(**INNER)
def expected(work, gcd, first, last, s_low, s_high, n, m):
    """Number of f in the slabs, if they were spread evenly.

    Those of one N are a lattice of covolume |h~| / gcd(h) in the slabs' space, as A has determinant 1.
    """
    total = 0.0
    for tadpole in range(first, last + 1, gcd):
        if limits(work, tadpole, s_low, s_high, n, m):
            volume = gcd / work[BOUNDS, LENGTH]
            for k in range(1, n):
                volume *= 2.0 * work[WIDTH, k]
            total += volume
    return total


@njit(**INNER)
def enumerate_f(work, whole, gcd, first, last, s_low, s_high, arena, spans, start, n, m):
    """Write all f of the slabs with N = first, first + gcd, ..., last to the arena; the end of the list, or
    FULL, OVERFLOW."""
    end = start
    limits(work, last, s_low, s_high, n, m)
    metric(work, whole, n)
    if not reduce(work, whole, n - 1, n):
        return OVERFLOW
    for tadpole in range(first, last + 1, gcd):
        if limits(work, tadpole, s_low, s_high, n, m):
            radius = offset(work, whole, tadpole // gcd, n)
            if radius < 0.0:
                return OVERFLOW
            found = enumerate_box(work, whole, n - 1, n, radius, tadpole, arena, end)
            if found < 0:
                return found
            end += found
    for at in range(start, end):
        for a in range(n - 2):
            spans[at, a] = 0.0
            spans[at, n - 2 + a] = 1.0
    return end


@njit(**INNER)
def sift(work, arena, spans, start, end, s_low, s_high, rounds, row, leaf, starts, out, n, m):
    """Keep the f of a list that are possible on a box; its new end. For a leaf, write their starts from row
    ``out`` on."""
    d = n - 2
    tadpole = 0
    kept = start
    for at in range(start, end):
        if arena[at, n] != tadpole:
            tadpole = arena[at, n]
            limits(work, tadpole, s_low, s_high, n, m)
        if work[BOUNDS, S_LOW] > work[BOUNDS, S_HIGH] or not possible(work, arena, spans, at, rounds, n, m):
            continue
        for c in range(n + 1):
            arena[kept, c] = arena[at, c]
        for c in range(2 * d):
            spans[kept, c] = spans[at, c]
        if leaf:
            for a in range(d):
                starts[out, a] = spans[at, a]
            starts[out, d] = work[BOUNDS, C0]
            starts[out, d + 1] = work[BOUNDS, S]
            starts[out, d + 2] = row
            out += 1
        kept += 1
    return kept


@njit(**INNER)
def share(arena, spans, start, end, cut, n):
    """Share the list [start, end) among the halves of a box, by where delta is along the axis of the cut.

    Those of the lower half are moved to ``start`` on, then those of the upper half. Returns how many there
    are of each; the rows from ``end`` to 2 end - start have to be free.
    """
    d = n - 2
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
    for at in range(upper):
        for c in range(n + 1):
            arena[start + lower + at, c] = arena[end + at, c]
        for c in range(2 * d):
            spans[start + lower + at, c] = spans[end + at, c]
    return lower, upper


@njit(**JIT)
def run(
    boxes, frames, generators, children, axis, h, n_max, s_low, s_high, few, budget, work, flat, columns,
    whole, stack, arena, spans, fluxes, starts, state, counters,
):  # fmt: skip
    """Visit boxes until the stack is empty, the budget is spent or an array is full; the status says which.

    ``stack`` (k, 5) int64: row of h, node, first row of its list in the arena, length of the list or -1 if
    no f is known yet, and how many levels to go down before the next visit. ``arena`` (., n + 1) int64: f
    and N. ``spans`` (., 2 d): where delta is for each of them, centre and radius in units of the box.
    ``fluxes`` (., 2 n) and ``starts`` (., d + 3: delta, c0, s, node) are the output. A full array leaves
    the visit undone, to be repeated with a larger one.
    """
    n, m = columns.shape
    limit = counters[STEPS] + budget
    while state[TOP] > 0:
        if counters[STEPS] >= limit:
            return OUT_OF_BUDGET
        item = state[TOP] - 1
        if item + 2 > stack.shape[0]:
            return STACK_FULL
        i = stack[item, 0]
        row = stack[item, 1]
        start = stack[item, 2]
        end = start + max(stack[item, 3], 0)
        unknown = stack[item, 3] < 0
        levels = stack[item, 4]
        child = children[row]
        if levels == 0 or child < 0:
            levels = 1
            if state[CURRENT] != i:
                state[GCD] = sublattice(h, i, whole, n)
                state[CURRENT] = i
                if state[GCD] == 0:
                    return TOO_LARGE
            gcd = state[GCD]
            columns_of(boxes, frames, generators, row, h, i, work, flat, columns)
            low = work[BOUNDS, LOWEST]
            high = min(float(n_max), s_high * work[BOUNDS, HIGHEST] * (1.0 + TOLERANCE))
            first = gcd * int(np.ceil(s_low * low * (1.0 - TOLERANCE) / gcd))
            last = gcd * int(np.floor(high / gcd))
            if first > last:  # no N that h and s allow on this box
                counters[STEPS] += 1
                state[TOP] = item
                state[FILLED] = start if end > start else state[FILLED]
                continue
            regular = directions(work, columns, whole, min(s_high, last / low))
            if unknown:
                counters[VISITS] += 1
                number = expected(work, gcd, first, last, s_low, s_high, n, m)
                if number > few and child >= 0:
                    levels = 2 if number > MANY * few else 1
                else:
                    unknown = False
                    pull_back(frames, row, work, n, m)
                    start = state[FILLED]
                    end = enumerate_f(work, whole, gcd, first, last, s_low, s_high, arena, spans, start, n, m)
                    if end < 0:
                        return ARENA_FULL if end == FULL else TOO_LARGE
                    counters[ENUMERATIONS] += 1
                    counters[ENUMERATED] += end - start
                    stack[item, 2] = start
                    stack[item, 3] = end - start
                    state[FILLED] = end
            else:
                pull_back(frames, row, work, n, m)
            if end > start:
                out = state[WRITTEN]
                if child < 0 and out + end - start > fluxes.shape[0]:
                    return OUT_FULL
                counters[STEPS] += end - start
                counters[LISTS] += 1
                counters[TESTED] += end - start
                if regular:
                    invert(work, whole, n, m)
                rounds = ROUNDS if regular else 0
                end = sift(
                    work, arena, spans, start, end, s_low, s_high, rounds, row, child < 0, starts, out, n, m
                )  # fmt: skip
                counters[KEPT] += end - start
                stack[item, 3] = end - start
                state[FILLED] = end
                if child < 0:
                    for at in range(start, end):
                        for c in range(n):
                            fluxes[out + at - start, c] = arena[at, c]
                            fluxes[out + at - start, n + c] = h[i, c]
                    state[WRITTEN] = out + end - start
            stack[item, 4] = levels
        if 2 * end - start > arena.shape[0] and child >= 0:
            return ARENA_FULL
        counters[STEPS] += 1
        state[TOP] = item
        if not unknown:
            state[FILLED] = start
        if child < 0:
            continue
        lower = -1
        upper = -1
        if not unknown:
            lower, upper = share(arena, spans, start, end, axis[row], n)
        for side in range(2):
            length = upper if side == 1 else lower
            if length != 0:
                item = state[TOP]
                stack[item, 0] = i
                stack[item, 1] = child + side
                stack[item, 2] = start if side == 0 else start + lower
                stack[item, 3] = length
                stack[item, 4] = levels - 1
                state[TOP] = item + 1
                state[FILLED] += max(length, 0)
    return DONE


class Unfinished(NamedTuple):
    """Boxes that were not visited; complete in itself. m h, k boxes, r listed f; n = 2 h12 + 2."""

    h: NDArray[np.int64]  # (m, n)
    boxes: NDArray[np.int64]  # (k, 5) row of h, node, first row of its list, its length or -1, levels
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
    state = np.array([len(todo.boxes), len(todo.lists), 0, -1, 0], dtype=np.int64)
    counters = np.zeros(len(COUNTERS), dtype=np.int64)
    m = generators(geometry.h12)
    work, whole = work_arrays(n, ROWS, m + 2 * n)
    flat = np.zeros(n * m)
    left = 2**62 if budget is None else int(budget)
    while True:
        status = run(
            *cover[:5], h, int(region.n_max), lowest_s(region), float(region.s[1]) + PAD, float(few),
            left - int(counters[STEPS]), work, flat, flat.reshape(n, m), whole, stack, arena, spans, fluxes,
            starts, state, counters,
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
            h_now = h[state[CURRENT]].tolist()
            raise OverflowError(f"an integer of the completion of h = {h_now} exceeds {LIMIT}")
    rest = None
    if state[TOP] > 0:
        rows = slice(int(state[FILLED]))
        rest = _compact(Unfinished(h, stack[: state[TOP]][::-1], arena[rows], spans[rows]))
    found = int(state[WRITTEN])
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
    boxes = cover.boxes[starts[:, d + 2].astype(np.int64), : 2 * d]
    x = boxes[:, :d] + boxes[:, d:] * starts[:, :d]
    im_z = np.exp(x[:, d // 2 :]) @ np.linalg.inv(geometry.cone_coordinates).T
    return x[:, : d // 2] + 1j * im_z, starts[:, d] + 1j * starts[:, d + 1]


def _compact(todo: Unfinished) -> Unfinished:
    """Keep the h and lists that the boxes still need; lists in the order of the stack from its foot."""
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
