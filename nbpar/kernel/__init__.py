"""A kernel that comes with its ranks: `python -m nbpar.kernel -f CONNECTION_FILE`.

spec.py       kernelspecs: write, list, remove
commands.py   the same as `python -m nbpar kernel …`
app.py        IPython's kernel with the extension loaded and its ranks on their way
"""
