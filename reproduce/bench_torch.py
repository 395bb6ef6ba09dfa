"""PyTorch as a competitor of `reproduce.bench`: timm's ViT with the official loss, from tests/alignment/torch_side.py.

Started by its path with the options of `Step` as JSON it builds the network, does one step and prints a line: what
`reproduce.bench --part start` measures. Nothing of this project but that file is imported, and no Paddle.
"""

import importlib
import importlib.util
import json
import os
import sys
import types
from pathlib import Path

try:
    import torch
    from torch.nn import functional as F
except Exception as reason:  # a CUDA build without its libraries: ValueError or OSError
    raise ImportError(f"torch cannot be imported ({type(reason).__name__}: {reason})") from None
if importlib.util.find_spec("timm") is None:
    raise ImportError("timm is not installed")


def _torch_side():
    """tests/alignment/torch_side.py without its package, which loads Paddle."""
    package = types.ModuleType("bench_alignment")
    package.__path__ = [str(Path(__file__).resolve().parent.parent / "tests" / "alignment")]
    sys.modules[package.__name__] = package
    return importlib.import_module("bench_alignment.torch_side")


torch_side = _torch_side()


class Step:
    """Training steps on one batch; called, it does `steps` of them and gives the last loss."""

    def __init__(self, images, labels, *, network: dict, alpha: float, learning_rate: float, steps: int):
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        torch.manual_seed(0)
        self.images, self.labels = torch.from_numpy(images), torch.from_numpy(labels)
        self.alpha, self.steps = alpha, steps
        self.model = torch_side.build_vit(**network)
        for parameter in self.model.head.parameters():
            torch.nn.init.zeros_(parameter)
        self.model.train()
        far = 10**9  # steps: the rate stays at its peak
        self.optimizer, self.scheduler = torch_side.make_optimizer(self.model, learning_rate, far, warmup_steps=0)

    def __call__(self) -> dict:
        for _ in range(self.steps):
            batches, loss = [(self.images, self.labels)], torch_side.official_loss
            found = torch_side.accumulate(self.model, batches, 1, loss, self.alpha)
            torch_side.apply(self.model, self.optimizer, self.scheduler, max_norm=1.0)
        return {"loss": found}


class Evaluation:
    """Bytes in, top 5 classes, confidence and NLL of every image out, as evaluate.evaluate gives them."""

    def __init__(self, images, labels, *, network: dict, batch_size: int):
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self.images, self.labels = images, labels
        self.batch_size, self.image_size = batch_size, network["image_size"]
        self.model = torch_side.build_vit(**network).eval()

    def prepared(self, images) -> torch.Tensor:
        """uint8 (n, 3, H, W) -> float32 (n, 3, S, S) in [-1, 1]."""
        return F.interpolate(torch.from_numpy(images) / 127.5 - 1, self.image_size, mode="bilinear")

    @torch.no_grad()
    def __call__(self) -> None:
        for start in range(0, len(self.images), self.batch_size):
            piece = slice(start, start + self.batch_size)
            log_p = F.log_softmax(self.model(self.prepared(self.images[piece])), dim=-1)
            top_log_p, top = log_p.topk(5, dim=-1)
            nll = -log_p.gather(1, torch.from_numpy(self.labels[piece])[:, None])
            for found in (top, top_log_p[:, 0].exp(), nll):
                found.numpy()


def main() -> None:
    options = json.loads(sys.argv[1])
    count, network = options.pop("batch"), options["network"]
    images = torch.rand(count, 3, network["image_size"], network["image_size"]).numpy()
    print(Step(images, torch.arange(count).remainder(network["num_classes"]).numpy(), **options)(), flush=True)


if __name__ == "__main__":
    main()
