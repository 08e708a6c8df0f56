"""Convolutions against torch's own, forward and backward: `fastdiff bench conv`.

Ours and torch's ways (eager, channels_last, torch.compile) take turns with the same threads and weights; the ratio is
to the best of torch's, by medians. A turn is one call that is thrown away and several that count, one right after the
other, as in training. Each side has a process of its own, which sleeps while the other works, because each would spoil
the other's conditions: torch's OpenMP threads spin for some milliseconds after each operation, on the core that our
threads want, and once our threads have run they no longer do (see `kernels/_threads.py`), which slows torch down; and
the C library gives memory back, or keeps it, by what was freed before. So torch is measured as in a program without
fastdiff, and ours as in one that has it.

Correctness first: outputs and gradients must agree. The input needs a gradient where a layer stands inside a network;
the tutorial's network gets data, which needs none. Writes conv.json and conv.md; `--tiny` only shows that everything
runs.
"""

import argparse
import copy
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import nn

import fastdiff.nn as ours
from fastdiff.bench.cases import seconds_of
from fastdiff.bench.kernels import use_threads
from fastdiff.bench.targets import RESULTS, Options, Row, machine_line

CONVS = {1: nn.Conv1d, 2: nn.Conv2d}


def tutorial(ndim, boundary="dirichlet"):
    """(our network, torch's) with the same weights."""
    kind = CONVS[ndim]
    mine = ours.SurrogateCNN(ndim=ndim, boundary=boundary)
    theirs = nn.Sequential(kind(1, 16, 3, padding=1), nn.ReLU(), kind(16, 1, 3, padding=1))
    return mine, share(mine, theirs)


def layer(channels, k, groups=1):
    """(our periodic layer, torch's with circular padding) with the same weights."""
    mine = ours.Conv2d(channels, channels, k, boundary="periodic", groups=groups)
    theirs = nn.Conv2d(channels, channels, k, padding=k // 2, padding_mode="circular", groups=groups)
    return mine, share(mine, theirs)


def share(mine, theirs):
    """Give a network the weights of another."""
    for a, b in zip(theirs.parameters(), mine.parameters(), strict=True):
        a.data.copy_(b.data)
    return theirs


def pass_of(model, x, repeat=1):
    """Forward and backward, `repeat` times."""
    parameters = list(model.parameters())

    def run():
        for _ in range(repeat):
            x.grad = None
            for p in parameters:
                p.grad = None
            model(x).sum().backward()

    return run


def same(mine, theirs, x):
    """Refuse to time what is wrong.

    Gradients are compared as a whole: where a ReLU's argument is 0 up to rounding, one side lets it pass.
    """
    found = []
    for model in (mine, theirs):
        model.zero_grad()
        v = x.detach().clone().requires_grad_()
        y = model(v)
        y.square().mean().backward()
        found.append([y.detach(), v.grad, *(p.grad for p in model.parameters())])
    (y, *grads), (want, *wanted) = found
    torch.testing.assert_close(y, want, rtol=1e-3, atol=1e-4 * float(want.abs().max()))
    for a, b in zip(grads, wanted, strict=True):
        assert float((a - b).norm()) < 1e-3 * float(b.norm()), "the gradients differ"


class Race(NamedTuple):
    """A row before it is run: ours and torch's ways of the same, and what must hold."""

    case: str
    goal: float
    runs: dict[str, Any]
    check: Callable[[], Any]
    repeat: int = 1


def against_torch(case, goal, pair, x, options, repeat=1):
    """The race of ours and each of torch's ways."""
    mine, theirs = pair
    runs = {"ours": pass_of(mine, x, repeat), "eager": pass_of(theirs, x, repeat)}
    if options.scale == 1:  # compiling takes long
        runs["compile"] = pass_of(torch.compile(theirs), x, repeat)
    if x.ndim == 4:
        last = copy.deepcopy(theirs).to(memory_format=torch.channels_last)
        v = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_(x.requires_grad)
        runs["channels_last"] = pass_of(last, v, repeat)
    return Race(case, goal, runs, lambda: same(mine, theirs, x), repeat)


def row_of(case, goal, seconds, repeat=1):
    """Compare ours with the best of the others."""
    middle = {name: median(values) / repeat for name, values in seconds.items()}
    rest = {name: value for name, value in middle.items() if name != "ours"}
    best = min(rest.values())
    ratio = best / middle["ours"]
    told = ", ".join(f"{name} {_time(value)}" for name, value in rest.items())
    return Row(case, _time(middle["ours"]), f">= {goal}x", ratio >= goal, ratio, told, seconds)


def _time(seconds):
    return f"{seconds * 1e6:.0f} µs" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"


def step_row(options):
    """The race of whole training steps on one line of 100 points."""
    mine, theirs = tutorial(1)
    repeat, x, y = options.count(200), torch.randn(1, 1, 100), torch.randn(1, 1, 100)
    trainer, runs = ours.FusedAdam(mine, lr=1e-4), {}
    ways: dict[str, Any] = {"eager": theirs}
    if options.scale == 1:
        ways["compile"] = torch.compile(copy.deepcopy(theirs))
    for name, model in ways.items():
        for kind, more in (("", {}), (", fused Adam", {"fused": True})):
            runs[name + kind] = _stepper(model, torch.optim.Adam(model.parameters(), lr=1e-4, **more), x, y, repeat)
    fresh = [copy.deepcopy(theirs), ours.FusedAdam(copy.deepcopy(mine), lr=1e-4)]

    def check():
        expected = float(nn.functional.mse_loss(fresh[0](x), y).detach())
        assert abs(fresh[1].step(x, y) - expected) <= 1e-4 * expected

    runs = {"ours": lambda: [trainer.step(x, y) for _ in range(repeat)], **runs}
    return Race("Conv1d 1→16→1 ReLU, 1×100: training step", 4, runs, check, repeat)


def _stepper(model, optimizer, x, y, repeat):
    def run():
        for _ in range(repeat):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()

    return run


def races(options) -> dict[str, Callable[[], Race]]:
    """Every row before it is run, by name."""
    side, line, repeat = options.side(128), options.side(1024), options.count(200)
    some = lambda *shape: torch.randn(*shape)
    return {
        "small": lambda: against_torch("Conv1d 1→16→1 ReLU, 1×100: autograd", 1.25, tutorial(1), some(1, 1, 100),
                                       options, repeat),
        "step": lambda: step_row(options),
        "line": lambda: against_torch("Conv1d 1→16→1 ReLU, 256×1024", 6, tutorial(1), some(256, 1, line), options),
        "plane": lambda: against_torch("Conv2d 1→16→1 ReLU, 32×128²", 4, tutorial(2), some(32, 1, side, side), options),
        "wide": lambda: against_torch("periodic Conv2d 16→16 3×3, 16×128²", 1.5, layer(16, 3),
                                      some(16, 16, side, side).requires_grad_(), options),
        "depthwise": lambda: against_torch("periodic depthwise 7×7, 42 channels, 8×128²", 2, layer(42, 7, 42),
                                           some(8, 42, side, side).requires_grad_(), options),
    }


CALLS = 5  # that count, of a turn


def serve(options) -> None:
    """Life of a side's process: asked for a row's ways, or for a turn of one of them, until nobody asks."""
    torch.set_num_threads(use_threads(options.threads))
    open_races: dict[str, Race] = {}
    for line in sys.stdin:
        ask = json.loads(line)
        if ask["row"] not in open_races:
            torch.manual_seed(0)
            open_races[ask["row"]] = races(options)[ask["row"]]()
        race = open_races[ask["row"]]
        if "run" not in ask:
            if ask["check"]:
                race.check()
            answer: Any = {"case": race.case, "goal": race.goal, "repeat": race.repeat, "runs": list(race.runs)}
        else:
            run = race.runs[ask["run"]]
            run()
            answer = [seconds_of(run) for _ in range(ask["calls"])]
        print(json.dumps(answer), flush=True)


class Side:
    """A process in which one side of all races runs."""

    def __init__(self, options):
        program = ("from fastdiff.bench.conv import Options, serve\n"
                   f"serve(Options({options.threads}, scale={options.scale}, steps={options.steps}))")
        self.process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True)

    def ask(self, **what) -> Any:
        """Send a question and wait for the answer."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process that was asked for {what} has died; its last words are above")
        return json.loads(answer)

    def close(self):
        """Let the process end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def run_race(name, mine, theirs, options):
    """The row of a race between two sides, in turns."""
    about = mine.ask(row=name, check=True)
    theirs.ask(row=name, check=False)  # a check would start our threads there
    seconds: dict[str, list[float]] = {run: [] for run in about["runs"]}
    for turn in range(options.rounds + 1):
        for run in seconds:
            spent = (mine if run == "ours" else theirs).ask(row=name, run=run, calls=CALLS)
            seconds[run] += spent if turn else []
    return row_of(about["case"], about["goal"], seconds, about["repeat"])


