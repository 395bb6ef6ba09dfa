"""The launcher: what its processes are told, what it says when one fails, how nodes meet."""

import fcntl
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
import threading
import time
from pathlib import Path

import paddle
import pytest
from running import Run

import reproduce
from common.errors import UserError
from reproduce import ROOT, cli, distributed, launch, meeting, train
from reproduce.meeting import Layout, meet, place_of_node


@pytest.fixture
def launched(monkeypatch, tmp_path):
    """Run a program as two processes of the launcher, which is this process; gives the exit code."""
    monkeypatch.setenv("NPROC", "2")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
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
    open(os.environ["PADDLE_LOG_DIR"] + "/waits", "w")
    time.sleep(600)
while not os.path.exists(os.environ["PADDLE_LOG_DIR"] + "/waits"):
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
        "error: rank 1 of 2 failed, see above, and the others were ended; what the other processes wrote is in "
        f"{folder} on {socket.gethostname()}"
    )
    assert "line 0\n" in (folder / "rank_1.log").read_text()


@pytest.mark.parametrize("said_by", ["0 1", "1"])
def test_the_line_of_a_users_error_is_shown_once(launched, tmp_path, capfd, said_by):
    """Whether all of them say it, or the second one alone; nothing is kept."""
    program = f"""
import os, sys, time
if os.environ["PADDLE_TRAINER_ID"] in "{said_by}".split():
    print("error: no such file", file=sys.stderr)
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
    (tmp_path / "program.py").write_text(program)
    process = subprocess.Popen(
        [sys.executable, "-m", "reproduce.launch", "program"],
        cwd=ROOT,
        env={**os.environ, "NPROC": "2", "PYTHONPATH": str(tmp_path), "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
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
    """Each computes its own number of threads, unless the user has set one; and nohup stays nohup."""
    monkeypatch.setenv("REPRODUCE_SETTINGS", "OMP_NUM_THREADS=77 FLAGS_use_stride_kernel=0")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert reproduce._set_by_user("OMP_NUM_THREADS")
    monkeypatch.setenv("OMP_NUM_THREADS", "77")
    show = "import reproduce, signal; from reproduce.cli import SIGNALS; "
    show += "print('OMP_NUM_THREADS' in reproduce.SET_HERE, signal.SIGHUP in SIGNALS)"
    line = f"trap '' HUP; exec '{sys.executable}' -c \"{show}\""
    done = subprocess.run(["sh", "-c", line], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "True False\n", done.stderr


def environment_of(monkeypatch, layout, number, on_gpu=False, **variables):
    monkeypatch.setattr(launch, "SET_HERE", {"OMP_NUM_THREADS"} - set(variables))
    for name in ("OMP_NUM_THREADS", "GLOG_minloglevel", "GLOG_v", "NCCL_DEBUG", "GLOO_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return launch._environment(layout, number, on_gpu, Path("/folder"))


def test_what_the_processes_of_two_nodes_are_told(monkeypatch):
    layout = Layout(1, [2, 4], "10.0.0.1", 29600)
    strays = {"MASTER_ADDR": "10.9.9.9", "MASTER_PORT": "1", "PADDLE_TRAINER_ID": "9", "PADDLE_NNODES": "7"}
    found = environment_of(monkeypatch, layout, 3, **strays, http_proxy="http://proxy:1")
    told = {name.removeprefix("PADDLE_"): value for name, value in found.items() if name.startswith("PADDLE_")}
    assert (told["TRAINER_ID"], told["TRAINERS_NUM"], told["NNODES"], told["LOCAL_RANK"]) == ("5", "6", "2", "3")
    assert told["MASTER"] == "10.0.0.1:29600" and told["DISTRI_BACKEND"] == "gloo"
    assert found["http_proxy"] == "http://proxy:1"  # the first one may have files to fetch
    assert "MASTER_ADDR" not in found and "FLAGS_selected_gpus" not in found and "GLOO_SOCKET_IFNAME" not in found


def test_each_process_has_its_gpu(monkeypatch):
    monkeypatch.delenv("PADDLE_DISTRI_BACKEND", raising=False)
    found = environment_of(monkeypatch, Layout.of_one_node(8), 3, on_gpu=True)
    assert found["OMP_NUM_THREADS"] == str(max(1, len(os.sched_getaffinity(0)) // 8))
    assert environment_of(monkeypatch, Layout.of_one_node(8), 3, OMP_NUM_THREADS="5")["OMP_NUM_THREADS"] == "5"
    assert found["FLAGS_selected_gpus"] == "3" and "PADDLE_DISTRI_BACKEND" not in found


@pytest.mark.parametrize("variable", ["NCCL_DEBUG", "GLOG_v"])
def test_native_output_is_left_alone_where_it_is_asked_for(monkeypatch, variable):
    quiet = environment_of(monkeypatch, Layout.of_one_node(2), 1)
    assert quiet["GLOG_minloglevel"] == "2"
    assert "GLOG_minloglevel" not in environment_of(monkeypatch, Layout.of_one_node(2), 1, **{variable: "1"})


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
    for name, value in {"TRAINERS_NUM": "2", "TRAINER_ID": "0", "MASTER": "127.0.0.1:1", "LOG_DIR": ""}.items():
        monkeypatch.setenv(f"PADDLE_{name}", value)
    monkeypatch.setenv("PADDLE_DISTRI_BACKEND", "auto")
    monkeypatch.setattr(distributed.dist, "init_parallel_env", lambda: None)


def test_the_cpu_on_a_gpu_node_stays_the_device(monkeypatch, of_two):
    """As Paddle's CUDA build does: unless the backend is gloo, connecting takes the GPU."""
    device = ["cpu"]

    def init_parallel_env():
        if os.environ["PADDLE_DISTRI_BACKEND"] != "gloo":
            device[0] = "gpu:0"

    monkeypatch.setattr(distributed.dist, "init_parallel_env", init_parallel_env)
    monkeypatch.setattr(paddle, "get_device", lambda: device[0])
    distributed.start()
    assert device == ["cpu"]
    monkeypatch.setattr(distributed.dist, "init_parallel_env", lambda: device.insert(0, "gpu:0"))
    with pytest.raises(RuntimeError, match="Paddle took gpu:0 when the processes connected; cpu was chosen"):
        distributed.start()


