"""Saliency-guided training done plainly: the procedure of its authors' code as docs/method.md describes it, in our own words.

Ismail et al. 2021 (arXiv 2111.14338). What makes it plain: a float32 network of stock torch layers, a Captum call a batch, a
Python loop over the samples to mask them, a pass each for the clean and the masked images. One known fault is not
repeated, because it changes the result and not the time: the fill comes from the image's own range, not another's.
"""

import torch
import torch.nn.functional as F
from captum.attr import Saliency
from torch import Tensor, nn

from sqlib.training.options import Guidance
from steps import random_batch
from timing import Step

GUIDANCE = Guidance(fraction=0.5, rank="signed", fill="uniform", score="log_prob", kl_weight=1.0)
"""The authors' parameters; sqlib's step is given the same ones."""

LEARNING_RATE = 1.0
"""Of Adadelta."""


class Net(nn.Module):
    """`sgt_cnn` in float, layers named as in `sqlib.networks.network`: images (N,1,28,28) to log-probabilities (N,10)."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.dropout_first = nn.Dropout(0.25)
        self.fc1 = nn.Linear(64 * 12 * 12, 128)
        self.dropout_last = nn.Dropout(0.5)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.conv1(images))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = self.dropout_first(x).flatten(1)
        x = F.relu(self.fc1(x))
        return self.fc2(self.dropout_last(x)).log_softmax(dim=1)


def saliency(net: Net, images: Tensor, labels: Tensor) -> Tensor:
    """Signed gradient maps (N,28,28) of each label's log-probability, in eval mode."""
    net.eval()
    inputs = images.clone().requires_grad_()
    return Saliency(net).attribute(inputs, target=labels, abs=False).squeeze(1).detach()


def mask_lowest(images: Tensor, maps: Tensor, fraction: float, noise: Tensor | None = None) -> Tensor:
    """Copies of the images with the lowest `fraction` of the pixels of each map replaced by noise, one image at a time.

    noise: (N, replaced pixels) in [0, 1), lowest pixel first, to be stretched over the image's own range; drawn if None.
    """
    masked = images.clone()
    count = int(fraction * maps[0].numel())
    for i in range(len(images)):
        lowest = maps[i].flatten().argsort()[:count]
        smallest, largest = images[i].min(), images[i].max()
        unit = torch.rand(count) if noise is None else noise[i]
        masked[i].view(-1)[lowest] = unit * (largest - smallest) + smallest
    return masked


def train_step(net: Net, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> None:
    """One step: explain, mask, then CE(f(x), y) + KL(f(x) || f(x~)) with the gradient through both."""
    masked = mask_lowest(images, saliency(net, images, labels), GUIDANCE.fraction)
    net.train()
    optimizer.zero_grad()
    clean, other = net(images), net(masked)
    divergence = F.kl_div(other, clean, log_target=True, reduction="batchmean")
    (F.nll_loss(clean, labels) + GUIDANCE.kl_weight * divergence).backward()
    optimizer.step()


def step(batch: int) -> Step:
    """One `train_step` on the fixed batch."""
    images, labels = random_batch(batch)
    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.Adadelta(net.parameters(), lr=LEARNING_RATE)
    return lambda: train_step(net, optimizer, images, labels)
