"""The layers of a ViT without the kernels of Paddle that are slow on a CPU: `speed_up(model)` before it runs there.

The results are those of Paddle's own layers up to rounding, but for dropout's random numbers, which come from another
generator of the same distribution. In evaluation they are the same to the bit.

What is slow in Paddle 3.3 on a CPU: biases, sums over rows (gradients of biases and of LayerNorm), dropout's random
numbers, the gradient of GELU, each several times slower than NumPy on one core. See `python -m reproduce.bench`.
"""

import numpy as np
import paddle
from paddle import nn
from paddle.autograd import PyLayer
from paddle.nn import functional as F

from models.vit import Mlp, ViT

_PIECE = 2**15  # numbers computed at once by NumPy: they and their intermediate results stay in a core's cache
_LEVELS = 2**16  # a dropout mask compares 16 random bits with the rate


def speed_up(model):
    """Give every ViT in `model` the layers of this module, in place; returns `model`. On a GPU nothing is changed.

    A layer changes its class alone: parameters, names and hooks stay. Layers that somebody put in place of Paddle's
    stay as they are, and so do convolutional networks, whose time goes into convolutions.
    """
    for network in model.sublayers(include_self=True):
        if isinstance(network, ViT) and paddle.get_device() == "cpu":
            for layer in network.sublayers():
                layer.__class__ = _FAST.get(type(layer), type(layer))
    return model


class FastLinear(nn.Linear):
    """nn.Linear: (..., in) -> (..., out)."""

    def forward(self, x):
        if self.bias is not None:
            return _Linear.apply(x, self.weight, self.bias)
        return super().forward(x)


class FastLayerNorm(nn.LayerNorm):
    """nn.LayerNorm over the last dimension: (..., D) -> (..., D)."""

    def forward(self, x):
        y = _LayerNorm.apply(x, self.weight, self.bias, self._epsilon)
        y.again = lambda: nn.LayerNorm.forward(self, x)  # see _remember
        return y


class FastDropout(nn.Dropout):
    """nn.Dropout, whose rate is rounded to a multiple of 2^-16; what is kept is scaled by that rate."""

    def forward(self, x):
        if self.training and self.p > 0:
            return _Dropout.apply(x, self.p)
        return x  # Paddle's own copies it


class FastMlp(Mlp):
    """models.vit.Mlp, whose bias, GELU and first dropout are computed at once."""

    def forward(self, x):
        return self.dropout2(self.fc2(self.hidden(x)))

    def hidden(self, x):
        """dropout1(GELU(fc1(x))): (..., D) -> (..., mlp_width). Hooks of these two layers are called."""
        fc1, dropout = self.fc1, self.dropout1
        watched = any(layer._forward_pre_hooks or layer._forward_post_hooks for layer in (fc1, dropout))
        if watched or not fc1.training or self.activation is not F.gelu:
            return dropout(self.activation(fc1(x)))
        if type(dropout) is not FastDropout:  # something that was put in its place
            return dropout(_Hidden.apply(x, fc1.weight, fc1.bias, 0))
        return _Hidden.apply(x, fc1.weight, fc1.bias, dropout.p if dropout.training else 0)


_FAST = {nn.Linear: FastLinear, nn.LayerNorm: FastLayerNorm, nn.Dropout: FastDropout, Mlp: FastMlp}


def _remember(ctx, x, weight, bias) -> None:
    """Keep what `_linear_gradients` needs. Of a LayerNorm's output that is how to compute it again, which costs less
    than its memory, unless a hook for instance has changed it in place since.
    """
    again = getattr(x, "again", None)
    ctx.input = again if again is not None and x.inplace_version == 0 else lambda: x
    ctx.save_for_backward(weight)
    ctx.needed = [not tensor.stop_gradient for tensor in (x, weight, bias)]


def _linear_gradients(ctx, dy):
    """Of x, weight and bias; None, which Paddle wants, for those that have no gradient (frozen weights)."""
    x, (weight,) = ctx.input(), ctx.saved_tensor()
    rows, dy_rows = (tensor.reshape([-1, tensor.shape[-1]]) for tensor in (x, dy))
    compute = (
        lambda: paddle.matmul(dy, weight, transpose_y=True),
        lambda: paddle.matmul(rows, dy_rows, transpose_x=True),
        lambda: paddle.matmul(paddle.ones([1, len(rows)], dy.dtype), dy_rows).flatten(),
    )
    return tuple(gradient() if wanted else None for gradient, wanted in zip(compute, ctx.needed, strict=True))


class _Linear(PyLayer):
    @staticmethod
    def forward(ctx, x, weight, bias):
        _remember(ctx, x, weight, bias)
        y = paddle.matmul(x, weight)
        row = _array(bias)
        for (piece,) in _pieces(y):
            piece += row
        return y

    backward = staticmethod(_linear_gradients)


