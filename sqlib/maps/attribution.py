"""Saliency maps, through Captum where Captum has the method.

A quantised network is piecewise constant: its true gradient is zero almost everywhere. A "gradient" map of it shows the
gradient of the straight-through surrogate it was trained with, or (`unclipped`) of one that also passes above the clip.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from captum.attr import InputXGradient, IntegratedGradients, LayerGradCam, NoiseTunnel, Occlusion, Saliency
from torch import Tensor, nn

from sqlib.checked import SqlibError, nearest
from sqlib.maps.surrogates import explanation_gradient, frozen
from sqlib.networks.network import Network
from sqlib.networks.passes import BATCH
from sqlib.quant.layers import holding_weights

SMOOTHGRAD_NOISE = 0.15
"""Standard deviation of SmoothGrad's noise, in units of the pixel range [0, 1] (Smilkov et al. 2017 use 10 to 20%)."""
SMOOTHGRAD_SAMPLES = 16
INTEGRATION_STEPS = 32
OCCLUSION_WINDOW, OCCLUSION_STRIDE = 5, 2


def saliency_map(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    method: str = "gradient",
    surrogate: str = "straight_through",
    batch: int = BATCH,
) -> Tensor:
    """Signed saliency maps (N,H,W) of the logits of `targets`; several input channels are added up.

    Args:
        images: (N,C,H,W) in [0,1].
        targets: (N,) the explained class of each image.
        method: a name in `METHODS`.
        surrogate: `straight_through` or `unclipped`; without effect on a network that is not quantised.

    Raises SqlibError for an unknown method or surrogate, and for `deep_lift`, whose rules do not know PACT.

    >>> linear = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    >>> _ = linear[1].weight.data.copy_(torch.tensor([[1.0, 2, 3, 4], [0, 0, 0, -1]]))
    >>> images = torch.full((2, 1, 2, 2), 0.5)
    >>> saliency_map(linear, images, torch.tensor([0, 1]), "input_x_gradient").tolist()
    [[[0.5, 1.0], [1.5, 2.0]], [[0.0, 0.0], [0.0, -0.5]]]
    """
    if method in ("deep_lift", "deeplift", "DeepLift"):
        raise SqlibError(
            f"method '{method}': DeepLift's rules do not know PACT layers; take one of {', '.join(METHODS)}"
        )
    if method not in METHODS:
        raise SqlibError(f"unknown saliency method '{method}'{nearest(method, METHODS)}")
    if not len(images):
        return images.new_zeros(0, *images.shape[2:])
    if len(images) != len(targets):
        raise SqlibError(f"{len(images)} images but {len(targets)} targets: expected one class an image")
    with frozen(model), explanation_gradient(model, surrogate), holding_weights(model):
        parts = zip(images.split(batch), targets.split(batch), strict=True)
        explain = METHODS[method].function
        maps = [
            explain(model, part.detach().clone().requires_grad_(), target).detach().sum(dim=1) for part, target in parts
        ]
    return torch.cat(maps)


def _gradients(forward_fn, inputs: tuple[Tensor], target_ind: Tensor, additional_forward_args=None):
    """What Captum's `compute_gradients` gives for logits, in one backward pass of their sum instead of one output an image."""
    with torch.enable_grad():
        (images,) = inputs
        logits = forward_fn(images)
        chosen = logits[torch.arange(len(logits)), target_ind]
        return torch.autograd.grad(chosen.sum(), images)


def _without_overhead(explainer: Saliency | InputXGradient | IntegratedGradients):
    """The same explainer, with `_gradients` for its own: no image's logit depends on another image."""
    explainer.gradient_func = _gradients
    return explainer


