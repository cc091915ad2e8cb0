"""The enclosing Flux instance, as plain orders in and plain events out.

The one module that imports Flux's bindings, and only when a :class:`Broker` is made. One thread
owns the handle, because a handle used from several threads hangs them all; others leave orders
with it and collect events. All events of all jobs come from one stream, the job manager's journal,
and nothing is polled.
"""

from __future__ import annotations

import errno
import importlib
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from matforge.executors.instance import BrokerLost, Event, Inventory, JobEvent, JobOrder, NodeState
from matforge.executors.waker import Waker
from matforge.executors.walltime import longest_duration
from matforge.model import UsageError

NEEDED = "0.72"
"""The first version whose bindings follow the resource journal."""
WHEEL = "0.83"
"""The first whose wheel has all parts of them; a site's own Flux has them from the start."""
OPEN_S = 30.0
"""Seconds until a broker must have answered."""
SETTLE_S = 0.05
"""The scheduler learns of a lost node a moment after the journal has told of it."""
CLOSE_S = 5.0
_NODE_EVENTS = ("online", "offline", "drain", "undrain")


def here() -> bool:
    """Whether this process was started inside a Flux instance."""
    return bool(os.environ.get("FLUX_URI"))


def trouble() -> str:
    """One sentence on why Flux cannot be used here; empty if it can."""
    if not here():
        return (
            "There is no Flux broker here (FLUX_URI is not set). Start one with `flux start COMMAND`, "
            "in a Slurm allocation with `srun flux start COMMAND`, or use `matforge launch`."
        )
    return bindings()[1]


def bindings() -> tuple[str, str]:
    """Where the bindings are, and one sentence on why they cannot be used; one of the two is empty."""
    try:
        return str(_bindings().__file__), ""
    except ImportError as error:
        return "", _import_sentence(error)


def _bindings() -> Any:
    """The package ``flux`` with what is used of it; a site's own is found through its command."""
    try:
        importlib.import_module("flux")
    except ModuleNotFoundError as error:
        if error.name != "flux":
            raise
        folders, complaint = _site_folders()
        if complaint:
            raise ImportError(complaint, name=_COMMAND) from error
        if not folders:
            raise
        sys.path += [folder for folder in folders if folder not in sys.path]
        importlib.import_module("flux")
    for name in ("job", "job.journal", "resource", "resource.journal", "idset", "hostlist", "util"):
        module = importlib.import_module(f"flux.{name}")
    del module
    return sys.modules["flux"]


