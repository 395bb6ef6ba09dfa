"""Full disks, damaged files, kills at any moment: nothing is lost, and the bytes at the end are the same."""

import contextlib
import json
import os
import pickle
import random
import signal
import subprocess
import time

import pytest
from running import DIGITS, Run, alive, options, workers

from models.weights import METADATA, read_weights
from reproduce.checkpoint import load_latest


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    run = Run(tmp_path_factory.mktemp("unbroken"), *DIGITS)
    assert run.finish() == 0, run.stderr
    return run


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 5 MB, room for five states of `digits`."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder, leave: int):
    """Take all room of a small disk but `leave` bytes."""
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    (folder / "filler").write_bytes(bytes(max(0, free - leave)))


def flip_a_bit(whole: bytes) -> bytes:
    return whole[:5000] + bytes([whole[5000] ^ 4]) + whole[5001:]


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda whole: whole[: len(whole) // 2], id="cut in half"),
        pytest.param(flip_a_bit, id="one bit flipped", marks=pytest.mark.slow),
        pytest.param(lambda whole: b"", id="empty", marks=pytest.mark.slow),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, unbroken, damage):
    run = Run(tmp_path, *DIGITS)
    process = run.start()
    run.await_step(process, 35)
    process.terminate()
    assert run.finish(process) == 143
    before, newest = run.states()
    newest.write_bytes(damage(newest.read_bytes()))
    assert run.finish() == 0
    assert f"warning: {newest} is damaged" in run.stderr
    assert f"continues after step {int(before.stem[5:])} of 60" in run.stdout
    assert run.weights() == unbroken.weights() and run.records() == unbroken.records()


def test_a_full_disk_ends_the_run_in_one_line_and_loses_nothing(small_disk, unbroken):
    run = Run(small_disk, *DIGITS)
    run.streams = small_disk.parent
    process = run.start()
    run.await_step(process, 10)
    process.send_signal(signal.SIGSTOP)
    kept = run.states()
    fill(small_disk, leave=2000)
    process.send_signal(signal.SIGCONT)
    assert run.finish(process) == 2 and "Traceback" not in run.stderr
    assert "No space left on device" in run.stderr.strip().splitlines()[-1]
    assert run.states()[-1] == kept[-1]
    (small_disk / "filler").unlink()
    assert run.finish() == 0 and "continues after step" in run.stdout
    assert run.weights() == unbroken.weights() and run.weights("best") == unbroken.weights("best")
    assert run.records() == unbroken.records() and run.result() == unbroken.result()


def test_best_weights_of_another_step_are_not_taken_for_those_on_record(tmp_path):
    """They may be of a step whose state was damaged; the run goes on from the one before."""
    run = Run(tmp_path, *DIGITS)
    process = run.start()
    run.await_step(process, 25)  # evaluated after 20
    process.kill()
    run.finish(process)
    best = run.saved / "best.pdparams"
    content = pickle.loads(best.read_bytes())
    content[METADATA] = json.dumps({**json.loads(content[METADATA]), "step": 7})
    best.write_bytes(pickle.dumps(content, protocol=4))
    assert run.finish() == 0, run.stderr
    assert "best.pdparams is not that of step 20, as the checkpoint says" in run.stdout
    assert read_weights(best).metadata["step"] == run.result()["best"]["step"] > 20


KILLS = 20


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("recipe", ["digits", "cifar100_vit_ti16"])
def test_kill_9_at_twenty_random_moments(tmp_path, request, recipe, processes):
    """Every second one while a file is being saved; with two processes any of them, or the one that started them.

    A run that reaches its end between two kills is compared with the unbroken one and started over.
    """
    arguments = options(num_steps=300, eval_every=50, save_every=10)
    if recipe != "digits":
        arguments = options(
            num_steps=40,
            warmup_steps=10,
            batch_size=16,
            eval_every=20,
            save_every=4,
            validation_per_class=2,
            data_dir=request.getfixturevalue("cifar100_folder"),
            pretrained=request.getfixturevalue("vit_ti16_file"),
        )
    unbroken = Run(tmp_path / "unbroken", recipe, *arguments, processes=processes)
    assert unbroken.finish() == 0, unbroken.stderr
    run = Run(tmp_path / "killed", recipe, *arguments, processes=processes)
    rng = random.Random(f"{recipe} {processes}")
    kills, over, which = 0, False, f"{recipe}, {processes} process(es)"
    while kills < KILLS or not over:
        for left in run.saved.glob(".*.partial"):  # of the kill before: the next one is to hit a save of its own
            left.unlink()
        process = run.start("--restart") if over and kills < KILLS else run.start()
        over = False
        if kills < KILLS and kills % 5 < 4:
            while "weights:" not in run.stdout and process.poll() is None:  # the run may have ended before
                time.sleep(0.01)  # until the updates begin; the others are hit while they start
        _wait(process, rng.uniform(0.5, 6) if kills < KILLS else 900)
        moment = "at a random moment"
        while kills % 2 and process.poll() is None:
            if saving := list(run.saved.glob(".*.partial")):
                moment = f"while saving {saving[0].name[1:-8]}"
                break
        victims = [process.pid, *workers(process)]
        victim = rng.choice(victims)
        if process.poll() is None:
            os.kill(victim, signal.SIGKILL)
        code = run.finish(process)
        began = time.monotonic()
        while any(map(alive, victims)):  # those of a launcher that was killed end a moment after it
            assert time.monotonic() - began < 60, "a process outlives the one that started it"
            time.sleep(0.01)
        if code == 0:
            over = True
            assert run.weights() == unbroken.weights() and run.weights("best") == unbroken.weights("best")
            assert run.records() == unbroken.records() and run.result() == unbroken.result()
            print(f"end:     {which}: last weights {run.weights()} (SHA-256), best, records, result as unbroken")
            continue
        kills += 1
        state = load_latest(run.saved) if run.states() else None
        step = state.progress.step if state else 0
        hit = f"process {victims.index(victim)} of {len(victims)}"
        print(f"kill {kills:2}: {which}, {moment}, {hit}; newest state: step {step}")


def _wait(process: subprocess.Popen, seconds: float) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=seconds)
