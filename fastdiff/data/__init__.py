"""Training data: recipes, campaigns that survive interruptions, and the data sets as torch reads them.

    fd.data.generate("gray-scott", "gray_scott.h5", samples=64)
    data = fd.data.open("gray_scott.h5", inputs=1, outputs=1)
"""

from fastdiff.data import initial, recipes
from fastdiff.data.campaign import Interrupted, Report, generate
from fastdiff.data.check import Verification, verify
from fastdiff.data.recipes import Recipe
from fastdiff.data.sheet import contact_sheet


def open(path, inputs=None, outputs=1, stride=1):
    """A data set as a torch Dataset of whole trajectories, or with `inputs` of windows; see dataset.Trajectories."""
    from fastdiff.data.dataset import Trajectories

    return Trajectories(path, inputs, outputs, stride)


__all__ = ["Interrupted", "Recipe", "Report", "Verification", "contact_sheet", "generate", "initial", "open", "recipes",
           "verify"]
