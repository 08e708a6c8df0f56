"""Finite elements as a witness: linear elements of scikit-fem, exact in time, beside our finite differences."""

import numpy as np
import pytest
from scipy import sparse
from scipy.linalg import eigh

import fastdiff as fd

skfem = pytest.importorskip("skfem")


def element_heat(K, M, load, u0, keep, t):
    """M u' = load - K u on the nodes `keep`, the others at 0, by the eigenvectors of (K, M)."""
    rates, modes = eigh(K.toarray()[np.ix_(keep, keep)], M.toarray()[np.ix_(keep, keep)])
    start, source = modes.T @ (M.toarray()[np.ix_(keep, keep)] @ u0[keep]), modes.T @ load[keep]
    decay = np.exp(-rates * t)
    found = np.zeros(len(u0))
    found[keep] = modes @ (decay * start + (1 - decay) / rates * source)
    return found


def interval(n, t=0.3, D=0.3, robin=(2.0, 0.5, 1.0)):
    """A rod with a Robin end and an end held at 0: elements, and differences."""
    from skfem.models.poisson import laplace, mass

    x = np.linspace(0, 1, n)
    basis = skfem.Basis(skfem.MeshLine(x), skfem.ElementLineP1())
    assert (basis.doflocs[0] == x).all()
    a, b, g = robin
    at_wall = sparse.csr_array(([D * a / b], ([0], [0])), shape=(n, n))
    K, M = D * laplace.assemble(basis).tocsr() + at_wall, mass.assemble(basis).tocsr()
    load = np.zeros(n)
    load[0] = D * g / b
    u0 = np.cos(np.pi * x / 2) * (1 + 2 * x)  # meets the Robin condition
    u0[-1] = 0
    elements = element_heat(K, M, load, u0, np.arange(n - 1), t)
    differences = fd.solve(fd.Heat(D), u0, fd.Grid(n), t_end=t, method="euler", dt=0.05 / (n - 1) ** 2,
                           boundary={"x": (fd.Robin(a, b, g), fd.Dirichlet(0.0))}).final
    return elements, differences


def square(n, t=0.1, D=0.5, slope=0.7):
    """A square held at 0 on the left, with a slope on the right, no flux above and below, in triangles."""
    from skfem.models.poisson import laplace, mass, unit_load

    x = np.linspace(0, 1, n)
    mesh = skfem.MeshTri.init_tensor(x, x)
    element = skfem.ElementTriP1()
    basis = skfem.Basis(mesh, element)
    right = skfem.FacetBasis(mesh, element, facets=mesh.facets_satisfying(lambda p: p[0] == 1.0))
    K, M = (D * laplace.assemble(basis)).tocsr(), mass.assemble(basis).tocsr()
    load = D * slope * unit_load.assemble(right)
    i, j = (np.rint(basis.doflocs[k] * (n - 1)).astype(int) for k in range(2))
    field = np.sin(np.pi * x[:, None] / 2) * (1 + 0.5 * np.cos(np.pi * x[None])) + slope * x[:, None]
    elements = np.zeros((n, n))
    elements[i, j] = element_heat(K, M, load, field[i, j], np.flatnonzero(i > 0), t)
    differences = fd.solve(fd.Heat(D), field, fd.Grid((n, n)), t_end=t, method="euler", dt=0.02 / (n - 1) ** 2 / D,
                           boundary={"x": (fd.Dirichlet(0.0), fd.Neumann(slope))}).final
    return elements, differences


@pytest.mark.parametrize("problem", [interval, square])
def test_elements_and_differences_agree_to_second_order(problem):
    """Two discretisations that share nothing but the equation: their difference falls by four at each halving of dx.

    In the mean square: at single points linear elements in two dimensions are of order h² |log h|.
    """
    sizes = (9, 17, 33) if problem is square else (17, 33, 65)
    pairs = [problem(n) for n in sizes]
    apart = [np.sqrt(np.mean((a - b) ** 2)) for a, b in pairs]
    assert apart[-1] < 1e-3 * np.abs(pairs[-1][0]).max()
    assert all(3.6 < coarse / fine < 4.4 for coarse, fine in zip(apart, apart[1:])), apart
