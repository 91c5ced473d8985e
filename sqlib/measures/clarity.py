"""Clarity of saliency maps. Pure functions on tensors: maps (N,H,W) in, one number an image (N,) out.

Signed maps are taken by their absolute value. A *dead* map (zero everywhere) says nothing about clarity: its values are
NaN, and it is counted by `dead` instead; average with `torch.nanmean`, beside the dead-map rate.
"""

import math

import torch
from torch import Tensor

DEAD_BELOW = 1e-12


def dead(maps: Tensor) -> Tensor:
    """(N,) truth values: is the largest absolute value of the map below 1e-12?

    >>> dead(torch.tensor([[[0.0, 0.0]], [[0.0, -3.0]]]))
    tensor([ True, False])
    """
    return ~(maps.abs().flatten(1).amax(dim=1) >= DEAD_BELOW)


def _alive_only(values: Tensor, maps: Tensor) -> Tensor:
    return values.masked_fill(dead(maps), math.nan)


def _magnitudes(maps: Tensor) -> Tensor:
    # In float64: sums over 784 pixels of very different size.
    return maps.abs().flatten(1).double()


def gini(maps: Tensor) -> Tensor:
    """Gini index of |map|: 0 for a constant map, 1 - 1/n with all mass on one of n pixels; higher is sparser.

    `sum_k (2k - n - 1) m_k / (n sum_k m_k)`, m sorted upwards (Hurley and Rickard 2009; used for maps by Chalasani et
    al. 2020). NaN for dead maps.

    >>> gini(torch.tensor([[[1.0, -1.0], [1.0, 1.0]], [[0.0, 0.0], [-7.0, 0.0]]]))
    tensor([0.0000, 0.7500])
    """
    m = _magnitudes(maps).sort(dim=1).values
    n = m.shape[1]
    k = torch.arange(1, n + 1, dtype=m.dtype, device=m.device)
    return _alive_only(((2 * k - n - 1) * m).sum(dim=1) / (n * m.sum(dim=1)), maps).float()


def entropy(maps: Tensor) -> Tensor:
    """Shannon entropy of |map| as a distribution over pixels, over ln(n): 0 (one pixel) to 1 (constant); lower is clearer.

    NaN for dead maps.

    >>> entropy(torch.tensor([[[1.0, -1.0], [1.0, 1.0]], [[0.0, 0.0], [-7.0, 7.0]]]))
    tensor([1.0000, 0.5000])
    """
    m = _magnitudes(maps)
    p = m / m.sum(dim=1, keepdim=True)
    return _alive_only(torch.special.entr(p).sum(dim=1) / math.log(m.shape[1]), maps).float()


def total_variation(maps: Tensor) -> Tensor:
    """Mean absolute difference between neighbours (right and below) of |map| / max: 0 (constant) to 1 (chessboard).

    Anisotropic total variation (Rudin et al. 1992) over the number of neighbour pairs; lower is smoother. NaN for dead
    maps.

    >>> total_variation(torch.tensor([[[1.0, -1.0], [1.0, 1.0]], [[0.0, 2.0], [2.0, 0.0]]]))
    tensor([0., 1.])
    """
    m = maps.abs().double()
    m = m / m.flatten(1).amax(dim=1).view(-1, 1, 1)
    down, right = m.diff(dim=1).abs().flatten(1), m.diff(dim=2).abs().flatten(1)
    return _alive_only(torch.cat([down, right], dim=1).mean(dim=1), maps).float()


def foreground_lift(maps: Tensor, images: Tensor) -> Tensor:
    """Share of |map| on the foreground over the share of pixels that are foreground; 1 is chance, higher is better.

    Foreground: pixels brighter than 0 (both data sets have an exactly black background). `images`: (N,H,W) or (N,1,H,W).
    NaN for dead maps and for images that are all foreground or all background.

    >>> foreground_lift(torch.tensor([[[3.0, 0.0], [1.0, 0.0]]]), torch.tensor([[[0.9, 0.0], [0.0, 0.0]]]))  # 3/4 over 1/4
    tensor([3.])
    """
    m = _magnitudes(maps)
    foreground = (images.reshape(len(images), -1) > 0).double()
    if foreground.shape != m.shape:
        raise ValueError(f"images {tuple(images.shape)} do not fit maps {tuple(maps.shape)}")
    share = foreground.mean(dim=1)
    lift = (m * foreground).sum(dim=1) / m.sum(dim=1) / share
    lift = lift.masked_fill((share == 0) | (share == 1), math.nan)
    return _alive_only(lift, maps).float()
