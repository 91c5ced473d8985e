"""Tests of sqlib.measures.clarity on maps whose value is known by hand, and against independent formulas."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from skimage.metrics import structural_similarity
from torch import nn

from sqlib.measures import clarity, faithfulness, likeness

N = 16  # pixels of the 4 x 4 maps
CLARITY = [clarity.gini, clarity.entropy, clarity.total_variation]


def one_hot(row=1, column=1):
    m = torch.zeros(1, 4, 4)
    m[0, row, column] = -3.0
    return m


constant = torch.full((1, 4, 4), 2.0)
half = torch.cat([torch.ones(1, 4, 2), torch.zeros(1, 4, 2)], dim=2)
dead = torch.zeros(1, 4, 4)


@pytest.fixture
def random_maps():
    return torch.randn(5, 9, 8, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    "metric, on_one_hot, on_constant, on_half",
    [
        (clarity.gini, 1 - 1 / N, 0, 0.5),
        (clarity.entropy, 0, 1, math.log(8) / math.log(16)),
        (clarity.total_variation, 4 / 24, 0, 4 / 24),
    ],
)
def test_clarity_by_hand(metric, on_one_hot, on_constant, on_half):
    values = metric(torch.cat([one_hot(), constant, half]))
    assert values.shape == (3,)
    assert values.tolist() == pytest.approx([on_one_hot, on_constant, on_half], abs=1e-7)


def test_gini_of_one_two_three_four():
    # sum_i sum_j |m_i - m_j| / (2 n^2 mean) = 20 / (2 * 16 * 2.5)
    assert clarity.gini(torch.tensor([[[3.0, -1.0], [2.0, -4.0]]])).item() == pytest.approx(0.25)


def test_total_variation_of_a_chessboard_is_one():
    board = (torch.arange(6)[:, None] + torch.arange(6)) % 2
    assert clarity.total_variation(board[None].float() * 7).item() == pytest.approx(1)


def test_clarity_against_naive_formulas(random_maps):
    for i, signed in enumerate(random_maps.double().numpy()):
        m = np.abs(signed)
        flat = m.ravel()
        pairs = np.abs(flat[:, None] - flat[None, :]).sum()
        assert clarity.gini(random_maps)[i].item() == pytest.approx(pairs / (2 * flat.size**2 * flat.mean()), abs=1e-6)
        assert clarity.entropy(random_maps)[i].item() == pytest.approx(
            scipy.stats.entropy(flat) / math.log(flat.size), abs=1e-6
        )
        steps = [abs(m[r + 1, c] - m[r, c]) for r in range(8) for c in range(8)]
        steps += [abs(m[r, c + 1] - m[r, c]) for r in range(9) for c in range(7)]
        assert clarity.total_variation(random_maps)[i].item() == pytest.approx(np.mean(steps) / m.max(), abs=1e-6)


@pytest.mark.parametrize("metric", CLARITY)
@pytest.mark.parametrize("scale", [-1.0, 1e-6, 1e6])
def test_clarity_does_not_see_scale_or_sign(metric, scale, random_maps):
    torch.testing.assert_close(metric(random_maps * scale), metric(random_maps), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("metric", [clarity.gini, clarity.entropy])
def test_gini_and_entropy_do_not_see_the_order_of_pixels(metric, random_maps):
    order = torch.randperm(72)
    shuffled = random_maps.flatten(1)[:, order].view_as(random_maps)
    torch.testing.assert_close(metric(shuffled), metric(random_maps))


@pytest.mark.parametrize("metric", CLARITY)
def test_a_dead_map_is_nan_and_leaves_its_neighbours_alone(metric):
    values = metric(torch.cat([constant, dead, one_hot()]))
    assert values.isnan().tolist() == [False, True, False]
    assert metric(constant).item() == values[0].item()


def test_dead_is_below_1e_12():
    maps = torch.zeros(4, 2, 2)
    maps[1, 0, 0], maps[2, 0, 0], maps[3, 0, 0] = 9e-13, -2e-12, 1
    assert clarity.dead(maps).tolist() == [True, True, False, False]


def test_foreground_lift_by_hand():
    images = torch.zeros(1, 1, 4, 4)
    images[0, 0, 0] = 0.5  # 4 of 16 pixels
    m = torch.ones(1, 4, 4)
    m[0, 0] = -3  # 12 of a mass of 24
    assert clarity.foreground_lift(m, images).item() == pytest.approx(0.5 / 0.25)
    assert clarity.foreground_lift(constant, images).item() == pytest.approx(1)
    assert clarity.foreground_lift(one_hot(), images).item() == 0
    assert clarity.foreground_lift(one_hot(0, 3), images[:, 0]).item() == pytest.approx(4)
    assert clarity.foreground_lift(dead, images).isnan().all()
    assert clarity.foreground_lift(constant, torch.zeros(1, 4, 4)).isnan().all()
    assert clarity.foreground_lift(constant, torch.ones(1, 4, 4)).isnan().all()
    with pytest.raises(ValueError, match="do not fit"):
        clarity.foreground_lift(constant, torch.zeros(1, 3, 3))


# ------------------------------------------------------------------------------------------------ two sets of maps


def test_spearman_is_that_of_scipy_with_ties(random_maps):
    other = (random_maps * 2 + torch.randn(5, 9, 8)).round()  # many ties
    ours = likeness.spearman(random_maps, other)
    for i in range(5):
        a, b = random_maps[i].abs().numpy().ravel(), other[i].abs().numpy().ravel()
        assert ours[i].item() == pytest.approx(scipy.stats.spearmanr(a, b).statistic, abs=1e-6)


def test_spearman_by_hand():
    a = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    assert likeness.spearman(a, -a.exp()).item() == pytest.approx(1)
    assert likeness.spearman(a, 1 / a).item() == pytest.approx(-1)
    assert likeness.spearman(a, torch.ones(1, 2, 2)).isnan().all()
    assert likeness.spearman(a, torch.zeros(1, 2, 2)).isnan().all()


def test_ssim_is_that_of_skimage(random_maps):
    other = random_maps + 0.3 * torch.randn(5, 9, 8)
    other[3] = 0
    ours = likeness.ssim(random_maps, other)
    assert ours[3].isnan()
    for i in (0, 1, 2, 4):
        a, b = random_maps[i].abs().double().numpy(), other[i].abs().double().numpy()
        expected = structural_similarity(a / a.max(), b / b.max(), data_range=1.0, win_size=7, gaussian_weights=False)
        assert ours[i].item() == pytest.approx(expected, abs=1e-6)
    torch.testing.assert_close(likeness.ssim(random_maps, -5 * random_maps), torch.ones(5))


def test_top_iou_by_hand():
    a = torch.arange(20.0).view(1, 4, 5)
    b = a.clone()
    b[0, 0, 0] = -100  # a's top two: 18, 19; b's: 0, 19
    assert likeness.top_iou(a, a).item() == 1
    assert likeness.top_iou(a, b).item() == pytest.approx(1 / 3)
    assert likeness.top_iou(a, 20 - a).item() == 0
    assert likeness.top_iou(a, 20 - a, share=0.6).item() == pytest.approx(4 / 20)
    assert likeness.top_iou(a, torch.zeros(1, 4, 5)).isnan().all()
    assert likeness.top_iou(torch.ones(1, 4, 5), torch.ones(1, 4, 5) * 2).item() == 1


@pytest.mark.parametrize("metric", [likeness.spearman, likeness.ssim, likeness.top_iou])
def test_maps_of_different_shapes_are_refused(metric):
    with pytest.raises(ValueError, match="different shapes"):
        metric(torch.ones(1, 8, 8), torch.ones(1, 8, 9))


# --------------------------------------------------------------------------------------------------- faithfulness


class OnePixel(nn.Module):
    """Class 0 where pixel 5 of the 2 x 5 image is brighter than a half, else class 1."""

    def forward(self, images):
        pixel = images.flatten(1)[:, 5]
        return torch.stack([pixel - 0.5, 0.5 - pixel], dim=1)


def order_with(position):
    """An order of ten pixels with pixel 5 at `position`."""
    others = [p for p in range(10) if p != 5]
    return [*others[:position], 5, *others[position:]]


def test_deletion_curve_and_its_area_by_hand():
    images = torch.full((2, 1, 2, 5), 0.2)
    images.flatten(1)[:, 5] = 1
    before = images.clone()
    order = torch.tensor([order_with(0), order_with(5)])
    curve = faithfulness.deletion_curve(OnePixel(), images, torch.tensor([0, 0]), order)
    # The first image falls with the first pixel blanked, the second one with the sixth.
    assert curve.tolist() == [1, 0.5, 0.5, 0.5, 0.5, 0.5, 0, 0, 0, 0]
    # 0.1 * (1 / 2 + 5 * 0.5 + 0 / 2) over a range of 0.9
    assert faithfulness.area_under(curve) == pytest.approx(1 / 3)
    assert torch.equal(images, before)


def test_deletion_fills_with_the_corner():
    images = torch.zeros(1, 1, 2, 5)
    images.flatten(1)[:, [0, 5]] = 1  # the corner is bright: blanking pixel 5 with it changes nothing
    curve = faithfulness.deletion_curve(OnePixel(), images, torch.tensor([0]), torch.tensor([order_with(0)]))
    assert curve.tolist() == [1] * 10


def test_measurements_stay_on_their_device():
    # As on a GPU: "meta" tensors cannot be mixed with the processor's.
    maps, images = torch.rand(3, 28, 28, device="meta"), torch.rand(3, 1, 28, 28, device="meta")
    for measure in (clarity.dead, clarity.gini, clarity.entropy, clarity.total_variation, faithfulness.salient_order):
        assert measure(maps).is_meta
    assert clarity.foreground_lift(maps, images).is_meta
    assert faithfulness.areas_under(torch.rand(2, 10, device="meta")).is_meta


def test_area_under_by_hand():
    assert faithfulness.area_under(torch.full((10,), 0.7)) == pytest.approx(0.7)
    assert faithfulness.area_under(torch.tensor([1.0, 0.0]), (0.0, 0.5)) == pytest.approx(0.5)
    assert faithfulness.area_under(torch.tensor([1.0, 0.5, 0.5]), (0.0, 0.1, 0.5)) == pytest.approx((0.075 + 0.2) / 0.5)


def test_salient_order_by_hand():
    maps = torch.tensor([[[0.0, -3.0], [2.0, 0.0]]])
    assert faithfulness.salient_order(maps).tolist() == [[1, 2, 0, 3]]


def test_random_order_is_a_permutation_of_its_seed():
    order = faithfulness.random_order(3, 50, seed=4)
    assert torch.equal(order.sort(dim=1).values, torch.arange(50).expand(3, 50))
    assert torch.equal(order, faithfulness.random_order(3, 50, seed=4))
    assert not torch.equal(order, faithfulness.random_order(3, 50, seed=5))
    assert not torch.equal(order[0], order[1])


@pytest.mark.parametrize("metric", CLARITY)
def test_no_maps_give_no_values(metric):
    assert metric(torch.zeros(0, 4, 4)).shape == (0,)
