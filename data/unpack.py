"""Archives, unpacked once: whole or not at all. Owners, modes and times are not taken over."""

import contextlib
import os
import shutil
import tarfile
import zipfile
from pathlib import Path

from tqdm import tqdm

from common.archives import check_members
from common.atomic import file_digest, flush_to_disk, require_file
from common.errors import UserError
from common.lock import locked
from data.download import say

MOST_GROWTH = 100  # times its own bytes that a zip may become; pictures hardly shrink, a zip bomb by 1,000 or more


def extract_tar(archive, target) -> None:
    """Unpack a `.tar.gz` that holds a folder called as `target` is, to `target`, unless that is there.

    Raises UserError for a damaged archive, and for one with devices or with files or links that lead out of it.
    """
    archive, target = Path(archive), Path(target)
    with _appears_at(target, archive) as part:
        if part is not None:
            with tarfile.open(archive, "r:gz") as tar:
                tar.extractall(part, filter="data")
            if not (part / target.name).is_dir():
                raise tarfile.ReadError(f"it holds no folder {target.name}")


def extract_zip(archive, downloads) -> Path:
    """Unpack `archive` below the folder `downloads` unless that was done before; returns the folder of its files.

    The folder is called after the archive and the SHA-256 of its bytes.
    Raises UserError: not a whole zip, or one with names that lead out of it, or one that grows without measure.
    """
    archive = Path(archive)
    require_file(archive)
    target = Path(downloads) / f"{archive.stem}-{file_digest(archive, 'sha256')[:16]}"
    with _appears_at(target, archive) as part:
        if part is not None:
            (part / target.name).mkdir()
            with zipfile.ZipFile(archive) as content:
                check_members(content, archive, MOST_GROWTH)
                _name_members(content, archive)
                for member in tqdm(content.infolist(), desc="unpacking", unit="file", leave=False, disable=None):
                    content.extract(member, part / target.name)
    return target


@contextlib.contextmanager
def _appears_at(target: Path, archive: Path):
    """A folder to unpack into, or None if `target` is there; errors become UserErrors.

    What is called as `target` in it appears at `target` when the block ends well. One process at a time works on it.
    """
    part = target.with_name(f"{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(f"{target}.lock", lambda holder: say(f"{archive}: waiting for {holder}, which unpacks it")):
            if target.is_dir():
                yield None
                return
            shutil.rmtree(part, ignore_errors=True)  # what a killed run left
            part.mkdir()
            try:
                yield part
                os.sync()  # once for all: an fsync for each of 100,000 pictures takes minutes
                os.rename(part / target.name, target)
                flush_to_disk(target.parent)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # a damaged archive raises nearly any exception there is
        if isinstance(error, OSError) and error.errno is not None:  # the disk
            advice = "correct that and run the same command again"
            detail = f"{error.filename or target.parent}: {error.strerror}"
        else:
            advice = "get it again"
            detail = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise UserError(f"{archive}: cannot be unpacked ({detail}); {advice}. Nothing half-unpacked is left") from None


def _name_members(content: zipfile.ZipFile, archive: Path) -> None:
    """Give the members the names that were meant, with / between their parts; UserError for those that do harm.

    Zips made by Chinese Windows hold names in GBK, some of macOS UTF-8, without the mark that says so; zipfile then
    takes them for code page 437, which they stay when they are neither. Short names may be both, so the whole
    archive decides.
    """
    members = content.infolist()
    unmarked = [member for member in members if not member.flag_bits & 0x800]  # as UTF-8
    for encoding in ("utf-8", "gb18030"):
        with contextlib.suppress(UnicodeError):
            meant = [member.filename.encode("cp437").decode(encoding) for member in unmarked]
            for member, name in zip(unmarked, meant, strict=True):
                member.filename = name
            break
    for member in members:
        member.filename = member.filename.replace("\\", "/")  # as some tools of Windows write
        if member.filename.startswith("/") or ".." in member.filename.split("/"):
            raise UserError(f"{archive}: member {member.filename[:80]!r} leads out of its folder; pack it anew")
    if len({member.filename for member in members}) < len(members):
        raise UserError(f"{archive}: holds two members of the same name; pack it anew")
