"""What published VisualDL logs say: accuracy on the whole test set, schedule, and what a claim rests on.

    python -m reproduce.audit LOG_OR_FOLDER...             any logs with a scalar of the test accuracy
    python -m reproduce.audit LOG_OR_FOLDER... --record    write the tables to logs/published/ too

Several processes may have written one file, each its own share of the test set; then only the mean over the processes
is an accuracy on the whole of it. How many images a value was counted on follows from the values: all are multiples of
1/N. The schedule is read where the learning rate is logged. A claim is judged by the logs of its own repository.
"""

import hashlib
import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from common.atomic import atomic_write
from common.errors import UserError
from reproduce import ROOT
from reproduce.cli import Parser, parse, run_command, say

ACCURACY = "test/accuracy"  # the scalar that the published R-Drop logs have
FOLDER = ROOT / "logs" / "published"
_LARGEST_UNIT = 200_000  # images; beyond, float32 cannot tell a multiple of 1/N from any other number
_LEAST_VALUES = 7  # that so many different values share a unit twice as large by chance: 2 ** -7
_IN_MILLISECONDS = 1e11  # time stamps above are milliseconds: VisualDL changed from seconds in 2021
_TEST_IMAGES = 10_000  # of CIFAR-100, on which all claims rest
_SLACK = 2.0  # seconds between the stamps of two processes that wait for each other at every step

ZBP, ZPC = "zbp-xxxp/R-Drop-Paddle", "zpc-666/Paddle-R-Drop"


@dataclass(frozen=True)
class Log:
    """One record file: every scalar as a table with the columns step, value, time (Unix seconds), in file order."""

    path: Path
    sha256: str
    scalars: dict[str, pd.DataFrame]


# ---- record files


def find_logs(arguments) -> list[Path]:
    """The files meant by `arguments`: files, and folders for all record files in them. Raises UserError for others."""
    found = []
    for path in map(Path, arguments):
        inside = [path] if path.is_file() else sorted(p for p in path.rglob("*vdlrecords*") if p.is_file())
        if not inside:
            raise UserError(f"{path}: neither a file nor a folder with VisualDL record files (vdlrecords.*)")
        found += inside
    return list(dict.fromkeys(path.resolve() for path in found))


def read_log(path) -> Log:
    """Read one record file. Raises UserError when it is none, cut short or damaged.

    A record is 8 bytes that say how long it is, then a protobuf message.
    """
    from google.protobuf.message import DecodeError  # late: other readers of this module's tables need no VisualDL
    from visualdl.proto.record_pb2 import Record

    path = Path(path)
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
    if not rows:
        raise UserError(f"{path}: a VisualDL record file without scalars; give one that has a test accuracy")
    table = pd.DataFrame(rows, columns=("tag", "step", "value", "time")).astype({"time": float})
    if table["time"].median() > _IN_MILLISECONDS:
        table["time"] /= 1000
    scalars = {tag: own.drop(columns="tag").reset_index(drop=True) for tag, own in table.groupby("tag", sort=False)}
    return Log(path, hashlib.sha256(content).hexdigest(), scalars)


# ---- runs


