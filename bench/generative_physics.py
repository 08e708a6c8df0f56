"""Physics inside sampling, scored: fields from sparse observations, and rollouts that are refined.

`reconstruct`: steady Gray-Scott fields that the DDPM of generative_runs.py has never seen, from 5 % of their points, by
that model with `fd.nn.Guide`, against interpolation. `rollout`: the Kuramoto-Sivashinsky equation learned by a network
that predicts the next state, and by the same one as `fd.nn.Refiner`. `fastdiff bench generative --runs` adds both
tables to generative-runs.md.
"""

from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

SHARE = 0.05  # of the points that are observed
STEPS = 25


# -- fields from sparse observations -----------------------------------------------------------------------------------


def reconstruct(folder: Path, count: int = 24, steps: int = STEPS, picture: Path | None = None, tell=print) -> str:
    """The table of all ways to restore `count` unseen fields from their points, by the run fields-ddpm in a folder."""
    import torch

    from fastdiff.nn.runs import Run

    run: Any = Run(folder / "fields-ddpm")
    truth, labels, parameters = _unseen(run, folder, count)
    mask = _mask(count, truth.shape[2:])
    residual = _residual(run.data, parameters)
    run.model.eval()
    with run.ema.applied():
        ways = {**_interpolations(truth, mask), "prior's covariance (kriging)": _kriging(run.data, labels),
                **_guided(run.model, labels, residual, steps)}
        lines, drawn = [_head(truth, residual)], {}
        for name, way in ways.items():
            start = perf_counter()
            found = drawn[name] = way(truth, mask)
            lines.append(_line(name, found, truth, mask, residual, perf_counter() - start))
            tell(lines[-1])
    if picture is not None:
        _draw(truth, mask, drawn, picture)
    torch.save({"truth": truth, "mask": mask, **drawn}, folder / "reconstructed.pt")
    return "\n".join(lines) + "\n"


def _unseen(run, folder, count):
    """Fields of the same recipe with another seed, in the model's scale; their labels and F, k."""
    import torch

    from fastdiff import data
    from fastdiff.bench.generative_runs import FIELD_RECIPE

    path = folder / f"unseen-{count}.h5"
    if not path.exists():
        data.generate(replace(FIELD_RECIPE, name="gray-scott-32-unseen"), path, samples=count, frames=2, seed=1)
    found = data.open(path)
    fields = np.stack([found[i]["fields"][-1].numpy() for i in range(count)])
    low, half = (v[:, None, None] for v in (run.data.low, run.data.half))
    labels = torch.tensor([run.data.names.index(text) for text in found.labels["pattern"]])
    parameters = np.stack([found[i]["parameters"].numpy() for i in range(count)]).T
    return torch.from_numpy(((fields - low) / half - 1).astype(np.float32)), labels, parameters


def _mask(count, space, components=(1, 1)):
    """1 at so many random points of each field, in those components that are observed."""
    import torch

    rng, size = np.random.default_rng(5), int(np.prod(space))
    mask = np.zeros((count, 1, size), np.float32)
    for each in mask:
        each[0, rng.choice(size, int(SHARE * size), replace=False)] = 1
    return torch.from_numpy(mask.reshape(count, 1, *space) * np.array(components, np.float32)[:, None, None])


def _residual(data, parameters):
    import fastdiff as fd
    from fastdiff.bench.generative_runs import FIELD_RECIPE

    n, size = data.x.shape[-1], FIELD_RECIPE.extent
    F, k = parameters
    return fd.nn.EquationResidual(fd.GrayScott(F=0.03, k=0.06), fd.Grid((n, n), extent=(size, size), periodic=True),
                                  low=data.low, half=data.half, F=F, k=k)


def _interpolations(truth, mask):
    from scipy.interpolate import RBFInterpolator, griddata

    n = truth.shape[-1]
    everywhere = np.stack(np.meshgrid(range(n), range(n), indexing="ij"), -1).reshape(-1, 2)

    def by(function):
        def way(truth, mask):
            import torch

            out = np.zeros(truth.shape, np.float32)
            for i, c in np.ndindex(truth.shape[:2]):
                points = np.argwhere(mask[i, c].numpy() > 0)
                values = truth[i, c].numpy()[tuple(points.T)]
                around = np.concatenate([points + n * np.array(s) for s in np.ndindex(3, 3)]) - n  # periodic
                near = ((around > -n / 2) & (around < 1.5 * n)).all(1)
                out[i, c] = function(around[near], np.tile(values, 9)[near]).reshape(n, n)
            return torch.from_numpy(out)

        return way

    return {"linear interpolation (griddata)": by(lambda p, v: griddata(p, v, everywhere, "linear")),
            "cubic interpolation (griddata)": by(lambda p, v: griddata(p, v, everywhere, "cubic")),
            "thin plate splines (RBFInterpolator)": by(lambda p, v: RBFInterpolator(p, v)(everywhere))}