@pytest.mark.parametrize(
    "variables",
    [{"PADDLE_TRAINERS_NUM": "abc"}, {"PADDLE_TRAINER_ID": "7"}, {"PADDLE_TRAINER_ID": "-1"}, {"PADDLE_NNODES": "x"}],
)
def test_stray_variables_of_another_launcher(monkeypatch, of_two, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="=".join(*variables.items())):
        distributed.rank()


def test_stray_variables_without_the_others_addresses(monkeypatch, of_two):
    monkeypatch.delenv("PADDLE_MASTER")
    with pytest.raises(UserError, match="PADDLE_TRAINERS_NUM=2 is set, but not where the others are"):
        distributed.start()


def test_stray_variables_end_training_with_one_line(monkeypatch, of_two, streams, tmp_path, capsys):
    monkeypatch.setenv("PADDLE_TRAINER_ID", "7")
    monkeypatch.setattr(sys, "argv", ["train", "digits", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        cli.run_command(train.main)
    out, err = capsys.readouterr()
    assert ended.value.code == 2 and out == "" and err.startswith("error: PADDLE_TRAINER_ID=7, PADDLE_TRAINERS_NUM=2")
    assert "NPROC=k" in err and err.count("\n") == 1 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "say which node this is, NODE_RANK=0 to 1"),
        ({"NODE_RANK": "2"}, "NODE_RANK=0 to 1"),
        ({"NODE_RANK": "x"}, "NODE_RANK=x: must be a whole number"),
        ({"NODE_RANK": "0"}, "MASTER=: say where"),
        ({"NODE_RANK": "0", "MASTER": "127.0.0.1:99999999"}, "MASTER=127.0.0.1:99999999: .* port 1 to 65535"),
        ({"NODE_RANK": "0", "MASTER": "no.such.host.invalid:1"}, "no.such.host.invalid is not known here"),
        ({"NODE_RANK": "1", "MASTER": "localhost:29500"}, "localhost is 127.0.0.1 on node 1, which is that node"),
    ],
)
def test_a_node_that_is_not_placed(monkeypatch, environment, said):
    for name in ("NODE_RANK", "MASTER"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=said):
        place_of_node(2)


@pytest.mark.parametrize("wished", ["many", "0", "-1", "9"])
def test_numbers_of_processes_that_make_no_sense(monkeypatch, wished):
    monkeypatch.setenv("NPROC", wished)
    with pytest.raises(UserError, match=f"NPROC={wished}"):
        launch._processes(gpus=8)


