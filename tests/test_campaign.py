"""Campaigns beyond one process: clusters, samples that diverge, plans, memory, streams, recipes from files, reports."""

import os
import subprocess
import sys
import threading
from dataclasses import replace
from typing import Any

import h5py
import numpy as np
import pytest

import fastdiff as fd
from fastdiff.data import initial, recipes
from fastdiff.data.layouts import source

SHORT = replace(recipes.GRAY_SCOTT, t_end=60.0)
SMALL: dict[str, Any] = dict(samples=7, shape=(24, 20), frames=4, progress=False)


def h5(path, mode="r") -> Any:
    return h5py.File(path, mode)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The short recipe's data set, made in one go."""
    path = tmp_path_factory.mktemp("whole") / "a.h5"
    fd.data.generate(SHORT, path, **SMALL)
    return path


# -- a cluster --------------------------------------------------------------------------------------------------------


class Slow(initial.Seeds):
    """Drawn slowly, so that a worker can be killed meanwhile; says which process drew."""

    def __call__(self, rng, grid):
        import time

        with open(os.environ["FASTDIFF_TEST_LOG"], "a") as log:
            log.write(f"{os.getpid()}\n")
        time.sleep(0.1)
        return super().__call__(rng, grid)


def test_a_cluster_whose_worker_is_killed_makes_the_same_file(tmp_path, monkeypatch):
    """A real LocalCluster of two processes; SIGKILL for one of them while it works."""
    distributed = pytest.importorskip("distributed")
    monkeypatch.setenv("FASTDIFF_TEST_LOG", str(tmp_path / "log"))
    recipe, arguments = replace(SHORT, initial=Slow()), {**SMALL, "samples": 24, "block": 2}
    fd.data.generate(recipe, tmp_path / "local.h5", **arguments)
    ours = (tmp_path / "log").read_text()
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None,
                                  host="127.0.0.1") as cluster, distributed.Client(cluster) as client:
        pids, killed = list(client.run(os.getpid).values()), []
        from fastdiff.data import store

        note = store.Store.note

        def kill(self, first, records):
            note(self, first, records)
            if not killed:
                killed.append(pids[0])
                os.kill(pids[0], 9)

        with monkeypatch.context() as patch:
            patch.setattr(store.Store, "note", kill)
            report = fd.data.generate(recipe, tmp_path / "far.h5", **arguments, cluster=cluster.scheduler_address)
        assert killed and report.found == 0
    drew = (tmp_path / "log").read_text().removeprefix(ours).split()
    assert set(map(str, pids)) <= set(drew) and str(os.getpid()) not in drew
    assert (tmp_path / "far.h5").read_bytes() == (tmp_path / "local.h5").read_bytes()


@pytest.mark.parametrize("address", ["nonsense", "tcp://127.0.0.1:1", "what://127.0.0.1:1"])
def test_a_cluster_that_is_not_there_is_told(tmp_path, address):
    pytest.importorskip("distributed")
    before = threading.active_count()
    with pytest.raises(OSError, match=f"there is no Dask scheduler at '{address}'"):
        fd.data.generate(SHORT, tmp_path / "a.h5", **SMALL, cluster=address)
    assert os.listdir(tmp_path) == []
    # a Client whose start failed leaves a thread, and its collection waits 40 s for it
    assert threading.active_count() == before


def test_a_cluster_with_another_fastdiff_is_refused(monkeypatch):
    from fastdiff.data import making

    class Client:
        def wait_for_workers(self, *args, **how):
            pass

        def run(self, function):
            return {"tcp://far:1": ("0.0.1", "abc")}

    with pytest.raises(RuntimeError, match="the worker tcp://far:1 has .*0.0.1.*install the same fastdiff there"):
        making._check_cluster(Client())


# -- samples that diverge ---------------------------------------------------------------------------------------------


BAD = initial.Seeds(inside=(1e20, 1e20))
TABLE = recipes.Table(("pattern", "F", "k"), (("a", 0.03, 0.06), ("b", 0.04, 0.06)))
SOMETIMES = replace(SHORT, parameters={"pattern": TABLE}, initial=initial.OneOf((initial.Seeds(), BAD)))


