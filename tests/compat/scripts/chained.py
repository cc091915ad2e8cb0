"""Two chores, one needing the other; the results are asked of the pipeline."""

from matforge.pipeline import Pipeline

pipe = Pipeline()


@pipe.chore()
def collatz(n: int) -> list[int]:
    path = [n]
    while n > 1:
        n = 3 * n + 1 if n % 2 else n // 2
        path.append(n)
    return path


@pipe.chore()
def summit(path) -> int:
    return max(path)


path = collatz(27)
top = summit(path)

pipe.submit(log_delay=1)

print(pipe.results())
