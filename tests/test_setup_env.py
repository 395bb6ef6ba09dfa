"""setup_env.sh: makes .venv once, repairs it, and says in one line what is wrong.

The real script, real venvs and the real pip run in a copy of the script beside small requirement files. pip
installs from a folder of two tiny wheels instead of PyPI, so that nothing is downloaded. Only the first venv is made
by Python; the others are copies of it, as pip takes seconds to be put into one.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = 'set -euo pipefail; source ./setup_env.sh "$0"; echo "$PYTHON"'
BASE_PYTHON = sys._base_executable  # outside the venv that the tests may run in
COMMANDS = []  # folders of stand-ins for programs


def environment(**changes):
    """The environment of a user who set nothing and wants the CPU build, with `changes`."""
    unset = re.compile(r"(PIP_.*|.*_proxy|PYTHON|PYTHONPATH|PADDLE_CUDA|VIRTUAL_ENV)", re.IGNORECASE)
    env = {name: value for name, value in os.environ.items() if not unset.fullmatch(name)}
    env["PATH"] = os.pathsep.join(map(str, [*COMMANDS, Path(BASE_PYTHON).parent, env["PATH"]]))
    return {**env, "PIP_CONFIG_FILE": os.devnull, "PADDLE_CUDA": "cpu", **changes}


def begin(project, needed="run", script=SCRIPT, **env):
    """Begin a start of `script` in `project`, in a process group of its own as in a terminal."""
    return subprocess.Popen(
        ["bash", "-c", script, needed],
        cwd=project,
        env=environment(**env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process):
    """Return (exit code, stdout, stderr lines)."""
    out, err = process.communicate(timeout=120)
    return process.returncode, out.strip(), err.splitlines()


def start(*args, **env):
    return finish(begin(*args, **env))


def offline(folder):
    """pip variables: only the wheels in `folder`."""
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder)}


def write_wheel(folder, name, version, module):
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{module}.py", "")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def make_project(folder):
    folder.mkdir()
    shutil.copy(ROOT / "setup_env.sh", folder)
    (folder / "requirements.txt").write_text("paddlepaddle==3.3.1\n")
    (folder / "requirements-dev.txt").write_text("-r requirements.txt\ntesttool==1.0\n")
    return folder


NEEDED = ["paddle", "visualdl", "numpy", "pandas", "matplotlib", "scipy", "PIL", "safetensors", "tqdm"]
NEEDED += ["filelock", "requests", "urllib3"]


def make_python(folder, *modules):
    """Return the path of a real interpreter that has these empty modules and no package."""
    subprocess.run([BASE_PYTHON, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = folder.glob("lib/python3*/site-packages")
    for module in modules:
        (packages / f"{module}.py").touch()
    return str(folder / "bin" / "python")


def make_command(path, *lines):
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)


def can_import(project, *modules):
    command = [project / ".venv/bin/python", "-c", f"import {', '.join(modules)}"]
    return subprocess.run(command, capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheels")
    write_wheel(folder, "paddlepaddle", "3.3.1", module="paddle")
    write_wheel(folder, "testtool", "1.0", module="testtool")
    return folder


@pytest.fixture
def project(tmp_path):
    return make_project(tmp_path / "a project")  # with a space, as users have them


@pytest.fixture(scope="module")
def finished(tmp_path_factory, wheels):
    """A project after its first start, which was two starts at the same time; and their results."""
    folder = make_project(tmp_path_factory.mktemp("finished") / "project")
    both = [begin(folder, **offline(wheels)) for _ in range(2)]
    return folder, [finish(process) for process in both]


@pytest.fixture
def built(finished, tmp_path, monkeypatch):
    """A copy of the finished project, to be changed by one test; a new venv is a copy of its own, without paddle."""
    made = tmp_path / "made"
    subprocess.run(["cp", "-a", finished[0] / ".venv", made], check=True)
    for path in (*made.glob(".stamp*"), *made.glob("lib/python3*/site-packages/paddle.py")):
        path.unlink()
    for info in made.glob("lib/python3*/site-packages/paddlepaddle-*"):
        shutil.rmtree(info)
    commands = tmp_path / "commands"
    commands.mkdir()
    make_command(
        commands / "python3.12",
        f'[ "$2" != venv ] || exec cp -a "{made}" "$3"',
        f'exec "{BASE_PYTHON}" "$@"',
    )
    monkeypatch.setattr(sys.modules[__name__], "COMMANDS", [commands])
    return shutil.copytree(finished[0], tmp_path / "built", symlinks=True)


def test_two_first_starts_make_one_venv(finished):
    folder, results = finished
    for code, out, _ in results:
        assert (code, out) == (0, str(folder / ".venv/bin/python"))
    lines = [line for _, _, err in results for line in err]
    made = [line for line in lines if line != "setup: another start is making .venv: waiting for it"]
    assert len(made) == 1, lines
    assert re.match(r"setup: creating \.venv with Python 3\.1[0-2]\.\d+ and the CPU build of Paddle", made[0])
    assert can_import(folder, "paddle")


def test_a_complete_venv_calls_no_pip(built):
    (pip,) = built.glob(".venv/lib/python3*/site-packages/pip")
    shutil.rmtree(pip)  # a call of pip would fail
    assert start(built) == (0, str(built / ".venv/bin/python"), [])


def test_test_tools_are_added_and_serve_a_run_start(built, wheels, tmp_path):
    # Without the wheels pip fails: what pip said, then one line; the set "run" still works.
    code, out, err = start(built, "dev", **offline(tmp_path))
    assert (code, out) == (2, "")
    assert any("testtool==1.0" in line for line in err[:-1]) and err[-1].startswith("setup: pip failed")
    assert start(built) == (0, str(built / ".venv/bin/python"), [])

    code, _, err = start(built, "dev", **offline(wheels))
    assert (code, err) == (0, ["setup: adding the test tools to .venv"])
    assert can_import(built, "paddle", "testtool")
    for needed in ("dev", "run"):
        assert start(built, needed, **offline(tmp_path)) == (0, str(built / ".venv/bin/python"), [])


def test_the_programs_of_the_venv_start(finished):
    """They were installed beside and name their interpreter by its final place."""
    done = subprocess.run([finished[0] / ".venv/bin/pip", "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and str(finished[0] / ".venv/lib") in done.stdout, done.stderr
    assert sorted(path.name for path in finished[0].glob(".venv*")) == [".venv", ".venv.lock"]


def test_changed_requirements_make_a_new_venv_and_the_old_one_stays_until_it_is_complete(built, wheels, tmp_path):
    before = (built / "requirements.txt").read_text()
    (built / "requirements.txt").write_text("paddlepaddle==3.3.1\ntesttool==1.0\n")
    with socket.create_server(("127.0.0.1", 0)) as index:  # a package index that never answers
        index.settimeout(120)
        process = begin(built, PIP_INDEX_URL=f"http://127.0.0.1:{index.getsockname()[1]}/simple")
        connection, _ = index.accept()  # so pip was called, and is in the middle of its work
        os.killpg(process.pid, signal.SIGKILL)
        connection.close()
    code, _, err = finish(process)
    assert code == -signal.SIGKILL and "creating .venv again" in err[0]
    assert can_import(built, "paddle") and not can_import(built, "testtool")

    code, _, err = start(built, **offline(tmp_path))  # no wheels there
    assert code == 2 and err[-1].startswith("setup: pip failed")
    assert can_import(built, "paddle")
    changed = (built / "requirements.txt").read_text()
    (built / "requirements.txt").write_text(before)
    assert start(built) == (0, str(built / ".venv/bin/python"), [])

    (built / "requirements.txt").write_text(changed)
    code, _, err = start(built, **offline(wheels))
    assert code == 0 and len(err) == 1 and "creating .venv again (it was incomplete or outdated)" in err[0]
    assert can_import(built, "paddle", "testtool")


def test_given_python_is_taken_as_it_is(project, tmp_path):
    python = make_python(tmp_path / "own", *NEEDED)
    assert start(project, PYTHON=python) == (0, python, [])
    assert not (project / ".venv").exists()


@pytest.mark.parametrize(("needed", "missing"), [("run", ["visualdl", "PIL"]), ("dev", ["paddle", "pytest"])])
def test_what_a_given_python_lacks_is_named(project, tmp_path, needed, missing):
    python = make_python(tmp_path / "own", *(name for name in NEEDED if name not in missing))
    code, out, err = start(project, needed, PYTHON=python)
    assert (code, out, len(err)) == (2, "", 1)
    assert f"PYTHON={python} has no {' '.join(missing)}: install the requirements there" in err[0]


@pytest.mark.parametrize(
    ("python", "what"), [("/nowhere/python", "a program"), (shutil.which("true"), "a Python interpreter")]
)
def test_given_python_that_is_none(project, python, what):
    assert start(project, PYTHON=python) == (2, "", [f"setup: PYTHON={python} is not {what}"])


def test_no_suitable_python(project, tmp_path):
    """A command that exists and fails, as pyenv's shims do, is passed over; then there is none."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("bash", "cat", "cksum", "dirname", "grep", "ls", "rm", "sed", "touch"):
        (tools / tool).symlink_to(shutil.which(tool))
    make_command(tools / "python3.12", "echo 'pyenv: python3.12: command not found' >&2", "exit 127")
    code, out, err = start(project, PATH=str(tools))
    assert (code, out, len(err)) == (2, "", 1)
    assert err[0].startswith("setup: no Python 3.10, 3.11 or 3.12")
    assert not (project / ".venv").exists()


