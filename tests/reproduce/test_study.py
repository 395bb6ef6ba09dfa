"""Studies: every run once, stopped and continued, with the records of single runs."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import assert_user_error
from in_process import call
from making_runs import make_run

from reproduce import PROCESSOR_SETTINGS, ROOT
from reproduce.recipes import get_recipe
from reproduce.study import STUDIES, Runner, runs_of

SHORT = ("--num_steps", 60, "--warmup_steps", 2, "--eval_every", 30, "--batch_size", 16, "--save_every", 3)


def test_a_study_is_stopped_continued_and_finished(command, tmp_path):
    """Two runs at a time, which share the cores and stop together; then one after the other."""
    arguments = ["digits", "--seeds", 1, "--arm", "baseline", "--arm", "rdrop_1", *SHORT, "--out", tmp_path]
    words = [sys.executable, "-m", "reproduce.study", *map(str, arguments), "--jobs", "2"]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    saved, logs = tmp_path / "checkpoints" / "study", tmp_path / "logs" / "study"
    names = ["digits-baseline-seed1", "digits-rdrop_1-seed1"]
    while not all(list((saved / name).glob("step_*")) for name in names):
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130 and "stopped by SIGINT in study/digits-" in stderr
    assert "The same command continues" in stderr
    assert all("SIGINT received" in (saved / f"{name}.txt").read_text() for name in names)

    done = command("reproduce.study", *arguments)
    assert done.returncode == 0, done.stderr
    assert "2 arms of digits x 1 seeds" in done.stdout and "all 2 runs" in done.stdout
    assert done.stdout.count("continues") == 2
    for name, views in zip(names, (1, 2), strict=True):
        header = json.loads((logs / name / "run.json").read_text())
        assert header["finished"] and header["recipe"]["num_views"] == views
        threads = [start["machine"]["settings"]["OMP_NUM_THREADS"] for start in (*header["earlier_starts"], header)]
        assert threads == [
            str(max(1, int(PROCESSOR_SETTINGS["OMP_NUM_THREADS"]) // 2)),
            PROCESSOR_SETTINGS["OMP_NUM_THREADS"],
        ]

    again = call("reproduce.study", *arguments)
    assert again.returncode == 0 and "2 of 2 runs finished" in again.stdout and "run:" not in again.stdout
    other = call("reproduce.study", *arguments, "--batch_size", 8)
    assert_user_error(other, "other settings (batch_size 16 -> 8)")
    listed = call("reproduce.study", *arguments, "--seeds", 2, "--list").stdout
    assert listed.count("\nfinished") == 2 and listed.count("\nto do") == 2


def test_a_finished_run_of_epochs_counts_as_finished(tmp_path):
    """Its record has the updates that the epochs are."""
    make_run(
        tmp_path / "logs", "study/digits-two_views-seed1", alpha=0.0, seed=1, num_epochs=2, num_steps=36, eval_every=18
    )
    arguments = ("digits", "--seeds", 1, "--arm", "two_views", "--out", tmp_path, "--list")
    assert "1 of 1 runs finished" in call("reproduce.study", *arguments, "--num_epochs", 2).stdout
    assert_user_error(call("reproduce.study", *arguments, "--num_epochs", 3), "num_epochs 2 -> 3; num_steps 36 -> 54")


@pytest.mark.parametrize("name", STUDIES)
def test_the_runs_that_come_with_the_project_count_as_finished(name):
    """Wherever the reader has the pretrained weights."""
    listed = call("reproduce.study", name, "--list")
    assert listed.returncode == 0, listed.stderr
    runs = [line.split(": ")[0].split() for line in listed.stdout.splitlines() if f" study/{name}-" in line]
    assert runs
    for *state, run in runs:
        assert state == (["finished"] if (ROOT / "logs" / run).is_dir() else ["to", "do"])


def test_the_list_says_what_a_study_costs_on_a_gpu():
    listed = call("reproduce.study", "cifar100_fast", "--list").stdout
    assert listed.count("\nto do") == 30 and "cifar100_fast-baseline_twice-seed1" in listed
    assert "hours at 40 to 20 % of the peak of A100 in bf16 (estimate)" in listed
    other = call("reproduce.study", "cifar100_fast", "--list", "--model", "SE_ResNet50_vd", "--dropout", 0.1)
    assert other.returncode == 0 and "estimated for ViTs only" in other.stdout


def test_a_run_that_cannot_be_started_ends_the_others(tmp_path):
    """Real runs; the second one's file for its output is a folder."""
    (tmp_path / "checkpoints" / "study" / "digits-rdrop_1-seed1.txt").mkdir(parents=True)
    settings = list(map(str, SHORT))
    with pytest.raises(IsADirectoryError):
        Runner(runs_of("digits", 1, ["baseline", "rdrop_1"], settings), 2, 2, tmp_path).run()
    assert subprocess.run(["pgrep", "-f", f"out {tmp_path}"]).returncode == 1  # nothing is left running
    assert (tmp_path / "checkpoints" / "study" / "digits-baseline-seed1.txt").exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_that_fails_ends_the_study(capfd, tmp_path, jobs):
    missing = ("--data_dir", tmp_path / "none", "--pretrained", "")
    done = call("reproduce.study", "cifar100", "--seeds", 1, "--jobs", jobs, *missing, "--out", tmp_path)
    assert_user_error(done, "-seed1 ended with exit code 2, see")
    assert str(tmp_path / "none") in done.stderr + capfd.readouterr().err  # that of one run goes to the terminal
    assert done.stdout.count(" of 6, study/") == jobs  # none was started after it


@pytest.mark.parametrize("name", STUDIES)
def test_every_arm_is_a_recipe_of_its_own_and_costs_what_it_says(name):
    study = STUDIES[name]
    recipes = {arm: get_recipe(study.recipe, **changes) for arm, changes in study.arms.items()}
    assert len({json.dumps(recipe.meaning()) for recipe in recipes.values()}) == len(recipes) >= 5
    for arm in ("two_views", *recipes):  # equal compute
        if arm != "baseline":
            recipe = recipes[arm]
            images = recipe.num_steps * recipe.batch_size * recipe.num_views
            assert images == 2 * recipes["baseline"].num_steps * recipes["baseline"].batch_size, arm
    runs = runs_of(name, 2, list(study.arms), [])
    assert len({run.name for run in runs}) == len(runs) == 2 * len(study.arms)


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["digit"], ["unknown study 'digit'", "did you mean digits"]),
        (["digits", "--arm", "rdrop"], ["--arm rdrop: did you mean"]),
        (["digits", "--seeds", "0"], ["--seeds 0"]),
        (["digits", "--jobs", "0"], ["--jobs 0"]),
        (["digits", "--seed", "3"], ["--seeds N"]),
        (["digits", "--alpha", "3"], ["--alpha: the arm two_views is defined by its own"]),
        (["digits", "--num_steps", "20"], ["--num_steps: the arm baseline_twice"]),
        (["digits", "--dry_run"], ["--dry_run", "--list"]),
        (["digits", "--alfa", "3", "--seeds", "1"], ["--alfa 3", "mean alpha"]),
    ],
)
def test_bad_input(tmp_path, arguments, fragments):
    assert_user_error(call("reproduce.study", *arguments, "--out", tmp_path), *fragments)
