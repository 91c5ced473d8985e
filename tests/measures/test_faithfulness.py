"""Fills and curves worked out by hand on a linear model whose important pixels are known."""

import pytest
import torch
from torch import nn

from sqlib.measures import faithfulness
from sqlib.measures.faithfulness import (
    DIRECTIONS,
    FILLS,
    areas_under,
    filled,
    gap,
    random_order,
    salient_order,
    still_right,
)
from sqlib.networks.network import build_model
from sqlib.networks.passes import predict

PIXELS = 10  # of the 2 x 5 images
WEIGHTS = torch.arange(10, 0, -1).float()  # of pixel 0 ... 9
THRESHOLD = 30.5


class Sum(nn.Module):
    """Class 1 while the weighted sum of the pixels is above `THRESHOLD`, else class 0."""

    def forward(self, images):
        total = images.flatten(1) @ WEIGHTS
        return torch.stack([torch.zeros_like(total), total - THRESHOLD], dim=1)


def deletion_curve(model, images, labels, order, fill="corner", fractions=faithfulness.FRACTIONS):
    """(len(fractions),) accuracy while the first pixels of the order are replaced."""
    return still_right(model, images, labels, order, fill, "deletion", fractions).double().mean(dim=1)


def insertion_curve(model, images, labels, order, fill="corner", fractions=faithfulness.FRACTIONS):
    """(len(fractions),) accuracy while nothing but the first pixels of the order is shown."""
    return still_right(model, images, labels, order, fill, "insertion", fractions).double().mean(dim=1)


@pytest.fixture
def bright():
    """Four white images with a black corner pixel, so that the corner fill is black; class 1 (their sum is 45)."""
    images = torch.ones(4, 1, 2, 5)
    images[:, :, 0, 0] = 0
    return images, torch.ones(4, dtype=torch.long)


@pytest.fixture
def network(make_setup):
    images = torch.randint(256, (30, 1, 28, 28), generator=torch.Generator().manual_seed(1)).float() / 255
    model = build_model("lenet5", make_setup(2, 2)).eval()
    return model, images, torch.arange(30) % 10


BEST = WEIGHTS.view(1, 2, 5).expand(4, 2, 5)
WORST = BEST.flip(1, 2)


# ---------------------------------------------------------------------------------------------------------- fills


def test_corner_and_mean_fill_each_channel_by_its_own():
    images = torch.arange(2 * 2 * 3 * 3).float().view(2, 2, 3, 3)
    assert filled(images, "corner")[:, :, 1, 2].tolist() == [[0, 9], [18, 27]]
    assert filled(images, "mean")[:, :, 2, 0].tolist() == [[4, 13], [22, 31]]
    assert all(filled(images, fill).shape == images.shape for fill in FILLS)


@pytest.mark.parametrize("fill", FILLS)
def test_no_fill_changes_a_constant_image(fill):
    images = torch.full((2, 3, 28, 28), 0.4)
    torch.testing.assert_close(filled(images, fill), images)


def test_blur_keeps_the_light_of_a_dot_and_spreads_it_evenly():
    images = torch.zeros(1, 1, 61, 61)
    images[0, 0, 30, 30] = 1
    blurred = filled(images, "blurred")[0, 0]
    assert blurred.dtype == torch.float32
    assert blurred.sum().item() == pytest.approx(1, abs=1e-5)
    assert blurred[30, 35].item() / blurred[30, 30].item() == pytest.approx(torch.tensor(-0.5).exp().item(), abs=1e-3)
    torch.testing.assert_close(blurred, blurred.T)


def test_blur_does_not_mix_images_or_channels():
    images = torch.zeros(2, 2, 28, 28)
    images[0, 1] = torch.rand(28, 28)
    blurred = filled(images, "blurred")
    assert blurred[0, 1].max() > 0
    assert blurred[0, 0].abs().max() == 0 and blurred[1].abs().max() == 0


# --------------------------------------------------------------------------------------------------------- curves


def test_deletion_by_hand(bright):
    # The sum after deleting k pixels, best first: 45 45 36 28 ...: right for k <= 2. Worst first: 45 44 42 39 35 30.
    assert deletion_curve(Sum(), *bright, salient_order(BEST)).tolist() == [1] * 3 + [0] * 7
    assert deletion_curve(Sum(), *bright, salient_order(WORST)).tolist() == [1] * 5 + [0] * 5


def test_insertion_by_hand(bright):
    # The sum of the k pixels shown, best first: 0 0 9 17 24 30 35: right for k >= 6. Worst first: 28 at k = 7, 36 at k = 8.
    assert insertion_curve(Sum(), *bright, salient_order(BEST)).tolist() == [0] * 6 + [1] * 4
    assert insertion_curve(Sum(), *bright, salient_order(WORST)).tolist() == [0] * 8 + [1] * 2


def test_mean_fill_by_hand():
    images = torch.zeros(1, 1, 2, 5)
    images[0, 0, 0] = 1  # sum 40; every pixel but the first five is black, the mean is 0.5
    labels, order = torch.ones(1, dtype=torch.long), torch.arange(10)[None]
    # Each deleted pixel of weight w takes w / 2, 10 / 2 first: 40 35 30.5, which is not above the threshold; then less,
    # and each later pixel gives it back: 20 + 3, 5, 7, 8 ... never above 27.5.
    assert deletion_curve(Sum(), images, labels, order, "mean").tolist() == [1, 1] + [0] * 8
    # From 27.5 upwards: 27.5 32.5 37 41 44.5 47.5 for the image with all five.
    half = torch.full_like(images, 0.5)
    torch.testing.assert_close(filled(images, "mean"), half)
    assert insertion_curve(Sum(), images, labels, order, "mean")[:3].tolist() == [0, 1, 1]


