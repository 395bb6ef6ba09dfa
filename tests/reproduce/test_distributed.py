"""Several processes and nodes mean the same as one, and fail as one."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from running import DIGITS, Run, options, workers

from models.weights import read_weights
from reproduce import ROOT, train
from reproduce.recipes import get_recipe

SHORT = ("digits", *options(num_steps=32, warmup_steps=4, eval_every=0, batch_size=16, log_every=4, save_every=4))
TEN = ("digits", *options(num_steps=10, warmup_steps=2, log_every=1, eval_every=0, batch_size=24, dropout=0))


class Requests:
    """Stands for 50 images and gives back what is asked of them."""

    def __len__(self):
        return 50

    def stream(self, requests, *settings):
        return requests


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("micro_batch_size", [1, 3, 8])
def test_samples_and_crops_do_not_depend_on_the_processes(monkeypatch, processes, micro_batch_size):
    recipe = get_recipe("digits", batch_size=20, num_steps=9)
    whole = list(train.micro_batches(recipe, Requests(), 1, 20))
    assert len(whole) == 9
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", str(processes))
    found = []
    for rank in range(processes):
        monkeypatch.setenv("PADDLE_TRAINER_ID", str(rank))
        own = list(train.micro_batches(recipe, Requests(), 1, micro_batch_size))
        number = len(train.pieces_of_a_batch(recipe, micro_batch_size))
        assert len(own) == 9 * number and max(len(samples) for samples, _ in own) <= micro_batch_size
        found.append([own[number * step : number * (step + 1)] for step in range(9)])
    for step, (samples, draws) in enumerate(whole):
        parts = [part for rank in found for part in rank[step]]
        np.testing.assert_array_equal(np.concatenate([part[0] for part in parts]), samples)
        np.testing.assert_array_equal(np.concatenate([part[1] for part in parts]), draws)


def losses(run):
    found = [[row[f"train/{name}"] for name in ("loss", "cross_entropy", "kl")] for row in run.records()]
    assert len(found) == 10
    return np.array(found)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    run = Run(tmp_path_factory.mktemp("one"), *TEN, "--micro_batch_size", 8)
    assert run.finish() == 0, run.stderr
    return run


def assert_computes_as(run, one):
    assert losses(one)[-1, 0] != losses(one)[0, 0]
    np.testing.assert_allclose(losses(run), losses(one), rtol=0, atol=1e-6 * losses(one).max())
    found = read_weights(run.saved / "last.pdparams").arrays
    for name, value in read_weights(one.saved / "last.pdparams").arrays.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "micro_batch_size"), [(1, 1), (1, 3), (2, 3), (2, 8), (3, 1), (3, 8)])
def test_losses_and_weights_do_not_depend_on_the_hardware(tmp_path, one_process, processes, micro_batch_size):
    run = Run(tmp_path, *TEN, "--micro_batch_size", micro_batch_size, processes=processes)
    assert run.finish() == 0, run.stderr
    assert_computes_as(run, one_process)


@pytest.mark.slow
def test_recompute_gives_the_same_bytes_with_dropout_and_two_processes(tmp_path):
    plain = Run(tmp_path / "plain", *DIGITS, processes=2)
    again = Run(tmp_path / "again", *DIGITS, "--recompute", "true", processes=2)
    assert plain.finish() == again.finish() == 0
    assert plain.records() == again.records()
    found = read_weights(again.saved / "last.pdparams").arrays
    for name, value in read_weights(plain.saved / "last.pdparams").arrays.items():
        assert value.tobytes() == found[name].tobytes(), name


def two_nodes(out, *arguments):
    """The same run on two nodes, which are both this machine; each node's output is in a folder of its own."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    nodes = []
    for rank in ("0", "1"):
        node = Run(out, *arguments, NNODES="2", NODE_RANK=rank, MASTER=address)
        node.streams = out / f"node{rank}"
        nodes.append(node)
    return nodes


def finish_all(nodes, **options):
    processes = [node.start(**options) for node in nodes]
    codes = [node.finish(process) for node, process in zip(nodes, processes, strict=True)]
    assert codes == [0] * len(nodes), "\n".join(node.stdout + node.stderr for node in nodes)


def test_two_nodes_compute_as_one_process(tmp_path, one_process):
    nodes = two_nodes(tmp_path, *TEN)
    finish_all(nodes)
    assert_computes_as(nodes[0], one_process)
    machine = json.loads((nodes[0].logs / "run.json").read_text())["machine"]
    assert (machine["processes"], machine["nodes"]) == (2, 2)
    assert "last:" in nodes[0].stdout and "last:" not in nodes[1].stdout


