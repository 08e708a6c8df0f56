"""Convolutions with the boundary folded in: autograd Functions around `kernels/conv.py` and `kernels/conv_block.py`."""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from fastdiff.kernels import _activation, _conv, _conv_block
from fastdiff.kernels import conv as kernels
from fastdiff.kernels import conv_block as blocks
from fastdiff.nn._ops import arrays, op

PADDINGS = {"periodic": "circular", "neumann": "replicate", "dirichlet": "constant"}
NAMES = {number: name for name, number in _conv.MODES.items()}
ACTIVATIONS = {number: name for name, number in _activation.CODES.items()}
TWICE = ("fastdiff's convolutions cannot be differentiated twice: their backward pass has no derivative. Take "
         "backend='torch', which can.")


# -- operators -------------------------------------------------------------------------------------------------------


def _arrays(*tensors) -> Any:
    return arrays(*tensors)


def _on_gpu(*tensors) -> Any:
    return [t.detach().contiguous() for t in tensors]


def _stream():
    return torch.cuda.current_stream().cuda_stream


def _names(modes):
    return tuple(NAMES[m] for m in modes)


def _size_kept(u, w, code):
    return (u.shape[0], w.shape[0], *u.shape[2:]) if ACTIVATIONS[code] in _activation.KEEPS_INPUT else (0,)


def _forward_fake(u, weight, bias, modes, code, dilation, groups):
    return u.new_empty((u.shape[0], weight.shape[0], *u.shape[2:])), u.new_empty(_size_kept(u, weight, code))


def _forward_cpu(u, weight, bias, modes, code, dilation, groups):
    x, w, b = _arrays(u, weight, bias)
    out = np.empty((len(x), len(w), *x.shape[2:]), x.dtype)
    kept = np.empty(_size_kept(u, weight, code), x.dtype)
    kernels.cpu(x, w, b, _names(modes), ACTIVATIONS[code], tuple(dilation), groups, out=out,
                pre=kept if kept.size else None)
    return torch.from_numpy(out), torch.from_numpy(kept)


def _forward_cuda(u, weight, bias, modes, code, dilation, groups):
    out, kept = _forward_fake(u, weight, bias, modes, code, dilation, groups)
    x, w, b = _on_gpu(u, weight, weight.new_zeros(len(weight)) if bias is None else bias)
    kernels.cuda(x, w, b, _names(modes), ACTIVATIONS[code], tuple(dilation), groups, out=out, pre=kept,
                 stream=_stream())
    return out, kept


_forward = op("conv(Tensor u, Tensor weight, Tensor? bias, int[] modes, int code, int[] dilation, int groups)"
              " -> (Tensor, Tensor)", _forward_cpu, _forward_fake, _forward_cuda)


def _backward_fake(grad, u, weight, kept, modes, code, dilation, groups, wanted):
    empty = lambda like, wants: like.new_empty(like.shape if wants else (0,))
    bias = weight.new_empty((weight.shape[0],) if wanted[1] or wanted[2] else (0,))
    return empty(u, wanted[0]), empty(weight, wanted[1] or wanted[2]), bias


def _backward_cpu(grad, u, weight, kept, modes, code, dilation, groups, wanted):
    g, x, w, saved = _arrays(grad, u, weight, kept)
    if code:
        g = _conv.times_slopes(code, saved, g, np.empty_like(g)) if g.size else g
    how = _names(modes), tuple(dilation), groups
    found = kernels.cpu_grad_input(g, w, *how) if wanted[0] else np.empty(0, x.dtype)
    if wanted[1] or wanted[2]:
        weights = kernels.cpu_grad_weight(x, g, w.shape[2:], *how)
    else:
        weights = np.empty(0, x.dtype), np.empty(0, x.dtype)
    return torch.from_numpy(found), torch.from_numpy(weights[0]), torch.from_numpy(weights[1])


def _backward_cuda(grad, u, weight, kept, modes, code, dilation, groups, wanted):
    outputs = _backward_fake(grad, u, weight, kept, modes, code, dilation, groups, wanted)
    g, x, w = _on_gpu(grad if not code else grad * _slope(code, kept), u, weight)
    how = _names(modes), tuple(dilation), groups
    if wanted[0]:
        kernels.cuda_grad_input(g, w, *how, out=outputs[0], stream=_stream())
    if wanted[1] or wanted[2]:
        kernels.cuda_grad_weight(x, g, tuple(w.shape[2:]), *how, out=outputs[1:], stream=_stream())
    return outputs


