"""Folders of finished runs with a known answer, made from the real ones in logs/evidence/."""

import json
import shutil
from pathlib import Path

import numpy as np

from reproduce import ROOT
from reproduce.evaluate import Evaluation

EVIDENCE = ROOT / "logs" / "evidence"


def make_run(logs: Path, run: str, /, wrong=10, *, like: str = "digits", nll: float | None = None, **recipe) -> Path:
    """A run called `run` under `logs` like the real one `like`, but for these settings of its recipe.

    wrong: how many of its test images, from the first on, it gets wrong, or their indices.
    nll: of every image; None keeps the real ones.
    The last weights are the best ones.
    """
    folder = logs / run
    folder.mkdir(parents=True)
    shutil.copy(EVIDENCE / like / "metrics.jsonl", folder)
    header = json.loads((EVIDENCE / like / "run.json").read_text())
    header["run"] = run
    header["recipe"] |= recipe
    with np.load(EVIDENCE / like / "predictions.npz") as file:
        found = {key: file[key] for key in file}
    labels = found["labels"]
    classes = labels.copy()
    wrong = np.arange(wrong) if isinstance(wrong, int) else np.array(wrong)
    classes[wrong] = (labels[wrong] + 1) % (labels.max() + 1)
    found["top5"] = np.stack([classes, *(np.full_like(labels, -2) for _ in range(4))], axis=1)
    if nll is not None:
        found["nll"] = np.full_like(found["nll"], nll)
    made = Evaluation(**found)
    made.save(folder / "predictions.npz")
    header["result"]["best"]["test"] = header["result"]["last"]["test"] = made.metrics()
    save_header(folder, header)
    return folder


def make_arm(logs: Path, arm: str, wrong, first_seed: int = 1, **recipe) -> None:
    """Runs study/ARM-seedN for the seeds from `first_seed` on, with that many wrong test images each."""
    for seed, count in enumerate(wrong, first_seed):
        make_run(logs, f"study/{arm}-seed{seed}", count, seed=seed, **recipe)


def save_header(folder: Path, header: dict) -> None:
    (folder / "run.json").write_text(json.dumps(header))


def change_header(folder: Path, change) -> None:
    """Have `change(header)` edit the run.json in `folder`."""
    header = json.loads((folder / "run.json").read_text())
    change(header)
    save_header(folder, header)
