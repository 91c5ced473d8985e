"""Saliency-guided training (Ismail et al. 2021, arXiv 2111.14338, algorithm 1): the loss of one step.

Explain the batch in eval mode, replace each image's least salient pixels by noise, and minimise
`CE(f(x), y) + kl_weight * KL(f(x) || f(x~))` in train mode, with the gradient through both branches.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

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
    model: Network, images: Tensor, labels: Tensor, guidance: Guidance, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Saliency-guided loss of a batch and its logits on the clean images; leaves no gradient on `images`."""

    images = images.detach().requires_grad_()
    with holding_weights(model):
        # The pass that is explained is the one that is trained, but for what is dropped: explained is eval mode.
        features = model.features(images)
        clean_logits = explained = model.classify(*features)
        if model.drops():
            with evaluating(model):
                explained = model.classify(*features)
        saliency = explain_pass(explained, images, labels, guidance.score, keep=True)
        masked = mask_least_salient(images, saliency, guidance.fraction, guidance.rank, guidance.fill, generator)
        masked_logits = model(masked)
    clean = clean_logits.log_softmax(dim=1)
    if guidance.detach_clean:
        clean = clean.detach()
    divergence = F.kl_div(masked_logits.log_softmax(dim=1), clean, log_target=True, reduction="batchmean")
    return F.cross_entropy(clean_logits, labels) + guidance.kl_weight * divergence, clean_logits
