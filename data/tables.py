"""Pictures with labels: a CSV of `image,label`, one folder a class, or these in train/, val/ and test/; or a zip of it.

One rule for all: hidden entries are no pictures; classes are sorted by value where all are whole numbers, by text
otherwise; what is left out is counted and named. No picture is opened, but by `without_unreadable`.
"""

import csv
import dataclasses
import io
import os
import posixpath
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.atomic import require_file
from common.errors import UserError
from data.folders import SUFFIXES, unreadable
from data.unpack import extract_zip

EXPECTED = (
    "a folder with a CSV (columns image,label) and the pictures, such a CSV, a folder with one folder a class, a "
    "folder with train/ and val/ of such, or a .zip of one of these"
)
_MAIN_CSV = "df_all.csv"  # the blog's name
_SHOWN = 10  # broken pictures or columns that are named, the others counted
_DEEPEST = 8  # lone folders in one another that are entered
_MOST_COLUMNS = 1000
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}(\.0*)?")  # 1.0 is how pandas writes 1 beside rows without a label
_SPLITS = {"validation": ("val", "valid", "validation"), "test": ("test",)}  # beside train/


@dataclass(frozen=True)
class Table:
    """N pictures, sorted by name, so that the order of a CSV's rows has no influence."""

    source: Path  # the CSV or the folder of class folders
    names: list[str]  # as the CSV has them, or CLASS/FILE
    paths: list[Path]
    labels: np.ndarray  # int64 (N,)
    class_names: list[str]
    notes: list[str]  # lines for people: what was found and chosen


def read_tables(data_dir, downloads) -> dict[str, Table]:
    """Find and read the pictures at `data_dir` (see EXPECTED); zips are unpacked to `downloads`.

    Returns one table, called "train", or those of train/, val/ (or valid/, validation/) and test/, called "train",
    "validation" and "test". Where only one of the last two is there it is the test set.
    Raises UserError: none found, rows without a label, a picture with two, missing files, fewer than two classes.
    """
    data_dir = Path(data_dir)
    if not data_dir.exists():
        raise UserError(f"{data_dir}: no such file or folder; --data_dir takes {EXPECTED}")
    packed = data_dir.suffix.lower() == ".zip" and not data_dir.is_dir()
    folder = extract_zip(data_dir, Path(downloads)) if packed else data_dir
    if not folder.is_dir():
        require_file(folder)
        if folder.suffix.lower() != ".csv":
            raise UserError(f"{data_dir}: neither a folder nor a .csv or .zip file; --data_dir takes {EXPECTED}")
        return {"train": _read_csv_table(folder, within=None)}
    folder = _enter(folder)
    main = _main_csv(folder)
    if main:
        return {"train": _read_csv_table(main, within=data_dir if packed else None)}
    if split_folders(folder):
        return read_split_folders(folder)
    if sum(path.is_dir() for path in visible(folder)) < 2:
        raise UserError(
            f"{folder}: holds neither a CSV nor folders of at least two classes; --data_dir takes {EXPECTED}"
        )
    return {"train": _read_class_folders(folder)}


def without_unreadable(table: Table, strict: bool, workers: int) -> Table:
    """Decode every picture once; leave out those that cannot be read and name them in the notes.

    Raises UserError: one cannot be read and `strict` is set, or a class has no other pictures.
    """
    problems = unreadable(table.paths, workers)
    if not problems:
        return table
    total, lines = len(table.paths), list(problems.values())
    if strict:
        raise UserError(
            f"{lines[0]} ({len(lines)} of {total:,} pictures cannot be read; without --strict they are left out)"
        )
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


# ---- what is where


def visible(folder: Path) -> list[Path]:
    """Sorted content without hidden files and what macOS adds to zips."""
    return sorted(p for p in folder.iterdir() if not p.name.startswith((".", "__MACOSX")))


