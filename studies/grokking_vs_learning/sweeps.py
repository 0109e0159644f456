"""The sweeps of *Grokking vs. Learning* (arXiv 2502.01739): the knob is the scale of the initial weights.

The paper's text says that init_scale runs from 0.1 to 10, that 0.4 is the edge of the compressive regime and 3 that of
grokking in the Ising task; the grids here have these values and those around them.
"""

from studies.runs import Sweep

ISING_SCALES = (0.1, 1.0, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0)
MOD_ADD_SCALES = (0.1, 0.2, 0.3, 0.4, 0.6, 1.0, 3.0, 10.0)

#: What compares batch sizes, orders and weight decays needs features and encodings, not the path.
_ENDS = (
    "callbacks.pruning.per_decade=10",
    "callbacks.fim_trajectory.every=1000",
    "callbacks.fim_trajectory.until=null",
)

ISING = Sweep("ising", "ising", ISING_SCALES, ("callbacks=ising_paper",))
MOD_ADD = Sweep("mod_add", "mod_add", MOD_ADD_SCALES, ("callbacks=mod_add_paper",))
RESHUFFLED = Sweep("reshuffled", "mod_add", MOD_ADD_SCALES, ("datamodule.shuffle=true", *_ENDS))
BATCH_200 = Sweep("batch_200", "mod_add", MOD_ADD_SCALES, ("batch_size=200", *_ENDS))
BATCH_200_RESHUFFLED = Sweep(
    "batch_200_reshuffled", "mod_add", MOD_ADD_SCALES, ("batch_size=200", "datamodule.shuffle=true", *_ENDS)
)
DECAY = Sweep("decay", "mod_add", MOD_ADD_SCALES, ("weight_decay=3e-4", *_ENDS))
DECAY_200 = Sweep("decay_200", "mod_add", MOD_ADD_SCALES, ("weight_decay=3e-4", "batch_size=200", *_ENDS))
MORE_DECAY = Sweep("more_decay", "mod_add", MOD_ADD_SCALES[:4], ("weight_decay=4e-4", *_ENDS))

#: Where both tasks grok, and where each learns steadily, in figures that show one of each.
GROKS, ISING_STEADY, MOD_ADD_STEADY = 10.0, 1.0, 1.0
#: The most compressed of the compressive regime, and its edge.
COMPRESSED, EDGE = 0.1, 0.4
