"""A split that fits into memory: bytes stay bytes until a batch of them is on the device."""

from dataclasses import dataclass

import numpy as np
import paddle

from data.augment import full_boxes, resize_crops


@dataclass(frozen=True)
class InMemory:
    """Images uint8 (N, 3, H, W) and labels int64 (N,)."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: np.ndarray) -> "InMemory":
        return InMemory(self.images[indices], self.labels[indices])

    def stream(self, requests, image_size: int, augmentation=None, workers: int = 0, scale: str = "-1..1"):
        """For each (indices, draws) of `requests`, yield (images, labels) on the current device.

        Images are float32 (n, 3, image_size, image_size) with pixels as SCALES[scale] says, labels int64 (n,).
        `augmentation` says what `draws` mean; None is the whole image. `workers` has no use here.
        """
        _, _, height, width = self.images.shape
        for indices, draws in requests:
            n = len(indices)
            boxes, flips = full_boxes(n, height, width), None
            if draws is not None:
                boxes = augmentation.boxes(draws, np.full(n, height), np.full(n, width))
                flips = augmentation.flips(draws)
            raw = paddle.to_tensor(self.images[indices])
            yield resize_crops(raw, boxes, image_size, flips, scale), paddle.to_tensor(self.labels[indices])
