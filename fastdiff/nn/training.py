"""Training of surrogates: seeded, resumable to the bit, with one-step, rollout and pushforward losses."""

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fastdiff.kernels import _activation, _conv_block
from fastdiff.nn import metrics
from fastdiff.nn.surrogates import SurrogateCNN, rollout


@dataclass
class History:
    """What a training run did: one entry an epoch.

    loss        mean training loss
    validation  normalised RMSE of one step on the held-out trajectories; empty without them
    best        epoch with the smallest validation error (or loss), whose weights the model has in the end
    stopped     why it ended: "epochs", "patience" or "interrupted"
    """

    loss: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    best: int = -1
    stopped: str = "epochs"
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to train; see `fit`."""

    epochs: int = 50
    batch_size: int = 64
    lr: float = 1e-3
    steps: int = 1
    pushforward: int = 0
    noise: float = 0.0
    inputs: int = 1
    seed: int = 0
    patience: int | None = None
    schedule: str | None = "cosine"
    weight_decay: float = 0.0
    clip: float | None = None


SCHEDULES = (None, "cosine")


class Windows:
    """Pieces of trajectories (N, T, C, *grid): `inputs` frames stacked as channels, then `outputs` frames.

    `data` is an array or tensor, a path, or what `fd.data.open` gives; files are read into memory.
    """

    def __init__(self, data, inputs: int, outputs: int, device=None):
        self.fields = trajectories(data).to(device)
        self.inputs, self.outputs = inputs, outputs
        self.windows = self.fields.shape[1] - inputs - outputs + 1
        if self.windows < 1:
            raise ValueError(f"a window of {inputs} + {outputs} frames does not fit into trajectories of "
                             f"{self.fields.shape[1]} frames: take fewer steps or longer trajectories")

    def __len__(self):
        return len(self.fields) * self.windows

    def batch(self, index):
        """(inputs (B, inputs*C, *grid), outputs (B, outputs, C, *grid)) of windows by their numbers."""
        sample, start = index // self.windows, index % self.windows
        pick = lambda first, count: torch.stack([self.fields[sample, start + first + k] for k in range(count)], 1)
        return pick(0, self.inputs).flatten(1, 2), pick(self.inputs, self.outputs)


def trajectories(data) -> torch.Tensor:
    """Trajectories (N, T, C, *grid) as one tensor, from a tensor, an array, a path or a data set."""
    if isinstance(data, str | os.PathLike):
        from fastdiff.data import open as open_data

        data = open_data(data)
    if isinstance(data, np.ndarray):
        data = torch.from_numpy(data)
    if not isinstance(data, torch.Tensor):
        if not len(data) or not isinstance(data[0], dict) or "fields" not in data[0]:
            raise TypeError("expected trajectories (samples, frames, components, *grid) as a tensor or an array, the "
                            "path of a data set, or what fd.data.open(path) gives without inputs=")
        data = torch.stack([data[i]["fields"] for i in range(len(data))])
    if data.ndim < 4 or not data.is_floating_point():
        raise ValueError(f"trajectories must be floating-point (samples, frames, components, *grid), got {data.dtype} "
                         f"of shape {tuple(data.shape)}")
    if not torch.isfinite(data).all():
        raise ValueError("the trajectories hold NaN or infinite values: fd.data.verify(path) says where")
    return data


def _advance(window, new):
    """The next input window: the oldest frame out, the new one in."""
    return torch.cat([window[:, new.shape[1]:], new], 1)


def loss_of(model, window, truth, plan: Plan, noise=None):
    """Mean square error of the last `plan.steps` frames of an unrolled prediction, relative to the truth's mean square.

    The first `pushforward` steps are taken without gradient, so that the network sees its own errors as noise
    (Brandstetter, Worrall and Welling, ICLR 2022, section 3.2). The gradient runs through the others.
    """
    if noise is not None:
        window = window + noise
    with torch.no_grad():
        for _ in range(plan.pushforward):
            window = _advance(window, model(window))
    total = 0.0
    for k in range(plan.pushforward, plan.pushforward + plan.steps):
        new = model(window)
        total = total + (new - truth[:, k]).square().mean()
        window = _advance(window, new)
    return total / plan.steps


def fit(model: nn.Module, data, *, validation: Any = 0.1, checkpoint=None, resume: bool = True, optimizer: Any = None,
        device=None, progress: bool = False, on_epoch: Callable[[int, History], None] | None = None, **how) -> History:
    """Train a surrogate on trajectories; the model has the best weights afterwards.

    model        nn.Module: (B, inputs*C, *grid) -> (B, C, *grid)
    data         trajectories (N, T, C, *grid): tensor, array, path of a data set, or `fd.data.open(path)`
    validation   the share of the trajectories held out (the last ones), other trajectories, or None
    epochs, batch_size, lr, weight_decay, clip (largest norm of the gradient), schedule ("cosine" to zero, or None)
    steps        unrolled steps in the loss; 1 is the one-step loss
    pushforward  steps taken before them without gradient
    noise        standard deviation of Gaussian noise on the inputs, in units of the data's own
    inputs       frames that go in, stacked as channels
    seed         of the order of batches and the noise
    patience     stop after so many epochs without a better validation error
    checkpoint   file written after each epoch; with `resume` a run that was stopped goes on from it, and gives the same
                 bits as one that was not
    optimizer    function of the parameters; default AdamW
    on_epoch     called as on_epoch(epoch, history) after each epoch

    Ctrl-C ends training after the last full epoch's checkpoint. Raises ValueError for data that are not finite, a loss
    that becomes so, unknown options and a checkpoint of another run.
    """
    unknown = set(how) - set(Plan.__dataclass_fields__)
    if unknown:
        raise TypeError(f"fit has no option {sorted(unknown)[0]!r}; known: {', '.join(Plan.__dataclass_fields__)}")
    plan = _checked(Plan(**how))
    run = _Run(model, data, validation, plan, optimizer, device)
    if checkpoint is not None and resume and Path(checkpoint).exists():
        run.load(checkpoint)
    start = time.perf_counter() - run.history.seconds
    with _Progress(progress, plan.epochs) as show:
        try:
            while run.epoch < plan.epochs and not run.out_of_patience():
                run.train_epoch()
                run.history.seconds = time.perf_counter() - start
                if checkpoint is not None:
                    run.save(checkpoint)
                show(run.history)
                if on_epoch is not None:
                    on_epoch(run.epoch - 1, run.history)
        except KeyboardInterrupt:
            run.history.stopped = "interrupted"
    if run.history.stopped == "epochs" and run.epoch < plan.epochs:
        run.history.stopped = "patience"
    run.model.load_state_dict(run.best)
    return run.history


def _checked(plan: Plan) -> Plan:
    for name in ("epochs", "batch_size", "steps", "inputs"):
        if not isinstance(getattr(plan, name), int) or getattr(plan, name) < 1:
            raise ValueError(f"{name} must be a whole number from 1 on, got {getattr(plan, name)!r}")
    if plan.schedule not in SCHEDULES:
        raise ValueError(f"unknown schedule {plan.schedule!r}; known: {', '.join(map(str, SCHEDULES))}")
    if plan.pushforward < 0 or plan.noise < 0 or plan.lr <= 0:
        raise ValueError("pushforward and noise must not be negative, lr must be positive")
    return plan


class _Run:
    """The state of a training run, which a checkpoint holds whole."""

    def __init__(self, model, data, validation, plan, optimizer, device):
        self.plan, self.model, self.device = plan, model.to(device) if device else model, device
        fields = trajectories(data)
        held = _held_out(fields, validation)
        if held is None or isinstance(validation, float):
            fields = fields[: len(fields) - (0 if held is None else len(held))]
        self.train = Windows(fields, plan.inputs, plan.pushforward + plan.steps, device)
        self.held = None if held is None else Windows(held, plan.inputs, 1, device)
        self.scale = float(self.train.fields.std())
        make = optimizer or (lambda p: torch.optim.AdamW(p, lr=plan.lr, weight_decay=plan.weight_decay))
        self.optimizer = make(list(model.parameters()))
        self.per_epoch = -(-len(self.train) // plan.batch_size)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            self.optimizer, plan.epochs * self.per_epoch) if plan.schedule else None
        self.epoch, self.history = 0, History()
        self.best = _copy(model.state_dict())

    def train_epoch(self):
        """One pass over all windows, in an order that depends on seed and epoch alone."""
        generator = torch.Generator().manual_seed(hash((self.plan.seed, self.epoch)) % (1 << 63))
        order = torch.randperm(len(self.train), generator=generator)
        self.model.train()
        total = 0.0
        for index in order.split(self.plan.batch_size):
            total += self.train_batch(index, generator) * len(index)
        self.history.loss.append(total / len(order))
        self.epoch += 1
        self.judge()

    def train_batch(self, index, generator) -> float:
        """One step of the optimiser."""
        window, truth = self.train.batch(index)
        noise = None
        if self.plan.noise:
            noise = torch.randn(window.shape, generator=generator, dtype=window.dtype).to(window.device)
            noise *= self.plan.noise * self.scale
        self.optimizer.zero_grad(set_to_none=True)
        loss = loss_of(self.model, window, truth, self.plan, noise)
        if not torch.isfinite(loss):
            raise ValueError(f"the loss became {float(loss)} in epoch {self.epoch}: lower lr, set clip, or unroll "
                             f"fewer steps")
        loss.backward()
        if self.plan.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.plan.clip)
        self.optimizer.step()
        if self.schedule is not None:
            self.schedule.step()
        return float(loss.detach())

    def judge(self):
        """Validation error of one step; keep the weights if they are the best so far."""
        if self.held is not None:
            self.history.validation.append(evaluate(self.model, self.held, self.plan.batch_size))
        series = self.history.validation or self.history.loss
        if series[-1] == min(series):
            self.history.best, self.best = self.epoch - 1, _copy(self.model.state_dict())

    def out_of_patience(self) -> bool:
        """Whether the best epoch is too long ago."""
        return self.plan.patience is not None and self.epoch - 1 - self.history.best >= self.plan.patience

    def save(self, path):
        """Write everything, first beside the file, so that a stop in between leaves the old one."""
        state = {"plan": asdict(self.plan), "epoch": self.epoch, "history": asdict(self.history), "best": self.best,
                 "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "random":
                 torch.get_rng_state(), "schedule": self.schedule.state_dict() if self.schedule else None}
        partial = Path(f"{path}.{os.getpid()}")
        torch.save(state, partial)
        partial.replace(path)

    def load(self, path):
        """Go on from a checkpoint of the same plan; more epochs than before are allowed without a schedule."""
        state = torch.load(path, weights_only=True, map_location=self.device)
        old, new = dict(state["plan"]), asdict(self.plan)
        if self.schedule is None:
            old["epochs"] = new["epochs"]
        different = [name for name in new if old.get(name) != new[name]]
        if different:
            name = different[0]
            raise ValueError(f"{path} is a checkpoint of another run: {name} was {old.get(name)!r} there, not "
                             f"{new[name]!r}; take another file, or resume=False")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["random"].cpu())
        self.epoch, self.history, self.best = state["epoch"], History(**state["history"]), state["best"]


def _held_out(fields, validation):
    if validation is None:
        return None
    if not isinstance(validation, float):
        return trajectories(validation)
    if not 0 <= validation < 1:
        raise ValueError(f"validation is a share from 0 to 1, other trajectories, or None; got {validation}")
    count = int(round(validation * len(fields)))
    return fields[len(fields) - count :] if count else None


def _copy(state):
    return {name: value.detach().clone() for name, value in state.items()}


@torch.no_grad()
def evaluate(model, windows: Windows, batch_size: int = 64) -> float:
    """Mean normalised RMSE of one step."""
    model.eval()
    ndim, errors = windows.fields.ndim - 3, []
    for index in torch.arange(len(windows)).split(batch_size):
        window, truth = windows.batch(index)
        errors.append(metrics.nrmse(model(window), truth[:, 0], ndim).flatten())
    return float(torch.cat(errors).mean())


@torch.no_grad()
def predict(model, data, steps: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Rollouts from the first frame of each trajectory, and the truth: (N, steps, C, *grid) both."""
    model.eval()
    fields = trajectories(data)
    steps = fields.shape[1] - 1 if steps is None else steps
    if not 1 <= steps < fields.shape[1]:
        raise ValueError(f"steps must be from 1 to {fields.shape[1] - 1}, got {steps}")
    return rollout(model, fields[:, 0], steps), fields[:, 1 : steps + 1]


