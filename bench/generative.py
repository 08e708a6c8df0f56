"""Generative models, measured: fused kernels against torch eager, torch.compile and diffusers; and what models score.

`fastdiff bench generative` measures the speed goals, one row each: A and B take turns in one process; a row's numbers
are compared first. Writes generative.md and generative.json. `fastdiff bench generative --runs FOLDER` trains models
and scores them, see generative_runs.py.
"""

import argparse
import json
import tempfile
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from fastdiff.bench.kernels import use_threads
from fastdiff.bench.machine import triad
from fastdiff.bench.targets import RESULTS, Options, Row, alternate, machine_line, markdown

LARGE = (128, 3, 64, 64)


def _torch(options):
    import torch

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    return torch


def _fields(torch, options, count):
    shape = LARGE if options.scale == 1 else (4, 3, 16, 16)
    return [torch.randn(shape) for _ in range(count)]


def _repeat(run, calls):
    """A round of several calls: single ones mostly measure how the processor wakes up."""
    def many():
        for _ in range(calls):
            run()
    return many


def _compiled(torch, function, *args):
    made = torch.compile(function)
    made(*args)
    return made


def _equal(case, a, b, tolerance=1e-5):
    if not float((a - b).abs().max()) <= tolerance * max(float(b.abs().max()), 1):
        raise AssertionError(f"{case}: ours and theirs differ by {float((a - b).abs().max()):.3g}")


def compare(case, options, goals, runs, calls=10):
    """A row: ours against the best of the others; `goals`: {name of an opponent or "best": factor}."""
    seconds = alternate(options.rounds, **{name: _repeat(run, calls) for name, run in runs.items()})
    seconds = {name: [s / calls for s in spent] for name, spent in seconds.items()}
    times = {name: median(spent) for name, spent in seconds.items()}
    others = {name: t for name, t in times.items() if name != "ours"}
    best = min(others, key=lambda name: others[name])
    reached = {name: others[best if name == "best" else name] / times["ours"] for name in goals}
    met = all(reached[name] >= goal for name, goal in goals.items())
    beside = ", ".join(f"{name} {t * 1e3:.3f} ms" for name, t in others.items())
    target = ", ".join(f">= {goal}x {'best of all' if name == 'best' else name}" for name, goal in goals.items())
    return Row(case, f"{times['ours'] * 1e3:.3f} ms", target, met, others[best] / times["ours"], beside, seconds)


# -- noise -------------------------------------------------------------------------------------------------------------


def noise_rows(options):
    """Forward noising: with its noise, with given noise, with the velocity as target."""
    torch = _torch(options)
    from fastdiff.kernels.noise import Draw
    from fastdiff.nn import functional as F
    from fastdiff.nn.schedules import make_schedule

    x, e = _fields(torch, options, 2)
    table = make_schedule("linear").alpha_bar
    t = torch.randint(0, 1000, (len(x),))
    bar = torch.from_numpy(table).float()
    a, s = bar.sqrt()[t], (1 - bar).sqrt()[t]
    k = torch.stack([a, s, -s, a], 1)
    draw = iter(range(1 << 40))
    from diffusers import DDPMScheduler  # pyright: ignore[reportPrivateImportUsage]

    scheduler = DDPMScheduler()

    def with_noise(x):
        z = torch.randn_like(x)
        return a[:, None, None, None] * x + s[:, None, None, None] * z, z

    def given(x, e):
        return a[:, None, None, None] * x + s[:, None, None, None] * e

    def velocity(x, e):
        u, v = a[:, None, None, None], s[:, None, None, None]
        return u * x + v * e, u * e - v * x

    def theirs():
        z = torch.randn_like(x)
        return scheduler.add_noise(x, z, t), z

    _equal("q_sample", F.add_noise(x, k, e), given(x, e))
    _equal("q_sample", scheduler.add_noise(x, e, t), given(x, e), 1e-4)
    noisy, z = F.draw_noise(x, torch.stack([a, s, 0 * a, 1 + 0 * s], 1), Draw(1, 2))
    _equal("q_sample with its noise", noisy, given(x, z))
    k_noise = torch.stack([a, s, 0 * a, 1 + 0 * s], 1)
    fast = _compiled(torch, with_noise, x)
    yield compare(f"q_sample with its noise, {_name(x)}", options, {"best": 2.5}, {
        "ours": lambda: F.draw_noise(x, k_noise, Draw(1, next(draw))), "eager": lambda: with_noise(x),
        "compile": lambda: fast(x), "diffusers": theirs}, calls=3)
    fast_given = _compiled(torch, given, x, e)
    row = compare(f"q_sample with given noise, {_name(x)}", options, {"best": 1.2}, {
        "ours": lambda: F.add_noise(x, k, e), "eager": lambda: given(x, e), "compile": lambda: fast_given(x, e),
        "diffusers": lambda: scheduler.add_noise(x, e, t)}, calls=20)
    roof = max(triad(options.threads, "float32", x.nbytes, rounds=15), triad(1, "float32", x.nbytes, rounds=15))
    share = 3 * x.nbytes / median(row.seconds["ours"]) / roof
    row.ours += f", {share:.0%} of the triad"
    row.target += ", >= 80 % of a triad of this size"
    row.met = row.met and share >= 0.8
    yield row
    fast_v = _compiled(torch, velocity, x, e)
    _equal("velocity", F.add_noise_target(x, k, e)[1], velocity(x, e)[1])
    yield compare(f"q_sample and velocity, given noise, {_name(x)}", options, {"best": 1.0}, {
        "ours": lambda: F.add_noise_target(x, k, e), "eager": lambda: velocity(x, e), "compile": lambda: fast_v(x, e)},
        calls=10)


