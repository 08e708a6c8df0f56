"""Noise, reverse steps, losses and normalisation of diffusion models: torch operators of the kernels.

See the kernels' files for the equations: noise.py, sampler.py, group_norm.py, time_embedding.py.
"""

from typing import Any

import numpy as np
import torch
from torch.autograd import Function

from fastdiff.kernels import group_norm as _group_norm
from fastdiff.kernels import noise as _noise
from fastdiff.kernels import sampler as _sampler
from fastdiff.kernels import time_embedding as _embedding
from fastdiff.kernels.noise import Draw
from fastdiff.kernels.sampler import Coefficients
from fastdiff.nn._memory import empty_like
from fastdiff.nn._ops import array, arrays, into, op, plain, quick


def _cuda(function):
    """The same on the GPU, on torch's current stream."""

    def run(*args):
        first = next(a for a in args if isinstance(a, torch.Tensor) and a.is_cuda)
        stream = torch.cuda.current_stream(first.device).cuda_stream
        return function(stream, *(a.detach().contiguous() if isinstance(a, torch.Tensor) else a for a in args))

    return run


def _like(u, *rest):
    return empty_like(u)


def _two(u, *rest):
    return _like(u), _like(u)


# -- noise -------------------------------------------------------------------------------------------------------------

_add_noise_cpu = into(_noise.cpu, _like)
_add_noise_target_cpu = into(lambda u, k, e, out: _noise.cpu(u, k, e, target=True, out=out), _two)
_draw_noise_cpu = into(lambda u, k, *draw, out: _noise.cpu(u, k, draw=Draw(*draw), target=True, out=out), _two)
_add_noise = op(
    "add_noise(Tensor u, Tensor coefficients, Tensor noise) -> Tensor", _add_noise_cpu, _like,
    _cuda(lambda s, u, k, e: _noise.cuda(u, k, e, stream=s)))
_add_noise_target = op(
    "add_noise_target(Tensor u, Tensor coefficients, Tensor noise) -> (Tensor, Tensor)",
    _add_noise_target_cpu, _two,
    _cuda(lambda s, u, k, e: _noise.cuda(u, k, e, target=True, stream=s)))
_draw_noise = op(
    "draw_noise(Tensor u, Tensor coefficients, int seed, int stream, int first) -> (Tensor, Tensor)",
    _draw_noise_cpu, _two,
    _cuda(lambda s, u, k, *draw: _noise.cuda(u, k, draw=Draw(*draw), target=True, stream=s)))
_normal = op(
    "normal(Tensor like, int seed, int stream, int first) -> Tensor",
    into(lambda u, *draw, out: _noise.normal(u, Draw(*draw), out=out), _like), _like,
    _cuda(lambda s, u, *draw: _noise.normal_cuda(u, Draw(*draw), stream=s)))


@quick
class _AddNoise(Function):
    @staticmethod
    def forward(u, coefficients, noise):  # pyright: ignore[reportIncompatibleMethodOverride]
        return _add_noise(u, coefficients, noise)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx, g):  # pyright: ignore[reportIncompatibleMethodOverride]
        (k,) = ctx.saved_tensors
        a, s = (k[:, i].reshape(-1, *[1] * (g.ndim - 1)) for i in range(2))
        return a * g, None, s * g

    @staticmethod
    def vmap(info, in_dims, u, coefficients, noise):  # pyright: ignore[reportIncompatibleMethodOverride]
        given = [_to_front(x, d, info.batch_size) for x, d in zip((u, coefficients, noise), in_dims)]
        flat = [x.reshape(-1, *x.shape[2:]) for x in given]
        return _AddNoise.apply(*flat).reshape(given[0].shape), 0  # pyright: ignore[reportOptionalMemberAccess]


def _to_front(x, dim, size):
    return x.unsqueeze(0).expand(size, *x.shape) if dim is None else x.movedim(dim, 0)


def add_noise(u, coefficients, noise):
    """a u + s noise, with (a, s, p, q) for each sample in `coefficients` (B, 4); differentiable in u and noise."""
    _check(u, coefficients, noise)
    if plain(u, coefficients, noise):
        return _add_noise_cpu(u, coefficients, noise)
    return _AddNoise.apply(u, coefficients, noise)


