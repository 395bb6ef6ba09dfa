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

from reproduce import ROOT
from reproduce.recipes import get_recipe
from reproduce.study import STUDIES, Runner, runs_of

SHORT = ("--num_steps", 60, "--warmup_steps", 2, "--eval_every", 30, "--batch_size", 16, "--save_every", 3)


def test_a_study_is_stopped_continued_and_finished(command, tmp_path):
    arguments = ["digits", "--seeds", 1, "--arm", "baseline", "--arm", "rdrop_1", *SHORT, "--out", tmp_path]
    words = [sys.executable, "-m", "reproduce.study", *map(str, arguments)]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    first = tmp_path / "checkpoints" / "study" / "digits-baseline-seed1"
    while not list(first.glob("step_*")):
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 143 and "stopped by SIGTERM in study/digits-baseline-seed1" in stderr
    assert "Continue with: bash run_train.sh --study digits --seeds 1" in stderr
    done = command("reproduce.study", *arguments)
    assert done.returncode == 0, done.stderr
    assert "2 arms of digits x 1 seeds" in done.stdout and "all 2 runs" in done.stdout
    headers = {
        arm: json.loads((tmp_path / "logs" / "study" / f"digits-{arm}-seed1" / "run.json").read_text())
        for arm in ("baseline", "rdrop_1")
    }
    assert all(header["finished"] for header in headers.values())
    assert [headers[arm]["recipe"]["num_views"] for arm in headers] == [1, 2]
    again = call("reproduce.study", *arguments)
    assert again.returncode == 0 and "2 of 2 runs finished" in again.stdout and "run:" not in again.stdout
    other = call("reproduce.study", *arguments, "--batch_size", 8)
    assert_user_error(other, "other settings (batch_size 16 -> 8)")
    listed = call("reproduce.study", *arguments, "--seeds", 2, "--list").stdout
    assert listed.count("\nfinished") == 2 and listed.count("\nto do") == 2


@pytest.mark.parametrize("name", STUDIES)
def test_the_runs_that_come_with_the_project_count_as_finished(name):
    """Wherever the reader has the pretrained weights."""
    listed = call("reproduce.study", name, "--list")
    assert listed.returncode == 0, listed.stderr
    runs = [line.split(": ")[0].split() for line in listed.stdout.splitlines() if f" study/{name}-" in line]
    assert runs
    for *state, run in runs:
        assert state == (["finished"] if (ROOT / "logs" / run).is_dir() else ["to", "do"])


def test_two_runs_at_a_time_share_the_cores_and_stop_together(command, tmp_path):
    arguments = ["digits", "--seeds", 1, "--arm", "baseline", "--arm", "rdrop_1", "--jobs", 2, *SHORT]
    arguments = [*map(str, arguments), "--out", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-m", "reproduce.study", *arguments],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    saved = tmp_path / "checkpoints" / "study"
    names = [f"digits-{arm}-seed1" for arm in ("baseline", "rdrop_1")]
    while not all(list((saved / name).glob("step_*")) for name in names):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130 and "stopped by SIGINT in study/digits-" in stderr
    done = command("reproduce.study", *arguments)
    assert done.returncode == 0 and "all 2 runs" in done.stdout, done.stderr
    for name in names:
        header = json.loads((tmp_path / "logs" / "study" / name / "run.json").read_text())
        assert header["finished"] and header["earlier_starts"]
        assert int(header["machine"]["settings"]["OMP_NUM_THREADS"]) == max(1, len(os.sched_getaffinity(0)) // 2)
        assert "continues" in (saved / f"{name}.txt").read_text()


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
def test_a_run_that_fails_ends_the_study(command, tmp_path, jobs):
    missing = ("--data_dir", tmp_path / "none", "--pretrained", "")
    done = command("reproduce.study", "cifar100", "--seeds", 1, "--jobs", jobs, *missing, "--out", tmp_path)
    assert done.returncode == 2 and "-seed1 ended with exit code 2, see" in done.stderr
    assert str(tmp_path / "none") in done.stderr and "Traceback" not in done.stderr
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
        (["digits", "--alfa", "3", "--seeds", "1"], ["--alfa 3", "--alpha"]),
    ],
)
def test_bad_input(tmp_path, arguments, fragments):
    assert_user_error(call("reproduce.study", *arguments, "--out", tmp_path), *fragments)


def test_the_script_knows_studies_and_says_what_they_cost():
    words = ["bash", "run_train.sh", "--study", "cifar100_fast", "--list"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHON": sys.executable})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\nto do") == 30 and "cifar100_fast-baseline_twice-seed1" in done.stdout
    assert "hours at 40 to 20 % of the peak of A100 in bf16 (estimate)" in done.stdout
