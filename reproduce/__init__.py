"""The experiment: R-Drop for ViT on CIFAR-100, and what reads its evidence.

Importing this package settles the processor before PaddlePaddle loads, so `bash run_train.sh` and
`python -m reproduce.NAME` run under the same settings.
"""

import contextlib
import io
import os
import warnings
from pathlib import Path

from common.system import keep_freed_memory

ROOT = Path(__file__).resolve().parent.parent

_settings = {  # environment variables for Paddle's CPU build
    "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))),  # Paddle's own default is 1
    # Transposed views instead of copies sound cheap, but each CPU kernel that reads one copies it slowly: a step of
    # `digits` takes 75 ms without them and 144 ms with.
    "FLAGS_use_stride_kernel": "0",
}
_cpuinfo = Path("/proc/cpuinfo")
if _cpuinfo.exists() and "AuthenticAMD" in _cpuinfo.read_text():
    # Paddle links an old MKL that takes a slow path on AMD: 25 against 150 GFLOP/s in float32. On Intel it would hurt.
    _settings["MKL_DEBUG_CPU_TYPE"] = "5"
_of_parent = os.environ.get("REPRODUCE_SETTINGS", "").split()  # one that is of this project had set them for itself
SET_HERE = {  # and not by the user: for this process alone
    name for name in _settings if not os.environ.get(name) or f"{name}={os.environ[name]}" in _of_parent
}
os.environ.update({name: _settings[name] for name in SET_HERE})
os.environ["REPRODUCE_SETTINGS"] = " ".join(f"{name}={_settings[name]}" for name in SET_HERE)
PROCESSOR_SETTINGS = {name: os.environ[name] for name in _settings}
keep_freed_memory()

with contextlib.redirect_stderr(io.StringIO()):  # Paddle prints a warning for any OMP_NUM_THREADS above 1
    warnings.filterwarnings("ignore", message="No ccache found")
    warnings.filterwarnings("ignore", message="When training, we now always track global mean and variance")
    import paddle

paddle.disable_signal_handler()  # it prints a C++ trace when a run is asked to stop
