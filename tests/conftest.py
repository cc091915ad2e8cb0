"""Shared by all tests: a cache of their own, so that nothing of the user's is read or written, and Ctrl-C."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

# whoever is started in the background of a script ignores Ctrl-C and hands that on; tests send it, and wait
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MATFORGE_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        for name in ("MATFORGE_EXECUTOR", "MATFORGE_WORKERS", "MATFORGE_DIR", "MATFORGE_LAYOUT", "FLUX_URI"):
            patch.delenv(name, raising=False)
        yield
