"""VisualDL record files as arrays: every scalar in file order, and how many writers logged it.

A record file is a row of records: 8 bytes that say how long the next one is, then a protobuf message. VisualDL's
LogReader does not check either, so a file is looked through before LogReader is asked.
"""

import hashlib
import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError
from visualdl import LogReader
from visualdl.proto.record_pb2 import Record

from common.errors import UserError

_IN_MILLISECONDS = 1e11  # stamps above are milliseconds: VisualDL changed from seconds in 2021
_LONG_PAUSE = 10  # times the usual time between two steps


@dataclass(frozen=True, eq=False)
class Scalar:
    """One scalar of one file, in file order."""

    tag: str
    steps: np.ndarray  # int64 (R,)
    values: np.ndarray  # float64 (R,), each a float32
    unix_seconds: np.ndarray  # float64 (R,)
    writers: int  # processes that logged it: how many values most steps have

    @property
    def odd_steps(self) -> list[int]:
        """Steps with fewer or more values than there are writers."""
        steps, counts = np.unique(self.steps, return_counts=True)
        return steps[counts != self.writers].tolist()

    def by_step(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """steps (T,), values (T, writers) and unix_seconds (T, writers), each row in file order; no odd steps."""
        order = np.argsort(self.steps, kind="stable")
        order = order[~np.isin(self.steps[order], self.odd_steps)]
        shape = (-1, self.writers)
        return (self.steps[order].reshape(shape)[:, 0], self.values[order].reshape(shape),
                self.unix_seconds[order].reshape(shape))  # fmt: skip


@dataclass(frozen=True, eq=False)
class PublishedLog:
    """One record file."""

    path: Path
    sha256: str
    scalars: dict[str, Scalar]
    clock_seconds: float  # what its time stamps are rounded to

    @property
    def name(self) -> str:
        return self.path.name.removesuffix(".log")

    @property
    def unix_seconds(self) -> tuple[float, float]:
        """Time of its first and of its last scalar."""
        times = np.concatenate([scalar.unix_seconds for scalar in self.scalars.values()])
        return float(times.min()), float(times.max())

    def content(self) -> Counter:
        """Its (tag, step, value) without order and time, to know a copy by."""
        return Counter((s.tag, *pair) for s in self.scalars.values()
                       for pair in zip(s.steps.tolist(), s.values.tolist(), strict=True))  # fmt: skip


def find_logs(arguments) -> tuple[list[Path], list[str]]:
    """The files meant by `arguments` (files, and folders for all record files in them), and what is amiss."""
    found, problems = [], []
    for path in map(Path, arguments):
        inside = [path]
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*vdlrecords*") if p.is_file())
            if not inside:
                problems.append(
                    f"{path}: no VisualDL record files (vdlrecords.*) in this folder; name one that has some"
                )
        elif not path.exists():
            inside = []
            problems.append(f"{path}: no such file or folder; check the path")
        found += inside
    return list({path.resolve(): path for path in found}.values()), problems


def read_log(path) -> PublishedLog:
    """Read one record file. Raises UserError when it cannot be read, is no such file, cut short or damaged."""
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check path and permissions") from None
    _check_records(path, content)
    reader = LogReader(file_path=str(path))
    records = {tag: reader.get_data("scalar", tag) for tag in reader.get_tags().get("scalar", [])}
    stamps = [record.timestamp for rows in records.values() for record in rows]
    clock = 0.001 if stamps and np.median(stamps) > _IN_MILLISECONDS else 1.0
    scalars = {tag: _scalar(tag, rows, clock) for tag, rows in records.items()}
    return PublishedLog(path, hashlib.sha256(content).hexdigest(), scalars, clock)


def require(log: PublishedLog, tag: str, option: str) -> Scalar:
    """The scalar `tag` of one run, or a UserError that names the file."""
    scalar = log.scalars.get(tag)
    if scalar is None:
        there = ", ".join(sorted(log.scalars)) or "no scalars at all"
        raise UserError(f"{log.path}: has no scalar {tag} (it has {there}); name another one with {option} TAG")
    _check_one_run(log.path, scalar)
    return scalar


def _scalar(tag: str, rows: list, clock: float) -> Scalar:
    steps = np.array([record.id for record in rows], np.int64)
    _, counts = np.unique(steps, return_counts=True)
    return Scalar(
        tag,
        steps,
        np.array([record.value for record in rows], np.float64),
        np.array([record.timestamp for record in rows], np.float64) * clock,
        int(np.bincount(counts).argmax()),
    )


def _check_records(path: Path, content: bytes) -> None:
    """Raise UserError unless `content` is whole records from its first to its last byte."""
    if not content:
        raise UserError(f"{path}: is empty; give a VisualDL record file (vdlrecords.*)")
    start, number, kinds = 0, 1, {}
    while start < len(content):
        header, left = content[start : start + 8], len(content) - start - 8
        length = int.from_bytes(header, "little")
        whole = left >= length
        if not whole or _kind(content[start + 8 : start + 8 + length], kinds) is None:
            if start == 0:
                raise UserError(f"{path}: is not a VisualDL record file; give a vdlrecords.* file")
            problem = "is damaged" if whole else f"is cut short: it needs {length:,} bytes, {max(left, 0):,} are left"
            raise UserError(
                f"{path}: record {number:,} at byte {start:,} {problem}. Get the whole file, or audit what is before: "
                f"head -c {start} {shlex.quote(str(path))} > vdlrecords.begin.log"
            )
        start, number = start + 8 + length, number + 1


def _kind(message: bytes, kinds: dict) -> str | None:
    """What a record holds ("value" is a scalar), or None if LogReader could not read it. `kinds`: tag -> kind."""
    try:
        (value,) = Record.FromString(message).values
    except (DecodeError, ValueError):  # no protobuf message; not one value
        return None
    kind = value.WhichOneof("one_value")
    # LogReader takes a tag's later records for what its first one was
    return kind if kind and value.tag and kinds.setdefault(value.tag, kind) == kind else None


def _check_one_run(path: Path, scalar: Scalar) -> None:
    """Raise UserError where the steps go back and time goes on: a second run was appended to the first.

    Several writers that are out of step go back too, but their times overlap.
    """
    steps, times = scalar.steps, scalar.unix_seconds
    latest = np.maximum.accumulate(times)
    earliest_after = np.minimum.accumulate(times[::-1])[::-1]
    begins = times[1:][np.diff(steps) > 0]  # of each step, with several writers too
    usual = np.median(np.diff(begins)) if len(begins) > 1 else 0
    for i in np.flatnonzero(np.diff(steps) < 0):
        pause = earliest_after[i + 1] - latest[i]
        if pause > 0 and (steps[i + 1] <= steps[0] or pause > _LONG_PAUSE * usual):
            raise UserError(
                f"{path}: holds more than one run: {scalar.tag} goes back from step {steps[i]:,} to {steps[i + 1]:,} "
                f"after a pause of {pause:,.0f} s; give files of one run each"
            )