def add_noise_target(u, coefficients, noise):
    """x_t = a u + s noise and the target p u + q noise, in one pass; not differentiated."""
    _check(u, coefficients, noise)
    return (_add_noise_target_cpu if plain(u, coefficients, noise) else _add_noise_target)(u, coefficients, noise)


def draw_noise(u, coefficients, draw: Draw):
    """x_t and target with the noise that `draw` (seed, stream, first sample) names; not differentiated."""
    _check(u, coefficients)
    return (_draw_noise_cpu if plain(u, coefficients) else _draw_noise)(u, coefficients, *draw)


def normal(like, draw: Draw):
    """Standard normal numbers of the shape, dtype and device of `like`: the same ones wherever they are made."""
    return _normal(like, *draw)


def _check(u, coefficients, *others):
    if tuple(coefficients.shape) != (u.shape[0], 4) or coefficients.dtype != u.dtype:
        raise ValueError(f"coefficients are ({u.shape[0]}, 4) numbers of {u.dtype}, one line (a, s, p, q) for each "
                         f"sample, not {tuple(coefficients.shape)} of {coefficients.dtype}")
    for other in others:
        _check_alike(u, other)


def _check_alike(u, other, name="noise"):
    if other.shape != u.shape or other.dtype != u.dtype:
        raise ValueError(f"{name} has shape {tuple(other.shape)} and {other.dtype}; expected {tuple(u.shape)} and "
                         f"{u.dtype} as the state")


# -- reverse steps -----------------------------------------------------------------------------------------------------

def _numbers(coefficients, u):
    """The coefficients in the dtype of u, on the host."""
    return coefficients.array(str(u.dtype).removeprefix("torch."))


def _step_cpu(u, model, k, without, old, noise, words, estimate):
    out: Any = (_like(u), _like(u)) if estimate else _like(u)
    there = arrays(*out) if estimate else out.numpy()
    _sampler.cpu(array(u), array(model), k, array(without), array(old), array(noise), words, estimate, out=there)
    return out


def _step_on(stream, u, model, coefficients, without, old, noise, draw, estimate):
    k = _numbers(Coefficients(*coefficients), u)
    words = None if draw is None else Draw(*draw)
    if stream is None:
        found: Any = _step_cpu(u, model, k, without, old, noise, words, estimate)
    else:
        u, model, without, old, noise = (t if t is None else t.detach().contiguous() for t in
                                         (u, model, without, old, noise))
        found = _sampler.cuda(u, model, k, without, old, noise, words, estimate, stream=stream)
    return found if estimate else (found, u.new_empty(0))  # pyright: ignore[reportOptionalMemberAccess]


_step = op(
    "reverse_step(Tensor u, Tensor model, float[] coefficients, Tensor? without, Tensor? old, Tensor? noise, "
    "int[]? draw, bool estimate) -> (Tensor, Tensor)",
    lambda *a: _step_on(None, *a), lambda u, m, k, w, o, e, d, estimate: (_like(u), _like(u) if estimate else
                                                                         u.new_empty(0)),
    lambda *a: _step_on(torch.cuda.current_stream(a[0].device).cuda_stream, *a))


def reverse_step(u, model, coefficients: Coefficients, *, without=None, old=None, noise=None, draw: Draw | None = None,
                 estimate: bool = False) -> Any:
    """One step of a sampler, x' or with `estimate` the pair x' and x0; see kernels/sampler.py. Not differentiated."""
    given = [u]
    for name, other in (("model", model), ("without", without), ("old", old), ("noise", noise)):
        if other is not None:
            _check_alike(u, other, name)
            given.append(other)
    if plain(*given):
        return _step_cpu(u, model, _numbers(coefficients, u), without, old, noise, draw, estimate)
    with torch.no_grad():
        found = _step(u, model, [float(k) for k in coefficients], without, old, noise,
                      None if draw is None else list(draw), estimate)
    return found if estimate else found[0]


