"""Derivatives of a multilayer perceptron in one pass: operators and autograd Functions around `kernels/jet.py`."""

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fastdiff.kernels import jet as kernels
from fastdiff.nn._ops import arrays, op

_NET = "int[] widths, int[] terms, float[] factors, str activation, bool last"


def _all(*tensors) -> Any:
    """NumPy views of tensors that are all there."""
    return arrays(*tensors)


def _terms(terms, factors):
    return [(*terms[3 * k : 3 * k + 3], a) for k, a in enumerate(factors)]


def _channels(seeds, terms):
    return 1 + seeds.shape[0] + 1 + max(terms[::3], default=-1)


def _forward_cpu(x, theta, seeds, widths, terms, factors, activation, last):
    x, theta, seeds = arrays(x, theta, seeds)
    out = kernels.forward(x, theta, widths, seeds, _terms(terms, factors), activation, last)
    return torch.from_numpy(out)


def _forward_fake(x, theta, seeds, widths, terms, factors, activation, last):
    return x.new_empty(_channels(seeds, terms), x.shape[-2], widths[-1])


def _forward_cuda(x, theta, seeds, widths, terms, factors, activation, last):
    from fastdiff.kernels._jet_cuda import forward

    return forward(x.detach().contiguous(), theta.detach().contiguous(), widths, seeds.detach().cpu().numpy(),
                   _terms(terms, factors), activation, last, stream=torch.cuda.current_stream(x.device).cuda_stream)


def _adjoint_cpu(x, theta, seeds, cot, widths, terms, factors, activation, last, want_x):
    x, theta, seeds, cot = _all(x, theta, seeds, cot)
    found = kernels.adjoint(x, theta, widths, seeds, cot, _terms(terms, factors), activation, last, want_x)
    return torch.from_numpy(found[0]), torch.from_numpy(np.empty(0, x.dtype) if found[1] is None else found[1])


def _adjoint_fake(x, theta, seeds, cot, widths, terms, factors, activation, last, want_x):
    return torch.empty_like(theta), torch.empty_like(x) if want_x else x.new_empty(0)


def _adjoint_cuda(x, theta, seeds, cot, widths, terms, factors, activation, last, want_x):
    from fastdiff.kernels._jet_cuda import adjoint

    found = adjoint(x.detach().contiguous(), theta.detach().contiguous(), widths, seeds.detach().cpu().numpy(),
                    cot.detach().contiguous(), _terms(terms, factors), activation, last, want_x,
                    stream=torch.cuda.current_stream(x.device).cuda_stream)
    return found[0], x.new_empty(0) if found[1] is None else found[1]


