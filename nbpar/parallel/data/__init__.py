"""Mode `data`: the batch is split over the ranks, inside calls of modules; outside them everything is whole on every rank.

mode         what changes in torch while a cell runs
call         which calls are split, and which run whole
once         one split call; attempt: its run on this rank's rows; border: into it and out of it
check        may it be split? trial, probes: on a few rows; pace: is it worth it?
layouts      how outputs are made of rows
draws        random numbers inside it
losses       means inside it
norm         BatchNorm inside it
gradients    of what it uses, averaged by the end of the backward pass
lazy         large outputs, gathered when somebody looks
local        the other way: a cell that works on this rank's rows
"""
