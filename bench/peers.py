"""The same work by other packages: how fast, and how right.

`fastdiff bench peers`: two problems on a periodic square, in float64, by every peer that is installed; absent ones are
named. Each line gives the time of a warm run, what the first run took beyond that (compiling), and the relative error
in the Euclidean norm against the truth, which is the same for all of them:

    heat        512², smooth modes, to the time of 400 FTCS steps; truth: the exact solution of the equation
    gray-scott  256², a seeded square, 1000 time units; truth: RK4 with dt = 1/4 on the same grid

The second truth has the grid's own error in space, which a spectral peer does not make and is charged for.
Methods differ, so speed alone says little: a line is worth reading only beside its error. All runs take turns in one
process, with the same number of threads. A peer that is wrong beyond `WRONG` gets no number.
"""

import argparse
import json
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from fastdiff.bench.cases import seconds_of
from fastdiff.bench.kernels import use_threads
from fastdiff.bench.targets import RESULTS, Options, alternate, machine_line

WRONG = 0.1  # relative error of a run that did something else
MODES = ((1, 0, 1.0), (0, 2, 0.5), (2, 3, 0.25), (4, 1, 0.1))  # waves along x and y, amplitude


@dataclass
class Line:
    """One peer on one problem."""

    problem: str
    peer: str
    how: str
    seconds: list[float] = field(default_factory=list)
    first: float = 0.0  # the first run, compiling included
    error: float | None = None
    note: str = ""


# -- the problems ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """A problem: the field, how far, and the truth."""

    name: str
    side: int
    steps: int  # of explicit Euler
    dt: float
    dx: float
    u0: Any = None
    truth: Any = None

    @property
    def t_end(self) -> float:
        """How far."""
        return self.steps * self.dt

    @property
    def updates(self) -> int:
        """Cell updates of explicit Euler: what speeds are counted in, whatever the method."""
        return self.side**2 * self.steps


def heat_work(side=512, steps=400) -> Work:
    """u_t = Laplacian u on the unit square."""
    dx = 1 / side
    dt, t = 0.2 * dx**2, 0.2 * dx**2 * steps
    x, y = np.arange(side)[:, None] * dx, np.arange(side)[None] * dx

    def field(time):
        return 1 + sum(a * np.exp(-4 * np.pi**2 * (p**2 + q**2) * time)
                       * np.cos(2 * np.pi * p * x) * np.cos(2 * np.pi * q * y) for p, q, a in MODES)

    return Work("heat", side, steps, dt, dx, field(0.0), field(t))


F, K, DU, DV = 0.04, 0.06, 0.16, 0.08  # diffusivities for dx = 1


@cache
def gray_scott_work(side=256, steps=1000) -> Work:
    """Gray-Scott on a grid of spacing 1."""
    v = np.zeros((side, side))
    a, b = side * 3 // 8, side * 5 // 8
    x = np.arange(side) / side
    v[a:b, a:b] = 0.5 + 0.1 * np.cos(8 * np.pi * x[a:b, None]) * np.cos(6 * np.pi * x[None, a:b])
    u0 = np.stack([1 - v, 0.5 * v])
    return Work("gray-scott", side, steps, 1.0, 1.0, u0, _rk4(u0, 4 * steps, 0.25))


def _rk4(u, steps, h):
    """Fastdiff's own, which the tests compare with solve_ivp."""
    import fastdiff as fd

    grid = fd.Grid(u.shape[1:], extent=float(u.shape[1]), periodic=True)
    return fd.solve(fd.GrayScott(F, K, DU, DV), u, grid, t_end=steps * h, method="rk4", dt=h).final


def relative_error(found, truth) -> float:
    """In the Euclidean norm, of what varies."""
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth - truth.mean(axis=(-2, -1), keepdims=True)))


# -- fastdiff ----------------------------------------------------------------------------------------------------------


