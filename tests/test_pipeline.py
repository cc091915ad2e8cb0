"""Building and running a DAG the way a user does, on the real local executor."""

from __future__ import annotations

import dataclasses
import functools
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest

from matforge import Pipeline, Resources, RunFailedError, UsageError, WithReport
from matforge.chore import ChoreRegistry
from matforge.engine.status import read_status
from matforge.model import FailureKind, MatForgeError, OutputReference, RunState
from matforge.opening import reopen
from matforge.strategy import AdaptiveStrategy


@dataclasses.dataclass
class Point:
    """Something of a user's."""

    x: Any
    y: int


def square(x: int) -> int:
    """As little as a chore can do."""
    return x * x


def numbers(n: int) -> list[int]:
    """A list, to be taken apart."""
    return list(range(n))


def gather(things: Any, **more: Any) -> Any:
    """What it is given."""
    return things, more


def broken(x: Any) -> None:
    """Fails."""
    print("about to fail", file=sys.stderr)
    raise ValueError(f"no {x}")


def who_am_i() -> Any:
    """What a chore is told about itself."""
    names = ("MATFORGE_CHORE_ID", "MATFORGE_SEED", "COLOUR")
    return WithReport({name: os.environ.get(name) for name in names}, {"pid": os.getpid()})


def wait_for_file(path: str) -> str:
    """Blocks until a pipe is opened at the other end."""
    return Path(path).read_text()


# ---------------------------------------------------------------- a run, from start to end


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pipeline, dict[str, OutputReference]]:
    """A pipeline of every kind of chore and argument, submitted once; some of it fails."""
    pipe = Pipeline(tmp_path_factory.mktemp("runs"), workers=2, name="all sorts", campaign="tests")
    sq, nums, gath = pipe.chore()(square), pipe.chore(name="range")(numbers), pipe.chore()(gather)
    bad, who = pipe.chore()(broken), pipe.chore(env={"COLOUR": "green"})(who_am_i)

    @pipe.chore()
    def closure(x: int) -> int:
        return square(x) + offset

    offset = 1000
    refs = {"nine": sq(3), "list": nums(10), "closure": closure(2), "who": who()}
    refs["eighty-one"] = sq(refs["nine"])
    refs["nested"] = gath([refs["nine"], {"deep": (refs["list"][2:4],)}], point=Point(refs["list"][-1], 5))
    refs["bad"] = bad(refs["nine"])
    refs["after"] = sq(refs["bad"])
    refs["command"] = pipe.exec([sys.executable, "-c", "import sys; print(sys.argv[1:])", refs["nine"], "x"])
    refs["false"] = pipe.exec("false", name="a name/with all sorts")
    refs["wide"] = pipe.call("square", 7, nice=-3)
    future = pipe.submit(log_delay=0.1, quiet=True)
    assert future.wait(120) is RunState.FAILED
    assert future.done()
    return pipe, refs


def test_results_flow_along_the_references_however_they_are_nested(ran: Any) -> None:
    _, refs = ran
    assert refs["nine"].result() == 9
    assert refs["eighty-one"].result() == 81
    assert refs["nested"].result() == ([9, {"deep": ([2, 3],)}], {"point": Point(9, 5)})
    assert refs["list"][3].result() == 3
    assert refs["wide"].result() == 49


def test_a_function_defined_on_the_spot_works_too(ran: Any) -> None:
    assert ran[1]["closure"].result() == 1004


def test_a_chore_knows_its_id_its_seed_and_its_environment(ran: Any) -> None:
    told = ran[1]["who"].result()
    assert told["MATFORGE_CHORE_ID"] == "chore-who_am_i-0004"
    assert 0 <= int(told["MATFORGE_SEED"]) < 2**63
    assert told["COLOUR"] == "green"


def test_a_commands_result_is_its_exit_code_and_where_its_streams_are(ran: Any) -> None:
    pipe, refs = ran
    value = refs["command"].result()
    assert value["exit_code"] == 0
    run_dir = pipe.session.run_dir
    assert (run_dir / value["stdout"]).read_text() == "['9', 'x']\n"


