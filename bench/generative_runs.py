"""Generative models on real data, trained and scored: DDPM, DDIM with 20 steps, heat dissipation and VAE in one table.

`fastdiff bench generative --runs FOLDER` trains eight runs in a folder, as `fastdiff train ddpm` does, and scores them:
the 1797 handwritten digits of scikit-learn, and Gray-Scott fields made here by `fastdiff.data`. Whatever is there
already is gone on with, bit by bit: stop it, or give it a number of minutes, and give the same command again. Writes
generative-runs.md into the results, with the tables of generative_physics.py, and grids of real and made samples into
`pictures`.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from fastdiff.data.initial import Seeds
from fastdiff.data.recipes import GRAY_SCOTT, Table

FIELDS = 512
SMALL = 256  # numbers of a sample from which on an eighth of the samples is drawn: minutes, not an hour
# A quarter of the usual domain at about the usual spacing, so that patterns are resolved and fill it.
FIELD_RECIPE = replace(
    GRAY_SCOTT, name="gray-scott-32", summary="Gray-Scott patterns of four classes on a small periodic square",
    parameters={"pattern": Table(("pattern", "F", "k"), (
        ("coral", 0.0545, 0.062), ("holes", 0.039, 0.058), ("maze", 0.029, 0.057), ("spots", 0.03, 0.062)))},
    initial=Seeds(count=(2, 6), radius=(0.08, 0.2)), shape=(32, 32), extent=0.375)


@dataclass(frozen=True)
class Trained:
    """One run: its folder, its settings, and how long it is trained."""

    name: str
    settings: dict[str, Any]
    epochs: int


RUNS = (
    Trained("digits-ddpm", {"model": "ddpm"}, 200),
    Trained("digits-heat", {"model": "heat", "levels": 100}, 200),
    Trained("digits-vae", {"model": "vae"}, 400),
    Trained("fields-vae", {"model": "vae", "batch": 32}, 400),
    Trained("fields-ddpm", {"model": "ddpm", "batch": 32}, 60),
    Trained("fields-heat", {"model": "heat", "levels": 100, "batch": 32}, 80),
)

# what is drawn from them: (run, name in the table, how)
LINES = (
    ("ddpm", "DDPM, 200 steps", {}),
    ("ddpm", "DDIM, 20 steps", {"method": "ddim", "steps": 20}),
    ("heat", "heat dissipation, 100 steps", {}),
    ("vae", "VAE", {}),
)


def data_of(name: str, folder: Path) -> str:
    """Which data a run learns; the fields are made on first use."""
    if name.startswith("digits"):
        return "digits"
    path = folder / "fields.h5"
    if not path.exists():
        from fastdiff.data import generate

        generate(FIELD_RECIPE, path, samples=FIELDS, frames=3, seed=0)
    return str(path)


def train(folder: Path, minutes: float | None = None, runs=RUNS, tell=print) -> bool:
    """Train all runs up to their epochs, for at most so many minutes; whether all are done."""
    from fastdiff.nn.runs import Run, Settings

    end = None if minutes is None else perf_counter() + 60 * minutes
    for each in runs:
        run = Run(folder / each.name, Settings(data=data_of(each.name, folder), **each.settings))
        while run.epoch < each.epochs:
            if end is not None and perf_counter() > end:
                tell(f"{each.name}: {run.epoch} of {each.epochs} epochs; give the same command again to go on")
                return False
            start = perf_counter()
            run.train(min(run.epoch + 5, each.epochs), every=5)
            tell(f"{each.name}  epoch {run.epoch:4d}  loss {run.losses[-1]:.5f}  {perf_counter() - start:.1f} s")
    return True


def score(folder: Path, pictures: Path | None = None, count: int = 1000, runs=RUNS) -> str:
    """The table of the runs in a folder, and a grid of samples of each."""
    from fastdiff.nn import scores
    from fastdiff.nn.runs import Run, picture

    lines, judges = [_head(count)], {}
    there = {each.name: each for each in runs if (folder / each.name / "checkpoint.pt").exists()}
    for data in dict.fromkeys(name.partition("-")[0] for name in there):
        for model, label, how in LINES:
            if f"{data}-{model}" not in there:
                continue
            run = Run(folder / f"{data}-{model}")
            if data not in judges:
                judges[data] = _Judge(scores, run.data)
                lines.append(judges[data].line(data))
                _draw(picture, run.data.x, pictures, f"{data}-real")
            x, labels, spent = _samples(run, label, how, count if run.data.x[0].numel() <= SMALL else count // 8)
            about = f"{run.epoch} epochs, {sum(p.numel() for p in run.model.parameters()) / 1e6:.2f} M"
            lines.append(judges[data].line(data, label, about, spent, x, labels))
            _draw(picture, x, pictures, f"{data}-{label.split(',')[0].replace(' ', '-').lower()}")
    return "\n".join(lines) + "\n"


def _samples(run, label, how, count):
    """Samples, their labels, seconds for 1000: kept beside the checkpoint, for drawing takes long."""
    import torch

    file = run.folder / f"{label.split(',')[0].replace(' ', '-').lower()}-{count}-of-epoch-{run.epoch}.pt"
    if not file.exists():
        start = perf_counter()
        x, labels = run.sample(count, seed=0, **how)
        torch.save((x, labels, (perf_counter() - start) * 1000 / count), file)
    return torch.load(file)


def _draw(picture, x, pictures, name):
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
        picture(x[:36], pictures / f"generative-{name}.png", size=2.4)


def _head(count):
    return "\n".join([
        "# Generative models, scored", "",
        f"{count} digits and {count // 8} fields of each model, beside the real data. Accuracy: of a small classifier "
        "trained on real data, on the labels that the samples were asked to have (heat dissipation: those of the "
        "data it started from; the VAE takes no label: mean confidence instead). Fréchet: distance of the features "
        "of that classifier. Spectrum: root mean square difference of log10 of the radial power spectra, over all "
        "shells alike, and over those that hold 99.9 % of the real data's power; wrong power: the share of the real "
        "power that the samples have in another shell. Seconds are for 1000 samples, on a busy machine: a rough guide.",
        "", "| data | model | trained | s/1000 | accuracy | Fréchet | spectrum | 99.9 % | wrong power |",
        "|---|---|---|---|---|---|---|---|---|"])


class _Judge:
    """The real data, and the classifier trained on it where there are labels."""

    def __init__(self, scores, data):
        self.scores, self.data, self.model, self.held = scores, data, None, 0.0
        if data.labels is not None:
            self.model, self.held = scores.train_classifier(data.x, data.labels)

    def line(self, name, label="real data, half against half", about="-", spent=None, x=None, labels=None):
        """A line of the table; without samples, that of the real data."""
        right, far, real = "-", "-", self.data.x
        if x is None:
            order = np.random.default_rng(0).permutation(len(real))
            x, real = real[order[::2]], real[order[1::2]]
            right = f"{self.held:.1%} (held out)" if self.model is not None else "-"
        elif self.model is not None:
            right = self._accuracy(x, labels)
        if self.model is not None:
            far = f"{self.scores.frechet_distance(self.model.features(x), self.model.features(real)):.2f}"
        took = "-" if spent is None else f"{spent:.1f}"
        near = (self.scores.spectrum_distance(x, real, share) for share in (1.0, 0.999))
        return (f"| {name} | {label} | {about} | {took} | {right} | {far} | {' | '.join(f'{d:.3f}' for d in near)} | "
                f"{self.scores.power_difference(x, real):.1%} |")

    def _accuracy(self, x, labels):
        import torch

        if labels is not None:
            return f"{self.scores.accuracy(self.model, x, labels):.1%}"
        with torch.no_grad():
            sure = float(self.model(x).softmax(1).amax(1).mean())  # pyright: ignore[reportOptionalCall]
        return f"{sure:.1%} (confidence)"


def main(folder: Path, out: Path, minutes: float | None = None, pictures: Path | None = None) -> int:
    """Train what is not trained yet, then score; 1 if the time was too short."""
    from fastdiff.bench import generative_physics

    start = perf_counter()
    if not train(folder, minutes):
        return 1
    left = None if minutes is None else minutes - (perf_counter() - start) / 60
    physics = generative_physics.main(folder, left, (pictures or folder) / "generative-reconstructed.png")
    if physics is None:
        return 1
    text = f"{score(folder, pictures or folder)}\n{physics}"
    (out / "generative-runs.md").write_text(text)
    print(text)
    return 0


__all__ = ["FIELD_RECIPE", "RUNS", "Trained", "main", "score", "train"]
