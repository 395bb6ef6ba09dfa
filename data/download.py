"""Files from official addresses: complete and verified on the disk, or not there at all.

`fetch` writes to `NAME.part` and renames it when its checksum is right. `NAME.version` keeps what the server
called this version of the file, so a stopped run continues. `NAME.lock` exists while a process works on NAME.
"""

import os
import sys
import time
from pathlib import Path

import requests
import urllib3
from tqdm import tqdm

from common.errors import UserError
from common.system import file_digest, flush_to_disk, locked, require_file

TIMEOUT = 30  # seconds to connect, and the longest silence after which a connection counts as lost
PAUSE = 1.0  # seconds before a request is repeated for the first time; each further pause is twice as long
TRIES = 5  # repeated requests in a row, none of which brought a new byte, before a download is given up
_CHUNK = 1 << 18  # bytes read at a time
_LOST = (requests.RequestException, urllib3.exceptions.HTTPError)


def fetch(url, path, *, md5: str = "") -> Path:
    """Have the file behind `url` at `path`: download it, or use the one that is there. Returns `path`.

    A file at `path` is used if its MD5 is right (hex; "" = not checked). Otherwise it is left alone and a UserError
    says so. A download that was stopped is continued; lost connections and 5xx answers are tried again.
    """
    path = Path(path)
    try:
        if not _is_present(path, md5):
            path.parent.mkdir(parents=True, exist_ok=True)
            with locked(f"{path}.lock", lambda holder: _say(f"{path}: waiting for {holder}, which fetches it")):
                if not _is_present(path, md5):  # another process may have fetched it meanwhile
                    _download(url, path, md5)
    except OSError as error:
        text = f"cannot write {error.filename or f'{path}.part'}: {error.strerror or error}. Make room, or make"
        raise UserError(f"{text} the folder writable, and run the same command again: it continues there") from None
    return path


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _is_present(path: Path, md5: str) -> bool:
    if path.exists():
        _check(path, md5, "delete it and run the same command again to download it, or put the right file there")
    return path.exists()


def _check(path: Path, md5: str, advice: str) -> None:
    """Raise UserError, with `advice`, unless `path` is a file of this MD5 (hex; "" = any)."""
    require_file(path)
    found = file_digest(path, "md5") if md5 else ""
    if found != md5:
        raise UserError(f"{path}: its md5 is {found}, expected {md5}; {advice}")


def _download(url: str, path: Path, md5: str) -> None:
    part = path.with_name(f"{path.name}.part")
    _receive_all(url, part)
    part.with_suffix(".version").unlink()  # so the next try starts from the beginning if this file is wrong
    _check(part, md5, f"{url} gave a wrong file; run the same command again, or put the right file at {path}")
    flush_to_disk(part)
    os.replace(part, path)
    flush_to_disk(path.parent)
    _say(f"{path}: complete, {_size(path):,} bytes ({'md5 checked' if md5 else 'nothing checked'})")


def _receive_all(url: str, part: Path) -> None:
    """Have `part` whole, over as many requests as needed."""
    furthest, failures = _size(part), 0
    while True:
        try:
            return _receive(url, part)
        except _LOST as error:
            reason = _reason(error)
            no_connection = any(isinstance(each, urllib3.exceptions.MaxRetryError) for each in error.args)
            unreachable = no_connection and not _size(part)
        if _size(part) > furthest:  # not "> 0": a server that ignores Range would be asked for ever
            furthest, failures = _size(part), 0
        if failures == TRIES or unreachable:
            text = f"cannot get {url}: {reason}. Run the same command again when the network is back ({_size(part):,}"
            raise UserError(f"{text} bytes are kept in {part}), or download it by hand to {part.with_suffix('')}")
        pause = PAUSE * 2**failures
        _say(f"{part.stem}: {reason}; next try in {pause:g} s")
        time.sleep(pause)
        failures += 1


def _receive(url: str, part: Path) -> None:
    """Request what `part` lacks, or the whole file when the server has another version of it by now."""
    note = part.with_suffix(".version")
    version = note.read_text() if note.exists() else ""
    have = _size(part) if version else 0
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": version}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        status, extent = response.status_code, response.headers.get("Content-Range", "")  # "bytes 100-199/200"
        continues = extent.startswith(f"bytes {have}-") and _version(response) == version
        if have and status in (206, 416) and not continues:
            note.unlink()
            return _receive(url, part)  # from the beginning
        if status in (408, 429) or status >= 500:  # these pass
            raise requests.HTTPError(f"HTTP {status} {response.reason}")
        if status not in (200, 206):
            text = f"{url}: HTTP {status} {response.reason}. Try again later"
            raise UserError(f"{text}; if the file has moved, download it by hand to {part.with_suffix('')}")
        _append(response, url, part, have if status == 206 else 0)


def _append(response, url: str, part: Path, have: int) -> None:
    """Write the body of `response` to `part` behind its first `have` bytes."""
    left = response.raw.length_remaining  # None where the server does not say; urllib3 raises when fewer come
    total = None if left is None else have + left
    _say(f"{part.stem}: downloading from byte {have:,} of {'?' if total is None else f'{total:,}'}, {url}")
    with open(part, "ab" if have else "wb") as file:
        if not have:  # after the old bytes are gone, so that no note ever speaks of bytes it does not know
            part.with_suffix(".version").write_text(_version(response))
        with tqdm.wrapattr(file, "write", total, initial=have, desc=part.stem, leave=False, disable=None) as shown:
            # read1 hands over what has come, so that little is lost when the connection breaks
            while chunk := response.raw.read1(_CHUNK):
                shown.write(chunk)


def _version(response) -> str:
    """The server's name for this version of the file that If-Range takes (a weak ETag it does not), or ""."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified", "")


def _reason(error: Exception) -> str:
    """What lost a connection, in a few words: the innermost reason, without the objects that surround it."""
    while error.args and isinstance(getattr(error, "reason", error.args[0]), Exception):
        error = getattr(error, "reason", error.args[0])
    return str(error).rpartition(">: ")[2].splitlines()[0] or type(error).__name__


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
