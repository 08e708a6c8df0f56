"""Convolution with the boundary folded in: a learnable stencil on every channel.

    y[b, o, i] = act( bias[o] + sum over c, k of  w[o, c, k] u[b, c, i + s (k - (K - 1)/2)] )

on grids of one to three axes, with odd kernel sizes K and dilation s, in groups of channels. A cell beyond the grid is

    periodic    the cell on the other side           (torch.nn.ConvNd with padding_mode="circular")
    neumann     the cell at the edge: no flux through the wall, to first order   ("replicate")
    dirichlet   zero                                 ("zeros")

on all axes, or a name for each. The sums are those of torch.nn.functional.conv1d/2d/3d on a padded input (cross-
correlation, Goodfellow, Bengio and Courville, Deep Learning, MIT Press 2016, eq. 9.6); no padded input is made. The
gradients are the exact transposes: of the input by the same product with the weights turned round, of the weights by
sums over all cells, in chunks whose number does not depend on the threads.

Shapes: u (B, Cin, *grid), weight (Cout, Cin/groups, *kernel), bias (Cout) or None, y and its gradient (B, Cout, *grid).
"""

import math
from typing import Any

import numpy as np

from fastdiff.kernels import _activation, _conv
from fastdiff.kernels._contract import Kernel, Launch

PADS = {"periodic": "wrap", "neumann": "edge", "dirichlet": "constant"}


def _names(boundary, ndim):
    _conv.modes_of(boundary, ndim)
    return (boundary,) * ndim if isinstance(boundary, str) else tuple(boundary)


def _steps(dilation, ndim):
    return (dilation,) * ndim if isinstance(dilation, int) else tuple(dilation)


def places(n: int, half: int, boundary: str) -> np.ndarray:
    """The cell that stands for each of -half ... n + half - 1; -1: none."""
    i = np.arange(-half, n + half)
    if boundary == "periodic":
        return i % n
    return np.clip(i, 0, n - 1) if boundary == "neumann" else np.where((0 <= i) & (i < n), i, -1)


def _taps(weight, dilation):
    """(index of the tap, slices of the padded input) are made from these: (index, shift along each axis)."""
    steps = _steps(dilation, weight.ndim - 2)
    for index in np.ndindex(*weight.shape[2:]):
        yield index, [k * s for k, s in zip(index, steps)]