def _fastdiff(work, method, threads, **more):
    import fastdiff as fd

    grid = fd.Grid((work.side, work.side), extent=work.side * work.dx, periodic=True)
    equation = fd.Heat(1.0) if work.name == "heat" else fd.GrayScott(F, K, DU, DV)
    return lambda: fd.solve(equation, work.u0, grid, t_end=work.t_end, method=method, threads=threads, **more).final


def fastdiff_euler(work, threads):
    """FTCS, the same steps."""
    return _fastdiff(work, "euler", threads, dt=work.dt)


def fastdiff_auto(work, threads):
    """method="auto", rtol 1e-3."""
    return _fastdiff(work, "auto", threads, rtol=1e-3)


# -- NumPy and SciPy ---------------------------------------------------------------------------------------------------


def _rates(work, roll):
    """du/dt by rolled arrays of any library."""
    def laplacian(u):
        return (roll(u, 1, -2) + roll(u, -1, -2) + roll(u, 1, -1) + roll(u, -1, -1) - 4.0 * u) / work.dx**2

    def heat(u):
        return laplacian(u)

    def gray_scott(w, stack):
        u, v = w[0], w[1]
        uvv = u * v * v
        return stack([DU * laplacian(u) - uvv + F * (1.0 - u), DV * laplacian(v) + uvv - (F + K) * v])

    return heat if work.name == "heat" else gray_scott


def numpy_rolls(work, threads):
    """FTCS with np.roll."""
    rate, extra = _rates(work, np.roll), [] if work.name == "heat" else [np.stack]

    def run():
        u = work.u0
        for _ in range(work.steps):
            u = u + work.dt * rate(u, *extra)
        return u

    return run


def _matrix(work):
    from scipy import sparse

    n = work.side
    line = sparse.diags_array([np.ones(n - 1), -2 * np.ones(n), np.ones(n - 1)], offsets=[-1, 0, 1]).tolil()
    line[0, n - 1] = line[n - 1, 0] = 1
    line, one = line.tocsr() / work.dx**2, sparse.eye_array(n)
    return (sparse.kron(line, one) + sparse.kron(one, line)).tocsr()


def scipy_rk45(work, threads, rtol=1e-3):
    """solve_ivp RK45, rtol 1e-3, sparse matvec."""
    from scipy.integrate import solve_ivp

    A, n = _matrix(work), work.side**2

    def reaction(t, w):
        u, v = w[:n], w[n:]
        uvv = u * v * v
        return np.concatenate([DU * (A @ u) - uvv + F * (1 - u), DV * (A @ v) + uvv - (F + K) * v])

    rate = (lambda t, u: A @ u) if work.name == "heat" else reaction

    def run():
        found = solve_ivp(rate, (0, work.t_end), work.u0.ravel(), method="RK45", rtol=rtol, atol=rtol * 1e-3,
                          t_eval=[work.t_end])
        return found.y[:, -1].reshape(work.u0.shape)

    return run


def scipy_fft(work, threads):
    """scipy.fft, the exact propagator, in one step."""
    if work.name != "heat":
        return None
    from scipy import fft

    n = work.side

    def run():
        k = 2 * np.pi * np.fft.fftfreq(n, work.dx)[:, None], 2 * np.pi * np.fft.rfftfreq(n, work.dx)[None]
        modes = fft.rfft2(work.u0, workers=threads) * np.exp(-(k[0] ** 2 + k[1] ** 2) * work.t_end)
        return fft.irfft2(modes, s=(n, n), workers=threads)

    return run


# -- py-pde ------------------------------------------------------------------------------------------------------------


def _pypde(work, backend):
    import pde

    n = work.side
    grid = pde.CartesianGrid([[0, n * work.dx]] * 2, n, periodic=True)
    if work.name == "heat":
        equation: Any = pde.DiffusionPDE(1.0)
        state: Any = pde.ScalarField(grid, work.u0)
    else:
        equation = pde.PDE({"u": f"{DU}*laplace(u) - u*v**2 + {F}*(1 - u)",
                            "v": f"{DV}*laplace(v) + u*v**2 - {F + K}*v"})
        state = pde.FieldCollection([pde.ScalarField(grid, work.u0[c], label="uv"[c]) for c in range(2)])

    solver = pde.solvers.SolverBase.from_name("euler", pde=equation, backend=backend)
    stepper = solver.make_stepper(state, dt=work.dt)  # compiled once: equation.solve would compile at every call

    def run():
        found = state.copy()
        stepper(found, 0.0, work.t_end)
        return found.data

    return run


