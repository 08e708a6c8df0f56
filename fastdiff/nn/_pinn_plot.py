"""The picture of a physics-informed network: solution, residual, loss."""

import numpy as np
import torch


def draw(pinn, path=None):
    """Solution and residual of the equation over space and time (other axes at their middle), and the loss."""
    import matplotlib.pyplot as plt

    t, x, u, r = _fields(pinn)
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    for cell, field, label, colours in ((axes[0], u, pinn.physics.names[0], "viridis"),
                                        (axes[1], np.log10(np.abs(r) + 1e-16), "log10 |residual|", "magma")):
        mesh = cell.pcolormesh(t, x, field.T, shading="nearest", cmap=colours, rasterized=True)
        figure.colorbar(mesh, ax=cell, label=label)
        cell.set(xlabel="t", ylabel="x")
    if pinn.history:
        seconds, losses = np.array(pinn.history).T
        axes[2].semilogy(seconds, losses)
    axes[2].set(xlabel="seconds of training", ylabel="loss")
    axes[2].grid(alpha=0.25)
    title = type(pinn.equation).__name__
    if pinn.report is not None:
        title += f": {pinn.report.error:.1e} from fd.solve (relative L2)"
    figure.suptitle(title)
    if path is not None:
        figure.savefig(path, dpi=150)
        plt.close(figure)
    return figure


def _fields(pinn):
    grid = pinn.grid
    t, x = np.linspace(0, pinn.t_end, 101), np.linspace(grid.low[0], grid.high[0], 161)
    T, X = np.meshgrid(t, x, indexing="ij")
    middle = [np.full(T.size, (low + high) / 2) for low, high in grid.extent[1:]]
    points = np.column_stack([T.ravel(), X.ravel(), *middle])
    term = pinn._term("picture", points, pinn.terms[0].channels, pinn.physics.residual)
    with torch.no_grad():
        jet = pinn._joined(term, pinn._raw(term))
        r = term.residual(jet, pinn._places(term), pinn._values())
    return t, x, jet.value[:, 0].double().numpy().reshape(T.shape), r.double().abs().sum(1).numpy().reshape(T.shape)


__all__ = ["draw"]
