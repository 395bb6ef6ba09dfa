"""The states that a run resumes from: written whole or not at all, verified when read, the last two kept.

A state is everything that is not a function of (recipe, step): weights, optimizer memory and the progress so far.
The order of samples, the crops and the random numbers of every process are functions of the step (data/sampling.py)
and so is the rate (optim.py), so none of them needs saving.
"""

import hashlib
import io
import pickle
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import paddle

from common.atomic import atomic_write
from common.errors import UserError
from common.safe_pickle import load_pickle
from models.weights import read_weights
from reproduce import distributed
from reproduce.recipes import Recipe

_KEPT = 2
_RESTART = "say --restart to set the run aside and start over"
_STATE_NAME = re.compile(r"step_\d{8}\.pdstate")


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


def restore(state: State, model, optimizer, scaler) -> None:
    """Put a state back into freshly built objects of the same recipe."""
    model.set_state_dict({name: paddle.to_tensor(value) for name, value in state.model.items()})
    parameters, found = dict(model.named_parameters()), {}
    for name, value in state.optimizer.items():
        ours, accumulator = name.split("|")
        found[parameters[ours].name + accumulator] = paddle.to_tensor(value)
    optimizer.set_state_dict(found)
    if scaler is not None and state.scaler:
        scaler.load_state_dict(state.scaler)


def _accumulators(model, optimizer) -> dict:
    """What the optimizer remembers, by our names: Paddle's names of parameters count up and differ in each process."""
    ours = {parameter.name: name for name, parameter in model.named_parameters()}
    found = {}
    for key, value in optimizer.state_dict().items():
        owner = next((theirs for theirs in ours if key.startswith(f"{theirs}_")), None)
        if owner is not None and isinstance(value, paddle.Tensor):
            found[f"{ours[owner]}|{key.removeprefix(owner)}"] = value
    return found


def save(folder: Path, progress: Progress, meaning: dict, model, optimizer, scaler) -> Path:
    """Write a State into `folder` and drop all but the last two. The file begins with the SHA-256 of the rest."""
    state = {
        "progress": vars(progress),
        "meaning": meaning,
        "model": {name: value.numpy() for name, value in model.state_dict().items()},
        "optimizer": {ours: value.numpy() for ours, value in _accumulators(model, optimizer).items()},
        "scaler": scaler.state_dict() if scaler is not None else {},
    }
    payload = pickle.dumps(state, protocol=4)
    path = folder / f"step_{progress.step:08d}.pdstate"
    for newer in _files(folder):
        if newer.name > path.name and newer.is_file():  # a damaged one that the run has gone on without
            newer.unlink()
    with atomic_write(path) as file:
        file.write(hashlib.sha256(payload).digest())
        file.write(payload)
    for old in _files(folder)[:-_KEPT]:
        if old.is_file():
            old.unlink()
    return path


def tried(path: Path, write) -> bool:
    """Have the first process call `write(path)`; whether that worked, in every process.

    A disk that is full does not end the run: atomic_write keeps what was there before, and stderr says so.
    """
    failed = 0
    if distributed.is_main():
        try:
            write(path)
        except OSError as error:
            failed = 1
            text = f"warning: {path}: could not be saved ({error.strerror}); what was saved before is kept"
            print(f"{text}, and training goes on: make room before the next save", file=sys.stderr)
    distributed.wait()  # the others have nothing to do meanwhile
    return not distributed.largest([failed])[0]


def load_latest(folder: Path) -> State | None:
    """The newest undamaged state of `folder`, None when there is none yet.

    A damaged file is named on stderr and the one before is used. Raises UserError when all are damaged.
    """
    paths = _files(folder)
    for path in reversed(paths):
        if path.is_file():
            content = path.read_bytes()
            digest, payload = content[:32], content[32:]
            if hashlib.sha256(payload).digest() == digest:
                return _unpack(load_pickle(io.BytesIO(payload), str(path)), path)
        print(f"warning: {path} is damaged (its checksum does not match)", file=sys.stderr)
    if paths:
        names = ", ".join(path.name for path in paths)
        raise UserError(f"{folder}: all checkpoints are damaged ({names}); {_RESTART}")
    return None


def _unpack(content: dict, path: Path) -> State:
    try:
        return State(**{**content, "progress": Progress(**content["progress"])})
    except (KeyError, TypeError):
        text = f"{path}: was written by another version of this project"
        raise UserError(f"{text}; go on with it, or {_RESTART}") from None


def is_of_step(path: Path, step: int) -> bool:
    """Whether the weight file `path` is there and was written after update `step`."""
    try:
        return read_weights(path).metadata.get("step") == step
    except UserError:  # damaged, or not there
        return False


def where_it_stands(folder: Path) -> str:
    """Which state `load_latest` would go on from, for a message; the first process looks and the others wait."""
    text = ""
    if distributed.is_main():
        state = load_latest(folder)
        text = "no checkpoint yet"
        if state is not None:
            text = f"the last good checkpoint in {folder} is after step {state.progress.step}"
    distributed.wait()  # the launcher ends all when one ends
    return text


def _files(folder: Path) -> list[Path]:
    """The states of a run, oldest first: only the project's own names."""
    return sorted(path for path in folder.glob("step_*.pdstate") if _STATE_NAME.fullmatch(path.name))


def changed_settings(existing: dict, meaning: dict) -> str:
    """In which settings a run that exists differs from the one asked for, for a message; "" where in none."""
    # A setting that came later was at its default before.
    before = {name: existing.get(name, getattr(Recipe, name, value)) for name, value in meaning.items()}
    return "; ".join(
        f"{name} {before[name]!r} -> {value!r}" for name, value in meaning.items() if before[name] != value
    )


def check_same_meaning(existing: dict, meaning: dict, folder: Path) -> None:
    """Raise UserError naming the settings in which a run that exists differs from the one asked for."""
    changed = changed_settings(existing, meaning)
    if changed:
        text = f"{folder}: holds a run with other settings ({changed}); choose another --run NAME, or"
        raise UserError(f"{text} {_RESTART}")


def check_resumable(state: State | None, recipe: Recipe, folder: Path) -> None:
    """Raise UserError where `state` is of other settings, or the processes have found different ones."""
    if state is not None:
        check_same_meaning(state.meaning, recipe.meaning(), folder)
    distributed.same_everywhere(
        state.progress.step if state is not None else 0,
        f"{folder}: the processes see different checkpoints there; give --out a folder that all nodes share",
    )
