"""A pipeline's graph as text and as a picture."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from matforge import Pipeline, UsageError
from matforge.drawing import COLOURS, Graph
from matforge.model import ChoreState


@pytest.fixture
def pipe(tmp_path: Path) -> Pipeline:
    """A diamond and a command that waits for its tip."""
    pipeline = Pipeline(tmp_path, workers=1)
    one = pipeline.chore("one")(lambda *a: len(a))
    top = one()
    tip = one(one(top), {"x": [one(top, top)]})
    pipeline.exec("true", deps=[tip])
    return pipeline


def test_edges_are_the_references_between_chores(pipe: Pipeline) -> None:
    graph = pipe.graph()
    assert list(graph.nodes) == [f"chore-one-000{n}" for n in (1, 2, 3, 4)] + ["chore-true-0005"]
    numbers = {(int(a[-1]), int(b[-1])) for a, b in graph.edges}
    assert numbers == {(1, 2), (1, 3), (2, 4), (3, 4), (4, 5)}
    assert [len(layer) for layer in graph.layers()] == [1, 2, 1, 1]
    assert set(graph.nodes.values()) == {None}


def test_after_the_run_the_states_are_in_it(pipe: Pipeline) -> None:
    pipe.submit(quiet=True).result(60)
    graph = pipe.graph()
    assert set(graph.nodes.values()) == {ChoreState.COMPLETED}
    assert COLOURS[ChoreState.COMPLETED] in graph.mermaid()
    assert COLOURS[ChoreState.COMPLETED] in graph.dot()


def test_the_text_forms_name_every_chore_and_edge(pipe: Pipeline, tmp_path: Path) -> None:
    graph = pipe.graph()
    mermaid = pipe.graph().save(tmp_path / "graph.mmd").read_text()
    assert mermaid.startswith("graph TD\n")
    assert mermaid.count("-->") == len(graph.edges)
    dot = graph.save(tmp_path / "graph.dot").read_text()
    assert dot.count("->") == len(graph.edges)
    assert all(f'"{name}"' in dot for name in graph.nodes)


def test_it_is_drawn(pipe: Pipeline, tmp_path: Path) -> None:
    assert (pipe.graph().save(tmp_path / "graph.png")).read_bytes().startswith(b"\x89PNG")
    assert "chore" not in pipe.graph().save(tmp_path / "graph.svg").read_text()[:200]
    assert Graph({}, ()).save(tmp_path / "empty.pdf").stat().st_size > 0


def test_a_graph_of_thousands_is_drawn_as_dots_within_seconds(tmp_path: Path) -> None:
    names = [f"chore-work-{k:05d}" for k in range(4000)]
    edges = tuple((names[k // 3], names[k]) for k in range(1, len(names)))
    states = dict.fromkeys(names, ChoreState.COMPLETED) | {names[7]: ChoreState.FAILED}
    before = time.process_time()
    drawn = Graph(states, edges).save(tmp_path / "graph.svg").read_text()
    assert time.process_time() - before < 4
    assert COLOURS[ChoreState.FAILED] in drawn
    assert drawn.count(COLOURS[ChoreState.COMPLETED]) >= 1
    few = Graph(dict.fromkeys(names[:20]), ()).save(tmp_path / "few.png")
    assert few.stat().st_size > 0


def test_an_unknown_ending_is_refused(pipe: Pipeline, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"saved as one of \.svg, .*'graph.xyz' ends in none"):
        pipe.graph().save(tmp_path / "graph.xyz")
