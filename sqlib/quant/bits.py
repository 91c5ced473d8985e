"""How many bits each layer gets: `Setup`, and what bits there may be."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from sqlib.checked import Name, SqlibError, Strict, nearest

FLOAT = 32
"""The number of bits that stands for "not quantised"."""
# The layers that carry weights, in order, and for each one whether an activation follows it: what a setup may name.
# `sqlib.networks.network` builds exactly these (a test holds the two together).
NETWORK_LAYERS: dict[str, tuple[str, ...]] = {
    "lenet": ("conv1", "conv2", "fc1", "fc2"),
    "sgt_cnn": ("conv1", "conv2", "fc1", "fc2"),
    "lenet5": ("conv1", "conv2", "fc1", "fc2", "fc3"),
}


def _check_bits(value: int, lowest: int) -> int:
    if value != FLOAT and not lowest <= value <= 8:
        raise ValueError(f"must be {lowest} to 8, or {FLOAT} for not quantised")
    return value


WeightBits = Annotated[int, Field(description="2 to 8, or 32 = float")]
ActivationBits = Annotated[int, Field(description="1 to 8, or 32 = float")]


class LayerBits(Strict):
    """Bits of one layer: of its weights, and of the activation that follows it (None: take the default's)."""

    weights: WeightBits | None = None
    activations: ActivationBits | None = None

    @field_validator("weights")
    @classmethod
    def _weights(cls, value: int | None) -> int | None:
        return value if value is None else _check_bits(value, 2)

    @field_validator("activations")
    @classmethod
    def _activations(cls, value: int | None) -> int | None:
        return value if value is None else _check_bits(value, 1)


class Setup(Strict):
    """A bit-width assignment: `params/setups/<name>.yaml`.

    Bits of a layer, most specific first: `layers[name]`, then `first` or `last` for the network's first and last layer,
    then `default`. The last layer's output are the logits, which are never quantised.
    """

    name: Name
    title: str
    default: LayerBits
    first: LayerBits = LayerBits()
    last: LayerBits = LayerBits()
    layers: dict[str, LayerBits] = {}
    weight_method: Literal["sawb", "dorefa", "minmax"] = "sawb"
    zero_aligned: bool = False
    per_channel: Annotated[bool, Field(exclude_if=lambda value: not value)] = False  # later than the first results
    note: str = ""

    @model_validator(mode="after")
    def _complete(self) -> "Setup":
        if self.default.weights is None or self.default.activations is None:
            raise ValueError("default needs both weights and activations")
        known = sorted({layer for layers in NETWORK_LAYERS.values() for layer in layers})
        for layer in self.layers:
            if layer not in known:
                raise ValueError(f"layers: unknown layer '{layer}'{nearest(layer, known)}")
        fitted = (4, 8) if self.zero_aligned else (2, 3, 4, 8)
        for part in (self.default, self.first, self.last, *self.layers.values()):
            if self.weight_method == "sawb" and part.weights not in (None, FLOAT, *fitted):
                raise ValueError(
                    f"weights: {part.weights} bits{' zero-aligned' * self.zero_aligned}: weight_method 'sawb' is made for "
                    f"{', '.join(map(str, fitted))}; take weight_method 'minmax' or 'dorefa'"
                )
        return self

    def bits(self, layer: str, network: str) -> tuple[int, int]:
        """Bits of the weights of `layer` and of the activation behind it, in `network`; raises SqlibError."""
        names = NETWORK_LAYERS[network]
        if layer not in names:
            raise SqlibError(f"network '{network}' has no layer '{layer}'{nearest(layer, names)}")
        ends = [self.first] * (layer == names[0]) + [self.last] * (layer == names[-1])
        chain = [self.layers.get(layer, LayerBits()), *ends, self.default]
        weights = next(b.weights for b in chain if b.weights is not None)
        activations = next(b.activations for b in chain if b.activations is not None)
        return weights, activations

    def check_network(self, network: str) -> None:
        """Raises SqlibError when the setup names a layer that `network` does not have."""
        for layer in self.layers:
            self.bits(layer, network)

    def all_quantised(self, network: str) -> bool:
        """Whether every layer of `network` has integer weights and every activation integer codes: it runs in integers."""
        *hidden, last = (self.bits(layer, network) for layer in NETWORK_LAYERS[network])
        return last[0] != FLOAT and all(FLOAT not in bits for bits in hidden)

    @property
    def is_float(self) -> bool:
        """Whether nothing at all is quantised."""
        parts = [self.default, self.first, self.last, *self.layers.values()]
        return all(bits in (None, FLOAT) for part in parts for bits in (part.weights, part.activations))


def check_bits(bits: int, lowest: int) -> None:
    if isinstance(bits, bool) or not isinstance(bits, int) or not lowest <= bits <= 8:
        raise ValueError(f"bits = {bits!r}: expected an integer from {lowest} to 8")
