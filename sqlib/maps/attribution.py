"""Saliency maps, through Captum where Captum has the method.

A quantised network is piecewise constant: its true gradient is zero almost everywhere. A "gradient" map of it shows the
gradient of the straight-through surrogate it was trained with, or (`unclipped`) of one that also passes above the clip.
"""

import torch
import torch.nn.functional as F
from captum.attr import InputXGradient, IntegratedGradients, LayerGradCam, NoiseTunnel, Occlusion, Saliency
from torch import Tensor, nn

from sqlib.checked import SqlibError, nearest
from sqlib.maps.surrogates import explanation_gradient, frozen
from sqlib.networks.passes import BATCH
from sqlib.quant.layers import holding_weights

METHODS = ("gradient", "input_x_gradient", "integrated_gradients", "smoothgrad", "grad_cam", "occlusion")
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
        method: `gradient` (Simonyan et al. 2013), `input_x_gradient`, `integrated_gradients` (from a black image;
            Sundararajan et al. 2017), `smoothgrad` (Smilkov et al. 2017; seeded: the same
            call gives the same maps, but an image's noise depends on its place in the batch), `grad_cam` (on the
            last convolution's activation, enlarged bilinearly, not negative; Selvaraju et al. 2017), `occlusion` (5 x 5
            window, stride 2, filled with black; Zeiler and Fergus 2014).
        surrogate: `straight_through` or `unclipped`; without effect on a network that is not quantised.

    Raises SqlibError for an unknown method or surrogate, and for `deep_lift`, whose rules do not know PACT.
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
        maps = [_attribute(model, part, target, method).detach().sum(dim=1) for part, target in parts]
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


def _attribute(model: nn.Module, images: Tensor, targets: Tensor, method: str) -> Tensor:
    images = images.detach().clone().requires_grad_(method not in ("grad_cam", "occlusion"))
    if method == "gradient":
        return _without_overhead(Saliency(model)).attribute(images, target=targets, abs=False)
    if method == "input_x_gradient":
        return _without_overhead(InputXGradient(model)).attribute(images, target=targets)
    if method == "integrated_gradients":
        explainer = _without_overhead(IntegratedGradients(model))
        return explainer.attribute(images, target=targets, n_steps=INTEGRATION_STEPS, internal_batch_size=BATCH)
    if method == "smoothgrad":
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
    if method == "grad_cam":
        # Grad-CAM differentiates with respect to an inner layer, so some gradient must flow there.
        images.requires_grad_()
        explainer = LayerGradCam(model, model.last_convolution())
        cam = explainer.attribute(images, target=targets, relu_attributions=True)
        return F.interpolate(cam, size=images.shape[2:], mode="bilinear", align_corners=False)
    with torch.no_grad():
        window = (images.shape[1], OCCLUSION_WINDOW, OCCLUSION_WINDOW)
        strides = (images.shape[1], OCCLUSION_STRIDE, OCCLUSION_STRIDE)
        together = max(1, BATCH // len(images))  # covered copies of an image: a few images fill a batch, too
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
