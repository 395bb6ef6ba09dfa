"""The benchmark: competitors run in turns, in processes under the settings they are said to have."""

import json
import os
import shutil
import signal
import time
from pathlib import Path
from statistics import median

import pytest
from conftest import assert_user_error

from common.errors import UserError
from models import model_config
from reproduce import bench, bench_parts, bench_race
from reproduce.bench_parts import PARTS, StepSize, published_flops, step_part
from reproduce.bench_race import Competitor, Measured, Worker, groups, race
from reproduce.report_speed import read_bench
from reproduce.report_speed_text import SPEED_TEXT

TINY = StepSize("digits", 8, 4, steps=2, classes=10, splits=(2,))
PILLOW = Competitor(
    "pillow", "bench_input:Pillow", {"image_size": 8, "batch_size": 2, "batches": 1}, False,
    images={"count": 4, "size": 8, "classes": 4, "kind": "uint8"},
)  # fmt: skip
GB = 10**9


def named(name: str, **changes) -> Competitor:
    return Competitor(**{**vars(PILLOW), "name": name, **changes})


@pytest.fixture(scope="module")
def record() -> dict:
    """Ours and the plain Paddle program at a tiny size, each in its process."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("OMP_NUM_THREADS", "MKL_DEBUG_CPU_TYPE", "FLAGS_use_stride_kernel"):
            patch.setenv(name, "0" if name != "OMP_NUM_THREADS" else "3")  # of the caller: no competitor gets them
        patch.setattr(bench_race, "_PAUSE", 0)
        patch.setattr(bench_race, "PRODUCT_SIZE", 256)
        return bench.measure(step_part("step_tiny", TINY), 3, 8 * GB, ["seed_like"])


def test_the_plain_program_runs_under_paddles_own_settings(record):
    ours, seed = (record["competitors"][name]["settings"] for name in ("ours", "seed_like"))
    assert "MKL_DEBUG_CPU_TYPE" not in seed
    assert seed["OMP_NUM_THREADS"] == "1" and seed["FLAGS_use_stride_kernel"] is True
    assert ours["OMP_NUM_THREADS"] == str(len(os.sched_getaffinity(0))) and ours["FLAGS_use_stride_kernel"] is False


def test_figures_are_those_of_the_single_measurements(record):
    assert list(record["competitors"]) == ["ours", "seed_like"] and record["left_out"] == {}
    forward = sum(published_flops(model_config("ViT-digits", 10, 8)).values())
    for found in record["competitors"].values():
        seconds, ratios = (
            found["seconds"],
            [a / b for a, b in zip(found["seconds"], found["ours_seconds"], strict=True)],
        )
        assert found["n"] == len(seconds) == 3 and min(seconds) > 0
        assert (found["median"], found["lowest"], found["highest"]) == (median(seconds), min(seconds), max(seconds))
        assert found["ratio_to_ours"] == {"median": median(ratios), "lowest": min(ratios), "highest": max(ratios)}
        assert found["images_per_second"] == pytest.approx(4 / median(seconds))
        assert found["flops_per_second"] == pytest.approx(3 * 2 * 4 * forward / median(seconds))
        assert found["share_of_peak"] == pytest.approx(found["flops_per_second"] / record["peak"]["flops_per_second"])
        assert 0 < found["memory_before_bytes"] < found["memory_peak_bytes"] < 2 * GB
        assert len(found["loss"]) == 3 and found["loss"][2] < found["loss"][0]  # it learns
    assert record["competitors"]["ours"]["seconds"] == record["competitors"]["seed_like"]["ours_seconds"]
    products = [found["product_flops_per_second"] for found in record["competitors"].values()]
    assert record["peak"]["flops_per_second"] == max(products) and min(products) > 1e9


def test_seconds_are_those_of_one_step():
    part = step_part("tiny", TINY)
    found = bench._result(part, "ours", Measured([4.0, 6.0], [2.0, 3.0], [{}, {}]), peak=1.0)
    assert part.repetitions == 2 and (found["seconds"], found["ours_seconds"]) == ([2.0, 3.0], [1.0, 1.5])
    assert found["images_per_second"] == 4 / 2.5


def test_what_is_written_can_be_read_and_has_the_tables(record, tmp_path):
    bench.write(record | {"part": "step_ti16"}, tmp_path)
    assert json.loads(json.dumps(record)) | {"part": "step_ti16"} == read_bench(tmp_path)["step_ti16"]
    page = " ".join((tmp_path / "README.md").read_text().split())
    assert f"| {SPEED_TEXT['en']['names']['seed_like']} |" in page
    assert " ".join(record["machine"]["command"].split()) in page


def test_competitors_take_turns_and_those_that_do_not_fit_run_beside_the_first(monkeypatch):
    order = []
    ask = Worker.ask

    def noted(worker, command):
        order.append(worker.name if command == "go" else "-")
        return ask(worker, command)

    monkeypatch.setattr(Worker, "ask", noted)
    monkeypatch.setattr(bench_race, "_PAUSE", 0)
    said = []
    measured, left_out = race([named("a"), named("b"), named("c", task="no_such_module:Step")], 2, GB, said.append)
    assert left_out == {"c": "No module named 'no_such_module'"} and "setup_env.sh dev" in said[2]
    alone, together = [*"aa-", *"bb-"], [*"ab", *"ab", *"ba", *"--"]
    assert order == alone + together  # two to learn the memory, one to warm up, then who began comes last
    assert len(measured["a"].seconds) == len(measured["b"].seconds) == 2
    assert measured["b"].ours == measured["a"].seconds
    order.clear()
    half = int(2.1 * measured["a"].memory_peak)
    measured, _ = race([named("a"), named("b"), named("c")], 1, half, said.append)
    assert order[9:] == [*"abab--", *"acac--"]
    assert len(measured["a"].seconds) == 2 and len(measured["c"].seconds) == 1
    assert [measured["b"].ours[0], measured["c"].ours[0]] == measured["a"].seconds


def test_groups_never_take_more_than_there_is():
    use = {"ours": (3, 4), "a": (2, 5), "b": (1, 1), "c": (4, 6), "d": (1, 3)}
    for memory in (9, 10, 12, 20):
        found = groups(use, memory)
        assert all(group[0] == "ours" for group in found)
        assert [name for group in found for name in group[1:]] == ["a", "b", "c", "d"]
        for group in found:
            assert sum(use[name][0] for name in group) + max(use[name][1] - use[name][0] for name in group) <= memory
    assert len(groups(use, 14)) == 1 and len(groups(use, 13)) == 2
    with pytest.raises(UserError, match=r"^ours and c: 9.0 GB are needed and 8.0 may be used; close .* --memory$"):
        groups({name: (idle * GB, peak * GB) for name, (idle, peak) in use.items()}, 8 * GB)


def test_a_competitor_that_ends_is_named_with_the_reason():
    with pytest.raises(UserError, match=r"^broken: its process ended: TypeError: .*'batches'$"):
        Worker(named("broken", options={"image_size": 8, "batch_size": 2}))
    worker = Worker(named("killed"))
    os.kill(worker._process.pid, signal.SIGKILL)
    with pytest.raises(UserError, match=r"^killed: its process was killed, perhaps for want of memory; .*--memory"):
        worker.ask("go")
    with pytest.raises(UserError, match="first: No module named"):  # ours is needed
        race([named("first", task="no_such_module:Step"), named("b")], 1, GB, print)


@pytest.mark.slow
def test_who_waits_leaves_the_processor_alone(monkeypatch):
    for name in ("KMP_BLOCKTIME", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    (tuned,) = (c for c in step_part("tiny", TINY).competitors if c.name == "seed_like_tuned")
    worker = Worker(tuned)

    def ticks() -> int:
        fields = Path(f"/proc/{worker._process.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])  # of 10 ms

    worker.ask("go")
    worker.ask("product")
    time.sleep(0.4)
    before = ticks()
    time.sleep(0.4)
    assert ticks() - before <= 2
    worker.close()


@pytest.mark.slow
def test_every_competitor_of_every_part_runs(monkeypatch, tmp_path, capsys):
    parts = [step_part("step_b16", TINY), step_part("step_ti16", TINY), bench_parts.input_part(16, 4, 1),
             bench_parts.evaluation_part("ViT-Ti_16", 16, 6, 4), PARTS["start"]()]  # fmt: skip
    monkeypatch.setattr(bench, "PARTS", {part.name: lambda part=part: part for part in parts})
    monkeypatch.setattr(bench, "FOLDER", tmp_path / "bench")
    monkeypatch.setattr(bench_race, "PRODUCT_SIZE", 256)
    bench.main(["--repeat", "5", "--memory", "8"])
    records = read_bench(tmp_path / "bench")
    assert list(records) == [part.name for part in parts]
    for part in parts:
        found = records[part.name]
        assert list(found["competitors"]) + list(found["left_out"]) == [c.name for c in part.competitors]
        assert set(found["left_out"]) <= {"pytorch"}
    assert records["input"]["competitors"]["ours"]["settings"]["OMP_NUM_THREADS"] == "1"
    for found in records["start"]["competitors"].values():
        assert all(0 < first < whole for first, whole in zip(found["first_step"], found["seconds"], strict=True))
    shutil.rmtree(tmp_path / "bench")
    bench.main(["--repeat", "1", "--part", "input", "--memory", "8"])
    assert not (tmp_path / "bench").exists() and "nothing was written" in capsys.readouterr().out


# ---- the command line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--part", "step_b61"], r"^--part step_b61: no such part; did you mean step_b16"),
        (["--part", "all"], r"^--part all: no such part; known: evaluation, input, start, step_b16, step_ti16$"),
        (["--repeat", "0"], "^--repeat 0: must be at least 1$"),
        (["--repeat", "many"], "invalid int value"),
        (["--memory", "nan"], "^--memory nan: must be a number above 0$"),
        (["--memory", "inf"], "^--memory inf: must be a number above 0$"),
        (["--part", "input", "--competitor", "pytorch"], "^--competitor pytorch: not in input; known: ours, "),
        (["--prat", "input"], "unknown: --prat input; did you mean --part"),
    ],
)
def test_bad_options_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        bench.main(arguments)


def test_a_peer_that_was_asked_for_and_is_missing_is_an_error():
    part = bench_parts.Part("tiny", {}, [named("ours"), named("theirs", task="no_such_module:Step")], 2)
    with pytest.raises(UserError, match=r"^theirs: No module named 'no_such_module'; `source setup_env\.sh dev`"):
        bench.measure(part, 1, GB, ["theirs"])
    found = bench.measure(part, 1, GB)
    assert list(found["left_out"]) == ["theirs"] and list(found["competitors"]) == ["ours"] and found["peak"] is None


def test_an_error_is_one_line_and_exit_code_2(command):
    assert_user_error(command("reproduce.bench", "--repeat", "-3"), "--repeat -3: must be at least 1")
