"""Functions known before there is a pipeline; settings that MatEnsemble's pipelines take."""

from matforge import ChoreRegistry, Resources
from matforge.pipeline import Pipeline


def add(a, b=0):
    return a + b


def total(parts):
    return sum(parts["all"])


registry = ChoreRegistry()
registry.register(add, name="add", resources=Resources(num_tasks=1, cores_per_task=1))
registry.register(total)

with Pipeline(basedir="campaign", registry=registry) as pipe:
    parts = [pipe.call("add", n, b=10 * n) for n in range(4)]
    whole = pipe.call("total", {"all": parts})
    future = pipe.submit(
        write_restart_freq=None,
        buffer_time=0.1,
        log_delay=0.5,
        set_cpu_affinity=True,
        set_gpu_affinity=False,
        adaptive=False,
        dynopro=False,
        processing_strategy=None,
    )

results = pipe.results(timeout=60)
print(future.done(), whole.result(), results[parts[3].chore_id], len(results))
