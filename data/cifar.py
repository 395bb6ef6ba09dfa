"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): the folder of the official Python archive, checked by content."""

import hashlib
import io
import os
import shutil
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from common.errors import UserError
from common.safe_pickle import load_pickle
from common.system import locked, require_file
from data.download import fetch
from data.splits import InMemory

_HOST = "https://www.cs.toronto.edu/~kriz/"

_SOURCES = {
    "cifar100": SimpleNamespace(
        archive="cifar-100-python.tar.gz",
        md5="eb9058c3a382ffc7106e4002c42a8d85",
        folder="cifar-100-python",  # that the archive holds
        splits={"train": ["train"], "test": ["test"]},  # the pickles of each, in order
        meta="meta",
        label_keys=[b"coarse_labels", b"fine_labels"],  # as in the binary layout; the last one is what is predicted
        names_key=b"fine_label_names",
        # of each split in the layout of cifar-100-binary: label bytes, then the pixels, image after image
        sha1={"train": "e207cd2e05b73b1393c74c7f5e7bea451d63e08e", "test": "8fb6623e830365ff53cf14adec797474f5478006"},
    ),
    "cifar10": SimpleNamespace(
        archive="cifar-10-python.tar.gz",
        md5="c58f30108f718f92721af3b95e74349a",
        folder="cifar-10-batches-py",
        splits={"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]},
        meta="batches.meta",
        label_keys=[b"labels"],
        names_key=b"label_names",
        sha1={},  # none was published
    ),
}


def folder(name: str, data_dir: Path) -> Path:
    """The folder that `load` reads: `data_dir` itself, or the official one in it."""
    source = _SOURCES[name]
    return data_dir if (data_dir / source.meta).is_file() else data_dir / source.folder


def url(name: str) -> str:
    return _HOST + _SOURCES[name].archive


def load(name: str, data_dir: Path, download: bool):
    """Return (train, test, class_names); images uint8 (N, 3, 32, 32). UserError unless they are the official ones.

    With `download` the official archive is fetched to `data_dir` and unpacked there where its folder is missing.
    """
    source, place = _SOURCES[name], folder(name, data_dir)
    if not place.is_dir():
        if not download:
            advice = f"unpack the official archive ({url(name)}) there, or leave out --data_dir to download it"
            raise UserError(f"{data_dir}: holds no folder {source.folder}; {advice}")
        _unpack(fetch(url(name), data_dir / source.archive, md5=source.md5), place)
    train, test = (_read_split(place, split, source) for split in ("train", "test"))
    names = _class_names(place / source.meta, source.names_key)
    found = np.concatenate([train.labels, test.labels])
    if not 0 <= found.min() <= found.max() < len(names):
        text = f"{place}: has labels from {found.min()} to {found.max()} for {len(names)} classes"
        raise UserError(f"{text}; delete it and extract the official archive again")
    return train, test, names


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack an archive whose MD5 is right to the `folder` of the name that it holds, whole or not at all."""
    part = folder.with_name(f"{folder.name}.part")
    try:
        with locked(f"{folder}.lock", lambda holder: None):  # to wait takes seconds
            if folder.is_dir():  # another process has done it meanwhile
                return
            shutil.rmtree(part, ignore_errors=True)  # what a killed process left
            try:
                with tarfile.open(archive, "r:gz") as tar:
                    tar.extractall(part, filter="data")
                os.sync()  # no folder of that name before its files are on the disk
                os.rename(part / folder.name, folder)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        problem = f"{error.filename or folder.parent}: {error.strerror}"
        raise UserError(f"{archive}: cannot be unpacked ({problem}); correct that and run the same command") from None


def _read_split(folder: Path, split: str, source: SimpleNamespace) -> InMemory:
    pixels, labels = [], []
    for part in source.splits[split]:
        path = folder / part
        rows, *keys = _entries(path, b"data", *source.label_keys)
        try:
            numbers = np.asarray(keys).T  # (images, kinds of label)
        except (ValueError, OverflowError):  # lists of different lengths
            numbers = np.empty(0)
        whole = isinstance(rows, np.ndarray) and rows.dtype == np.uint8 and rows.ndim == 2 and rows.shape[1] == 3072
        if not whole or not len(rows) or numbers.shape != (len(rows), len(keys)) or numbers.dtype.kind not in "iu":
            raise UserError(f"{path}: not a CIFAR batch (images or labels have another shape); extract it again")
        pixels.append(rows)
        labels.append(numbers)
    pixels, labels = np.concatenate(pixels), np.concatenate(labels)
    found = hashlib.sha1(np.concatenate([labels.astype(np.uint8), pixels], axis=1)).hexdigest()
    expected = source.sha1.get(split, found)
    if found != expected:
        text = f"{folder}: the {split} images or labels are not the official ones (SHA-1 of the binary layout {found}"
        raise UserError(f"{text}, expected {expected}); delete the folder and extract the official archive again")
    return InMemory(pixels.reshape(-1, 3, 32, 32), labels[:, -1].astype(np.int64))


def _class_names(path: Path, key: bytes) -> list[str]:
    (names,) = _entries(path, key)
    try:
        names = [name if isinstance(name, str) else bytes.decode(name) for name in names]
    except (TypeError, UnicodeDecodeError):
        names = []
    if not names or not all(map(str.isprintable, names)):
        raise UserError(f"{path}: its {key.decode()} are no names of classes; extract the official archive again")
    return names


def _entries(path: Path, *keys: bytes) -> list:
    """What a CIFAR pickle has under these keys."""
    if not path.exists():
        raise UserError(f"{path}: missing; delete its folder and extract the official archive again")
    require_file(path)
    content = load_pickle(io.BytesIO(path.read_bytes()), str(path), encoding="bytes")
    for key in keys:
        if not isinstance(content, dict) or key not in content:
            raise UserError(f"{path}: not a CIFAR batch (no entry {key.decode()}); extract the official archive again")
    return [content[key] for key in keys]
