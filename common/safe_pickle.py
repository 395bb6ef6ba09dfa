"""Read pickles from outside (CIFAR batches, .pdparams) as data, never as programs.

An ordinary unpickler calls whatever the file names. This one knows the few constructors that arrays and
containers need and refuses everything else before it is called.
"""

import codecs
import pickle
from collections import OrderedDict

import numpy as np

from common.errors import UserError

# What NumPy 1 and 2 write for an array: the same functions under two module names.
_RECONSTRUCT = np.array([0]).__reduce__()[0]
_SCALAR = np.float64(0).__reduce__()[0]
_FROM_BUFFER = np.array([0]).__reduce_ex__(5)[0]
_ALLOWED = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): codecs.encode,  # how protocol 2 writes bytes
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy.core.multiarray", "scalar"): _SCALAR,
    ("numpy._core.multiarray", "scalar"): _SCALAR,
    ("numpy.core.numeric", "_frombuffer"): _FROM_BUFFER,
    ("numpy._core.numeric", "_frombuffer"): _FROM_BUFFER,
}


class _Refused(Exception):
    pass


class _SafeUnpickler(pickle.Unpickler):
    def find_class(self, module, name):
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _Refused(f"it asks for {module}.{name}, which is code and not data") from None


def load_pickle(file, name, **options):
    """Unpickle the binary `file`; `name` is what an error calls it. `options` go to `pickle.Unpickler`.

    Raises UserError for anything that is not a whole pickle of plain containers and NumPy arrays.
    """
    try:
        return _SafeUnpickler(file, **options).load()
    except _Refused as reason:
        raise UserError(f"{name}: refused, {reason}; get the file again from its official source") from None
    except Exception as reason:  # a damaged pickle raises nearly any exception there is
        detail = str(reason).splitlines()[0] if str(reason) else type(reason).__name__
        raise UserError(f"{name}: not a readable pickle ({detail}); get the file again") from None
