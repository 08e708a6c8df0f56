"""Convolutions with the boundary folded in, as torch sees them: torch's numbers, and every way to differentiate."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

import fastdiff as fd
from fastdiff.kernels import conv as kernels
from fastdiff.nn.functional import conv, conv_block

TORCH = {"periodic": "circular", "neumann": "replicate", "dirichlet": "zeros"}
CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
GRIDS = {1: (23,), 2: (9, 14), 3: (5, 6, 7)}


def seeded(*shape, dtype=torch.float64, grad=False):
    generator = torch.Generator().manual_seed(math.prod(shape))
    return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_(grad)


def pair(ndim, boundary, cin, cout, k, dtype=torch.float64, **how):
    """Our layer and torch's, from the same seed."""
    torch.manual_seed(3)
    ours = getattr(fd.nn, f"Conv{ndim}d")(cin, cout, k, boundary=boundary, dtype=dtype, **how)
    torch.manual_seed(3)
    theirs = CONVS[ndim](cin, cout, k, padding=how.get("dilation", 1) * (k - 1) // 2, padding_mode=TORCH[boundary],
                         dtype=dtype, **how)
    return ours, theirs


@pytest.mark.parametrize("boundary", TORCH)
@pytest.mark.parametrize(("ndim", "cin", "cout", "k", "how"), [
    (1, 1, 16, 3, {}), (1, 3, 5, 5, {"dilation": 2}), (2, 1, 16, 3, {}), (2, 16, 16, 3, {}),
    (2, 6, 6, 7, {"groups": 6}), (2, 4, 6, 3, {"groups": 2}), (2, 3, 2, 1, {}), (3, 2, 3, 3, {}),
    (3, 2, 2, 3, {"groups": 2, "bias": False})])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torchs_numbers(boundary, ndim, cin, cout, k, how, dtype):
    ours, theirs = pair(ndim, boundary, cin, cout, k, dtype, **how)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters()))
    u = seeded(2, cin, *GRIDS[ndim], dtype=dtype)
    results = []
    for layer in (ours, theirs):
        x = u.clone().requires_grad_()
        y = layer(x)
        y.square().sum().backward()
        results.append([y.detach(), x.grad, *(p.grad for p in layer.parameters())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11 if dtype == torch.float64 else 2e-5,
                                   atol=float(b.abs().max()) * (1e-13 if dtype == torch.float64 else 2e-6))


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "tanh"])
def test_activations_are_torchs(activation):
    u, w, b = seeded(2, 3, 8, 9), seeded(4, 3, 3, 3), seeded(4)
    parts = [[t.clone().requires_grad_() for t in (u, w, b)] for _ in range(2)]
    ys = [conv(*p, boundary="neumann", activation=activation, backend=backend)
          for p, backend in zip(parts, ("fastdiff", "torch"))]
    for y in ys:
        (y * seeded(*y.shape)).sum().backward()
    torch.testing.assert_close(*ys, rtol=1e-12, atol=1e-13)
    for a, b in zip(*parts):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("boundary", ["periodic", "neumann", "dirichlet", ("periodic", "neumann")])
@pytest.mark.parametrize("activation", [None, "relu", "gelu", "silu", "tanh"])
def test_gradcheck(boundary, activation):
    u, w, b = seeded(2, 2, 4, 5, grad=True), seeded(3, 2, 3, 3, grad=True), seeded(3, grad=True)
    assert torch.autograd.gradcheck(lambda *a: conv(*a, boundary=boundary, activation=activation), (u, w, b))


@pytest.mark.parametrize("boundary", TORCH)
@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "tanh"])
@pytest.mark.parametrize("grid", [(7,), (3, 5), (2, 3, 4)])
def test_gradcheck_of_the_block(boundary, activation, grid):
    k, n = (3,) * len(grid), len(grid)
    args = [seeded(*s, grad=True) for s in ((2, 1, *grid), (4, 1, *k), (4,), (1, 4, *k), (1,))]
    assert n and torch.autograd.gradcheck(lambda *a: conv_block(*a, boundary=boundary, activation=activation), args)


