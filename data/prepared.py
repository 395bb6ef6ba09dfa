"""How a picture becomes the input of a network that others trained: its own resize, centre crop and pixel scale."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from common.errors import UserError
from common.pixels import Resize
from data import FROM_FILES
from data.splits import ImageFiles, InMemory, read_image

_WHOLE = Resize()
_LARGEST = 4  # times the network's image size that a picture is resized to before the crop
_LONGEST = 16  # times the shorter side of a picture; what is further from the middle is cut off before resizing


@dataclass(frozen=True)
class Preparation:
    """From a picture to float32 (3, image_size, image_size)."""

    image_size: int
    scale: str = "-1..1"  # what pixel values become: a name of common.pixels.SCALES
    resize: Resize = _WHOLE
    from_files: bool = True  # resized in 8 bits by Pillow; otherwise in float32, as CIFAR and digits are in memory

    def __str__(self) -> str:
        side, size = self.resize.side(self.image_size), self.image_size
        keep = self.resize.keep_ratio
        text = f"shorter side resized to {side} px" if keep else f"resized whole to {side} x {side} px"
        if keep or side > size:
            text += f", centre crop {size} x {size}"
        way = f"{self.resize.resample} in {'8 bits' if self.from_files else 'float32'}"
        origin = f", as {self.resize.origin} says" if self.resize.origin else ""
        return f"{text}, {way}, pixel scale {self.scale}{origin}"

    def decoded(self, path) -> np.ndarray:
        """uint8 (H, W, 3); for `from_files` of the network's size. Raises UserError for a file that is no picture."""
        picture = read_image(path)
        if not self.from_files:
            return np.asarray(picture)
        side = self.resize.side(self.image_size)
        sides = (side, side)
        if self.resize.keep_ratio:  # rounded as torchvision's Resize and CenterCrop do
            shorter = min(picture.size)
            picture = _middle(picture, *(min(length, _LONGEST * shorter) for length in picture.size))
            sides = tuple(int(side * length / shorter) for length in picture.size)
        picture = picture.resize(sides, Image.Resampling[self.resize.resample.upper()])
        return np.asarray(_middle(picture, self.image_size, self.image_size))

    def images(self, pixels: np.ndarray):
        """Pixels (n, H, W, 3), as `decoded` gives them, as the network's input (n, 3, S, S)."""
        split = InMemory(pixels.transpose(0, 3, 1, 2), np.zeros(len(pixels), np.int64))
        return next(split.stream([(np.arange(len(pixels)), None)], self.image_size, scale=self.scale))[0]

    def split(self, files: ImageFiles) -> ImageFiles:
        """`files` prepared this way for `reproduce.evaluate.evaluate`."""
        return ImageFiles(files.paths, files.labels, self.decoded)


def _middle(picture: Image.Image, width: int, height: int) -> Image.Image:
    left, top = round((picture.width - width) / 2), round((picture.height - height) / 2)
    return picture.crop((left, top, left + width, top + height))


def preparation(pictures: dict, dataset: str, image_size: int) -> Preparation:
    """How pictures are prepared for a network trained on `dataset`, by its `Weights.pictures`.

    Raises UserError for a resize that leaves no crop.
    """
    resize = pictures.get("resize", _WHOLE)
    if not image_size <= resize.side(image_size) <= _LARGEST * image_size:
        text = f"{resize.origin}: resize {resize.pixels}: must be 'whole', or the pixels of the shorter side"
        raise UserError(f"{text}, from {image_size} to {_LARGEST * image_size}")
    return Preparation(image_size, pictures["scale"], resize, "resize" in pictures or dataset in FROM_FILES)


def resize_option(text: str) -> Resize:
    """What --resize says; a size that is no number is refused by `preparation`."""
    if text == "whole":
        return Resize(origin="--resize")
    return Resize(int(text) if text.isdecimal() else -1, keep_ratio=True, origin="--resize")