def _kriging(data, labels):
    """The best linear estimate: with mean and covariance of the training fields of the same pattern."""
    import torch

    def way(truth, mask):
        out, n = np.zeros(truth.shape, np.float32), truth.shape[-1]
        full = np.argwhere(np.ones(truth.shape[1:]))
        for i, label in enumerate(labels):
            x = data.x[data.labels == label].double().numpy()
            mean = x.mean((0, 2, 3))
            f = np.fft.fft2(x - mean[:, None, None])
            lags = np.fft.ifft2(np.einsum("sakl,sbkl->abkl", f, f.conj())).real / (len(x) * n * n)
            seen = np.argwhere(mask[i].numpy() > 0)

            def C(a, b, lags=lags):
                return lags[a[:, None, 0], b[None, :, 0], (a[:, None, 1] - b[None, :, 1]) % n,
                            (a[:, None, 2] - b[None, :, 2]) % n]

            gap = truth[i].double().numpy()[tuple(seen.T)] - mean[seen[:, 0]]
            found = C(full, seen) @ np.linalg.solve(C(seen, seen) + 1e-6 * np.eye(len(seen)), gap)
            out[i] = (found + mean[full[:, 0]]).reshape(truth.shape[1:])
        return torch.from_numpy(out)

    return way


def _guided(model, labels, residual, steps):
    import fastdiff as fd

    def by(**how):
        def way(truth, mask):
            guide = fd.nn.Guide(observed=truth, mask=mask, **how)
            return model.sample(steps=steps, condition=labels, seed=0, guide=guide)

        return way

    def inpainted(truth, mask):
        return model.sample(steps=steps, condition=labels, seed=0, known=truth, mask=mask)

    return {f"DDPM, {steps} steps, inpainting (RePaint, no repeats)": inpainted,
            f"DDPM, {steps} steps, guided by the observations": by(),
            f"DDPM, {steps} steps, guided by observations and residual": by(residual=residual)}


def _head(truth, residual):
    return "\n".join([
        "## Fields from sparse observations", "",
        f"{len(truth)} steady Gray-Scott fields of new seeds, 32 x 32, F and k known; both components seen at "
        f"{SHARE:.0%} of the points. Error: root mean square over the field's own standard deviation (1: its mean), "
        "mean over the fields, median in brackets. At points: the same at the observed points. Residual: root mean "
        f"square of du/dt, where the fields themselves have {_size(residual(truth)):.1e}.", "",
        "| way | error of u | error of v | at points | residual | s per field |", "|---|---|---|---|---|---|"])


def _size(r):
    return float(r.square().mean().sqrt())


def _line(name, found, truth, mask, residual, spent):
    from fastdiff.nn.metrics import vrmse

    error = vrmse(found.double(), truth.double(), 2)
    means = [f"{float(e.mean()):.3f} ({float(e.median()):.3f})" for e in error.unbind(1)]
    spread = (truth - truth.mean((2, 3), keepdim=True)).square().mean((2, 3)).sqrt()
    at = ((mask * (found - truth)).square().sum((2, 3)) / mask.sum((2, 3)).clamp_min(1)).sqrt() / spread
    return (f"| {name} | {means[0]} | {means[1]} | {float(at.mean()):.3f} | {_size(residual(found)):.1e} | "
            f"{spent / len(truth):.2f} |")


def _draw(truth, mask, drawn, path, rows=4):
    """The observations, the field and what became of it."""
    from matplotlib.figure import Figure

    names = [n for n in drawn if "cubic" in n or "kriging" in n or "guided" in n]
    columns = {"field": truth, "observed": truth.where(mask > 0, np.nan), **{n: drawn[n] for n in names}}
    columns = {n: x.numpy() for n, x in columns.items()}
    rows = min(rows, len(truth))
    figure = Figure(figsize=(1.6 * len(columns), 1.7 * rows), layout="constrained")
    for j, (name, x) in enumerate(columns.items()):
        for i in range(rows):
            axes = figure.add_subplot(rows, len(columns), i * len(columns) + j + 1)
            axes.axis("off")
            axes.imshow(x[i, 0], cmap="gray", vmin=truth[i, 0].min(), vmax=truth[i, 0].max())
            if not i:
                axes.set_title(name.replace(" (", "\n(").replace(", guided", "\nguided").replace(" and", "\nand"),
                               fontsize=6)
    figure.savefig(path, dpi=90)


