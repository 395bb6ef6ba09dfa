"""A run that is asked to stop saves, says how to go on, and loses nothing."""

import json
import signal
import time

import pytest
from running import DIGITS, Run

from reproduce.checkpoint import load_latest


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    run = Run(tmp_path_factory.mktemp("unbroken"), *DIGITS)
    assert run.finish() == 0, run.stderr
    return run


def assert_same(run, unbroken):
    """To the bit: weights, every record, and the result."""
    assert run.weights("last") == unbroken.weights("last") and run.weights("best") == unbroken.weights("best")
    assert run.records() == unbroken.records() and run.result() == unbroken.result()


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_signals_save_at_the_next_step_and_the_run_continues(tmp_path, unbroken, processes):
    run = Run(tmp_path, *DIGITS, processes=processes)
    step = 0
    for number, code in ((signal.SIGHUP, 129), (signal.SIGINT, 130), (signal.SIGUSR1, 138)):
        process = run.start()
        run.await_text(process, f"continues after step {step}" if step else "weights:")
        run.await_step(process, step + 5)
        process.send_signal(number)
        assert run.finish(process) == code, run.stderr
        last = run.stderr.strip().splitlines()[-1]
        step = load_latest(run.saved).progress.step
        assert f"stopped by {number.name} after step {step}; the last checkpoint is {run.states()[-1]}" in last
        assert last.endswith(". The same command continues")
    assert run.finish() == 0
    if processes == 1:
        assert_same(run, unbroken)
        assert len(json.loads((run.logs / "run.json").read_text())["earlier_starts"]) == 3


def test_an_evaluation_that_has_begun_is_finished(tmp_path, unbroken):
    """One image at a time makes the evaluation of step 20 long enough to be hit, as well as the one at the end."""
    run = Run(tmp_path, *DIGITS, "--eval_batch_size", 1)
    process = run.start()
    run.await_step(process, 15)
    run.await_text(process, "validation:")
    process.send_signal(signal.SIGTERM)
    assert run.finish(process) == 143
    progress = load_latest(run.saved).progress
    assert progress.step % 20 == 0 and "validation/accuracy" in progress.rows[-1]

    process = run.start()
    run.await_step(process, 60)
    run.await_text(process, "test:")
    process.send_signal(signal.SIGTERM)
    assert run.finish(process) == 0 and "SIGTERM received" in run.stderr  # nothing was left to stop
    # one at a time the results differ in the last digits, so only what is counted is compared
    assert run.result()["last"]["test"]["correct"] == unbroken.result()["last"]["test"]["correct"]
    steps = [row["step"] for row in run.records() if "validation/accuracy" in row]
    assert steps == [20, 40, 60]


def test_one_run_is_trained_once(tmp_path):
    run = Run(tmp_path, *DIGITS, "--num_steps", 2000)
    first = run.start()
    run.await_step(first, 5)
    second = Run(tmp_path, *DIGITS, "--num_steps", 2000)
    second.streams = tmp_path / "second"
    for more in ((), ("--restart",)):
        assert second.finish(second.start(*more)) == 2
        assert f"the run run is being trained already, by process {first.pid} on " in second.stderr
    assert first.poll() is None
    first.send_signal(signal.SIGKILL)  # the lock goes with its holder, though the file stays
    first.wait()
    process = run.start()
    run.await_step(process, load_latest(run.saved).progress.step + 5)
    process.terminate()
    assert run.finish(process) == 143
    assert not list(tmp_path.glob("checkpoints/.*.lock"))


def test_the_second_ctrl_c_ends_at_once(tmp_path):
    run = Run(tmp_path, "digits", "--batch_size", 1000, "--micro_batch_size", 1, "--num_steps", 2)  # long steps
    process = run.start()
    run.await_text(process, "0/2")
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    run.await_text(process, "SIGINT received: stops after this step and saves")
    process.send_signal(signal.SIGINT)
    assert run.finish(process) == 130 and "stopped by Ctrl-C" in run.stderr
    assert not run.states()
