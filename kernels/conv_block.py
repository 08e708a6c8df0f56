"""Two convolutions with an activation between them, as one: the hidden layer is never in memory.

    h[b, c, i] = act( b1[c] + sum over k of  w1[c, k] u[b, i + k - (K - 1)/2] )
    y[b, i]    =      b2    + sum over c, k of  w2[c, k] h[b, c, i + k - (K - 1)/2]

One channel in, C hidden ones, one out (the tutorial's 1 -> 16 -> 1 network), on grids of one to three axes, odd kernel
sizes K. Boundaries as in conv.py; they hold for each layer: what the second layer sees beyond the grid is continued
from the hidden layer. Reading u and writing y is all the memory traffic: some 33 times less than two layers with an
activation between them. The backward pass makes the hidden layer once more rather than keep it.

Shapes: u, y and its gradient (B, 1, *grid), w1 (C, 1, *kernel), b1 (C), w2 (1, C, *kernel), b2 (1).
"""

from functools import lru_cache
from typing import Any

import numpy as np

from fastdiff.kernels import _activation, _conv, _conv_block, conv
from fastdiff.kernels._contract import Kernel


def reference(u, w1, b1, w2, b2, boundary="periodic", activation="relu", out=None):
    """Both layers in plain NumPy, float64."""
    return conv.linear(conv.reference(u, w1, b1, boundary, activation), w2, b2, boundary)


def reference_backward(u, w1, b1, w2, b2, grad, boundary="periodic", activation="relu", out=None):
    """The transpose: gradients of (u, w1, b1, w2, b2) from that of y."""
    sums = conv.linear(u, w1, b1, boundary)
    hidden, slope = _activation.values(activation, sums), _activation.slopes(activation, sums)
    back = conv.reference_grad_input(grad, w2, boundary) * slope
    d2, e2 = conv.reference_grad_weight(hidden, grad, w2.shape[2:], boundary)
    d1, e1 = conv.reference_grad_weight(u, back, w1.shape[2:], boundary)
    return conv.reference_grad_input(back, w1, boundary), d1, e1, d2, e2


def reference_step(u, target, state, count, rate, kernel, boundary="periodic", activation="relu", out=None):
    """One step of Adam on the mean square error: (new state, loss)."""
    theta, m, v = np.asarray(state, np.float64)
    channels = (len(theta) - 1) // (2 * int(np.prod(kernel)) + 1)
    w1, b1, w2, b2 = split(theta, channels, kernel)
    difference = reference(u, w1, b1, w2, b2, boundary, activation) - target
    grads = reference_backward(u, w1, b1, w2, b2, 2 / u.size * difference, boundary, activation)[1:]
    g = np.concatenate([part.reshape(-1) for part in grads])
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    step = rate / (1 - 0.9**count) * m / (np.sqrt(v / (1 - 0.999**count)) + 1e-8)
    return np.stack([theta - step, m, v]), np.array([(difference**2).mean()])


def split(theta, channels, kernel):
    """The parameters (w1, b1, w2, b2) from one line of them."""
    taps = int(np.prod(kernel))
    parts = np.split(theta, np.cumsum([channels * taps, channels, channels * taps]))
    return parts[0].reshape(channels, 1, *kernel), parts[1], parts[2].reshape(1, channels, *kernel), parts[3]


# -- compiled ----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=512)
def geometry(shape, kernel, boundary):
    """(B, n0, n1, n2), (k0, k1, k2), modes; refuses what the block cannot take."""
    if len(shape) not in (3, 4, 5) or shape[1] != 1 or len(kernel) != len(shape) - 2 or any(k % 2 == 0 for k in kernel):
        raise ValueError(f"the block takes (batch, 1, *grid) on 1 to 3 axes and odd kernel sizes, got an input of "
                         f"shape {tuple(shape)} and a kernel of {tuple(kernel)}")
    modes = _conv.space_of(_conv.modes_of(boundary, len(shape) - 2), _conv.DIRICHLET)
    return (shape[0], *_conv.space_of(shape[2:])), _conv.space_of(tuple(kernel)), modes


def cpu(u, w1, b1, w2, b2, boundary: Any = "periodic", activation: Any = "relu", out=None, threads=None):
    """Both layers."""
    out = np.empty_like(u) if out is None else out
    if u.size:
        _conv_block.forward(*geometry(u.shape, w1.shape[2:], boundary), _activation.code_of(activation), u, w1, b1,
                            w2, b2, out, threads)
    return out


def cpu_backward(u, w1, b1, w2, b2, grad, boundary: Any = "periodic", activation: Any = "relu", out: Any = None,
                 threads=None, wanted=True):
    """Gradients of (u, w1, b1, w2, b2) from that of y; the first is left alone unless `wanted`."""
    out = tuple(np.empty_like(a) for a in (u, w1, b1, w2, b2)) if out is None else out
    if u.size == 0:
        for part in out:
            part.fill(0)
        return out
    code = _activation.code_of(activation)
    line = _conv_block.backward(*geometry(u.shape, w1.shape[2:], boundary), code, u, w1, b1, w2, b2, grad,
                                out[0] if wanted else None, threads)
    for part, found in zip(out[1:], split(line, len(b1), w1.shape[2:])):
        part[...] = found
    return out


def cpu_step(u, target, state, count, rate, kernel, boundary: Any = "periodic", activation: Any = "relu", out=None,
             threads=None):
    """One step of Adam: (new state, loss)."""
    out = (np.empty_like(state), np.empty(1, u.dtype)) if out is None else out
    channels = (state.shape[1] - 1) // (2 * int(np.prod(kernel)) + 1)
    space, size, modes = geometry(u.shape, tuple(kernel), boundary)
    trainer = _conv_block.Trainer(space, size, channels, modes, _activation.code_of(activation), u.dtype, threads)
    out[0][...] = state
    out[1][...] = trainer.step(u, target, out[0], count, rate)
    return out


