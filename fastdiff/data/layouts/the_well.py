"""Layout "the_well": a folder as The Well has it, with one file for each parameter set and split.

    <root>/data/{train,valid,test}/<name>_<labels and parameters>.hdf5
    <root>/stats.yaml       mean, std, rms, mean_delta, std_delta, rms_delta of each field, over the training split
    <root>/<name>.yaml      what the data set is
    <root>/README.md

In a file: the attributes dataset_name, grid_type, n_spatial_dims, n_trajectories, simulation_parameters and each of
these; /dimensions (time, x, y, z), /boundary_conditions (a mask of the wall points and the values there, for each
kind of wall), /scalars, /t0_fields (N, T, *grid), /t1_fields and /t2_fields (empty). Its documentation, its example
and its format checker disagree about which attributes stand where: this writes the union. Beside them stands
/fastdiff: which sample of the campaign each trajectory is, checksums, and all parameters.

Source: The Well v1.2.0, docs/data_format.md, the_well/utils/dummy_data.py, scripts/check_thewell_formatting.py,
scripts/compute_statistics.py.
"""

import json

import h5py
import numpy as np

from fastdiff.data import files
from fastdiff.data.layouts._about import SPLITS, Layout, Place, fill, make_tables, tables
from fastdiff.data.layouts._source import Source, columns

EXTRA = "fastdiff"
KINDS = {"periodic": "PERIODIC", "wall": "WALL", "open": "OPEN"}
_MEANS = {"symmetric": False, "antisymmetric": False}


