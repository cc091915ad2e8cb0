"""Refine whatever a cheap chore found promising, group by group, and merge at the end.

When to use it: a campaign of many cheap chores (*chunks*) of which some find candidates worth an
expensive second look (*refines*), whose results are to be written in batches (*shard writes*) and
merged once. It is what ``matforge vacua search`` runs on. To steer a campaign of your own, copy
this file and change the names of the chores and what is passed to them.

The chores speak to it through their reports:

* ``cover``: ``{"blocks", "block", "group", "batch"}``: how many chunks, rows of h a chunk, chunks a
  shard, starts a refine;
* ``isd_chunk``: ``{"group", "starts", "unfinished"}``: candidates found, and pieces of work that it
  left because its budget was spent; they become new chunks;
* ``newton_refine``: ``{"group"}``; ``shard_write``: nothing.

A group that is complete is written; when all groups are, everything is merged. If any chore fails,
nothing more is started and nothing is merged: an incomplete answer cannot come about.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from matforge import (
    ChoreSpec,
    ChoreState,
    Decision,
    Event,
    FutureProcessingStrategy,
    OutputReference,
    Spawn,
    Stop,
    View,
)


class RefinePromising(FutureProcessingStrategy):
    """Chunks -> refines -> shard writes -> merge."""

    def __init__(self) -> None:
        self.plan: str | None = None
        """Id of the cover chore, whose result holds all h."""
        self.settings: dict[str, int] = {}
        self.open: dict[int, dict[str, Any]] = {}
        """Group -> chores of it that have not ended, and the ids of those that have."""
        self.shards: list[str] = []
        self.hopeless = False
        """Whether something has failed; then nothing more is spawned."""

    def chore_names(self) -> Iterable[str]:
        """What it spawns: a script that lacks one of them is told so before work starts."""
        return ("isd_chunk", "newton_refine", "shard_write", "merge")

    def on_event(self, view: View, event: Event) -> Iterable[Decision]:
        """Answer the end of a chore by its kind."""
        if event.outcome is ChoreState.FAILED and not self.hopeless:
            self.hopeless = True
            return [Stop(f"{event.chore.id} failed, so no complete answer can come")]
        if self.hopeless or not event.ok:
            return ()
        kinds = {
            "cover": self._cover,
            "isd_chunk": self._chunk,
            "newton_refine": self._refine,
            "shard_write": self._shard,
        }
        answer = kinds.get(event.chore.name)
        return answer(event) if answer is not None else ()

    # -- one method for each kind of chore

    def _cover(self, event: Event) -> list[Spawn]:
        self.plan = event.chore.id
        self.settings = {k: event.report[k] for k in ("blocks", "block", "group", "batch")}
        blocks, size = self.settings["blocks"], self.settings["block"]
        if blocks == 0:
            return [self._merge()]
        problem, h, group = event.ref["problem"], event.ref["h"], self.settings["group"]
        return [
            self._spawn("isd_chunk", problem, h[k * size : (k + 1) * size], k // group) for k in range(blocks)
        ]

    def _chunk(self, event: Event) -> list[Spawn]:
        group, ref = event.report["group"], event.ref
        state = self._group(group)
        out = [
            self._spawn("isd_chunk", self._problem(), None, group, ref["unfinished"][i], nice=-1)
            for i in range(event.report["unfinished"])
        ]
        batch = self.settings["batch"]
        for begin in range(0, event.report["starts"], batch):
            rows = slice(begin, begin + batch)
            starts = [ref[name][rows] for name in ("fluxes", "moduli", "tau")]
            out.append(self._spawn("newton_refine", self._problem(), *starts, group, nice=-2))
        state["open"] += len(out) - 1
        state["chunks"].append(event.chore.id)
        return out + self._close(group)

    def _refine(self, event: Event) -> list[Spawn]:
        group = event.report["group"]
        state = self._group(group)
        state["open"] -= 1
        state["refines"].append(event.chore.id)
        return self._close(group)

    def _shard(self, event: Event) -> list[Spawn]:
        self.shards.append(event.chore.id)
        done = len(self.shards) == -(-self.settings["blocks"] // self.settings["group"])
        return [self._merge()] if done else []

    # -- groups

    def _group(self, group: int) -> dict[str, Any]:
        """What is known of a group; at first all its chunks are open."""
        size, blocks = self.settings["group"], self.settings["blocks"]
        chunks = min(size, blocks - group * size)
        return self.open.setdefault(group, {"open": chunks, "chunks": [], "refines": []})

    def _close(self, group: int) -> list[Spawn]:
        """Write a group of which nothing is open any more."""
        state = self.open[group]
        if state["open"]:
            return []
        del self.open[group]
        # sorted: what is spawned must not depend on the order in which chores ended
        refined = [OutputReference(name) for name in sorted(state["refines"])]
        counts = [OutputReference(name)["counts"] for name in sorted(state["chunks"])]
        return [
            self._spawn("shard_write", self._problem(), group, refined, counts, nice=-3, key=f"shard-{group}")
        ]

    def _merge(self) -> Spawn:
        assert self.plan is not None
        shards = [OutputReference(name) for name in sorted(self.shards)]
        plan = OutputReference(self.plan)
        return self._spawn("merge", plan["problem"], plan, shards, key="merge")

    def _problem(self) -> OutputReference:
        assert self.plan is not None
        return OutputReference(self.plan)["problem"]

    @staticmethod
    def _spawn(name: str, *args: Any, nice: int = 0, key: str | None = None) -> Spawn:
        return Spawn(ChoreSpec(args, None, name, nice=nice, key=key))
