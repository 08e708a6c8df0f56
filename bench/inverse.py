"""Inverse problems through the solver: `fastdiff bench inverse`.

1. The diffusivity D(x) of u_t = div(D grad u) on 64 x 64 cells without flux through the walls, from ten noisy snapshots
   of each of three runs that start from a random mode. D is an inclusion three times as conductive as what is around
   it; noise is 1 % of the start's standard deviation. Unknown is log D on a coarse lattice (bicubic in between) with a
   penalty for roughness; torch's L-BFGS minimises the misfit.
2. Feed and kill rate (F, k) of Gray-Scott from two frames of a pattern, 100 time units apart, by Gauss-Newton-like
   steps of L-BFGS on two numbers.

Both are plain torch: `fd.nn.Solver` in a loss, `backward`, an optimiser. Goals: D to 5 % (relative, in the Euclidean
norm), F and k to 1 %.
"""

import argparse
from time import perf_counter

import numpy as np
import torch

import fastdiff as fd


def inclusion(grid):
    """A smooth inclusion of contrast 3: D is 1 outside and 3 inside."""
    x, y = grid.coordinates()
    return 1 + 2 / (1 + np.exp((np.hypot((x - 0.55) / 1.2, y - 0.45) - 0.22) / 0.04))


def random_modes(grid, count, rng):
    """Starts (count, *grid): cosines with one to three half waves along each axis, no two alike."""
    x, y = grid.coordinates()
    known = [(i, j) for i in range(4) for j in range(4) if i + j]
    picked = rng.choice(len(known), count, replace=False)
    return np.stack([np.cos(np.pi * known[k][0] * x) * np.cos(np.pi * known[k][1] * y) for k in picked])


class Smooth(torch.nn.Module):
    """A positive field over a grid: exp of numbers on a coarse lattice, bicubic in between."""

    def __init__(self, shape, lattice: int, start: float = 1.0):
        super().__init__()
        self.shape = shape
        self.log = torch.nn.Parameter(torch.full((1, 1, lattice, lattice), float(np.log(start)), dtype=torch.float64))

    def forward(self):
        fine = torch.nn.functional.interpolate(self.log, size=self.shape, mode="bicubic", align_corners=False)
        return fine[0, 0].exp()

    def roughness(self):
        """Mean squared difference of neighbours on the lattice."""
        return self.log.diff(dim=2).square().mean() + self.log.diff(dim=3).square().mean()


def minimise(parameters, loss, iterations: int):
    """L-BFGS with a line search; returns the number of gradients."""
    optimiser = torch.optim.LBFGS(parameters, max_iter=iterations, line_search_fn="strong_wolfe", history_size=20,
                                  tolerance_change=1e-12, tolerance_grad=1e-10)
    count = 0

    def closure():
        nonlocal count
        count += 1
        optimiser.zero_grad()
        value = loss()
        value.backward()
        return value

    optimiser.step(closure)
    return count


def recover_diffusivity(side=64, snapshots=10, noise=0.01, seed=0, lattice=16, iterations=40, penalty=0.1):
    """(relative error of D, gradients, seconds) of the first problem."""
    grid, rng = fd.Grid((side, side), centering="cells"), np.random.default_rng(seed)
    truth, u0 = inclusion(grid), random_modes(grid, 3, rng)
    dt = 0.15 / side**2 / 3.5
    steps = int(np.ceil(0.02 / snapshots / dt))
    solver = fd.nn.Solver(fd.Heat(truth), grid, dt=dt, steps=steps)
    with torch.no_grad():
        exact = solver.rollout(torch.tensor(u0), snapshots)
    sigma = noise * float(u0.std())
    seen = exact + sigma * torch.tensor(rng.standard_normal(exact.shape))
    guess = Smooth(grid.shape, lattice, start=1.5)
    solver = fd.nn.Solver(fd.Heat(np.full(grid.shape, 1.5)), grid, dt=dt, steps=steps, learn={"diffusivity": guess})
    start = perf_counter()
    loss = lambda: ((solver.rollout(torch.tensor(u0), snapshots) - seen) / sigma).square().mean() + (
        penalty * guess.roughness())
    count = minimise(guess.parameters(), loss, iterations)
    found = guess().detach().numpy()
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth)), count, perf_counter() - start


def recover_gray_scott(side=64, F=0.037, k=0.06, seed=0, iterations=20):
    """(relative errors of F and k, gradients, seconds) of the second problem."""
    grid = fd.Grid((side, side), extent=2.5 * side / 256, periodic=True)
    rng = np.random.default_rng(seed)
    u0 = np.stack([np.ones(grid.shape), np.zeros(grid.shape)])
    middle = slice(side // 2 - side // 8, side // 2 + side // 8)
    u0[0, middle, middle], u0[1, middle, middle] = 0.5, 0.25
    u0 += 0.01 * rng.standard_normal(u0.shape)
    one = torch.tensor(fd.solve(fd.GrayScott(F, k), u0, grid, t_end=1500.0, method="euler", dt=1.0).final)
    two = torch.tensor(fd.solve(fd.GrayScott(F, k), one.numpy(), grid, t_end=100.0, method="euler", dt=1.0).final)
    learn = {"F": torch.tensor(0.03, dtype=torch.float64), "k": torch.tensor(0.055, dtype=torch.float64)}
    solver = fd.nn.Solver(fd.GrayScott(0.03, 0.055), grid, dt=1.0, steps=100, learn=learn)
    start = perf_counter()
    count = minimise(solver.parameters(), lambda: 1e2 * (solver(one) - two).square().mean(), iterations)
    found = float(solver.value("F").detach()), float(solver.value("k").detach())
    return abs(found[0] / F - 1), abs(found[1] / k - 1), count, perf_counter() - start


def main(args: list[str]) -> int:
    """Solve both, print; 1 if a goal is missed."""
    argparse.ArgumentParser(prog="fastdiff bench inverse", description=__doc__,
                            formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(args)
    error, count, seconds = recover_diffusivity()
    print(f"D(x): relative error {error:.2%} (goal 5 %), {count} gradients, {seconds:.1f} s")
    by_F, by_k, more, others = recover_gray_scott()
    print(f"(F, k): relative errors {by_F:.2e} and {by_k:.2e} (goal 1 %), {more} gradients, {others:.1f} s")
    return 0 if error < 0.05 and max(by_F, by_k) < 0.01 else 1


__all__ = ["main", "recover_diffusivity", "recover_gray_scott"]
