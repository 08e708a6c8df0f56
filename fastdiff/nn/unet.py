"""U-Net for diffusion models in one, two or three dimensions, its normalisation fused with scale, shift and SiLU.

Blocks of Ho et al., NeurIPS 2020, appendix B, with the scale and shift of Dhariwal & Nichol, NeurIPS 2021, section 3;
after Ronneberger, Fischer & Brox, MICCAI 2015.
"""

from math import gcd

import torch
from torch import nn

from fastdiff.nn import functional as F

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class Norm(nn.Module):
    """Group normalisation with optional scale, shift and SiLU in one kernel."""

    def __init__(self, channels: int, groups: int = 8, silu: bool = True):
        super().__init__()
        self.groups, self.silu = gcd(channels, groups), silu
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x, scale=None, shift=None):
        """silu(norm(x) (1 + scale) + shift)."""
        return F.group_norm(x, self.groups, self.weight, self.bias, scale, shift, silu=self.silu)


class Block(nn.Module):
    """Residual block: norm, SiLU, convolution; norm with the time's scale and shift, SiLU, convolution."""

    def __init__(self, ndim, width, out, embedding, dropout=0.0, padding="zeros"):
        super().__init__()
        self.first, self.second = Norm(width), Norm(out)
        self.one, self.two = (CONV[ndim](n, out, 3, padding=1, padding_mode=padding) for n in (width, out))
        self.condition = nn.Linear(embedding, 2 * out)
        self.dropout = nn.Dropout(dropout)
        self.skip = nn.Identity() if width == out else CONV[ndim](width, out, 1)
        for part in (self.two, self.condition):
            nn.init.zeros_(part.bias)
        nn.init.zeros_(self.two.weight)

    def forward(self, x, embedding):
        """The block's result, like x with its own channels."""
        scale, shift = self.condition(embedding).chunk(2, 1)
        h = self.one(self.first(x))
        return self.skip(x) + self.two(self.dropout(self.second(h, scale, shift)))


class Attention(nn.Module):
    """Self-attention over all points (Vaswani et al., NeurIPS 2017), residual."""

    def __init__(self, channels, heads=4):
        super().__init__()
        self.heads = gcd(channels, heads)
        self.norm = Norm(channels, silu=False)
        self.inward, self.outward = nn.Conv1d(channels, 3 * channels, 1), nn.Conv1d(channels, channels, 1)
        for parameter in self.outward.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x):
        """x with what its points tell each other."""
        B, C = x.shape[:2]
        parts = self.inward(self.norm(x).flatten(2)).reshape(B, 3, self.heads, C // self.heads, -1)
        q, k, v = parts.transpose(3, 4).unbind(1)
        h = nn.functional.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(B, C, -1)
        return x + self.outward(h).reshape(x.shape)


class UNet(nn.Module):
    """U-Net (x, t[, condition]) -> like x, for any number of points along each axis.

    ndim         axes of space: 1, 2 or 3; x (batch, channels, *space)
    channels     of the data; out_channels: of the result, by default the same
    width        channels of the first level, times `multipliers` at each level, halved in size from one to the next
    blocks       residual blocks a level; attention: the levels with self-attention, such as (2,)
    classes      the condition is a class number (batch,); give one more than there are for "none"
    conditions   channels of a condition (batch, conditions, *space) that is laid beside x
    periodic     whether the fields are: convolutions reach around the domain; else they see zeros behind its walls
    """

    def __init__(self, ndim: int = 2, channels: int = 1, *, out_channels: int | None = None, width: int = 64,
                 multipliers=(1, 2, 4), blocks: int = 2, attention=(), classes: int | None = None, conditions: int = 0,
                 dropout: float = 0.0, periodic: bool = False):
        super().__init__()
        if ndim not in CONV:
            raise ValueError(f"a U-Net has 1, 2 or 3 axes of space, not {ndim}")
        if classes and conditions:
            raise ValueError("a condition is either a class or fields, not both")
        self.ndim, self.channels, self.conditions, conv = ndim, channels, conditions, CONV[ndim]
        padding = "circular" if periodic else "zeros"
        size = 4 * width
        self.width = width - width % 2
        self.embed = nn.Sequential(nn.Linear(self.width, size), nn.SiLU(), nn.Linear(size, size))
        self.classes = nn.Embedding(classes, size) if classes else None
        self.begin = conv(channels + conditions, width, 3, padding=1, padding_mode=padding)
        widths = [width * m for m in multipliers]
        self.down, self.shrink, kept, now = nn.ModuleList(), nn.ModuleList(), [width], width
        for level, w in enumerate(widths):
            for _ in range(blocks):
                self.down.append(_Stage(ndim, now, w, size, level in attention, dropout, padding))
                now = w
                kept.append(w)
            last = level == len(widths) - 1
            self.shrink.append(nn.Identity() if last else conv(w, w, 3, 2, 1, padding_mode=padding))
            kept += [] if last else [w]
        self.middle = _Stage(ndim, now, now, size, bool(attention), dropout, padding)
        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for level, w in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.up.append(_Stage(ndim, now + kept.pop(), w, size, level in attention, dropout, padding))
                now = w
            self.grow.append(nn.Identity() if level == 0 else conv(w, w, 3, padding=1, padding_mode=padding))
        self.levels, self.blocks = len(widths), blocks
        self.norm, self.end = Norm(now), conv(now, out_channels or channels, 3, padding=1, padding_mode=padding)
        nn.init.zeros_(self.end.weight)
        nn.init.zeros_(self.end.bias)

    def forward(self, x, t, condition=None):
        """What the network says of x (batch, channels, *space) at times t (batch,)."""
        self._check(x)
        e = self.embed(F.time_embedding(t.to(x.dtype), self.width))
        if self.classes is not None and condition is not None:
            e = e + self.classes(condition.long())
        e = nn.functional.silu(e)
        if self.conditions:
            if condition is None:
                raise ValueError(f"this U-Net needs a condition (batch, {self.conditions}, *space)")
            x = torch.cat([x, condition.to(x.dtype)], 1)
        return self.end(self.norm(self._levels(self.begin(x), e)))

    def _levels(self, h, e):
        kept, stages = [h], iter(self.down)
        for level in range(self.levels):
            for _ in range(self.blocks):
                kept.append(h := next(stages)(h, e))
            if level < self.levels - 1:
                kept.append(h := self.shrink[level](h))
        h, stages = self.middle(h, e), iter(self.up)
        for level in range(self.levels):
            for _ in range(self.blocks + 1):
                h = next(stages)(torch.cat([h, kept.pop()], 1), e)
            if kept:
                h = self.grow[level](nn.functional.interpolate(h, size=kept[-1].shape[2:]))
        return h

    def _check(self, x):
        if x.ndim != self.ndim + 2 or x.shape[1] != self.channels:
            axes = ", ".join("xyz"[: self.ndim])
            raise ValueError(f"x has shape {tuple(x.shape)}; this U-Net takes (batch, {self.channels}, {axes})")


class _Stage(nn.Module):
    """A block, and attention after it where asked."""

    def __init__(self, ndim, width, out, embedding, attention, dropout, padding):
        super().__init__()
        self.block = Block(ndim, width, out, embedding, dropout, padding)
        self.attention = Attention(out) if attention else nn.Identity()

    def forward(self, x, e):
        """Both."""
        return self.attention(self.block(x, e))


__all__ = ["Attention", "Block", "Norm", "UNet"]
