"""Competitors in processes of their own, measured in turns: what each part of `reproduce.bench` runs.

A turn lets every competitor do one repetition, one after the other, so that what else the machine does at that time
falls on all of them. All wait while one works. Those that do not fit into memory together are measured in groups,
each beside the first competitor, to which all are compared turn by turn.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import UserError
from reproduce import PROCESSOR_SETTINGS, ROOT

_WORKER = Path(__file__).with_name("bench_worker.py")
_NOT_PASSED_ON = {*PROCESSOR_SETTINGS, "MKL_DEBUG_CPU_TYPE"}  # each competitor settles them for itself
_PAUSE = 0.4  # seconds before each repetition: OpenMP's threads spin for 0.2 after their work
PRODUCT_SIZE = 2048  # of the matrix products that show what the processor can do; 0.1 s at 150 GFLOP/s


@dataclass(frozen=True)
class Competitor:
    """What one process does."""

    name: str
    task: str  # "module:class", see bench_worker.py
    options: dict
    our_settings: bool = True  # of the processor; otherwise those the framework has by itself
    library: str = ""  # whose matrix product is measured beside it; "" = none
    images: dict | None = None  # of bench_worker.random_images
    core: int | None = None  # the only one it may use


@dataclass
class Measured:
    """All single measurements of one competitor."""

    seconds: list[float] = field(default_factory=list)  # of each repetition
    ours: list[float] = field(default_factory=list)  # of the first competitor in the same turn
    more: list[dict] = field(default_factory=list)  # what else the task said of each repetition
    product_flops_per_second: float = 0.0  # best of the run
    memory_before: int = 0  # bytes, before the first repetition
    memory_idle: int = 0  # between two repetitions
    memory_peak: int = 0
    settings: dict = field(default_factory=dict)


class Missing(Exception):
    """A competitor cannot run for want of a package."""


class Worker:
    """The process of a competitor. Raises Missing, and UserError when it ends by itself."""

    def __init__(self, competitor: Competitor):
        self.name = competitor.name
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the worker)
        spec = {**vars(competitor), "product_size": PRODUCT_SIZE}
        environment = {name: value for name, value in os.environ.items() if name not in _NOT_PASSED_ON}
        self._process = subprocess.Popen(
            [sys.executable, str(_WORKER), json.dumps(spec)], cwd=ROOT, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
        )  # fmt: skip
        self.before = self._answer()

    def ask(self, command: str) -> dict:
        with contextlib.suppress(BrokenPipeError):  # it has ended: `_answer` says how
            self._process.stdin.write(f"{command}\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            raise UserError(f"{self.name}: {self._end()}")
        answer = json.loads(line)
        if "missing" in answer:
            self.close()
            raise Missing(answer["missing"])
        return answer

    def _end(self) -> str:
        code = self._process.wait()
        if code == -signal.SIGKILL:
            return "its process was killed, perhaps for want of memory; close other programs or lower --memory"
        self._errors.seek(0)
        return f"its process ended: {self._errors.read().decode().strip().rpartition(chr(10))[2] or f'code {code}'}"

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()


def race(
    competitors: list[Competitor], repeat: int, memory: int, say: Callable[[str], None], required=()
) -> tuple[dict[str, Measured], dict[str, str]]:
    """Measure all competitors `repeat` times, with at most `memory` bytes in use at once; the first is "ours".

    Returns what was measured, by name, and why others were left out. Raises UserError when one fails or does not fit,
    and when the first or one of the `required` names cannot run here.
    """
    measured, left_out, known = {}, {}, {c.name: c for c in competitors}
    for competitor in competitors:
        try:
            found = measured[competitor.name] = _tried_alone(competitor)
        except Missing as reason:
            remedy = "`source setup_env.sh dev` installs what the peers need"
            if not measured or competitor.name in required:
                raise UserError(f"{competitor.name}: {reason}; {remedy}") from None
            left_out[competitor.name] = str(reason)
            say(f"{competitor.name}: left out, {reason}; {remedy}")
            continue
        say(f"{competitor.name}: {found.memory_peak / 1e9:.2f} GB, {found.memory_idle / 1e9:.2f} while it waits")
        together = groups({name: (found.memory_idle, found.memory_peak) for name, found in measured.items()}, memory)
    for names in together:
        with contextlib.ExitStack() as stack:
            workers = {}
            for name in names:
                workers[name] = Worker(known[name])
                stack.callback(workers[name].close)
                workers[name].ask("go")  # warms up
            for turn in range(repeat):
                found = _turn(workers, turn, {name: known[name].library for name in names})
                for name, answer in found.items():
                    _note(measured[name], answer, ours=found[names[0]])
                listed = ", ".join(f"{name} {answer['seconds']:.3g} s" for name, answer in found.items())
                say(f"turn {turn + 1} of {repeat}: {listed}")
            for name, worker in workers.items():
                found = worker.ask("facts")
                measured[name].memory_peak = max(measured[name].memory_peak, found["memory"]["peak"])
    return measured, left_out


def _tried_alone(competitor: Competitor) -> Measured:
    """What it takes in memory, and the settings it has."""
    worker = Worker(competitor)
    try:
        for _ in range(2):  # the optimizer's numbers are there from the second step on
            worker.ask("go")
        after = worker.ask("facts")
    finally:
        worker.close()
    return Measured(
        memory_before=worker.before["memory"]["now"],
        memory_idle=after["memory"]["now"],
        memory_peak=after["memory"]["peak"],
        settings=after["settings"],
    )


def groups(use: dict[str, tuple[int, int]], memory: int) -> list[list[str]]:
    """The names in groups that never take more than `memory` bytes, the first name in each of them.

    `use`: bytes by name, while it waits and at most. Of a group one works and the others wait.
    Raises UserError for a name that does not fit beside the first.
    """

    def needed(names) -> int:
        return sum(use[name][0] for name in names) + max(use[name][1] - use[name][0] for name in names)

    first, *others = use
    for name in use:
        pair = needed({first, name})
        if pair > memory:
            who = name if name == first else f"{first} and {name}"
            raise UserError(f"{who}: {pair / 1e9:.1f} GB are needed and {memory / 1e9:.1f} may be used; close other "
                            "programs or raise --memory")  # fmt: skip
    found = [[first]]
    for name in others:
        if needed([*found[-1], name]) > memory:
            found.append([first])
        found[-1].append(name)
    return found


def _turn(workers: dict[str, Worker], turn: int, libraries: dict[str, str]) -> dict[str, dict]:
    """One repetition of each, another one first in each turn, then a matrix product of each."""
    names = list(workers)
    start = turn % len(names)
    answers = {}
    for name in names[start:] + names[:start]:
        time.sleep(_PAUSE)
        answers[name] = workers[name].ask("go")
    for name in names:
        if libraries[name]:
            time.sleep(_PAUSE)
            answers[name] |= workers[name].ask("product")
    return {name: answers[name] for name in names}


def _note(found: Measured, answer: dict, ours: dict) -> None:
    found.seconds.append(answer["seconds"])
    found.ours.append(ours["seconds"])
    speed = answer.get("flops_per_second", 0.0)
    found.product_flops_per_second = max(found.product_flops_per_second, speed)
    found.more.append({key: value for key, value in answer.items() if key not in ("seconds", "flops_per_second")})
