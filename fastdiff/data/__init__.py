"""Training data: recipes, campaigns that survive interruptions, and the data sets as torch reads them.

    fd.data.generate("gray-scott", "gray_scott.h5", samples=64)
    data = fd.data.open("gray_scott.h5", inputs=1, outputs=1, split="train", normalize="zscore")
    stream = fd.data.Stream("heat", inputs=1, outputs=1)
"""

from typing import TYPE_CHECKING

from fastdiff.data import initial, published, recipes
from fastdiff.data.campaign import Plan, Report, generate, plan
from fastdiff.data.check import Verification, repair, verify
from fastdiff.data.convert import convert, to_xarray, to_zarr
from fastdiff.data.layouts import source
from fastdiff.data.recipes import Recipe
from fastdiff.data.report import report
from fastdiff.data.sheet import contact_sheet
from fastdiff.data.store import Interrupted

if TYPE_CHECKING:
    from fastdiff.data.stream import Stream


def open(path, inputs=None, outputs=1, stride=1, *, split=None, normalize=None, samples=None):
    """A data set as a torch Dataset of whole trajectories, or with `inputs` of windows; see dataset.Trajectories."""
    from fastdiff.data.dataset import Trajectories

    return Trajectories(path, inputs, outputs, stride, split=split, normalize=normalize, samples=samples)


def __getattr__(name):
    if name == "Stream":  # needs torch
        from fastdiff.data.stream import Stream

        return Stream
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["Interrupted", "Plan", "Recipe", "Report", "Stream", "Verification", "contact_sheet", "convert", "generate",
           "initial", "open", "plan", "published", "recipes", "repair", "report", "source", "to_xarray", "to_zarr",
           "verify"]