@pytest.mark.parametrize("how", [dict(block=1), dict(block=3), dict(workers=2, block=2)], ids=str)
def test_samples_that_diverge_are_drawn_again_and_listed(tmp_path, how):
    report = fd.data.generate(SOMETIMES, tmp_path / "a.h5", **SMALL, diverged="redraw", **how)
    assert len(report.redrawn) > 1 and all(n >= 1 for _, n in report.redrawn)
    with source(tmp_path / "a.h5") as there:
        u = np.stack([there.read(i) for i in range(7)])
        assert np.isfinite(u).all() and there.attempts is not None
        assert [(i, n) for i, n in enumerate(there.attempts) if n] == list(report.redrawn)
        for i in range(7):
            parameters, u0 = SOMETIMES.draw(fd.Grid((24, 20), 1.25, True), 0, i, int(there.attempts[i]))
            assert np.array_equal(u[i, 0], u0) and there.parameters["F"][i] == parameters["F"]
            assert there.parameters["pattern"][i] == SOMETIMES.parameters_of(0, i)["pattern"]
    found = fd.data.verify(tmp_path / "a.h5", solve=7)
    assert found.ok and len([n for n in found.notes if "was drawn again" in n]) == len(report.redrawn)
    one = tmp_path / "b.h5"
    fd.data.generate(SOMETIMES, one, **SMALL, diverged="redraw")
    assert one.read_bytes() == (tmp_path / "a.h5").read_bytes()


def test_a_sample_that_always_diverges_stops_the_run(tmp_path):
    recipe = replace(SHORT, initial=BAD)
    with pytest.raises(fd.Diverged, match="sample 0 of recipe 'gray-scott' .* 21 times$"):
        fd.data.generate(recipe, tmp_path / "a.h5", **SMALL, diverged="redraw")
    with pytest.raises(fd.Diverged, match='diverged="redraw" draws such samples again'):
        fd.data.generate(recipe, tmp_path / "a.h5", **SMALL)
    assert os.listdir(tmp_path) == []


# -- plans and memory -------------------------------------------------------------------------------------------------


def test_a_plan_tells_size_memory_and_time(tmp_path, whole):
    plan = fd.data.plan(SHORT, tmp_path / "a.h5", **{k: v for k, v in SMALL.items() if k != "progress"})
    assert plan.samples == 7 and 0 <= plan.bytes - 7 * 4 * 2 * 24 * 20 * 4 <= 1 << 16
    assert plan.bytes == pytest.approx(whole.stat().st_size, abs=1 << 16) and plan.free > plan.bytes
    assert 0 < plan.seconds < 60 and plan.blocks * plan.block >= 7 and os.listdir(tmp_path) == []
    assert "7 samples" in str(plan) and "minutes" in str(plan) and "memory" in str(plan)
    large = fd.data.plan(SHORT, tmp_path / "a.h5", samples=10**6, threads=2)
    assert large.memory < 1.5e9 and large.bytes > large.free / 1e3
    with pytest.raises(ValueError, match="samples must be at least 1"):
        fd.data.plan(SHORT, samples=0)


MEMORY = """
import sys
import fastdiff as fd
report = fd.data.generate("heat", sys.argv[1], samples=400, frames=21, seed=3, progress=False)
plan = fd.data.plan("heat", sys.argv[1], samples=400, frames=21, seed=3)
used = int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024
assert report.bytes > 5e8 and used < plan.memory < 1.5e9, (report.bytes, used, plan.memory)
print(used)
"""


def test_memory_stays_below_what_the_plan_says(tmp_path):
    """550 MB of data; the largest memory that a process had is measured by the system (Linux)."""
    if not os.path.exists("/proc/self/status"):
        pytest.skip("needs /proc")
    subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path / "a.h5")], check=True)


# -- streams ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def loader():
    return pytest.importorskip("torch.utils.data").DataLoader


