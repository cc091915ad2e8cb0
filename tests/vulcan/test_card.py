"""The data-set card and the index."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml

from matforge.vulcan import card
from matforge.vulcan.errors import RefusedError
from matforge.vulcan.ledger import Batch, Part, Run
from matforge.vulcan.splits import SplitSpec
from tests.vulcan.hub import LoopbackHub
from tests.vulcan.hub.repository import Blob
from tests.vulcan.staging import REPO, forge, publish, stage, vacua


def batch(number: int, split: str, rows: int) -> Batch:
    part = Part(
        f"data/split={split}/h12=2/h11=3/p.parquet", "0", 1, rows, split, (Run(str(number), "s", rows),)
    )
    return Batch(number, REPO, "main", (part,), "", 0.0)


def header(text: bytes | str) -> dict[str, Any]:
    text = text.decode() if isinstance(text, bytes) else text
    return yaml.safe_load(text.split("---\n")[1])  # type: ignore[no-any-return]


def test_each_folder_counts_itself_however_often(tmp_path: Path) -> None:
    index = card.Index(SplitSpec())
    for _ in range(2):
        index.count("here", [batch(1, "train", 5), batch(2, "test", 3)])
        index.count("there", [batch(1, "train", 2)])
    assert index.total("rows") == {"train": 7, "test": 3}
    assert index.total("places") == {"h12=2, h11=3": 10}
    assert card.Index.parse(index.dump()) == index


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"format": 99, "splits": {}, "sources": {}}', b"\xff"])
def test_an_index_that_cannot_be_read_is_refused(data: bytes) -> None:
    with pytest.raises(RefusedError, match=r"matforge\.json of the repository cannot be used"):
        card.Index.parse(data)


def test_the_card_names_only_splits_that_have_rows() -> None:
    index = card.Index(SplitSpec())
    index.count("here", [batch(1, "train", 5)])
    files = header(card.render(REPO, index, None))["configs"][0]["data_files"]
    assert files == [{"split": "train", "path": "data/split=train/**/*.parquet"}]


def test_what_a_person_wrote_stays_and_the_rest_is_current(hub: LoopbackHub, tmp_path: Path) -> None:
    mine = "---\nlicense: mit\npretty_name: My vacua\n---\n# My vacua\n\nBy me.\n"
    hub.repositories[REPO].commit("main", "card", {"README.md": Blob(mine.encode(), False)})
    handle = forge(tmp_path)
    for n in (1, 2):
        stage(handle, 1, first=n)
        publish(handle, hub)
        text = hub.repositories[REPO].files()["README.md"].decode()
        assert "# My vacua\n\nBy me.\n" in text
        assert header(text)["license"] == "mit"
        assert header(text)["pretty_name"] == "My vacua"
        assert f"**{4 * n} rows** from {n} batches" in text
    assert text.count(card.BEGIN) == 1


@pytest.mark.parametrize(
    "old", ["no header", "---\n: : [\n---\ntext", "---\n- list\n---\ntext", "---\nnever ends"]
)
def test_a_header_that_cannot_be_read_is_kept_as_text(old: str) -> None:
    index = card.Index(SplitSpec())
    index.count("here", [batch(1, "train", 5)])
    text = card.render(REPO, index, old).decode()
    assert header(text)["configs"]
    assert old.splitlines()[-1] in text


def test_the_card_shows_a_picture_of_all_that_was_published(hub: LoopbackHub, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    handle = forge(tmp_path)
    stage(handle, 3)
    publish(handle, hub, max_batch=1, pictures=True)
    repository = hub.repositories[REPO]
    drawn = [commit for commit in repository.history() if "figures/vacua.png" in commit.files]
    assert len(drawn) == 1  # with the last commit only
    first = repository.files()["figures/vacua.png"]
    assert first.startswith(b"\x89PNG")
    stage(handle, 1, first=9)
    publish(handle, hub, pictures=True)
    assert repository.files()["figures/vacua.png"] != first
    text = repository.files()["README.md"].decode()
    assert text.count("](figures/vacua.png)") == 1
    publish(handle, hub)
    assert "](figures/vacua.png)" in repository.files()["README.md"].decode()


def streamed(hub: LoopbackHub, folder: Path, splits: list[str]) -> list[dict[str, Any]]:
    """All rows as the data-set library streams them."""
    script = f"""
        import json, datasets
        for split in {splits!r}:
            for row in datasets.load_dataset({REPO!r}, split=split, streaming=True):
                print(json.dumps(row, default=str))
    """
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_data_set_library_streams_what_was_published(hub: LoopbackHub, tmp_path: Path) -> None:
    """D11: in the reference the raw shards have different columns, and streaming dies."""
    pytest.importorskip("datasets")
    handle = forge(tmp_path / "staging")
    stage(handle, 4)
    publish(handle, hub)
    geometry = {"h11": 4, "h12": 3, "cicy_id": 7}
    extra = vacua(3, h12=3).assign(is_susy=True, mine="x")
    handle.write(extra, geometry, tadpole_charge=3, solver={"name": "newton"})
    publish(handle, hub)
    index = json.loads(hub.repositories[REPO].files()["matforge.json"])
    splits = sorted(next(iter(index["sources"].values()))["rows"])
    found = streamed(hub, tmp_path / "cache", splits)
    wanted = hub.repositories[REPO].rows()

    def key(row: dict[str, Any]) -> str:
        return str((row["run_id"], row["flux"]))

    assert len(found) == 19
    for ours, theirs in zip(sorted(wanted, key=key), sorted(found, key=key), strict=True):
        ours.pop("created_at"), theirs.pop("created_at")
        assert ours == theirs