def _residual_cpu(x, theta, seeds, rows, numbers, widths, terms, activation, gradient):
    dtype, given = _TYPES[x.dtype], [np.full(1, v, _TYPES[x.dtype]) for v in numbers]
    x, theta, seeds, *rows = arrays(x, theta, seeds, *rows)
    rows = [one if row is None else row.astype(dtype, copy=False) for row, one in zip(rows, given)]
    pairs = [(terms[2 * k], terms[2 * k + 1]) for k in range(len(terms) // 2)]
    a, b, (c, f, weight) = rows[: len(pairs)], rows[len(pairs) : -3], rows[-3:]
    r, grad = kernels.residual(x, theta, widths, seeds, pairs, a, b, c, f, weight, activation, gradient)
    loss = np.array(_mean_square(r, weight), dtype)
    return torch.from_numpy(loss), torch.from_numpy(np.empty(0, dtype) if grad is None else grad), torch.from_numpy(r)


_TYPES: Any = {torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64)}


def _mean_square(r, weight):
    r = r.astype(np.float64)
    if weight.size == 1:
        return float(weight.flat[0]) * (np.dot(r, r) / len(r))
    return np.dot(r * r, weight.astype(np.float64)) / len(r)


def _residual_fake(x, theta, seeds, rows, numbers, widths, terms, activation, gradient):
    return x.new_empty(()), torch.empty_like(theta) if gradient else x.new_empty(0), x.new_empty(x.shape[0])


def _jacobian_cpu(x, theta, seeds, cot, widths, terms, factors, activation):
    x, theta, seeds, cot = arrays(x, theta, seeds, cot)
    return torch.from_numpy(kernels.jacobian(x, theta, widths, seeds, cot, _terms(terms, factors), activation))


def _jacobian_cuda(x, theta, seeds, cot, widths, terms, factors, activation):
    from fastdiff.kernels._jet_cuda import jacobian

    x, theta, cot = (t.detach().contiguous() for t in (x, theta, cot))
    return jacobian(x, theta, widths, seeds.detach().cpu().numpy(), cot, _terms(terms, factors), activation,
                    stream=torch.cuda.current_stream(x.device).cuda_stream)


def _jacobian_fake(x, theta, seeds, cot, widths, terms, factors, activation):
    return x.new_empty(theta.shape[0], x.shape[-2])


_forward = op(f"jet_forward(Tensor x, Tensor theta, Tensor seeds, {_NET}) -> Tensor", _forward_cpu, _forward_fake,
              _forward_cuda)
_adjoint = op(f"jet_adjoint(Tensor x, Tensor theta, Tensor seeds, Tensor cot, {_NET}, bool want_x) -> (Tensor, Tensor)",
              _adjoint_cpu, _adjoint_fake, _adjoint_cuda)
_residual = op("jet_residual(Tensor x, Tensor theta, Tensor seeds, Tensor?[] rows, float[] numbers, int[] widths, "
               "int[] terms, str activation, bool gradient) -> (Tensor, Tensor, Tensor)", _residual_cpu, _residual_fake)
_jacobian = op("jet_jacobian(Tensor x, Tensor theta, Tensor seeds, Tensor cot, int[] widths, int[] terms, "
               "float[] factors, str activation) -> Tensor", _jacobian_cpu, _jacobian_fake, _jacobian_cuda)

_ONCE = ("the {0} kernel differentiates once: no second derivative by the parameters. Derivatives by the inputs come "
         "from `first` and `second`; for curvature use `jet_jacobian` (Gauss-Newton)")


def _signed(function):
    """Decorator: remember the signature of `forward`, which torch would look up in each call (20 microseconds)."""
    function.forward.__signature__ = inspect.signature(function.forward)
    return function


@_signed
class _Jets(torch.autograd.Function):
    @staticmethod
    def forward(x, theta, seeds, net):
        return _forward(x, theta, seeds, *net)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, theta, seeds, ctx.net = inputs
        ctx.save_for_backward(x, theta, seeds)

    @staticmethod
    def backward(ctx: Any, *cots):
        x, theta, seeds = ctx.saved_tensors
        adjoint = _JetsAdjoint.apply if torch.is_grad_enabled() else _adjoint_of
        theta_bar, x_bar = adjoint(x, theta, seeds, cots[0], ctx.net, ctx.needs_input_grad[0])
        return x_bar if ctx.needs_input_grad[0] else None, theta_bar, None, None

    @staticmethod
    def vmap(info, in_dims, x, theta, seeds, net):
        if in_dims[1] is None and in_dims[2] is None and x.ndim == 3:  # points of all samples at once
            x = x.movedim(in_dims[0], 0)
            out = _Jets.apply(x.reshape(-1, x.shape[-1]), theta, seeds, net)
            return out.reshape(out.shape[0], *x.shape[:2], out.shape[-1]), 1
        return _each(info, in_dims, lambda *a: _Jets.apply(*a, net), x, theta, seeds), 0


def _adjoint_of(x, theta, seeds, cot, net, want_x):
    return _adjoint(x, theta, seeds, cot, *net, want_x)


@_signed
class _JetsAdjoint(torch.autograd.Function):
    @staticmethod
    def forward(x, theta, seeds, cot, net, want_x):
        return _adjoint_of(x, theta, seeds, cot, net, want_x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *cots):
        raise NotImplementedError(_ONCE.format("jet"))

    @staticmethod
    def vmap(info, in_dims, x, theta, seeds, cot, net, want_x):
        pairs = [_JetsAdjoint.apply(*(_pick(v, d, k) for v, d in zip((x, theta, seeds, cot), in_dims)), net, want_x)
                 for k in range(info.batch_size)]
        return tuple(torch.stack(part) for part in zip(*pairs)), (0, 0)


def _pick(value, dim, k):
    return value if dim is None else value.select(dim, k)


def _each(info, in_dims, function, *values):
    return torch.stack([function(*(_pick(v, d, k) for v, d in zip(values, in_dims))) for k in range(info.batch_size)])


@_signed
class _ResidualLoss(torch.autograd.Function):
    @staticmethod
    def forward(theta, x, seeds, rows, net):
        return _residual(x, theta, seeds, rows, *net)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output[1], inputs[0])
        ctx.mark_non_differentiable(output[1], output[2])

    @staticmethod
    def backward(ctx: Any, *cots):
        gradient, theta = ctx.saved_tensors
        scaled = _Scaled.apply if torch.is_grad_enabled() else _scaled
        return scaled(cots[0], gradient, theta), *[None] * 4

    @staticmethod
    def vmap(info, in_dims, theta, x, seeds, rows, net):
        found = []
        for k in range(info.batch_size):
            one = [_pick(v, d, k) for v, d in zip((theta, x, seeds), in_dims)]
            dims = in_dims[3] if isinstance(in_dims[3], list | tuple) else [None] * len(rows)
            some = [None if v is None else _pick(v, d, k) for v, d in zip(rows, dims)]
            found.append(_residual(one[1], one[0], one[2], some, *net))
        return tuple(torch.stack(part) for part in zip(*found)), (0, 0, 0)