def test_what_failed_is_told_with_every_failure_and_what_there_is(ran: Any) -> None:
    pipe, refs = ran
    one = r"chore-broken-0007 failed \(exception\): ValueError: no 9"
    other = r"chore-a-name-with-all-sorts-0010 failed \(exit code\): false ended with exit code 1"
    with pytest.raises(RunFailedError, match=f"^({one}|{other}); 2 more did not complete\\.$") as failed:
        pipe.results(1)
    error = failed.value
    assert error.results[refs["nine"].chore_id] == 9
    assert set(error.results) == {r.chore_id for n, r in refs.items() if n not in ("bad", "after", "false")}
    failure = error.failures["chore-broken-0007"]
    assert failure.kind is FailureKind.EXCEPTION
    assert "ValueError: no 9" in failure.traceback
    assert "about to fail" in failure.stderr
    assert error.failures["chore-square-0008"].kind is FailureKind.DEPENDENCY_FAILED
    assert error.failures["chore-square-0008"].root == "chore-broken-0007"
    false = error.failures["chore-a-name-with-all-sorts-0010"]
    assert (false.kind, false.exit_code) == (FailureKind.EXIT_CODE, 1)
    with pytest.raises(MatForgeError, match=r"chore-broken-0007 failed \(exception\)"):
        refs["bad"].result()


def test_the_status_of_the_run_is_there_for_everybody(ran: Any) -> None:
    document = read_status(ran[0].session.run_dir)
    assert document["workflow"]["name"] == "all sorts"
    assert document["workflow"]["campaign"] == "tests"
    assert document["workflow"]["state"] == "failed"
    assert document["current"]["completed"] == 8
    assert {f["chore_id"] for f in document["failures"]} == {
        "chore-broken-0007", "chore-square-0008", "chore-a-name-with-all-sorts-0010",
    }  # fmt: skip


def test_a_pipeline_is_submitted_once(ran: Any) -> None:
    pipe, _ = ran
    for again in (pipe.submit, lambda: pipe.call("square", 1), lambda: pipe.exec("true")):
        with pytest.raises(UsageError, match="was submitted already; make another one for more chores"):
            again()


def test_the_run_can_be_opened_again_and_its_results_read(ran: Any) -> None:
    pipe, refs = ran
    pipe.close()
    session = reopen(pipe.session.run_dir, quiet=True, workers=1)
    assert session.wait(60) is RunState.FAILED
    assert session.read_result(refs["nested"].chore_id) == refs["nested"].result()
    with pytest.raises(RunFailedError, match="2 more did not complete"):
        session.outcome()


# ---------------------------------------------------------------- shorter ones


def test_the_context_manager_waits_and_ctrl_c_is_not_needed(tmp_path: Path) -> None:
    with Pipeline(tmp_path, workers=1, layout="packed") as pipe:
        sq = pipe.chore()(square)
        total = sq(sq(2))
        future = pipe.submit(quiet=True)
    assert future.done()
    assert dict(pipe.results()) == {"chore-square-0001": 4, total.chore_id: 16}
    assert not (tmp_path / "out").exists()
    assert (future.run_dir / "segments").is_dir()


def test_waiting_too_short_is_a_timeout_and_the_run_goes_on(tmp_path: Path) -> None:
    pipe_path = tmp_path / "pipe"
    os.mkfifo(pipe_path)
    pipe = Pipeline(tmp_path, workers=1)
    reference = pipe.chore()(wait_for_file)(str(pipe_path))
    future = pipe.submit(quiet=True)
    with pytest.raises(TimeoutError, match=r"has not ended after 0\.01 s; it goes on"):
        future.result(0.01)
    assert not future.done()
    pipe_path.write_text("now")
    assert reference.result() == "now"
    assert future.result(60)[reference.chore_id] == "now"


def test_a_pipeline_without_chores_ends_at_once(tmp_path: Path) -> None:
    assert dict(Pipeline(tmp_path, workers=1).submit(quiet=True).result(60)) == {}


# ---------------------------------------------------------------- wrong use


def test_a_result_cannot_be_had_before_submit(tmp_path: Path) -> None:
    pipe = Pipeline(tmp_path)
    reference = pipe.chore()(square)(2)
    for ask in (reference.result, pipe.results):
        with pytest.raises(MatForgeError, match=r"was not submitted yet; call submit\(\) first"):
            ask()
    pipe.close()


def test_a_reference_of_another_pipeline_is_refused(tmp_path: Path) -> None:
    one, other = Pipeline(tmp_path), Pipeline(tmp_path)
    foreign = one.chore()(square)(2)
    sq = other.chore(name="power")(square)
    with pytest.raises(UsageError, match="refers to chore-square-0001 of another pipeline"):
        sq([foreign])


