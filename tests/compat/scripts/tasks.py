"""A function on several tasks: each of them calls it."""

from matforge.pipeline import Pipeline

pipe = Pipeline()


@pipe.chore(num_tasks=3, cores_per_task=1, gpus_per_task=0, mpi=False)
def greet():
    print("hello from a task")
    return 7


for _ in range(2):
    greet()

pipe.submit(log_delay=1)
print(pipe.results())
