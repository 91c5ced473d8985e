"""Tests of sqlib.answers: the fast copy's logits are the network's own, bit for bit."""

import pytest
import torch
from torch import nn

from sqlib.answers import IntegerConv2d, answering, quantise_once
from sqlib.models import build_model
from sqlib.saliency import saliency_map


@pytest.fixture
def images():
    # Pixels between codes, too, as a mean fill leaves them.
    return torch.rand(70, 1, 28, 28, generator=torch.Generator().manual_seed(1))


def network(name, setup):
    model = build_model(name, setup)
    for clip in model.clips().values():
        clip.alpha.data.fill_(2.3)
    return model


@pytest.mark.parametrize("name", ["lenet", "sgt_cnn", "lenet5"])
@pytest.mark.parametrize("bits, integers", [(2, True), (4, True), (8, False), (32, False)])
def test_logits_are_the_same_bits(name, bits, integers, make_setup, images):
    model = network(name, make_setup(bits, bits)).eval()
    fast = answering(model)
    assert any(isinstance(layer, IntegerConv2d) for layer in fast.modules()) is integers
    with torch.no_grad():
        assert torch.equal(fast(images), model(images))


@pytest.mark.parametrize("change", [{"per_channel": True}, {"weight_method": "dorefa"}, {"weight_method": "minmax"}])
def test_every_way_of_rounding(change, make_setup, images):
    model = network("lenet5", make_setup(3, 4, **change)).eval()
    with torch.no_grad():
        assert torch.equal(answering(model)(images), model(images))


def test_the_largest_codes_are_not_wrapped(make_setup):
    model = network("lenet", make_setup(8, 7, weight_method="minmax")).eval()
    with torch.no_grad():
        model.conv2.weight.fill_(0.5)
        model.conv1.weight.fill_(1.0)
        images = torch.ones(3, 1, 28, 28)
        assert answering(model)(images).isfinite().all()
        assert torch.equal(answering(model)(images), model(images))


def test_the_given_model_is_left_as_it_was(make_setup, images):
    model = network("lenet5", make_setup(2, 2)).train()
    answering(model)
    assert model.training and model.conv2.fixed_codes is None and all(p.requires_grad for p in model.parameters())
    assert isinstance(model.conv2, nn.Conv2d)


def test_another_model_is_itself():
    model = nn.Flatten()
    assert answering(model) is model


@pytest.mark.parametrize("method", ["sawb", "dorefa"])
def test_quantised_once_gives_the_same_maps(method, make_setup, images):
    model = network("lenet5", make_setup(2, 2, weight_method=method)).eval()
    targets = torch.arange(70) % 10
    before = saliency_map(model, images, targets)
    quantise_once(model)
    assert model.fc1.fixed_codes is not None
    assert torch.equal(saliency_map(model, images, targets), before)
