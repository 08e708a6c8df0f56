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


def test_an_interrupted_run_goes_on(data, tmp_path):
    """Ctrl-C in the middle of an epoch: what was saved is gone on with, as if nothing had been."""
    run, steps = Run(tmp_path / "cut", settings(), data), []

    def stop(part, step=run._step):
        steps.append(1)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return step(part)

    run._step = stop  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(KeyboardInterrupt, match="1 epochs are kept, the same command goes on"):
        run.train(2, seconds=0.0)
    again, whole = Run(tmp_path / "cut", settings(), data), Run(tmp_path / "whole", settings(), data)
    assert again.epoch == 1
    again.train(2)
    whole.train(2)
    assert again.losses == whole.losses
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), whole.model.parameters()))


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


class Planted:
    """Runs when it is unpickled, as code in a checkpoint of somebody else would."""

    def __reduce__(self):
        return print, ("it ran",)


def test_a_checkpoint_that_is_none_is_refused(data, tmp_path, capsys):
    run = Run(tmp_path, settings(), data)
    run.train(1)
    whole = run.file.read_bytes()
    for spoil in (lambda: run.file.write_bytes(whole[:1000]), lambda: run.file.write_bytes(b"not a checkpoint"),
                  lambda: torch.save({"settings": Planted()}, run.file), lambda: torch.save({"a": 1}, run.file)):
        spoil()
        with pytest.raises(ValueError, match="checkpoint.pt is no checkpoint of fastdiff train ddpm, or a damaged one"):
            Run(tmp_path)
    assert "it ran" not in capsys.readouterr().out
    run.file.write_bytes(whole)
    shape, labels = (Data(torch.zeros(4, n, 8, 8), torch.arange(4) % k, np.zeros(n), np.ones(n))
                     for n, k in ((2, 2), (1, 4)))
    for other, words in ((shape, "is of another model"), (labels, "was trained on data of another shape")):
        with pytest.raises(ValueError, match=words) as refused:
            Run(tmp_path, settings(), other)
        assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match="batch must be at least 1, not 0"):
        settings(batch=0)


def test_bad_requests_for_samples_are_refused_before_any_is_drawn(data, tmp_path, monkeypatch):
    Run(tmp_path, settings(), data).train(1)
    Run(tmp_path / "vae", settings(model="vae"), data).train(1)
    monkeypatch.setattr("fastdiff.nn.runs.load", lambda *a: data)
    monkeypatch.setattr(torch.nn.Module, "__call__", lambda *a: pytest.fail("it was drawn"))
    for folder, given, words in (
            (tmp_path, ["--steps", "0"], "a sampler takes between 1 and 20 steps, got 0"),
            (tmp_path, ["--out", str(tmp_path / "a.txt")], "samples are written as .npy"),
            (tmp_path, ["--out", str(tmp_path / "no" / "a.npy")], "does not exist: make it first"),
            (tmp_path / "vae", ["--method", "ddim"], "which has one way to draw samples: leave out --method"),
            (tmp_path / "none", [], "does not exist: train a run with fastdiff train ddpm --out")):
        said = CliRunner().invoke(app, ["sample", str(folder), *given])
        assert said.exit_code == 1 and words in " ".join(said.output.split()), said.output
    said = CliRunner().invoke(app, ["train", "ddpm", "--epochs", "0", "--out", str(tmp_path / "new")])
    assert said.exit_code == 1 and "epochs must be at least 1, not 0" in said.output
    assert not (tmp_path / "new").exists()


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
    assert run.model.network.begin.padding_mode == "zeros" and not any(run.model.blur.grid.periodic)  # it has walls
    raw = fd.data.open(path)[0]["fields"][1].numpy()
    np.testing.assert_allclose(run.data.back(run.data.x[:1])[0], raw, atol=1e-5 * np.abs(raw).max())
    with pytest.raises(ValueError, match="has 3 frames, 0 to 2, not a frame 3"):
        load(str(path), 3)


def test_texts_of_a_data_set_are_its_labels(tmp_path):
    from dataclasses import replace

    import fastdiff as fd
    from fastdiff.bench.generative_runs import FIELD_RECIPE

    path = tmp_path / "fields.h5"
    fd.data.generate(replace(FIELD_RECIPE, t_end=40.0), path, samples=8, shape=(16, 16), frames=2, seed=1)
    data, texts = load(str(path)), fd.data.open(path).labels["pattern"]
    assert data.labels is not None and [data.names[k] for k in data.labels] == texts
    assert data.periodic
    run = Run(tmp_path / "run", settings(data=str(path)), data)
    run.train(1)
    x = torch.randn(2, 2, 16, 16)
    there, here = (run.model.network(a, torch.zeros(2)) for a in (x.roll((4, -8), (2, 3)), x))
    torch.testing.assert_close(there, here.roll((4, -8), (2, 3)), rtol=1e-4, atol=1e-5)  # no walls anywhere
    heat = Run(tmp_path / "heat", settings(data=str(path), model="heat"), data).model
    torch.testing.assert_close(heat.at(x.roll(3, 2), 9), heat.at(x, 9).roll(3, 2), rtol=1e-4, atol=1e-5)
    labels = run.sample(5, method="ddim", steps=2)[1]
    assert labels is not None and labels.tolist() == [k % len(data.names) for k in range(5)]


def test_the_table_of_runs(tmp_path):
    """Trained in two goes, scored, drawn."""
    pytest.importorskip("sklearn")
    from fastdiff.bench.generative_runs import Trained, score, train

    small = {"width": 8, "levels": 20}
    runs = [Trained(f"digits-{m}", {"model": m, **small}, 1) for m in ("ddpm", "heat", "vae")]
    told = []
    assert not train(tmp_path, 0.0, runs, told.append) and "same command" in told[-1]
    assert train(tmp_path, None, runs, told.append)
    lines = score(tmp_path, tmp_path / "pictures", 40, runs).splitlines()
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines if line.startswith("| digits")]
    assert [c[1].split(",")[0] for c in cells] == ["real data", "DDPM", "DDIM", "heat dissipation", "VAE"]
    assert float(cells[0][4].split("%")[0]) > 90  # the classifier knows the real digits
    assert all(float(c[5]) > float(cells[0][5]) for c in cells[1:])  # nothing is learnt in one epoch
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 5


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
    noisy = wave + 1e-3 * g.standard_normal(wave.shape)  # weak shells, all wrong, and hardly any power
    assert scores.spectrum_distance(noisy, wave) > 3
    assert scores.spectrum_distance(noisy, wave, 0.999) < 1e-3
    assert scores.power_difference(noisy, wave) < 1e-4
    np.testing.assert_allclose(scores.power_difference(2 * wave, wave), 3)


def test_classifier_learns(data):
    x = data.x * (1 - 2 * data.labels[:, None, None, None])  # one class inverted
    _, found = scores.train_classifier(x, data.labels, epochs=10)
    assert found > 0.9
