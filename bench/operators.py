"""Speed of the operators: `fastdiff bench operators` (or `python -m fastdiff.bench.operators`).

div(D(x) grad u) against the plain loop of sweeps.py on a grid with held edges, after both gave the same numbers; and
the rule's own limit over rows in the first-level cache. Writes results/operators.md and operators.json.
"""

import argparse
import json
from dataclasses import asdict
from statistics import median

import numpy as np

from fastdiff.bench import machine, sweeps
from fastdiff.bench.kernels import use_threads
from fastdiff.bench.targets import RESULTS, Options, Row, alternate, held, machine_line, markdown, rate
from fastdiff.kernels import variable
from fastdiff.kernels._run import march


def variable_row(dtype, goal, options) -> Row:
    """div(D grad u) on 1024 x 1024, 200 steps."""
    n, steps = options.side(1024), options.count(200)
    rng = np.random.default_rng(0)
    D = (0.05 * np.exp(rng.random((n, n)))).astype(dtype)
    a0, a1 = np.zeros((n + 1, n), dtype), np.zeros((n, n + 1), dtype)
    a0[1:-1] = 2 * D[1:] * D[:-1] / (D[1:] + D[:-1])
    a1[:, 1:-1] = 2 * D[:, 1:] * D[:, :-1] / (D[:, 1:] + D[:, :-1])
    u = np.ones((1, 1, n, n), dtype)
    u[0, 0, 1:-1, 1:-1] = rng.uniform(0.5, 1.5, (n - 2, n - 2))
    rule, edges = variable.rule(np.stack([a0[:-1], a0[1:], a1[:, :-1], a1[:, 1:]])[:, None], dtype), held(u)
    out, work, case = np.empty_like(u), np.empty_like(u), f"div(D(x) grad u), {n}², {steps} steps, {dtype}"
    ours, plain = march(rule, u, edges, 5), sweeps.variable(u, (a0, a1))(5)
    if not np.abs(ours - plain).max() <= 40 * np.finfo(dtype).eps:
        raise AssertionError(f"{case}: ours and the plain loop differ by {np.abs(ours - plain).max():.3g}")
    sweep, roofs = sweeps.variable(u, (a0, a1)), []
    seconds = alternate(
        options.rounds,
        ours=lambda: march(rule, u, edges, steps, out=out, work=work, threads=options.threads),
        sweep=lambda: sweep(steps),
        roof=lambda: roofs.append(machine.in_cache(rule, u.dtype, 2, options.threads, seconds=0.05, rounds=1)),
    )
    seconds.pop("roof")
    ratio, mine = median(seconds["sweep"]) / median(seconds["ours"]), rate(u.size, steps, seconds["ours"])
    return Row(case, f"{mine:,.0f} M/s, {mine * 1e6 / median(roofs):.0%} of the in-cache roof", f">= {goal}x sweep",
               ratio >= goal, ratio, f"{rate(u.size, steps, seconds['sweep']):,.0f} M/s; roof "
               f"{median(roofs) / 1e6:,.0f} M/s", seconds)


def main(argv=None) -> int:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(prog="fastdiff bench operators", description=__doc__)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tiny", action="store_true", help="only show that it runs; writes nothing")
    args = parser.parse_args(argv)
    scale = 0.1 if args.tiny else 1.0
    options = Options(use_threads(args.threads), 1 if args.tiny else args.rounds, scale, scale)
    found = [variable_row(dtype, goal, options) for dtype, goal in (("float32", 2.0), ("float64", 2.5))]
    text = markdown(found, machine_line(options))
    print(text)
    if not args.tiny:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "operators.md").write_text(text.replace("# Speed goals, measured", "# Operators, measured"))
        (RESULTS / "operators.json").write_text(json.dumps([asdict(row) for row in found], indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
