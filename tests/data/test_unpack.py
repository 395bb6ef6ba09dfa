"""Archives: whole or not at all, and never outside of their folder."""

import gzip
import io
import multiprocessing
import os
import random
import resource
import signal
import struct
import tarfile
import zipfile

import pytest

from common.archives import SMALL, check_members
from common.errors import UserError
from data.unpack import extract_tar, extract_zip

TOP = "cifar-100-python"
BODY, OTHER = (random.Random(seed).randbytes(300_000) for seed in (0, 1))
FILES = {f"{TOP}/meta": b"names", f"{TOP}/train": BODY, f"{TOP}/sub/test": OTHER}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(os, "sync", lambda: None)  # which waits for all that others write


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def member(name, kind=tarfile.REGTYPE, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def packed(files, *extra):
    """The bytes of a tar with `files` and then the `extra` members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            info = member(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for info in extra:
            tar.addfile(info)
    return buffer.getvalue()


def archive_of(folder, tar_bytes):
    path = folder / f"{TOP}.tar.gz"
    path.write_bytes(gzip.compress(tar_bytes, 1))
    return path


def content(folder):
    return {f"{TOP}/{p.relative_to(folder)}": p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("prefix", ["", "./"])
def test_a_tar_is_unpacked_once_to_its_place(tmp_path, prefix):
    first = packed({}, member(prefix, tarfile.DIRTYPE))[:512] if prefix else b""  # what `tar -C folder .` writes
    files = {prefix + name: data for name, data in FILES.items()}
    archive = archive_of(tmp_path, first + packed(files, member(f"{prefix}{TOP}/empty", tarfile.DIRTYPE)))
    target = tmp_path / "new" / "out" / TOP
    for _ in range(2):
        extract_tar(archive, target)
        assert content(target) == FILES and names(target.parent) == [TOP] and (target / "empty").is_dir()
        archive.write_bytes(b"no longer looked at")


@pytest.mark.parametrize(
    "evil",
    [
        member("../evil"),
        member(f"{TOP}/../../evil"),
        member(f"{TOP}/link", tarfile.SYMTYPE, "/etc"),
        member(f"{TOP}/up", tarfile.SYMTYPE, "../../../evil"),
        member(f"{TOP}/hard", tarfile.LNKTYPE, "../../evil"),
        member(f"{TOP}/device", tarfile.CHRTYPE),
        member(f"{TOP}/fifo", tarfile.FIFOTYPE),
    ],
    ids=lambda info: info.name,
)
def test_a_member_that_does_not_belong_there_stops_everything(tmp_path, evil):
    archive = archive_of(tmp_path, packed(FILES, evil))
    with pytest.raises(UserError, match=f"{TOP}.tar.gz: cannot be unpacked .*{evil.name}"):
        extract_tar(archive, tmp_path / "out" / TOP)
    assert names(tmp_path / "out") == []


def test_what_is_beside_the_folder_stays_away(tmp_path):
    archive = archive_of(tmp_path, packed(FILES, member("elsewhere/file"), member("/absolute")))
    extract_tar(archive, tmp_path / "out" / TOP)
    assert names(tmp_path / "out") == [TOP] and content(tmp_path / "out" / TOP) == FILES


WHOLE = gzip.compress(packed(FILES), 1)


@pytest.mark.parametrize(
    "damaged",
    [
        *(WHOLE[: int(keep * len(WHOLE))] for keep in (0, 0.00001, 0.3, 0.999)),
        bytes([WHOLE[0] ^ 255]) + WHOLE[1:],
        b"<html>log in</html>",
        gzip.compress(b"no tar"),
        gzip.compress(packed({})),
    ],
    ids=range(8),
)
def test_a_damaged_tar_is_named(tmp_path, damaged):
    archive = tmp_path / "damaged.tar.gz"
    archive.write_bytes(damaged)
    with pytest.raises(UserError, match=r"damaged\.tar\.gz: cannot be unpacked .*get it again") as error:
        extract_tar(archive, tmp_path / "out" / TOP)
    assert "\n" not in str(error.value) and names(tmp_path / "out") == []


def test_a_missing_tar_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.tar\.gz: cannot be unpacked .*No such file"):
        extract_tar(tmp_path / "none.tar.gz", tmp_path / TOP)


def in_child(archive, target, before=lambda: None):
    """A forked process that unpacks: importing the package anew takes seconds."""

    def body():
        before()
        extract_tar(archive, target)

    process = multiprocessing.get_context("fork").Process(target=body, daemon=True)
    process.start()
    return process


def ended(process):
    process.join(60)
    return process.exitcode


def test_a_killed_extraction_leaves_nothing_at_the_final_place_and_is_repeated(tmp_path):
    files = {f"{TOP}/{i}": BODY[:10_000] for i in range(100)}
    archive, target = archive_of(tmp_path, packed(files)), tmp_path / "out" / TOP

    def die_before_the_rename():
        os.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)

    assert ended(in_child(archive, target, die_before_the_rename)) == -signal.SIGKILL
    assert not target.exists() and (tmp_path / "out" / f"{TOP}.part").exists()
    children = [in_child(archive, target) for _ in range(3)]
    assert [ended(child) for child in children] == [0, 0, 0]
    assert content(target) == files and names(target.parent) == [TOP]


def test_an_extraction_without_room_leaves_nothing(tmp_path):
    archive, target = archive_of(tmp_path, packed(FILES)), tmp_path / "out" / TOP
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UserError, match=r"cannot be unpacked .*File too large"):
            extract_tar(archive, target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path / "out") == []


# ---- zips


def zip_of(members, path, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as file:
        for name, text in members:
            file.writestr(name, text)
    return path


def link(name, target):
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, 0o120777 << 16
    return info, target


def test_a_zip_is_unpacked_once_to_a_folder_called_after_its_content(tmp_path):
    archive = zip_of([("a/b.txt", "x"), ("c\\d.txt", "y")], tmp_path / "set.zip")
    folder = extract_zip(archive, tmp_path / "out")
    assert (folder / "a" / "b.txt").read_text() == "x" and (folder / "c" / "d.txt").read_text() == "y"
    (folder / "mine").touch()
    assert extract_zip(archive, tmp_path / "out") == folder and (folder / "mine").exists()
    assert names(tmp_path / "out") == [folder.name] and folder.name.startswith("set-")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("ok/a.txt", "x"), ("../evil.txt", "x")], r"member '\.\./evil\.txt' leads out of its folder"),
        ([("a/../../evil.txt", "x")], "leads out of its folder"),
        ([("/evil.txt", "x")], "leads out of its folder"),
        ([("..\\evil.txt", "x")], "leads out of its folder"),
        ([link("img", "/etc"), ("img/passwd", "x")], r"cannot be unpacked .*img"),
        ([("a.txt", "x"), ("a\\..\\a.txt", "x")], "leads out of its folder"),
        ([("b/c.txt", "x"), ("b\\c.txt", "x")], "holds two members of the same name"),
        ([("a.txt", "x"), ("b", "x"), ("b/c.txt", "x")], r"a\.zip: cannot be unpacked .*half-unpacked is left"),
        ([("zeros.bmp", bytes(SMALL + 1))], "more than 100 times as many, are not what they say"),
        ([(f"{i}.bmp", bytes(SMALL // 4)) for i in range(5)], "more than 100 times as many"),
    ],
)
def test_zips_that_would_do_harm(members, message, tmp_path):
    archive = zip_of(members, tmp_path / "a.zip")
    with pytest.raises(UserError, match=message):
        extract_zip(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists() or names(tmp_path / "out") == []


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_only_stored_and_deflated_members_are_read(tmp_path, method):
    archive = zip_of([("a.txt", "x")], tmp_path / "a.zip", method)
    with pytest.raises(UserError, match=rf"member 'a\.txt' is compressed by method {method}; only Deflate and none"):
        extract_zip(archive, tmp_path / "out")
    with zipfile.ZipFile(archive) as file, pytest.raises(UserError, match="weights: member"):
        check_members(file, "weights", 20)


def test_an_encrypted_member_is_named(tmp_path):
    raw = bytearray(zip_of([("a.txt", "x")], tmp_path / "b.zip").read_bytes())
    raw[raw.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "b.zip").write_bytes(raw)
    with pytest.raises(UserError, match=r"member 'a\.txt' is encrypted"):
        extract_zip(tmp_path / "b.zip", tmp_path / "out")


def test_zips_that_are_damaged_or_lie(tmp_path):
    archive = zip_of([("a/x.png", BODY), ("a/y.png", bytes(5000))], tmp_path / "a.zip")
    whole = archive.read_bytes()
    size = struct.pack("<I", 5000)
    for damaged in (b"no zip", whole[:-40], whole[:500] + bytes(10) + whole[510:], whole.replace(size, b"\x32\0\0\0")):
        archive.write_bytes(damaged)
        with pytest.raises(UserError, match=r"a\.zip: cannot be unpacked .*get it again"):
            extract_zip(archive, tmp_path / "out")
        assert not (tmp_path / "out").exists() or names(tmp_path / "out") == []


def test_pipes_and_folders_are_no_zips(tmp_path):
    os.mkfifo(tmp_path / "a.zip")
    with pytest.raises(UserError, match=r"a\.zip: not a regular file but a pipe"):
        extract_zip(tmp_path / "a.zip", tmp_path / "out")