def test_a_venv_of_the_user_is_left_alone(project):
    make_python(project / ".venv")
    before = sorted((project / ".venv").rglob("*"))
    code, out, err = start(project)
    assert (code, out, len(err)) == (2, "", 1) and "was not made by setup_env.sh" in err[0]
    assert sorted((project / ".venv").rglob("*")) == before


def chosen_build(project, tmp_path):
    """The build that is chosen, and the name of the package that pip is to install."""
    python = tmp_path / "own"
    make_command(python, "echo missing:")
    fake = project / "fake/bin"
    fake.mkdir(parents=True)
    make_command(fake / "python", 'cat "$8"')  # python -m pip install --quiet ... -r LIST
    script = "source ./setup_env.sh run; build=$(setup_build); echo $build; setup_pip run $build fake; cat fake/pip.log"
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    return start(project, script=script, PYTHON=str(python), PADDLE_CUDA="", PATH=path)


BANNER = "| NVIDIA-SMI 560.35.03    Driver Version: 560.35.03    CUDA Version: {} |"
NEW_BANNER = "| NVIDIA-SMI 610.43.02    KMD Version: 610.43.02    CUDA UMD Version: {} |"


@pytest.mark.parametrize(
    ("banner", "build"),
    [
        (BANNER.format("11.4"), "cpu"),
        (BANNER.format("11.8"), "cu118"),
        (BANNER.format("12.0"), "cu126"),
        (BANNER.format("12.8"), "cu126"),
        (BANNER.format("12.6"), "cu126"),
        (BANNER.format("12.9"), "cu129"),
        (BANNER.format("13.0"), "cu130"),
        (NEW_BANNER.format("13.3"), "cu130"),
        (BANNER.format("N/A"), "cpu"),
    ],
)
def test_build_follows_what_nvidia_smi_prints(project, tmp_path, banner, build):
    """The choice and the package name only: no GPU build is installed here."""
    make_command(tmp_path / "nvidia-smi", f"echo '{banner}'")
    code, out, err = chosen_build(project, tmp_path)
    package = "paddlepaddle" if build == "cpu" else "paddlepaddle-gpu"
    assert (code, out.split()) == (0, [build, f"{package}==3.3.1"])
    assert len(err) == (build == "cpu")  # a GPU that is not used is not passed over in silence


