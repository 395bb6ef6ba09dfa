"""PyTorch's side of `reproduce.bench`, and the process that each side of it runs in.

`reproduce.bench` starts this file by its path and reads the JSON that it prints. It imports nothing of the project by
itself, since importing `reproduce` settles the processor, and PyTorch does not run under our settings.
"""

import importlib
import json
import os
import sys
import time
import types
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
_WARM_UP = 2  # calls; the optimizer's numbers are there from the second step on


def _torch_side():
    """torch and torch_side.py, without the package that it is in, which loads Paddle."""
    torch = importlib.import_module("torch")
    package = types.ModuleType("bench_alignment")
    package.__path__ = [str(HERE)]
    sys.modules[package.__name__] = package
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    return torch, importlib.import_module("bench_alignment.torch_side")


class TorchStep:
    """timm's ViT with the official loss. Called, it does a training step on one batch."""

    def __init__(self, images, labels, *, network: dict, alpha: float, learning_rate: float):
        torch, self.side = _torch_side()
        torch.manual_seed(0)
        self.batches = [(torch.from_numpy(images), torch.from_numpy(labels))]
        self.alpha = alpha
        self.model = self.side.build_vit(**network).train()
        for parameter in self.model.head.parameters():
            torch.nn.init.zeros_(parameter)
        far = 10**9  # steps: the rate stays at its peak
        self.optimizer, self.scheduler = self.side.make_optimizer(self.model, learning_rate, far, warmup_steps=0)

    def __call__(self) -> float:
        loss = self.side.accumulate(self.model, self.batches, 1, self.side.official_loss, self.alpha)
        self.side.apply(self.model, self.optimizer, self.scheduler, max_norm=1.0)
        return loss


class TorchEvaluation:
    """Bytes in; top 5 classes, confidence and NLL of every image out, as reproduce.evaluate gives them."""

    def __init__(self, images, labels, *, network: dict, batch_size: int):
        self.torch, side = _torch_side()
        self.images, self.labels = images, labels
        self.batch_size, self.image_size = batch_size, network["image_size"]
        self.model = side.build_vit(**network).eval()

    def prepared(self, images):
        """uint8 (n, 3, H, W) -> float32 (n, 3, S, S) in [-1, 1]."""
        scaled = self.torch.from_numpy(images) / 127.5 - 1
        return self.torch.nn.functional.interpolate(scaled, self.image_size, mode="bilinear")

    def __call__(self) -> float:
        total = 0.0
        with self.torch.no_grad():
            for start in range(0, len(self.images), self.batch_size):
                piece = slice(start, start + self.batch_size)
                log_p = self.model(self.prepared(self.images[piece])).log_softmax(dim=-1)
                top_log_p, top = log_p.topk(5, dim=-1)
                nll = -log_p.gather(1, self.torch.from_numpy(self.labels[piece])[:, None])
                for found in (top, top_log_p[:, 0].exp()):
                    found.numpy()
                total += nll.double().sum().item()
        return total / len(self.images)


# ---- The process of a side


def random_images(count: int, size: int, classes: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (count, 3, size, size), float32 in [-1, 1) or uint8 as `kind` says, and int64 labels; always the same."""
    rng = np.random.default_rng(0)
    shape = (count, 3, size, size)
    images = rng.integers(0, 256, shape, np.uint8) if kind == "uint8" else 2 * rng.random(shape, np.float32) - 1
    return images, rng.integers(0, classes, count)


def memory_peak() -> int:
    """The highest memory of this process so far, in bytes."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(status["VmHWM"].split()[0])


def main() -> None:
    # The code of the current folder first, which is another clone for `--against`. This folder last: a library's
    # `import report` shall not find ours.
    sys.path[0:1] = [str(Path.cwd())]
    sys.path.append(str(HERE))
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    task, images, options, count = json.loads(sys.argv[1])
    module, _, name = task.partition(":")
    try:
        call = getattr(importlib.import_module(module), name)(*random_images(**images), **options)
    except ImportError as reason:
        sys.exit(f"{reason}; `source setup_env.sh dev` installs PyTorch and timm")
    results = [call() for _ in range(_WARM_UP)]
    began = time.perf_counter()
    results += [call() for _ in range(count)]
    seconds = (time.perf_counter() - began) / count
    json.dump({"seconds": seconds, "results": results, "memory_peak_bytes": memory_peak()}, answer)


if __name__ == "__main__":
    main()
