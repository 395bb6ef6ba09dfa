"""Start several processes and show their output as one.

    python -m reproduce.launch reproduce.train RECIPE [--option value ...]      what run_train.sh calls

takes all visible GPUs, one process each. NPROC=k takes k of them, or k processes on a CPU. Several nodes: the same
command on each, with NNODES, NODE_RANK (from 0) and MASTER (address:port of the first node).

The first process of a node is heard at once. Signals reach all processes, which may take their time to save. When one
fails the others are ended, its last lines are shown and what each one wrote is kept. Nothing outlives this process.
"""

import os
import shutil
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
from reproduce.meeting import Layout, meet, number_from, place_of_node

_ERROR_LINES = ("error: ", "warning: ", "stopped by ")  # of the first process; these belong to stderr
_LAST_LINES = 30  # of the process that failed
_TIME_TO_END = 3  # seconds, for the processes beside one that failed
_TIME_TO_STOP = 60  # seconds, for the processes beside one that stopped as it was told
# set by other launchers on many clusters; Paddle would take them before its own
_NOT_OURS = ("MASTER_ADDR", "MASTER_PORT", "PADDLE_BACKUP_ENV_PATH")


def main() -> None:
    gpus = paddle.device.cuda.device_count() if has_gpu() else 0
    local, nodes = _processes(gpus), number_from("NNODES", 1, at_least=1)
    command = [sys.executable, "-u", "-m", *sys.argv[1:]]
    if local == 1 and nodes == 1:
        os.execv(sys.executable, command)
    layout = meet(*place_of_node(nodes), local) if nodes > 1 else Layout.of_one_node(local)
    folder = Path(tempfile.mkdtemp(prefix="reproduce-launch-"))
    keep = False
    try:
        environments = [_environment(layout, number, gpus > 0, folder) for number in range(local)]
        code, keep = _Processes(command, environments, folder).run()
        sys.exit(code)
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def _processes(gpus: int) -> int:
    """How many processes this node runs."""
    wished = number_from("NPROC", gpus or 1, at_least=1)
    if gpus and wished > gpus:
        raise UserError(
            f"NPROC={wished}: there are {gpus} visible GPUs; lower NPROC, or set CUDA_VISIBLE_DEVICES='' "
            "to compute on the CPU"
        )
    return wished