def _scaled(cot, gradient, theta):
    return cot.unsqueeze(-1) * gradient


@_signed
class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(cot, gradient, theta):  # theta is here so that its second derivative is refused, not taken as 0
        return _scaled(cot, gradient, theta)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *cots):
        raise NotImplementedError(_ONCE.format("residual_loss"))

    @staticmethod
    def vmap(info, in_dims, cot, gradient, theta):
        cot = cot.movedim(in_dims[0], 0) if in_dims[0] is not None else cot.expand(info.batch_size)
        gradient = gradient.movedim(in_dims[1], 0) if in_dims[1] is not None else gradient
        return cot[:, None] * gradient, 0


def _check(x, theta, widths, activation):
    if activation == "relu":
        raise ValueError("relu has no second derivative (it is 0 wherever it exists), so that u_xx of the network "
                         f"would vanish: use one of {', '.join(kernels.ACTIVATIONS)}")
    if activation not in kernels.ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}; known: {', '.join(kernels.ACTIVATIONS)}")
    if x.dtype not in (torch.float32, torch.float64) or theta.dtype != x.dtype:
        raise TypeError(f"x and the parameters must both be float32 or both float64, not {x.dtype} and {theta.dtype}")
    if x.ndim not in (2, 3) or x.shape[-1] != widths[0]:
        raise ValueError(f"x must have shape (points, {widths[0]}), or (channels, points, {widths[0]}) for jets of an "
                         f"earlier layer, not {tuple(x.shape)}")


