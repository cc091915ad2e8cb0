"""What ``matforge doctor`` looks at; every check says in a sentence what it found and what to do.

Nothing here can hang: whatever might (Flux, JAX, a GPU driver) runs in a process with a deadline.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from matforge._version import __version__
from matforge.engine.lock import LockedError, RunLock
from matforge.executors.agentproc import private_directory
from matforge.model import MatForgeError
from matforge.worker.once import compiled_cache_dir
from matforge.worker.processes import memory_limit, usable_cores

OK, WARNING, MISSING = "ok", "warning", "missing"
PICTURES = "matplotlib"
LEAST_SPACE = 1 << 30
LEAST_FILES = 10_000
SLOW_SYNC_S = 0.1
NETWORK = (
    "9p", "afs", "beegfs", "ceph", "cifs", "fuse.glusterfs", "fuse.sshfs", "glusterfs", "gpfs", "lustre",
    "nfs", "nfs4", "orangefs", "panfs", "pvfs2", "smb3", "smbfs", "wekafs",
)  # fmt: skip
"""Types of file systems that other machines may write to as well."""


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the answer."""

    name: str
    verdict: str
    """``ok``, ``warning`` or ``missing``."""
    told: str
    """What was found."""
    advice: str = ""
    """What to do, if there is something to do."""
    fatal: bool = False
    """Whether runs on this machine cannot work because of it."""


def examine(folder: Path, timeout: float) -> list[Check]:
    """All checks, for runs to be made in ``folder``.

    Parameters
    ----------
    timeout : float
        Seconds that a program may take to answer.
    """
    checks = [
        python(),
        *libraries(),
        cores(),
        memory(),
        flux_command(timeout),
        flux_bindings(timeout),
        slurm(),
        gpus(timeout),
        jax_devices(timeout),
    ]
    return [*checks, *folders(folder)]


# ---------------------------------------------------------------- software


def python() -> Check:
    """The interpreter."""
    told = f"MatForge {__version__}, Python {platform.python_version()} ({sys.executable})"
    if not hasattr(os, "waitid"):
        return Check("python", MISSING, told, "Use Linux, or macOS with Python 3.13.", fatal=True)
    return Check("python", OK, told)


def libraries() -> Iterator[Check]:
    """What MatForge needs, and what only draws."""
    names = _required()
    found = {name: _version(name) for name in names}
    have = ", ".join(f"{name} {version}" for name, version in found.items() if version)
    if absent := [name for name, version in found.items() if not version]:
        missing = ", ".join(absent)
        yield Check(
            "libraries", MISSING, f"not installed: {missing}", f"pip install {' '.join(absent)}", fatal=True
        )
    else:
        yield Check("libraries", OK, have)
    version = _version(PICTURES)
    if version:
        yield Check("pictures", OK, f"{PICTURES} {version}")
    else:
        advice = "Only `matforge vacua plot` needs it: pip install 'matforge[plots]'."
        yield Check("pictures", MISSING, f"{PICTURES} is not installed", advice)


def _required() -> list[str]:
    """Names of the distributions that MatForge itself asks for."""
    try:
        wanted = metadata.requires("matforge") or []
    except metadata.PackageNotFoundError:  # run from a source folder
        return ["cloudpickle", "jax", "numba", "numpy", "pandas", "pyarrow", "pyzmq", "rich", "typer"]
    core = [text for text in wanted if "extra ==" not in text]
    return sorted({"".join(c if c.isalnum() or c in "-_." else " " for c in t).split()[0] for t in core})


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def cores() -> Check:
    """Cores that this process may use."""
    usable, there = len(usable_cores()), os.cpu_count() or 1
    if usable == there:
        return Check("cores", OK, f"{usable}")
    return Check("cores", OK, f"{usable} of {there}: the affinity or the control group leaves no more")


def memory() -> Check:
    """Memory that this process may use, for each of its cores."""
    limit, count = memory_limit(), len(usable_cores())
    if not limit:
        return Check("memory", WARNING, "its size is unknown", "Slots are replaced when they pass 2 GiB.")
    told = f"{limit / 2**30:.1f} GiB, {limit / 2**30 / count:.1f} GiB a core"
    if limit < count << 30:
        return Check("memory", WARNING, told, "That is little; use fewer slots with --workers.")
    return Check("memory", OK, told)


# ---------------------------------------------------------------- schedulers and devices


def ask(command: Sequence[str], timeout: float) -> tuple[int | None, str]:
    """Exit code and the last line of what a program said; see :func:`hear`."""
    code, lines = hear(command, timeout)
    return code, lines[-1] if lines else ""


