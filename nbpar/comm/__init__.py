"""torch.distributed over mpi4py, traced, with waits that can be ended."""

from . import foreign
from .asleep import Asleep
from .join import all_reduce_, join, leave, meet_at_end, moment, renew, sum_over, watch
from .relay import relay, way
from .state import joined as world
from .trace import Call, Summary, Trace, trace
from .waiting import abort, lend

__all__ = [
    "Asleep",
    "Call",
    "Summary",
    "Trace",
    "abort",
    "all_reduce_",
    "foreign",
    "join",
    "leave",
    "lend",
    "meet_at_end",
    "moment",
    "relay",
    "renew",
    "sum_over",
    "trace",
    "watch",
    "way",
    "world",
]
