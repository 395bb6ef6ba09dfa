"""Any user's pictures with labels: a CSV of `image,label`, or one folder a class; as a folder or a zip of it."""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import UserError
from data.csv_table import picture_folder, read_csv, visible
from data.folders import SUFFIXES, unreadable
from data.zip_archive import extract_zip

EXPECTED = (
    "a folder with a CSV (columns image,label) and the pictures, such a CSV, a folder with one folder a class, or a "
    ".zip of one of these"
)
_MAIN_CSV = "df_all.csv"  # the blog's name
_SHOWN = 10  # broken pictures that are named, the others counted


@dataclass(frozen=True)
class Table:
    """N pictures, sorted by name, so that the order of a CSV's rows has no influence."""

    source: Path  # the CSV or the folder of class folders
    names: list[str]  # as the CSV has them, or CLASS/FILE
    paths: list[Path]
    labels: np.ndarray  # int64 (N,)
    class_names: list[str]  # sorted; by value where all are whole numbers
    notes: list[str]  # lines for people: what was found and chosen


def read_table(data_dir, downloads) -> Table:
    """Find and read the table at `data_dir` (see EXPECTED) without opening a picture; zips go to `downloads`.

    Raises UserError: no such table, rows without a label, a picture with two, missing files, fewer than two classes.
    """
    data_dir = Path(data_dir)
    source, packed = _locate(data_dir, Path(downloads))
    folder = source
    if source.is_dir():
        names, labels, notes = _read_class_folders(source)
    else:
        names, labels, notes = read_csv(source)
        leaving = next((name for name in names if name.startswith(("/", "../"))), None)
        if packed and leaving:
            raise UserError(f"{source}: image {leaving} leads out of {data_dir}; only its own pictures are read")
        folder = picture_folder(source, names)
    class_names = _sorted_classes(labels)
    if len(class_names) < 2:
        raise UserError(f"{source}: all {len(names)} pictures are of one class, {class_names[0]!r}; training needs two")
    number = {name: i for i, name in enumerate(class_names)}
    numbers = np.array([number[label] for label in labels], np.int64)
    counts = np.bincount(numbers)
    within = f" in {folder.name}/" if folder not in (source, source.parent) else ""
    found = [f"{source}: {len(names):,} pictures{within} of {len(class_names)} classes, {counts.min():,} to "
             f"{counts.max():,} a class"]  # fmt: skip
    if class_names != [str(i) for i in number.values()]:
        shown = ", ".join(f"{name} = {i}" for name, i in number.items())
        found.append(f"the labels of {source.name} became class numbers: {shown}")
    order = np.array(sorted(range(len(names)), key=names.__getitem__))
    names = [names[i] for i in order]
    return Table(source, names, [folder / name for name in names], numbers[order], class_names, found + notes)


def without_unreadable(table: Table, strict: bool, workers: int) -> Table:
    """Decode every picture once; leave out those that cannot be read and name them in the notes.

    Raises UserError: one cannot be read and `strict` is set, or a class has no other pictures.
    """
    problems = unreadable(table.paths, workers)
    if not problems:
        return table
    total, lines = len(table.paths), list(problems.values())
    if strict:
        raise UserError(f"{lines[0]} ({len(lines)} of {total:,} pictures cannot be read; without --strict they are "
                        "left out)")  # fmt: skip
    kept = np.array([i for i in range(total) if i not in problems], np.int64)
    labels = table.labels[kept]
    for label in np.setdiff1d(table.labels, labels):
        first = next(problem for i, problem in problems.items() if table.labels[i] == label)
        raise UserError(f"{table.source}: class {table.class_names[label]!r} has no picture that can be read: {first}")
    more = [f"... and {len(lines) - _SHOWN:,} more"] if len(lines) > _SHOWN else []
    left_out = f"{len(lines):,} of {total:,} pictures cannot be read and are left out (--strict true stops instead)"
    return dataclasses.replace(
        table,
        names=[table.names[i] for i in kept],
        paths=[table.paths[i] for i in kept],
        labels=labels,
        notes=[*table.notes, left_out, *lines[:_SHOWN], *more],
    )


def _locate(data_dir: Path, downloads: Path) -> tuple[Path, bool]:
    """The CSV, or the folder of class folders, that `data_dir` means; and whether it is in a zip."""
    if not data_dir.exists():
        raise UserError(f"{data_dir}: no such file or folder; --data_dir takes {EXPECTED}")
    if data_dir.is_dir():
        return _find_table(data_dir), False
    if data_dir.suffix.lower() == ".zip":
        return _find_table(extract_zip(data_dir, downloads)), True
    if data_dir.suffix.lower() == ".csv":
        return data_dir, False
    raise UserError(f"{data_dir}: neither a folder nor a .csv or .zip file; --data_dir takes {EXPECTED}")


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def _find_table(folder: Path) -> Path:
    """The CSV in `folder`, or the folder whose subfolders are classes; a lone subfolder is entered."""
    content = visible(folder)
    tables = [p for p in content if p.suffix.lower() == ".csv" and p.is_file()]
    main = [p for p in tables if p.name == _MAIN_CSV] or tables
    if len(main) > 1:
        raise UserError(f"{folder}: holds {len(main)} CSV files ({', '.join(p.name for p in main[:5])}) and none is "
                        f"called {_MAIN_CSV}; give the path of one of them as --data_dir")  # fmt: skip
    if main:
        return main[0]
    folders = [p for p in content if p.is_dir()]
    if len(folders) == 1 and not any(map(_is_picture, content)):
        return _find_table(folders[0])
    if len(folders) < 2:
        raise UserError(
            f"{folder}: holds neither a CSV nor folders of at least two classes; --data_dir takes {EXPECTED}"
        )
    return folder


def _read_class_folders(folder: Path):
    """(names, labels, notes) of FOLDER/CLASS/PICTURE."""
    names, labels, others = [], [], []
    for own in filter(Path.is_dir, visible(folder)):
        content = visible(own)
        pictures = [p.name for p in content if _is_picture(p)]
        if not pictures:
            raise UserError(f"{own}: a class folder without image files ({', '.join(sorted(SUFFIXES))}); fill or "
                            f"remove it. (train/CLASS/* and val/CLASS/* are --dataset imagenet)")  # fmt: skip
        others += [f"{own.name}/{p.name}" for p in content if not _is_picture(p)]
        names += [f"{own.name}/{name}" for name in pictures]
        labels += [own.name] * len(pictures)
    ignored = f"{len(others):,} entries of the class folders are no image files, {', '.join(others[:3])} for instance"
    return names, labels, [ignored] if others else []


def _sorted_classes(labels: list[str]) -> list[str]:
    """The distinct labels, by value where all are whole numbers, by text otherwise."""
    names = sorted(set(labels))
    return sorted(names, key=int) if all(re.fullmatch("[+-]?[0-9]{1,18}", name) for name in names) else names
