"""Layouts of PDEBench: one tensor for all samples, or a group for each seed.

"pdebench-tensor" (advection, Burgers, ReacDiff of PDEBench), one component:

    /tensor          float32 (N, T, X[, Y[, Z]])
    /x-coordinate …  cell centres        /t-coordinate (T + 1,): one longer than the tensor, as in the published files
    attributes       each parameter that all samples share, such as beta, or Nu and Rho

"pdebench-seeds" (2D_diff-react, 1D_diff-sorp):

    /0000            a group a sample; attribute "config", YAML text
    /0000/data       float32 (T, X[, Y[, Z]], C)
    /0000/grid/x …   cell centres        /0000/grid/t (T,)

Ours beside them, where no loader looks: /fastdiff/… in the first layout, /0000/fastdiff/… in the second, with the
tables of layout "fastdiff": checksum, attempts, parameters, statistics; and the attribute fastdiff_manifest. Loaders of
the second layout take every key of the root for a seed, so nothing of ours may stand there.

Source: PDEBench, pdebench/data_gen/data_gen_NLE/Data_Merge.py and pdebench/data_gen/gen_diff_react.py, for the
conventions; the loaders that read them are pdebench/models/fno/utils.py and pdebench/models/pinn/utils.py.
"""

import json

import h5py
import numpy as np

from fastdiff.data import files
from fastdiff.data.layouts._about import CHANNELS_LAST, Evenly, Layout, Place, fill, make_tables, tables
from fastdiff.data.layouts._source import Source, columns

EXTRA = "fastdiff"


class Tensor(Layout):
    """One tensor for all samples."""

    name = "pdebench-tensor"

    def check(self):
        if self.about.shape[2] != 1:
            raise ValueError(f'layout "pdebench-tensor" holds one component, not {", ".join(self.about.names)}: use '
                             f'"pdebench-seeds"')
        _single(self.about)

    def create(self, root):
        about = self.about
        with h5py.File(root, "w", alignment_threshold=1 << 16, alignment_interval=4096) as file:
            for name, values in about.axes.items():
                file[f"{name}-coordinate"] = (_one_more(values) if name == "t" else values).astype("f4")
            for name, values in about.parameters.items():
                if values.ndim == 1 and values.dtype.kind in "iuf" and (values == values[0]).all():
                    file.attrs[name] = values[0]
            _about(file, about)
            _ours(file.create_group(EXTRA), about)
            files.room(file, "tensor", (*about.shape[:2], *about.shape[3:]), about.dtype)

    def places(self, root):
        with files.open_h5(root) as file:
            return Evenly(file["tensor"].id.get_offset(), self.about.sample_bytes)

    def finish(self, root, records, statistics):
        fill(root, tables(f"{EXTRA}/", records, statistics))


class Seeds(Layout):
    """A group for each seed."""

    name = "pdebench-seeds"

    def check(self):
        _single(self.about)

    def create(self, root):
        about = self.about
        with h5py.File(root, "w", alignment_threshold=1 << 16, alignment_interval=4096) as file:
            for i in range(about.samples):
                group = file.create_group(_seed(i))
                group.attrs["config"] = _config(about, i)
                for name, values in about.axes.items():
                    group[f"grid/{name}"] = values.astype("f4")
                files.room(group, "data", (about.shape[1], *about.shape[3:], about.shape[2]), about.dtype)
            _about(file, about)
            _ours(file[_seed(0)].create_group(EXTRA), about)

    def places(self, root):
        with files.open_h5(root) as file:
            return [[Place("", file[f"{_seed(i)}/data"].id.get_offset(), CHANNELS_LAST)]
                    for i in range(self.about.samples)]

    def finish(self, root, records, statistics):
        fill(root, tables(f"{_seed(0)}/{EXTRA}/", records, statistics))


def _single(about):
    if np.dtype(about.dtype) != np.float32:
        raise ValueError(f"PDEBench's layouts hold float32, but the recipe makes {about.dtype}")


def _seed(i):
    return f"{i:04d}"


