"""The cover: a shared tree of boxes in moduli space with bounds on the complex structure, built once and kept.

A box has coordinates (Re z^i, ln t_a) with t = T Im z the cone coordinates; d = 2 h12 of them. In the frame
``x~ = L^T x`` of its centre (see `matforge.vacua.kernels`) the metric ``A = Sigma^T M Sigma`` is

    A~(z) = 1 + sum_a S_a delta_a + rest,    delta_a in [-1, 1],    |rest| <= q,    |A~ - 1| <= eta,

where ``S_a`` is half the difference between the centres of the two faces. A~ is symplectic, its eigenvalues pair as
(l, 1 / l), so A~ >= 1 / (1 + eta). ``q`` and ``eta`` are maxima over sampled points (all corners and face centres; all
3^d points of coarse boxes) times a safety factor: sampled, not proven. Boxes are halved along the
coordinate along which A~ changes most, until no change from centre to face exceeds ``leaf``.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numba import njit

from matforge.vacua.geometry import InputError
from matforge.vacua.kernels import INNER, JIT, arrays_of, gauge_factor, point

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from matforge.vacua.geometry import Geometry
    from matforge.vacua.region import Region

CODE_VERSION = 1
"""Raised whenever the content of a cover changes for the same input."""

PAD = 3e-6
"""Every edge of the region is moved outwards by this much: vacua are accepted within 1e-6 of it and folded later."""
COARSE = 0.2
"""Boxes larger than this are sampled on all 3^d points."""
SAFETY = 1.25
"""Factor on the sampled q (for a quadratic rest the corners and face centres miss at most a fifth; see tests)."""
SAFETY_ETA = 1.05


class CoverPart(NamedTuple):
    """The tree of one of the fixed sub-boxes; the root is node 0.

    ``nodes`` (k, w) float64: see `row_width`; ``children`` (k,) int32: index of the first of two neighbouring children or -1,
    ``axis`` (k,) int32: coordinate that was halved or -1.
    """

    nodes: NDArray[np.float64]
    children: NDArray[np.int32]
    axis: NDArray[np.int32]


class Cover(NamedTuple):
    """A forest of boxes, read-only. Node indices are global; ``roots`` (n_parts,) are those of the parts."""

    nodes: NDArray[np.float64]
    children: NDArray[np.int32]
    axis: NDArray[np.int32]
    roots: NDArray[np.int64]


def row_width(h12: int) -> int:
    """Numbers in a row: centre d, halfwidth d, eta, q, size, then E^-1, -E^-1 R, E (p^2 each), then S_a packed."""
    p, d = h12 + 1, 2 * h12
    return 2 * d + 3 + 3 * p * p + d * p * (2 * p + 1)


class Scratch(NamedTuple):
    """Arrays the build reuses; p = h12 + 1, n = 2 p, d = 2 h12."""

    frames: NDArray[np.float64]  # (6, p, p): R, E, E^-1 of the centre, then of the sample
    metric: NDArray[np.float64]  # (6, n, n): T, A~ - 1, A~ - 1 on the face below, what is measured, two for its powers
    slopes: NDArray[np.float64]  # (d, n, n) S_a
    delta: NDArray[np.float64]  # (d,)
    sizes: NDArray[np.float64]  # (d,)


def scratch(h12: int) -> Scratch:
    """Empty arrays for a build."""
    p, n, d = h12 + 1, 2 * h12 + 2, 2 * h12
    return Scratch(*(np.zeros(shape) for shape in ((6, p, p), (6, n, n), (d, n, n), (d,), (d,))))


@njit(**INNER)
def relative_metric(frames, metric):
    """metric[1] = T T^T - 1 with T = L0^-1 L: the metric A at the sample in the frame of the centre, minus 1."""
    p = frames.shape[1]
    n = 2 * p
    for i in range(p):
        for j in range(p):
            a = 0.0
            b = 0.0
            c = 0.0
            for k in range(p):
                a += frames[1, k, i] * frames[5, j, k]
                c += frames[2, i, k] * frames[4, k, j]
                m = 0.0
                for l in range(j + 1):  # E^-1 is lower triangular
                    m += (frames[0, k, l] - frames[3, k, l]) * frames[5, j, l]
                b += frames[2, i, k] * m
            metric[0, i, j] = a
            metric[0, i, p + j] = 0.0
            metric[0, p + i, j] = b
            metric[0, p + i, p + j] = c
    for i in range(n):
        for j in range(i + 1):
            a = -1.0 if i == j else 0.0
            for k in range(p if j < p else n):
                a += metric[0, i, k] * metric[0, j, k]
            metric[1, i, j] = a
            metric[1, j, i] = a


@njit(**INNER)
def norm_bound(metric, least):
    """Upper bound (tr x^16)^(1/16) of the spectral norm of the symmetric x = metric[3], at most n^(1/16) times it.

    Returns ``least`` at once where the Frobenius norm shows that the bound is no larger. metric[4], metric[5] are scratch.
    """
    n = metric.shape[1]
    total = 0.0
    for i in range(n):
        for j in range(n):
            total += metric[3, i, j] * metric[3, i, j]
    norm = np.sqrt(total)
    if norm <= least:
        return least
    for i in range(n):
        for j in range(n):
            metric[4, i, j] = metric[3, i, j] / norm
    for square in range(3):
        x = 4 + square % 2
        y = 9 - x
        for i in range(n):
            for j in range(i + 1):
                a = 0.0
                for k in range(n):
                    a += metric[x, i, k] * metric[x, j, k]
                metric[y, i, j] = a
                metric[y, j, i] = a
    total = 0.0
    for i in range(n):
        for j in range(n):
            total += metric[5, i, j] * metric[5, i, j]
    return max(least, norm * total**0.0625)


@njit(**INNER)
def place(geo, at, work, nodes, row, index, base):
    """Set work.delta to sample ``index`` and at.z to that point of the box of ``row``; what the sample is for.

    Sample 0 is the centre, 1 to 2 d are the centres of the faces, then all points of a grid with ``base`` points per axis.
    Returns the axis of a face centre, -1 for the centre and d for a point of the grid.
    """
    h = at.z.shape[0]
    d = 2 * h
    rest = index - 1 - d - d
    for a in range(d):
        if rest >= 0:
            work.delta[a] = 2.0 / (base - 1) * (rest % base) - 1.0
            rest //= base
        elif index - 1 == 2 * a:
            work.delta[a] = -1.0
        elif index - 2 == 2 * a:
            work.delta[a] = 1.0
        else:
            work.delta[a] = 0.0
    for i in range(h):
        im = 0.0
        for a in range(h):
            u = nodes[row, h + a] + nodes[row, d + h + a] * work.delta[h + a]
            im += geo.inverse_cone[i, a] * np.exp(u)
        at.z[i] = complex(nodes[row, i] + nodes[row, d + i] * work.delta[i], im)
    if index == 0:
        return -1
    return min((index - 1) // 2, d)


@njit(**INNER)
def rest_of(work, axis):
    """metric[3] = the part of metric[1] that the slopes do not describe; at the second face of an axis, set its slope."""
    d = work.delta.shape[0]
    n = work.metric.shape[1]
    x = work.metric
    for i in range(n):
        for j in range(n):
            value = x[1, i, j]
            if axis < d:
                work.slopes[axis, i, j] = 0.5 * (value - x[2, i, j])
                value = 0.5 * (value + x[2, i, j])
            else:
                for a in range(d):
                    value -= work.slopes[a, i, j] * work.delta[a]
            x[3, i, j] = value


@njit(**INNER)
def measure(geo, at, work, nodes, row):
    """Bounds and slopes of one box: (largest size, q, eta), with q < 0 where the geometry cannot be evaluated."""
    d = work.delta.shape[0]
    n = work.metric.shape[1]
    x = work.metric
    eta = 0.0
    q = 0.0
    size = 0.0
    base = 2
    index = 0
    while index < 1 + 2 * d + base**d:
        axis = place(geo, at, work, nodes, row, index, base)
        here = 0 if index == 0 else 3
        if not gauge_factor(geo, at, work.frames[here], work.frames[here + 1], work.frames[here + 2]):
            return size, -1.0, eta
        if axis >= 0:
            relative_metric(work.frames, x)
            second = axis == d or index % 2 == 0
            for i in range(n):
                for j in range(n):
                    x[3, i, j] = x[1, i, j]
            for stage in range(2 if second else 1):
                bound = norm_bound(x, eta if stage == 0 and axis == d else q if stage == 1 else 0.0)
                if stage == 1:
                    q = max(q, bound)
                else:
                    eta = max(eta, bound)
                    if axis < d:
                        work.sizes[axis] = max(bound, work.sizes[axis] if second else 0.0)
                        size = max(size, bound)
                    if second:
                        rest_of(work, axis)
            if not second:
                for i in range(n):
                    for j in range(n):
                        x[2, i, j] = x[1, i, j]
        if index == 2 * d and size > COARSE:
            base = 3
        index += 1
    return size, SAFETY * q + 1e-12, SAFETY_ETA * eta + 1e-12


@njit(**INNER)
def fill(work, nodes, row, eta, q, size):
    """Write what `measure` found into a row whose first 2 d entries are the box."""
    d = work.delta.shape[0]
    p = work.frames.shape[1]
    nodes[row, 2 * d] = eta
    nodes[row, 2 * d + 1] = q
    nodes[row, 2 * d + 2] = size
    at = 2 * d + 3
    for i in range(p):
        for j in range(p):
            mixed = 0.0
            for k in range(i + 1):
                mixed -= work.frames[2, i, k] * work.frames[0, k, j]
            nodes[row, at + i * p + j] = work.frames[2, i, j]
            nodes[row, at + p * p + i * p + j] = mixed
            nodes[row, at + 2 * p * p + i * p + j] = work.frames[1, i, j]
    at += 3 * p * p
    for a in range(d):
        for i in range(2 * p):
            for j in range(i + 1):
                nodes[row, at] = work.slopes[a, i, j]
                at += 1


@njit(**JIT)
def extend(geo, at, work, leaf, nodes, links, state):
    """Measure boxes, depth first, until none is left (0), the arrays are full (1) or a box cannot be evaluated (2).

    ``links`` (k, 3) int32: first child or -1, axis of the cut or -1, and the stack of boxes to do. ``state`` (2,) int64:
    number of nodes, height of the stack.
    """
    d = work.delta.shape[0]
    while state[1] > 0:
        if state[0] + 2 > nodes.shape[0]:
            return 1
        row = links[state[1] - 1, 2]
        size, q, eta = measure(geo, at, work, nodes, row)
        if q < 0.0:
            return 2
        fill(work, nodes, row, eta, q, size)
        state[1] -= 1
        links[row, 0] = -1
        links[row, 1] = -1
        if size > leaf:
            best = 0
            for a in range(1, d):
                if work.sizes[a] > work.sizes[best]:
                    best = a
            links[row, 0] = state[0]
            links[row, 1] = best
            for side in range(2):
                child = state[0]
                for a in range(2 * d):
                    nodes[child, a] = nodes[row, a]
                half = 0.5 * nodes[row, d + best]
                nodes[child, d + best] = half
                nodes[child, best] += half if side == 1 else -half
                links[state[1], 2] = child
                state[1] += 1
                state[0] += 1
    return 0


@njit(**INNER)
def to_frame(nodes, row, x, at, y):
    """y = L^T x in the frame of a box, for the integer vector x[at] of a table x of n columns."""
    n = y.shape[0]
    p = n // 2
    base = 4 * (p - 1) + 3
    for i in range(p):
        top = 0.0
        bottom = 0.0
        for j in range(i + 1):
            top += nodes[row, base + i * p + j] * x[at, j]
        for j in range(p):
            top += nodes[row, base + (p + i) * p + j] * x[at, p + j]
        for j in range(i, p):
            bottom += nodes[row, base + (2 * p + j) * p + i] * x[at, p + j]
        y[i] = top
        y[p + i] = bottom


@njit(**INNER)
def slopes_times(nodes, row, y, v):
    """v[a] = S_a y for every axis of a box, y (n,) in its frame, v (d, n)."""
    n = y.shape[0]
    d = n - 2
    at = 2 * d + 3 + 3 * n * n // 4
    for a in range(d):
        for i in range(n):
            total = 0.0
            for j in range(i):
                x = nodes[row, at]
                total += x * y[j]
                v[a, j] += x * y[i]
                at += 1
            v[a, i] = total + nodes[row, at] * y[i]
            at += 1


def root_box(geometry: Geometry, region: Region, cp: bool) -> NDArray[np.float64]:
    """Centre and halfwidths (2 d,) of the whole padded region; with ``cp`` only Re z^1 >= 0, the rest being images."""
    h = geometry.h12
    low = np.full(2 * h, -0.5 - PAD)
    if cp:
        low[0] = -PAD
    high = np.full(2 * h, 0.5 + PAD)
    for a, (lo, hi) in enumerate(region.im_z):
        low[h + a], high[h + a] = np.log(lo - PAD), np.log(hi + PAD)
    return np.concatenate((0.5 * (low + high), 0.5 * (high - low)))


def build_tree(geometry: Geometry, box: NDArray[np.float64], leaf: float) -> CoverPart:
    """Tree of one box (2 d,) = centre, halfwidths, halved until no change from centre to face exceeds ``leaf``.

    Raises
    ------
    InputError
        Where the instanton series diverges or the gauge kinetic matrix is not positive.
    """
    geo = arrays_of(geometry)
    at, work = point(geo), scratch(geometry.h12)
    nodes = np.zeros((1024, row_width(geometry.h12)))
    links = np.zeros((1024, 3), dtype=np.int32)
    nodes[0, : len(box)] = box
    state = np.array([1, 1])
    while status := extend(geo, at, work, leaf, nodes, links, state):
        if status == 2:
            raise InputError(
                f"the periods of {geometry.name} cannot be evaluated at z = {np.round(at.z, 3).tolist()}: "
                "the instanton series diverges or the metric is not positive there"
            )
        nodes = np.concatenate((nodes, np.zeros_like(nodes)))
        links = np.concatenate((links, np.zeros_like(links)))
    count = int(state[0])
    return CoverPart(nodes[:count].copy(), links[:count, 0].copy(), links[:count, 1].copy())


def sub_boxes(geometry: Geometry, region: Region, n_parts: int, leaf: float, cp: bool) -> list[NDArray[np.float64]]:
    """Cut the region into ``n_parts`` boxes of similar cost: always the one with most coarse leaves, along its widest axis."""

    def cost(box: NDArray[np.float64]) -> tuple[int, int]:
        tree = build_tree(geometry, box, max(4 * leaf, COARSE))
        return int(np.count_nonzero(tree.children < 0)), int(tree.axis[0])

    first = root_box(geometry, region, cp)
    boxes, costs = [first], [cost(first)]
    while len(boxes) < n_parts:
        i = max(range(len(boxes)), key=lambda k: costs[k][0])
        d = len(first) // 2
        axis = costs[i][1] if costs[i][1] >= 0 else int(np.argmax(boxes[i][d:]))
        low, high = boxes[i].copy(), boxes[i].copy()
        for box, sign in ((low, -1), (high, 1)):
            box[d + axis] /= 2
            box[axis] += sign * box[d + axis]
        boxes[i : i + 1] = [low, high]
        costs[i : i + 1] = [cost(low), cost(high)]
    return boxes


def build_part(
    geometry: Geometry, region: Region, part: int, n_parts: int, *, leaf: float = 0.05, cp: bool = True
) -> CoverPart:
    """Build the tree of one of ``n_parts`` fixed sub-boxes of the region; does not depend on n_max or s.

    Parameters
    ----------
    part, n_parts
        Which sub-box, of how many. The cut depends on nothing but the arguments.
    leaf
        Largest change of the metric from the centre of a leaf to a face.
    cp
        Cover Re z^1 in [0, 1/2] only; the other half is its image under complex conjugation.

    Raises
    ------
    InputError
        Where the instanton series diverges or the gauge kinetic matrix is not positive in the region.
    """
    return build_tree(geometry, sub_boxes(geometry, region, n_parts, leaf, cp)[part], leaf)


def key(geometry: Geometry, region: Region, leaf: float = 0.05, cp: bool = True) -> str:
    """Name of a cover for caching: a digest of all it depends on (geometry, Im z box, leaf, cp, version of the code)."""
    content = [CODE_VERSION, geometry.hash, [[float(x) for x in pair] for pair in region.im_z], float(leaf), bool(cp)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def join(parts: list[CoverPart]) -> Cover:
    """Put trees beside each other as one read-only forest."""
    starts = np.cumsum([0] + [len(part.children) for part in parts])
    nodes = np.concatenate([part.nodes for part in parts])
    children = np.concatenate(
        [np.where(part.children >= 0, part.children + start, -1) for part, start in zip(parts, starts, strict=False)]
    ).astype(np.int32)
    axis = np.concatenate([part.axis for part in parts])
    return _read_only(nodes, children, axis, starts[:-1].astype(np.int64))


def _read_only(*arrays: NDArray) -> Cover:
    """A cover of read-only plain arrays: one type, hence one compiled version, wherever it comes from."""
    plain = [np.asarray(array).view(np.ndarray) for array in arrays]
    for array in plain:
        array.flags.writeable = False
    return Cover(*plain)


def build(geometry: Geometry, region: Region, *, n_parts: int = 8, leaf: float = 0.05, cp: bool = True) -> Cover:
    """Build a whole cover in this process and keep it in memory."""
    boxes = sub_boxes(geometry, region, n_parts, leaf, cp)
    return join([build_tree(geometry, box, leaf) for box in boxes])


def save_part(part: CoverPart, path: str | Path) -> None:
    """Write one part to ``path`` (a directory, made if it is not there) as three .npy files."""
    directory = Path(path)
    directory.mkdir(parents=True, exist_ok=True)
    for name, array in zip(CoverPart._fields, part, strict=True):
        np.save(directory / f"{name}.npy", array)


def load_part(path: str | Path) -> CoverPart:
    """Read back what `save_part` wrote."""
    return CoverPart(*(np.load(Path(path) / f"{name}.npy", mmap_mode="r") for name in CoverPart._fields))


def assemble(parts: list[str | Path], directory: str | Path) -> Cover:
    """Join saved parts (their directories, in order) into ``directory`` and open the cover found there."""
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    cover = join([load_part(path) for path in parts])
    for name, array in zip(Cover._fields, cover, strict=True):
        np.save(target / f"{name}.npy", array)
    return open_cover(target)


def open_cover(directory: str | Path) -> Cover:
    """Open an assembled cover; its arrays are memory-mapped and shared by all processes that do so."""
    return _read_only(*(np.load(Path(directory) / f"{name}.npy", mmap_mode="r") for name in Cover._fields))
