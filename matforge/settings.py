"""How a run is to be executed: given by the script, by the environment, or left to the default."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from matforge.engine.store import check_layout
from matforge.executors import choose
from matforge.model import UsageError

DURABILITIES = ("process", "power")


@dataclass(frozen=True, slots=True)
class Settings:
    """How a run is to be executed; stored with it, so that a resume needs none of it again."""

    basedir: Path = Path(".")
    name: str = "matforge"
    campaign: str = ""
    executor: str = "auto"
    workers: int | None = None
    layout: str = "auto"
    log_delay: float = 5.0
    durability: str = "process"
    affinity: bool = False
    gpu_affinity: bool = False
    buffer_time: float = 0.0
    seed: int = 0
    quiet: bool = False

    def check(self) -> None:
        """Raise :class:`UsageError` before anything is made."""
        choose.check(self.executor, self.workers)
        check_layout(self.layout)
        if self.durability not in DURABILITIES:
            raise UsageError(f"durability must be one of {', '.join(DURABILITIES)}, not {self.durability!r}.")
        for label in ("log_delay", "buffer_time"):
            seconds = getattr(self, label)
            if not isinstance(seconds, int | float) or not seconds >= 0:
                raise UsageError(f"{label} must be a number of seconds, not {seconds!r}.")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool):
            raise UsageError(f"seed must be a whole number, not {self.seed!r}.")
        for label in ("name", "campaign"):
            if not isinstance(getattr(self, label), str):
                raise UsageError(f"{label} must be a string, not {getattr(self, label)!r}.")


def run_settings(
    basedir: str | os.PathLike[str] | None = None,
    *,
    executor: str | None = None,
    workers: int | None = None,
    name: str = "matforge",
    campaign: str = "",
    layout: str | None = None,
    durability: str = "process",
    seed: int = 0,
) -> Settings:
    """How to run: what is given here, else in the environment (``MATFORGE_DIR``, ``_EXECUTOR``,
    ``_WORKERS``, ``_LAYOUT``), else the default.

    Raises
    ------
    UsageError
        If there is no such executor, or a number is wrong.
    """
    environment = os.environ
    settings = Settings(
        basedir=Path(basedir if basedir is not None else environment.get("MATFORGE_DIR") or "."),
        executor=executor or environment.get("MATFORGE_EXECUTOR") or "auto",
        workers=workers if workers is not None else _whole(environment.get("MATFORGE_WORKERS")),
        name=name,
        campaign=campaign,
        layout=layout or environment.get("MATFORGE_LAYOUT") or "auto",
        durability=durability,
        seed=seed,
    )
    choose.check(settings.executor, settings.workers)
    return settings


def _whole(text: str | None) -> int | None:
    if not text:
        return None
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"MATFORGE_WORKERS must be a whole number, not {text!r}.") from None
