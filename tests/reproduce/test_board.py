"""run_board.sh: it shows our logs and every file of a given folder, on this machine alone, and refuses in one line."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager

import pytest
from making_runs import EVIDENCE

from reproduce import ROOT


@pytest.fixture
def python(tmp_path):
    """A stand-in that says that no package is missing, as starting the real one takes seconds."""
    path = tmp_path / "python"
    path.write_text("#!/bin/sh\necho missing:\n")
    path.chmod(0o755)
    return path


def refused(python, *arguments, cwd=ROOT) -> str:
    """The one line with which run_board.sh refuses."""
    done = subprocess.run(
        ["bash", ROOT / "run_board.sh", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHON": str(python)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


@contextmanager
def board(*folders, **environment):
    """run_board.sh in a process group of its own on a free port; gives a function that asks it, and the port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        ["bash", ROOT / "run_board.sh", *map(str, folders), "--port", str(port)],
        env={**os.environ, "PYTHON": sys.executable, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask(path):
        with opener.open(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
            return answer.read()

    try:
        while True:
            assert process.poll() is None, process.stderr.read()
            try:
                ask("/alive")
                break
            except OSError:
                time.sleep(0.1)
        yield ask, port
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        shutil.rmtree(ROOT / "data" / "downloads" / f"board-{port}", ignore_errors=True)


def test_the_board_shows_our_logs_and_every_file_of_a_given_folder_and_calls_nobody(tmp_path):
    (record,) = (EVIDENCE / "digits").glob("vdlrecords.*")
    for name in ("flat/vdlrecords.1.log", "flat/vdlrecords.2.log", "apart/one/vdlrecords.3.log"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(record, tmp_path / name)
    with socket.socket() as proxy:  # VisualDL's telemetry would post over https while it starts
        proxy.bind(("127.0.0.1", 0))
        proxy.listen()
        proxy.setblocking(False)
        address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        environment = {"https_proxy": address, "HTTPS_PROXY": address, "no_proxy": "127.0.0.1"}
        with board(tmp_path / "flat", tmp_path / "apart", **environment) as (ask, port):
            runs = json.loads(ask("/app/api/runs"))["data"]
            assert {"logs/evidence/digits", "logs/evidence/cifar100_vit_ti16", str(tmp_path / "apart/one")} < set(runs)
            assert {f"data/downloads/board-{port}/flat/vdlrecords.{number}" for number in (1, 2)} < set(runs)
            assert b"VisualDL" in ask("/app/index")  # from a client that names no language
            with pytest.raises(BlockingIOError):
                proxy.accept()


def test_a_clone_has_records_of_the_evidence_alone():
    """So the board opens on two runs and its user's own, not on all points of the studies."""
    done = subprocess.run(["git", "ls-files", "*vdlrecords*"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("this is not a clone")
    assert {line.rsplit("/", 1)[0] for line in done.stdout.split()} <= {
        "logs/evidence/digits",
        "logs/evidence/cifar100_vit_ti16",
    }


def test_the_board_refuses_in_one_line(tmp_path, python):
    assert "missing: no such folder" in refused(python, "missing", cwd=tmp_path)
    assert ".: no VisualDL record files" in refused(python, ".", cwd=tmp_path)
    assert "--port 80x: not a number" in refused(python, "--port", "80x")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"port {port} is in use" in refused(python, "--port", port)
