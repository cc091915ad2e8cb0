"""A cheap screen, a score for each, and a dear validation of what the scores promise."""

from __future__ import annotations

from matforge.chore import ChoreSpec
from matforge.model import Resources
from matforge.pipeline import Pipeline

pipe = Pipeline()

CHEAP = {"num_tasks": 1, "cores_per_task": 1}
DEAR = Resources(num_tasks=1, cores_per_task=2)


def _energy(x: float) -> float:
    return (x - 1.5) ** 2


@pipe.chore(name="screen", **CHEAP)
def screen(x: float) -> dict:
    return {"kind": "screen", "x": x, "energy": _energy(x)}


@pipe.chore(name="score", **CHEAP)
def score(screened: dict) -> dict:
    return {"kind": "score", "x": screened["x"], "good": screened["energy"] < 0.5}


@pipe.chore(name="validate", num_tasks=1, cores_per_task=2)
def validate(scored: dict) -> dict:
    return {"kind": "validated", "x": scored["x"]}


@pipe.strategy(bolo_list=["score"], name="ask", **CHEAP)
def ask(scored: dict) -> ChoreSpec | None:
    if not scored["good"]:
        return None
    return ChoreSpec(args=(scored,), kwargs=None, qualname="validate", resources=DEAR)


for x in (0.0, 1.0, 2.0, 3.0):
    score(screen(x))

results = pipe.submit(log_delay=1).result()
kinds = [r["kind"] for r in results.values() if isinstance(r, dict)]
validated = sorted(r["x"] for r in results.values() if isinstance(r, dict) and r["kind"] == "validated")
print(kinds.count("screen"), kinds.count("score"), validated)