@pytest.mark.slow
def test_two_nodes_evaluate_as_one_process(tmp_path, command):
    nodes = two_nodes(tmp_path)
    for node in nodes:
        node.arguments = ["checkpoints/digits.pdparams", "--batch_size", "7", "--output", str(tmp_path / "found.npz")]
    finish_all(nodes, module="reproduce.evaluate")
    assert "result:" not in nodes[1].stdout
    together = json.loads(nodes[0].stdout.splitlines()[-1])
    alone = json.loads(command("reproduce.evaluate", "checkpoints/digits.pdparams").stdout.splitlines()[-1])
    for name in ("correct", "total", "top5_accuracy"):
        assert together[name] == alone[name]
    assert together["nll"] == pytest.approx(alone["nll"], abs=1e-6)
    with np.load(tmp_path / "found.npz") as predictions:
        assert len(predictions["labels"]) == 500


@pytest.mark.slow
def test_the_end_of_one_node_ends_the_other(tmp_path):
    """Each node has a launcher of its own: the other one notices by the lost contact."""
    nodes = two_nodes(tmp_path, *DIGITS)
    processes = [node.start() for node in nodes]
    nodes[0].await_step(processes[0], 5)
    os.kill(workers(processes[1])[0], signal.SIGKILL)
    began = time.monotonic()
    codes = [node.finish(process) for node, process in zip(nodes, processes, strict=True)]
    assert time.monotonic() - began < 60 and codes[1] == 137 and codes[0] != 0
    assert "error: rank 1 of 2 was ended by SIGKILL" in nodes[1].stderr
    assert "lost contact" in nodes[0].stderr or "was ended by SIGABRT" in nodes[0].stderr, nodes[0].stderr


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    run = Run(tmp_path_factory.mktemp("unbroken"), *SHORT, processes=2)
    assert run.finish() == 0, run.stderr
    return run


@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_the_end_of_one_process_ends_the_run_which_then_continues(tmp_path, unbroken, rank):
    run = Run(tmp_path, *SHORT, processes=2)
    process = run.start()
    run.await_step(process, 4)
    os.kill(workers(process)[rank], signal.SIGKILL)
    began = time.monotonic()
    assert run.finish(process) == 137
    assert time.monotonic() - began < 60  # it must not hang
    assert f"error: rank {rank} of 2 was ended by SIGKILL" in run.stderr
    assert run.finish() == 0 and "continues after step" in run.stdout
    assert run.weights() == unbroken.weights()
    assert run.records() == unbroken.records()


def test_an_error_of_the_user_is_one_line_from_many_processes_too(tmp_path):
    run = Run(tmp_path, "digits", "--batch_size", 1, processes=2)
    assert run.finish() == 2
    assert run.stderr.startswith("error: --batch_size 1: smaller than the 2 processes") and run.stderr.count("\n") == 1


@pytest.mark.slow
def test_slurm_starts_the_script_on_each_node(tmp_path):
    """`sbatch --nodes=2 run_train.sh` with stand-ins for SLURM's commands: it runs a copy of the script, elsewhere."""
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "scontrol").write_text("#!/bin/sh\n[ \"$*\" = 'show hostnames n[1-2]' ] && echo 127.0.0.1 && echo n2\n")
    (commands / "srun").write_text(
        "#!/bin/bash\n"
        "[[ $1 == --nodes=2 && $2 == --ntasks-per-node=1 ]] || exit 9\n"
        'for node in 0 1; do SLURM_NODEID=$node "${@:4}" & nodes+=($!); done\n'
        "trap 'kill -USR1 \"${nodes[@]}\"' USR1; code=0\n"
        'for node in "${nodes[@]}"; do wait "$node"; wait "$node" || code=$?; done; exit $code\n'
    )
    for path in commands.iterdir():
        path.chmod(0o755)
    spool = tmp_path / "spool" / "slurm_script"
    spool.parent.mkdir()
    shutil.copy(ROOT / "run_train.sh", spool)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    environment = {
        **os.environ,
        "PATH": f"{commands}:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_ID": str(port - 20000 if port >= 20000 else port),
        "SLURM_JOB_NODELIST": "n[1-2]",
        "PYTHON": sys.executable,
    }
    run = Run(tmp_path / "run", *DIGITS)

    def submit():
        with open(tmp_path / "output.txt", "w") as output:
            return subprocess.Popen(["bash", spool, *run.arguments], env=environment, stdout=output, stderr=output)

    job = submit()
    run.await_step(job, 10)
    job.send_signal(signal.SIGUSR1)  # ahead of the time limit
    assert job.wait(timeout=120) == 138
    output = (tmp_path / "output.txt").read_text()
    assert "stopped by SIGUSR1" in output and "The same command continues" in output, output
    assert submit().wait(timeout=300) == 0
    header = json.loads((run.logs / "run.json").read_text())
    assert header["finished"] and header["machine"]["nodes"] == 2 and header["continued_after_step"] >= 10