def _slope(code, kept):
    """The slope of an activation from what was kept, by torch."""
    name = ACTIVATIONS[code]
    if name in _activation.KEEPS_INPUT:
        with torch.enable_grad():
            x = kept.detach().requires_grad_()
            return torch.autograd.grad(_activate(name, x).sum(), x)[0]
    return (kept > 0).to(kept.dtype) if name == "relu" else 1 - kept * kept


_backward = op("conv_backward(Tensor grad, Tensor u, Tensor weight, Tensor kept, int[] modes, int code, int[] dilation,"
               " int groups, bool[] wanted) -> (Tensor, Tensor, Tensor)", _backward_cpu, _backward_fake, _backward_cuda)


def _block_fake(u, w1, b1, w2, b2, modes, code):
    return u.new_empty(u.shape)


def _block_cpu(u, w1, b1, w2, b2, modes, code):
    x, *weights = _arrays(u, w1, b1, w2, b2)
    return torch.from_numpy(blocks.cpu(x, *weights, boundary=_names(modes), activation=ACTIVATIONS[code]))


def _block_cuda(u, w1, b1, w2, b2, modes, code):
    out = torch.empty_like(u, memory_format=torch.contiguous_format)
    return blocks.cuda(*_on_gpu(u, w1, b1, w2, b2), boundary=_names(modes), activation=ACTIVATIONS[code], out=out,
                       stream=_stream())


_block = op("conv_block(Tensor u, Tensor w1, Tensor b1, Tensor w2, Tensor b2, int[] modes, int code) -> Tensor",
            _block_cpu, _block_fake, _block_cuda)


def _block_backward_fake(grad, u, w1, b1, w2, b2, modes, code, wanted):
    first = u.new_empty(u.shape if wanted else (0,))
    return first, *(t.new_empty(t.shape) for t in (w1, b1, w2, b2))


def _block_backward_cpu(grad, u, w1, b1, w2, b2, modes, code, wanted):
    g, x, *weights = _arrays(grad, u, w1, b1, w2, b2)
    out = tuple(np.empty(a.shape, a.dtype) for a in (x if wanted else x[:0], *weights))
    found = blocks.cpu_backward(x, *weights, grad=g, boundary=_names(modes), activation=ACTIVATIONS[code], out=out,
                                wanted=wanted)
    return tuple(torch.from_numpy(a if k or wanted else a.reshape(-1)) for k, a in enumerate(found))


def _block_backward_cuda(grad, u, w1, b1, w2, b2, modes, code, wanted):
    out = _block_backward_fake(grad, u, w1, b1, w2, b2, modes, code, wanted)
    x, *weights, g = _on_gpu(u, w1, b1, w2, b2, grad)
    return blocks.cuda_backward(x, *weights, grad=g, boundary=_names(modes), activation=ACTIVATIONS[code], out=out,
                                wanted=wanted, stream=_stream())


_block_backward = op("conv_block_backward(Tensor grad, Tensor u, Tensor w1, Tensor b1, Tensor w2, Tensor b2,"
                     " int[] modes, int code, bool wanted) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
                     _block_backward_cpu, _block_backward_fake, _block_backward_cuda)


# -- differentiation -------------------------------------------------------------------------------------------------


def _each(function, info, in_dims, args):
    """vmap by a loop over the samples of the mapped axis; outputs are stacked in front."""
    def pick(i):
        return [a.select(d, i) if isinstance(d, int) else a for a, d in zip(args, in_dims)]

    parts = [function(*pick(i)) for i in range(info.batch_size)]
    if isinstance(parts[0], tuple):
        return tuple(torch.stack(p) for p in zip(*parts)), (0,) * len(parts[0])
    return torch.stack(parts), 0


class _ConvBackward(torch.autograd.Function):
    """The backward pass, which has no derivative of its own."""

    @staticmethod
    def forward(*args):
        return _backward(*args)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *grads):
        raise NotImplementedError(TWICE)

    @staticmethod
    def vmap(info, in_dims, *args):
        return _each(_ConvBackward.apply, info, in_dims, args)


