"""Random damage and random content for every reader of files from outside.

Each outcome has to be a result or a UserError of one line, within 10 seconds of a processor and 200 MB of memory,
whatever the file holds, and none may wait for ever. The examples follow from SEED, so a failure comes again. The longer
run: `bash run_tests.sh -m slow tests/test_fuzz_readers.py -s`, which prints the counts of logs/reliability/fuzz.txt.
"""

import contextlib
import io
import multiprocessing
import os
import pickle
import resource
import signal
import tempfile
import traceback
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

import data
from common.errors import UserError
from common.safe_pickle import load_pickle
from data.splits import read_image
from models.weights import read_weights

SEED = 17
FEW, MANY = 50, 3000  # examples of each kind, in the ordinary and in the slow test
MEMORY = 200 << 20  # bytes that a reader may take beyond what the process has
SECONDS = 10  # of a processor; in all, on a machine that does other work too, a minute


# ---- files: a sound one with a few bytes changed, or one made up


def damaged(whole: bytes):
    """`whole` with up to four pieces replaced by others, and perhaps cut."""
    spots = st.tuples(st.integers(0, len(whole)), st.integers(0, 8), st.binary(max_size=8))

    def build(edits, end):
        result = whole
        for at, removed, put in edits:
            result = result[:at] + put + result[at + removed :]
        return result[:end]

    return st.builds(build, st.lists(spots, max_size=4), st.one_of(st.none(), st.integers(0, len(whole))))


def picture(kind: str, mode: str = "RGB", **options) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 4), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def png_with_text() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("a", "b" * 100, zip=True)
    info.add_itxt("c", "d")
    return picture("PNG", "RGBA", pnginfo=info, icc_profile=bytes(100))


PICTURES = st.one_of(
    *(damaged(picture(kind)) for kind in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "AVIF", "JPEG2000")),
    damaged(png_with_text()),
    damaged(picture("TIFF", compression="tiff_lzw")),
    damaged(picture("JPEG", "CMYK", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0")),
    st.binary(max_size=100),
)

NAMES = [
    b"ccollections\nOrderedDict\n",
    b"c__builtin__\ntuple\n",
    b"c_codecs\nencode\n",
    b"cnumpy\nndarray\n",
    b"cnumpy\ndtype\n",
    b"cnumpy.core.multiarray\n_reconstruct\n",
    b"cnumpy.core.multiarray\nscalar\n",
    b"cnumpy.core.numeric\n_frombuffer\n",
    b"cposix\nsystem\n",
]
OPCODES = [bytes([code]) for code in b"(.0123:NR\x81\x85\x86\x87\x88\x89)]}ablstue\x8f\x90\x91\x94QPSITLioXB"]
ARGUMENTS = [
    b"K\1",
    b"J\xff\xff\xff\x7f",
    b"X\2\0\0\0f4",
    b"U\3abc",
    b"h\0",
    b"h\1",
    b"q\0",
    b"q\1",
    b"r\xff\xff\xff\x7f",
]
ARGUMENTS += [b"\x8e\0\0\0\0\x10\0\0\0", b"\x95\0\0\0\0\x10\0\0\0", b"\x96\0\0\0\0\x10\0\0\0", b"\x8a\x05\0\0\0\0\x10"]
PICKLES = st.one_of(
    st.lists(st.sampled_from([*NAMES, *OPCODES, *ARGUMENTS]), max_size=60).map(
        lambda parts: b"\x80\x02" + b"".join(parts)
    ),
    *(damaged(pickle.dumps({"a": np.arange(5.0), b"b": [1, (2, "x")]}, protocol)) for protocol in range(6)),
    st.binary(max_size=100),
)

CELLS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["a/1.png", "b/1.png", "image", "label", "1", "1.0", "nan", "../x", '"', "\0"]),
)
ROWS = st.lists(st.lists(CELLS, max_size=4).map(",".join), max_size=8).map("\n".join)
ENCODINGS = st.sampled_from(["utf-8", "gbk", "latin-1", "utf-16", "utf-8-sig"])
TABLES = st.one_of(
    st.builds(lambda rows, encoding: f"image,label\n{rows}".encode(encoding, "replace"), ROWS, ENCODINGS),
    ROWS.map(lambda rows: rows.encode("utf-8", "surrogatepass")),
    damaged(b"image,label\na/1.png,1\nb/1.png,2\n"),
    st.binary(max_size=100),
)


def zipped(members, method=zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, compress_type=method)
    return buffer.getvalue()


