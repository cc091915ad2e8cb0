"""One figure of a set of vacua: moduli, axio-dilaton, tadpole, superpotential (needs the extra ``plots``).

Matplotlib is imported when a figure is drawn, and used through its object interface with the Agg canvas: no
display, no global state.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from matforge.vacua.inputs import InputError

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_file", "plot_vacua"]

_DARK, _LIGHT, _BAR = "#333333", "#eef1f5", "#4c6a92"
_COLOURS = "viridis"


class _Columns(NamedTuple):
    """What is drawn, as arrays; rows ordered so that small tadpoles lie on top."""

    z: NDArray[np.complex128]
    tau: NDArray[np.complex128]
    n_flux: NDArray[np.int64]
    w0_abs: NDArray[np.float64]


def plot_vacua(table: pa.Table, path: str | Path, title: str) -> None:
    """Draw the vacua of a table and write the figure.

    Parameters
    ----------
    table
        Columns ``moduli_re``, ``moduli_im`` (lists of h12 numbers), ``tau_re``, ``tau_im``, ``n_flux``,
        ``W0_abs``; one row a vacuum modulo sign. An empty table gives a figure that says so.
    path
        Where to write; the ending says the format (png, pdf, svg).
    title
        Heading of the figure; the number of vacua is added to it.

    Raises
    ------
    InputError
        If a column or matplotlib is missing, or the ending is unknown.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("plots need matplotlib: install matforge[plots].") from error
    columns = _columns(table)
    moduli = columns.z.shape[1]
    figure = Figure(figsize=(3.1 * max(moduli + 1, 2) + 1.0, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    count = len(columns.tau)
    figure.suptitle(f"{title}: {count:,} {'vacuum' if count == 1 else 'vacua'} modulo sign", color=_DARK)
    if count:
        _draw(figure, columns)
    else:
        figure.text(0.5, 0.5, "no vacua in this table", ha="center", va="center", size=14, color=_DARK)
    suffix = Path(path).suffix.lower().lstrip(".")
    if suffix not in figure.canvas.get_supported_filetypes():
        raise InputError(f"{path}: cannot write a figure with that ending: use .png, .pdf or .svg.")
    # without a date the same vacua give the same file
    metadata: dict[str, Any] | None = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(suffix)
    figure.savefig(path, dpi=120, metadata=metadata)


def plot_file(parquet: str | Path, out: str | Path, title: str | None = None) -> None:
    """Draw the vacua of a parquet file; its title is by default the name of the geometry, or of the file."""
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(parquet)
    except (OSError, ValueError) as error:  # pyarrow's own errors are both
        raise InputError(
            f"{parquet}: cannot be read as parquet: give the path of a file of vacua."
        ) from error
    if title is None:
        stored = (table.schema.metadata or {}).get(b"geometry", b"").decode()
        title = stored if stored and not stored.startswith("{") else Path(parquet).stem
    plot_vacua(table, out, title)


def _columns(table: pa.Table) -> _Columns:
    needed = ("moduli_re", "moduli_im", "tau_re", "tau_im", "n_flux", "W0_abs")
    missing = [name for name in needed if name not in table.column_names]
    if missing:
        raise InputError(f"the table lacks {', '.join(missing)}: it is no table of vacua.")
    rows = table.num_rows
    if not rows:
        return _Columns(np.zeros((0, 1), complex), np.zeros(0, complex), np.zeros(0, np.int64), np.zeros(0))

    def flat(name: str) -> NDArray[np.float64]:
        values: NDArray[np.float64] = table.column(name).combine_chunks().to_numpy(zero_copy_only=False)
        return values

    z = np.stack([*flat("moduli_re")]) + 1j * np.stack([*flat("moduli_im")])
    tau = flat("tau_re") + 1j * flat("tau_im")
    n_flux, w0_abs = flat("n_flux").astype(np.int64), flat("W0_abs")
    order = np.lexsort([*z.imag.T, -n_flux])
    return _Columns(z[order], tau[order], n_flux[order], w0_abs[order])


def _draw(figure: Figure, columns: _Columns) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import BoundaryNorm, ListedColormap

    moduli = columns.z.shape[1]
    top, bottom = figure.subfigures(2, 1, height_ratios=[1.25, 1.0])
    planes = top.subplots(1, moduli + 1, squeeze=False)[0]
    low, high = int(columns.n_flux.min()), int(columns.n_flux.max())
    colours = ListedColormap(colormaps[_COLOURS](np.linspace(0.05, 0.92, high - low + 1)))
    norm = BoundaryNorm(np.arange(low - 0.5, high + 1), colours.N)
    style = {
        "c": columns.n_flux,
        "cmap": colours,
        "norm": norm,
        "s": float(np.clip(2.0e4 / len(columns.tau), 0.6, 16.0)),
        "linewidths": 0,
        "rasterized": len(columns.tau) > 5000,  # a vector file of 58,009 marks opens slowly
    }
    for i, axes in enumerate(planes[:-1]):
        index = f"^{{{i + 1}}}" if moduli > 1 else ""
        marks = axes.scatter(columns.z[:, i].real, columns.z[:, i].imag, **style)
        _label(axes, f"$\\mathrm{{Re}}\\,z{index}$", f"$\\mathrm{{Im}}\\,z{index}$")
        axes.set_xlim(-0.54, 0.54)
    _tau_plane(planes[-1], columns, style)
    bar = top.colorbar(marks, ax=planes, pad=0.01, aspect=28, label=r"$N_{\mathrm{flux}}$")
    bar.set_ticks(np.arange(low, high + 1, -(-(high - low + 1) // 15)))
    bar.ax.tick_params(length=0)
    left, right = bottom.subplots(1, 2)
    _tadpole_counts(left, columns.n_flux)
    _superpotential_counts(right, columns.w0_abs)


def _label(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_DARK)


def _tau_plane(axes: Axes, columns: _Columns, style: dict[str, Any]) -> None:
    """The axio-dilaton with the edge of the fundamental domain: two lines and the arc |tau| = 1."""
    highest = 1.15 * max(float(columns.tau.imag.max()), 1.6)
    x = np.linspace(-0.5, 0.5, 201)
    arc = np.sqrt(1 - x**2)
    axes.fill_between(x, arc, highest, color=_LIGHT, linewidth=0, zorder=0)
    edge_x = np.concatenate([[-0.5], x, [0.5]])
    edge_y = np.concatenate([[highest], arc, [highest]])
    axes.plot(edge_x, edge_y, color=_DARK, linewidth=0.8, zorder=1)
    axes.scatter(columns.tau.real, columns.tau.imag, zorder=2, **style)
    if highest > 8:  # most vacua are at strong coupling: a linear axis would press them onto the arc
        from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

        axes.set_yscale("log")
        axes.yaxis.set_major_locator(
            FixedLocator([v for v in (1, 2, 5, 10, 20, 50, 100, 200, 500) if v < highest])
        )
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlim(-0.54, 0.54)
    axes.set_ylim(0.8, highest)
    _label(axes, r"$\mathrm{Re}\,\tau$", r"$\mathrm{Im}\,\tau$")


def _tadpole_counts(axes: Axes, n_flux: NDArray[np.int64]) -> None:
    from matplotlib.ticker import MaxNLocator

    values, counts = np.unique(n_flux, return_counts=True)
    axes.bar(values, counts, width=0.8, color=_BAR)
    axes.set_yscale("log")
    axes.set_ylim(0.6, max(1.6 * counts.max(), 12))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(values.min() - 1.2, values.max() + 1.2)
    _label(axes, r"$N_{\mathrm{flux}}$", "vacua")


def _superpotential_counts(axes: Axes, w0_abs: NDArray[np.float64]) -> None:
    from matplotlib.ticker import MaxNLocator

    bins = int(np.clip(2 * np.sqrt(len(w0_abs)), 5, 80))
    axes.hist(w0_abs, bins=bins, range=(0.0, 1.02 * float(w0_abs.max()) + 1e-12), color=_BAR)
    axes.axvline(float(w0_abs.min()), color=_DARK, linewidth=0.8, linestyle=":")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(f"smallest $|W_0| = {w0_abs.min():.4g}$", loc="right", color=_DARK, size=9)
    _label(axes, r"$|W_0|$", "vacua")
