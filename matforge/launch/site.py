"""What is special to a site: modules, how ranks find each other, binding, an image. One small file each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any

from matforge.chore import nearest
from matforge.model import UsageError

SITES = "matforge.launch.sites"


@dataclass(frozen=True, slots=True)
class Site:
    """A profile; every field is optional in its file."""

    name: str = "generic"
    description: str = ""
    tried: bool = True
    """Whether MatForge was run there."""
    modules: tuple[str, ...] = ()
    """Loaded before anything else, by ``module load``."""
    setup: tuple[str, ...] = ()
    """Further lines of shell."""
    options: tuple[str, ...] = ()
    """Of the allocation, before what the user asks for."""
    srun: tuple[str, ...] = ()
    """Of the step that starts the brokers."""
    mpi: str = "pmi2"
    """How Flux's job shell lets ranks find each other: its option ``mpi``."""
    image: str = ""
    """An Apptainer image in which brokers, and so everything, run."""
    cores_per_node: int = 0
    """Cores a node that may be used; 0: those of the allocation."""
    gpus_per_node: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)


def sites() -> list[str]:
    """Names of the profiles that come with MatForge."""
    found = resources.files(SITES).iterdir()
    return sorted(entry.name.removesuffix(".yaml") for entry in found if entry.name.endswith(".yaml"))


def load_site(name: str) -> Site:
    """A profile by its name, or a file of one's own (``.yaml``).

    Raises
    ------
    UsageError
        If there is none, or it says something that is no part of a profile.
    """
    import yaml

    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        try:
            text = path.read_text()
        except OSError as error:
            raise UsageError(f"The site profile {name} cannot be read: {error.strerror}.") from error
    elif name in sites():
        text = (resources.files(SITES) / f"{name}.yaml").read_text()
    else:
        raise UsageError(f"There is no site {name!r}{nearest(name, sites())}; give a FILE.yaml of your own.")
    try:
        content = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise UsageError(f"The site profile {name} is no YAML: {' '.join(str(error).split())}.") from error
    return _checked(content, path.stem)


def _checked(content: Any, name: str) -> Site:
    if not isinstance(content, dict):
        raise UsageError(f"The site profile {name} must hold fields and their values.")
    known = {f.name: f for f in fields(Site)}
    values: dict[str, Any] = {"name": name}
    for key, value in content.items():
        if key not in known:
            raise UsageError(f"The site profile {name} has a field {key!r}{nearest(str(key), list(known))}.")
        default = getattr(_DEFAULT, key)
        if isinstance(default, tuple):
            fine = isinstance(value, list) and all(isinstance(item, str) for item in value)
        elif isinstance(default, Mapping):
            fine = isinstance(value, dict) and all(isinstance(v, str) for v in value.values())
        else:
            fine = type(value) is type(default)
        if not fine:
            raise UsageError(f"The site profile {name}: {key} cannot be {value!r}.")
        values[key] = tuple(value) if isinstance(default, tuple) else value
    return Site(**values)


_DEFAULT = Site()
