"""The experiment: R-Drop for ViT on CIFAR-100, and what reads its evidence.

Importing this package settles the processor before PaddlePaddle loads, so `bash run_train.sh` and
`python -m reproduce.NAME` run under the same settings.
"""

import contextlib
import io
import os
import warnings
from pathlib import Path

from common.processes import end_with_parent, keep_freed_memory

ROOT = Path(__file__).resolve().parent.parent


def _processor_settings() -> dict[str, str]:
    """Environment variables for Paddle's CPU build; what the user has set already wins."""
    settings = {
        # Paddle's own default is 1; several processes on one machine (parallel.py) share its cores
        "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("PADDLE_LOCAL_SIZE", "1")))),
        # Transposed views instead of copies sound cheap, but each CPU kernel that reads one copies it slowly:
        # a step of `digits` takes 75 ms without them and 144 ms with.
        "FLAGS_use_stride_kernel": "0",
    }
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and "AuthenticAMD" in cpuinfo.read_text():
        # Paddle links an old MKL that takes a slow path on AMD: 25 against 150 GFLOP/s in float32. On Intel
        # processors the same variable would hurt.
        settings["MKL_DEBUG_CPU_TYPE"] = "5"
    return {name: os.environ.get(name) or value for name, value in settings.items()}


if "REPRODUCE_LAUNCH" in os.environ and "PADDLE_TRAINER_ID" in os.environ:  # started by launch.py: see there
    end_with_parent(named="paddle.distributed.launch")

PROCESSOR_SETTINGS = _processor_settings()
# and not by the user: for this process alone
SET_HERE = {name for name in PROCESSOR_SETTINGS if not os.environ.get(name)}
os.environ.update(PROCESSOR_SETTINGS)
keep_freed_memory()

with contextlib.redirect_stderr(io.StringIO()):  # Paddle prints a warning for any OMP_NUM_THREADS above 1
    warnings.filterwarnings("ignore", message="No ccache found")
    warnings.filterwarnings("ignore", message="When training, we now always track global mean and variance")
    import paddle

paddle.disable_signal_handler()  # it prints a C++ trace when a run is asked to stop
