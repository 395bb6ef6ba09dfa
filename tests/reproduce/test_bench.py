"""The benchmark: sides take turns, in processes under the settings that they are said to have."""

import json
import os
import shutil
import signal
from statistics import median

import pytest
from conftest import assert_user_error

from common.errors import UserError
from models import model_config
from reproduce import ROOT, bench
from reproduce.bench import Part, Side, Worker, input_part, measure, measure_pair, published_flops, step_part
from reproduce.recipes import RECIPES

TINY = {"recipe_name": "digits", "image_size": 8, "batch_size": 4, "steps": 2, "classes": 10}
PILLOW = Side("pillow", "bench_peers:Pillow", {"image_size": 8, "batch_size": 2, "batches": 1}, False,
              images={"count": 4, "size": 8, "classes": 4, "kind": "uint8"})  # fmt: skip
MISSING = {"task": "no_such_module:Step"}


def named(name: str, **changes) -> Side:
    return Side(**{**vars(PILLOW), "name": name, **changes})


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(bench, "_PAUSE", 0)
    monkeypatch.setattr(bench, "PRODUCT_SIZE", 256)


@pytest.fixture(scope="module")
def record() -> dict:
    """Ours, the plain Paddle program and a copy of this clone at a tiny size, each in its process."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("OMP_NUM_THREADS", "3"), ("MKL_DEBUG_CPU_TYPE", "0"), ("FLAGS_use_stride_kernel", "0")):
            patch.setenv(name, value)  # of the caller: no side gets them
        patch.setattr(bench, "_PAUSE", 0)
        patch.setattr(bench, "PRODUCT_SIZE", 256)
        part = step_part("step_tiny", **TINY)
        part.sides.append(bench.against(part.sides[0], ROOT))
        return measure(part, 3, ["port", "against"])


def test_the_port_runs_under_paddles_own_settings(record):
    ours, port = (record["competitors"][name]["settings"] for name in ("ours", "port"))
    assert "MKL_DEBUG_CPU_TYPE" not in port
    assert port["OMP_NUM_THREADS"] == "1" and port["FLAGS_use_stride_kernel"] is True
    assert ours["OMP_NUM_THREADS"] == str(len(os.sched_getaffinity(0))) and ours["FLAGS_use_stride_kernel"] is False
    assert record["competitors"]["against"]["settings"] == ours


def test_figures_are_those_of_the_single_measurements(record):
    assert list(record["competitors"]) == ["ours", "port", "against"] and record["left_out"] == {}
    forward = published_flops(model_config("ViT-digits", 10, 8))
    for name, found in record["competitors"].items():
        seconds = found["seconds"]
        ratios = [own / other for own, other in zip(seconds, found["ours_seconds"], strict=True)]
        assert found["n"] == len(seconds) == (6 if name == "ours" else 3) and min(seconds) > 0
        assert (found["median"], found["lowest"], found["highest"]) == (median(seconds), min(seconds), max(seconds))
        assert found["ratio_to_ours"] == {"median": median(ratios), "lowest": min(ratios), "highest": max(ratios)}
        assert found["images_per_second"] == pytest.approx(4 / median(seconds))
        assert found["flops_per_second"] == pytest.approx(3 * 2 * 4 * forward / median(seconds))
        assert found["share_of_peak"] == pytest.approx(found["flops_per_second"] / record["peak"]["flops_per_second"])
        assert 0 < found["memory_before_bytes"] < found["memory_peak_bytes"] < 2e9
        assert found["loss"][2] < found["loss"][0]  # it learns
    ours, port, other = record["competitors"].values()
    assert ours["seconds"] == port["ours_seconds"] + other["ours_seconds"]
    assert ours["loss"][:3] == other["loss"]  # the same code: the same numbers
    products = [found["product_flops_per_second"] for found in (ours, port, other)]
    assert record["peak"]["flops_per_second"] == max(products)


def test_seconds_are_those_of_one_step():
    memory = dict.fromkeys(("memory_before_bytes", "memory_idle_bytes", "memory_peak_bytes"), 1)
    found = {"seconds": [4.0, 6.0], "more": [{}, {}], "product": 1.0, "settings": {}, **memory}
    result = bench._result(step_part("tiny", **TINY), "ours", found, [2.0, 3.0], peak=1.0)
    assert (result["seconds"], result["ours_seconds"]) == ([2.0, 3.0], [1.0, 1.5])
    assert result["images_per_second"] == 4 / 2.5


def test_two_sides_take_turns_and_the_other_one_begins_every_second_turn(monkeypatch):
    order = []
    ask = Worker.ask
    monkeypatch.setattr(
        Worker, "ask", lambda worker, what: (order.append(worker.side.name + what), ask(worker, what))[1]
    )
    found = measure_pair(named("a"), named("b"), 3, print)
    assert order == ["ago", "bgo"] * 2 + ["ago", "bgo", "bgo", "ago", "ago", "bgo", "afacts", "bfacts"]
    assert [len(each["seconds"]) for each in found] == [3, 3]


def test_a_side_that_ends_is_named_with_the_reason():
    with pytest.raises(UserError, match=r"^broken: its process ended: TypeError: .*'batches'$"):
        Worker(named("broken", options={"image_size": 8, "batch_size": 2}))
    worker = Worker(named("killed"))
    os.kill(worker._process.pid, signal.SIGKILL)
    with pytest.raises(UserError, match=r"^killed: its process was killed, perhaps for want of memory"):
        worker.ask("go")


def test_a_peer_that_is_missing_is_left_out_unless_it_was_asked_for():
    part = Part("tiny", {}, [named("ours"), named("here"), named("theirs", **MISSING)], 2)
    found = measure(part, 1)
    assert list(found["left_out"]) == ["theirs"] and list(found["competitors"]) == ["ours", "here"]
    assert found["peak"] is None
    with pytest.raises(UserError, match=r"^theirs: No module named 'no_such_module'; `source setup_env\.sh dev`"):
        measure(part, 1, ["theirs"])
    with pytest.raises(UserError, match=r"^tiny: nothing to compare with here; `source setup_env\.sh dev`"):
        measure(Part("tiny", {}, part.sides[::2], 2), 1)


def test_another_clone_is_measured_by_its_own_code(tmp_path):
    """Of an older clone, whose step is in reproduce/bench_ours.py, and of one whose step is in reproduce/bench.py."""
    ours = step_part("tiny", **TINY).sides[0]
    (tmp_path / "reproduce").mkdir()
    (tmp_path / "reproduce" / "__init__.py").touch()
    with pytest.raises(UserError, match=r"^--against .*: no clone of this project"):
        bench.against(ours, tmp_path)
    for module in ("bench", "bench_ours"):
        loss = len(module)
        code = (
            f"class Step:\n  def __init__(self, *images, **options): pass\n  __call__ = lambda s: {{'loss': {loss}}}\n"
        )
        (tmp_path / "reproduce" / f"{module}.py").write_text(code)
        worker = Worker(bench.against(ours, tmp_path))
        assert worker.ask("go")["loss"] == loss
        worker.close()


@pytest.mark.slow
def test_every_side_of_every_part_runs_and_a_few_repetitions_write_nothing(monkeypatch, tmp_path, capsys):
    parts = [step_part("step_b16", **TINY), input_part(16, 4, 1), bench.evaluation_part("ViT-Ti_16", 16, 6, 4),
             bench.start_part()]  # fmt: skip
    monkeypatch.setattr(bench, "PARTS", {part.name: lambda part=part: part for part in parts})
    monkeypatch.setattr(bench, "FOLDER", tmp_path / "bench")
    bench.main(["--repeat", "5"])
    for part in parts:
        found = json.loads((tmp_path / "bench" / f"{part.name}.json").read_text())
        assert sorted([*found["competitors"], *found["left_out"]]) == sorted(side.name for side in part.sides)
        assert set(found["left_out"]) <= {"pytorch"}
        if part.name == "input":
            assert found["competitors"]["ours"]["settings"]["OMP_NUM_THREADS"] == "1"
        if part.name == "start":
            for each in found["competitors"].values():
                assert all(0 < a < b for a, b in zip(each["first_step"], each["seconds"], strict=True))
    shutil.rmtree(tmp_path / "bench")
    bench.main(["--repeat", "1", "--part", "input"])
    assert not (tmp_path / "bench").exists() and "nothing written" in capsys.readouterr().out


def test_operations_are_those_published_for_the_networks():
    """Multiply-adds in 1e9 as timm's model cards give them: ViT-B/16 at 224 px 17.6, at 384 px 55.5, Ti/16 1.3."""
    for recipe, size, published in (("cifar100_vit_b16_rdrop", 224, 17.6), ("cifar100_vit_b16_rdrop", 384, 55.5),
                                    ("cifar100_vit_ti16", 224, 1.3)):  # fmt: skip
        found = published_flops(model_config(RECIPES[recipe].model, 1000, size))
        assert found / 2e9 == pytest.approx(published, abs=0.06)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--part", "step_b61"], r"^--part step_b61: no such part; did you mean step_b16"),
        (["--part", "all"], r"^--part all: no such part; known: evaluation, input, start, step_b16, step_ti16$"),
        (["--repeat", "0"], "^--repeat 0: must be at least 1$"),
        (["--repeat", "many"], "invalid int value"),
        (["--against", "/no/such/folder"], "^--against /no/such/folder: no clone of this project"),
        (["--part", "input", "--competitor", "pytorch"], "^--competitor pytorch: not in input; known: ours, "),
        (["--prat", "input"], "unknown: --prat input; did you mean --part"),
    ],
)
def test_bad_options_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        bench.main(arguments)


def test_an_error_is_one_line_and_exit_code_2(command):
    assert_user_error(command("reproduce.bench", "--repeat", "-3"), "--repeat -3: must be at least 1")