class _LayerNorm(PyLayer):
    @staticmethod
    def forward(ctx, x, weight, bias, epsilon):
        ctx.save_for_backward(x, weight)
        ctx.needed = [not tensor.stop_gradient for tensor in (x, weight, bias)]
        ctx.epsilon = epsilon
        return F.layer_norm(x, weight.shape, weight, bias, epsilon)

    @staticmethod
    def backward(ctx, dy):
        """With c = x - mean, r = 1 / deviation, g = dy weight: dx = r (g - mean(g) - c r^2 mean(g c))."""
        x, weight = ctx.saved_tensor()
        dx = _empty_like(x)
        factor = _array(weight)
        width = factor.size  # not Paddle's size, which would turn float32 quotients into float64
        dweight, dbias = np.zeros_like(factor), np.zeros_like(factor)
        for a, d, result in _pieces(x, dy, dx):
            c = a - (np.einsum("ij->i", a) / width)[:, None]
            r = (np.einsum("ij,ij->i", c, c) / width + ctx.epsilon) ** -0.5
            np.multiply(d, r[:, None], out=result)
            dweight += np.einsum("ij,ij->j", result, c)
            dbias += np.einsum("ij->j", d)
            result *= factor  # r g
            c *= (np.einsum("ij,ij->i", result, c) * r * r / width)[:, None]
            c += (np.einsum("ij->i", result) / width)[:, None]
            result -= c
        gradients = dx, paddle.to_tensor(dweight), paddle.to_tensor(dbias)
        return tuple(gradient if wanted else None for gradient, wanted in zip(gradients, ctx.needed, strict=True))


class _Hidden(PyLayer):
    """Bias, GELU and dropout in the passes over memory that GELU alone would take."""

    @staticmethod
    def forward(ctx, x, weight, bias, rate):
        """Keeps the derivative of GELU, 0 where dropout drops, for the backward pass: Phi(z) + z phi(z)."""
        _remember(ctx, x, weight, bias)
        z = paddle.matmul(x, weight)
        y, ctx.derivative = _empty_like(z), np.empty(z.shape, _array(z).dtype)
        row = _array(bias)
        for a, result in _pieces(z, y):
            a += row
            np.multiply(a, 0.5**0.5, out=result)
        paddle.erf_(y)
        keep, ctx.factor = _draw(z, rate) if rate else (z, 1)
        for a, result, slope, mask in _pieces(z, y, ctx.derivative, keep):
            result += 1
            result *= 0.5  # Phi(z)
            np.multiply(a, a, out=slope)
            slope *= -0.5
            np.exp(slope, out=slope)
            slope *= (2 * np.pi) ** -0.5  # phi(z)
            slope *= a
            slope += result
            result *= a
            if rate:
                kept = a  # z is no longer needed
                kept[:] = mask
                slope *= kept
                kept *= ctx.factor
                result *= kept
        return y

    @staticmethod
    def backward(ctx, dy):
        dz = _empty_like(dy)
        for slope, d, result in _pieces(ctx.derivative, dy, dz):
            np.multiply(d, ctx.factor, out=result)
            result *= slope
        return _linear_gradients(ctx, dz)


class _Dropout(PyLayer):
    @staticmethod
    def forward(ctx, x, rate):
        ctx.keep, ctx.factor = _draw(x, rate)
        return _masked(x, ctx.keep, ctx.factor)

    @staticmethod
    def backward(ctx, dy):
        return _masked(dy, ctx.keep, ctx.factor)


def _draw(x, rate: float) -> tuple[np.ndarray, float]:
    """What dropout keeps of `x`, bool, and what that is multiplied by.

    The seed comes from Paddle's generator, whose state recompute and resume set.
    """
    dropped = min(round(rate * _LEVELS), _LEVELS - 1)  # never all
    seed = paddle.randint(0, 2**31 - 1, [1], "int64").item()
    words = np.random.SFC64(seed).random_raw(-(-x.size // 4))  # 64 bits each
    keep = (words.view(np.uint16)[: x.size] >= dropped).reshape(x.shape)
    return keep, _LEVELS / (_LEVELS - dropped)


def _masked(x, keep, factor):
    """x * keep * factor; `keep` bool, shaped as x."""
    y = _empty_like(x)
    for a, result, mask in _pieces(x, y, keep):
        np.multiply(mask, factor, out=result, dtype=result.dtype)
        result *= a
    return y


def _empty_like(x):
    """A tensor in NumPy's memory: Paddle's blocks are aligned, and what one leaves is too small for the next alike."""
    return paddle.from_dlpack(np.empty(x.shape, _array(x).dtype))


def _pieces(*tensors):
    """Blocks of rows (r, D) of equally shaped tensors or arrays (..., D), as NumPy views of their memory."""
    matrices = [array.reshape(-1, array.shape[-1]) for array in map(_array, tensors)]
    rows = max(1, _PIECE // matrices[0].shape[1])
    for start in range(0, len(matrices[0]), rows):
        yield [matrix[start : start + rows] for matrix in matrices]


def _array(tensor) -> np.ndarray:
    """A view of the memory of a contiguous tensor."""
    return tensor if isinstance(tensor, np.ndarray) else np.from_dlpack(tensor.detach())
