"""The learning rate as a function of the step; the optimizer; clipping and applying the gradients of an update."""

import math

import paddle

from reproduce.cli import on_gpu

SCHEDULES = ("cosine", "linear", "constant")


def learning_rate(step: int, peak: float, num_steps: int, warmup_steps: int, schedule: str = "cosine") -> float:
    """Rate of update `step`, which counts from 1 to `num_steps`.

    1. Warm-up: a line from 0 at step 0 to `peak` at `warmup_steps`.
    2. Then a half cosine or a line to 0 at `num_steps`, or constant.

    The official code calls scheduler.step() before optimizer.step(), so its first update already has the rate of
    step 1 and its last one the rate 0 (dropreg/R-Drop, vit_src/train.py and utils/scheduler.py).
    """
    if step < warmup_steps:
        return peak * step / warmup_steps
    done = (step - warmup_steps) / max(1, num_steps - warmup_steps)  # 0 at the peak, 1 at the end
    if schedule == "cosine":
        return peak * max(0.0, 0.5 * (1 + math.cos(math.pi * done)))
    if schedule == "linear":
        return peak * max(0.0, 1 - done)
    if schedule == "constant":
        return peak
    raise ValueError(f"schedule {schedule!r}: one of {SCHEDULES}")


def make_optimizer(recipe, model):
    """One optimizer updates all parameters; for two networks the result equals one optimizer each."""
    shared = {
        "parameters": model.parameters(),
        "weight_decay": recipe.weight_decay or None,
        "use_multi_tensor": on_gpu(),  # one kernel for all weights
    }
    if recipe.optimizer == "adam":
        return paddle.optimizer.Adam(recipe.learning_rate, **shared)
    return paddle.optimizer.Momentum(recipe.learning_rate, recipe.momentum, **shared)


@paddle.no_grad()
def global_norm(gradients: list):
    """The L2 norm of all gradients together, a scalar tensor.

    On a CPU the sums of squares are matrix products: Paddle's own clip_grad_norm_ takes several times longer. On a GPU
    such a product would wait for its result.
    """
    flat = (gradient.flatten() for gradient in gradients)  # one at a time: each is a copy
    squares = [(each * each).sum() if on_gpu() else paddle.matmul(each, each) for each in flat]
    return paddle.stack(squares).sum().sqrt()


@paddle.no_grad()
def clip(gradients: list, norm: float, max_norm: float) -> None:
    """Scale all gradients, whose norm is `norm`, by min(1, max_norm / (norm + 1e-6)): torch's rule."""
    if norm + 1e-6 > max_norm:
        for gradient in gradients:
            gradient.scale_(max_norm / (norm + 1e-6))


def loss_scaler(recipe):
    """What keeps the gradients of fp16 from underflow; switched off for bf16, which has the range of fp32, and fp32."""
    return paddle.amp.GradScaler(enable=recipe.precision == "fp16")


def apply_gradients(optimizer, scaler) -> None:
    """Update the weights and clear the gradients; an update of fp16 that has overflowed is left out."""
    scaler.step(optimizer)
    scaler.update()
    optimizer.clear_grad(set_to_zero=False)  # zeros would be added to, and stay in memory until then
