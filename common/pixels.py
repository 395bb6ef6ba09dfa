"""What a picture becomes before a network sees it, in the words that recipes, weight files and options use."""

from typing import NamedTuple

# What pixels from 0 to 255 become: (divisor, offset) of pixel / divisor - offset; three numbers where channels differ.
SCALES = {
    "-1..1": (127.5, 1.0),  # the ViTs: mean = std = 0.5
    "0..1": (255.0, 0.0),  # the blog's two networks
    "imagenet": ([58.395, 57.12, 57.375], [0.485 / 0.229, 0.456 / 0.224, 0.406 / 0.225]),  # PaddleClas's files
}


class Resize(NamedTuple):
    """How a picture gets the network's size: resized, then cut to its middle."""

    pixels: int = 0  # before the crop; 0: the network's image size divided by `share`
    share: float = 1.0
    keep_ratio: bool = False  # `pixels` means the shorter side; otherwise both sides
    resample: str = "bilinear"  # a name of Pillow's
    origin: str = ""  # who says it

    def side(self, image_size: int) -> int:
        """`pixels`, worked out for a network."""
        return self.pixels or int(image_size / self.share)

    def __str__(self) -> str:
        if not self.keep_ratio:
            return "whole"
        return f"{self.pixels or f'to 1/{self.share} of the image size'} and centre crop"
