"""Tests of sqlib.quant.bits: which layer of any model gets which bits."""

import pytest

from sqlib.checked import SqlibError
from sqlib.quant.bits import LayerBits

NAMES = ("body.0", "body.2", "head")


def test_the_most_specific_bits_count_whatever_the_layers_are_called(make_setup):
    layers = {"body.2": LayerBits(weights=8), "head": LayerBits(activations=3)}
    setup = make_setup(2, 4, first=LayerBits(weights=32), last=LayerBits(weights=4, activations=8), layers=layers)
    assert [setup.bits(name, NAMES) for name in NAMES] == [(32, 4), (8, 4), (4, 3)]
    assert setup.bits("body.2", ("body.2",)) == (8, 8)  # first and last at once
    with pytest.raises(SqlibError, match="there is no layer 'body.1'; did you mean 'body.[02]'?"):
        setup.bits("body.1", NAMES)


def test_a_model_runs_in_integers_when_all_but_its_logits_are_codes(make_setup):
    assert make_setup(2, 2).all_quantised(NAMES)
    assert make_setup(2, 2, last=LayerBits(activations=32)).all_quantised(NAMES)  # the logits
    for part in (LayerBits(weights=32), LayerBits(activations=32)):
        assert not make_setup(2, 2, first=part).all_quantised(NAMES)
    assert not make_setup(2, 2, last=LayerBits(weights=32)).all_quantised(NAMES)


def test_layers_are_told_how_their_weights_are_quantised(make_setup):
    setup = make_setup(4, 4, weight_method="minmax", zero_aligned=True, per_channel=True)
    assert setup.weight_options == {"method": "minmax", "zero_aligned": True, "per_channel": True}
