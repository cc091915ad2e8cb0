"""A slot: one process that runs chores, one after the other, and keeps clean between them.

Started by the agent as a session of its own, with a packet socket, its standard streams on scratch
files in the agent's private directory, and the environment that its profile asks for.
"""

from __future__ import annotations

import faulthandler
import os
import shutil
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from matforge.worker import hygiene, launch, load, processes
from matforge.worker.capture import Streams
from matforge.worker.endings import Stage, StageMark, storage_failure
from matforge.worker.publish import Publisher
from matforge.worker.runner import Job, Meter, Outcome, classify, finish, run_function
from matforge.worker.wire import HELLO, PACKET_BUFFER, AgentConfig, Profile, ReportField, pack, unpack

_RSS_EVERY = 16
"""Chores between two looks at the memory."""


class Slot:
    """The process's only object: everything that lasts from one chore to the next."""

    def __init__(self, config_path: str, channel: socket.socket, number: int) -> None:
        config = AgentConfig.load(config_path)
        self._config_path = config_path
        self._channel = channel
        self._buffer = memoryview(bytearray(PACKET_BUFFER))
        welcome, _ = self._receive() or ({}, b"")
        self._profile = Profile(**welcome["profile"])
        if welcome["pin"]:
            os.sched_setaffinity(0, welcome["pin"])
        self._run_dir = Path(config.run_dir)
        self._scratch = Path(welcome["scratch"])
        self._work = self._scratch / "work"
        self._work.mkdir(exist_ok=True)
        self._segment_number = f"{config.epoch}-{config.agent}-{number}.seg"
        self._publisher = Publisher(self._run_dir, self._segment_number, sync=config.sync)
        self._functions = load.Functions(self._run_dir)
        self._max_chores = 1 if self._profile.once else config.max_chores
        self._max_rss = config.max_rss
        self._done = 0
        self._launches = self._profile.command or self._profile.num_tasks > 1 or self._profile.mpi
        self._running = False
        self._pid = os.getpid()
        os.environ["MATFORGE_RUN_DIR"] = config.run_dir
        self._set_signals()
        os.chdir(self._work)
        self._stage = StageMark(self._scratch)
        self._meter = Meter(number)
        self._streams = Streams(self._scratch)
        self._baseline = hygiene.Baseline()

    def _set_signals(self) -> None:
        def interrupt(_number: int, _frame: Any) -> None:
            if self._running:
                raise KeyboardInterrupt

        signal.signal(signal.SIGINT, interrupt)
        if self._launches:
            # the program is to end by itself and be waited for; the agent kills if it does not
            signal.signal(signal.SIGTERM, lambda _number, _frame: None)

    def _receive(self) -> tuple[Any, bytes] | None:
        """The next packet; None when the agent has closed the channel."""
        size = self._channel.recv_into(self._buffer)
        if size == 0:
            return None
        header, blob = unpack(bytes(self._buffer[:size]))
        if isinstance(header, dict) and "spill" in header:
            path = Path(header["spill"])
            header, blob = unpack(path.read_bytes())
            path.unlink(missing_ok=True)
        return header, blob

    def _send(self, report: list[Any], blob: bytes) -> None:
        try:
            self._channel.send(pack(report, blob))
        except OSError:
            # too long for one packet: the result is on disk, the words can be cut
            report[ReportField.INLINE] = 0
            if report[ReportField.FAILURE]:
                report[ReportField.FAILURE] = {
                    k: v[-4000:] if k in ("traceback", "stderr") else v[:4000] if isinstance(v, str) else v
                    for k, v in report[ReportField.FAILURE].items()
                }
            self._channel.send(pack(report))

    def serve(self) -> None:
        """Run tasks until the agent closes the channel, or this process must be replaced."""
        self._channel.send(pack([HELLO, os.getpid()]))
        while (packet := self._receive()) is not None:
            report, blob, retire = self._run(*packet)
            self._stage.set(Stage.REPORTING)
            self._send([*report, retire], blob)
            self._stage.set(Stage.IDLE)
            if retire:
                return

    def _run(self, task: list[Any], blob: bytes) -> tuple[list[Any], bytes, str]:
        job = Job.from_wire(task, blob)
        if self._launches:
            job.directory = job.directory or f"out/{job.chore_id}"
        self._meter.begin()
        outcome = self._prepare(job)
        if outcome is None:
            self._running = True
            try:
                outcome = self._perform(job)
            except KeyboardInterrupt as error:  # between the chore's end and the next line
                outcome = Outcome(failure=classify(error, job.chore_id))
            self._running = False
            if os.getpid() != self._pid:
                os._exit(0)  # a child that the chore forked has returned into our loop
        # first, so that the result is not written under the umask and the limits of the chore
        leaked = self._restore()
        self._stage.set(Stage.WRITING)
        report, inline = finish(job, outcome, self._meter, self._streams, self._publisher, self._run_dir)
        return report, inline, self._tidy(leaked)

    def _restore(self) -> str:
        """Undo what the chore changed; why this process must be replaced, if it must."""
        try:
            return self._baseline.restore()
        except Exception as error:  # an object that the chore has put in some place of the library's
            return f"what a chore changed cannot be put back ({type(error).__name__}: {error})"

    def _prepare(self, job: Job) -> Outcome | None:
        """Directory, streams and environment of a chore; an outcome if that already fails."""
        folder = self._work
        try:
            if job.directory is not None:
                folder = self._run_dir / job.directory
                folder.mkdir(exist_ok=True)
                self._streams.begin(folder, job.tag)
            else:
                self._streams.begin(None, job.tag)
            os.chdir(folder)
        except OSError as error:
            return Outcome(failure=storage_failure(error, folder, job.chore_id))
        self._baseline.begin(job.environment(), job.seed)
        return None

    def _perform(self, job: Job) -> Outcome:
        self._stage.set(Stage.RUNNING)
        if job.function is None:
            return launch.run_command(job, self._profile, self._run_dir)
        if self._launches:
            return launch.run_ranks(job, self._profile, self._run_dir, self._config_path, self._scratch)
        return run_function(job, self._functions, self._run_dir, stage=self._stage.set)

    def _tidy(self, leaked: str) -> str:
        """Empty the scratch directory; why this process must be replaced, if it must."""
        self._done += 1
        try:
            used = bool(os.listdir(self._work))
        except OSError:
            used = True
        if used:
            self._empty_work()
        if self._profile.once:
            return "it serves only once"
        if leaked and not self._launches:
            return leaked
        if self._done >= self._max_chores:
            return f"it has run {self._done} chores"
        if (
            self._max_rss
            and self._done % _RSS_EVERY == 0
            and processes.memory_of([self._pid]) > self._max_rss
        ):
            return f"it has grown beyond {self._max_rss >> 20} MiB"
        return ""

    def _empty_work(self) -> None:
        shutil.rmtree(self._work, ignore_errors=True)
        self._work.mkdir(parents=True, exist_ok=True)
        os.chdir(self._work)


def main() -> None:
    """Entry point: ``CONFIG DESCRIPTOR NUMBER PARENT``."""
    config_path, descriptor, number, parent = sys.argv[1:5]
    sys.argv = ["matforge-slot"]
    processes.die_with_parent(int(parent))
    processes.adopt_orphans()
    with suppress(OSError):  # if memory runs out, this process goes before agent and driver
        Path("/proc/self/oom_score_adj").write_text("500")
    faulthandler.enable()
    channel = socket.socket(fileno=int(descriptor))
    channel.set_inheritable(False)
    Slot(config_path, channel, int(number)).serve()
    processes.leave()