class _Conv(torch.autograd.Function):
    """(activation(conv(u) + bias), what its slope is found from)."""

    @staticmethod
    def forward(u, weight, bias, modes, code, dilation, groups):
        return _forward(u, weight, bias, modes, code, dilation, groups)

    @staticmethod
    def setup_context(ctx, inputs, output):
        u, weight, bias, *ctx.how = inputs
        y, kept = output
        ctx.mark_non_differentiable(kept)
        ctx.set_materialize_grads(False)
        code = ctx.how[1]
        ctx.save_for_backward(u, weight, (kept if ACTIVATIONS[code] in _activation.KEEPS_INPUT else y) if code else u)
        ctx.has_bias = bias is not None

    @staticmethod
    def backward(ctx, grad, _):
        if grad is None:
            return (None,) * 7
        needs = ctx.needs_input_grad
        wanted = [bool(needs[0]), bool(needs[1]), ctx.has_bias and bool(needs[2])]
        call = _ConvBackward.apply if _watched() else _backward
        found: Any = call(grad, *ctx.saved_tensors, *ctx.how, wanted)
        return *(part if wants else None for part, wants in zip(found, wanted)), None, None, None, None

    @staticmethod
    def vmap(info, in_dims, u, weight, bias, *how):
        if in_dims[1] is None and in_dims[2] is None:
            u = u.movedim(in_dims[0], 0)
            many = _Conv.apply(u.flatten(0, 1), weight, bias, *how)
            return tuple(t.unflatten(0, u.shape[:2]) if t.numel() else t.new_empty((len(u), 0)) for t in many), (0, 0)
        return _each(_Conv.apply, info, in_dims, (u, weight, bias, *how))


class _BlockBackward(torch.autograd.Function):
    """The block's backward pass, which has no derivative of its own."""

    @staticmethod
    def forward(*args):
        return _block_backward(*args)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *grads):
        raise NotImplementedError(TWICE)

    @staticmethod
    def vmap(info, in_dims, *args):
        return _each(_BlockBackward.apply, info, in_dims, args)


class _Block(torch.autograd.Function):
    """Two convolutions with an activation between them."""

    @staticmethod
    def forward(u, w1, b1, w2, b2, modes, code):
        return _block(u, w1, b1, w2, b2, modes, code)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:5])
        ctx.how = inputs[5:]

    @staticmethod
    def backward(ctx, grad):
        (u, w1, b1, w2, b2), (modes, code), wanted = ctx.saved_tensors, ctx.how, bool(ctx.needs_input_grad[0])
        call = _BlockBackward.apply if _watched() else _block_backward
        found: Any = call(grad, u, w1, b1, w2, b2, modes, code, wanted)
        return *(part if wants else None for part, wants in zip(found, ctx.needs_input_grad)), None, None

    @staticmethod
    def vmap(info, in_dims, u, w1, b1, w2, b2, *how):
        if all(d is None for d in in_dims[1:5]):
            u = u.movedim(in_dims[0], 0)
            return _Block.apply(u.flatten(0, 1), w1, b1, w2, b2, *how).unflatten(0, u.shape[:2]), 0
        return _each(_Block.apply, info, in_dims, (u, w1, b1, w2, b2, *how))


class _SmallBlock(torch.autograd.Function):
    """`_Block` for small problems of plain tensors, without what surrounds an operator: it outweighs the sums."""

    @staticmethod
    def forward(ctx, run, u, w1, b1, w2, b2, modes, code):
        ctx.save_for_backward(u, w1, b1, w2, b2)
        ctx.how = run, modes, code
        y = torch.empty_like(u)
        run.forward(u.data_ptr(), w1.data_ptr(), b1.data_ptr(), w2.data_ptr(), b2.data_ptr(), y.data_ptr())
        return y

    @staticmethod
    def backward(ctx, grad):
        (u, w1, b1, w2, b2), (run, *how) = ctx.saved_tensors, ctx.how
        wanted = ctx.needs_input_grad[1]
        if _watched() or not _plain(grad):
            found: Any = _BlockBackward.apply(grad, u, w1, b1, w2, b2, *how, wanted)
            return None, *(part if wants else None for part, wants in zip(found, ctx.needs_input_grad[1:])), None, None
        d1, e1, d2, e2 = empty(w1), empty(b1), empty(w2), empty(b2)
        out = empty(u) if wanted else None
        grad = grad.contiguous()
        run.backward(u.data_ptr(), w1.data_ptr(), b1.data_ptr(), w2.data_ptr(), b2.data_ptr(), grad.data_ptr(),
                     d1.data_ptr(), e1.data_ptr(), d2.data_ptr(), e2.data_ptr(), 0 if out is None else out.data_ptr())
        return None, out, d1, e1, d2, e2, None, None


