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
    place, unpacked = Path(data_dir), None
    if not place.exists():
        raise UserError(f"{place}: no such file or folder; --data_dir takes {EXPECTED}")
    if place.suffix.lower() == ".zip" and not place.is_dir():
        place = unpacked = extract_zip(place, downloads)
    if place.is_dir():
        place = _entered(place)
        table = _main_csv(place)
    else:
        require_file(place)
        table = place
        if place.suffix.lower() != ".csv":
            raise UserError(f"{place}: neither a folder nor a .csv or .zip file; --data_dir takes {EXPECTED}")
    if table:
        return {"train": _read_csv_table(table, unpacked)}
    if split_folders(place):
        return read_split_folders(place)
    return {"train": _read_class_folders(place)}


def without_unreadable(table: Table, strict: bool, workers: int) -> Table:
    """Decode every picture once; leave out those that cannot be read and name them in the notes.

    Raises UserError: one cannot be read and `strict` is set, or a class has no other pictures.
    """
    problems = unreadable(table.paths, workers)
    if not problems:
        return table
    total, lines = len(table.paths), list(problems.values())
    if strict:
        text = f"{lines[0]} ({len(lines)} of {total:,} pictures cannot be read"
        raise UserError(f"{text}; without --strict they are left out)")
    kept = np.array([i for i in range(total) if i not in problems], np.int64)
    labels = table.labels[kept]
    for label in np.setdiff1d(table.labels, labels):
        first = next(problem for i, problem in problems.items() if table.labels[i] == label)
        raise UserError(f"{table.source}: class {table.class_names[label]!r} has no picture that can be read: {first}")
    left_out = f"{len(lines):,} of {total:,} pictures cannot be read and are left out (--strict true stops instead)"
    notes = [*table.notes, left_out, *lines[:_SHOWN]]
    if len(lines) > _SHOWN:
        notes.append(f"... and {len(lines) - _SHOWN:,} more")
    names, paths = [table.names[i] for i in kept], [table.paths[i] for i in kept]
    return dataclasses.replace(table, names=names, paths=paths, labels=labels, notes=notes)


# ---- what is where


def visible(folder: Path) -> list[Path]:
    """Sorted content without hidden files and what macOS adds to zips."""
    return sorted(p for p in folder.iterdir() if not p.name.startswith((".", "__MACOSX")))


def is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def _folders(folder: Path) -> list[Path]:
    return [path for path in visible(folder) if path.is_dir()]


def _entered(folder: Path) -> Path:
    """The folder itself, or the one at the end of a short chain of folders that hold nothing else."""
    for _ in range(_DEEPEST):
        inner = _folders(folder)
        if len(inner) != 1 or _main_csv(folder) or any(map(is_picture, visible(folder))):
            break
        folder = inner[0]
    return folder


def _main_csv(folder: Path) -> Path | None:
    tables = [p for p in visible(folder) if p.suffix.lower() == ".csv" and p.is_file()]
    main = [p for p in tables if p.name == _MAIN_CSV] or tables
    if len(main) > 1:
        text = f"{folder}: holds {len(main)} CSV files ({', '.join(p.name for p in main[:5])}) and none is called"
        raise UserError(f"{text} {_MAIN_CSV}; give the path of one of them as --data_dir")
    return main[0] if main else None


# ---- folders of classes


def split_folders(data_dir: Path) -> dict[str, Path]:
    """The folders of "train", "validation" and "test"; {} unless train/ and one other are there."""
    found = {"train": data_dir / "train"}
    for split, names in _SPLITS.items():
        there = [data_dir / name for name in names if (data_dir / name).is_dir()]
        if len(there) > 1:
            raise UserError(f"{data_dir}: holds {there[0].name}/ and {there[1].name}/; leave one of them")
        if there:
            found[split] = there[0]
    if "validation" in found and "test" not in found:
        found["test"] = found.pop("validation")
    return found if len(found) > 1 and found["train"].is_dir() else {}


