"""Signals that ask a run to stop: it saves at the next step boundary, and says how to go on."""

import os
import shlex
import signal
import sys
from pathlib import Path

from reproduce import distributed

# SIGTERM: kill, and SLURM's pre-emption. SIGUSR1: what `sbatch --signal` sends ahead of the time limit.
# SIGHUP: the terminal was closed; under nohup it is ignored, and stays so.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
    SIGNALS += (signal.SIGHUP,)


class Stopped(Exception):
    """The run was asked to stop and has saved what there is. `signal` is the number of the signal."""

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.signal = number


class StopRequest:
    """Which signal has asked to stop, noted for the loop to look at: `request.signal`, 0 as long as none has.

    A second Ctrl-C ends the process at once.
    """

    def __init__(self):
        self.signal = 0
        self._before = {}

    def __enter__(self):
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        for number in SIGNALS:
            signal.siginterrupt(number, False)  # the processes' messages to each other must not be cut short
        return self

    def __exit__(self, *error):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number, frame) -> None:
        if self.signal and number == signal.SIGINT:
            # Not KeyboardInterrupt: in a layer's own backward pass, which Paddle calls, it would become another error.
            os.write(2, b"\nstopped by Ctrl-C\n")
            os._exit(130)
        if not self.signal and distributed.is_main():  # os.write: a print in progress cannot be entered again
            os.write(2, f"\n{signal.Signals(number).name} received: stops after this step and saves\n".encode())
        self.signal = self.signal or number

    def agreed(self) -> int:
        """The signal that any of the processes has received, or 0; every process gets the same answer."""
        return distributed.largest(self.signal)


def command_to_continue() -> str:
    """What the user types to go on with the run of this process."""
    arguments = [word for word in sys.argv[1:] if word != "--restart"]
    if "RDROP_SBATCH" in os.environ:  # run_train.sh was submitted; with which nodes and GPUs, only its user knows
        return "the same sbatch command"
    script = "bash run_train.sh --study" if Path(sys.argv[0]).stem == "study" else "bash run_train.sh"
    variables = [f"{name}={os.environ[name]}" for name in ("NPROC", "NNODES", "NODE_RANK", "MASTER")
                 if name in os.environ]  # fmt: skip
    return " ".join([*variables, script, shlex.join(arguments)])