empty = torch.empty_like
_PLAIN = (torch.Tensor, torch.nn.Parameter)


def _plain(*tensors) -> bool:
    """Whether these are ordinary tensors in the CPU's memory, and nobody traces or maps."""
    return all(type(t) in _PLAIN and t.is_cpu for t in tensors)


def _ordinary() -> bool:
    """Whether nobody traces, maps or watches operators: then their overhead can be left out."""
    return not (torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
                or torch._C._len_torch_dispatch_stack())


def _apply(function, *args) -> Any:
    """`function.apply` without its look at signatures, which takes longer than a small convolution."""
    if _ordinary():
        fast: Any = super(torch.autograd.Function, function)
        return fast.apply(*args)
    return function.apply(*args)


def _watched() -> bool:
    """Whether somebody may differentiate or map a backward pass; torch.compile traces it as it is."""
    if torch.compiler.is_compiling():
        return False
    return torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()


# -- calls -----------------------------------------------------------------------------------------------------------


def _checked(u, *parameters):
    """Refuse what the kernels cannot take; under autocast a half-precision input becomes what the weights are."""
    w = parameters[0]
    if u.dtype != w.dtype and u.dtype in (torch.float16, torch.bfloat16) and torch.is_autocast_enabled(u.device.type):
        u = u.to(w.dtype)
    if u.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"fastdiff's convolutions compute in float32 and float64, not in {u.dtype}: half precision "
                        f"would lose the small differences between neighbours that a stencil is about. Convert with "
                        f".float().")
    dtype, device = u.dtype, u.device
    for p in parameters:
        if p is not None and p.dtype != dtype:
            raise TypeError(f"the input is {dtype}, but a weight or bias is {p.dtype}: make them the same")
        if p is not None and p.device != device:
            raise ValueError(f"the input is on {device}, but a weight or bias is on {p.device}: move one of them")
    return u


def conv(u, weight, bias=None, *, boundary: Any = "periodic", activation: str | None = None, dilation: Any = 1,
         groups: int = 1, backend: str = "fastdiff"):
    """Convolution with the boundary folded in, bias and activation, in one pass over memory.

        y[b, o, i] = activation( bias[o] + sum over c, k of  weight[o, c, k] u[b, c, i + dilation (k - (K - 1)/2)] )

    u            (B, Cin, *grid), 1 to 3 axes, float32 or float64; strided inputs are copied first
    weight, bias (Cout, Cin / groups, *kernel) with odd sizes; (Cout) or None
    boundary     "periodic", "neumann" (the cell at the edge goes on) or "dirichlet" (zero), or one for each axis
    activation   None, "relu", "gelu" (the exact one), "silu" or "tanh"
    backend      "fastdiff", or "torch": padding, torch's convolution and activation, for comparison, forward-mode and
                 second derivatives
    returns      (B, Cout, *grid), the numbers of torch.nn.ConvNd with padding_mode "circular", "replicate" or "zeros"

    Differentiable once in u, weight and bias. Under autocast it computes in the weights' precision.

    Raises TypeError for half precision and mixed precisions, ValueError for shapes that do not fit, even kernel sizes,
    unknown names and tensors on different devices, NotImplementedError for second derivatives.
    """
    u = _checked(u, weight, bias)
    shape = _uncached(_conv.shape_of)(tuple(u.shape), tuple(weight.shape), groups,
                                      dilation if isinstance(dilation, int) else tuple(dilation),
                                      boundary if isinstance(boundary, str) else tuple(boundary))
    code = _activation.code_of(activation)
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ValueError(f"bias must have shape ({weight.shape[0]},), got {tuple(bias.shape)}")
    if backend == "torch":
        return _by_torch(u, weight, bias, shape, activation)
    if backend != "fastdiff":
        raise ValueError(f"unknown backend {backend!r}; known: fastdiff, torch")
    result: Any = _apply(_Conv, u, weight, bias, list(shape.modes[3 - shape.ndim:]), code,
                              list(shape.dilation[3 - shape.ndim:]), groups)
    return result[0]


