"""What a published VisualDL log says: the accuracy on the whole test set, and how many images a value was counted on.

    python -m reproduce.audit LOG [LOG...]     the record files (vdlrecords.*) of one run

Several processes may have written the files, each its own share of the test set; then only the mean over the processes
is an accuracy on the whole of it. How many images a value was counted on follows from the values: all are multiples of
1/N. logs/published has what was found in the published logs of R-Drop, and what they say of the claims made with them.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from common.atomic import require_file
from common.errors import UserError, printable
from reproduce import ROOT
from reproduce.cli import Parser, parse, run_command

ACCURACY = "test/accuracy"  # the scalar that the published R-Drop logs have
FOLDER = ROOT / "logs" / "published"
ZBP, ZPC = "zbp-xxxp/R-Drop-Paddle", "zpc-666/Paddle-R-Drop"
_LARGEST_UNIT = 200_000  # images; beyond, float32 cannot tell a multiple of 1/N from any other number
_LEAST_VALUES = 7  # that so many different values share a unit twice as large by chance: 2 ** -7
_IN_MILLISECONDS = 1e11  # time stamps above are milliseconds: VisualDL changed from seconds in 2021
_SLACK = 2.0  # seconds between the stamps of two processes that wait for each other at every step


@dataclass(frozen=True)
class Log:
    """One record file: every scalar as a table with the columns step, value, time (Unix seconds), in file order."""

    path: Path
    sha256: str
    scalars: dict[str, pd.DataFrame]


def read_log(path) -> Log:
    """Read one record file. Raises UserError when it is none, cut short or damaged.

    A record is 8 bytes that say how long it is, then a protobuf message.
    """
    from google.protobuf.message import DecodeError  # late: other readers of this module's tables need no VisualDL
    from visualdl.proto.record_pb2 import Record

    path = Path(path)
    require_file(path)
    content = path.read_bytes()
    rows, start = [], 0
    while start < len(content):
        end = start + 8 + int.from_bytes(content[start : start + 8], "little")
        try:
            (value,) = Record.FromString(content[start + 8 : end]).values if end <= len(content) else ()
        except (DecodeError, ValueError):
            raise UserError(f"{path}: no VisualDL record file, or damaged at byte {start:,}; get it again") from None
        if value.WhichOneof("one_value") == "value":
            rows.append((value.tag, value.id, value.value, value.timestamp))
        start = end
    table = pd.DataFrame(rows, columns=("tag", "step", "value", "time")).astype({"time": float})
    if table["time"].median() > _IN_MILLISECONDS:
        table["time"] /= 1000
    scalars = {tag: own.drop(columns="tag").reset_index(drop=True) for tag, own in table.groupby("tag", sort=False)}
    return Log(path, hashlib.sha256(content).hexdigest(), scalars)


def audit(logs: list[Log], accuracy_tag: str = ACCURACY) -> tuple[dict, pd.DataFrame]:
    """The run that wrote `logs`, as a row of logs/published/runs.csv, and its accuracies.

    The table has run, step, processes, and of the accuracies of the processes mean, lowest and highest in %. Steps that
    a process did not record are left out.

    accuracy_tag: the scalar of the test accuracy, shares of 1 or percentages. Raises UserError for a log without it, or
    with values that are none, and for logs that are not of one run.
    """
    accuracies = [_accuracy(log, accuracy_tag) for log in logs]
    for log, own in zip(logs[1:], accuracies[1:], strict=True):
        if log.sha256 == logs[0].sha256 or not _keep_pace(accuracies[0], own):
            text = f"{log.path}: is a copy of {logs[0].path}, or of another run"
            raise UserError(f"{text}; give the files of one run, each once")
    accuracy = pd.concat(accuracies)
    images = images_per_value(accuracy["value"])
    if images:  # free of the rounding of float32
        accuracy = accuracy.assign(value=np.rint(accuracy["value"] * images) / images)
    grouped = accuracy.groupby("step")["value"]
    processes = int(grouped.size().mode().max())
    steps = grouped.agg(["mean", "min", "max"])[grouped.size() == processes]
    differ = processes > 1 and (steps["max"] > steps["min"]).any()
    percent = (100 * steps).round(4)  # so that equal counts are equal
    every = pd.concat([table for log in logs for table in log.scalars.values()])
    began, best = every["time"].min(), percent["mean"].idxmax()
    row = {
        "run": " + ".join(log.path.name.removesuffix(".log").removeprefix("vdlrecords.") for log in logs),
        "started": str(np.datetime64(int(began), "s")).partition("T")[0],  # UTC
        "hours": round((every["time"].max() - began) / 3600, 2),
        "processes": processes,
        "updates": int(every["step"].max()),
        "evaluations": len(steps),
        "images_per_value": images or 0,
        "test_images": (images or 0) * (processes if differ else 1),
        "best_value": percent["max"].max(),
        "best_value_step": int(percent["max"].idxmax()),
        "best": percent["mean"].max(),
        "best_step": int(best),
        "best_times": int((percent["mean"] == percent["mean"].max()).sum()),
        "last": percent["mean"].iloc[-1],
        "last_step": int(percent.index[-1]),
        "sha256": " ".join(log.sha256 for log in logs),
    }
    percent = percent.rename(columns={"min": "lowest", "max": "highest"}).reset_index()
    percent.insert(0, "run", row["run"])
    return row, percent.assign(processes=processes)


def _accuracy(log: Log, tag: str) -> pd.DataFrame:
    """The accuracies of a log as shares of 1."""
    table = log.scalars.get(tag)
    if table is None:
        there = printable(", ".join(sorted(log.scalars)) or "none")
        raise UserError(f"{log.path}: has no scalar {tag} (it has {there}); name one with --accuracy_tag TAG")
    wrong = table["value"][~table["value"].between(0, 100)]
    if len(wrong):
        text = f"{log.path}: {tag} has the value {wrong.iloc[0]:g}, which is neither a share nor a percentage"
        raise UserError(f"{text}; name the accuracy with --accuracy_tag TAG")
    back = (table["step"].diff() < 0) & (table["step"] <= table["step"].iloc[0])
    if back.any():
        text = f"{log.path}: holds more than one run: {tag} begins again at step {table['step'][back].iloc[0]:,}"
        raise UserError(f"{text}; give files of one run each")
    return table.assign(value=table["value"] / (100 if table["value"].max() > 1 else 1))


def _keep_pace(one: pd.DataFrame, other: pd.DataFrame) -> bool:
    """Whether two files are of one run: the same steps at the same times, as of processes that wait for each other."""
    times, others = (table.groupby("step")["time"].mean() for table in (one, other))
    return times.index.equals(others.index) and bool((times - others).abs().max() <= _SLACK)


def images_per_value(shares) -> int | None:
    """The smallest N such that every share is a multiple of 1/N within the rounding of float32.

    None when there is no such N, or when fewer than _LEAST_VALUES different shares could have it by chance.
    """
    shares = np.unique([share for share in shares if 0 < share < 1])
    if len(shares) < _LEAST_VALUES:
        return None
    candidates = np.arange(1, _LARGEST_UNIT + 1)
    for share in shares:
        counts = share * candidates
        candidates = candidates[np.abs(counts - np.rint(counts)) <= counts * np.finfo(np.float32).eps]
    return int(candidates[0]) if len(candidates) else None


def read_record(folder: Path = FOLDER) -> dict[str, pd.DataFrame]:
    """runs and accuracy, as `audit` gave them, and, written by hand, claims and literature: what others report.

    Raises UserError for a file that is missing or not whole.
    """
    found = {}
    for name in ("runs", "accuracy", "claims", "literature"):
        path = folder / f"{name}.csv"
        try:  # empty cells are empty texts, figures from the literature keep their digits
            found[name] = pd.read_csv(path, dtype={"run": str, "top1": str}, keep_default_na=False)
        except (OSError, ValueError) as problem:
            raise UserError(f"{path}: not whole ({problem}); take it from git") from None
    return found


_ABOUT = """Audit the VisualDL logs of one run. All accuracies are percentages. best_value is that of one process, on
images_per_value images of its own; best and last are means over the processes, which together counted test_images."""


def main(argv=None) -> None:
    parser = Parser(prog="python -m reproduce.audit", description=_ABOUT)
    parser.add_argument("logs", nargs="+", metavar="LOG", help="VisualDL record file; all are of one run")
    parser.add_argument("--accuracy_tag", default=ACCURACY, help="scalar of the test accuracy")
    options = parse(parser, argv)
    row, _ = audit([read_log(path) for path in options.logs], options.accuracy_tag)
    for name, value in row.items():
        print(f"{name:17}{value or 'cannot tell'}")


if __name__ == "__main__":
    run_command(main)
