"""Denoising diffusion models on fused kernels: training losses, and samplers without a wait inside their loop."""

import copy
import hashlib
import warnings
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from fastdiff.nn import functional as F
from fastdiff.nn import schedules
from fastdiff.nn.functional.generative import Draw
from fastdiff.nn.samplers import METHODS, PREDICTIONS, meaning, plan
from fastdiff.nn.schedules import P_MEAN, P_STD, Level, make_schedule

SAMPLING = 1 << 62  # streams from here on belong to calls with a seed of their own


class NoiseSource:
    """Hands out streams of noise, each once: no two draws share a counter."""

    def __init__(self, seed: int = 0, stream: int = 0):
        self.seed, self.stream = int(seed), int(stream)

    def next(self) -> Draw:
        """A stream that was not given out before."""
        self.stream += 1
        return Draw(self.seed, self.stream - 1)

    def generator(self) -> np.random.Generator:
        """A NumPy generator from a stream of its own, for the few numbers that are drawn on the host."""
        draw = self.next()
        return np.random.default_rng(np.random.SeedSequence(draw.seed, spawn_key=(draw.stream,)))


class DDPM(nn.Module):
    """Denoising diffusion probabilistic model (Ho, Jain & Abbeel, NeurIPS 2020), with its descendants' options.

        x_t = alpha_t x_0 + sigma_t eps,     loss = E w_t |network(x_t, t) - target|^2

    network     module or function (x, t) or (x, t, condition) -> like x; x (batch, *shape), t (batch,): the number of
                the level; for "continuous" and "vp" 1000 t; for "karras" ln(sigma) / 4
    shape       of one sample, such as (3, 64, 64): channels first, 1 to 3 axes of space, or none
    schedule    name, table of alpha_bar or Schedule, see fastdiff.nn.schedules; `steps` levels
    prediction  "epsilon", "sample", "v" or, with "karras" and by default there, "edm"
    min_snr     gamma of the loss weights min(SNR, gamma) (Hang et al., ICCV 2023); None: all levels alike
    clip        bound of the estimated data while sampling; None: none
    data_range  where the data should lie; looked at once, with a warning; None: anywhere
    null        the condition that stands for none; training puts it with probability `drop` in place of the sample's
                (classifier-free guidance: Ho & Salimans, arXiv 2207.12598)
    seed        of all noise; how much of it was used is part of the state

    Raises ValueError for a schedule whose signal vanishes with prediction="epsilon", and for states of other models.
    """

    null: Any
    network: Any

    def __init__(self, network, shape, *, schedule: Any = "cosine", steps: int = 1000, prediction: str | None = None,
                 min_snr: float | None = None, clip: float | None = 1.0, data_range=(-1.0, 1.0), null=None,
                 drop: float = 0.1, seed: int = 0, rescale: bool = False):
        super().__init__()
        self.network, self.shape = network, tuple(map(int, np.atleast_1d(shape)))
        self.schedule = make_schedule(schedule, steps, rescale)
        karras = self.schedule.name == "karras"
        self.prediction = prediction or ("edm" if karras else "epsilon")
        if self.prediction not in PREDICTIONS:
            raise ValueError(f"unknown prediction {self.prediction!r}; known: {', '.join(PREDICTIONS)}")
        if karras != (self.prediction == "edm"):
            raise ValueError('prediction="edm" and schedule="karras" go together')
        if karras and min_snr is not None:
            raise ValueError('schedule="karras" weighs its loss already: leave min_snr out')
        self.schedule.check_signal(self.prediction)
        self.min_snr, self.clip, self.data_range, self.drop = min_snr, clip, data_range, drop
        self.noise = NoiseSource(seed)
        self.register_buffer("null", None if null is None else torch.as_tensor(null), persistent=False)
        self._looked = data_range is None

    # -- training ------------------------------------------------------------------------------------------------------

    def loss(self, x, condition=None, t=None):
        """The mean of the weighted losses of the samples x (batch, *shape); t: levels, by default drawn."""
        self._check(x)
        draw, rng = self.noise.next(), self.noise.generator()
        level = self._levels(len(x), t, rng)
        of = meaning(self.prediction, level)
        numbers = np.stack(np.broadcast_arrays(level.alpha, level.sigma, of.p, of.q), 1)
        noisy, target = F.draw_noise(x, self._put(numbers, x), draw)
        if np.any(of.scale != 1):
            noisy = noisy * self._put(of.scale, x).reshape(-1, *[1] * len(self.shape))
        found = self._call(noisy, self._put(self._label(level), x), self._dropped(condition, rng))
        return F.weighted_mse(found, target, self._put(self._weight(level), x)).mean()

    forward = loss

    def add_noise(self, x, t, noise=None):
        """x_t and the noise in it, for levels t (batch,) or one for all; noise: by default drawn."""
        self._check(x)
        level = self._levels(len(x), t, None)
        numbers = np.stack([level.alpha, level.sigma, np.zeros(len(x)), np.ones(len(x))], 1)
        if noise is None:
            return F.draw_noise(x, self._put(numbers, x), self.noise.next())
        return F.add_noise(x, self._put(numbers, x), noise), noise

    def _levels(self, count, t, rng) -> Level:
        schedule = self.schedule
        if t is not None:
            t = np.broadcast_to(t.detach().cpu().numpy() if isinstance(t, torch.Tensor) else t, count)
            return schedule.at(t)
        if schedule.name == "karras":
            sigma = np.exp(P_MEAN + P_STD * rng.standard_normal(count))
            return Level(schedule.time_of(sigma), np.ones(count), sigma)
        if schedule.steps is None:  # one draw in each of `count` equal parts: less variance (Kingma et al. 2021)
            return schedule.at((rng.permutation(count) + rng.random(count)) / count)
        return schedule.at(rng.integers(schedule.steps, size=count))

    def _label(self, level):
        if self.schedule.name == "karras":
            return np.log(level.sigma) / 4
        return np.asarray(level.t) * (1.0 if self.schedule.steps else 1000.0)

    def _weight(self, level):
        if self.min_snr is None:
            return np.ones_like(level.alpha)
        return schedules.min_snr_weight(level, self.prediction, self.min_snr)

    def _put(self, numbers, x):
        """Numbers of the host where x is; copies to a GPU are queued, nothing waits."""
        held = torch.from_numpy(np.ascontiguousarray(numbers)).to(x.dtype)
        return held.pin_memory().to(x.device, non_blocking=True) if x.is_cuda else held

    def _dropped(self, condition, rng):
        if condition is None or self.null is None or not self.drop:
            return condition
        lost = torch.from_numpy(rng.random(len(condition)) < self.drop).to(condition.device, non_blocking=True)
        return torch.where(lost.reshape(-1, *[1] * (condition.ndim - 1)), self.null.to(condition.dtype), condition)

    def _call(self, x, t, condition):
        return self.network(x, t) if condition is None else self.network(x, t, condition)

    def _check(self, x):
        if not isinstance(x, torch.Tensor) or x.dtype not in (torch.float32, torch.float64):
            kind = str(x.dtype) if isinstance(x, torch.Tensor) else type(x).__name__
            raise TypeError(f"data is a torch tensor of float32 or float64, not {kind}: pass "
                            "torch.as_tensor(data).float()")
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"data has shape {tuple(x.shape)}; expected (batch, {', '.join(map(str, self.shape))})")
        if self._looked or not x.numel():
            return
        self._looked = True
        (low, high), (least, most) = self.data_range, (float(x.min()), float(x.max()))
        slack = 1e-3 * (high - low)
        if not low - slack <= least <= most <= high + slack or most - least < 0.05 * (high - low):
            formula = f"x = {low:g} + {high - low:g} * (x - {least:.4g}) / {max(most - least, 1e-12):.4g}"
            warnings.warn(f"data lies between {least:.4g} and {most:.4g}, expected about [{low:g}, {high:g}]: scale "
                          f"it, {formula}, or give data_range=None", stacklevel=3)

    # -- sampling ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(self, count: int | None = None, *, steps: int | None = None, method: str = "ddpm",
               spacing: str | None = None, eta: float = 0.0, condition=None, guidance: float = 0.0,
               clip: Any = "default", seed: int | None = None, start=None, known=None, mask=None, resample: int = 1,
               guide=None, trajectory: bool = False, device=None, dtype=torch.float32, noise=None):
        """Samples (count, *shape).

        method      "ddpm", "ddim" (with `eta`), "euler", "heun", "dpm++"; `steps` of them, by default all levels of a
                    table with "ddpm", else 20; `spacing` as in Schedule.path, by default "leading", with "dpm++"
                    "linspace"
        condition   (count, ...) for the network; guidance w: outputs m + w (m - m without condition)
        seed        of the noise; the same seed gives the same samples on any device. None: noise not used before
        start       the state to begin with, instead of noise of the first level's strength
        known, mask inpainting: data that is known where mask is 1 (Lugmayr et al., CVPR 2022), each step done
                    `resample` times
        guide       a fastdiff.nn.Guide: observations, an equation; or a function (x, step, data) -> correction, added
                    to each new state: x is the state before the step, data the estimate
        trajectory  give the states of all steps instead, (steps + 1, count, *shape)
        noise       function of the step's number that gives its noise, instead of our own
        """
        if condition is not None:
            count, device = len(condition) if count is None else count, condition.device if device is None else device
        if start is not None:
            count, device, dtype = len(start), start.device, start.dtype
        if count is None:
            raise ValueError("say how many samples: count")
        if guidance and (condition is None or self.null is None):
            raise ValueError("guidance needs a condition, and a DDPM made with null=..., the condition that means none")
        if (known is None) != (mask is None):
            raise ValueError("inpainting needs both: known, the data, and mask, 1 where it is known")
        todo = self.plan(steps, method, spacing, eta, clip, guidance)
        source = self.noise if seed is None else NoiseSource(seed, SAMPLING)
        x = self._begin(count, start, todo[0].level, source, device or self._device(), dtype)
        fixed = None if known is None else _Known(known.to(x), mask.to(x), source)  # pyright: ignore[reportOptionalMemberAccess]
        return self._run(x, todo, condition, guidance, source, fixed, resample, guide, trajectory, noise)

    def plan(self, steps=None, method="ddpm", spacing=None, eta=0.0, clip: Any = "default", guidance=0.0):
        """The steps of a sampler, numbers in float64; see fastdiff.nn.samplers.plan."""
        if method not in METHODS:
            raise ValueError(f"unknown sampler {method!r}; known: {', '.join(METHODS)}")
        T = self.schedule.steps
        steps = (T if T and method == "ddpm" else 20) if steps is None else steps
        spacing = spacing or ("linspace" if method == "dpm++" else "leading")
        path = self.schedule.path(steps, spacing)
        return plan(method, path, self.prediction, self.clip if clip == "default" else clip, eta, guidance)

    def _device(self):
        for tensor in (*self.parameters(), *self.buffers()):
            return tensor.device
        return torch.device("cpu")

    def _begin(self, count, start, level, source, device, dtype):
        if start is not None:
            self._check_start(start)
            return start.clone()
        x = F.normal(torch.empty(count, *self.shape, device=device, dtype=dtype), source.next())
        return x if self.schedule.preserving else level.sigma * x

    def _check_start(self, start):
        if tuple(start.shape[1:]) != self.shape:
            raise ValueError(f"start has shape {tuple(start.shape)}; expected (count, "
                             f"{', '.join(map(str, self.shape))})")

    def _run(self, x, todo, condition, guidance, source, fixed, resample, guide, trajectory, noise):
        labels = self._put(self._label(Level(*(np.array(v) for v in zip(*(s.level for s in todo))))), x)
        states, before, data, ours = [x], x, None, hasattr(guide, "estimate")
        for i, step in enumerate(todo):
            for turn in range(resample if fixed is not None and step.to.sigma > 0 else 1):
                if turn:
                    x = _renoised(x, step.to, step.level, source)
                t = labels[i].expand(len(x))
                m, without = (self._guided(guide, x, t, step, condition, guidance), None) if ours else self._outputs(
                    x, t, step.scale, condition, guidance)
                old = {"data": data, "state": before}.get(step.old or "")
                z = noise(i) if noise is not None and step.coefficients.noise else None
                draw = source.next() if step.coefficients.noise and z is None else None
                keep = step.estimate or (guide is not None and not ours)
                found = F.reverse_step(x, m, step.coefficients, without=without, old=old, noise=z, draw=draw,
                                       estimate=keep)
                new, data = found if keep else (found, None)
                if guide is not None and not ours:
                    new = new + guide(x, step, data)
                before, x = x, new if fixed is None else fixed.put(new, step.to)
            if trajectory:
                states.append(x)
        return torch.stack(states) if trajectory else x

    def _outputs(self, x, t, scale, condition, guidance):
        x = x if scale == 1 else scale * x
        if condition is None or not guidance:
            return self._call(x, t, condition), None
        none = self.null.to(condition.dtype).expand_as(condition)
        both = self.network(torch.cat([x, x]), torch.cat([t, t]), torch.cat([condition, none]))
        return both.chunk(2)

    def _guided(self, guide, x, t, step, condition, guidance):
        """The network's output, changed so that it says what the guide makes of the estimate of the data."""
        k = step.coefficients
        with torch.set_grad_enabled(guide.through):
            x = x.detach().requires_grad_(guide.through)
            m, without = self._outputs(x, t, step.scale, condition, guidance)
            m = m if without is None else m + guidance * (m - without)
            found = guide.estimate(x, step.level, k.data_state * x + k.data_model * m)
        return ((found - k.data_state * x) / k.data_model).detach()

    # -- state ---------------------------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """What makes this model another one than others: plain values."""
        table = self.schedule.alpha_bar
        digest = "" if table is None else hashlib.sha256(table.tobytes()).hexdigest()[:16]
        return {"kind": type(self).__name__, "shape": list(self.shape), "prediction": self.prediction,
                "schedule": self.schedule.name, "steps": self.schedule.steps, "table": digest}

    def get_extra_state(self):
        """Beside the network's weights: what the model is, and how much noise was used."""
        return {"about": self.describe(), "seed": self.noise.seed, "stream": self.noise.stream}

    def set_extra_state(self, state):
        """Refuse the state of another model."""
        check_same(state["about"], self.describe())
        self.noise = NoiseSource(state["seed"], state["stream"])


