"""A driver of another host, which stands still: python -m tests.durability.frozen_driver BASE SECONDS.

It says when it waits; a line on its standard input lets it go on, that many seconds later.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from matforge import lease
from matforge.executors.protocol import Task
from matforge.executors.simulated import Outcome, SimulatedExecutor
from matforge.model import RunState
from tests.harness import call, play, ref


def behave(task: Task) -> Outcome:
    """The third chore waits at a gate."""
    if task.attempt.chore_id == "chore-work-0003":
        print("waiting", flush=True)
        sys.stdin.readline()
    return Outcome(1.0, task.seed)


class RealTime(SimulatedExecutor):
    """Its clock is that of the others: a lease is counted in it."""

    def now(self) -> float:
        """Unix time."""
        return time.time() + float(SKEW)


SKEW = 0.0
"""Seconds that this host's clock is ahead once it goes on: as much as it stood still."""
CALLS = [call("work", 1), *(call("work", n, ref("work", n - 1)) for n in range(2, 6))]


def main(base: str, stood_still: float) -> None:
    """Run to the end, or until the run is somebody else's."""
    global SKEW
    here = lease.place()
    lease.place = lambda: {**here, "host": "another"}  # type: ignore[assignment]

    def behaviour(task: Task) -> Outcome:
        global SKEW
        found = behave(task)
        if task.attempt.chore_id == "chore-work-0003":
            SKEW = stood_still
        return found

    session, _ = play(Path(base), CALLS, executor=RealTime(behaviour, workers=1))
    state = session.wait()
    print(state.value, session.manager.problem, flush=True)
    sys.exit(0 if state is RunState.COMPLETED else 75)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
