"""The loopback Hub speaks the protocol of the real client."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, HfFileSystem
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from tests.vulcan.hub import LoopbackHub
from tests.vulcan.hub.faults import COMMIT

REPO = "me/forge"


@pytest.fixture
def api(hub: LoopbackHub) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token="hf_test")


def parquet(n: int) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(pa.table({"n": list(range(n))}), sink)
    return sink.getvalue()


def put(api: HfApi, files: dict[str, bytes], **options: Any) -> Any:
    operations = [CommitOperationAdd(path, data) for path, data in files.items()]
    return api.create_commit(REPO, operations, commit_message="add", repo_type="dataset", **options)


def test_a_commit_of_large_and_regular_files_lands_and_its_repetition_is_none(
    hub: LoopbackHub, api: HfApi
) -> None:
    files = {"data/a.parquet": parquet(3), "README.md": b"---\nlicense: mit\n---\n"}
    oid = put(api, files).oid
    repository = hub.repositories[REPO]
    assert repository.at().oid == oid
    assert {path: repository.files()[path] for path in files} == files
    assert hub.count("PUT /lfs") == 1
    assert put(api, files).oid == oid
    assert len(repository.history()) == 1


def test_paths_that_are_there_are_told_with_their_object_ids(hub: LoopbackHub, api: HfApi) -> None:
    data = parquet(3)
    put(api, {"data/a.parquet": data, "notes.txt": b"text"})
    paths = ["data/a.parquet", "notes.txt", "missing"]
    found = {info.path: info for info in api.get_paths_info(REPO, paths, repo_type="dataset")}
    assert set(found) == {"data/a.parquet", "notes.txt"}
    assert found["data/a.parquet"].lfs.sha256 == hub.repositories[REPO].at().files["data/a.parquet"].sha256
    assert sorted(api.list_repo_files(REPO, repo_type="dataset")) == [
        ".gitattributes", "data/a.parquet", "notes.txt",
    ]  # fmt: skip


def test_files_are_read_back_whole_and_in_part(hub: LoopbackHub, api: HfApi, tmp_path: Path) -> None:
    data = parquet(1000)
    put(api, {"data/a.parquet": data})
    local = api.hf_hub_download(REPO, "data/a.parquet", repo_type="dataset", local_dir=tmp_path)
    assert Path(local).read_bytes() == data
    files = HfFileSystem(endpoint=hub.endpoint, token="hf_test")
    assert files.glob(f"datasets/{REPO}/data/*.parquet") == [f"datasets/{REPO}/data/a.parquet"]
    with files.open(f"datasets/{REPO}/data/a.parquet", block_size=64) as stream:
        stream.seek(100)
        assert stream.read(50) == data[100:150]


def test_a_pull_request_leaves_main_alone_until_it_is_merged(hub: LoopbackHub, api: HfApi) -> None:
    pull = api.create_pull_request(REPO, "new vacua", repo_type="dataset")
    put(api, {"a.txt": b"1"}, revision=f"refs/pr/{pull.num}")
    repository = hub.repositories[REPO]
    assert "a.txt" not in repository.files()
    assert [one.num for one in api.get_repo_discussions(REPO, repo_type="dataset")] == [pull.num]
    repository.merge(pull.num)
    assert repository.files()["a.txt"] == b"1"
    assert api.get_discussion_details(REPO, pull.num, repo_type="dataset").status == "merged"
    assert put(api, {"b.txt": b"2"}, create_pr=True).pr_num == 2


def test_what_is_wrong_is_answered_as_the_real_one_does(hub: LoopbackHub, api: HfApi) -> None:
    with pytest.raises(RepositoryNotFoundError):
        api.create_commit(
            "me/nothing", [CommitOperationAdd("a", b"")], commit_message="x", repo_type="dataset"
        )
    with pytest.raises(RevisionNotFoundError):
        put(api, {"a": b"1"}, revision="no-such-branch")
    with pytest.raises(HfHubHTTPError, match="412"):
        put(api, {"a": b"1"}, parent_commit="0" * 40)
    hub.token = "hf_other"
    with pytest.raises(HfHubHTTPError, match="401"):
        put(api, {"a": b"1"})


def test_a_folder_of_more_than_ten_thousand_files_is_refused(hub: LoopbackHub) -> None:
    from tests.vulcan.hub.repository import Blob, Refused

    crowd = {f"data/{n}": Blob(b"", False) for n in range(10_001)}
    with pytest.raises(Refused, match="10000 files"):
        hub.repositories[REPO].commit("main", "too many", crowd)


def test_faults_strike_in_order_before_or_after_the_deed(hub: LoopbackHub, api: HfApi) -> None:
    hub.faults.add(COMMIT, 429, headers={"Retry-After": "7"})
    hub.faults.add(COMMIT, 504, after=True)
    hub.faults.add(COMMIT, drop=True)
    with pytest.raises(HfHubHTTPError) as limited:
        put(api, {"a.txt": b"1"})
    assert limited.value.response.headers["Retry-After"] == "7"
    assert "a.txt" not in hub.repositories[REPO].files()
    with pytest.raises(HfHubHTTPError, match="504"):
        put(api, {"a.txt": b"1"})
    assert hub.repositories[REPO].files()["a.txt"] == b"1"
    with pytest.raises(Exception, match="disconnected"):
        put(api, {"b.txt": b"2"})
    assert "b.txt" not in hub.repositories[REPO].files()
    assert hub.count(COMMIT) == 3


def test_the_data_set_library_streams_from_it(hub: LoopbackHub, api: HfApi, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    card = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/split=train/**
---
"""
    put(api, {"data/split=train/x/a.parquet": parquet(5), "README.md": card.encode()})
    script = f"""
        import datasets
        rows = datasets.load_dataset({REPO!r}, split="train", streaming=True)
        print([row["n"] for row in rows])
    """
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[0, 1, 2, 3, 4]"
