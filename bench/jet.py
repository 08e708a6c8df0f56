"""Training steps of physics-informed networks: ours against every other way to get the derivatives.

`fastdiff bench jet`: one step is loss, forward and backward to all parameters, of the residual u_t - D Lap u. All take
turns in one process, with the same threads; medians. Opponents: torch double autograd; torch.func (jvp of jvp), eager
and compiled; jets written in torch operations, eager and compiled; JAX (jvp of jvp, and jets), where installed. Each
must give the same loss and gradient before it is timed. Memory: what the process grows by, at most, in one step.
Writes jet.json and jet.md.
"""

import argparse
import ctypes
import json
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from time import perf_counter, sleep

import numpy as np
from numba import types
from numba.extending import intrinsic

from fastdiff.bench.cases import seconds_of
from fastdiff.bench.kernels import use_threads
from fastdiff.bench.targets import RESULTS, Options, Row, machine_line
from fastdiff.kernels import _blocks
from fastdiff.kernels._jit import kernel
from fastdiff.kernels._threads import together

CASES = {  # name: (widths, points)
    "2-10-10-1": ((2, 10, 10, 1), 10_000),
    "2-64x4-1": ((2, 64, 64, 64, 64, 1), 10_000),
    "3-64x4-1": ((3, 64, 64, 64, 64, 1), 10_000),
}
D = 0.1


# -- the same step in many ways ---------------------------------------------------------------------------------------


def steps(widths, points, seed=0):
    """{name: step}; a step returns loss and gradient by all parameters, flat."""
    import torch

    import fastdiff as fd

    net = fd.nn.JetMLP(widths, seed=seed)
    x = torch.rand(points, widths[0], generator=torch.Generator().manual_seed(seed))
    space = "xyz"[: widths[0] - 1]
    operator = {"t": 1.0, **{n + n: -D for n in space}}
    laplacian = "+".join(n + n for n in space)

    def by_jets():
        jet = net.jet(x, first="t", second=laplacian)
        return _graded(net, ((jet.t - D * jet[laplacian]) ** 2).mean())

    made = {"residual_loss": lambda: _graded(net, net.residual_loss(x, operator)), "jets": by_jets}
    made |= torch_steps(net, x)
    try:
        made |= jax_steps(net, x)
    except ImportError:
        pass
    return made


def _graded(net, loss):
    import torch

    return loss, torch.autograd.grad(loss, net.theta)[0]


def torch_steps(net, x):
    """Double autograd; torch.func; jets in torch operations; each eager and, where torch can, compiled."""
    import torch

    theta = [p.detach().clone().requires_grad_() for pair in net.matrices() for p in pair]
    leaf = x.clone().requires_grad_()

    def mlp(x, theta):
        for k in range(0, len(theta), 2):
            x = torch.nn.functional.linear(x, theta[k], theta[k + 1])
            if k < len(theta) - 2:
                x = torch.tanh(x)
        return x

    def nested(theta):
        (g,) = torch.autograd.grad(mlp(leaf, theta).sum(), leaf, create_graph=True)
        r = g[:, 0]
        for k in range(1, x.shape[1]):
            r = r - D * torch.autograd.grad(g[:, k].sum(), leaf, create_graph=True)[0][:, k]
        return (r**2).mean()

    def functional(theta):
        def along(k):
            e = torch.zeros_like(x)
            e[:, k] = 1
            return lambda f: lambda y: torch.func.jvp(f, (y,), (e,))[1]

        f = lambda y: mlp(y, theta)
        r = along(0)(f)(x)
        for k in range(1, x.shape[1]):
            r = r - D * along(k)(along(k)(f))(x)
        return (r**2).mean()

    def hessian(theta):
        f = lambda y: mlp(y, theta)[0]
        first = torch.func.vmap(torch.func.grad(f))(x)
        second = torch.func.vmap(torch.func.hessian(f))(x)
        return ((first[:, 0] - D * torch.diagonal(second, dim1=1, dim2=2)[:, 1:].sum(1)) ** 2).mean()

    def by_jets(theta):
        h, first = x, [theta[0][:, k] for k in range(x.shape[1])]
        lap = None
        for k in range(0, len(theta), 2):
            w, b = theta[k], theta[k + 1]
            z = torch.nn.functional.linear(h, w, b)
            zi = first if k == 0 else [v @ w.T for v in first]
            zl = 0.0 if lap is None else lap @ w.T
            if k == len(theta) - 2:
                return ((zi[0] - D * zl) ** 2).mean()
            h = torch.tanh(z)
            p = 1 - h * h
            lap = p * zl - 2 * h * p * sum(v * v for v in zi[1:])
            first = [p * v for v in zi]

    def step(loss):
        def run():
            value = loss(theta)
            return value, torch.cat([g.reshape(-1) for g in torch.autograd.grad(
                value, theta, allow_unused=True, materialize_grads=True)])
        return run

    made = {"double autograd": step(nested), "torch.func": step(functional), "torch jets": step(by_jets),
            "torch.func hessian, compiled": step(torch.compile(hessian)),
            "torch jets, compiled": step(torch.compile(by_jets))}
    return made


