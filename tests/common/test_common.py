import io
import multiprocessing
import os
import pickle
import signal
import struct
import subprocess
import sys
import time
import tracemalloc
from collections import OrderedDict

import numpy as np
import pytest

from common import safe_pickle
from common.errors import UserError, near
from common.safe_pickle import load_pickle
from common.system import atomic_write, locked


class Evil:
    def __init__(self, call, *arguments):
        self.reduced = (call, arguments)

    def __reduce__(self):
        return self.reduced


def load(content: bytes):
    return load_pickle(io.BytesIO(content), "some.file")


@pytest.mark.parametrize("protocol", range(2, 5))
def test_arrays_and_containers_pass(protocol):
    value = OrderedDict(a=np.arange(6, dtype=np.float32).reshape(2, 3), b=[1, "x", (2.5, None)], c=np.int64(7))
    found = load(pickle.dumps(value, protocol))
    assert list(found) == ["a", "b", "c"] and found["b"] == value["b"] and found["c"] == 7
    np.testing.assert_array_equal(found["a"], value["a"])


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_arrays_of_numpy_1_and_2_pass(module):
    content = pickle.dumps(np.arange(3), 2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    content = content.replace(b"numpy.core.multiarray", module.encode())
    np.testing.assert_array_equal(load(content), np.arange(3))


@pytest.mark.parametrize(
    ("call", "named"), [(os.system, "posix.system"), (eval, "builtins.eval"), (np.load, "numpy.load")]
)
def test_code_is_refused_by_name_and_does_not_run(call, named, tmp_path):
    witness = tmp_path / "ran"
    argument = f"touch {witness}" if call is os.system else f"open({str(witness)!r}, 'w')"
    content = pickle.dumps({"weights": [Evil(call, argument)]}, 2)
    with pytest.raises(UserError, match=named.replace("builtins", r"(builtins|__builtin__)")):
        load(content)
    assert not witness.exists()


def test_object_arrays_cannot_hide_code(tmp_path):
    array = np.empty(1, object)
    array[0] = Evil(os.system, f"touch {tmp_path / 'ran'}")
    for content in (pickle.dumps(array), pickle.dumps([array[0], array])):
        with pytest.raises(UserError, match=r"refused, it .*(system|'O8')"):
            load(content)
    assert not (tmp_path / "ran").exists()


def test_big_endian_arrays_and_those_of_no_numbers_and_of_columns_pass():
    for array in (np.arange(3, dtype=">f8"), np.empty((0, 4), "f2"), np.asfortranarray(np.arange(6).reshape(2, 3))):
        found = load(pickle.dumps(array))
        np.testing.assert_array_equal(found, array)
        assert found.dtype == array.dtype.newbyteorder("=") and found.shape == array.shape


def reduced(name: bytes, arguments: bytes, state: bytes = b"") -> bytes:
    """A pickle that calls `name` with a tuple of arguments, and then sets a state."""
    return b"\x80\x02c" + name + b"\n(" + arguments + b"tR" + (state + b"b" if state else b"") + b"."


ARRAY = (
    b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\0\x85U\x01btR"
    b"(K\1K\2\x85cnumpy\ndtype\n(X\x02\0\0\0u1\x89\x89tR\x89U\2abtb"
)  # two bytes
HUGE = b"\x8a\x05\0\0\0\0\x10"  # the number 2**36
DTYPE = b"cnumpy\ndtype\n(X\x02\0\0\0f4\x89\x89tR"
EMPTY = b"cnumpy\nndarray\nK\0\x85U\x01b"


@pytest.mark.parametrize(
    "content",
    [
        reduced(b"numpy\nndarray", b"(" + HUGE + b"t" + DTYPE),  # arrays of a shape, without their numbers
        reduced(b"numpy.core.multiarray\nscalar", DTYPE),
        reduced(b"numpy.core.multiarray\nscalar", b"cnumpy\ndtype\n(X\x08\0\0\0V9999999\x89\x89tR"),
        reduced(b"numpy.core.multiarray\n_reconstruct", EMPTY, b"(K\1" + HUGE + b"\x85" + DTYPE + b"\x89U\0t"),
        b"\x80\x02U\1ar\xff\xff\xff\x7f.",  # something remembered at place 2**31
        b"\x80\x04\x8e\0\0\0\0\x10\0\0\0x.",  # bytes of a length of 64 GB
        b"\x80\x04\x95\0\0\0\0\x10\0\0\0x.",  # a frame of that length
    ],
)
def test_claims_of_size_take_no_memory(content):
    tracemalloc.start()
    try:
        try:
            assert load(content) == "a"
        except UserError as error:
            assert "not a readable pickle" in str(error) or "refused" in str(error)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02c_codecs\nencode\nN}X\x0c\0\0\0__defaults__)s\x86b.",  # changes a function of ours
        b"\x80\x02ccollections\nOrderedDict\nN}X\x04\0\0\0keysNs\x86b.",
        b"\x80\x02cnumpy\ndtype\nN}X\x05\0\0\0numpyNs\x86b.",
        reduced(b"_codecs\nencode", b"X\1\0\0\0aX\3\0\0\0zip"),
    ],
)
def test_nothing_but_arrays_has_a_state_or_another_encoding(content):
    with pytest.raises(UserError, match=r"refused, it (sets the state of|asks for the encoding of)"):
        load(content)


