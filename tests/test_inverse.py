"""Inverse problems through fd.nn.Solver and a torch optimiser."""

from fastdiff.bench.inverse import recover_diffusivity, recover_gray_scott


def test_diffusivity_from_noisy_snapshots():
    """D(x) of contrast 3 on 64 x 64 cells, ten snapshots with 1 % noise, three random start modes: 5 %."""
    error, gradients, _ = recover_diffusivity()
    assert error < 0.05
    assert gradients < 80


def test_gray_scott_from_two_frames():
    """Feed and kill rate to 1 %."""
    by_F, by_k, _, _ = recover_gray_scott()
    assert by_F < 0.01 and by_k < 0.01
