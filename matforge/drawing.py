"""The graph of a pipeline, to be looked at: as text (Mermaid, DOT) or drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matforge.model import ChoreState, UsageError

TEXT_FORMATS = (".mmd", ".dot")
DRAWN_FORMATS = (".svg", ".png", ".pdf")
COLOURS: Mapping[ChoreState | None, str] = {
    None: "#e8edf2",
    ChoreState.BLOCKED: "#d8dee5",
    ChoreState.READY: "#bcd5ee",
    ChoreState.RUNNING: "#f6d57a",
    ChoreState.COMPLETED: "#a8d5a2",
    ChoreState.FAILED: "#eda5a0",
    ChoreState.CANCELLED: "#cfcfcf",
}
"""Fill of a chore by its state; None before the pipeline is submitted."""
LINE = "#607080"
NAMED = 200
"""Chores that are drawn as boxes with their names; of more no name could be read, so they are dots."""


@dataclass(frozen=True)
class Graph:
    """Chores and the edges between them.

    Attributes
    ----------
    nodes : mapping of str to ChoreState or None
        Chore id to state; None before the pipeline is submitted.
    edges : tuple of (str, str)
        From the chore that gives a result to the one that needs it.
    """

    nodes: Mapping[str, ChoreState | None]
    edges: tuple[tuple[str, str], ...]

    def mermaid(self) -> str:
        """Text that Mermaid draws (in GitHub's Markdown, in notebooks)."""
        number = {name: f"n{k}" for k, name in enumerate(self.nodes)}
        lines = ["graph TD"]
        lines += [f'  {number[name]}["{name}"]' for name in self.nodes]
        lines += [f"  {number[a]} --> {number[b]}" for a, b in self.edges]
        lines += [
            f"  style {number[name]} fill:{COLOURS[state]}" for name, state in self.nodes.items() if state
        ]
        return "\n".join(lines) + "\n"

    def dot(self) -> str:
        """Text in Graphviz's language."""
        lines = ["digraph matforge {", "  node [shape=box, style=filled];"]
        lines += [f'  "{name}" [fillcolor="{COLOURS[state]}"];' for name, state in self.nodes.items()]
        lines += [f'  "{a}" -> "{b}";' for a, b in self.edges]
        return "\n".join([*lines, "}"]) + "\n"

    def layers(self) -> list[list[str]]:
        """Chores by the length of the longest path that leads to them."""
        depth = dict.fromkeys(self.nodes, 0)
        needs: dict[str, list[str]] = {name: [] for name in self.nodes}
        for a, b in self.edges:
            needs[b].append(a)
        for name in self.nodes:  # inputs were recorded before what needs them
            depth[name] = max((depth[a] + 1 for a in needs[name]), default=0)
        out: list[list[str]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
        for name, level in depth.items():
            out[level].append(name)
        return out

    def save(self, path: str | Path) -> Path:
        """Write the graph to a file; the ending of its name says how.

        Raises
        ------
        UsageError
            If the ending is none of .svg, .png, .pdf, .mmd, .dot, or matplotlib is needed and missing.
        """
        path = Path(path)
        if path.suffix == ".mmd":
            path.write_text(self.mermaid())
        elif path.suffix == ".dot":
            path.write_text(self.dot())
        elif path.suffix in DRAWN_FORMATS:
            _draw(self, path)
        else:
            known = ", ".join((*DRAWN_FORMATS, *TEXT_FORMATS))
            raise UsageError(f"A graph is saved as one of {known}, and {path.name!r} ends in none of them.")
        return path


def _draw(graph: Graph, path: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError(
            "Drawing needs matplotlib: pip install 'matforge[plots]', or save the graph as .mmd or .dot."
        ) from None
    places = _places(graph.layers())
    wide = max((len(layer) for layer in graph.layers()), default=1)
    figure = Figure(figsize=(max(4.0, min(40.0, 1.9 * wide)), max(2.0, min(40.0, 1.1 * len(graph.layers())))))
    axes = figure.add_axes((0.02, 0.02, 0.96, 0.96))
    axes.axis("off")
    (_boxes if len(graph.nodes) <= NAMED else _dots)(axes, graph, places)
    axes.set_xlim(-0.5 * wide - 0.1, 0.5 * wide + 0.1)
    axes.set_ylim(-len(graph.layers()) + 0.4, 0.6)
    figure.savefig(path)


def _boxes(axes: Any, graph: Graph, places: Mapping[str, tuple[float, float]]) -> None:
    for a, b in graph.edges:
        arrow = {"arrowstyle": "-|>", "color": LINE, "shrinkA": 12, "shrinkB": 12}
        axes.annotate("", xy=places[b], xytext=places[a], arrowprops=arrow)
    for name, (x, y) in places.items():
        box = {"boxstyle": "round,pad=0.4", "facecolor": COLOURS[graph.nodes[name]], "edgecolor": LINE}
        axes.text(x, y, name.removeprefix("chore-"), ha="center", va="center", fontsize=8, bbox=box)


def _dots(axes: Any, graph: Graph, places: Mapping[str, tuple[float, float]]) -> None:
    from matplotlib.collections import LineCollection

    lines = [(places[a], places[b]) for a, b in graph.edges]
    axes.add_collection(LineCollection(lines, colors=LINE, linewidths=0.4, zorder=1))
    colours = [COLOURS[graph.nodes[name]] for name in places]
    axes.scatter(
        *zip(*places.values(), strict=True), s=30, c=colours, edgecolors=LINE, linewidths=0.5, zorder=2
    )


def _places(layers: Iterable[list[str]]) -> dict[str, tuple[float, float]]:
    """Each layer on a line of its own, centred."""
    return {
        name: (k - (len(layer) - 1) / 2, -float(level))
        for level, layer in enumerate(layers)
        for k, name in enumerate(layer)
    }
