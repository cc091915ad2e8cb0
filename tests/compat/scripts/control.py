"""A strategy with full control: a class that is made with a manager."""

from matforge.chore import ChoreSpec
from matforge.pipeline import Pipeline
from matforge.strategy import FutureProcessingStrategy

pipe = Pipeline()


@pipe.chore(name="decrement")
def decrement(n: int) -> int:
    return n - 1


class Countdown(FutureProcessingStrategy):
    def __init__(self, manager) -> None:
        super().__init__(manager)

    def process_futures(self, buffer_time) -> None:
        for event in self.manager.wait(buffer_time):
            left = event.result()
            if left > 0:
                self.manager.apply(ChoreSpec((left,), None, "decrement"))


decrement(3)
pipe.submit(buffer_time=0.2, log_delay=1, processing_strategy=Countdown)
print(list(pipe.results().values()))