def _padded(u, weight, boundary, dilation):
    """The input continued beyond the grid, and the index arrays that did it."""
    v, maps = np.asarray(u, np.float64), []
    for axis, (name, s) in enumerate(zip(_names(boundary, u.ndim - 2), _steps(dilation, u.ndim - 2))):
        index = places(u.shape[axis + 2], s * (weight.shape[axis + 2] - 1) // 2, name)
        v = np.take(np.concatenate([v, np.zeros_like(np.take(v, [0], axis + 2))], axis + 2), index, axis + 2)
        maps.append(index)
    return v, maps


def _window(v, shift, grid):
    return v[(slice(None), slice(None), *[slice(a, a + n) for a, n in zip(shift, grid)])]


def linear(u, weight, bias=None, boundary="periodic", dilation=1, groups=1):
    """The sums of a convolution, in plain NumPy, float64."""
    v, _ = _padded(u, weight, boundary, dilation)
    out, per, w = 0.0, len(weight) // groups, np.asarray(weight, np.float64)
    for index, shift in _taps(weight, dilation):
        part = _window(v, shift, u.shape[2:]).reshape(len(u), groups, -1, *u.shape[2:])
        tap = w[(slice(None), slice(None), *index)].reshape(groups, per, -1)
        out = out + np.einsum("goc,bgc...->bgo...", tap, part).reshape(len(u), len(weight), *u.shape[2:])
    return out if bias is None else out + np.asarray(bias, np.float64).reshape(-1, *[1] * (u.ndim - 2))


def reference(u, weight, bias=None, boundary="periodic", activation=None, dilation=1, groups=1, out=None):
    """Convolution, bias and activation in plain NumPy, float64."""
    return _activation.values(activation, linear(u, weight, bias, boundary, dilation, groups))


def reference_grad_input(u, weight, boundary="periodic", dilation=1, groups=1, out=None):
    """The transpose of `linear` in its input: u is the gradient of the sums (B, Cout, *grid)."""
    B, grid, cin = len(u), u.shape[2:], weight.shape[1] * groups
    v, maps = _padded(np.zeros((B, cin, *grid)), weight, boundary, dilation)
    w = np.asarray(weight, np.float64)
    for index, shift in _taps(weight, dilation):
        tap = w[(slice(None), slice(None), *index)].reshape(groups, len(w) // groups, -1)
        part = np.einsum("goc,bgo...->bgc...", tap, np.asarray(u, np.float64).reshape(B, groups, -1, *grid))
        _window(v, shift, grid)[...] += part.reshape(B, cin, *grid)
    for axis, index in enumerate(maps):
        v = np.moveaxis(v, axis + 2, 0)
        folded = np.zeros((grid[axis], *v.shape[1:]))
        np.add.at(folded, index[index >= 0], v[index >= 0])
        v = np.moveaxis(folded, 0, axis + 2)
    return v


def reference_grad_weight(u, grad, kernel, boundary="periodic", dilation=1, groups=1, out=None):
    """The transpose of `linear` in weights and bias: (gradient of the weights, of the bias)."""
    g = np.asarray(grad, np.float64)
    weight = np.zeros((g.shape[1], u.shape[1] // groups, *kernel))
    v, _ = _padded(u, weight, boundary, dilation)
    for index, shift in _taps(weight, dilation):
        part = _window(v, shift, u.shape[2:]).reshape(len(u), groups, -1, math.prod(u.shape[2:]))
        left = g.reshape(len(u), groups, -1, part.shape[-1])
        tap = np.einsum("bgox,bgcx->goc", left, part)
        weight[(slice(None), slice(None), *index)] = tap.reshape(weight.shape[:2])
    return weight, g.sum((0, *range(2, g.ndim)))


# -- compiled ----------------------------------------------------------------------------------------------------------


def _shape(u, weight, groups, dilation, boundary):
    boundary = boundary if isinstance(boundary, str) else tuple(boundary)
    dilation = dilation if isinstance(dilation, int) else tuple(dilation)
    return _conv.shape_of(tuple(u), tuple(weight), groups, dilation, boundary)


def cpu(u, weight, bias=None, boundary: Any = "periodic", activation=None, dilation: Any = 1, groups=1,
        out=None, pre=None, threads=None):
    """Convolution, bias and activation; `pre`, if given, receives the sums before the activation."""
    shape = _shape(u.shape, weight.shape, groups, dilation, boundary)
    out = np.empty((len(u), len(weight), *u.shape[2:]), u.dtype) if out is None else out
    if out.size:
        _conv.forward(shape, u, weight, bias, _activation.code_of(activation), out, pre, threads)
    return out


def cpu_grad_input(u, weight, boundary: Any = "periodic", dilation: Any = 1, groups=1, out=None, threads=None):
    """The gradient of the input from that of the sums."""
    size = (len(u), weight.shape[1] * groups, *u.shape[2:])
    shape = _shape(size, weight.shape, groups, dilation, boundary)
    out = np.empty(size, u.dtype) if out is None else out
    return _conv.grad_input(shape, u, weight, out, threads) if out.size else out


def cpu_grad_weight(u, grad, kernel, boundary: Any = "periodic", dilation: Any = 1, groups=1, out=None, threads=None):
    """The gradients of weights and bias from that of the sums."""
    size = (grad.shape[1], u.shape[1] // groups, *kernel)
    shape = _shape(u.shape, size, groups, dilation, boundary)
    out = (np.empty(size, u.dtype), np.empty(size[0], u.dtype)) if out is None else out
    if u.size == 0:
        out[0].fill(0)
        out[1].fill(0)
        return out
    _conv.grad_weight(shape, u, grad, *out, threads)
    return out


# -- CUDA --------------------------------------------------------------------------------------------------------------


def cuda(u, weight, bias=None, boundary: Any = "periodic", activation=None, dilation: Any = 1, groups=1,
         out=None, pre=None, stream=None):
    """`cpu` on the GPU; device arrays are only wrapped, NumPy arrays copied there and back. `out` must be given."""
    from fastdiff.kernels import _conv_cuda

    numbers = _conv_cuda.sizes(_shape(u.shape, weight.shape, groups, dilation, boundary),
                               _activation.code_of(activation))
    start = _zeros(u, (len(weight),)) if bias is None else bias
    kept = _zeros(u, (0,)) if pre is None else pre
    _conv_cuda.launch("forward", numbers, (u, weight, start), (out, kept), stream=stream)
    return out


def cuda_grad_input(u, weight, boundary: Any = "periodic", dilation: Any = 1, groups=1, out=None, stream=None):
    """`cpu_grad_input` on the GPU; `out` must be given."""
    from fastdiff.kernels import _conv_cuda

    shape = _shape((len(u), weight.shape[1] * groups, *u.shape[2:]), weight.shape, groups, dilation, boundary)
    _conv_cuda.launch("grad_input", _conv_cuda.sizes(shape), (u, weight), (out,), stream=stream)
    return out


def cuda_grad_weight(u, grad, kernel, boundary: Any = "periodic", dilation: Any = 1, groups=1, out=None, stream=None):
    """`cpu_grad_weight` on the GPU; `out` must be given."""
    from fastdiff.kernels import _conv_cuda

    size = (grad.shape[1], u.shape[1] // groups, *kernel)
    numbers = _conv_cuda.sizes(_shape(u.shape, size, groups, dilation, boundary))
    blocks = size[0] * (size[1] * math.prod(kernel) + 1)
    _conv_cuda.launch("grad_weight", numbers, (u, grad), out, blocks=blocks, stream=stream)
    return out


def _zeros(like, shape):
    """Zeros where `like` is."""
    return like.new_zeros(shape) if hasattr(like, "new_zeros") else np.zeros(shape, like.dtype)


def ptx(*names):
    """`ptx` of a Kernel, of the CUDA kernels of these names."""

    def launches(dtype) -> list[Launch]:
        from fastdiff.kernels import _conv_cuda

        return _conv_cuda.launches(dtype, names)

    return launches


# -- what checks it ----------------------------------------------------------------------------------------------------

# (batch, channels in, channels out, kernel, *grid), each with its reason
SHAPES = {
    (1, 1, 2, 3, 5): "one channel in, a line",
    (1, 2, 2, 5, 2): "a kernel wider than the grid",
    (1, 1, 2, 3, 2, 3): "nothing but edges",
    (1, 1, 1, 3, 2, 2, 3): "three axes",
    (2, 3, 5, 3, 257): "odd channels, a prime line, several vectors and a rest",
    (1, 1, 16, 3, 5003): "several tiles of a line",
    (3, 16, 16, 3, 37, 67): "whole blocks of channels, several tiles of rows",
    (2, 4, 9, 3, 5, 7, 11): "primes in three axes",
}
_DEPTHWISE = {(1, 2, 2, 3, 2, 3): "smaller than a band of rows",
              (2, 3, 3, 7, 61, 35): "7 x 7, several bands and a rest",
              (1, 2, 2, 3, 3, 5, 4): "three axes", (1, 5, 5, 5, 131): "a line"}
_BOUNDARIES = ("neumann", "dirichlet", "periodic")


def arrays(shape, dtype, rng, groups=1):
    """(u, weight, bias, gradient of the output, boundary of each axis) of one of SHAPES."""
    B, cin, cout, k, *grid = shape
    normal = lambda *size: rng.standard_normal(size).astype(dtype)
    scale = dtype.type((cin // groups * k ** len(grid)) ** -0.5)
    names = tuple(_BOUNDARIES[(len(grid) + cin + i) % 3] for i in range(len(grid)))
    return (normal(B, cin, *grid), scale * normal(cout, cin // groups, *[k] * len(grid)), normal(cout),
            normal(B, cout, *grid), names)


def _sample(part, activation=None, dilation=1, depthwise=False):
    def sample(shape, dtype, rng):
        groups = shape[1] if depthwise or shape[1:3] == (2, 2) else 1
        u, weight, bias, grad, boundary = arrays(shape, dtype, rng, groups)
        how = dict(boundary=boundary, dilation=dilation, groups=groups)
        if part == "forward":
            return dict(u=u, weight=weight, bias=bias, activation=activation, **how)
        if part == "grad_input":
            return dict(u=grad, weight=weight, **how)
        return dict(u=u, grad=grad, kernel=weight.shape[2:], **how)

    return sample


_OUTPUTS = {
    "forward": lambda u, weight, **_: np.empty((len(u), len(weight), *u.shape[2:]), u.dtype),
    "grad_input": lambda u, weight, groups=1, **_: np.empty((len(u), weight.shape[1] * groups, *u.shape[2:]), u.dtype),
    "grad_weight": lambda u, grad, kernel, groups=1, **_: (
        np.empty((grad.shape[1], u.shape[1] // groups, *kernel), u.dtype), np.empty(grad.shape[1], u.dtype)),
}
_CALLS = {"forward": (reference, cpu, cuda), "grad_input": (reference_grad_input, cpu_grad_input, cuda_grad_input),
          "grad_weight": (reference_grad_weight, cpu_grad_weight, cuda_grad_weight)}


def machine_code(part):
    """`machine_code` of a Kernel: the products in registers, alone."""

    def loops(dtype):
        from numba import types

        line = types.Array(types.float32 if dtype == np.float32 else types.float64, 1, "C")
        table, n = types.Array(types.int64, 1, "C"), types.int64
        if part == "grad_weight":
            return [(_conv.correlate_loop, (line, line, line, n))]
        return [(_conv.multiply_loop, (line, line, table, line, line, n))]

    return loops


def _kernel(name, part, **how):
    reference, cpu, cuda = _CALLS[part]
    depthwise = how.get("depthwise", False)
    # one CUDA kernel serves all activations and groups: it is enough to compile and simulate it once
    cuda = cuda if name in ("conv_gelu", "conv_grad_input", "conv_grad_weight") else None
    return Kernel(name=name, reference=reference, cpu=cpu, cuda=cuda, sample=_sample(part, **how), ndim=0,
                  outputs=_OUTPUTS[part], shapes=_DEPTHWISE if depthwise else SHAPES,
                  large=(8, 42, 42, 7, 128, 128) if depthwise else (16, 16, 16, 3, 128, 128),
                  machine_code=machine_code(part), ptx=ptx(part) if cuda else None, tolerance=16)


KERNELS = [
    _kernel("conv_relu", "forward", activation="relu"),
    _kernel("conv_gelu", "forward", activation="gelu", dilation=2),
    _kernel("conv_silu", "forward", activation="silu"),
    _kernel("conv_tanh", "forward", activation="tanh"),
    _kernel("conv_depthwise", "forward", depthwise=True),
    _kernel("conv_grad_input", "grad_input"),
    _kernel("conv_depthwise_grad_input", "grad_input", depthwise=True),
    _kernel("conv_grad_weight", "grad_weight"),
    _kernel("conv_depthwise_grad_weight", "grad_weight", depthwise=True),
]