def test_a_stream_gives_what_a_campaign_stores(whole):
    pytest.importorskip("torch")
    stream = fd.data.Stream(SHORT, shape=(24, 20), frames=4, samples=7, block=3)
    items = {item["sample"]: item for item in stream}
    stored = fd.data.open(whole)
    assert len(stream) == 7 and sorted(items) == list(range(7)) and stream.parameter_names == stored.parameter_names
    for i in range(7):
        assert np.array_equal(items[i]["fields"], stored[i]["fields"])
        assert np.array_equal(items[i]["parameters"], stored[i]["parameters"])


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_a_stream_over_data_loader_workers(whole, loader, context):
    stream = fd.data.Stream(SHORT, 1, 1, 2, shape=(24, 20), frames=4, samples=7, block=2)
    read = lambda: [(int(s), int(f), o) for batch in loader(stream, batch_size=2, num_workers=2,
                                                            multiprocessing_context=context)
                    for s, f, o in zip(batch["sample"], batch["frame"], batch["outputs"])]
    first, again = read(), read()
    assert sorted((s, f) for s, f, _ in first) == [(s, f) for s in range(7) for f in range(2)]
    assert [(s, f) for s, f, _ in first] == [(s, f) for s, f, _ in again]  # the order, too
    stored = fd.data.open(whole)
    assert all(np.array_equal(o, stored[s]["fields"][f + 2 : f + 3]) for s, f, o in first)


def test_streams_of_several_processes_and_epochs(loader):
    streams = [fd.data.Stream(SHORT, shape=(8, 8), frames=2, samples=10, block=2, rank=r, world=3) for r in range(3)]
    parts = [[item["sample"] for item in s] for s in streams]
    assert sorted(sum(parts, [])) == list(range(10)) and [len(s) for s in streams] == [len(p) for p in parts]
    streams[0].set_epoch(2)
    assert sorted(item["sample"] for item in streams[0]) == sorted(i + 20 for i in parts[0])
    endless = iter(fd.data.Stream(SHORT, 1, shape=(8, 8), frames=2, block=2))
    assert [next(endless)["sample"] // 2 for _ in range(6)] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("arguments, message", [
    (dict(inputs=3, outputs=2, frames=4), "spans 5 frames, but a trajectory has 4: give frames=5 or more"),
    (dict(inputs=0), "are at least 1"), (dict(rank=2, world=2), "rank is one of 0 to world - 1"),
    (dict(block=0), "block must be at least 1"), (dict(recipe="gray"), "unknown recipe 'gray'"),
    (dict(samples=0), "samples must be at least 1"),
])
def test_streams_that_make_no_sense(arguments, message):
    pytest.importorskip("torch")
    with pytest.raises(ValueError, match=message):
        fd.data.Stream(**{"recipe": "heat", "shape": (8, 8), **arguments})
    with pytest.raises(ValueError, match="without an end has no epochs"):
        fd.data.Stream("heat", shape=(8, 8)).set_epoch(1)


# -- reading ----------------------------------------------------------------------------------------------------------


def test_normalised_windows(whole):
    pytest.importorskip("torch")
    data, plain = (fd.data.open(whole, 1, normalize=kind, split="train") for kind in ("zscore", None))
    scaled = fd.data.open(whole, normalize="zscore", split="train")
    u = np.concatenate([scaled[i]["fields"] for i in range(len(scaled))])
    assert np.allclose(u.mean((0, 2, 3)), 0, atol=1e-4) and np.allclose(u.std((0, 2, 3)), 1, atol=1e-4)
    assert np.allclose(data.denormalize(data[3]["outputs"]), plain[3]["outputs"], atol=1e-6)
    assert fd.data.open(whole, samples=[2, 4])[1]["sample"] == 4
    for how, message in [(dict(normalize="max"), "unknown normalisation 'max'; known: zscore, rms"),
                         (dict(samples=[9]), "samples go from 0 to 6 here, got 9")]:
        with pytest.raises(ValueError, match=message):
            fd.data.open(whole, **how)


