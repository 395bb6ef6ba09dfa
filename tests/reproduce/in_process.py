"""Commands in the process of the tests: as the fixture `command`, but without the seconds of starting Paddle."""

import contextlib
import importlib
import io
import subprocess
import sys
from unittest import mock

from reproduce.cli import run_command


def call(module: str, *arguments) -> subprocess.CompletedProcess:
    """`python -m MODULE ARGUMENTS...`: its exit code and what it prints."""
    stdout, stderr = (io.TextIOWrapper(io.BytesIO(), write_through=True) for _ in range(2))
    words, code = [module, *map(str, arguments)], 0
    with (
        mock.patch.object(sys, "argv", words),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        try:
            run_command(importlib.import_module(module).main)
        except SystemExit as end:
            code = end.code
    printed = [stream.buffer.getvalue().decode() for stream in (stdout, stderr)]
    return subprocess.CompletedProcess(words, code, *printed)
