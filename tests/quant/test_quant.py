"""Tests of sqlib.quant.layers against hand-computed values, closed forms, and an independent implementation in numpy."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sqlib.quant import activations, kernels, layers, weights
from sqlib.quant.activations import PACT, pact
from sqlib.quant.layers import QuantConv2d, QuantLinear
from sqlib.quant.weights import quantize_weight, sawb_clip, weight_codes

PROPERTY = settings(max_examples=80, deadline=None, database=None, derandomize=True)
BITS = st.integers(1, 8)


def pact_with_gradients(x, alpha, bits, grad=None, unclipped=False):
    """`(y, dL/dx, dL/dalpha)` for dL/dy = grad (ones)."""
    x = x.clone().requires_grad_()
    alpha = torch.tensor(float(alpha), requires_grad=True)
    y = pact(x, alpha, bits, unclipped)
    y.backward(torch.ones_like(y) if grad is None else grad)
    return y.detach(), x.grad, alpha.grad


def numpy_pact(x, alpha, bits):
    """PACT in float64: `(position on the grid before rounding, value, dy/dx, dy/dalpha)`."""
    x, n = np.asarray(x, dtype=np.float64), 2**bits - 1
    alpha = float(np.float32(alpha))
    position = np.clip(x, 0, alpha) * n / alpha
    return position, np.rint(position) * alpha / n, ((x > 0) & (x < alpha)) * 1.0, (x >= alpha) * 1.0


# ---------------------------------------------------------------------------------------------------- activations


@pytest.mark.parametrize("bits, middle", [(1, 0.0), (2, 4 / 3), (3, 8 / 7), (4, 16 / 15), (8, 256 / 255)])
def test_pact_at_the_five_points(bits, middle):
    # a = 2; a / 2 lies between two levels and goes to the even one: 0.5 to 0, 1.5 to 2, 3.5 to 4, 7.5 to 8.
    a, e = 2.0, 1e-3
    x = torch.tensor([-e, 0, a / 2, a, a + e])
    y, dx, _ = pact_with_gradients(x, a, bits)
    assert y.tolist() == pytest.approx([0, 0, middle, a, a], abs=1e-6)
    assert dx.tolist() == [0, 0, 1, 0, 0]
    da = [pact_with_gradients(point[None], a, bits)[2].item() for point in x]
    assert da == [0, 0, 0, 1, 1]


def test_pass_zone_is_decided_before_rounding():
    # 0.95 a rounds to a at 2 bits, 0.05 a rounds to 0: both are inside.
    y, dx, da = pact_with_gradients(torch.tensor([0.95, 0.05]), 1.0, 2)
    assert y.tolist() == [1, 0]
    assert dx.tolist() == [1, 1]
    assert da.item() == 0


@PROPERTY
@given(
    bits=BITS,
    alpha=st.floats(2**-6, 100, width=32),
    shape=st.lists(st.integers(1, 5), min_size=0, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 2**31),
)
def test_pact_agrees_with_numpy(bits, alpha, shape, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    x = (alpha * (1.6 * torch.rand(shape, generator=generator) - 0.3)).to(dtype)
    grad = torch.randn(shape, generator=generator).to(dtype)
    position, value, slope_x, slope_alpha = numpy_pact(x.float().numpy(), alpha, bits)
    assume((np.abs(position % 1 - 0.5) > 1e-4).all())  # float32 may round the other way there; boundaries: below
    y, dx, da = pact_with_gradients(x, alpha, bits, grad)
    assert y.dtype == dx.dtype == dtype and y.shape == x.shape and da.dtype == torch.float32
    tolerance = 1e-6 if dtype == torch.float32 else 2**-8
    np.testing.assert_allclose(y.float().numpy(), value, rtol=tolerance, atol=tolerance * alpha)
    np.testing.assert_array_equal(dx.float().numpy(), slope_x * grad.float().numpy())
    np.testing.assert_allclose(da.item(), (slope_alpha * grad.double().numpy()).sum(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", range(1, 9))
def test_pact_exactly_between_two_levels(bits):
    # All x = m / (16 n), alpha = i / 8, for which x n / alpha is exactly k + 1/2: half to even, in integers.
    n = 2**bits - 1
    k = np.arange(n)
    for i in range(1, 2000, 2):
        exact = ((2 * k + 1) * i) % n == 0
        if not exact.any():
            continue
        x = torch.tensor(((2 * k + 1) * i)[exact] / n / 16, dtype=torch.float32)
        even = k[exact] + k[exact] % 2
        y = pact(x, i / 8, bits)
        np.testing.assert_array_equal(np.rint(y.double().numpy() * n / (i / 8)), even, err_msg=f"alpha = {i / 8}")


@pytest.mark.parametrize("bits", range(1, 9))
def test_pact_keeps_its_own_levels_and_their_codes(bits):
    n = 2**bits - 1
    for alpha in (0.37, 1.0, 2.3, 10.0):
        layer = PACT(bits, alpha)
        levels = torch.arange(n + 1) * alpha / n
        y = layer(levels).detach()
        torch.testing.assert_close(y, levels, rtol=1e-6, atol=0)
        assert torch.equal((y * layer.code_scale).round(), torch.arange(n + 1).float())
        torch.testing.assert_close(layer(y).detach(), y, rtol=1e-6, atol=0)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.003, 2.71828, 10.1])
def test_values_next_to_the_clip(alpha):
    alpha32 = np.float32(alpha)
    x = np.array([np.nextafter(alpha32, np.float32(0)), alpha32, np.nextafter(alpha32, np.float32(1e9))])
    _, dx, _ = pact_with_gradients(torch.from_numpy(x), alpha32, 4)
    assert dx.tolist() == [1, 0, 0]
    tiny = torch.tensor([-1e-38, -0.0, 0.0, 1e-38])
    assert pact_with_gradients(tiny, alpha, 4)[1].tolist() == [0, 0, 0, 1]


@PROPERTY
@given(bits=BITS, alpha=st.floats(2**-4, 20, width=32), seed=st.integers(0, 2**31))
def test_bfloat16_gives_the_codes_and_gradients_of_float32(bits, alpha, seed):
    x = (2 * alpha * torch.rand(50, generator=torch.Generator().manual_seed(seed)) - alpha / 2).bfloat16()
    near = torch.tensor([alpha, alpha * (1 - 2**-8), alpha * (1 + 2**-8)]).bfloat16()  # alpha itself is not a bfloat16
    x = torch.cat([x, near])
    y, dx, da = pact_with_gradients(x, alpha, bits)
    y32, dx32, da32 = pact_with_gradients(x.float(), alpha, bits)
    assert torch.equal(y, y32.bfloat16())
    assert torch.equal(dx.float(), dx32)
    assert da.item() == da32.item()


def test_a_clip_that_bfloat16_cannot_hold():
    # 1.003 rounds to 1.0 in bfloat16; the mask must not.
    _, dx, da = pact_with_gradients(torch.tensor([1.0], dtype=torch.bfloat16), 1.003, 4)
    assert dx.item() == 1
    assert da.item() == 0


@PROPERTY
@given(st.floats(0.015625, 20, width=32), st.integers(0, 2**31), st.booleans(), st.booleans())
def test_gates_by_value_are_those_of_tensors_to_the_bit(alpha, seed, clipped, unclipped):
    generator = torch.Generator().manual_seed(seed)
    alpha = torch.tensor(alpha)
    beside = [np.nextafter(np.float32(alpha), np.float32(end)).item() for end in (0, np.inf)]
    edges = torch.tensor([0.0, -0.0, 1e-45, -1e-45, alpha.item(), *beside, np.inf, -np.inf, np.nan])
    x = torch.cat([torch.randn(50, generator=generator) * alpha, edges])
    grad = torch.randn(len(x), generator=generator)
    by_value, by_tensor = (
        gates(grad, x, alpha, clipped, unclipped) for gates in (kernels.gates_by_value, kernels.gates)
    )
    finite = x[x.isfinite()]
    assert torch.equal(kernels.clipped_by_value(finite, alpha), kernels.clipped(finite, alpha))
    numbers = ~x.isnan()  # what a NaN passes is for no one: its loss is one, too, and `train_step` stops there
    assert torch.equal(by_value[0][numbers], by_tensor[0][numbers])
    assert not clipped or torch.equal(by_value[1][numbers], by_tensor[1][numbers])


def test_gradient_of_alpha_is_summed_in_float32():
    # bfloat16 has 8 bits: 5000 is not among its numbers, and adding ones stops at 256.
    x = torch.full((5000,), 3.0, dtype=torch.bfloat16)
    assert pact_with_gradients(x, 1.0, 4)[2].item() == 5000


@PROPERTY
@given(bits=BITS, alpha=st.floats(0.5, 5, width=32), seed=st.integers(0, 2**31), unclipped=st.booleans())
def test_gradients_are_the_slopes_of_the_surrogate(bits, alpha, seed, unclipped):
    rng = np.random.default_rng(seed)
    x = rng.uniform(-0.5 * alpha, 1.5 * alpha, 40).astype(np.float32).astype(np.float64)
    h = 1e-4
    x = x[(np.abs(x) > 2 * h) & (np.abs(x - alpha) > 2 * h)]

    def surrogate(x, alpha):
        return np.maximum(x, 0) if unclipped else np.clip(x, 0, alpha)

    slope = (surrogate(x + h, alpha) - surrogate(x - h, alpha)) / (2 * h)
    grad = rng.normal(size=x.shape)
    _, dx, da = pact_with_gradients(torch.tensor(x).float(), alpha, bits, torch.tensor(grad).float(), unclipped)
    np.testing.assert_allclose(dx.numpy(), slope * grad, atol=1e-6)
    slope_alpha = (np.clip(x, 0, alpha + h) - np.clip(x, 0, alpha - h)) / (2 * h)  # alpha's is the same in both
    np.testing.assert_allclose(da.item(), (slope_alpha * grad).sum(), atol=1e-4)


def test_unclipped_changes_the_gradient_and_not_the_value():
    x = torch.tensor([-1.0, 0.0, 0.5, 1.0, 7.0])
    y, dx, da = pact_with_gradients(x, 1.0, 2, unclipped=True)
    assert torch.equal(y, pact(x, 1.0, 2))
    assert dx.tolist() == [0, 0, 1, 1, 1]
    assert da.item() == 2


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("alpha", [activations.SMALLEST_CLIP, 1.0, 1e4])
def test_no_nan_for_any_finite_input(bits, dtype, alpha):
    top = torch.finfo(dtype).max
    x = torch.tensor([-top, -1e30, -1e-38, 0, 1e-45, 1e-38, 1, 1e30, top], dtype=dtype)
    y, dx, da = pact_with_gradients(x, alpha, bits)
    assert y.isfinite().all() and dx.isfinite().all() and da.isfinite()
    assert y.min() == 0 and y.max().item() == pytest.approx(alpha, rel=2**-8)


def test_pact_is_monotone():
    x = torch.linspace(-1, 3, 20_001)
    for bits in range(1, 9):
        y = pact(x, 1.7, bits)
        assert (y.diff() >= 0).all()
        assert len(y.unique()) == 2**bits


def test_one_element_alpha_of_any_shape_gets_its_gradient():
    for shape in ((), (1,), (1, 1, 1)):
        alpha = torch.full(shape, 1.0, requires_grad=True)
        pact(torch.tensor([2.0, 3.0]), alpha, 2).sum().backward()
        assert alpha.grad.shape == shape
        assert alpha.grad.item() == 2


@pytest.mark.parametrize("bits", [0, 9, -1, 16, 32, 2.0, "2", True, None])
def test_pact_refuses_other_bits(bits):
    with pytest.raises(ValueError, match="expected an integer from 1 to 8"):
        pact(torch.ones(3), 1.0, bits)
    with pytest.raises(ValueError, match="expected an integer from 1 to 8"):
        PACT(bits)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan")])
def test_pact_refuses_a_clip_that_is_not_positive(alpha):
    with pytest.raises(ValueError, match="must be positive"):
        pact(torch.ones(3), alpha, 2)


def test_pact_refuses_several_clips():
    with pytest.raises(ValueError, match="2 elements"):
        pact(torch.ones(3), torch.ones(2), 2)


def test_project_keeps_the_clip_positive():
    layer = PACT(2, start=1.5)
    layer.project_()
    assert layer.alpha.item() == 1.5
    with torch.no_grad():
        layer.alpha.fill_(-3)
    layer.project_()
    assert layer.alpha.item() == pytest.approx(0.01)
    assert layer(torch.ones(2)).isfinite().all()


def test_make_activation():
    assert activations.make_activation(3).bits == 3
    relu = activations.make_activation(32)
    assert relu.code_scale is None and relu(torch.tensor([-1.0, 2.0])).tolist() == [0, 2]
    with pytest.raises(ValueError):
        activations.make_activation(9)


# -------------------------------------------------------------------------------------------------------- weights

SAWB = {  # bits, zero_aligned: c1, c2, clip for N(0,1) weights (docs/method.md)
    (2, False): (3.12, -2.064, 1.473),
    (3, False): (7.509, -6.892, 2.010),
    (4, False): (12.68, -12.80, 2.467),
    (4, True): (12.035, -12.03, 2.436),
    (8, True): (31.76, -35.04, 3.802),
}


def numpy_weight_codes(weight, bits, method, zero_aligned):
    """`(codes, step)` in float64, from the papers' formulas."""
    w = weight.detach().double().numpy()
    zero_aligned = zero_aligned or bits == 8
    if method == "dorefa":
        w, clip = np.tanh(w) / np.abs(np.tanh(w)).max(), 1.0
    elif method == "minmax":
        clip = np.abs(w).max()
    else:
        c1, c2, _ = SAWB[bits, zero_aligned]
        clip = c1 * np.sqrt((w**2).mean()) + c2 * np.abs(w).mean()
    w = np.clip(w / clip, -1, 1)
    if zero_aligned:
        top = 2 ** (bits - 1) - 1
        return np.rint(w * top), clip / top
    top = 2**bits - 1
    return 2 * np.rint((w + 1) / 2 * top) - top, clip / top


