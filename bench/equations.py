"""Reactions from strings against the hand-written Gray-Scott rule: `fastdiff bench equations`.

Every two-species polynomial system marches the same grid for the same number of steps as the hand-written rule, in
turns, in one process. Before it is timed, Gray-Scott from strings is compared with the hand-written rule, and the
others with NumPy. `functions` rows show what exp and tanh cost; they have no goal.
"""

import argparse
import sys
from functools import partial
from statistics import median

import numpy as np

import fastdiff as fd
from fastdiff.bench.kernels import use_threads
from fastdiff.bench.targets import RESULTS, Options, Row, alternate, machine_line, markdown, rate
from fastdiff.kernels._edges import make_edges
from fastdiff.kernels._run import march

SYSTEMS = {  # name: equation on a grid of spacing 1, low and high of the start
    "Gray-Scott": (fd.ReactionDiffusion({"u": 0.16, "v": 0.08}, {"u": "F*(1 - u) - u*v**2", "v": "u*v**2 - (F + k)*v"},
                                        {"F": 0.04, "k": 0.06}), 0.2, 0.5),
    "FitzHugh-Nagumo": (fd.FitzHughNagumo(Du=0.16, Dv=0.08), 0.0, 0.5),
    "Brusselator": (fd.Brusselator(B=1.5, Du=0.16, Dv=0.08), 0.5, 1.5),
    "Schnakenberg": (fd.Schnakenberg(Du=0.16, Dv=0.08), 0.5, 1.0),
}
FUNCTIONS = {
    "exp": fd.ReactionDiffusion({"u": 0.16, "v": 0.08}, {"u": "v*exp(-u) - u", "v": "u - v"}),
    "tanh": fd.ReactionDiffusion({"u": 0.16, "v": 0.08}, {"u": "tanh(v) - u", "v": "u - v"}),
    "u/(1 + v)": fd.ReactionDiffusion({"u": 0.16, "v": 0.08}, {"u": "u/(1 + v) - u", "v": "u - v"}),
}


def _right(name, equation, u, rule, edges, dt):
    """Two steps against NumPy."""
    want = u.astype(np.float64)
    for _ in range(2):
        spread = sum(np.roll(want, s, k) - want for s in (1, -1) for k in (2, 3))
        want = want + dt * (np.array([0.16, 0.08]).reshape(1, 2, 1, 1) * spread + equation.rates(want[0])[None])
    error = np.abs(march(rule, u, edges, 2) - want).max()
    if not error <= 16 * np.finfo(u.dtype).eps * np.abs(want).max():
        raise AssertionError(f"{name} from strings differs from NumPy by {error:.3g}")


def rows(options):
    """One row a system."""
    side, steps, dtype = options.side(512), options.count(1000), np.float32
    grid = fd.Grid((side, side), extent=float(side), periodic=True)
    edges = make_edges(grid.shape, [True, True], dtype, components=2)
    out, work = np.empty((2, 1, 2, side, side), dtype)

    def go(rule, u):
        return march(rule, u, edges, steps, out=out, work=work, threads=options.threads)

    hand = fd.GrayScott(Du=0.16, Dv=0.08)
    systems = {**SYSTEMS, **{f"with {name}": (equation, 0.2, 0.5) for name, equation in FUNCTIONS.items()}}
    for name, (equation, low, high) in systems.items():
        dt = 1.0 if name == "Gray-Scott" else 0.05
        u = np.random.default_rng(0).uniform(low, high, (1, 2, side, side)).astype(dtype)
        other = np.random.default_rng(0).uniform(0.2, 0.5, u.shape).astype(dtype)
        ours, theirs = equation.euler(grid, dt, 1, dtype), hand.euler(grid, 1.0, 1, dtype)
        _right(name, equation, u, ours, edges, dt)
        if name == "Gray-Scott":
            assert np.abs(march(ours, u, edges, 50) - march(theirs, u, edges, 50)).max() < 1e-5
        seconds = alternate(options.rounds, ours=partial(go, ours, u), hand=partial(go, theirs, other))
        assert np.isfinite(go(ours, u)).all(), name
        ratio, goal = median(seconds["hand"]) / median(seconds["ours"]), not name.startswith("with")
        speeds = [f"{rate(side * side, steps, seconds[kind]):,.0f} M/s" for kind in ("ours", "hand")]
        yield Row(f"{name} from strings, {side}² periodic, float32", speeds[0],
                  ">= 0.9 of hand-written Gray-Scott" if goal else "-", ratio >= 0.9 or not goal, ratio,
                  speeds[1], seconds)


def main(args: list[str]) -> int:
    """Measure, print, write; 1 if a goal is missed."""
    import json
    import tempfile
    from dataclasses import asdict
    from pathlib import Path

    parser = argparse.ArgumentParser(prog="fastdiff bench equations", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, help="default: all cores we may use")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
    given = parser.parse_args(args)
    size = {"rounds": 2, "scale": 1 / 16, "steps": 1 / 20} if given.tiny else {"rounds": given.rounds}
    options = Options(use_threads(given.threads), **size)
    out, about, found = Path(tempfile.mkdtemp()) if given.tiny else RESULTS, machine_line(options), []
    for row in rows(options):
        found.append(row)
        print(f"{'met   ' if row.met else 'MISSED'} {row.case:52} {row.ours:14} {row.ratio:6.2f}  [{row.baseline}]",
              flush=True)
    title = markdown(found, about).replace("# Speed goals, measured", "# Reactions from strings, measured")
    (out / "equations.md").write_text(title)
    (out / "equations.json").write_text(json.dumps({"about": about, "rows": [asdict(r) for r in found]}, indent=1))
    print(f"written to {out}")
    return 0 if all(row.met for row in found) or given.tiny else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
