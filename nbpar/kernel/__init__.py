"""A kernel that comes with its ranks: `python -m nbpar.kernel -f CONNECTION_FILE`.

    spec.py       kernelspecs: write, list, remove
    commands.py   the same as `python -m nbpar kernel …`
    app.py        IPython's kernel with the extension loaded and its ranks on their way

Under a launcher (`mpiexec -n 4 python -m nbpar.kernel …`), for sites where only that may start processes:

    launched.py   what each started process does: the first hosts the kernel, all become ranks
    meeting.py    how they find the kernel
    world.py      the kernel's World, whose ranks come once
"""
