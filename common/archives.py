"""Zip archives from outside (weights): which of them are read at all."""

import os
import zipfile

from common.errors import UserError

SMALL = 1 << 26  # bytes, unpacked, that do no harm however much they grew
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # zipfile bounds the memory of these two alone


def check_members(archive: zipfile.ZipFile, name, most_growth: int) -> None:
    """Refuse a zip that costs much more than it weighs, before a member is read.

    `read_member` unpacks no more bytes than an entry says, so the entries can be relied on.

    Args:
        name: what an error calls the archive.
        most_growth: times its own bytes that all members together may have, from SMALL on.

    Raises UserError: it grows more than that, or a member is encrypted or compressed by another method than Deflate.
    """
    for member in archive.infolist():
        if member.flag_bits & 1 or member.compress_type not in _METHODS:
            text = f"{name}: member {member.filename[:80]!r} is encrypted or compressed by another method than Deflate"
            raise UserError(f"{text}; pack it anew")
    packed = archive.fp.seek(0, os.SEEK_END)
    unpacked = sum(member.file_size for member in archive.infolist())
    if unpacked > max(SMALL, most_growth * packed):
        text = f"{name}: {packed:,} bytes that become {unpacked:,}, more than {most_growth} times as many"
        raise UserError(f"{text}; it was not read, get the file again")


def read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """`archive.read`, which would unpack up to 2 GB before it cuts them to what the entry says."""
    with archive.open(name) as file:
        return file.read(archive.getinfo(name).file_size)
