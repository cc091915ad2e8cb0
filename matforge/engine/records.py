"""What a run knows of its chores beside their states, and how an ending is written down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from matforge.chore import Chore
from matforge.model import Attempt, ChoreState, Failure, Location, Usage


@dataclass(slots=True)
class Record:
    """One chore of a run."""

    chore: Chore
    directory: str | None
    """Relative directory in the full layout; None if the chore is packed."""
    result: Location | None = None
    attempts: list[dict[str, Any]] = field(default_factory=list)
    """Host, slot, times and outcome of each attempt; emptied into the metadata at the end."""


@dataclass(slots=True)
class Tally:
    """How the chores of one name stand, for whoever watches."""

    added: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    """Sums of the numbers in their reports."""

    def counts(self) -> dict[str, int]:
        """The numbers of chores, as ``status.json`` shows them."""
        return {
            "added": self.added,
            "completed": self.completed,
            "failed": self.failed,
            "cancelled": self.cancelled,
        }

    def count(self, ending: Ending) -> None:
        """Count one that has ended."""
        if ending.again:
            if ending.state is ChoreState.COMPLETED:
                return
            self.completed -= 1
        if ending.state is ChoreState.COMPLETED:
            self.completed += 1
        elif ending.state is ChoreState.FAILED:
            self.failed += 1
        else:
            self.cancelled += 1
        for name, value in ending.facts.report.items():
            if isinstance(value, int | float):
                self.sums[name] = self.sums.get(name, 0) + value

    def take_back(self, ending: Ending) -> None:
        """Forget one that had completed and is made again."""
        self.completed -= 1
        for name, value in ending.facts.report.items():
            if isinstance(value, int | float):
                self.sums[name] -= value


@dataclass(slots=True, eq=False)
class Facts:
    """What an executor told about an attempt that ended."""

    number: int = 0
    """The attempt; 0 if the chore ended because of something else (another chore, a decision)."""
    usage: Usage | None = None
    report: Mapping[str, Any] = field(default_factory=dict)
    inline: bytes | None = None
    printed: bool = False
    cached: str = ""
    """Key under which the result was found in the cache, if it was."""


DERIVED = Facts()


@dataclass(slots=True, eq=False)
class Ending:
    """A chore that has ended, waiting for the strategy's answer."""

    chore: Chore
    state: ChoreState
    failure: Failure | None
    result: Location | None
    event: int
    """Count of the graph's events up to the one that brought this about."""
    facts: Facts = DERIVED
    again: bool = False
    """Whether it had completed before and its result was lost: the strategy has heard of it."""

    def record(self) -> dict[str, Any]:
        """The event's part of the journal record."""
        record: dict[str, Any] = {"e": "end", "id": self.chore.id, "s": self.state.value}
        facts = self.facts
        if facts.number:
            record["n"] = facts.number
        if self.result is not None:
            record["r"] = self.result.as_list()
        if self.failure is not None:
            record["f"] = self.failure.as_dict()
        if facts.usage is not None:
            record["u"] = _usage_list(facts.usage)
        if facts.report:
            record["p"] = facts.report
        if facts.cached:
            record["k"] = facts.cached
        return record


def attempt_record(
    attempt: Attempt, usage: Usage, outcome: str, failure: Failure | None = None
) -> dict[str, Any]:
    """One attempt, as the metadata shows it: a later one does not erase why an earlier one failed."""
    record = {"epoch": attempt.epoch, "number": attempt.number, "outcome": outcome, **usage.as_dict()}
    return {**record, "failure": failure.as_dict()} if failure is not None else record


def _usage_list(usage: Usage) -> list[Any]:
    return [usage.host, usage.slot, round(usage.started_at, 3), round(usage.wall_s, 6),
            round(usage.cpu_s, 6), usage.max_rss]  # fmt: skip
