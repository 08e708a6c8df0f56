"""Operators of the generative models: gradients, torch.compile, and what noise must be."""

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import fastdiff as fd  # noqa: F401
from fastdiff.kernels import noise
from fastdiff.kernels.noise import Draw
from fastdiff.nn import functional as F
from fastdiff.nn.functional.generative import Coefficients


@pytest.fixture
def torch_rng():
    return torch.Generator().manual_seed(0)


def randn(*shape, g, dtype=torch.float64, grad=True):
    return torch.randn(*shape, generator=g, dtype=dtype).requires_grad_(grad)


# -- noise -----------------------------------------------------------------------------------------------------------


def test_noise_has_the_moments_of_a_normal_distribution():
    z = noise.normal(np.empty((64, 16384), np.float32), Draw(1, 2)).astype(np.float64)
    n = z.size
    assert abs(z.mean()) < 4 / np.sqrt(n)
    assert abs(z.var() - 1) < 4 * np.sqrt(2 / n)
    assert abs((z**3).mean()) < 4 * np.sqrt(15 / n)
    assert abs((z**4).mean() - 3) < 4 * np.sqrt(96 / n)


def test_noise_follows_the_normal_distribution_everywhere():
    from scipy.stats import kstest

    z = noise.normal(np.empty((1, 1 << 18), np.float32), Draw(3, 4)).ravel()
    assert kstest(z, "norm").pvalue > 1e-3
    for lag in (1, 16, 32, 48, 64):  # pairs of Box and Muller, words of a counter, groups
        assert abs(np.corrcoef(z[:-lag], z[lag:])[0, 1]) < 5 / np.sqrt(z.size)
        assert abs(np.corrcoef(z[:-lag] ** 2, z[lag:] ** 2)[0, 1]) < 5 / np.sqrt(z.size)


def test_samples_streams_and_seeds_are_independent():
    draws = [Draw(0, 0), Draw(0, 1), Draw(1, 0), Draw(0, 1 << 32), Draw(1 << 32, 0)]
    z = np.concatenate([noise.normal(np.empty((3, 20000), np.float32), d) for d in draws])
    c = np.corrcoef(z) - np.eye(len(z))
    assert np.abs(c).max() < 5 / np.sqrt(20000)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_noise_does_not_depend_on_threads_or_the_cut_of_a_batch(dtype):
    whole = noise.normal(np.empty((7, 3, 50, 31), dtype), Draw(5, 6), threads=1)
    assert np.array_equal(whole, noise.normal(np.empty_like(whole), Draw(5, 6), threads=3))
    parts = [noise.normal(np.empty_like(whole[a:b]), Draw(5, 6, a)) for a, b in ((0, 2), (2, 3), (3, 7))]
    assert np.array_equal(whole, np.concatenate(parts))


def test_no_counter_serves_twice():
    """Every number of a draw has its own place in (counter, word), whatever the size of a sample."""
    for size in (1, 63, 64, 1000, 4097):
        g, w, l = noise._places(size)
        assert len(set(zip((noise.LANES * g + l).tolist(), w.tolist()))) == size


def test_drawn_noise_is_the_noise_that_is_returned():
    x = torch.zeros(3, 2, 9, 5)
    k = torch.tensor([[0.6, 0.8, 0.0, 1.0]]).repeat(3, 1)
    noisy, target = F.draw_noise(x, k, Draw(1, 2, 3))
    assert torch.equal(target, F.normal(x, Draw(1, 2, 3)))
    torch.testing.assert_close(noisy, 0.8 * target)


# -- gradients ---------------------------------------------------------------------------------------------------------


