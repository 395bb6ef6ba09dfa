"""Archives of pictures, unpacked once: whole or not at all. Owners, modes and times are not taken over."""

import contextlib
import hashlib
import os
import re
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from common.archives import check_members
from common.atomic import flush_to_disk, require_file
from common.errors import UserError
from common.lock import locked
from data.download import say

MOST_GROWTH = 100  # times its own bytes that a zip may become; pictures hardly shrink, a zip bomb by 1,000 or more
_CHUNK = 1 << 20  # bytes


def extract_tar(archive, target) -> None:
    """Unpack a `.tar.gz` whose files are all in one folder, called as `target` is, to `target`, unless that is there.

    Raises UserError for a damaged archive, and for one with links, devices or files elsewhere.
    """
    archive, target = Path(archive), Path(target)

    def inside(member, folder):
        parts = PurePosixPath(member.name).parts
        if not (member.isreg() or member.isdir()):
            raise tarfile.SpecialFileError(member)
        if parts[:1] != (target.name,) or len(parts) == 1:
            if member.isdir() and len(parts) < 2:  # "./" and the folder itself
                return None
            raise tarfile.OutsideDestinationError(member, member.name)
        return tarfile.data_filter(member.replace(name="/".join(parts[1:])), folder)

    with _problems_named(archive), _appears_at(target, archive) as part:
        if part is not None:
            with tarfile.open(archive, "r|gz") as tar:
                tar.extractall(part, filter=inside)
                while tar.fileobj.read(_CHUNK):  # gzip compares its checksum at the end
                    pass
            if not any(part.iterdir()):
                raise tarfile.ReadError("it holds no files")


def extract_zip(archive, downloads) -> Path:
    """Unpack `archive` below the folder `downloads` unless that was done before; returns the folder of its files.

    The folder is called after the archive and the SHA-256 of its bytes. Nothing is written unless every member is a
    file or folder that stays inside, and all of them together are of a reasonable size and fit on the disk.

    Raises UserError: not a whole zip, or one that is refused.
    """
    archive, downloads = Path(archive), Path(downloads)
    require_file(archive)
    with _problems_named(archive):
        target = downloads / f"{archive.stem}-{_sha256(archive)[:16]}"
        if target.is_dir():
            return target
        with zipfile.ZipFile(archive) as content:
            check_members(content, archive, MOST_GROWTH)
            members = _safe_members(content, archive)
            with _appears_at(target, archive) as part:
                if part is not None:
                    _extract(content, members, part, archive)
    return target


@contextlib.contextmanager
def _appears_at(target: Path, archive: Path):
    """A new folder to unpack into, which becomes `target` when the block ends without an error; None if that is there.

    One process at a time works on it; others wait and say so.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(f"{target}.lock", lambda holder: say(f"{archive}: waiting for {holder}, which unpacks it")):
        if target.is_dir():
            yield None
            return
        part = target.with_name(f"{target.name}.part")
        shutil.rmtree(part, ignore_errors=True)  # what a killed run left
        try:
            part.mkdir()
            yield part
            os.sync()  # once for all: an fsync for each of 100,000 pictures takes minutes
            os.rename(part, target)
            flush_to_disk(target.parent)
        finally:
            shutil.rmtree(part, ignore_errors=True)


@contextlib.contextmanager
def _problems_named(archive: Path):
    try:
        yield
    except (UserError, MemoryError):
        raise
    except tarfile.FilterError as error:
        raise UserError(
            f"{archive}: member {error.tarinfo.name[:80]!r} is a link, a device or outside of the archive's one "
            "folder. Nothing was unpacked; get the archive from its official address"
        ) from None
    except OSError as error:
        if error.errno is not None:
            raise UserError(
                f"cannot unpack {archive}: {error.filename or archive.parent}: {error.strerror or error}; correct that "
                "and run the same command again, nothing half-unpacked is left"
            ) from None
        raise _damaged(archive, error) from None  # BadGzipFile
    except Exception as error:  # a damaged archive raises nearly any exception there is
        raise _damaged(archive, error) from None


def _damaged(archive: Path, error: Exception) -> UserError:
    detail = (str(error) or type(error).__name__).splitlines()[0][:200]
    return UserError(f"{archive}: not a whole archive ({detail}); get it again. Nothing was unpacked")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_CHUNK):
            digest.update(block)
    return digest.hexdigest()


def _safe_members(content: zipfile.ZipFile, archive: Path) -> dict[str, zipfile.ZipInfo]:
    """Every member by its name, folders with a / at the end; UserError at the first that is not safe."""
    members = {}
    for info, name in zip(content.infolist(), _names(content), strict=True):
        kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where the tool that packed it knows no modes
        problem = ""
        if name.startswith("/") or re.match("[A-Za-z]:", name) or ".." in name.split("/"):
            problem = "leads out of its folder"
        elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            problem = "is neither a file nor a folder but a link, perhaps"
        elif name in members:
            problem = "is there twice"
        if problem:
            raise UserError(
                f"{archive}: member {name[:80]!r} {problem}. Nothing was unpacked; pack it anew, or unpack "
                "it by hand and give the folder"
            )
        members[name] = info
    return members


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


def _extract(content: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], part: Path, archive: Path) -> None:
    total = sum(info.file_size for info in members.values())
    free = shutil.disk_usage(part).free
    if total > free:
        raise UserError(f"{archive}: needs {total:,} bytes in {part.parent}, where {free:,} are free; make room")
    with tqdm(total=total, unit="B", unit_scale=True, desc="unpacking", leave=False, disable=None) as progress:
        for name, info in members.items():
            place = part.joinpath(*PurePosixPath(name).parts)
            if name.endswith("/"):
                place.mkdir(parents=True, exist_ok=True)
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            with content.open(info) as source, open(place, "xb") as file:
                while block := source.read(_CHUNK):
                    file.write(block)
                    progress.update(len(block))
