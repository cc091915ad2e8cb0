"""What is made once on a node and shared by its processes: covers, and compiled kernels."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matforge.vacua.campaign.problem import Tuning
from matforge.vacua.geometry import Geometry
from matforge.vacua.region import Region

if TYPE_CHECKING:
    from matforge.vacua.cover import Cover

N_PARTS = 8
"""Sub-boxes of the cover that are built by a chore each; fixed, so that the cover is always the same."""
MANIFEST = "manifest.json"


def cover_dir(geometry: Geometry, region: Region, tuning: Tuning) -> Path:
    """Where the cover is cached: it depends on neither N_flux nor s, so searches share it."""
    from matforge.vacua import cover, kernels
    from matforge.worker.once import compiled_cache_dir

    # the code is part of the name, so that a cover of another version is never taken for ours
    code = "".join(Path(str(module.__file__)).read_text() for module in (cover, kernels))
    name = f"{cover.key(geometry, region, tuning.leaf, tuning.conjugation)}-{zlib.crc32(code.encode()):08x}"
    return Path(compiled_cache_dir()) / "covers" / name


def whole(path: Path) -> bool:
    """Whether a published directory is there and undamaged; a damaged one is removed."""
    if not path.is_dir():
        return False  # not removed: another search may publish it this moment
    try:
        if json.loads((path / MANIFEST).read_text()) == _contents(path):
            return True
    except (OSError, ValueError):  # torn, or just being removed by another search
        pass
    shutil.rmtree(path, ignore_errors=True)
    return False


def _contents(path: Path) -> dict[str, list[int]]:
    """Length and CRC-32 of each file."""
    files = sorted(p for p in path.iterdir() if p.name != MANIFEST)
    return {p.name: [p.stat().st_size, zlib.crc32(p.read_bytes())] for p in files}


def publish(path: Path, write: Any) -> None:
    """Let ``write`` fill a directory beside ``path`` and give it that name; a second writer is harmless."""
    beside = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    beside.parent.mkdir(parents=True, exist_ok=True)
    write(beside)
    (beside / MANIFEST).write_text(json.dumps(_contents(beside)))
    try:
        beside.rename(path)
    except OSError:
        if not path.is_dir():
            raise
        shutil.rmtree(beside, ignore_errors=True)  # another process published the same first


@lru_cache(maxsize=2)
def _mapped(path: str) -> Cover:
    from matforge.vacua import cover

    return cover.open_cover(path)


def joined(geometry: Geometry, region: Region, tuning: Tuning, parts: Sequence[str]) -> Cover:
    """The cached cover, joined from its parts (their directories) if it is not there yet."""
    from matforge.vacua import cover

    path = cover_dir(geometry, region, tuning)
    with _single_flight(f"vacua-cover-{path.name}"):  # two searches of one region may begin at once
        if not whole(path):
            try:
                publish(path, lambda beside: cover.assemble(list(parts), beside))
            except FileNotFoundError:
                if not whole(path):  # else another node has joined the same parts and removed them
                    raise
        for part in parts:
            shutil.rmtree(part, ignore_errors=True)
    return _mapped(str(path))


def opened(geometry: Geometry, region: Region, tuning: Tuning) -> Cover:
    """The cached cover; built again if somebody cleared the cache meanwhile."""
    from matforge.vacua import cover

    path = cover_dir(geometry, region, tuning)
    if not path.is_dir():  # the cover chore has checked it; only a cleared cache is looked for here
        with _single_flight(f"vacua-cover-{path.name}"):
            if not whole(path):
                parts = []
                for part in range(N_PARTS):
                    parts.append(path.with_name(f".{path.name}-rebuilt{part}"))
                    built = cover.build_part(
                        geometry, region, part, N_PARTS, leaf=tuning.leaf, cp=tuning.conjugation
                    )
                    cover.save_part(built, parts[-1])
                publish(path, lambda beside: cover.assemble(parts, beside))
                for item in parts:
                    shutil.rmtree(item, ignore_errors=True)
    return _mapped(str(path))


def _single_flight(kind: str) -> Any:
    from matforge.worker.once import single_flight

    return single_flight(kind)


@lru_cache(maxsize=8)
def compiled(kind: str) -> None:
    """Compile a group of kernels once a node, or load it from numba's cache; once a process."""
    from matforge.vacua import warm

    with _single_flight(f"vacua-{kind}"):
        warm.KINDS[kind]()