# -- initial conditions and recipes -----------------------------------------------------------------------------------


CONDITIONS = [
    initial.Seeds(), initial.FourierSeries(), initial.GaussianField(), initial.WhiteNoise(components=2),
    initial.DiffusedNoise(), initial.Blobs(), initial.Discontinuities(), initial.Constant(),
    initial.Clamped(initial.DiffusedNoise(), -1.0, 2.0), initial.GrayScottBlobs(), initial.GrayScottFourier(),
    initial.Components((initial.Blobs(), initial.Constant())), initial.OneOf((initial.Blobs(), initial.WhiteNoise())),
]


@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda c: type(c).__name__)
@pytest.mark.parametrize("periodic", [True, False])
def test_initial_conditions_are_drawn_from_their_seed_alone(condition, periodic):
    grid, parameters = fd.Grid((18, 14), periodic=periodic), {"F": 0.098, "k": 0.057}
    many = initial.batch(condition, grid, 5, range(4), parameters)
    assert np.isfinite(many).all() and many.shape[0] == 4 and many.shape[2:] == (18, 14)
    assert np.array_equal(many[2:3], initial.batch(condition, grid, 5, [2], parameters))
    assert all((many[i] != many[j]).any() for i in range(4) for j in range(i))
    rng = np.random.default_rng(np.random.SeedSequence(5, spawn_key=(3,)))
    assert np.array_equal(many[3], initial.start(condition, rng, grid, parameters))


def test_what_initial_conditions_promise(rng):
    square = fd.Grid((64, 64), periodic=True)
    clamped = initial.start(initial.Clamped(initial.GaussianField(), -1.0, 2.0), rng, square, {})
    assert clamped.min() == -1 and clamped.max() == 2
    noise = initial.DiffusedNoise(length=0.05)(rng, square)
    assert abs(noise.mean()) < 1e-12 and np.abs(noise).max() == 1
    assert np.abs(np.diff(noise, axis=1)).max() < 0.3  # smooth
    pieces = initial.Discontinuities(count=(3, 3))(rng, square)
    assert len(np.unique(pieces)) <= 4
    blob = initial.Blobs(count=(1, 1), radius=(0.1, 0.1), amplitude=(1.0, 1.0))(rng, square)[0]
    assert blob.sum() / 64**2 == pytest.approx(2 * np.pi * 0.01, rel=1e-4)  # whole, though it wraps
    u, v = initial.GrayScottBlobs()(rng, square)
    assert u.min() == v.min() == 0 and u.max() == v.max() == 1
    line = fd.Grid(256, periodic=True)
    waves = initial.batch(initial.SineWaves(modes=8, absolute=0, window=0, normalized=True), line, 0, range(20))
    assert waves.min(2).max() == 0 and waves.max(2).min() == 1
    assert np.abs(np.fft.rfft(waves, axis=2))[:, 0, 9:].max() < 1e-9
    with pytest.raises(ValueError, match="SineWaves are for one axis, not 2"):
        initial.SineWaves()(rng, square)


def test_interpolation_keeps_the_coarse_points(rng):
    coarse = rng.random((8, 6))
    assert np.allclose(initial._interpolated(coarse, (32, 24))[::4, ::4], coarse)


def test_gray_scott_fourier_starts_about_the_published_states(rng):
    square = fd.Grid((32, 32), periodic=True)
    about = lambda F, k: initial.GrayScottFourier()(rng, square, {"F": F, "k": k}).mean((1, 2))
    assert np.allclose(about(0.029, 0.057), [1, 0], atol=0.05)
    u, v = about(0.098, 0.057)
    assert u * v == pytest.approx(0.098 + 0.057, rel=0.05)  # a steady state: u v = F + k


def test_every_recipe_can_be_described_and_made_again():
    for name in recipes.known():
        recipe = recipes.get(name)
        assert recipes.from_description(recipe.describe()) == recipe, name
        assert recipe.summary and set(recipe.conserved) <= set(recipe.fields)


