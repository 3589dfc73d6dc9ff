"""`%%parallel model --how tensor`: every rank runs the whole cell; the weights of layers are split over the ranks.

A `Sharded` tensor stands for the whole tensor: it has its shape, and each rank holds its shard along one dimension. Every
operation on one gives what it gives on the whole tensor. Three ways lead there, from the quickest to the most general:

    layers      Linear, Conv and Embedding compute with the shards alone
    rules       elementwise operations (activations, optimisers) run shard by shard, reductions and then an all-reduce
    rules       anything else, random numbers above all, runs on the gathered whole on every rank

ranks      the group of ranks and its collectives
sharded    the tensor; above: what Python asks of it
functions  the border between whole values and this rank's part, differentiable
columns    which parameters can be split, and along which dimension; split: those that are
whole      at the end of the cell: tensors of the notebook again
mode       around a cell
"""