def test_a_key_that_was_given_before_is_the_same_chore(tmp_path: Path) -> None:
    pipe = Pipeline(tmp_path)
    pipe.chore()(square)
    first = pipe.call("square", 2, key="only")
    assert pipe.call("square", 3, key="only") == first
    assert pipe.call("square", 4).chore_id == "chore-square-0002"


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"executor": "cloud"}, "There is no executor 'cloud'"),
        ({"workers": 0}, "--workers must be a whole number of at least 1, not 0"),
        ({"workers": 1.5}, "--workers must be a whole number of at least 1, not 1.5"),
    ],
    ids=str,
)
def test_wrong_settings_are_refused_when_the_pipeline_is_made(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        Pipeline(**wrong)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"cores_per_task": 0}, "cores_per_task must be a whole number of at least 1, not 0"),
        ({"num_tasks": True}, "num_tasks must be a whole number"),
        ({"gpus_per_task": -1}, "gpus_per_task must be a whole number of at least 0, not -1"),
        ({"mpi": "yes"}, "mpi must be True or False, not 'yes'"),
        ({"env": {"X": 1}}, "env must map strings to strings"),
        ({"env": ["X=1"]}, "env must map strings to strings"),
    ],
    ids=str,
)
def test_wrong_resources_are_refused_where_they_are_given(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        Pipeline().chore(**wrong)


def test_other_mistakes_are_told_where_they_are_made(tmp_path: Path) -> None:
    pipe = Pipeline(tmp_path)
    sq = pipe.chore()(square)
    with pytest.raises(UsageError, match=r"There is no chore named 'sqare' \(did you mean 'square'\?\)"):
        pipe.call("sqare", 1)
    with pytest.raises(UsageError, match="nice must be a whole number, not 'high'"):
        sq.options(nice="high")(1)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="A command needs at least the name of a program"):
        pipe.exec([])
    with pytest.raises(UsageError, match='The command "echo \'a" cannot be taken apart: No closing'):
        pipe.exec("echo 'a")
    with pytest.raises(UsageError, match="deps must be references to chores of this pipeline, not 'chore-a'"):
        pipe.exec("true", deps=["chore-a"])  # type: ignore[list-item]
    with pytest.raises(UsageError, match="The name of a chore must be a string, not 5"):
        pipe.chore(5)(square)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"Write @pipe.chore\(\), with parentheses"):
        pipe.chore(square)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="argument 1, of type generator, cannot be pickled"):
        sq(n for n in range(3))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="processing_strategy must be a FutureProcessingStrategy, not str"):
        pipe.submit(processing_strategy="adaptive")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="layout must be one of"):
        Pipeline(tmp_path, layout="flat").submit()
    assert list(tmp_path.iterdir()) == []


def test_a_chore_that_can_never_fit_is_refused_before_work_starts(tmp_path: Path) -> None:
    pipe = Pipeline(tmp_path, workers=2)
    pipe.chore(resources=Resources(cores_per_task=3))(square)(1)
    with pytest.raises(UsageError, match="'square' can never run here"):
        pipe.submit(processing_strategy=AdaptiveStrategy)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- the environment


