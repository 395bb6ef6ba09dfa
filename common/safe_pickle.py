"""Read pickles from outside (CIFAR batches, weight files) as data, never as programs.

An ordinary unpickler calls whatever the file names. This one knows the few constructors that arrays of numbers and
containers need, each replaced by a function of this module, and refuses every other name before it is called. No
array takes more memory than the bytes that the file holds for it.
"""

import pickle
import re

import numpy as np

from common.errors import UserError


class Refused(Exception):
    """What the file asks for is not data."""


class _DType:
    """The type of an array's numbers, as pickles spell it: a code such as "f4", and the byte order as its state."""

    def __init__(self, code, align=False, copy=False):
        code = _text(code)
        if not re.fullmatch(r"[biufc]\d{1,2}", code):
            raise Refused(f"it holds an array of {code!r}, which is no type of numbers")
        self.code, self.order = code, "="

    def numpy(self) -> np.dtype:
        return np.dtype(self.order + self.code)


def _text(value) -> str:
    """A string of a pickle. One that Python 2 wrote, as the official CIFAR archives are, comes as bytes."""
    return value.decode("latin1") if isinstance(value, bytes) else value


def _encode(text, encoding):
    """How protocol 2 writes bytes."""
    if encoding != "latin1":
        raise Refused(f"it asks for the encoding {encoding!r}")
    return text.encode("latin1")


def _scalar(dtype, data):
    return np.frombuffer(data, dtype.numpy(), count=1)[0]


def _empty_array(kind, shape, code):
    """NumPy's `_reconstruct`: the shape and the numbers follow as the array's state."""
    return np.empty(0)


def _array_of_bytes(data, dtype, shape, order):
    """NumPy's `_frombuffer` (protocol 5)."""
    return np.frombuffer(bytes(memoryview(data)), dtype.numpy()).reshape(shape, order=order)


# NumPy 1 and 2 write the same functions under two module names.
_ALLOWED = {
    ("collections", "OrderedDict"): dict,
    ("builtins", "tuple"): tuple,  # paddle.save writes a bare tensor as tuple((name, array))
    ("__builtin__", "tuple"): tuple,
    ("_codecs", "encode"): _encode,
    ("numpy", "ndarray"): "numpy.ndarray",  # only an argument of _reconstruct, nothing to call
    ("numpy", "dtype"): _DType,
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy._core.multiarray", "_reconstruct"): _empty_array,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _array_of_bytes,
    ("numpy._core.numeric", "_frombuffer"): _array_of_bytes,
}


class _SafeUnpickler(pickle._Unpickler):
    """The unpickler written in Python: the one in C reserves as much memory as a file's memo index tells it to."""

    def __init__(self, file, allowed, persistent_load, **options):
        super().__init__(file, **options)
        self.allowed = {**_ALLOWED, **allowed}
        if persistent_load is not None:
            self.persistent_load = persistent_load

    def find_class(self, module, name):
        try:
            return self.allowed[module, name]
        except KeyError:
            raise Refused(f"it asks for {module}.{name}, which is code and not data") from None

    def load_build(self):
        """Set the state of the object on top of the stack: an array's or its type's; no other has one."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, _DType):
            target.order = _text(state[1])
        elif isinstance(target, np.ndarray):
            _, shape, dtype, fortran_order, data = state
            if target.size or any(length < 0 for length in shape):
                raise ValueError(f"an array of shape {shape}")
            target.__setstate__((1, shape, dtype.numpy(), fortran_order, data))
        elif not isinstance(target, dict):  # PyTorch hangs versions of its layers on a dict: no use here
            raise Refused(f"it sets the state of a {type(target).__name__}")

    dispatch = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: load_build}  # noqa: RUF012 (as in the parent)


def load_pickle(file, name, *, allowed=(), persistent_load=None, **options):
    """Unpickle the next pickle of the binary `file`; dictionaries of any kind come as dict.

    Args:
        name: what an error calls the file.
        allowed: {(module, name): value}, more that the pickle may name.
        persistent_load: turns a persistent id into a value; without it they are refused.
        options: go to `pickle.Unpickler`.

    Raises:
        UserError: it is not a whole pickle of plain containers and NumPy arrays of numbers.
    """
    try:
        return _SafeUnpickler(file, dict(allowed), persistent_load, **options).load()
    except Refused as reason:
        raise UserError(f"{name}: refused, {reason}; get the file again from its official source") from None
    except Exception as reason:  # a damaged pickle raises nearly any exception there is
        detail = (str(reason) or type(reason).__name__).splitlines()[0]
        raise UserError(f"{name}: not a readable pickle ({detail}); get the file again") from None
