"""One picture of any kind as 8-bit RGB: upright, on white where it is transparent."""

import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from common.errors import UserError


def read_image(path) -> Image.Image:
    """The picture as RGB, upright as its EXIF data say. Raises UserError for a file that is no whole picture.

    The network is to see what a viewer shows. Up to 8 bits and without transparency that is Pillow's
    `convert("RGB")` (CMYK without its colour profile; of an animation the first frame). Elsewhere it is not:
    transparent pixels are laid on white, where Pillow shows the colour that happens to be stored below them, and
    16-bit grey is divided by 257, where Pillow cuts all above 255 off to white.

    More than 179 million pixels (20,000 x 20,000 for instance) are refused by Pillow before it decodes them; up to
    there a picture takes 0.5 GiB in each process that decodes, a few times that when it is transparent.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata and large sizes: they would warn anew in every epoch
            with Image.open(path) as image:
                return _rgb(image)
    except MemoryError:
        raise  # says nothing about the file
    except Exception as reason:  # a damaged file raises nearly any exception there is
        raise UserError(f"{path}: not a readable picture ({_words(reason)}); replace or remove it") from None


def _rgb(image: Image.Image) -> Image.Image:
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "RGB" and not image.has_transparency_data:
        image.load()
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):  # "I", 32 bits, is how some formats give 16
        grey = np.asarray(image).astype(np.int32)
        if grey.min() < 0 or grey.max() > 65_535:
            raise ValueError("32-bit grey, whose range is not known: save it with 8 or 16 bits")
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is not known: save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _words(reason: Exception) -> str:
    """A reason without the path, which Pillow repeats, on one line."""
    if isinstance(reason, UnidentifiedImageError):
        return "no known image format"
    if isinstance(reason, Image.DecompressionBombError):
        return "more than 179 million pixels: save it smaller"
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror
    return (str(reason) or type(reason).__name__).splitlines()[0]