def test_persistent_ids_and_further_names_need_the_callers_word():
    content = b"\x80\x02X\1\0\0\0acmod\nname\n\x86Q."
    with pytest.raises(UserError, match=r"refused, it asks for mod\.name"):
        load(content)
    with pytest.raises(UserError, match="persistent"):
        load(b"\x80\x02K\1Q.")
    found = load_pickle(io.BytesIO(content), "x", allowed={("mod", "name"): 7}, persistent_load=lambda pid: [pid])
    assert found == [("a", 7)]


@pytest.mark.parametrize("content", [b"", b"text\n", pickle.dumps({"a": np.arange(1000)})[:-50]])
def test_damaged_pickles_name_the_file(content):
    with pytest.raises(UserError, match=r"some\.file: not a readable pickle"):
        load(content)


SHORT_CALLS = {  # one text or list, remembered at place 0, is copied by each further call
    "texts": (
        b"X" + struct.pack("<I", 10**6) + b"x" * 10**6 + b"q\0X\6\0\0\0latin1q\1]",
        b"c_codecs\nencode\nh\0h\1\x86Ra",
    ),
    "tuples": (b"](" + b"K\1" * 10**5 + b"eq\0]", b"c__builtin__\ntuple\nh\0\x85Ra"),
    "dicts": (
        b"](" + b"".join(b"J%sK\1\x86" % struct.pack("<i", i) for i in range(10**5)) + b"eq\0]",
        b"ccollections\nOrderedDict\nh\0\x85Ra",
    ),
    "lists": (b"]", b"]a" * 5),
    "dictionaries": (b"]", b"}a" * 5),
}


@pytest.mark.parametrize("case", SHORT_CALLS)
def test_copies_of_one_object_are_counted(case, monkeypatch):
    """Without the count these take gigabytes: 1.5 MB of such calls took 5.5 GB."""
    monkeypatch.setattr(safe_pickle, "SMALL", 1 << 20)
    start, call = SHORT_CALLS[case]
    content = b"\x80\x02" + start + call * 3000 + b"."
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="refused, it builds more than 10 times its own size"):
            load(content)
        assert tracemalloc.get_traced_memory()[1] < 20 * len(content) + 2e7
    finally:
        tracemalloc.stop()


NESTED = b")q\0" + b"h\0h\0\x86q\0" * 60 + b"h\0"  # each a pair of the one before: 2**60 parts to walk over


@pytest.mark.parametrize(
    "content",
    [
        b"}" + NESTED + b"K\1s",  # as the key of a dictionary, in every way to make one
        b"}(" + NESTED + b"K\1u",
        b"(" + NESTED + b"K\1d",
        b"ccollections\nOrderedDict\n](" + NESTED + b"K\1\x86e\x85R",
        b"\x8f(" + NESTED + b"\x90",  # in a set
        b"(" + NESTED + b"\x91",
        b"c" + b"numpy.core.multiarray\n_reconstruct\n(" + EMPTY + b"tR(K\1" + NESTED + DTYPE + b"\x89U\0tb",  # a shape
        b"cnumpy\ndtype\n" + NESTED + b"\x89\x89\x87R",  # a type
        b"c_codecs\nencode\nX\1\0\0\0a" + NESTED + b"\x86R",  # an encoding
        NESTED + b"Q",  # a persistent id
        b"\x80\x04" + NESTED + NESTED + b"\x93",  # a name
        b"N" + NESTED + b"b",  # a state
    ],
    ids=range(12),
)
def test_what_takes_for_ever_to_hash_or_print_is_neither_hashed_nor_printed(content):
    began = time.monotonic()
    with pytest.raises(UserError, match=r"some\.file: (refused|not a readable pickle)") as error:
        load(b"\x80\x02" + content + b".")
    assert time.monotonic() - began < 5 and len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (ARRAY + b"K\0K\1s.", "it adds items to a ndarray"),
        (ARRAY + b"(K\0K\1u.", "it adds items to a ndarray"),
        (b"]K\0K\1s.", "it adds items to a list"),
        (b"}K\1a.", "it adds items to a dict"),
        (b"X\1\0\0\0a(K\1e.", "it adds items to a str"),
        (b"c__builtin__\ntuple\n" + ARRAY + b"\x85R.", "it makes a tuple of what is no list"),
    ],
)
def test_items_are_added_only_where_they_belong(content, message):
    with pytest.raises(UserError, match=f"refused, {message}"):
        load(b"\x80\x02" + content)