def is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def _enter(folder: Path) -> Path:
    """The folder itself, or the one at the end of a chain of folders that hold nothing else."""
    for _ in range(_DEEPEST):
        content = visible(folder)
        folders = [p for p in content if p.is_dir()]
        if len(folders) != 1 or _main_csv(folder) or any(map(is_picture, content)):
            return folder
        folder = folders[0]
    raise UserError(
        f"{folder}: more than {_DEEPEST} folders in one another and no pictures; give the folder that has "
        "them as --data_dir"
    )


def _main_csv(folder: Path) -> Path | None:
    tables = [p for p in visible(folder) if p.suffix.lower() == ".csv" and p.is_file()]
    main = [p for p in tables if p.name == _MAIN_CSV] or tables
    if len(main) > 1:
        raise UserError(
            f"{folder}: holds {len(main)} CSV files ({', '.join(p.name for p in main[:5])}) and none is "
            f"called {_MAIN_CSV}; give the path of one of them as --data_dir"
        )
    return main[0] if main else None


# ---- folders of classes


def split_folders(data_dir: Path) -> dict[str, Path]:
    """The folders of "train", "validation" and "test"; {} unless train/ and one other are there."""
    found = {"train": data_dir / "train"} if (data_dir / "train").is_dir() else {}
    for split, names in _SPLITS.items():
        there = [data_dir / name for name in names if (data_dir / name).is_dir()]
        if len(there) > 1:
            raise UserError(f"{data_dir}: holds {there[0].name}/ and {there[1].name}/; leave one of them")
        if there:
            found[split] = there[0]
    if "validation" in found and "test" not in found:
        found["test"] = found.pop("validation")
    return found if len(found) > 1 and "train" in found else {}


def read_split_folders(data_dir: Path) -> dict[str, Table]:
    """The tables of `data_dir`/train/CLASS/* and of val/ and test/, see `read_tables`; the same classes in each."""
    data_dir = Path(data_dir)
    found = split_folders(data_dir)
    if not found:
        missing = data_dir / ("val" if (data_dir / "train").is_dir() else "train")
        raise UserError(f"{missing}: no such folder; expected {data_dir}/train/CLASS/* and {data_dir}/val/CLASS/*")
    train = _read_class_folders(found["train"])
    tables = {split: _read_class_folders(folder, train.class_names) for split, folder in found.items()}
    used = "; ".join(f"{folder.name}/ gives the {split} images" for split, folder in found.items())
    others = [path.name for path in visible(data_dir) if path not in found.values()]
    ignored = f"; left out: {', '.join(others[:3])}{', ...' if len(others) > 3 else ''}" if others else ""
    tables["train"].notes.append(f"{data_dir}: {used}{ignored}")
    return tables


def _read_class_folders(folder: Path, known: list[str] | None = None) -> Table:
    """The table of FOLDER/CLASS/PICTURE; `known`: the classes that it has to have, and no others."""
    pictures, others, empty = [], [], []
    for own in visible(folder):
        content = visible(own) if own.is_dir() else []
        label = _checked_text(own.name, folder)
        inside = [p for p in content if is_picture(p)]
        pictures += [(f"{own.name}/{p.name}", label, p) for p in inside]
        others += [f"{own.name}/{p.name}" for p in content if not is_picture(p)]
        if not own.is_dir():
            others.append(own.name)
        elif not inside:
            empty.append(label)
    classes = known or sorted_classes([*empty, *(label for _, label, _ in pictures)])
    extra = sorted({*empty, *(label for _, label, _ in pictures)} - set(classes))
    if extra:
        raise UserError(f"{folder}: classes without training images: {', '.join(extra[:5])}")
    lacking = [name for name in classes if name not in {label for _, label, _ in pictures}]
    if lacking:
        raise UserError(
            f"{folder}: no image files ({', '.join(sorted(SUFFIXES))}) of the class {lacking[0]} "
            f"({len(lacking)} of {len(classes)} classes have none); fill or remove its folder"
        )
    notes = []
    if others:
        notes.append(
            f"{len(others):,} entries of the class folders are no image files, {', '.join(others[:3])} for "
            "instance; they are left out"
        )
    return _table(folder, pictures, classes, notes)


