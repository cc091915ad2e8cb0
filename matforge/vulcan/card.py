"""The data-set card and the index of a repository, generated with every commit.

``matforge.json`` freezes how the repository is split and holds, for every staging folder that
publishes into it, what came from there; so several can, and each counts itself. ``README.md`` is
made from it between two marks; what a person writes outside them stays, and so do other keys of its
header.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from matforge.vulcan import schema
from matforge.vulcan.errors import RefusedError
from matforge.vulcan.ledger import Batch
from matforge.vulcan.picture import PICTURE_NAME
from matforge.vulcan.splits import SplitSpec

INDEX_NAME = "matforge.json"
CARD_NAME = "README.md"
BEGIN, END = "<!-- matforge: generated from here -->", "<!-- matforge: to here -->"
FORMAT = 1
_WHAT = {
    "run_id": "the write that produced the row",
    "geometry_id": "hash of the geometry's keys",
    "flux": "flux quanta (f, h)",
    "moduli_re": "complex-structure moduli z, real part",
    "moduli_im": "complex-structure moduli z, imaginary part",
    "tau_re": "axio-dilaton, real part",
    "tau_im": "axio-dilaton, imaginary part",
    "tadpole_charge": "D3 charge N_flux of the flux quanta",
    "n_flux": "N_flux as the producer gave it",
    "W0_abs": "modulus of the superpotential at the vacuum",
    "created_at": "when the row was staged",
    "extra_data": "the producer's own columns, one JSON object",
}


@dataclass
class Index:
    """What a repository says of itself in ``matforge.json``."""

    splits: SplitSpec
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def parse(cls, data: bytes) -> Index:
        """Read the file.

        Raises
        ------
        RefusedError
            If it cannot be read: the splits are frozen in it, so nothing may be guessed.
        """
        try:
            content = json.loads(data)
            if content["format"] > FORMAT:
                raise ValueError(f"format {content['format']} is of a later version")
            return cls(SplitSpec.from_dict(content["splits"]), dict(content["sources"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RefusedError(
                f"{INDEX_NAME} of the repository cannot be used ({error}); restore it from the history."
            ) from error

    def dump(self) -> bytes:
        """The file's contents."""
        content = {
            "format": FORMAT,
            "schema_version": schema.SCHEMA_VERSION,
            "splits": self.splits.as_dict(),
            "sources": self.sources,
        }
        return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()

    def count(self, source: str, batches: Iterable[Batch]) -> None:
        """Set what came from one staging folder to these batches, however often they are counted."""
        rows: Counter[str] = Counter()
        places: Counter[str] = Counter()
        shards: set[str] = set()
        files = 0
        for batch in batches:
            shards.update(batch.shards)
            files += len(batch.parts)
            for part in batch.parts:
                rows[part.split] += part.rows
                places[_place(part.path)] += part.rows
        self.sources[source] = {
            "shards": len(shards), "files": files, "rows": dict(rows), "places": dict(places),
        }  # fmt: skip

    def total(self, key: str) -> Counter[str]:
        """``rows`` by split or ``places`` (h12, h11), over all sources."""
        total: Counter[str] = Counter()
        for source in self.sources.values():
            total.update(source.get(key, {}))
        return total


def _place(path: str) -> str:
    """``h12=2, h11=3`` from the path of a file, compacted or not."""
    words = [word.replace("_", "=", 1) for word in path.split("/") if word.startswith(("h12", "h11"))]
    return ", ".join(words)


def render(repo: str, index: Index, old: str | None, picture: bytes | None = None) -> bytes:
    """The card, keeping what is not generated of the old one; it shows a picture that is there or comes."""
    header, body = _parts(old or "")
    shown = picture is not None or PICTURE_NAME in body
    header = {"tags": ["string-theory", "flux-vacua", "matforge"], **header}
    rows = index.total("rows")
    header["configs"] = [{"config_name": "default", "data_files": _data_files(index, rows)}]
    text = yaml.safe_dump(header, sort_keys=False, allow_unicode=True)
    generated = f"{BEGIN}\n{_generated(repo, index, rows, shown)}\n{END}"
    if BEGIN in body and END in body:
        before, rest = body.split(BEGIN, 1)
        body = before + generated + rest.split(END, 1)[1]
    else:
        body = f"{body.rstrip() or f'# {repo}'}\n\n{generated}\n"
    return f"---\n{text}---\n{body}".encode()


def _data_files(index: Index, rows: Mapping[str, int]) -> list[dict[str, str]]:
    """Where each split lies; one without rows is not named, since an empty one cannot be loaded."""
    files = [
        {"split": name, "path": f"data/split={name}/**/*.parquet"}
        for name in index.splits.names
        if rows.get(name)
    ]
    if rows.get(""):  # published as they were staged: one split, of whatever there is
        files.append({"split": "all" if files else "train", "path": "h12_*/**/*.parquet"})
    return files


def _parts(card: str) -> tuple[dict[str, Any], str]:
    """Header and body of a card; a header that cannot be read counts as text."""
    if card.startswith("---\n") and "\n---" in card[3:]:
        head, _, body = card[4:].partition("\n---")
        try:
            header = yaml.safe_load(head)
        except yaml.YAMLError:
            return {}, card
        if isinstance(header, dict):
            return header, body.removeprefix("\n")
    return {}, card


def _generated(repo: str, index: Index, rows: Mapping[str, int], shown: bool) -> str:
    spec = index.splits
    total = sum(rows.values())
    shards = sum(source.get("shards", 0) for source in index.sources.values())
    files = sum(source.get("files", 0) for source in index.sources.values())
    first = next((name for name in spec.names if rows.get(name)), "train")
    lines = [
        f"Flux vacua: **{total:,} rows** from {shards:,} batches in {files:,} files.",
        "",
        "```python",
        "from datasets import load_dataset",
        "",
        f'rows = load_dataset("{repo}", split="{first}", streaming=True)',
        "```",
        "",
        *([f"![Some of the vacua]({PICTURE_NAME})", ""] if shown else []),
        "| split | rows |",
        "|---|---|",
        *(f"| {name or 'not split'} | {count:,} |" for name, count in sorted(rows.items())),
        "",
        _split_sentence(spec),
        "",
        "| geometries | rows |",
        "|---|---|",
        *(f"| {place} | {count:,} |" for place, count in sorted(index.total("places").items())),
        "",
        "| column | type | |",
        "|---|---|---|",
        *(
            f"| `{f.name}` | {str(f.type).replace('item: ', '')} | {_WHAT.get(f.name, '')} |"
            for f in schema.SCHEMA
        ),
    ]
    return "\n".join(lines)


def _split_sentence(spec: SplitSpec) -> str:
    shares = ", ".join(f"{name} {share:g}" for name, share in zip(spec.names, spec.fractions, strict=True))
    unit = {
        "geometry": "all vacua of one geometry lie in one split",
        "row": "the vacua of one flux vector lie in one split",
    }
    return (
        f"Splits are fixed by a hash (salt {spec.salt!r}; {shares}): {unit[spec.by]}, on every machine and "
        f"after every update. They are frozen in `{INDEX_NAME}`."
    )


def _column(field: Any) -> str:
    kind = str(field.type).replace("item: ", "").replace("element: ", "")
    return f"| `{field.name}` | {kind} | {_WHAT.get(field.name, '')} |"