class TheWell(Layout):
    """See the module."""

    name = "the_well"
    folder = True

    def files(self) -> list[tuple[str, np.ndarray]]:
        """Each file, and the samples in it."""
        about, found = self.about, []
        for group in about.groups:
            suffix = "".join(f"_{part}" for part in self._suffix(group))
            for k, split in enumerate(SPLITS):
                which = group[about.split[group] == k]
                if len(which):
                    found.append((f"data/{split}/{about.name}{suffix}.hdf5", which))
        return found

    def _suffix(self, group):
        about = self.about
        labels = [_text(about.parameters[name][group[0]]) for name in about.labels]
        shared = [f"{n}_{about.parameters[n][group[0]]:g}" for n in self._shared(group)]
        return labels + (shared if len(about.groups) > 1 else [])

    def _shared(self, group):
        """Parameters that are one number for all of a group."""
        return [name for name, v in self.about.parameters.items() if name not in self.about.labels
                and v.ndim == 1 and v.dtype.kind in "iuf" and (v[group] == v[group[0]]).all() and len(group)
                and name not in self._varying]

    @property
    def _varying(self):
        return {name for name, v in self.about.parameters.items() for g in self.about.groups
                if not (v[g] == v[g[0]]).all()}

    def create(self, root):
        for name, which in self.files():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with h5py.File(path, "w", alignment_threshold=1 << 16, alignment_interval=4096) as file:
                self._one(file, which)
        self._texts(root)

    def _one(self, file, which):
        about = self.about
        shared = {name: about.parameters[name][which[0]] for name in self._shared(which)}
        shared = {name: value for name, value in shared.items() if name in self._everywhere()}
        spatial = [n for n in about.axes if n != "t"]
        file.attrs.update({"dataset_name": about.name, "grid_type": "cartesian", "n_spatial_dims": len(spatial),
                           "n_trajectories": len(which), "simulation_parameters": list(shared), **shared})
        file.attrs["fastdiff_manifest"] = json.dumps(about.manifest)
        file.attrs["fastdiff_about"] = json.dumps({"labels": about.labels, "samples": about.samples,
                                                   "periodic": about.periodic})
        self._dimensions(file, spatial)
        self._walls(file.create_group("boundary_conditions"), spatial)
        self._scalars(file.create_group("scalars"), which, shared)
        fields = file.create_group("t0_fields")
        fields.attrs["field_names"] = list(about.names)
        for name in about.names:
            data = files.room(fields, name, (len(which), about.shape[1], *about.shape[3:]), about.dtype)
            data.attrs.update({"dim_varying": [True] * len(spatial), "sample_varying": True, "time_varying": True})
        for order in (1, 2):
            file.create_group(f"t{order}_fields").attrs["field_names"] = np.array([], dtype=h5py.string_dtype())
        ours = file.create_group(EXTRA)
        make_tables(ours, about, which)
        ours["sample"] = which

    def _everywhere(self):
        """Parameters that are one number in every group: files of a data set must agree on what varies."""
        return set.intersection(*(set(self._shared(g)) for g in self.about.groups))

    def _dimensions(self, file, spatial):
        group = file.create_group("dimensions")
        group.attrs["spatial_dims"] = spatial
        for name, values in self.about.axes.items():
            data = group.create_dataset("time" if name == "t" else name, data=values.astype("f4"))
            data.attrs.update({"sample_varying": False, "time_varying": name == "t"})

    def _walls(self, group, spatial):
        for k, name in enumerate(spatial):
            kind = "periodic" if self.about.periodic[k] else self.about.walls.get(name, "wall")
            n = len(self.about.axes[name])
            wall = group.create_group(f"{name}_{kind}")
            wall.attrs.update({"associated_dims": [name], "associated_fields": list(self.about.names),
                               "bc_type": KINDS[kind], "sample_varying": False, "time_varying": False})
            mask = np.zeros(n, bool)
            mask[[0, -1]] = True
            wall["mask"], wall["values"] = mask, np.zeros(int(mask.sum()), "f4")

    def _scalars(self, group, which, shared):
        names = [n for n, v in self.about.parameters.items()
                 if n not in self.about.labels and v.ndim == 1 and v.dtype.kind in "iuf"]
        group.attrs["field_names"] = np.array(names, dtype=h5py.string_dtype())
        for name in names:
            if name in shared:
                data = group.create_dataset(name, data=np.float32(shared[name]))
            else:
                data = files.room(group, name, (len(which),), "f4")
            data.attrs.update({"sample_varying": name not in shared, "time_varying": False})

    def _texts(self, root):
        import yaml

        about = self.about
        meta = {"dataset_name": about.name, "n_spatial_dims": len(about.shape) - 3, "grid_type": "cartesian",
                "spatial_resolution": list(about.shape[3:]), "scalar_names": [],
                "constant_scalar_names": [n for n in about.parameters if n not in about.labels],
                "field_names": {0: list(about.names), 1: [], 2: []}, "constant_field_names": {0: [], 1: [], 2: []},
                "boundary_condition_types": sorted({KINDS["periodic" if p else "wall"] for p in about.periodic}),
                "n_files": len(self.files()), "n_trajectories_per_file": [len(w) for _, w in self.files()],
                "n_steps_per_trajectory": [about.shape[1]] * len(self.files())}
        (root / f"{about.name}.yaml").write_text(yaml.safe_dump(meta, sort_keys=False))
        summary = about.attributes.get("summary", "")
        (root / "README.md").write_text(
            f"# {about.name}\n\n{summary}\n\nMade by fastdiff {about.manifest.get('version', '')}. How it was made, "
            f"to the last parameter, is in the attribute `fastdiff_manifest` of every file.\n")

    def places(self, root):
        found: dict[int, list[Place]] = {}
        size = self.about.sample_bytes // self.about.shape[2]
        for name, which in self.files():
            with files.open_h5(root / name) as file:
                starts = [file[f"t0_fields/{n}"].id.get_offset() for n in self.about.names]
            for row, i in enumerate(which):
                found[int(i)] = [Place(name, start + row * size, c) for c, start in enumerate(starts)]
        return [found[i] for i in range(self.about.samples)]

    def finish(self, root, records, statistics):
        import yaml

        for name, which in self.files():
            mine = records[which]
            scalars = {f"scalars/{n}": mine[f"parameters/{n}"] for n in self.about.parameters}
            fill(root / name, tables(f"{EXTRA}/", mine, statistics) | self._with_room(root / name, scalars))
        nested = {key: {n: float(v) for n, v in zip(self.about.names, values)} for key, values in statistics.items()}
        with files.written_whole(root / "stats.yaml") as temporary:
            temporary.write_text(yaml.safe_dump(nested, sort_keys=False))

    @staticmethod
    def _with_room(path, scalars):
        with files.open_h5(path) as file:
            return {n: v for n, v in scalars.items() if n in file and file[n].shape == v.shape}


