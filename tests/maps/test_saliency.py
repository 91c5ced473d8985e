"""Tests of sqlib.maps.attribution: maps worked out by hand on tiny models, and the masking pixel by pixel."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sqlib.checked import SqlibError
from sqlib.maps import attribution, surrogates
from sqlib.maps.attribution import METHODS, saliency_map
from sqlib.maps.masking import explain_pass, mask_least_salient
from sqlib.networks.network import build_model
from sqlib.quant.activations import PACT


@pytest.fixture
def linear():
    """Logits W x + b of (N,C,7,7) images: every gradient is a row of W."""
    return nn.Sequential(nn.Flatten(), nn.Linear(2 * 49, 3)).eval()


@pytest.fixture
def quantised(make_setup):
    """A 2-bit lenet5 whose clips are low enough that many units are clipped."""
    model = build_model("lenet5", make_setup(2, 2)).eval()
    for clip in model.clips().values():
        nn.init.constant_(clip.alpha, 0.2)
    return model


@pytest.fixture
def images():
    return torch.randint(256, (5, 1, 28, 28), generator=torch.Generator().manual_seed(1)).float() / 255


TARGETS = torch.tensor([3, 1, 4, 1, 5])


# ------------------------------------------------------------------------------------------- by hand: a linear model


@pytest.fixture
def tiny():
    generator = torch.Generator().manual_seed(7)
    return torch.rand(4, 2, 7, 7, generator=generator), torch.tensor([2, 0, 1, 2])


def rows(linear, targets):
    return linear[1].weight.detach()[targets].view(-1, 2, 7, 7)


def test_gradient_of_a_linear_model_is_its_row(linear, tiny):
    x, targets = tiny
    expected = rows(linear, targets).sum(dim=1)
    assert (expected < 0).any()  # signed
    torch.testing.assert_close(saliency_map(linear, x, targets), expected)
    torch.testing.assert_close(saliency_map(linear, x, targets, batch=3), expected)
    torch.testing.assert_close(saliency_map(linear, x, targets, "smoothgrad"), expected)  # noise changes no slope here


def test_input_times_gradient_and_its_integral_from_black(linear, tiny):
    x, targets = tiny
    expected = (rows(linear, targets) * x).sum(dim=1)
    torch.testing.assert_close(saliency_map(linear, x, targets, "input_x_gradient"), expected)
    torch.testing.assert_close(saliency_map(linear, x, targets, "integrated_gradients"), expected, rtol=1e-4, atol=1e-6)


def test_occlusion_of_a_linear_model(linear, tiny):
    # Each 5 x 5 window takes sum(W x) inside it away from the logit; a pixel has the mean over its windows (two
    # channels, added up, have twice that).
    x, targets = tiny
    mass = (rows(linear, targets) * x).sum(dim=1)
    total, count = torch.zeros(4, 7, 7), torch.zeros(7, 7)
    for top in (0, 2):
        for left in (0, 2):
            window = slice(top, top + 5), slice(left, left + 5)
            total[(slice(None), *window)] += mass[(slice(None), *window)].sum(dim=(1, 2)).view(-1, 1, 1)
            count[window] += 1
    torch.testing.assert_close(saliency_map(linear, x, targets, "occlusion") / 2, total / count, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bits", [4, 32])
@pytest.mark.parametrize("count", [1, 2, 7, 30, 64, 65])
def test_covering_what_is_black_already_changes_nothing_however_many_images(count, bits, make_setup):
    torch.manual_seed(0)
    model = build_model("lenet", make_setup(bits, bits))
    images = torch.zeros(count, 1, 28, 28)
    images[:, :, 10:18, 10:18] = torch.randint(1, 256, (count, 1, 8, 8)) / 255  # codes, as real pixels are
    sizes = []
    model.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    maps = saliency_map(model, images, torch.arange(count) % 10, "occlusion")
    assert set(sizes) == {64}  # how a batch of another size is rounded differs from processor to processor
    outside = torch.ones(28, 28, dtype=torch.bool)
    outside[6:22, 6:22] = False
    inside = maps[:, 10:18, 10:18].abs().amax(dim=(1, 2))
    assert (inside > 0).all()
    # Sums of codes are exact; in float some processors round by an image's place in its batch, too.
    allowed = 0 if bits == 4 else 1e-5 * inside[:, None]
    assert (maps[:, outside].abs() <= allowed).all()


def explained(model, images, targets, score):
    images = images.clone().requires_grad_()
    return explain_pass(model(images), images, targets, score)


def test_gradient_of_logit_and_log_probability(linear, tiny):
    x, targets = tiny
    weight = rows(linear, torch.arange(3))
    torch.testing.assert_close(explained(linear, x, targets, "logit"), weight[targets].sum(dim=1))
    # d log p_t / dx = W_t - sum_c p_c W_c
    p = linear(x).softmax(dim=1).detach()
    expected = weight[targets] - torch.einsum("nc,cijk->nijk", p, weight)
    torch.testing.assert_close(explained(linear, x, targets, "log_prob"), expected.sum(dim=1))


def test_grad_cam_by_hand(quantised, images):
    seen = {}
    handle = quantised.conv2_act.register_forward_hook(lambda m, i, o: seen.update(act=o))
    logits = quantised(images)
    handle.remove()
    score = logits.gather(1, TARGETS[:, None]).sum()
    (grad,) = torch.autograd.grad(score, seen["act"])
    weights = grad.mean(dim=(2, 3), keepdim=True)
    cam = (weights * seen["act"]).sum(dim=1, keepdim=True).relu()
    expected = F.interpolate(cam, size=(28, 28), mode="bilinear", align_corners=False)[:, 0].detach()
    assert expected.max() > 0
    torch.testing.assert_close(saliency_map(quantised, images, TARGETS, "grad_cam"), expected, rtol=1e-4, atol=1e-7)


def test_grad_cam_of_a_model_with_one_relu_for_all_layers(images):
    relu = nn.ReLU(inplace=True)
    model = nn.Sequential(nn.Conv2d(1, 3, 5), relu, nn.Flatten(), nn.Linear(3 * 576, 8), relu, nn.Linear(8, 10))
    assert attribution.last_convolution(model) is model[0]
    maps = saliency_map(model, images, TARGETS, "grad_cam")
    assert maps.shape == (5, 28, 28) and maps.any()


def test_smoothgrad_is_the_gradient_when_its_noise_goes_to_zero(make_setup, images, monkeypatch):
    model = build_model("lenet5", make_setup(32, 32))
    plain = saliency_map(model, images, TARGETS)
    assert not torch.allclose(saliency_map(model, images, TARGETS, "smoothgrad"), plain, atol=1e-4)
    monkeypatch.setattr(attribution, "SMOOTHGRAD_NOISE", 1e-8)
    torch.testing.assert_close(saliency_map(model, images, TARGETS, "smoothgrad"), plain, rtol=1e-3, atol=1e-6)


# ------------------------------------------------------------------------------------------------------ surrogates


class Clipped(nn.Module):
    """Two logits: PACT (clip 1) of 2 x0 + 3 x1, and 0."""

    def __init__(self):
        super().__init__()
        self.act = PACT(4, start=1.0)

    def forward(self, x):
        x = x.flatten(1)
        y = self.act(2 * x[:, :1] + 3 * x[:, 1:])
        return torch.cat([y, torch.zeros_like(y)], dim=1)


def test_surrogates_differ_above_the_clip_only():
    x = torch.tensor([[[[0.1, 0.1]]], [[[1.0, 1.0]]], [[[-1.0, 0.0]]]])  # inside, above, below
    targets = torch.zeros(3, dtype=torch.long)
    model = Clipped()
    straight = saliency_map(model, x, targets)
    unclipped = saliency_map(model, x, targets, surrogate="unclipped")
    assert straight[:, 0].tolist() == [[2, 3], [0, 0], [0, 0]]
    assert unclipped[:, 0].tolist() == [[2, 3], [2, 3], [0, 0]]
    assert model.act.unclipped is False


def test_surrogate_is_put_back_even_after_an_error():
    model = Clipped()
    model.act.unclipped = True
    with pytest.raises(IndexError):
        saliency_map(model, torch.rand(1, 1, 1, 2), torch.tensor([9]))
    assert model.act.unclipped is True
    assert model.act.alpha.requires_grad


# --------------------------------------------------------------------------------------- every method, on a network


@pytest.mark.parametrize("method", METHODS)
def test_each_method_on_a_quantised_network(method, quantised, images):
    torch.manual_seed(11)
    first = saliency_map(quantised, images, TARGETS, method)
    torch.manual_seed(12)
    state = torch.get_rng_state()
    assert torch.equal(saliency_map(quantised, images, TARGETS, method), first)  # whatever the global seed
    assert torch.equal(torch.get_rng_state(), state)
    assert first.shape == (5, 28, 28) and first.dtype == torch.float32
    assert not first.requires_grad and first.isfinite().all()
    assert (first.flatten(1).abs().amax(dim=1) > 0).all()
    others = saliency_map(quantised, images, (TARGETS + 1) % 10, method)
    assert not torch.allclose(first, others)
    if not METHODS[method].uses_gradient:
        return
    assert not torch.allclose(first, saliency_map(quantised, images, TARGETS, method, surrogate="unclipped"))


@pytest.mark.parametrize("method", METHODS)
def test_three_channels_and_no_images(method, make_setup):
    model = build_model("lenet5", make_setup(4, 4), in_channels=3)
    x = torch.rand(2, 3, 28, 28)
    assert saliency_map(model, x, torch.tensor([1, 2]), method).shape == (2, 28, 28)
    assert saliency_map(model, x[:0], torch.tensor([], dtype=torch.long), method).shape == (0, 28, 28)


@pytest.mark.parametrize("method", METHODS)
def test_explaining_leaves_the_model_as_it_was(method, make_setup, images):
    model = build_model("sgt_cnn", make_setup(2, 2)).train()
    model.dropout_first.eval()
    model.conv1.bias.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    given = images[:2].clone()
    saliency_map(model, given, TARGETS[:2], method, surrogate="unclipped")
    assert torch.equal(given, images[:2]) and not given.requires_grad and given.grad is None
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert wanted == {name: name != "conv1.bias" for name in wanted}
    assert model.training and model.dropout_last.training and not model.dropout_first.training
    assert not any(clip.unclipped for clip in model.clips().values())
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())


def test_maps_are_those_of_eval_mode(make_setup, images):
    model = build_model("sgt_cnn", make_setup(4, 4))
    expected = saliency_map(model.eval(), images[:2], TARGETS[:2])
    assert torch.equal(saliency_map(model.train(), images[:2], TARGETS[:2]), expected)


def test_frozen_restores_after_an_error(quantised):
    quantised.train()
    with pytest.raises(KeyError), surrogates.frozen(quantised) as model:
        assert not model.training and not any(p.requires_grad for p in model.parameters())
        raise KeyError
    assert quantised.training and all(p.requires_grad for p in quantised.parameters())


@pytest.mark.parametrize("method", ["deep_lift", "DeepLift", "deeplift"])
def test_deep_lift_is_refused(method, quantised, images):
    with pytest.raises(SqlibError, match="do not know PACT"):
        saliency_map(quantised, images, TARGETS, method)


def test_bad_arguments(quantised, images):
    with pytest.raises(SqlibError, match="did you mean 'gradient'"):
        saliency_map(quantised, images, TARGETS, "gradien")
    with pytest.raises(SqlibError, match="did you mean 'unclipped'"):
        saliency_map(quantised, images, TARGETS, surrogate="uncliped")
    with pytest.raises(SqlibError, match="5 images but 4 targets"):
        saliency_map(quantised, images, TARGETS[:4])


# --------------------------------------------------------------------------------------------------------- masking


def one_image():
    """A 2 x 3 image and its map: by value the lowest are -3, -1; by size 0.5, -1."""
    image = torch.tensor([[0.2, 0.4, 0.6], [0.8, 0.3, 0.5]]).view(1, 1, 2, 3)
    return image, torch.tensor([[-3.0, 2.0, -1.0], [0.5, 4.0, 5.0]]).view(1, 2, 3)


@pytest.mark.parametrize("rank, masked", [("signed", [0, 2]), ("abs", [2, 3])])
@pytest.mark.parametrize("fill, value", [("corner", 0.2), ("mean", 2.8 / 6)])
def test_mask_by_hand(rank, masked, fill, value):
    image, scores = one_image()
    before = image.clone()
    expected = image.clone().flatten()
    expected[masked] = value
    result = mask_least_salient(image, scores, 2 / 6, rank, fill)
    torch.testing.assert_close(result.flatten(), expected)
    assert torch.equal(image, before)


@pytest.mark.parametrize("rank", ["signed", "abs"])
@pytest.mark.parametrize("fill", ["corner", "mean"])
@pytest.mark.parametrize("shape", [(3, 1, 5, 7), (2, 3, 4, 4), (1, 2, 1, 9)])
def test_masking_is_that_of_a_plain_loop(shape, fill, rank):
    images, saliency = torch.rand(shape), torch.randn(shape[0], *shape[2:])
    expected = images.clone()
    for image, scores in zip(expected, saliency, strict=True):
        places = [(row, column) for row in range(shape[2]) for column in range(shape[3])]
        places.sort(key=lambda place, scores=scores: abs(scores[place]) if rank == "abs" else scores[place])
        for channel in image:
            value = channel.mean() if fill == "mean" else channel[0, 0].clone()
            for place in places[: int(0.4 * len(places))]:
                channel[place] = value
    torch.testing.assert_close(mask_least_salient(images, saliency, 0.4, rank, fill), expected)


@pytest.mark.parametrize("fraction, count", [(0, 0), (0.5, 3), (0.49, 2), (0.99, 5), (1, 6)])
def test_number_of_masked_pixels_is_rounded_down(fraction, count):
    image, scores = one_image()
    result = mask_least_salient(image + 1, scores, fraction, fill="uniform", generator=torch.Generator().manual_seed(0))
    assert (result != image + 1).sum() == count


@pytest.mark.parametrize("fraction, count", [(0.29, 29), (0.57, 57), (0.58, 58), (0.07, 7)])
def test_the_count_is_not_one_less_by_rounding_error(fraction, count):
    image = torch.rand(1, 1, 10, 10) + 1
    result = mask_least_salient(image, torch.rand(1, 10, 10), fraction, fill="uniform")
    assert (result != image).sum() == count


def test_uniform_noise_stays_inside_the_images_own_range():
    generator = torch.Generator().manual_seed(0)
    low, high = torch.tensor([0.0, 0.2, -1.0, 0.5]), torch.tensor([1.0, 0.3, -0.5, 0.5])
    images = torch.rand(4, 1, 28, 28, generator=generator) * (high - low).view(-1, 1, 1, 1) + low.view(-1, 1, 1, 1)
    scores = torch.randn(4, 28, 28, generator=generator)
    result = mask_least_salient(images, scores, 0.5, "signed", "uniform", generator)
    threshold = scores.flatten(1).median(dim=1).values.view(-1, 1, 1)  # the 392nd of 784
    kept = (scores > threshold)[:, None]
    assert torch.equal(result[kept], images[kept])
    for image, masked, where in zip(images, result, ~kept, strict=True):
        assert where.sum() == 392
        noise = masked[where]
        assert image.min() <= noise.min() and noise.max() <= image.max()
        if image.max() > image.min():
            position = (noise - image.min()) / (image.max() - image.min())
            assert position.min() < 0.02 and position.max() > 0.98  # all of the range
            assert position.mean().item() == pytest.approx(0.5, abs=0.06)
            assert (noise != image[where]).all()


def test_three_channels_share_their_pixels():
    images = torch.rand(2, 3, 6, 6) + torch.tensor([0.0, 5.0]).view(2, 1, 1, 1)
    scores = torch.randn(2, 6, 6)
    changed = mask_least_salient(images, scores, 0.25) != images
    assert (changed.sum(dim=(2, 3)) == 9).all()
    assert torch.equal(changed[:, 0], changed[:, 1]) and torch.equal(changed[:, 0], changed[:, 2])
    means = mask_least_salient(images, scores, 0.25, fill="mean")
    for image, mean, where in zip(images, means, changed, strict=True):
        for channel in range(3):
            assert torch.allclose(mean[channel][where[channel]], image[channel].mean())
    corners = mask_least_salient(images, scores, 0.25, fill="corner")
    assert torch.equal(corners[changed].view(2, 3, 9), images[:, :, :1, 0].expand(2, 3, 9))


def test_noise_is_that_of_the_generator():
    image, scores = one_image()

    def masked(seed):
        return mask_least_salient(image, scores, 0.5, generator=torch.Generator().manual_seed(seed))

    state = torch.get_rng_state()
    assert torch.equal(masked(1), masked(1))
    assert not torch.equal(masked(1), masked(2))
    assert torch.equal(torch.get_rng_state(), state)


def test_masking_gives_no_gradient_to_the_images():
    image, scores = one_image()
    assert not mask_least_salient(image.requires_grad_(), scores, 0.5).requires_grad


@pytest.mark.parametrize(
    "change, words",
    [
        ({"fraction": 1.5}, "fraction = 1.5"),
        ({"fraction": -0.1}, "fraction = -0.1"),
        ({"fraction": float("nan")}, "fraction = nan"),
        ({"rank": "largest"}, "rank = 'largest'"),
        ({"fill": "black"}, "fill = 'black'"),
        ({"saliency": torch.zeros(1, 3, 2)}, "expected"),
        ({"saliency": torch.zeros(1, 1, 2, 3)}, "expected"),
    ],
)
def test_masking_refuses(change, words):
    image, scores = one_image()
    with pytest.raises(ValueError, match=words):
        mask_least_salient(**{"images": image, "saliency": scores, "fraction": 0.5, **change})


@pytest.mark.parametrize("method", ["gradient", "input_x_gradient", "integrated_gradients", "smoothgrad"])
def test_captums_own_gradients_are_the_same(method, quantised, images, monkeypatch):
    ours = saliency_map(quantised, images, TARGETS, method)
    monkeypatch.setattr(attribution, "_without_overhead", lambda explainer: explainer)
    torch.testing.assert_close(ours, saliency_map(quantised, images, TARGETS, method), rtol=1e-5, atol=1e-6)
