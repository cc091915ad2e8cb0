"""What is wrong with a batch: everything at once, with the rows, so that it is put right in one go."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from matforge.model import UsageError

SHOWN = 10


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a batch."""

    column: str
    """The column it is about; empty if it is not about one."""
    text: str
    rows: tuple[int, ...] = ()
    """The rows concerned, counted from 0; empty if it is about all of them."""

    def __str__(self) -> str:
        subject = f"{self.column} " if self.column else ""
        return f"{subject}{self.text}{_places(self.rows)}"


def _places(rows: tuple[int, ...]) -> str:
    if not rows:
        return ""
    shown = ", ".join(map(str, rows[:SHOWN]))
    more = f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
    return f" (row{'s' if len(rows) > 1 else ''} {shown}{more})"


class BatchError(UsageError):
    """A batch that cannot be staged; nothing was written.

    Attributes
    ----------
    problems : tuple of Problem
        All of them.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        listed = [str(problem) for problem in self.problems]
        if len(listed) == 1:
            super().__init__(f"Nothing was written: {listed[0]}.")
        else:
            lines = "".join(f"\n  {line}" for line in listed)
            super().__init__(f"Nothing was written, because of {len(listed)} problems:{lines}")


class Complaints:
    """Gathers problems while a batch is looked at."""

    def __init__(self) -> None:
        self.found: list[Problem] = []

    def add(self, column: str, text: str, rows: Iterable[int] = ()) -> None:
        """Note a problem; ``rows`` are row numbers."""
        self.found.append(Problem(column, text, tuple(int(row) for row in rows)))

    def end(self) -> None:
        """Raise :class:`BatchError` if there was anything."""
        if self.found:
            raise BatchError(self.found)
