"""Files from official addresses: complete and verified on the disk, or not there at all.

`fetch` writes to `NAME.part` and renames it when its checksum is right. `NAME.part.version` keeps what the server
called this version of the file, so a stopped run continues. `NAME.lock` exists while a process works on NAME.
"""

import os
import sys
import time
from pathlib import Path

import requests
import urllib3
from requests.adapters import HTTPAdapter
from tqdm import tqdm
from urllib3.util import Retry

from common.atomic import file_digest, flush_to_disk, require_file
from common.errors import UserError
from common.lock import locked

TIMEOUT = 30  # seconds to connect, and the longest silence after which a connection counts as lost
PAUSE = 1.0  # seconds before the second retry of a request; each further pause is twice as long
TRIES = 5  # lost connections in a row, none of which brought a new byte, before a download is given up
_CHUNK = 1 << 18  # bytes read at a time
_LOST = (requests.RequestException, urllib3.exceptions.HTTPError)


def fetch(url, path, *, md5: str = "") -> Path:
    """Have the file behind `url` at `path`: download it, or use the one that is there.

    A file at `path` is used if its MD5 is right (hex; "" = not checked). Otherwise it is left alone and an error says
    so. A download that was stopped is continued; lost connections and 5xx answers are tried again.
    Returns `path`; raises UserError.
    """
    path = Path(path)
    try:
        if not _is_present(path, md5):
            path.parent.mkdir(parents=True, exist_ok=True)
            with locked(_beside(path, ".lock"), lambda holder: say(f"{path}: waiting for {holder}, which fetches it")):
                if not _is_present(path, md5):  # another process may have fetched it meanwhile
                    _download(url, path, md5)
    except OSError as error:
        text = f"cannot write {error.filename or _beside(path, '.part')}: {error.strerror or error}. Make room, or make"
        raise UserError(f"{text} the folder writable, and run the same command again: it continues there") from None
    return path


def wrong_md5(path: Path, md5: str) -> str:
    """What is wrong with the file at `path`, as words; "" when it has the given MD5 (hex; "" = any)."""
    found = file_digest(path, "md5") if md5 else ""
    return f"its md5 is {found}, expected {md5}" if found != md5 else ""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _is_present(path: Path, md5: str) -> bool:
    if not path.exists():
        return False
    require_file(path)
    if problem := wrong_md5(path, md5):
        text = f"{path}: {problem}"
        raise UserError(f"{text}. Delete it and run the same command again to download it, or put the right file there")
    return True


def _download(url: str, path: Path, md5: str) -> None:
    """Download, verify, rename. The caller holds the lock."""
    began, part = time.monotonic(), _beside(path, ".part")
    _receive_all(url, part)
    problem = wrong_md5(part, md5)
    _beside(part, ".version").unlink()
    if problem:
        part.unlink()
        text = f"{url} gave a wrong file: {problem}. It was removed and {path} not written; run the same command again"
        raise UserError(f"{text} to start from the beginning, or put the right file at {path}")
    os.replace(part, path)
    flush_to_disk(path.parent)
    checked = "md5 checked" if md5 else "nothing checked"
    say(f"{path}: complete, {_size(path):,} bytes in {time.monotonic() - began:.1f} s ({checked})")


def _receive_all(url: str, part: Path) -> None:
    """Have `part` whole, over as many lost connections as needed.

    urllib3 repeats a request that gets no answer. An answer that breaks off is taken up here.
    """
    retry = Retry(
        total=TRIES,
        connect=2,
        backoff_factor=PAUSE,
        raise_on_status=False,
        allowed_methods=["GET"],
        status_forcelist=(408, 429, 500, 502, 503, 504),
        respect_retry_after_header=False,
    )
    furthest, failures = _size(part), 0
    with requests.Session() as session:
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=retry))
        while True:
            try:
                return _receive(session, url, part)
            except _LOST as error:
                reason = _reason(error)
                unreachable = isinstance(error, requests.ConnectionError) and not _size(part)
            if _size(part) > furthest:  # not "> 0": a server that ignores Range would be asked for ever
                furthest, failures = _size(part), 0
            failures += 1
            kept = f"{_size(part):,} bytes are kept in {part}"
            if failures > TRIES or unreachable:
                text = f"cannot get {url}: {reason}. Check the network, or download it by hand to"
                raise UserError(f"{text} {part.with_suffix('')}, and run the same command again ({kept})")
            say(f"{part.stem}: {reason}; {kept}, next try in {PAUSE:g} s")
            time.sleep(PAUSE)


def _reason(error: Exception) -> str:
    """What lost a connection, in a few words: the innermost reason, without the objects that surround it."""
    while error.args and isinstance(getattr(error, "reason", error.args[0]), Exception):
        error = getattr(error, "reason", error.args[0])
    return str(error).rpartition(">: ")[2].splitlines()[0] or type(error).__name__


def _receive(session, url: str, part: Path) -> None:
    """One request for what `part` lacks, appended to it and synced.

    What is there is continued only where the server calls the file's version by the same name as then.
    """
    note = _beside(part, ".version")
    version = note.read_text() if note.exists() else ""
    have = _size(part) if version else 0
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": version}
    with session.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        extent = response.headers.get("Content-Range", "")  # "bytes 100-199/200"
        continues = extent.startswith(f"bytes {have}-") and _version(response) == version
        if have and (response.status_code == 416 or (response.status_code == 206 and not continues)):
            note.unlink()
            return _receive(session, url, part)  # from the beginning
        if response.status_code not in (200, 206):
            text = f"{url}: HTTP {response.status_code} {response.reason}. Try again later"
            raise UserError(f"{text}; if the file has moved, download it by hand to {part.with_suffix('')}")
        if response.status_code == 200:
            have = 0
        _append(response, url, part, have)


def _append(response, url: str, part: Path, have: int) -> None:
    """Write the body of `response` to `part` behind its first `have` bytes."""
    length = response.headers.get("Content-Length", "")
    total = have + int(length) if length.isdecimal() else None
    size = "an unknown number of" if total is None else f"{total:,}"
    say(f"{part.stem}: {f'continues at {have:,} of' if have else 'downloading'} {size} bytes from {url}")
    with (
        open(part, "ab" if have else "wb") as file,
        tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=part.stem, leave=False, disable=None) as bar,
    ):
        if not have:  # after the old bytes are gone, so that no note ever speaks of bytes it does not know
            _beside(part, ".version").write_text(_version(response))
        try:
            # read1 hands over what has come, so that little is lost when the connection breaks
            while chunk := response.raw.read1(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
        finally:
            file.flush()
            os.fsync(file.fileno())
    if total is not None and _size(part) < total:
        raise urllib3.exceptions.ProtocolError(f"the server hung up after {_size(part):,} of {total:,} bytes")


def _version(response) -> str:
    """The server's name for this version of the file that If-Range takes (a weak ETag it does not), or ""."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified", "")
