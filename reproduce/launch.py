"""Start several processes and show their output as one.

    python -m reproduce.launch reproduce.train RECIPE [--option value ...]      what run_train.sh calls

takes all visible GPUs, one process each. NPROC=k takes k of them, or k processes on a CPU. Several nodes, with as many
processes each: the same command with NNODES, NODE_RANK (from 0) and MASTER (address:port of the first node).

The first process of a node writes to the terminal, the others to files. Signals reach all processes, which may take
their time to save. When one fails the others are ended, and its last lines are shown. Nothing outlives this process.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import paddle

from common.errors import UserError
from common.system import MANY, end_with_parent, number_from
from reproduce import SET_HERE
from reproduce.cli import SIGNALS, run_command

_LAST_LINES = 30  # of the process that failed
_TIME_TO_END = 3  # seconds, for the processes beside one that failed
_TIME_TO_STOP = 60  # seconds, for the processes beside one that stopped as it was told


def main() -> None:
    gpus = paddle.device.cuda.device_count()
    one_each = "the processes of a node, at most one a GPU (on the CPU with CUDA_VISIBLE_DEVICES='')"
    local = number_from("NPROC", str(gpus or 1), range(1, (gpus or MANY) + 1), one_each)
    nodes = number_from("NNODES", "1", range(1, MANY), "the nodes of this run")
    command = [sys.executable, "-u", "-m", *sys.argv[1:]]
    if local == 1 and nodes == 1:
        if gpus:  # else Paddle opens a context on every visible GPU when it frees memory
            os.environ.setdefault("FLAGS_selected_gpus", "0")
        os.execv(sys.executable, command)
    node, address, port = _place(nodes)
    ranks, size = range(node * local, (node + 1) * local), nodes * local
    if nodes > 1:
        which = f"node {node} of {nodes}, processes {ranks[0]} to {ranks[-1]} of {size}"
        print(f"launch:     {which}, meeting at {address}:{port}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="reproduce-launch-"))
    logs = [folder / f"rank_{rank}.log" for rank in ranks]
    environments = [_environment(rank, local, nodes, address, port, gpus > 0) for rank in ranks]
    first, codes = _run(command, environments, logs)
    lines = logs[first].read_text(errors="replace").strip().splitlines()  # none where the terminal has them
    if codes[first] == 2 and codes[0] != 2:
        print(*lines[-1:], sep="\n", file=sys.stderr)  # the error of a user, which nobody else has said
    code = codes[first] if codes[first] >= 0 else 128 - codes[first]  # as in shells
    if code in (0, 2) or code - 128 in SIGNALS:
        shutil.rmtree(folder, ignore_errors=True)
        sys.exit(code)
    for line in lines[-_LAST_LINES:]:
        print(f"rank {ranks[first]}: {line}", file=sys.stderr)
    how = "failed, see above" if codes[first] > 0 else f"was ended by {signal.Signals(-codes[first]).name}"
    text = f"error: rank {ranks[first]} of {size} {how}, and the others were ended; the same command continues the run"
    print(f"{text}; what the others wrote is in {folder} on {socket.gethostname()}", file=sys.stderr)
    sys.exit(code)


def _place(nodes: int) -> tuple[int, str, int]:
    """(this node, address of the first node, port there), from NODE_RANK and MASTER where there are several nodes."""
    if nodes == 1:
        with socket.create_server(("", 0)) as free:
            return 0, "127.0.0.1", free.getsockname()[1]
    node = number_from("NODE_RANK", "", range(nodes), f"which of NNODES={nodes} this node is")
    master = os.environ.get("MASTER", "")
    host, _, port = master.rpartition(":")
    try:
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ValueError("not an address and a port from 1 to 65535")
        address = socket.gethostbyname(host)
        if node == 0:
            socket.create_server(("", int(port))).close()
        elif address.startswith("127.") and host != address:
            raise ValueError(f"{host} is {address} on node {node}, which is that node itself")
    except (OSError, ValueError) as error:
        remedy = "give MASTER=address:port, the first node's address in the network and a free port there"
        raise UserError(f"MASTER={master}: {error}; {remedy}") from None
    return node, address, int(port)


def _environment(rank: int, local: int, nodes: int, address: str, port: int, on_gpu: bool) -> dict[str, str]:
    """What Paddle reads in process `rank`, one of `local` on its node, beside what the user has set."""
    given = dict(os.environ)
    endpoints = [f"{address}:{port + 1 + each}" for each in range(nodes * local)]  # names only
    if "OMP_NUM_THREADS" in SET_HERE:
        given["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // local))
    given.setdefault("GLOG_minloglevel", "2")  # without Paddle's notes on its sockets
    if nodes == 1:
        given.setdefault("GLOO_SOCKET_IFNAME", "lo")  # else gloo wants this machine's name to have an address
    if on_gpu:
        given["FLAGS_selected_gpus"] = str(rank % local)
    return {
        **given,
        "PADDLE_MASTER": f"{address}:{port}",
        "PADDLE_NNODES": str(nodes),
        "PADDLE_TRAINERS_NUM": str(nodes * local),
        "PADDLE_TRAINER_ID": str(rank),
        "PADDLE_TRAINER_ENDPOINTS": ",".join(endpoints),
        "PADDLE_CURRENT_ENDPOINT": endpoints[rank],
    }


def _run(command: list[str], environments: list[dict[str, str]], logs: list[Path]) -> tuple[int, list[int]]:
    """Run the processes to their end, which is that of all when one fails.

    Returns the number in this node of the one that failed first, 0 if none did, and all their exit codes.
    """
    running: list[subprocess.Popen] = []

    def pass_on(number, frame):
        for process in running:
            process.send_signal(number)

    try:
        for environment, log in zip(environments, logs, strict=True):
            with open(log, "wb") as file:
                output = file if running else None  # the first one has the terminal
                streams = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}
                # in a session of their own: Ctrl-C reaches them once, through this process
                options = {"start_new_session": True, "preexec_fn": partial(end_with_parent, os.getpid())}
                running.append(subprocess.Popen(command, env=environment, **streams, **options))
        for number in SIGNALS:  # until here they end this process, and the others with it
            signal.signal(number, pass_on)
        first = _wait(running)
        # The others may save what they have, or say the same error of a user; one that waits for a message is killed.
        stopped = running[first].returncode - 128 in SIGNALS
        until = time.monotonic() + (_TIME_TO_STOP if stopped else _TIME_TO_END)
        while None in [process.poll() for process in running] and time.monotonic() < until:
            time.sleep(0.1)
    finally:
        for process in running:
            process.kill()
            process.wait()
    return first, [process.returncode for process in running]


def _wait(running: list[subprocess.Popen]) -> int:
    """Return the number of the process that failed, as soon as one has; 0 when all have ended well."""
    while True:
        codes = [process.poll() for process in running]
        failed = [number for number, code in enumerate(codes) if code]
        if failed:  # one that aborts has often only lost its contact to another that failed
            return min(failed, key=lambda number: codes[number] == -signal.SIGABRT)
        if None not in codes:
            return 0
        time.sleep(0.1)


if __name__ == "__main__":
    run_command(main)
