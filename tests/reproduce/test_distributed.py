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
from running import DIGITS, Run, workers

from models.weights import read_weights
from reproduce import ROOT, train
from reproduce.recipes import get_recipe

NO_DROPOUT = ("--dropout", 0)


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


def ten_updates(out, cifar100_folder, processes, micro_batch_size, *more):
    """Losses and weights of ten updates of a small ViT on real CIFAR-100 images."""
    run = Run(
        out, "cifar100_vit_ti16", "--pretrained", "", "--model", "ViT-digits", "--image_size", 16, "--batch_size", 24,
        "--num_steps", 10, "--warmup_steps", 2, "--log_every", 1, "--eval_every", 0, *NO_DROPOUT, "--data_dir",
        cifar100_folder, "--micro_batch_size", micro_batch_size, *more, processes=processes,
    )  # fmt: skip
    assert run.finish() == 0, run.stderr
    losses = [[row[f"train/{name}"] for name in ("loss", "cross_entropy", "kl")] for row in run.records()]
    assert len(losses) == 10
    return np.array(losses), read_weights(run.saved / "last.pdparams").arrays


@pytest.fixture(scope="module")
def one_process(tmp_path_factory, cifar100_folder):
    return ten_updates(tmp_path_factory.mktemp("one"), cifar100_folder, 1, 8)


GRID = [(1, 1), (1, 3), (2, 3), (2, 8), (3, 1), (3, 8)]