def pypde_numba(work, threads):
    """explicit Euler, numba backend."""
    return _pypde(work, "numba")


def pypde_torch(work, threads):
    """explicit Euler, torch backend (CPU)."""
    return _pypde(work, "torch")


def pypde_jax(work, threads):
    """explicit Euler, jax backend (CPU)."""
    return _pypde(work, "jax")


# -- torch -------------------------------------------------------------------------------------------------------------


def _torch_steps(work, compiled):
    import torch

    rate = _rates(work, torch.roll)
    extra = [] if work.name == "heat" else [torch.stack]

    def many(u, count: int):
        for _ in range(count):
            u = u + work.dt * rate(u, *extra)
        return u

    size = 10 if compiled else 1
    step = torch.compile(lambda u: many(u, size), dynamic=False) if compiled else lambda u: many(u, size)

    def run():
        with torch.inference_mode():
            u = torch.from_numpy(work.u0)
            for _ in range(work.steps // size):
                u = step(u)
            return u.numpy()

    return run


def torch_eager(work, threads):
    """FTCS with torch.roll, eager."""
    return _torch_steps(work, False)


def torch_compiled(work, threads):
    """FTCS with torch.roll, torch.compile, ten steps a graph."""
    return _torch_steps(work, True)


def torch_conv(work, threads):
    """FTCS with conv2d, circular padding, eager."""
    import torch

    stencil = torch.tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]], dtype=torch.float64)[None, None] / work.dx**2
    channels = 1 if work.name == "heat" else 2
    D = torch.ones(1) if channels == 1 else torch.tensor([DU, DV])
    weight = (stencil * D.to(torch.float64)[:, None, None, None]).contiguous()

    def run():
        with torch.inference_mode():
            w = torch.from_numpy(work.u0).reshape(1, channels, work.side, work.side)
            for _ in range(work.steps):
                padded = torch.nn.functional.pad(w, (1, 1, 1, 1), mode="circular")
                change = torch.nn.functional.conv2d(padded, weight, groups=channels)
                if channels == 2:
                    u, v = w[:, 0], w[:, 1]
                    uvv = u * v * v
                    change = change + torch.stack([F * (1 - u) - uvv, uvv - (F + K) * v], 1)
                w = w + work.dt * change
            return w.reshape(work.u0.shape).numpy()

    return run


# -- JAX, Exponax, pystencils ------------------------------------------------------------------------------------------


def jax_jit(work, threads):
    """FTCS with jnp.roll, jit, fori_loop."""
    import jax
    from jax import numpy as jnp

    rate, extra = _rates(work, jnp.roll), [] if work.name == "heat" else [jnp.stack]

    @jax.jit
    def march(u):
        return jax.lax.fori_loop(0, work.steps, lambda n, u: u + work.dt * rate(u, *extra), u)

    return lambda: np.asarray(march(jnp.asarray(work.u0)))


def exponax(work, threads):
    """Spectral: exact for heat in one step; ETDRK2 with dt = 1 for Gray-Scott."""
    import equinox
    import exponax as ex
    from jax import numpy as jnp

    n, length = work.side, work.side * work.dx
    if work.name == "heat":
        stepper: Any = ex.stepper.Diffusion(2, length, n, work.t_end, diffusivity=1.0)
        step = equinox.filter_jit(stepper)
        return lambda: np.asarray(step(jnp.asarray(work.u0)[None]))[0]
    stepper = ex.stepper.reaction.GrayScott(2, length, n, work.dt, diffusivity_1=DU, diffusivity_2=DV, feed_rate=F,
                                            kill_rate=K)
    march = equinox.filter_jit(ex.repeat(stepper, work.steps))
    return lambda: np.asarray(march(jnp.asarray(work.u0)))


