"""Random crops, flips and resizing of a whole batch at once, on the device where training runs.

Bilinear resizing is a product with two small matrices per image. They hold the triangle filter of Pillow (also
torchvision's for PIL images), widened when an image shrinks, so the result is Pillow's before its rounding.
"""

from dataclasses import dataclass

import numpy as np
import paddle

from common.pixels import SCALES

_ATTEMPTS = 10  # torchvision's RandomResizedCrop tries this often before it takes a centre crop


@dataclass(frozen=True)
class Augmentation:
    """RandomResizedCrop with the area and aspect ratio of the crop uniform in these ranges, and a mirror flip."""

    min_area: float = 0.05  # of the image's area; 1 keeps the whole image
    max_area: float = 1.0
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height, uniform in the logarithm
    flip: bool = False  # left-right with probability 1/2; the official R-Drop code has none

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Random numbers for the images of a whole batch: each is cropped alike in whatever micro-batch it lands."""
        return rng.random((count, 4 * _ATTEMPTS + 1))

    def boxes(self, draws: np.ndarray, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
        """Crop boxes (n, 4) int64 of (top, left, height, width), inside images of the given sizes (n,)."""
        n = len(draws)
        if self.min_area >= 1:
            return np.stack([np.zeros(n), np.zeros(n), heights, widths], axis=1).astype(np.int64)
        u_area, u_ratio, u_top, u_left = draws[:, : 4 * _ATTEMPTS].reshape(n, 4, _ATTEMPTS).transpose(1, 0, 2)
        full_h, full_w = np.asarray(heights).reshape(n, 1), np.asarray(widths).reshape(n, 1)
        area = full_h * full_w * (self.min_area + u_area * (self.max_area - self.min_area))
        log_low, log_high = np.log(self.ratio)
        ratio = np.exp(log_low + u_ratio * (log_high - log_low))
        h = np.rint(np.sqrt(area / ratio)).astype(np.int64)
        w = np.rint(np.sqrt(area * ratio)).astype(np.int64)
        top = np.floor(u_top * (full_h - h + 1)).astype(np.int64)
        left = np.floor(u_left * (full_w - w + 1)).astype(np.int64)
        fits = (h > 0) & (h <= full_h) & (w > 0) & (w <= full_w)
        first = np.argmax(fits, axis=1)  # the first attempt that fits
        boxes = np.stack([top, left, h, w], axis=-1)[np.arange(n), first]
        low, high = self.ratio
        for i in np.flatnonzero(~fits.any(axis=1)):  # as torchvision: the largest centred crop of an allowed ratio
            height, width = int(full_h[i, 0]), int(full_w[i, 0])
            h = min(height, max(1, round(width / low)))
            w = min(width, max(1, round(height * high)))
            boxes[i] = (height - h) // 2, (width - w) // 2, h, w
        return boxes

    def flips(self, draws: np.ndarray) -> np.ndarray:
        """bool (n,): which images are mirrored."""
        return (draws[:, -1] < 0.5) & self.flip


def resize_crops(images, size: int, boxes: np.ndarray | None = None, flips=None, scale: str = "-1..1"):
    """Cut `boxes` out of `images`, resize each bilinearly, and scale the pixels: float32 (n, 3, size, size).

    Args:
        images: uint8 tensor (n, 3, H, W).
        boxes: (n, 4) of (top, left, height, width) in pixels; None keeps whole images.
        flips: bool (n,), mirrors left-right; None mirrors none.
        scale: a name of SCALES, the default of which means (pixel / 255 - 0.5) / 0.5.
    """
    n, _, height, width = images.shape
    if boxes is None:
        boxes = np.tile([0, 0, height, width], (n, 1))
    rows = _interpolation(boxes[:, 0], boxes[:, 2], height, size)  # (n, size, H)
    columns = _interpolation(boxes[:, 1], boxes[:, 3], width, size)  # (n, size, W)
    if flips is not None and flips.any():
        mirror = paddle.to_tensor(flips).reshape([-1, 1, 1])
        columns = paddle.where(mirror, columns.flip(axis=1), columns)
    divisor, offset = (
        value if isinstance(value, float) else paddle.to_tensor(value, dtype="float32").reshape([3, 1, 1])
        for value in SCALES[scale]
    )
    x = images.astype("float32") / divisor - offset  # before resizing: the rows of both matrices sum to 1
    x = paddle.matmul(rows.unsqueeze(1), x)  # (n, 3, size, W)
    return paddle.matmul(x, columns.unsqueeze(1), transpose_y=True)


def _interpolation(start: np.ndarray, length: np.ndarray, full: int, size: int):
    """Matrices (n, size, full) that resize `length` pixels from `start` on to `size`, rows summing to 1.

    In NumPy, step by step in place: on a CPU Paddle takes four times as long.
    """
    start, length = (values.astype(np.float32).reshape(-1, 1, 1) for values in (start, length))
    scale = length / np.float32(size)
    centre = start + (np.arange(size, dtype=np.float32).reshape(1, -1, 1) + np.float32(0.5)) * scale
    pixel = np.arange(full, dtype=np.float32)
    weight = pixel + np.float32(0.5) - centre
    np.abs(weight, out=weight)
    weight /= np.maximum(scale, 1)
    np.subtract(1, weight, out=weight)
    np.maximum(weight, 0, out=weight)
    weight *= (pixel >= start) & (pixel < start + length)
    weight /= weight.sum(axis=-1, keepdims=True)
    return paddle.to_tensor(weight)