def _name(x):
    return "x".join(map(str, x.shape))


# -- samplers ----------------------------------------------------------------------------------------------------------


def sampler_rows(options):
    """One reverse step of each sampler, the network's output given."""
    torch = _torch(options)
    hf: Any = import_module("diffusers")

    from fastdiff.kernels.noise import Draw
    from fastdiff.nn import DDPM
    from fastdiff.nn import functional as F

    x, m, old = _fields(torch, options, 3)
    model = DDPM(None, tuple(x.shape[1:]), schedule="linear")
    draw = iter(range(1 << 40))

    step = model.plan(1000, "ddpm")[500]
    k = step.coefficients
    theirs = hf.DDPMScheduler()
    t = int(step.level.t)

    def ddpm(x, m):
        data = (k.data_state * x + k.data_model * m).clamp(-1, 1)
        return k.data * data + k.state * x + k.noise * torch.randn_like(x)

    z = torch.zeros_like(x)
    _equal("DDPM step", F.reverse_step(x, m, k, noise=z), k.data * (k.data_state * x + k.data_model * m).clamp(-1, 1)
           + k.state * x)
    fast = _compiled(torch, ddpm, x, m)
    yield compare(f"DDPM step with its noise, {_name(x)}", options, {"best": 3.0}, {
        "ours": lambda: F.reverse_step(x, m, k, draw=Draw(1, next(draw))), "eager": lambda: ddpm(x, m),
        "compile": lambda: fast(x, m), "diffusers": lambda: theirs.step(m, t, x).prev_sample}, calls=3)

    step = model.plan(50, "ddim")[25]
    c, level, to = step.coefficients, step.level, step.to
    ddim_theirs = hf.DDIMScheduler(clip_sample=True)
    ddim_theirs.set_timesteps(50)

    def ddim(x, m):
        data = ((x - level.sigma * m) / level.alpha).clamp(-1, 1)
        return to.alpha * data + to.sigma * m

    _equal("DDIM step", F.reverse_step(x, m, c), ddim(x, m))
    _equal("DDIM step", F.reverse_step(x, m, c), ddim_theirs.step(m, int(level.t), x).prev_sample, 1e-4)
    fast_ddim = _compiled(torch, ddim, x, m)
    yield compare(f"DDIM step, {_name(x)}", options, {"eager": 2.5, "diffusers": 2.5, "compile": 1.1}, {
        "ours": lambda: F.reverse_step(x, m, c), "eager": lambda: ddim(x, m), "compile": lambda: fast_ddim(x, m),
        "diffusers": lambda: ddim_theirs.step(m, int(level.t), x).prev_sample}, calls=20)

    step = model.plan(20, "dpm++", clip=None)[10]
    d, level, to = step.coefficients, step.level, step.to
    solver = hf.DPMSolverMultistepScheduler()
    solver.set_timesteps(20)

    def dpm(x, m, old):
        data = (x - level.sigma * m) / level.alpha
        return d.data * data + d.state * x + d.old * old, data

    def dpm_theirs():
        solver._step_index, solver.lower_order_nums = 10, 2
        solver.model_outputs = [old, old]
        return solver.step(m, solver.timesteps[10], x).prev_sample

    dpm_theirs()
    _equal("DPM-Solver++ step", F.reverse_step(x, m, d, old=old, estimate=True)[0], dpm(x, m, old)[0])
    fast_dpm = _compiled(torch, dpm, x, m, old)
    yield compare(f"DPM-Solver++ 2M step, {_name(x)}", options, {"eager": 2.5, "diffusers": 2.5, "compile": 1.1}, {
        "ours": lambda: F.reverse_step(x, m, d, old=old, estimate=True), "eager": lambda: dpm(x, m, old),
        "compile": lambda: fast_dpm(x, m, old), "diffusers": dpm_theirs}, calls=20)


# -- normalisation -----------------------------------------------------------------------------------------------------


