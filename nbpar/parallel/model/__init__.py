"""`%%parallel model`: every rank runs the whole cell; a layer's tensors are real on one rank and meta on the others.

home       where a tensor lives: an attribute of its storage
channel    what ranks say to each other
transfer   Depart and Arrive, Enter, Spread: values between ranks, differentiable
table      what each torch function does with a remote value; what is not in it is refused
dispatch   runs every torch function where its operands live
units      a submodule of one rank is one step on the others
layers     models as a chain of layers, divided over the ranks
build      models made in the cell are made in pieces
keep       what stays on the ranks after the cell
place      tensors become remote; whole: they become real again
session    one cell, from its first module call to the comparison at its end
"""
