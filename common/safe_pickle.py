"""Read pickles from outside (CIFAR batches, weight files) as data, never as programs.

An ordinary unpickler calls whatever the file names. This one knows the few opcodes and constructors that arrays of
numbers and containers need in the protocols 2 to 4, and refuses every other. What it builds is counted: it takes no
more than MOST_GROWTH times the bytes of the file, and nothing from it is hashed or printed that could take for ever.
"""

import os
import pickle
import re
import sys

import numpy as np

from common.errors import UserError, printable

MOST_GROWTH = 10  # bytes of all objects that are built, as a multiple of the file's own
SMALL = 1 << 26  # bytes that may be built however small the file is
_CONTAINER = 100  # bytes that a list, tuple or dict is counted with; a few opcodes of one byte make one
_REFERENCE = 16  # bytes that an item of a list is counted with
_KEYS = (str, bytes, int, float, type(None))  # a nested tuple takes exponential time to hash


class Refused(Exception):
    """What the file asks for is not data."""


class _DType:
    """The type of an array's numbers, as pickles spell it: a code such as "f4", and the byte order as its state."""

    def __init__(self, code, align=False, copy=False):
        code = _text(code)
        if not re.fullmatch(r"[biuf]\d{1,2}", code):
            raise Refused(f"it holds an array of {code[:20]!r}, which is no type of numbers")
        self.code, self.order = code, "="

    def numpy(self) -> np.dtype:
        return np.dtype(self.order + self.code)


def _text(value) -> str:
    """A string of a pickle. One that Python 2 wrote, as the official CIFAR archives are, comes as bytes."""
    text = value.decode("latin1") if isinstance(value, bytes) else value
    if not isinstance(text, str):
        raise ValueError("a text was expected")
    return text


def _encode(text, encoding):
    """How protocol 2 writes bytes."""
    if encoding != "latin1":
        raise Refused("it asks for the encoding of a text that is not latin1")
    return _text(text).encode("latin1")


def _tuple(items=()):
    if not isinstance(items, (list, tuple)):
        raise Refused("it makes a tuple of what is no list")
    return tuple(items)


def _with_plain_keys(items):
    for key, value in items:
        if not isinstance(key, _KEYS):
            raise Refused("it has a dictionary whose keys are not plain texts or numbers")
        yield key, value


_ALLOWED = {
    ("collections", "OrderedDict"): lambda items=(): dict(_with_plain_keys(items)),
    ("builtins", "tuple"): _tuple,  # paddle.save writes a bare tensor as tuple((name, array))
    ("__builtin__", "tuple"): _tuple,
    ("_codecs", "encode"): _encode,
    ("numpy", "ndarray"): "numpy.ndarray",  # only an argument of _reconstruct, nothing to call
    ("numpy", "dtype"): _DType,
    ("numpy.core.multiarray", "_reconstruct"): lambda *_: np.empty(0),  # shape and numbers follow as its state
    ("numpy.core.multiarray", "scalar"): lambda dtype, data: np.frombuffer(data, dtype.numpy(), count=1)[0],
}

# Opcodes that the parent's own methods handle: numbers, texts, the stack, the memo, names and protocol marks.
_PLAIN = b"\x80\x95.(012N\x88\x89JKM\x8aGTUX\x8c\x8dBC\x8ehjqr\x94c\x93Q"
_CONTAINERS = b"]})t\x85\x86\x87"
_PARENT = pickle._Unpickler.dispatch


def _counted(load):
    """`load` of the parent for an opcode that makes a list, a tuple or a dict."""

    def counted(self):
        self.spend(_CONTAINER)
        load(self)

    return counted


