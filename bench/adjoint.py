"""The gradient through a thousand steps, against torch's autograd: `fastdiff bench adjoint`.

The heat equation u_t = div(D grad u) on 256 x 256 cells without flux through the walls, 1000 FTCS steps, float32; the
gradient of a squared error by the start u0 and by D(x). Opponents are torch's own: autograd over steps written with
slices, over steps with a grouped conv2d that makes all differences, and torch.compile of ten slice steps at a time.
Ours is timed twice: as it comes, all steps as one polynomial in some 160 stages (kernels/power.py: the same numbers),
and with `shortcut=False`, the steps marched and transposed one by one as torch does. Correctness first: with few steps
all gradients agree in float64, and with all of them in float32. Memory is the peak of the process above what it had
before, each way in a process of its own. Writes adjoint.json and adjoint.md; `--tiny` only shows that everything runs.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from statistics import median

import numpy as np
import torch

import fastdiff as fd
from fastdiff.bench.kernels import use_threads
from fastdiff.bench.targets import RESULTS, Options, Row, alternate, machine_line

GOAL, LESS = 10, 10  # times faster, and less memory


def problem(side, dtype=torch.float32, seed=0):
    """(grid, dt, u0, D, target) of the case."""
    rng = np.random.default_rng(seed)
    grid = fd.Grid((side, side), centering="cells")
    x, y = grid.coordinates()
    D = 1 + 0.5 * np.sin(2 * np.pi * x) * np.cos(np.pi * y)
    u0 = np.cos(np.pi * x) * np.cos(2 * np.pi * y) + 0.1 * rng.standard_normal(grid.shape)
    dt = 0.2 / side**2 / D.max()
    make = lambda a: torch.tensor(a, dtype=dtype)
    return grid, dt, make(u0), make(D), make(np.zeros(grid.shape))


def harmonic(D, k):
    """Conductances of the inner faces of an axis."""
    a, b = D.narrow(k, 0, D.shape[k] - 1), D.narrow(k, 1, D.shape[k] - 1)
    return 2 * a * b / (a + b)


def by_slices(u, D, r, steps):
    """The same steps by torch: fluxes through inner faces, differences of slices."""
    ax, ay = r * harmonic(D, 0), r * harmonic(D, 1)
    for _ in range(steps):
        u = slice_step(u, ax, ay)
    return u


def slice_step(u, ax, ay):
    """One step."""
    fx, fy = ax * (u[1:] - u[:-1]), ay * (u[:, 1:] - u[:, :-1])
    return u + (torch.nn.functional.pad(fx, (0, 0, 0, 1)) - torch.nn.functional.pad(fx, (0, 0, 1, 0))
                + torch.nn.functional.pad(fy, (0, 1)) - torch.nn.functional.pad(fy, (1, 0)))


def by_conv(u, D, r, steps):
    """The same steps by torch: a convolution makes the four differences of every cell."""
    ax, ay = r * harmonic(D, 0), r * harmonic(D, 1)
    pad = torch.nn.functional.pad
    w = torch.stack([pad(ax, (0, 0, 1, 0)), pad(ax, (0, 0, 0, 1)), pad(ay, (1, 0)), pad(ay, (0, 1))])
    kernel = torch.zeros(4, 1, 3, 3, dtype=u.dtype)
    for k, (i, j) in enumerate(((0, 1), (2, 1), (1, 0), (1, 2))):
        kernel[k, 0, i, j], kernel[k, 0, 1, 1] = 1, -1
    u = u[None, None]
    for _ in range(steps):
        near = torch.nn.functional.conv2d(pad(u, (1, 1, 1, 1), mode="replicate"), kernel)
        u = u + (w * near[0]).sum(0)
    return u[0, 0]


def compiled(chunk=10):
    """Slice steps, torch.compile'd ten at a time."""
    def some(u, ax, ay):
        for _ in range(chunk):
            u = slice_step(u, ax, ay)
        return u

    fast = torch.compile(some)

    def run(u, D, r, steps):
        ax, ay = r * harmonic(D, 0), r * harmonic(D, 1)
        for _ in range(steps // chunk):
            u = fast(u, ax, ay)
        for _ in range(steps % chunk):
            u = slice_step(u, ax, ay)
        return u

    return run


def gradient_of(way, side, steps, dtype=torch.float32):
    """A function that gives (loss, gradient by u0, gradient by D) by one of the ways."""
    grid, dt, u0, D, target = problem(side, dtype)
    for tensor in (u0, D):
        tensor.requires_grad_()
    if way in ("ours", "steps"):
        solver = fd.nn.Solver(fd.Heat(D.detach().numpy()), grid, dt=dt, steps=steps, shortcut=way == "ours")
        march = lambda: solver(u0, diffusivity=D)
    else:
        function, r = {"slices": by_slices, "conv2d": by_conv, "compile": compiled}[way], dt * side**2
        function = function() if way == "compile" else function
        march = lambda: function(u0, D, r, steps)

    def run():
        u0.grad = D.grad = None
        loss = (march() - target).square().sum()
        loss.backward()
        return float(loss.detach()), u0.grad, D.grad

    return run


def same(side, steps=20, dtype=torch.float64, allowed=1e-10):
    """Refuse to time what is wrong: the loss and gradients of all ways, relative to the largest."""
    found = [gradient_of(way, side, steps, dtype)() for way in ("slices", "conv2d", "ours", "steps")]
    for other in found[1:]:
        for a, b in zip(found[0], other):
            a, b = torch.as_tensor(a), torch.as_tensor(b)
            torch.testing.assert_close(b, a, rtol=0, atol=allowed * float(a.abs().max()))


def peak(way, side, steps) -> float:
    """Megabytes that one gradient takes at its peak, in a process of its own."""
    code = ("from fastdiff.bench.adjoint import _peak; import sys; "
            "print(_peak(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))")
    done = subprocess.run([sys.executable, "-c", code, way, str(side), str(steps)], capture_output=True, text=True,
                          check=True)
    return float(done.stdout.split()[-1])


def _peak(way, side, steps) -> float:
    torch.set_num_threads(2)
    once = (min(side, 32), steps) if way in ("ours", "steps") else (side, min(steps, 20))
    gradient_of(way, *once)()  # whatever is loaded and compiled once
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    except OSError:
        return float("nan")  # not Linux
    before = _status("VmRSS")
    gradient_of(way, side, steps)()
    return (_status("VmHWM") - before) / 1024


def _status(name) -> float:
    """Kilobytes of this process, by the kernel's own name."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


def rows(options) -> list[Row]:
    """Time and memory; torch.compile of the steps is told beside what is asked for."""
    side, steps = options.side(256), options.count(1000)
    same(options.side(64))
    same(side, steps, torch.float32, 3e-4)
    ways = ["ours", "steps", "slices", "conv2d", *(["compile"] if options.scale == 1 else [])]
    runs = {way: gradient_of(way, side, steps) for way in ways}
    case = f"gradient through {steps} FTCS steps, {side}², float32, by u0 and D(x)"
    seconds = alternate(options.rounds, **runs)
    timed = [_timed(f"{case}: time", "ours", GOAL, seconds),
             _timed(f"{case}: time, one by one", "steps", None, seconds)]
    if options.scale < 1:
        return timed
    megabytes = {way: peak(way, side, steps) for way in ways}
    told = ", ".join(f"{way} {value:.0f} MB" for way, value in megabytes.items() if way not in ("ours", "steps"))
    best = min(megabytes["slices"], megabytes["conv2d"])
    return timed + [Row(f"{case}: memory{more}", f"{megabytes[way]:.0f} MB", f"<= 1/{LESS}" if goal else "",
                        best >= LESS * megabytes[way] or not goal, best / max(megabytes[way], 1e-3), told)
                    for way, more, goal in (("ours", "", True), ("steps", ", one by one", False))]


def _timed(case, way, goal, seconds) -> Row:
    """A row of `way` against the better of slices and conv2d."""
    ms = {name: 1e3 * median(times) for name, times in seconds.items()}
    ratio = min(ms["slices"], ms["conv2d"]) / ms[way]
    told = ", ".join(f"{name} {value:.2f} ms" for name, value in ms.items() if name not in ("ours", "steps"))
    return Row(case, f"{ms[way]:.2f} ms", f">= {goal}x" if goal else "", not goal or ratio >= goal, ratio, told,
               {name: times for name, times in seconds.items() if name in (way, "slices", "conv2d", "compile")})


def markdown(found, about) -> str:
    """The table, and the machine it was measured on."""
    lines = ["# Gradients through a solver against torch's autograd, measured", "", about, "",
             "Medians; all take turns in one process. Ratio: the better of slices and conv2d over ours.", "",
             "| case | ours | torch | ratio | target | met |", "|---|---|---|---|---|---|"]
    lines += [f"| {r.case} | {r.ours} | {r.baseline} | {r.ratio:.1f} | {r.target} | {'yes' if r.met else '**no**'} |"
              for r in found]
    return "\n".join(lines) + "\n"


def main(args: list[str]) -> int:
    """Measure, print, write; 1 if a goal is missed."""
    parser = argparse.ArgumentParser(prog="fastdiff bench adjoint", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, help="default: all cores we may use")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
    parser.add_argument("--out", type=Path, help="folder of adjoint.json and adjoint.md")
    given = parser.parse_args(args)
    size = {"rounds": 1, "scale": 1 / 8, "steps": 1 / 100} if given.tiny else {"rounds": given.rounds}
    options = Options(use_threads(given.threads), **size)
    torch.set_num_threads(options.threads)
    out = given.out or (Path(tempfile.mkdtemp()) if given.tiny else RESULTS)
    about = f"torch {torch.__version__}; {machine_line(options)}"
    print(about)
    found = rows(options)
    for row in found:
        print(f"{'met   ' if row.met else 'MISSED'} {row.case:70} {row.ours:>10} {row.ratio:6.1f}  {row.target}  "
              f"[{row.baseline}]", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / "adjoint.md").write_text(markdown(found, about))
    (out / "adjoint.json").write_text(json.dumps({"about": about, "rows": [asdict(r) for r in found]}, indent=1))
    print(f"written to {out}")
    return 0 if all(row.met for row in found) or given.tiny else 1


__all__ = ["gradient_of", "main", "rows"]
