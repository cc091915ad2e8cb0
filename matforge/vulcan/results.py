"""Stage what a search finds, batch by batch, every vacuum once, however often it is asked for.

The batches of a search overlap: a vacuum may be found from several of its blocks. So before a batch is
staged its new vacua are *claimed* in the run directory (:class:`Claims`), and only these are staged,
under run ids that stand in the claim. A chore that is run again finds its claim and stages the same rows
under the same ids, which changes nothing.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from matforge._version import __version__
from matforge.model import MatForgeError
from matforge.vulcan import layout
from matforge.vulcan.columns import matrix
from matforge.vulcan.forge import Vulcan
from matforge.vulcan.runid import slug, unique

ROWS_A_SHARD = 100_000
CLAIMS_DIRNAME = "staged"
"""In a run directory: ``000001/<batch>.parquet``, the vacua that the first batch has staged, and so on."""
SAME = 1e-6
"""Largest difference of a modulus between two copies of one vacuum, as in the search."""
_RUN_KEY = b"matforge.vulcan.run_id"
_PAUSE_S = 0.02


def target_of(forge: Vulcan) -> dict[str, str]:
    """What a chore has to know to stage into the same folder: plain types, no token."""
    return {"repo": forge.repo, "staging_dir": str(forge.staging_dir), "project": forge.project}


def stage_batch(
    target: Mapping[str, str], geometry: Any, vacua: pa.Table, run_dir: Path, batch: str
) -> list[str]:
    """Stage those of a batch's vacua that no other batch of the run has; no network, no token.

    Parameters
    ----------
    target : mapping
        From :func:`target_of`.
    geometry : Geometry
    vacua : Table
        Of distinct vacua, in canonical form.
    run_dir : Path
    batch : str
        What tells the batch from others of the run. Asked for again, it stages what it staged before.

    Returns
    -------
    list of str
        The run ids; none if all of them are staged already.
    """
    forge = Vulcan(repo=target["repo"], staging_dir=target["staging_dir"], project=target["project"])
    run_id = unique(f"{slug(run_dir.name)}-{slug(batch)}")
    mine = Claims(run_dir / CLAIMS_DIRNAME).claim(batch, vacua.replace_schema_metadata({_RUN_KEY: run_id}))
    # that of the claim, which may be older, and made before the run directory was moved
    run_id = mine.schema.metadata[_RUN_KEY].decode()
    mine = mine.replace_schema_metadata(None)
    return [
        forge.write(
            mine.slice(begin, ROWS_A_SHARD),
            geometry,
            solver={"name": "newton"},
            provenance={"run": run_dir.name, "batch": batch, "matforge": __version__},
            run_id=f"{run_id}-{number:06d}",
        ).run_id
        for number, begin in enumerate(range(0, mine.num_rows, ROWS_A_SHARD))
    ]


class Claims:
    """Which vacua of a run which batch stages.

    Claims are numbered, and each is made at once by renaming a folder, which fails if the number is
    taken. Whoever makes claim n+1 has therefore seen the first n: no two claims share a vacuum, whatever
    is killed and however many chores claim at a time. Nothing is ever changed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def claim(self, batch: str, vacua: pa.Table) -> pa.Table:
        """The vacua that ``batch`` stages: those it claimed before, else those that nobody has.

        What stands in the schema's metadata is kept with a claim and given back.

        Raises
        ------
        MatForgeError
            If a claim cannot be read: what it says decides what is staged, so nothing is guessed.
        """
        while True:
            there = sorted(self.folder.glob("[0-9]*/*.parquet"))
            mine = next((path for path in there if path.stem == batch), None)
            if mine is not None:
                self._keep()  # whoever made it may have been killed before
                return _read(mine)
            rest = vacua.filter(pa.array(_unknown(vacua, there)))
            if not rest.num_rows or self._make(len(there) + 1, batch, rest):
                return rest
            time.sleep(_PAUSE_S)  # another batch was faster

    def _make(self, number: int, batch: str, vacua: pa.Table) -> bool:
        beside = layout.beside(self.folder / "claim")
        beside.mkdir(parents=True)
        try:
            with (beside / f"{batch}.parquet").open("wb") as file:
                pq.write_table(vacua, file, compression="zstd")
                file.flush()
                os.fsync(file.fileno())
            layout.sync_folder(beside)
            try:
                beside.rename(self.folder / f"{number:06d}")
            except OSError:
                if not (self.folder / f"{number:06d}").is_dir():
                    raise
                return False
            self._keep()
            return True
        finally:
            shutil.rmtree(beside, ignore_errors=True)

    def _keep(self) -> None:
        """What is staged must not outlive its claim, or it would be staged under another run id, too."""
        layout.sync_folder(self.folder)
        layout.sync_folder(self.folder.parent)


def _read(path: Path, columns: list[str] | None = None) -> pa.Table:
    try:
        return pq.read_table(path, columns=columns, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        raise MatForgeError(f"{path}, which says what was staged, cannot be read: {error}") from error


def _unknown(vacua: pa.Table, claims: Sequence[Path]) -> NDArray[np.bool_]:
    """Which rows are in none of the claims, (rows,): other flux quanta, or moduli that differ."""
    rows = vacua.num_rows
    if not rows or not claims:
        return np.ones(rows, bool)
    parts = [_keys(_read(path, ["flux", "moduli_re", "moduli_im"])) for path in claims]
    known = np.concatenate([flux for flux, _ in parts]), np.concatenate([z for _, z in parts])
    flux, z = _keys(vacua)
    _, label = np.unique(np.concatenate([known[0], flux]), axis=0, return_inverse=True)
    label = label.reshape(-1)
    theirs, ours = label[: len(known[0])], label[len(known[0]) :]
    order = np.argsort(theirs, kind="stable")
    first, end = (np.searchsorted(theirs[order], ours, side=side) for side in ("left", "right"))
    new = np.ones(rows, bool)
    for copy in range(int((end - first).max())):  # nearly all flux vectors have one vacuum
        at = np.flatnonzero(first + copy < end)
        other = known[1][order[first[at] + copy]]
        new[at[np.abs(z[at] - other).max(axis=1) <= SAME]] = False
    return new


def _keys(vacua: pa.Table) -> tuple[NDArray[np.int32], NDArray[np.complex128]]:
    flux, real, imaginary = (
        matrix(vacua[name].combine_chunks()) for name in ("flux", "moduli_re", "moduli_im")
    )
    return flux, real + 1j * imaginary
