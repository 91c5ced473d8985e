"""How many bits each layer gets: `Setup`, and what bits there may be."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from sqlib.checked import Name, SqlibError, Strict, nearest

FLOAT = 32
"""The number of bits that stands for "not quantised"."""


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
    """How many bits each layer of a model gets; the study's setups are files, `params/setups/<name>.yaml`.

    Bits of a layer, most specific first: `layers[name]`, then `first` or `last` for the model's first and last layer with
    weights, then `default`. The last layer's output are the logits, which are never quantised.

    >>> setup = Setup(name="w2a4", title="2-bit weights", default={"weights": 2, "activations": 4}, last={"weights": 8})
    >>> [setup.bits(layer, ["conv1", "conv2", "fc"]) for layer in ("conv1", "fc")]
    [(2, 4), (8, 4)]
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
        fitted = (4, 8) if self.zero_aligned else (2, 3, 4, 8)
        for part in (self.default, self.first, self.last, *self.layers.values()):
            if self.weight_method == "sawb" and part.weights not in (None, FLOAT, *fitted):
                raise ValueError(
                    f"weights: {part.weights} bits{' zero-aligned' * self.zero_aligned}: weight_method 'sawb' is made for "
                    f"{', '.join(map(str, fitted))}; take weight_method 'minmax' or 'dorefa'"
                )
        return self

    def bits(self, layer: str, names: Sequence[str]) -> tuple[int, int]:
        """Bits of the weights of `layer`, one of a model's `names` in order, and of the activation behind it.

        Raises SqlibError for a layer that is not among the names.
        """
        if layer not in names:
            raise SqlibError(f"there is no layer '{layer}'{nearest(layer, names)}")
        ends = [self.first] * (layer == names[0]) + [self.last] * (layer == names[-1])
        chain = [self.layers.get(layer, LayerBits()), *ends, self.default]
        weights = next(b.weights for b in chain if b.weights is not None)
        activations = next(b.activations for b in chain if b.activations is not None)
        return weights, activations

    def all_quantised(self, names: Sequence[str]) -> bool:
        """Whether all layers of a model with these `names` have integer weights, all activations codes: it runs in integers."""
        *hidden, last = (self.bits(layer, names) for layer in names)
        return last[0] != FLOAT and all(FLOAT not in bits for bits in hidden)

    @property
    def weight_options(self) -> dict[str, Any]:
        """What layers are told of how their weights are quantised, besides the bits: keyword arguments of `QuantConv2d`."""
        return {"method": self.weight_method, "zero_aligned": self.zero_aligned, "per_channel": self.per_channel}

    @property
    def is_float(self) -> bool:
        """Whether nothing at all is quantised."""
        parts = [self.default, self.first, self.last, *self.layers.values()]
        return all(bits in (None, FLOAT) for part in parts for bits in (part.weights, part.activations))


def check_bits(bits: int, lowest: int) -> None:
    if isinstance(bits, bool) or not isinstance(bits, int) or not lowest <= bits <= 8:
        raise ValueError(f"bits = {bits!r}: expected an integer from {lowest} to 8")
