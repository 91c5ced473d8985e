"""Tests of sqlib.measures.robustness: sensitivity worked out by hand where the map is a simple function of the image."""

import pytest
import torch
from captum.metrics import sensitivity_max
from torch import nn

from sqlib.checked import SqlibError
from sqlib.maps.attribution import saliency_map
from sqlib.measures import robustness
from sqlib.measures.robustness import sensitivity
from sqlib.networks.network import build_model


class Square(nn.Module):
    """Logit c of x is c/2 * |x|^2: its gradient map is c * x."""

    def forward(self, images):
        squares = images.flatten(1).square().sum(dim=1) / 2
        return torch.stack([squares * 0, squares, squares * 2], dim=1)


@pytest.fixture
def images():
    return torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1)) + 0.1


TARGETS = torch.tensor([1, 2, 1, 2, 1])


def noise(count, radius, samples, seed):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.rand(count, 1, 8, 8, generator=generator) * 2 - 1) * radius for _ in range(samples)]


def test_a_linear_models_gradient_does_not_move(images):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    torch.testing.assert_close(sensitivity(model, images, TARGETS), torch.zeros(5))


def test_gradient_of_a_square_by_hand(images):
    # The map is c x, so its change over its size is |e| / |x|, whatever c is.
    e = torch.stack([part.flatten(1).norm(dim=1) for part in noise(5, 0.02, 10, seed=3)])
    expected = e.amax(dim=0) / images.flatten(1).norm(dim=1)
    torch.testing.assert_close(sensitivity(Square(), images, TARGETS, seed=3), expected)


def test_input_x_gradient_of_a_linear_model_by_hand(images):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    rows = model[1].weight.detach()[TARGETS]
    moved = torch.stack([(rows * e.flatten(1)).norm(dim=1) for e in noise(5, 0.1, 4, seed=0)])
    expected = moved.amax(dim=0) / (rows * images.flatten(1)).norm(dim=1)
    values = sensitivity(model, images, TARGETS, "input_x_gradient", radius=0.1, samples=4)
    torch.testing.assert_close(values, expected)


def test_it_grows_with_the_radius_and_with_the_number_of_samples(images):
    small, large = (sensitivity(Square(), images, TARGETS, radius=radius) for radius in (0.01, 0.1))
    torch.testing.assert_close(large, 10 * small)
    few, many = (sensitivity(Square(), images, TARGETS, samples=samples) for samples in (3, 10))
    assert (many >= few).all()
    bound = 0.02 * 8 / images.flatten(1).norm(dim=1)  # of any e in the ball
    assert (many <= bound).all()


def test_the_unit_of_the_logits_does_not_count(images):
    class Scaled(Square):
        def forward(self, images):
            return 1e3 * super().forward(images)

    torch.testing.assert_close(sensitivity(Scaled(), images, TARGETS), sensitivity(Square(), images, TARGETS))


def test_it_is_captums(images):
    generator = torch.Generator().manual_seed(3)
    expected = sensitivity_max(
        lambda inputs, target: (saliency_map(Square(), inputs[0] if isinstance(inputs, tuple) else inputs, target),),
        images,
        perturb_func=lambda inputs, radius: inputs + (torch.rand(inputs.shape, generator=generator) * 2 - 1) * radius,
        n_perturb_samples=10,
        max_examples_per_batch=len(images),
        target=TARGETS,
    )
    torch.testing.assert_close(sensitivity(Square(), images, TARGETS, seed=3), expected)


def test_known_maps_are_not_made_again(images):
    maps = saliency_map(Square(), images, TARGETS)
    assert torch.equal(sensitivity(Square(), images, TARGETS, maps=maps), sensitivity(Square(), images, TARGETS))
    assert not torch.equal(
        sensitivity(Square(), images, TARGETS, maps=2 * maps), sensitivity(Square(), images, TARGETS)
    )


def test_a_dead_map_has_none(images):
    values = sensitivity(Square(), images, torch.tensor([0, 1, 0, 2, 1]))
    assert values.isnan().tolist() == [True, False, True, False, False]


def test_smoothgrads_own_noise_is_not_counted(images):
    # The same noise for an image and its copies: what is left is the change of the image, |e| / |x + mean noise|.
    values = sensitivity(Square(), images, TARGETS, "smoothgrad", radius=1e-4)
    assert (values < 1e-3).all() and (values > 0).all()


def test_seeded_and_without_a_trace(images, make_setup):
    model = build_model("lenet5", make_setup(2, 2)).train()
    for clip in model.clips().values():
        clip.alpha.data.fill_(2.0)
    images = torch.rand(28, 1, 28, 28)  # as many as rows: Captum must not take the ones for the others
    targets = torch.arange(28) % 10
    before, state = images.clone(), torch.get_rng_state()
    first, second, other = (sensitivity(model, images, targets, samples=3, seed=seed) for seed in (0, 0, 1))
    assert first.shape == (28,)
    torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)
    assert not torch.equal(first.nan_to_num(), other.nan_to_num())
    assert torch.equal(images, before) and torch.equal(torch.get_rng_state(), state) and model.training


def test_each_image_is_compared_with_its_own_copies(images):
    # Of two images the one with the smaller norm moves more, in whatever order they come.
    pair = torch.stack([images[0], 0.1 * images[0]])
    targets = torch.tensor([1, 1])
    values = [sensitivity(Square(), part, targets, samples=1) for part in (pair, pair.flip(0))]
    assert values[0][1] > 5 * values[0][0] and values[1][0] > 5 * values[1][1]


def test_no_images():
    assert sensitivity(Square(), torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.long)).shape == (0,)


def test_errors(images):
    with pytest.raises(ValueError, match="radius = 0"):
        sensitivity(Square(), images, TARGETS, radius=0)
    with pytest.raises(ValueError, match="samples = 0"):
        sensitivity(Square(), images, TARGETS, samples=0)
    with pytest.raises(SqlibError, match="unknown saliency method"):
        sensitivity(Square(), images, TARGETS, "gradiant")


def test_five_grey_levels():
    assert round(robustness.RADIUS * 255) == 5
