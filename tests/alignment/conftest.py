"""The stages run once for all tests; their table is printed at the end."""

import importlib
import importlib.util

import pytest

_TABLE = pytest.StashKey[list]()


@pytest.fixture(scope="session")
def pytorch():
    """Skip where the PyTorch side cannot run, and say why."""
    try:
        importlib.import_module("torch")
    except Exception as reason:  # a CUDA build without its libraries: ValueError or OSError
        pytest.skip(
            f"the alignment with PyTorch is NOT checked: torch cannot be imported ({type(reason).__name__}: {reason}); "
            "pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
        )
    for name in ("timm", "reprod_log"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"the alignment with PyTorch is NOT checked: {name} is not installed, see requirements-dev.txt")


@pytest.fixture(scope="session")
def alignment(pytorch, request):
    """(differences, facts) of the five stages."""
    from . import report, stages

    found, facts = stages.run_all()
    request.config.stash[_TABLE] = [*report.table(found), "", *report.notes(facts)]
    return found, facts


def pytest_terminal_summary(terminalreporter, config):
    if lines := config.stash.get(_TABLE, None):
        terminalreporter.section("alignment with PyTorch")
        for line in lines:
            terminalreporter.write_line(line)
