"""The vault: curated vacua, each checked, labelled and numbered; and sessions, what was found on the way.

:class:`Vault` holds what people vouch for. :class:`SessionStore` keeps batches until somebody decides.
Both are files in a folder; everything is written whole or not at all, and the vault is changed by one
process at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matforge.vulcan.vault.catalogue import VaultDamagedError
    from matforge.vulcan.vault.checks import ValidationError
    from matforge.vulcan.vault.curated import Vault
    from matforge.vulcan.vault.exchange import fetch, listing, push
    from matforge.vulcan.vault.places import VaultNotFoundError
    from matforge.vulcan.vault.session import SessionStore, SessionWriter

_HOMES = {
    "SessionStore": "session",
    "SessionWriter": "session",
    "ValidationError": "checks",
    "Vault": "curated",
    "VaultDamagedError": "catalogue",
    "VaultNotFoundError": "places",
    "fetch": "exchange",
    "listing": "exchange",
    "push": "exchange",
}

__all__ = [
    "SessionStore",
    "SessionWriter",
    "ValidationError",
    "Vault",
    "VaultDamagedError",
    "VaultNotFoundError",
    "fetch",
    "listing",
    "push",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'matforge.vulcan.vault' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"matforge.vulcan.vault.{home}"), name)


def __dir__() -> list[str]:
    return __all__