ENTRIES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20) | st.sampled_from(
    ["a/../../b", "/a", "a\\b", "a/"]
)
METHODS = st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
ZIPS = st.one_of(
    st.builds(
        zipped, st.lists(st.tuples(ENTRIES, st.binary(max_size=50)), max_size=5, unique_by=lambda e: e[0]), METHODS
    ),
    damaged(zipped([("a/1.png", picture("PNG")), ("b/1.png", picture("PNG")), ("t.csv", "image,label\n")])),
    st.binary(max_size=100),
)


VALUES = st.recursive(
    st.none() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5) | st.booleans(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
BATCHES = st.fixed_dictionaries(
    {},
    optional={
        b"data": VALUES | st.sampled_from([np.zeros((2, 3072), np.uint8), np.zeros((0, 3072), np.uint8), np.zeros(2)]),
        b"labels": VALUES | st.lists(st.integers(-1, 11), max_size=3),
        b"label_names": VALUES | st.lists(st.binary(max_size=3), max_size=3),
    },
).map(pickle.dumps)


def safetensors(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + bytes(8)


HEADER = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"__metadata__":{"scale":"[]"}}'
ARRAYS = io.BytesIO()
np.savez(ARRAYS, a=np.arange(3.0), b=np.zeros((2, 2)))
TORCH = (  # {"a": four numbers as a view of the storage "0"}
    b"\x80\x02}X\1\0\0\0actorch._utils\n_rebuild_tensor_v2\n((X\7\0\0\0storagectorch\nFloatStorage\n"
    b"X\1\0\0\x000X\3\0\0\0cpuK\4tQK\0K\2K\2\x86K\2K\1\x86\x89NtRs."
)
WEIGHTS = st.one_of(
    damaged(safetensors(HEADER)).map(lambda content: ("a.safetensors", content)),
    damaged(HEADER).map(lambda header: ("a.safetensors", safetensors(header))),
    damaged(ARRAYS.getvalue()).map(lambda content: ("a.npz", content)),
    PICKLES.map(lambda content: ("a.pdparams", content)),
    ZIPS.map(lambda content: ("a.bin", content)),
    damaged(TORCH).map(lambda content: ("a.bin", zipped([("a/data.pkl", content), ("a/data/0", bytes(16))]))),
)


# ---- readers: (what is drawn, what reads it in an empty folder)


def written(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def read_table(content: bytes, folder: Path):
    for name in ("a", "b"):
        (folder / name).mkdir()
        written(folder / name, "1.png", picture("PNG"))
    written(folder, "df_all.csv", content)
    return data.dataset_sizes("images", str(folder))


def read_cifar(content: bytes, folder: Path):
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"):
        written(folder, name, content)
    return data.load_dataset("cifar10", str(folder))


READERS = {
    "pictures": (PICTURES, lambda content, folder: read_image(written(folder, "a.png", content))),
    "pickles": (PICKLES, lambda content, folder: load_pickle(io.BytesIO(content), "a.pkl", encoding="bytes")),
    "tables": (TABLES, read_table),
    "CIFAR batches": (BATCHES, read_cifar),
    "weights": (WEIGHTS, lambda drawn, folder: read_weights(written(folder, *drawn))),
}


@contextlib.contextmanager
def limited():
    """End the process after SECONDS, and give it no more than MEMORY on top of what it has."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    signal.alarm(60)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)


def fuzz(kind: str, examples: int, counts) -> None:
    """Run in a process of its own; ends it with 1 and a traceback at the first fault."""
    strategy, read = READERS[kind]
    found = Counter()

    @seed(SEED)
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def outcome(drawn):
        found["tried"] += 1
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()), limited():
            try:
                read(drawn, Path(folder))
                found["accepted"] += 1
            except UserError as error:
                assert "\n" not in str(error) and "\x1b" not in str(error) and len(str(error)) < 2000, str(error)
                found["refused"] += 1

    try:
        outcome()
        counts.put(found)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def run(kind: str, examples: int) -> Counter:
    context = multiprocessing.get_context("fork")
    counts = context.SimpleQueue()
    process = context.Process(target=fuzz, args=(kind, examples, counts), daemon=True)
    process.start()
    process.join()
    assert process.exitcode == 0, (
        f"{kind}: ended with {process.exitcode} (-27: took more than {SECONDS} s, -14: waits), see above"
    )
    found = counts.get()
    assert found["accepted"] + found["refused"] == found["tried"] > 0
    print(
        f"{kind}: {found['tried']:,} tried, {found['refused']:,} refused, {found['accepted']:,} accepted (seed {SEED})"
    )
    return found


@pytest.mark.parametrize("kind", READERS)
def test_every_file_is_read_or_refused_in_one_line(kind):
    assert run(kind, FEW)["refused"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", READERS)
def test_many_files_are_read_or_refused_in_one_line(kind):
    found = run(kind, MANY)
    assert found["refused"] > 0
