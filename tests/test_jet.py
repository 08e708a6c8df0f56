"""Jets of networks: against double autograd in float64, through torch's transformations, and what is refused."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.autograd import gradcheck  # noqa: E402

import fastdiff as fd  # noqa: E402
from fastdiff.kernels import jet as kernels  # noqa: E402
from fastdiff.nn.functional import jet_mlp, jet_residual  # noqa: E402
from fastdiff.nn.jet import Channels, Jet  # noqa: E402

ACTIVATIONS = {"tanh": torch.tanh, "sin": torch.sin, "silu": torch.nn.functional.silu, "gelu": torch.nn.functional.gelu}


def plain(net, x):
    """The network in torch's own operations."""
    for k, (weight, bias) in enumerate(net.matrices()):
        x = x @ weight.T + bias
        if k < len(net.widths) - 2:
            x = ACTIVATIONS[net.activation](x)
    return x


def derivatives(net, x):
    """u, u_t, u_x, u_xx, u_tx by double autograd."""
    u = plain(net, x)
    (g,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    (gx,) = torch.autograd.grad(g[:, 1].sum(), x, create_graph=True)
    return torch.stack([u[:, 0], g[:, 0], g[:, 1], gx[:, 1], gx[:, 0]])


def network(widths=(2, 10, 10, 1), activation="tanh", dtype=torch.float64, seed=0):
    net = fd.nn.JetMLP(widths, activation, seed=seed, dtype=dtype)
    with torch.no_grad():
        net.theta += 0.1 * torch.randn(net.theta.shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
    return net


def points(n, d=2, dtype=torch.float64):
    return torch.rand(n, d, generator=torch.Generator().manual_seed(2), dtype=dtype)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("widths", [(2, 5, 1), (2, 10, 10, 1), (2, 1, 13, 7, 1), (2, 64, 64, 1), (2, 150, 1)], ids=str)
@pytest.mark.parametrize("n", [1, 7, 530])
def test_jets_and_gradients_equal_double_autograd(activation, widths, n):
    net, x = network(widths, activation), points(n).requires_grad_()
    cot = torch.randn(5, n, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected = derivatives(net, x)
    wanted = torch.autograd.grad((cot * expected).sum(), [net.theta, x])
    found = net.jet(x, first="tx", second="xx tx").data[..., 0]
    got = torch.autograd.grad((cot * found).sum(), [net.theta, x])
    for a, b in zip((found, *got), (expected, *wanted), strict=True):
        assert (a - b).abs().max() <= 1e-12 * b.abs().max()
    single, x32 = network(widths, activation, torch.float32), x.detach().float().requires_grad_()
    with torch.no_grad():
        single.theta.copy_(net.theta)
    found = single.jet(x32, first="tx", second="xx tx").data[..., 0]
    got = torch.autograd.grad((cot.float() * found).sum(), [single.theta, x32])
    for a, b in zip((found, *got), (expected, *wanted), strict=True):
        assert (a - b).abs().max() <= 1e-4 * b.abs().max()


def test_laplacian_is_the_sum_of_second_derivatives():
    net, x = network((4, 9, 9, 1)), points(50, 4)
    parts = net.jet(x, first="t", second="xx yy zz")
    whole = net.jet(x, first="t", second="laplacian")
    assert torch.allclose(whole.laplacian, parts.xx + parts.yy + parts.zz, rtol=1e-12, atol=1e-13)
    assert torch.equal(whole.value, net(x)) and torch.equal(whole.u_t, parts.t)


@pytest.mark.parametrize("per_point", [False, True])
def test_residual_loss_equals_the_loss_of_jets(per_point):
    net, x = network((3, 12, 12, 1), "silu"), points(301, 3)
    rows = torch.rand(6, 301, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    d, c, v, f, w, m = rows if per_point else rows[:, :1]
    jet = net.jet(x, first="txy", second="xx yy xy")
    r = (jet.t - d[:, None] * jet.xx - 2 * jet.yy + m[:, None] * jet.xy + v[:, None] * jet.x + c[:, None] * jet.value
         - f[:, None])[:, 0]
    (wanted,) = torch.autograd.grad((w * r**2).mean(), net.theta)
    loss = net.residual_loss(x, {"t": 1, "xx": -d, "yy": -2.0, "xy": m, "x": v, "u": c}, source=f, weight=w)
    (got,) = torch.autograd.grad(2 * loss, net.theta)
    assert torch.allclose(loss, (w * r**2).mean(), rtol=1e-13)
    assert (got - 2 * wanted).abs().max() <= 1e-12 * wanted.abs().max()
    found = net.residual(x, {"t": 1, "xx": -d, "yy": -2.0, "xy": m, "x": v, "u": c}, source=f)
    assert torch.allclose(found, r, rtol=1e-11, atol=1e-12)


def test_gradcheck_and_no_second_derivative():
    net, x = network((2, 4, 3, 2)), points(5).requires_grad_()
    channels = Channels("tx", "t", "xx")
    call = lambda x, theta: jet_mlp(x, theta, net.widths, channels.seeds(x), channels.terms)
    assert gradcheck(call, (x, net.theta))
    one, single = x.new_ones(1), network((2, 4, 3, 1))
    operator = [(0, 0)], [-one], [one, 0 * one], 0.5 * one, one, one
    loss = lambda theta: jet_residual(x.detach(), theta, single.widths, channels.seeds(x)[1:], *operator)[0]
    assert gradcheck(loss, (single.theta,))
    (g,) = torch.autograd.grad(call(x, net.theta).sum(), net.theta, create_graph=True)
    with pytest.raises(NotImplementedError, match="Gauss-Newton"):
        g.sum().backward()


def test_the_fused_loss_has_no_second_derivative():
    net, x = network(), points(5)
    (g,) = torch.autograd.grad(net.residual_loss(x, {"t": 1.0, "xx": -1.0}), net.theta, create_graph=True)
    with pytest.raises(NotImplementedError, match="residual_loss kernel differentiates once"):
        g.sum().backward()


def test_jets_through_jets_pass_gradcheck():
    net, x = network((6, 4, 1), "sin"), torch.randn(4, 3, 6, dtype=torch.float64, requires_grad=True)
    channels = Channels("tx", "tx", "xx")
    call = lambda x, theta: jet_mlp(x, theta, net.widths, x.new_zeros(2, 6), channels.terms, "sin", True)
    assert gradcheck(call, (x, net.theta))


def test_operators_pass_torchs_own_check():
    net, x = network((2, 4, 1)), points(6)
    seeds = torch.eye(2, dtype=torch.float64)
    rest = ([2, 4, 1], [0, 1, 1], [1.0], "tanh", False)
    torch.library.opcheck(torch.ops.fastdiff.jet_forward.default, (x, net.theta.detach(), seeds, *rest))
    cot = torch.rand(4, 6, 1, dtype=torch.float64)
    torch.library.opcheck(torch.ops.fastdiff.jet_adjoint.default, (x, net.theta.detach(), seeds, cot, *rest, True))


def test_torch_func_and_per_sample_gradients():
    net, x = network((2, 6, 1)), points(9)
    channels = Channels("tx", "t", "xx")

    def residual(theta, point):
        jet = jet_mlp(point[None], theta, net.widths, channels.seeds(point), channels.terms)
        return (jet[1] - 0.3 * jet[3])[0, 0]

    rows = torch.func.vmap(torch.func.grad(residual), (None, 0))(net.theta.detach(), x)
    cot = torch.tensor([0, 1, 0, -0.3], dtype=torch.float64)[:, None, None].expand(4, 9, 1)
    assert torch.allclose(rows, net.jacobian(x, cot, channels), rtol=1e-11, atol=1e-13)
    values = torch.func.vmap(residual, (None, 0))(net.theta.detach(), x)
    assert torch.allclose(values, torch.stack([residual(net.theta, p) for p in x]), rtol=1e-12)
    thetas = torch.stack([net.theta.detach(), 2 * net.theta.detach()])
    both = torch.func.vmap(residual, (0, None))(thetas, x[0])
    assert torch.allclose(both[1], residual(thetas[1], x[0]))


def test_compiles_whole():
    net, x = network((2, 8, 8, 1), dtype=torch.float32), points(40, dtype=torch.float32)

    def loss(x):
        jet = net.jet(x, first="t", second="xx")
        return ((jet.t - jet.xx) ** 2).mean() + net.residual_loss(x, {"t": 1.0, "xx": -1.0})

    wanted = torch.autograd.grad(loss(x), net.theta)[0]
    compiled = torch.compile(loss, fullgraph=True)(x)
    assert torch.allclose(torch.autograd.grad(compiled, net.theta)[0], wanted, rtol=1e-4, atol=1e-6)


def test_lbfgs_trains():
    net, x = network((2, 12, 12, 1)), points(200)
    target = torch.exp(-x[:, :1]) * torch.sin(3 * x[:, 1:])
    optimiser = torch.optim.LBFGS(net.parameters(), max_iter=150, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        loss = ((net(x) - target) ** 2).mean() + 1e-3 * net.residual_loss(x, {"t": 9, "xx": -1.0})
        loss.backward()
        return loss

    before = float(closure().detach())
    optimiser.step(closure)
    assert float(closure().detach()) < 1e-4 * before


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_number_of_threads_changes_no_bit(dtype):
    net, x = network((2, 33, 20, 1), dtype=dtype), points(5003, dtype=dtype)
    args = x.numpy(), net.theta.detach().numpy(), net.widths, np.eye(2, dtype=x.numpy().dtype)
    cot = np.random.default_rng(0).standard_normal((4, 5003, 1)).astype(x.numpy().dtype)
    one = np.ones(1, cot.dtype)
    found = [(kernels.forward(*args, [(0, 1, 1, 1.0)], threads=k),
              *kernels.adjoint(*args, cot, [(0, 1, 1, 1.0)], threads=k),
              *kernels.residual(*args, [(1, 1)], [-one], [one, one], one, one, one, threads=k),
              kernels.jacobian(*args, cot, [(0, 1, 1, 1.0)], threads=k)) for k in (1, 2, 5)]
    for other in found[1:]:
        assert all(a.tobytes() == b.tobytes() for a, b in zip(found[0], other, strict=True))


def test_products_of_jets_follow_the_product_rule():
    f, g, x = network((2, 6, 1), seed=3), network((2, 5, 1), "sin", seed=4), points(30).requires_grad_()
    channels = Channels("tx", "tx", "xx tx")
    jet = f.jet(x, "tx", "xx tx") * g.jet(x, "tx", "xx tx") + 2.0 * f.jet(x, "tx", "xx tx") - 1.0
    u = plain(f, x) * plain(g, x) + 2 * plain(f, x) - 1
    (d,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    (dx,) = torch.autograd.grad(d[:, 1].sum(), x, create_graph=True)
    wanted = torch.stack([u[:, 0], d[:, 0], d[:, 1], dx[:, 1], dx[:, 0]])
    assert torch.allclose(jet.data[..., 0], wanted, rtol=1e-12, atol=1e-12)
    assert Jet.of(x, channels).sin()["xx"][:, 1].allclose(-x[:, 1].sin())


@pytest.mark.parametrize("kind", ["ModifiedMLP", "ResidualMLP"])
def test_gates_and_residual_blocks(kind):
    net = getattr(fd.nn, kind)([2, 8, 8, 8, 1], seed=0, dtype=torch.float64)
    x = points(40).requires_grad_()
    jet = net.jet(x, first="t", second="xx")
    weights = lambda layer: (layer.theta[: -layer.widths[1]].view(*layer.widths[::-1]), layer.theta[-layer.widths[1] :])
    run = lambda layer, h: torch.tanh(h @ weights(layer)[0].T + weights(layer)[1])
    if kind == "ModifiedMLP":
        u, v, h = run(net.u, x), run(net.v, x), x
        for layer in net.layers:
            s = run(layer, h)
            h = s * u + (1 - s) * v
    else:
        h = run(net.first, x)
        h = h + run(net.layers[1], run(net.layers[0], h))
    value = h @ weights(net.out)[0].T + weights(net.out)[1]
    (d,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    (dx,) = torch.autograd.grad(d[:, 1].sum(), x, create_graph=True)
    wanted = torch.stack([value[:, 0], d[:, 0], d[:, 1], dx[:, 1]])
    assert torch.allclose(jet.data[..., 0], wanted, rtol=1e-11, atol=1e-12)
    got = torch.autograd.grad((jet.t - jet.xx).square().sum(), list(net.parameters()))
    expected = torch.autograd.grad((wanted[1] - wanted[3]).square().sum(), list(net.parameters()))
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-11) for a, b in zip(got, expected, strict=True))


def test_periodic_features():
    features = fd.nn.FourierFeatures("tx", {"x": (2.0, 2)})
    net = network((features.width, 7, 1))
    x = points(20).requires_grad_()
    jet = net.jet(features(x, first="t", second="xx"))
    again = net.jet(features(x + torch.tensor([0.0, 2.0]), first="t", second="xx"))
    assert torch.allclose(jet.data, again.data, rtol=1e-10, atol=1e-11)
    (d,) = torch.autograd.grad(jet.value.sum(), x, create_graph=False, retain_graph=True)
    assert torch.allclose(torch.stack([jet.t, jet.x])[..., 0], d.T, rtol=1e-10)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="relu has no second derivative"):
        fd.nn.JetMLP([2, 8, 1], "relu")
    with pytest.raises(ValueError, match="known: tanh, sin, silu, gelu"):
        fd.nn.JetMLP([2, 8, 1], "swoosh")
    net = network()
    with pytest.raises(ValueError, match="higher orders are not"):
        net.jet(points(3), second="xxx")
    with pytest.raises(ValueError, match="inputs are t, x"):
        net.jet(points(3), first="y")
    with pytest.raises(ValueError, match=r"\(points, 2\)"):
        net.jet(points(3, 3))
    with pytest.raises(TypeError, match="float32 or both float64"):
        net(points(3, dtype=torch.float32))
    with pytest.raises(ValueError, match="unknown term 'q'"):
        net.residual_loss(points(3), {"q": 1.0})
    with pytest.raises(ValueError, match="no gradient by its coefficients"):
        net.residual_loss(points(3), {"xx": torch.ones(1, requires_grad=True)})
    with pytest.raises(ValueError, match="widths are those"):
        fd.nn.JetMLP([2])
    assert net(points(0)).shape == (0, 1)


def test_a_residual_joined_from_channels_is_the_fused_one():
    from fastdiff.nn.functional.jet import _joined

    net, x = network((2, 7, 1)), points(23)
    seeds = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    rows = [-0.3, 1.0, torch.rand(23, generator=torch.Generator().manual_seed(2), dtype=torch.float64), 0.5, 2.0, 3.0]
    fused = jet_residual(x, net.theta, net.widths, seeds, [(0, 0)], rows[:1], rows[1:3], *rows[3:])
    joined = _joined(x, net.theta, net.widths, seeds, [(0, 0)], rows, "tanh")
    for a, b in zip(fused, joined, strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-13)
    a, b = (torch.autograd.grad(loss, net.theta)[0] for loss in (fused[0], joined[0]))
    assert (a - b).abs().max() <= 1e-12 * b.abs().max()


def test_coefficients_may_be_batched():
    net, x = network((2, 5, 1)), points(9)
    c = torch.rand(3, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    loss = lambda c: net.residual_loss(x, {"t": 1.0, "xx": -1.0, "u": c})
    assert torch.allclose(torch.func.vmap(loss)(c), torch.stack([loss(v) for v in c]), rtol=1e-13)
