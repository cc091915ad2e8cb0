"""Vulcan: publish what was forged, and read it back with fixed splits.

Workers stage parquet shards locally (:class:`Vulcan`, no network, no token), one head node publishes
them in few commits, anyone reads them back (:class:`VulcanReader`) and learns from them
(:class:`FeatureSpec`). Names are loaded when first used, so that importing the package stays fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matforge.vulcan.features import FeatureSpec
    from matforge.vulcan.forge import Vulcan
    from matforge.vulcan.ml import VulcanMLView
    from matforge.vulcan.reader import VulcanReader
    from matforge.vulcan.shard import ShardRecord, StagedShard
    from matforge.vulcan.splits import SplitSpec

_HOMES = {
    "FeatureSpec": "features",
    "ShardRecord": "shard",
    "SplitSpec": "splits",
    "StagedShard": "shard",
    "Vulcan": "forge",
    "VulcanMLView": "ml",
    "VulcanReader": "reader",
}

__all__ = ["FeatureSpec", "ShardRecord", "SplitSpec", "StagedShard", "Vulcan", "VulcanMLView", "VulcanReader"]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'matforge.vulcan' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"matforge.vulcan.{home}"), name)


def __dir__() -> list[str]:
    return __all__