def test_noise_and_loss_pass_gradcheck(torch_rng):
    u, e, t = (randn(3, 2, 5, g=torch_rng) for _ in range(3))
    k = randn(3, 4, g=torch_rng, grad=False)
    w = torch.rand(3, generator=torch_rng, dtype=torch.float64)
    assert gradcheck(lambda u, e: F.add_noise(u, k, e), (u, e))
    assert gradgradcheck(lambda u, e: F.add_noise(u, k, e), (u, e))
    assert gradcheck(lambda u, t: F.weighted_mse(u, t, w), (u, t))
    assert gradgradcheck(lambda u, t: F.weighted_mse(u, t, w), (u, t))


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("shape", [(2, 4, 5), (2, 4, 3, 2), (1, 4, 2, 2, 2)])
def test_group_norm_passes_gradcheck(shape, silu, torch_rng):
    u, r = randn(*shape, g=torch_rng), randn(*shape, g=torch_rng)
    w, b = randn(4, g=torch_rng), randn(4, g=torch_rng)
    scale, shift = (randn(*shape[:2], g=torch_rng) for _ in range(2))
    assert gradcheck(lambda *a: F.group_norm(a[0], 2, *a[1:], silu=silu), (u, w, b, scale, shift, r))


@pytest.mark.parametrize("silu", [False, True])
def test_group_norm_equals_torch(silu, torch_rng):
    u = randn(3, 8, 6, 7, g=torch_rng)
    w, b = randn(8, g=torch_rng), randn(8, g=torch_rng)
    scale, shift, r = randn(3, 8, g=torch_rng), randn(3, 8, g=torch_rng), randn(3, 8, 6, 7, g=torch_rng)
    z = torch.nn.functional.group_norm(u, 4, w, b) * (1 + scale[..., None, None]) + shift[..., None, None]
    expected = (torch.nn.functional.silu(z) if silu else z) + r
    found = F.group_norm(u, 4, w, b, scale, shift, r, silu=silu)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(F.group_norm(u, 4), torch.nn.functional.group_norm(u, 4))
    given = (u, w, b, scale, shift, r)
    g = torch.randn(found.shape, generator=torch_rng, dtype=torch.float64)
    for ours, theirs in zip(torch.autograd.grad(found, given, g), torch.autograd.grad(expected, given, g)):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


PARTS = [(True, True, True, True, True), (True, True, False, False, False), (False, False, True, True, False),
         (True, False, True, False, True), (False, True, False, True, False), (False, False, False, False, False)]


@pytest.mark.parametrize("there", PARTS, ids=lambda there: "".join("01"[t] for t in there))
def test_the_direct_norm_is_the_one_that_transforms_take(there, torch_rng):
    u = randn(3, 8, 6, 7, g=torch_rng)
    parts = [randn(*shape, g=torch_rng) if t else None
             for t, shape in zip(there, [(8,), (8,), (3, 8), (3, 8), (3, 8, 6, 7)])]
    given = [t for t in (u, *parts) if t is not None]
    g = torch.randn(u.shape, generator=torch_rng, dtype=torch.float64)

    def norm(*given):
        rest = iter(given[1:])
        return F.group_norm(given[0], 4, *(next(rest) if t else None for t in there), silu=True)

    y, pull = torch.func.vjp(norm, *(t.detach() for t in given))[:2]
    direct = norm(*given)
    torch.testing.assert_close(direct, y)
    assert type(direct.grad_fn).__name__ == "_DirectNormBackward"
    expected = pull(g)
    for found in (torch.autograd.grad(direct, given, g, retain_graph=True),
                  torch.autograd.grad(direct, given, g, create_graph=True),
                  [d[1] for d in torch.autograd.grad(direct, given, torch.stack([0 * g, g]), is_grads_batched=True)]):
        for ours, theirs in zip(found, expected):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_silu_of_the_norm_is_right_far_from_zero(dtype):
    """Where exp(-z) overflows or underflows, results and slopes are zero or those of the identity; NaN stays."""
    u = torch.linspace(-1, 1, 64, dtype=dtype).reshape(1, 1, 64).requires_grad_()
    for gain in (30.0, 100.0, 1e4, 1e20):
        w = torch.full((1,), gain, dtype=dtype)
        y, z = F.group_norm(u, 1, w, silu=True), F.group_norm(u, 1, w)
        exact = torch.nn.functional.silu(z.double())
        assert float((y.double() - exact).detach().abs().max()) <= 8 * torch.finfo(dtype).eps * gain
        assert float(y[z < -90].detach().abs().sum()) < 1e-30
        (slope,) = torch.autograd.grad(y, u, torch.ones_like(y))
        (wanted,) = torch.autograd.grad(torch.nn.functional.silu(torch.nn.functional.group_norm(u, 1, w)), u,
                                        torch.ones_like(y))
        assert float((slope - wanted).abs().max()) <= 1e3 * torch.finfo(dtype).eps * gain
    assert F.group_norm(torch.tensor([[[1.0, float("nan"), 2.0]]], dtype=dtype), 1, silu=True).isnan().all()