def test_the_environment_gives_defaults_and_arguments_win(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MATFORGE_DIR", str(tmp_path / "from environment"))
    monkeypatch.setenv("MATFORGE_EXECUTOR", "local")
    monkeypatch.setenv("MATFORGE_WORKERS", "3")
    monkeypatch.setenv("MATFORGE_LAYOUT", "packed")
    settings = Pipeline()._settings
    assert settings.basedir == tmp_path / "from environment"
    assert (settings.executor, settings.workers, settings.layout) == ("local", 3, "packed")
    settings = Pipeline("here", executor="auto", workers=1, layout="full")._settings
    assert (settings.basedir, settings.executor) == (Path("here"), "auto")
    assert (settings.workers, settings.layout) == (1, "full")


def test_variables_that_are_empty_count_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DIR", "EXECUTOR", "WORKERS", "LAYOUT"):
        monkeypatch.setenv(f"MATFORGE_{name}", "")
    settings = Pipeline()._settings
    assert (settings.basedir, settings.executor, settings.workers) == (Path("."), "auto", None)


@pytest.mark.parametrize("text", ["two", "1.5"])
def test_a_number_of_workers_that_is_none_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATFORGE_WORKERS", text)
    with pytest.raises(UsageError, match=f"MATFORGE_WORKERS must be a whole number, not '{text}'"):
        Pipeline()


def test_a_registry_may_be_filled_beforehand() -> None:
    registry = ChoreRegistry()
    registry.register(square, name="sq")
    assert Pipeline(registry=registry).call("sq", 3).chore_id == "chore-sq-0001"


# ---------------------------------------------------------------- more ways to record


def test_map_records_a_chore_for_each_element(tmp_path: Path) -> None:
    pipe = Pipeline(tmp_path, workers=2)
    add = pipe.chore("add")(lambda a, b=0, *, c=0: (a, b, c))
    ones = add.map(range(3))
    twos = add.map([1, 2, 3], ones, c=7)
    pipe.submit(quiet=True).result(60)
    assert [r.result() for r in ones] == [(0, 0, 0), (1, 0, 0), (2, 0, 0)]
    assert [r.result() for r in twos] == [(k + 1, (k, 0, 0), 7) for k in range(3)]
    with pytest.raises(UsageError, match=r"add\.map needs at least one iterable"):
        add.map()


def test_options_change_the_place_the_resources_and_the_key_of_a_call(tmp_path: Path) -> None:
    pipe = Pipeline(tmp_path, workers=2)
    sq = pipe.chore(nice=3)(square)
    sq(1)
    wide = Resources(cores_per_task=2)
    named = sq.options(nice=-1, resources=wide, key="only")
    assert named(2) == named(3)
    calls = pipe._calls
    assert [(c.nice, c.resources.cores, c.key) for c in calls] == [(3, 1, None), (-1, 2, "only")]
    pipe.call("square", 5, queue_nice=4, resources=wide)
    assert (calls[-1].nice, calls[-1].resources) == (4, wide)


def test_a_part_of_an_array_is_a_reference_too(tmp_path: Path) -> None:
    np = pytest.importorskip("numpy")
    pipe = Pipeline(tmp_path, workers=1)
    table = pipe.chore("table")(lambda: np.arange(12.0).reshape(4, 3))()
    total = pipe.chore("total")(lambda rows, cell: (rows.sum(), cell))
    part = total(table[1:3], table[3, 2])
    pipe.submit(quiet=True).result(60)
    assert part.result() == (3 + 4 + 5 + 6 + 7 + 8, 11.0)
    assert table[::2][1].result().tolist() == [6.0, 7.0, 8.0]
    assert len({table, table[1:3]}) == 2


def test_a_command_waits_for_its_deps_and_opens_what_another_printed(tmp_path: Path) -> None:
    pipe = Pipeline(tmp_path, workers=1)
    flag = tmp_path / "flag"
    first = pipe.chore("first")(lambda path: Path(path).write_text("done"))(str(flag))
    shown = pipe.exec(["cat", str(flag)], deps=[first, first])
    again = pipe.exec(["cat", shown["stdout"]])
    pipe.submit(quiet=True).result(60)
    assert Path(again.result()["stdout"]).read_text() == "done"


def test_a_reference_inside_the_text_of_a_command_is_noticed(tmp_path: Path) -> None:
    pipe = Pipeline(tmp_path)
    reference = pipe.chore()(square)(2)
    with pytest.raises(UsageError, match="The command holds the text of a reference"):
        pipe.exec(["echo", f"value={reference}"])


def test_a_reference_inside_the_text_of_an_argument_is_noticed(tmp_path: Path) -> None:
    pipe = Pipeline(tmp_path)
    show = pipe.chore("show")(str)
    reference = pipe.chore()(square)(2)
    for call in (lambda: show(f"value={reference}"), lambda: show(object=str(reference))):
        with pytest.raises(UsageError, match="'show' holds the text of a reference"):
            call()
    assert show("a program that calls OutputReference(name)").chore_id == "chore-show-0002"


def test_a_function_defined_anew_is_refused_except_at_a_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(n: int) -> Any:
        def here() -> int:
            return n

        here.__module__, here.__qualname__ = "__main__", "here"
        return here

    pipe = Pipeline()
    pipe.chore()(version(1))
    with pytest.raises(UsageError, match="There is already a chore named 'here'"):
        pipe.chore()(version(2))
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    pipe.chore()(version(3))
    assert pipe.registry.get("here").func() == 3


def seeds(folder: Path, **options: Any) -> list[int]:
    """The seeds that chores of a run are told, in two ways."""
    from matforge import seed

    pipe = Pipeline(folder, **options)
    refs = pipe.chore("drawn")(lambda n: (seed(), int(os.environ["MATFORGE_SEED"]))).map([1, 1, 2])
    pipe.submit(quiet=True).result(60)
    told = [r.result() for r in refs]
    assert all(a == b for a, b in told)
    return [a for a, _ in told]


def test_seeds_are_reproducible_and_differ_between_chores_and_runs_of_another_seed(tmp_path: Path) -> None:
    first = seeds(tmp_path, workers=1)
    assert seeds(tmp_path, workers=2, layout="packed") == first
    other = seeds(tmp_path, workers=1, seed=5)
    assert len({*first, *other}) == 6
    with pytest.raises(UsageError, match="seed must be a whole number, not 'five'"):
        Pipeline(tmp_path, seed="five").submit()  # type: ignore[arg-type]


def test_there_is_no_seed_outside_of_a_chore(monkeypatch: pytest.MonkeyPatch) -> None:
    from matforge import seed

    monkeypatch.delenv("MATFORGE_SEED", raising=False)
    with pytest.raises(MatForgeError, match=r"matforge.seed\(\) is for the inside of a chore"):
        seed()


def test_submit_takes_matensembles_arguments(tmp_path: Path) -> None:
    pipe = Pipeline(tmp_path, None, workers=1)
    pipe.chore("one")(lambda: 1)()
    future = pipe.submit(
        None, 0.5, 1, True, False, adaptive=False, dynopro=False, reserve_broker_node=True,
        controller_cores=2, quiet=True,
    )  # fmt: skip
    assert list(future.result(60).values()) == [1]


def test_a_strategy_can_be_named_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from matforge import ChoreSpec, FutureProcessingStrategy\n"
        "class Twice(FutureProcessingStrategy):\n"
        "    def on_event(self, view, event):\n"
        "        return [ChoreSpec((2,), qualname='one')] if event.chore.parent is None else None\n"
    )
    monkeypatch.setenv("MATFORGE_STRATEGY", f"{file}:Twice")
    pipe = Pipeline(tmp_path, workers=1)
    pipe.chore("one")(lambda n: n)(1)
    assert sorted(pipe.submit(quiet=True).result(60).values()) == [1, 2]
    monkeypatch.setenv("MATFORGE_STRATEGY", "thomson")
    with pytest.raises(UsageError, match="There is no strategy 'thomson'"):
        Pipeline(tmp_path).submit()


