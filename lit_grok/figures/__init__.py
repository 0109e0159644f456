"""Figures of a run, drawn from its dataset; one file per analysis."""

import matplotlib

#: Colours of the training and the test set in every figure.
TRAIN, TEST = "#4c72b0", "#dd8452"

matplotlib.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})
