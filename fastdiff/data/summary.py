"""Statistics of a data set in one pass: moments of each sample as it is made, combined over the training split.

    mean, std, rms                    over samples, frames and cells, of each component
    mean_delta, std_delta, rms_delta  of u(t + Δt) - u(t), one frame to the next

std is that of the population. Each frame's mean and squared deviations are summed pairwise in float32; everything
beyond a frame is float64, by the formula for the moments of a union (Chan, Golub & LeVeque, The American
Statistician 37 (1983) 242, eq. 2.1).
"""

import numpy as np

STATISTICS = ("mean", "std", "rms", "mean_delta", "std_delta", "rms_delta")
MOMENTS = ("mean", "spread", "delta", "delta_squared")  # spread: mean squared deviation from the mean
_ROW_BYTES = 1 << 17


def moments(sample: np.ndarray) -> np.ndarray:
    """MOMENTS of a sample (frames, components, *grid), as (4, components). Not finite if the sample is not."""
    frames, components = sample.shape[:2]
    rows = sample.reshape(frames, components, -1)
    means, spreads = np.empty((2, frames, components))
    squares = np.zeros((max(frames - 1, 1), components))
    step = max(1, _ROW_BYTES // rows[0].nbytes)
    for first in range(0, frames, step):
        part = rows[first : first + step]
        centre = part.mean(-1, keepdims=True)
        means[first : first + step] = centre[..., 0]
        spreads[first : first + step] = _mean_square(part - centre)
        after = rows[first + 1 : first + step + 1]
        if len(after):
            squares[first : first + len(after)] = _mean_square(after - part[: len(after)])
    mean = means.mean(0)
    delta = (means[-1] - means[0]) / max(frames - 1, 1)
    return np.stack([mean, (spreads + (means - mean) ** 2).mean(0), delta, squares.mean(0)])


def _mean_square(part):
    np.multiply(part, part, out=part)
    return part.mean(-1)


def combine(parts: np.ndarray) -> dict[str, np.ndarray]:
    """STATISTICS, each (components,), from the moments (samples, 4, components) of samples of equal size."""
    if not len(parts):
        return {name: np.full(parts.shape[2], np.nan) for name in STATISTICS}
    means, spreads, deltas, squares = (parts[:, k] for k in range(4))
    mean, delta, square = means.mean(0), deltas.mean(0), squares.mean(0)
    variance = (spreads + (means - mean) ** 2).mean(0)
    return dict(zip(STATISTICS, (mean, np.sqrt(variance), np.sqrt(variance + mean**2), delta,
                                 np.sqrt(np.maximum(square - delta**2, 0)), np.sqrt(square))))


__all__ = ["MOMENTS", "STATISTICS", "combine", "moments"]
