"""Layouts of data sets: how the numbers lie in files. Each has a writer, a `Layout`, and a reader, a `Source`."""

from pathlib import Path

import h5py

from fastdiff.data.layouts._about import SPLITS, About, Layout, Place
from fastdiff.data.layouts._source import Source
from fastdiff.data.layouts.own import Own, OwnSource
from fastdiff.data.layouts.pdebench import Seeds, SeedsSource, Tensor, TensorSource
from fastdiff.data.layouts.the_well import TheWell, TheWellSource

LAYOUTS = ("fastdiff", "pdebench", "pdebench-tensor", "pdebench-seeds", "the_well")
_WRITERS = {w.name: w for w in (Own, Tensor, Seeds, TheWell)}


def layout_named(name: str, components: int, axes: int) -> type[Layout]:
    """The layout of a name; "pdebench" is one tensor for one component in 1-D, as PDEBench has it, else seeds."""
    if name not in LAYOUTS:
        raise ValueError(f"unknown layout {name!r}; known: {', '.join(LAYOUTS)}")
    if name == "pdebench":
        name = "pdebench-tensor" if components == axes == 1 else "pdebench-seeds"
    return _WRITERS[name]


def source(path) -> Source:
    """A data set of any layout that is known here, ours or another's, open for reading."""
    path = Path(path)
    if path.is_dir():
        return TheWellSource(path)
    from fastdiff.data import files

    with files.open_h5(path) as file:
        if "layout" in file.attrs:
            kind = OwnSource
        elif "tensor" in file:
            kind = TensorSource
        elif len(file) and all(isinstance(g, h5py.Group) and "data" in g and "grid" in g for g in file.values()):
            kind = SeedsSource
        else:
            raise ValueError(f"{path} has the layout 'unknown'; this reads {', '.join(LAYOUTS)}")
    return kind(path)


__all__ = ["LAYOUTS", "SPLITS", "About", "Layout", "Place", "Source", "layout_named", "source"]