def jet_mlp(x, theta, widths: Sequence[int], seeds, terms=(), activation: str = "tanh", last: bool = False):
    """Value, first and second derivatives of a multilayer perceptron in one pass (Taylor mode).

    x           points (N, d), or jets (C, N, d) of an earlier layer
    theta       flat parameters: W (out, in) and b (out) of each layer in turn
    seeds       (F, d): the directions of the first derivatives
    terms       (s, i, j, a): second-derivative channel s has a u_ij added, i and j rows of `seeds`
    activation  tanh, sin, silu or gelu (by erf); `last`: after the last layer, too

    Returns channels (1 + F + S, N, out): u, its first, its second derivatives. Differentiable once by x and theta,
    with `torch.func` and `torch.compile`; a second derivative raises NotImplementedError. Raises ValueError for
    shapes that do not fit and for activations without a second derivative.

    Source: Griewank and Walther, Evaluating Derivatives, 2nd ed., SIAM 2008, chapter 13; collapsed sums: Dangel et
    al., arXiv 2505.13644.
    """
    _check(x, theta, widths, activation)
    flat = [int(n) for s, i, j, _ in terms for n in (s, i, j)]
    net = ([int(w) for w in widths], flat, [float(t[3]) for t in terms], activation, bool(last))
    return _Jets.apply(x, theta, seeds, net)


def jet_residual(x, theta, widths: Sequence[int], seeds, terms, a, b, c, f, weight, activation: str = "tanh"):
    """Mean over the points of weight (L u + c u - f)^2, and the residuals, with the gradient formed in the same pass.

    L u = sum over `terms` (i, j) of a u_ij + sum over inputs k of b_k u_k; i and j are rows of `seeds`. Each of a, b,
    c, f and weight is a number, or a tensor of one number or of one a point (N). Returns (loss, residuals (N)).
    Differentiable by theta alone, once. On a GPU the channels are those of `jet_mlp`, joined by torch.
    """
    _check(x, theta, widths, activation)
    rows = [*a, *b, c, f, weight]
    if len(a) != len(terms) or len(b) != widths[0] or widths[-1] != 1 or x.ndim != 2 or not len(x):
        raise ValueError(f"an operator has a number for each of {len(terms)} terms and each of {widths[0]} inputs, and "
                         f"acts on one output at one point (N, {widths[0]}) or more: not on x of {tuple(x.shape)} with "
                         f"{widths[-1]} outputs")
    if x.is_cuda:
        return _joined(x, theta, widths, seeds, terms, rows, activation)
    tensors = [v if isinstance(v, torch.Tensor) else None for v in rows]
    numbers = [0.0 if isinstance(v, torch.Tensor) else float(v) for v in rows]
    gradient = torch.is_grad_enabled() and theta.requires_grad
    net = (numbers, [int(w) for w in widths], [int(k) for pair in terms for k in pair], activation, gradient)
    loss, _, r = _ResidualLoss.apply(theta, x, seeds, tensors, net)
    return loss, r


def _joined(x, theta, widths, seeds, terms, rows, activation):
    """`jet_residual` from channels: a second derivative for each term, and the first ones by every input."""
    firsts, n = seeds.shape[0], len(terms)
    a, b, (c, f, weight) = rows[:n], rows[n:-3], rows[-3:]
    every = torch.cat([seeds, torch.eye(x.shape[1], dtype=x.dtype, device=x.device)])
    u = jet_mlp(x.detach(), theta, widths, every, [(k, i, j, 1.0) for k, (i, j) in enumerate(terms)], activation)
    u, r = u[..., 0], c * u[0, :, 0] - f
    for k, factor in enumerate(b):
        r = r + factor * u[1 + firsts + k]
    for k, factor in enumerate(a):
        r = r + factor * u[1 + len(every) + k]
    return (weight * r.square()).mean(), r.detach()


def jet_jacobian(x, theta, widths: Sequence[int], seeds, cot, terms=(), activation: str = "tanh"):
    """d/dtheta of each point's sum of cot * channels: (parameters, N). With cot = dr/d(channels) that is dr/dtheta.

    cot  (C, N, out), as `jet_mlp` returns channels. Not differentiable.
    """
    _check(x, theta, widths, activation)
    flat = [int(n) for s, i, j, _ in terms for n in (s, i, j)]
    with torch.no_grad():
        return _jacobian(x, theta, seeds, cot, [int(w) for w in widths], flat, [float(t[3]) for t in terms],
                         activation)


__all__ = ["jet_jacobian", "jet_mlp", "jet_residual"]
