"""Images in folders, one folder a class, decoded in worker processes (the ImageNet layout)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import paddle
from PIL import Image, ImageOps

from common.errors import UserError
from data.augment import full_boxes, resize_crops

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
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

    def stream(self, requests, image_size: int, augmentation=None, workers: int = 0):
        """As `InMemory.stream`, with the decoding in `workers` processes (0 = in this one)."""
        loader = paddle.io.DataLoader(
            _Decoder(self, image_size, augmentation),
            batch_sampler=_Requests(requests),
            num_workers=workers,
            return_list=True,
            collate_fn=lambda items: tuple(np.stack(column) for column in zip(*items, strict=True)),
        )
        for images, labels in loader:
            yield resize_crops(images, full_boxes(len(images), image_size, image_size), image_size), labels


class _Requests:
    """The batch sampler of a DataLoader: each batch a list of (index, its random numbers or None)."""

    def __init__(self, requests):
        self.requests = requests

    def __iter__(self):
        for indices, draws in self.requests:
            yield [(int(i), None if draws is None else draws[row]) for row, i in enumerate(indices)]


class _Decoder(paddle.io.Dataset):
    def __init__(self, split: ImageFiles, image_size: int, augmentation):
        super().__init__()
        self.split, self.image_size, self.augmentation = split, image_size, augmentation

    def __len__(self):
        return len(self.split)

    def __getitem__(self, item):
        index, draws = item
        image = read_image(self.split.paths[index])
        box, mirror = (0, 0, *image.size), False
        if draws is not None:
            row = draws[None]
            top, left, h, w = self.augmentation.boxes(row, [image.height], [image.width])[0]
            box, mirror = (left, top, left + w, top + h), self.augmentation.flips(row)[0]
        # crop first: `resize(box=...)` would let the filter look beyond the crop's border
        image = image.crop(box).resize((self.image_size, self.image_size), Image.Resampling.BILINEAR)
        if mirror:
            image = ImageOps.mirror(image)
        return np.asarray(image).transpose(2, 0, 1), self.split.labels[index]


def read_image(path) -> Image.Image:
    """The picture as RGB, upright as its EXIF data say. Raises UserError for a file that is no picture."""
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as reason:
        raise UserError(f"{path}: not a readable picture ({reason}); replace or remove it") from None


def files(data_dir: Path) -> dict[str, bool]:
    """What `load` looks for, and whether it is there."""
    train, test = _folders(Path(data_dir))
    return {str(train): train.is_dir(), str(test): test.is_dir()}


def load(data_dir: Path):
    """Return (train, test, class_names) of `data_dir`/train/CLASS/* and `data_dir`/val/CLASS/*."""
    train_dir, test_dir = _folders(Path(data_dir))
    for folder in (train_dir, test_dir):
        if not folder.is_dir():
            raise UserError(
                f"{folder}: no such folder; expected {data_dir}/train/CLASS/* and {data_dir}/val/CLASS/*"
            )
    class_names = sorted(entry.name for entry in train_dir.iterdir() if entry.is_dir())
    if len(class_names) < 2:
        raise UserError(
            f"{train_dir}: needs one folder for each of at least two classes, found {len(class_names)}"
        )
    extra = sorted({entry.name for entry in test_dir.iterdir() if entry.is_dir()} - set(class_names))
    if extra:
        raise UserError(f"{test_dir}: classes without training images: {', '.join(extra[:5])}")
    return _read_folder(train_dir, class_names), _read_folder(test_dir, class_names), class_names


def _folders(data_dir: Path) -> tuple[Path, Path]:
    tests = [data_dir / name for name in _TEST_NAMES]
    return data_dir / "train", next((folder for folder in tests if folder.is_dir()), tests[0])


def _read_folder(folder: Path, class_names: list[str]) -> ImageFiles:
    paths, labels = [], []
    for label, name in enumerate(class_names):
        own = sorted(p for p in (folder / name).glob("*") if p.suffix.lower() in _SUFFIXES)
        paths += own
        labels += [label] * len(own)
    if not paths:
        raise UserError(f"{folder}: no image files ({', '.join(sorted(_SUFFIXES))}) in its class folders")
    return ImageFiles(paths, np.array(labels, np.int64))