@pytest.mark.parametrize("goodbye", [b"", b"."])
def test_a_node_that_is_lost_is_noticed_and_one_that_has_done_its_part_is_not(monkeypatch, tmp_path, goodbye):
    monkeypatch.setattr(launch, "SIGNALS", ())
    monkeypatch.setattr(launch, "_TIME_TO_SAY_WHY", 0.2)
    here, there = socket.socketpair()
    there.sendall(goodbye)
    there.close()
    layout = Layout(0, [1, 1], "127.0.0.1", 1, [here])
    command = ["sleep", "1" if goodbye else "600"]
    environment = {**os.environ, "PADDLE_TRAINER_ID": "0", "PADDLE_TRAINERS_NUM": "2"}
    processes = launch._Processes(command, [environment], tmp_path, layout)
    assert processes.run() == (None, 0 if goodbye else 1)
    assert processes.report(None).startswith("error: another node of this run has ended")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def all_meet(*nodes, port=None):
    """What `meet` gives, or raises, for each (node, nodes, processes); all at the same time."""
    port, found = port or free_port(), [None] * len(nodes)

    def run(index, node, of, local):
        try:
            found[index] = meet(node, of, "127.0.0.1", port, local)
        except UserError as error:
            found[index] = str(error)

    threads = [threading.Thread(target=run, args=(index, *node)) for index, node in enumerate(nodes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


def test_nodes_meet_in_any_order_and_with_any_number_of_processes():
    found = all_meet((2, 3, 1), (0, 3, 4), (1, 3, 2))
    assert [layout.processes for layout in found] == [[4, 2, 1]] * 3
    second, first, third = found
    assert not first.has_lost_a_node()
    second.say_goodbye()
    assert not first.has_lost_a_node() and len(first.others) == 1
    third.others[0].close()
    assert first.has_lost_a_node()
    assert [layout.node for layout in found] == [2, 0, 1] and len({layout.port for layout in found}) == 1


def test_a_node_that_does_not_come_is_said_and_given_up(monkeypatch, capsys):
    monkeypatch.setattr(meeting, "_SAY_EVERY", 0.5)
    monkeypatch.setattr(meeting, "_GIVE_UP", 2)
    found = all_meet((0, 3, 1), (1, 3, 1))
    assert found[0].startswith("node 2 did not come within") and "the other nodes at" in found[1]
    assert "still waiting for node 2\n" in capsys.readouterr().out


@pytest.fixture
def first_node(request):
    """The first node, waiting in a thread; gives its port and what ends the wait and gives its layout."""
    received, port = [], free_port()
    thread = threading.Thread(target=lambda: received.append(meet(0, request.param, "127.0.0.1", port, 1)))
    thread.start()

    def finish():
        thread.join(60)
        return received[0]

    return port, finish


def call(port, text: bytes):
    """Connect as soon as the first node listens, say `text`, and go away."""
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port)) as caller:
                caller.sendall(text)
            return
        except ConnectionRefusedError:
            time.sleep(0.01)


@pytest.mark.parametrize("first_node", [3], indirect=True)
def test_a_node_of_another_run_is_named_and_one_that_comes_again_is_taken(first_node, capsys):
    port, finish = first_node
    with pytest.raises(UserError, match=r"^NNODES=2, NODE_RANK=1: the first node waits for 1 to 2 of NNODES=3; "):
        meet(1, 2, "127.0.0.1", port, 9)
    call(port, b'{"node": 1, "nodes": 3, "processes": 9}\n')
    assert [layout.processes for layout in all_meet((1, 3, 2), (2, 3, 4), port=port)] == [[1, 2, 4]] * 2
    assert finish().processes == [1, 2, 4]
    assert "not of this run: NNODES=2, NODE_RANK=1\n" in capsys.readouterr().out


@pytest.mark.parametrize("first_node", [2], indirect=True)
def test_whoever_else_calls_is_not_a_node(first_node):
    """A port scanner, a browser: closed at once, and the nodes meet."""
    port, finish = first_node
    for text in (b"GET / HTTP/1.0\r\n\r\n", b"[]\n", b"\n", b'{"node": 1}\n', b""):
        call(port, text)
    assert meet(1, 2, "127.0.0.1", port, 5).processes == finish().processes == [1, 5]


def test_a_port_that_is_taken():
    with socket.create_server(("", 0)) as server, pytest.raises(UserError, match="cannot listen there"):
        meet(0, 2, "127.0.0.1", server.getsockname()[1], 1)


def test_missing_streams_of_python():
    line = f'exec "{sys.executable}" -m reproduce.train digits --seed -1 <&- >&- 2>&-'
    assert subprocess.run(["sh", "-c", line], cwd=ROOT, capture_output=True).returncode == 2


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
    assert f"{pictures}/train: there" in done.stdout and list(tmp_path.iterdir()) == []


def script(run, *words):
    done = subprocess.run(["bash", *map(str, words)], cwd=ROOT, env=run.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def trained_on_pictures(tmp_path, pictures):
    """By two processes, each with a decoder of its own, which is not taken for a process of another launcher."""
    run = Run(tmp_path, "digits", "--dataset", "imagenet", "--data_dir", pictures, processes=2, PYTHON=sys.executable)
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