def test_second_derivatives_of_the_norm_are_refused(torch_rng):
    u = randn(2, 4, 5, g=torch_rng)
    (g,) = torch.autograd.grad((F.group_norm(u, 2, silu=True) ** 2).sum(), u, create_graph=True)
    with pytest.raises(NotImplementedError, match="differentiable once"):
        g.sum().backward()


def test_functions_compose_with_func_and_vmap(torch_rng):
    u, t = randn(3, 4, 5, g=torch_rng, grad=False), randn(3, 4, 5, g=torch_rng, grad=False)

    def loss(u, t):
        return F.weighted_mse(F.group_norm(u[None], 2, silu=True), t[None]).sum()

    each = torch.func.vmap(torch.func.grad(loss))(u, t)
    one = torch.stack([torch.func.grad(loss)(a, b) for a, b in zip(u, t)])
    torch.testing.assert_close(each, one)


def test_operators_pass_opcheck_and_compile(torch_rng):
    u, e = (randn(2, 4, 6, g=torch_rng, dtype=torch.float32, grad=False) for _ in range(2))
    k = torch.rand(2, 4, generator=torch_rng)
    ops = torch.ops.fastdiff
    torch.library.opcheck(ops.add_noise.default, (u, k, e))
    torch.library.opcheck(ops.draw_noise.default, (u, k, 1, 2, 3))
    torch.library.opcheck(ops.reverse_step.default, (u, e, [1.0] * 10, None, e, None, [1, 2, 3], True))
    torch.library.opcheck(ops.group_norm.default, (u, k, k, e, 2, 1e-5, True))
    torch.library.opcheck(ops.weighted_mse.default, (u, e, k[:, 0].contiguous()))
    torch.library.opcheck(ops.time_embedding.default, (u[:, 0, 0], k[0]))

    def step(u, e):
        return F.weighted_mse(F.group_norm(u, 2, silu=True), e).sum()

    u.requires_grad_()
    (expected,) = torch.autograd.grad(step(u, e), u)
    (found,) = torch.autograd.grad(torch.compile(step, fullgraph=True, backend="aot_eager")(u, e), u)
    torch.testing.assert_close(found, expected)


# -- bad input --------------------------------------------------------------------------------------------------------


def test_groups_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="3 groups do not divide 4 channels; groups that do: 1, 2, 4"):
        F.group_norm(torch.zeros(1, 4, 5), 3)


def test_wrong_shapes_are_refused():
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"coefficients are \(2, 4\)"):
        F.add_noise(x, torch.zeros(2, 3), x)
    with pytest.raises(ValueError, match="noise has shape"):
        F.add_noise(x, torch.zeros(2, 4), x[:, :2])
    with pytest.raises(ValueError, match="model has shape"):
        F.reverse_step(x, x[:1], Coefficients())
    with pytest.raises(ValueError, match="even"):
        F.time_embedding(torch.zeros(2), 7)
    with pytest.raises(ValueError, match="0 to 2"):
        F.normal(x, Draw(-1, 0))
