"""The processes that train or evaluate together, and the sums they exchange. One process needs none of it.

launch.py starts them and tells each its rank in environment variables. They share work by position: each takes a
contiguous piece of the batch or of the split. So what is computed does not depend on their number.
"""

import contextlib
import io
import itertools
import os
import signal
import socket
import time

import numpy as np
import paddle
import paddle.distributed as dist
from paddle.base import core
from paddle.distributed.fleet.utils.hybrid_parallel_util import fused_allreduce_gradients

from common.errors import UserError
from common.system import MANY, number_from
from data.sampling import pieces

_FROM_LAUNCHER = "as our launcher sets it; unset it and start several processes with NPROC=k bash run_train.sh"
_waits = itertools.count()
_TIME_TO_COME = 900  # seconds, as in Paddle's store
_PATIENCE = 1800  # seconds; the launcher notices at once when a process of its node ends


def rank() -> int:
    """Number of this process, from 0."""
    return number_from("PADDLE_TRAINER_ID", "0", range(size()), _FROM_LAUNCHER)


def size() -> int:
    """Number of processes."""
    return number_from("PADDLE_TRAINERS_NUM", "1", range(1, MANY), _FROM_LAUNCHER)


def nodes() -> int:
    """Number of machines."""
    return number_from("PADDLE_NNODES", "1", range(1, MANY), _FROM_LAUNCHER)


def is_main() -> bool:
    """Whether this process is the one that prints, logs and saves."""
    return rank() == 0


def start() -> None:
    """Connect the processes. The device must have been chosen before; UserError when the others do not come."""
    if size() == 1:
        return
    if paddle.get_device() == "cpu":
        os.environ["PADDLE_DISTRI_BACKEND"] = "gloo"  # else a CUDA build takes the GPU, whatever was chosen
    on_interrupt = signal.signal(signal.SIGINT, signal.SIG_DFL)  # Paddle waits where Python hears no Ctrl-C
    with contextlib.redirect_stderr(io.StringIO()):  # Paddle lists the flags that it was started with
        try:
            if rank() > 0:
                _await_first_process()
            wait()  # Paddle waits for all, and gives up after 15 minutes
        except (OSError, RuntimeError, SystemError, ValueError) as error:
            text = f"the {size()} processes did not meet at MASTER={os.environ.get('PADDLE_MASTER')}"
            remedy = "start every node with the same MASTER, NNODES and NPROC; on one node unset PADDLE_TRAINERS_NUM"
            raise UserError(f"{text} ({str(error).strip().splitlines()[0]}); {remedy}") from None
        dist.init_parallel_env()
    signal.signal(signal.SIGINT, on_interrupt)


def _await_first_process() -> None:
    """Return when it listens; OSError after _TIME_TO_COME. Paddle itself would try for ever."""
    host, _, port = os.environ.get("PADDLE_MASTER", "").rpartition(":")
    until = time.monotonic() + _TIME_TO_COME
    while True:
        try:
            return socket.create_connection((host, int(port)), timeout=2).close()
        except OSError:
            if time.monotonic() > until:
                raise
        time.sleep(0.1)


def described() -> str:
    """For the line that names the device; "" with one process."""
    return f", {size()} processes on {nodes()} node(s)" if size() > 1 else ""


def share(length: int) -> slice:
    """The piece of `length` items that falls to this process."""
    return pieces(length, size())[rank()]


def largest(values) -> np.ndarray:
    """The largest of the processes' values, one by one, int64; every process gets them."""
    values = np.asarray(values, np.float64)
    if size() > 1:
        tensor = paddle.to_tensor(values)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        values = tensor.numpy()
    return values.astype(np.int64)


def summed(tensor):
    """The sum over all processes of a tensor of the same shape, on the device; every process gets it."""
    if size() > 1:
        dist.all_reduce(tensor)
    return tensor


def wait() -> None:
    """Return when every process has come here. Sums wait too, but with gloo for 30 seconds and with NCCL without end.

    RuntimeError after _PATIENCE, and so where other processes believe in another number of them.
    """
    if size() == 1:
        return
    store = core.create_or_get_global_tcp_store()
    name = f"reproduce/wait/{size()}/{next(_waits)}"
    store.add(name, 1)
    began = time.monotonic()
    while store.add(name, 0) < size():
        if time.monotonic() - began > _PATIENCE:
            raise RuntimeError(f"gloo: another process has not come for {_PATIENCE} seconds")
        time.sleep(0.01)


def same_everywhere(value: int, message: str) -> None:
    """Raise UserError(message) on every process unless all have the same value."""
    high, low = largest([value, -value])
    if high != -low:
        raise UserError(message)


def same_weights(model) -> None:
    """Give every process the weights of the first one."""
    if size() > 1:
        for value in model.state_dict().values():
            dist.broadcast(value, 0)


def average_gradients(parameters) -> None:
    """Replace every gradient by its mean over the processes.

    Once an update, and not in the backward pass as paddle.DataParallel does: that and recompute exclude each other.
    """
    if size() > 1:
        fused_allreduce_gradients(list(parameters), None)
