"""The evidence of a run in logs/<run>/: header, metrics.jsonl, and VisualDL records made from the same rows.

`run.json` says what was run, where and how it ended; `metrics.jsonl` has one line a record, with its step.
"""

import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import paddle
from visualdl import LogWriter

from common.atomic import atomic_write
from reproduce import PROCESSOR_SETTINGS, ROOT

_PACKAGES = ("paddlepaddle", "paddlepaddle-gpu", "numpy", "pandas", "matplotlib", "visualdl", "pillow",
             "scikit-learn", "safetensors")  # fmt: skip


class RunLog:
    """Writer of one run's records. Opened anew on a resumed run, it drops the rows after `first_step`."""

    def __init__(self, folder: Path, header: dict, first_step: int, hyper_parameters: dict):
        folder.mkdir(parents=True, exist_ok=True)
        if first_step and (folder / "run.json").exists():  # a continued run: what it was started with stays on record
            earlier = json.loads((folder / "run.json").read_text())
            start = {key: earlier[key] for key in ("machine", "continued_after_step")}
            header["earlier_starts"] = [*earlier.get("earlier_starts", []), start]
        self.folder, self.header = folder, header
        self._metrics = folder / "metrics.jsonl"
        rows = [row for row in read_metrics(folder) if row["step"] <= first_step] if first_step else []
        with atomic_write(self._metrics, "w") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        for old in folder.glob("vdlrecords.*"):  # made from metrics.jsonl, and again below
            old.unlink()
        self._board = LogWriter(logdir=str(folder))
        plain = {k: (int(v) if isinstance(v, bool) else v) for k, v in hyper_parameters.items()}
        self._board.add_hparams(plain, ["validation/accuracy", "test/accuracy"])
        for row in rows:
            self._to_board(row)
        self._write_header()

    def _write_header(self) -> None:
        with atomic_write(self.folder / "run.json", "w") as file:
            json.dump(self.header, file, indent=1)
            file.write("\n")

    def add(self, step: int, values: dict) -> None:
        """Append one record; the names of the values are VisualDL's tags ("train/loss")."""
        row = {"step": step, **values}
        with open(self._metrics, "a") as file:
            file.write(json.dumps(row) + "\n")
        self._to_board(row)

    def _to_board(self, row: dict) -> None:
        for name, value in row.items():
            if "/" in name:
                self._board.add_scalar(tag=name, step=row["step"], value=value)

    def close(self, **more) -> None:
        """End the record; `more` goes into the header."""
        self._board.close()
        self.header.update(more)
        self._write_header()


def read_metrics(folder: Path) -> list[dict]:
    """The records of a run, in order. A last line cut short by a kill is left out."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def machine() -> dict:
    """What the run is computed with: versions, processor, settings, git commit and whether the tree was dirty."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": None if changes is None else bool(changes),
        "python": platform.python_version(),
        "packages": versions,
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "settings": PROCESSOR_SETTINGS,
        "device": paddle.get_device(),
        "gpu": paddle.device.cuda.get_device_name() if paddle.get_device().startswith("gpu") else None,
    }


def _git(*arguments) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None  # not a clone, or no git: the header says null
    return done.stdout.strip()


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
