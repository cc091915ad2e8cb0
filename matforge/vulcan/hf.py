"""Splits for the library ``datasets``, an extra: ``pip install 'matforge[datasets]'``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from matforge.vulcan import rows
from matforge.vulcan.rows import File

if TYPE_CHECKING:
    from matforge.vulcan.ml import Plan


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            "as_hf_dataset needs the library 'datasets': pip install 'matforge[datasets]'."
        ) from error
    return datasets


def in_memory(table: pa.Table) -> Any:
    """``table`` as a ``datasets.Dataset``."""
    library = _library()
    return library.Dataset(library.table.InMemoryTable(table))


def streaming(plan: Plan) -> Any:
    """A ``datasets.IterableDataset`` that reads a few thousand rows at a time.

    Its files are distributed over the workers of a data loader.
    """
    library = _library()
    own = rows.own_fields(plan.files, plan.request, plan.filesystem)
    features = library.Features.from_arrow_schema(plan.finish(rows.empty(plan.request, own)).schema)
    if not plan.files:
        return library.IterableDataset.from_generator(_none, features=features)
    # a list is what is distributed over workers, so nothing else here may be one
    arguments = {"files": list(plan.files), "plan": replace(plan, files=[]), "own": own}
    return library.IterableDataset.from_generator(_rows, features=features, gen_kwargs=arguments)


def _rows(files: list[File], plan: Plan, own: tuple[pa.Field, ...]) -> Iterator[dict[str, Any]]:
    for table in rows.batches(files, plan.request, own, plan.filesystem):
        yield from plan.finish(table).to_pylist()


def _none() -> Iterator[dict[str, Any]]:
    return iter(())
