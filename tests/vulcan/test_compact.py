"""Many shards into few files: nothing lost, nothing doubled, the same names every time."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from matforge.vulcan import compact as compaction
from matforge.vulcan.compact import Loaded, compact
from matforge.vulcan.hub import sha256_of
from matforge.vulcan.parts import read_manifest
from matforge.vulcan.schema import SCHEMA
from matforge.vulcan.shard import load
from matforge.vulcan.splits import SplitSpec
from matforge.vulcan.writer import list_pending
from tests.vulcan.staging import forge, stage, vacua


def staged(folder: Path) -> list[Loaded]:
    return [Loaded(shard.parquet_path, *load(shard.parquet_path)) for shard in list_pending(folder)]


@settings(max_examples=15, deadline=None)
@given(
    sizes=st.lists(
        st.tuples(st.integers(1, 5), st.integers(0, 3), st.integers(1, 2)), min_size=1, max_size=8
    ),
    by=st.sampled_from(["geometry", "row"]),
    order=st.randoms(use_true_random=False),
)
def test_every_row_is_in_the_file_of_its_split_and_nowhere_else(
    tmp_path_factory: object, sizes: list[tuple[int, int, int]], by: str, order: object
) -> None:
    folder: Path = tmp_path_factory.mktemp("compact")  # type: ignore[attr-defined]
    handle = forge(folder)
    for seed, (rows, ks_id, h12) in enumerate(sizes):
        handle.write(vacua(rows, seed, h12), {"h11": 3, "h12": h12, "ks_id": ks_id}, tadpole_charge=1)
    shards, spec = staged(folder), SplitSpec(by=by, salt="s")
    order.shuffle(shards)  # type: ignore[attr-defined]
    parts = compact(shards, spec, folder / "out")
    again = compact(shards[::-1], spec, folder / "again")
    assert [(p.path, p.sha256) for p in again] == [(p.path, p.sha256) for p in parts]
    found = []
    for part in parts:
        path = folder / "out" / part.path
        table = pq.read_table(path, partitioning=None)
        assert (sha256_of(path), path.stat().st_size, table.num_rows) == (part.sha256, part.size, part.rows)
        assert table.schema.names == SCHEMA.names
        assert set(spec.assign(table["geometry_id"].to_pylist(), table["flux"])) == {part.split}
        listed = [(record.run_id, record.n_rows) for record in read_manifest(str(path))]
        assert listed == [(run.run_id, run.rows) for run in part.runs]
        assert [run for run, rows in listed for _ in range(rows)] == table["run_id"].to_pylist()
        assert f"/h12={table['h12'][0].as_py()}/" in part.path
        found += [(row["run_id"], tuple(row["flux"])) for row in table.to_pylist()]
    wanted = [(row["run_id"], tuple(row["flux"])) for shard in shards for row in shard.table.to_pylist()]
    assert sorted(found) == sorted(wanted)


def test_rows_of_thousands_of_shards_lie_in_few_row_groups(tmp_path: Path) -> None:
    """The number of row groups is that of the rows, not of the shards."""
    stage(forge(tmp_path), 40, rows=2)
    for part in compact(staged(tmp_path), SplitSpec(), tmp_path / "out"):
        assert pq.read_metadata(tmp_path / "out" / part.path).num_row_groups == 1


def test_a_folder_that_is_full_gets_a_neighbour(tmp_path: Path) -> None:
    """D26: a Hub takes no more than 10,000 entries in a folder."""
    stage(forge(tmp_path), 1)
    shards = staged(tmp_path)
    path = compact(shards, SplitSpec(), tmp_path / "a")[0].path
    folder = path.rpartition("/")[0]
    full = [f"{folder}/{n}" for n in range(compaction.FILES_PER_FOLDER)]
    assert compact(shards, SplitSpec(), tmp_path / "b", full)[0].path.startswith(f"{folder}/more-1/part-")
    fuller = [*full, *(f"{folder}/more-1/{n}" for n in range(compaction.FILES_PER_FOLDER))]
    assert compact(shards, SplitSpec(), tmp_path / "c", fuller)[0].path.startswith(f"{folder}/more-2/part-")
