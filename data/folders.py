"""Image files, decoded in worker processes; and folders of them, one folder a class (the ImageNet layout)."""

import functools
import multiprocessing
import signal
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import paddle
from PIL import Image, ImageOps
from tqdm import tqdm

from common.errors import UserError
from common.processes import end_with_parent
from data.augment import full_boxes, resize_crops
from data.picture import read_image

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
_TEST_NAMES = ("val", "validation", "test")


@dataclass(frozen=True)
class ImageFiles:
    """Paths of N image files and labels int64 (N,)."""

    paths: list[Path]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    def subset(self, indices: np.ndarray) -> "ImageFiles":
        return ImageFiles([self.paths[i] for i in indices], self.labels[indices])

    def stream(self, requests, image_size: int, augmentation=None, workers: int = 0, scale: str = "-1..1"):
        """As `InMemory.stream`, with the decoding in `workers` processes (0 = in this one)."""
        jobs = (
            ([self.paths[i] for i in indices], self.labels[indices], draws, image_size, augmentation)
            for indices, draws in requests
        )
        for pixels, labels in _in_order(_decode, jobs, workers):
            whole = full_boxes(len(pixels), image_size, image_size)
            images = resize_crops(paddle.to_tensor(pixels), whole, image_size, scale=scale)
            yield images, paddle.to_tensor(labels)


def unreadable(paths, workers: int) -> dict[int, str]:
    """Decode each file once, in `workers` processes: {its index in `paths`: why it is no picture}."""
    with tqdm(total=len(paths), desc="checking", unit="picture", leave=False, disable=None) as progress:
        found = {}
        for index, problem in enumerate(_in_order(_problem, ((path,) for path in paths), workers)):
            progress.update()
            if problem:
                found[index] = problem
    return found


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
        raise UserError(
            f"one of the {workers} processes that decode pictures was ended from outside, most likely because memory "
            "ran out; use fewer with --workers"
        ) from None


@functools.lru_cache(maxsize=1)
def _pool(workers: int) -> ProcessPoolExecutor:
    # spawn: a forked copy of a process with Paddle's threads may hang. One pool serves all splits of a run.
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_leave_signals_to_parent)


def _leave_signals_to_parent() -> None:
    """Signals that stop a run reach all its processes; the main one still needs pictures, and then ends these."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()


def _decode(paths, labels, draws, image_size: int, augmentation):
    """Read, crop and resize the pictures of one batch: uint8 (n, 3, image_size, image_size), and their labels."""
    pixels = np.empty((len(paths), 3, image_size, image_size), np.uint8)
    for row, path in enumerate(paths):
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
    return pixels, labels


def files(data_dir: Path) -> dict[Path, str]:
    """What `load` reads; there is no address to fetch it from."""
    return dict.fromkeys(_folders(Path(data_dir)), "")


def load(data_dir: Path):
    """Return (train, test, class_names) of `data_dir`/train/CLASS/* and `data_dir`/val/CLASS/*."""
    train_dir, test_dir = _folders(Path(data_dir))
    for folder in (train_dir, test_dir):
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; expected {data_dir}/train/CLASS/* and {data_dir}/val/CLASS/*")
    class_names = sorted(entry.name for entry in train_dir.iterdir() if entry.is_dir())
    if len(class_names) < 2:
        raise UserError(f"{train_dir}: needs one folder for each of at least two classes, found {len(class_names)}")
    extra = sorted({entry.name for entry in test_dir.iterdir() if entry.is_dir()} - set(class_names))
    if extra:
        raise UserError(f"{test_dir}: classes without training images: {', '.join(extra[:5])}")
    return _read_folder(train_dir, class_names), _read_folder(test_dir, class_names), class_names


def _folders(data_dir: Path) -> tuple[Path, Path]:
    tests = [data_dir / name for name in _TEST_NAMES]
    return data_dir / "train", next((folder for folder in tests if folder.is_dir()), tests[0])


def _read_folder(folder: Path, class_names: list[str]) -> ImageFiles:
    paths, labels, empty = [], [], []
    for label, name in enumerate(class_names):
        own = sorted(p for p in (folder / name).glob("*") if p.suffix.lower() in SUFFIXES)
        empty += [] if own else [name]
        paths += own
        labels += [label] * len(own)
    if not paths:
        raise UserError(f"{folder}: no image files ({', '.join(sorted(SUFFIXES))}) in its class folders")
    if empty:
        raise UserError(f"{folder}: no image files of the class {empty[0]} ({len(empty)} of {len(class_names)} classes "
                        "have none); train/ and val/ need the same class folders, each with pictures")  # fmt: skip
    return ImageFiles(paths, np.array(labels, np.int64))
