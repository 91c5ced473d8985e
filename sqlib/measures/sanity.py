"""Sanity of an attribution method: do its maps change when the weights they are to explain are replaced by random ones?

The model parameter randomisation test (Adebayo et al. 2018, "Sanity Checks for Saliency Maps"), cascading: the layers
are initialised anew one after another, from the last to the first, and each time the maps are compared with those of the
trained model. A method whose maps stay the same shows the image, or the architecture, but not what was learned.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sqlib.maps.attribution import saliency_map
from sqlib.measures.clarity import dead
from sqlib.measures.likeness import spearman, ssim
from sqlib.networks.network import Network

UNMOVED = 0.5
"""A mean Spearman above this after every layer was randomised: the method does not react to the weights."""


def cascade(model: Network, seed: int) -> Iterator[tuple[str, Network]]:
    """`(layer, network)` from the last layer to the first: a copy with `layer` and all behind it as newly initialised.

    The same copy each time, changed further. Weights and biases are drawn by the network's own `reset_parameters`. PACT's
    clips keep their trained values: they belong to the activations, and new weights behind them may close every gate, so
    dead maps have to be counted. The given model and torch's global generator stay as they are; the same seed gives the
    same weights.
    """
    fresh, changed = copy.deepcopy(model).cpu(), copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        fresh.reset_parameters()
    for name in reversed(model.layer_names):
        layer = changed.get_submodule(name)
        layer.load_state_dict(fresh.get_submodule(name).state_dict())
        # A layer read from a packed file computes with fixed codes, whatever its weights.
        layer.fixed_codes = layer.fixed_step = None
        yield name, changed


@dataclass
class Cascade:
    """Maps of ever more randomised networks against the trained one's, one row a depth.

    `layers`: what was randomised last, from the network's last layer to its first. `spearman`, `foreground` (the same
    among the image's bright pixels), `ssim`: (depths, N), -1 to 1, 1 where nothing changed, NaN where either map is dead.
    `dead`: (depths, N), is the randomised network's map dead?
    """

    layers: tuple[str, ...]
    spearman: Tensor
    foreground: Tensor
    ssim: Tensor
    dead: Tensor

    @property
    def flagged(self) -> bool:
        """Whether the maps do not react: mean Spearman above `UNMOVED` with all layers randomised.

        Images with a dead map do not count: the comparison says nothing about them. Without any other, False.
        """
        return bool(self.spearman[-1].nanmean() > UNMOVED)

    @property
    def flagged_foreground(self) -> bool:
        """The same rule for the foreground alone: such a method does not react where the image leaves it any choice."""
        return bool(self.foreground[-1].nanmean() > UNMOVED)


def spearman_foreground(maps_a: Tensor, maps_b: Tensor, images: Tensor) -> Tensor:
    """Spearman of |map_a| and |map_b| (N,H,W) among the pixels brighter than 0 of images (N,C,H,W): (N,), -1 to 1.

    A black background orders the pixels whatever the weights are: input x gradient is 0 there, and behind new weights
    (whose biases are 0) every gate is closed. NaN where either map has no two different values on the foreground.
    """
    return spearman(maps_a, maps_b, where=images.amax(dim=1) > 0)


def randomisation(
    model: Network,
    images: Tensor,
    targets: Tensor,
    method: str = "gradient",
    surrogate: str = "straight_through",
    seed: int = 0,
    maps: Tensor | None = None,
) -> Cascade:
    """Similarity of a method's maps before and after cascading randomisation of the weights; lower is better.

    Spearman and SSIM of |map|, as in Adebayo et al. 2018, for the same `targets` throughout. SSIM is high between
    any two maps that are nearly empty, so that Spearman decides what is flagged.

    Args:
        images: (N,C,H,W) in [0,1].
        targets: (N,) the explained classes: what the trained model predicts.
        method, surrogate: see `sqlib.maps.attribution.saliency_map`, whose errors are raised.
        seed: of the new weights.
        maps: (N,H,W) of the trained model, where they are known.
    """
    maps = saliency_map(model, images, targets, method, surrogate) if maps is None else maps
    layers, ranks, foregrounds, structures, deaths = [], [], [], [], []
    for layer, changed in cascade(model, seed):
        new = saliency_map(changed, images, targets, method, surrogate)
        layers.append(layer)
        ranks.append(spearman(maps, new))
        foregrounds.append(spearman_foreground(maps, new, images))
        structures.append(ssim(maps, new))
        deaths.append(dead(new))
    return Cascade(tuple(layers), *(torch.stack(rows) for rows in (ranks, foregrounds, structures, deaths)))
