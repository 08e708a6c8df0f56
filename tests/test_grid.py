"""Grids: spacing, coordinates and the errors of bad input."""

import numpy as np
import pytest

from fastdiff.grid import Grid


def test_nodes_reach_both_ends():
    grid = Grid((5, 3), extent=(2.0, (-1.0, 1.0)))
    x, y = grid.coordinates()
    assert grid.spacing == (0.5, 1.0) and grid.ndim == 2 and grid.size == 15
    assert x.shape == (5, 1) and y.shape == (1, 3)
    np.testing.assert_array_equal(x.ravel(), [0, 0.5, 1, 1.5, 2])
    np.testing.assert_array_equal(y.ravel(), [-1, 0, 1])


def test_cells_are_centred():
    grid = Grid(4, extent=2.0, centering="cells")
    np.testing.assert_array_equal(grid.points(0), [0.25, 0.75, 1.25, 1.75])
    assert grid.origin == (0.25,) and grid.low == (0.0,) and grid.high == (2.0,)


@pytest.mark.parametrize(("centering", "first"), [("nodes", 1.0), ("cells", 1.25)])
def test_periodic_axis_leaves_the_end_out(centering, first):
    grid = Grid(4, extent=[(1.0, 3.0)], periodic=True, centering=centering)
    np.testing.assert_allclose(grid.points(0), first + 0.5 * np.arange(4))


def test_periodic_per_axis():
    grid = Grid((4, 5), extent=2.0, periodic=(True, False))
    assert grid.spacing == (0.5, 0.5) and grid.periodic == (True, False)


@pytest.mark.parametrize("centering", ["nodes", "cells"])
def test_weights_integrate_a_plane(centering):
    grid = Grid((6, 7), extent=(2.0, (1.0, 2.0)), centering=centering)
    x, y = grid.coordinates()
    wx, wy = grid.weights()
    assert np.isclose(((x + 2 * y) * wx * wy).sum(), 2.0 + 2 * 2 * 1.5)


def test_frozen_hashable_and_equal():
    grid = Grid([8, 8], extent=[1, 1])
    assert grid == Grid((8, 8)) and hash(grid) == hash(Grid((8, 8))) and grid.spacing == grid.spacing
    with pytest.raises(AttributeError):
        grid.shape = (3,)  # type: ignore[misc]


@pytest.mark.parametrize(("make", "says"), [
    (lambda: Grid("8"), "whole numbers"),
    (lambda: Grid((8.0,)), "whole numbers"),
    (lambda: Grid(()), "one to three"),
    (lambda: Grid((2, 2, 2, 2)), "one to three"),
    (lambda: Grid((4, 0)), "at least one cell"),
    (lambda: Grid((4, 1)), 'axis y has one point.*centering="cells"'),
    (lambda: Grid(4, extent=-1.0), "run upwards"),
    (lambda: Grid(4, extent=float("nan")), "finite"),
    (lambda: Grid((4, 4), extent=(1.0,)), "2 lengths"),
    (lambda: Grid((4, 4), extent=("a", 1.0)), "2 lengths"),
    (lambda: Grid((4, 4), extent=(1.0, (0.0, 1.0, 2.0))), "2 lengths"),
    (lambda: Grid(4, periodic="x"), "True, False"),
    (lambda: Grid((4, 4), periodic=(True,)), "2 of them"),
    (lambda: Grid(4, centering="vertex"), "'nodes', 'cells'"),
])
def test_bad_input(make, says):
    with pytest.raises(ValueError, match=says) as error:
        make()
    assert "\n" not in str(error.value)