@pytest.mark.parametrize("shape", [(1, 1, 100), (256, 1, 200), (4, 1, 64, 72)])
def test_the_block_is_two_layers(shape):
    """Small ones (called by address), and large ones (over threads)."""
    model = fd.nn.SurrogateCNN(ndim=len(shape) - 2, dtype=torch.float64)
    kind = CONVS[len(shape) - 2]
    plain = nn.Sequential(kind(1, 16, 3, padding=1, dtype=torch.float64), nn.ReLU(),
                          kind(16, 1, 3, padding=1, dtype=torch.float64))
    for a, b in zip(plain.parameters(), model.parameters()):
        a.data.copy_(b.data)
    x = seeded(*shape)
    results = []
    for network in (model, plain):
        v = x.clone().requires_grad_()
        y = network(v)
        (y * seeded(*shape)).sum().backward()
        results.append([y.detach(), v.grad, *(p.grad for p in network.parameters())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


def block_arguments(batch=2):
    return [seeded(*s) for s in ((batch, 1, 9), (4, 1, 3), (4,), (1, 4, 3), (1,))]


def test_func_grad_and_vmap():
    u, *weights = block_arguments(5)
    w, b = seeded(3, 1, 3), seeded(3)

    def both(u, w1, b1, w2, b2, w, b):
        return (conv_block(u[None], w1, b1, w2, b2).square().sum() + conv(u[None], w, b, activation="tanh").sum())

    arguments = (u, *weights, w, b)
    gradient = torch.func.grad(both, argnums=tuple(range(7)))
    each = [gradient(v, *arguments[1:]) for v in u]
    mapped = torch.func.vmap(gradient, in_dims=(0, *[None] * 6))(*arguments)
    for k, found in enumerate(mapped):
        torch.testing.assert_close(found, torch.stack([e[k] for e in each]))
    doubled = torch.func.vmap(lambda w: conv(u, w))(torch.stack([w, 2 * w]))
    torch.testing.assert_close(doubled, torch.stack([conv(u, w), conv(u, 2 * w)]))
    layer = lambda v: conv(v, w, b, activation="gelu")
    mapped = torch.func.vmap(layer, in_dims=1)(torch.stack([u, -u], 1))
    torch.testing.assert_close(mapped, torch.stack([layer(u), layer(-u)]))


def test_compiles_without_a_graph_break():
    model = nn.Sequential(fd.nn.SurrogateCNN(ndim=1, boundary="periodic"), fd.nn.Conv1d(1, 3, activation="gelu"))
    x = seeded(2, 1, 40, dtype=torch.float32, grad=True)
    y = model(x)
    y.square().sum().backward()
    expected = [y.detach(), x.grad.clone(), *(p.grad.clone() for p in model.parameters())]
    x.grad = None
    model.zero_grad()
    compiled = torch.compile(model, fullgraph=True)
    y = compiled(x)
    y.square().sum().backward()
    for a, b in zip(expected, [y.detach(), x.grad, *(p.grad for p in model.parameters())], strict=True):
        torch.testing.assert_close(a, b)


def test_operators_pass_opcheck():
    u, w, b, g = seeded(2, 2, 5, 6), seeded(3, 2, 3, 3), seeded(3), seeded(2, 3, 5, 6)
    for code in (0, 1, 2):
        how = ([0, 1], code, [1, 2], 1)
        kept = torch.ops.fastdiff.conv(u, w, b, *how)
        torch.library.opcheck(torch.ops.fastdiff.conv, (u, w, b, *how))
        for wanted in ([True, True, True], [False, True, False], [True, False, False]):
            saved = kept[1] if code == 2 else kept[0]
            torch.library.opcheck(torch.ops.fastdiff.conv_backward, (g, u, w, saved, *how, wanted))
    arguments = block_arguments()
    torch.library.opcheck(torch.ops.fastdiff.conv_block, (*arguments, [2], 1))
    for wanted in (True, False):
        torch.library.opcheck(torch.ops.fastdiff.conv_block_backward, (seeded(2, 1, 9), *arguments, [2], 1, wanted))


def test_second_derivatives_are_refused_and_torch_has_them():
    arguments = [a.requires_grad_() for a in block_arguments()]
    many = seeded(300, 1, 400)
    for y in (conv(*arguments[:2]), conv_block(*arguments), conv_block(many, *arguments[1:])):
        (first,) = torch.autograd.grad(y.square().sum(), arguments[1], create_graph=True)
        with pytest.raises(NotImplementedError, match="backend='torch'"):
            first.sum().backward()
    assert torch.autograd.gradgradcheck(lambda u, w: conv(u, w, activation="tanh", backend="torch"),
                                        (arguments[0], arguments[1]))


def test_forward_mode_is_refused():
    arguments = block_arguments()
    for call in (lambda u: conv(u, arguments[1]), lambda u: conv_block(u, *arguments[1:])):
        with pytest.raises((NotImplementedError, RuntimeError), match="(?i)jvp|forward"):
            torch.func.jvp(call, (arguments[0],), (arguments[0],))


@pytest.mark.parametrize("call", [lambda u, w, b: conv(u, w, b, activation="gelu"),
                                  lambda u, w, b: conv_block(u, w, b, w.movedim(0, 1), b[:1])])
def test_strided_input_is_handled(call):
    u, w, b = seeded(3, 1, 40), seeded(4, 1, 3), seeded(4)
    wide = torch.stack([u, -u], -1)[..., 0]
    assert not wide.is_contiguous()
    torch.testing.assert_close(call(wide, w, b), call(u, w, b))
    backward = seeded(4, 1, 3).flip(-1)
    torch.testing.assert_close(call(u, backward, b), call(u, backward.contiguous(), b))
    w = w.clone().requires_grad_()
    call(u, w, b).sum().backward()  # the gradient that comes is one number, expanded


def test_channels_last_and_empty():
    u, w = seeded(2, 4, 6, 5), seeded(3, 4, 3, 3)
    torch.testing.assert_close(conv(u.to(memory_format=torch.channels_last), w), conv(u, w))
    nothing = torch.zeros(0, 4, 6, 5, dtype=torch.float64, requires_grad=True)
    w = w.requires_grad_()
    y = conv(nothing, w)
    y.sum().backward()
    assert y.shape == (0, 3, 6, 5) and not w.grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.complex64])
