"""Layout "fastdiff": one HDF5 file in which any window of frames is one read.

    /fields        (samples, frames, components, *grid), contiguous
    /t /x /y /z    times of the frames, coordinates of the points
    /parameters/…  (samples,) each
    /split         (samples,) 0 train, 1 valid, 2 test: whole trajectories
    /statistics/…  (components,) mean, std, rms, mean_delta, std_delta, rms_delta over the training split
    /checksum      (samples,) CRC-32 of each sample's bytes in /fields
    /attempts      (samples,) how often a sample was drawn again because it diverged
    /manifest      JSON: the whole recipe, samples, shape, seed, device, version
    attributes     layout, recipe, summary, equation, labels, grid_*, dt, method, seed, samples, version, device
"""

import json

import h5py
import numpy as np

from fastdiff.data import files
from fastdiff.data.layouts._about import WHOLE, Evenly, Layout, fill, make_tables, tables
from fastdiff.data.layouts._source import Source, columns

MARK = "fastdiff 1"


class Own(Layout):
    """See the module."""

    name = "fastdiff"

    def create(self, root):
        about = self.about
        with h5py.File(root, "w", alignment_threshold=1 << 16, alignment_interval=4096) as file:
            file.attrs.update({"layout": MARK, "labels": json.dumps(about.labels), **about.attributes})
            for name, values in about.axes.items():
                file[name] = values
            file["split"] = about.split
            file["manifest"] = np.bytes_(json.dumps(about.manifest))
            make_tables(file, about, np.arange(about.samples))
            fields = files.room(file, "fields", about.shape, about.dtype)
            fields.attrs["names"] = list(about.names)
            for dim, label in zip(fields.dims, ("sample", "t", "field", "x", "y", "z")):
                dim.label = label

    def places(self, root):
        with files.open_h5(root) as file:
            return Evenly(file["fields"].id.get_offset(), self.about.sample_bytes)

    def finish(self, root, records, statistics):
        fill(root, tables("", records, statistics))


class OwnSource(Source):
    """See the module."""

    layout = "fastdiff"

    def open(self):
        with files.open_h5(self.path) as file:
            mark = file.attrs.get("layout")
            if mark != MARK or not {"manifest", "fields"} <= set(file):
                raise ValueError(f"{self.path} has the layout {mark!r}; this reads {MARK!r}")
            data = file["fields"]
            self.shape, self.dtype = data.shape, data.dtype
            self.names = tuple(map(str, data.attrs["names"]))
            self.axes = {name: file[name][:] for name in ("t", "x", "y", "z") if name in file}
            self.parameters, self.labels = columns(file.get("parameters")), tuple(json.loads(file.attrs["labels"]))
            self.split = file["split"][:] if "split" in file else None
            self.statistics = columns(file["statistics"]) if "statistics" in file else None
            self.checksums = file["checksum"][:] if "checksum" in file else None
            self.attempts = file["attempts"][:] if "attempts" in file else None
            self.attributes, self.manifest = dict(file.attrs), json.loads(file["manifest"][()])
            self.periodic = tuple(map(bool, file.attrs.get("grid_periodic", [False] * (len(self.shape) - 3))))
        self.name = str(self.attributes.get("recipe", self.name))

    def places(self, sample):
        return [("", "fields", (sample,), WHOLE)]


__all__ = ["MARK", "Own", "OwnSource"]
