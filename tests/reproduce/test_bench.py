"""The benchmark: sides take turns, in processes under the settings that they are said to have."""

import json
import os
import shutil
import signal
from dataclasses import replace
from statistics import median

import pytest

from common.errors import UserError
from reproduce import ROOT, bench
from reproduce.bench import Part, Side, Worker, input_part, measure, measure_pair, step_part

TINY = {"recipe_name": "digits", "image_size": 8, "batch_size": 4, "steps": 2, "classes": 10}
LIGHT = """
class Task:
    def __init__(self, **options): self.options = options
    def __call__(self): return self.options
"""


@pytest.fixture
def light(tmp_path) -> Side:
    """A side that only says what its options are, and does not load Paddle."""
    (tmp_path / "light.py").write_text(LIGHT)
    return Side("light", "light:Task", {"loss": 3}, folder=tmp_path)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(bench, "_PAUSE", 0)


@pytest.fixture(scope="module")
def record() -> dict:
    """Ours, the same under Paddle's own settings and a copy of this clone at a tiny size, each in its process."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("OMP_NUM_THREADS", "3"), ("MKL_DEBUG_CPU_TYPE", "5"), ("FLAGS_use_stride_kernel", "0")):
            patch.setenv(name, value)  # of the caller: no side gets them
        patch.setattr(bench, "_PAUSE", 0)
        patch.setitem(bench.PARTS, "tiny", lambda: step_part("tiny", **TINY))
        chosen = ["--part", "tiny", "--against", str(ROOT), "--competitor", "plain_untuned", "against"]
        (part,) = bench.parts_of(bench._options(chosen))
        return measure(part, 3)


def test_sides_run_under_the_settings_that_they_are_said_to_have(record):
    ours, plain, other = (found["settings"] for found in record["competitors"].values())
    assert (plain["OMP_NUM_THREADS"], plain["FLAGS_use_stride_kernel"], plain["MKL_DEBUG_CPU_TYPE"]) == ("1", "1", "0")
    assert (ours["OMP_NUM_THREADS"], ours["FLAGS_use_stride_kernel"]) == (str(len(os.sched_getaffinity(0))), "0")
    assert other == ours


def test_figures_are_those_of_the_single_measurements(record):
    assert list(record["competitors"]) == ["ours", "plain_untuned", "against"]
    for name, found in record["competitors"].items():
        seconds = found["seconds"]
        ratios = [own / other for own, other in zip(seconds, found["ours_seconds"], strict=True)]
        assert found["n"] == len(seconds) == (6 if name == "ours" else 3) and min(seconds) > 0
        assert (found["median"], found["lowest"], found["highest"]) == (median(seconds), min(seconds), max(seconds))
        assert found["ratio_to_ours"] == {"median": median(ratios), "lowest": min(ratios), "highest": max(ratios)}
        assert found["images_per_second"] == pytest.approx(4 / median(seconds))
        assert 0 < found["memory_peak_bytes"] < 2e9
        assert found["loss"][2] < found["loss"][0]  # it learns
    ours, plain, other = record["competitors"].values()
    assert ours["seconds"] == plain["ours_seconds"] + other["ours_seconds"]
    assert ours["loss"][:3] == other["loss"]  # the same code: the same numbers


def test_seconds_are_those_of_one_step():
    answers, beside = (
        [{"seconds": value, "memory_peak_bytes": 1, "settings": {}} for value in pair]
        for pair in ((4.0, 6.0), (2.0, 3.0))
    )
    found = bench.summary(step_part("tiny", **TINY), answers, beside)
    assert (found["seconds"], found["ours_seconds"]) == ([2.0, 3.0], [1.0, 1.5])
    assert found["images_per_second"] == 4 / 2.5


def test_two_sides_take_turns_and_the_other_one_begins_every_second_turn(monkeypatch, light):
    order = []
    go = Worker.go
    monkeypatch.setattr(Worker, "go", lambda worker: (order.append(worker.side.name), go(worker))[1])
    part = Part("tiny", {}, [replace(light, name="a"), replace(light, name="b")], 2)
    answers = measure_pair(part, part.sides[1], 3)
    assert order == ["a", "b"] * 2 + ["a", "b", "b", "a", "a", "b"]
    assert [len(each) for each in answers] == [3, 3] and answers[1][0]["loss"] == 3


def test_a_side_that_ends_is_named_with_the_reason(light):
    for side, reason in (
        (replace(light, name="broken", task="light:None"), "AttributeError: .*'None'"),
        (
            replace(light, name="missing", task="no_such_module:Step"),
            "ModuleNotFoundError: .*; `source setup_env.sh dev`",
        ),
    ):
        with Worker(side) as worker, pytest.raises(UserError, match=f"^{side.name}: its process ended: {reason}"):
            worker.go()
    with Worker(light) as worker:
        worker.go()
        os.kill(worker._process.pid, signal.SIGKILL)
        with pytest.raises(UserError, match=r"^light: its process ended: killed, perhaps for want of memory"):
            worker.go()


def test_another_clone_is_measured_by_its_own_code(tmp_path, light):
    """Of an older clone, whose step is in reproduce/bench_ours.py, and of one whose step is in reproduce/bench.py."""
    ours = replace(light, task="reproduce.bench:Task", folder=ROOT)
    (tmp_path / "reproduce").mkdir()
    (tmp_path / "reproduce" / "__init__.py").touch()
    with pytest.raises(UserError, match=r"^--against .*: no clone of this project"):
        bench.against(ours, tmp_path)
    for module in ("bench", "bench_ours"):
        code = LIGHT.replace("self.options = options", f"self.options = {{'module': '{module}'}}")
        (tmp_path / "reproduce" / f"{module}.py").write_text(code)
        with Worker(bench.against(ours, tmp_path)) as worker:
            assert worker.go()["module"] == module


@pytest.mark.slow
def test_every_side_of_every_part_runs_and_a_few_repetitions_write_nothing(monkeypatch, tmp_path, capsys):
    parts = [
        step_part("step_b16", **TINY),
        input_part(16, 4, 1),
        bench.evaluation_part("ViT-Ti_16", 16, 6, 4),
        bench.start_part(),
    ]
    monkeypatch.setattr(bench, "PARTS", {part.name: lambda part=part: part for part in parts})
    monkeypatch.setattr(bench, "FOLDER", tmp_path / "bench")
    bench.main(["--repeat", "5"])
    for part in parts:
        found = json.loads((tmp_path / "bench" / f"{part.name}.json").read_text())
        assert list(found["competitors"]) == [side.name for side in part.sides]
        if part.name == "input":
            assert found["competitors"]["ours"]["settings"]["OMP_NUM_THREADS"] == "1"
        if part.name == "start":
            ours = found["competitors"]["ours"]
            assert all(0 < a < b for a, b in zip(ours["first_step"], ours["seconds"], strict=True))
    shutil.rmtree(tmp_path / "bench")
    bench.main(["--repeat", "1", "--part", "input"])
    assert not (tmp_path / "bench").exists() and "nothing written" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--part", "step_b61"], r"argument --part: invalid choice: 'step_b61' \(choose from '?step_b16"),
        (["--repeat", "0"], "^--repeat 0: must be at least 1$"),
        (["--repeat", "many"], "invalid int value"),
        (["--against", "/no/such/folder"], "^--against /no/such/folder: no clone of this project"),
        (["--part", "input", "--competitor", "pytorch"], "^--competitor pytorch: not in input; known: paddle_vision$"),
        (["--prat", "input"], "unknown: --prat input; did you mean --part"),
    ],
)
def test_bad_options_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        bench.main(arguments)


def test_every_part_and_side_has_a_name_for_the_table():
    """reproduce.report leaves out what logs/bench/names.csv does not name."""
    parts = [make() for make in bench.PARTS.values()]
    sides = {side.name for part in parts for side in part.sides} - {"ours"} | {"against"}
    shown = {line.split(",")[0] for line in (ROOT / "logs" / "bench" / "names.csv").read_text().splitlines()}
    assert {*bench.PARTS, *sides} <= shown