def rows(options, only=()):
    """All rows, one after the other."""
    mine, theirs = Side(options), Side(options)
    try:
        for name in races(options):
            if not only or name in only:
                yield run_race(name, mine, theirs, options)
    finally:
        mine.close()
        theirs.close()


def markdown(found, about) -> str:
    """The table, and the machine it was measured on."""
    lines = ["# Convolutions against torch's, measured", "", about, "",
             "Forward and backward, medians; the sides take turns, each in a process of its own. Ratio: the best of "
             "torch's ways over ours.", "",
             "| case | ours | torch | ratio | target | met |", "|---|---|---|---|---|---|"]
    lines += [f"| {r.case} | {r.ours} | {r.baseline} | {r.ratio:.2f} | {r.target} | {'yes' if r.met else '**no**'} |"
              for r in found]
    return "\n".join(lines) + "\n"


def main(args: list[str]) -> int:
    """Measure, print, write; 1 if a goal is missed."""
    parser = argparse.ArgumentParser(prog="fastdiff bench conv", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="*", help="rows: small, step, line, plane, wide, depthwise (default: all)")
    parser.add_argument("--threads", type=int, help="default: all cores we may use")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
    parser.add_argument("--out", type=Path, help="folder of conv.json and conv.md")
    given = parser.parse_args(args)
    size = {"rounds": 1, "scale": 1 / 8, "steps": 1 / 100} if given.tiny else {"rounds": given.rounds}
    options = Options(use_threads(given.threads), **size)
    out = given.out or (Path(tempfile.mkdtemp()) if given.tiny else RESULTS)
    about, found = f"torch {torch.__version__}; {machine_line(options)}", []
    print(about)
    for row in rows(options, given.only):
        found.append(row)
        print(f"{'met   ' if row.met else 'MISSED'} {row.case:52} {row.ours:>10} {row.ratio:6.2f}  {row.target}  "
              f"[{row.baseline}]", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / "conv.md").write_text(markdown(found, about))
    (out / "conv.json").write_text(json.dumps({"about": about, "rows": [asdict(r) for r in found]}, indent=1))
    print(f"written to {out}")
    return 0 if all(row.met for row in found) else 1
