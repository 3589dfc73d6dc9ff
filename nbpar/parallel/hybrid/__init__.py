"""`%%parallel hybrid --mesh DxM`: D replicas of the model share the batch, M stages share the layers of each.

                 stage 0   stage 1
    replica 0    rank 0    rank 1      a row: the layers travel within it, as in mode `model`
    replica 1    rank 2    rank 3      a column: the rows of the batch, and the gradients of its layers, come together
                                       within it, as in mode `data`

Mode `data` is a program to mode `model`: the border of a split call cuts and gathers values of one stage, which are real on a
whole column or on none of it. So each collective runs in the column that holds the value, and is a matter of shapes elsewhere.

mode       enter and leave
columns    the collectives of mode `data`, in columns
replicas   which calls are split: what mode `model` must do first
"""
