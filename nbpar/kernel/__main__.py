"""`python -m nbpar.kernel -f CONNECTION_FILE`: what a kernelspec of nbpar's starts, by itself or under a launcher."""

import os
import sys

from nbpar.ranks.prepare import LAUNCHED, size_from_launcher

if __name__ == "__main__":
    if LAUNCHED not in os.environ and size_from_launcher() > 1:
        from nbpar.kernel.launched import become_rank

        become_rank(sys.argv[1:])
    from nbpar.kernel.app import RanksKernelApp

    RanksKernelApp.launch_instance()
