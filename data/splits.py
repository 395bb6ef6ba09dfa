"""The two kinds of split, in memory and in files, which give batches of images on the device alike."""

import functools
import multiprocessing
import signal
import warnings
from collections import deque
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import paddle
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from common.errors import UserError
from common.system import end_with_parent, require_file
from data.augment import resize_crops

# Pillow goes by the content, whatever a file is called, and starts Ghostscript for EPS. These it decodes by itself.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "AVIF", "JPEG2000")
SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm"}
SUFFIXES |= {".pnm", ".avif", ".jp2"}


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
            boxes = flips = None
            if draws is not None:
                n = len(indices)
                boxes = augmentation.boxes(draws, np.full(n, height), np.full(n, width))
                flips = augmentation.flips(draws)
            raw = paddle.to_tensor(self.images[indices])
            yield resize_crops(raw, image_size, boxes, flips, scale), paddle.to_tensor(self.labels[indices])


@dataclass(frozen=True)
class ImageFiles:
    """Paths of N image files and labels int64 (N,)."""

    paths: list[Path]
    labels: np.ndarray
    decode: Callable | None = None  # from a path to pixels (S, S, 3), where they are prepared as others do it

    def __len__(self) -> int:
        return len(self.paths)

    def subset(self, indices: np.ndarray) -> "ImageFiles":
        return ImageFiles([self.paths[i] for i in indices], self.labels[indices], self.decode)

    def stream(self, requests, image_size: int, augmentation=None, workers: int = 0, scale: str = "-1..1"):
        """As `InMemory.stream`, with the decoding in `workers` processes (0 = in this one)."""
        jobs = ((self.subset(indices), draws, image_size, augmentation) for indices, draws in requests)
        for pixels, labels in _in_order(_decode, jobs, workers):
            yield resize_crops(paddle.to_tensor(pixels), image_size, scale=scale), paddle.to_tensor(labels)


def ahead(stream, count: int = 2):
    """The items of `stream`, made by a thread up to `count` ahead, so that a GPU does not wait for them."""
    place = paddle.framework._current_expected_place()  # a new thread would take the first GPU
    with ThreadPoolExecutor(1, initializer=paddle.framework._set_expected_place, initargs=(place,)) as thread:
        made = deque(thread.submit(next, stream, None) for _ in range(count))
        while (item := made.popleft().result()) is not None:
            made.append(thread.submit(next, stream, None))
            yield item


# ---- one picture


def read_image(path) -> Image.Image:
    """The picture as RGB, upright as its EXIF data say. Raises UserError for a file that is no whole picture.

    The network is to see what a viewer shows. Mostly that is Pillow's `convert("RGB")`, but transparent pixels are laid
    on white, where Pillow shows the colour that happens to be stored below them, and 16-bit grey is divided by 257,
    where Pillow cuts all above 255 off to white.
    """
    require_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata and large sizes: they would warn anew in every epoch
            with Image.open(path, formats=FORMATS) as image:
                return _rgb(image)
    except MemoryError:
        raise  # says nothing about the file
    except Exception as reason:  # a damaged file raises nearly any exception there is
        problem = str(reason) or type(reason).__name__
        if isinstance(reason, UnidentifiedImageError):
            problem = "no known image format"
    raise UserError(f"{path}: not a readable picture ({problem}); replace or remove it")


def _rgb(image: Image.Image) -> Image.Image:
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "RGB" and not image.has_transparency_data:
        image.load()
        return image
    if image.mode[0] in "IF":  # 16 bits, which some formats give as "I", 32 bits
        grey = np.asarray(image)
        if image.mode == "F" or grey.min() < 0 or grey.max() > 65_535:
            raise ValueError("grey whose range is not known: save it with 8 or 16 bits")
        return Image.fromarray(((grey.astype(np.int32) + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


# ---- many pictures


def unreadable(paths, workers: int) -> dict[int, str]:
    """Decode each file once, in `workers` processes: {its index in `paths`: why it is no picture}."""
    found = _in_order(_problem, ((path,) for path in paths), workers)
    shown = tqdm(found, total=len(paths), desc="checking", unit="picture", leave=False, disable=None)
    return {index: problem for index, problem in enumerate(shown) if problem}


def _problem(path) -> str:
    try:
        read_image(path)
        return ""
    except UserError as problem:
        return str(problem)


def _in_order(work, jobs, workers: int):
    """Yield work(*job) in the order of `jobs`; with workers, two jobs for each are under way at any time."""
    if workers == 0:
        yield from (work(*job) for job in jobs)
        return
    waiting = deque()
    try:
        for job in jobs:
            waiting.append(_pool(workers).submit(work, *job))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        _pool.cache_clear()
        text = f"one of the {workers} processes that decode pictures was ended from outside"
        raise UserError(f"{text}, most likely because memory ran out; use fewer with --workers") from None


@functools.lru_cache(maxsize=1)
def _pool(workers: int) -> ProcessPoolExecutor:
    # spawn: a forked copy of a process with Paddle's threads may hang. One pool serves all splits of a run.
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_leave_signals_to_parent)


def _leave_signals_to_parent() -> None:
    """Signals that stop a run reach all its processes; the main one still needs pictures, and then ends these."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    end_with_parent(multiprocessing.parent_process().pid)


def _decode(files: ImageFiles, draws, image_size: int, augmentation):
    """Read, crop and resize the pictures of one batch: uint8 (n, 3, image_size, image_size), and their labels."""
    pixels = np.empty((len(files), 3, image_size, image_size), np.uint8)
    for row, path in enumerate(files.paths):
        if files.decode:
            pixels[row] = files.decode(path).transpose(2, 0, 1)
            continue
        image = read_image(path)
        box, mirror = (0, 0, *image.size), False
        if draws is not None:
            own = draws[row : row + 1]
            top, left, h, w = augmentation.boxes(own, [image.height], [image.width])[0]
            box, mirror = (left, top, left + w, top + h), augmentation.flips(own)[0]
        # crop first: `resize(box=...)` would let the filter look beyond the crop's border
        image = image.crop(box).resize((image_size, image_size), Image.Resampling.BILINEAR)
        if mirror:
            image = ImageOps.mirror(image)
        pixels[row] = np.asarray(image).transpose(2, 0, 1)
    return pixels, files.labels
