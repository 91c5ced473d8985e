"""The study's networks as data: what each is made of, and what its layers are called. Needs no torch."""

from dataclasses import dataclass

from sqlib.checked import SqlibError, nearest
from sqlib.quant.bits import Setup


@dataclass(frozen=True)
class Conv:
    """A convolution of stride 1, and the max-pooling behind it."""

    channels: int
    kernel: int
    padding: int = 0
    pool: int = 1


@dataclass(frozen=True)
class Architecture:
    """Convolutions, then hidden linear layers, then the classes; dropout before the first and the last linear layer."""

    convs: tuple[Conv, ...]
    hidden: tuple[int, ...]
    dropout: tuple[float, float] = (0.0, 0.0)
    description: str = ""

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the layers with weights, in order: what a setup may name."""
        convs = (f"conv{k}" for k in range(1, len(self.convs) + 1))
        return (*convs, *(f"fc{k}" for k in range(1, len(self.hidden) + 2)))


ARCHITECTURES = {
    "lenet": Architecture((Conv(32, 5, pool=2), Conv(64, 5, pool=2)), (128,), description="LeNet-like, 3.9 M MACs"),
    "sgt_cnn": Architecture(
        (Conv(32, 3), Conv(64, 3, pool=2)),
        (128,),
        dropout=(0.25, 0.5),
        description="the network of the saliency-guided-training paper's code, 12 M MACs",
    ),
    "lenet5": Architecture(
        (Conv(6, 5, padding=2, pool=2), Conv(16, 5, pool=2)), (120, 84), description="LeNet-5 with ReLU, 0.4 M MACs"
    ),
}
NETWORK_LAYERS = {name: architecture.layers for name, architecture in ARCHITECTURES.items()}
"""The layers with weights of each network, in order."""


def check_network(setup: Setup, network: str) -> None:
    """Raises SqlibError when the setup names a layer that `network` does not have."""
    for layer in setup.layers:
        if layer not in NETWORK_LAYERS[network]:
            raise SqlibError(f"network '{network}' has no layer '{layer}'{nearest(layer, NETWORK_LAYERS[network])}")
