"""Shared by the tests of publishing: a Hub on this machine, and a client that talks to nothing else."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_HOME = tempfile.TemporaryDirectory(prefix="matforge-hub-home-")
# read when huggingface_hub is imported, so set before any test module is; child processes inherit them
os.environ.update(
    HF_HOME=_HOME.name,
    HF_HUB_DISABLE_XET="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    HF_ENDPOINT="http://127.0.0.1:9",  # nothing listens there: a test that forgets the loopback Hub fails
)

from tests.vulcan.hub import LoopbackHub  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The Hub's client hands its HTTP library bytes in a way that this one calls old."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"))


@pytest.fixture(autouse=True)
def _nothing_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("MATFORGE_VULCAN_", "STRINGFORGE_")) or name in ("MATFORGE_VAULT", "HF_TOKEN"):
            monkeypatch.delenv(name)


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    """A Hub with the empty data set ``me/forge``."""
    with LoopbackHub() as server:
        server.create("me/forge")
        yield server
