"""Tests of sqlib.measures.sanity: what is randomised, what is left alone, and which methods are flagged."""

import copy

import pytest
import torch

from sqlib.checked import SqlibError
from sqlib.deploy.packed import load_packed, pack
from sqlib.maps.attribution import saliency_map
from sqlib.measures import sanity
from sqlib.measures.sanity import Cascade, cascade, randomisation
from sqlib.networks.network import build_model


@pytest.fixture
def model(make_setup):
    model = build_model("lenet5", make_setup(4, 4)).eval()
    for clip in model.clips().values():
        clip.alpha.data.fill_(3.0)
    for name in model.layer_names:
        torch.nn.init.normal_(model.get_submodule(name).bias)
    return model


@pytest.fixture
def images():
    return torch.rand(6, 1, 28, 28, generator=torch.Generator().manual_seed(1))


TARGETS = torch.tensor([3, 1, 4, 1, 5, 9])


def weights(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def test_the_cascade_goes_from_the_last_layer_to_the_first_and_keeps_the_clips(model):
    before, left = weights(model), list(model.layer_names)
    for name, changed in cascade(model, seed=0):
        assert name == left.pop()
        for layer in model.layer_names:
            same = torch.equal(changed.get_submodule(layer).weight, before[f"{layer}.weight"])
            assert same == (layer in left)
            assert (changed.get_submodule(layer).bias.abs().max() == 0) == (layer not in left)
        assert [clip.alpha.item() for clip in changed.clips().values()] == [3.0] * 4
    assert not left


def test_new_weights_are_those_of_the_networks_own_initialisation(model):
    *_, (_, changed) = cascade(model, seed=11)
    torch.manual_seed(11)
    fresh = copy.deepcopy(model)
    fresh.reset_parameters()
    for name, value in fresh.state_dict().items():
        assert torch.equal(changed.state_dict()[name], value)


def test_the_model_and_the_global_generator_are_left_alone(model, images):
    before, state = weights(model), torch.get_rng_state()
    model.train()
    randomisation(model, images, TARGETS)
    assert model.training and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_same_seed_gives_the_same_similarities(model, images):
    first, second, other = (randomisation(model, images, TARGETS, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.spearman, second.spearman) and torch.equal(first.ssim, second.ssim)
    assert not torch.equal(first.spearman, other.spearman)


def test_gradient_maps_react(model, images):
    result = randomisation(model, images, TARGETS)
    assert result.layers == ("fc3", "fc2", "fc1", "conv2", "conv1")
    assert result.spearman.shape == result.ssim.shape == result.dead.shape == (5, 6)
    assert result.spearman[-1].nanmean() < sanity.UNMOVED
    assert not result.flagged


def test_the_cascade_compares_with_the_maps_of_the_given_model(model, images):
    *_, (_, changed) = cascade(model, seed=2)
    maps = [saliency_map(network, images, TARGETS, "input_x_gradient", "unclipped") for network in (model, changed)]
    result = randomisation(model, images, TARGETS, "input_x_gradient", "unclipped", seed=2)
    torch.testing.assert_close(result.spearman[-1], sanity.spearman(*maps), equal_nan=True)
    torch.testing.assert_close(result.ssim[-1], sanity.ssim(*maps), equal_nan=True)


def test_a_method_that_ignores_the_weights_is_flagged(model, images, monkeypatch):
    def edges(model, images, targets, method, surrogate):
        return images[:, 0] - images[:, 0].roll(1, dims=2)

    monkeypatch.setattr(sanity, "saliency_map", edges)
    result = randomisation(model, images, TARGETS)
    assert result.flagged and result.flagged_foreground
    torch.testing.assert_close(result.spearman, torch.ones(5, 6))
    torch.testing.assert_close(result.ssim, torch.ones(5, 6))


def test_maps_at_random_are_not_flagged(model, images, monkeypatch):
    monkeypatch.setattr(sanity, "saliency_map", lambda *_: torch.randn(6, 28, 28))
    result = randomisation(model, images, TARGETS)
    assert not result.flagged
    assert result.spearman.mean().item() == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize(
    "spearman, flagged",
    [([0.9, 0.9, 0.2, 0.2], False), ([0.1, 0.1, 0.7, 0.4], True), ([0.9, 0.9, 0.9, torch.nan], True)],
)
def test_full_randomisation_decides(spearman, flagged):
    values = torch.tensor(spearman).view(2, 2)
    zeros = torch.zeros(2, 2)
    assert Cascade(("fc", "conv"), values, zeros, zeros, zeros).flagged is flagged
    assert Cascade(("fc", "conv"), zeros, values, zeros, zeros).flagged_foreground is flagged


def test_foreground_by_hand():
    images = torch.tensor([[[[0.0, 0.0], [0.0, 0.5]], [[0.0, 0.3], [0.2, 0.0]]]]).repeat(3, 1, 1, 1)
    images[1] = 0
    a = torch.tensor([[9.0, 1.0], [2.0, -3.0]]).expand(3, 2, 2)
    b = torch.stack([torch.tensor([[7.0, 0.3], [-0.2, 0.1]]), a[1], torch.tensor([[7.0, 0.0], [0.0, 0.0]])])
    values = sanity.spearman_foreground(a, b, images)
    assert values[0].item() == pytest.approx(-1)  # 1 2 3 against 3 2 1, whatever the black corner says
    assert values[1:].isnan().all()  # no foreground; dead on it


def test_input_x_gradient_reacts_on_the_foreground_alone(model, images):
    dark = images.clone()
    dark[..., 14:] = 0
    result = randomisation(model, dark, TARGETS, "input_x_gradient")
    assert result.spearman[-1].nanmean() > 0.5 > result.foreground[-1].nanmean()
    assert result.flagged and not result.flagged_foreground


def test_dead_maps_are_counted_and_flag_nothing(model, images):
    with torch.no_grad():
        model.get_submodule("fc3").weight.zero_()  # dead maps before
    result = randomisation(model, images, TARGETS)
    assert result.spearman.isnan().all() and not result.flagged


def test_a_packed_model_is_randomised_too(model, images, tmp_path):
    pack(model, tmp_path / "packed.safetensors")
    packed = load_packed(tmp_path / "packed.safetensors")
    codes = packed.get_submodule("conv1").fixed_codes.clone()
    *_, (_, changed) = cascade(packed, seed=0)
    *_, (_, expected) = cascade(model, seed=0)
    torch.testing.assert_close(changed(images), expected(images))
    assert torch.equal(packed.get_submodule("conv1").fixed_codes, codes)
    assert randomisation(packed, images, TARGETS).spearman[-1].nanmean() < 0.9


def test_unknown_methods_are_refused(model, images):
    with pytest.raises(SqlibError, match="did you mean 'gradient'"):
        randomisation(model, images, TARGETS, "gradiant")
