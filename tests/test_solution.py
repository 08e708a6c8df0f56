"""Solutions: shapes, files, pictures."""

import os
import sys

import h5py
import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from fastdiff.equations import GrayScott, Heat
from fastdiff.grid import Grid
from fastdiff.solution import Solution

NAMES = {1: ("u",), 2: ("u", "v")}


def make(shape=(6, 5), batch=None, components=1, carried=False, times=4, equation=None):
    """A Solution with the axes that `solve` gives it."""
    rng = np.random.default_rng(3)
    axes = [*([batch] if batch else []), times, *([components] if components > 1 or carried else []), *shape]
    u = rng.random(axes).astype(np.float32)
    final = u[:, -1] if batch else u[-1]
    stats = {"method": "euler", "steps": np.int64(7), "seconds": 0.5, "error_estimate": None}
    return Solution(np.linspace(0, 1, times), u, final, stats, Grid(shape, extent=(2.0, 1.0, 1.5)[: len(shape)]),
                    equation or Heat(0.1), NAMES[components])


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.mark.parametrize("shape", [(6,), (6, 5), (6, 5, 4)])
@pytest.mark.parametrize(("batch", "components", "carried"), [(None, 1, False), (3, 1, False), (3, 1, True),
                                                              (None, 2, False), (3, 2, False)])
def test_frames_have_all_axes(shape, batch, components, carried):
    s = make(shape, batch, components, carried)
    assert s.frames().shape == (batch or 1, 4, components, *shape)
    np.testing.assert_array_equal(s.frames().ravel(), s.u.ravel())
    assert len(repr(s)) < 120


@pytest.mark.parametrize(("batch", "components"), [(None, 1), (3, 1), (None, 2), (3, 2)])
def test_saved_and_loaded(tmp_path, batch, components):
    equation = GrayScott(k=0.061) if components == 2 else Heat((0.1, 0.2))
    s = make(batch=batch, components=components, equation=equation)
    r = Solution.load(s.save(tmp_path / "rod.h5"))
    for name in ("t", "u", "final"):
        np.testing.assert_array_equal(getattr(r, name), getattr(s, name))
    assert r.u.dtype == np.float32 and r.grid == s.grid and r.equation == equation and r.names == s.names
    assert r.stats == {"method": "euler", "steps": 7, "seconds": 0.5, "error_estimate": None}
    assert os.listdir(tmp_path) == ["rod.h5"]


def test_an_equation_with_arrays_or_functions(tmp_path):
    s = make(batch=3, equation=Heat(np.array([0.1, 0.2, 0.3])))
    np.testing.assert_array_equal(Solution.load(s.save(tmp_path / "a.h5")).equation.diffusivity, [0.1, 0.2, 0.3])
    s.equation = "made by hand"
    assert Solution.load(s.save(tmp_path / "b.h5")).equation == "made by hand"


def test_nothing_is_overwritten_unasked(tmp_path):
    path = tmp_path / "rod.h5"
    make().save(path)
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        make(shape=(9,)).save(path)
    assert path.read_bytes() == before
    make(shape=(9,)).save(path, overwrite=True)
    assert Solution.load(path).grid == Grid(9, extent=2.0)


