"""The quality report of a data set: one HTML file with pictures and a line for each trajectory."""

import base64
import html
import io
import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from fastdiff.data.check import drifts, halved, job_of, stationary_from
from fastdiff.data.files import written_whole
from fastdiff.data.layouts import source
from fastdiff.data.sheet import sheet, title

MOST = 64  # trajectories looked at, evenly over the data set
ORDERS = {"euler": 1, "rkl2": 2, "crank_nicolson": 2, "rk4": 4, "etdrk4": 4}  # in time


def report(path, out: str | os.PathLike | None = None, *, errors: int = 2, made=None) -> Path:
    """Write a quality report beside a data set, as HTML, or to `out`.

    A contact sheet; spectra; histograms; for up to 64 trajectories range, stationarity and what is conserved; for
    `errors` of them estimates of the error, by Richardson's rule, in time (the same with half the step) and in space
    (the same on every other point). `made` is the Report of `generate`, for its throughput.
    """
    out = Path(out) if out is not None else Path(path).with_suffix(".html")
    with source(path) as there:
        job, why = job_of(there)
        chosen = np.unique(np.linspace(0, there.shape[0] - 1, min(MOST, there.shape[0])).astype(int))
        looked = [_Look(there, int(i), job) for i in chosen]
        for look in looked[:errors] if job else []:
            look.estimate(there, job)
        pictures = {"Samples": sheet(path), "Spectra": _spectra(there, looked), "Values": _histograms(there, looked),
                    "Change from frame to frame": _changes(there, looked)}
        parts = [f"<h1>{html.escape(there.name)}</h1>", _facts(there, made), _trajectories(there, looked, why),
                 *(f"<h2>{name}</h2>{_picture(figure)}" for name, figure in pictures.items())]
    with written_whole(out) as temporary:
        temporary.write_text(_PAGE.format(title=html.escape(there.name), body="\n".join(parts)))
    return out


_PAGE = """<!doctype html><meta charset="utf-8"><title>{title}</title>
<style>body{{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em}}
table{{border-collapse:collapse}}td,th{{padding:.15em .7em;text-align:right;border-bottom:1px solid #ddd}}
td:first-child,th:first-child{{text-align:left}}img{{max-width:100%}}</style>
{body}
"""