def check_same(found: dict, mine: dict) -> None:
    """Refuse a checkpoint of another model, and say in what it differs."""
    names = [k for k in {**mine, **found} if found.get(k) != mine.get(k)]
    other = [f"{k}: {found.get(k)!r} there, {mine.get(k)!r} here" for k in names]
    if other:
        raise ValueError(f"the checkpoint is of another model ({'; '.join(other)}): build the model as it was trained")


def _renoised(x, now, to, source):
    """From a level back to one with more noise."""
    ratio = to.alpha / now.alpha
    added = max(to.sigma**2 - (ratio * now.sigma) ** 2, 0.0) ** 0.5
    k = x.new_tensor([[ratio, added, 0.0, 0.0]]).expand(len(x), 4)
    return F.draw_noise(x, k, source.next())[0]


class _Known:
    """Data that is known at some points: put there, with the noise of the level."""

    def __init__(self, known, mask, source):
        self.known, self.mask, self.source = known, mask, source

    def put(self, x, level):
        if level.sigma == 0:
            return torch.where(self.mask > 0, self.known, x)
        k = x.new_tensor([[level.alpha, level.sigma, 0.0, 0.0]]).expand(len(x), 4)
        known = self.known.expand_as(x).contiguous()
        return torch.where(self.mask > 0, F.draw_noise(known, k, self.source.next())[0], x)


