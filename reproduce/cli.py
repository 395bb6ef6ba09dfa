"""What every command shares: errors that users can read, and the choice of the device."""

import argparse
import os
import signal
import sys
import time

import paddle

from common.errors import UserError, near
from reproduce import distributed
from reproduce.stop import Stopped, command_to_continue

WEIGHTS_HELP = (
    "a weight file of a ViT: this project's or Paddle's .pdparams, .safetensors of timm or Hugging Face, "
    "Google's .npz, the official code's .bin"
)


def run_command(main) -> None:
    """Run `main()`; a user's error ends in one line on stderr and exit code 2, a defect in its traceback."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # names of files need not be text
    try:
        main()
    except UserError as error:
        sys.exit(_fail(str(error)))
    except Stopped as stopped:
        if distributed.is_main():
            name = signal.Signals(stopped.signal).name
            print(f"stopped by {name} {stopped}. Continue with: {command_to_continue()}", file=sys.stderr)
        else:
            time.sleep(1)  # the launcher ends all when it sees one end: the one that speaks goes first
        sys.exit(128 + stopped.signal)
    except BrokenPipeError:  # `... | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except MemoryError:
        sys.exit(_fail("out of memory; lower --micro_batch_size, or the batch size of the evaluation"))
    except KeyboardInterrupt:
        print("\nstopped by Ctrl-C", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if distributed.is_lost_contact(error):
            distributed.await_the_launcher()
            print(str(error).strip(), file=sys.stderr)
            _fail("lost contact with another process of this run: if its output says nothing, the lines above are why")
            sys.exit(1)
        if not isinstance(error, OSError) or (error.filename is None and error.errno is None):
            raise
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(_fail(f"{where}{error.strerror}; check the path, the permissions and the free space"))


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


def has_gpu() -> bool:
    """Whether this build of Paddle can compute on a GPU that is there."""
    return paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0


def choose_device(wish: str) -> str:
    """Set Paddle's device to `wish` (auto, cpu, gpu) and return its name, such as "cpu" or "gpu:0"."""
    if wish == "gpu" and not has_gpu():
        build = "no GPU was found" if paddle.is_compiled_with_cuda() else "this is the CPU build of PaddlePaddle"
        raise UserError(f"--device gpu: {build}; use --device cpu, or see README.md on the GPU build")
    return paddle.set_device("gpu" if wish != "cpu" and has_gpu() else "cpu") and paddle.get_device()


def say(what: str, text: str) -> None:
    """One line of what was chosen or found, in columns; the first of several processes speaks for all."""
    if distributed.is_main():
        print(f"{what + ':':11} {text}", flush=True)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, without the list of all options before them."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, **options)

    def error(self, message):
        raise UserError(f"{message} (--help explains the options)")


def parse(parser: Parser, arguments=None) -> argparse.Namespace:
    """Parse the command line; an unknown option is an error that names the near ones."""
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        known = [name for action in parser._actions for name in action.option_strings]
        named = unknown[0].split("=")[0]
        parser.error(f"unknown: {' '.join(unknown)}" + (f"; {near(named, known)}" if named.startswith("--") else ""))
    return options