# -- rollouts ----------------------------------------------------------------------------------------------------------

LENGTH, POINTS, TIME = 32.0, 64, 0.8  # the domain, its points, and the time of one step of the network
UPDATES, RATE = 4000, 1e-3


def kuramoto_sivashinsky(count: int, frames: int, seed: int, warm: int = 120, parts: int = 8) -> np.ndarray:
    """Trajectories (frames, count, 64) of u_t = -u u_x - u_xx - u_xxxx on a periodic line, by ETDRK4 in float64.

    Kassam & Trefethen, SIAM J. Sci. Comput. 26 (2005) 1214, section 4; the first `warm` frames are left out.
    """
    from fastdiff.steppers.etdrk4 import coefficients

    rng, k, h = np.random.default_rng(seed), 2 * np.pi / LENGTH * np.arange(POINTS // 2 + 1), TIME / parts
    c, slope = coefficients(h * (k**2 - k**4), h), -0.5j * k * (np.arange(len(k)) < POINTS // 3)
    x, (a, wave, phase) = np.arange(POINTS) / POINTS, rng.random((3, 10, count, 1))
    v = np.fft.rfft(np.sum((a - 0.5) * np.sin(2 * np.pi * (np.rint(1 + 2 * wave) * x + phase)), 0))

    def N(v):
        return slope * np.fft.rfft(np.fft.irfft(v, POINTS) ** 2)

    out = []
    for frame in range(warm + frames):
        if frame >= warm:
            out.append(np.fft.irfft(v, POINTS))
        for _ in range(parts):
            n = N(v)
            a = c.half * v + c.Q * n
            na = N(a)
            nb = N(c.half * v + c.Q * na)
            nd = N(c.half * a + c.Q * (2 * nb - n))
            v = c.whole * v + c.f1 * n + 2 * c.f2 * (na + nb) + c.f3 * nd
    return np.stack(out)


def rollout(folder: Path, minutes: float | None = None, updates: int = UPDATES, tell=print) -> str | None:
    """Train the predictor and the refiner where they are not yet, for at most so many minutes; the table, or None."""
    end = None if minutes is None else perf_counter() + 60 * minutes
    data, models = _trajectories(folder), {}
    for refinements in (0, 3):
        trained = models[refinements] = _Rollout(folder / f"ks-refined-{refinements}", refinements, data)
        if not trained.train(updates, end, tell):
            return None
    lines = [_rollout_head(updates, data, models[0])]
    return "\n".join([*lines, *(models[k].line(data["test"]) for k in models)]) + "\n"


def _trajectories(folder):
    """Training and test trajectories (frames, samples, 1, points), of variance 1."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "ks.pt"
    if not file.exists():
        made = {"train": kuramoto_sivashinsky(256, 100, 0), "test": kuramoto_sivashinsky(256, 150, 1)}
        scale = made["train"].std()
        made["test"] = made["test"][:, _lively(made["test"] / scale)][:, :32]
        torch.save({k: torch.from_numpy((v / scale).astype(np.float32))[:, :, None] for k, v in made.items()}, file)
    return torch.load(file)


def _lively(u):
    """Which trajectories change all the time: at this length most come to rest at last, and are no test."""
    change = np.sqrt((np.diff(u, axis=0) ** 2).mean(2))
    return (np.stack([part.mean(0) for part in np.array_split(change, 5)]) > 0.05).all(0)


class _Rollout:
    """A network that is trained to step, with so many refinements; gone on with from its checkpoint."""

    def __init__(self, folder, refinements, data):
        import torch

        from fastdiff import nn

        self.folder, self.data, self.at, self.seconds = folder, data["train"], 0, 0.0
        torch.manual_seed(0)
        net = nn.UNet(1, 1, width=24, multipliers=(1, 2, 2), blocks=1, conditions=1, periodic=True)
        self.model: Any = nn.Refiner(net, refinements=refinements, change=float(self.data.diff(dim=0).std()))
        self.optimiser, self.ema = torch.optim.AdamW(self.model.parameters(), RATE), nn.EMA(self.model, 0.995)
        if (folder / "checkpoint.pt").exists():
            found = torch.load(folder / "checkpoint.pt")
            self.at, self.seconds, self.model.noise.stream = found["at"], found["seconds"], found["stream"]
            for name in ("model", "optimiser", "ema"):
                getattr(self, name).load_state_dict(found[name])

    def save(self):
        import torch

        self.folder.mkdir(parents=True, exist_ok=True)
        torch.save({"at": self.at, "seconds": self.seconds, "stream": self.model.noise.stream,
                    **{name: getattr(self, name).state_dict() for name in ("model", "optimiser", "ema")}},
                   self.folder / "partial.pt")
        (self.folder / "partial.pt").replace(self.folder / "checkpoint.pt")

    def train(self, updates, end, tell):
        """Up to so many updates in all; whether they are done."""
        import torch

        start, mean = perf_counter(), None
        while self.at < updates:
            if end is not None and perf_counter() > end:
                self.save()
                return False
            rate = RATE * min(1, (self.at + 1) / 100) * 0.5 * (1 + np.cos(np.pi * self.at / updates))
            for group in self.optimiser.param_groups:
                group["lr"] = rate
            self.optimiser.zero_grad()
            loss = self.model.loss(*self._pairs())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimiser.step()
            self.ema.update()
            self.at += 1
            mean = loss.item() if mean is None else 0.98 * mean + 0.02 * loss.item()
            if self.at % 200 == 0 or self.at == updates:
                self.seconds, start = self.seconds + perf_counter() - start, perf_counter()
                self.save()
                tell(f"{self.folder.name}  update {self.at:5d}  loss {mean:.5f}")
        return True

    def _pairs(self, count=32):
        """States and the next ones, each shifted around the line by a number of its own."""
        import torch

        rng, (frames, samples, _, n) = np.random.default_rng((0, self.at)), self.data.shape
        frame, sample, shift = (rng.integers(high, size=count) for high in (frames - 1, samples, n))
        points = torch.from_numpy((np.arange(n) + shift[:, None]) % n)[:, None]
        return (torch.gather(self.data[frame + d, sample], 2, points) for d in (0, 1))

    def line(self, test):
        """A line of the table, by trajectories that were not trained on."""
        import torch

        from fastdiff.nn.metrics import nrmse

        frames, samples = test.shape[:2]
        with self.ema.applied(), torch.no_grad():
            one = self.model.step(test[:-1].flatten(0, 1)).unflatten(0, (frames - 1, samples))
            made = self.model.rollout(test[0], frames - 1)
        alike = _correlation(made, test[1:])
        error, K = nrmse(one, test[1:], 1), self.model.refinements
        weak = _band(one - test[1:]) / _band(test[1:])
        times = [TIME * int(np.argmax(np.append(alike < bound, True))) for bound in (0.9, 0.8)]
        name = f"refiner, K = {K}" if K else "one-step predictor, mean square error"
        return (f"| {name} | {K + 1} | {float(error.mean()):.2e} | {float(weak):.2e} | {times[0]:.1f} | "
                f"{times[1]:.1f} | {float(nrmse(made[24], test[25], 1).mean()):.3f} |")


def _correlation(a, b):
    """The mean Pearson correlation of fields at each time (frames,)."""
    a, b = (x - x.mean(-1, keepdim=True) for x in (a, b))
    return ((a * b).sum(-1) / (a.square().sum(-1) * b.square().sum(-1)).sqrt()).mean((1, 2)).numpy()


def _band(x):
    """Root mean square amplitude of the weak waves: 2 pi 11 / 32 to 2 pi 20 / 32."""
    import torch

    return torch.fft.rfft(x.double(), norm="ortho")[..., POINTS // 6 + 1:POINTS // 3].abs().square().mean().sqrt()


def _rollout_head(updates, data, model):
    frames, samples = data["train"].shape[:2]
    size = sum(p.numel() for p in model.model.parameters())
    return "\n".join([
        "## Rollouts of the Kuramoto-Sivashinsky equation", "",
        f"u_t = -u u_x - u_xx - u_xxxx, periodic, length {LENGTH:g}, {POINTS} points, {TIME} a step; {samples} "
        f"trajectories of {frames} frames to learn from, {data['test'].shape[1]} others to test. The same U-Net "
        f"({size / 1e6:.2f} M) for both, {updates} updates of 32 pairs each. Errors: |made - true| / |true|; weak "
        "waves: the same over the waves 11 to 20 alone, which have hardly any power; correlated: the time until the "
        "mean correlation of the rollouts with the truth falls below 0.9 and 0.8.", "",
        "| model | calls a step | error of one step | of weak waves | correlated > 0.9 | > 0.8 | error at t = 20 |",
        "|---|---|---|---|---|---|---|"])


def main(folder: Path, minutes: float | None = None, picture: Path | None = None) -> str | None:
    """Both tables; None if the time was too short."""
    table = rollout(folder, minutes)
    return None if table is None else "\n".join([reconstruct(folder, picture=picture), table])


__all__ = ["kuramoto_sivashinsky", "main", "reconstruct", "rollout"]