class _Progress:
    """A line that says how far training is, or nothing."""

    def __init__(self, wanted, epochs):
        self.wanted, self.epochs, self.bar = wanted, epochs, None

    def __enter__(self):
        if self.wanted:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self.bar = Progress(TextColumn("epochs"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                                TextColumn("{task.description}"))
            self.bar.start()
            self.task = self.bar.add_task("", total=self.epochs)
        return self.show

    def show(self, history):
        if self.bar is not None:
            error = f", nRMSE {history.validation[-1]:.3%}" if history.validation else ""
            self.bar.update(self.task, completed=len(history.loss), description=f"loss {history.loss[-1]:.3g}{error}")

    def __exit__(self, *error):
        if self.bar is not None:
            self.bar.stop()


class FusedAdam:
    """Training steps of `SurrogateCNN` with one channel in and out: layers, mean square error, gradients, Adam, one
    call.

        trainer = FusedAdam(model, lr=1e-3)
        loss = trainer.step(x, y)          # a float: the error before the step

    x, y (B, 1, *grid) on the CPU. The model's parameters become views of one tensor and are changed in place, so that
    the model can be used between steps. Same numbers as torch.optim.Adam on torch.nn.MSELoss, to rounding.

    Raises TypeError for another model, ValueError for shapes and dtypes that do not fit.
    """

    def __init__(self, model: SurrogateCNN, lr: float = 1e-3, betas=(0.9, 0.999), eps: float = 1e-8,
                 weight_decay: float = 0.0, threads: int | None = None):
        if not isinstance(model, SurrogateCNN) or model.residual or model.conv1.in_channels != 1 \
                or model.conv2.out_channels != 1:
            raise TypeError("FusedAdam trains a SurrogateCNN with one channel in and out and without residual")
        self.model, self.lr, self.betas, self.eps, self.weight_decay = model, lr, betas, eps, weight_decay
        parameters = [model.conv1.weight, model.conv1.bias, model.conv2.weight, model.conv2.bias]
        if any(p.device.type != "cpu" for p in parameters):
            raise ValueError("FusedAdam trains on the CPU: move the model there")
        self.state = torch.zeros(3, sum(p.numel() for p in parameters), dtype=parameters[0].dtype)
        start = 0
        for p in parameters:
            part = self.state[0, start : start + p.numel()].view(p.shape)
            part.copy_(p.detach())
            p.data = part
            start += p.numel()
        self.count, self.threads, self._trainers = 0, threads, {}
        self._array = self.state.numpy()

    def step(self, x, y) -> float:
        """One training step on a batch; the mean square error before it."""
        trainer = self._trainers.get(tuple(x.shape)) or self._make(x)
        if x.shape != y.shape or x.dtype != self.state.dtype or y.dtype != x.dtype:
            raise ValueError(f"x and y must have one shape and the model's dtype {self.state.dtype}, got "
                             f"{tuple(x.shape)} {x.dtype} and {tuple(y.shape)} {y.dtype}")
        self.count += 1
        arrays = x.detach().contiguous().numpy(), y.detach().contiguous().numpy()
        return trainer.step(*arrays, self._array, self.count, self.lr, self.betas, self.eps, self.weight_decay)

    def _make(self, x):
        from fastdiff.kernels.conv_block import geometry

        layer = self.model.conv1
        boundary = layer.boundary if isinstance(layer.boundary, str) else tuple(layer.boundary)
        space, kernel, modes = geometry(tuple(x.shape), layer.kernel_size, boundary)
        code = _activation.code_of(layer.activation)
        made = _conv_block.Trainer(space, kernel, layer.out_channels, modes, code, self._array.dtype, self.threads)
        return self._trainers.setdefault(tuple(x.shape), made)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {"state": self.state.clone(), "count": self.count}

    def load_state_dict(self, state):
        """Go on from `state_dict()`."""
        self.state.copy_(state["state"])
        self.count = int(state["count"])


__all__ = ["FusedAdam", "History", "Plan", "Windows", "evaluate", "fit", "loss_of", "predict", "trajectories"]