class EMA:
    """The exponential moving average of a module's weights: better samples than the last weights give.

    decay  of each update; the first ones use (1 + n) / (10 + n) if that is smaller
    """

    def __init__(self, module, decay: float = 0.999):
        self.module, self.decay, self.updates = module, decay, 0
        self.average = copy.deepcopy([p.detach() for p in module.parameters()])

    @torch.no_grad()
    def update(self):
        """Take the module's weights in, after each step of an optimiser."""
        self.updates += 1
        keep = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
            self.average, [p.detach() for p in self.module.parameters()], 1 - keep)

    @contextmanager
    def applied(self):
        """Inside of a `with` block the module has the averaged weights."""
        self._swap()
        try:
            yield self.module
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self):
        for mine, theirs in zip(self.average, self.module.parameters()):
            kept = theirs.detach().clone()
            theirs.copy_(mine)
            mine.copy_(kept)

    def state_dict(self):
        """The averages, and how many updates there were."""
        return {"average": self.average, "updates": self.updates, "decay": self.decay}

    def load_state_dict(self, state):
        """Put back what `state_dict` gave."""
        if [a.shape for a in state["average"]] != [a.shape for a in self.average]:
            raise ValueError("the averaged weights are of another model")
        for mine, theirs in zip(self.average, state["average"]):
            mine.copy_(theirs)
        self.updates, self.decay = state["updates"], state["decay"]


__all__ = ["DDPM", "EMA", "NoiseSource", "check_same"]
