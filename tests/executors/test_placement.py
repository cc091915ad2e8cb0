"""Rules on the ledger: whoever must go is enough and no more, and nothing is promised twice."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from matforge.executors.placement import Block, Need, Node, fits, plan, shares

blocks = st.builds(
    Block,
    cores=st.integers(1, 4),
    gpus=st.integers(0, 2),
    load=st.integers(0, 5),
    leaving=st.booleans(),
    fixed=st.booleans(),
    alone=st.sampled_from((False, False, False, True)),
)
needs = st.builds(Need, tasks=st.integers(1, 6), cores=st.integers(1, 4), gpus=st.integers(0, 2))


@st.composite
def nodes(draw: st.DrawFn) -> list[Node]:
    made = []
    for rank in range(draw(st.integers(1, 4))):
        node = Node(rank, f"n{rank}", draw(st.integers(1, 8)), draw(st.integers(0, 4)), draw(st.booleans()))
        for block in draw(st.lists(blocks, max_size=4)):
            cores, gpus = node.free()
            block.alone = block.alone and not node.blocks
            if block.cores <= cores and block.gpus <= gpus:
                block.leaving = block.leaving and not block.fixed
                node.blocks.append(block)
        made.append(node)
    return made


@given(needs, nodes())
def test_a_plan_makes_enough_room_and_asks_only_agents_to_leave(need: Need, there: list[Node]) -> None:
    found = plan(need, there)
    if found is None:
        held_by_jobs = [
            Node(n.rank, n.host, n.cores, n.gpus, n.up, [b for b in n.blocks if b.fixed]) for n in there
        ]
        open_to_all = [n for n in held_by_jobs if n.up and not any(b.alone for b in there[n.rank].blocks)]
        assert sum(need.tasks_in(*n.free()) for n in open_to_all) < need.tasks
        return
    assert all(node.up for node in found.nodes)
    assert not any(block.fixed or block.leaving for block in found.leaving)
    if found.ready:
        assert not found.leaving
        assert sum(need.tasks_in(*node.free()) for node in found.nodes) >= need.tasks
    for block in found.leaving:
        block.leaving = True
    assert sum(need.tasks_in(*node.room()) for node in found.nodes) >= need.tasks
    assert fits(need, there)


@given(needs, nodes())
def test_what_is_to_be_alone_shares_no_node(need: Need, there: list[Node]) -> None:
    found = plan(need, there, alone=True)
    if found is None:
        without_jobs = [n for n in there if n.up and not any(b.fixed or b.alone for b in n.blocks)]
        assert sum(need.tasks_in(n.cores, n.gpus) for n in without_jobs) < need.tasks
        return
    assert not any(block.fixed or block.alone for node in found.nodes for block in node.blocks)
    if found.ready:
        assert not any(node.blocks for node in found.nodes)
        return
    for block in found.leaving:
        block.leaving = True
    assert all(block.leaving for node in found.nodes for block in node.blocks)
    for node in there:
        node.blocks = [b for b in node.blocks if not b.leaving]
    again = plan(need, there, alone=True)
    assert again is not None
    assert again.ready


@given(needs, nodes())
def test_where_something_is_alone_nothing_is_free_and_nobody_else_is_sent(
    need: Need, there: list[Node]
) -> None:
    taken = [node for node in there if any(b.alone for b in node.blocks)]
    assert all(node.free() == (0, 0) for node in taken)
    found = plan(need, there)
    assert found is None or not {n.rank for n in found.nodes} & {n.rank for n in taken}


@given(needs, nodes())
def test_when_all_who_must_leave_have_left_the_next_plan_is_ready(need: Need, there: list[Node]) -> None:
    found = plan(need, there)
    if found is None:
        return
    for block in found.leaving:
        block.leaving = True
    for node in there:
        node.blocks = [b for b in node.blocks if not b.leaving]
    again = plan(need, there)
    assert again is not None
    assert again.ready


@given(needs, nodes())
def test_what_could_never_be_held_gets_no_plan(need: Need, there: list[Node]) -> None:
    if not fits(need, there):
        assert plan(need, there) is None


def test_idle_nodes_come_first_and_the_rest_keeps_working() -> None:
    busy, idle = Block(4, load=4), Block(4)
    there = [Node(0, "a", 4, blocks=[busy]), Node(1, "b", 4, blocks=[idle])]
    found = plan(Need(2, 1), there)
    assert found is not None
    assert [node.rank for node in found.nodes] == [1]
    assert found.leaving == (idle,)


def test_a_free_place_is_taken_before_an_idle_agent_is_sent_away() -> None:
    there = [Node(0, "a", 3, blocks=[Block(1), Block(1)]), Node(1, "b", 2)]
    found = plan(Need(1, 2), there)
    assert found is not None
    assert [node.rank for node in found.nodes] == [1]
    assert found.ready


def test_one_node_that_can_hold_all_is_better_than_two() -> None:
    there = [Node(0, "a", 2), Node(1, "b", 2), Node(2, "c", 4)]
    found = plan(Need(4, 1), there)
    assert found is not None
    assert [node.rank for node in found.nodes] == [2]


@given(
    st.dictionaries(st.integers(0, 20), st.integers(1, 64), min_size=1, max_size=8),
    st.none() | st.integers(1, 500),
)
def test_slots_are_shared_out_completely(cores: dict[int, int], workers: int | None) -> None:
    given_out = shares(cores, workers)
    total = sum(cores.values())
    assert sum(given_out.values()) == (total if workers is None else workers)
    if workers is not None and workers < total:
        assert all(given_out[rank] <= cores[rank] for rank in given_out)
    elif workers is not None:
        assert all(given_out[rank] >= cores[rank] for rank in cores)
