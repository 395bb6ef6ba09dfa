"""The learning rate as a pure function of the step."""

import math

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