def hear(command: Sequence[str], timeout: float) -> tuple[int | None, list[str]]:
    """Exit code and what a program said; no code if it did not end in time or cannot be started."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL,
            errors="replace",
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return None, [f"no answer in {timeout:g} s"]
    except OSError as error:
        return None, [(error.strerror or str(error)).lower()]
    said = (done.stdout.strip() or done.stderr.strip()).splitlines()
    return done.returncode, [line.strip() for line in said if line.strip()]


def flux_command(timeout: float) -> Check:
    """Whether a Flux broker answers."""
    if shutil.which("flux") is None:
        advice = "Not needed on one machine. For many nodes install Flux (flux-core)."
        return Check("flux", MISSING, "there is no command `flux`", advice)
    code, said = ask(["flux", "getattr", "size"], timeout)
    if code == 0:
        return Check("flux", OK, f"a broker answers; its instance has {said} nodes")
    advice = "Start one with `flux start`, inside an allocation with `srun -N NODES --pty flux start`."
    return Check("flux", WARNING, f"installed, but no broker answers ({said})", advice)


_BINDINGS = """
import sys
from matforge.executors import flux
where, trouble = flux.bindings()
print(where or trouble)
sys.exit(bool(trouble))
"""


def flux_bindings(timeout: float) -> Check:
    """Whether this Python can speak to Flux, with the bindings that a run would take."""
    code, said = ask([sys.executable, "-c", _BINDINGS], timeout)
    if code == 0:
        return Check("flux bindings", OK, said)
    return Check("flux bindings", MISSING, said or "they cannot be imported", "Needed with Flux only.")


def slurm() -> Check:
    """Whether there is Slurm, and whether we are inside one of its allocations."""
    job = os.environ.get("SLURM_JOB_ID")
    if shutil.which("sbatch") is None and job is None:
        return Check("slurm", MISSING, "there is no command `sbatch`", "Not needed on one machine.")
    if job is None:
        advice = "Ask for nodes first (salloc, sbatch): login nodes are not for runs."
        return Check("slurm", WARNING, "installed; this is not inside an allocation", advice)
    nodes = os.environ.get("SLURM_JOB_NUM_NODES", "?")
    return Check("slurm", OK, f"inside allocation {job} of {nodes} nodes")


def gpus(timeout: float) -> Check:
    """NVIDIA and AMD devices."""
    for program, arguments in (("nvidia-smi", ["-L"]), ("rocm-smi", ["--showproductname", "--csv"])):
        if shutil.which(program) is None:
            continue
        code, said = hear([program, *arguments], timeout)
        told = f"{program}: {'; '.join(said) or 'nothing'}"
        if code != 0:
            return Check("gpus", WARNING, told, "The driver does not work on this node.")
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        return Check("gpus", OK, told + ("" if visible is None else f"; CUDA_VISIBLE_DEVICES={visible}"))
    return Check("gpus", MISSING, "none was found", "Not needed: the search runs on cores.")


_DEVICES = """
import json, warnings
warnings.simplefilter("ignore")
import jax
print(json.dumps([jax.__version__, [f"{d.platform}:{d.id} {d.device_kind}" for d in jax.devices()]]))
"""


def jax_devices(timeout: float) -> Check:
    """What JAX would compute on."""
    code, said = ask([sys.executable, "-c", _DEVICES], timeout)
    if code != 0:
        advice = "Only the solver `jax` needs it; see what `python -c 'import jax; jax.devices()'` says."
        return Check("jax", WARNING, f"JAX does not work: {said}", advice)
    version, devices = json.loads(said)
    return Check("jax", OK, f"{version} on {', '.join(devices)}")


# ---------------------------------------------------------------- folders


def folders(folder: Path) -> Iterator[Check]:
    """The folder for runs, the one for sockets, and the cache."""
    try:
        with _scratch(folder) as scratch:
            yield space(scratch)
            yield file_system(scratch)
            yield from (_guarded(name, probe, scratch) for name, probe in PROBES.items())
    except OSError as error:
        told = f"{folder} cannot be written ({(error.strerror or str(error)).lower()})"
        yield Check("folder", MISSING, told, "Give another one with --dir.", fatal=True)
    yield sockets()
    yield cache()


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A folder of our own where runs would be made; nothing of it stays, missing parents included."""
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    scratch = there / f".matforge-doctor-{secrets.token_hex(4)}"
    scratch.mkdir()
    try:
        yield scratch.resolve()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _guarded(name: str, probe: Callable[[Path], Check], scratch: Path) -> Check:
    try:
        return probe(scratch)
    except (OSError, MatForgeError) as error:
        advice = "Give a folder on another file system with --dir."
        return Check(name, MISSING, f"does not work here: {error}", advice, fatal=True)


