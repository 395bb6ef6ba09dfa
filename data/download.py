"""Files from official addresses: complete and verified on the disk, or not there at all.

`fetch` writes to `NAME.part` (with `NAME.part.json`, which says what the server called this version of the
file) and renames it when its checksum is right, so a run that is stopped anywhere continues where it was.
`extract_tar` unpacks a `.tar.gz` the same way: beside, then renamed. `NAME.lock` exists while a process is at
work on NAME.
"""

import errno
import gzip
import hashlib
import http.client
import json
import os
import shutil
import ssl
import sys
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from tqdm import tqdm

from common.atomic import flush_to_disk
from common.errors import UserError
from common.lock import locked

CHUNK = 1 << 18  # bytes read at a time
TIMEOUT = 30  # seconds to connect, and the longest silence after which a connection counts as lost
RETRY_PAUSES = (1, 2, 4, 8, 16)  # seconds before each further try; progress sets the count back to the first
# What reading a damaged .tar.gz raises; the second line comes of absurd sizes and endless chains in headers.
DAMAGE = (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError)
DAMAGE += (OverflowError, MemoryError, RecursionError)
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class _Broken(Exception):
    """A request that failed. `lasting`: waiting seconds will hardly help (no such host, port closed)."""

    def __init__(self, message, lasting=False):
        super().__init__(message)
        self.lasting = lasting


def fetch(url, path, *, md5=None, sha256=None, size=None) -> Path:
    """Have the file behind `url` at `path`: download it, or use the one that is there.

    A file at `path` is used if it has the given `md5` and `sha256` (hex) and `size` (bytes); what is None is
    not checked. Otherwise it is left alone and an error says so. A download that was stopped is continued;
    lost connections and 5xx answers are tried again after RETRY_PAUSES. Returns `path`; raises UserError.
    """
    path = Path(path)
    expected = {"size": size, "md5": md5 and md5.lower(), "sha256": sha256 and sha256.lower()}
    if urlsplit(url).scheme not in ("http", "https"):
        raise UserError(f"{url} is not an http(s) address, so {path.name} cannot be downloaded; correct it")
    try:
        if not _is_present(path, expected):
            path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(path):
                if not _is_present(path, expected):  # another process may have fetched it meanwhile
                    _download(url, path, expected)
    except OSError as error:
        raise UserError(_disk_problem(error, _beside(path, ".part"), size)) from error
    return path


def extract_tar(archive, folder) -> None:
    """Unpack a `.tar.gz` that holds one top-level folder, as `folder`/TOP. If that exists, do nothing.

    Only regular files and directories inside TOP are accepted; anything else raises UserError before a byte
    is written, as does a damaged archive. Owners, modes and times of the archive are not taken over.
    """
    archive, folder = Path(archive), Path(folder)
    try:
        with gzip.open(archive) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            top = next((name.parts[0] for _, name in _safe_members(tar, archive)), None)
            if top is None:
                raise tarfile.ReadError("it holds no files")
            if (folder / top).is_dir():
                return
            members = list(_safe_members(tar, archive))
            _check_end(stream, tar.offset)
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(folder / top):
                if not (folder / top).is_dir():
                    _extract(tar, members, folder / top)
    # BadGzipFile is an OSError, so damage has to be told from a failing disk first
    except DAMAGE as error:
        raise UserError(
            f"{archive} is damaged or incomplete ({error}): delete it and run the same command again to "
            f"download it anew; nothing was extracted"
        ) from error
    except OSError as error:
        where = error.filename or folder
        raise UserError(
            f"cannot extract {archive}: {where}: {error.strerror or error}. Correct that and run the same "
            f"command again; nothing half-extracted is left in {folder}"
        ) from error


# ---- the file on the disk


def _beside(path, suffix):
    return path.with_name(path.name + suffix)


def _size(path):
    return path.stat().st_size if path.exists() else 0


def _bytes(count):
    return "an unknown number of bytes" if count is None else f"{count:,} bytes"


def _say(text):
    print(text, file=sys.stderr, flush=True)