@pytest.mark.parametrize(
    ("processes", "micro_batch_size"),
    [pytest.param(*pair, marks=[] if pair == (2, 3) else pytest.mark.slow) for pair in GRID],
)
def test_losses_and_weights_do_not_depend_on_the_hardware(
    tmp_path, cifar100_folder, one_process, processes, micro_batch_size
):
    losses, weights = one_process
    other_losses, other_weights = ten_updates(tmp_path, cifar100_folder, processes, micro_batch_size)
    assert losses[-1, 0] != losses[0, 0]
    np.testing.assert_allclose(other_losses, losses, rtol=0, atol=1e-6 * losses.max())
    for name, value in weights.items():
        np.testing.assert_allclose(other_weights[name], value, rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("processes", [1, 2])
def test_recompute_gives_the_same_bytes_with_dropout(tmp_path, processes):
    plain = Run(tmp_path / "plain", *DIGITS, processes=processes)
    again = Run(tmp_path / "again", *DIGITS, "--recompute", "true", processes=processes)
    assert plain.finish() == again.finish() == 0
    assert plain.records() == again.records()
    found = read_weights(again.saved / "last.pdparams").arrays
    for name, value in read_weights(plain.saved / "last.pdparams").arrays.items():
        assert value.tobytes() == found[name].tobytes(), name


def test_processes_share_the_cores_unless_the_user_says_otherwise(tmp_path):
    cores = len(os.sched_getaffinity(0))
    for given, expected in ((None, max(1, cores // 2)), ("3", 3)):
        run = Run(tmp_path / str(given), "digits", "--num_steps", 1, "--eval_every", 0, processes=2)
        del run.environment["OMP_NUM_THREADS"]  # the tests themselves run under the project's settings
        if given:
            run.environment["OMP_NUM_THREADS"] = given
        assert run.finish() == 0, run.stderr
        machine = json.loads((run.logs / "run.json").read_text())["machine"]
        assert int(machine["settings"]["OMP_NUM_THREADS"]) == expected


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_two_nodes_of_two_processes(tmp_path, command):
    """They train; and any number of processes finds the same accuracy for the same weights."""
    address = f"127.0.0.1:{free_port()}"
    nodes = [
        Run(tmp_path, *DIGITS, processes=2, NNODES="2", NODE_RANK=str(rank), MASTER=address) for rank in (1, 0)
    ]  # fmt: skip
    processes = [node.start() for node in nodes]
    assert [node.finish(process) for node, process in zip(nodes, processes, strict=True)] == [0, 0], nodes[0].stderr
    header = json.loads((nodes[0].logs / "run.json").read_text())
    assert header["machine"]["processes"] == 4 and header["machine"]["nodes"] == 2
    expected = header["result"]["best"]["test"]

    arguments = ("reproduce.evaluate", nodes[0].saved / "best.pdparams", "--batch_size", 7)
    alone = json.loads(command(*arguments).stdout.splitlines()[-1])
    address = f"127.0.0.1:{free_port()}"
    many = [
        Run(tmp_path / f"node{rank}", processes=2, NNODES="2", NODE_RANK=str(rank), MASTER=address) for rank in (0, 1)
    ]  # fmt: skip
    for node in many:
        node.arguments = [*map(str, arguments[1:]), "--output", str(tmp_path / "predictions.npz")]
    processes = [node.start(module="reproduce.evaluate") for node in many]
    assert [node.finish(process) for node, process in zip(many, processes, strict=True)] == [0, 0], many[0].stderr
    together = json.loads(many[0].stdout.splitlines()[-1])
    for found in (alone, together):
        assert {k: found[k] for k in ("correct", "total", "accuracy", "top5_accuracy")} == {
            k: expected[k] for k in ("correct", "total", "accuracy", "top5_accuracy")
        }
        assert found["nll"] == pytest.approx(expected["nll"], abs=1e-6)
    with np.load(tmp_path / "predictions.npz") as predictions:
        assert len(predictions["labels"]) == 500
    assert "result:" not in many[1].stdout


@pytest.mark.slow
def test_the_end_of_one_node_ends_the_other(tmp_path):
    """Each node has a launcher of its own: the other one notices by the lost contact."""
    address = f"127.0.0.1:{free_port()}"
    nodes = [Run(tmp_path, *DIGITS, NNODES="2", NODE_RANK=str(rank), MASTER=address) for rank in (0, 1)]
    for node in nodes:
        node.streams = tmp_path / f"node{node.environment['NODE_RANK']}"
    processes = [node.start() for node in nodes]
    nodes[0].await_step(processes[0], 5)
    os.kill(workers(processes[1])[0], signal.SIGKILL)
    began = time.monotonic()
    codes = [node.finish(process) for node, process in zip(nodes, processes, strict=True)]
    assert time.monotonic() - began < 60 and codes[1] == 137 and codes[0] != 0
    assert "error: rank 1 of 2 was ended by SIGKILL" in nodes[1].stderr
    assert "lost contact" in nodes[0].stderr or "was ended by SIGABRT" in nodes[0].stderr, nodes[0].stderr


def test_the_end_of_one_process_ends_the_run_which_then_continues(tmp_path):
    unbroken = Run(tmp_path / "unbroken", *DIGITS, processes=2)
    assert unbroken.finish() == 0, unbroken.stderr
    run = Run(tmp_path / "run", *DIGITS, processes=2)
    for rank in (1, 0):
        process = run.start()
        run.await_step(process, 10 if rank else 30)
        os.kill(workers(process)[rank], signal.SIGKILL)
        began = time.monotonic()
        assert run.finish(process) == 137
        assert time.monotonic() - began < 60  # the issue is that it must not hang
        assert f"error: rank {rank} of 2 was ended by SIGKILL" in run.stderr
    assert run.finish() == 0 and "continues after step" in run.stdout
    assert run.weights() == unbroken.weights()
    assert run.records() == unbroken.records()


def test_an_error_of_the_user_is_one_line_from_many_processes_too(tmp_path):
    run = Run(tmp_path, *DIGITS, "--seed", -1, processes=2)
    assert run.finish() == 2
    assert run.stderr.strip() == "error: --seed -1: must be at least 0"


def test_fewer_images_than_processes(tmp_path):
    run = Run(tmp_path, "digits", "--batch_size", 1, processes=2)
    assert run.finish() == 2 and "--batch_size 1: smaller than the 2 processes" in run.stderr


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
    port = free_port()
    environment = {
        **os.environ, "PATH": f"{commands}:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_ID": str(port - 20000 if port >= 20000 else port), "SLURM_JOB_NODELIST": "n[1-2]",
        "PYTHON": sys.executable,
    }  # fmt: skip
    run = Run(tmp_path / "run", *DIGITS)

    def submit():
        with open(tmp_path / "output.txt", "w") as output:
            return subprocess.Popen(["bash", spool, *run.arguments], env=environment, stdout=output, stderr=output)

    job = submit()
    run.await_step(job, 10)
    job.send_signal(signal.SIGUSR1)  # ahead of the time limit
    assert job.wait(timeout=120) == 138
    output = (tmp_path / "output.txt").read_text()
    assert "stopped by SIGUSR1" in output and "the same sbatch command" in output, output
    assert submit().wait(timeout=300) == 0
    header = json.loads((run.logs / "run.json").read_text())
    assert header["finished"] and header["machine"]["nodes"] == 2 and header["continued_after_step"] >= 10
