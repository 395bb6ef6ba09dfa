"""The snippet with the loss in the README runs as it stands there, in a program of a user's own."""

import os
import re
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from reproduce import ROOT

READMES = ("README.md", "README_cn.md")

BEFORE = f"""
import numpy as np
import paddle
from paddle import nn

paddle.seed(0)
table = np.loadtxt({str(ROOT / "data" / "digits.csv.gz")!r}, "float32", delimiter=",")
samples = [(row[:64].reshape(1, 8, 8) / 16, int(row[64])) for row in table]
loader = paddle.io.DataLoader(samples[:640], batch_size=64, shuffle=True)
network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 10))
optimizer = paddle.optimizer.Adam(3e-3, parameters=network.parameters())
for epoch in range(5):
"""


def snippet(readme):
    """The Python block that shows the loss."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / readme).read_text(), re.DOTALL)
    (found,) = [block for block in blocks if "rdrop_loss" in block]
    return found


@pytest.mark.parametrize("way", ["PYTHONPATH", "copy of rdrop.py"])
def test_the_loss_goes_down(way, tmp_path):
    (tmp_path / "mine.py").write_text(BEFORE + textwrap.indent(snippet("README.md"), "    "))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if way == "PYTHONPATH":
        environment["PYTHONPATH"] = str(ROOT)
    else:
        (tmp_path / "reproduce").mkdir()
        shutil.copy(ROOT / "reproduce" / "rdrop.py", tmp_path / "reproduce")
    done = subprocess.run([sys.executable, "mine.py"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = np.array([re.findall(r"\d+\.\d+", line) for line in done.stdout.splitlines()], float)
    assert found.shape == (50, 3)  # 5 epochs of 10 batches: loss, cross-entropy, KL
    loss, cross_entropy, kl = found.T
    np.testing.assert_allclose(loss, 2 * (cross_entropy + 0.3 * kl), atol=3e-4)  # printed with 4 digits
    assert kl.min() > 0
    assert loss[0] > 2 * np.log(10) * 0.9  # untrained: both views know nothing of the ten digits
    assert loss[-10:].mean() < loss[:10].mean() / 2


def test_both_readmes_have_the_same_snippet():
    assert snippet(READMES[0]) == snippet(READMES[1])