@pytest.mark.parametrize(
    "opcode", [b"(i__builtin__\ntuple\n", b"(c__builtin__\ntuple\no", b"c__builtin__\ntuple\n)\x81", b"\x82\1"]
)
def test_other_ways_to_make_an_object_are_refused(opcode):
    with pytest.raises(UserError, match="not a readable pickle"):
        load(b"\x80\x02" + opcode + b".")


def test_a_large_honest_pickle_is_within_the_bounds(monkeypatch):
    monkeypatch.setattr(safe_pickle, "SMALL", 1 << 10)
    value = {"names": [f"name {i}" for i in range(10_000)], "numbers": np.arange(10**5), "labels": list(range(10**4))}
    for protocol in range(2, 5):
        found = load(pickle.dumps(value, protocol))
        assert found["names"] == value["names"] and found["labels"] == value["labels"]
        np.testing.assert_array_equal(found["numbers"], value["numbers"])


def test_atomic_write_replaces_only_at_the_end(tmp_path):
    path = tmp_path / "new" / "file"
    with atomic_write(path) as file:
        file.write(b"one")
        file.flush()
        assert not path.exists()
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write(b"tw")
        raise RuntimeError
    assert path.read_bytes() == b"one"
    assert os.listdir(path.parent) == ["file"]


def test_an_error_is_one_printable_line_whatever_it_quotes():
    for text in ("a\nb", "\x1b[31mred", "\u202egnp.exe", "\udc80", "\x9b2J"):
        error = UserError(f"{text}: no such file")
        again = pickle.loads(pickle.dumps(error))  # as it comes from the processes that decode pictures
        assert str(error) == str(again) and str(error).isprintable() and str(error).endswith(": no such file")
    assert str(UserError("Grün/发芽期.png")) == "Grün/发芽期.png"


def test_a_process_whose_parent_ended_before_it_said_so_ends_too():
    program = """
import os, signal, subprocess
from common.system import end_with_parent

parent = os.getpid()

def after_its_end():
    os.kill(parent, signal.SIGKILL)
    while os.getppid() == parent:
        pass
    end_with_parent(parent)

subprocess.Popen(["echo", "outlived"], preexec_fn=after_its_end)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, b""), done.stderr


def test_near_names_what_is_close_or_all():
    assert near("dgits", ["digits", "cifar10"]) == "did you mean digits?"
    assert near("zzz", ["digits", "cifar10"]) == "known: cifar10, digits"


def test_what_is_no_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/null")
    (tmp_path / "folder").mkdir()
    for name, problem in (("pipe", "a pipe"), ("null", "a device"), ("folder", "a folder, not a file")):
        before = os.lstat(tmp_path / name)
        with pytest.raises(UserError, match=problem), atomic_write(tmp_path / name) as file:
            file.write(b"x")
        assert os.lstat(tmp_path / name) == before
    assert sorted(os.listdir(tmp_path)) == ["folder", "null", "pipe"]


def test_a_lock_names_its_holder_and_ends_with_it(tmp_path):
    path = tmp_path / "a.lock"
    hold = f"from common.system import locked\nwith locked({str(path)!r}, print):\n print(flush=True)\n input()"
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        told = []

        def busy(text):
            told.append(text)
            holder.kill()

        with locked(path, busy):
            assert path.read_text().startswith(f"process {os.getpid()} on ")
        assert told[0].startswith(f"process {holder.pid} on ") and " since 20" in told[0]
    assert os.listdir(tmp_path) == []


def test_a_refusal_to_wait_leaves_the_lock_to_its_holder(tmp_path):
    path = tmp_path / "a.lock"

    def refuse(holder):
        raise UserError(holder)

    with locked(path, refuse):
        with pytest.raises(UserError, match="process"), locked(path, refuse):
            pass
        assert path.exists()
    assert not path.exists()


def test_the_lock_lets_one_process_in_however_many_come_and_go(tmp_path):
    def come_and_go():
        for _ in range(50):
            with locked(tmp_path / "a.lock", lambda holder: None):
                os.close(os.open(tmp_path / "inside", os.O_CREAT | os.O_EXCL))  # fails if somebody else is in
                (tmp_path / "inside").unlink()

    children = [multiprocessing.get_context("fork").Process(target=come_and_go) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0] * 4 and os.listdir(tmp_path) == []