def _mismatch(path, expected):
    """What is wrong with the file at `path`, as words; empty when all that is expected of it holds."""
    if expected["size"] not in (None, _size(path)):
        return f"it has {_bytes(_size(path))}, expected {_bytes(expected['size'])}"
    for name in ("md5", "sha256"):
        if expected[name]:
            digest = hashlib.new(name, usedforsecurity=False)  # md5 is refused by FIPS systems otherwise
            with open(path, "rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
            if digest.hexdigest() != expected[name]:
                return f"its {name} is {digest.hexdigest()}, expected {expected[name]}"
    return ""


def _is_present(path, expected):
    if not path.exists():
        return False
    problem = "it is a folder, not a file" if path.is_dir() else _mismatch(path, expected)
    if problem:
        raise UserError(
            f"{path}: {problem}. Delete it and run the same command again to download it, or put the right file there"
        )
    return True


def _disk_problem(error, part, total):
    reason = error.strerror or error
    if error.errno in NO_ROOM:
        kept = _size(part)
        missing = _bytes(None if total is None else total - kept)
        return (
            f"cannot write {part}: {reason}. The file needs {_bytes(total)}, {kept:,} of them are kept "
            f"there, {missing} are missing. Make room and run the same command again: it continues there"
        )
    where = error.filename or part
    return f"cannot use {where}: {reason}. Make it readable and writable or choose another folder"


def _locked(path):
    """Hold `path`.lock, so that one process at a time works on `path`; others wait and say so."""
    return locked(
        _beside(path, ".lock"), lambda holder: _say(f"{path}: another process is at work on it; waiting for that one")
    )


# ---- the download


def _download(url, path, expected):
    """Download, verify, rename. The caller holds the lock."""
    part = _beside(path, ".part")
    began = time.monotonic()
    at_start = furthest = _size(part)
    failures = 0
    started_over = False
    while True:
        try:
            continued = _receive(url, path, part, expected)
        except _Broken as error:
            if _size(part) > furthest:  # not "> 0": a server that ignores Range would be asked forever
                furthest, failures = _size(part), 0
            if failures == len(RETRY_PAUSES) or (error.lasting and furthest == at_start):
                kept = f" ({_bytes(_size(part))} are kept in {part})" if _size(part) else ""
                raise UserError(
                    f"{error}. Download {url} by hand to {path} and run the same command again{kept}"
                ) from error
            pause = RETRY_PAUSES[failures]
            failures += 1
            _say(f"{path.name}: {error}; next try in {pause} s")
            time.sleep(pause)
            continue
        problem = _mismatch(part, expected)
        if not problem:
            break
        _discard(part)
        if started_over or not continued:
            raise UserError(
                f"{url} gave a wrong file: {problem}. It was removed and {path} not written; run the same "
                f"command again to start from the beginning, or put the right file at {path}"
            )
        # The pieces may stem from two versions of the file: one whole download tells.
        _say(f"{path.name}: {problem}; it was downloaded in pieces, so it is downloaded once more in one")
        started_over = True
    os.replace(part, path)
    flush_to_disk(path.parent)
    _discard(part)
    checked = " and ".join(name for name, value in expected.items() if value is not None) or "nothing"
    _say(f"{path}: complete, {_bytes(_size(path))} in {time.monotonic() - began:.1f} s ({checked} checked)")


def _discard(part):
    """Remove a partial download and the note beside it."""
    part.unlink(missing_ok=True)
    _beside(part, ".json").unlink(missing_ok=True)


def _receive(url, path, part, expected):
    """One request for what `part` lacks, appended to it and synced; returns whether earlier bytes were kept.

    Raises _Broken when `part` is not whole afterwards, UserError when asking again would not help.
    """
    size = expected["size"]
    if size and _size(part) == size:
        return True
    response, have, total = _ask_for_rest(url, part, verified=bool(expected["md5"] or expected["sha256"]))
    with response:
        if response.status == 416:  # the answer to "what comes after the last byte?"
            return True
        if response.status not in (200, 206):
            status = f"HTTP {response.status} {response.reason}"
            if response.status >= 500 or response.status in (408, 429):
                raise _Broken(f"{urlsplit(url).netloc} answers {status}")
            raise UserError(f"{url}: {status}. If the file has moved, download it by hand to {path}")
        if None not in (size, total) and total != size:
            raise UserError(
                f"{url} offers {_bytes(total)} instead of {_bytes(size)}, so it is another file or an error "
                f"page; put the right file at {path}"
            )
        total = size if total is None else total
        where = f"continues at {_bytes(have)} of" if have else "downloading"
        _say(f"{path}: {where} {_bytes(total)} from {url}")
        try:
            _append(response, url, part, have, total)
        except OSError as error:
            raise UserError(_disk_problem(error, part, total)) from error
    if total is not None and _size(part) < total:
        raise _Broken(f"{urlsplit(url).netloc} hung up after {_size(part):,} of {_bytes(total)}")
    return have > 0


def _append(response, url, part, have, total):
    """Write the body of `response` to `part` behind its first `have` bytes. OSErrors are the disk's."""
    with (
        open(part, "ab" if have else "wb") as file,
        tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=part.stem, leave=False, disable=None) as bar,
    ):
        if not have:  # after the old bytes are gone, so that no note ever speaks of bytes it does not know
            _beside(part, ".json").write_text(json.dumps({"url": url, "version": _version(response.headers)}))
        while True:
            try:
                # read1 hands over what has come, so that little is lost when the connection breaks
                chunk = response.read1(CHUNK if total is None else min(CHUNK, total - have))
            except (OSError, http.client.HTTPException) as error:
                reason = f"{type(error).__name__} after {have:,} of {_bytes(total)}"
                raise _Broken(f"lost {urlsplit(url).netloc}: {reason}") from error
            if not chunk:
                break
            file.write(chunk)
            have += len(chunk)
            bar.update(len(chunk))
        file.flush()
        os.fsync(file.fileno())


