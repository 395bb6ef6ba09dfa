"""What every command shares: its options, errors that users can read, the device, signals that ask it to stop."""

import argparse
import contextlib
import os
import shlex
import signal
import sys
import time
from pathlib import Path

import paddle

from common.errors import UserError, near
from reproduce import SET_HERE, distributed

WEIGHTS_HELP = (
    "a weight file of a ViT: this project's or Paddle's .pdparams, .safetensors of timm or Hugging Face, "
    "Google's .npz, the official code's .bin"
)
# SIGTERM: kill, and SLURM's pre-emption. SIGHUP: a terminal that closes. SIGUSR1: SLURM, ahead of the time limit.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # under nohup it is ignored, and stays so
    SIGNALS += (signal.SIGHUP,)
_GRACE = 10  # seconds after a lost contact
_CALLED_HERE = {  # what other projects call an option -> what it is called here
    "--lr": "--learning_rate",
    "--epochs": "--num_epochs",
    "--steps": "--num_steps",
    "--resume": "the same command again, which continues the run",
    "--output_dir": "--out",
    "--name": "--run",
    "--img_size": "--image_size",
    "--train_batch_size": "--batch_size",
    "--fp16": "--precision fp16",
    "--gradient_accumulation_steps": "--micro_batch_size (images at once)",
}


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
        if not self.signal and distributed.is_main():
            text = f"\n{signal.Signals(number).name} received: stops after this step and saves\n"
            with contextlib.suppress(OSError):  # the terminal may be gone, as SIGHUP says
                os.write(2, text.encode())  # a print in progress cannot be entered again
        self.signal = self.signal or number


def command_to_continue() -> str:
    """What the user types to go on with the run of this process."""
    arguments = [word for word in sys.argv[1:] if word != "--restart"]
    if "RDROP_SBATCH" in os.environ:  # run_train.sh was submitted; with which nodes and GPUs, only its user knows
        return "the same sbatch command"
    script = "bash run_train.sh"
    if Path(sys.argv[0]).stem == "study":
        script += " --study"
    names = [name for name in ("NPROC", "NNODES", "NODE_RANK", "MASTER") if name in os.environ]
    variables = [f"{name}={os.environ[name]}" for name in names]
    return " ".join([*variables, script, shlex.join(arguments)])


def run_command(main) -> None:
    """Run `main()`; a user's error ends in one line on stderr and exit code 2, a defect in its traceback."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.reconfigure(errors="backslashreplace")  # names of files need not be text
    try:
        main()
    except UserError as error:
        sys.exit(_fail(str(error)))
    except Stopped as stopped:
        if distributed.is_main():
            name = signal.Signals(stopped.signal).name
            with contextlib.suppress(OSError):  # a terminal that is gone
                print(f"stopped by {name} {stopped}. Continue with: {command_to_continue()}", file=sys.stderr)
        else:
            time.sleep(1)  # the launcher ends all when it sees one end: the one that speaks goes first
        sys.exit(128 + stopped.signal)
    except BrokenPipeError:  # `... | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except KeyboardInterrupt:
        print("\nstopped by Ctrl-C", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        _end_with(error)


def _end_with(error: Exception) -> None:
    """Say in a line what the machine lacks; anything else is a defect and keeps its traceback."""
    if is_out_of_memory(error):
        sys.exit(_fail("out of memory; lower --micro_batch_size, or the batch size of the evaluation"))
    if distributed.is_lost_contact(error):
        time.sleep(_GRACE)  # the launcher shall see the process that failed first, and it ends this one meanwhile
        print(str(error).strip(), file=sys.stderr)
        _fail("lost contact with another process of this run; its output says why, and the lines above what was seen")
        sys.exit(1)
    if not isinstance(error, OSError) or (error.filename is None and error.errno is None):
        raise error
    where = f"{error.filename}: " if error.filename else ""
    sys.exit(_fail(f"{where}{error.strerror}; check the path, the permissions and the free space"))


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the host or the GPU had no memory left; Paddle says so in an OSError too, as in recompute."""
    words = ("ResourceExhausted", "Out of memory", "out of memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError | SystemError | OSError) and any(word in str(error) for word in words)
    )


def has_gpu() -> bool:
    """Whether this build of Paddle can compute on a GPU that is there."""
    return paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0


def on_gpu() -> bool:
    """Whether this process computes on a GPU."""
    return paddle.get_device().startswith("gpu")


def choose_device(wish: str) -> str:
    """Set Paddle's device to `wish` (auto, cpu, gpu) and return its name, such as "cpu" or "gpu:0"."""
    if wish == "gpu" and not has_gpu():
        build = "no GPU was found" if paddle.is_compiled_with_cuda() else "this is the CPU build of PaddlePaddle"
        raise UserError(f"--device gpu: {build}; use --device cpu, or see docs/cluster.md on the GPU build")
    device = "gpu" if wish != "cpu" and has_gpu() else "cpu"
    if wish == "auto" and device == "cpu" and paddle.is_compiled_with_cuda():
        say("warning", "the GPU build of PaddlePaddle finds no GPU and computes on the CPU; see docs/cluster.md")
    if device == "gpu" and "FLAGS_use_stride_kernel" in SET_HERE:  # off for CPUs alone
        paddle.set_flags({"FLAGS_use_stride_kernel": True})
    if device == "gpu":  # else Paddle computes convolutions of fp32 in TF32, with 10 bits instead of 23
        paddle.base.core.set_cudnn_switch(False)
        paddle.base.core.set_cublas_switch(False)
    paddle.set_device(device)
    return paddle.get_device()


def say(what: str, text: str) -> None:
    """One line of what was chosen or found, in columns; the first of several processes speaks for all."""
    if distributed.is_main():
        print(f"{what + ':':11} {text}", flush=True)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, without the list of all options before them."""

    def __init__(self, **options):
        by_hand = "\n" in options.get("description", "")  # and not to be wrapped anew
        kind = argparse.RawDescriptionHelpFormatter if by_hand else argparse.HelpFormatter
        super().__init__(allow_abbrev=False, formatter_class=kind, **options)

    def error(self, message):
        raise UserError(f"{message} (--help explains the options)")


def parse(parser: Parser, arguments=None) -> argparse.Namespace:
    """Parse the command line; an unknown option is an error that names what it is called here, or the near ones."""
    options, unknown = parser.parse_known_args(arguments)
    if not unknown:
        return options
    known = [name for action in parser._actions for name in action.option_strings]
    named = unknown[0].split("=")[0].replace("-", "_").replace("__", "--", 1)
    hint = ""
    if named in _CALLED_HERE:
        hint = f"; here it is {_CALLED_HERE[named]}"
    elif named.startswith("--"):
        hint = f"; {near(named, known)}"
    parser.error(f"unknown: {' '.join(unknown)}{hint}")