class _SafeUnpickler(pickle._Unpickler):
    """The unpickler written in Python: the one in C reserves as much memory as a file's memo index tells it to."""

    def __init__(self, file, allowed, persistent_load, **options):
        super().__init__(file, **options)
        self.allowed = {**_ALLOWED, **allowed}
        self.budget = SMALL + MOST_GROWTH * file.seek(0, os.SEEK_END)
        file.seek(0)
        if persistent_load is not None:
            self.persistent_load = persistent_load

    def spend(self, count: int) -> None:
        self.budget -= count
        if self.budget < 0:
            raise Refused(f"it builds more than {MOST_GROWTH} times its own size in memory")

    def find_class(self, module, name):
        found = self.allowed.get((module.replace("numpy._core", "numpy.core"), name))  # NumPy 2's name, and 1's
        if found is None:
            raise Refused(f"it asks for {printable(f'{module[:60]}.{name[:60]}')}, which is code and not data")
        return found

    def load_items(self, items: list, kind: type) -> None:
        """Add `items` to the object on top of the stack, which has to be a list, or a dict (keys and values)."""
        target = self.stack[-1]
        if type(target) is not kind:
            raise Refused(f"it adds items to a {type(target).__name__}")
        self.spend((_REFERENCE if kind is list else _CONTAINER) * len(items))
        if kind is list:
            target.extend(items)
        else:
            target.update(_with_plain_keys(zip(items[::2], items[1::2], strict=True)))

    def load_reduce(self):
        arguments = self.stack.pop()
        function = self.stack[-1]
        if not (callable(function) and isinstance(arguments, tuple)):
            raise Refused("it calls what is no function")
        self.stack[-1] = value = function(*arguments)
        self.spend(_CONTAINER + sys.getsizeof(value))

    def load_build(self):
        """Set the state of the object on top of the stack: an array's or its type's; no other has one."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, _DType):
            order = _text(state[1])
            if order not in ("<", ">", "=", "|"):
                raise ValueError("a type of another byte order")
            target.order = order
        elif isinstance(target, np.ndarray):
            _, shape, dtype, fortran_order, data = state
            if target.size or not isinstance(data, (bytes, str)):
                raise ValueError("an array without bytes")
            if not (isinstance(shape, tuple) and len(shape) <= 32 and all(type(n) is int and n >= 0 for n in shape)):
                raise ValueError("an array of an impossible shape")
            self.spend(len(data))
            target.__setstate__((1, shape, dtype.numpy(), bool(fortran_order), data))
        elif not isinstance(target, dict):  # PyTorch hangs versions of its layers on a dict: no use here
            raise Refused(f"it sets the state of a {type(target).__name__}")

    dispatch = {  # noqa: RUF012 (as in the parent)
        **{opcode: _PARENT[opcode] for opcode in _PLAIN},
        **{opcode: _counted(_PARENT[opcode]) for opcode in _CONTAINERS},
        pickle.APPEND[0]: lambda self: self.load_items([self.stack.pop()], list),
        pickle.APPENDS[0]: lambda self: self.load_items(self.pop_mark(), list),
        pickle.SETITEM[0]: lambda self: self.load_items([self.stack.pop(-2), self.stack.pop()], dict),
        pickle.SETITEMS[0]: lambda self: self.load_items(self.pop_mark(), dict),
        pickle.REDUCE[0]: load_reduce,
        pickle.BUILD[0]: load_build,
    }


def load_pickle(file, name, *, allowed=(), persistent_load=None, **options):
    """Unpickle `file`, and leave it behind its pickle; dictionaries of any kind come as dict.

    Args:
        file: a BytesIO. A file on the disk would reserve as much memory as a length in it claims.
        allowed: {(module, name): value}, more that the pickle may name.
        persistent_load: turns a persistent id into a value; without it they are refused.

    Raises UserError, about the file called `name`, for what is no whole pickle of plain containers and arrays.
    """
    try:
        return _SafeUnpickler(file, dict(allowed), persistent_load, **options).load()
    except Refused as reason:
        text = f"{name}: refused, {reason}. If you trust its source, open it in the program that made it and save the"
        raise UserError(f"{text} arrays alone, in PyTorch with torch.save(checkpoint['model'], FILE)") from None
    except Exception as reason:  # a damaged pickle raises nearly any exception there is
        text = type(reason).__name__
        if all(isinstance(part, (str, int)) for part in reason.args):  # others may take for ever to print
            text = (str(reason)[:200] or text).splitlines()[0]
        raise UserError(f"{name}: not a readable pickle ({text}); get the file again") from None
