"""Resumable states of a run: written whole or not at all, verified when read, the last two kept.

A state is everything that is not a function of (recipe, step): weights, optimizer memory and the best score so far.
Sample order, crops and dropout masks are functions of the step (data/batches.py) and need no saving.
"""

import hashlib
import io
import pickle
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import paddle

from common.atomic import atomic_write
from common.errors import UserError
from common.safe_pickle import load_pickle

_KEPT = 2
_SUFFIX = ".pdstate"


@dataclass
class State:
    """What a run needs to go on after update `step`."""

    step: int
    meaning: dict  # recipe fields that the run was started with
    model: dict[str, np.ndarray]
    optimizer: dict[str, np.ndarray]  # parameter name of the model + accumulator -> array
    scaler: dict  # loss scaling of fp16; empty otherwise
    best: dict  # {"step": ..., "accuracy": ...}, empty before the first evaluation


def capture(step, meaning, model, optimizer, scaler, best) -> State:
    """Copy the current state to host memory."""
    return State(
        step=step,
        meaning=meaning,
        model={name: value.numpy() for name, value in model.state_dict().items()},
        optimizer={ours: value.numpy() for ours, value in _accumulators(model, optimizer).items()},
        scaler=scaler.state_dict() if scaler is not None else {},
        best=dict(best),
    )


def restore(state: State, model, optimizer, scaler) -> None:
    """Put a state back into freshly built objects of the same recipe."""
    model.set_state_dict({name: paddle.to_tensor(value) for name, value in state.model.items()})
    names = {ours: theirs for theirs, ours in _structured_names(model).items()}
    optimizer.set_state_dict({_theirs(name, names): paddle.to_tensor(value) for name, value in state.optimizer.items()})
    if scaler is not None and state.scaler:
        scaler.load_state_dict(state.scaler)


def _structured_names(model) -> dict[str, str]:
    """Paddle's parameter name (a counter, different in each process) -> name in the state dict."""
    return {parameter.name: name for name, parameter in model.named_parameters()}


def _accumulators(model, optimizer) -> dict:
    found = {}
    names = _structured_names(model)
    for key, value in optimizer.state_dict().items():
        owner = next((theirs for theirs in names if key.startswith(f"{theirs}_")), None)
        if owner is not None and isinstance(value, paddle.Tensor):
            found[f"{names[owner]}|{key.removeprefix(owner)}"] = value
    return found


def _theirs(name: str, names: dict[str, str]) -> str:
    ours, accumulator = name.split("|")
    return names[ours] + accumulator


def save(folder: Path, state: State) -> Path:
    """Write `state` into `folder` and drop all but the last two. The file begins with the SHA-256 of the rest."""
    payload = pickle.dumps(vars(state), protocol=4)
    path = folder / f"step_{state.step:08d}{_SUFFIX}"
    with atomic_write(path) as file:
        file.write(hashlib.sha256(payload).digest())
        file.write(payload)
    for old in _files(folder)[:-_KEPT]:
        old.unlink()
    return path


def load_latest(folder: Path) -> State | None:
    """The newest undamaged state of `folder`, None when there is none yet.

    A damaged file is named on stderr and the one before is used. Raises UserError when all are damaged.
    """
    paths = _files(folder)
    for path in reversed(paths):
        content = path.read_bytes()
        digest, payload = content[:32], content[32:]
        if hashlib.sha256(payload).digest() == digest:
            return State(**load_pickle(io.BytesIO(payload), str(path)))
        print(f"warning: {path} is damaged (its checksum does not match)", file=sys.stderr)
    if paths:
        raise UserError(f"{folder}: all checkpoints are damaged ({', '.join(path.name for path in paths)}); say "
                        "--restart to set the run aside and start over")  # fmt: skip
    return None


def newest(folder: Path) -> str:
    """Which state `load_latest` would go on from, for a message."""
    state = load_latest(folder)
    return f"the last good checkpoint in {folder} is after step {state.step}" if state else "no checkpoint yet"


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"step_*{_SUFFIX}"))


def check_same_meaning(existing: dict, meaning: dict, folder: Path) -> None:
    """Raise UserError naming the settings in which a run that exists differs from the one asked for."""
    changed = [f"{k} {existing.get(k)!r} -> {v!r}" for k, v in meaning.items() if existing.get(k) != v]
    if changed:
        raise UserError(
            f"{folder}: holds a run with other settings ({'; '.join(changed)}); choose another --run NAME, "
            "or say --restart to set it aside and start over"
        )
