"""What one trained network looks at: the numbers of notebook 3, and what notebook 2 says while one is trained."""

from collections.abc import Mapping

import pandas as pd
from torch import Tensor

from sqlib.maps.attribution import saliency_map
from sqlib.maps.surrogates import SURROGATES
from sqlib.measures import clarity
from sqlib.networks.network import Network


def surest_errors(right: Tensor, confidence: Tensor, most: int = 6) -> list[int]:
    """The images that are answered wrong, those of which the network is most certain first. Both arguments: (images,)."""
    wrong = (~right).nonzero().flatten()
    return wrong[confidence[wrong].argsort(descending=True, stable=True)][:most].tolist()


def surrogates(model: Network, images: Tensor, predicted: Tensor) -> pd.DataFrame:
    """A row a surrogate of the gradient: dead maps and clarity, in the mean over the images (N,1,28,28)."""
    rows = {}
    for surrogate in SURROGATES:
        maps = saliency_map(model, images, predicted, surrogate=surrogate)
        rows[surrogate.replace("_", " ")] = {
            "dead maps": float(clarity.dead(maps).float().mean()),
            "Gini": float(clarity.gini(maps).nanmean()),
            "entropy": float(clarity.entropy(maps).nanmean()),
            "foreground lift": float(clarity.foreground_lift(maps, images).nanmean()),
        }
    return pd.DataFrame(rows).T.rename_axis("gradient")


def pass_gradient(shares: pd.DataFrame) -> str:
    """How many units of each layer pass gradient, in words. shares: of `figures.unit_shares`."""
    return "; ".join(f"{layer}: {share:.0%} pass gradient" for layer, share in shares["inside"].items())


def clips_end(clips: Mapping[str, float]) -> str:
    """Where the clip of each layer ends, in words."""
    return ", ".join(f"{layer} ends at {clip:.2f}" for layer, clip in clips.items())
