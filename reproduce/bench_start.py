"""How long a program takes from its start: the competitors of `reproduce.bench --part start`."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_POLL = 0.002  # seconds


class Train:
    """Called, it runs one step of a recipe by the command that users run; its files go to a temporary folder."""

    def __init__(self, *, recipe: str):
        self.arguments = ["-m", "reproduce.train", recipe, "--num_steps", "1", "--eval_every", "0", "--run", "start"]

    def __call__(self) -> dict:
        with tempfile.TemporaryDirectory() as out:
            record = Path(out, "logs", "start", "metrics.jsonl")  # its first line follows the first step
            return _timed([*self.arguments, "--out", out], lambda _: record.exists() and record.stat().st_size > 0)


class Torch:
    """The same with PyTorch: import, build, one step on random images; no data set, no files."""

    def __init__(self, *, batch: int, **options):
        from bench_torch import Step  # noqa: F401  says now what is missing

        self.arguments = [str(_HERE / "bench_torch.py"), json.dumps({"batch": batch, "steps": 1, **options})]

    def __call__(self) -> dict:
        return _timed(self.arguments, lambda output: os.fstat(output.fileno()).st_size > 0)


def _timed(arguments: list[str], stepped) -> dict:
    """Run Python; {"first_step": seconds until `stepped(its output)`}. Raises RuntimeError if it fails."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        began = time.perf_counter()
        process = subprocess.Popen([sys.executable, *arguments], cwd=_HERE.parent, stdout=output, stderr=errors)
        while process.poll() is None and not stepped(output):
            time.sleep(_POLL)
        first_step = time.perf_counter() - began
        if process.wait():
            errors.seek(0)
            raise RuntimeError(errors.read().decode().strip().rpartition("\n")[2])
    return {"first_step": first_step}
