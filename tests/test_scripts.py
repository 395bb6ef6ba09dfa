"""The shell scripts under other shells, from a clone with CRLF, and as SLURM's jobs.

The real scripts, with stand-ins for Python, nvidia-smi, srun and scontrol.
"""

import os
import shutil
import signal
import subprocess

import pytest

from reproduce import ROOT

SCRIPTS = ("run_train.sh", "run_eval.sh", "launch.sh", "setup_env.sh")
# says that no package is missing, and else what it was started with
PYTHON = """
if [ "$1" = -c ]; then echo missing:; exit; fi
[ -z "$WAITS" ] || { trap 'echo saved; exit 138' USR1; trap 'echo saved; exit 143' TERM; echo ready
                     while true; do sleep 0.05; done; }
echo "started: $*"; echo "NODE_RANK=$NODE_RANK NNODES=$NNODES MASTER=$MASTER"
exit ${CODE:-0}
"""


def make_command(path, text):
    path.write_text(f"#!/bin/bash\n{text}")
    path.chmod(0o755)


@pytest.fixture
def project(tmp_path):
    """A folder with the scripts and, in bin/, the stand-ins; no GPU answers."""
    folder = tmp_path / "a project"
    (folder / "bin").mkdir(parents=True)
    for name in SCRIPTS:
        shutil.copy(ROOT / name, folder)
    make_command(folder / "bin" / "python", PYTHON)
    make_command(folder / "bin" / "nvidia-smi", "exit 9\n")
    return folder


def environment(project, **variables):
    drop = ("SLURM_", "RDROP_", "NPROC", "NNODES", "NODE_RANK", "MASTER")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(drop)}
    path = f"{project / 'bin'}:{os.environ['PATH']}"
    return {**kept, "PATH": path, "PYTHON": str(project / "bin" / "python"), **variables}


def start(project, command, cwd=None, **variables):
    return subprocess.run(
        command,
        shell=isinstance(command, str),
        cwd=cwd or project,
        env=environment(project, **variables),
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("shell", ["bash", "sh", "bash --posix", "dash"])
def test_any_shell_starts_the_scripts(project, shell):
    if not shutil.which(shell.split()[0]):
        pytest.skip(f"no {shell} here")
    done = start(project, f"{shell} run_train.sh digits --seed 3")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("started: -m reproduce.train digits --seed 3\n")
    assert start(project, f"{shell} run_eval.sh a.pdparams").stdout.startswith("started: -m reproduce.evaluate a.pd")


@pytest.mark.skipif(not shutil.which("git"), reason="no git here")
def test_a_clone_with_crlf_runs(project):
    """As on Windows, where git ends lines with CRLF unless .gitattributes says otherwise."""
    shutil.copy(ROOT / ".gitattributes", project)
    clone = project.parent / "clone"
    git = "git -c user.name=t -c user.email=t@localhost -c core.autocrlf=true"
    done = start(project, f"git init -q . && {git} add . && {git} commit -qm x && {git} clone -q . ../clone")
    assert done.returncode == 0, done.stderr
    assert start(project, "bash run_train.sh digits", cwd=clone).stdout.startswith("started: -m reproduce.train digits")
    for name in SCRIPTS:
        assert b"\r" not in (clone / name).read_bytes()


def test_what_is_started(project):
    assert (
        "started: -m reproduce.study digits --list" in start(project, "bash run_train.sh --study digits --list").stdout
    )
    assert "started: -m reproduce.gpu_check" in start(project, "bash run_train.sh --gpu_check").stdout
    assert "-m reproduce.train digits --fetch_only" in start(project, "bash run_train.sh digits --fetch_only").stdout
    assert "-m reproduce.launch reproduce.train d" in start(project, "bash run_train.sh d", NPROC="2").stdout
    make_command(project / "bin" / "nvidia-smi", "exit 0\n")
    assert "-m reproduce.launch reproduce.evaluate" in start(project, "bash run_eval.sh").stdout


@pytest.fixture
def submit(project):
    """Run a copy of run_train.sh elsewhere, as SLURM does; the stand-ins of srun and scontrol write calls.txt."""
    spool = project.parent / "spool" / "slurm_script"
    spool.parent.mkdir()
    shutil.copy(project / "run_train.sh", spool)
    calls = project.parent / "calls.txt"
    scontrol = f'echo "scontrol $*" >>"{calls}"\n[[ $1 == requeue ]] && exit ${{REFUSED:-0}}\necho n1; echo n2\n'
    make_command(project / "bin" / "scontrol", scontrol)
    srun = f'echo "srun $*" >>"{calls}"\nwhile [[ $1 == --* ]]; do shift; done\n'
    srun += 'export SLURM_STEP_NUM_TASKS=2\nfor n in 0 1; do SLURM_NODEID=$n "$@"; done\n'
    make_command(project / "bin" / "srun", srun)

    def run(*arguments, wait=True, **variables):
        variables = {"SLURM_JOB_ID": "77", "SLURM_JOB_NUM_NODES": "1", "SLURM_SUBMIT_DIR": str(project), **variables}
        command = ["bash", str(spool), *arguments]
        if wait:
            return start(project, command, cwd=spool.parent, **variables)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=spool.parent, env=environment(project, **variables), **pipes)

    run.calls = lambda: calls.read_text() if calls.exists() else ""
    return run