# -- CUDA --------------------------------------------------------------------------------------------------------------


def _sizes(u, w1, boundary, activation):
    from fastdiff.kernels import _conv_cuda

    (B, *n), kernel, modes = geometry(tuple(u.shape), tuple(w1.shape[2:]), boundary)
    shape = _conv.Shape((B, 1, *n), (len(w1), 1, *kernel), 1, (1, 1, 1), modes, u.ndim - 2)
    return _conv_cuda.sizes(shape, _activation.code_of(activation))


def cuda(u, w1, b1, w2, b2, boundary: Any = "periodic", activation: Any = "relu", out=None, stream=None):
    """`cpu` on the GPU; `out` must be given."""
    from fastdiff.kernels import _conv_cuda

    numbers = _sizes(u, w1, boundary, activation)
    _conv_cuda.launch("block_forward", numbers, (u, w1, b1, w2, b2), (out,), stream=stream)
    return out


def cuda_backward(u, w1, b1, w2, b2, grad, boundary: Any = "periodic", activation: Any = "relu", out: Any = None,
                  stream=None, wanted=True):
    """`cpu_backward` on the GPU; `out` must be given."""
    from fastdiff.kernels import _conv_cuda

    numbers, inputs = _sizes(u, w1, boundary, activation), (u, w1, b1, w2, grad)
    if wanted:
        _conv_cuda.launch("block_grad_input", numbers, inputs, (out[0],), stream=stream)
    blocks = len(w1) * (int(np.prod(w1.shape[2:])) + 1)
    _conv_cuda.launch("block_grad_weight", numbers, inputs, out[1:], blocks=blocks, stream=stream)
    return out


# -- what checks it ----------------------------------------------------------------------------------------------------

# (batch, hidden channels, kernel, *grid), each with its reason
SHAPES = {
    (1, 2, 3, 5): "a line",
    (1, 1, 5, 2): "a kernel wider than the grid",
    (1, 3, 3, 2, 3): "nothing but edges",
    (1, 1, 3, 2, 2, 3): "three axes",
    (2, 16, 3, 101): "the tutorial's network",
    (1, 5, 3, 4513): "several tiles of a line, channels that fill no block",
    (2, 16, 5, 61, 35): "several tiles of rows, 5 x 5",
    (1, 16, 3, 290, 17): "narrow rows, several side by side",
}


def arrays(shape, dtype, rng):
    """(u, w1, b1, w2, b2, gradient of the output, boundary of each axis) of one of SHAPES."""
    B, channels, k, *grid = shape
    normal = lambda *size: rng.standard_normal(size).astype(dtype)
    taps = dtype.type(k ** len(grid))
    return (normal(B, 1, *grid), normal(channels, 1, *[k] * len(grid)) / np.sqrt(taps), normal(channels),
            normal(1, channels, *[k] * len(grid)) / np.sqrt(taps * dtype.type(channels)), normal(1),
            normal(B, 1, *grid), conv.arrays((B, 1, 1, k, *grid), dtype, rng)[-1])


def _sample(part, activation):
    def sample(shape, dtype, rng):
        u, w1, b1, w2, b2, grad, boundary = arrays(shape, dtype, rng)
        how = dict(u=u, boundary=boundary, activation=activation)
        if part == "step":
            theta = np.concatenate([a.reshape(-1) for a in (w1, b1, w2, b2)])
            state = np.stack([theta, 0.1 * theta, rng.uniform(0.5, 1, theta.shape)]).astype(dtype)
            return dict(target=grad, state=state, count=3, rate=1e-2, kernel=w1.shape[2:], **how)
        return dict(w1=w1, b1=b1, w2=w2, b2=b2, **how, **({"grad": grad} if part == "backward" else {}))

    return sample


_CALLS = {"forward": (reference, cpu, cuda), "backward": (reference_backward, cpu_backward, cuda_backward),
          "step": (reference_step, cpu_step, None)}
_OUTPUTS = {
    "forward": lambda u, **_: np.empty_like(u),
    "backward": lambda u, w1, b1, w2, b2, **_: tuple(np.empty_like(a) for a in (u, w1, b1, w2, b2)),
    "step": lambda u, state, **_: (np.empty_like(state), np.empty(1, u.dtype)),
}
_PTX = {"forward": conv.ptx("block_forward"), "backward": conv.ptx("block_grad_input", "block_grad_weight"),
        "step": None}


def _kernel(name, part, activation="relu"):
    reference, cpu, cuda = _CALLS[part]
    cuda = None if activation in ("silu", "tanh") or name == "conv_block_backward" else cuda  # compiled once for all
    return Kernel(name=name, reference=reference, cpu=cpu, cuda=cuda, sample=_sample(part, activation), ndim=0,
                  outputs=_OUTPUTS[part], shapes=SHAPES, large=(32, 16, 3, 128, 128),
                  machine_code=conv.machine_code("forward" if part == "forward" else "grad_weight"),
                  ptx=_PTX[part] if cuda else None, tolerance=32)


KERNELS = [
    _kernel("conv_block", "forward"),
    _kernel("conv_block_backward", "backward"),
    _kernel("conv_block_backward_gelu", "backward", "gelu"),
    _kernel("conv_block_backward_silu", "backward", "silu"),
    _kernel("conv_block_backward_tanh", "backward", "tanh"),
    _kernel("conv_block_step", "step"),
]
