"""Training runs of generative models: a folder with a checkpoint, a loss curve and samples; resumed bit by bit."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from fastdiff.nn.ddpm import DDPM, EMA
from fastdiff.nn.heat_dissipation import Blur, BlurringDiffusion, HeatDissipation, pixel_grid
from fastdiff.nn.unet import UNet
from fastdiff.nn.vae import DiffusionVAE

MODELS = ("ddpm", "heat", "blurring", "vae")
RATES = {"heat": 3e-4}  # learning rates; its noise is 0.01: with larger steps it is never learned to be removed


@dataclass(frozen=True)
class Settings:
    """All that a run is made of. data: "digits" or a file of `fastdiff generate`; rate: None for that of the model."""

    model: str = "ddpm"
    data: str = "digits"
    frame: int = -1
    width: int = 32
    schedule: str = "cosine"
    prediction: str = "v"
    levels: int = 200
    batch: int = 128
    rate: float | None = None
    decay: float = 0.995
    seed: int = 0

    def __post_init__(self):
        if self.model not in MODELS:
            raise ValueError(f"unknown model {self.model!r}; known: {', '.join(MODELS)}")
        for name in ("width", "levels", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.rate is None:
            object.__setattr__(self, "rate", RATES.get(self.model, 2e-3))


@dataclass
class Data:
    """Images or fields within [-1, 1], labels or None, and how they were scaled: x = (data - low) / half - 1.

    names     what the labels 0, 1, ... stand for
    periodic  whether the fields are, along all axes: models then know no walls
    """

    x: torch.Tensor
    labels: torch.Tensor | None
    low: np.ndarray
    half: np.ndarray
    names: tuple[str, ...] = ()
    periodic: bool = False

    def back(self, x) -> np.ndarray:
        """Model's numbers in the data's units."""
        shape = (1, -1, *[1] * (x.ndim - 2))
        return (np.asarray(x) + 1) * self.half.reshape(shape) + self.low.reshape(shape)


def load(name: str, frame: int = -1) -> Data:
    """The handwritten digits of scikit-learn (1797 of 8 x 8, labelled), or one frame of every sample of a data set.

    A data set whose samples carry texts, such as the pattern of Gray-Scott's, has the first kind of them for labels.
    """
    names, periodic = (), False
    if name == "digits":
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise ImportError("the digits come with scikit-learn: pip install scikit-learn") from error

        digits: Any = load_digits()
        x, labels = np.asarray(digits.images, np.float32)[:, None], torch.from_numpy(np.asarray(digits.target))
        names = tuple(map(str, range(10)))
    else:
        if not Path(name).exists():
            raise FileNotFoundError(f'no data set {name!r}: make one with "fastdiff generate", or use "digits"')
        from fastdiff import data

        found = data.open(name)
        frames = len(found[0]["fields"])
        if not -frames <= frame < frames:
            raise ValueError(f"{name} has {frames} frames, 0 to {frames - 1}, not a frame {frame}")
        x = np.stack([found[i]["fields"][frame].numpy() for i in range(len(found))])
        labels, names = _labels(found)
        periodic = bool(np.all(found.attributes.get("grid_periodic", False)))
    points = (0, *range(2, x.ndim))
    low, high = x.min(points), x.max(points)
    half = np.maximum((high - low) / 2, 1e-12)
    shape = (1, -1, *[1] * (x.ndim - 2))
    scaled = (x - low.reshape(shape)) / half.reshape(shape) - 1
    return Data(torch.from_numpy(np.ascontiguousarray(scaled, np.float32)), labels, low, half, names, periodic)


def _labels(found):
    """The classes of a data set's samples as numbers, and their names; None where there is one class, or none."""
    for texts in found.labels.values():
        names = tuple(sorted(set(texts)))
        if len(names) > 1:
            return torch.tensor([names.index(text) for text in texts]), names
    return None, ()


def build(settings: Settings, data: Data):
    """The model of a run, for the shape of its data."""
    torch.manual_seed(settings.seed)
    shape, space = tuple(data.x.shape[1:]), data.x.shape[2:]
    if settings.model == "vae":
        return DiffusionVAE(shape, latent=16, hidden=(16 * settings.width, 8 * settings.width), seed=settings.seed)
    classes = None if data.labels is None else int(data.labels.max()) + 1
    deep = (1, 2) if min(space) < 16 else (1, 2, 2)
    net = UNet(len(space), shape[0], width=settings.width, multipliers=deep, blocks=1, attention=(len(deep) - 1,),
               classes=None if classes is None else classes + 1, periodic=data.periodic)
    if settings.model == "heat":
        blur = Blur(space, grid=pixel_grid(space, data.periodic))
        return HeatDissipation(net, shape, steps=settings.levels, forward_process=blur, seed=settings.seed)
    if settings.model == "blurring":
        return BlurringDiffusion(net, shape, steps=settings.levels, most=max(space) / 4, seed=settings.seed)
    return DDPM(net, shape, schedule=settings.schedule, prediction=settings.prediction, steps=settings.levels,
                min_snr=5.0 if settings.prediction != "edm" else None, null=classes, seed=settings.seed)


