"""How accurate physics-informed networks are, and how long that takes.

`fastdiff bench pinn`: each problem with some seeds, for a given time of training; the relative L2 error against an
exact or a converged solution, the median over the seeds. fd.solve of the same problem stands beside it. Writes
pinn.json, pinn.md and pinn.png.

Problems: heat (a sine mode), rod (the tutorial's, whose data contradict each other in a corner), front (Fisher-KPP),
burgers (nu = 0.01/pi), allen-cahn (1e-4 u_xx + 5 (u - u^3)), inverse (D from 200 noisy points), combined (few noisy
snapshots, the equation, or both).
"""

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from fastdiff.bench.kernels import use_threads
from fastdiff.bench.targets import RESULTS, Options, Row, machine_line

# -- exact and converged solutions ------------------------------------------------------------------------------------


def heat(t, x):
    """exp(-pi^2 t) sin(pi x)."""
    return np.exp(-np.pi**2 * t) * np.sin(np.pi * x)


def rod(t, x, modes: int = 4000):
    """u_t = u_xx, u(0, t) = sin t, u(1, t) = exp(-t), u(x, 0) = sin(pi x), as a series for t > 0.

    u = (1 - x) sin t + x exp(-t) + sum of v_n(t) sin(n pi x), with v_n' = -lam v_n - c1 cos t + c2 exp(-t), where c1
    and c2 are the coefficients of 1 - x and x, lam = (n pi)^2, and v_n(0) those of sin(pi x) - x.
    """
    t, x = np.broadcast_arrays(t, x)
    u = (1 - x) * np.sin(t) + x * np.exp(-t)
    for n in range(1, modes + 1):
        lam, c1, c2 = (n * np.pi) ** 2, 2 / (n * np.pi), -2 * (-1.0) ** n / (n * np.pi)
        a, b, c = -c1 * lam / (lam**2 + 1), -c1 / (lam**2 + 1), c2 / (lam - 1)
        decay = ((1.0 if n == 1 else 0.0) - c2 - a - c) * np.exp(-lam * t)
        u = u + (a * np.cos(t) + b * np.sin(t) + c * np.exp(-t) + decay) * np.sin(n * np.pi * x)
    return u


def front(t, x, D=0.01, r=1.0, start=0.2):
    """Ablowitz and Zeppetella's front of the Fisher-KPP equation, (1 + exp(sqrt(r/6D) (x - start - c t)))^-2."""
    speed = 5 / np.sqrt(6) * np.sqrt(r * D)
    return (1 + np.exp(np.sqrt(r / (6 * D)) * (x - start - speed * t))) ** -2


def burgers(t, x, nu=0.01 / np.pi, nodes: int = 120):
    """u(x, 0) = -sin(pi x), by Cole and Hopf and Gauss-Hermite; Basdevant et al., Comput. Fluids 14 (1986)."""
    z, w = np.polynomial.hermite.hermgauss(nodes)
    t, x = np.broadcast_arrays(t, x)
    y = x[..., None] - np.sqrt(4 * nu * t)[..., None] * z
    f = np.exp(-(np.cos(np.pi * y) + 1) / (2 * np.pi * nu)) * w
    late = -(np.sin(np.pi * y) * f).sum(-1) / f.sum(-1)
    return np.where(t > 0, late, -np.sin(np.pi * x))


