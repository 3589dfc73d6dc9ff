"""Values between the notebook and its ranks: one table of shared objects, new ones in full, changed ones as patches in place."""

from nbpar.values.kernel_end import KernelEnd, Merged, Packed
from nbpar.values.rank_end import RankEnd
from nbpar.values.rank_values import RankValues
from nbpar.values.refs import KernelRef, RankRef

__all__ = ["KernelEnd", "KernelRef", "Merged", "Packed", "RankEnd", "RankRef", "RankValues"]
