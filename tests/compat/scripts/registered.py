"""Functions known before there is a pipeline; settings that MatEnsemble's pipelines take."""

from matforge import ChoreRegistry, ChoreType, OutputReference, Resources
from matforge.pipeline import Pipeline


def add(a, b=0):
    return a + b


registry = ChoreRegistry()


@registry.chore(num_tasks=1, cores_per_task=1, gpus_per_task=0, mpi=False, inherit_env=True)
def total(parts):
    return sum(parts["all"])


registry.register(add, name="add", resources=Resources(num_tasks=1, cores_per_task=1))
assert total({"all": [1, 2]}) == 3
assert list(registry) == list(registry.keys()) == ["total", "add"]
assert registry["add"] is add
assert dict(registry.items()) == {"total": total, "add": add}
assert list(registry.values()) == [total, add]

with Pipeline(basedir="campaign", registry=registry, reserve_broker_node=False, controller_cores=0) as pipe:
    parts = [pipe.call("add", n, b=10 * n, queue_nice=n) for n in range(4)]
    assert all(isinstance(part, OutputReference) for part in parts)
    assert set(ChoreType) == {ChoreType.PYTHON, ChoreType.EXECUTABLE}
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
