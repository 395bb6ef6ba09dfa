"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), from any of their official containers, checked by content."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.atomic import require_file
from common.errors import UserError
from common.safe_pickle import load_pickle
from data.download import fetch, wrong_md5
from data.in_memory import InMemory
from data.unpack import extract_tar

_HOST = "https://www.cs.toronto.edu/~kriz/"


@dataclass(frozen=True)
class _Source:
    """Where a data set comes from and how to know it. SHA-1 sums are of the `-binary` layout of each split."""

    archive: str
    md5: str
    train: tuple[str, ...]  # the pickles of the training split, in order
    test: tuple[str, ...]
    meta: str
    label_keys: tuple[bytes, ...]  # in the order of the binary layout; the last one is what is predicted
    names_key: bytes
    sha1: dict  # split -> sum, where one was published


_SOURCES = {
    "cifar100": _Source(
        archive="cifar-100-python.tar.gz",
        md5="eb9058c3a382ffc7106e4002c42a8d85",
        train=("train",),
        test=("test",),
        meta="meta",
        label_keys=(b"coarse_labels", b"fine_labels"),
        names_key=b"fine_label_names",
        sha1={
            "train": "e207cd2e05b73b1393c74c7f5e7bea451d63e08e",
            "test": "8fb6623e830365ff53cf14adec797474f5478006",
        },
    ),
    "cifar10": _Source(
        archive="cifar-10-python.tar.gz",
        md5="c58f30108f718f92721af3b95e74349a",
        train=tuple(f"data_batch_{i}" for i in range(1, 6)),
        test=("test_batch",),
        meta="batches.meta",
        label_keys=(b"labels",),
        names_key=b"label_names",
        sha1={},
    ),
}
_FOLDERS = {"cifar100": "cifar-100-python", "cifar10": "cifar-10-batches-py"}


def files(name: str, data_dir: Path) -> dict[Path, str]:
    """What `load` reads, and its official address."""
    archive = _SOURCES[name].archive
    return {_find_folder(name, data_dir) or _archive(name, data_dir): _HOST + archive}


def load(name: str, data_dir: Path, download: bool):
    """Return (train, test, class_names); images uint8 (N, 3, 32, 32).

    `data_dir` holds the extracted folder (or is it), or the official `.tar.gz` (or is it), which is fetched there
    first when `download` is set. Raises UserError when neither is there or the content is not the official one.
    """
    source = _SOURCES[name]
    folder = _find_folder(name, data_dir)
    if folder is None:
        archive = _archive(name, data_dir)
        if download:
            fetch(_HOST + source.archive, archive, md5=source.md5)
        else:
            _check_own_archive(archive, source, name)
        folder = archive.parent / _FOLDERS[name]
        extract_tar(archive, folder)
    train = _read_split(folder, "train", source.train, source)
    test = _read_split(folder, "test", source.test, source)
    names = _class_names(folder / source.meta, source.names_key)
    for split in (train, test):
        if not 0 <= split.labels.min() <= split.labels.max() < len(names):
            raise UserError(
                f"{folder}: has labels from {split.labels.min()} to {split.labels.max()} for {len(names)} classes; "
                "delete it and extract the official archive again"
            )
    return train, test, names


def _archive(name: str, data_dir: Path) -> Path:
    """The `.tar.gz` that `data_dir` is or would hold."""
    path = Path(data_dir)
    return path if path.name.endswith((".tar.gz", ".tgz")) and not path.is_dir() else path / _SOURCES[name].archive


def _check_own_archive(archive: Path, source: _Source, name: str) -> None:
    """Raise UserError unless the user's own file is the official archive; nothing is downloaded in its place."""
    advice = f"get it from {_HOST}{source.archive}, or leave out --data_dir to download it"
    if not archive.exists():
        raise UserError(f"{archive.parent}: holds neither {_FOLDERS[name]}/ nor {archive.name}; {advice}")
    require_file(archive)
    if problem := wrong_md5(archive, source.md5):
        raise UserError(f"{archive}: {problem}; {advice}")


def _class_names(path: Path, key: bytes) -> list[str]:
    entries = _entry(_read_pickle(path), key, path)
    try:
        names = [n if isinstance(n, str) else bytes.decode(n, "utf-8") for n in entries]
        sound = all(name.isprintable() for name in names) and isinstance(entries, list)
    except (TypeError, UnicodeDecodeError):
        sound = False
    if not sound:
        raise UserError(f"{path}: its {key.decode()} are no names of classes; extract the official archive again")
    return names


def _find_folder(name: str, data_dir: Path) -> Path | None:
    for folder in (Path(data_dir), Path(data_dir) / _FOLDERS[name]):
        if all((folder / part).is_file() for part in (*_SOURCES[name].test, _SOURCES[name].meta)):
            return folder
    return None


def _read_split(folder: Path, split: str, parts, source: _Source) -> InMemory:
    pixels, labels = [], []
    for part in parts:
        path = folder / part
        batch = _read_pickle(path)
        rows = _entry(batch, b"data", path)
        try:
            keys = [np.asarray(_entry(batch, key, path)) for key in source.label_keys]
        except (ValueError, OverflowError):  # lists of different lengths
            keys = [np.empty(0)]
        whole = isinstance(rows, np.ndarray) and rows.dtype == np.uint8 and rows.ndim == 2 and rows.shape[1] == 3072
        if not whole or not len(rows) or any(k.shape != (len(rows),) or k.dtype.kind not in "iu" for k in keys):
            raise UserError(f"{path}: not a CIFAR batch (images or labels have another shape); extract it again")
        pixels.append(rows)
        labels.append(np.stack(keys, axis=1))
    pixels, labels = np.concatenate(pixels), np.concatenate(labels)
    expected = source.sha1.get(split)
    if expected:  # the layout of cifar-100-binary: label bytes, then the pixels, image after image
        found = hashlib.sha1(np.concatenate([labels.astype(np.uint8), pixels], axis=1)).hexdigest()
        if found != expected:
            raise UserError(
                f"{folder}: the {split} images or labels are not the official ones (SHA-1 of the binary layout "
                f"{found}, expected {expected}); delete the folder and extract the official archive again"
            )
    return InMemory(pixels.reshape(-1, 3, 32, 32), labels[:, -1].astype(np.int64))


def _read_pickle(path: Path) -> dict:
    require_file(path)
    try:
        with open(path, "rb") as file:
            content = load_pickle(file, str(path), encoding="bytes")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); extract the official archive again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a CIFAR batch; extract the official archive again")
    return content


def _entry(content: dict, key: bytes, path: Path):
    if key not in content:
        raise UserError(f"{path}: not a CIFAR batch (no entry {key.decode()!r}); extract the official archive again")
    return content[key]