@pytest.mark.parametrize(
    ("capabilities", "driver", "build"),
    [
        ("9.0 7.0", "13.0", "cu118"),
        ("6.1", "12.6", "cu118"),
        ("9.0 7.5", "13.0", "cu130"),
        ("7.0", "11.8", "cu118"),
        ("7.0", "11.4", "cpu"),  # no build runs on that driver
        ("12.0", "12.8", "cu129"),  # CUDA 12.6 cannot compile for Blackwell
        ("12.0 8.9", "12.8", "cu129"),
        ("12.0", "13.0", "cu130"),
        ("8.9", "12.8", "cu126"),
    ],
)
def test_the_build_is_one_that_all_cards_run_on(project, tmp_path, capabilities, driver, build):
    """A driver of CUDA 13 still serves a V100, PaddlePaddle's builds for CUDA 13 do not."""
    query = f'case "$*" in *compute_cap*) printf "%s\\n" {capabilities}; exit ;; esac'
    make_command(tmp_path / "nvidia-smi", query, f"echo '{BANNER.format(driver)}'")
    code, out, _ = chosen_build(project, tmp_path)
    assert (code, out.split()[0]) == (0, build)


@pytest.mark.parametrize(
    ("recorded", "chosen"),
    [(None, "cpu\npaddlepaddle==3.3.1"), ("cu126 python-3.11 1 1", "cu126\npaddlepaddle-gpu==3.3.1")],
)
def test_gpu_build_stays_where_no_gpu_answers(project, tmp_path, recorded, chosen):
    make_command(tmp_path / "nvidia-smi", "echo 'No devices were found'", "exit 6")
    if recorded:
        (project / ".venv").mkdir()
        (project / ".venv" / ".stamp-run").write_text(f"{recorded}\n")
    assert chosen_build(project, tmp_path) == (0, chosen, [])


def test_unknown_build(project):
    code, out, err = start(project, PADDLE_CUDA="cu121")
    assert (code, out, len(err)) == (2, "", 1)
    assert err[0].startswith("setup: PADDLE_CUDA=cu121 is not known")


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_every_requirement_is_pinned_once_and_names_no_place(name):
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
    if name == "requirements-dev.txt":
        assert lines.pop(0) == "-r requirements.txt"
    pin = re.compile(r"([a-z0-9-]+)==[0-9][0-9a-z.]*( ; python_full_version [<>=]+ '3\.\d+')?")
    pins = [pin.fullmatch(line) for line in lines]
    assert all(pins), [line for line, found in zip(lines, pins, strict=True) if not found]
    names = [found[1] for found in pins]
    assert len(names) == len(set(names))
