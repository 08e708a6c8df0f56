"""How good generated data is: a small classifier's accuracy and features, Fréchet distance, power spectra."""

import numpy as np
import torch
from torch import nn


class Classifier(nn.Module):
    """A small convolutional network: classes of images (batch, channels, height, width), and features of them."""

    def __init__(self, channels: int, classes: int, width: int = 32):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(),
                                  nn.Conv2d(width, width, 3, stride=2, padding=1), nn.ReLU(),
                                  nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
                                  nn.Flatten(), nn.Linear(4 * width, width), nn.ReLU())
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        """Logits of the classes."""
        return self.head(self.body(x))

    @torch.no_grad()
    def features(self, x):
        """(batch, width) numbers, float64, from the layer before the classes."""
        return self.body(x).double().numpy()


def train_classifier(x, labels, *, epochs: int = 20, seed: int = 0, held_out: float = 0.2):
    """A classifier of the real data, and its accuracy on the part that was held out."""
    torch.manual_seed(seed)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(x)))
    cut = int(len(x) * (1 - held_out))
    train, test = order[:cut], order[cut:]
    model = Classifier(x.shape[1], int(labels.max()) + 1)
    optimiser = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(epochs):
        for part in train[torch.randperm(len(train))].split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x[part]), labels[part]).backward()
            optimiser.step()
    return model.eval(), accuracy(model, x[test], labels[test])


@torch.no_grad()
def accuracy(model, x, labels) -> float:
    """Share of the data that the classifier gives its label."""
    return float((model(x).argmax(1) == labels).float().mean())


def frechet_distance(a, b) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) of features (n, d) (Heusel et al., NeurIPS 2017, eq. 6)."""
    (ma, ca), (mb, cb) = ((x.mean(0), np.cov(x, rowvar=False)) for x in (np.asarray(a), np.asarray(b)))
    values = np.linalg.eigvals(np.atleast_2d(ca) @ np.atleast_2d(cb))  # of a product of two positive matrices
    root = np.sqrt(np.maximum(values.real, 0)).sum()
    return float(((ma - mb) ** 2).sum() + np.trace(np.atleast_2d(ca)) + np.trace(np.atleast_2d(cb)) - 2 * root)


def radial_power_spectrum(u) -> np.ndarray:
    """Mean power |FFT|^2 of fields (..., *space) over shells of wave numbers 0, 1, ... half of the shortest side.

    The last two axes are space. Normalised so that white noise of variance 1 has power 1 in every shell.
    """
    total, count = _shells(u)
    return total / count


def _shells(u):
    """The power in each shell, and how many modes it has."""
    u = np.asarray(u, np.float64)
    n, m = u.shape[-2:]
    power = (np.abs(np.fft.fft2(u)) ** 2 / (n * m)).reshape(-1, n * m).mean(0)
    k = np.hypot(np.fft.fftfreq(n)[:, None] * min(n, m), np.fft.fftfreq(m)[None] * min(n, m)).ravel()
    shell = np.rint(k).astype(int)
    keep = shell <= min(n, m) // 2
    return np.bincount(shell[keep], power[keep]), np.bincount(shell[keep])


def spectrum_distance(a, b, share: float = 1.0) -> float:
    """Root mean square of the difference of log10 of two sets' radial spectra, the mean (shell 0) left out.

    All shells count alike, those with hardly any power too; share: only the strongest ones, which hold this share of
    b's power.
    """
    p, q = (np.log10(radial_power_spectrum(x)[1:] + 1e-12) for x in (a, b))
    total = _shells(b)[0][1:]
    order = np.argsort(total)[::-1]
    held = np.cumsum(total[order]) / total.sum()
    keep = order[: len(order) if share >= 1 else int(np.searchsorted(held, share)) + 1]
    return float(np.sqrt(np.mean((p - q)[keep] ** 2)))


def power_difference(a, b) -> float:
    """The share of b's power that a has in another shell, too much or too little: sum |P_a - P_b| / sum P_b.

    The mean (shell 0) is left out.
    """
    p, q = (_shells(x)[0][1:] for x in (a, b))
    return float(np.abs(p - q).sum() / q.sum())


__all__ = ["Classifier", "accuracy", "frechet_distance", "power_difference", "radial_power_spectrum",
           "spectrum_distance", "train_classifier"]