@pytest.fixture(scope="module")
def million():
    return torch.randn(1_000_000, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bits, zero_aligned", SAWB)
def test_sawb_clip_of_a_million_normal_weights(bits, zero_aligned, million):
    clip = sawb_clip(million, bits, zero_aligned)
    assert clip.shape == ()
    # The analytic value: E[w^2] = 1, E|w| = sqrt(2 / pi). The sample's own error is about c2 / 1000 at most.
    c1, c2, table = SAWB[bits, zero_aligned]
    assert c1 + c2 * np.sqrt(2 / np.pi) == pytest.approx(table, abs=1e-3)
    assert clip.item() == pytest.approx(table, abs=8e-3)
    w = million.double()
    assert clip.item() == pytest.approx((c1 * (w**2).mean().sqrt() + c2 * w.abs().mean()).item(), rel=1e-5)
    assert sawb_clip(3 * million, bits, zero_aligned).item() == pytest.approx(3 * clip.item(), rel=1e-5)


def test_two_bit_sawb_by_hand():
    # E[w^2] = 2.5, E|w| = 1.5: the clip is 3.12 * sqrt(2.5) - 2.064 * 1.5 = 1.83715.
    w = torch.tensor([-2.0, 2.0, -1.0, 1.0])
    clip = 3.12 * 2.5**0.5 - 2.064 * 1.5
    assert sawb_clip(w, 2).item() == pytest.approx(clip, rel=1e-6)
    assert quantize_weight(w, 2).tolist() == pytest.approx([-clip, clip, -clip / 3, clip / 3], rel=1e-6)


@pytest.mark.parametrize(
    "bits, zero_aligned, method, levels",
    [
        (2, False, "sawb", 4),
        (3, False, "sawb", 8),
        (4, False, "sawb", 16),
        (4, True, "sawb", 15),
        (8, True, "sawb", 255),
        (8, False, "sawb", 255),
        (2, True, "minmax", 3),
        (5, False, "minmax", 32),
        (7, True, "dorefa", 127),
        (2, False, "dorefa", 4),
    ],
)
def test_levels(bits, zero_aligned, method, levels, million):
    weight = torch.cat([million[:200_000], torch.linspace(-5.5, 5.5, 2001)])  # every level taken
    codes, step, _ = weight_codes(weight, bits, method, zero_aligned)
    found = codes.unique()
    assert len(found) == levels
    assert torch.equal(found, -found.flip(0))  # symmetric
    assert torch.equal(found, found.round())
    assert (0 in found) == (levels % 2 == 1)
    assert len(found.diff().unique()) == 1  # uniform
    clip = {"sawb": lambda: sawb_clip(weight, bits, zero_aligned), "minmax": lambda: weight.abs().max()}.get(
        method, lambda: torch.ones(())
    )()
    assert (found[-1] * step).item() == pytest.approx(clip.item(), rel=1e-6)
    torch.testing.assert_close(quantize_weight(weight, bits, method, zero_aligned), codes * step, rtol=0, atol=0)


@PROPERTY
@given(
    case=st.sampled_from(
        [("sawb", *key) for key in SAWB]
        + [(method, bits, z) for method in ("minmax", "dorefa") for bits in range(2, 9) for z in (False, True)]
    ),
    shape=st.lists(st.integers(2, 5), min_size=1, max_size=4),
    scale=st.floats(1e-3, 10),
    seed=st.integers(0, 2**31),
)
def test_weights_agree_with_numpy(case, shape, scale, seed):
    method, bits, zero_aligned = case
    weight = scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    expected, step = numpy_weight_codes(weight, bits, method, zero_aligned)
    assume(step > 1e-3 * scale / 2**bits)  # SAWB's fit gives no positive clip for a few weights of one size
    codes, our_step, _ = weight_codes(weight, bits, method, zero_aligned)
    assert our_step.item() == pytest.approx(step, rel=1e-4)
    wrong = codes.numpy() != expected
    assert wrong.mean() < 0.02 or wrong.sum() <= 1  # float32 on a rounding boundary
    assert (np.abs(codes.numpy() - expected) <= 2).all()


@pytest.mark.parametrize("method", ["sawb", "minmax"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weight_gradient_passes_straight_through(method, bits):
    weight = (3 * torch.randn(40)).requires_grad_()
    grad = torch.randn(40)
    quantize_weight(weight, bits, method).backward(grad)
    assert torch.equal(weight.grad, grad)


@pytest.mark.parametrize("bits", [2, 4])
def test_dorefa_gradient_is_that_of_its_tanh(bits):
    weight = torch.randn(40).requires_grad_()
    grad = torch.randn(40)
    quantize_weight(weight, bits, "dorefa").backward(grad)
    w = weight.detach().double()
    h = 1e-6
    slopes = []
    for i in range(40):
        values = []
        for sign in (1, -1):
            moved = w.clone()
            moved[i] += sign * h
            values.append((moved.tanh() / moved.tanh().abs().max() * grad.double()).sum())
        slopes.append((values[0] - values[1]) / (2 * h))
    torch.testing.assert_close(weight.grad.double(), torch.stack(slopes), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["sawb", "dorefa", "minmax"])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("value", [0.0, 0.3, -0.3, 1e-20, -50.0])
def test_constant_weights_stay_finite(method, bits, value):
    weight = torch.full((3, 3), value, requires_grad=True)
    quantised = quantize_weight(weight, bits, method)
    quantised.sum().backward()
    assert quantised.isfinite().all() and weight.grad.isfinite().all()
    if method == "minmax":
        torch.testing.assert_close(quantised.detach(), weight.detach())
    if method == "sawb":
        # 2 bits: 3.12 - 2.064; at 4 and 8 bits the fit is negative, and the largest weight is the clip.
        torch.testing.assert_close(
            quantised.detach(), weight.detach() * (1.056 if bits == 2 else 1), rtol=1e-4, atol=1e-30
        )


@pytest.mark.parametrize("method", ["sawb", "dorefa", "minmax"])
@pytest.mark.parametrize("bits", [0, 1, 9, 16, 2.0, True])
def test_weights_refuse_other_bits(bits, method):
    with pytest.raises(ValueError, match="expected an integer from 2 to 8"):
        quantize_weight(torch.ones(3), bits, method)
    for make in (lambda: QuantConv2d(1, 1, 3, bits=bits), lambda: QuantLinear(2, 2, bits=bits)):
        with pytest.raises(ValueError, match="expected an integer from 2 to 8"):
            make()


def test_thirty_two_bits_are_the_weights_themselves():
    weight = torch.randn(5)
    assert quantize_weight(weight, 32) is weight


@pytest.mark.parametrize("bits, zero_aligned", [(5, False), (6, False), (7, False), (2, True), (3, True)])
def test_sawb_has_no_coefficients_for_other_bits(bits, zero_aligned):
    with pytest.raises(ValueError, match="no coefficients"):
        sawb_clip(torch.randn(10), bits, zero_aligned)


@pytest.mark.parametrize("method, bits, zero_aligned", [("sawb", 2, False), ("dorefa", 3, False), ("minmax", 4, True)])
def test_per_channel_is_per_tensor_for_each_output_channel(method, bits, zero_aligned):
    weight = torch.randn(6, 3, 5, 5) * torch.tensor([0, 1e-3, 0.1, 1, 2, 30]).view(-1, 1, 1, 1)
    codes, step, _ = weight_codes(weight, bits, method, zero_aligned, per_channel=True)
    assert step.shape == (6, 1, 1, 1)
    for channel, own_codes, own_step in zip(weight, codes, step, strict=True):
        expected, expected_step, _ = weight_codes(channel, bits, method, zero_aligned)
        assert torch.equal(own_codes, expected)
        assert own_step.item() == pytest.approx(expected_step.item(), rel=1e-6)
    leaf = weight.clone().requires_grad_()
    quantised = quantize_weight(leaf, bits, method, zero_aligned, per_channel=True)
    assert torch.equal(quantised, codes * step)
    quantised.sum().backward()
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("kind", ["none", "pixels", "pact"])
def test_layers_with_a_step_for_each_channel(kind):
    x, scale = layer_input(kind, (3, 2, 10, 12))
    conv = QuantConv2d(2, 4, 5, padding=2, pool=2, bits=4, per_channel=True)
    check_layer(conv, x, scale, lambda x, w: F.conv2d(x, w, padding=2), pool=2)
    x, scale = layer_input(kind, (7, 12))
    check_layer(QuantLinear(12, 5, bits=2, per_channel=True), x, scale, F.linear)


def test_unknown_method():
    with pytest.raises(ValueError, match="'swab'"):
        quantize_weight(torch.randn(3), 2, "swab")


# --------------------------------------------------------------------------------------------------------- layers

SCALES = ["none", "pixels", "pact"]


def layer_input(kind, shape):
    """`(x, code_scale)`: real values, 8-bit pixels, or 4-bit PACT outputs."""
    if kind == "none":
        return torch.randn(shape), None
    if kind == "pixels":
        return torch.randint(256, shape).float() / 255, layers.PIXEL_SCALE
    clip = PACT(4, 1.7)
    return clip(2 * torch.rand(shape)).detach(), clip.code_scale


def reference_layer(layer, x, scale, operation, pool=1):
    """The layer in float64 with plain autograd; `operation(x, weight)` is its product.

    It multiplies codes as well, so that equal sums stay equal and max-pooling picks the same one of them; the codes
    carry the gradients of the real values they stand for.
    """
    x, weight, bias = (t.detach().double().requires_grad_() for t in (x, layer.weight, layer.bias))
    x_scale, step, weight_codes = 1.0, 1.0, weight
    x_codes = x
    if layer.bits != 32:
        parts = layer.weight if layer.per_channel else [layer.weight]
        coded = [numpy_weight_codes(part, layer.bits, layer.method, layer.zero_aligned) for part in parts]
        codes = np.stack([codes for codes, _ in coded]).reshape(layer.weight.shape)
        step = torch.tensor([step for _, step in coded])[(...,) + (None,) * (layer.weight.dim() - 1)]
        weight_codes = torch.from_numpy(codes) + (weight - weight.detach()) / step
        if scale is not None:
            x_scale = float(scale)
            x_codes = (x.detach() * x_scale).round() + (x - x.detach()) * x_scale
    sums = operation(x_codes, weight_codes)
    if pool > 1:
        sums = F.max_pool2d(sums, pool)
    bias_shape = (1, -1, 1, 1) if sums.ndim == 4 else (1, -1)
    if layer.bits != 32 and layer.per_channel:
        step = step.reshape(1, -1, *[1] * (sums.dim() - 2))
    return sums * (step / x_scale) + bias.view(bias_shape), x, weight, bias


def check_layer(layer, x, scale, operation, pool=1):
    x = x.clone().requires_grad_()
    y = layer(x, scale)
    expected, *leaves = reference_layer(layer, x, scale, operation, pool)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    grad = torch.randn_like(y)
    y.backward(grad)
    expected.backward(grad.double())
    for ours, reference in zip((x, layer.weight, layer.bias), leaves, strict=True):
        torch.testing.assert_close(ours.grad.double(), reference.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", [2, 4, 8, 32])
@pytest.mark.parametrize("kind", SCALES)
@pytest.mark.parametrize("channels, padding, pool", [(1, 0, 1), (1, 2, 2), (3, 0, 2), (3, 2, 1)])
def test_conv_is_the_convolution_of_the_real_quantised_values(bits, kind, channels, padding, pool):
    layer = QuantConv2d(channels, 4, 5, padding=padding, pool=pool, bits=bits)
    x, scale = layer_input(kind, (3, channels, 10, 12))
    check_layer(layer, x, scale, lambda x, w: F.conv2d(x, w, padding=padding), pool)


@pytest.mark.parametrize("method, zero_aligned", [("sawb", True), ("minmax", False), ("minmax", True)])
def test_conv_with_other_weight_methods(method, zero_aligned):
    layer = QuantConv2d(2, 4, 3, padding=1, bits=4, method=method, zero_aligned=zero_aligned)
    x, scale = layer_input("pact", (2, 2, 6, 6))
    check_layer(layer, x, scale, lambda x, w: F.conv2d(x, w, padding=1))


@pytest.mark.parametrize("bits", [2, 4, 8, 32])
@pytest.mark.parametrize("kind", SCALES)
def test_linear_is_the_product_of_the_real_quantised_values(bits, kind):
    layer = QuantLinear(30, 7, bits=bits)
    x, scale = layer_input(kind, (5, 30))
    check_layer(layer, x, scale, F.linear)


@pytest.mark.parametrize("padding", [0, 1, 2])
def test_gradient_of_one_input_channel_when_only_it_is_wanted(padding):
    # What a saliency map needs: the weights ask for nothing.
    layer = QuantConv2d(1, 3, (3, 3), padding=padding, bits=32).requires_grad_(False)
    x = torch.randn(2, 1, 7, 9, requires_grad=True)
    y = layer(x)
    grad = torch.randn_like(y)
    (ours,) = torch.autograd.grad(y, x, grad)
    (expected,) = torch.autograd.grad(F.conv2d(x, layer.weight, layer.bias, padding=padding), x, grad)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("padding", [0, 2])
def test_gradient_of_one_input_channel_is_folded_on_a_gpu_to_the_same(padding, dtype):
    weight, x = torch.randn(4, 1, 3, 5), torch.randn(3, 1, 9, 8)
    grad = (
        torch.randn_like(F.conv2d(x, weight, padding=padding)).to(dtype).contiguous(memory_format=torch.channels_last)
    )
    added, folded = (
        kernels._one_channel_input_gradient(grad, weight, x.shape, padding, fold) for fold in (False, True)
    )
    assert added.shape == x.shape
    torch.testing.assert_close(folded, added, rtol=1e-5, atol=1e-5)


def test_pact_and_conv_together_give_alpha_its_gradient():
    clip, layer = PACT(2, 0.8), QuantConv2d(3, 4, 3, bits=2)
    x = torch.randn(2, 3, 6, 6, requires_grad=True)
    y = layer(clip(x), clip.code_scale)
    grad = torch.randn_like(y)
    y.backward(grad)
    weight = quantize_weight(layer.weight, 2).detach().double()
    passed = torch.nn.grad.conv2d_input(x.shape, weight, grad.double())
    inside, above = (x > 0) & (x < 0.8), x >= 0.8
    assert above.any() and inside.any()
    torch.testing.assert_close(x.grad.double(), passed * inside, rtol=1e-4, atol=1e-5)
    assert clip.alpha.grad.item() == pytest.approx((passed * above).sum().item(), rel=1e-4)


@pytest.mark.parametrize("kind", ["pixels", "pact"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_sums_of_codes_are_integers(kind, bits):
    layer = QuantConv2d(3, 5, 5, padding=2, pool=2, bits=bits)
    torch.nn.init.zeros_(layer.bias)
    x, scale = layer_input(kind, (4, 3, 12, 12))
    weight_codes = layer.codes()[0].long()
    x_codes = (x * scale).round().long()
    exact = F.max_pool2d(F.conv2d(x_codes.double(), weight_codes.double(), padding=2), 2)
    assert exact.abs().max() < 2**24
    seen = {}
    rescale = kernels.Rescale.apply
    quant_rescale = kernels.Rescale

    class Spy:
        @staticmethod
        def apply(sums, step):
            seen["sums"] = sums.clone()
            return rescale(sums, step)

    layers.Rescale = Spy
    try:
        y = layer(x, scale)
    finally:
        layers.Rescale = quant_rescale
    assert torch.equal(seen["sums"].double(), exact)  # to the last bit
    step = layer.codes()[1].double() / float(scale)
    torch.testing.assert_close(y.double(), exact * step, rtol=1e-6, atol=0)


def test_every_pixel_value_has_an_exact_code():
    codes = torch.arange(256).float()
    assert torch.equal(codes / 255 * layers.PIXEL_SCALE, codes)


def test_images_between_pixel_values_are_not_rounded():
    # Occlusion and noise make such images; rounding them would hide small changes from the explanation.
    layer = QuantLinear(4, 2, bits=4)
    x = torch.tensor([[0.1234, 0.5, 0.9, 0.0]])
    expected = F.linear(x, quantize_weight(layer.weight, 4), layer.bias)
    torch.testing.assert_close(layer(x, layers.PIXEL_SCALE), expected)


def test_layers_are_stateless_and_the_same_in_train_and_eval():
    layer = QuantConv2d(1, 2, 3, bits=2)
    assert {name for name, _ in layer.named_parameters()} == {"weight", "bias"}
    assert not list(layer.buffers())
    x = torch.rand(2, 1, 8, 8)
    state = copy.deepcopy(layer.state_dict())
    trained = layer.train()(x, 255.0)
    assert torch.equal(layer.eval()(x, 255.0), trained)
    assert torch.equal(layer.train()(x + 1, 255.0), layer.eval()(x + 1, 255.0))
    assert all(torch.equal(state[name], value) for name, value in layer.state_dict().items())


def test_forward_changes_neither_input_nor_parameters():
    layer = QuantConv2d(1, 2, 3, bits=2)
    x = torch.rand(2, 1, 8, 8)
    before = x.clone(), layer.weight.detach().clone(), layer.bias.detach().clone()
    layer(x, torch.tensor(15.0))
    layer(x)
    assert torch.equal(x, before[0]) and torch.equal(layer.weight, before[1]) and torch.equal(layer.bias, before[2])


# ------------------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("kind", ["pixels", "pact"])
def test_bfloat16_multiplies_the_same_codes_and_rounds_only_their_sums(kind, bits):
    layer = QuantConv2d(3, 5, 5, padding=2, bits=bits)
    torch.nn.init.zeros_(layer.bias)
    x, scale = layer_input(kind, (4, 3, 12, 12))
    codes, step, _ = layer.codes()
    exact = F.conv2d((x * scale).round().double(), codes.double(), padding=2)
    layer.arithmetic = torch.bfloat16
    y = layer(x, scale)
    assert y.dtype == torch.float32
    # Half of a unit in the eighth bit, from a sum that was exact before it was rounded.
    rounded = (y.double() / (step.double() / float(scale)) - exact).abs()
    assert (rounded <= exact.abs() * 2**-8 * 1.001).all() and rounded.max() > 0


@pytest.mark.parametrize("channels, bits, kind", [(1, 4, "pixels"), (3, 4, "pact"), (3, 32, "none"), (1, 32, "pixels")])
def test_bfloat16_gradients_are_those_of_float32_to_its_precision(channels, bits, kind):
    layer = QuantConv2d(channels, 4, 5, pool=2, bits=bits)
    x, scale = layer_input(kind, (6, channels, 14, 14))
    x = x.requires_grad_()
    grad = torch.randn_like(layer(x, scale))
    wanted = [x, layer.weight, layer.bias]
    expected = torch.autograd.grad(layer(x, scale), wanted, grad)
    layer.arithmetic = torch.bfloat16
    for ours, theirs in zip(torch.autograd.grad(layer(x, scale), wanted, grad), expected, strict=True):
        assert ours.dtype == torch.float32
        # Where two sums of a pooling window round to one number, another of them may win: a few single gradients move.
        assert (ours - theirs).norm() < 0.15 * theirs.norm()
        assert F.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.99


def exact_sums(layer, x, scale):
    """The layer's codes multiplied and added in float64."""
    codes, _, _ = layer.codes()
    return F.conv2d((x.detach() * scale).round().double(), codes.double(), padding=layer.padding)


@pytest.mark.parametrize("bits, input_bits", [(2, 1), (3, 4), (4, 4)])
@pytest.mark.parametrize("channels, padding", [(3, 2), (1, 0)])
def test_an_integer_convolution_is_the_exact_one(bits, input_bits, channels, padding):
    # Of so few bits that no processor's 16-bit pairs overflow, so this holds with and without VNNI.
    layer, clip = QuantConv2d(channels, 5, 3, padding=padding, bits=bits), PACT(input_bits, 0.9)
    x = clip(torch.rand(4, channels, 12, 12))
    codes, _, _ = layer.codes()
    sums = kernels._convolve_int8(kernels._channels_last((x * clip.code_scale).round()), codes, padding)
    assert sums.dtype == torch.float32
    assert torch.equal(sums.double(), exact_sums(layer, x, clip.code_scale))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("input_bits", [1, 4, 8])
@pytest.mark.parametrize("options", [{"pool": 2}, {"padding": 2}, {"per_channel": True}])
@pytest.mark.parametrize("arithmetic", [torch.float32, torch.bfloat16])
def test_a_layer_computes_the_same_in_integers(bits, input_bits, options, arithmetic, monkeypatch):
    calls = []
    monkeypatch.setattr(kernels, "_convolve_int8", lambda *a, do=kernels._convolve_int8: calls.append(1) or do(*a))
    layer, clip = QuantConv2d(3, 5, 5, bits=bits, **options), PACT(input_bits, 0.9)
    layer.arithmetic = arithmetic
    x = clip(torch.rand(4, 3, 12, 12)).detach().requires_grad_()
    y = layer(x, clip.code_scale)
    assert len(calls) == kernels.integers()
    gradients = torch.autograd.grad(y.square().sum(), [x, layer.weight, layer.bias])
    if kernels.integers() or arithmetic == torch.float32:
        exact, step = exact_sums(layer, x, clip.code_scale), layer.codes()[1]
        exact = F.max_pool2d(exact, layer.pool).float() * (step / clip.code_scale).reshape(-1, 1, 1)
        assert torch.equal(y, exact + layer.bias.view(1, -1, 1, 1))
    monkeypatch.setattr(kernels, "integers", lambda: False)
    expected = layer(x, clip.code_scale)
    theirs = torch.autograd.grad(expected.square().sum(), [x, layer.weight, layer.bias])
    if arithmetic == torch.float32:
        assert torch.equal(y, expected)
        assert all(torch.equal(a, b) for a, b in zip(gradients, theirs, strict=True))
    assert not calls[1:]


def test_integers_are_used_only_where_they_give_the_known_sum(monkeypatch):
    monkeypatch.setattr(kernels, "int8_units", lambda: True)
    monkeypatch.setattr(kernels, "_convolve_int8", lambda *a: torch.tensor([32767.0]))  # saturated
    kernels.integers.cache_clear()
    assert not kernels.integers()
    monkeypatch.setattr(kernels, "_convolve_int8", lambda *a: torch.tensor([255.0 * 127 * 800]))
    kernels.integers.cache_clear()
    assert kernels.integers()
    monkeypatch.setattr(kernels, "int8_units", lambda: False)
    kernels.integers.cache_clear()
    assert not kernels.integers()
    kernels.integers.cache_clear()


@pytest.mark.parametrize("integers", [True, False])
@pytest.mark.parametrize("method", ["sawb", "dorefa", "minmax"])
def test_what_is_no_code_is_not_turned_into_one(integers, method, monkeypatch):
    if not integers:
        monkeypatch.setattr(kernels, "integers", lambda: False)
    layer, scale = QuantConv2d(2, 3, 3, bits=4, method=method), torch.tensor(15.0)
    x = torch.rand(1, 2, 6, 6)
    x[0, 0, 2, 2] = torch.nan
    assert layer(x, scale).isnan().any()
    x[0, 0, 2, 2] = -1.0  # a code of -15, as the layer computes in float
    expected = exact_sums(layer, x, 15.0) * (layer.codes()[1] / 15).double() + layer.bias.view(1, -1, 1, 1).double()
    assert (layer(x, scale).double() - expected).abs().max() < 1e-5
    with torch.no_grad():
        layer.weight[0, 0, 0, 0] = torch.nan
    assert layer(torch.rand(1, 2, 6, 6), scale).isnan().any()
    assert layer(x[:0], scale).shape == (0, 3, 4, 4)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("shape", [(4, 3, 12, 12), (4, 12)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_take_the_codes_that_pact_carries_and_work_out_the_same_without_them(bits, shape, dtype):
    layer = QuantConv2d(3, 5, 3, bits=4) if len(shape) == 4 else QuantLinear(12, 5, bits=4)
    layer.arithmetic = dtype
    clip = PACT(bits, 0.9)
    x = (2 * torch.rand(shape) - 0.5).requires_grad_()
    y = clip(x)
    codes = activations.carried(y).codes
    assert torch.equal(activations.carried(y).scale, clip.code_scale)
    assert torch.equal(codes, (y * clip.code_scale).round()) and not codes.requires_grad
    assert codes.min() == 0 and codes.max() == 2**bits - 1
    wanted = [x, clip.alpha, layer.weight, layer.bias]
    results = []
    for entering in (clip(x), clip(x).clone()):  # a clone carries none
        out = layer(entering, clip.code_scale)
        results.append([out, *torch.autograd.grad(out.square().sum(), wanted)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    codes.zero_()
    assert torch.equal(
        layer(y, clip.code_scale), torch.zeros_like(results[0][0]) + layer.bias.view(-1, *[1] * (len(shape) - 2))
    )


def test_an_activation_that_is_edited_in_place_has_its_codes_worked_out_anew():
    layer, clip = QuantLinear(12, 5, bits=4), PACT(4, 0.9)

    def silence(module, entered, y):
        y[:, :6] = 0

    x = torch.rand(4, 12)
    expected = clip(x).clone()
    expected[:, :6] = 0
    clip.register_forward_hook(silence)
    edited = clip(x)
    assert activations.carried(edited) is None
    assert torch.equal(layer(edited, clip.code_scale), layer(expected, clip.code_scale))


def test_pact_works_where_torch_counts_no_changes():
    layer, clip, x = QuantLinear(12, 5, bits=4), PACT(4, 0.9), torch.rand(4, 12)
    expected = layer(clip(x), clip.code_scale)
    with torch.inference_mode():
        assert torch.equal(layer(clip(x), clip.code_scale), expected)


def test_no_gradient_is_made_up_for_the_codes_or_for_an_output_that_nothing_depends_on(monkeypatch):
    received = []
    backward = activations._Pact.backward
    monkeypatch.setattr(activations._Pact, "backward", staticmethod(lambda *a: received.append(a[1:]) or backward(*a)))

    class Nothing(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.set_materialize_grads(False)
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return None

    x, alpha = torch.rand(3).requires_grad_(), torch.tensor(0.5, requires_grad=True)
    torch.autograd.grad(pact(x, alpha, 4).sum(), [x, alpha])
    ends = torch.autograd.grad(Nothing.apply(pact(x, alpha, 4)).sum(), [x, alpha], allow_unused=True)
    assert received[0][0].tolist() == [1, 1, 1] and received[0][1] is None
    assert ends == (None, None)


def test_gradients_of_one_kind_inside_the_other_leave_the_other_as_it_was():
    def both_wanted():
        layer, x = QuantLinear(3, 2), torch.rand(1, 3).requires_grad_()
        out = layer(x).sum()
        return [gradient is not None for gradient in torch.autograd.grad(out, [layer.weight, x], allow_unused=True)]

    with kernels.gradients_of("inputs"):
        with kernels.gradients_of("parameters"):
            assert both_wanted()[0]
        assert both_wanted() == [False, True]
    assert both_wanted() == [True, True]


def test_pixels_and_float_weights_are_no_codes():
    x, scale = torch.rand(2, 1, 8, 8), PACT(4, 0.9).code_scale
    for layer, codes in ((QuantConv2d(1, 2, 3, bits=4), 255.0), (QuantConv2d(1, 2, 3), scale)):
        expected = F.conv2d(x.double(), quantize_weight(layer.weight, layer.bits).double())
        assert (layer(x, codes).double() - expected - layer.bias.view(1, -1, 1, 1)).abs().max() < 1e-5


def test_weights_are_packed_once_for_passes_of_one_shape_and_again_for_others(monkeypatch):
    # 4 bits by 4 bits: no processor's 16-bit pairs overflow, so this holds with and without VNNI.
    monkeypatch.setattr(kernels, "integers", lambda: True)
    packed = []
    prepack = torch.ops.onednn.qconv_prepack
    monkeypatch.setattr(torch.ops.onednn, "qconv_prepack", lambda *a: packed.append(a[-1]) or prepack(*a))
    layer, clip = QuantConv2d(3, 5, 3, bits=4), PACT(4, 0.9)
    model = torch.nn.Sequential(layer)
    few, many = clip(torch.rand(2, 3, 8, 8)), clip(torch.rand(4, 3, 8, 8))
    with layers.holding_weights(model):
        results = [layer(x, clip.code_scale) for x in (few, many, few, many)]
    assert [shape[0] for shape in packed] == [2, 4]
    assert torch.equal(results[0], results[2]) and torch.equal(results[1], results[3])
    with torch.no_grad():
        layer.weight.neg_()
    after = layer(few, clip.code_scale)
    assert len(packed) == 3 and not torch.equal(after, results[0])
    layer.fix_codes(*(value.clone() for value in layer.codes()[:2]))
    layer(few, clip.code_scale)
    copy.deepcopy(layer)(few, clip.code_scale)
    assert len(packed) == 5  # nothing hangs on the model


def test_the_gradient_that_reaches_pooling_lies_in_memory_as_the_sums_do(monkeypatch):
    layer, clip, seen = QuantConv2d(3, 4, 3, pool=2, bits=4), PACT(4, 0.9), []
    convolve = kernels.Convolve.apply

    def watched(*arguments):
        pooled = F.max_pool2d(convolve(*arguments), 2)
        pooled.register_hook(seen.append)
        return pooled

    monkeypatch.setattr(kernels.Convolve, "apply", watched)
    layer.pool = 1  # done by what watches
    x = clip(torch.rand(2, 3, 10, 10))
    (clip(layer(x, clip.code_scale)).flatten(1) * torch.arange(64.0)).sum().backward()
    (grad,) = seen
    assert grad.is_contiguous(memory_format=torch.channels_last) and not grad.is_contiguous() and grad.any()


def test_passes_that_hold_the_weights_share_them(monkeypatch):
    layer = QuantConv2d(1, 3, 3, bits=4)
    model, x = torch.nn.Sequential(layer, QuantLinear(6, 2)), torch.rand(2, 1, 8, 8)
    expected = layer(x, 255.0)
    (gradient,) = torch.autograd.grad(2 * expected.sum(), layer.weight)
    counted = []
    monkeypatch.setattr(layers, "weight_codes", lambda *a, do=weights.weight_codes: counted.append(1) or do(*a))
    with layers.holding_weights(model):
        first, second = layer(x, 255.0), layer(x, 255.0)
    assert len(counted) == 1
    assert torch.equal(first, expected) and torch.equal(second, expected)
    assert torch.equal(torch.autograd.grad(first.sum() + second.sum(), layer.weight)[0], gradient)
    with torch.no_grad():
        layer.weight.mul_(-1)
    assert not torch.equal(layer(x, 255.0), expected)  # let go
    with pytest.raises(RuntimeError), layers.holding_weights(model):
        raise RuntimeError
    assert layer.held is None


def test_holding_weights_inside_of_it_is_a_matter_of_its_own():
    layer, x = QuantConv2d(1, 3, 3, bits=4), torch.rand(2, 1, 8, 8)
    with torch.no_grad(), layers.holding_weights(layer):
        outer = layer.held
        with torch.enable_grad(), layers.holding_weights(layer):
            layer(x, 255.0).sum().backward()
        assert layer.held is outer
    assert layer.weight.grad is not None and layer.held is None


def test_two_backward_passes_through_one_graph_each_computes_its_own_gradients():
    clip, first, last = PACT(4, 0.8), QuantConv2d(1, 3, 3, bits=4), QuantLinear(3 * 36, 5, bits=4)
    parameters = [clip.alpha, first.weight, first.bias, last.weight, last.bias]

    def forward(x):
        return last(clip(first(x, 255.0)).flatten(1), clip.code_scale).square().sum()

    x = torch.rand(2, 1, 8, 8, requires_grad=True)
    expected = torch.autograd.grad(forward(x), [x, *parameters])
    y = forward(x)
    with kernels.gradients_of("inputs"):
        (of_input,) = torch.autograd.grad(y, x, retain_graph=True)
    with kernels.gradients_of("parameters"):
        y.backward()
    assert torch.equal(of_input, expected[0])
    assert x.grad is None  # not computed a second time
    for parameter, gradient in zip(parameters, expected[1:], strict=True):
        assert torch.equal(parameter.grad, gradient)
    again = torch.autograd.grad(forward(x), [x, *parameters])  # outside nothing is left out
    assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))


def test_what_is_wanted_is_everything_again_after_an_error():
    with pytest.raises(RuntimeError), kernels.gradients_of("inputs"):
        raise RuntimeError
    assert kernels.wanted.parameters and kernels.wanted.inputs


@settings(deadline=None)
@given(
    st.sampled_from([(2, False), (3, False), (4, False), (4, True), (8, True)]),
    st.integers(2, 300),
    st.integers(0, 2**31 - 1),
)
def test_sawb_is_that_of_float64_to_the_last_digits_of_float32(key, count, seed):
    # Its two terms nearly cancel at 4 and 8 bits.
    w = torch.randn(count, generator=torch.Generator().manual_seed(seed))
    c1, c2, _ = SAWB[key]
    v = w.double()
    expected = (c1 * v.square().mean().sqrt() + c2 * v.abs().mean()).item()
    if expected > 0:
        assert sawb_clip(w, *key).item() == pytest.approx(expected, rel=2e-7)
    else:
        assert sawb_clip(w, *key) == w.abs().max()
