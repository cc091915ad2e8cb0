"""The handle: one repository, one staging folder; everything else goes through it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matforge.model import UsageError
from matforge.vulcan import runid, settings
from matforge.vulcan.splits import SplitSpec

if TYPE_CHECKING:
    import pandas as pd

    from matforge.vulcan.ml import VulcanMLView
    from matforge.vulcan.reader import VulcanReader
    from matforge.vulcan.report import SyncReport
    from matforge.vulcan.shard import StagedShard


class Vulcan:
    """Stages batches of vacua, publishes them, and reads them back.

    Several handles may exist side by side. Nothing is created and nothing contacted until a method needs
    it; staging needs neither network nor token.

    Parameters
    ----------
    repo : str
        The data set on the Hub, ``owner/name``.
    staging_dir : path, optional
        The folder that workers and the publishing node share; by default the environment's, else
        ``vulcan_staging`` in a source checkout, else in the user's data folder.
    project : str
        Stands in run ids.
    run_id_template : str, callable or None
        See :mod:`matforge.vulcan.runid`; None means random ids.
    token : str, optional
        For publishing only, never shown and never pickled: where a handle arrives it is the environment's.
    budget : int
        Commits in a window of ``window_s`` seconds.
    extra_kwargs : mapping, optional
        Values for the run-id template, for instance of the job that this worker belongs to.
    splits : SplitSpec, optional
        How the published data set is split.

    Raises
    ------
    UsageError
        If one of these cannot be used.
    """

    def __init__(
        self,
        *,
        repo: str,
        staging_dir: str | Path | None = None,
        project: str = settings.DEFAULT_PROJECT,
        run_id_template: runid.Template = runid.DEFAULT_TEMPLATE,
        token: str | None = None,
        budget: int = settings.DEFAULT_BUDGET,
        window_s: float = settings.DEFAULT_WINDOW_S,
        extra_kwargs: Mapping[str, Any] | None = None,
        splits: SplitSpec | None = None,
    ) -> None:
        self.repo = settings.check_repo(repo)
        self.staging_dir = settings.staging_dir_setting(staging_dir, os.environ)
        self.project = settings.check_project(project)
        self.run_id_template = runid.check_template(run_id_template)
        self.budget = settings.check_budget(budget)
        self.window_s = settings.check_window(window_s)
        self.extra_kwargs = settings.check_extra(extra_kwargs)
        self.splits = settings.check_splits(splits)
        self._token = settings.check_token(token)
        self._readers: dict[str, VulcanReader] = {}

    @classmethod
    def from_env(cls, **arguments: Any) -> Vulcan:
        """A handle configured by the environment; arguments win.

        Raises
        ------
        UsageError
            If no repository is given, or a variable cannot be used; it is named.
        """
        if "repo" not in arguments:
            found = settings.setting("REPO", os.environ)
            if found is None:
                raise UsageError(
                    "No repository is given: set MATFORGE_VULCAN_REPO to owner/name, or pass repo=."
                )
            arguments["repo"] = found
        if "budget" not in arguments:
            arguments["budget"] = settings.budget_setting(os.environ)
        if "project" not in arguments:
            arguments["project"] = settings.setting("PROJECT", os.environ) or settings.DEFAULT_PROJECT
        return cls(**arguments)

    def __repr__(self) -> str:
        return (
            f"Vulcan(repo={self.repo!r}, staging_dir={str(self.staging_dir)!r}, project={self.project!r}, "
            f"budget={self.budget}, window_s={self.window_s:g})"
        )

    def __getstate__(self) -> dict[str, Any]:
        """Without the token: a handle that travels to a worker in a file must not carry it there."""
        return {**self.__dict__, "_token": None, "_readers": {}}

    def resolve_token(self, token: str | None = None) -> str | None:
        """The token to publish with: the one given, the handle's, or the environment's."""
        return settings.token_setting(token, self._token, os.environ)

    # -- write -----------------------------------------------------------------------------------

    def render_run_id(self, **values: Any) -> str:
        """What the template gives for these values, ``extra_kwargs`` and the project.

        :meth:`write` appends twelve random hex digits, so that no two shards ever share an id.

        Raises
        ------
        MissingValueError
            If the template needs a value that is not there.
        """
        return runid.render(self.run_id_template, {"project": self.project, **self.extra_kwargs, **values})

    def write(
        self,
        df: Any,
        geometry: Any,
        tadpole_charge: int | None = None,
        solver: Mapping[str, Any] | str | None = None,
        provenance: Mapping[str, Any] | None = None,
        run_id: str | None = None,
        extra_kwargs: Mapping[str, Any] | None = None,
    ) -> StagedShard:
        """Stage a batch of vacua of one geometry as one shard in ``pending/``.

        Parameters
        ----------
        df : DataFrame, Table or mapping of columns
            With at least ``flux, moduli_re, moduli_im, tau_re, tau_im``; see docs/vulcan.md for the rest.
        geometry : mapping or Geometry
            Of ``h11, h12, ks_id, triang_id, cicy_id, conifold_id, geometry_hash`` those that are known.
        tadpole_charge : int, optional
            Of every row, where there is no such column; by default the column ``n_flux``.
        solver : mapping or str, optional
            ``name`` and ``config_hash`` become columns.
        provenance : mapping, optional
            ``git_sha``, ``seed`` and ``wall_clock_s`` become columns.
        run_id : str, optional
            An id of the caller's, once for each batch: staging the same vacua under it again changes
            nothing. By default a new one, so that every call adds a shard.
        extra_kwargs : mapping, optional
            Further values for the run-id template.

        Raises
        ------
        BatchError
            With everything that is wrong with the batch, and the rows; nothing was written.
        UsageError
            If another argument cannot be used; nothing was written.
        StagingError
            If the folder cannot be written.
        """
        from matforge.vulcan import validate, writer

        extra = settings.check_extra(extra_kwargs)
        if run_id is not None:
            runid.check_run_id(run_id)
        now = datetime.now(UTC)
        batch = validate.prepare(
            df, geometry, tadpole_charge=tadpole_charge, solver=solver, provenance=provenance, now=now
        )
        if run_id is not None:
            return writer.stage(self.staging_dir, self.repo, batch, run_id)
        return writer.stage(self.staging_dir, self.repo, batch, self._new_run_id(batch, extra, now), new=True)

    def _new_run_id(self, batch: Any, extra: Mapping[str, Any], now: datetime) -> str:
        offered = {
            "project": self.project,
            **batch.geometry.known,
            "solver": batch.solver.get("name"),
            "seed": batch.provenance.get("seed"),
        }
        rendered = runid.render(self.run_id_template, {**offered, **self.extra_kwargs, **extra}, now)
        return rendered if self.run_id_template is None else runid.unique(rendered)

    def list_pending(self) -> list[StagedShard]:
        """The shards that wait for being published, in the order of their names."""
        from matforge.vulcan import writer

        return writer.list_pending(self.staging_dir)

    # -- publish ---------------------------------------------------------------------------------

    def sync(self, **options: Any) -> SyncReport:
        """Publish what is pending, in few commits; see :func:`matforge.vulcan.sync.sync`."""
        from matforge.vulcan.sync import sync

        return sync(self, **options)

    def remaining_budget(self) -> int:
        """Commits that may still be made in the present window."""
        from matforge.vulcan.budget import remaining_budget

        return remaining_budget(self)

    # -- read ------------------------------------------------------------------------------------

    def reader(self, source: str = "synced") -> VulcanReader:
        """A reader of this handle's shards.

        Parameters
        ----------
        source : str
            ``synced``, ``pending``, ``local`` (both), or ``hub`` (the repository itself).
        """
        from matforge.vulcan.reader import VulcanReader

        if source == "hub":
            return VulcanReader.from_hf(self.repo, token=self.resolve_token())
        if source not in self._readers:  # it knows the catalogue, and when that is out of date
            self._readers[source] = VulcanReader.from_local(self.staging_dir, source=source)
        return self._readers[source]

    def catalog(self, **options: Any) -> pd.DataFrame:
        """One row for each published shard; see :meth:`VulcanReader.catalog`."""
        return self.reader().catalog(**options)

    def query(self, *, source: str = "synced", **filters: Any) -> pd.DataFrame:
        """The vacua that meet all filters; see :meth:`VulcanReader.query`."""
        return self.reader(source).query(**filters)

    def ml_view(self, *, source: str = "synced", **options: Any) -> VulcanMLView:
        """Fixed splits for training; see :class:`matforge.vulcan.ml.VulcanMLView`."""
        from matforge.vulcan.ml import VulcanMLView

        return VulcanMLView(self.reader(source), **{"spec": self.splits, **options})
