"""Layouts: the loaders of PDEBench and The Well open what we write, and everything reads back the same."""

import json
from dataclasses import replace
from typing import Any

import h5py
import numpy as np
import pytest

import fastdiff as fd
from fastdiff.data import initial, recipes, store
from fastdiff.data.layouts import source
from fastdiff.data.summary import STATISTICS, combine, moments

RECIPES = {"gray-scott": replace(recipes.GRAY_SCOTT, t_end=60.0), "heat": replace(recipes.HEAT, t_end=0.05)}
SHAPES = {"gray-scott": (24, 20), "heat": (33,)}
KINDS = [("gray-scott", "fastdiff"), ("gray-scott", "pdebench"), ("gray-scott", "the_well"), ("heat", "fastdiff"),
         ("heat", "pdebench"), ("heat", "the_well"), ("heat", "pdebench-seeds")]


def h5(path, mode="r") -> Any:
    return h5py.File(path, mode)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Each short recipe in each layout, 25 samples."""
    folder, paths = tmp_path_factory.mktemp("made"), {}
    for recipe, layout in KINDS:
        paths[recipe, layout] = folder / f"{recipe}.{layout}"
        fd.data.generate(RECIPES[recipe], paths[recipe, layout], samples=25, shape=SHAPES[recipe], frames=6,
                         layout=layout, progress=False)
    return paths


def fields(path):
    with source(path) as there:
        return np.stack([there.read(i) for i in range(there.shape[0])])


# -- every layout ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe, layout", KINDS)
def test_every_layout_holds_the_same(made, recipe, layout):
    assert np.array_equal(fields(made[recipe, layout]), fields(made[recipe, "fastdiff"]))
    with source(made[recipe, layout]) as there, source(made[recipe, "fastdiff"]) as own:
        assert there.names == own.names and there.labels == own.labels and there.periodic == own.periodic
        assert np.array_equal(there.checksums, own.checksums) and np.array_equal(there.split, own.split)
        for name, values in own.parameters.items():
            assert np.array_equal(there.parameters[name], values)
        for name in STATISTICS:
            assert np.array_equal(there.statistics[name], own.statistics[name])
        for name, values in own.axes.items():
            assert np.allclose(there.axes[name], values, rtol=1e-6)
        assert there.manifest == own.manifest
    found = fd.data.verify(made[recipe, layout], solve=2)
    assert found.ok and found.solved == 2


@pytest.mark.parametrize("recipe, layout", KINDS)
def test_windows_of_every_layout(made, recipe, layout):
    data, whole = fd.data.open(made[recipe, layout], inputs=2, outputs=1, stride=2), fields(made[recipe, "fastdiff"])
    item = data[len(data) - 1]
    assert len(data) == 25 * 2 and item["sample"] == 24 and item["frame"] == 1
    assert np.array_equal(item["inputs"], whole[24, 1:4:2]) and np.array_equal(item["outputs"], whole[24, 5:6])


@pytest.mark.parametrize("recipe, layout", KINDS)
@pytest.mark.parametrize("to", ["fastdiff", "pdebench", "the_well"])
def test_convert(made, tmp_path, recipe, layout, to):
    path = fd.data.convert(made[recipe, layout], tmp_path / "out", to)
    assert np.array_equal(fields(path), fields(made[recipe, layout]))
    with source(path) as there, source(made[recipe, layout]) as original:
        assert there.manifest == original.manifest and np.array_equal(there.split, original.split)
        for name in STATISTICS:
            assert np.allclose(there.statistics[name], original.statistics[name], rtol=1e-12)
    assert fd.data.verify(path).ok and [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("layout", ["pdebench", "the_well"])
def test_interruption_and_workers_in_every_layout(made, tmp_path, monkeypatch, layout):
    path, note, calls = tmp_path / "out", store.Store.note, []
    arguments: dict[str, Any] = dict(samples=25, shape=(24, 20), frames=6, layout=layout, block=4, progress=False)

    def stop(self, *args):
        note(self, *args)
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store.Store, "note", stop)
        with pytest.raises(KeyboardInterrupt, match="12 of 25 samples are kept"):
            fd.data.generate(RECIPES["gray-scott"], path, **arguments)
    report = fd.data.generate(RECIPES["gray-scott"], path, **arguments, workers=2)
    assert report.found == 12
    names = sorted(p.relative_to(path) for p in path.rglob("*")) if path.is_dir() else []
    others = made["gray-scott", layout]
    assert names == (sorted(p.relative_to(others) for p in others.rglob("*")) if names else [])
    for name in [n for n in names if (path / n).is_file()]:
        assert (path / name).read_bytes() == (others / name).read_bytes()
    if not names:
        assert path.read_bytes() == others.read_bytes()


def test_layouts_refuse_what_they_cannot_hold(tmp_path):
    with pytest.raises(ValueError, match='"pdebench-tensor" holds one component, not u, v: use "pdebench-seeds"'):
        fd.data.generate("gray-scott", tmp_path / "a.h5", samples=2, shape=(8, 8), layout="pdebench-tensor")
    with pytest.raises(ValueError, match="hold float32, but the recipe makes float64"):
        fd.data.generate(replace(recipes.HEAT, dtype="float64"), tmp_path / "a.h5", samples=2, shape=(8,),
                         layout="pdebench")
    assert list(tmp_path.iterdir()) == []


def test_convert_refuses(made, tmp_path):
    own = made["heat", "fastdiff"]
    with pytest.raises(ValueError, match="unknown layout 'zip'; known: fastdiff, pdebench, "):
        fd.data.convert(own, tmp_path / "out", "zip")
    (tmp_path / "there").write_text("precious")
    with pytest.raises(FileExistsError, match="there exists: give another name, or pass overwrite=True"):
        fd.data.convert(own, tmp_path / "there")
    assert (tmp_path / "there").read_text() == "precious"
    damaged = tmp_path / "damaged.h5"
    damaged.write_bytes(own.read_bytes())
    with h5(damaged, "r+") as file:
        file["fields"][3, 0] += 1
    with pytest.raises(ValueError, match="sample 3 of .* is damaged: its checksum differs"):
        fd.data.convert(damaged, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["damaged.h5", "there"]


def test_an_existing_folder_is_refused_and_overwritten_only_if_it_is_ours(made, tmp_path):
    path = tmp_path / "well"
    arguments: dict[str, Any] = dict(samples=6, shape=(24, 20), frames=3, layout="the_well", progress=False)
    path.mkdir()
    (path / "precious").touch()
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="exists and is no data set of fastdiff: give another name"):
            fd.data.generate(RECIPES["gray-scott"], path, **arguments, overwrite=overwrite)
    (path / "precious").unlink()
    path.rmdir()
    fd.data.generate(RECIPES["gray-scott"], path, **arguments)
    with pytest.raises(FileExistsError, match="is another data set .seed 0 there, 4 here"):
        fd.data.generate(RECIPES["gray-scott"], path, **arguments, seed=4)
    fd.data.generate(RECIPES["gray-scott"], path, **arguments, seed=4, overwrite=True)
    with source(path) as there:
        assert there.manifest is not None and there.manifest["seed"] == 4
    assert [p.name for p in tmp_path.iterdir()] == ["well"]


# -- The Well ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def well():
    return pytest.importorskip("the_well.data")


@pytest.mark.parametrize("recipe", ["gray-scott", "heat"])
def test_the_well_opens_it(made, well, recipe):
    path, whole = made[recipe, "the_well"], fields(made[recipe, "fastdiff"])
    with source(path) as there:
        rows, seen = there.rows, 0
        for split in ("train", "valid", "test"):
            data = well.WellDataset(path=str(path), well_split_name=split, n_steps_input=2, n_steps_output=1,
                                    use_normalization=False)
            chosen = [i for i, (file, _) in enumerate(rows) if f"/{split}/" in file]
            assert len(data) == 4 * len(chosen)
            order = sorted(chosen, key=lambda i: rows[i])
            for k in (0, len(data) - 1):
                item, i = data[k], order[k // 4]
                frame = k % 4
                got = np.concatenate([item["input_fields"], item["output_fields"]])
                assert np.array_equal(got, np.moveaxis(whole[i, frame : frame + 3], 1, -1))
                assert np.allclose(item["constant_scalars"], [there.parameters[n][i] for n in there.numbers()])
            seen += len(chosen)
        assert seen == 25
    data = well.WellDataset(path=str(path), well_split_name="train")
    boundary = data[0]["boundary_conditions"]
    assert (boundary == (2 if recipe == "gray-scott" else 0)).all()
    assert data.metadata.n_spatial_dims == len(SHAPES[recipe]) and data.metadata.spatial_resolution == SHAPES[recipe]
    assert "time" in data.to_xarray("numpy").coords


@pytest.mark.parametrize("kind", ["ZScoreNormalization", "RMSNormalization"])
def test_the_well_normalises_by_our_statistics(made, well, kind):
    from the_well.data import normalization

    path = made["gray-scott", "the_well"]
    load = lambda **how: well.WellDataset(path=str(path), well_split_name="valid", n_steps_input=3, **how)
    plain, scaled = load(), load(use_normalization=True, normalization_type=getattr(normalization, kind))
    ours = fd.data.open(path, inputs=3, split="valid", normalize="zscore" if "Z" in kind else "rms")
    assert len(ours) == len(plain)
    assert not np.allclose(plain[1]["input_fields"], scaled[1]["input_fields"])
    assert np.allclose(ours.denormalize(ours[1]["inputs"]), fd.data.open(path, inputs=3, split="valid")[1]["inputs"],
                       atol=1e-6)
    first = {(i["sample"], i["frame"]): i for i in (ours[k] for k in range(len(ours)))}
    with source(path) as there:
        for k in range(0, len(scaled), 3):
            file, row = sorted(there.rows[i] for i in ours.samples)[k // 3]
            item = first[there.rows.index((file, row)), k % 3]
            assert np.allclose(np.moveaxis(item["inputs"].numpy(), 1, -1), scaled[k]["input_fields"], atol=1e-5)


@pytest.mark.parametrize("recipe", ["gray-scott", "heat"])
def test_the_well_s_format(made, recipe):
    """What its documentation, its example and its format checker ask for: the union."""
    path, booleans = made[recipe, "the_well"], (bool, np.bool_)
    found = sorted(path.glob("data/*/*.hdf5"))
    assert found and (path / "stats.yaml").exists() and (path / f"{recipe.replace('-', '_')}.yaml").exists()
    for name in found:
        with h5(name) as file:
            for key in ("dataset_name", "grid_type", "n_spatial_dims", "n_trajectories", "simulation_parameters"):
                assert key in file.attrs
            assert all(p in file.attrs for p in file.attrs["simulation_parameters"])
            spatial = list(file["dimensions"].attrs["spatial_dims"])
            for axis in ["time", *spatial]:
                assert isinstance(file[f"dimensions/{axis}"].attrs["sample_varying"], booleans)
                assert file[f"dimensions/{axis}"].attrs["time_varying"] == (axis == "time")
            for order in range(3):
                group = file[f"t{order}_fields"]
                assert sorted(group.attrs["field_names"]) == sorted(group)
                for data in group.values():
                    assert data.attrs["sample_varying"] and data.attrs["time_varying"]
                    assert list(data.attrs["dim_varying"]) == [True] * len(spatial) and data.dtype == np.float32
                    assert data.shape == (file.attrs["n_trajectories"], 6, *SHAPES[recipe])
            for name_ in file["scalars"].attrs["field_names"]:
                data = file["scalars"][name_]
                assert data.ndim == int(data.attrs["sample_varying"]) + int(data.attrs["time_varying"])
            for wall in file["boundary_conditions"].values():
                assert wall.attrs["bc_type"] in ("PERIODIC", "WALL", "OPEN")
                assert isinstance(wall.attrs["associated_dims"], np.ndarray)
                assert wall["mask"].dtype == bool and wall["values"].shape == (int(wall["mask"][:].sum()),)
                assert wall["mask"].shape == (file[f"dimensions/{wall.attrs['associated_dims'][0]}"].shape[0],)


def test_one_file_for_each_pattern_and_split(made):
    path = made["gray-scott", "the_well"]
    names = {p.name for p in (path / "data" / "train").iterdir()}
    with source(path) as there:
        patterns = set(there.parameters["pattern"])
    assert {n.split("gray_scott_")[1].split("_F_")[0] for n in names} == patterns
    with h5(next((path / "data" / "train").glob("*_F_*"))) as file:
        assert float(file.attrs["F"]) == pytest.approx(float(file["scalars/F"][()]))
        assert f"_F_{file.attrs['F']:g}_k_{file.attrs['k']:g}" in file.filename


# -- PDEBench --------------------------------------------------------------------------------------------------------


def fno_dataset_single(path, if_test, test_ratio=0.1, initial_step=3):
    """What PDEBench's FNODatasetSingle makes of a file with a tensor: whole, (N, x, t, channel), the first tenth to
    test with, the steps to begin with, and the grid."""
    with h5(path) as file:
        assert "tensor" in sorted(file)
        data = np.transpose(np.array(file["tensor"], np.float32), (0, 2, 1))[..., None]
        grid = np.array(file["x-coordinate"], np.float32)[:, None]
    first = int(data.shape[0] * test_ratio)
    data = data[:first] if if_test else data[first:]
    return [(item[..., :initial_step, :], item, grid) for item in data]


def fno_dataset_mult(path, if_test, test_ratio=0.1, initial_step=3):
    """What PDEBench's FNODatasetMult makes of a file of seeds: all keys of the root are seeds, the last tenth to test
    with, (x, y, t, channel)."""
    with h5(path) as file:
        seeds, items = np.array(sorted(file.keys())), []
        first = int(len(seeds) * (1 - test_ratio))
        for seed in seeds[first:] if if_test else seeds[:first]:
            group = file[seed]
            data = np.array(group["data"], dtype="f")
            data = np.transpose(data, (*range(1, data.ndim - 1), 0, data.ndim - 1))
            axes = [np.array(group["grid"][n], dtype="f") for n in ("x", "y")[: data.ndim - 2]]
            items.append((data[..., :initial_step, :], data, np.stack(np.meshgrid(*axes, indexing="ij"), -1)))
    return items


def test_pdebench_s_loader_of_tensors(made):
    path, whole = made["heat", "pdebench"], fields(made["heat", "fastdiff"])
    test, train = fno_dataset_single(path, True), fno_dataset_single(path, False)
    assert len(test) == 2 and len(train) == 23
    for k, (start, data, grid) in enumerate(test + train):
        assert data.shape == (33, 6, 1) and start.shape == (33, 3, 1) and grid.shape == (33, 1)
        assert np.array_equal(data[..., 0].T, whole[k, :, 0])
    with h5(path) as file:  # what Data_Merge.py writes beside
        assert file["t-coordinate"].shape == (7,) and file["tensor"].dtype == np.float32


@pytest.mark.parametrize("recipe", ["gray-scott", "heat"])
def test_pdebench_s_loader_of_seeds(made, recipe):
    import yaml

    path, whole = made[recipe, "pdebench" if recipe == "gray-scott" else "pdebench-seeds"], fields(
        made[recipe, "fastdiff"])
    train, test = fno_dataset_mult(path, False), fno_dataset_mult(path, True)
    assert len(train) == 22 and len(test) == 3
    for k, (start, data, grid) in enumerate(train + test):
        assert np.array_equal(np.moveaxis(data, -2, 0), np.moveaxis(whole[k], 1, -1)) and start.shape[-2] == 3
        assert grid.shape == (*SHAPES[recipe], len(SHAPES[recipe]))
    with h5(path) as file:
        config = yaml.safe_load(file["0003"].attrs["config"])
        assert config["sim"]["seed"] == 3 and config["sim"]["xdim"] == SHAPES[recipe][0] and "x_left" in config["sim"]
        assert file["0003/grid/t"].shape == (6,) and file["0003/grid/x"].dtype == np.float32


def test_pdebench_s_own_files_are_read(tmp_path, rng):
    """Files as PDEBench writes them: no tables of ours, compressed, t one longer."""
    data = rng.random((5, 4, 16), np.float32)
    with h5(tmp_path / "tensor.hdf5", "w") as file:
        file["tensor"], file["x-coordinate"], file["t-coordinate"] = data, np.arange(16.0), np.arange(5.0)
        file.attrs["beta"] = 0.4
    seeds = rng.random((3, 4, 8, 6, 2), np.float32)
    with h5(tmp_path / "seeds.h5", "w") as file:
        for i, values in enumerate(seeds):
            group = file.create_group(f"{i:04d}")
            group.create_dataset("data", data=values, compression="lzf")
            for name, n in (("x", 8), ("y", 6), ("t", 4)):
                group[f"grid/{name}"] = np.arange(n, dtype="f4")
    one, two = fd.data.open(tmp_path / "tensor.hdf5", inputs=1), fd.data.open(tmp_path / "seeds.h5", inputs=2)
    assert one.parameter_names == ("beta",) and np.array_equal(one[4]["outputs"], data[1, 2:3, None])
    assert np.array_equal(two[5]["inputs"], np.moveaxis(seeds[2, 1:3], -1, 1)) and len(two) == 6
    with pytest.raises(ValueError, match="stores no statistics"):
        fd.data.open(tmp_path / "seeds.h5", normalize="zscore")
    with pytest.raises(ValueError, match="keeps no split"):
        fd.data.open(tmp_path / "seeds.h5", split="train")
    found = fd.data.verify(tmp_path / "seeds.h5")
    assert found.ok and any("not ours" in note for note in found.notes)
    well = fd.data.convert(tmp_path / "seeds.h5", tmp_path / "well", "the_well")
    assert np.array_equal(fields(well), np.moveaxis(seeds, -1, 2))


# -- statistics and splits --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_statistics_in_one_pass(rng, offset):
    data = (rng.standard_normal((6, 7, 2, 40, 30)) * np.array([1.0, 3.0]).reshape(2, 1, 1) + offset).astype("f4")
    found, exact = combine(np.stack([moments(u) for u in data])), data.astype(np.float64)
    over, delta = (0, 1, 3, 4), np.diff(exact, axis=1)
    expected = {"mean": exact.mean(over), "std": exact.std(over), "rms": np.sqrt((exact**2).mean(over)),
                "mean_delta": delta.mean(over), "std_delta": delta.std(over),
                "rms_delta": np.sqrt((delta**2).mean(over))}
    assert set(found) == set(STATISTICS)
    for name in STATISTICS:
        assert np.allclose(found[name], expected[name], rtol=2e-6, atol=1e-7 * max(offset, 1)), name


def test_statistics_are_those_of_the_training_split(made):
    with source(made["gray-scott", "fastdiff"]) as there:
        train = np.stack([there.read(int(i)) for i in np.flatnonzero(there.split == 0)]).astype(np.float64)
        assert there.statistics is not None
        assert np.allclose(there.statistics["mean"], train.mean((0, 1, 3, 4)), rtol=1e-6)
        assert np.allclose(there.statistics["std_delta"], np.diff(train, axis=1).std((0, 1, 3, 4)), rtol=1e-5)


def test_splits_are_whole_trajectories_of_each_parameter_set(made):
    with source(made["heat", "fastdiff"]) as there:
        assert there.split is not None and np.bincount(there.split).tolist() == [21, 2, 2]
    parts = [fd.data.open(made["gray-scott", "fastdiff"], split=s) for s in ("train", "valid", "test")]
    assert sorted(i for p in parts for i in p.samples) == list(range(25))
    assert {item["sample"] for item in (parts[1][k] for k in range(len(parts[1])))} == set(parts[1].samples.tolist())
    with pytest.raises(ValueError, match="unknown split 'val'; known: train, valid, test"):
        fd.data.open(made["heat", "fastdiff"], split="val")


def test_a_manifest_is_enough_to_make_it_again(made, tmp_path):
    with source(made["gray-scott", "the_well"]) as there:
        manifest = json.loads(json.dumps(there.manifest))
    recipe = recipes.from_description(manifest["recipe"])
    assert recipe == replace(RECIPES["gray-scott"], frames=6)
    fd.data.generate(recipe, tmp_path / "a.h5", samples=25, shape=(24, 20), progress=False)
    assert (tmp_path / "a.h5").read_bytes() == made["gray-scott", "fastdiff"].read_bytes()


# -- exports ----------------------------------------------------------------------------------------------------------


def test_xarray(made):
    pytest.importorskip("xarray")
    data = fd.data.to_xarray(made["gray-scott", "the_well"], samples=[3, 5])
    whole = fields(made["gray-scott", "fastdiff"])
    assert np.array_equal(data["v"].sel(sample=5), whole[5, :, 1]) and data["u"].dims == ("sample", "time", "x", "y")
    assert "F" in data.coords and data.coords["time"].size == 6


def test_zarr(made, tmp_path):
    zarr = pytest.importorskip("zarr")
    path = fd.data.to_zarr(made["gray-scott", "fastdiff"], tmp_path / "a.zarr")
    group: Any = zarr.open_group(str(path), mode="r")
    assert np.array_equal(group["fields"][:], fields(made["gray-scott", "fastdiff"]))
    assert group.attrs["names"] == ["u", "v"] and group["parameters/F"].shape == (25,)
    with pytest.raises(FileExistsError, match="give another name"):
        fd.data.to_zarr(made["gray-scott", "fastdiff"], path)


def test_unknown_files_are_refused(tmp_path):
    with h5(tmp_path / "a.h5", "w") as file:
        file["u"] = np.zeros(3)
    with pytest.raises(ValueError, match="has the layout 'unknown'; this reads fastdiff, pdebench"):
        source(tmp_path / "a.h5")
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileNotFoundError, match="it is no data set of The Well"):
        source(tmp_path / "folder")


def test_initial_conditions_are_part_of_descriptions():
    names = [n for n in initial.__all__ if n[0].isupper()]
    assert set(names) <= set(recipes._types())