def gradient(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    return _without_overhead(Saliency(model)).attribute(images, target=targets, abs=False)


def input_x_gradient(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    return _without_overhead(InputXGradient(model)).attribute(images, target=targets)


def integrated_gradients(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """From a black image, in `INTEGRATION_STEPS` steps."""
    explainer = _without_overhead(IntegratedGradients(model))
    return explainer.attribute(images, target=targets, n_steps=INTEGRATION_STEPS, internal_batch_size=BATCH)


def smoothgrad(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Seeded: the same call gives the same maps, but an image's noise depends on its place in the batch."""
    with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
        torch.manual_seed(0)
        return NoiseTunnel(_without_overhead(Saliency(model))).attribute(
            images,
            nt_type="smoothgrad",
            nt_samples=SMOOTHGRAD_SAMPLES,
            nt_samples_batch_size=1,
            stdevs=SMOOTHGRAD_NOISE,
            target=targets,
            abs=False,
        )


def grad_cam(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """On `last_convolution`, enlarged bilinearly, not negative."""
    explainer = LayerGradCam(model, last_convolution(model))
    cam = explainer.attribute(images, target=targets, relu_attributions=True)
    return F.interpolate(cam, size=images.shape[2:], mode="bilinear", align_corners=False)


def occlusion(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """A window of `OCCLUSION_WINDOW` pixels filled with black, moved by `OCCLUSION_STRIDE`."""
    images = images.detach()
    window = (images.shape[1], OCCLUSION_WINDOW, OCCLUSION_WINDOW)
    strides = (images.shape[1], OCCLUSION_STRIDE, OCCLUSION_STRIDE)
    together = max(1, BATCH // len(images))  # covered copies of an image: a few images fill a batch, too
    with torch.no_grad():
        return Occlusion(_in_batches_of_one_size(model)).attribute(
            images, window, strides=strides, baselines=0, target=targets, perturbations_per_eval=together
        )


def _in_batches_of_one_size(model: nn.Module):
    """The model, with smaller batches filled up to `BATCH`: how sums are rounded depends on a batch's size, and the score of
    an image must not differ from that of a copy in which nothing was covered."""

    def forward(images: Tensor) -> Tensor:
        filled = images.repeat(-(-BATCH // len(images)), 1, 1, 1)[: max(BATCH, len(images))]
        return model(filled)[: len(images)]

    return forward


def last_convolution(model: nn.Module) -> nn.Module:
    """What Grad-CAM looks at: the activation behind the last convolution of a `Network`; of other models the last `nn.Conv2d`
    registered, whose own output it is, since the activation behind it may serve other layers, too.

    Raises SqlibError for a model without convolutions.
    """
    if isinstance(model, Network):
        return model.get_submodule(f"{model.convs[-1]}_act")
    convolutions = [
        module for _, module in model.named_modules(remove_duplicate=False) if isinstance(module, nn.Conv2d)
    ]
    if not convolutions:
        raise SqlibError("grad_cam looks at the last nn.Conv2d, and the model has none: take another method")
    return convolutions[-1]


@dataclass(frozen=True)
class Method:
    """One way to explain: `function(model, images, targets)` returns attributions (N,1 or C,H,W) for images (N,C,H,W).

    title: as readers write it; short: for a narrow column. passes: through the model for a map of 28 x 28 pixels. source: who
    proposed it.
    uses_gradient: whether it depends on the gradient that PACT passes on, its surrogate.
    """

    function: Callable[[nn.Module, Tensor, Tensor], Tensor]
    title: str
    passes: int
    source: str
    short: str = ""
    uses_gradient: bool = True


METHODS: dict[str, Method] = {
    "gradient": Method(gradient, "gradient", 1, "Simonyan et al. 2013"),
    "input_x_gradient": Method(input_x_gradient, "input × gradient", 1, "Shrikumar et al. 2016", "input × gr."),
    "integrated_gradients": Method(
        integrated_gradients, "integrated gradients", INTEGRATION_STEPS, "Sundararajan et al. 2017", "int. gr."
    ),
    "smoothgrad": Method(smoothgrad, "SmoothGrad", SMOOTHGRAD_SAMPLES, "Smilkov et al. 2017", "SmoothGr."),
    "grad_cam": Method(grad_cam, "Grad-CAM", 1, "Selvaraju et al. 2017"),
    "occlusion": Method(occlusion, "occlusion", 169, "Zeiler and Fergus 2014", uses_gradient=False),
}
"""The methods of `saliency_map` by name: a new one is a function and a row."""
