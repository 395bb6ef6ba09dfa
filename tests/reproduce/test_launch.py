"""The launcher: what its processes are told, what it says when one fails, how nodes meet."""

import fcntl
import itertools
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import time
from types import SimpleNamespace

import paddle
import pytest
from running import Run

from common.errors import UserError
from reproduce import ROOT, cli, distributed, launch, train


@pytest.fixture
def launched(monkeypatch, tmp_path):
    """Run a program as two processes of the launcher, which is this process; gives the exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NPROC", "2")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["launch", "program"])
    handlers = {number: signal.getsignal(number) for number in cli.SIGNALS}

    def run(program):
        (tmp_path / "program.py").write_text(program)
        with pytest.raises(SystemExit) as ended:
            launch.main()
        return ended.value.code

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_the_process_that_failed_first_is_shown_and_all_output_kept(launched, tmp_path, capfd):
    program = """
import os, sys, time
if os.environ["PADDLE_TRAINER_ID"] == "0":
    print("I am waiting", flush=True)
    print("warning: of something", file=sys.stderr, flush=True)
    open("waits", "w")
    time.sleep(600)
while not os.path.exists("waits"):
    time.sleep(0.01)
for line in range(50):
    print("line", line)
sys.exit("ValueError: the reason")
"""
    assert launched(program) == 1
    out, err = capfd.readouterr()
    assert out == "I am waiting\n" and err.startswith("warning: of something\n")
    shown = [line for line in err.splitlines() if line.startswith("rank 1: ")]
    assert len(shown) == 30 and shown[-1] == "rank 1: ValueError: the reason"
    (folder,) = tmp_path.glob("reproduce-launch-*")
    assert err.splitlines()[-1] == (
        "error: rank 1 of 2 failed, see above, and the others were ended; the same command continues the run; "
        f"what the others wrote is in {folder} on {socket.gethostname()}"
    )
    assert "line 0\n" in (folder / "rank_1.log").read_text()


@pytest.mark.parametrize("said_by", ["0 1", "1"])
def test_the_line_of_a_users_error_is_shown_once(launched, tmp_path, capfd, said_by):
    """Whether all of them say it, the first one ending later than the second, or the second one alone."""
    program = f"""
import os, sys, time
if os.environ["PADDLE_TRAINER_ID"] in "{said_by}".split():
    print("error: no such file", file=sys.stderr, flush=True)
    time.sleep(0.5 * (os.environ["PADDLE_TRAINER_ID"] == "0"))
    sys.exit(2)
time.sleep(600)
"""
    assert launched(program) == 2
    assert capfd.readouterr().err == "error: no such file\n"
    assert not list(tmp_path.glob("reproduce-launch-*"))


def test_output_of_a_process_that_aborts_while_it_connects_is_shown(launched, capfd):
    program = """
import os, time
if os.environ["PADDLE_TRAINER_ID"] == "1":
    os.write(2, b"terminate called after NCCL error\\n")
    os.abort()
