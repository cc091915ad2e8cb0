"""The simulated executor keeps the protocol's half of the contract."""

from __future__ import annotations

from pathlib import Path

from contract import ProtocolContract
from harness import Harness

from matforge.executors.protocol import Task
from matforge.executors.simulated import Outcome, SimulatedExecutor
from matforge.model import Failure, FailureKind


def behave(task: Task) -> Outcome:
    if task.name == "endless":
        return Outcome(1e9)
    if task.name == "failing":
        return Outcome(0.1, failure=Failure(FailureKind.EXCEPTION, "as asked"))
    return Outcome(0.1, value=1)


class TestContract(ProtocolContract):
    """The protocol."""

    @classmethod
    def make(cls, tmp_path: Path) -> Harness:
        return Harness(SimulatedExecutor(behave, workers=2), tmp_path)
