"""Pictures with labels: a CSV of `image,label`, one folder a class, or such folders in train/, val/ and test/.

One rule for all: hidden entries are no pictures; classes are sorted by value where all are whole numbers, by text
otherwise; what is left out is counted and named. No picture is opened, but by `without_unreadable`.
"""

import contextlib
import csv
import dataclasses
import io
import os
import posixpath
import re
import unicodedata
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.system import require_file
from data.splits import SUFFIXES, unreadable

EXPECTED = (
    "a CSV (columns image,label), a folder with one and its pictures, a folder with one folder a class, or a folder "
    "with train/ and val/ of such"
)
_SHOWN = 10  # broken pictures or columns that are named, the others counted
_WHOLE = re.compile("[+-]?[0-9]{1,18}")


@dataclasses.dataclass(frozen=True)
class Table:
    """N pictures, sorted by name, so that the order of a CSV's rows has no influence."""

    source: Path  # the CSV or the folder of class folders
    names: list[str]  # as the CSV has them, or CLASS/FILE
    paths: list[Path]
    labels: np.ndarray  # int64 (N,)
    class_names: list[str]
    notes: list[str]  # lines for people: what was found and chosen


def read_tables(data_dir) -> dict[str, Table]:
    """Find and read the pictures at `data_dir` (see EXPECTED); UserError where they cannot be used as they are.

    Returns one table, called "train", or those of train/, val/ and test/, called "train", "validation" and "test".
    Where only one of the last two is there it is the test set.
    """
    place = Path(data_dir)
    if place.suffix.lower() == ".csv" and not place.is_dir():
        return {"train": _read_csv(place)}
    if not place.is_dir():
        raise UserError(f"{place}: no folder and no .csv file (unpack an archive first); --data_dir takes {EXPECTED}")
    csvs = [path for path in visible(place) if path.suffix.lower() == ".csv" and path.is_file()]
    if len(csvs) > 1:
        names = ", ".join(path.name for path in csvs[:_SHOWN])
        raise UserError(f"{place}: holds {len(csvs)} CSV files ({names}); give the path of one as --data_dir")
    if csvs:
        return {"train": _read_csv(csvs[0])}
    split_names = {"train": "train", "validation": "val", "test": "test"}
    folders = {split: place / name for split, name in split_names.items() if (place / name).is_dir()}
    if "train" not in folders or len(folders) == 1:
        return {"train": _read_class_folders(place)}
    if "test" not in folders:
        folders["test"] = folders.pop("validation")
    tables = {split: _read_class_folders(folder) for split, folder in folders.items()}
    train = tables["train"]
    for split, folder in folders.items():
        if odd := set(train.class_names) ^ set(tables[split].class_names):
            raise UserError(f"{folder}: these classes are either here or in train/ alone: {', '.join(sorted(odd)[:5])}")
    used = "; ".join(f"{folder.name}/ gives the {split} images" for split, folder in folders.items())
    others = [path.name for path in visible(place) if path not in folders.values()]
    ignored = f"; left out: {', '.join(others[:_SHOWN])}" if others else ""
    train.notes.append(f"{place}: {used}{ignored}")
    return tables


def without_unreadable(table: Table, strict: bool, workers: int) -> Table:
    """Decode every picture once; leave out those that cannot be read and name them in the notes.

    Raises UserError: one cannot be read and `strict` is set, or a class has no other pictures.
    """
    problems = unreadable(table.paths, workers)
    if not problems:
        return table
    summary = f"{len(problems):,} of {len(table.paths):,} pictures cannot be read"
    if strict:
        raise UserError(f"{next(iter(problems.values()))} ({summary}; --strict false leaves them out)")
    kept = [i for i in range(len(table.paths)) if i not in problems]
    labels = table.labels[kept]
    for label in np.setdiff1d(table.labels, labels):
        first = problems[np.argmax(table.labels == label)]
        raise UserError(f"{table.source}: class {table.class_names[label]!r} has no picture that can be read: {first}")
    names, paths = [table.names[i] for i in kept], [table.paths[i] for i in kept]
    notes = [*table.notes, f"{summary} and are left out (--strict true stops instead)"]
    notes += list(problems.values())[:_SHOWN]
    return dataclasses.replace(table, names=names, paths=paths, labels=labels, notes=notes)


def _table(source: Path, pictures: list[tuple[str, str, Path]]) -> Table:
    """A Table of (name, label, path) in any order."""
    class_names = sorted_classes([label for _, label, _ in pictures])
    if len(class_names) < 2:
        raise UserError(f"{source}: {len(pictures)} pictures of {len(class_names)} classes; training needs two classes")
    number = {name: i for i, name in enumerate(class_names)}
    names, labels, paths = zip(*sorted(pictures), strict=True)
    labels = np.array([number[label] for label in labels], np.int64)
    counts = np.bincount(labels)
    found = f"{len(names):,} pictures of {len(counts)} classes, {counts.min():,} to {counts.max():,} a class"
    notes = [f"{source}: {found}"]
    if class_names != [str(i) for i in number.values()]:
        shown = ", ".join(f"{name} = {i}" for name, i in number.items())
        notes.append(f"the labels of {source.name} became class numbers: {shown}")
    return Table(source, list(names), list(paths), labels, class_names, notes)


def sorted_classes(labels: list[str]) -> list[str]:
    """The distinct labels, by value where all are whole numbers, by text otherwise."""
    names = sorted(set(labels))
    return sorted(names, key=int) if all(map(_WHOLE.fullmatch, names)) else names


