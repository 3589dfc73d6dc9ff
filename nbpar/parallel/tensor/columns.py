"""Which parameters can be split, and along which dimension. The kernel asks too, for its pictures: no MPI here."""

from __future__ import annotations

from torch import nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
PROJECTIONS = ("in_proj_weight", "in_proj_bias", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def columns(module: nn.Module) -> dict[str, int]:
    """The dimension of the output's columns in each parameter that can be split."""
    if isinstance(module, nn.Linear) or (isinstance(module, CONVOLUTIONS) and module.groups == 1):
        return {"weight": 0, "bias": 0}
    if isinstance(module, nn.Embedding) and not module.sparse:
        return {"weight": 1}
    if isinstance(module, nn.MultiheadAttention):
        return dict.fromkeys(PROJECTIONS, 0)
    return {}


def why_whole(module: nn.Module) -> str:
    """Why none of its parameters can be split, in words."""
    if isinstance(module, CONVOLUTIONS):
        return "its groups are separate"
    if isinstance(module, nn.Embedding):
        return "its gradients are sparse"
    return "only Linear, Conv, Embedding and MultiheadAttention are split"
