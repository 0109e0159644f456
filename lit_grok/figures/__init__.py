"""Figures of a run, all replicas in one: colour is init_scale, line and band are mean and range over seeds.

Every function takes what ``lit_grok.open_run`` gives and, but for `grokking.curves`, the name of a branch.
"""

import matplotlib

matplotlib.rcParams.update(
    {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": "medium",  # not above the title of the whole figure
        "legend.frameon": False,
    }
)