def read_split_folders(data_dir: Path) -> dict[str, Table]:
    """The tables of `data_dir`/train/CLASS/* and of val/ and test/, see `read_tables`; the same classes in each."""
    found = split_folders(data_dir)
    if not found:
        missing = data_dir / ("val" if (data_dir / "train").is_dir() else "train")
        raise UserError(f"{missing}: no such folder; expected {data_dir}/train/CLASS/* and {data_dir}/val/CLASS/*")
    train = _read_class_folders(found["train"])
    tables = {split: _read_class_folders(folder, train.class_names) for split, folder in found.items()}
    used = "; ".join(f"{folder.name}/ gives the {split} images" for split, folder in found.items())
    others = [path.name for path in visible(data_dir) if path not in found.values()]
    ignored = f"; left out: {', '.join(others[:_SHOWN])}" if others else ""
    tables["train"].notes.append(f"{data_dir}: {used}{ignored}")
    return tables


def _read_class_folders(folder: Path, known: list[str] | None = None) -> Table:
    """The table of FOLDER/CLASS/PICTURE; `known`: the classes that it has to have, and no others."""
    folders = _folders(folder)
    if len(folders) < 2:
        text = f"{folder}: holds neither a CSV nor folders of at least two classes"
        raise UserError(f"{text}; --data_dir takes {EXPECTED}")
    classes = {_checked_text(own.name, folder) for own in folders}
    if known and classes - set(known):
        raise UserError(f"{folder}: classes without training images: {', '.join(sorted(classes - set(known))[:5])}")
    pictures, others = [], [path.name for path in visible(folder) if not path.is_dir()]
    for own in folders:
        for path in visible(own):
            name = f"{own.name}/{path.name}"
            if is_picture(path):
                pictures.append((name, _checked_text(own.name, folder), path))
            else:
                others.append(name)
    lacking = sorted(classes.union(known or ()) - {label for _, label, _ in pictures})
    if lacking:
        text = f"{folder}: no image files ({', '.join(sorted(SUFFIXES))}) of the class {lacking[0]} ({len(lacking)} of"
        raise UserError(f"{text} {len(known or classes)} classes have none); fill or remove its folder")
    table = _table(folder, pictures)
    if others:
        text = f"{len(others):,} entries of the class folders are no image files, {', '.join(sorted(others)[:3])}"
        table.notes.append(f"{text} for instance; they are left out")
    return table


def _table(source: Path, pictures: list, within: str = "") -> Table:
    """A Table of (name, label, path) in any order."""
    classes = sorted_classes([label for _, label, _ in pictures])
    if len(classes) < 2:
        raise UserError(f"{source}: all {len(pictures)} pictures are of one class, {classes[0]!r}; training needs two")
    number = {name: i for i, name in enumerate(classes)}
    pictures = sorted(pictures, key=lambda picture: picture[0])
    labels = np.array([number[label] for _, label, _ in pictures], np.int64)
    counts = np.bincount(labels)
    notes = [
        f"{source}: {len(pictures):,} pictures{within} of {len(classes)} classes, {counts.min():,} to "
        f"{counts.max():,} a class"
    ]
    if classes != [str(i) for i in number.values()]:
        shown = ", ".join(f"{name} = {i}" for name, i in number.items())
        notes.append(f"the labels of {source.name} became class numbers: {shown}")
    names, paths = [name for name, _, _ in pictures], [path for _, _, path in pictures]
    return Table(source, names, paths, labels, classes, notes)


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
    """The table of a CSV; `within`: the zip that it came in, unpacked, which its pictures must not lead out of."""
    rows, notes = read_csv(path)
    if within and (leaving := next((name for name in rows if name.startswith(("/", "../"))), None)):
        raise UserError(f"{path}: image {leaving} leads out of {within}; only its own pictures are read")
    folder, places = picture_folder(path, list(rows))
    inside = f" in {folder.name}/" if folder != path.parent else ""
    table = _table(path, [(name, label, places[name]) for name, label in rows.items()], inside)
    table.notes.extend(notes)
    return table