YAML = """
name: my-heat
summary: Heat from blobs
equation: Heat
parameters: {diffusivity: {type: LogUniform, low: 0.001, high: 0.02}}
initial: {type: Blobs, count: [2, 5]}
boundary: {x: [{type: Dirichlet, value: 0.0}, {type: Neumann, derivative: 0.0}], y: {type: Neumann}}
fields: [u]
shape: [16, 12]
frames: 3
t_end: 0.1
"""


def test_a_recipe_from_a_file(tmp_path):
    (tmp_path / "mine.yaml").write_text(YAML)
    report = fd.data.generate(tmp_path / "mine.yaml", tmp_path / "a.h5", samples=3, progress=False)
    with source(report.path) as there:
        assert there.name == "my-heat" and there.shape == (3, 3, 1, 16, 12)
        assert (there.read(0)[1:, 0, 0] == 0).all() and (there.read(0)[1:, 0, -1] != 0).any()
    assert fd.data.verify(report.path).ok


@pytest.mark.parametrize("change, message", [
    (("type: Blobs", "type: Blob"), "mine.yaml: recipe.initial: unknown type 'Blob'; known: .*Blobs"),
    (("count: [2, 5]", "size: 3"), "recipe.initial: unknown entries size; a Blobs has count, radius, amplitude"),
    (("t_end: 0.1", "fps: 3"), "recipe: unknown entries fps; a Recipe has name"),
    (("t_end: 0.1", ""), "recipe: missing entries t_end"),
    (("equation: Heat", "equation: Hat"), "unknown equation 'Hat' of recipe 'my-heat'; known: "),
    (("equation: Heat", "equation: my.heat"), "the equation my.heat is a function of yours: pass the recipe itself"),
    (("name: my-heat", "name: [my"), "mine.yaml: while parsing"),
])
def test_recipes_from_files_that_make_no_sense(tmp_path, change, message):
    (tmp_path / "mine.yaml").write_text(YAML.replace(*change))
    with pytest.raises(ValueError, match=message):
        fd.data.generate(tmp_path / "mine.yaml", tmp_path / "a.h5", samples=3, progress=False)
    assert os.listdir(tmp_path) == ["mine.yaml"]
    with pytest.raises(FileNotFoundError, match="the recipe .*other.yaml does not exist; recipes with a name: "):
        fd.data.generate(tmp_path / "other.yaml", tmp_path / "a.h5", samples=3, progress=False)


# -- verify and repair ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["pdebench", "the_well"])
def test_damage_is_named_and_redone_on_request(tmp_path, layout):
    path = tmp_path / "a"
    fd.data.generate(SHORT, path, **SMALL, layout=layout)
    with source(path) as there:
        good, place = there.read(3), there.offsets(3)[-1]
    file = path / place.file if place.file else path
    with open(file, "r+b") as handle:
        handle.seek(place.offset + 100)
        handle.write(b"\x00\x01\x02\x03" * 20)
    found = fd.data.verify(path)
    assert found.damaged == (3,) and "sample 3: checksum differs" in found.problems[0]
    assert fd.data.repair(path) == (3,) and fd.data.verify(path).ok and fd.data.repair(path) == ()
    with source(path) as there:
        assert np.array_equal(there.read(3), good)


def test_a_data_set_that_its_recipe_does_not_make_is_found(tmp_path):
    """All checksums fit, but a parameter is not the one that was used."""
    path = tmp_path / "a.h5"
    fd.data.generate(SHORT, path, **SMALL)
    with h5(path, "r+") as file:
        text = file["manifest"][()].decode().replace('"t_end": 60.0', '"t_end": 66.0')
        del file["manifest"]
        file["manifest"] = np.bytes_(text)
    problems = fd.data.verify(path, solve=2).problems
    assert len(problems) == 2 and "solved again, differs by" in problems[0]
    assert fd.data.verify(path, solve=0).ok