def allen_cahn(frames: int = 100, n: int = 1024, steps: int = 4000):
    """u_t = 1e-4 u_xx + 5 (u - u^3), periodic on (-1, 1), u(x, 0) = x^2 cos(pi x): Fourier modes, ETDRK4.

    Returns t, x and u (t, x). Source: Kassam and Trefethen, SIAM J. Sci. Comput. 26 (2005) 1214.
    """
    x, h = -1 + 2 * np.arange(n) / n, 1 / steps
    lin = -1e-4 * (2 * np.pi * np.fft.rfftfreq(n, 2 / n)) ** 2
    whole, half = np.exp(h * lin), np.exp(h * lin / 2)
    z = h * lin[:, None] + np.exp(1j * np.pi * (np.arange(1, 33) - 0.5) / 32)
    mean = lambda f: h * np.real(f.mean(1))
    q, f1 = mean((np.exp(z / 2) - 1) / z), mean((-4 - z + np.exp(z) * (4 - 3 * z + z**2)) / z**3)
    f2, f3 = mean((2 + z + np.exp(z) * (z - 2)) / z**3), mean((-4 - 3 * z - z**2 + np.exp(z) * (4 - z)) / z**3)

    def reaction(v):
        u = np.fft.irfft(v, n)
        return np.fft.rfft(5 * (u - u**3))

    found = [x**2 * np.cos(np.pi * x)]
    v = np.fft.rfft(found[0])
    for k in range(1, steps + 1):
        r0 = reaction(v)
        a = half * v + q * r0
        ra = reaction(a)
        b = half * v + q * ra
        rb = reaction(b)
        c = half * a + q * (2 * rb - r0)
        v = whole * v + r0 * f1 + 2 * (ra + rb) * f2 + reaction(c) * f3
        if k % (steps // frames) == 0:
            found.append(np.fft.irfft(v, n))
    return np.linspace(0, 1, frames + 1), x, np.array(found)


# -- problems ---------------------------------------------------------------------------------------------------------


def _relative(u, exact, where=None):
    if where is not None:
        u, exact = u[where], exact[where]
    return float(np.linalg.norm(u - exact) / np.linalg.norm(exact))


def _mesh(pinn, times=101):
    low, high = pinn.grid.extent[0]
    return np.meshgrid(np.linspace(0, pinn.t_end, times), np.linspace(low, high, 201), indexing="ij")


def _case(name, seed, unit):
    """(pinn, how to train it, error of it, goal) of a problem; `unit` scales the time."""
    import fastdiff as fd

    PINN = fd.nn.PINN
    walls = {"x": fd.Dirichlet(0.0)}
    if name == "heat":
        pinn = PINN(fd.Heat(1.0), fd.Grid(101), "sin(pi*x)", 1.0, walls, width=16, depth=2, points=1500, seed=seed)
        return pinn, dict(seconds=20 * unit), lambda: {"error": _relative(pinn(*_mesh(pinn)), heat(*_mesh(pinn)))}
    if name == "rod":
        ends = {"x": (fd.Dirichlet("sin(t)"), fd.Dirichlet("exp(-t)"))}
        pinn = PINN(fd.Heat(1.0), fd.Grid(101), "sin(pi*x)", 1.0, ends, width=12, depth=3, points=1500, seed=seed)
        return pinn, dict(seconds=10 * unit), lambda: _rod_error(pinn)
    if name == "front":
        k, c = np.sqrt(1 / 0.06), 5 / np.sqrt(6) * 0.1
        ends = [fd.Dirichlet(f"(1 + exp({float(k)}*({x} - 0.2 - {float(c)}*t)))^(-2)") for x in (0, 1)]
        pinn = PINN(fd.FisherKPP(0.01, 1.0), fd.Grid(201), f"(1 + exp({float(k)}*(x - 0.2)))^(-2)", 1.0,
                    {"x": tuple(ends)}, width=16, depth=2, points=1500, seed=seed)
        return pinn, dict(seconds=6 * unit), lambda: {"error": _relative(pinn(*_mesh(pinn)), front(*_mesh(pinn)))}
    if name == "burgers":
        nu = 0.01 / np.pi
        equation = fd.Burgers(nu) if hasattr(fd, "Burgers") else fd.nn.Residual(
            lambda u, u_t, u_x, u_xx: u_t + u * u_x - nu * u_xx, diffusion=nu)
        pinn = PINN(equation, fd.Grid(257, (-1, 1)), "-sin(pi*x)", 1.0, walls, width=20, depth=3, points=2500,
                    seed=seed)
        return pinn, dict(seconds=60 * unit, refine=20), lambda: {
            "error": _relative(pinn(*_mesh(pinn)), burgers(*_mesh(pinn)))}
    if name == "allen-cahn":
        pinn = PINN(fd.AllenCahn(2e-5, 5.0), fd.Grid(256, (-1, 1), periodic=True), "x^2*cos(pi*x)", 1.0, width=24,
                    depth=3, harmonics=8, points=3000, seed=seed)
        return pinn, dict(seconds=120 * unit, refine=20), lambda: _allen_cahn_error(pinn)
    raise ValueError(f"unknown problem {name!r}; known: {', '.join(GOALS)}")


def _rod_error(pinn):
    # many early times: there the data contradict each other
    t = np.concatenate([np.linspace(0, 0.02, 21)[1:], np.linspace(0.02, 1, 99)[1:]])
    t, x = np.meshgrid(t, np.linspace(0, 1, 201), indexing="ij")
    u, exact = pinn(t, x), rod(t, x)
    return {"error": _relative(u, exact, (1 - x) ** 2 + t >= 0.01), "in all": _relative(u, exact)}


def _allen_cahn_error(pinn):
    t, x, exact = allen_cahn()
    return {"error": _relative(pinn(t[:, None], x[None, ::4]), exact[:, ::4])}


GOALS = {  # problem: (largest error, of each part; seconds that the issue allows)
    "heat": ({"error": 1e-5}, 60), "rod": ({"error": 1e-3, "in all": 2e-2}, 120), "front": ({"error": 1e-3}, 300),
    "burgers": ({"error": 1e-3}, 300), "allen-cahn": ({"error": 1e-3}, 1200), "inverse": ({"error": 1e-2}, 300),
    "combined": ({"both": 1.0}, 300),
}


def _train(name, seed, unit, steps=None):
    pinn, how, error = _case(name, seed, unit)
    if steps is not None:
        how = {**how, "seconds": None, "steps": steps}
    report = pinn.train_for("gauss_newton", **how)
    return {**error(), "seconds": pinn.seconds, "solver": None if report is None else report.solver,
            "distance": None if report is None else report.error, "loss": pinn.history[-1][1]}, pinn


def _inverse(seed, unit):
    """D from 200 points of a rod with D = 0.3 and 1 % of noise."""
    import fastdiff as fd

    rng = np.random.default_rng(seed)
    t, x = rng.uniform(0, 1, 200), rng.uniform(0, 1, 200)
    u = np.exp(-0.3 * np.pi**2 * t) * np.sin(np.pi * x) + 0.01 * rng.standard_normal(200)
    pinn = fd.nn.PINN(fd.Heat(1.0), fd.Grid(101), "sin(pi*x)", 1.0, {"x": fd.Dirichlet(0.0)}, width=12, depth=2,
                      points=1000, unknown={"diffusivity": 1.0}, data=(t, x, u), seed=seed)
    pinn.train_for("gauss_newton", seconds=8 * unit)
    D = float(pinn.unknown["diffusivity"].detach())
    return {"error": abs(D / 0.3 - 1), "D": D, "seconds": pinn.seconds}, pinn


def _combined(seed, unit):
    """A rod whose initial values nobody knows: four noisy snapshots of it, its equation and walls, or both.

    The same network and optimiser three times; `physics` has the initial values of the first snapshot, noise and all.
    """
    import fastdiff as fd

    rng = np.random.default_rng(seed)
    places, times = np.linspace(0, 1, 13)[1:-1], np.array([0.02, 0.1, 0.2, 0.4])
    exact = lambda t, x: heat(t, x) + 0.5 * np.exp(-4 * np.pi**2 * t) * np.sin(2 * np.pi * x)
    t, x = (v.ravel() for v in np.meshgrid(times, places, indexing="ij"))
    u = exact(t, x) + 0.05 * rng.standard_normal(t.size)
    found: dict[str, Any] = {}
    for what in ("data", "physics", "both"):
        kept = t == times[0] if what == "physics" else np.ones(t.size, bool)
        pinn = fd.nn.PINN(fd.Heat(1.0), fd.Grid(65), None, 0.5, {"x": fd.Dirichlet(0.0)}, width=10, depth=2, points=400,
                          data=(t[kept], x[kept], u[kept]), data_weight=10.0, seed=seed)
        if what == "data":
            pinn.terms = [term for term in pinn.terms if term.name == "data"]
        pinn.train_for("gauss_newton", steps=max(3, int(60 * unit)), compare=False)
        mesh = np.meshgrid(np.linspace(0.02, 0.5, 49), np.linspace(0, 1, 65), indexing="ij")
        found[what] = _relative(pinn(*mesh), exact(*mesh))
    return {**found, "seconds": 0.0}, pinn


def run_case(name: str, seeds: int, unit: float = 1.0, steps: int | None = None):
    """All seeds of a problem: (list of results, the last network). `steps` counts steps in place of seconds."""
    pinn, found = None, []
    for seed in range(seeds):
        made = {"inverse": _inverse, "combined": _combined}.get(name)
        result, pinn = made(seed, unit) if made else _train(name, seed, unit, steps)
        found.append({"seed": seed, **result})
        print(f"  {name} {json.dumps(found[-1])}", flush=True)
    return found, pinn


def row_of(name, found) -> Row:
    """The line of the table."""
    goals, allowed = GOALS[name]
    mid = {key: median(f[key] for f in found) for key in found[0] if isinstance(found[0][key], float)}
    told = f"{len(found)} seeds"
    if name == "combined":
        met = mid["both"] < min(mid["data"], mid["physics"])
        spread = lambda k: f"{k} {np.mean([f[k] for f in found]):.3f} ± {np.std([f[k] for f in found]):.3f}"
        alone = f"{spread('data')}; {spread('physics')}; {told}"
        return Row(name, spread("both"), "both < either alone", met, None, alone)
    met = all(mid[k] <= goal for k, goal in goals.items()) and mid["seconds"] <= allowed
    ours = ", ".join(f"{k} {mid[k]:.1e}" for k in goals) + f" in {mid['seconds']:.0f} s"
    solver = f"; fd.solve took {mid['solver']:.2g} s, distance {mid['distance']:.1e}" if "solver" in mid else ""
    target = ", ".join(f"{k} <= {v:g}" for k, v in goals.items()) + f" within {allowed} s"
    return Row(name, ours, target, met, None, told + solver, {"seconds": [f["seconds"] for f in found]})


def markdown(rows, about) -> str:
    """The table, and the machine it was measured on."""
    lines = ["# Accuracy of physics-informed networks", "", about, "",
             "Gauss-Newton (Levenberg-Marquardt), float64; relative L2 error, median over the seeds; seconds of "
             "training.", "", "| problem | ours | target | met | |", "|---|---|---|---|---|"]
    lines += [f"| {r.case} | {r.ours} | {r.target} | {'yes' if r.met else '**no**'} | {r.baseline} |" for r in rows]
    return "\n".join(lines) + "\n"


def main(args: list[str]) -> int:
    """Train, print, write; 1 if a goal is missed."""
    parser = argparse.ArgumentParser(prog="fastdiff bench pinn", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="*", help=f"problems: {', '.join(GOALS)} (default: all)")
    parser.add_argument("--threads", type=int, help="default: all cores we may use")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="hardly any training: shows that it runs")
    parser.add_argument("--out", type=Path, help="folder of pinn.json, pinn.md and pinn.png")
    given = parser.parse_args(args)
    import torch

    options = Options(use_threads(given.threads), rounds=2, scale=1 / 32 if given.tiny else 1.0)
    torch.set_num_threads(options.threads)
    out = given.out or (Path(tempfile.mkdtemp()) if given.tiny else RESULTS)
    out.mkdir(parents=True, exist_ok=True)
    about, kept, begin = machine_line(options), _kept(out / "pinn.json"), perf_counter()
    for name in given.only or GOALS:
        found, pinn = run_case(name, 1 if given.tiny else given.seeds, 0.02 if given.tiny else 1.0)
        row = row_of(name, found)
        kept[name] = {"row": asdict(row), "runs": found, "about": about}
        print(f"{'met   ' if row.met else 'MISSED'} {row.case:12} {row.ours:44} {row.target}  [{row.baseline}]",
              flush=True)
        if name == "rod" and pinn is not None:
            pinn.plot(out / "pinn.png")
        rows = [Row(**kept[n]["row"]) for n in GOALS if n in kept]
        (out / "pinn.md").write_text(markdown(rows, about))
        (out / "pinn.json").write_text(json.dumps(kept, indent=1))
    print(f"{perf_counter() - begin:.0f} s; written to {out}")
    return 0 if all(kept[n]["row"]["met"] for n in given.only or GOALS) else 1


def _kept(path):
    """Results of problems that were run before: a long table is made bit by bit."""
    return json.loads(path.read_text()) if path.exists() else {}


__all__ = ["main", "run_case"]