# -- loss --------------------------------------------------------------------------------------------------------------

_loss = op("weighted_mse(Tensor u, Tensor target, Tensor weight) -> Tensor",
           into(_sampler.loss, lambda u, target, weight: torch.empty_like(weight)),
           lambda u, target, weight: torch.empty_like(weight),
           _cuda(lambda s, *a: _sampler.loss_cuda(*a, stream=s)))
_loss_gradient = op("weighted_mse_gradient(Tensor u, Tensor target, Tensor weight) -> Tensor",
                    into(_sampler.loss_gradient, _like), _like,
                    _cuda(lambda s, *a: _sampler.loss_gradient_cuda(*a, stream=s)))


@quick
class _LossGradient(Function):
    """2 w_b / N_b (u - target): linear in u and target, so that the loss can be differentiated twice."""

    @staticmethod
    def forward(u, target, weight):  # pyright: ignore[reportIncompatibleMethodOverride]
        return _loss_gradient(u, target, weight)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g):  # pyright: ignore[reportIncompatibleMethodOverride]
        u, target, weight = ctx.saved_tensors
        scale = 2 / max(g[:1].numel(), 1)
        back = g * (scale * weight).reshape(-1, *[1] * (g.ndim - 1))
        return back, -back, scale * (g * (u - target)).flatten(1).sum(1)

    @staticmethod
    def vmap(info, in_dims, *given):  # pyright: ignore[reportIncompatibleMethodOverride]
        return _flattened(_LossGradient, info, in_dims, given)


@quick
class _WeightedMSE(Function):
    @staticmethod
    def forward(u, target, weight):  # pyright: ignore[reportIncompatibleMethodOverride]
        return _loss(u, target, weight)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g):  # pyright: ignore[reportIncompatibleMethodOverride]
        u, target, weight = ctx.saved_tensors
        back = _LossGradient.apply(u, target, weight * g)
        return back, -back if ctx.needs_input_grad[1] else None, None

    @staticmethod
    def vmap(info, in_dims, *given):  # pyright: ignore[reportIncompatibleMethodOverride]
        return _flattened(_WeightedMSE, info, in_dims, given)


def _flattened(function, info, in_dims, given):
    """Samples of all members of a vmap as one batch."""
    given = [_to_front(x, d, info.batch_size) for x, d in zip(given, in_dims)]
    out = function.apply(*(x.reshape(-1, *x.shape[2:]) for x in given))
    return out.reshape(given[0].shape[:2] + out.shape[1:]), 0


def weighted_mse(u, target, weight=None):
    """w_b times the mean square of u - target over each sample: (B,). Differentiable in u and target, not in weight."""
    _check_alike(u, target, "target")
    weight = u.new_ones(u.shape[0]) if weight is None else weight
    return _WeightedMSE.apply(u, target, weight)


# -- group normalisation -----------------------------------------------------------------------------------------------

def _normed(u, groups):
    return _like(u), u.new_empty((u.shape[0], groups)), u.new_empty((u.shape[0], groups))


def _norm_slopes(u, cotangent, mean, rate, gain, bias, silu):
    return _like(u), _like(gain), _like(gain)


_norm = op(
    "group_norm(Tensor u, Tensor gain, Tensor bias, Tensor? residual, int groups, float eps, bool silu) "
    "-> (Tensor, Tensor, Tensor)",
    lambda u, g, b, r, *more: _norm_on(None, u, g, b, r, *more),
    lambda u, gain, bias, residual, groups, eps, silu: _normed(u, groups),
    lambda u, *a: _norm_on(torch.cuda.current_stream(u.device).cuda_stream, u, *a))
_norm_backward = op(
    "group_norm_backward(Tensor u, Tensor cotangent, Tensor mean, Tensor rate, Tensor gain, Tensor bias, bool silu) "
    "-> (Tensor, Tensor, Tensor)", into(_group_norm.backward, _norm_slopes), _norm_slopes,
    _cuda(lambda s, *a: _group_norm.backward_cuda(*a, stream=s)))