time.sleep(600)
"""
    assert launched(program) == 128 + signal.SIGABRT
    err = capfd.readouterr().err
    assert "rank 1: terminate called after NCCL error\nerror: rank 1 of 2 was ended by SIGABRT" in err


def test_one_that_aborts_is_not_the_one_to_blame():
    """It has often only lost its contact to another that failed at the same time."""
    ended = [SimpleNamespace(poll=lambda code=code: code) for code in (0, -signal.SIGABRT, 1)]
    assert launch._wait(ended) == 2 and launch._wait(ended[:2]) == 1 and launch._wait(ended[:1]) == 0


@pytest.mark.parametrize("processes", [1, 2])
def test_a_terminal_that_closes_stops_the_run_which_saves(tmp_path, processes):
    """What SIGHUP says, when nothing can be printed any more; until then the first process has the terminal."""
    words = ["digits", "--num_steps", "3000", "--warmup_steps", "9", "--save_every", "1000", "--run", "run"]
    words = [sys.executable, "-m", "reproduce.launch", "reproduce.train", *words, "--out", str(tmp_path)]
    child, screen = pty.fork()
    if not child:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))  # rows and columns
        os.chdir(ROOT)
        os.execve(sys.executable, words, {**os.environ, "NPROC": str(processes)})
    shown = b""
    while not re.search(rb"\rrun: .*\d\d/3000", shown):  # a bar that moves, as no file has
        assert b"step 100:" not in shown
        shown += os.read(screen, 4096)
    os.close(screen)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGHUP
    (state,) = (tmp_path / "checkpoints" / "run").glob("step_*.pdstate")
    assert 10 <= int(state.stem[5:]) < 3000


def launch_program(folder, program, **variables):
    """Launch the text of a program."""
    (folder / "program.py").write_text(program)
    return subprocess.Popen(
        [sys.executable, "-m", "reproduce.launch", "program"],
        cwd=ROOT,
        env={**os.environ, **variables, "PYTHONPATH": f"{folder}:{ROOT}", "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_signals_reach_all_processes_and_a_good_end_leaves_nothing(tmp_path):
    program = f"""
import os, signal, sys
from pathlib import Path
rank = os.environ["PADDLE_TRAINER_ID"]
told = []
def note(number, frame):
    Path({str(tmp_path)!r}, f"told_{{rank}}_{{number}}").touch()
    told.append(number)  # last: the second signal may come while the first one is noted
    if len(told) == 2:
        sys.exit(0)
for number in (signal.SIGHUP, signal.SIGUSR1):
    signal.signal(number, note)
if rank == "0":  # is heard only when both are ready
    while not Path({str(tmp_path)!r}, "ready").exists():
        signal.sigtimedwait([], 0.05)
    print("both", flush=True)
else:
    Path({str(tmp_path)!r}, "ready").touch()
while True:
    signal.sigtimedwait([], 0.05)
"""
    process = launch_program(tmp_path, program, NPROC="2")
    assert process.stdout.readline() == "both\n"
    numbers = (signal.SIGHUP, signal.SIGUSR1)
    for number in numbers:
        process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    told = {f"told_{rank}_{int(number)}" for rank in (0, 1) for number in numbers}
    assert {path.name for path in tmp_path.glob("told_*")} == told
    assert not list(tmp_path.glob("reproduce-launch-*"))


def test_settings_of_one_process_are_not_taken_for_the_users_by_its_children(monkeypatch):
    """Each computes its own number of threads, but keeps what the user has set; and nohup stays nohup."""
    monkeypatch.setenv("REPRODUCE_SETTINGS", "OMP_NUM_THREADS=77 FLAGS_use_stride_kernel=0")
    monkeypatch.setenv("OMP_NUM_THREADS", "77")
    monkeypatch.setenv("FLAGS_use_stride_kernel", "1")
    show = "import reproduce, signal; from reproduce.cli import SIGNALS; "
    show += "print(sorted(reproduce.SET_HERE - {'MKL_DEBUG_CPU_TYPE'}), signal.SIGHUP in SIGNALS)"
    line = f"trap '' HUP; exec '{sys.executable}' -c \"{show}\""
    done = subprocess.run(["sh", "-c", line], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "['OMP_NUM_THREADS'] False\n", done.stderr


def environment_of(monkeypatch, rank, local, nodes=1, on_gpu=False, **variables):
    monkeypatch.setattr(launch, "SET_HERE", {"OMP_NUM_THREADS"} - set(variables))
    for name in ("OMP_NUM_THREADS", "GLOG_minloglevel", "GLOG_v", "NCCL_DEBUG", "GLOO_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return launch._environment(rank, local, nodes, "10.0.0.1", 29600, on_gpu)


def test_what_the_processes_of_two_nodes_are_told(monkeypatch):
    strays = {"PADDLE_TRAINER_ID": "9", "PADDLE_NNODES": "7", "PADDLE_MASTER": "10.9.9.9:1"}
    found = environment_of(monkeypatch, 5, 3, nodes=2, **strays, http_proxy="http://proxy:1")
    told = {name.removeprefix("PADDLE_"): value for name, value in found.items() if name.startswith("PADDLE_")}
    assert (told["TRAINER_ID"], told["TRAINERS_NUM"], told["NNODES"]) == ("5", "6", "2")
    assert told["MASTER"] == "10.0.0.1:29600"
    assert found["http_proxy"] == "http://proxy:1"  # the first one may have files to fetch
    assert "FLAGS_selected_gpus" not in found and "GLOO_SOCKET_IFNAME" not in found


def test_each_process_has_its_gpu(monkeypatch):
    found = environment_of(monkeypatch, 11, 8, nodes=2, on_gpu=True)
    assert found["OMP_NUM_THREADS"] == str(max(1, len(os.sched_getaffinity(0)) // 8))
    assert environment_of(monkeypatch, 3, 8, OMP_NUM_THREADS="5")["OMP_NUM_THREADS"] == "5"
    assert found["FLAGS_selected_gpus"] == "3"


def test_native_output_is_left_alone_where_it_is_asked_for(monkeypatch):
    assert environment_of(monkeypatch, 1, 2)["GLOG_minloglevel"] == "2"
    assert environment_of(monkeypatch, 1, 2, GLOG_minloglevel="0")["GLOG_minloglevel"] == "0"


@pytest.fixture
def streams(monkeypatch):
    """cli.run_command in this process, whose streams are pytest's."""
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(getattr(sys, stream), "reconfigure", lambda **options: None, raising=False)


