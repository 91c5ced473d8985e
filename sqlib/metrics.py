"""What is measured on saliency maps. Pure functions on tensors: maps (N,H,W) in, one number an image (N,) out.

Signed maps are taken by their absolute value. A *dead* map (zero everywhere) says nothing about clarity: its values are
NaN, and it is counted by `dead` instead; average with `torch.nanmean`, beside the dead-map rate.
"""

import math

import numpy as np
import torch
from scipy.ndimage import uniform_filter
from torch import Tensor, nn

DEAD_BELOW = 1e-12
FRACTIONS = tuple(k / 10 for k in range(10))
"""Shares of the pixels that deletion blanks: 0, 0.1 ... 0.9."""


def dead(maps: Tensor) -> Tensor:
    """(N,) truth values: is the largest absolute value of the map below 1e-12?"""
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
    """
    m = _magnitudes(maps).sort(dim=1).values
    n = m.shape[1]
    k = torch.arange(1, n + 1, dtype=m.dtype, device=m.device)
    return _alive_only(((2 * k - n - 1) * m).sum(dim=1) / (n * m.sum(dim=1)), maps).float()


def entropy(maps: Tensor) -> Tensor:
    """Shannon entropy of |map| as a distribution over pixels, over ln(n): 0 (one pixel) to 1 (constant); lower is clearer.

    NaN for dead maps.
    """
    m = _magnitudes(maps)
    p = m / m.sum(dim=1, keepdim=True)
    return _alive_only(torch.special.entr(p).sum(dim=1) / math.log(m.shape[1]), maps).float()


def total_variation(maps: Tensor) -> Tensor:
    """Mean absolute difference between neighbours (right and below) of |map| / max: 0 (constant) to 1 (chessboard).

    Anisotropic total variation (Rudin et al. 1992) over the number of neighbour pairs; lower is smoother. NaN for dead
    maps.
    """
    m = maps.abs().double()
    m = m / m.flatten(1).amax(dim=1).view(-1, 1, 1)
    down, right = m.diff(dim=1).abs().flatten(1), m.diff(dim=2).abs().flatten(1)
    return _alive_only(torch.cat([down, right], dim=1).mean(dim=1), maps).float()


def foreground_lift(maps: Tensor, images: Tensor) -> Tensor:
    """Share of |map| on the foreground over the share of pixels that are foreground; 1 is chance, higher is better.

    Foreground: pixels brighter than 0 (both data sets have an exactly black background). `images`: (N,H,W) or (N,1,H,W).
    NaN for dead maps and for images that are all foreground or all background.
    """
    m = _magnitudes(maps)
    foreground = (images.reshape(len(images), -1) > 0).double()
    if foreground.shape != m.shape:
        raise ValueError(f"images {tuple(images.shape)} do not fit maps {tuple(maps.shape)}")
    share = foreground.mean(dim=1)
    lift = (m * foreground).sum(dim=1) / m.sum(dim=1) / share
    lift = lift.masked_fill((share == 0) | (share == 1), math.nan)
    return _alive_only(lift, maps).float()


def _pair(maps_a: Tensor, maps_b: Tensor) -> tuple[np.ndarray, np.ndarray, Tensor]:
    if maps_a.shape != maps_b.shape:
        raise ValueError(f"maps of different shapes: {tuple(maps_a.shape)} and {tuple(maps_b.shape)}")
    unusable = dead(maps_a) | dead(maps_b)
    return maps_a.abs().double().cpu().numpy(), maps_b.abs().double().cpu().numpy(), unusable


def spearman(maps_a: Tensor, maps_b: Tensor, where: Tensor | None = None) -> Tensor:
    """Spearman's rank correlation of |map_a| and |map_b|, -1 to 1; 1 means the same order of pixels.

    where: (N,H,W) truth values, the pixels that count (all).
    NaN where a map is dead, or constant among those pixels (no order). Ties take their average rank.
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


SSIM_WINDOW = 7
"""Pixels in height and width, all of one weight: scikit-image's default."""


def ssim(maps_a: Tensor, maps_b: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004; 7 x 7 windows) of |map_a| / max and |map_b| / max, -1 to 1; 1: the same.

    NaN where a map is dead. Raises ValueError for maps smaller than a window.
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


# --------------------------------------------------------------------------------------------------- faithfulness


def deletion_curve(
    model: nn.Module, images: Tensor, labels: Tensor, order: Tensor, fractions: tuple[float, ...] = FRACTIONS
) -> Tensor:
    """Accuracy while the first pixels of `order` are blanked with the image's corner value: (len(fractions),).

    The masked accuracy of Ismail et al. 2021, fig. 3. images (N,C,H,W), labels (N,), order (N, H*W) pixel indices, most
    salient first (see `salient_order`, `random_order`).
    """
    from sqlib.models import predict

    n, channels = images.shape[:2]
    pixels = images.reshape(n, channels, -1)
    corner = pixels[:, :, :1]
    accuracy = []
    for fraction in fractions:
        count = round(fraction * order.shape[1])
        where = order[:, None, :count].expand(n, channels, count)
        blanked = pixels.scatter(2, where, corner.expand(n, channels, count)).view_as(images)
        accuracy.append((predict(model, blanked).argmax(dim=1) == labels).double().mean())
    return torch.stack(accuracy)


def salient_order(maps: Tensor) -> Tensor:
    """(N,H,W) maps to (N, H*W) pixel indices by falling |map|; ties keep their place in the image."""
    return maps.abs().flatten(1).argsort(dim=1, descending=True, stable=True)


def random_order(count: int, pixels: int, seed: int) -> Tensor:
    """(count, pixels): a random order of the pixels for each image, the control beside every deletion curve."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, pixels, generator=generator).argsort(dim=1)


def area_under(curve: Tensor, fractions: tuple[float, ...] = FRACTIONS) -> float:
    """Trapezoid area under a curve over its fractions, over their range: the mean height, 0 to 1 for an accuracy."""
    return areas_under(curve[None], fractions).item()


def areas_under(curves: Tensor, fractions: tuple[float, ...] = FRACTIONS) -> Tensor:
    """(N,) `area_under` of each of the curves (N, len(fractions))."""
    x = torch.tensor(fractions, dtype=torch.float64, device=curves.device)
    return torch.trapezoid(curves.double(), x) / (x[-1] - x[0])
