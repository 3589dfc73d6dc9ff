"""`--check K`: one process replays the cell up to its K-th optimiser step; what it has there is compared with what the ranks have.

    rank 0   ─┬─ waits ──────────────────────── the cell in its mode ─── step K: look ─── … end ─── compare → closing line
              └─ its copy: the cell in no mode ─── step K: look, tell, end

The copy is a fork of rank 0 before the cell: it has the same starting values to the bit, and nothing that it does comes back but
what it tells. A cell with fewer steps is looked at as it ends.

evidence   what a process has at that step; looked at in the same way in the copy and in any mode
replay     the copy
compare    two pieces of evidence: the same, or what differs first and by how much
check      around one cell, on one rank
"""
