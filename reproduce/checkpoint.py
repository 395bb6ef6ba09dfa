"""The states that a run resumes from: written whole or not at all, verified when read, the last two kept.

A state is everything that is not a function of (recipe, step): weights, optimizer memory and the progress so far.
The order of samples, the crops and the random numbers of every process are functions of the step (data/sampling.py)
and so is the rate (optim.py), so none of them needs saving.
"""

import hashlib
import io
import pickle
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import paddle

from common.atomic import atomic_write
from common.errors import UserError
from common.safe_pickle import load_pickle
from reproduce.recipes import Recipe

_KEPT = 2
_NAMES = f"step_{8 * '[0-9]'}.pdstate"
_RESTART = "say --restart to set the run aside and start over"


@dataclass
class Progress:
    """How far a run is."""

    step: int = 0  # updates done
    evaluated: bool = True  # whether what is due after that update has been evaluated
    best: dict = field(default_factory=dict)  # {"step", "accuracy", "selected_on"}, empty before the first evaluation
    window: list = field(default_factory=list)  # loss and its parts of the updates since the last training record
    rows: list = field(default_factory=list)  # every record so far, as metrics.jsonl has them
    seconds: float = 0.0  # of training, over all starts
    processes: int = 1  # that trained last


@dataclass
class State:
    """What a run needs to go on."""

    progress: Progress
    meaning: dict  # recipe fields that the run was started with
    model: dict[str, np.ndarray]
    optimizer: dict[str, np.ndarray]  # parameter name of the model + accumulator -> array
    scaler: dict  # loss scaling of fp16; empty otherwise


def save(folder: Path, progress: Progress, meaning: dict, model, optimizer, scaler) -> None:
    """Write a State into `folder` and drop all but the last two. The file begins with the SHA-256 of the rest."""
    remembered = optimizer.state_dict()
    state = {
        "progress": vars(progress),
        "meaning": meaning,
        "model": {name: value.numpy() for name, value in model.state_dict().items()},
        "optimizer": {  # by our names: Paddle's names of parameters count up and differ in each process
            f"{name}|{key.removeprefix(parameter.name)}": value.numpy()
            for name, parameter in model.named_parameters()
            for key, value in remembered.items()
            if key.startswith(f"{parameter.name}_")
        },
        "scaler": scaler.state_dict(),
    }
    payload = pickle.dumps(state, protocol=4)
    path = folder / f"step_{progress.step:08d}.pdstate"
    for newer in _files(folder):
        if newer.name > path.name:  # a damaged one that the run has gone on without
            newer.unlink()
    with atomic_write(path) as file:
        file.write(hashlib.sha256(payload).digest())
        file.write(payload)
    for old in _files(folder)[:-_KEPT]:
        old.unlink()


def restore(state: State, model, optimizer, scaler) -> None:
    """Put a state back into freshly built objects of the same recipe."""
    model.set_state_dict({name: paddle.to_tensor(value) for name, value in state.model.items()})
    parameters, found = dict(model.named_parameters()), {}
    for name, value in state.optimizer.items():
        ours, accumulator = name.split("|")
        found[parameters[ours].name + accumulator] = paddle.to_tensor(value)
    optimizer.set_state_dict(found)
    if state.scaler:
        scaler.load_state_dict(state.scaler)


def load_latest(folder: Path) -> State | None:
    """The newest undamaged state of `folder`, None when there is none yet.

    A damaged file is named on stderr and the one before is used. Raises UserError when all are damaged.
    """
    paths = _files(folder)
    for path in reversed(paths):
        content = path.read_bytes()
        digest, payload = content[:32], content[32:]
        if hashlib.sha256(payload).digest() == digest:
            found = load_pickle(io.BytesIO(payload), str(path))
            try:
                return State(**{**found, "progress": Progress(**found["progress"])})
            except (KeyError, TypeError):
                text = f"{path}: was written by another version of this project"
                raise UserError(f"{text}; go on with it, or {_RESTART}") from None
        print(f"warning: {path} is damaged (its checksum does not match)", file=sys.stderr)
    if paths:
        raise UserError(f"{folder}: all checkpoints are damaged; {_RESTART}")
    return None


def where_it_stands(folder: Path) -> str:
    """Which state a run would go on from, for a message."""
    paths = _files(folder)
    return f"the last checkpoint is {paths[-1]}" if paths else "no checkpoint yet"


def _files(folder: Path) -> list[Path]:
    """The states of a run, oldest first: only the project's own names."""
    return sorted(folder.glob(_NAMES))


def changed_settings(existing: dict, meaning: dict) -> str:
    """In which settings a run that exists differs from the one asked for, for a message; "" where in none."""
    # A setting that came later was at its default before.
    before = {name: existing.get(name, getattr(Recipe, name, value)) for name, value in meaning.items()}
    changed = [name for name in meaning if before[name] != meaning[name]]
    return "; ".join(f"{name} {before[name]!r} -> {meaning[name]!r}" for name in changed)


def check_same_meaning(existing: dict, meaning: dict, folder: Path) -> None:
    """Raise UserError naming the settings in which a run that exists differs from the one asked for."""
    if changed := changed_settings(existing, meaning):
        text = f"{folder}: holds a run with other settings ({changed}); choose another --run NAME, or"
        raise UserError(f"{text} {_RESTART}")