def _version(headers):
    """The server's name for this version of the file, usable in If-Range (a weak ETag is not); or None."""
    etag = headers.get("ETag")
    return etag if etag and etag.startswith('"') else headers.get("Last-Modified")


def _ask_for_rest(url, part, verified):
    """(response, bytes of `part` it continues, bytes of the whole file or None).

    Old bytes are given up when the server has another version, or answers with another range than asked.
    Without a version to compare and a checksum at the end they are not continued in the first place.
    """
    have = _size(part)
    version = None
    try:
        note = json.loads(_beside(part, ".json").read_text())
        version = note["version"] if note["url"] == url else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        pass  # no usable note: the same as a server that names no versions
    if have and not (version or verified):
        _say(f"{part}: cannot tell whether the file at {url} is still the same; starts from the beginning")
        have = 0
    if have:
        response = _ask(url, have, version)
        # "bytes 100-199/200" with a 206, "bytes */200" with a 416
        extent, _, total = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        total = int(total) if total.isdigit() else None
        now = response.headers.get("ETag" if version and version.startswith('"') else "Last-Modified")
        same = None in (version, now) or now == version
        if response.status == 206 and same and extent.startswith(f"{have}-"):
            return response, have, total
        if response.status == 416 and same and total == have:
            return response, have, total
        if response.status not in (200, 206, 416):
            return response, have, None
        _say(f"{part}: the server does not continue it; starts from the beginning")
        if response.status == 200:
            return response, 0, _length(response)
        response.close()
    response = _ask(url, 0, None)
    return response, 0, _length(response)


def _length(response):
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None


def _ask(url, start, version):
    """The answer to a GET of everything from byte `start` on, whatever its status; _Broken if none came."""
    headers = {"Range": f"bytes={start}-"} if start else {}
    if start and version:
        headers["If-Range"] = version
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as answer:
        return answer
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)  # URLError wraps what went wrong while connecting
        passing = (TimeoutError, ConnectionResetError, ConnectionAbortedError, BrokenPipeError)
        lasting = not isinstance(reason, (*passing, ssl.SSLEOFError, http.client.HTTPException))
        raise _Broken(f"cannot reach {urlsplit(url).netloc}: {reason}", lasting) from error


# ---- the archive


def _safe_members(tar, archive):
    """Yield (member, its name) of the files and folders in `tar`; UserError at the first that is not safe."""
    top = None
    for member in tar:
        name = PurePosixPath(member.name)
        if name.is_absolute() or ".." in name.parts:
            problem = "leads out of its folder"
        elif not (member.isreg() or member.isdir()):
            problem = "is neither a file nor a folder"
        elif not name.parts:
            continue  # "./", the folder that was packed
        elif name.parts[0] != (top or name.parts[0]) or (member.isreg() and len(name.parts) == 1):
            problem = "is not in the one top-level folder"
        else:
            top = name.parts[0]
            yield member, name
            continue
        raise UserError(
            f"{archive}: member {member.name!r} {problem}. Nothing was extracted; get the archive from its "
            f"official address"
        )


def _check_end(stream, offset):
    """The end mark of a tar at `offset`, then gzip's own checksum, which it compares at the end of the data.

    tarfile takes a broken header in the middle for the end, so both have to be looked at.
    """
    stream.seek(offset)
    if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("no end mark")
    while stream.read(CHUNK):
        pass


def _extract(tar, members, target):
    """Write `members` to `target`.part and rename it. The caller holds the lock."""
    part = _beside(target, ".part")
    shutil.rmtree(part, ignore_errors=True)  # what a killed run left
    try:
        part.mkdir()
        for member, name in members:
            place = part.joinpath(*name.parts[1:])
            if member.isdir():
                place.mkdir(parents=True, exist_ok=True)
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            with tar.extractfile(member) as source, open(place, "wb") as file:
                shutil.copyfileobj(source, file)
                file.flush()
                os.fsync(file.fileno())
        os.rename(part, target)
        flush_to_disk(target.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)
