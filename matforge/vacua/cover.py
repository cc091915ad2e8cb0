"""The cover: a shared tree of boxes in moduli space with bounds on the complex structure, built once.

A box has coordinates (Re z^i, ln t_a) with t = T Im z the cone coordinates; d = 2 h12 of them. In the frame
``x~ = L^T x`` of its centre (see `matforge.vacua.kernels`) the metric ``A = Sigma^T M Sigma`` is

    A~(z) = 1 + sum_m C_m phi_m(delta) + rest,    |rest| <= q,    |A~ - 1| <= eta,    delta in [-1, 1]^d,

with the functions phi = delta_a, 2 delta_a^2 - 1, delta_a delta_b (a < b), 1, all between -1 and 1. The C_m
are fixed by the centre, the centres of the faces, and those of the faces of codimension two. A~ is
symplectic, its eigenvalues pair as (l, 1 / l), so A~ >= 1 / (1 + eta). ``q`` and ``eta`` are maxima over
sampled points (corners, points inside) times a safety factor: sampled, not proven. Boxes are halved along
the coordinate along which A~ changes most, until no change from centre to face exceeds ``leaf``.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numba import njit

from matforge.vacua.geometry import InputError
from matforge.vacua.kernels import CONE, FRAME, JIT, Z, arrays_of, complex_work, derivatives, gauge_factor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from matforge.vacua.geometry import Geometry
    from matforge.vacua.region import Region

CODE_VERSION = 3
"""Raised whenever the content of a cover changes for the same input."""

PAD = 3e-6
"""Every edge of the region is moved outwards by this: vacua within 1e-6 of it are accepted, then folded."""
COARSE = 0.2
"""Size of the leaves that are counted to balance the parts."""
SAFETY = 1.3
"""Factor on the sampled q, for what lies between the samples; the tests try random points."""
SAFETY_ETA = 1.05
"""Factor on the sampled eta, whose largest values lie at corners, which are sampled."""


class CoverPart(NamedTuple):
    """The tree of one of the fixed sub-boxes, k nodes, the root first."""

    nodes: NDArray[np.float64]  # (k, row_width) what `Cover` keeps in boxes, frames and columns, row by row
    children: NDArray[np.int32]  # (k,) first of two neighbouring children, -1 for a leaf
    axis: NDArray[np.int32]  # (k,) coordinate that was halved, -1 for a leaf


class Cover(NamedTuple):
    """A forest of boxes, read-only, k nodes; n = 2 h12 + 2, d = 2 h12, M as in `generators`."""

    boxes: NDArray[np.float64]  # (k, 2 d + 3) centre, halfwidths, eta, q, size
    frames: NDArray[np.float64]  # (k, n, n) frames[:, j, i] = (L^T)_ij of the centre
    columns: NDArray[np.float64]  # (k, n, n M) columns[:, j, i M + m] = (C_m)_ij, the first being Sigma^T / 2
    children: NDArray[np.int32]  # (k,) as in the parts
    axis: NDArray[np.int32]  # (k,)
    roots: NDArray[np.int64]  # (parts,) roots of the parts


def generators(h12: int) -> int:
    """Columns of a box: Sigma^T / 2, then the C_m of delta_a, 2 delta_a^2 - 1, delta_a delta_b and 1."""
    d = 2 * h12
    return 1 + d + d + d * (d - 1) // 2 + 1


def row_width(h12: int) -> int:
    """Numbers that describe a box: 2 d + 3, then n^2, then n^2 M."""
    n = 2 * h12 + 2
    return 4 * h12 + 3 + n * n * (1 + generators(h12))


BACK, PRODUCT, POWER, OTHER = 40, 56, 72, 88
"""Rows of the real work array after those of `gauge_factor`: inverse of L^T of the centre, then matrices."""


def samples(h12: int) -> NDArray[np.float64]:
    """Where a box is sampled, and how the C_m follow: (P, d + 2 M) for P points, M = generators, d = 2 h12.

    A row is delta (d), phi_m(delta) (M; 0 for the first column, which is not part of A~), and the weight
    with which A~ - 1 there enters each C_m (M). The points are the centre, the face centres, those of the
    faces of codimension two, then, with weight 0, corners and points within, where a cubic rest is large
    and the others cannot see it.
    """
    d, m = 2 * h12, generators(h12)
    unit = np.eye(d)
    pairs = [(a, b) for a in range(d) for b in range(a + 1, d)]
    points = [np.zeros(d), *(sign * unit[a] for a in range(d) for sign in (-1, 1))]
    points += [s * unit[a] + t * unit[b] for a, b in pairs for s in (-1, 1) for t in (-1, 1)]
    weight = np.zeros((len(points) + 2 * d + 2 * 2**d, m))
    for a in range(d):
        at = slice(1 + 2 * a, 3 + 2 * a)
        weight[at, 1 + a] = (-0.5, 0.5)
        weight[at, 1 + d + a] = weight[at, m - 1] = 0.25
    for k in range(len(pairs)):
        at = 1 + 2 * d + 4 * k
        weight[at : at + 4, 1 + 2 * d + k] = (0.25, -0.25, -0.25, 0.25)
    inside = 3**-0.5  # where delta^3 - delta is largest
    points += [sign * inside * unit[a] for a in range(d) for sign in (-1, 1)]
    corners = 2.0 * (np.arange(2**d)[:, None] >> np.arange(d) & 1) - 1.0
    delta = np.concatenate((points, corners, inside * corners))
    mixed = [delta[:, a] * delta[:, b] for a, b in pairs]
    none = np.zeros(len(delta))
    phi = np.stack((none, *delta.T, *(2 * delta**2 - 1).T, *mixed, none + 1), axis=1)
    return np.ascontiguousarray(np.concatenate((delta, phi, weight), axis=1))


@njit(**JIT)
def sample_box(real, curves, periods, work, boxes, frames, columns, row, plan, x):
    """Rows of x: A~ - 1 at the samples of a box, then the C_m; False where undefined.

    Frame and columns are written to their row. ``x`` is (P + M, n^2), ``plan`` comes from `samples`.
    """
    h = curves.shape[1] - 1
    p = h + 1
    n = 2 * p
    count = plan.shape[0]
    m = x.shape[0] - count
    for k in range(count):
        for i in range(h):
            im = 0.0
            for a in range(h, 2 * h):
                im += real[CONE + i, a - h] * np.exp(boxes[row, a] + boxes[row, 2 * h + a] * plan[k, a])
            periods[Z, i] = complex(boxes[row, i] + boxes[row, 2 * h + i] * plan[k, i], im)
        value, good = derivatives(real, curves, periods)
        if not gauge_factor(value, periods, h, work) or not good:
            return False
        for i in range(n):
            for j in range(n):
                a = work[FRAME + i, j]
                if k == 0:  # the inverse of a symplectic [[a, b], [c, d]] is [[d^T, -b^T], [-c^T, a^T]]
                    work[BACK + (j + p) % n, (i + p) % n] = a if (i < p) == (j < p) else -a
                    frames[row, j, i] = a
        for i in range(n):
            for j in range(n):
                a = 0.0
                for c in range(n):
                    a += work[FRAME + i, c] * work[BACK + c, j]
                work[PRODUCT + i, j] = a
        for i in range(n):
            for j in range(n):
                a = -1.0 if i == j else 0.0
                for c in range(n):
                    a += work[PRODUCT + c, i] * work[PRODUCT + c, j]
                x[k, i * n + j] = a
    for g in range(m):
        for c in range(n * n):
            i = c // n
            j = c % n
            a = 0.0
            if g == 0:  # Sigma^T / 2
                a = (0.5 if i - j == p else 0.0) - (0.5 if j - i == p else 0.0)
            else:
                for k in range(count):
                    a += plan[k, 2 * h + m + g] * x[k, c]
            x[count + g, c] = a
            columns[row, j, i * m + g] = a
    return True


@njit(**JIT)
def bound_box(work, boxes, row, n, plan, x):
    """Write eta, q and size of a box to its row, from what `sample_box` left in x; the axis to be halved.

    The norm of a symmetric matrix is bounded by (tr x^16)^(1/16), at most n^(1/16) times it; it is not
    computed where the Frobenius norm shows that it does not exceed what is known already.
    """
    d = n - 2
    count = plan.shape[0]
    m = x.shape[0] - count
    q = 0.0
    eta = 0.0
    size = 0.0
    widest = 0
    for k in range(count):
        for stage in range(2):
            least = eta if stage == 0 else q
            if k > 0 and k <= 2 * d and stage == 0:
                least = size
            norm = 0.0
            for c in range(n * n):
                norm += x[k, c] * x[k, c]
            norm = np.sqrt(norm)
            if norm > least:
                for c in range(n * n):
                    work[POWER + c // n, c % n] = x[k, c] / norm
                total = 0.0
                source = POWER
                for _ in range(3):
                    total = 0.0
                    target = POWER + OTHER - source
                    for i in range(n):
                        for j in range(n):
                            a = 0.0
                            for c in range(n):
                                a += work[source + i, c] * work[source + j, c]
                            work[target + i, j] = a
                            total += a * a
                    source = target
                least = max(least, norm * total**0.0625)
            if stage == 1:
                q = least
                continue
            if k > 0 and k <= 2 * d and least > size:
                size = least
                widest = (k - 1) // 2
            eta = max(eta, least)
            for c in range(n * n):
                a = x[k, c]
                for g in range(1, m):
                    a -= plan[k, d + g] * x[count + g, c]
                x[k, c] = a
    boxes[row, 2 * d] = SAFETY_ETA * eta + 1e-12
    boxes[row, 2 * d + 1] = SAFETY * q + 1e-12
    boxes[row, 2 * d + 2] = size
    return widest


def root_box(geometry: Geometry, region: Region, cp: bool) -> NDArray[np.float64]:
    """Centre and halfwidths (2 d,) of the whole padded region; with ``cp`` only Re z^1 >= 0."""
    h = geometry.h12
    low = np.full(2 * h, -0.5 - PAD)
    if cp:
        low[0] = -PAD
    high = np.full(2 * h, 0.5 + PAD)
    for a, (lo, hi) in enumerate(region.im_z):
        low[h + a], high[h + a] = np.log(lo - PAD), np.log(hi + PAD)
    return np.concatenate((0.5 * (low + high), 0.5 * (high - low)))


def build_tree(geometry: Geometry, box: NDArray[np.float64], leaf: float) -> CoverPart:
    """Tree of one box (2 d,) = centre, halfwidths, halved until no change from centre to face exceeds
    ``leaf``.

    Raises
    ------
    InputError
        Where the instanton series diverges or the gauge kinetic matrix is not positive.
    """
    geo = arrays_of(geometry, 2)
    h, d, n = geometry.h12, 2 * geometry.h12, 2 * geometry.h12 + 2
    plan = samples(h)
    periods, work = complex_work(geo), np.zeros((OTHER + 16, n))
    x = np.zeros((len(plan) + generators(h), n * n))
    m = generators(h)
    boxes, frames, columns = (np.zeros((64, *shape)) for shape in ((2 * d + 3,), (n, n), (n, n * m)))
    boxes[0, : 2 * d] = box
    children, axes, todo = [-1], [-1], [0]
    while todo:
        row = todo.pop()
        if not sample_box(*geo, periods, work, boxes, frames, columns, row, plan, x):
            where = np.round(periods[Z, :h], 3).tolist()
            raise InputError(
                f"the periods of {geometry.name} cannot be evaluated near z = {where}: "
                "the instanton series diverges or the metric is not positive there."
            )
        axis = bound_box(work, boxes, row, n, plan, x)
        if boxes[row, 2 * d + 2] <= leaf:
            continue
        child = len(children)
        if child + 2 > len(boxes):
            boxes, frames, columns = (np.concatenate((a, np.zeros_like(a))) for a in (boxes, frames, columns))
        half = boxes[row, d + axis] / 2
        boxes[child : child + 2, : 2 * d] = boxes[row, : 2 * d]
        boxes[child : child + 2, d + axis] = half
        boxes[child : child + 2, axis] += (-half, half)
        children[row], axes[row] = child, axis
        children += [-1, -1]
        axes += [-1, -1]
        todo += [child, child + 1]
    k = len(children)
    nodes = np.concatenate([a[:k].reshape(k, -1) for a in (boxes, frames, columns)], axis=1)
    return CoverPart(nodes, np.array(children, dtype=np.int32), np.array(axes, dtype=np.int32))


def sub_boxes(
    geometry: Geometry, region: Region, n_parts: int, leaf: float, cp: bool
) -> list[NDArray[np.float64]]:
    """Cut the region into boxes of similar cost: always the one with most coarse leaves, as its tree does."""

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
    geometry: Geometry, region: Region, part: int, n_parts: int, *, leaf: float = 0.1, cp: bool = True
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


def key(geometry: Geometry, region: Region, leaf: float = 0.1, cp: bool = True) -> str:
    """Name of a cover for caching: a digest of geometry, Im z box, leaf, cp and the version of the code."""
    box = [[float(x) for x in pair] for pair in region.im_z]
    content = [CODE_VERSION, geometry.hash, box, float(leaf), bool(cp)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def join(parts: list[CoverPart]) -> Cover:
    """Put trees beside each other as one read-only forest."""
    starts = np.cumsum([0] + [len(part.children) for part in parts])
    nodes, children, axis = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    shift = np.repeat(starts[:-1], np.diff(starts)).astype(np.int32)
    h = 1
    while row_width(h) < nodes.shape[1]:
        h += 1
    n, k = 2 * h + 2, len(nodes)
    boxes, frames, columns = np.split(nodes, (4 * h + 3, 4 * h + 3 + n * n), axis=1)
    return _read_only(
        np.ascontiguousarray(boxes),
        frames.reshape(k, n, n).copy(),
        np.ascontiguousarray(columns).reshape(k, n, -1),
        np.where(children >= 0, children + shift, children),
        axis,
        starts[:-1].astype(np.int64),
    )


def _read_only(*arrays: NDArray) -> Cover:
    """A cover of read-only plain arrays: one type, hence one compiled version, wherever it comes from."""
    plain = [np.asarray(array).view(np.ndarray) for array in arrays]
    for array in plain:
        array.flags.writeable = False
    return Cover(*plain)


def build(
    geometry: Geometry, region: Region, *, n_parts: int = 8, leaf: float = 0.1, cp: bool = True
) -> Cover:
    """Build a whole cover in this process and keep it in memory."""
    boxes = sub_boxes(geometry, region, n_parts, leaf, cp)
    return join([build_tree(geometry, box, leaf) for box in boxes])


def save_part(part: CoverPart, path: str | Path) -> None:
    """Write one part to ``path`` (a directory, made if it is not there) as .npy files."""
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
