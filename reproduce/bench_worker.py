"""One competitor of `reproduce.bench` in a process of its own; bench_race.py starts it and says "go".

It reads a command a line on stdin and answers each with a line of JSON on stdout. It is started by its path and
imports nothing of `reproduce` by itself: that would settle the processor for competitors that run without that.
"""

import importlib
import json
import os
import sys
import time
from pathlib import Path

import numpy as np

_HERE = Path(__file__).resolve().parent
_SETTINGS = ("OMP_", "KMP_", "GOMP_", "MKL_", "FLAGS_")  # of the environment: what a reader has to know


def main() -> None:
    # The folder last: a library's `import plan` shall not find ours.
    sys.path[0:1] = [str(_HERE.parent)]
    sys.path.append(str(_HERE))
    from common.processes import end_with_parent

    end_with_parent()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    spec = json.loads(sys.argv[1])

    def answer(**content) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    try:
        task = _make_task(spec)
    except ImportError as reason:
        answer(missing=str(reason))
        return
    answer(**facts(spec["library"]))
    for line in sys.stdin:
        command = line.strip()
        if command == "go":
            began = time.perf_counter()
            more = task() or {}
            answer(seconds=time.perf_counter() - began, **more)
        elif command == "product":
            answer(flops_per_second=product_speed(spec["library"], spec["product_size"]))
        elif command == "facts":
            answer(**facts(spec["library"]))
        else:
            raise ValueError(command)


def _make_task(spec: dict):
    """The task of the specification: an object that does one repetition when it is called."""
    if spec["core"] is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {spec["core"]})
    if spec["our_settings"]:
        importlib.import_module("reproduce")
    module, name = spec["task"].split(":")
    found = getattr(importlib.import_module(module), name)
    images = random_images(**spec["images"]) if spec["images"] else ()
    return found(*images, **spec["options"])


def random_images(count: int, size: int, classes: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (count, 3, size, size), float32 in [-1, 1) or uint8 as `kind` says, and int64 labels; always the same."""
    rng = np.random.default_rng(0)
    shape = (count, 3, size, size)
    images = rng.integers(0, 256, shape, np.uint8) if kind == "uint8" else 2 * rng.random(shape, np.float32) - 1
    return images, rng.integers(0, classes, count)


def product_speed(library: str, size: int) -> float:
    """Operations a second of a float32 matrix product of that size in this process, better of two."""
    module = importlib.import_module(library)
    a = module.rand([size, size])
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        module.matmul(a, a)
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds)


def facts(library: str) -> dict:
    """Memory of this process in bytes, now and at its highest, and the settings that it runs under."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    memory = {key: 1024 * int(status[name].split()[0]) for key, name in (("now", "VmRSS"), ("peak", "VmHWM"))}
    settings = {name: value for name, value in sorted(os.environ.items()) if name.startswith(_SETTINGS)}
    if library == "paddle":
        settings.update(importlib.import_module("paddle").get_flags(["FLAGS_use_stride_kernel"]))
    if library == "torch":
        settings["threads"] = importlib.import_module("torch").get_num_threads()
    return {"memory": memory, "settings": settings}


if __name__ == "__main__":
    main()