def norm_rows(options):
    """GroupNorm + SiLU, forward and backward; with scale, shift and residual."""
    torch = _torch(options)
    from fastdiff.nn import functional as F

    shape = (32, 128, 32, 32) if options.scale == 1 else (2, 32, 8, 8)
    x, r, g = (torch.randn(shape) for _ in range(3))
    x.requires_grad_()
    w, b = torch.randn(shape[1], requires_grad=True), torch.randn(shape[1], requires_grad=True)
    scale, shift = (torch.randn(shape[:2], requires_grad=True) for _ in range(2))
    silu, norm = torch.nn.functional.silu, torch.nn.functional.group_norm

    def plain(x, w, b):
        return silu(norm(x, 32, w, b))

    def full(x, w, b, scale, shift, r):
        return silu(norm(x, 32, w, b) * (1 + scale[..., None, None]) + shift[..., None, None]) + r

    def ours(x, w, b, scale=None, shift=None, r=None):
        return F.group_norm(x, 32, w, b, scale, shift, r, silu=True)

    r.requires_grad_()
    for case, given, function, goal in (("GroupNorm + SiLU", (x, w, b), plain, 1.5),
                                        ("GroupNorm + scale/shift + SiLU + residual", (x, w, b, scale, shift, r), full,
                                         2.5)):
        fast = torch.compile(function)
        pairs = [torch.autograd.grad(f(*given), given, g) for f in (ours, function, fast)]
        for mine, theirs, _ in zip(*pairs):
            _equal(case, mine, theirs, 2e-4)
        yield compare(f"{case}, forward + backward, {_name(x)}", options, {"best": goal}, {
            name: (lambda f=f, given=given: torch.autograd.grad(f(*given), given, g))
            for name, f in (("ours", ours), ("eager", function), ("compile", fast))}, calls=3)


# -- blur --------------------------------------------------------------------------------------------------------------


def blur_rows(options):
    """Blur to sigma = 20 against the cosine transform by scipy, and by hand in torch."""
    torch = _torch(options)
    from scipy.fft import dct, dctn, idctn

    from fastdiff.nn import Blur

    (x,) = _fields(torch, options, 1)
    n = x.shape[-1]
    tau, u = 200.0, x.numpy()
    line = (np.pi * np.arange(n) / n) ** 2
    decay = np.exp(-tau * (line[:, None] + line[None])).astype(np.float32)
    basis = torch.from_numpy(dct(np.eye(n), norm="ortho", axis=0)).float()
    factor = torch.from_numpy(decay)
    blur = Blur((n, n))

    def by_scipy():
        modes: Any = dctn(u, axes=(2, 3), norm="ortho", workers=options.threads)
        return idctn(modes * decay, axes=(2, 3), norm="ortho", workers=options.threads)

    def by_torch(x):
        return basis.T @ ((basis @ x @ basis.T) * factor) @ basis

    fast = _compiled(torch, by_torch, x)
    _equal("blur", blur(x, tau), torch.from_numpy(by_scipy()))
    _equal("blur", blur(x, tau), by_torch(x))
    yield compare(f"blur to sigma = 20, {_name(x)}", options, {"best": 2.0}, {
        "ours": lambda: blur(x, tau), "scipy": by_scipy, "torch": lambda: by_torch(x), "compile": lambda: fast(x)},
        calls=3)


GROUPS = {"noise": noise_rows, "sampler": sampler_rows, "norm": norm_rows, "blur": blur_rows}


def rows(options, only=()):
    """All rows whose group was asked for."""
    for name, make in GROUPS.items():
        if not only or name in only:
            yield from make(options)


def main(args: list[str]) -> int:
    """Measure, print, write; 1 if a goal is missed."""
    parser = argparse.ArgumentParser(prog="fastdiff bench generative", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="*", help=f"groups: {', '.join(GROUPS)} (default: all)")
    parser.add_argument("--threads", type=int, help="default: all cores we may use")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
    parser.add_argument("--runs", type=Path, help="train models in this folder, or go on, and score them, instead")
    parser.add_argument("--minutes", type=float, help="of training at most; the same command goes on")
    parser.add_argument("--pictures", type=Path, help="where samples are drawn to; default: the folder of the runs")
    parser.add_argument("--out", type=Path, help="folder of the results")
    given = parser.parse_args(args)
    options = Options(use_threads(given.threads), **({"rounds": 1, "scale": 1 / 32} if given.tiny else
                                                     {"rounds": given.rounds}))
    out = given.out or (Path(tempfile.mkdtemp()) if given.tiny else RESULTS)
    out.mkdir(parents=True, exist_ok=True)
    if given.runs:
        from fastdiff.bench import generative_runs

        return generative_runs.main(given.runs, out, given.minutes, given.pictures)
    start, about, found = perf_counter(), machine_line(options), []
    import torch

    about += f" torch {torch.__version__}."
    print(about)
    for row in rows(options, given.only):
        found.append(row)
        print(f"{'met   ' if row.met else 'MISSED'} {row.case:60} {row.ours:32} {row.ratio:6.2f}  {row.target}  "
              f"[{row.baseline}]", flush=True)
    (out / "generative.md").write_text(markdown(found, about))
    (out / "generative.json").write_text(json.dumps({"about": about, "rows": [asdict(r) for r in found]}, indent=1))
    print(f"{perf_counter() - start:.0f} s; written to {out}")
    return 0 if all(row.met for row in found) else 1


__all__ = ["compare", "main", "rows"]
