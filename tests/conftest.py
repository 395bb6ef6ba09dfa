"""Shared fixtures. `reproduce` is imported first, so that Paddle runs under the project's own settings."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import reproduce

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # what the tests start shall not inherit a nohup
SHARED = reproduce.ROOT.parent / "shared" / "data"


@pytest.fixture
def command(tmp_path):
    """Run `python -m MODULE ARGUMENTS...` as a user does, in a process of its own; outputs go to tmp_path."""

    def run(module: str, *arguments, cwd=reproduce.ROOT, **environment):
        if module == "reproduce.train":
            arguments = (*arguments, "--out", tmp_path)
        return subprocess.run(
            [sys.executable, "-m", module, *map(str, arguments)],
            cwd=cwd,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
        )

    return run


@pytest.fixture(scope="session")
def cifar100_folder() -> Path:
    """Folder that holds the real cifar-100-python/, or skip."""
    folder = reproduce.ROOT / "data" / "downloads"
    if not (folder / "cifar-100-python" / "meta").exists():
        pytest.skip("the real CIFAR-100 is not in data/downloads (.ci/run unpacks it where a copy is at hand)")
    return folder


@pytest.fixture(scope="session")
def vit_ti16_file() -> Path:
    """The real ImageNet-trained ViT-Ti/16, or skip."""
    path = SHARED / "vit_ti16" / "vit_tiny_patch16_224.safetensors"
    if not path.exists():
        pytest.skip(f"the pretrained ViT-Ti/16 is not at {path}")
    return path


def assert_user_error(done, *fragments):
    """One clear line on stderr, exit code 2, no traceback."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert "error: " in line
    for fragment in fragments:
        assert fragment in line, line
