import io
import os
import pickle
import tracemalloc
from collections import OrderedDict

import numpy as np
import pytest

from common.atomic import atomic_write
from common.errors import UserError, near
from common.safe_pickle import load_pickle


class Evil:
    def __init__(self, call, *arguments):
        self.reduced = (call, arguments)

    def __reduce__(self):
        return self.reduced


def load(content: bytes):
    return load_pickle(io.BytesIO(content), "some.file")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
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
)  # fmt: skip
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


def test_near_names_what_is_close_or_all():
    assert near("dgits", ["digits", "cifar10"]) == "did you mean digits?"
    assert near("zzz", ["digits", "cifar10"]) == "known: cifar10, digits"
