"""Start a command as several processes through `paddle.distributed.launch`, and be their face to the user.

    python -m reproduce.launch reproduce.train RECIPE [--option value ...]      what run_train.sh calls

takes all visible GPUs; NPROC=k takes k of them, or k processes on a CPU. Several nodes: the same command on each,
with NNODES, NODE_RANK (from 0) and MASTER (address:port of the first node).

Paddle's launcher does the rest, but for what this adds: the first process is heard at once, signals reach the
processes and may take as long as saving takes, the failure of any process is reported with its own words and exit
code, and nothing outlives this process.
"""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import paddle

from common.errors import UserError
from common.processes import end_with_parent
from reproduce import SET_HERE
from reproduce.cli import SIGNALS, has_gpu, run_command

_FAILED = re.compile(r"Container rank (\d+) status failed .* code (-?\d+) log ")
_ERROR_LINES = ("error: ", "warning: ", "stopped by ")  # of the first process; these belong to stderr


def main() -> None:
    command = [sys.executable, "-u", "-m", *sys.argv[1:]]
    local, nodes = _processes(), _number("NNODES", 1, at_least=1)
    if local == 1 and nodes == 1:
        os.execv(sys.executable, command)
    with tempfile.TemporaryDirectory(prefix="reproduce-launch-") as folder:
        sys.exit(_launch(_arguments(local, nodes, folder) + command, Path(folder), local, nodes))


def _processes() -> int:
    """How many processes this node runs."""
    gpus = paddle.device.cuda.device_count() if has_gpu() else 0
    wished = _number("NPROC", gpus or 1, at_least=1)
    if gpus and wished > gpus:
        raise UserError(f"NPROC={wished}: there are {gpus} visible GPUs; lower NPROC, or set CUDA_VISIBLE_DEVICES='' "
                        "to compute on the CPU")  # fmt: skip
    return wished


def _number(variable: str, default: int, at_least: int) -> int:
    text = os.environ.get(variable, "") or str(default)
    if not text.isdecimal() or int(text) < at_least:
        raise UserError(f"{variable}={text}: must be a whole number from {at_least} on")
    return int(text)


def _arguments(local: int, nodes: int, folder: str) -> list[str]:
    """The launcher's own part of its command line."""
    launcher = [sys.executable, "-m", "paddle.distributed.launch", "--log_level", "ERROR", "--log_dir", folder]
    launcher += ["--nproc_per_node", str(local)]
    if nodes == 1:
        return launcher
    node = _number("NODE_RANK", 0, at_least=0)
    if "NODE_RANK" not in os.environ or node >= nodes:
        raise UserError(f"NNODES={nodes}: say which node this is, NODE_RANK=0 to {nodes - 1}")
    host, _, port = os.environ.get("MASTER", "").rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"NNODES={nodes}: say where the first node listens, MASTER=address:port")
    try:
        address = socket.gethostbyname(host)  # Paddle's launcher compares numbers
    except OSError as error:
        raise UserError(f"MASTER={host}:{port}: {host} is not known here ({error.strerror})") from None
    print(f"launch:     node {node} of {nodes}, waiting for the others at {address}:{port}", flush=True)
    return [*launcher, "--nnodes", str(nodes), "--rank", str(node), "--master", f"{address}:{port}"]


def _launch(arguments: list[str], folder: Path, local: int, nodes: int) -> int:
    """Run the launcher to its end; the exit code for this command."""
    # without Paddle's notes on its sockets; and the processes are to end with their launcher
    given = {name: value for name, value in os.environ.items() if name not in SET_HERE}
    environment = {"GLOG_minloglevel": "2", **given, "REPRODUCE_LAUNCH": "1"}
    launcher = subprocess.Popen(
        arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True, preexec_fn=end_with_parent,
    )  # fmt: skip
    received = []

    def forward(number, frame):
        received.append(number)
        for pid in _children(launcher.pid) or [launcher.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    for number in SIGNALS:
        signal.signal(number, forward)
    output, processes, failed = _Relay(folder / "workerlog.0"), {}, None
    while launcher.poll() is None:
        output.pass_on()
        alive = _children(launcher.pid)
        processes |= {pid: rank for pid in alive if (rank := _local_rank(pid)) is not None}
        if failed is None and processes.keys() <= set(alive):  # else the launcher was faster, and names one
            failed = _first_failure(processes)
        time.sleep(0.1)
    output.pass_on(to_the_end=True)
    if launcher.returncode == 0:
        return 0
    complaint = launcher.stderr.read()
    if failed is None and (named := _FAILED.search(complaint)):
        failed = int(named[1]), int(named[2])
    if failed is not None:
        return _report(*failed, folder, local, nodes, bool(received))
    if received:
        return 128 + received[0]
    print(complaint.strip(), file=sys.stderr)
    print("error: paddle.distributed.launch failed, its message is above", file=sys.stderr)
    return 1


def _first_failure(processes: dict[int, int]) -> tuple[int, int] | None:
    """(rank on this node, exit status as subprocess has it) of the process that failed, if one has.

    The launcher looks once a second and names any. Another process that aborts is one that lost its contact.
    """
    ended = [(rank, status) for pid, rank in processes.items() if (status := _exit_status(pid))]
    return min(ended, key=lambda end: end[1] == -signal.SIGABRT, default=None)


def _report(number: int, code: int, folder: Path, local: int, nodes: int, asked: bool) -> int:
    """Say what became of process `number`, unless it is the first one, which has been heard; the exit code."""
    lines = (folder / f"workerlog.{number}").read_text(errors="replace").strip().splitlines()
    which = f"rank {number} of {local}" + " on this node" * (nodes > 1)
    if code < 0:
        if not asked:
            print(f"error: {which} was ended by {signal.Signals(-code).name}, and the others with it; the same command "
                  "continues the run", file=sys.stderr)  # fmt: skip
        return 128 - code
    if code == 2 and number > 0:
        last = lines[-1] if lines else f"error: {which} failed"
        if last not in (folder / "workerlog.0").read_text(errors="replace"):  # often all of them say the same
            print(last, file=sys.stderr)
    elif code != 2 and code - 128 not in SIGNALS:
        for line in lines[-30:] if number > 0 else ():
            print(f"rank {number}: {line}", file=sys.stderr)
        print(f"error: {which} failed, see above, and the others were ended", file=sys.stderr)
    return code


class _Relay:
    """Passes on what is appended to a file, in whole lines; a carriage return ends one too (progress bars)."""

    def __init__(self, path: Path):
        self._path, self._read, self._rest = path, 0, ""

    def pass_on(self, to_the_end: bool = False) -> None:
        if not self._path.exists():
            return
        with open(self._path, errors="replace", newline="") as file:
            file.seek(self._read)
            lines = (self._rest + file.read()).splitlines(keepends=True)
            self._read = file.tell()
        self._rest = "" if to_the_end or not lines or lines[-1].endswith(("\n", "\r")) else lines.pop()
        for line in lines:
            stream = sys.stderr if line.startswith(_ERROR_LINES) else sys.stdout
            print(line, end="", file=stream, flush=True)


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _local_rank(pid: int) -> int | None:
    try:
        found = re.search(rb"\0PADDLE_LOCAL_RANK=(\d+)\0", b"\0" + Path(f"/proc/{pid}/environ").read_bytes())
    except OSError:  # it has ended
        return None
    return int(found[1]) if found else None


def _exit_status(pid: int) -> int:
    """Of a process that has ended and was not yet fetched by its parent; 0 also while it runs."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return os.waitstatus_to_exitcode(int(fields[-1])) if fields[0] == "Z" else 0


if __name__ == "__main__":
    run_command(main)
