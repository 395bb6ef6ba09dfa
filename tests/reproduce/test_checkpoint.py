import hashlib
import pickle

import numpy as np
import paddle
import pytest

from common.errors import UserError
from models import build_model
from reproduce import checkpoint


def trained(steps, folder=None, resume=False):
    """A small network after some updates on fixed data, through a state file if `resume`."""
    paddle.seed(0)
    model = build_model("ViT-digits", 10, 8, depth=1)
    optimizer, off = paddle.optimizer.Momentum(0.1, 0.9, model.parameters()), paddle.amp.GradScaler(enable=False)
    first = 0
    if resume:
        state = checkpoint.load_latest(folder)
        checkpoint.restore(state, model, optimizer, off)
        first = state.progress.step
    for step in range(first, steps):
        paddle.seed(step)
        images = paddle.to_tensor(np.random.default_rng(step).normal(size=(4, 3, 8, 8)).astype("float32"))
        paddle.nn.functional.cross_entropy(model(images), paddle.arange(4)).backward()
        optimizer.step()
        optimizer.clear_grad()
        if folder is not None:
            progress = checkpoint.Progress(step=step + 1)
            checkpoint.save(folder, progress, {"alpha": 1}, model, optimizer, off)
    return {name: value.numpy() for name, value in model.state_dict().items()}


def test_a_restored_run_ends_with_the_same_bytes(tmp_path):
    unbroken = trained(6)
    trained(3, tmp_path)
    resumed = trained(6, tmp_path, resume=True)
    for name, value in unbroken.items():
        assert value.tobytes() == resumed[name].tobytes(), name


def test_the_last_two_states_are_kept_and_a_damaged_one_is_named(tmp_path, capsys):
    trained(4, tmp_path)
    paths = sorted(tmp_path.iterdir())
    assert [path.name for path in paths] == ["step_00000003.pdstate", "step_00000004.pdstate"]
    whole = paths[1].read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged in (whole[: len(whole) // 2], bytes(flipped), b""):
        paths[1].write_bytes(damaged)
        assert checkpoint.load_latest(tmp_path).progress.step == 3
        assert f"{paths[1]} is damaged" in capsys.readouterr().err
    paths[0].write_bytes(b"")
    with pytest.raises(UserError, match="all checkpoints are damaged"):
        checkpoint.load_latest(tmp_path)


def test_no_state_yet(tmp_path):
    assert checkpoint.load_latest(tmp_path / "none") is None
    assert checkpoint.where_it_stands(tmp_path) == "no checkpoint yet"


def test_another_meaning_is_refused_by_name(tmp_path):
    trained(1, tmp_path)
    state = checkpoint.load_latest(tmp_path)
    checkpoint.check_same_meaning(state.meaning, {"alpha": 1}, tmp_path)
    checkpoint.check_same_meaning(state.meaning, {"alpha": 1, "num_epochs": 0}, tmp_path)  # came later, is off
    with pytest.raises(UserError, match=r"num_epochs 0 -> 2"):
        checkpoint.check_same_meaning(state.meaning, {"alpha": 1, "num_epochs": 2}, tmp_path)
    with pytest.raises(UserError, match=r"other settings \(alpha 1 -> 2\)"):
        checkpoint.check_same_meaning(state.meaning, {"alpha": 2}, tmp_path)


def test_a_state_of_another_version_is_refused(tmp_path):
    trained(1, tmp_path)
    (path,) = tmp_path.iterdir()
    state = pickle.loads(path.read_bytes()[32:])
    state["progress"]["evaluated"] = False  # an evaluation that was left to the next start
    for written in ({"step": 3, "model": {}}, state):
        payload = pickle.dumps(written, protocol=4)
        path.write_bytes(hashlib.sha256(payload).digest() + payload)
        with pytest.raises(UserError, match="written by another version"):
            checkpoint.load_latest(tmp_path)


def test_only_the_projects_own_names_are_states(tmp_path):
    """A user's copies stay."""
    trained(2, tmp_path)
    for name in ("step_best_copy.pdstate", "step_00000099.pdstate.bak", "step_1.pdstate"):
        (tmp_path / name).write_bytes(b"mine")
    trained(4, tmp_path, resume=True)
    assert (tmp_path / "step_best_copy.pdstate").read_bytes() == (tmp_path / "step_1.pdstate").read_bytes() == b"mine"
