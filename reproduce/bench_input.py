"""Input pipelines that `reproduce.bench` compares with: a picture at a time, random crop, resize, normalise, stack."""

import math
import random

import numpy as np
from PIL import Image

_AREA, _RATIO = (0.05, 1.0), (3 / 4, 4 / 3)


class _PerImage:
    """Called, it makes `batches` batches of the images, uint8 (N, 3, H, W), one after the other."""

    def __init__(self, images, labels, *, image_size: int, batch_size: int, batches: int):
        self.images = [np.ascontiguousarray(image.transpose(1, 2, 0)) for image in images]  # (H, W, 3), as files give
        self.image_size, self.batch_size, self.batches = image_size, batch_size, batches
        self.random = random.Random(0)

    def __call__(self) -> None:
        for _ in range(self.batches):
            chosen = self.random.choices(self.images, k=self.batch_size)
            self.stacked([self.prepared(Image.fromarray(pixels)) for pixels in chosen])


class Pillow(_PerImage):
    """Pillow and NumPy alone."""

    def prepared(self, image) -> np.ndarray:
        """float32 (3, S, S) in [-1, 1] of a random crop."""
        crop = image.crop(self.box(*image.size)).resize((self.image_size, self.image_size), Image.BILINEAR)
        return (np.asarray(crop, np.float32) / 127.5 - 1).transpose(2, 0, 1)

    def stacked(self, images) -> np.ndarray:
        return np.stack(images)

    def box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) as torchvision's RandomResizedCrop draws it; the whole image if nothing fits."""
        for _ in range(10):
            area = width * height * self.random.uniform(*_AREA)
            ratio = math.exp(self.random.uniform(*map(math.log, _RATIO)))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                left, top = self.random.randint(0, width - w), self.random.randint(0, height - h)
                return left, top, left + w, top + h
        return 0, 0, width, height


class PaddleVision(_PerImage):
    """paddle.vision.transforms on Pillow images."""

    def __init__(self, *arguments, image_size: int, **options):
        super().__init__(*arguments, image_size=image_size, **options)
        import paddle
        from paddle.vision import transforms

        paddle.set_device("cpu")
        self.prepared = transforms.Compose(
            [
                transforms.RandomResizedCrop(image_size, scale=_AREA, ratio=_RATIO),
                transforms.ToTensor(),
                transforms.Normalize(mean=[0.5] * 3, std=[0.5] * 3),
            ]
        )
        self.stacked = paddle.stack
