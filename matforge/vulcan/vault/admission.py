"""Which rows may be designated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from matforge.vulcan.identity import GeometryId
from matforge.vulcan.problems import Problem
from matforge.vulcan.vault import checks, intake
from matforge.vulcan.vault.checks import ValidationError

if TYPE_CHECKING:
    from matforge.vacua.geometry import Geometry


def unphysical(
    table: pa.Table, geometry: Geometry, f_term_tol: float, tadpole_limit: int | None
) -> list[Problem]:
    """Rows that are no vacua of the geometry; see :func:`matforge.vulcan.vault.checks.failures`."""
    flux, z, tau = intake.values_of(table)
    susy = pc.fill_null(table["is_susy"], True).to_numpy()
    return checks.failures(geometry, flux, z, tau, susy, f_term_tol=f_term_tol, tadpole_limit=tadpole_limit)


def repeated(known: pa.Table, table: pa.Table, geometry: Geometry | None, where: GeometryId) -> list[Problem]:
    """Rows that stand there twice, or are in the catalogue and were not taken back."""
    flux, z, tau = intake.values_of(table)
    here = pc.and_(pc.equal(known["geometry_id"], where.id), pc.invert(known["retracted"]))
    here = pc.and_(here, pc.equal(pc.list_value_length(known["flux"]), flux.shape[1]))
    old = known.filter(here)
    points = intake.values_of(old) if old.num_rows else intake.nothing_of(flux.shape[1], z.shape[1])
    twice = checks.duplicates(geometry, (flux, z, tau), points)
    return [Problem("", "the same vacuum is there already", tuple(map(int, twice)))] if len(twice) else []


def admitted(problems: list[Problem], n_rows: int, kept: Sequence[int], force: bool) -> NDArray[np.int64]:
    """The rows that may be designated; raises if some may not, or none."""
    bad = {row for problem in problems for row in problem.rows}
    good = [row for row in range(n_rows) if row not in bad]
    if (problems and not force) or not good:
        raise ValidationError([intake.renumbered(problem, kept) for problem in problems])
    return np.array(good, dtype=np.int64)