def jax_steps(net, x):
    """jvp of jvp, and jets, compiled by XLA."""
    import jax
    import jax.numpy as jnp

    theta = [jnp.asarray(p.detach().numpy()) for pair in net.matrices() for p in pair]
    x = jnp.asarray(x.numpy())

    def mlp(theta, x):
        for k in range(0, len(theta), 2):
            x = x @ theta[k].T + theta[k + 1]
            x = jnp.tanh(x) if k < len(theta) - 2 else x
        return x

    def nested(theta):
        along = lambda f, k: lambda y: jax.jvp(f, (y,), (jnp.zeros_like(x).at[:, k].set(1),))[1]
        f = lambda y: mlp(theta, y)
        r = along(f, 0)(x)
        for k in range(1, x.shape[1]):
            r = r - D * along(along(f, k), k)(x)
        return (r**2).mean()

    def by_jets(theta):
        h, first, lap = x, [theta[0][:, k] for k in range(x.shape[1])], None
        for k in range(0, len(theta), 2):
            w, b = theta[k], theta[k + 1]
            z = h @ w.T + b
            zi = first if k == 0 else [v @ w.T for v in first]
            zl = 0.0 if lap is None else lap @ w.T
            if k == len(theta) - 2:
                return ((zi[0] - D * zl) ** 2).mean()
            h = jnp.tanh(z)
            p = 1 - h * h
            lap = p * zl - 2 * h * p * sum(v * v for v in zi[1:])
            first = [p * v for v in zi]

    def step(loss):
        graded = jax.jit(jax.value_and_grad(loss))

        def run():
            value, grads = graded(theta)
            return value.block_until_ready(), [g.block_until_ready() for g in grads]
        return run

    return {"JAX, jvp of jvp": step(nested), "JAX, jets": step(by_jets)}


def checked(made):
    """The same; one whose loss or gradient is not that of double autograd is an error."""
    value, wanted = made["double autograd"]()
    for name, run in made.items():
        loss, gradient = run()
        flat = np.concatenate([np.ravel(np.asarray(g)) for g in gradient]) if isinstance(gradient, list) else gradient
        error = np.abs(np.asarray(flat) - wanted.numpy()).max() / np.abs(wanted.numpy()).max()
        number, right = (float(v.detach()) if hasattr(v, "detach") else float(v) for v in (loss, value))
        if not (error < 1e-3 and abs(number / right - 1) < 1e-3):
            raise AssertionError(f"{name} gives another loss or gradient: {number} for {right}, {error:.1e}")
    return made


# -- limits -----------------------------------------------------------------------------------------------------------


@intrinsic
def _multiply_adds(typingctx, array, count):
    """`count` rounds of 24 independent multiply-adds of whole vectors."""

    def codegen(context, builder, sig, args):
        vector, _, _ = _blocks._vector(sig.args[0].dtype)
        base = _blocks._data(context, builder, sig.args[0], args[0])
        a = _blocks._load(builder, base, vector, 4)
        sums = [a] * 24
        sums = _blocks._loop(builder, args[1], sums, lambda k, s: [_blocks._multiply_add(builder, v, a, a) for v in s])
        total = sums[0]
        for part in sums[1:]:
            total = builder.fadd(total, part)
        _blocks._store(builder, total, base, 4)
        return context.get_dummy_value()

    return types.none(array, types.int64), codegen