def test_a_lost_contact_is_reported_in_its_own_words(monkeypatch, streams, capsys):
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "2")
    monkeypatch.setattr(cli, "_GRACE", 0)

    def main():
        raise RuntimeError("(External) NCCL error(2), unhandled system error.\n  [Hint: 'ncclSystemError'.]")

    with pytest.raises(SystemExit) as ended:
        cli.run_command(main)
    err = capsys.readouterr().err
    assert ended.value.code == 1
    assert "NCCL error(2), unhandled system error" in err and "error: lost contact" in err.splitlines()[-1]


@pytest.fixture
def of_two(monkeypatch):
    """This process is one of two, and connecting to the other one does nothing."""
    for name, value in {"TRAINERS_NUM": "2", "TRAINER_ID": "0", "MASTER": "127.0.0.1:1"}.items():
        monkeypatch.setenv(f"PADDLE_{name}", value)
    monkeypatch.setenv("PADDLE_DISTRI_BACKEND", "auto")
    monkeypatch.setattr(distributed.dist, "init_parallel_env", lambda: None)
    monkeypatch.setattr(signal, "signal", lambda *given: None)


def test_the_cpu_on_a_gpu_node_stays_the_device(monkeypatch, of_two):
    """As Paddle's CUDA build does: unless the backend is gloo, connecting takes the GPU."""
    device = ["cpu"]

    def init_parallel_env():
        if os.environ["PADDLE_DISTRI_BACKEND"] != "gloo":
            device[0] = "gpu:0"

    monkeypatch.setattr(distributed, "wait", lambda: None)
    monkeypatch.setattr(distributed.dist, "init_parallel_env", init_parallel_env)
    monkeypatch.setattr(paddle, "get_device", lambda: device[0])
    distributed.start()
    assert device == ["cpu"]


@pytest.mark.parametrize(
    "variables",
    [{"PADDLE_TRAINERS_NUM": "abc"}, {"PADDLE_TRAINER_ID": "7"}, {"PADDLE_TRAINER_ID": "-1"}, {"PADDLE_NNODES": "x"}],
)
def test_stray_variables_of_another_launcher(monkeypatch, of_two, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"=\S+: must be .*; unset it and start several processes with NPROC=k"):
        distributed.described(), distributed.rank()


