"""Start several processes and show their output as one.

    python -m reproduce.launch reproduce.train RECIPE [--option value ...]      what run_train.sh calls

takes all visible GPUs, one process each. NPROC=k takes k of them, or k processes on a CPU. Several nodes: the same
command on each, with NNODES, NODE_RANK (from 0) and MASTER (address:port of the first node).

The first process of a node writes to the terminal, the others to files. Signals reach all processes, which may take
their time to save. When one fails the others are ended, and its last lines are shown. Nothing outlives this process.
"""

import contextlib
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

_LAST_LINES = 30  # of the process that failed
_TIME_TO_END = 3  # seconds, for the processes beside one that failed
_TIME_TO_SAY_WHY = 15  # seconds, for processes that lose contact to another node: see cli._GRACE
_TIME_TO_STOP = 60  # seconds, for the processes beside one that stopped as it was told
# set by other launchers on many clusters; Paddle would take them before its own
_NOT_OURS = ("MASTER_ADDR", "MASTER_PORT", "PADDLE_BACKUP_ENV_PATH")


def main() -> None:
    gpus = paddle.device.cuda.device_count() if has_gpu() else 0
    local, nodes = _processes(gpus), number_from("NNODES", 1, at_least=1)
    command = [sys.executable, "-u", "-m", *sys.argv[1:]]
    if local == 1 and nodes == 1:
        if gpus:  # else Paddle opens a context on every visible GPU when it frees memory
            os.environ.setdefault("FLAGS_selected_gpus", "0")
        os.execv(sys.executable, command)
    layout = meet(*place_of_node(nodes), local) if nodes > 1 else Layout.of_one_node(local)
    folder = Path(tempfile.mkdtemp(prefix="reproduce-launch-"))
    environments = [_environment(layout, number, gpus > 0, folder) for number in range(local)]
    processes = _Processes(command, environments, folder, layout)
    first, code = processes.run()
    if _has_stopped(code):
        layout.say_goodbye()
    if _has_stopped(code) or code == 2:
        processes.repeat_error(first, code)
        shutil.rmtree(folder, ignore_errors=True)
    else:
        print(processes.report(first), file=sys.stderr)
    sys.exit(code)


def _has_stopped(code: int) -> bool:
    """Whether a process has done its part, or was told to stop, as all others are then."""
    return code == 0 or code - 128 in SIGNALS


def _processes(gpus: int) -> int:
    """How many processes this node runs."""
    wished = number_from("NPROC", gpus or 1, at_least=1)
    if gpus and wished > gpus:
        text = f"NPROC={wished}: there are {gpus} visible GPUs"
        raise UserError(f"{text}; lower NPROC, or set CUDA_VISIBLE_DEVICES='' to compute on the CPU")
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
    """The processes of this node, by their number in it, and a file in `folder` for what all but the first write."""

    def __init__(self, command: list[str], environments: list[dict[str, str]], folder: Path, layout: Layout):
        self._command, self._environments, self._folder, self._layout = command, environments, folder, layout
        self._ranks = [int(environment["PADDLE_TRAINER_ID"]) for environment in environments]
        self._running: list[subprocess.Popen] = []
        self._received: list[int] = []  # signals

    def run(self) -> tuple[int | None, int]:
        """Run them to their end: the number of the one that failed first (or None), and its exit code as in shells."""
        for number in SIGNALS:
            signal.signal(number, lambda number, frame: self._received.append(number))
        try:
            for number in range(len(self._environments)):
                self._start(number)
            first, code = self._wait()
            if code:
                self._end_others(code)
        finally:
            for process in self._running:
                process.kill()
                process.wait()
        return first, code if code >= 0 else 128 - code

    def _log(self, number: int) -> Path:
        return self._folder / f"rank_{self._ranks[number]}.log"

    def _start(self, number: int) -> None:
        with open(self._log(number), "wb") as log:
            self._running.append(
                subprocess.Popen(
                    self._command,
                    env=self._environments[number],
                    stdin=subprocess.DEVNULL,
                    stdout=log if number else None,
                    stderr=log if number else None,
                    start_new_session=True,  # Ctrl-C reaches them once, through this process
                    preexec_fn=end_with_parent,
                )
            )

    def _wait(self) -> tuple[int | None, int]:
        """Wait until one has failed, all have ended well (None, 0), or another node is lost (None, 1).

        Passes on signals meanwhile.
        """
        told, until = 0, None
        while True:
            ended = [process.poll() for process in self._running]
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
            if until is None and self._layout.has_lost_a_node():
                until = time.monotonic() + _TIME_TO_SAY_WHY
            if until is not None and time.monotonic() > until:
                return None, 1
            time.sleep(0.1)

    def _end_others(self, code: int) -> None:
        """Ask the processes to end, unless they stop by themselves; the caller kills what is left in the end."""
        until = time.monotonic() + _TIME_TO_STOP
        if not _has_stopped(code):
            until = time.monotonic() + _TIME_TO_END
            for process in self._running:
                process.terminate()
        for process in self._running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0, until - time.monotonic()))

    def repeat_error(self, number: int | None, code: int) -> None:
        """Print the line of a user's error, unless the first process of the node has said one."""
        if code == 2 and number and self._running[0].returncode != code:
            print(*self._lines(number)[-1:], sep="\n", file=sys.stderr)

    def report(self, number: int | None) -> str:
        """A line on what became of the process that failed first; its last lines are printed before."""
        kept = f"what the other processes wrote is in {self._folder} on {socket.gethostname()}"
        if number is None:
            text = "error: another node of this run has ended, its output says why"
            return f"{text}; the processes of this node were ended too; the same commands continue the run; {kept}"
        lines = self._lines(number) if number else []  # the first one has the terminal
        for line in lines[-_LAST_LINES:]:
            print(f"rank {self._ranks[number]}: {line}", file=sys.stderr)
        which = f"rank {self._ranks[number]} of {self._environments[0]['PADDLE_TRAINERS_NUM']}"
        code = self._running[number].returncode
        if code > 0:
            return f"error: {which} failed, see above, and the others were ended; {kept}"
        name = signal.Signals(-code).name
        return f"error: {which} was ended by {name}, and the others with it; the same command continues the run; {kept}"

    def _lines(self, number: int) -> list[str]:
        return self._log(number).read_text(errors="replace").strip().splitlines()


if __name__ == "__main__":
    run_command(main)
