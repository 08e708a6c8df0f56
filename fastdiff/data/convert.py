"""From one layout to another, and to Zarr and xarray."""

import os
import shutil
from pathlib import Path

import numpy as np

from fastdiff.data import files
from fastdiff.data.layouts import About, Source, layout_named, source
from fastdiff.data.store import METADATA, Target
from fastdiff.data.summary import combine, moments


def convert(path: str | os.PathLike, to: str | os.PathLike, layout: str = "fastdiff", *,
            overwrite: bool = False) -> Path:
    """Write a data set of any known layout again in another one, sample by sample; returns where it is.

    Checksums are compared on the way; statistics are computed where the original has none. The result has its name
    only when it is whole.
    """
    to, temporary = Path(to), Path(f"{to}.parts")
    if to.exists() and not overwrite:
        raise FileExistsError(f"{to} exists: give another name, or pass overwrite=True (--overwrite)")
    if to.is_dir() and not layout == "the_well" or to.resolve() == Path(path).resolve():
        raise FileExistsError(f"{to} cannot be overwritten by this: give another name")
    if temporary.exists():
        raise FileExistsError(f"{temporary} is in the way: an unfinished campaign, or a conversion that was killed")
    with source(path) as there:
        about = about_of(there)
        kind = layout_named(layout, about.shape[2], len(about.shape) - 3)
        writer = kind(about)
        free = shutil.disk_usage(to.absolute().parent).free
        if free < about.total_bytes + METADATA:
            raise OSError(f"{to} needs {about.total_bytes / 1e9:.2f} GB, but only {free / 1e9:.2f} GB are free")
        temporary.mkdir()
        try:
            root = temporary / "data"
            writer.create(root)
            records = _copy(there, about, Target(root, writer.places(root)))
            writer.finish(root, records, combine(records["moments"][about.split == 0]))
            for file in [root] if root.is_file() else [f for f in root.rglob("*") if f.is_file()]:
                files.flush(file)
            if to.is_dir():
                os.replace(to, temporary / "old")
            os.replace(root, to)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return to


def about_of(there: Source) -> About:
    """What a layout's writer needs to know, from a data set that exists."""
    parameters = {name: np.char.encode(v) if v.dtype.kind == "U" else v for name, v in there.parameters.items()}
    attributes = {k: v for k, v in there.attributes.items() if k not in ("layout", "labels")}
    about = About(name=there.name.replace("-", "_"), shape=there.shape, dtype=str(there.dtype), names=there.names,
                  axes=there.axes, parameters=parameters, labels=there.labels, periodic=there.periodic,
                  attributes=attributes if there.layout == "fastdiff" else {"recipe": there.name},
                  manifest=there.manifest or {"converted_from": str(there.path)})
    if there.split is not None:
        about.__dict__["split"] = there.split
    return about


def _copy(there, about, target):
    records = np.zeros(about.samples, about.record)
    for i in range(about.samples):
        sample = there.read(i)
        records[i]["checksum"], records[i]["moments"] = files.checksum(sample), moments(sample)
        if there.checksums is not None and records[i]["checksum"] != there.checksums[i]:
            raise ValueError(f"sample {i} of {there.path} is damaged: its checksum differs; `fastdiff verify --repair` "
                             f"makes it again")
        target.write(i, sample[None])
    for name, values in about.parameters.items():
        records[f"parameters/{name}"] = values
    if there.attempts is not None:
        records["attempts"] = there.attempts
    return records


def to_xarray(path: str | os.PathLike, samples=None):
    """A data set, or some of its samples, as an xarray.Dataset: a variable for each component, in memory."""
    try:
        import xarray
    except ImportError:
        raise ImportError("xarray is not installed: pip install 'fastdiff-pde[xarray]'") from None
    with source(path) as there:
        chosen = np.arange(there.shape[0]) if samples is None else np.atleast_1d(samples)
        data = np.stack([there.read(int(i)) for i in chosen])
        dims = ("sample", "time", *[n for n in there.axes if n != "t"])
        coords = {"sample": chosen, "time": there.t, **{n: v for n, v in there.axes.items() if n != "t"},
                  **{n: ("sample", v[chosen]) for n, v in there.parameters.items() if v.ndim == 1}}
        return xarray.Dataset({n: (dims, data[:, :, c]) for c, n in enumerate(there.names)}, coords,
                              {"source": str(path), "name": there.name})


def to_zarr(path: str | os.PathLike, to: str | os.PathLike) -> Path:
    """Write a data set as a Zarr group: fields (samples, frames, components, *grid), a chunk for each sample."""
    try:
        import zarr
    except ImportError:
        raise ImportError("Zarr is not installed: pip install zarr") from None
    if Path(to).exists():
        raise FileExistsError(f"{to} exists: give another name")
    temporary = Path(f"{to}.tmp")
    with source(path) as there:
        try:
            group = zarr.open_group(str(temporary), mode="w")
            fields = group.create_array("fields", shape=there.shape, chunks=(1, *there.shape[1:]),
                                        dtype=str(there.dtype))
            for i in range(there.shape[0]):
                fields[i] = there.read(i)
            arrays = {**there.axes, **{f"parameters/{n}": v for n, v in there.parameters.items()
                                       if v.dtype.kind in "biuf"},
                      **{f"statistics/{n}": v for n, v in (there.statistics or {}).items()}}
            for name, values in arrays.items():
                group.create_array(name, shape=values.shape, dtype=str(values.dtype))[...] = values
            group.attrs.update({"names": list(there.names), "manifest": there.manifest or {},
                                "labels": {n: there.parameters[n].tolist() for n in there.labels}})
            os.replace(temporary, to)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return Path(to)


__all__ = ["about_of", "convert", "to_xarray", "to_zarr"]