def test_stray_variables_without_the_others_addresses(monkeypatch, of_two):
    monkeypatch.delenv("PADDLE_MASTER")
    with pytest.raises(
        UserError, match=r"processes did not meet at MASTER=None .*; .* on one node unset PADDLE_TRAINERS_NUM"
    ):
        distributed.start()


def test_stray_variables_end_training_with_one_line(monkeypatch, of_two, streams, tmp_path, capsys):
    monkeypatch.setenv("PADDLE_TRAINER_ID", "7")
    monkeypatch.setattr(sys, "argv", ["train", "digits", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        cli.run_command(train.main)
    out, err = capsys.readouterr()
    assert ended.value.code == 2 and out == "" and err.count("\n") == 1
    assert err.startswith("error: PADDLE_TRAINER_ID=7: must be a whole number from 0 to 1, as our launcher sets it")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def taken_port():
    with socket.create_server(("", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"NPROC": "many"}, "NPROC=many: must be a whole number from 1 to 8"),
        ({"NPROC": "0"}, "NPROC=0: must be"),
        ({"NPROC": "-1"}, "NPROC=-1: must be"),
        ({"NPROC": "9"}, "NPROC=9: must be a whole number from 1 to 8, .* at most one a GPU"),
        ({"NNODES": "0"}, "NNODES=0: must be"),
        ({"NNODES": "2"}, "NODE_RANK=: must be a whole number from 0 to 1, which of NNODES=2 this node is"),
        ({"NNODES": "2", "NODE_RANK": "2"}, "NODE_RANK=2: must be a whole number from 0 to 1"),
        ({"NNODES": "2", "NODE_RANK": "x"}, "NODE_RANK=x: must be a whole number"),
        ({"NNODES": "2", "NODE_RANK": "0"}, "MASTER=: .*; give MASTER=address:port"),
        ({"NNODES": "2", "NODE_RANK": "0", "MASTER": "127.0.0.1:99999999"}, "99999999: .* port from 1 to 65535"),
        ({"NNODES": "2", "NODE_RANK": "0", "MASTER": "no.such.host.invalid:1"}, "MASTER=no.such.host.invalid:1: "),
        (
            {"NNODES": "2", "NODE_RANK": "0", "MASTER": "127.0.0.1:TAKEN"},
            "Address already in use.*; give .* a free port",
        ),
        ({"NNODES": "2", "NODE_RANK": "1", "MASTER": "localhost:29500"}, "localhost is 127.0.0.1 on node 1"),
    ],
)
def test_processes_and_nodes_that_make_no_sense(monkeypatch, taken_port, environment, said):
    monkeypatch.setattr(paddle.device.cuda, "device_count", lambda: 8)
    for name in ("NPROC", "NNODES", "NODE_RANK", "MASTER"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value.replace("TAKEN", str(taken_port)))
    with pytest.raises(UserError, match=said):
        launch.main()


class Store:
    """Stands for the store that the processes share: adds to a number and gives it."""

    def __init__(self):
        self.numbers = {}

    def add(self, name, number):
        self.numbers[name] = self.numbers.get(name, 0) + number
        return self.numbers[name]


def test_the_first_process_is_awaited_in_vain(monkeypatch, of_two):
    monkeypatch.setenv("PADDLE_TRAINER_ID", "1")
    monkeypatch.setattr(distributed, "_TIME_TO_COME", 0.2)
    with pytest.raises(
        UserError, match=r"did not meet at MASTER=127.0.0.1:1 \(.*Connection refused\); start every node"
    ):
        distributed.start()


