"""Several repositories: which of them a geometry belongs to.

Rendezvous hashing: every repository gets a score for the geometry, the highest wins. The same
geometry always goes to the same repository, and adding one to ``n`` moves only about ``1/(n+1)``
of the geometries, all of them to the new one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from matforge.model import UsageError
from matforge.vulcan.identity import GeometryId

if TYPE_CHECKING:
    from matforge.vulcan.forge import Vulcan
    from matforge.vulcan.shard import StagedShard
    from matforge.vulcan.sync import SyncReport


def repository_for(geometry_id: str, repos: Sequence[str]) -> str:
    """The repository of a geometry.

    Parameters
    ----------
    geometry_id : str
        Id of the geometry.
    repos : sequence of str
        Names of the repositories; their order does not matter.

    Raises
    ------
    UsageError
        If there are no repositories, or one is named twice.
    """
    if not repos or len(set(repos)) != len(repos):
        raise UsageError("Choosing among repositories needs at least one, each named once.")
    return max(repos, key=lambda repo: (hashlib.sha256(f"{repo}\0{geometry_id}".encode()).digest(), repo))


class VulcanRing:
    """Several handles, one for each repository, that act as one.

    Every handle has a staging folder of its own, because the budget of commits is kept for a folder
    and the Hub counts for a repository.

    Parameters
    ----------
    forges : sequence of Vulcan
        One for each repository.

    Raises
    ------
    UsageError
        If two share a repository or a staging folder.
    """

    def __init__(self, forges: Sequence[Vulcan]) -> None:
        self._forges = {forge.repo: forge for forge in forges}
        folders = {forge.staging_dir for forge in forges}
        if not forges or len(self._forges) != len(forges) or len(folders) != len(forges):
            raise UsageError("Each handle of a ring needs a repository and a staging folder of its own.")

    def forge_for(self, geometry: Any) -> Vulcan:
        """The handle that a geometry's shards are staged with."""
        return self._forges[repository_for(GeometryId.of(geometry).id, list(self._forges))]

    def write(self, df: Any, geometry: Any, **options: Any) -> StagedShard:
        """Stage a batch with the handle of its geometry; see :meth:`Vulcan.write`."""
        return self.forge_for(geometry).write(df, geometry, **options)

    def sync(self, **options: Any) -> dict[str, SyncReport]:
        """Publish from every handle; reports by repository."""
        return {repo: forge.sync(**options) for repo, forge in self._forges.items()}