def _text(value) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


class TheWellSource(Source):
    """A folder of The Well, ours or another; fields of order 0 are read."""

    layout = "the_well"

    def open(self):
        self.rows: list[tuple[str, int]] = []
        paths = [p for split in SPLITS for p in sorted((self.path / "data" / split).glob("*.h*5"))]
        if not paths:
            raise FileNotFoundError(f"{self.path} has no data/train/*.hdf5: it is no data set of The Well")
        parts = [self._one(path) for path in paths]
        order = np.argsort(np.concatenate([p["sample"] for p in parts]), kind="stable") if all(
            "sample" in p for p in parts) else np.arange(len(self.rows))
        self.rows = [self.rows[k] for k in order]
        self.shape = (len(self.rows), *self.shape[1:])
        self.split = np.concatenate([p["split"] for p in parts])[order]
        for key in ("checksum", "attempts"):
            if all(key in p for p in parts):
                setattr(self, "checksums" if key == "checksum" else key, np.concatenate([p[key] for p in parts])[order])
        names = [n for n in parts[0]["parameters"] if all(n in p["parameters"] for p in parts)]
        self.parameters = {n: np.concatenate([p["parameters"][n] for p in parts])[order] for n in names}
        self._statistics()

    def _one(self, path):
        with files.open_h5(path) as file:
            name, fields = str(path.relative_to(self.path)), file["t0_fields"]
            names = [n for n in fields.attrs["field_names"] if fields[n].attrs["time_varying"]]
            data, n = fields[names[0]], int(file.attrs["n_trajectories"])
            self.names, self.dtype = tuple(map(str, names)), data.dtype
            self.shape = (0, data.shape[1], len(names), *data.shape[2:])
            spatial = list(map(str, file["dimensions"].attrs["spatial_dims"]))
            self.axes = {"t": file["dimensions/time"][()].reshape(-1)[: data.shape[1]],
                         **{d: file[f"dimensions/{d}"][()] for d in spatial}}
            self.rows += [(name, row) for row in range(n)]
            self.name = str(file.attrs["dataset_name"])
            about = json.loads(file.attrs.get("fastdiff_about", "{}"))
            self.labels = tuple(about.get("labels", ()))
            kinds = [str(wall.attrs["bc_type"]) for wall in file["boundary_conditions"].values()]
            self.periodic = tuple(about.get("periodic", [k == "PERIODIC" for k in kinds] or [False] * len(spatial)))
            self.attributes = {k: v for k, v in file.attrs.items() if not k.startswith("fastdiff_")}
            if "fastdiff_manifest" in file.attrs:
                self.manifest = json.loads(file.attrs["fastdiff_manifest"])
            part = {"split": np.full(n, SPLITS.index(path.parent.name), np.uint8)}
            if EXTRA in file:
                ours = file[EXTRA]
                return part | {k: ours[k][:] for k in ("sample", "checksum", "attempts")} | {
                    "parameters": columns(ours.get("parameters"))}
            scalars = {k: np.broadcast_to(d[()], n) for k, d in file["scalars"].items() if d.shape in ((), (n,))}
            return part | {"parameters": scalars}

    def _statistics(self):
        import yaml

        path = self.path / "stats.yaml"
        if path.exists():
            stats = yaml.safe_load(path.read_text())
            self.statistics = {key: np.array([stats[key][n] for n in self.names]) for key in stats}

    def places(self, sample):
        file, row = self.rows[sample]
        return [(file, f"t0_fields/{name}", (row,), c) for c, name in enumerate(self.names)]


__all__ = ["TheWell", "TheWellSource"]
