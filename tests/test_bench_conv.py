"""The benchmarks of convolutions run, and refuse what is wrong."""

import json

import pytest
import torch

from fastdiff.bench import conv, main


def test_the_rows_run(tmp_path, capsys):
    main(["conv", "--tiny", "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "conv.json").read_text())["rows"]
    assert len(rows) == 6 and all(row["ratio"] > 0 and row["seconds"]["ours"] for row in rows)
    assert (tmp_path / "conv.md").read_text().count("| ") > 6 and "channels_last" in rows[-1]["baseline"]


def test_a_wrong_layer_gets_no_number():
    mine, theirs = conv.tutorial(1)
    with torch.no_grad():
        theirs[0].weight[0] += 1
    with pytest.raises(AssertionError, match="not close"):
        conv.same(mine, theirs, torch.randn(1, 1, 20))


def test_the_station_runs(tmp_path):
    assert main(["station", "--tiny", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "station.png").stat().st_size > 1000
    assert "unseen ones" in (tmp_path / "station.md").read_text()
