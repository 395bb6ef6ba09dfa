"""Zip archives of pictures, unpacked once: into a folder named after their content, whole or not at all."""

import hashlib
import os
import re
import shutil
import stat
import sys
import zipfile
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from common.atomic import flush_to_disk
from common.errors import UserError
from common.lock import locked

MAX_RATIO = 100  # unpacked / packed bytes, from SMALL on; pictures hardly shrink, a zip bomb does by 1,000 or more
SMALL = 1 << 28  # bytes, unpacked, that do no harm whatever the ratio
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # zipfile bounds the memory of these two alone
_CHUNK = 1 << 20  # bytes


def extract_zip(archive, downloads) -> Path:
    """Unpack `archive` below the folder `downloads` unless that was done before; returns the folder of its files.

    The folder is called after the archive and the SHA-256 of its bytes, and appears when all is in it. Nothing is
    written unless every member is a file or folder that stays inside, and all of them together are of a reasonable
    size and fit on the disk. Owners, modes and times of the archive are not taken over.

    Raises UserError: not a whole zip, or one that is refused.
    """
    archive, downloads = Path(archive), Path(downloads)
    try:
        target = downloads / f"{archive.stem}-{_sha256(archive)[:16]}"
        if target.is_dir():
            return target
        with zipfile.ZipFile(archive) as content:
            members = _safe_members(content, archive)
            downloads.mkdir(parents=True, exist_ok=True)
            _check_size(members, archive, downloads)
            with locked(f"{target}.lock", lambda holder: _say(f"{archive}: {holder} unpacks it; waiting for that")):
                if not target.is_dir():
                    _extract(content, members, target)
    except (UserError, MemoryError):
        raise
    except OSError as error:
        raise UserError(
            f"cannot unpack {archive}: {error.filename or downloads}: {error.strerror or error}; correct that and run "
            "the same command again, nothing half-unpacked is left"
        ) from None
    except Exception as error:  # a damaged zip raises nearly any exception there is
        raise UserError(
            f"{archive}: not a whole zip archive ({str(error) or type(error).__name__}); get it again. Nothing was "
            "unpacked"
        ) from None
    return target


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_CHUNK):
            digest.update(block)
    return digest.hexdigest()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _safe_members(content: zipfile.ZipFile, archive: Path) -> list[tuple[zipfile.ZipInfo, str]]:
    """Every member and its name, folders with a / at the end; UserError at the first that is not safe."""
    found, names = [], set()
    for info, name in zip(content.infolist(), _names(content), strict=True):
        kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where the tool that packed it knows no modes
        problem = ""
        if name.startswith("/") or re.match("[A-Za-z]:", name) or ".." in name.split("/"):
            problem = "leads out of its folder"
        elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            problem = "is neither a file nor a folder but a link, perhaps"
        elif name in names:
            problem = "is there twice"
        elif info.flag_bits & 1:
            problem = "is encrypted"
        elif info.compress_type not in _METHODS:
            problem = f"is compressed by method {info.compress_type}; only Deflate and none are read"
        if problem:
            raise UserError(f"{archive}: member {name!r} {problem}. Nothing was unpacked; pack it anew, or unpack it "
                            "by hand and give the folder")  # fmt: skip
        names.add(name)
        found.append((info, name))
    return found


def _names(content: zipfile.ZipFile) -> list[str]:
    """The members' names with / between their parts.

    Zips made by Chinese Windows hold names in GBK, some of macOS UTF-8, without the mark that says so; zipfile then
    takes them for code page 437, which they stay when they are neither. Short names may be both, so the whole
    archive decides.
    """
    marked = [bool(info.flag_bits & 0x800) for info in content.infolist()]  # as UTF-8
    names = [info.filename for info in content.infolist()]
    for encoding in ("utf-8", "gb18030"):
        try:
            names = [n if m else n.encode("cp437").decode(encoding) for n, m in zip(names, marked, strict=True)]
            break
        except UnicodeError:
            continue
    return [name.replace("\\", "/") for name in names]  # as some tools of Windows write


def _check_size(members, archive: Path, downloads: Path) -> None:
    """zipfile reads no more bytes of a member than its entry says, so the entries can be relied on."""
    packed, unpacked = archive.stat().st_size, sum(info.file_size for info, _ in members)
    if unpacked > SMALL and unpacked > MAX_RATIO * packed:
        raise UserError(
            f"{archive}: {packed:,} bytes that become {unpacked:,}, more than {MAX_RATIO} times as many, are no "
            "archive of pictures; it was not unpacked. If it is good, unpack it by hand and give the folder"
        )
    free = shutil.disk_usage(downloads).free
    if unpacked > free:
        raise UserError(f"{archive}: needs {unpacked:,} bytes in {downloads}, where {free:,} are free; make room")


def _extract(content: zipfile.ZipFile, members, target: Path) -> None:
    """Write `members` to `target`.part and rename it. The caller holds the lock."""
    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # what a killed run left
    total = sum(info.file_size for info, _ in members)
    try:
        part.mkdir()
        with tqdm(total=total, unit="B", unit_scale=True, desc="unpacking", leave=False, disable=None) as progress:
            for info, name in members:
                place = part.joinpath(*PurePosixPath(name).parts)
                if name.endswith("/"):
                    place.mkdir(parents=True, exist_ok=True)
                    continue
                place.parent.mkdir(parents=True, exist_ok=True)
                with content.open(info) as source, open(place, "xb") as file:
                    while block := source.read(_CHUNK):
                        file.write(block)
                        progress.update(len(block))
        os.sync()  # once for all: an fsync for each of 100,000 pictures takes minutes
        os.rename(part, target)
        flush_to_disk(target.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)
