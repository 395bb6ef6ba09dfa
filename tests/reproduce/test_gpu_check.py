"""The check of a GPU: it passes on a CPU, it catches a device that computes wrong, and its GPU part runs emulated."""

import dataclasses
import json
import sys

import numpy as np
import paddle
import pytest
from conftest import assert_user_error

from common.errors import UserError
from reproduce import cli, gpu_check
from reproduce.plan import Gpu

CARD = Gpu("Emulated", 16, peak_16=100, peak_32=20, fused=False)


def checks_in(folder) -> dict:
    (path,) = folder.glob("*.json")
    return {check["name"]: check for check in json.loads(path.read_text())["checks"]}


@pytest.mark.slow
def test_a_cpu_passes_and_what_needs_a_gpu_is_skipped_by_name(command, tmp_path):
    done = command("reproduce.gpu_check", "--device", "cpu", "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    states = {name: check["passed"] for name, check in checks_in(tmp_path).items()}
    assert states == {
        "fp32 against float64": True,
        "16 bits against fp32": None,
        "20 updates in fp32": True,
        "20 updates in 16 bits": None,
        "2 processes as one": True,
        "a killed run continues": True,
    }
    assert "skipped  16 bits against fp32: needs a GPU of compute capability 7.0\n" in done.stdout
    assert f"written  {tmp_path}/cpu-" in done.stdout and "please attach it" in done.stdout


@pytest.mark.skipif(cli.has_gpu(), reason="there is one")
def test_without_a_gpu_nothing_passes(command, tmp_path):
    assert_user_error(command("reproduce.gpu_check", "--out", tmp_path), "--device gpu: ", "see docs/cluster.md")
    assert not list(tmp_path.iterdir())


def check_comparison(monkeypatch, folder, disturb):
    """The command, of which only the comparison is left, on a device whose fp32 results go through `disturb`."""
    for part in ("time_updates", "several_processes", "killed_and_continued"):
        monkeypatch.setattr(gpu_check, part, lambda gpu: ())
    monkeypatch.setattr("sys.argv", ["gpu_check", "--device", "cpu", "--out", str(folder)])
    right = gpu_check.loss_and_gradients

    def computed(gpu, precision, device):
        found = right(gpu, precision, device)
        return disturb(*found) if precision == "fp32" else found

    monkeypatch.setattr(gpu_check, "loss_and_gradients", computed)
    gpu_check.main()


def test_a_device_that_computes_right(monkeypatch, tmp_path):
    check_comparison(monkeypatch, tmp_path, lambda loss, gradients: (loss, gradients))
    assert checks_in(tmp_path)["fp32 against float64"]["passed"]


@pytest.mark.parametrize(
    "disturb",
    [
        pytest.param(lambda loss, gradients: (loss * 1.001, gradients), id="loss"),
        pytest.param(lambda loss, gradients: (loss, gradients * 1.01), id="gradients"),
        pytest.param(lambda loss, gradients: (loss, np.where(gradients < 0, 0, gradients)), id="half of the gradients"),
        pytest.param(lambda loss, gradients: (float("nan"), gradients), id="nan"),
    ],
)
def test_a_device_that_computes_wrong_is_caught(monkeypatch, tmp_path, disturb):
    """UserError is exit code 2 and one line: see cli.run_command."""
    with pytest.raises(UserError, match=r"1 of 2 checks failed \(fp32 against float64\); see docs/cluster.md"):
        check_comparison(monkeypatch, tmp_path, disturb)
    assert checks_in(tmp_path)["fp32 against float64"]["passed"] is False


def test_an_error_in_a_part_is_a_failed_check_and_on_record(monkeypatch, tmp_path):
    def broken(gpu):
        yield gpu_check.Check("first", True, "")
        raise RuntimeError("many lines\nNCCL is not there")

    broken.__name__ = "several_processes"
    for part in ("compare_precisions", "time_updates", "killed_and_continued"):
        monkeypatch.setattr(gpu_check, part, lambda gpu: ())
    monkeypatch.setattr(gpu_check, "several_processes", broken)
    monkeypatch.setattr("sys.argv", ["gpu_check", "--device", "cpu", "--out", str(tmp_path)])
    with pytest.raises(UserError, match=r"1 of 2 checks failed \(several processes\)"):
        gpu_check.main()
    assert checks_in(tmp_path)["several processes"]["found"] == "RuntimeError: NCCL is not there"


def test_all_numbers_count_in_the_comparison():
    """The gradients of every parameter, of a network in which each one matters."""
    loss, gradients = gpu_check.loss_and_gradients(None, "fp32", "cpu")
    parameters = gpu_check.build(gpu_check._recipe(None, "fp32").network(100)).parameters()
    assert gradients.size == sum(parameter.size for parameter in parameters) and np.isfinite(loss)
    assert np.count_nonzero(gradients) > 0.9 * gradients.size


# ---- whole runs, with stand-ins; the slow test above has real ones


def runs_that_give(monkeypatch, *weights):
    """Let the runs of digits end with these weights, one after the other; gives a list of how they were started."""
    started, left = [], list(weights)

    def weights_of_run(*more, **how):
        started.append((*more, how))
        return {"w": np.zeros(3), "b": np.array([left.pop(0)])}

    monkeypatch.setattr(gpu_check, "weights_of_run", weights_of_run)
    return started


@pytest.mark.parametrize(("difference", "passed"), [(9e-4, True), (1.1e-3, False), (np.nan, False)])
def test_two_processes_have_to_end_as_one(monkeypatch, difference, passed):
    started = runs_that_give(monkeypatch, 0.0, difference)
    (check,) = gpu_check.several_processes(None)
    assert (check.name, check.passed) == ("2 processes as one", passed)
    assert started == [("--dropout", "0", {"processes": 1}), ("--dropout", "0", {"processes": 2})]


@pytest.mark.parametrize(("difference", "passed"), [(0.0, True), (1e-9, False)])
def test_a_killed_run_has_to_end_to_the_bit_on_a_cpu(monkeypatch, difference, passed):
    started = runs_that_give(monkeypatch, 1.0, 1.0 + difference)
    (check,) = gpu_check.killed_and_continued(None)
    assert check.passed is passed and f"differ by {difference:.1e} at most (allowed 0)" in check.found
    assert started == [({"kill_first": False},), ({"kill_first": True},)]


def program(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_run_is_killed_once_it_has_saved(tmp_path):
    gpu_check.kill_when_saved(
        program(f"import os, time; os.mkdir({str(tmp_path / 'step_4.pdstate')!r}); time.sleep(60)"), tmp_path
    )


def test_a_run_that_cannot_be_killed_does_not_pass(tmp_path):
    with pytest.raises(UserError, match="ended before it could be killed"):
        gpu_check.kill_when_saved(program("pass"), tmp_path)


def test_a_run_that_fails_is_shown_with_its_last_words():
    with pytest.raises(UserError, match=r"a run of digits with 1 process\(es\) failed: error: --num_steps"):
        gpu_check.weights_of_run("--num_steps", "-1")


# ---- an emulated card


@pytest.fixture
def emulated(monkeypatch):
    """The small network where a GPU would take the headline's, and Paddle's questions to the card answered.

    On a CPU Paddle ignores auto_cast, with a warning: bf16 stays fp32.
    """
    small = gpu_check._recipe
    monkeypatch.setattr(gpu_check, "_recipe", lambda gpu, precision: small(None, precision))
    for name, answer in {"empty_cache": None, "reset_max_memory_reserved": None, "max_memory_reserved": 2**30}.items():
        monkeypatch.setattr(paddle.device.cuda, name, lambda answer=answer: answer)
    monkeypatch.setattr(paddle.device.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(gpu_check, "_TIMED", 2)
    monkeypatch.setattr(gpu_check, "_WARM_UP", 1)


@pytest.mark.filterwarnings("ignore:amp_guard can only be enabled on CUDAPlace")
def test_what_a_gpu_does_runs_emulated_on_a_cpu(emulated):
    compared = {check.name: check for check in gpu_check.compare_precisions(CARD)}
    assert compared["fp32 against float64"].passed and compared["bf16 against fp32"].passed
    assert compared["fused against plain attention"].passed is None
    for check in gpu_check.time_updates(CARD):
        assert check.passed and "% of the peak, 1.0 GiB (estimate 0.0 of 16), the headline takes" in check.found
    assert list(gpu_check.several_processes(CARD)) == [("2 processes as one", None, "needs a second GPU")]


@pytest.mark.filterwarnings("ignore:.* can only be enabled on CUDAPlace")
def test_a_card_without_bf16_is_checked_in_fp16(emulated):
    old = dataclasses.replace(CARD, bf16=False)
    checks = {check.name: check.passed for check in [*gpu_check.compare_precisions(old), *gpu_check.time_updates(old)]}
    assert checks == {
        "fp32 against float64": True,
        "fp16 against fp32": True,
        "fused against plain attention": None,
        "2 updates in fp32": True,
        "2 updates in fp16": True,
    }