class Run:
    """A training run in a folder: new, or gone on with from its checkpoint.

    Raises ValueError for a folder that holds a run of other settings.
    """

    def __init__(self, folder, settings: Settings | None = None, data: Data | None = None):
        self.folder, self.epoch, self.losses = Path(folder), 0, []
        found: Any = self._read()
        if found is None and settings is None:
            raise FileNotFoundError(f"{self.folder} holds no run: train one with fastdiff train ddpm --out {folder}")
        self.settings = settings or Settings(**found["settings"])  # pyright: ignore[reportOptionalSubscript]
        if found is not None and found["settings"] != asdict(self.settings):
            other = {k: (v, asdict(self.settings)[k]) for k, v in found["settings"].items()
                     if v != asdict(self.settings)[k]}
            raise ValueError(f"{self.folder} holds a run of other settings ({other}): choose another folder")
        self.data = data or load(self.settings.data, self.settings.frame)
        self.model: Any = build(self.settings, self.data)
        self.optimiser = torch.optim.AdamW(self.model.parameters(), self.settings.rate or 0.0)
        self.ema = EMA(self.model, self.settings.decay)
        if found is not None:
            self._restore(found)

    @property
    def file(self) -> Path:
        """The checkpoint."""
        return self.folder / "checkpoint.pt"

    def _read(self):
        if not self.file.exists():
            return None
        try:  # numbers and texts alone: a checkpoint of others runs nothing
            found = torch.load(self.file, weights_only=True)
            Settings(**found["settings"])
        except Exception as error:
            raise ValueError(f"{self.file} is no checkpoint of fastdiff train ddpm, or a damaged one: delete it, or "
                             "choose another folder") from error
        return found

    def _restore(self, found):
        try:
            self.model.load_state_dict(found["model"])
        except RuntimeError as error:
            raise ValueError(f"{self.file} was trained on data of another shape or other labels than "
                             f"{self.settings.data} has now: choose another folder") from error
        self.optimiser.load_state_dict(found["optimiser"])
        self.ema.load_state_dict(found["ema"])
        self.epoch, self.losses = found["epoch"], found["losses"]

    def save(self):
        """Write the checkpoint, whole or not at all, and the losses as JSON."""
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.file.with_suffix(f".{os.getpid()}")
        torch.save({"settings": asdict(self.settings), "model": self.model.state_dict(), "ema": self.ema.state_dict(),
                    "optimiser": self.optimiser.state_dict(), "epoch": self.epoch, "losses": self.losses}, partial)
        partial.replace(self.file)
        (self.folder / "losses.json").write_text(json.dumps(self.losses))

    def train(self, epochs: int, progress=None, every: int = 10, seconds: float = 20.0):
        """Train up to `epochs` in all, saving every few or after so many seconds; `progress(epoch, loss)` is told.

        KeyboardInterrupt comes through and says how much is kept; the next run goes on from there.
        """
        self.model.train()
        kept, saved = self.epoch, perf_counter()
        try:
            while self.epoch < epochs:
                self._epoch()
                if progress is not None:
                    progress(self.epoch, self.losses[-1])
                if self.epoch % every == 0 or self.epoch == epochs or perf_counter() - saved > seconds:
                    self.save()
                    kept, saved = self.epoch, perf_counter()
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"stopped; {kept} epochs are kept, the same command goes on") from None

    def _epoch(self):
        order = np.random.default_rng((self.settings.seed, self.epoch)).permutation(len(self.data.x))
        parts = torch.from_numpy(order).split(min(self.settings.batch, len(order)))
        self.losses.append(sum(self._step(part) for part in parts) / len(parts))
        self.epoch += 1

    def _step(self, part):
        x = self.data.x[part]
        given = () if self.data.labels is None or self.settings.model == "vae" else (self.data.labels[part],)
        self.optimiser.zero_grad()
        loss = self.model.loss(x, *given)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.ema.update()
        return loss.detach().item()

    def sample(self, count: int, *, seed: int = 0, method: str = "ddpm", steps: int | None = None,
               guidance: float = 0.0):
        """Samples within [-1, 1], and their labels or None, by the averaged weights."""
        labels = None if self.data.labels is None else torch.arange(count) % (int(self.data.labels.max()) + 1)
        self.model.eval()
        with self.ema.applied():
            if self.settings.model == "vae":
                return self.model.sample(count, seed=seed), None
            if self.settings.model == "ddpm":
                return self.model.sample(count, seed=seed, method=method, steps=steps, condition=labels,
                                         guidance=guidance), labels
            if self.settings.model == "blurring":
                return self.model.sample(count, seed=seed, condition=labels), labels
            start, labels = self._starts(count, seed)
            return self.model.sample(start, seed=seed, condition=labels), labels

    def _starts(self, count, seed):
        """Blurred training data, with its labels, as the heat dissipation model begins with."""
        rows = torch.from_numpy(np.random.default_rng((seed, 1)).integers(len(self.data.x), size=count))
        labels = None if self.data.labels is None else self.data.labels[rows]
        return self.model.at(self.data.x[rows], self.model.steps), labels


def picture(x, path, columns: int | None = None, size: float = 8.0):
    """A grid of images or fields (count, channels, height, width); channels beside the first are left out.

    size  width of the picture, in 100 dots
    """
    from matplotlib.figure import Figure

    x = np.asarray(x)
    x = x[:, 0] if x.ndim > 3 else x
    columns = columns or int(np.ceil(np.sqrt(len(x))))
    figure = Figure(figsize=(size, size * -(-len(x) // columns) / columns), layout="constrained")
    for i, image in enumerate(x):
        axes = figure.add_subplot(-(-len(x) // columns), columns, i + 1)
        axes.axis("off")
        if image.ndim == 1:
            axes.plot(image)
        else:
            axes.imshow(image, cmap="gray", vmin=x.min(), vmax=x.max())
    figure.savefig(path, dpi=100)


def loss_curve(losses, path):
    """The loss of every epoch."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(np.arange(1, len(losses) + 1), losses)
    axes.set(xlabel="epoch", ylabel="loss", yscale="log" if min(losses) > 0 else "linear")
    axes.grid(True, lw=0.3)
    figure.savefig(path, dpi=120)


__all__ = ["MODELS", "Data", "Run", "Settings", "build", "load", "loss_curve", "picture"]
