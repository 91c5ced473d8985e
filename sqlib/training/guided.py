"""Saliency-guided training (Ismail et al. 2021, arXiv 2111.14338, algorithm 1): the loss of one step.

Explain the batch in eval mode, replace each image's least salient pixels by noise, and minimise
`CE(f(x), y) + kl_weight * KL(f(x) || f(x~))` in train mode, with the gradient through both branches.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sqlib.maps.masking import explain_pass, mask_least_salient
from sqlib.networks.network import Network
from sqlib.networks.passes import evaluating
from sqlib.quant.layers import holding_weights
from sqlib.training.options import Guidance


def shifted(images: Tensor, pixels: int, generator: torch.Generator | None = None) -> Tensor:
    """Images (N,H,W) or (N,C,H,W), each moved by -pixels to pixels (drawn evenly) in both directions, zeros behind them."""
    if pixels == 0:
        return images
    height, width = images.shape[-2:]
    stacked = images.reshape(len(images), -1, height, width)
    padded = F.pad(stacked, [pixels] * 4)
    down, right = torch.randint(2 * pixels + 1, (2, len(images), 1), generator=generator, device=images.device)
    rows = (down + torch.arange(height, device=images.device))[:, None, :, None]
    columns = (right + torch.arange(width, device=images.device))[:, None, None, :]
    sample = torch.arange(len(images), device=images.device)[:, None, None, None]
    channel = torch.arange(stacked.shape[1], device=images.device)[None, :, None, None]
    return padded[sample, channel, rows, columns].reshape(images.shape)


def guided_loss(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    guidance: Guidance | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Saliency-guided loss of a batch, 0-d, to call `backward` on, and the logits (N,classes) of its images.

    Args:
        model: any module that makes logits of images; it is trained in the mode that it is in, and explained in eval mode.
        images: (N,C,H,W), no gradient is left on them.
        labels: (N,) the true classes.
        guidance: what is masked and how much that counts (`Guidance()`).
        generator: for the noise that masked pixels are replaced by.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    >>> images, labels = torch.rand(5, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1])
    >>> loss, logits = guided_loss(model, images, labels, Guidance(fraction=0.25, fill="mean"))
    >>> loss.backward()
    >>> logits.shape, bool(loss > F.cross_entropy(logits, labels))
    (torch.Size([5, 3]), True)
    """
    guidance = guidance or Guidance()
    images = images.detach().requires_grad_()
    with holding_weights(model):
        clean_logits, explained = (shared_passes if isinstance(model, Network) else both_passes)(model, images)
        saliency = explain_pass(explained, images, labels, guidance.score, keep=True)
        masked = mask_least_salient(images, saliency, guidance.fraction, guidance.rank, guidance.fill, generator)
        masked_logits = model(masked)
    clean = clean_logits.log_softmax(dim=1)
    if guidance.detach_clean:
        clean = clean.detach()
    divergence = F.kl_div(masked_logits.log_softmax(dim=1), clean, log_target=True, reduction="batchmean")
    return F.cross_entropy(clean_logits, labels) + guidance.kl_weight * divergence, clean_logits


def both_passes(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of the images in the mode that the model is in, and in eval mode."""
    logits = model(images)
    with evaluating(model):
        return logits, model(images)


def shared_passes(model: Network, images: Tensor) -> tuple[Tensor, Tensor]:
    """`both_passes`, to the bit: what dropout leaves alone is computed once."""
    features = model.features(images)
    logits = model.classify(*features)
    if not model.drops():
        return logits, logits
    with evaluating(model):
        return logits, model.classify(*features)
