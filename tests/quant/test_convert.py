"""Tests of sqlib.quant.convert: other people's models, quantised in place."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import spectral_norm
from torch.nn.utils.parametrizations import orthogonal

from sqlib.checked import SqlibError
from sqlib.deploy.packed import pack
from sqlib.maps.attribution import METHODS, saliency_map
from sqlib.networks.network import build_model
from sqlib.quant.activations import PACT, carried
from sqlib.quant.bits import LayerBits
from sqlib.quant.convert import quantise_
from sqlib.quant.layers import QuantConv2d, QuantLinear
from sqlib.quant.weights import weight_codes
from sqlib.training.guided import guided_loss


def sequential(bias=True):
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2, bias=bias),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, bias=bias),
        nn.MaxPool2d(2),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Dropout(0.25),
        nn.Linear(8 * 13 * 13, 20),
        nn.ReLU(),
        nn.Linear(20, 10, bias=bias),
    )


class Own(nn.Module):
    """A block at some depth, a normalisation, a ReLU that both of its convolutions share, and one behind the logits."""

    def __init__(self):
        super().__init__()
        relu = nn.ReLU()
        self.body = nn.ModuleDict({"a": nn.Conv2d(1, 4, 3), "norm": nn.BatchNorm2d(4), "act": relu})
        self.second, self.again = nn.Conv2d(4, 4, 3), relu
        self.head, self.positive = nn.Linear(4 * 24 * 24, 10), nn.ReLU()

    def forward(self, x):
        x = self.body["act"](self.body["norm"](self.body["a"](x)))
        return self.positive(self.head(self.again(self.second(x)).flatten(1)))


@pytest.fixture
def images():
    return torch.randint(256, (6, 1, 28, 28), generator=torch.Generator().manual_seed(1)).float() / 255


@pytest.mark.parametrize("make", [sequential, Own])
def test_a_float_setup_changes_nothing(make, make_setup, images):
    model = make().eval()
    kinds, before = [type(module) for module in model.modules()], model(images)
    assert quantise_(model, make_setup(32, 32)) is model
    assert [type(module) for module in model.modules()] == kinds
    assert torch.equal(model(images), before)


def test_a_sequential_is_quantised_by_its_setup(make_setup, images):
    model = sequential().eval()
    given = dict(model.named_parameters())
    layers = {"2": LayerBits(weights=3), "7": LayerBits(weights=5, activations=32)}
    options = {"weight_method": "minmax", "per_channel": True}
    state = torch.get_rng_state()
    setup = make_setup(2, 4, first=LayerBits(weights=8), last=LayerBits(weights=6), layers=layers, **options)
    quantise_(model, setup)
    assert torch.equal(torch.get_rng_state(), state)
    weighted = [model[place] for place in (0, 2, 7, 9)]
    assert [type(layer) for layer in weighted] == [QuantConv2d, QuantConv2d, QuantLinear, QuantLinear]
    assert [layer.bits for layer in weighted] == [8, 3, 5, 6]
    assert [(layer.method, layer.per_channel) for layer in weighted] == [("minmax", True)] * 4
    assert [getattr(model[place], "bits", None) for place in (1, 4, 8)] == [4, 4, None]
    assert all(given[name] is parameter for name, parameter in model.named_parameters() if "alpha" not in name)
    assert not any(module.training for module in model.modules())
    # What the layers compute, plainly: rounded weights and activations, in real numbers.
    x = images
    for layer in model:
        if isinstance(layer, QuantConv2d | QuantLinear):
            codes, step, _ = weight_codes(layer.weight, layer.bits, "minmax", per_channel=True)
            weight = (codes * step).detach()
            both = layer.weight.dim() == 4
            x = F.conv2d(x, weight, layer.bias, padding=layer.padding) if both else F.linear(x, weight, layer.bias)
        elif isinstance(layer, PACT):
            x = (x.clip(0, 10) * 15 / 10).round() * 10 / 15
        else:
            x = layer(x)
    torch.testing.assert_close(model(images), x, rtol=1e-4, atol=1e-5)


def test_a_module_of_ones_own_at_any_depth_and_layers_that_are_shared(make_setup, images):
    model = quantise_(Own(), make_setup(4, 3))
    assert isinstance(model.body["a"], QuantConv2d) and isinstance(model.head, QuantLinear)
    assert isinstance(model.again, PACT) and model.again is model.body["act"]
    assert type(model.positive) is nn.ReLU and type(model.body["norm"]) is nn.BatchNorm2d
    assert sum("alpha" in name for name, _ in model.named_parameters()) == 1
    assert model(images).shape == (6, 10) and model.training
    tied = nn.Linear(5, 5)
    twice = quantise_(nn.Sequential(tied, nn.ReLU(), tied, nn.ReLU(), nn.Linear(5, 2)), make_setup(4, 4))
    assert twice[0] is twice[2] and twice[0].weight is tied.weight and twice[1] is not twice[3]


def test_layers_right_behind_a_pact_multiply_its_codes_and_others_real_values(make_setup, images, monkeypatch):
    seen = []
    take = QuantConv2d._operands
    monkeypatch.setattr(QuantConv2d, "_operands", lambda self, x, scale: seen.append(scale) or take(self, x, scale))
    model = quantise_(sequential(), make_setup(4, 4))
    model(images)
    assert seen[0] is None and torch.equal(seen[1], model[1].code_scale)
    with torch.no_grad():
        entering = model[1](model[0](images))
        assert carried(nn.MaxPool2d(2)(entering)) is None
        torch.testing.assert_close(model[2](entering), model[2](entering.clone()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_converted_lenet_is_the_studys(bits, make_setup, images):
    network = build_model("lenet", make_setup(bits, bits)).eval()
    convolutions = [[nn.Conv2d(*channels, 5), nn.MaxPool2d(2), nn.ReLU()] for channels in ((1, 32), (32, 64))]
    linear = nn.Flatten(), nn.Linear(1024, 128), nn.ReLU(), nn.Linear(128, 10)
    ours = quantise_(nn.Sequential(*convolutions[0], *convolutions[1], *linear), make_setup(bits, bits)).eval()
    for place, name in {0: "conv1", 3: "conv2", 7: "fc1", 9: "fc2"}.items():
        ours[place].load_state_dict(network.get_submodule(name).state_dict())
    for place, name in {2: "conv1_act", 5: "conv2_act", 8: "fc1_act"}.items():
        ours[place].alpha.data.fill_(2.0)
        network.get_submodule(name).alpha.data.fill_(2.0)
    torch.testing.assert_close(ours(images), network(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make, bias", [(sequential, True), (sequential, False), (Own, None)])
def test_a_training_step_and_every_kind_of_map(make, bias, make_setup, images):
    model = make() if bias is None else make(bias)
    quantise_(model, make_setup(4, 4))
    clips = [module for module in model.modules() if isinstance(module, PACT)]
    for clip in clips:
        clip.alpha.data.fill_(0.1)
    loss, logits = guided_loss(model, images, torch.arange(6))
    loss.backward()
    assert logits.shape == (6, 10)
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
    assert any(clip.alpha.grad != 0 for clip in clips)
    for method in METHODS:
        maps = saliency_map(model, images, torch.arange(6), method)
        assert maps.shape == (6, 28, 28) and maps.isfinite().all() and maps.any()


def test_it_learns(make_setup, images):
    model, labels = quantise_(sequential(), make_setup(4, 4)), torch.arange(6)
    clips = [module for module in model if isinstance(module, PACT)]
    for clip in clips:
        clip.alpha.data.fill_(1.0)
    images = images * torch.eye(6).repeat_interleave(5, dim=1)[:, None, None, :28]  # each bright in columns of its own
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        optimiser.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimiser.step()
        for clip in clips:
            clip.project_()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    assert "Linear(in_features=20, out_features=10, bias=True, bits=4)" in repr(model)


def test_its_state_is_loaded_into_another_one(make_setup, images):
    one, other = (quantise_(sequential(), make_setup(2, 2)).eval() for _ in range(2))
    one[1].alpha.data.fill_(1.5)
    assert not torch.equal(one(images), other(images))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(images), other(images))
    assert torch.equal(copy.deepcopy(one)(images), one(images))


def test_more_dimensions_than_a_batch(make_setup):
    model = quantise_(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), make_setup(4, 4))
    x = torch.randn(2, 7, 6)
    grad = torch.randn(2, 7, 3)
    results = []
    for entering, passed in ((x, grad), (x.flatten(0, 1), grad.flatten(0, 1))):
        model.zero_grad()
        model(entering).backward(passed)
        results.append([parameter.grad for parameter in model.parameters()])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def conv(**options):
    return nn.Sequential(nn.Conv2d(2, 4, 3, **options), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))


class Subclass(nn.Linear):
    pass


def hooked(module):
    module.register_forward_hook(lambda module, entering, leaving: leaving * 2)
    return module


def without_parameter(module):
    weight = module.weight.detach()
    del module.weight
    module.weight = weight
    return module


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.last(F.relu(self.first(x)))


@pytest.mark.parametrize(
    "model, words",
    [
        (conv(stride=2), r"'0' has stride = \(2, 2\): expected \(1, 1\).*`layers: \{0: \{weights: 32\}\}`"),
        (conv(dilation=2), r"'0' has dilation = \(2, 2\)"),
        (conv(groups=2), "'0' has groups = 2: expected 1"),
        (nn.Sequential(nn.Conv2d(2, 4, 4, padding="same"), nn.ReLU(), nn.Conv2d(4, 2, 1)), "'0' has padding = 'same': expected"),
        (nn.Sequential(without_parameter(nn.Linear(3, 3)), nn.ReLU(), nn.Linear(3, 2)), "'0' has a weight that is no"),
        (nn.Sequential(spectral_norm(nn.Linear(3, 3)), nn.ReLU(), nn.Linear(3, 2)), "'0' has hooks .*weights: 32"),
        (nn.Sequential(orthogonal(nn.Linear(3, 3)), nn.ReLU(), nn.Linear(3, 2)), "'0' is a ParametrizedLinear: expected"),
        (nn.Sequential(orthogonal(nn.Conv1d(3, 3, 1)), nn.ReLU(), nn.Linear(3, 2)), "'0' is a ParametrizedConv1d: expected"),
        (nn.Sequential(nn.Linear(3, 3), hooked(nn.ReLU()), nn.Linear(3, 2)), "'1' has hooks .*`layers: {0: {activations: 32}}`"),
        (nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.LazyLinear(2)), "'2' is a LazyLinear without weights yet"),
        (nn.Sequential(nn.LazyBatchNorm1d(), nn.Linear(3, 2)), "'0' is a LazyBatchNorm1d without weights yet"),
        (nn.TransformerEncoderLayer(4, 1, 4), "'self_attn.out_proj' stands in a MultiheadAttention, which"),
        (conv(padding=(1, 2)), r"'0' has padding = \(1, 2\)"),
        (conv(padding=1, padding_mode="reflect"), "'0' has padding_mode = 'reflect': expected 'zeros'"),
        (nn.Sequential(nn.Linear(3, 3).double(), nn.ReLU(), nn.Linear(3, 3)), "'0' has weights of type torch.float64"),
        (nn.Sequential(nn.ModuleDict({"x": Subclass(3, 3)}), nn.ReLU(), nn.Linear(3, 2)), "'0.x' is a Subclass: expected"),
        (nn.Sequential(nn.Conv1d(3, 3, 1), nn.ReLU(), nn.Linear(3, 2)), "'0' is a Conv1d: expected nn.Conv2d or nn.Linear"),
        (Functional(), "'first': .* 4 bits: expected an nn.ReLU .*`layers: {first: {activations: 32}}`"),
        (nn.Sequential(nn.Linear(3, 3), nn.GELU(), nn.Linear(3, 2)), "'0': .*expected an nn.ReLU"),
        (nn.Linear(3, 2), "Linear: expected a model that holds layers"),
        (nn.Sequential(nn.ReLU()), "Sequential: expected a model that holds layers"),
    ],
)  # fmt: skip
def test_what_cannot_be_quantised_is_said_and_nothing_is_changed(model, words, make_setup):
    kinds = [type(module) for module in model.modules()]
    with pytest.raises(SqlibError, match=words):
        quantise_(model, make_setup(4, 4))
    assert [type(module) for module in model.modules()] == kinds


def test_what_cannot_be_quantised_may_be_left_as_it_is(make_setup):
    model = conv(stride=2)
    quantise_(model, make_setup(4, 4, layers={"0": LayerBits(weights=32)}))
    assert type(model[0]) is nn.Conv2d and isinstance(model[1], PACT)
    functional = quantise_(Functional(), make_setup(4, 4, layers={"first": LayerBits(activations=32)}))
    assert functional(torch.rand(2, 3)).shape == (2, 2)


def test_a_transformers_linear_layers_are_read_past_them(make_setup):
    layers = {"self_attn.out_proj": LayerBits(weights=32, activations=32)}
    with pytest.raises(
        SqlibError, match="'linear1' stands in a TransformerEncoderLayer.*`layers: {linear1: {weights: 32}}`"
    ):
        quantise_(nn.TransformerEncoderLayer(4, 1, 4), make_setup(4, 4, layers=layers))


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 3))
        self.body = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))

    def forward(self, x):
        return self.body(x + self.token)


def test_what_holds_layers_is_none_though_it_owns_a_matrix(make_setup):
    for model in (quantise_(Tokens(), make_setup(4, 4)), quantise_(nn.Sequential(Tokens()), make_setup(4, 4))[0]):
        assert isinstance(model.body[0], QuantLinear) and isinstance(model.body[1], PACT)
        assert type(model) is Tokens and model(torch.rand(5, 3)).shape == (5, 2)


def test_the_last_layer_is_the_last_place_though_it_is_shared(make_setup):
    tied = nn.Linear(3, 3)
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), tied, nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), tied, nn.ReLU())
    quantise_(model, make_setup(4, 4, last=LayerBits(weights=8)))
    assert [model[place].bits for place in (0, 2, 4)] == [4, 8, 4] and model[6] is model[2]
    assert [type(model[place]) for place in (1, 3, 5, 7)] == [PACT, PACT, PACT, nn.ReLU]


@pytest.mark.parametrize("padding, size, pixels", [("valid", 3, 0), ("same", 3, 1), ("same", 5, 2)])
def test_padding_in_words(padding, size, pixels, make_setup, images):
    model = nn.Sequential(nn.Conv2d(1, 2, size, padding=padding), nn.ReLU(), nn.Conv2d(2, 2, 1))
    shape = model(images).shape
    assert quantise_(model, make_setup(4, 4))(images).shape == shape and model[0].padding == (pixels, pixels)


@pytest.mark.parametrize("setup", [(4, 4), (4, 32), (32, 4)])
def test_sums_are_those_outside_autocast_and_so_are_gradients(setup, make_setup, images):
    bits = {"last": LayerBits(weights=4), "first": LayerBits(weights=4)}
    model = quantise_(sequential().eval(), make_setup(*setup, **bits))
    results = []
    for on in (False, True):
        entering = images.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=on):
            first, last = model[0](entering), model[9](model[8](entering.flatten(1)[:, :20]))
            (first.sum() + last.sum()).backward()
            model(images).sum().backward()  # layers that are not quantised are in bfloat16, and must fit between
        results.append((first, last, entering.grad))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_vectors_and_activations_of_16_bits(make_setup):
    model = quantise_(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), make_setup(4, 4))
    x = torch.rand(6).bfloat16()
    gradients = []
    for entering in (x.float(), x.float()[None], x):
        model.zero_grad()
        entering = entering.requires_grad_()
        model(entering).sum().backward()
        gradients.append([p.grad for p in model.parameters()])
        assert entering.grad.shape == entering.shape and entering.grad.dtype == entering.dtype
    for each in zip(*gradients, strict=True):
        torch.testing.assert_close(each[0], each[1])
        torch.testing.assert_close(each[0], each[2])


def test_a_model_is_quantised_once_and_its_setup_names_layers_that_it_has(make_setup, tmp_path):
    model = quantise_(sequential(), make_setup(4, 4))
    with pytest.raises(SqlibError, match="'0' is a QuantConv2d already: a model is quantised only once"):
        quantise_(model, make_setup(4, 4))
    with pytest.raises(SqlibError, match="a Sequential: only the study's networks have a packed form"):
        pack(model, tmp_path / "model.safetensors")
    with pytest.raises(SqlibError, match="no layer 'body.b'; did you mean 'body.a'?"):
        quantise_(Own(), make_setup(4, 4, layers={"body.b": LayerBits(weights=2)}))
    relu = nn.ReLU()
    shared = nn.Sequential(nn.Linear(3, 3), relu, nn.Linear(3, 3), relu, nn.Linear(3, 2))
    for layers in ({"0": LayerBits(activations=2)}, {"0": LayerBits(activations=32)}, {"2": LayerBits(activations=32)}):
        with pytest.raises(SqlibError, match="one nn.ReLU behind layers whose activations have different bits"):
            quantise_(shared, make_setup(4, 4, layers=layers))