def _norm_on(stream, u, gain, bias, residual, groups, eps, silu):
    if stream is None:
        out = _normed(u, groups)
        u, gain, bias, residual = arrays(u, gain, bias, residual)
        _group_norm.cpu(u, gain, bias, groups, eps, silu, residual, out=arrays(*out))
        return out
    u, gain, bias, residual = (t if t is None else t.detach().contiguous() for t in (u, gain, bias, residual))
    return _group_norm.cuda(u, gain, bias, groups, eps, silu, residual, stream=stream)


@quick
class _NormBackward(Function):
    """The backward kernel; what would be its own gradient is refused."""

    @staticmethod
    def forward(u, g, mean, rate, gain, bias, silu):  # pyright: ignore[reportIncompatibleMethodOverride]
        return _norm_backward(u, g, mean, rate, gain, bias, silu)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *g):
        raise NotImplementedError("the fused group normalisation is differentiable once only: for second derivatives "
                                  "use torch.nn.functional.group_norm and silu")

    @staticmethod
    def vmap(info, in_dims, *given):  # pyright: ignore[reportIncompatibleMethodOverride]
        front = [_to_front(x, d, info.batch_size) for x, d in zip(given[:6], in_dims)]
        out = _NormBackward.apply(*(x.reshape(-1, *x.shape[2:]) for x in front), given[6])
        return tuple(o.reshape(info.batch_size, -1, *o.shape[1:]) for o in out), (0, 0, 0)


@quick
class _GroupNorm(Function):
    @staticmethod
    def forward(u, gain, bias, residual, groups, eps, silu):  # pyright: ignore[reportIncompatibleMethodOverride]
        return _norm(u, gain, bias, residual, groups, eps, silu)

    @staticmethod
    def setup_context(ctx, inputs, output):
        u, gain, bias, residual, _, _, ctx.silu = inputs
        ctx.residual = residual is not None
        ctx.mark_non_differentiable(output[1], output[2])
        ctx.save_for_backward(u, gain, bias, output[1], output[2])

    @staticmethod
    def backward(ctx, g, *rest):  # pyright: ignore[reportIncompatibleMethodOverride]
        u, gain, bias, mean, rate = ctx.saved_tensors
        found = _NormBackward.apply(u, g, mean, rate, gain, bias, ctx.silu)
        return *found, g if ctx.residual else None, None, None, None

    @staticmethod
    def vmap(info, in_dims, *given):  # pyright: ignore[reportIncompatibleMethodOverride]
        front = [x if x is None else _to_front(x, d, info.batch_size) for x, d in zip(given[:4], in_dims)]
        flat = [x if x is None else x.reshape(-1, *x.shape[2:]) for x in front]
        out = _GroupNorm.apply(*flat, *given[4:])
        return tuple(o.reshape(info.batch_size, -1, *o.shape[1:]) for o in out), (0, 0, 0)


def _by_sample(u, gain, offset):
    """Gain and offset of each channel of each sample of u: contiguous arrays (B, C)."""
    both = np.empty((2, *u.shape[:2]), u.dtype)
    both[0], both[1] = gain, offset
    return both[0], both[1]


class _DirectNorm(Function):
    """All of `group_norm` in one node, without the dispatcher, for plain tensors on the CPU.

    The kernels leave the caches full of fields: each small operation around them takes some ten microseconds.
    """

    @staticmethod
    def forward(ctx, u, weight, bias, scale, shift, residual, groups, eps, silu):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, *parts = arrays(u, weight, bias, scale, shift)
        gain, offset = _by_sample(x, *_group_norm.affine(*parts))
        y, (mean, rate) = _like(u), np.empty((2, len(x), groups), x.dtype)
        _group_norm.cpu(x, gain, offset, groups, eps, silu, array(residual), out=(y.numpy(), mean, rate))
        ctx.save_for_backward(u, weight, bias, scale)
        ctx.kept = mean, rate, gain, offset, silu, shift, residual is not None
        return y

    @staticmethod
    def backward(ctx, g):  # pyright: ignore[reportIncompatibleMethodOverride]
        u, weight, bias, scale = ctx.saved_tensors
        mean, rate, gain, offset, silu, shift, added = ctx.kept
        if torch.is_grad_enabled() or not plain(g) or _batched(g):
            kept = map(torch.from_numpy, (mean, rate, gain, offset))
            du, dgain, doffset = _norm_slopes_of(u, g, *kept, silu)
            found = _group_norm.affine_backward(dgain, doffset, weight, bias, scale, shift)
        else:
            x, w, b, more = arrays(u, weight, bias, scale)
            dgain, doffset = np.empty((2, *x.shape[:2]), x.dtype)
            du = _like(u)
            _group_norm.backward(x, array(g), mean, rate, gain, offset, silu, out=(du.numpy(), dgain, doffset))
            found = _group_norm.affine_backward(dgain, doffset, w, b, more, shift)
            found = (d if d is None else torch.from_numpy(d) for d in found)
        return du, *found, g if added else None, None, None, None


