"""The benchmark: sides take turns, in processes under the settings that they are said to have."""

import json
from statistics import median

import pytest

from common.errors import UserError
from reproduce import ROOT, bench
from reproduce.bench import Part, Side, chosen_part, measure, measure_pair, started, step_part

TINY = {"recipe_name": "digits", "image_size": 8, "batch_size": 4, "at_once": 2, "classes": 10}
IMAGES = {"count": 1, "size": 1, "classes": 1, "kind": "uint8"}
LIGHT = """
import os
class Task:
    def __init__(self, images, labels, *, name): self.name = name
    def __call__(self):
        with open("order.txt", "a") as file:
            file.write(self.name)
        return 3
class Settings(Task):
    def __call__(self): return [name for name in os.environ if name in ("OMP_NUM_THREADS", "FLAGS_use_stride_kernel")]
class Killed(Task):
    def __call__(self): os.kill(os.getpid(), 9)
"""


@pytest.fixture
def light(tmp_path) -> Side:
    """A side that only notes its name in a file, and does not load Paddle."""
    (tmp_path / "light.py").write_text(LIGHT)
    return Side("light", "light:Task", {"name": "a"}, folder=tmp_path)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(bench, "_PAUSE", 0)


@pytest.fixture(scope="module")
def record() -> dict:
    """Ours, plain layers and a copy of this clone at a tiny size, each in its process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "_PAUSE", 0)
        patch.setitem(bench.PARTS, "tiny", step_part("tiny", **TINY))
        return measure(chosen_part("tiny", ["plain", "against"], ROOT), 3)


def test_a_side_settles_the_processor_for_itself(light, tmp_path, monkeypatch):
    for name in bench.PROCESSOR_SETTINGS:
        monkeypatch.setenv(name, "3")  # of the caller: no side gets them
    with started(light._replace(task="light:Settings"), IMAGES) as go:
        assert go()["result"] == []


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
        assert found["results"][2] < found["results"][0]  # it learns
    ours, plain, other = record["competitors"].values()
    assert ours["seconds"] == plain["ours_seconds"] + other["ours_seconds"]
    assert ours["results"][:3] == other["results"]  # the same code: the same numbers


def test_seconds_are_those_of_one_step():
    answers, beside = (
        [{"seconds": value, "memory_peak_bytes": 1, "result": 0.0} for value in pair]
        for pair in ((4.0, 6.0), (2.0, 3.0))
    )
    found = bench.summary(step_part("tiny", **TINY), answers, beside)
    assert (found["seconds"], found["ours_seconds"]) == ([2.0, 3.0], [1.0, 1.5])
    assert found["images_per_second"] == 4 / 2.5


def test_two_sides_take_turns_and_the_other_one_begins_every_second_turn(light, tmp_path):
    other = light._replace(name="other", options={"name": "b"})
    answers = measure_pair(Part("tiny", IMAGES, [light, other]), other, 3)
    assert (tmp_path / "order.txt").read_text() == "abab" + "ab" + "ba" + "ab"
    assert [len(each) for each in answers] == [3, 3] and answers[1][0]["result"] == 3


@pytest.mark.parametrize(
    ("task", "code", "reason"),
    [
        ("light:None", 1, "AttributeError: module 'light' has no attribute 'None'\n"),
        ("no_such_module:Step", 1, "No module named 'no_such_module'; `source setup_env.sh dev` installs PyTorch"),
        ("light:Killed", -9, ""),
    ],
)
def test_a_side_that_ends_is_named_with_the_reason(light, capfd, task, code, reason):
    with started(light._replace(task=task), IMAGES) as go:
        for _ in range(2):  # also when its end is known
            with pytest.raises(UserError, match=f"^light: its process ended with code {code}; see above"):
                go()
    shown = capfd.readouterr().err
    assert reason in shown and ("Traceback" in shown) == (task == "light:None")  # a defect's alone


def test_another_clone_is_measured_by_its_own_code(tmp_path):
    (tmp_path / "reproduce").mkdir()
    (tmp_path / "reproduce" / "__init__.py").touch()
    code = "class Step:\n def __init__(self, *images, **options): pass\n def __call__(self): return 'theirs'"
    (tmp_path / "reproduce" / "bench.py").write_text(code)
    _, theirs = chosen_part("step_b16", ["against"], tmp_path).sides
    with started(theirs, IMAGES) as go:
        assert go()["result"] == "theirs"


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
        (["--against", "/no/such/folder"], "^--against /no/such/folder: has no reproduce/bench.py; give the folder"),
        (["--part", "evaluation", "--competitor", "plain"], "^--competitor plain: evaluation has pytorch$"),
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