def test_integrals_that_should_stay_are_checked(tmp_path):
    path = tmp_path / "a.h5"
    insulated = replace(recipes.HEAT_INSULATED, t_end=0.05)
    fd.data.generate(insulated, path, **SMALL)
    assert fd.data.verify(path).ok
    with h5(path, "r+") as file:
        leaking = file["fields"][2]
        leaking[3] += 0.01
        file["fields"][2] = leaking
        file["checksum"][2] = fd.data.store.files.checksum(leaking)
    assert "sample 2: the integral of u moved by" in fd.data.verify(path, solve=0).problems[0]


def test_stationary_samples_are_noted(tmp_path):
    still = replace(recipes.HEAT_INSULATED, initial=initial.Constant(low=1.0))
    fd.data.generate(still, tmp_path / "a.h5", **{**SMALL, "samples": 2})
    found = fd.data.verify(tmp_path / "a.h5")
    assert found.ok and found.notes == ("2 samples become stationary: 0 after frame 0, 1 after frame 0",)


# -- reports ----------------------------------------------------------------------------------------------------------


def test_a_quality_report(tmp_path):
    pytest.importorskip("matplotlib")
    made = fd.data.generate(replace(recipes.GRAY_SCOTT, t_end=400.0), tmp_path / "a.h5", samples=5, shape=(32, 32),
                            frames=5, progress=False)
    path = fd.data.report(made.path, made=made)
    text = path.read_text()
    assert path.name == "a.html" and text.count('<img src="data:image/png;base64,') == 4
    assert "samples/s" in text and "error in space" in text and "spots" in text or "worms" in text


def test_richardson_s_estimates_are_of_the_right_size(tmp_path):
    """Heat in 1-D, whose error is known: the estimates are within a factor of two of it."""
    from fastdiff.data.check import job_of
    from fastdiff.data.report import _Look, _relative

    recipe = replace(recipes.HEAT, initial=initial.FourierSeries(modes=3), t_end=0.5, dtype="float64",
                     parameters={"diffusivity": 0.05})
    fd.data.generate(recipe, tmp_path / "a.h5", samples=2, shape=(65,), frames=6, progress=False)
    with source(tmp_path / "a.h5") as there:
        job, _ = job_of(there)
        assert job is not None
        look = _Look(there, 1, job)
        look.estimate(there, job)
        exact = replace(job, recipe=replace(recipe, method="spectral", frames=6)).march_one(1)
        discrete = there.read(1)
        fine = replace(job, recipe=replace(recipe, dt=job.dt / 64, frames=6)).march_one(1)
        assert look.time_error == pytest.approx(_relative(discrete - fine, exact), rel=0.1)
        assert look.space_error == pytest.approx(_relative(fine - exact, exact), rel=0.6)


# -- the command line -------------------------------------------------------------------------------------------------


def run(*arguments):
    from typer.testing import CliRunner

    from fastdiff.cli import app

    return CliRunner().invoke(app, list(map(str, arguments)))


def test_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(YAML)
    dry = run("generate", "mine.yaml", "--samples", 3, "--dry-run")
    assert dry.exit_code == 0 and "my-heat: 3 samples" in dry.output and os.listdir(tmp_path) == ["mine.yaml"]
    made = run("generate", "mine.yaml", "--samples", 3, "--no-picture", "--report")
    assert made.exit_code == 0, made.output
    assert (tmp_path / "mine.h5").exists() and (tmp_path / "mine.html").exists()
    assert run("convert", "mine.h5", "well", "--layout", "the_well").exit_code == 0
    assert run("verify", "well").exit_code == 0
    with h5(tmp_path / "mine.h5", "r+") as file:
        file["fields"][1] = 0
    broken = run("verify", "mine.h5")
    assert broken.exit_code == 1
    fixed = run("verify", "mine.h5", "--repair")
    assert fixed.exit_code == 0 and "made again: 1" in fixed.output and "3 samples, sound" in fixed.output
    assert run("report", "well", "--out", "well.html").exit_code == 0 and (tmp_path / "well.html").exists()
