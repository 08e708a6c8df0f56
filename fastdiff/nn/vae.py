"""Variational autoencoder with a latent space of independent normal numbers (Kingma & Welling, ICLR 2014)."""

from math import log, pi
from typing import Any

import torch
from torch import nn

from fastdiff.nn import functional as F
from fastdiff.nn.ddpm import SAMPLING, NoiseSource, check_same

LIKELIHOODS = ("gaussian", "bernoulli")


class DiffusionVAE(nn.Module):
    """Variational autoencoder of fields: what generates states of a diffusion process, or images.

        -ELBO = E_q [-log p(x|z)] + beta KL(q(z|x) || N(0, 1)),   q(z|x) = N(m(x), diag exp(v(x)))   (eq. 3)
        KL = 1/2 sum (m^2 + exp(v) - v - 1)                                                          (appendix B)

    shape       of one sample, (channels, *space) or any
    latent      numbers in z; hidden: widths of the two networks' layers
    likelihood  "gaussian": data of any size, one variance for all that is learnt by its closed form, the mean square
                (Rybkin, Daniilidis & Levine, ICML 2021, section 3); "bernoulli": data within [0, 1]
    beta        weight of the KL term
    encoder     module x -> (batch, 2 latent); decoder: z -> (batch, *shape); default: fully connected
    """

    variance: torch.Tensor

    def __init__(self, shape, *, latent: int = 16, hidden=(256, 128), likelihood: str = "gaussian", beta: float = 1.0,
                 encoder=None, decoder=None, seed: int = 0):
        super().__init__()
        if likelihood not in LIKELIHOODS:
            raise ValueError(f"unknown likelihood {likelihood!r}; known: {', '.join(LIKELIHOODS)}")
        self.shape, self.latent, self.likelihood, self.beta = tuple(map(int, shape)), latent, likelihood, beta
        size = 1
        for n in self.shape:
            size *= n
        self.size = size
        self.encoder = encoder or nn.Sequential(nn.Flatten(), *_layers(size, *hidden, 2 * latent))
        self.decoder = decoder or nn.Sequential(*_layers(latent, *hidden[::-1], size), nn.Unflatten(1, self.shape))
        self.register_buffer("variance", torch.ones(()))
        self.noise = NoiseSource(seed)

    def encode(self, x):
        """Mean and log-variance of z, each (batch, latent)."""
        self._check(x)
        return self.encoder(x).chunk(2, 1)

    def loss(self, x):
        """-ELBO in nats a sample, averaged over the batch."""
        mean, log_variance = self.encode(x)
        z = mean + torch.exp(0.5 * log_variance) * F.normal(mean.detach(), self.noise.next())
        return self.reconstruction(self.decoder(z), x) + self.beta * self.divergence(mean, log_variance)

    forward = loss

    @staticmethod
    def divergence(mean, log_variance):
        """KL(q || N(0, 1)) in closed form, nats a sample."""
        return 0.5 * (mean**2 + log_variance.exp() - log_variance - 1).sum(1).mean()

    def reconstruction(self, found, x):
        """-log p(x|z), nats a sample; found: the mean, or for Bernoulli the logits."""
        if self.likelihood == "bernoulli":
            return nn.functional.binary_cross_entropy_with_logits(found, x, reduction="sum") / len(x)
        error = F.weighted_mse(found, x).mean()
        if self.training:
            with torch.no_grad():
                self.variance.lerp_(error.clamp_min(1e-6).to(self.variance.dtype), 0.05)
        variance = error.clamp_min(1e-6) if self.training else self.variance  # the best one for this batch
        return 0.5 * self.size * (error / variance + torch.log(variance) + log(2 * pi))

    @torch.no_grad()
    def sample(self, count: int, *, seed: int | None = None, noise: bool = False):
        """Samples (count, *shape): means of p(x|z) with z drawn; with `noise` drawn from p(x|z) (Gaussian)."""
        source = self.noise if seed is None else NoiseSource(seed, SAMPLING)
        weight = next(self.parameters())
        z = F.normal(weight.new_empty(count, self.latent), source.next())
        x = self.decoder(z)
        if self.likelihood == "bernoulli":
            return torch.sigmoid(x)
        return x + self.variance.sqrt() * F.normal(x, source.next()) if noise else x

    @torch.no_grad()
    def reconstruct(self, x):
        """The data as it comes back through the means."""
        found = self.decoder(self.encode(x)[0])
        return torch.sigmoid(found) if self.likelihood == "bernoulli" else found

    def _check(self, x):
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"data has shape {tuple(x.shape)}; expected (batch, {', '.join(map(str, self.shape))})")
        if self.likelihood == "bernoulli" and not bool(((x >= 0) & (x <= 1)).all()):
            raise ValueError(f"a Bernoulli likelihood needs data within [0, 1], got {float(x.min()):.4g} to "
                             f'{float(x.max()):.4g}: scale it, or use likelihood="gaussian"')

    def describe(self) -> dict[str, Any]:
        """What makes this model another one than others."""
        return {"kind": type(self).__name__, "shape": list(self.shape), "latent": self.latent,
                "likelihood": self.likelihood}

    def get_extra_state(self):
        """Beside the weights: what the model is, and how much noise was used."""
        return {"about": self.describe(), "seed": self.noise.seed, "stream": self.noise.stream}

    def set_extra_state(self, state):
        """Refuse the state of another model."""
        check_same(state["about"], self.describe())
        self.noise = NoiseSource(state["seed"], state["stream"])


def _layers(*widths):
    layers: list[nn.Module] = []
    for a, b in zip(widths[:-1], widths[1:]):
        layers += [nn.Linear(a, b), nn.SiLU()]
    return layers[:-1]


__all__ = ["DiffusionVAE"]