def _table(source: Path, pictures: list, classes: list[str], notes: list[str], within: str = "") -> Table:
    """A Table of (name, label, path) in any order."""
    if len(classes) < 2:
        raise UserError(
            f"{source}: all {len(pictures)} pictures are of one class, {classes[0]!r}; training needs two"
            if classes
            else f"{source}: no class folders with pictures"
        )
    number = {name: i for i, name in enumerate(classes)}
    pictures = sorted(pictures, key=lambda picture: picture[0])
    labels = np.array([number[label] for _, label, _ in pictures], np.int64)
    counts = np.bincount(labels)
    found = [
        f"{source}: {len(pictures):,} pictures{within} of {len(classes)} classes, {counts.min():,} to "
        f"{counts.max():,} a class"
    ]
    if classes != [str(i) for i in number.values()]:
        shown = ", ".join(f"{name} = {i}" for name, i in number.items())
        found.append(f"the labels of {source.name} became class numbers: {shown}")
    names, paths = [name for name, _, _ in pictures], [path for _, _, path in pictures]
    return Table(source, names, paths, labels, classes, found + notes)


def sorted_classes(labels: list[str]) -> list[str]:
    """The distinct labels, by value where all are whole numbers, by text otherwise."""
    names = sorted(set(labels))
    return sorted(names, key=int) if all(re.fullmatch("[+-]?[0-9]{1,18}", name) for name in names) else names


def _checked_text(text: str, where) -> str:
    """`text` in one of its Unicode forms (NFC); UserError for characters that would steer a terminal or a table."""
    text = unicodedata.normalize("NFC", text)
    if not text.isprintable():
        raise UserError(f"{where}: {text[:40]!r} has characters that cannot be printed; rename it")
    return text


# ---- a CSV


def _read_csv_table(path: Path, within: Path | None) -> Table:
    """The table of a CSV; `within`: the zip that it came in, which its pictures must not lead out of."""
    rows, notes = read_csv(path)
    leaving = next((name for name in rows if name.startswith("/") or name.split("/")[0] == ".."), None)
    if within and leaving:
        raise UserError(f"{path}: image {leaving} leads out of {within}; only its own pictures are read")
    folder, places = picture_folder(path, list(rows))
    inside = f" in {folder.name}/" if folder != path.parent else ""
    pictures = [(name, label, places[name]) for name, label in rows.items()]
    return _table(path, pictures, sorted_classes(list(rows.values())), notes, inside)


def read_csv(path: Path) -> tuple[dict[str, str], list[str]]:
    """({name of a picture: its label}, notes for people), in the order of the rows.

    Labels that are all whole numbers are taken as numbers: 1, 01 and 1.0 are one class. Names get / between their
    parts. Raises UserError for a table that cannot be used, naming the line or the picture.
    """
    text, notes = _read_text(path)
    found = list(_rows(text, path))
    if not found:
        raise UserError(f"{path}: has a header and no rows; it needs one row a picture")
    for at, column in enumerate(("image", "label")):
        lacking = [row for row in found if row[at] == "" or row[at].lower() == "nan"]
        if lacking:
            *other, line = lacking[0]
            raise UserError(
                f"{path}: {len(lacking):,} rows have no {column}, the first in line {line} "
                f"({other[1 - at]}); fill them in or take the rows out"
            )
    numbers = all(_WHOLE.fullmatch(label) for _, label, _ in found)
    labels_of = {}
    for image, label, _ in found:
        name = posixpath.normpath(image.replace("\\", "/"))  # a path that is spelt in two ways is one picture
        labels_of.setdefault(name, {})[str(int(label.split(".")[0])) if numbers else label] = None
    clashing = {name: labels for name, labels in labels_of.items() if len(labels) > 1}
    for name, labels in clashing.items():
        raise UserError(
            f"{path}: {name} has the labels {' and '.join(list(labels)[:5])}; {len(clashing)} pictures "
            "have more than one, leave each a single row"
        )
    if len(labels_of) < len(found):
        notes.append(f"{len(found) - len(labels_of):,} rows of {path.name} repeat another one and count once")
    return {name: next(iter(labels)) for name, labels in labels_of.items()}, notes


