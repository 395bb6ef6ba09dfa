"""Files from official addresses: complete and verified on the disk, or not there at all.

`fetch` writes to `NAME.part` (with `NAME.part.json`, which says what the server called this version of the file) and
renames it when its checksum is right, so a run that is stopped anywhere continues where it was. `NAME.lock` exists
while a process is at work on NAME.
"""

import errno
import hashlib
import json
import os
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from tqdm import tqdm
from urllib3.util import Retry

from common.atomic import flush_to_disk, require_file
from common.errors import UserError
from common.lock import locked

TIMEOUT = 30  # seconds to connect, and the longest silence after which a connection counts as lost
PAUSE = 1.0  # seconds before the second retry of a request; each further pause is twice as long
TRIES = 5  # lost connections in a row, none of which brought a new byte, before a download is given up
_CHUNK = 1 << 18  # bytes read at a time
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LOST = (requests.RequestException, urllib3.exceptions.HTTPError)


def fetch(url, path, *, md5: str = "", sha256: str = "") -> Path:
    """Have the file behind `url` at `path`: download it, or use the one that is there.

    A file at `path` is used if it has the given checksums (hex; "" = not checked). Otherwise it is left alone and an
    error says so. A download that was stopped is continued; lost connections and 5xx answers are tried again.
    Returns `path`; raises UserError.
    """
    path, sums = Path(path), {"md5": md5.lower(), "sha256": sha256.lower()}
    if urlsplit(url).scheme not in ("http", "https"):
        raise UserError(f"{url} is not an http(s) address, so {path.name} cannot be downloaded; correct it")
    part = _beside(path, ".part")
    try:
        if not _is_present(path, sums):
            path.parent.mkdir(parents=True, exist_ok=True)
            with locked(_beside(path, ".lock"), lambda holder: say(f"{path}: waiting for {holder}, which fetches it")):
                if not _is_present(path, sums):  # another process may have fetched it meanwhile
                    _download(url, path, part, sums)
    except OSError as error:
        reason = error.strerror or error
        if error.errno in _NO_ROOM:
            raise UserError(
                f"cannot write {part}: {reason}. {_size(part):,} bytes of {url} are kept there. Make room and run the "
                "same command again: it continues there"
            ) from None
        raise UserError(
            f"cannot use {error.filename or part}: {reason}. Make it readable and writable or choose another folder"
        ) from None
    return path


