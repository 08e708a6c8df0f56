"""How far a predicted field is from the true one: the measures of PDEBench, The Well and APEBench.

Fields are (B, [T,] C, *grid) with `ndim` axes of the grid; every measure is one number for each of (B, [T,] C), so that
means can be taken over what one likes. Sources: Takamoto et al., PDEBench, NeurIPS 2022, appendix B (and its
metrics.py); Ohana et al., The Well, NeurIPS 2024, section 4 (and its metrics/spatial.py).
"""

import torch


def _axes(ndim):
    return tuple(range(-ndim, 0))


def _same(prediction, truth):
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction and truth have shapes {tuple(prediction.shape)} and {tuple(truth.shape)}")


def nrmse(prediction, truth, ndim: int, eps: float = 1e-7):
    """Normalised root mean square error: ||p - t|| / ||t||, norms over the grid (PDEBench's nRMSE)."""
    _same(prediction, truth)
    axes = _axes(ndim)
    return ((prediction - truth).square().mean(axes) / (truth.square().mean(axes) + eps**2)).sqrt()


def vrmse(prediction, truth, ndim: int, eps: float = 1e-7):
    """Variance-scaled root mean square error: sqrt(<(p - t)²> / (<(t - <t>)²> + eps)), means over the grid (The Well).

    1 is what predicting the mean field gives.
    """
    _same(prediction, truth)
    axes = _axes(ndim)
    spread = (truth - truth.mean(axes, keepdim=True)).square().mean(axes)
    return ((prediction - truth).square().mean(axes) / (spread + eps)).sqrt()


def spectral_error(prediction, truth, ndim: int, bands=(4, 12)):
    """Root mean square error in bands of wave numbers (PDEBench's fRMSE): a number a band, stacked last.

    Bands of |k| in whole waves across the domain: [0, bands[0]], (bands[0], bands[1]], ..., and all above. A band's
    power is summed (PDEBench takes its mean), so that the squares of all bands add up to the mean square error.
    """
    _same(prediction, truth)
    axes, grid = _axes(ndim), truth.shape[-ndim:]
    power = torch.fft.fftn(prediction - truth, dim=axes, norm="forward").abs().square()
    waves = [torch.fft.fftfreq(n, 1 / n, device=truth.device, dtype=truth.dtype) for n in grid]
    k = torch.stack(torch.meshgrid(*waves, indexing="ij")).square().sum(0).sqrt()
    edges = [-1.0, *bands, float("inf")]
    inside = [(low < k) & (k <= high) for low, high in zip(edges, edges[1:])]
    return torch.stack([(power * band).sum(axes).sqrt() for band in inside], -1)


def boundary_error(prediction, truth, ndim: int):
    """Root mean square error over the cells at the edge of the grid (PDEBench's bRMSE; corners count once)."""
    _same(prediction, truth)
    mask = torch.zeros(truth.shape[-ndim:], dtype=torch.bool, device=truth.device)
    for axis, n in enumerate(mask.shape):
        mask.narrow(axis, 0, 1).fill_(True)
        mask.narrow(axis, n - 1, 1).fill_(True)
    return (prediction - truth)[..., mask].square().mean(-1).sqrt()


def report(prediction, truth, ndim: int) -> dict[str, float]:
    """Means of all measures: nrmse, vrmse, boundary, and spectral_low, spectral_mid, spectral_high."""
    low, mid, high = spectral_error(prediction, truth, ndim).flatten(0, -2).mean(0).tolist()
    means = {"nrmse": nrmse, "vrmse": vrmse, "boundary": boundary_error}
    return {**{name: float(f(prediction, truth, ndim).mean()) for name, f in means.items()}, "spectral_low": low,
            "spectral_mid": mid, "spectral_high": high}


__all__ = ["boundary_error", "nrmse", "report", "spectral_error", "vrmse"]
