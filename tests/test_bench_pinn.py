"""The exact solutions and the tables of `fastdiff bench jet` and `fastdiff bench pinn`."""

import numpy as np
import pytest

pytest.importorskip("torch")

import fastdiff as fd
from fastdiff.bench import jet, pinn
from fastdiff.bench.targets import Options


def test_the_rods_series_is_what_the_solver_finds():
    grid = fd.Grid(201)
    ends = {"x": (fd.Dirichlet("sin(t)"), fd.Dirichlet("exp(-t)"))}
    found = fd.solve(fd.Heat(1.0), np.sin(np.pi * grid.points(0)), grid, 0.3, boundary=ends, method="euler")
    assert np.abs(found.final - pinn.rod(0.3, grid.points(0), modes=400)).max() < 1e-4
    assert np.abs(pinn.rod(1e-4, np.array([0.3])) - np.sin(0.3 * np.pi)).max() < 2e-3


@pytest.mark.parametrize("name", ["heat", "front", "burgers"])
def test_exact_solutions_solve_their_equations(name):
    u, h, t = getattr(pinn, name), 1e-4, 0.25
    x = np.array([0.15, 0.4, 0.7])
    u_t = (u(t + h, x) - u(t - h, x)) / (2 * h)
    u_x, u_xx = (u(t, x + h) - u(t, x - h)) / (2 * h), (u(t, x + h) - 2 * u(t, x) + u(t, x - h)) / h**2
    right = {"heat": u_xx, "front": 0.01 * u_xx + u(t, x) * (1 - u(t, x)),
             "burgers": 0.01 / np.pi * u_xx - u(t, x) * u_x}[name]
    assert np.abs(u_t - right).max() < 1e-4 * max(1, np.abs(u_t).max())


def test_allen_cahn_converges():
    coarse, fine = pinn.allen_cahn(4, 512, 400)[2], pinn.allen_cahn(4, 1024, 800)[2][:, ::2]
    assert np.linalg.norm(coarse - fine) < 1e-4 * np.linalg.norm(fine)


def test_a_row_of_the_accuracy_table():
    found, network = pinn.run_case("heat", 1, steps=60)
    row = pinn.row_of("heat", found)
    assert network is not None and 0 < found[0]["error"] < 0.1 and "fd.solve took" in row.baseline
    assert "| heat |" in pinn.markdown([row], "here")


def test_ours_and_autograd_take_the_same_step():
    for widths in ((2, 7, 1), (3, 6, 6, 1)):
        import torch

        net, x = fd.nn.JetMLP(widths, seed=0), torch.rand(50, widths[0])
        made = {k: v for k, v in jet.torch_steps(net, x).items() if "compiled" not in k}
        wanted = made["double autograd"]()
        lap = "+".join(n + n for n in "xy"[: widths[0] - 1])
        loss = net.residual_loss(x, {"t": 1.0, **{n + n: -jet.D for n in "xy"[: widths[0] - 1]}})
        assert torch.allclose(loss, wanted[0], rtol=1e-4) and len(made) == 3
        for _, gradient in [*(run() for run in made.values()), jet._graded(net, loss)]:
            assert torch.allclose(gradient, wanted[1], rtol=1e-3, atol=1e-6)
        jets = net.jet(x, first="t", second=lap)
        assert torch.allclose(((jets.t - jet.D * jets[lap]) ** 2).mean(), loss, rtol=1e-4)


def test_the_peak_is_a_limit():
    row = jet.share_of_peak(Options(1, rounds=2, scale=1 / 50))
    assert row.ratio is not None and 0 < row.ratio < 1.2