def read_csv(path: Path) -> tuple[dict[str, str], list[str]]:
    """({name of a picture: its label}, notes for people), in the order of the rows.

    Labels that are all whole numbers are taken as numbers: 1, 01 and 1.0 are one class. Names get / between their
    parts. Raises UserError for a table that cannot be used, naming the line or the picture.
    """
    text, notes = _read_text(path)
    rows = list(_rows(text, path))
    if not rows:
        raise UserError(f"{path}: has a header and no rows; it needs one row a picture")
    numbers = all(_WHOLE.fullmatch(label) for _, label, _ in rows)
    labels = {}
    for image, label, line in rows:
        if numbers:
            label = str(int(label.split(".")[0]))
        name = posixpath.normpath(image.replace("\\", "/"))  # a path that is spelt in two ways is one picture
        first = labels.setdefault(name, label)
        if first != label:
            raise UserError(f"{path}: {name} has the labels {first} and {label} (line {line}); leave it a single row")
    if len(labels) < len(rows):
        notes.append(f"{len(rows) - len(labels):,} rows of {path.name} repeat another one and count once")
    return labels, notes


def _rows(text: str, path: Path):
    """(image, label, line) of each row but blank ones, as stripped text."""
    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
    try:
        header = [cell.strip() for cell in next(reader, [])]
        columns = _columns(header, path)
        for cells in reader:
            where = f"{path}: line {reader.line_num}"
            if len(cells) > len(header):
                text = f"{where} has {len(cells):,} fields, the header {len(header)}"
                raise UserError(f"{text}; put names with commas between quotes")
            found = [_checked_text(cells[at].strip(), where) if at < len(cells) else "" for at in columns]
            if not any(found):
                continue
            for name, cell in zip(("image", "label"), found, strict=True):
                if cell.lower() in ("", "nan"):
                    raise UserError(f"{where} has no {name}; fill it in or take the row out")
            yield *found, reader.line_num
    except csv.Error as reason:
        raise UserError(f"{path}: not a readable CSV (line {reader.line_num}: {reason})") from None


def _columns(header: list[str], path: Path) -> list[int]:
    """Where image and label are."""
    if not any(header):
        raise UserError(f"{path}: empty; it needs the columns image and label")
    for name in ("image", "label"):
        if name not in header:
            found = ", ".join(repr(column[:80]) for column in header[:_SHOWN])
            raise UserError(f"{path}: has the columns {found}; it needs image and label, separated by commas")
        if header.count(name) > 1:
            raise UserError(f"{path}: has the column {name} more than once; leave one of them")
    return [header.index("image"), header.index("label")]


def _read_text(path: Path) -> tuple[str, list[str]]:
    """The text and a note on its encoding: UTF-8 or GBK.

    Nearly any Latin-1 text passes for GB18030 too. So only the characters of GB2312, whose bytes come in pairs, count.
    """
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig"), []
    except UnicodeDecodeError:
        pass
    try:
        return raw.decode("gb2312"), [f"{path.name} is not in UTF-8; it was read as GBK"]
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text in UTF-8 or GBK; save it as CSV in UTF-8") from None


def picture_folder(table: Path, names: list[str]) -> tuple[Path, dict[str, Path]]:
    """The folder that `names` are relative to, the CSV's own or the one subfolder that holds them all; and their paths.

    Raises UserError: some are nowhere, or two subfolders hold all.
    """
    base = table.parent
    candidates = [folder for folder in (base, *_folders(base)) if _places(folder, names[:_SHOWN])] or [base]
    found = {folder: _places(folder, names) for folder in candidates}
    chosen = max(found, key=lambda folder: len(found[folder]))  # the first of those that hold most
    missing = [name for name in names if name not in found[chosen]]
    if missing:
        where = chosen if found[chosen] else f"{chosen} and its subfolders"
        text = f"{table}: {len(missing):,} of {len(names):,} listed pictures are missing in {where}"
        raise UserError(f"{text}: {', '.join(missing[:3])}; put them there or take their rows out")
    whole = [folder.name for folder in found if len(found[folder]) == len(names)]
    if len(whole) > 1 and chosen != base:
        text = f"{table}: {whole[0]}/ and {whole[1]}/ each hold all {len(names):,} pictures"
        raise UserError(f"{text}; write the folder into the column image")
    return chosen, found[chosen]


def _places(folder: Path, names: list[str]) -> dict[str, Path]:
    """The paths of those `names` that are files in `folder`, with accents composed (NFC) or apart (NFD, old macOS)."""
    places = {}
    for name in names:
        for form in ("NFD", "NFC"):
            place = folder / unicodedata.normalize(form, name)
            if os.path.isfile(place):  # unlike Path.is_file, it takes names that are too long for the disk
                places[name] = place
    return places
