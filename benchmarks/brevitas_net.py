"""`lenet` with 4-bit weights and activations built with Brevitas, the established library for quantised training.

Given every chance: pooling before the activation and channels_last memory, as in sqlib; clips that are learned from the
start, since Brevitas's default sorts all activations in the first 300 steps to find them; plain tensors between layers.
Brevitas is a dependency of this benchmark only (requirements-bench.txt), and it is reported when it is missing.
"""

import importlib.util

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steps import random_batch
from timing import Step

BITS = 4


def why_not() -> str | None:
    """Why Brevitas cannot be measured here, or None."""
    if importlib.util.find_spec("brevitas") is None:
        return "not measured: brevitas is not installed (`make bench` installs it)"
    try:
        import brevitas.nn  # noqa: F401
    except Exception as error:  # whatever an import that does not fit this torch raises
        return f"not measured: brevitas does not import ({type(error).__name__}: {error})"
    return None


class Net(nn.Module):
    """`lenet`, layers named as in `sqlib.networks.network`: images (N,1,28,28) to logits (N,10). Needs Brevitas."""

    def __init__(self):
        import brevitas.nn as qnn
        from brevitas.quant import Uint8ActPerTensorFloatMaxInit

        super().__init__()

        def activation() -> nn.Module:  # starts as wide as sqlib's PACT
            return qnn.QuantReLU(act_quant=Uint8ActPerTensorFloatMaxInit, max_val=10.0, bit_width=BITS)

        self.conv1 = qnn.QuantConv2d(1, 32, 5, weight_bit_width=BITS)
        self.conv1_act = activation()
        self.conv2 = qnn.QuantConv2d(32, 64, 5, weight_bit_width=BITS)
        self.conv2_act = activation()
        self.fc1 = qnn.QuantLinear(64 * 4 * 4, 128, bias=True, weight_bit_width=BITS)
        self.fc1_act = activation()
        self.fc2 = qnn.QuantLinear(128, 10, bias=True, weight_bit_width=BITS)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv1_act(F.max_pool2d(self.conv1(images), 2))
        x = self.conv2_act(F.max_pool2d(self.conv2(x), 2))
        return self.fc2(self.fc1_act(self.fc1(x.flatten(1))))


def step(batch: int, precision: str = "float32") -> Step:
    """One ordinary training step on the fixed batch, with the optimiser that sqlib uses.

    bfloat16: weights, activations and gradients are all bfloat16, the fastest way Brevitas has.
    """
    images, labels = random_batch(batch)
    dtype = getattr(torch, precision)
    images = images.to(dtype).contiguous(memory_format=torch.channels_last)
    torch.manual_seed(0)
    net = Net().to(dtype=dtype, memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3, fused=True)

    def train_step() -> None:
        loss = F.cross_entropy(net(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return train_step
