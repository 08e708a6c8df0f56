"""The benchmarks of peers, of work and precision, and the gallery: they run, and what they compare is right."""

import json

import numpy as np
import pytest

from fastdiff.bench import gallery, peers, work_precision
from fastdiff.bench.targets import Options

HEAT = peers.heat_work(32, 20)


def test_the_truth_of_heat_solves_the_heat_equation():
    """At two resolutions the error of FTCS falls by four: it is that of space."""
    errors = []
    for side, steps in ((32, 20), (64, 80)):
        work = peers.heat_work(side, steps)
        assert work.t_end == pytest.approx(HEAT.t_end)
        errors.append(peers.relative_error(peers.numpy_rolls(work, 1)(), work.truth))
    assert 3.5 < errors[0] / errors[1] < 4.5


@pytest.mark.parametrize("make", [make for peer, module, make in peers.PEERS if peer in ("NumPy", "SciPy")],
                         ids=lambda make: make.__name__)
@pytest.mark.parametrize("name", ["heat", "gray-scott"])
def test_plain_peers_do_the_same_work(make, name):
    work = HEAT if name == "heat" else peers.gray_scott_work(32, 20)
    run = make(work, 1)
    if run is not None:
        assert peers.relative_error(run(), work.truth) < 0.02


def test_wrong_peers_get_no_number(monkeypatch):
    def wrong(work, threads):
        """Does nothing."""
        return lambda: 0 * work.u0

    def broken(work, threads):
        """Fails."""
        raise RuntimeError("no compiler")

    monkeypatch.setattr(peers, "PEERS", [("fastdiff", "fastdiff", peers.fastdiff_euler), ("Wrong", "numpy", wrong),
                                         ("Broken", "numpy", broken), ("Absent", "no_such_module", wrong)])
    found = {line.peer: line for line in peers.lines(HEAT, Options(1, rounds=1))}
    assert found["fastdiff"].seconds and (found["fastdiff"].error or 1.0) < 0.01
    assert not found["Wrong"].seconds and "wrong" in found["Wrong"].note
    assert "no compiler" in found["Broken"].note and "Absent" not in found and "Absent" in peers.absent()
    text = peers.markdown(list(found.values()), "about")
    assert "wrong, so not timed" in text and "Absent" in text


def test_work_precision_has_the_orders(monkeypatch, tmp_path):
    """Euler's error falls by two for each halving of dt, RK4's by sixteen."""
    case = work_precision.heat_case(24, 0.01)

    def settings(case):
        yield "euler", [{"dt": case.unit * 0.99 / 2**k} for k in range(3)]
        yield "rk4", [{"dt": case.unit * 1.3 / 2**k} for k in range(3)]

    monkeypatch.setattr(work_precision, "settings", settings)
    found = list(work_precision.points(case, Options(1, rounds=1)))
    for method, factor in (("euler", 2), ("rk4", 16)):
        errors = [p.error for p in found if p.method == method]
        assert len(errors) == 3
        assert all(0.75 * factor < a / b < 1.3 * factor for a, b in zip(errors, errors[1:])), (method, errors)
    tight = [p for p in found if p.method == "scipy RK45"][-1]
    assert tight.setting == "rtol=1e-6" and tight.error < 1e-4
    work_precision.draw(found, tmp_path / "w.png", "about")
    assert (tmp_path / "w.png").stat().st_size > 1000


def test_gallery_draws_and_writes_its_section(tmp_path):
    assert gallery.main(["heat", "sir", "--tiny", "--out", str(tmp_path)]) == 0
    assert sorted(f.name for f in tmp_path.iterdir()) == ["heat.png", "sir.png"]
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{gallery.BEGIN}\nold\n{gallery.END}\nafter\n")
    gallery.write_section(readme, gallery.PICTURES[:7])
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert text.count("](gallery/") == 7 and "fastdiff solve heat" in text
    gallery.write_section(readme, gallery.PICTURES[:7])
    assert readme.read_text() == text


def test_the_readme_shows_the_gallery():
    drawn = [p for p in gallery.PICTURES if (gallery.ROOT / "gallery" / f"{p.file}.png").exists()]
    assert gallery.section(drawn) in (gallery.ROOT / "README.md").read_text(), "run `fastdiff bench gallery`"
    for picture in drawn:
        assert 0 < (gallery.ROOT / "gallery" / f"{picture.file}.png").stat().st_size < 150_000
    assert "bench/results/station.png" in gallery.section(drawn)
    assert (gallery.ROOT / "bench" / "results" / "station.png").exists()


def test_results_say_what_was_measured():
    for name, key in (("peers", "lines"), ("work_precision", "points")):
        file = peers.RESULTS / f"{name}.json"
        if not file.exists():
            pytest.skip(f"{file.name} was not measured yet")
        data = json.loads(file.read_text())
        assert data["about"] and data[key]
        assert all(np.isfinite(entry["error"]) for entry in data[key] if entry["error"] is not None)
