"""Tests of sqlib.networks.network: shapes, costs worked out by hand, and the whole network against plain float64 autograd."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sqlib import checked
from sqlib.maps.attribution import last_convolution
from sqlib.networks import network
from sqlib.networks.architectures import NETWORK_LAYERS
from sqlib.networks.cost import cost
from sqlib.networks.network import build_model
from sqlib.networks.passes import predict
from sqlib.quant import activations
from sqlib.quant.bits import LayerBits
from sqlib.study import parameters

NETWORKS = tuple(NETWORK_LAYERS)


@pytest.mark.parametrize(
    "name, macs, shapes",
    [
        ("lenet", 460_800 + 3_276_800 + 131_072 + 1_280, [(32, 1, 5, 5), (64, 32, 5, 5), (128, 1024), (10, 128)]),
        ("sgt_cnn", 194_688 + 10_616_832 + 1_179_648 + 1_280, [(32, 1, 3, 3), (64, 32, 3, 3), (128, 9216), (10, 128)]),
        (
            "lenet5",
            117_600 + 240_000 + 48_000 + 10_080 + 840,
            [(6, 1, 5, 5), (16, 6, 5, 5), (120, 400), (84, 120), (10, 84)],
        ),
    ],
)
def test_the_three_networks(name, macs, shapes, make_setup):
    model = build_model(name, make_setup(2, 2))
    assert model(torch.rand(3, 1, 28, 28)).shape == (3, 10)
    assert [tuple(model.get_submodule(layer).weight.shape) for layer in NETWORK_LAYERS[name]] == shapes
    assert sum(model.macs.values()) == cost(model)["macs"] == macs
    rates = (model.dropout_first.p, model.dropout_last.p)
    assert rates == ((0.25, 0.5) if name == "sgt_cnn" else (0, 0))


@pytest.mark.parametrize("name", NETWORKS)
def test_other_channels_and_classes(name, make_setup):
    model = build_model(name, make_setup(4, 4), in_channels=3, classes=7)
    assert model(torch.rand(2, 3, 28, 28)).shape == (2, 7)


def test_every_layer_gets_its_bits_and_method(make_setup):
    part = LayerBits
    setup = make_setup(
        2,
        3,
        first=part(weights=8),
        last=part(weights=32),
        layers={"fc1": part(weights=5, activations=32)},
        weight_method="minmax",
    )
    model = build_model("lenet", setup)
    layers = [model.get_submodule(layer) for layer in NETWORK_LAYERS["lenet"]]
    assert [layer.bits for layer in layers] == [8, 2, 5, 32]
    assert {layer.method for layer in layers} == {"minmax"}
    assert [model.get_submodule(f"{layer}_act").bits for layer in ("conv1", "conv2", "fc1")] == [3, 3, 32]
    assert list(model.clips()) == ["conv1", "conv2"]
    assert not hasattr(model, "fc2_act")  # logits are never quantised
    assert last_convolution(model) is model.conv2_act
    assert model(torch.rand(2, 1, 28, 28)).isfinite().all()


def test_unknown_network_or_layer(make_setup):
    with pytest.raises(checked.SqlibError, match="did you mean 'lenet'"):
        build_model("lent", make_setup(2, 2))
    with pytest.raises(checked.SqlibError, match="'fc3'"):
        build_model("lenet", make_setup(2, 2, layers={"fc3": LayerBits(weights=4)}))


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_come_from_the_seed_and_not_from_the_bits(name, make_setup):
    weights = []
    for bits in (2, 2, 32):
        torch.manual_seed(3)
        weights.append(build_model(name, make_setup(bits, bits)).state_dict())
    for key in weights[2]:
        assert torch.equal(weights[0][key], weights[1][key])
        assert torch.equal(weights[0][key], weights[2][key])


# -------------------------------------------------------------------------------------- against a plain reference


def round_through(real, codes, scale):
    """The codes, with the gradient of `real * scale`."""
    return codes + (real - real.detach()) * scale


def forward_and_reference(model, images, masks=None):
    """The model's logits; those of plain autograd in float64; and the latter's leaves: images, and parameters by name.

    Products are of codes, as exact integers, so that max-pooling sees the same ties. `masks` (filled while the model
    runs): what dropout multiplies by, in front of the first and the last linear layer.
    """
    seen, handles = {}, []
    for layer in model.layer_names[:-1]:
        handles.append(
            model.get_submodule(f"{layer}_act").register_forward_hook(
                lambda module, args, output, layer=layer: seen.update({layer: (args[0].double(), output.double())})
            )
        )
    logits = model(images)
    for handle in handles:
        handle.remove()
    leaves = {name: p.detach().double().requires_grad_() for name, p in model.named_parameters()}
    images = images.detach().double().requires_grad_()
    x, scale = images, 255.0
    codes = round_through(x, (x.detach() * 255).round(), 255.0)
    for layer in model.layer_names:
        module, weight = model.get_submodule(layer), leaves[f"{layer}.weight"]
        if layer in model.linears:
            x, codes = x.flatten(1), None if codes is None else codes.flatten(1)
        place = {model.linears[0]: 0, model.linears[-1]: 1}.get(layer)
        if masks is not None and place is not None:
            # Dropped where the mask is 0: real values enlarged, codes not (their scale shrinks instead).
            x, kept = x * masks[place], masks[place] > 0
            if codes is not None:
                codes, scale = codes * kept, scale / masks[place].max()
        if module.bits == 32:
            operand, weight_operand, factor = x, weight, 1.0
        else:
            weight_codes, step, _ = module.codes()
            weight_operand = round_through(weight, weight_codes.double(), 1 / step.double())
            operand, factor = (x, step.double()) if codes is None else (codes, step.double() / scale)
        if layer in model.convs:
            sums = F.conv2d(operand, weight_operand, padding=module.padding)
            sums = F.max_pool2d(sums, module.pool) if module.pool > 1 else sums
            x = sums * factor + leaves[f"{layer}.bias"].view(1, -1, 1, 1)
        else:
            x = F.linear(operand, weight_operand) * factor + leaves[f"{layer}.bias"]
        if layer == model.layer_names[-1]:
            return logits, x, {"images": images, **leaves}
        activation = model.get_submodule(f"{layer}_act")
        if activation.bits == 32:
            x, codes = x.relu(), None
            continue
        alpha, n = leaves[f"{layer}_act.alpha"], 2**activation.bits - 1
        scale = n / alpha.detach()
        # The decisions at kinks and rounding boundaries are float32's; float64 may fall on their other side.
        given, output = (t.detach() for t in seen[layer])
        torch.testing.assert_close(given, x.detach(), rtol=1e-4, atol=1e-6)
        inside, above = ((given > 0) & (given < alpha)).double(), (given >= alpha).double()
        x = x * inside + alpha * above
        rounded = (output * scale).round()
        assert ((rounded - x.detach() * scale).abs() < 0.5 + 1e-3).all()
        codes = round_through(x, rounded, scale)
        x = x + (rounded / scale - x).detach()
    raise AssertionError


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("bits", [(2, 2), (4, 4), (8, 8), (32, 32), (4, 32), (32, 4)])
def test_network_equals_plain_autograd_on_real_values(name, bits, make_setup):
    model = build_model(name, make_setup(*bits)).eval()
    for clip in model.clips().values():
        nn.init.constant_(clip.alpha, 0.31)  # low enough for some units to be clipped
    images = (torch.randint(256, (2, 1, 28, 28)).float() / 255).requires_grad_()
    logits, expected, leaves = forward_and_reference(model, images)
    torch.testing.assert_close(logits.double(), expected, rtol=1e-4, atol=1e-5)
    logits.backward(torch.ones_like(logits) * torch.arange(10))
    expected.backward(torch.ones_like(expected) * torch.arange(10))
    compare_gradients(model, images, leaves)
    if bits[1] == 4:
        assert any(clip.alpha.grad != 0 for clip in model.clips().values())


def compare_gradients(model, images, leaves):
    for name, tensor in [("images", images), *model.named_parameters()]:
        reference = leaves[name].grad
        error = (tensor.grad.double() - reference).norm() / reference.norm().clamp(min=1e-6)
        assert error < 1e-4, f"{name}: {error}"


@pytest.mark.parametrize(
    "p, shape", [(0.25, (512, 1001)), (0.5, (1, 400_003)), (1 / 256, (300_001,)), (255 / 256, (9, 99_999))]
)
def test_dropout_zeroes_elements_independently_and_keeps_the_mean(p, shape):
    torch.manual_seed(0)
    mask = network.dropout_mask(torch.empty(shape), p)
    assert mask.shape == shape and mask.dtype == torch.float32
    assert mask.unique().tolist() == pytest.approx([0, 1 / (1 - p)])
    dropped = (mask == 0).double().flatten()
    deviation = math.sqrt(p * (1 - p) / dropped.numel())
    assert abs(dropped.mean() - p) < 4 * deviation
    for place in range(8):  # of a byte in the word it was drawn with
        assert abs(dropped[place::8].mean() - p) < 4 * deviation * math.sqrt(8)
    for apart in (1, 4, 8):
        pairs = (dropped[:-apart] - p) * (dropped[apart:] - p)
        assert abs(pairs.mean()) < 4 * p * (1 - p) / math.sqrt(len(pairs))


def test_dropout_is_the_seeds_own_and_does_nothing_where_nothing_is_dropped():
    x = torch.rand(3, 5).requires_grad_()
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(network.Dropout(0.5)(x))
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])
    (gradient,) = torch.autograd.grad(results[0].sum(), x)
    assert torch.equal(gradient, (results[0] != 0) * 2.0)
    assert torch.equal(network.Dropout(0.5).eval()(x), x) and torch.equal(network.Dropout(0.0)(x), x)
    assert not network.Dropout(1.0)(x).any()
    torch.manual_seed(1)
    changed = x.clone()
    assert network.Dropout(0.5, inplace=True)(changed) is changed and not torch.equal(changed, x)
    torch.manual_seed(1)
    ours = network.Dropout(0.3)(x)  # no multiple of 1/256
    torch.manual_seed(1)
    assert torch.equal(ours, F.dropout(x, 0.3))


@pytest.mark.parametrize("bits", [2, 4, 32])
def test_dropout_keeps_codes_exact(bits, make_setup, monkeypatch):
    model = build_model("sgt_cnn", make_setup(bits, bits)).train()
    for clip in model.clips().values():
        nn.init.constant_(clip.alpha, 0.31)
    images = (torch.randint(256, (2, 1, 28, 28)).float() / 255).requires_grad_()
    masks, operands = [], []
    real_mask, real_linear = network.dropout_mask, F.linear

    def remember(x, p):
        mask = real_mask(x, p)
        masks.append(mask.double())
        return mask

    def watch(x, weight, *bias):
        if x.dtype == torch.float32:  # the reference's are float64
            operands.append(x.detach().clone())
        return real_linear(x, weight, *bias)

    monkeypatch.setattr(network, "dropout_mask", remember)
    monkeypatch.setattr(F, "linear", watch)
    logits, expected, leaves = forward_and_reference(model, images, masks)
    monkeypatch.undo()
    assert [mask.max().item() for mask in masks] == pytest.approx([1 / 0.75, 2])
    if bits != 32:
        assert len(operands) == 2
        for operand in operands:
            assert torch.equal(operand, operand.round()) and operand.max() <= 2**bits - 1
    torch.testing.assert_close(logits.double(), expected, rtol=1e-4, atol=1e-5)
    logits.sum().backward()
    expected.sum().backward()
    compare_gradients(model, images, leaves)


def test_train_and_eval_agree_without_dropout(make_setup):
    model = build_model("lenet5", make_setup(2, 2))
    images = torch.rand(4, 1, 28, 28)
    assert torch.equal(model.train()(images), model.eval()(images))


def test_an_image_does_not_depend_on_its_batch(make_setup):
    model = build_model("lenet5", make_setup(2, 2)).eval()
    images = torch.randint(256, (6, 1, 28, 28)).float() / 255
    torch.testing.assert_close(predict(model, images), predict(model, images, batch=1), rtol=1e-5, atol=1e-6)


# ----------------------------------------------------------------------------------------------------------- cost


def test_cost_of_lenet_at_two_bits_by_hand(make_setup):
    # weights / 4 bytes, biases 4 bytes each, a float32 step a layer, a clip behind all but the last
    weight_bytes = (200 + 128 + 4 + 4) + (12_800 + 256 + 4 + 4) + (32_768 + 512 + 4 + 4) + (320 + 40 + 4)
    assert cost(build_model("lenet", make_setup(2, 2))) == {
        "weight_bytes": weight_bytes,
        "float_weight_bytes": 4 * (800 + 32 + 51_200 + 64 + 131_072 + 128 + 1_280 + 10),
        "macs": 3_869_952,
        # 8-bit pixels times 2-bit weights in conv1, 2 x 2 bits behind it
        "bit_operations": 460_800 * 16 + (3_276_800 + 131_072 + 1_280) * 4,
        "peak_activation_bytes": 784 + 32 * 12 * 12 * 2 // 8,
    }


def test_cost_of_lenet_in_float_by_hand(make_setup):
    result = cost(build_model("lenet", make_setup(32, 32)))
    assert result["weight_bytes"] == result["float_weight_bytes"] == 738_344
    assert result["bit_operations"] == 3_869_952 * 32 * 32
    assert result["peak_activation_bytes"] == 4 * (32 * 12 * 12 + 64 * 4 * 4)


def test_three_bit_weights_are_rounded_up_to_bytes(make_setup):
    model = build_model("lenet5", make_setup(3, 3))
    # 840 weights of fc3 at 3 bits: 315 bytes; conv1's 150: 56.25, so 57
    assert cost(model)["weight_bytes"] == (
        57 + 900 + 18_000 + 3_780 + 315 + 4 * (6 + 16 + 120 + 84 + 10) + 4 * 5 + 4 * 4
    )


def test_bit_operations_of_mixed_by_hand():
    model = build_model("lenet", parameters.load_setup("mixed"))
    expected = 460_800 * 4 * 8 + 3_276_800 * 2 * 4 + 131_072 * 2 * 2 + 1_280 * 4 * 2
    assert cost(model)["bit_operations"] == expected


# -------------------------------------------------------------------------------------------------------- predict


def test_predict_keeps_the_mode_of_every_module(make_setup):
    model = build_model("sgt_cnn", make_setup(2, 2)).train()
    model.dropout_first.eval()
    logits = predict(model, torch.rand(3, 1, 28, 28), batch=2)
    assert logits.shape == (3, 10) and not logits.requires_grad
    assert model.training and model.dropout_last.training and not model.dropout_first.training
    with pytest.raises(RuntimeError):
        predict(model, torch.rand(3, 2, 28, 28))
    assert model.training and model.dropout_last.training


def test_activations_are_modules(make_setup):
    # Attribution methods hook modules.
    model = build_model("lenet", make_setup(32, 32))
    assert sum(isinstance(m, nn.ReLU) for m in model.modules()) == 3
    model = build_model("lenet", make_setup(2, 2))
    assert sum(isinstance(m, activations.PACT) for m in model.modules()) == 3
    assert network.ARCHITECTURES.keys() == NETWORK_LAYERS.keys()
