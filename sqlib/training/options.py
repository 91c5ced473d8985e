"""The options of training that belong to the method: how clips move, and what guidance does."""

from typing import Annotated, Any, Literal, Protocol

from pydantic import Field

from sqlib.checked import Strict
from sqlib.quant.bits import Setup


class Clip(Strict):
    """How PACT's clip `a` starts and moves (docs/method.md: wide, and closed by its penalty)."""

    start: Annotated[float, Field(gt=0, le=1e4)] = 10.0
    penalty: Annotated[float, Field(ge=0, le=1)] = 1e-3
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 3e-2


class Guidance(Strict):
    """How training is guided by saliency (Ismail et al. 2021, algorithm 1), see `sqlib.training.guided`.

    fraction: of the pixels, those that matter least are masked. rank: they matter least by their map's `signed` value or by its
    `abs` size. fill: what they are replaced by, see `mask_least_salient`. score: whose gradient the map is, the true class's
    `logit` or its `log_prob`. kl_weight: what the divergence of the two predictions counts beside the cross-entropy.
    detach_clean: no gradient flows to the prediction for the clean image.

    >>> Guidance(fraction=0.3, fill="mean").kl_weight
    1.0
    """

    fraction: Annotated[float, Field(gt=0, lt=1)] = 0.5
    rank: Literal["signed", "abs"] = "abs"
    fill: Literal["uniform", "corner", "mean"] = "uniform"
    score: Literal["logit", "log_prob"] = "log_prob"
    kl_weight: Annotated[float, Field(ge=0, le=1e3)] = 1.0
    detach_clean: bool = False


class Recipe(Protocol):
    """What a training is told: anything with these attributes. `parameters` holds what `study.parameters.Training` does."""

    id: str
    network: str
    setup: Setup
    training: str
    seed: int
    epochs: int
    threads: int
    parameters: Any