def test_the_known_importance_beats_random_orders_and_these_beat_its_reverse(bright):
    images, labels = (part.repeat_interleave(100, dim=0) for part in bright)
    orders = [
        salient_order(BEST.repeat(100, 1, 1)),
        random_order(400, PIXELS, 0),
        salient_order(WORST.repeat(100, 1, 1)),
    ]
    deleted = [faithfulness.area_under(deletion_curve(Sum(), images, labels, order)) for order in orders]
    inserted = [faithfulness.area_under(insertion_curve(Sum(), images, labels, order)) for order in orders]
    assert deleted == sorted(deleted) and inserted == sorted(inserted, reverse=True)
    assert len(set(deleted)) == len(set(inserted)) == 3


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_random_map_has_no_gap(direction, bright):
    images, labels = (part.repeat_interleave(500, dim=0) for part in bright)
    maps = torch.rand(2000, 2, 5, generator=torch.Generator().manual_seed(3))
    area, random = (
        areas_under(still_right(Sum(), images, labels, order, "corner", direction).T)
        for order in (salient_order(maps), random_order(2000, PIXELS, seed=4))
    )
    assert gap(area, random, direction).mean().item() == pytest.approx(0, abs=0.015)
    assert gap(area, area, direction).abs().max() == 0


def test_gap_is_positive_for_the_better_map():
    assert gap(0.3, 0.7, "deletion") == pytest.approx(0.4)
    assert gap(0.9, 0.7, "insertion") == pytest.approx(0.2)


@pytest.mark.parametrize("fill", FILLS)
def test_a_constant_image_stays_right_or_wrong(fill, network):
    model, images, labels = network
    constant = images[:, :, :1, :1].expand_as(images).contiguous()
    order = random_order(30, 784, 0)
    for curve in (deletion_curve, insertion_curve):
        values = curve(model, constant, labels, order, fill)
        assert (values == values[0]).all()


def test_deletion_is_that_of_a_plain_loop(network):
    model, images, labels = network
    for order in (salient_order(images[:, 0]), random_order(30, 784, 5)):
        ours, theirs = (curve(model, images, labels, order) for curve in (deletion_curve, faithfulness.deletion_curve))
        assert torch.equal(ours, theirs)
        for fraction, accuracy in zip(faithfulness.FRACTIONS, theirs, strict=True):
            blanked = images.clone()
            for image, pixels in zip(blanked, order.tolist(), strict=True):
                for pixel in pixels[: round(fraction * 784)]:
                    image[0, pixel // 28, pixel % 28] = image[0, 0, 0].item()
            assert accuracy == (predict(model, blanked).argmax(dim=1) == labels).double().mean()


@pytest.mark.parametrize("fill", FILLS)
def test_deletion_starts_with_the_image_and_insertion_ends_with_it(fill, network):
    model, images, labels = network
    order = random_order(30, 784, 0)
    whole = (model(images).argmax(dim=1) == labels).double().mean()
    empty = (model(filled(images, fill)).argmax(dim=1) == labels).double().mean()
    ends = (0.0, 1.0)
    assert torch.equal(deletion_curve(model, images, labels, order, fill, ends), torch.stack([whole, empty]))
    assert torch.equal(insertion_curve(model, images, labels, order, fill, ends), torch.stack([empty, whole]))


def test_areas_of_images_average_to_the_area_under_the_accuracy(network):
    model, images, labels = network
    right = still_right(model, images, labels, random_order(30, 784, 0), "mean", "insertion")
    assert right.shape == (10, 30) and right.dtype == torch.bool
    assert areas_under(right.T).mean().item() == pytest.approx(faithfulness.area_under(right.double().mean(dim=1)))


def test_scaling_the_maps_changes_nothing(network):
    model, images, labels = network
    maps = torch.randn(30, 28, 28)
    curves = [
        insertion_curve(model, images, labels, salient_order(factor * maps), "blurred") for factor in (1, 1e-3, 1e3)
    ]
    assert torch.equal(curves[0], curves[1]) and torch.equal(curves[0], curves[2])


def test_model_and_images_are_left_alone(network):
    model, images, labels = network
    before, state, draw = images.clone(), torch.get_rng_state(), {k: v.clone() for k, v in model.state_dict().items()}
    for fill in FILLS:
        insertion_curve(model, images, labels, random_order(30, 784, 0), fill)
        deletion_curve(model, images, labels, random_order(30, 784, 0), fill)
    assert torch.equal(images, before) and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(draw[name], value) for name, value in model.state_dict().items())


def test_errors_name_what_was_expected(bright):
    images, labels = bright
    order = salient_order(BEST)
    with pytest.raises(ValueError, match="fill = 'noise': expected one of corner, mean, blurred"):
        deletion_curve(Sum(), images, labels, order, "noise")
    with pytest.raises(ValueError, match="direction = 'backwards'"):
        still_right(Sum(), images, labels, order, "corner", "backwards")
    with pytest.raises(ValueError, match="direction = 'backwards'"):
        gap(0.1, 0.2, "backwards")
    with pytest.raises(ValueError, match=r"order \(4, 9\): expected \(4, 10\)"):
        deletion_curve(Sum(), images, labels, order[:, 1:])
