"""Training runs of generative models from the command line: learn, resume bit by bit, sample, be scored."""

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fastdiff.cli import app
from fastdiff.nn import scores
from fastdiff.nn.runs import MODELS, Data, Run, Settings, load


@pytest.fixture
def data():
    """Bright squares at random places."""
    rng, x = np.random.default_rng(0), -np.ones((64, 1, 8, 8), np.float32)
    for k, (i, j) in enumerate(rng.integers(0, 5, (64, 2))):
        x[k, 0, i : i + 3, j : j + 3] = 1
    return Data(torch.from_numpy(x), torch.arange(64) % 2, np.zeros(1), np.ones(1))


def settings(**more):
    return Settings(**{"width": 8, "levels": 20, "batch": 32, **more})


@pytest.mark.parametrize("model", MODELS)
def test_a_run_resumes_bit_by_bit(model, data, tmp_path):
    whole = Run(tmp_path / "whole", settings(model=model), data)
    whole.train(3)
    half = Run(tmp_path / "half", settings(model=model), data)
    half.train(1)
    resumed = Run(tmp_path / "half", settings(model=model), data)
    assert resumed.epoch == 1
    resumed.train(3)
    assert resumed.losses == whole.losses
    for a, b in zip(whole.model.parameters(), resumed.model.parameters()):
        assert torch.equal(a, b)
    for a, b in zip(whole.ema.average, resumed.ema.average):
        assert torch.equal(a, b)
    assert torch.equal(whole.sample(4, seed=1)[0], resumed.sample(4, seed=1)[0])


def test_a_folder_of_another_run_is_refused(data, tmp_path):
    Run(tmp_path, settings(), data).train(1)
    with pytest.raises(ValueError, match="holds a run of other settings.*levels.*choose another folder"):
        Run(tmp_path, settings(levels=30), data)
    with pytest.raises(FileNotFoundError, match="holds no run"):
        Run(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="unknown model 'gan'; known: ddpm"):
        Settings(model="gan")
    with pytest.raises(FileNotFoundError, match="fastdiff generate"):
        load("nowhere.h5")


def test_digits_from_the_command_line(tmp_path):
    pytest.importorskip("sklearn")
    folder = tmp_path / "run"
    train = ["train", "ddpm", "--data", "digits", "--out", str(folder), "--width", "8", "--levels", "10", "--epochs"]
    first = CliRunner().invoke(app, [*train, "1"])
    assert first.exit_code == 0, first.output
    again = CliRunner().invoke(app, [*train, "2"])
    assert again.exit_code == 0 and "resumed" in again.output
    assert {f.name for f in folder.iterdir()} == {"checkpoint.pt", "losses.json", "loss.png", "samples.png"}
    drawn = CliRunner().invoke(app, ["sample", str(folder), "--count", "9", "--method", "ddim", "--steps", "5"])
    assert drawn.exit_code == 0, drawn.output
    x = np.load(folder / "samples.npy")
    assert x.shape == (9, 1, 8, 8) and -1 < x.min() and x.max() < 17  # in the data's own units, 0 to 16
    refused = CliRunner().invoke(app, ["train", "ddpm", "--out", str(folder), "--model", "vae"])
    assert refused.exit_code == 1


def test_fields_of_our_generator(tmp_path):
    import fastdiff as fd

    path = tmp_path / "heat.h5"
    fd.data.generate("heat", path, samples=8, shape=(16, 16), frames=3, seed=1)
    run = Run(tmp_path / "run", settings(data=str(path), frame=1, model="heat"))
    run.train(1)
    x, labels = run.sample(2)
    assert x.shape == (2, 1, 16, 16) and labels is None
    raw = fd.data.open(path)[0]["fields"][1].numpy()
    np.testing.assert_allclose(run.data.back(run.data.x[:1])[0], raw, atol=1e-5 * np.abs(raw).max())


# -- scores ----------------------------------------------------------------------------------------------------------


def test_frechet_distance_of_normal_numbers():
    g = np.random.default_rng(0)
    a, b = g.standard_normal((50000, 3)), 1 + 2 * g.standard_normal((50000, 3))
    assert abs(scores.frechet_distance(a, b) - (3 + 3 * (2 - 1) ** 2)) < 0.1
    assert scores.frechet_distance(a, a) < 1e-6


def test_power_spectrum():
    g = np.random.default_rng(0)
    np.testing.assert_allclose(scores.radial_power_spectrum(g.standard_normal((400, 32, 32))), 1, rtol=0.1)
    wave = np.cos(2 * np.pi * 5 * np.arange(32) / 32)[None, :] * np.ones((32, 1))
    assert np.argmax(scores.radial_power_spectrum(wave)) == 5
    assert scores.spectrum_distance(wave, wave) == 0


def test_classifier_learns(data):
    x = data.x * (1 - 2 * data.labels[:, None, None, None])  # one class inverted
    _, found = scores.train_classifier(x, data.labels, epochs=10)
    assert found > 0.9
