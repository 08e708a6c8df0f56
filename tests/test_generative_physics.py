"""The tables of physics inside sampling: the equation they learn, training in two goes, fields from their points."""

import numpy as np
import pytest
import torch

from fastdiff.bench import generative_physics as bench


def test_trajectories_solve_kuramoto_sivashinsky(monkeypatch):
    """At an order between three and four, as stiff steps have it; and the change in a short time is the equation.s."""
    fine = bench.kuramoto_sivashinsky(2, 4, 0, warm=10, parts=64)
    errors = [np.abs(bench.kuramoto_sivashinsky(2, 4, 0, warm=10, parts=n) - fine).max() for n in (8, 16)]
    assert errors[0] < 1e-3 and errors[0] > 9 * errors[1]
    monkeypatch.setattr(bench, "TIME", 0.01)
    a, b, c = bench.kuramoto_sivashinsky(2, 3, 0, warm=1000)
    k = 2j * np.pi / bench.LENGTH * np.arange(bench.POINTS // 2 + 1)
    slope, bend, bend4 = (np.fft.irfft(k**n * np.fft.rfft(b), bench.POINTS) for n in (1, 2, 4))
    np.testing.assert_allclose((c - a) / 0.02, -b * slope - bend - bend4, atol=0.02)


def test_trajectories_at_rest_are_no_test(rng):
    u = rng.standard_normal((30, 3, 64))
    u[20:, 1], u[:, 2] = 0, u[0, 2]
    assert bench._lively(u).tolist() == [True, False, False]


def cells(text):
    return [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")][1:]


def test_rollouts_learn_in_two_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "_trajectories", lambda folder: made)
    a = torch.from_numpy(bench.kuramoto_sivashinsky(6, 30, 0, warm=40).astype(np.float32))[:, :, None]
    made, told = {"train": a[:, :4], "test": a[:, 4:]}, []
    assert bench.rollout(tmp_path, 0.0, 4, told.append) is None
    table = bench.rollout(tmp_path, None, 4, told.append)
    assert table is not None and "(" in table
    predictor, refiner = cells(table)
    assert predictor[1] == "1" and refiner[1] == "4"
    assert all(0 < float(number) < 10 for line in (predictor, refiner) for number in line[2:4])
    again = bench.rollout(tmp_path / "whole", None, 4, told.append)
    assert again is not None and cells(again)[0] == predictor  # trained in one go: the same


def test_fields_from_their_points(tmp_path):
    from fastdiff.bench.generative_runs import data_of
    from fastdiff.nn.runs import Run, Settings

    pytest.importorskip("h5py")
    settings = Settings(data=data_of("fields", tmp_path), width=8, levels=10, batch=256)
    Run(tmp_path / "fields-ddpm", settings).train(1)
    lines = cells(bench.reconstruct(tmp_path, 3, 3, tmp_path / "fields.png"))
    error = {line[0].split(",")[0] if "DDPM" not in line[0] else line[0]: float(line[1].split()[0]) for line in lines}
    assert len(lines) == 7 and (tmp_path / "fields.png").exists()
    assert error["prior's covariance (kriging)"] < 0.5 < error["linear interpolation (griddata)"] < 1.2
    assert all(float(line[3]) < 0.2 for line in lines[:5])  # at the points themselves