class Unreadable:
    """Can be written, but not read."""

    def __reduce__(self) -> Any:
        return (int, ("text",))


def test_a_result_that_cannot_be_loaded_is_told_with_chore_and_file(tmp_path: Path) -> None:
    pipe = Pipeline(tmp_path, workers=1)
    bad = pipe.chore("bad")(Unreadable)()
    results = pipe.submit(quiet=True).result(60)
    sentence = r"The result of chore-bad-0001 in .*result\.pickle cannot be loaded: ValueError: invalid"
    with pytest.raises(MatForgeError, match=sentence):
        bad.result()
    with pytest.raises(MatForgeError, match=sentence):
        dict(results)


def test_the_error_of_a_run_can_be_passed_to_another_process(tmp_path: Path) -> None:
    pipe = Pipeline(tmp_path, workers=1)
    pipe.chore("bad")(lambda: 1 / 0)()
    good = pipe.chore("good")(lambda: 1)()
    with pytest.raises(RunFailedError) as failed:
        pipe.submit(quiet=True).result(60)
    again = pickle.loads(pickle.dumps(failed.value))
    assert str(again) == str(failed.value)
    assert (again.results, again.failures) == ({good.chore_id: 1}, failed.value.failures)


def test_arguments_that_do_not_fit_are_told_where_they_are_given(tmp_path: Path) -> None:
    pipe = Pipeline(tmp_path, workers=1)

    def inject(func: Any) -> Any:
        @functools.wraps(func)
        def inner(*args: Any) -> Any:
            return func("given", *args)

        return inner

    @pipe.chore()
    def work(x: int, *, y: int = 0) -> int:
        return x + y

    @pipe.chore()
    @inject
    def injected(config: str, x: int) -> str:
        return config * x

    wrong = [work, lambda: work(1, 2), lambda: work(x=1, z=3), lambda: pipe.call("work")]
    for call in (*wrong, lambda: work.map([1], z=0)):
        with pytest.raises(UsageError, match=r"^'work' cannot be called like this: .*argument.*\.$"):
            call()
    good = [work(work(1), y=2), injected(2), pipe.chore()(max)(1, 3)]
    results = pipe.submit(quiet=True).result(60)
    assert [results[one.chore_id] for one in good] == [3, "givengiven", 3]
    assert len(results) == 4
