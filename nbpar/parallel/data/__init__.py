"""Mode `data`: the batch is split over the ranks, inside calls of modules; outside them everything is whole on every rank.

call        a split call from start to end
border      enter and leave it
check       may it be split? layouts: how outputs are made of rows
draws       random numbers inside it
losses      means inside it
norm        BatchNorm inside it
gradients   of what it uses, averaged by the end of the backward pass
"""

from nbpar.parallel.data.mode import mode

__all__ = ["mode"]