class _Look:
    """What is kept of one trajectory."""

    def __init__(self, there, i, job):
        u = there.read(i)
        self.i, self.title = i, title(there, i).replace("\n", ", ")
        self.low, self.high = float(u.min()), float(u.max())
        self.finite = bool(np.isfinite(u).all())
        size = np.sqrt(np.mean(np.square(u, dtype=np.float64), axis=tuple(range(1, u.ndim))))
        change = np.sqrt(np.mean(np.square(np.diff(u, axis=0), dtype=np.float64), axis=tuple(range(1, u.ndim))))
        self.changes = change / np.maximum(size[1:], 1e-30)
        self.still = stationary_from(u)
        self.drift = max(drifts(u, there, job).values(), default=None)
        shown = [0, len(u) // 2, len(u) - 1]
        self.spectra = [[_spectrum(u[t, c]) for c in range(u.shape[1])] for t in shown]
        self.times = [there.t[t] for t in shown]
        self.values = u[-1].reshape(u.shape[1], -1)[:, :: max(1, u[-1, 0].size // 4096)]
        self.time_error = self.space_error = None

    def estimate(self, there, job):
        """Richardson's estimates of the relative L2 error over all frames."""
        u = there.read(self.i).astype(np.float64)
        attempt = int(there.attempts[self.i]) if there.attempts is not None else 0
        finer = halved(job)
        if finer is not None and job.recipe.method in ORDERS:
            order = ORDERS[job.recipe.method]
            difference = u - finer.march_one(self.i, attempt)
            self.time_error = _relative(difference, u) * 2**order / (2**order - 1)
        coarse = _coarser(job)
        if coarse is not None:
            every = (slice(None), slice(None), *[slice(None, None, 2)] * job.grid.ndim)
            again = coarse.march_from(self.i, attempt, job.grid, every[1:])
            self.space_error = _relative(u[every] - again, u[every]) / 3


def _relative(difference, u):
    return float(np.sqrt((difference**2).sum() / max((u**2).sum(), 1e-300)))


def _coarser(job):
    """The same on every other point, where these are a grid of the same kind; else None."""
    if job.recipe.method == "exact":
        return None
    kinds = [n % 2 == (0 if wraps else 1) and n > 4 for n, wraps in zip(job.grid.shape, job.grid.periodic)]
    if not all(kinds) or (job.grid.centering == "cells" and not all(job.grid.periodic)):
        return None
    return replace(job, shape=tuple((n + 1) // 2 for n in job.grid.shape), recipe=replace(job.recipe, dt=job.dt))


def _spectrum(field):
    """Power of a field over the wave number, in whole waves along an axis."""
    window = np.ones(1)
    for n in field.shape:
        window = np.multiply.outer(window, np.hanning(n)) if n > 8 else np.multiply.outer(window, np.ones(n))
    power = np.abs(np.fft.fftn((field - field.mean()) * window.reshape(field.shape))) ** 2
    k = np.sqrt(sum(np.ix_(*[(np.fft.fftfreq(n) * n) ** 2 for n in field.shape])[a] for a in range(field.ndim)))
    bins = np.rint(k).astype(int).ravel()
    most = max(2, min(field.shape) // 2)
    return np.bincount(bins, power.ravel(), minlength=most)[:most] / max(power.size, 1) ** 2


def _figure(columns, height=3.0):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * columns, height), layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def _spectra(there, looked):
    figure, axes = _figure(len(there.names))
    for c, ax in enumerate(axes):
        for k, t in enumerate(looked[0].times):
            power = np.mean([look.spectra[k][c] for look in looked], axis=0)
            ax.loglog(np.arange(1, len(power)), np.maximum(power[1:], 1e-30), label=f"t = {t:g}")
        ax.set(title=there.names[c], xlabel="waves along an axis", ylabel="power")
        ax.legend(fontsize=8)
    return figure


def _histograms(there, looked):
    numbers = [n for n in there.numbers() if there.parameters[n].ndim == 1]
    figure, axes = _figure(len(there.names) + len(numbers))
    for c, name in enumerate(there.names):
        values = np.concatenate([look.values[c] for look in looked])
        axes[c].hist(values[np.isfinite(values)], 60)
        axes[c].set(title=f"{name} at the end", yscale="log")
    for ax, name in zip(axes[len(there.names) :], numbers):
        ax.hist(there.parameters[name], 40)
        ax.set(title=name)
    return figure


def _changes(there, looked):
    figure, (ax,) = _figure(1)
    for look in looked:
        ax.semilogy(there.t[1:], np.maximum(look.changes, 1e-12), lw=0.8)
    ax.set(xlabel="t", ylabel="rms change / rms")
    return figure


def _picture(figure):
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=80)
    return f'<img src="data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}">'


def _facts(there, made):
    size = int(np.prod(there.shape)) * there.dtype.itemsize
    rows = {"samples": there.shape[0], "frames, components, grid": " × ".join(map(str, there.shape[1:])),
            "layout": there.layout, "size": f"{size / 1e9:.3g} GB",
            "drawn again": int((there.attempts > 0).sum()) if there.attempts is not None else "not known",
            **{k: there.attributes[k] for k in ("summary", "equation", "method", "dt", "seed", "version")
               if k in there.attributes}}
    if made is not None:
        rows |= {"made in": f"{made.seconds:.1f} s", "throughput": f"{made.samples_per_second:.3g} samples/s, "
                 f"{made.bytes / made.seconds / 1e6:,.0f} MB/s, "
                 f"{made.cell_updates_per_second / 1e6:,.0f} million cell updates/s"}
    if there.statistics:
        rows |= {name: ", ".join(f"{v:.5g}" for v in values) for name, values in there.statistics.items()}
    lines = (f"<tr><td>{k}</td><td>{html.escape(str(v))}</td></tr>" for k, v in rows.items())
    return f"<table>{''.join(lines)}</table>"


def _trajectories(there, looked, why):
    head = ["trajectory", "lowest", "highest", "last change", "still after frame", "drift", "error in time",
            "error in space"]
    rows = [[f"{look.i} {look.title}", f"{look.low:.4g}", f"{look.high:.4g}", f"{look.changes[-1]:.1e}",
             look.still if look.still < there.shape[1] - 1 else "", _number(look.drift), _number(look.time_error),
             _number(look.space_error)] for look in looked]
    lines = [f"<tr>{''.join(f'<td>{html.escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows]
    note = f"<p>{html.escape(why)}</p>" if why else ""
    titles = "".join(f"<th>{h}</th>" for h in head)
    return f"<h2>Trajectories</h2>{note}<table><tr>{titles}</tr>{''.join(lines)}</table>"


def _number(value):
    return "" if value is None else f"{value:.1e}"


__all__ = ["report"]
