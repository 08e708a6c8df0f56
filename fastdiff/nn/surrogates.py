"""Convolutions and the networks made of them that stand in for a solver, or correct one."""

import math
from typing import Any, cast

import torch
from torch import nn

from fastdiff.kernels._conv import modes_of
from fastdiff.nn.functional.convolution import conv, conv_block


class _Conv(nn.Module):
    """A convolution with the boundary folded in; weights and their first values as in torch.nn.ConvNd."""

    ndim = 0

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int | tuple[int, ...] = 3, *,
                 boundary: str | tuple[str, ...] = "dirichlet", activation: str | None = None,
                 dilation: int | tuple[int, ...] = 1, groups: int = 1, bias: bool = True, device=None, dtype=None):
        super().__init__()
        size = (kernel_size,) * self.ndim if isinstance(kernel_size, int) else tuple(kernel_size)
        modes_of(boundary, self.ndim)
        if len(size) != self.ndim or any(k < 1 or k % 2 == 0 for k in size):
            raise ValueError(f"kernel_size must be odd, one number or {self.ndim}, got {kernel_size!r}")
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(f"{in_channels} and {out_channels} channels cannot be cut into {groups} groups")
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, size
        self.boundary, self.activation, self.dilation, self.groups = boundary, activation, dilation, groups
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *size, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self):
        """Draw new weights, in the same order and from the same distribution as torch."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(max(1, math.prod(self.weight.shape[1:])))
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, u):
        return conv(u, self.weight, self.bias, boundary=self.boundary, activation=self.activation,
                    dilation=self.dilation, groups=self.groups)

    def extra_repr(self):
        return (f"{self.in_channels}, {self.out_channels}, {self.kernel_size}, boundary={self.boundary!r}, "
                f"activation={self.activation!r}, dilation={self.dilation}, groups={self.groups}")


class Conv1d(_Conv):
    """Convolution on (B, C, n), boundary and activation in one pass: see `fd.nn.functional.conv`.

    boundary    "dirichlet" (zero, torch's default), "neumann" (edge cells go on), "periodic"; or one for each axis
    activation  None, "relu", "gelu", "silu", "tanh"

    The state dict is torch.nn.Conv1d's. Raises ValueError for even kernel sizes, unknown names and groups that do not
    fit.
    """

    ndim = 1


class Conv2d(_Conv):
    """Convolution on (B, C, n0, n1), boundary and activation in one pass: see `Conv1d`."""

    ndim = 2


class Conv3d(_Conv):
    """Convolution on (B, C, n0, n1, n2), boundary and activation in one pass: see `Conv1d`."""

    ndim = 3


CONVS = {1: Conv1d, 2: Conv2d, 3: Conv3d}


def conv_class(ndim: int) -> type[_Conv]:
    """The convolution on grids of so many axes."""
    if ndim not in CONVS:
        raise ValueError(f"ndim must be 1, 2 or 3, got {ndim!r}")
    return CONVS[ndim]


def _same_grid(network, u, channels, ndim):
    if u.ndim != ndim + 2 or u.shape[1] != channels:
        raise ValueError(f"{type(network).__name__} takes (batch, {channels}, *grid) on {ndim} axes, got a tensor of "
                         f"shape {tuple(u.shape)}")


class SurrogateCNN(nn.Module):
    """Two convolutions with an activation between them: the tutorial's 1 -> 16 -> 1 network is the default.

        y = conv2(activation(conv1(u)))          `residual`: u + that

    With one channel in and out it runs as one kernel, and the hidden layer is never in memory.
    Its state dict has conv1.weight, conv1.bias, conv2.weight, conv2.bias, as two torch.nn.ConvNd would have.
    """

    def __init__(self, in_channels: int = 1, out_channels: int = 1, hidden: int = 16, kernel_size=3, *, ndim: int = 1,
                 boundary="dirichlet", activation: str | None = "relu", residual: bool = False, device=None,
                 dtype=None):
        super().__init__()
        if residual and in_channels != out_channels:
            raise ValueError(f"residual needs as many channels out as in, got {in_channels} and {out_channels}")
        kind = conv_class(ndim)
        how: dict[str, Any] = dict(boundary=boundary, device=device, dtype=dtype)
        self.conv1 = kind(in_channels, hidden, kernel_size, activation=activation, **how)
        self.conv2 = kind(hidden, out_channels, kernel_size, **how)
        self.ndim, self.residual = ndim, residual

    def forward(self, u):
        first, second = self.conv1, self.conv2
        if first.in_channels == second.out_channels == 1:
            y = conv_block(u, first.weight, first.bias, second.weight, second.bias, boundary=first.boundary,
                           activation=first.activation)
        else:
            _same_grid(self, u, first.in_channels, self.ndim)
            y = second(first(u))
        return u + y if self.residual else y


class DilatedResNet(nn.Module):
    """Dilated residual network: blocks of seven convolutions whose dilations are 1, 2, 4, 8, 4, 2, 1.

    Each block is added to what went in. Stachenfeld et al., "Learned coarse models for efficient turbulence
    simulation", ICLR 2022 (arXiv:2112.15275), section 3; 48 channels and 4 blocks there. u (B, in_channels, *grid) ->
    (B, out_channels, *grid).
    """

    def __init__(self, in_channels: int = 1, out_channels: int = 1, width: int = 48, blocks: int = 4, kernel_size=3, *,
                 ndim: int = 2, boundary="periodic", activation: str = "relu", dilations=(1, 2, 4, 8, 4, 2, 1)):
        super().__init__()
        kind, self.ndim, self.in_channels = conv_class(ndim), ndim, in_channels
        self.lift = kind(in_channels, width, kernel_size, boundary=boundary)
        layer = lambda d: kind(width, width, kernel_size, boundary=boundary, activation=activation, dilation=d)
        self.blocks = nn.ModuleList(nn.Sequential(*(layer(d) for d in dilations)) for _ in range(blocks))
        self.project = kind(width, out_channels, kernel_size, boundary=boundary)

    def forward(self, u):
        _same_grid(self, u, self.in_channels, self.ndim)
        v = self.lift(u)
        for block in self.blocks:
            v = v + block(v)
        return self.project(v)


class SurrogateUNet(nn.Module):
    """U-Net whose convolutions know the boundary: halves the grid `levels` times and comes back, with skips.

    Two convolutions at each level, means over 2^ndim cells down, nearest cells up. Ronneberger, Fischer and Brox,
    "U-Net", MICCAI 2015; width 32, doubled at each level. u (B, in_channels, *grid) -> (B, out_channels, *grid).

    Raises ValueError unless each side of the grid is a multiple of 2^levels.
    """

    def __init__(self, in_channels: int = 1, out_channels: int = 1, width: int = 32, levels: int = 3, kernel_size=3, *,
                 ndim: int = 2, boundary="periodic", activation: str = "gelu"):
        super().__init__()
        kind, self.ndim, self.in_channels, self.levels = conv_class(ndim), ndim, in_channels, levels
        layer = lambda a, b: kind(a, b, kernel_size, boundary=boundary, activation=activation)
        pair = lambda a, b: nn.Sequential(layer(a, b), layer(b, b))
        widths = [width << level for level in range(levels + 1)]
        self.down = nn.ModuleList(pair(a, b) for a, b in zip([in_channels, *widths[:-1]], widths))
        self.up = nn.ModuleList(pair(b + a, a) for a, b in zip(reversed(widths[:-1]), reversed(widths[1:])))
        self.project = kind(width, out_channels, kernel_size, boundary=boundary)
        self.shrink = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[ndim - 1](2)

    def forward(self, u):
        _same_grid(self, u, self.in_channels, self.ndim)
        if any(n % (1 << self.levels) for n in u.shape[2:]):
            raise ValueError(f"SurrogateUNet halves the grid {self.levels} times: each side must be a multiple of "
                             f"{1 << self.levels}, got {tuple(u.shape[2:])}; take fewer levels or another grid")
        kept = []
        for level, layer in enumerate(self.down):
            u = layer(self.shrink(u) if level else u)
            kept.append(u)
        for layer, skip in zip(self.up, reversed(kept[:-1])):
            u = layer(torch.cat([nn.functional.interpolate(u, scale_factor=2), skip], 1))
        return self.project(u)


MODES = ("parallel", "sequential", "bypass")


class Hybrid(nn.Module):
    """A network that corrects a solver: any differentiable `step(u) -> u` of torch tensors, and a network.

        parallel     step(u) + network(u)
        sequential   network(step(u))
        bypass       v + network(v),  v = step(u)

    The gradient runs through the solver (solver in the loop: Um et al., NeurIPS 2020) unless `detach`, which treats its
    result as data (the modes of APEBench: Koehler et al., NeurIPS 2024, section 3). A step that is a module is trained
    with the rest. Raises ValueError for an unknown mode.
    """

    def __init__(self, step, network: nn.Module, mode: str = "bypass", detach: bool = False):
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"unknown mode {mode!r}; known: {', '.join(MODES)}")
        if not callable(step):
            raise TypeError(f"step must be a function u -> u of torch tensors, got {type(step).__name__}")
        self.step, self.network, self.mode, self.detach = step, network, mode, detach

    def forward(self, u):
        v: Any = self.step(u.detach() if self.detach else u)
        v = v.detach() if self.detach else v
        if not isinstance(v, torch.Tensor) or v.shape != u.shape:
            raise ValueError(f"the step must give a tensor of the shape of its argument, {tuple(u.shape)}, got "
                             f"{tuple(v.shape) if hasattr(v, 'shape') else type(v).__name__}")
        if self.mode == "parallel":
            return v + self.network(u)
        return self.network(v) if self.mode == "sequential" else v + self.network(v)


class LearnableStencil(nn.Module):
    """One time step by a learned stencil: u + a convolution of each component by itself, without bias.

    `conserve` takes the mean from the weights at each use, so that they sum to 0 and a field without gradients stays as
    it is, exactly as for every difference scheme of a derivative (zeroth moment condition: Long et al., PDE-Net, ICML
    2018, eq. 5). Starts from the Laplacian's stencil times `start`. u (B, components, *grid).

    Raises ValueError for an even kernel size.
    """

    def __init__(self, components: int = 1, kernel_size: int = 3, *, ndim: int = 2, boundary="periodic",
                 conserve: bool = True, start: float = 0.1, device=None, dtype=None):
        super().__init__()
        kind = conv_class(ndim)
        layer = kind(components, components, kernel_size, boundary=boundary, groups=components, bias=False,
                     device=device, dtype=dtype)
        self.weight, self.boundary, self.conserve, self.components = layer.weight, boundary, conserve, components
        self.ndim = ndim
        with torch.no_grad():
            self.weight.copy_(_laplacian(layer.kernel_size) * start)

    def stencil(self) -> torch.Tensor:
        """The weights in use, (components, 1, *kernel)."""
        if not self.conserve:
            return self.weight
        return self.weight - self.weight.mean(tuple(range(1, self.weight.ndim)), keepdim=True)

    def forward(self, u):
        _same_grid(self, u, self.components, self.ndim)
        return u + conv(u, self.stencil(), boundary=self.boundary, groups=self.components)


def _laplacian(size):
    stencil = torch.zeros(size)
    middle = tuple(k // 2 for k in size)
    for axis, k in enumerate(size):
        for side in (-1, 1) if k > 1 else ():
            stencil[(*middle[:axis], middle[axis] + side, *middle[axis + 1 :])] += 1
            stencil[middle] -= 1
    return stencil


class Bounded(nn.Module):
    """A learnable number, or array of them, that cannot leave (low, high): low + (high - low) sigmoid(raw).

    For diffusivities and other coefficients with a stable range: whatever the optimiser does, `bounded()` is inside,
    whereas a clamp would stop its gradient. Raises ValueError for a start that is not inside.
    """

    def __init__(self, start, low: float, high: float, *, dtype=None, device=None):
        super().__init__()
        value = torch.as_tensor(start, dtype=dtype, device=device)
        value = value if value.is_floating_point() else value.to(torch.get_default_dtype())
        if not (low < value).all() or not (value < high).all():
            raise ValueError(f"the start must be between {low} and {high}, got values from {float(value.min())} to "
                             f"{float(value.max())}")
        self.low, self.high = low, high
        self.raw = nn.Parameter(torch.logit((value - low) / (high - low)))

    def forward(self) -> torch.Tensor:
        return self.low + (self.high - self.low) * torch.sigmoid(self.raw)


def rollout(network, u, steps: int) -> torch.Tensor:
    """Apply a network (or any step) again and again: (B, steps, C, *grid), the start not included."""
    frames = []
    for _ in range(steps):
        u = network(u)
        frames.append(u)
    return torch.stack(cast(list, frames), 1)


__all__ = ["Bounded", "Conv1d", "Conv2d", "Conv3d", "DilatedResNet", "Hybrid", "LearnableStencil", "SurrogateCNN",
           "SurrogateUNet", "rollout"]
