"""What every command shares: its options, errors that users can read, the device, signals that ask it to stop."""

import argparse
import contextlib
import os
import signal
import sys
import time

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
_LOST_CONTACT = ("gloo", "NCCL", "nccl", "TCP")  # one of them is in what the message layer says of it
_GRACE = 10  # seconds after a lost contact


class Stopped(Exception):
    """Stopped(number of the signal, where the run stands): it was asked to stop and has saved what there is."""


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


def run_command(main) -> None:
    """Run `main()`; a user's error ends in one line on stderr and exit code 2, a defect in its traceback."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # names of files need not be text
    try:
        main()
    except Stopped as stopped:
        number, where = stopped.args
        if distributed.is_main():
            without = ", without --restart," if "--restart" in sys.argv else ""
            text = f"stopped by {signal.Signals(number).name} {where}. The same command{without} continues"
            with contextlib.suppress(OSError):  # a terminal that is gone
                print(text, file=sys.stderr)
        else:
            time.sleep(1)  # the launcher ends all when it sees one end: the one that speaks goes first
        sys.exit(128 + number)
    except BrokenPipeError:  # `... | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except KeyboardInterrupt:
        print("\nstopped by Ctrl-C", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        sys.exit(_explain(error))


def _explain(error: Exception) -> int:
    """Print what a user can do about it in a line, and return the exit code; a defect is raised again."""
    code = 2
    if isinstance(error, UserError):
        text = str(error)
    elif is_out_of_memory(error):
        text = "out of memory; lower --micro_batch_size, or the batch size of the evaluation"
    elif distributed.size() > 1 and any(word in str(error) for word in _LOST_CONTACT):
        time.sleep(_GRACE)  # the launcher shall see the process that failed first, and it ends this one meanwhile
        print(str(error).strip(), file=sys.stderr)
        text = "lost contact with another process of this run; its output says why, and the lines above what was seen"
        code = 1
    elif isinstance(error, OSError) and (error.filename or error.errno):
        where = f"{error.filename}: " if error.filename else ""
        text = f"{where}{error.strerror}; check the path, the permissions and the free space"
    else:
        raise error
    print(f"error: {text}", file=sys.stderr)
    return code


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the host or the GPU had no memory left; Paddle says so in an OSError too, as in recompute."""
    if isinstance(error, RuntimeError | SystemError | OSError):
        return any(words in str(error) for words in ("ResourceExhausted", "Out of memory", "out of memory"))
    return isinstance(error, MemoryError)


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
    if wish == "cpu" or not has_gpu():
        if wish == "auto" and paddle.is_compiled_with_cuda():
            say("warning", "the GPU build of PaddlePaddle finds no GPU and computes on the CPU; see docs/cluster.md")
        paddle.set_device("cpu")
        return "cpu"
    if "FLAGS_use_stride_kernel" in SET_HERE:  # off for CPUs alone
        paddle.set_flags({"FLAGS_use_stride_kernel": True})
    paddle.base.core.set_cudnn_switch(False)  # else Paddle computes fp32 in TF32, with 10 bits instead of 23
    paddle.base.core.set_cublas_switch(False)
    paddle.set_device("gpu")
    return paddle.get_device()


def say(what: str, text: str) -> None:
    """One line of what was chosen or found, in columns; the first of several processes speaks for all."""
    if distributed.is_main():
        print(f"{what + ':':11} {text}", flush=True)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, without the list of all options before them."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message):
        raise UserError(f"{message} (--help explains the options)")


def parse(parser: Parser, arguments=None) -> argparse.Namespace:
    """Parse the command line; an unknown option is an error that names those that are spelt alike."""
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        text = f"unknown: {' '.join(unknown)}"
        if unknown[0].startswith("--"):
            named = unknown[0].split("=")[0].lstrip("-").replace("-", "_")
            text += "; " + near(named, [option.lstrip("-") for option in parser._option_string_actions])
        parser.error(text)
    return options
