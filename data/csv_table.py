"""A CSV of `image,label`: its rows, checked, and the folder that its pictures are in. No picture is opened."""

import io
import os
import posixpath
import re
from pathlib import Path

import pandas as pd

from common.errors import UserError

# Encodings in the order they are tried, and their names in a note. Text in another encoding of one byte a character
# may pass for GB18030, which is why that is said.
_ENCODINGS = {"utf-8-sig": "UTF-8", "utf-16": "UTF-16", "gb18030": "GB18030 (GBK)"}
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}(\.0*)?")  # 1.0 is how pandas writes 1 beside rows without a label
_SHOWN = 10  # column names in an error


def read_csv(path: Path) -> tuple[list[str], list[str], list[str]]:
    """(names, labels, notes): each picture once, in the order of the rows; notes are lines for people.

    Labels that are all whole numbers are taken as numbers: 1, 01 and 1.0 are one class. Names get / between their
    parts. Raises UserError for a table that cannot be used, naming the line or the picture.
    """
    text, notes = _read_text(path)
    rows = _parse(text, path)
    for name in ("image", "label"):
        lacking = rows[(rows[name] == "") | (rows[name].str.lower() == "nan")]
        if len(lacking):
            line, other = lacking.index[0] + 2, lacking.iloc[0].drop(name).item()  # line 1 is the header
            raise UserError(f"{path}: {len(lacking):,} rows have no {name}, the first in line {line} ({other}); fill "
                            "them in or take the rows out")  # fmt: skip
    # A path that is spelt in two ways is one picture.
    rows["image"] = [posixpath.normpath(name.replace("\\", "/")) for name in rows["image"]]
    if rows["label"].map(lambda label: bool(_WHOLE.fullmatch(label))).all():
        rows["label"] = [str(int(label.split(".")[0])) for label in rows["label"]]
    once = rows.drop_duplicates()
    clashing = once[once["image"].duplicated(keep=False)].groupby("image", sort=False)["label"]
    for name, labels in clashing:
        raise UserError(f"{path}: {name} has the labels {' and '.join(labels)}; {clashing.ngroups} pictures have more "
                        "than one, leave each a single row")  # fmt: skip
    if len(once) < len(rows):
        notes.append(f"{len(rows) - len(once):,} rows of {path.name} repeat another one and count once")
    return once["image"].tolist(), once["label"].tolist(), notes


def _parse(text: str, path: Path) -> pd.DataFrame:
    """The columns image and label as stripped text, "" where there is none, without blank lines."""
    try:
        rows = pd.read_csv(
            io.StringIO(text), dtype=str, keep_default_na=False, skip_blank_lines=False, skipinitialspace=True
        )
    except pd.errors.EmptyDataError:
        raise UserError(f"{path}: empty; it needs the columns image and label") from None
    except (pd.errors.ParserError, ValueError) as reason:
        detail = str(reason).strip().removeprefix("Error tokenizing data. C error: ")
        raise UserError(f"{path}: not a readable CSV ({detail})") from None
    rows.columns = [str(name).strip() for name in rows.columns]
    if not {"image", "label"} <= set(rows.columns):
        found = ", ".join(map(repr, rows.columns[:_SHOWN]))
        raise UserError(f"{path}: has the columns {found}; it needs image and label, separated by commas")
    twice = sorted({name for name in ("image", "label") if list(rows.columns).count(name) > 1})
    if twice:
        raise UserError(f"{path}: has the column {twice[0]} more than once; leave one of them")
    if not isinstance(rows.index, pd.RangeIndex):  # how pandas takes surplus fields
        raise UserError(f"{path}: its rows have more fields than its header; put names with commas between quotes")
    rows = rows[["image", "label"]].fillna("").apply(lambda column: column.str.strip())
    rows = rows[(rows != "").any(axis=1)]
    if rows.empty:
        raise UserError(f"{path}: has a header and no rows; it needs one row a picture")
    return rows


def _read_text(path: Path) -> tuple[str, list[str]]:
    raw = path.read_bytes()
    for encoding, name in _ENCODINGS.items():
        if encoding == "utf-16" and not raw.startswith((b"\xff\xfe", b"\xfe\xff")):
            continue
        try:
            text = raw.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" in text:
            break
        return text, [] if name == "UTF-8" else [f"{path.name} is not in UTF-8; it was read as {name}"]
    raise UserError(f"{path}: not a text in UTF-8 or GBK; save it as CSV in UTF-8")


def picture_folder(table: Path, names: list[str]) -> Path:
    """The folder that `names` are relative to: the CSV's own or the one subfolder that holds them all.

    Raises UserError: some are nowhere, or two subfolders hold equally many.
    """
    base = table.parent
    folders = [base, *(p for p in visible(base) if p.is_dir())]
    found = [_present(folder, names) for folder in folders]
    best = max(map(len, found))
    fitting = [folder for folder, present in zip(folders, found, strict=True) if len(present) == best]
    if best and len(fitting) > 1 and fitting[0] != base:
        raise UserError(f"{table}: {fitting[0].name}/ and {fitting[1].name}/ each hold {best:,} of the {len(names):,} "
                        "pictures; write the folder into the column image")  # fmt: skip
    if best < len(names):
        here = found[folders.index(fitting[0])]
        missing = [name for name in names if name not in here]
        where = fitting[0] if best else f"{base} and its subfolders"
        raise UserError(f"{table}: {len(missing):,} of {len(names):,} listed pictures are missing in {where}: "
                        f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}; put them there or take their "
                        "rows out")  # fmt: skip
    return fitting[0]


def _present(folder: Path, names: list[str]) -> set[str]:
    entries = {*os.listdir(folder), "", ".."}  # first parts of names that are worth a look: "" of absolute ones
    return {name for name in names if name.split("/")[0] in entries and (folder / name).is_file()}


def visible(folder: Path) -> list[Path]:
    """Sorted content without hidden files and what macOS adds to zips."""
    return sorted(p for p in folder.iterdir() if not p.name.startswith((".", "__MACOSX")))
