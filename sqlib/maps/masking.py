"""What guided training is made of: the gradient of a pass, and images without their least salient pixels."""

import torch
from torch import Tensor

from sqlib.quant.kernels import gradients_of


def explain_pass(logits: Tensor, images: Tensor, targets: Tensor, score: str, keep: bool = False) -> Tensor:
    """Gradient maps (N,H,W) of the target's `logit` or `log_prob`: what guided training ranks pixels by.

    Args:
        logits: (N,classes) that the model gave for `images` (N,C,H,W), which ask for a gradient.
        targets: (N,) the explained classes.
        keep: leave the graph for a second backward pass.

    >>> images = torch.ones(1, 1, 2, 2, requires_grad=True)
    >>> logits = torch.stack([images.sum(dim=(1, 2, 3)), (images**2).sum(dim=(1, 2, 3))], dim=1)
    >>> explain_pass(logits, images, torch.tensor([1]), score="logit").tolist()
    [[[2.0, 2.0], [2.0, 2.0]]]
    """
    if score == "log_prob":
        logits = logits.log_softmax(dim=1)
    with gradients_of("inputs"):
        (gradient,) = torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), images, retain_graph=keep)
    return gradient.sum(dim=1)


def mask_least_salient(
    images: Tensor,
    saliency: Tensor,
    fraction: float,
    rank: str = "signed",
    fill: str = "uniform",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Copies of the images with the least salient pixels replaced (Ismail et al. 2021, algorithm 1, line 6).

    Args:
        images: (N,C,H,W).
        saliency: (N,H,W).
        fraction: of the pixels to replace, 0 to 1; their number is rounded down.
        rank: `signed` takes the lowest values, `abs` the smallest absolute values.
        fill: `uniform` noise between the image's own smallest and largest value, its `corner` pixel, or its `mean`.
        generator: for the noise.

    Raises ValueError for a fraction outside [0, 1], an unknown rank or fill, or shapes that do not fit.

    >>> image, saliency = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]]), torch.tensor([[[0.1, -5.0], [0.3, 4.0]]])
    >>> mask_least_salient(image, saliency, 0.5, rank="abs", fill="mean").tolist()
    [[[[3.0, 2.0], [3.0, 6.0]]]]
    """
    n, channels, height, width = images.shape
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction = {fraction}: expected 0 to 1")
    if saliency.shape != (n, height, width):
        raise ValueError(f"saliency {tuple(saliency.shape)}: expected {(n, height, width)}, one map an image")
    if rank not in ("signed", "abs"):
        raise ValueError(f"rank = '{rank}': expected 'signed' or 'abs'")
    scores = saliency.flatten(1)
    count = int(fraction * scores.shape[1] + 1e-9)  # 0.29 x 100 is 28.999... in floating point
    if rank == "abs":
        scores = scores.abs()
    lowest = scores.topk(count, dim=1, largest=False, sorted=False).indices
    pixels = images.detach().reshape(n, channels, -1)
    where = lowest.unsqueeze(1).expand(n, channels, count)
    if fill == "uniform":
        low, high = pixels.flatten(1).amin(dim=1), pixels.flatten(1).amax(dim=1)
        low, high = low.view(n, 1, 1), high.view(n, 1, 1)
        noise = torch.rand(n, channels, count, generator=generator, device=images.device, dtype=images.dtype)
        values = noise.mul_(high - low).add_(low)
    elif fill == "corner":
        values = pixels[:, :, :1].expand(n, channels, count)
    elif fill == "mean":
        values = pixels.mean(dim=2, keepdim=True).expand(n, channels, count)
    else:
        raise ValueError(f"fill = '{fill}': expected 'uniform', 'corner' or 'mean'")
    return pixels.scatter(2, where, values).view_as(images)
