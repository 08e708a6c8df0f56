"""Data sets: the same numbers however they are made, never a readable wrong file, plain errors."""

import errno
import hashlib
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from typing import Any

import h5py
import numpy as np
import pytest

import fastdiff as fd
from fastdiff.data import campaign, files, initial, recipes, store
from fastdiff.data.job import Job
from fastdiff.data.layouts.own import Own

SMALL: dict[str, Any] = dict(samples=7, shape=(24, 20), frames=4, progress=False)
SHORT = {"gray-scott": replace(recipes.GRAY_SCOTT, t_end=60.0), "heat": replace(recipes.HEAT, t_end=0.05)}


def h5(path, mode="r") -> Any:
    return h5py.File(path, mode)


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Digest of each short recipe's data set, made in one go."""
    folder = tmp_path_factory.mktemp("whole")
    for name, recipe in SHORT.items():
        fd.data.generate(recipe, folder / f"{name}.h5", **SMALL)
    return {name: folder / f"{name}.h5" for name in SHORT}


def make(path, recipe="gray-scott", **changes):
    return fd.data.generate(SHORT[recipe], path, **{**SMALL, **changes})


# -- the same numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", SHORT)
@pytest.mark.parametrize("how", [dict(block=1), dict(block=2, threads=1), dict(block=5, threads=3), dict(block=7)],
                         ids=str)
def test_same_file_for_any_block_and_threads(whole, tmp_path, recipe, how):
    make(tmp_path / "a.h5", recipe, **how)
    assert digest(tmp_path / "a.h5") == digest(whole[recipe])


def test_same_file_for_worker_processes(whole, tmp_path):
    report = make(tmp_path / "a.h5", workers=2, block=2)
    assert digest(report.path) == digest(whole["gray-scott"])


def test_a_sample_does_not_depend_on_how_many_there_are(whole, tmp_path):
    make(tmp_path / "a.h5", samples=3)
    with h5(tmp_path / "a.h5") as few, h5(whole["gray-scott"]) as many:
        assert np.array_equal(few["fields"][:], many["fields"][:3])


def test_a_sample_is_what_solve_makes_of_its_seed(whole):
    recipe, grid = SHORT["heat"], SHORT["heat"].grid((24, 20))
    parameters, u0 = recipe.draw(grid, seed=0, index=4)
    times = np.linspace(0, recipe.t_end, 4)
    sol = fd.solve(fd.Heat(**parameters), u0, grid, boundary={"x": fd.Dirichlet(0.0), "y": fd.Dirichlet(0.0)},
                   save_at=times, method="euler", dt=recipe.time_step(grid))
    with h5(whole["heat"]) as file:
        assert np.array_equal(file["fields"][4], np.reshape(sol.u, (4, 1, 24, 20)))
        assert file["parameters/diffusivity"][4] == parameters["diffusivity"]


def test_seeds_differ(whole, tmp_path):
    make(tmp_path / "a.h5", seed=1)
    with h5(tmp_path / "a.h5") as a, h5(whole["gray-scott"]) as b:
        assert all((x != y).any() for x, y in zip(a["fields"][:, 0], b["fields"][:, 0]))


def test_time_step_is_stable_for_every_sample():
    recipe = replace(recipes.GRAY_SCOTT, dt=5.0)
    grid = recipe.grid()
    assert (recipe.time_step(grid) or 9) <= fd.GrayScott().stable_dt(grid)
    assert (recipes.HEAT.time_step(grid) or 9) <= fd.Heat(2e-2).stable_dt(grid)


# -- what is in the file -----------------------------------------------------------------------------------------------


