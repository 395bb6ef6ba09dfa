"""The evidence of a run in logs/<run>/: header, metrics.jsonl, and VisualDL records made from the same rows.

`run.json` says what was run, where and how it ended; `metrics.jsonl` has one line a record, with its step.
"""

import contextlib
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import paddle
from visualdl.component.base_component import scalar
from visualdl.writer.record_writer import RecordWriter

from common.errors import UserError
from common.system import atomic_write, require_file
from reproduce import PROCESSOR_SETTINGS, ROOT, distributed
from reproduce.cli import on_gpu


class RunLog:
    """Writer of one run's header and records; the first process writes. A full disk is an OSError.

    `rows` are all records so far. `add` appends to them, and resumable states keep them too: what was written after
    such a state is replaced when the run goes on from it.
    """

    def __init__(self, folder: Path, header: dict, rows: list[dict]):
        self.folder, self.header, self._rows = folder, header, rows
        if not distributed.is_main():
            return
        if header["continued_after_step"]:
            earlier = read_header(folder) or {}
            start = {key: earlier.get(key) for key in ("machine", "continued_after_step")}
            header["earlier_starts"] = [*earlier.get("earlier_starts", []), start]
        self.note()
        with atomic_write(folder / "metrics.jsonl", "w") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        for old in folder.glob("vdlrecords.*"):  # made from the rows, and here again
            old.unlink()
        self._board = folder / f"vdlrecords.{int(time.time()):010d}.log"
        self._to_board(rows)

    def add(self, step: int, values: dict) -> None:
        """Append one record; the names of the values are VisualDL's tags ("train/loss")."""
        row = {"step": step, **values}
        self._rows.append(row)
        if distributed.is_main():
            with open(self.folder / "metrics.jsonl", "a") as file:
                file.write(json.dumps(row) + "\n")
            self._to_board([row])

    def note(self, **more) -> None:
        """Put `more` into the header."""
        self.header.update(more)
        if distributed.is_main():
            with atomic_write(self.folder / "run.json", "w") as file:
                file.write(json.dumps(self.header, indent=1) + "\n")

    def _to_board(self, rows: list[dict]) -> None:
        # Not through LogWriter: its background thread dies when the disk is full, and closing it then hangs.
        now = round(1000 * time.time())  # VisualDL's wall times are milliseconds
        with open(self._board, "ab") as file:
            writer = RecordWriter(file)
            for row in rows:
                for tag, value in row.items():
                    if tag != "step":
                        writer.write(scalar(tag, value, row["step"], now).SerializeToString())


def read_header(folder: Path) -> dict | None:
    """The run.json of a run, which has at least a `recipe` and `finished`; None where there is none."""
    path = folder / "run.json"
    if not path.exists():
        return None
    require_file(path)
    try:
        header = json.loads(path.read_text())
        if not isinstance(header["recipe"], dict) or type(header["finished"]) is not bool:
            raise ValueError
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        raise UserError(f"{path}: is damaged, or not the record of a run; restore or remove it") from None
    return header


def read_metrics(folder: Path) -> list[dict]:
    """The records of a run, objects of numbers with a whole "step". A last line cut short by a kill is left out."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return []
    lines = path.read_text(errors="replace").splitlines()
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            if rows and number == len(lines):
                break
            row = None
        whole = isinstance(row, dict) and type(row.get("step")) is int
        if not whole or not all(type(value) in (int, float) for value in row.values()):
            raise UserError(f"{path}, line {number}: not a record of a run; restore the file, or move its folder away")
        rows.append(row)
    return rows


def machine() -> dict:
    """What the run is computed with: versions, processor, settings, git commit and whether the tree was dirty."""
    versions = {}
    for name in ("paddlepaddle", "paddlepaddle-gpu", "numpy", "pillow", "safetensors", "visualdl", "torch", "timm"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    changes = _git("status", "--porcelain", "--untracked-files=no")
    processor = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": None if changes is None else bool(changes),
        "python": platform.python_version(),
        "packages": versions,
        "processor": processor[1].strip() if processor else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "processes": distributed.size(),
        "nodes": distributed.nodes(),
        "settings": PROCESSOR_SETTINGS,
        "device": paddle.get_device(),
        "gpu": paddle.device.cuda.get_device_name() if on_gpu() else None,
    }


def _git(*arguments) -> str | None:
    """What git says of this project; None where it is not a clone, or lies in somebody else's, or git is missing."""
    command = ["git", "--git-dir", ROOT / ".git", *arguments]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
