"""How alike two maps of one image are. Maps (N,H,W) in, one number an image (N,) out; NaN where one of the two is dead."""

import math

import numpy as np
import torch
from scipy.ndimage import uniform_filter
from torch import Tensor

from sqlib.measures.clarity import dead

SSIM_WINDOW = 7
"""Pixels in height and width, all of one weight: scikit-image's default."""


def _pair(maps_a: Tensor, maps_b: Tensor) -> tuple[np.ndarray, np.ndarray, Tensor]:
    if maps_a.shape != maps_b.shape:
        raise ValueError(f"maps of different shapes: {tuple(maps_a.shape)} and {tuple(maps_b.shape)}")
    unusable = dead(maps_a) | dead(maps_b)
    return maps_a.abs().double().cpu().numpy(), maps_b.abs().double().cpu().numpy(), unusable


def spearman(maps_a: Tensor, maps_b: Tensor, where: Tensor | None = None) -> Tensor:
    """Spearman's rank correlation of |map_a| and |map_b|, -1 to 1; 1 means the same order of pixels.

    where: (N,H,W) truth values, the pixels that count (all).
    NaN where a map is dead, or constant among those pixels (no order). Ties take their average rank.

    >>> spearman(torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]), torch.tensor([[[-10.0, 30.0, 20.0, 40.0]]]))
    tensor([0.8000])
    """
    from scipy.stats import rankdata  # half a second, which jobs that compare no maps need not pay

    a, b, unusable = _pair(maps_a, maps_b)
    a, b = (m.reshape(len(m), -1) for m in (a, b))
    counts = np.ones(a.shape, dtype=bool) if where is None else where.cpu().numpy().reshape(a.shape)
    with np.errstate(invalid="ignore", divide="ignore"):
        # The others are infinite here: they rank behind, and the ranks of those that count are their own.
        ranks = [rankdata(np.where(counts, m, np.inf), axis=1) * counts for m in (a, b)]
        ranks = [(r - r.sum(axis=1, keepdims=True) / counts.sum(axis=1, keepdims=True)) * counts for r in ranks]
        norm = np.sqrt((ranks[0] ** 2).sum(axis=1) * (ranks[1] ** 2).sum(axis=1))
        rho = torch.from_numpy((ranks[0] * ranks[1]).sum(axis=1) / norm)
    return rho.masked_fill(unusable.cpu(), math.nan).float()


def ssim(maps_a: Tensor, maps_b: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004; 7 x 7 windows) of |map_a| / max and |map_b| / max, -1 to 1; 1: the same.

    NaN where a map is dead. Raises ValueError for maps smaller than a window.

    >>> one = torch.eye(8)[None]
    >>> ssim(torch.cat([one, one]), torch.cat([5 * one, one.flip(1)]))
    tensor([ 1.0000, -0.1460])
    """
    a, b, unusable = _pair(maps_a, maps_b)
    if min(a.shape[1:]) < SSIM_WINDOW:
        raise ValueError(
            f"maps {tuple(maps_a.shape)}: expected at least {SSIM_WINDOW} x {SSIM_WINDOW} pixels, a window"
        )
    values = torch.full((len(a),), math.nan, dtype=torch.float64)
    alive = ~unusable.cpu().numpy()
    if alive.any():
        values[torch.from_numpy(alive)] = torch.from_numpy(_structural_similarity(a[alive], b[alive]))
    return values.float()


def _structural_similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N,) scikit-image's `structural_similarity` of each pair a / max, b / max (N,H,W), with its defaults, in one go."""
    a, b = (m / m.max(axis=(1, 2), keepdims=True) for m in (a, b))
    size, c1, c2 = SSIM_WINDOW, 0.01**2, 0.03**2
    mean_a, mean_b, aa, bb, ab = (uniform_filter(m, size=(0, size, size)) for m in (a, b, a * a, b * b, a * b))
    unbiased = size**2 / (size**2 - 1)
    var_a, var_b, covariance = (
        unbiased * (product - mean) for product, mean in ((aa, mean_a**2), (bb, mean_b**2), (ab, mean_a * mean_b))
    )
    likeness = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    likeness /= (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    edge = size // 2  # where windows reach over the edge
    return likeness[:, edge:-edge, edge:-edge].mean(axis=(1, 2))


def top_iou(maps_a: Tensor, maps_b: Tensor, share: float = 0.1) -> Tensor:
    """Intersection over union of the top `share` of pixels by |map|: 0 to 1 (the same pixels).

    The number of pixels is rounded; ties at the edge go to the earlier pixel. NaN where a map is dead.

    >>> top_iou(torch.tensor([[[1.0, -9.0, 8.0, 0.0]]]), torch.tensor([[[7.0, 9.0, 1.0, 0.0]]]), share=0.5)
    tensor([0.3333])
    """
    a, b, unusable = _pair(maps_a, maps_b)
    n = a[0].size if len(a) else 1
    count = max(1, round(share * n))
    tops = []
    for m in (a, b):
        order = np.argsort(-m.reshape(len(m), -1), axis=1, kind="stable")[:, :count]
        top = np.zeros((len(m), n), dtype=bool)
        np.put_along_axis(top, order, True, axis=1)
        tops.append(top)
    iou = (tops[0] & tops[1]).sum(axis=1) / (tops[0] | tops[1]).sum(axis=1)
    return torch.from_numpy(iou).masked_fill(unusable.cpu(), math.nan).float()