def test_file_describes_itself(whole):
    with h5(whole["gray-scott"]) as file:
        assert file["fields"].shape == (7, 4, 2, 24, 20) and file["fields"].dtype == np.float32
        assert list(file["fields"].attrs["names"]) == ["u", "v"]
        assert np.array_equal(file["t"][:], np.linspace(0, 60, 4))
        assert file["x"].shape == (24,) and file["y"].shape == (20,)
        assert set(file["parameters"]) == {"pattern", "F", "k"}
        assert file.attrs["equation"] == "GrayScott" and file.attrs["seed"] == 0 and file.attrs["dt"] == 1.0
        assert file.attrs["version"] == fd.__version__
        manifest = json.loads(file["manifest"][()])
        assert manifest["recipe"]["initial"]["type"] == "Seeds"
        assert file["fields"].chunks is None  # any window of frames is one read


def test_patterns_form(tmp_path):
    report = fd.data.generate("gray-scott", tmp_path / "a.h5", samples=12, frames=3, progress=False)
    with h5(report.path) as file:
        v = file["fields"][:, -1, 1]
        assert v.shape == (12, 128, 128) and v.std(axis=(1, 2)).min() > 0.03


def test_heat_keeps_to_its_walls(whole, tmp_path):
    with h5(whole["heat"]) as file:
        u = file["fields"][:, :, 0]
        assert all((side == 0).all() for side in (u[:, :, 0], u[:, :, -1], u[..., 0], u[..., -1]))
        assert (np.abs(u[:, -1]).max(axis=(1, 2)) < np.abs(u[:, 0]).max(axis=(1, 2))).all()
    recipe = replace(recipes.HEAT_INSULATED, t_end=0.05)
    fd.data.generate(recipe, tmp_path / "a.h5", **SMALL)
    wx, wy = recipe.grid((24, 20)).weights()
    with h5(tmp_path / "a.h5") as file:
        heat = (file["fields"][:, :, 0].astype(float) * wx * wy).sum(axis=(2, 3))
    assert np.allclose(heat, heat[:, :1], atol=1e-6)


@pytest.mark.parametrize("shape", [(40,), (12, 9, 8)])
def test_one_and_three_axes(tmp_path, shape):
    report = fd.data.generate(SHORT["heat"], tmp_path / "a.h5", **{**SMALL, "shape": shape})
    assert fd.data.verify(report.path).ok
    assert fd.data.contact_sheet(report.path).exists()
    assert fd.data.open(report.path)[0]["fields"].shape == (4, 1, *shape)


@pytest.mark.parametrize("basis", ["sine", "cosine", "fourier"])
@pytest.mark.parametrize("kind", [initial.FourierSeries, initial.GaussianField])
def test_initial_fields_do_not_depend_on_resolution(kind, basis):
    condition, periodic = kind(modes=4, basis=basis), basis == "fourier"
    coarse, fine = (fd.Grid((n, n), periodic=periodic) for n in ((16, 32) if periodic else (17, 33)))
    a, b = (condition(np.random.default_rng(3), g) for g in (coarse, fine))
    scale = np.abs(b).max() / np.abs(b[:, ::2, ::2]).max()
    assert np.allclose(a, scale * b[:, ::2, ::2], atol=1e-12)


# -- interruptions -----------------------------------------------------------------------------------------------------


def interrupted_at(monkeypatch, block):
    """The keyboard interrupts the campaign while this block, counted from 0, is solved."""
    make, calls = Job.make, []

    def stop(self, *args):
        if len(calls) == block:
            raise KeyboardInterrupt
        calls.append(args)
        return make(self, *args)

    monkeypatch.setattr(Job, "make", stop)


def test_interrupted_and_resumed(whole, tmp_path, monkeypatch):
    path = tmp_path / "a.h5"
    with monkeypatch.context() as patch:
        interrupted_at(patch, 2)
        with pytest.raises(KeyboardInterrupt, match="4 of 7 samples are kept in .*a.h5.parts: run the same again"):
            make(path, block=2)
    assert not path.exists()
    report = make(path, block=5, threads=1)
    assert report.found == 4 and report.samples == 7
    assert digest(path) == digest(whole["gray-scott"]) and os.listdir(tmp_path) == ["a.h5"]