def _activate(name, x):
    return {None: lambda v: v, "relu": F.relu, "gelu": F.gelu, "silu": F.silu, "tanh": torch.tanh}[name](x)


def _by_torch(u, weight, bias, shape, activation):
    """The same by torch: pad each axis, convolve, activate."""
    first = 3 - shape.ndim
    for axis in range(shape.ndim):
        half = shape.dilation[first + axis] * (weight.shape[2 + axis] - 1) // 2
        pads = [0, 0] * (shape.ndim - 1 - axis) + [half, half] + [0, 0] * axis
        u = F.pad(u, pads, PADDINGS[NAMES[shape.modes[first + axis]]])
    convolve = (F.conv1d, F.conv2d, F.conv3d)[shape.ndim - 1]
    return _activate(activation, convolve(u, weight, bias, dilation=shape.dilation[first:], groups=shape.groups))


def conv_block(u, w1, b1, w2, b2, *, boundary: Any = "periodic", activation: str | None = "relu",
               backend: str = "fastdiff"):
    """Two convolutions with an activation between them, 1 -> C -> 1 channels, as one: the hidden layer is never in
    memory.

        y = b2 + conv(activation(conv(u, w1) + b1), w2)

    u, y (B, 1, *grid); w1 (C, 1, *kernel), b1 (C), w2 (1, C, *kernel), b2 (1). The rest as in `conv`.
    """
    u = _checked(u, w1, b1, w2, b2)
    if backend == "torch":
        hidden = conv(u, w1, b1, boundary=boundary, activation=activation, backend=backend)
        return conv(hidden, w2, b2, boundary=boundary, backend=backend)
    sizes = tuple(u.shape), tuple(w1.shape), tuple(b1.shape), tuple(w2.shape), tuple(b2.shape)
    names = boundary if isinstance(boundary, str) else tuple(boundary)
    modes, code = _uncached(_geometry)(*sizes, names, activation)
    if _ordinary() and _plain(u, w1, b1, w2, b2) and _contiguous(u, w1, b1, w2, b2):
        run = _small(sizes[0], sizes[1], names, code, u.dtype)
        if run is not None:
            fast: Any = super(torch.autograd.Function, _SmallBlock)
            return fast.apply(run, u, w1, b1, w2, b2, modes, code)
    return _apply(_Block, u, w1, b1, w2, b2, modes, code)


def _uncached(function) -> Any:
    """A cached function; while torch traces, which warns of caches, what is behind the cache."""
    return function.__wrapped__ if torch.compiler.is_compiling() else function


def _contiguous(*tensors):
    return all(t.is_contiguous() for t in tensors)


@lru_cache(maxsize=512)
def _geometry(u, w1, b1, w2, b2, boundary, activation):
    """(modes, code of the activation); refuses shapes that do not fit."""
    channels = w1[0]
    if w1[1] != 1 or w2 != (1, channels, *w1[2:]) or b1 != (channels,) or b2 != (1,):
        raise ValueError(f"expected weights (C, 1, *kernel), (C), (1, C, *kernel), (1), got {w1}, {b1}, {w2}, {b2}")
    _, _, modes = _uncached(blocks.geometry)(u, w1[2:], boundary)
    return list(modes[5 - len(u):]), _activation.code_of(activation)


@lru_cache(maxsize=512)
def _small(u, w1, boundary, code, dtype):
    """How to run a small problem by addresses; None for a large one."""
    space, kernel, modes = blocks.geometry(u, w1[2:], boundary)
    return _conv_block.small(space, kernel, w1[0], modes, code, "f8" if dtype == torch.float64 else "f4")


__all__ = ["conv", "conv_block"]