def space(folder: Path) -> Check:
    """Bytes and files that still fit."""
    found = os.statvfs(folder)
    free = found.f_bavail * found.f_frsize
    told = f"{free / 2**30:.1f} GiB free in {folder.parent}"
    few = found.f_files > 0 and found.f_favail < LEAST_FILES
    if few:
        told += f", room for {found.f_favail:,} files"
    if free < LEAST_SPACE or few:
        return Check("space", WARNING, told, "Free some space, or give another folder with --dir.")
    return Check("space", OK, told)


def file_system(folder: Path, mounts: Path = Path("/proc/self/mountinfo")) -> Check:
    """What the folder lies on."""
    try:
        kind = mount_type(folder, mounts.read_text())
    except OSError:
        return Check("file system", WARNING, "its type is unknown", "Keep runs off network file systems.")
    if kind in NETWORK:
        advice = "Good for several nodes. For large runs `--layout packed` keeps the number of files small."
        return Check("file system", OK, f"{kind}, a network file system", advice)
    if kind in ("tmpfs", "ramfs"):
        return Check("file system", WARNING, f"{kind}, in memory", "Runs here do not outlive the machine.")
    advice = "Runs on several nodes need a folder that all of them see."
    return Check("file system", OK, f"{kind}, of this machine", advice)


def mount_type(folder: Path, mountinfo: str) -> str:
    """Type of the file system that holds ``folder``, from the text of ``/proc/self/mountinfo``."""
    best, kind = "", "unknown"
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        point = before.split()[4].encode().decode("unicode_escape")  # spaces are written \040
        inside = point == "/" or folder == Path(point) or Path(point) in folder.parents
        if inside and len(point) >= len(best):  # the latest of the longest covers the others
            best, kind = point, after.split()[0]
    return kind


def locks(folder: Path) -> Check:
    """The lock of a run, with two drivers."""
    path = folder / "run.lock"
    first, second = RunLock(path), RunLock(path)
    first.acquire(time.time())
    try:
        second.acquire(time.time())
    except LockedError:
        return Check("locks", OK, "a second driver of a run is kept out")
    finally:
        first.release()
    raise MatForgeError("two drivers got the same lock")


def renames(folder: Path) -> Check:
    """Whether a file is replaced whole."""
    old, new = folder / "old", folder / "new"
    old.write_text("old")
    new.write_text("new")
    os.replace(new, old)
    if old.read_text() != "new" or new.exists():
        raise MatForgeError("a file that was replaced is still the old one")
    return Check("renames", OK, "a file is replaced whole")


def syncs(folder: Path) -> Check:
    """How long it takes until something is on the disk."""
    spent = []
    with (folder / "synced").open("wb") as file:
        for _ in range(3):
            file.write(b"x" * 4096)
            file.flush()
            begun = time.perf_counter()
            os.fsync(file.fileno())
            spent.append(time.perf_counter() - begun)
    told = f"{1000 * sorted(spent)[1]:.1f} ms"
    if sorted(spent)[1] > SLOW_SYNC_S:
        advice = 'Runs sync once a second, so this is harmless but for durability="power".'
        return Check("syncs", WARNING, told, advice)
    return Check("syncs", OK, told)


PROBES: dict[str, Callable[[Path], Check]] = {"locks": locks, "renames": renames, "syncs": syncs}


def sockets() -> Check:
    """Whether driver and agents can meet in the folder for temporary files."""
    base = os.environ.get("TMPDIR", "the temporary folder")
    try:
        base = tempfile.gettempdir()
        home, lock = private_directory()
        try:
            with closing(socket.socket(socket.AF_UNIX)) as one:
                one.bind(str(home / "driver"))
        finally:
            shutil.rmtree(home, ignore_errors=True)
            if lock >= 0:
                os.close(lock)
    except OSError as error:
        told = f"no socket can be made in {base} ({error.strerror or error})"
        return Check("sockets", MISSING, told, "Set TMPDIR to a folder with a short path.", fatal=True)
    if not home.is_relative_to(base):
        advice = "Set TMPDIR to a folder with a path of less than 80 characters."
        return Check("sockets", WARNING, f"the path of {base} is too long, so /tmp is used", advice)
    return Check("sockets", OK, f"in {base}")


def cache() -> Check:
    """Where compiled kernels and covers are kept."""
    try:
        path = compiled_cache_dir()
    except (OSError, MatForgeError) as error:
        return Check("cache", MISSING, str(error), "Set MATFORGE_CACHE_DIR to a folder of yours.", fatal=True)
    if path.is_relative_to(tempfile.gettempdir()) and "MATFORGE_CACHE_DIR" not in os.environ:
        advice = "Kernels are compiled anew on every node: set MATFORGE_CACHE_DIR to a folder that lasts."
        return Check("cache", WARNING, f"{path}, because the usual place cannot be written", advice)
    return Check("cache", OK, str(path))
