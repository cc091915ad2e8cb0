"""Flux vacua of type IIB string theory: geometries, periods, Newton, folding, and the exhaustive search.

The names below are loaded when first used (PEP 562), so that importing this package costs nothing: neither
JAX nor numba is imported before something needs it.

=====================  ==================================================================
``load_geometry``      topological data by name or from a file (`matforge.vacua.geometry`)
``list_geometries``    names of the geometries shipped with MatForge
``Geometry``           the data, checked
``Region``             the box to search (`matforge.vacua.region`)
``InputError``         one sentence on what is wrong with an input and what to do
``search``             every vacuum of a region (`matforge.vacua.campaign`)
=====================  ==================================================================
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matforge.vacua.campaign import search
    from matforge.vacua.geometry import Geometry, InputError, list_geometries, load_geometry
    from matforge.vacua.region import Region

__all__ = ["Geometry", "InputError", "Region", "list_geometries", "load_geometry", "search"]

_HOME = {
    "Geometry": "matforge.vacua.geometry",
    "InputError": "matforge.vacua.geometry",
    "list_geometries": "matforge.vacua.geometry",
    "load_geometry": "matforge.vacua.geometry",
    "Region": "matforge.vacua.region",
    "search": "matforge.vacua.campaign",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