def _site_folders() -> tuple[list[str], str]:
    """Where the installed Flux keeps its bindings, or what its command says if it cannot even start."""
    command = shutil.which("flux")
    if command is None:
        return [], ""
    try:
        done = subprocess.run(
            [command, "config", "builtin", "python_path"],
            capture_output=True, text=True, timeout=10, stdin=subprocess.DEVNULL, errors="replace",
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        return [], f"{command}: {error}"
    if done.returncode:
        return [], (done.stderr.strip() or f"{command} ended with {done.returncode}").splitlines()[-1]
    return [folder for folder in done.stdout.strip().split(":") if os.path.isdir(folder)], ""


_COMMAND = "the command flux"
_INSTALLED_AS = {"_cffi_backend": "cffi", "yaml": "PyYAML"}
"""Packages whose distribution has another name."""


def _import_sentence(error: ImportError) -> str:
    name = error.name or ""
    if name == _COMMAND:
        return (
            f"The command `flux` is here, but does not work ({error}), so its Python bindings cannot be "
            "found; often its lib folder is missing from LD_LIBRARY_PATH."
        )
    if "undefined symbol" in str(error) or "version `" in str(error):
        return (
            "Flux's Python bindings and its library are of different versions "
            f"({str(error).rpartition('/')[2]}); install the bindings in the version that `flux version` "
            "tells, or use the site's own."
        )
    if "libflux" in str(error):
        return (
            f"Flux's Python bindings are here, but its library is not ({str(error).split(':')[0]} is not "
            "found); install Flux itself, or add its lib folder to LD_LIBRARY_PATH."
        )
    if name == "flux":
        return (
            "Flux's Python bindings are not installed for this Python "
            f"({sys.version_info[0]}.{sys.version_info[1]}); install matforge[flux], or use the Python that "
            "`flux python` starts."
        )
    if name.startswith("flux."):
        return f"These bindings of Flux lack {name}; MatForge needs Flux {NEEDED} or later."
    if name in ("_flux", "_flux._core"):
        return (
            "Flux's Python bindings were built for another version of Python; use the one of `flux python`."
        )
    if name.startswith("_flux."):
        return (
            f"These bindings of Flux lack {name}, as the wheels before {WHEEL} do; install flux-python "
            f"{WHEEL} or later, or use the site's own."
        )
    package = _INSTALLED_AS.get(name, name)
    return f"Flux's Python bindings need the package {package!r}, which is missing; install it with pip."


class Broker:
    """The connection to the enclosing instance.

    Parameters
    ----------
    notify : callable
        Called in the broker's thread when events have come.

    Raises
    ------
    UsageError
        If there is no broker, its bindings are missing, or it does not answer in time.
    """

    def __init__(self, notify: Callable[[], None]) -> None:
        if sentence := trouble():
            raise UsageError(sentence)
        self._notify = notify
        self._orders: deque[tuple[str, Any]] = deque()
        self._events: deque[Event] = deque()
        self._waker = Waker()
        self._opened = threading.Event()
        self._ids: dict[int, int] = {}
        """Job id of each of our keys."""
        self._keys: dict[int, int] = {}
        self._early: list[tuple[int, str, dict[str, Any]]] = []
        """Events of jobs whose ids have not come back yet, while any is outstanding."""
        self._submitting = 0
        self._unwanted: set[int] = set()
        self._offline: set[int] = set()
        self._asking = False
        self._closing = False
        self.version = ""
        self._owner = False
        self.hosts: tuple[str, ...] = ()
        self.ends_at: float | None = None
        """Unix time at which the instance's own job ends, if it has a time limit."""
        self._longest_s = 0.0
        """What a job has to ask for, so that Flux lets it live as long as it may; 0: nothing."""
        self.first: Inventory | None = None
        self._problem = ""
        self._thread = threading.Thread(target=self._run, name="matforge-flux", daemon=True)
        self._thread.start()
        if not self._opened.wait(OPEN_S):
            self._problem = f"The Flux broker at {os.environ['FLUX_URI']} has not answered for {OPEN_S:g} s."
        if self._problem:
            raise UsageError(self._problem)

    # -- for other threads

    def submit(self, key: int, order: JobOrder) -> None:
        """Submit a job; its events carry ``key``."""
        self._order("submit", (key, order))

    def cancel(self, key: int) -> None:
        """Cancel a job that was submitted, wherever it is by now."""
        self._order("cancel", key)

    def cancel_older(self, prefix: str) -> None:
        """Cancel jobs with such a name that another driver has left."""
        self._order("cancel older", prefix)

    def refresh(self) -> None:
        """Ask for an :class:`Inventory`."""
        self._order("refresh", None)

    def events(self) -> list[Event]:
        """What has happened since the last call."""
        found = []
        while self._events:
            found.append(self._events.popleft())
        return found

    def close(self) -> None:
        """End the connection. Jobs that still run go on."""
        if not self._closing:
            self._closing = True
            self._order("close", None)
            self._thread.join(CLOSE_S)
            self._waker.close()

    def _order(self, what: str, value: Any) -> None:
        self._orders.append((what, value))
        self._waker.wake()

    # -- the thread

    def _run(self) -> None:
        try:
            self._flux = _bindings()
            self._handle = handle = self._flux.Flux()
            self._learn_instance()
            watchers = [
                handle.fd_watcher_create(self._waker.descriptor, self._take_orders, events=_POLLIN).start()
            ]
            jobs = self._flux.job.journal.JournalConsumer(handle, full=False)
            jobs.set_callback(self._job_event)
            jobs.start()
            nodes = self._flux.resource.journal.ResourceJournalConsumer(handle, include_sentinel=True)
            nodes.set_callback(self._node_event)
            nodes.start()
            handle.reactor_run()
            del watchers
            reason = "it was shut down"
        except Exception as error:  # the bindings raise OSError and more
            reason = str(error) or type(error).__name__
        if not self._opened.is_set():
            self._problem = f"The Flux broker at {os.environ.get('FLUX_URI')} cannot be used: {reason}."
            self._opened.set()
        elif not self._closing:
            self._tell(BrokerLost(f"The connection to the Flux broker has ended: {reason}."))

    def _learn_instance(self) -> None:
        handle = self._handle
        self.version = handle.attr_get("version")
        # Flux starts a Python for its validator, for a quarter of a second, and again when it was idle for
        # a while. What these bindings have made needs none; only the instance's owner may do without.
        self._owner = handle.attr_get("security.owner") == str(os.getuid())
        with suppress(OSError):
            self.hosts = tuple(self._flux.hostlist.decode(handle.attr_get("hostlist")))
        with suppress(OSError):  # an instance that is not a job has no end
            left = self._flux.job.timeleft(handle)
            self.ends_at = time.time() + left if math.isfinite(left) else None
        with suppress(OSError):
            config = handle.rpc("config.get").get()
            self._longest_s = longest_duration(config, self._flux.util.parse_fsd)

    def _duration(self) -> float:
        """Seconds that a job asks for; 0 for as long as the instance lives."""
        if not self._longest_s or self.ends_at is None:
            return self._longest_s
        return max(1.0, min(self._longest_s, self.ends_at - time.time()))

    def _tell(self, event: Event) -> None:
        self._events.append(event)
        self._notify()

    def _take_orders(self, *_: Any) -> None:
        self._waker.clear()
        while self._orders:
            what, value = self._orders.popleft()
            if what == "submit":
                self._submit(*value)
            elif what == "cancel":
                self._cancel(value)
            elif what == "cancel older":
                jobs = self._flux.job.JobList(self._handle, attrs=["name"], filters=["active"], max_entries=0)
                jobs.fetch_jobs().then(self._cancel_older, value)
            elif what == "refresh":
                self._ask()
            else:
                self._handle.reactor_stop()

    # -- jobs

    def _submit(self, key: int, order: JobOrder) -> None:
        try:
            future = self._flux.job.submit_async(
                self._handle, _jobspec(self._flux, order, self._duration()), novalidate=self._owner
            )
        except (OSError, ValueError, TypeError) as error:
            self._tell(JobEvent(key, "refused", {"note": str(error)}))
            return
        self._submitting += 1
        future.then(self._submitted, key)

    def _submitted(self, future: Any, key: int) -> None:
        self._submitting -= 1
        try:
            number = int(future.get_id())
        except OSError as error:
            self._tell(JobEvent(key, "refused", {"note": error.strerror or str(error)}))
        else:
            self._ids[key], self._keys[number] = number, key
            self._tell(JobEvent(key, "submitted", {"id": number}))
            if key in self._unwanted:
                self._cancel(key)
        early, self._early = self._early, []
        for event in early:
            self._pass_on(*event)

    def _cancel(self, key: int) -> None:
        number = self._ids.get(key)
        if number is None:
            self._unwanted.add(key)
            return
        # it may have ended meanwhile, and then there is nothing to do
        self._flux.job.cancel_async(self._handle, number).then(_ignore)

    def _cancel_older(self, future: Any, prefix: str) -> None:
        for job in future.get_jobs():
            if job.get("name", "").startswith(prefix) and int(job["id"]) not in self._keys:
                self._flux.job.cancel_async(self._handle, job["id"]).then(_ignore)

    def _job_event(self, event: Any) -> None:
        if event is None:  # the journal has ended, and the instance with it
            self._handle.reactor_stop()
            return
        context = dict(event.context)
        if event.name == "alloc" and event.R:
            context["cores"] = {rank: cores for rank, (_, cores, _) in _nodes(self._flux, event.R).items()}
            execution = event.R["execution"]
            if execution.get("expiration"):
                context["seconds"] = execution["expiration"] - execution["starttime"]
        self._pass_on(int(event.jobid), event.name, context)

    def _pass_on(self, number: int, name: str, context: dict[str, Any]) -> None:
        key = self._keys.get(number)
        if key is not None:
            if name == "clean":
                del self._keys[number], self._ids[key]
                self._unwanted.discard(key)
            self._tell(JobEvent(key, name, context))
        elif self._submitting:
            self._early.append((number, name, context))

    # -- nodes

    def _node_event(self, event: Any) -> None:
        if event is None:
            self._handle.reactor_stop()
        elif event.is_empty():  # the past has been told
            self._offline.clear()
            self._ask()
        elif event.name in _NODE_EVENTS:
            if event.name == "offline":
                self._offline |= set(self._flux.idset.decode(event.context["idset"]))
            if self._opened.is_set():
                self._ask()

    def _ask(self) -> None:
        if not self._asking:
            self._asking = True
            timer = self._handle.timer_watcher_create(SETTLE_S if self.first else 0.0, self._ask_now)
            timer.start()

    def _ask_now(self, _handle: Any, timer: Any, *_: Any) -> None:
        timer.destroy()
        self._asking = False
        self._flux.resource.resource_list(self._handle).then(self._answered)

    def _answered(self, future: Any) -> None:
        try:
            inventory = self._inventory(future.get())
        except OSError as error:
            if error.errno == errno.ENOSYS:  # the scheduler is being reloaded
                self._ask()
                return
            raise
        if self.first is None:
            self.first = inventory
            self._opened.set()
        else:
            self._tell(inventory)

    def _inventory(self, found: Any) -> Inventory:
        parts = [_nodes(self._flux, part.to_dict()) for part in (found.all, found.up, found.free)]
        everything, up, free = parts
        offline, self._offline = frozenset(self._offline), set()
        nodes = {}
        for rank, (host, cores, gpus) in everything.items():
            _, free_cores, free_gpus = free.get(rank, ("", 0, 0))
            nodes[rank] = NodeState(rank, host, cores, gpus, free_cores, free_gpus, rank in up)
        return Inventory(nodes, offline)


_POLLIN = 1
"""``FLUX_POLLIN``."""


def _ignore(future: Any) -> None:
    with suppress(OSError):
        future.get()


def _nodes(flux: Any, resources: Mapping[str, Any]) -> dict[int, tuple[str, int, int]]:
    """``rank -> (host, cores, gpus)`` of a resource set (RFC 20)."""
    execution = resources["execution"]
    hosts = list(flux.hostlist.Hostlist(execution.get("nodelist", [])))
    held = {}
    for part in execution["R_lite"]:
        children = part["children"]
        counts = [len(flux.idset.decode(children.get(kind, ""))) for kind in ("core", "gpu")]
        for rank in flux.idset.decode(str(part["rank"])):
            held[int(rank)] = counts
    ranks = sorted(held)
    names = hosts if len(hosts) == len(ranks) else [""] * len(ranks)
    return {rank: (name, *held[rank]) for rank, name in zip(ranks, names, strict=True)}


def _jobspec(flux: Any, order: JobOrder, duration: float) -> Any:
    spec = flux.job.JobspecV1.from_command(
        list(order.argv),
        num_tasks=order.tasks,
        cores_per_task=order.cores,
        gpus_per_task=order.gpus or None,
    )
    spec.environment = dict(order.environment)
    spec.cwd = order.cwd
    spec.duration = duration
    spec.stdout, spec.stderr = order.stdout, order.stderr
    spec.setattr("system.job.name", order.name)
    spec.setattr("system.constraints", {"ranks": [",".join(map(str, order.ranks))]})
    for name, value in order.options.items():
        spec.setattr_shell_option(name, value)
    return spec
