"""A Hub on this machine: enough of its wire protocol for the real client, with faults on order.

Standard library only. :class:`LoopbackHub` serves repositories held in memory; a
:class:`~tests.vulcan.hub.faults.FaultQueue` decides which requests fail and how, and ``hub.log``
holds every request.
"""

from tests.vulcan.hub.faults import Fault, FaultQueue
from tests.vulcan.hub.repository import Repository
from tests.vulcan.hub.server import LoopbackHub

__all__ = ["Fault", "FaultQueue", "LoopbackHub", "Repository"]