def audit(logs: list[Log], accuracy_tag: str = ACCURACY) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The runs in `logs` in order of time, one row each, and all their accuracies.

    The first table has the columns of `_audit_run`. The second has run, step, processes, and of the accuracies of the
    processes mean, lowest and highest in %.

    accuracy_tag: the scalar of the test accuracy, shares of 1 or percentages. Raises UserError for a log without it, or
    with values that are none.
    """
    logs = list({log.sha256: log for log in logs}.values())  # a copy says nothing new
    accuracies = {log.sha256: _accuracy(log, accuracy_tag) for log in logs}
    runs: list[list[Log]] = []
    for log in sorted(logs, key=lambda log: (accuracies[log.sha256]["time"].min(), log.path.name)):
        own = accuracies[log.sha256]
        run = next((run for run in runs if _keep_pace(accuracies[run[0].sha256], own)), [])
        if not run:
            runs.append(run)
        run.append(log)
    audited = [_audit_run(run, pd.concat([accuracies[log.sha256] for log in run])) for run in runs]
    return pd.DataFrame([row for row, _ in audited]), pd.concat([table for _, table in audited], ignore_index=True)


def _accuracy(log: Log, tag: str) -> pd.DataFrame:
    """The accuracies of a log as shares of 1."""
    table = log.scalars.get(tag)
    if table is None:
        there = ", ".join(sorted(log.scalars))
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


def _audit_run(logs: list[Log], accuracy: pd.DataFrame) -> tuple[dict, pd.DataFrame]:
    """A run as a row, and its accuracies step by step. Steps that a process did not record are left out."""
    images = images_per_value(accuracy["value"])
    if images:  # free of the rounding of float32
        accuracy = accuracy.assign(value=np.rint(accuracy["value"] * images) / images)
    grouped = accuracy.groupby("step")["value"]
    processes = int(grouped.size().mode().max())
    steps = grouped.agg(["mean", "min", "max"])[grouped.size() == processes]
    differ = processes > 1 and (steps["max"] > steps["min"]).any()
    name = " + ".join(log.path.name.removesuffix(".log").removeprefix("vdlrecords.") for log in logs)
    repositories = _read(FOLDER / "files.csv").set_index("sha256")["repository"]
    percent = (100 * steps).round(4)  # so that equal counts are equal
    best, times = percent["mean"].idxmax(), pd.concat([table["time"] for log in logs for table in log.scalars.values()])
    row = {
        "run": name,
        "repository": repositories.get(logs[0].sha256, ""),
        "started": str(np.datetime64(int(times.min()), "s")).partition("T")[0],  # UTC
        "hours": round((times.max() - times.min()) / 3600, 2),
        "processes": processes,
        "updates": max(int(table["step"].max()) for log in logs for table in log.scalars.values()),
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
        "schedule": _schedule_of(logs[0]),
        "sha256": " ".join(log.sha256 for log in logs),
    }
    percent = percent.rename(columns={"min": "lowest", "max": "highest"}).reset_index()
    percent.insert(0, "run", name)
    return row, percent.assign(processes=processes)


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


# ---- schedule


def _schedule_of(log: Log) -> str:
    """What the first scalar says whose name is that of a learning rate."""
    names = [tag for tag in log.scalars if re.search(r"(^|[/_])(lr|learning_?rate)($|[/_])", tag.lower())]
    if not names:
        return "rate not logged"
    rates = log.scalars[names[0]].groupby("step")["value"].first()
    if not (np.isfinite(rates).all() and rates.max() > 0):
        return "cannot tell: the logged rate is not positive"
    return describe_schedule(rates)


def describe_schedule(rates: pd.Series) -> str:
    """Warm-up, shape, planned length and end of a schedule, from its rates by step.

    After the peak P at step W, a cosine to 0 at step T has the rate P/2 (1 + cos(pi (t - W)/(T - W))), a line
    P (1 - (t - W)/(T - W)). Each logged rate gives a T; the shape is the one for which all give the same.
    """
    peak, top = float(rates.max()), int(rates.idxmax())
    last, end = float(rates.iloc[-1]), int(rates.index[-1])
    start = int(rates.index[0])
    parts = [f"warm-up {top:,} to {peak:g}" if top > start else f"from {peak:g}, no warm-up"]
    after = rates[rates.index > top]
    share = after[(after < 0.99 * peak) & (after > 0.001 * peak)] / peak  # near the ends rounding hides the length
    if (after == peak).all():
        return ", ".join([*parts, f"constant to step {end:,}"])
    lengths = {
        "cosine": (share.index - top) * math.pi / np.arccos(2 * share - 1),
        "linear": (share.index - top) / (1 - share),
    }
    for shape, found in lengths.items():
        if len(found) and np.ptp(found) <= 0.01 * np.median(found):
            planned = round(top + float(np.median(found)), -1 if end > 1000 else 0)
            state = "finished" if end >= planned - 1 else f"stopped at {end:,}"
            return ", ".join([*parts, f"{shape} to 0 at {planned:,.0f}", state])
    return ", ".join([*parts, f"then other; {last:g} at step {end:,}"])


# ---- claims


def judge(runs: pd.DataFrame) -> pd.DataFrame:
    """The claims in logs/published/claims.csv whose repository has logs in `runs`, with three columns more.

    supported: "yes" where a run has just that value on the whole test set, "no" where none reaches it, else "cannot
    tell". reached: the highest value on the whole test set, in %. rests_on: the one process that has the value.
    """
    claims = _read(FOLDER / "claims.csv")
    claims = claims[claims["repository"].isin(runs["repository"])]
    found = [_judge(claim, runs[runs["repository"] == claim.repository]) for claim in claims.itertuples()]
    return claims.assign(**pd.DataFrame(found, claims.index, ["supported", "reached", "rests_on"]))


def _judge(claim, runs: pd.DataFrame) -> tuple[str, float, str]:
    values = runs[runs["test_images"] == _TEST_IMAGES]["last" if claim.moment == "end" else "best"].round(2)
    supported = "no"
    if (values == claim.percent).any():
        supported = "yes"
    elif values.empty or values.max() > claim.percent:
        supported = "cannot tell"
    parts = runs[(runs["processes"] > 1) & (runs["best_value"].round(2) == claim.percent)]
    rests_on = [
        f"one of {run.processes} processes, {run.images_per_value:,} images, step {run.best_value_step:,}"
        for run in parts.itertuples()
    ]
    return supported, values.max(), "; ".join(rests_on)


# ---- logs/published


def read_record(folder: Path = FOLDER) -> dict[str, pd.DataFrame]:
    """runs and accuracy, as --record wrote them, and literature: what others report, written by hand.

    Raises UserError for a file that is missing or not whole.
    """
    return {name: _read(folder / f"{name}.csv") for name in ("runs", "accuracy", "literature")}


def _read(path: Path) -> pd.DataFrame:
    """A table of logs/published; empty cells are empty texts, figures from the literature keep their digits."""
    try:
        return pd.read_csv(path, dtype={"run": str, "top1": str}, keep_default_na=False)
    except (OSError, ValueError) as problem:
        raise UserError(f"{path}: not whole ({problem}); take it from git") from None


_ABOUT = """Audit VisualDL logs of an image classifier. best_value is that of one process, on images_per_value images of
its own; best and last are means over the processes, which together counted test_images. All are percentages."""


def main(argv=None) -> None:
    parser = Parser(prog="python -m reproduce.audit", description=_ABOUT)
    parser.add_argument("logs", nargs="+", metavar="LOG", help="VisualDL record file, or a folder of them")
    parser.add_argument("--accuracy_tag", default=ACCURACY, help="scalar of the test accuracy")
    parser.add_argument("--record", action="store_true", help="write the tables to logs/published/")
    options = parse(parser, argv)
    runs, accuracy = audit([read_log(path) for path in find_logs(options.logs)], options.accuracy_tag)
    for run in runs.drop(columns="sha256").to_dict("records"):
        for name, value in run.items():
            print(f"{name:17}{value or 'cannot tell'}")
        print()
    claims = judge(runs)
    if len(claims):
        print(claims.to_string(index=False))
    if options.record:
        if not runs["repository"].all():
            raise UserError("--record is for the logs whose repositories are known; leave the others out")
        for name, table in (("runs", runs), ("accuracy", accuracy)):
            with atomic_write(FOLDER / f"{name}.csv", "w") as file:
                table.to_csv(file, index=False, lineterminator="\n")
        say("written", "logs/published: runs.csv, accuracy.csv")


if __name__ == "__main__":
    run_command(main)
