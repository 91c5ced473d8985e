"""Where units are, by hand, and that the pictures show every level."""

import pytest
import torch

from sqlib.networks.network import build_model
from sqlib.networks.passes import pre_activations
from sqlib.quant.weights import quantize_weight
from sqlib.report import figures
from sqlib.study.parameters import load_setup


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_model("lenet5", load_setup("w2a2"))


def test_unit_shares_by_hand(model):
    model.conv1_act.alpha.data.fill_(2.0)
    values = {"conv1": torch.tensor([[-1.0, 0.0, 0.5, 1.9, 2.0, 3.0, 1.0, -2.0]])}
    row = figures.unit_shares(model, values).loc["conv1"]
    assert row.to_dict() == pytest.approx({"at zero": 3 / 8, "inside": 3 / 8, "at the clip": 2 / 8})


def test_unit_shares_of_a_float_network_have_nothing_at_the_clip():
    model = build_model("lenet5", load_setup("fp32"))
    shares = figures.unit_shares(model, pre_activations(model, torch.rand(4, 1, 28, 28)))
    assert list(shares.index) == ["conv1", "conv2", "fc1", "fc2"]
    assert (shares["at the clip"] == 0).all()
    assert shares.sum(axis=1).tolist() == pytest.approx([1.0] * 4)


def test_rounding_errors_are_of_the_weights_that_the_layer_computes_with(model):
    found = figures.rounding_errors(model)
    assert list(found) == list(model.layer_names)
    weight = model.conv2.weight.detach()
    change = quantize_weight(weight, 2) - weight
    assert found["conv2"] == pytest.approx(float(change.square().mean().sqrt() / weight.square().mean().sqrt()))
    assert 0.1 < found["conv2"] < 0.9
    assert figures.rounding_errors(build_model("lenet5", load_setup("fp32"))) == {}


def test_pre_activations_are_what_enters_the_activation_and_leave_no_hook(model):
    images = torch.rand(3, 1, 28, 28)
    values = pre_activations(model, images)
    with torch.no_grad():
        assert torch.equal(values["conv1"], model.eval().conv1(images, 255.0))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_pictures_draw_each_level_of_each_layer(model):
    axes = figures.weight_levels(model).axes
    assert [axis.get_title() for axis in axes] == [f"{layer}, 2 bits" for layer in model.layer_names]
    assert all(len(axis.lines) == 4 for axis in axes)  # 2 bits: four levels
    figure = figures.activation_levels(model, pre_activations(model, torch.rand(8, 1, 28, 28)))
    assert all(len(axis.lines) == 4 + 1 for axis in figure.axes)  # four levels, and the line at zero