def test_interrupted_before_the_first_block_leaves_nothing(tmp_path, monkeypatch):
    interrupted_at(monkeypatch, 0)
    with pytest.raises(KeyboardInterrupt, match="no sample was done"):
        make(tmp_path / "a.h5", block=2)
    assert os.listdir(tmp_path) == []


KILLED = """
import sys, time
from dataclasses import replace
import fastdiff as fd
from fastdiff.data import files, recipes, store
from fastdiff.data.job import Job
slow, when = {slow}, {when}
def slowly(function):
    def call(*args):
        if len(args) > 1 and args[1] == when or when is None:
            print("now", flush=True)
            time.sleep(5)
        return function(*args)
    return call
setattr(slow[0], slow[1], slowly(getattr(*slow)))
fd.data.generate(replace(recipes.GRAY_SCOTT, t_end=60.0), sys.argv[1], samples=7, shape=(24, 20), frames=4,
                 progress=False, block=1)
"""


@pytest.mark.parametrize("slow, when, found", [
    ("(Job, 'make')", 2, (0, 1, 2)),
    ("(store.Target, 'write')", 2, (2,)),
    ("(store.Store, 'note')", 3, (3,)),
    ("(store.Store, 'finish')", None, (7,)),
    ("(store, 'combine')", None, (7,)),
], ids=["solving", "writing", "noting", "finishing", "filling in"])
def test_killed_and_resumed(whole, tmp_path, slow, when, found):
    """SIGKILL while solving, while writing a block, before it is noted, and at the end."""
    path = tmp_path / "a.h5"
    child = subprocess.Popen([sys.executable, "-c", KILLED.format(slow=slow, when=when), str(path)],
                             stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline() == b"now\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert not path.exists()
    report = make(path)
    assert digest(path) == digest(whole["gray-scott"]) and os.listdir(tmp_path) == ["a.h5"]
    assert report.found in found


@pytest.mark.parametrize("cut", [1, 30, 200])
def test_a_journal_cut_short_loses_the_last_entry_alone(whole, tmp_path, monkeypatch, cut):
    path = tmp_path / "a.h5"
    with monkeypatch.context() as patch:
        interrupted_at(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            make(path, block=2)
    journal = tmp_path / "a.h5.parts" / "journal"
    os.truncate(journal, journal.stat().st_size - cut)
    assert make(path).found == 4
    assert digest(path) == digest(whole["gray-scott"])


def test_damaged_samples_of_an_earlier_run_are_made_again(whole, tmp_path, monkeypatch):
    path = tmp_path / "a.h5"
    with monkeypatch.context() as patch:
        interrupted_at(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            make(path, block=2)
    data = tmp_path / "a.h5.parts" / "data.h5"
    with h5(data, "r+") as file:
        file["fields"][1, 2, 0, 5, 5] += 1
        file["fields"][4, 3] = 0
    report = make(path, block=2)
    assert report.redone == (1, 4) and report.found == 6
    assert digest(path) == digest(whole["gray-scott"])


@pytest.mark.parametrize("damage", [os.unlink, lambda p: os.truncate(p, 3000), lambda p: p.write_bytes(b"no")])
def test_a_file_damaged_beyond_use_is_begun_again(whole, tmp_path, monkeypatch, damage):
    path = tmp_path / "a.h5"
    with monkeypatch.context() as patch:
        interrupted_at(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            make(path, block=2)
    damage(tmp_path / "a.h5.parts" / "data.h5")
    assert make(path, block=2).found == 0
    assert digest(path) == digest(whole["gray-scott"])


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_existing_files_are_refused(whole, tmp_path):
    path = tmp_path / "a.h5"
    path.write_text("precious")
    with pytest.raises(FileExistsError, match="is no data set of fastdiff: give another name, or pass overwrite=True"):
        make(path)
    assert path.read_text() == "precious" and os.listdir(tmp_path) == ["a.h5"]
    make(path, overwrite=True)
    assert digest(path) == digest(whole["gray-scott"])
    with pytest.raises(FileExistsError, match="is already complete"):
        make(path)
    with pytest.raises(FileExistsError, match="is another data set .seed 0 there, 3 here"):
        make(path, seed=3)


def test_unfinished_run_of_something_else_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.h5"
    with monkeypatch.context() as patch:
        interrupted_at(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            make(path, block=2)
    with pytest.raises(FileExistsError, match=r"unfinished run of something else \(samples 7 there, 9 here\)"):
        make(path, samples=9)
    with pytest.raises(FileExistsError, match="recipe.t_end 60.0 there, 61.0 here"):
        fd.data.generate(replace(SHORT["gray-scott"], t_end=61.0), path, **SMALL)
    assert make(path, overwrite=True, seed=4).found == 0


def test_two_processes_at_once_are_refused(tmp_path):
    path = tmp_path / "a.h5"
    job = campaign._job(SHORT["gray-scott"], 7, (24, 20), 0, 4, "cpu")
    with store.Store(path, job, Own, False):
        with pytest.raises(FileExistsError, match="another process is generating"):
            make(path)
        assert list((tmp_path / "a.h5.parts").glob("manifest.json"))


@pytest.mark.parametrize("path, message", [
    ("missing/a.h5", "does not exist: make it first"),
    (".", "is a folder: give the name of a file"),
    ("/proc/a.h5", "cannot write in /proc .*: choose another folder"),
])
def test_paths_that_cannot_be_written(tmp_path, path, message):
    with pytest.raises(OSError, match=message):
        make(tmp_path / path)
    assert os.listdir(tmp_path) == []


def test_too_little_room_is_seen_first(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(store.shutil, "disk_usage", lambda path: usage(10**6, 10**6, 1000))
    with pytest.raises(OSError, match="needs 0.00 GB, but only 0.00 GB are free: make room"):
        make(tmp_path / "a.h5")
    assert os.listdir(tmp_path) == []


def test_too_little_room_is_seen_before_parameters_are_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(Job, "_parameters", lambda job: pytest.fail("it drew them"))
    with pytest.raises(OSError, match="are free: make room, or choose another disk"):
        make(tmp_path / "a.h5", samples=10**9)
    assert os.listdir(tmp_path) == []


@pytest.fixture
def small_files_only():
    """Writing beyond 30 kB fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_without_room_is_seen_before_anything_is_computed(tmp_path, small_files_only, monkeypatch):
    monkeypatch.setattr(Job, "make", None)
    with pytest.raises(OSError, match=r"could not write .*a.h5 \(File too large\); nothing is left behind"):
        make(tmp_path / "a.h5", block=2)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_says_so_and_the_run_goes_on_later(whole, tmp_path, monkeypatch):
    write, calls = files.write_at, []

    def full(*args):
        calls.append(args)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(*args)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_at", full)
        with pytest.raises(OSError, match="No space left on device.*2 of 7 samples are kept") as caught:
            make(tmp_path / "a.h5", block=1)
    assert caught.value.errno == errno.ENOSPC
    assert make(tmp_path / "a.h5").found == 2
    assert digest(tmp_path / "a.h5") == digest(whole["gray-scott"])


class Deadly(initial.Seeds):
    """Ends its worker process now and then, as the kernel does when memory is out; the first sample never does."""

    def __call__(self, rng, grid):
        drawn.append(1)
        if os.environ["DEADLY"] == "always" and multiprocessing.parent_process():
            os._exit(9)
        if os.path.exists(os.environ["DEADLY"]) and multiprocessing.parent_process() and len(drawn) > 1:
            os.unlink(os.environ["DEADLY"])
            os._exit(9)
        return super().__call__(rng, grid)


drawn = []


def test_a_worker_that_dies_has_its_block_redone(tmp_path, monkeypatch):
    monkeypatch.setenv("DEADLY", str(tmp_path / "once"))
    (tmp_path / "once").touch()
    recipe = replace(SHORT["gray-scott"], initial=Deadly())
    report = fd.data.generate(recipe, tmp_path / "a.h5", **SMALL, workers=2, block=1)
    assert report.deaths == 1 and fd.data.verify(tmp_path / "a.h5", recipe=recipe).ok
    other = fd.data.generate(recipe, tmp_path / "b.h5", **SMALL)
    assert other.deaths == 0 and digest(tmp_path / "a.h5") == digest(tmp_path / "b.h5")


def test_workers_that_die_again_and_again_are_told_and_the_blocks_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("DEADLY", "always")
    path, recipe = tmp_path / "a.h5", replace(SHORT["gray-scott"], initial=Deadly())
    with pytest.raises(RuntimeError, match="worker processes die again and again .* run the same again"):
        fd.data.generate(recipe, path, **SMALL, workers=2, block=1)
    assert not path.exists() and (tmp_path / "a.h5.parts").exists()


def test_what_is_not_ours_is_left_alone(whole, tmp_path):
    parts = tmp_path / "a.h5.parts"
    parts.mkdir()
    (parts / "notes.txt").write_text("mine")
    make(tmp_path / "a.h5")
    assert os.listdir(parts) == ["notes.txt"] and digest(tmp_path / "a.h5") == digest(whole["gray-scott"])


def test_killed_between_the_file_and_the_clean_up(whole, tmp_path, monkeypatch):
    path = tmp_path / "a.h5"
    with monkeypatch.context() as patch:
        interrupted_at(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            make(path, block=2)
    path.write_bytes(whole["gray-scott"].read_bytes())
    with pytest.raises(FileExistsError, match="is already complete"):
        make(path)
    assert os.listdir(tmp_path) == ["a.h5"]


def explosive(**parameters):
    return fd.GrayScott(**parameters)


def test_a_trajectory_that_is_not_finite_names_its_sample(tmp_path):
    table = recipes.Table(("F", "k"), ((0.03, 0.06),))
    bad = initial.Seeds(inside=(1e20, 1e20))
    recipe = replace(SHORT["gray-scott"], equation=explosive, parameters={"p": table}, labels=(),
                     initial=initial.OneOf((initial.Seeds(), bad)))
    with pytest.raises(fd.Diverged, match=r"sample [0-3] of recipe 'gray-scott' \(F = 0.03, k = 0.06\), seed 0: "):
        fd.data.generate(recipe, tmp_path / "a.h5", **SMALL, block=4)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("changes, message", [
    (dict(recipe="gray"), "unknown recipe 'gray'; known: "),
    (dict(samples=0), "samples must be at least 1, got 0"),
    (dict(samples=2.5), "samples must be a whole number, got 2.5"),
    (dict(frames=1), "frames must be at least 2"),
    (dict(seed=-1), "seed must not be negative"),
    (dict(shape=(0, 4)), "at least one cell"),
    (dict(workers=0), "workers must be at least 1"),
    (dict(layout="zip"), "unknown layout 'zip'; known: fastdiff, pdebench, "),
    (dict(diverged="maybe"), "unknown choice 'maybe' for diverged; known: refuse, redraw"),
    (dict(workers=2, cluster="tcp://a:1"), "give workers or a cluster, not both"),
    (dict(device="tpu"), "unknown device 'tpu'; known: cpu, cuda"),
    (dict(recipe=replace(recipes.HEAT, method="auto")), "a recipe names its method"),
    (dict(recipe=replace(recipes.HEAT, equation="Hat")), "unknown equation 'Hat' of recipe 'heat'; known: "),
])
def test_bad_arguments(tmp_path, changes, message):
    arguments = {"recipe": "heat", **SMALL, **changes}
    with pytest.raises(ValueError, match=message):
        fd.data.generate(path=tmp_path / "a.h5", **arguments)
    assert os.listdir(tmp_path) == []


def test_cuda_without_a_gpu_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(RuntimeError, match="torch finds no GPU"):
        make(tmp_path / "a.h5", device="cuda")
    assert os.listdir(tmp_path) == []


@pytest.mark.cuda
def test_cuda_agrees_with_the_cpu(whole, tmp_path):
    """To 1e-4 after 60 steps: the GPU rounds differently, and Gray–Scott lets differences grow."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    make(tmp_path / "a.h5", device="cuda", block=2)
    with h5(tmp_path / "a.h5") as a, h5(whole["gray-scott"]) as b:
        assert np.allclose(a["fields"][:], b["fields"][:], rtol=0, atol=1e-4)


# -- reading -----------------------------------------------------------------------------------------------------------


def test_trajectories_and_windows(whole):
    data = fd.data.open(whole["gray-scott"])
    with h5(whole["gray-scott"]) as file:
        fields, F = file["fields"][:], file["parameters/F"][:]
    assert len(data) == 7 and data.parameter_names == ("F", "k") and len(data.labels["pattern"]) == 7
    assert np.array_equal(data[6]["fields"], fields[6]) and data[6]["parameters"][0] == np.float32(F[6])
    windows = fd.data.open(whole["gray-scott"], inputs=1, outputs=1, stride=2)
    assert len(windows) == 7 * 2
    item = windows[2 * 3 + 1]
    assert (item["sample"], item["frame"]) == (3, 1)
    assert np.array_equal(item["inputs"], fields[3, 1:2]) and np.array_equal(item["outputs"], fields[3, 3:4])
    with pytest.raises(ValueError, match="spans 5 frames, but .* has 4"):
        fd.data.open(whole["gray-scott"], inputs=4)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_data_loader_workers(whole, context):
    from torch.utils.data import DataLoader

    data = fd.data.open(whole["gray-scott"], inputs=2)
    alone = [data[i] for i in range(len(data))]  # the file is open here when the workers start
    loader = DataLoader(data, batch_size=4, num_workers=2, multiprocessing_context=context)
    read = [x for batch in loader for x in batch["outputs"]]
    assert len(read) == 14 and all((a["outputs"] == b).all() for a, b in zip(alone, read))


def test_damaged_data_sets_are_refused(whole, tmp_path):
    path = tmp_path / "a.h5"
    content = whole["gray-scott"].read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(OSError, match="a.h5 is cut short: delete it and generate it again"):
        fd.data.open(path)
    path.write_bytes(b"no" + content)
    with pytest.raises(OSError, match="is no HDF5 file, or a damaged one"):
        fd.data.verify(path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        fd.data.open(tmp_path / "b.h5")
    with h5(tmp_path / "c.h5", "w") as file:
        file["u"] = np.zeros(3)
    with pytest.raises(ValueError, match="has the layout 'unknown'"):
        fd.data.open(tmp_path / "c.h5")


def test_verify(whole, tmp_path):
    found = fd.data.verify(whole["heat"])
    assert found.ok and found.samples == 7 and found.solved == 1
    path = tmp_path / "a.h5"
    path.write_bytes(whole["heat"].read_bytes())
    with h5(path, "r+") as file:
        file["fields"][2, 1, 0, 3, 3] = np.nan
    found = fd.data.verify(path)
    assert found.damaged == (2,) and found.problems == (
        "sample 2: checksum differs, its numbers were changed after writing", "sample 2: not finite at frame 1")
    assert fd.data.repair(path) == (2,) and fd.data.verify(path).ok and digest(path) == digest(whole["heat"])
    with h5(path, "r+") as file:
        del file["t"]
    assert fd.data.verify(path).problems == ("t missing",)


def test_generating_does_not_import_torch(tmp_path):
    code = ("import sys, fastdiff as fd; fd.data.generate('heat', sys.argv[1], samples=1, shape=(8, 8), frames=2, "
            "progress=False); assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules")
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.h5")], check=True)
