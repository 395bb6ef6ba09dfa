"""Runs that tests start, hurt and start again, as a user or a cluster does."""

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from reproduce import ROOT


def options(**values) -> list:
    """Words of a command line."""
    return [word for name, value in values.items() for word in (f"--{name}", value)]


DIGITS = (
    "digits",
    *options(num_steps=60, warmup_steps=4, eval_every=20, batch_size=16, log_every=4, save_every=5),
)


class Run:
    """One run under a folder of its own; each `start` is the same command."""

    def __init__(self, out: Path, *arguments, processes: int = 1, **environment):
        self.out, self.processes = Path(out), processes
        self.streams = self.out  # where its output goes
        self.arguments = [*map(str, arguments), "--run", "run", "--out", str(out)]
        self.environment = {**os.environ, "NPROC": str(processes), **environment}
        self.saved, self.logs = self.out / "checkpoints" / "run", self.out / "logs" / "run"

    def start(self, *more, module: str = "reproduce.train") -> subprocess.Popen:
        self.streams.mkdir(exist_ok=True, parents=True)
        with open(self.streams / "stdout.txt", "w") as stdout, open(self.streams / "stderr.txt", "w") as stderr:
            return subprocess.Popen(
                [sys.executable, "-m", "reproduce.launch", module, *self.arguments, *map(str, more)],
                cwd=ROOT,
                env=self.environment,
                stdout=stdout,
                stderr=stderr,
            )

    def finish(self, process: subprocess.Popen | None = None) -> int:
        return (process or self.start()).wait(timeout=900)

    @property
    def stdout(self) -> str:
        return (self.streams / "stdout.txt").read_text()

    @property
    def stderr(self) -> str:
        return (self.streams / "stderr.txt").read_text()

    def await_step(self, process: subprocess.Popen, step: int) -> None:
        """Return once a state of at least that update is there."""
        while not any(int(path.stem[5:]) >= step for path in self.saved.glob("step_*.pdstate")):
            assert process.poll() is None, self.stderr
            time.sleep(0.01)

    def await_text(self, process: subprocess.Popen, text: str) -> None:
        while text not in self.stdout + self.stderr:
            assert process.poll() is None, self.stderr
            time.sleep(0.01)

    def states(self) -> list[Path]:
        return sorted(self.saved.glob("step_*.pdstate"))

    def weights(self, name: str = "last") -> str:
        """SHA-256 of a weight file."""
        return hashlib.sha256((self.saved / f"{name}.pdparams").read_bytes()).hexdigest()

    def records(self) -> list[dict]:
        """The rows of metrics.jsonl but for the speed, which no two runs share."""
        rows = map(json.loads, (self.logs / "metrics.jsonl").read_text().splitlines())
        return [{k: v for k, v in row.items() if k != "train/images_per_second"} for row in rows]

    def result(self) -> dict:
        return json.loads((self.logs / "run.json").read_text())["result"]


def descendants(pid: int) -> list[int]:
    """Processes below `pid`, nearest first."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            found += map(int, task.read_text().split())
    return found[1:]


def workers(process: subprocess.Popen) -> list[int]:
    """The training processes that a launch started, by rank."""
    return sorted(pid for pid in descendants(process.pid) if b"reproduce.train" in _cmdline(pid))


def alive(pid: int) -> bool:
    """Whether the process still runs; one that nobody has asked after since its end does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