def _checked_text(text: str, where) -> str:
    """`text` in one of its Unicode forms (NFC); UserError for characters that would steer a terminal or a table."""
    text = unicodedata.normalize("NFC", text)
    if not text.isprintable():
        raise UserError(f"{where}: {text[:40]!r} has characters that cannot be printed; rename it")
    return text


# ---- folders of classes


def visible(folder: Path) -> list[Path]:
    """Sorted content without hidden files and what macOS adds to zips."""
    return sorted(p for p in folder.iterdir() if not p.name.startswith((".", "__MACOSX")))


def is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def _read_class_folders(folder: Path) -> Table:
    """The table of FOLDER/CLASS/PICTURE."""
    classes = [path for path in visible(folder) if path.is_dir()]
    if len(classes) < 2:
        text = f"{folder}: holds neither a CSV nor folders of at least two classes"
        raise UserError(f"{text}; --data_dir takes {EXPECTED}")
    pictures, others = [], [path.name for path in visible(folder) if not path.is_dir()]
    for own in classes:
        label, before = _checked_text(own.name, folder), len(pictures)
        for path in visible(own):
            name = f"{own.name}/{path.name}"
            if is_picture(path):
                pictures.append((name, label, path))
            else:
                others.append(name)
        if len(pictures) == before:
            text = f"{own}: no image files ({', '.join(sorted(SUFFIXES))}); fill or remove this folder"
            raise UserError(f"{text}; --data_dir takes {EXPECTED}")
    table = _table(folder, pictures)
    if others:
        text = f"{len(others):,} entries of the class folders are no image files, {', '.join(sorted(others)[:3])}"
        table.notes.append(f"{text} for instance; they are left out")
    return table


# ---- a CSV


def _read_csv(path: Path) -> Table:
    """The table of a CSV. Labels that are all whole numbers count as such: 1, 01 and pandas' 1.0 are one class."""
    text, notes = _read_text(path)
    rows = list(_rows(text, path))
    numbers = all(_WHOLE.fullmatch(label.removesuffix(".0")) for _, label, _ in rows)
    labels = {}
    for image, label, line in rows:
        if numbers:
            label = str(int(label.removesuffix(".0")))
        name = posixpath.normpath(image.replace("\\", "/"))  # a path that is spelt in two ways is one picture
        if name in labels:
            raise UserError(f"{path}: line {line} lists {name} again; leave it a single row")
        labels[name] = label
    folder = _picture_folder(path, list(labels))
    places = {name: _place(folder, name) for name in labels}
    missing = [name for name, place in places.items() if place is None]
    if missing:
        text = f"{path}: {len(missing):,} of {len(labels):,} listed pictures are missing in {folder}"
        raise UserError(f"{text}: {', '.join(missing[:3])}; put them there or take their rows out")
    if folder != path.parent:
        notes.append(f"the pictures of {path.name} are those in {folder.name}/")
    table = _table(path, [(name, label, places[name]) for name, label in labels.items()])
    table.notes.extend(notes)
    return table


def _read_text(path: Path) -> tuple[str, list[str]]:
    """The text and a note on its encoding: UTF-8 or GBK.

    Nearly any Latin-1 text passes for GB18030 too. So only the characters of GB2312, whose bytes come in pairs, count.
    """
    require_file(path)
    content = path.read_bytes()
    with contextlib.suppress(UnicodeDecodeError):
        return content.decode("utf-8-sig"), []
    with contextlib.suppress(UnicodeDecodeError):
        return content.decode("gb2312"), [f"{path.name} is not in UTF-8; it was read as GBK"]
    raise UserError(f"{path}: not a text in UTF-8 or GBK; save it as CSV in UTF-8")


def _rows(text: str, path: Path):
    """(image, label, line) of each row but blank ones, as stripped text."""
    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
    try:
        header = [cell.strip() for cell in next(reader, [])]
        if header.count("image") != 1 or header.count("label") != 1:
            found = ", ".join(column[:80] for column in header[:_SHOWN]) or "none"
            raise UserError(f"{path}: its columns are {found}; it needs one image and one label, separated by commas")
        columns = [header.index("image"), header.index("label")]
        for cells in reader:
            where = f"{path}: line {reader.line_num}"
            if len(cells) > len(header):
                text = f"{where} has {len(cells):,} fields, the header {len(header)}"
                raise UserError(f"{text}; put names with commas between quotes")
            image, label = (_checked_text(cells[at].strip(), where) if at < len(cells) else "" for at in columns)
            if not image and not label:
                continue
            if {image.lower(), label.lower()} & {"", "nan"}:
                raise UserError(f"{where} has no image or no label; fill it in or take the row out")
            yield image, label, reader.line_num
    except csv.Error as reason:
        raise UserError(f"{path}: not a readable CSV (line {reader.line_num}: {reason})") from None


def _picture_folder(table: Path, names: list[str]) -> Path:
    """The folder that `names` are relative to: the CSV's own, or the one subfolder that holds some of the first."""
    base = table.parent
    folders = [base, *(path for path in visible(base) if path.is_dir())]
    holding = [folder for folder in folders if any(_place(folder, name) for name in names[:_SHOWN])]
    if base in holding or not holding:
        return base
    if len(holding) > 1:
        text = f"{table}: {holding[0].name}/ and {holding[1].name}/ both hold pictures of these names"
        raise UserError(f"{text}; write the folder into the column image")
    return holding[0]


def _place(folder: Path, name: str) -> Path | None:
    """The path of the file `name`, with accents composed (NFC) or apart (NFD, old macOS); None if there is none."""
    for form in ("NFC", "NFD"):
        place = folder / unicodedata.normalize(form, name)
        if os.path.isfile(place):  # unlike Path.is_file, it takes names that are too long for the disk
            return place
    return None
