"""A strategy that is a chore itself halves an interval until it is narrow."""

import random

from matforge.chore import ChoreSpec
from matforge.model import Resources
from matforge.pipeline import Pipeline

pipe = Pipeline()


@pipe.chore()
def halve(low: float, high: float, steps: int = 1) -> dict:
    return {"low": low, "high": high, "middle": (low + high) / 2, "steps": steps}


watched = ["halve"]
target = random.uniform(2, 9)


@pipe.strategy(bolo_list=watched)
def closer(halved, sought=target):
    middle, steps = halved["middle"], halved["steps"]
    if halved["high"] - halved["low"] < 0.5:
        print(f"found {sought:.6f} near {middle:.6f} after {steps} steps")
        return None
    if middle**2 < sought**2:
        return ChoreSpec(
            args=(middle, halved["high"], steps + 1), kwargs=None, resources=Resources(), qualname="halve"
        )
    return ChoreSpec((halved["low"], middle), {"steps": steps + 1}, "halve", Resources())


halve(0.0, 16.0)

future = pipe.submit(log_delay=1)
results = future.result()
print(target, [r for r in results.values() if isinstance(r, dict)][-1])