def test_bad_paths(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist: make it first"):
        make().save(tmp_path / "nowhere" / "rod.h5")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        make().save(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        Solution.load(tmp_path / "rod.h5")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_save_leaves_nothing(tmp_path, monkeypatch, error):
    path = tmp_path / "rod.h5"
    make().save(path)
    before = path.read_bytes()

    def fail(self, name, value):
        raise error

    monkeypatch.setattr(h5py.Group, "__setitem__", fail)
    with pytest.raises(type(error), match="left nothing behind" if isinstance(error, OSError) else None):
        make(shape=(9,)).save(path, overwrite=True)
    assert os.listdir(tmp_path) == ["rod.h5"] and path.read_bytes() == before


def test_damaged_files_are_refused(tmp_path):
    path = make().save(tmp_path / "rod.h5")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="is damaged or not a solution"):
        Solution.load(path)
    path.write_text("hello")
    with pytest.raises(ValueError, match="is damaged or not a solution"):
        Solution.load(path)
    with h5py.File(path, "w") as file:
        file["x"] = 1
    with pytest.raises(ValueError, match="not a solution that fastdiff saved"):
        Solution.load(path)


def labels(figure):
    return {text for a in figure.axes for text in (a.get_xlabel(), a.get_ylabel()) if text}


@pytest.mark.parametrize(("shape", "expected"), [((6,), {"x", "t", "u"}), ((6, 5), {"x", "y", "u"}),
                                                 ((6, 5, 4), {"x", "y", "z", "u"})])
@pytest.mark.parametrize("components", [1, 2])
@pytest.mark.parametrize("times", [1, 4])
def test_plot_labels_its_axes(tmp_path, shape, expected, components, times):
    figure = make(shape, components=components, times=times).plot(path=tmp_path / "u.png")
    wanted = expected | set(NAMES[components]) - ({"t"} if times == 1 else set())
    assert labels(figure) == wanted - ({"t"} if times == 1 else set())
    assert (tmp_path / "u.png").stat().st_size > 5000
    assert "Heat" in figure.get_suptitle()


def test_plot_shows_what_was_asked():
    s = make((7,), batch=3, components=2)
    line = s.plot(sample=2, component="v").axes[0].lines[-1]
    np.testing.assert_array_equal(line.get_ydata(), s.u[2, -1, 1])
    image = make((6, 5)).plot(times=2).axes[-2].images[0]
    np.testing.assert_array_equal(image.get_array(), make((6, 5)).u[-1].T)
    with pytest.raises(ValueError, match="no sample 3: the batch has 3"):
        s.plot(sample=3)
    with pytest.raises(ValueError, match="unknown component 'w'; known: u, v"):
        s.plot(component="w")
    with pytest.raises(FileNotFoundError, match="make it first"):
        s.plot(path="/no/such/folder/u.png")
    with pytest.raises(ValueError, match="no grid"):
        Solution(s.t, s.u, s.final).plot()


@pytest.mark.parametrize("field", [np.zeros(6), np.full(6, np.nan), np.array([-1.0, 1, 0, 0, 0, 0])])
def test_plot_of_flat_and_broken_fields(field):
    s = make((6,), times=2)
    s.u = np.stack([field, field])
    s.plot().canvas.draw()


@pytest.mark.parametrize("shape", [(6,), (6, 5), (6, 5, 4)])
def test_animation_has_a_frame_for_each_time(tmp_path, shape):
    from PIL import Image

    make(shape, components=2, times=3).animate(tmp_path / "u.gif")
    with Image.open(tmp_path / "u.gif") as picture:
        assert getattr(picture, "n_frames", 1) == 3
    with pytest.raises(ValueError, match="written as .gif"):
        make(shape).animate(tmp_path / "u.mp4")


def test_to_xarray():
    pytest.importorskip("xarray")
    s = make((6, 5), batch=3, components=2)
    d = s.to_xarray()
    assert d["v"].dims == ("sample", "time", "x", "y")
    np.testing.assert_array_equal(d["v"], s.u[:, :, 1])
    np.testing.assert_allclose(d["u"].sel(time=1.0, x=2.0), s.u[:, -1, 0, -1])
    assert make((6,)).to_xarray()["u"].dims == ("time", "x")


def test_to_xarray_without_xarray(monkeypatch):
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(ImportError, match="pip install"):
        make().to_xarray()


def test_torch_fields():
    torch = pytest.importorskip("torch")
    s = make((6,))
    s.u = torch.from_numpy(s.u)
    np.testing.assert_array_equal(s.frames()[0, :, 0], s.u.numpy())
