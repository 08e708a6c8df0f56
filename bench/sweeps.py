"""Strong plain loops to compare with: one sweep over the grid per time step, as a good Numba programmer writes it.

Typed coefficients, explicit loops over contiguous rows, contraction to FMA, `prange` over rows (over samples for
batches, over one chunk a thread on a line), the whole time loop in one compiled call. Edge cells are held, the
cheapest boundary there is; Gray-Scott is periodic. No blocking in time: that is the difference that is measured.
"""

from typing import Any

import numba
import numpy as np
from numba import njit, prange

OPTIONS: dict[str, Any] = dict(parallel=True, fastmath={"contract", "nsz"}, error_model="numpy")


@njit(fastmath={"contract", "nsz"}, error_model="numpy")
def line(u, out, r, two, first, last):
    """A chunk of a line; unsigned indices, without which such a loop is not vectorised."""
    one = np.uint64(1)
    for i in range(np.uint64(first), np.uint64(last)):
        out[i] = u[i] + r * ((u[i - one] + u[i + one]) - two * u[i])


@njit(**OPTIONS)
def heat_1d(u, out, r, two, steps, chunks):
    """u_t = D u_xx on (n,); returns the array that holds the result."""
    n = u.shape[0]
    out[0], out[n - 1] = u[0], u[n - 1]
    for _ in range(steps):
        for k in prange(chunks):
            line(u, out, r, two, max(1, k * n // chunks), min(n - 1, (k + 1) * n // chunks))
        u, out = out, u
    return u


@njit(**OPTIONS)
def heat_2d(u, out, r, four, steps):
    """The same r along both axes, on (n0, n1)."""
    n0, n1 = u.shape
    out[0], out[n0 - 1], out[:, 0], out[:, n1 - 1] = u[0], u[n0 - 1], u[:, 0], u[:, n1 - 1]
    for _ in range(steps):
        for i in prange(1, n0 - 1):
            for j in range(1, n1 - 1):
                out[i, j] = u[i, j] + r * (((u[i - 1, j] + u[i + 1, j]) + (u[i, j - 1] + u[i, j + 1])) - four * u[i, j])
        u, out = out, u
    return u


@njit(**OPTIONS)
def variable_2d(u, out, a0, a1, steps):
    """div(D grad u) on (n0, n1); a0 and a1 are D dt/dx^2 at the low faces of each cell; both arrays hold the edges."""
    n0, n1 = u.shape
    for _ in range(steps):
        for i in prange(1, n0 - 1):
            for j in range(1, n1 - 1):
                c = u[i, j]
                across = a0[i, j] * (u[i - 1, j] - c) + a0[i + 1, j] * (u[i + 1, j] - c)
                out[i, j] = c + (across + (a1[i, j] * (u[i, j - 1] - c) + a1[i, j + 1] * (u[i, j + 1] - c)))
        u, out = out, u
    return u


@njit(**OPTIONS)
def heat_3d(u, out, r, six, steps):
    """The same r along all axes, on (n0, n1, n2); both arrays hold the edges."""
    n0, n1, n2 = u.shape
    for _ in range(steps):
        for i in prange(1, n0 - 1):
            for j in range(1, n1 - 1):
                for k in range(1, n2 - 1):
                    near = (u[i - 1, j, k] + u[i + 1, j, k]) + (u[i, j - 1, k] + u[i, j + 1, k])
                    near += u[i, j, k - 1] + u[i, j, k + 1]
                    out[i, j, k] = u[i, j, k] + r * (near - six * u[i, j, k])
        u, out = out, u
    return u


@njit(**OPTIONS)
def heat_2d_batch(u, out, r, four, steps):
    """A batch (B, n0, n1), one sweep over all samples per step; both arrays hold the edges."""
    B, n0, n1 = u.shape
    for _ in range(steps):
        for b in prange(B):
            for i in range(1, n0 - 1):
                for j in range(1, n1 - 1):
                    near = (u[b, i - 1, j] + u[b, i + 1, j]) + (u[b, i, j - 1] + u[b, i, j + 1])
                    out[b, i, j] = u[b, i, j] + r * (near - four * u[b, i, j])
        u, out = out, u
    return u


@njit(**OPTIONS)
def heat_2d_by_sample(u, out, r, four, steps):
    """A batch (B, n0, n1), every thread runs all steps of one sample after the other: sweeps, but in cache."""
    B, n0, n1 = u.shape
    for b in prange(B):
        for s in range(steps):
            for i in range(1, n0 - 1):
                for j in range(1, n1 - 1):
                    if s & 1:
                        near = (out[b, i - 1, j] + out[b, i + 1, j]) + (out[b, i, j - 1] + out[b, i, j + 1])
                        u[b, i, j] = out[b, i, j] + r * (near - four * out[b, i, j])
                    else:
                        near = (u[b, i - 1, j] + u[b, i + 1, j]) + (u[b, i, j - 1] + u[b, i, j + 1])
                        out[b, i, j] = u[b, i, j] + r * (near - four * u[b, i, j])
    return out if steps & 1 else u


@njit(fastmath={"contract", "nsz"}, error_model="numpy", inline="always")
def react(u, v, near_u, near_v, p):
    """One cell of Gray-Scott; p = (r_u, r_v, feed, kill, dt, one, four)."""
    eaten = p[4] * ((u * v) * v)
    new_u = u + (p[0] * (near_u - p[6] * u) + (p[2] * (p[5] - u) - eaten))
    return new_u, v + (p[1] * (near_v - p[6] * v) + (eaten - p[3] * v))


@njit(**OPTIONS)
def gray_scott_2d(u, v, new_u, new_v, p, steps):
    """Gray-Scott on a periodic (n0, n1); `feed`, `kill` times dt; the ends of a row are done apart."""
    n0, n1 = u.shape
    last = n1 - 1
    for _ in range(steps):
        for i in prange(n0):
            a, z = (i - 1 if i > 0 else n0 - 1), (i + 1 if i < n0 - 1 else 0)
            for j in range(1, n1 - 1):
                near_u = (u[a, j] + u[z, j]) + (u[i, j - 1] + u[i, j + 1])
                near_v = (v[a, j] + v[z, j]) + (v[i, j - 1] + v[i, j + 1])
                new_u[i, j], new_v[i, j] = react(u[i, j], v[i, j], near_u, near_v, p)
            near_u = (u[a, 0] + u[z, 0]) + (u[i, last] + u[i, 1])
            near_v = (v[a, 0] + v[z, 0]) + (v[i, last] + v[i, 1])
            new_u[i, 0], new_v[i, 0] = react(u[i, 0], v[i, 0], near_u, near_v, p)
            near_u = (u[a, last] + u[z, last]) + (u[i, last - 1] + u[i, 0])
            near_v = (v[a, last] + v[z, last]) + (v[i, last - 1] + v[i, 0])
            new_u[i, last], new_v[i, last] = react(u[i, last], v[i, last], near_u, near_v, p)
        u, new_u = new_u, u
        v, new_v = new_v, v
    return u, v


# -- the same on states (B, C, *grid), whatever the number of axes ---------------------------------------------------


def heat(u, rate, by_sample=False):
    """The plain loop for heat on a state (B, 1, *grid), the same `rate` everywhere: a function of the steps to run.

    Each call goes on from where the last one ended and returns the state.
    """
    here, there = u[:, 0].copy(), u[:, 0].copy()
    r, centre = u.dtype.type(rate), u.dtype.type(2 * (u.ndim - 2))
    if u.ndim == 4 and len(u) >= 8:
        batch = heat_2d_by_sample if by_sample else heat_2d_batch
        return lambda steps: batch(here, there, r, centre, steps)[:, None]
    loop = {3: heat_1d, 4: heat_2d, 5: heat_3d}[u.ndim]
    more = (numba.get_num_threads(),) if u.ndim == 3 else ()
    return lambda steps: _stack(loop(a, b, r, centre, steps, *more) for a, b in zip(here, there))


def variable(u, faces):
    """The plain loop for div(D grad u) on a state (1, 1, n0, n1) with held edges: a function as `heat` gives it."""
    here, there = u[0, 0].copy(), u[0, 0].copy()
    return lambda steps: variable_2d(here, there, *faces, steps)[None, None]


def gray_scott(u, rates, feed, kill, dt):
    """The plain loop for Gray-Scott on a periodic state (B, 2, n0, n1): a function as `heat` gives it."""
    here, there = u.copy(), u.copy()
    p = tuple(np.array([*rates, feed * dt, kill * dt, dt, 1, 4], u.dtype))
    return lambda steps: [gray_scott_2d(*a, *b, p, steps) for a, b in zip(here, there)]


def _stack(states):
    """(B, 1, *grid) of the states; one state is not copied."""
    states = list(states)
    return states[0][None, None] if len(states) == 1 else states


def sweep_for(name: str, u):
    """The plain loop to compare a kernel with, for its state `u`: a function of the steps; None if there is none."""
    if name in ("heat_1d", "heat_2d", "heat_3d"):
        return heat(u, 0.15)
    if name == "gray_scott_2d":
        return gray_scott(u, (0.16, 0.08), 0.04, 0.06, 1.0)
    return None