def test_other_precisions_are_refused(dtype):
    u, w = torch.ones(1, 1, 8, dtype=dtype), torch.ones(2, 1, 3, dtype=dtype)
    with pytest.raises(TypeError, match="float32 and float64"):
        conv(u, w)
    with pytest.raises(TypeError, match="float32 and float64"):
        fd.nn.SurrogateCNN()(u)


def test_autocast_computes_in_the_weights_precision():
    layer, model = fd.nn.Conv1d(1, 2), fd.nn.SurrogateCNN()
    x = seeded(1, 1, 20, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        for network in (layer, model):
            y = network(x)
            half = network(x.bfloat16())
            assert y.dtype == half.dtype == torch.float32
            assert torch.equal(half, network(x.bfloat16().float()))


def test_wrong_arguments_say_what_is_right():
    u, w = seeded(2, 2, 9), seeded(3, 2, 3)
    cases = [
        (lambda: conv(u.float(), w), TypeError, "float32.*float64"),
        (lambda: conv(u, w.to("meta")), ValueError, "move one of them"),
        (lambda: conv(u, seeded(3, 2, 4)), ValueError, "odd"),
        (lambda: conv(u, seeded(3, 1, 3)), ValueError, "does not fit weights"),
        (lambda: conv(u, w[..., None]), ValueError, "1 to 3 axes"),
        (lambda: conv(u, w, seeded(2)), ValueError, r"bias must have shape \(3,\)"),
        (lambda: conv(u, w, boundary="robin"), ValueError, "known: periodic, neumann, dirichlet"),
        (lambda: conv(u, w, boundary=("periodic",) * 2), ValueError, "each of the 1 axes"),
        (lambda: conv(u, w, activation="elu"), ValueError, "known: None, relu"),
        (lambda: conv(u, w, backend="jax"), ValueError, "known: fastdiff, torch"),
        (lambda: conv(u, w, dilation=0), ValueError, "dilation"),
        (lambda: fd.nn.SurrogateCNN()(u.float()), ValueError, r"\(batch, 1, \*grid\)"),
        (lambda: fd.nn.Conv1d(1, 2, 4), ValueError, "odd"),
        (lambda: fd.nn.Conv2d(3, 4, groups=2), ValueError, "groups"),
    ]
    for call, kind, message in cases:
        with pytest.raises(kind, match=message):
            call()


def test_a_change_of_what_was_saved_is_noticed():
    u, *weights = block_arguments()
    weights = [w.requires_grad_() for w in weights]
    for call in (lambda v: conv_block(v, *weights), lambda v: conv(v, weights[0], activation="relu"),
                 lambda v: conv(v, weights[0], activation="gelu")):
        v = u.clone()
        y = call(v)
        v.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_threads_do_not_change_a_bit(dtype, rng):
    u, w, b, g, boundary = kernels.arrays((3, 16, 16, 3, 70, 90), np.dtype(dtype), rng)
    results = [(kernels.cpu(u, w, b, boundary, "gelu", threads=t), kernels.cpu_grad_input(g, w, boundary, threads=t),
                *kernels.cpu_grad_weight(u, g, w.shape[2:], boundary, threads=t)) for t in (1, 2, 5)]
    for other in results[1:]:
        assert all(a.tobytes() == c.tobytes() for a, c in zip(results[0], other))


def test_threads_do_not_change_a_bit_of_the_block(rng):
    from fastdiff.kernels import conv_block as blocks

    u, *weights, g, boundary = blocks.arrays((3, 16, 3, 90, 130), np.dtype("float32"), rng)
    results = [(blocks.cpu(u, *weights, boundary, threads=t), *blocks.cpu_backward(u, *weights, g, boundary, threads=t))
               for t in (1, 2, 5)]
    for other in results[1:]:
        assert all(a.tobytes() == c.tobytes() for a, c in zip(results[0], other))


def test_nan_stays_visible():
    u = seeded(1, 1, 30)
    u[0, 0, 7] = math.nan
    for activation in (None, "relu", "gelu", "silu", "tanh"):
        y = conv(u, torch.ones(2, 1, 3, dtype=torch.float64), activation=activation)
        assert torch.isnan(y[0, :, 6:9]).all() and not torch.isnan(y[0, :, 10:]).any()


def test_layers_copy_and_pickle():
    model = copy.deepcopy(fd.nn.SurrogateCNN(ndim=2, boundary="periodic"))
    other = fd.nn.SurrogateCNN(ndim=2, boundary="periodic")
    other.load_state_dict(model.state_dict())
    x = seeded(1, 1, 8, 8, dtype=torch.float32)
    assert torch.equal(model(x), other(x)) and sum(p.numel() for p in model.parameters()) == 2 * 16 * 9 + 17
    assert "boundary='periodic'" in repr(model)