def pystencils(work, threads):
    """FTCS, generated C with OpenMP; ghost cells copied by NumPy."""
    import pystencils as ps

    n, names = work.side, "ab" if work.name == "heat" else "abcd"
    data = ps.create_data_handling((n, n), periodicity=(True, True), default_ghost_layers=1)
    arrays = [data.add_array(name, dtype=np.float64) for name in names]

    def spread(f):
        return ((f[-1, 0] + f[1, 0]) + (f[0, -1] + f[0, 1]) - 4 * f[0, 0]) * (work.dt / work.dx**2)

    if work.name == "heat":
        a, b = arrays
        rules = [ps.Assignment(b[0, 0], a[0, 0] + spread(a))]
    else:
        a, c, b, d = arrays
        u, v, h = a[0, 0], c[0, 0], work.dt
        rules = [ps.Assignment(b[0, 0], u + DU * spread(a) + h * (F * (1 - u) - u * v * v)),
                 ps.Assignment(d[0, 0], v + DV * spread(c) + h * (u * v * v - (F + K) * v))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this option has the one name that versions 1 and 2 know
        kernel = ps.create_kernel(ps.AssignmentCollection(rules), cpu_openmp=threads).compile()
    half = len(names) // 2
    now, new = names[:half], names[half:]
    sync = data.synchronization_function(list(now))

    def run():
        for name, values in zip(now, work.u0.reshape(half, n, n)):
            data.cpu_arrays[name][1:-1, 1:-1] = values
        for _ in range(work.steps):
            sync()
            data.run_kernel(kernel)
            for x, y in zip(now, new):
                data.swap(x, y)
        return np.stack([data.gather_array(name) for name in now]).reshape(work.u0.shape)

    return run


# (peer, the module that must be there, what makes a run of a work and a number of threads)
PEERS: list[tuple[str, str, Callable[..., Any]]] = [
    ("fastdiff", "fastdiff", fastdiff_euler), ("fastdiff", "fastdiff", fastdiff_auto),
    ("NumPy", "numpy", numpy_rolls), ("SciPy", "scipy", scipy_rk45), ("SciPy", "scipy", scipy_fft),
    ("py-pde", "pde", pypde_numba), ("py-pde", "pde", pypde_torch), ("py-pde", "pde", pypde_jax),
    ("torch", "torch", torch_eager), ("torch", "torch", torch_conv), ("torch", "torch", torch_compiled),
    ("JAX", "jax", jax_jit), ("Exponax", "exponax", exponax), ("pystencils", "pystencils", pystencils),
]
UNTRIED = {"Devito": "devito", "FiPy": "fipy", "PhiFlow": "phi", "Dedalus": "dedalus"}


def absent() -> list[str]:
    """Peers that cannot be imported."""
    lacking = {peer for peer, module, _ in PEERS if find_spec(module) is None}
    return sorted(lacking | {name for name, module in UNTRIED.items() if find_spec(module) is None})


def lines(work, options, only=()) -> list[Line]:
    """Every installed peer on one problem: once each for the error, then in turns for the time."""
    found, runs = [], {}
    for peer, module, make in PEERS:
        if find_spec(module) is None or (only and peer not in only and peer != "fastdiff"):
            continue
        line = Line(work.name, peer, (make.__doc__ or "").strip().rstrip("."))
        try:
            start = perf_counter()
            run = make(work, options.threads)
            if run is None:
                continue
            result = np.asarray(run())
        except Exception as error:  # a peer that breaks is a finding, not our failure
            line.note = f"failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:150]
            found.append(line)
            continue
        line.first, line.error = perf_counter() - start, relative_error(result, work.truth)
        found.append(line)
        if not line.error <= WRONG:
            line.note = "wrong, so not timed"
            continue
        runs[len(found) - 1] = run
    for k, run in runs.items():  # slow ones fewer times: the machine is not ours alone
        once = seconds_of(run)
        found[k].first = max(found[k].first - once, 0.0)
        found[k].seconds = [once]
    fast = {str(k): run for k, run in runs.items() if found[k].seconds[0] < 4}
    for k, seconds in alternate(options.rounds, **fast).items():
        found[int(k)].seconds = seconds
    return found


def _prepare(threads):
    """The same threads and precision for everybody."""
    if find_spec("torch") is not None:
        import torch

        torch.set_num_threads(threads)
    if find_spec("jax") is not None:
        import jax

        jax.config.update("jax_enable_x64", True)


def markdown(found, about) -> str:
    """The tables."""
    text = ["# Peers: the same work, errors beside speeds", "", about, "",
            "float64 on the CPU. Speed in million cell updates per second counts those that explicit Euler needs for "
            "the same time span, whatever the method. First: what the first run took beyond a warm one (compiling). "
            "Absent here: " + (", ".join(absent()) or "none") + "."]
    for problem in dict.fromkeys(line.problem for line in found):
        mine = [line for line in found if line.problem == problem]
        text += ["", f"## {problem}", "", "| peer | how | warm run | M updates/s | error | first | times slower than "
                 "fastdiff euler |", "|---|---|---|---|---|---|---|"]
        base = next((median(n.seconds) for n in mine if n.peer == "fastdiff" and n.seconds), None)
        for n in sorted(mine, key=lambda n: median(n.seconds) if n.seconds else np.inf):
            if not n.seconds:
                error = "-" if n.error is None else f"{n.error:.1e}"
                text.append(f"| {n.peer} | {n.how} | {n.note} | - | {error} | - | - |")
                continue
            spent = median(n.seconds)
            ratio = f"{spent / base:.1f}" if base else "-"
            work = WORKS[problem]
            text.append(f"| {n.peer} | {n.how} | {spent * 1e3:,.1f} ms | {work().updates / spent / 1e6:,.0f} | "
                        f"{n.error:.1e} | {n.first:.1f} s | {ratio} |")
    return "\n".join(text) + "\n"


WORKS: dict[str, Callable[..., Work]] = {"heat": cache(heat_work), "gray-scott": gray_scott_work}


def main(args: list[str]) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="fastdiff bench peers", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="*", help="problems (default: all)")
    parser.add_argument("--peers", nargs="*", default=(), help="these alone, beside fastdiff")
    parser.add_argument("--threads", type=int, help="default: all cores we may use")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
    parser.add_argument("--out", type=Path, help="folder of peers.json and peers.md")
    given = parser.parse_args(args)
    options = Options(use_threads(given.threads), 1 if given.tiny else given.rounds, 0.1 if given.tiny else 1.0)
    _prepare(options.threads)
    if given.tiny:
        WORKS.update(heat=cache(lambda: heat_work(32, 20)), **{"gray-scott": lambda: gray_scott_work(32, 20)})
    found = []
    for name in given.only or WORKS:
        for line in lines(WORKS[name](), options, given.peers):
            found.append(line)
            spent = f"{median(line.seconds) * 1e3:10,.1f} ms" if line.seconds else line.note
            print(f"{name:11} {line.peer:11} {line.how:62} {spent}  error {line.error}", flush=True)
    print(f"absent: {', '.join(absent()) or 'none'}")
    out = given.out or (Path(tempfile.mkdtemp()) if given.tiny else RESULTS)
    save(found, out, machine_line(options), merge=bool(given.only))
    return 0


def save(found, out, about, merge):
    """Write peers.json and peers.md; problems that were not measured now keep their lines."""
    file = out / "peers.json"
    if merge and file.exists():
        new = {line.problem for line in found}
        found = [Line(**old) for old in json.loads(file.read_text())["lines"] if old["problem"] not in new] + found
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"about": about, "lines": [asdict(line) for line in found]}, indent=1))
    (out / "peers.md").write_text(markdown(found, about))
    print(f"written to {out}")


__all__ = ["PEERS", "absent", "gray_scott_work", "heat_work", "lines", "main"]
