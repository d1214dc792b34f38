"""Norms that run over a cut dimension (OLMo2's q and k norm): what their weights are multiplied by."""

from __future__ import annotations

import torch
from torch import Tensor

from prune.model.groups import Slice
from prune.model.model import Model


def factor(model: Model, piece: Slice, removed: Tensor) -> float:
    """What a sliced norm's weight is multiplied by, so that kept units leave it about as large as they did.

    The norm divides by the root mean square over all positions, and the mean changes with those it runs over. The
    ratio is measured on the weights of the linear that feeds the norm, as if its inputs were white: exactly
    sqrt(all / kept) when the `removed` positions (n,) are dead, and 1 when they are like the others.
    """
    energy = model.tensors.read(piece.norm_of).float().square().sum(1)  # (positions,)
    bias = model.tensors.info.get(piece.norm_of.removesuffix("weight") + "bias")
    if bias is not None:
        energy = energy + model.tensors.read(piece.norm_of.removesuffix("weight") + "bias").float().square()
    kept = torch.ones(len(energy), dtype=torch.bool)
    kept[removed] = False
    ratio = energy[kept].mean() / energy.mean().clamp_min(torch.finfo(torch.float32).tiny)
    return float(ratio.sqrt())


def masked_factor(model: Model, piece: Slice, removed: Tensor) -> float:
    """The same for the big model's norm when its removed inputs are zero, but still counted in the mean."""
    size = model.tensors.info[piece.name].shape[piece.dim]
    return factor(model, piece, removed) * ((size - len(removed)) / size) ** 0.5