_norm_slopes_of: Any = _NormBackward.apply
_MAPPED = torch._C._dispatch_key_parse("Batched")  # pyright: ignore[reportAttributeAccessIssue]


def _batched(g):
    """Whether autograd maps over cotangents (is_grads_batched): a vmap older than torch.func's."""
    return torch._C._dispatch_keys(g).has(_MAPPED)


def _direct(u, weight, bias, scale, shift, residual):
    """Whether `_DirectNorm` may take these: plain tensors of one dtype on the CPU, nothing traced or transformed."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    if torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack():
        return False
    for t, shape in ((u, u.shape), (weight, u.shape[1:2]), (bias, u.shape[1:2]), (scale, u.shape[:2]),
                     (shift, u.shape[:2]), (residual, u.shape)):
        if t is not None and not (type(t) in _PLAIN and t.is_cpu and t.dtype == u.dtype and t.shape == shape):
            return False
    return True


_PLAIN = torch.Tensor, torch.nn.Parameter


def group_norm(u, groups: int, weight=None, bias=None, scale=None, shift=None, residual=None, *, silu: bool = False,
               eps: float = 1e-5):
    """silu(GroupNorm(u) (1 + scale) + shift) + residual, fused; every part but the norm may be left out.

    u (B, C, ...); weight and bias (C,); scale and shift (B, C); residual like u. Differentiable once in all of them.
    Raises ValueError for groups that do not divide C.
    """
    if u.ndim < 2:
        raise ValueError(f"u is (batch, channels, ...), not {tuple(u.shape)}")
    _group_norm.check_groups(u.shape[1], groups)
    if residual is not None:
        _check_alike(u, residual, "residual")
    if _direct(u, weight, bias, scale, shift, residual):
        return _DirectNorm.apply(u, weight, bias, scale, shift, residual, groups, eps, silu)  # pyright: ignore[reportCallIssue]
    gain, offset = (k if isinstance(k, torch.Tensor) else u.new_full((1,), k)
                    for k in _group_norm.affine(weight, bias, scale, shift))
    shape = u.shape[:2]
    return _GroupNorm.apply(u, gain.expand(shape), offset.expand(shape), residual, groups, eps, silu)[0]


# -- time embedding ----------------------------------------------------------------------------------------------------

def _embedded(t, f):
    return t.new_empty((t.shape[0], 2 * f.shape[0]))


_embed = op("time_embedding(Tensor t, Tensor frequencies) -> Tensor", into(_embedding.cpu, _embedded), _embedded,
            _cuda(lambda s, *a: _embedding.cuda(*a, stream=s)))


def time_embedding(t, size: int, period: float = 10000.0):
    """Cosines and sines of times (B,): (B, size), as kernels/time_embedding.py says; not differentiated."""
    if size < 2 or size % 2:
        raise ValueError(f"the size of a time embedding is even and at least 2, not {size}")
    f = torch.as_tensor(_embedding.frequencies(size // 2, period), dtype=t.dtype, device=t.device)
    return _embed(t, f)


__all__ = ["Coefficients", "Draw", "add_noise", "add_noise_target", "draw_noise", "group_norm", "normal",
           "reverse_step", "time_embedding", "weighted_mse"]