def _rows(text: str, path: Path):
    """(image, label, line) of each row, as stripped text, "" where there is none, without blank lines."""
    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
    try:
        header = [cell.strip() for cell in next(reader, [])]
        image, label = _columns(header, path)
        for cells in reader:
            line = reader.line_num
            if len(cells) > len(header):
                raise UserError(
                    f"{path}: line {line} has {len(cells):,} fields, the header {len(header)}; put names "
                    "with commas between quotes"
                )
            cells = [_checked_text(cell.strip(), f"{path}: line {line}") for cell in cells]
            cells += [""] * (len(header) - len(cells))
            if cells[image] or cells[label]:
                yield cells[image], cells[label], line
    except csv.Error as reason:
        raise UserError(f"{path}: not a readable CSV (line {reader.line_num}: {reason})") from None


def _columns(header: list[str], path: Path) -> tuple[int, int]:
    if not any(header):
        raise UserError(f"{path}: empty; it needs the columns image and label")
    if len(header) > _MOST_COLUMNS:
        raise UserError(f"{path}: has {len(header):,} columns; it needs two, image and label")
    for name in ("image", "label"):
        if name not in header:
            found = ", ".join(repr(column[:80]) for column in header[:_SHOWN])
            raise UserError(f"{path}: has the columns {found}; it needs image and label, separated by commas")
        if header.count(name) > 1:
            raise UserError(f"{path}: has the column {name} more than once; leave one of them")
    return header.index("image"), header.index("label")


def _read_text(path: Path) -> tuple[str, list[str]]:
    """The text and a note on its encoding: UTF-8, UTF-16 with its mark, or GBK.

    Nearly any Latin-1 text passes for GB18030 too. So only the characters of GB2312, whose bytes come in pairs, count.
    """
    raw = path.read_bytes()
    encodings = {"utf-8-sig": "", "gb2312": "GB18030 (GBK)"}
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        encodings = {"utf-16": "UTF-16"}
    for encoding, name in encodings.items():
        try:
            text = raw.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" in text:
            break
        return text, [f"{path.name} is not in UTF-8; it was read as {name}"] if name else []
    raise UserError(f"{path}: not a text in UTF-8 or GBK; save it as CSV in UTF-8")


def picture_folder(table: Path, names: list[str]) -> tuple[Path, dict[str, Path]]:
    """The folder that `names` are relative to, the CSV's own or the one subfolder that holds them all; and their paths.

    Raises UserError: some are nowhere, or two subfolders hold equally many.
    """
    base = table.parent
    folders = [base, *(p for p in visible(base) if p.is_dir())]
    found = [_places(folder, names) for folder in folders]
    best = max(map(len, found))
    fitting = [i for i, present in enumerate(found) if len(present) == best]
    chosen = folders[fitting[0]]
    if best and len(fitting) > 1 and chosen != base:
        raise UserError(
            f"{table}: {chosen.name}/ and {folders[fitting[1]].name}/ each hold {best:,} of the "
            f"{len(names):,} pictures; write the folder into the column image"
        )
    if best < len(names):
        missing = [name for name in names if name not in found[fitting[0]]]
        where = chosen if best else f"{base} and its subfolders"
        raise UserError(
            f"{table}: {len(missing):,} of {len(names):,} listed pictures are missing in {where}: "
            f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}; put them there or take their "
            "rows out"
        )
    return chosen, found[fitting[0]]


def _places(folder: Path, names: list[str]) -> dict[str, Path]:
    """The paths of those `names` that are files in `folder`, whatever Unicode form the disk has their names in."""
    spelt = {}  # folder -> its entries by their names in NFC

    def entry(parent: Path, part: str) -> Path | None:
        if part in ("", "..", "/"):
            return parent / part
        if parent not in spelt:
            entries = os.listdir(parent) if parent.is_dir() else []
            spelt[parent] = {unicodedata.normalize("NFC", own): own for own in entries}
        return parent / spelt[parent][part] if part in spelt[parent] else None

    places = {}
    for name in names:
        place = folder
        for part in Path(name).parts:
            place = place and entry(place, part)
        if place and place.is_file():
            places[name] = place
    return places