def test_slurm_starts_the_script_on_each_node_with_its_cores(submit):
    several = {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_CPUS_PER_TASK": "8"}
    done = submit("digits", **several)
    assert done.returncode == 0, done.stderr
    for node in (0, 1):
        assert f"NODE_RANK={node} NNODES=2 MASTER=n1:20077" in done.stdout
    assert done.stdout.count("started: -m reproduce.launch reproduce.train digits") == 2
    assert "--nodes=2 --ntasks-per-node=1 --kill-on-bad-exit=1 --cpus-per-task=8 " in submit.calls()


@pytest.mark.parametrize("refused", ["0", "1"])
def test_a_job_that_is_told_usr1_is_queued_again(submit, refused):
    job = submit("digits", wait=False, WAITS="1", REFUSED=refused)
    assert job.stdout.readline() == "ready\n"
    job.send_signal(signal.SIGUSR1)
    out, err = job.communicate(timeout=60)
    assert (job.returncode, out) == (138, "saved\n")
    assert submit.calls() == "scontrol requeue 77\n"
    assert ("is queued again" in err) == (refused == "0") and ("the same sbatch command" in err) == (refused == "1")


def test_a_job_that_is_told_to_end_saves_and_is_not_queued_again(submit):
    job = submit("digits", wait=False, WAITS="1")
    assert job.stdout.readline() == "ready\n"
    job.terminate()
    assert job.communicate(timeout=60)[0] == "saved\n" and job.returncode == 143
    assert submit("digits", CODE="2").returncode == 2 and submit.calls() == ""


def test_a_script_that_srun_starts_several_times(project, submit):
    """As `srun --ntasks-per-node=8 bash run_train.sh` does: each of them would take all GPUs of all nodes."""
    done = start(project, "bash run_train.sh digits", SLURM_STEP_NUM_TASKS="8", SLURM_JOB_NUM_NODES="2")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("setup: srun started this script 8 times: give it to sbatch")
    assert start(project, "bash run_train.sh digits", SLURM_STEP_NUM_TASKS="1").returncode == 0


def test_slurm_variables_that_make_no_sense(submit, tmp_path):
    for name in ("SLURM_JOB_NUM_NODES", "SLURM_JOB_ID", "SLURM_STEP_NUM_TASKS"):
        done = submit("digits", **{name: "abc"})
        assert (done.returncode, done.stderr) == (2, f"setup: {name}=abc: must be a whole number, as SLURM sets it\n")
    for elsewhere in (str(tmp_path), ""):
        done = submit("digits", SLURM_SUBMIT_DIR=elsewhere)
        assert done.returncode == 2 and done.stderr.startswith("run_train: submit from the project's root")
