"""The Flux executor keeps the whole contract, on one node of a real instance."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fluxes
import pytest
from contract import RealWorkContract
from harness import Harness

pytestmark = fluxes.needs_flux


@pytest.fixture(scope="module", autouse=True)
def _instance() -> Iterator[fluxes.Instance]:
    # the executor that many tests share keeps one broker's cores while others are made
    with fluxes.instance(size=2) as made:
        yield made


class TestContract(RealWorkContract):
    """The whole contract."""

    @classmethod
    def make(cls, tmp_path: Path) -> Harness:
        from matforge.executors.fluxexec import FluxExecutor

        return Harness(FluxExecutor(2), tmp_path)