def check_sums(path: Path, *, md5: str = "", sha256: str = "") -> str:
    """What is wrong with the file at `path`, as words; "" when it has the given checksums (hex; "" = any)."""
    for name, expected in (("md5", md5), ("sha256", sha256)):
        if expected:
            digest = hashlib.new(name, usedforsecurity=False)  # md5 is refused by FIPS systems otherwise
            with open(path, "rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
            if digest.hexdigest() != expected:
                return f"its {name} is {digest.hexdigest()}, expected {expected}"
    return ""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _is_present(path: Path, sums: dict) -> bool:
    if not path.exists():
        return False
    require_file(path)
    if problem := check_sums(path, **sums):
        raise UserError(
            f"{path}: {problem}. Delete it and run the same command again to download it, or put the right file there"
        )
    return True


def _download(url: str, path: Path, part: Path, sums: dict) -> None:
    """Download, verify, rename. The caller holds the lock."""
    began = time.monotonic()
    started_over = False
    while True:
        continued = _receive_all(url, path, part, verified=any(sums.values()))
        problem = check_sums(part, **sums)
        if not problem:
            break
        _discard(part)
        if started_over or not continued:
            raise UserError(
                f"{url} gave a wrong file: {problem}. It was removed and {path} not written; run the same command "
                f"again to start from the beginning, or put the right file at {path}"
            )
        # The pieces may stem from two versions of the file: one whole download tells.
        say(f"{path.name}: {problem}; it was downloaded in pieces, so it is downloaded once more in one")
        started_over = True
    os.replace(part, path)
    flush_to_disk(path.parent)
    _discard(part)
    checked = " and ".join(name for name, value in sums.items() if value) or "nothing"
    say(f"{path}: complete, {_size(path):,} bytes in {time.monotonic() - began:.1f} s ({checked} checked)")


def _discard(part: Path) -> None:
    """Remove a partial download and the note beside it."""
    part.unlink(missing_ok=True)
    _beside(part, ".json").unlink(missing_ok=True)


def _receive_all(url: str, path: Path, part: Path, verified: bool) -> bool:
    """Have `part` whole, over as many lost connections as needed; returns whether it was made in pieces.

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
    at_start = furthest = _size(part)
    failures = 0
    with requests.Session() as session:
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=retry))
        while True:
            try:
                return _receive(session, url, part, verified) or failures > 0
            except _LOST as error:
                if _size(part) > furthest:  # not "> 0": a server that ignores Range would be asked for ever
                    furthest, failures = _size(part), 0
                reason = _reason(error)
            failures += 1
            if failures > TRIES or furthest == at_start == 0:
                kept = f" ({_size(part):,} bytes are kept in {part})" if _size(part) else ""
                raise UserError(
                    f"cannot get {url}: {reason}. Check the network, or download it by hand to {path}, and "
                    f"run the same command again{kept}"
                )
            say(f"{path.name}: {reason}; {_size(part):,} bytes are there, next try in {PAUSE:g} s")
            time.sleep(PAUSE)


def _reason(error: Exception) -> str:
    """What lost a connection, in a few words: the innermost reason, without the objects that surround it."""
    while error.args and isinstance(getattr(error, "reason", error.args[0]), Exception):
        error = getattr(error, "reason", error.args[0])
    return str(error).rpartition(">: ")[2].splitlines()[0] or type(error).__name__


def _receive(session, url: str, part: Path, verified: bool) -> bool:
    """One request for what `part` lacks, appended to it and synced; returns whether earlier bytes were kept.

    Old bytes are given up when the server has another version, or answers with another range than asked. Without a
    version to compare and a checksum at the end they are not continued in the first place.
    """
    have, version = _size(part), _version_of_part(url, part)
    if have and not (version or verified):
        say(f"{part}: cannot tell whether the file at {url} is still the same; starts from the beginning")
        have = 0
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if version:
            headers["If-Range"] = version
    with session.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        # "bytes 100-199/200" with a 206, "bytes */200" with a 416
        extent, _, total = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        from_here = extent.startswith(f"{have}-")
        same = version is None or _version(response) in (None, version)
        if response.status_code == 416 and same and total == str(have):
            return True
        if response.status_code == 416 or (response.status_code == 206 and not (same and from_here)):
            say(f"{part}: the server does not continue it; starts from the beginning")
            _discard(part)
            return _receive(session, url, part, verified)
        if response.status_code not in (200, 206):
            raise UserError(
                f"{url}: HTTP {response.status_code} {response.reason}. Try again later; if the file has "
                f"moved, download it by hand to {part.with_suffix('')}"
            )
        if response.status_code == 200:
            have, total = 0, response.headers.get("Content-Length", "")
        _append(response, url, part, have, int(total) if total.isdigit() else None)
    return have > 0


def _append(response, url: str, part: Path, have: int, total: int | None) -> None:
    """Write the body of `response` to `part` behind its first `have` bytes."""
    of = "an unknown number of" if total is None else f"{total:,}"
    say(f"{part.stem}: {f'continues at {have:,} of' if have else 'downloading'} {of} bytes from {url}")
    with (
        open(part, "ab" if have else "wb") as file,
        tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=part.stem, leave=False, disable=None) as bar,
    ):
        if not have:  # after the old bytes are gone, so that no note ever speaks of bytes it does not know
            _beside(part, ".json").write_text(json.dumps({"url": url, "version": _version(response)}))
        try:
            # read1 hands over what has come, so that little is lost when the connection breaks
            while chunk := response.raw.read1(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
        finally:
            file.flush()
            os.fsync(file.fileno())
    if total is not None and _size(part) < total:
        raise requests.ConnectionError(f"the server hung up after {_size(part):,} of {total:,} bytes")


def _version(response) -> str | None:
    """The server's name for this version of the file, usable in If-Range (a weak ETag is not); or None."""
    etag = response.headers.get("ETag")
    return etag if etag and etag.startswith('"') else response.headers.get("Last-Modified")


def _version_of_part(url: str, part: Path) -> str | None:
    try:
        note = json.loads(_beside(part, ".json").read_text())
        return note["version"] if note["url"] == url else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None  # no usable note: the same as a server that names no versions
