"""The benchmark: sides take turns, in processes under the settings that they are said to have."""

import json
from statistics import median

import pytest

from common.errors import UserError
from reproduce import ROOT, bench
from reproduce.bench import Part, Side, measure, step_part, turn

TINY = {"recipe_name": "digits", "image_size": 8, "batch_size": 4, "at_once": 2, "classes": 10}
IMAGES = {"count": 1, "size": 1, "classes": 1, "kind": "uint8"}
LIGHT = """
import os, time
class Task:
    def __init__(self, images, labels, *, name): self.name = name
    def __call__(self):
        with open("order.txt", "a") as file:
            file.write(self.name)
        return 3
class Settings(Task):
    def __call__(self): return [name for name in os.environ if name in ("OMP_NUM_THREADS", "FLAGS_use_stride_kernel")]
class Clock(Task):
    now = 0.0
    def __call__(self):
        self.now += 0.5
        time.perf_counter = lambda: self.now
        return 3
class Killed(Task):
    def __call__(self): os.kill(os.getpid(), 9)
"""


@pytest.fixture
def light(tmp_path) -> Side:
    """A side that only notes its name in a file, and does not load Paddle."""
    (tmp_path / "light.py").write_text(LIGHT)
    return Side("light", "light:Task", {"name": "a"}, tmp_path)


@pytest.fixture(scope="module")
def record() -> dict:
    """Ours, plain layers and a copy of this clone at a tiny size, each in its process."""
    part = step_part("tiny", **TINY)
    ours, *_, plain = part.sides
    return measure(part._replace(sides=[ours, plain, ours._replace(name="against")]), 3)


def test_a_side_settles_the_processor_for_itself(light, tmp_path, monkeypatch):
    for name in bench.PROCESSOR_SETTINGS:
        monkeypatch.setenv(name, "3")  # of the caller: no side gets them
    assert turn(Part("tiny", IMAGES, []), light._replace(task="light:Settings"))["results"] == [[], [], []]


def test_figures_are_those_of_the_single_measurements(record):
    assert list(record["competitors"]) == ["ours", "plain", "against"]
    for name, found in record["competitors"].items():
        seconds = found["seconds"]
        ratios = [own / other for own, other in zip(seconds, found["ours_seconds"], strict=True)]
        assert found["n"] == len(seconds) == (6 if name == "ours" else 3) and min(seconds) > 0
        assert (found["median"], found["lowest"], found["highest"]) == (median(seconds), min(seconds), max(seconds))
        assert found["ratio_to_ours"] == {"median": median(ratios), "lowest": min(ratios), "highest": max(ratios)}
        assert found["images_per_second"] == pytest.approx(4 / median(seconds))
        assert 0 < found["memory_peak_bytes"] < 2e9
        for losses in found["results"]:
            assert len(losses) == 4 and losses[3] < losses[0]  # two steps to warm up, two at once; it learns
    ours, plain, other = record["competitors"].values()
    assert ours["seconds"] == plain["ours_seconds"] + other["ours_seconds"]
    assert ours["results"][:3] == other["results"]  # the same code: the same numbers


def test_seconds_are_the_mean_of_the_calls_after_the_warm_up(light):
    """By a clock that goes on by half a second in each call."""
    for at_once in (1, 4):
        found = turn(Part("tiny", IMAGES, [], at_once), light._replace(task="light:Clock"))
        assert found["seconds"] == 0.5 and len(found["results"]) == 2 + at_once


def test_two_sides_take_turns_and_the_other_one_begins_every_second_turn(light, tmp_path):
    other = light._replace(name="other", options={"name": "b"})
    record = measure(Part("tiny", IMAGES, [light, other]), 3)
    assert (tmp_path / "order.txt").read_text() == "aaabbb" + "bbbaaa" + "aaabbb"
    assert record["competitors"]["other"]["results"] == 3 * [[3, 3, 3]]


@pytest.mark.parametrize(
    ("task", "code", "reason"),
    [
        ("light:None", 1, "AttributeError: module 'light' has no attribute 'None'\n"),
        ("no_such_module:Step", 1, "No module named 'no_such_module'; `source setup_env.sh dev` installs PyTorch"),
        ("light:Killed", -9, ""),
    ],
)
def test_a_side_that_fails_is_named_with_the_reason(light, capfd, task, code, reason):
    with pytest.raises(UserError, match=f"^light: its process ended with code {code}; see above"):
        turn(Part("tiny", IMAGES, []), light._replace(task=task))
    shown = capfd.readouterr().err
    assert reason in shown and ("Traceback" in shown) == (task == "light:None")  # a defect's alone


def test_another_clone_is_measured_by_its_own_code(tmp_path, monkeypatch):
    (tmp_path / "tests" / "alignment").mkdir(parents=True)
    (tmp_path / "tests" / "alignment" / "bench_side.py").touch()
    (tmp_path / "reproduce").mkdir()
    (tmp_path / "reproduce" / "__init__.py").touch()
    code = "class Step:\n def __init__(self, *images, **options): pass\n def __call__(self): return 'theirs'"
    (tmp_path / "reproduce" / "bench.py").write_text(code)
    monkeypatch.setitem(bench.PARTS, "step_ti16", step_part("tiny", **TINY))
    arguments = ["--part", "step_ti16", "--repeat", "1", "--against", str(tmp_path), "--out", str(tmp_path)]
    bench.main(arguments)
    record = json.loads((tmp_path / "tiny.json").read_text())["competitors"]
    assert list(record) == ["ours", "against"] and record["against"]["results"] == [4 * ["theirs"]]


@pytest.mark.slow
def test_every_side_of_every_part_runs_and_nothing_is_written_unasked(monkeypatch, tmp_path, capsys):
    parts = [step_part("step_b16", **TINY), bench.evaluation_part("ViT-Ti_16", 16, 6, 4)]
    monkeypatch.setattr(bench, "PARTS", {part.name: part for part in parts})
    monkeypatch.chdir(tmp_path)
    bench.main(["--repeat", "1", "--part", "evaluation"])
    assert not list(tmp_path.iterdir()) and "nothing will be written" in capsys.readouterr().out
    bench.main(["--repeat", "1", "--out", "found"])
    for part in parts:
        found = json.loads((tmp_path / "found" / f"{part.name}.json").read_text())
        assert list(found["competitors"]) == [side.name for side in part.sides]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--part", "step_b61"], r"argument --part: invalid choice: 'step_b61' \(choose from '?step_b16"),
        (["--repeat", "0"], "^--repeat 0: must be at least 1$"),
        (["--against", "/no/such/folder"], "^--against /no/such/folder: no clone that can be measured; give one of"),
    ],
)
def test_bad_options_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        bench.main(arguments)


def test_every_part_and_side_has_a_name_for_the_table():
    """reproduce.report takes the names from logs/bench/names.csv."""
    sides = {side.name for part in bench.PARTS.values() for side in part.sides} - {"ours"} | {"against"}
    shown = {line.split(",")[0] for line in (ROOT / "logs" / "bench" / "names.csv").read_text().splitlines()}
    assert {*bench.PARTS, *sides} <= shown
