"""torch.distributed over mpi4py, traced, with waits that can be ended."""

from .join import join, leave, renew
from .trace import Call, Summary, Trace, trace
from .waiting import abort

__all__ = ["Call", "Summary", "Trace", "abort", "join", "leave", "renew", "trace"]