def test_processes_that_believe_in_other_numbers_of_them_do_not_meet(monkeypatch, of_two):
    """As on nodes with another NPROC or NNODES: none of them goes on."""
    store = Store()
    monkeypatch.setattr(distributed.core, "create_or_get_global_tcp_store", lambda: store)
    monkeypatch.setattr(distributed, "_PATIENCE", 0.1)
    monkeypatch.setattr(distributed, "_waits", itertools.repeat(0))
    for size in ("3", "2"):
        monkeypatch.setenv("PADDLE_TRAINERS_NUM", size)
        said = (
            f"the {size} processes did not meet at MASTER=127.0.0.1:1 .*; start every node with the same MASTER, NNOD"
        )
        with pytest.raises(UserError, match=said):
            distributed.start()
    distributed.start()  # the second one of two


def test_ctrl_c_ends_a_node_that_waits_for_the_others(tmp_path):
    program = """
import signal
from reproduce import distributed
set_signal = signal.signal
def tell(*given):
    print("waits", flush=True)
    return set_signal(*given)
signal.signal = tell
distributed.start()
"""
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
    process = launch_program(tmp_path, program, NPROC="1", NNODES="2", NODE_RANK="0", MASTER=f"127.0.0.1:{port}")
    line = f"launch:     node 0 of 2, processes 0 to 0 of 2, meeting at 127.0.0.1:{port}\n"
    assert process.stdout.readline() == line and process.stdout.readline() == "waits\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == ("", "") and process.returncode == 130


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A stand-in for ImageNet: two classes of six small pictures."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("pictures")
    for part, number in (("train", 6), ("val", 3)):
        for shade, name in ((40, "dark"), (200, "light")):
            (folder / part / name).mkdir(parents=True)
            for index in range(number):
                Image.new("RGB", (20, 20), (shade, shade + index, shade)).save(folder / part / name / f"{index}.png")
    return folder


def test_a_login_node_fetches_what_it_could_not_compute(command, tmp_path, pictures):
    """bf16 and the headline's network, without a GPU: no word of how long that would take, and nothing is written."""
    options = ("--data_dir", pictures, "--pretrained", "", "--precision", "bf16", "--workers", 0)
    done = command("reproduce.train", "imagenet_vit_b16_rdrop", "--validation_per_class", 1, *options, "--fetch_only")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{pictures}: there" in done.stdout and list(tmp_path.iterdir()) == []


def script(run, *words):
    done = subprocess.run(["bash", *map(str, words)], cwd=ROOT, env=run.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trained_on_pictures(tmp_path_factory, pictures):
    """By two processes, each with a decoder of its own, which is not taken for a process of another launcher."""
    out = tmp_path_factory.mktemp("trained")
    run = Run(out, "digits", "--dataset", "imagenet", "--data_dir", pictures, processes=2, PYTHON=sys.executable)
    options = "--workers 1 --batch_size 4 --num_steps 2 --warmup_steps 1 --eval_every 0 --validation_per_class 1"
    script(run, "run_train.sh", *run.arguments, *options.split())
    return run


def test_training_on_picture_folders_with_several_processes_and_decoders(trained_on_pictures):
    assert (trained_on_pictures.saved / "last.pdparams").exists()


@pytest.mark.slow
def test_evaluation_on_picture_folders_with_several_processes_and_decoders(trained_on_pictures, pictures):
    weights = trained_on_pictures.saved / "last.pdparams"
    out = script(trained_on_pictures, "run_eval.sh", weights, "--data_dir", pictures, "--workers", 2)
    assert '"total": 6' in out.splitlines()[-1]


@pytest.mark.slow
def test_a_host_name_that_does_not_resolve_matters_to_nobody_on_one_node(tmp_path):
    run = Run(tmp_path, "digits", "--num_steps", 2, "--warmup_steps", 1, "--eval_every", 0, processes=2)
    words = [sys.executable, "-m", "reproduce.launch", "reproduce.train", *run.arguments]
    renamed = ["unshare", "--uts", "sh", "-c", 'hostname no-such-host && exec "$@"', "sh", *words]
    if subprocess.run(["unshare", "--uts", "hostname", "x"], capture_output=True).returncode:
        pytest.skip("renaming the host for a process needs root")
    done = subprocess.run(renamed, cwd=ROOT, env=run.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