@kernel()
def _busy(array, count):
    _multiply_adds(array, count)


def peak(threads: int, dtype="float32", rounds: int = 5) -> float:
    """Multiply-adds (counted as two) a second, from registers alone, on all threads."""
    count = 2_000_000
    lanes = _blocks.lanes_of(np.dtype(dtype)) // _blocks.VECTORS

    def task():
        _busy(np.full(lanes, 0.5, dtype), count)

    seconds = []
    for _ in range(rounds + 1):
        start = perf_counter()
        together(task, threads)
        seconds.append(perf_counter() - start)
    return 2 * 24 * lanes * count * threads / median(seconds[1:])


def products(widths, points, channels) -> float:
    """Additions and multiplications of the matrix products that residual_loss does in one step."""
    pairs = list(pairwise(widths))
    cells = 3 * sum(a * b for a, b in pairs) - pairs[0][0] * pairs[0][1]
    return 2.0 * points * channels * cells


def growth(run) -> float:
    """Bytes that the process grows by, at most, in one run (Linux)."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        kept = run()
        after = _status("VmHWM")
        del kept
        return after - before
    except (OSError, AttributeError):
        return float("nan")


def _status(name):
    line = next(v for v in Path("/proc/self/status").read_text().splitlines() if v.startswith(name))
    return 1024.0 * int(line.split()[1])


# -- rows -------------------------------------------------------------------------------------------------------------

REST = 0.3  # seconds before each step, so that the threads of the one before, which spin for a while, fall asleep


def alternate(rounds, made):
    """Seconds of each step, taking turns, each alone on the machine; a first round is thrown away."""
    seconds = {name: [] for name in made}
    for k in range(rounds + 1):
        for name, run in made.items():
            sleep(REST)
            run()  # caches and threads are awake
            spent = seconds_of(run)
            if k:
                seconds[name].append(spent)
    return seconds


def share_of_peak(options) -> Row:
    """Arithmetic of the products over what multiply-adds from registers reach."""
    import torch

    import fastdiff as fd

    widths, points = CASES["2-64x4-1"]
    points = max(64, int(points * options.scale))
    net, x = fd.nn.JetMLP(widths, seed=0), torch.rand(points, 2)
    run = lambda: _graded(net, net.residual_loss(x, {"t": 1.0, "xx": -D}))
    run()
    seconds = [seconds_of(run) for _ in range(3 * options.rounds)]
    rate, top = products(widths, points, 3) / median(seconds), peak(options.threads)
    return Row("2-64x4-1: share of the FMA peak, alone in the process", f"{1e3 * median(seconds):.2f} ms, "
               f"{rate / 1e9:.0f} GFLOP/s", ">= 0.5", rate / top >= 0.5, rate / top,
               f"{top / 1e9:.0f} GFLOP/s from registers", {"ours": seconds})


GOALS = {  # case: (name of ours, times double autograd, times the best opponent, share of its memory)
    "2-10-10-1": [("residual_loss", 8.0, 2.0, None)],
    "2-64x4-1": [("jets", 1.7, None, 0.5), ("residual_loss", 3.0, 1.8, 0.1)],
    "3-64x4-1": [("residual_loss", 3.5, 2.0, None)],
}


def rows(options, only=()):
    """The rows of the cases asked for. Others are timed before ours is called, too: the better time counts."""
    import torch

    torch.set_num_threads(options.threads)
    cases = {case: (widths, max(64, int(points * options.scale))) for case, (widths, points) in CASES.items()
             if not only or case in only}
    made = {case: running(steps(*what)) for case, what in cases.items()}
    alone = {case: alternate(options.rounds, others(ways)) for case, ways in made.items()}
    if "2-64x4-1" in cases:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
            yield fresh.submit(_in_a_process, options).result()
    for case, (widths, points) in cases.items():
        ways = checked(made[case])
        memory = {name: growth(run) for name, run in ways.items()}
        seconds = alternate(options.rounds, ways)
        for name, before in alone[case].items():
            seconds[name] = min(seconds[name], before, key=median)
        yield from _rows(case, widths, points, seconds, memory, options)


def others(made):
    """What is not ours."""
    return {name: run for name, run in made.items() if name not in ("residual_loss", "jets")}


def running(made):
    """Those that run here; ours are not called yet."""
    found = dict(made)
    for name, run in others(made).items():
        try:
            run()
        except RuntimeError as error:
            print(f"{name} does not run here: {str(error).splitlines()[0]}")
            del found[name]
    return found


def _in_a_process(options):
    use_threads(options.threads)
    return share_of_peak(options)


def _rows(case, widths, points, seconds, memory, options):
    mid = {name: median(s) for name, s in seconds.items()}
    others = {name: t for name, t in mid.items() if name not in ("residual_loss", "jets")}
    best = min(others, key=others.__getitem__)
    told = "; ".join(f"{name} {1e3 * t:.2f}" for name, t in others.items()) + " ms"
    for name, goal, goal_best, share in GOALS[case]:
        ratio, ratio_best = mid["double autograd"] / mid[name], mid[best] / mid[name]
        used = memory[name] / memory["double autograd"]
        met = ratio >= goal and (goal_best is None or ratio_best >= goal_best) and (share is None or used <= share)
        ours = f"{name} {1e3 * mid[name]:.2f} ms, {memory[name] / 1e6:.1f} MB"
        target = f">= {goal}x double autograd" + (f", >= {goal_best}x best" if goal_best else "") + (
            f", <= {share} of {memory['double autograd'] / 1e6:.0f} MB" if share else "")
        yield Row(f"{case}, {points} points: {name}", ours, target, met, ratio,
                  f"best is {best}: {ratio_best:.2f}x; {told}", seconds)


def markdown(found, about) -> str:
    """The table, and the machine it was measured on."""
    lines = ["# Training steps of physics-informed networks", "", about, "",
             "float32, tanh; one step is loss, forward and backward to all parameters. Ratio: double autograd's time "
             "over ours. Memory: growth of the process in one step.", "",
             "| case | ours | ratio | target | met | opponents |", "|---|---|---|---|---|---|"]
    lines += [f"| {r.case} | {r.ours} | {r.ratio:.2f} | {r.target} | {'yes' if r.met else '**no**'} | {r.baseline} |"
              for r in found]
    return "\n".join(lines) + "\n"


def main(args: list[str]) -> int:
    """Measure, print, write; 1 if a goal is missed."""
    parser = argparse.ArgumentParser(prog="fastdiff bench jet", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="*", help=f"cases: {', '.join(CASES)} (default: all)")
    parser.add_argument("--threads", type=int, help="default: all cores we may use")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
    parser.add_argument("--out", type=Path, help="folder of jet.json and jet.md")
    given = parser.parse_args(args)
    size = {"rounds": 2, "scale": 1 / 50} if given.tiny else {"rounds": given.rounds}
    options = Options(use_threads(given.threads), **size)
    os.environ.setdefault("XLA_FLAGS", f"--xla_cpu_multi_thread_eigen={'true' if options.threads > 1 else 'false'}")
    out = given.out or (Path(tempfile.mkdtemp()) if given.tiny else RESULTS)
    about, found = machine_line(options), []
    print(about)
    for row in rows(options, given.only):
        found.append(row)
        print(f"{'met   ' if row.met else 'MISSED'} {row.case:45} {row.ours:38} {row.ratio:6.2f}  {row.target}\n"
              f"       [{row.baseline}]", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / "jet.md").write_text(markdown(found, about))
    (out / "jet.json").write_text(json.dumps({"about": about, "rows": [asdict(r) for r in found]}, indent=1))
    return 0 if all(row.met for row in found) else 1


__all__ = ["main", "peak", "rows"]