def _one_more(t):
    return np.append(t, 2 * t[-1] - t[-2])


def _about(file, about):
    file.attrs["fastdiff_manifest"] = json.dumps(about.manifest)
    file.attrs["fastdiff_about"] = json.dumps({"names": about.names, "labels": about.labels, "name": about.name,
                                               "periodic": about.periodic})


def _ours(group, about):
    make_tables(group, about, np.arange(about.samples))
    group["split"] = about.split


def _config(about, i) -> str:
    """What PDEBench keeps as the text of its configuration, with the entries that its loaders read."""
    import yaml

    sides = {"x": ("x_left", "x_right"), "y": ("y_bottom", "y_top"), "z": ("z_back", "z_front")}
    extent = about.attributes.get("grid_extent", ())
    sim = {"seed": i, "tdim": about.shape[1], "t": float(about.axes["t"][-1])}
    for k, name in enumerate(n for n in about.axes if n != "t"):
        low, high = extent[k] if len(extent) else (float(about.axes[name][0]), float(about.axes[name][-1]))
        sim |= {f"{name}dim": len(about.axes[name]), sides[name][0]: float(low), sides[name][1]: float(high)}
    drawn = {name: v[i].tolist() if v.dtype.kind != "S" else v[i].decode() for name, v in about.parameters.items()}
    return yaml.safe_dump({"name": about.name, "sim": sim, "parameters": drawn}, sort_keys=False)


class _PDEBench(Source):
    def _ours(self, file, group):
        about = json.loads(file.attrs.get("fastdiff_about", "{}"))
        self.manifest = json.loads(file.attrs["fastdiff_manifest"]) if "fastdiff_manifest" in file.attrs else None
        self.labels, self.name = tuple(about.get("labels", ())), about.get("name", self.name)
        self.periodic = tuple(about.get("periodic", [False] * (len(self.shape) - 3)))
        self.names = tuple(about.get("names", ("u", "v", "w", "p")[: self.shape[2]]))
        self.attributes = {k: v for k, v in file.attrs.items() if not k.startswith("fastdiff_")}
        if group is not None:
            self.parameters, self.statistics = columns(group.get("parameters")), columns(group.get("statistics"))
            self.checksums, self.attempts, self.split = (group[n][:] for n in ("checksum", "attempts", "split"))


class TensorSource(_PDEBench):
    """One tensor for all samples; also PDEBench's own files."""

    layout = "pdebench-tensor"

    def open(self):
        with files.open_h5(self.path) as file:
            data = file["tensor"]
            self.shape, self.dtype = (*data.shape[:2], 1, *data.shape[2:]), data.dtype
            self.axes = {n: file[f"{n}-coordinate"][:] for n in ("t", "x", "y", "z") if f"{n}-coordinate" in file}
            self.axes["t"] = self.axes.get("t", np.arange(self.shape[1], dtype="f4"))[: self.shape[1]]
            self._ours(file, file.get(EXTRA))
            if not self.parameters:
                self.parameters = {name: np.full(self.shape[0], value) for name, value in self.attributes.items()
                                   if np.ndim(value) == 0 and np.asarray(value).dtype.kind in "iuf"}

    def places(self, sample):
        return [("", "tensor", (sample,), 0)]


class SeedsSource(_PDEBench):
    """A group for each seed; also PDEBench's own files."""

    layout = "pdebench-seeds"

    def open(self):
        with files.open_h5(self.path) as file:
            self.seeds = sorted(file)
            first = file[self.seeds[0]]
            shape = first["data"].shape
            self.shape, self.dtype = (len(self.seeds), shape[0], shape[-1], *shape[1:-1]), first["data"].dtype
            self.axes = {n: first["grid"][n][:] for n in ("t", "x", "y", "z") if n in first["grid"]}
            self._ours(file, first.get(EXTRA))

    def places(self, sample):
        return [("", f"{self.seeds[sample]}/data", (), CHANNELS_LAST)]


__all__ = ["Seeds", "SeedsSource", "Tensor", "TensorSource"]