def _environment(layout: Layout, number: int, on_gpu: bool, folder: Path) -> dict[str, str]:
    """What Paddle reads in process `number` of this node, beside what the user has set."""
    given = {name: value for name, value in os.environ.items() if name not in _NOT_OURS}
    local, rank = layout.processes[layout.node], sum(layout.processes[: layout.node]) + number
    endpoints = [f"{layout.address}:{layout.port + 1 + each}" for each in range(sum(layout.processes))]  # names only
    if "OMP_NUM_THREADS" in SET_HERE:
        given["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // local))
    if "NCCL_DEBUG" not in given and "GLOG_v" not in given:
        given.setdefault("GLOG_minloglevel", "2")  # without Paddle's notes on its sockets
    if len(layout.processes) == 1:
        given.setdefault("GLOO_SOCKET_IFNAME", "lo")  # else gloo wants this machine's name to have an address
    device = {"FLAGS_selected_gpus": str(number)} if on_gpu else {"PADDLE_DISTRI_BACKEND": "gloo"}
    return {
        **given,
        **device,
        "PADDLE_MASTER": f"{layout.address}:{layout.port}",
        "PADDLE_NNODES": str(len(layout.processes)),
        "PADDLE_LOCAL_RANK": str(number),
        "PADDLE_TRAINERS_NUM": str(len(endpoints)),
        "PADDLE_TRAINER_ID": str(rank),
        "PADDLE_TRAINER_ENDPOINTS": ",".join(endpoints),
        "PADDLE_CURRENT_ENDPOINT": endpoints[rank],
        "PADDLE_LOG_DIR": str(folder),
    }


class _Processes:
    """The processes of this node, by their number in it, and a file in `folder` for what each of them writes."""

    def __init__(self, command: list[str], environments: list[dict[str, str]], folder: Path):
        self._command, self._environments, self._folder = command, environments, folder
        self._ranks = [int(environment["PADDLE_TRAINER_ID"]) for environment in environments]
        self._of = environments[0]["PADDLE_TRAINERS_NUM"]
        self._running: list[subprocess.Popen] = []
        self._received: list[int] = []  # signals

    def run(self) -> tuple[int, bool]:
        """Run them to their end: the exit code of this command, and whether what they wrote is to be kept."""
        for number in SIGNALS:
            signal.signal(number, lambda number, frame: self._received.append(number))
        output = _Relay(self._log(0))
        try:
            for number in range(len(self._environments)):
                self._start(number)
            first, code = self._wait(output)
            if first is not None:
                self._end_others(_TIME_TO_STOP if code - 128 in SIGNALS else _TIME_TO_END, output)
        finally:
            for process in self._running:
                process.kill()
                process.wait()
        output.pass_on(to_the_end=True)
        return (0, False) if first is None else self._report(first, code)

    def _log(self, number: int) -> Path:
        return self._folder / f"rank_{self._ranks[number]}.log"

    def _start(self, number: int) -> None:
        with open(self._log(number), "wb") as log:
            self._running.append(
                subprocess.Popen(
                    self._command,
                    env=self._environments[number],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C reaches them once, through this process
                    preexec_fn=end_with_parent,
                )
            )

    def _wait(self, output: "_Relay") -> tuple[int | None, int]:
        """Wait until one has failed, or all have ended well (None, 0); passes on output and signals meanwhile."""
        told = 0
        while True:
            ended = [process.poll() for process in self._running]
            output.pass_on()
            # one that aborts has often only lost its contact to another that failed
            failed = sorted((code == -signal.SIGABRT, number) for number, code in enumerate(ended) if code)
            if failed:
                number = failed[0][1]
                return number, ended[number]
            if None not in ended:
                return None, 0
            for received in self._received[told:]:
                for process in self._running:
                    process.send_signal(received)
                told += 1
            time.sleep(0.1)

    def _end_others(self, patience: float, output: "_Relay") -> None:
        """Ask the processes to end, unless they stop by themselves; the caller kills what is left after `patience`."""
        if patience == _TIME_TO_END:
            for process in self._running:
                process.terminate()
        until = time.monotonic() + patience
        while time.monotonic() < until and any(process.poll() is None for process in self._running):
            output.pass_on()
            time.sleep(0.1)

    def _report(self, number: int, code: int) -> tuple[int, bool]:
        """Say what became of the process that failed first; the first of the node has been heard already."""
        lines = self._log(number).read_text(errors="replace").strip().splitlines()
        which = f"rank {self._ranks[number]} of {self._of}"
        if code == 2:  # an error of the user: one line, which often all of them say
            last = lines[-1] if lines else f"error: {which} failed"
            if number > 0 and last not in self._log(0).read_text(errors="replace"):
                print(last, file=sys.stderr)
            return code, False
        if code - 128 in SIGNALS or (code < 0 and self._received):
            return code if code > 0 else 128 - code, False
        native = self._folder / f"native_{self._ranks[number]}.log"  # see distributed.start
        if native.exists():
            lines += native.read_text(errors="replace").strip().splitlines()
        elif number == 0:
            lines = []
        for line in lines[-_LAST_LINES:]:
            print(f"rank {self._ranks[number]}: {line}", file=sys.stderr)
        kept = f"what each process wrote is in {self._folder} on {socket.gethostname()}"
        if code > 0:
            print(f"error: {which} failed, see above, and the others were ended; {kept}", file=sys.stderr)
            return code, True
        name = signal.Signals(-code).name
        print(
            f"error: {which} was ended by {name}, and the others with it; the same command continues the run; {kept}",
            file=sys.stderr,
        )
        return 128 - code, True


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


if __name__ == "__main__":
    run_command(main)
