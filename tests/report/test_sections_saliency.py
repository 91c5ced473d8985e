"""What the page of a network says: its surest errors, what the clip hides, and which units pass gradient."""

import pandas as pd
import torch

from sqlib.networks.network import build_model
from sqlib.report.sections import compare, saliency


def test_images_are_chosen_by_rule():
    labels, right = torch.tensor([0, 0, 2, 2, 1]), torch.tensor([False, True, True, True, False])
    assert compare.first_of_each_class(right, labels, 3) == [1, 2]
    confidence = torch.tensor([0.6, 0.9, 0.9, 0.9, 0.8])
    assert saliency.surest_errors(right, confidence) == [4, 0] and saliency.surest_errors(right, confidence, 1) == [4]
    assert saliency.surest_errors(right | True, confidence) == []


def test_a_closed_clip_kills_the_straight_through_map_and_not_the_unclipped_one(make_setup):
    model = build_model("lenet5", make_setup(4, 4)).eval()
    for clip in model.clips().values():
        clip.alpha.data.fill_(1e-6)
    frame = saliency.surrogates(model, torch.rand(4, 1, 28, 28), torch.zeros(4, dtype=torch.int64))
    assert frame.loc["straight through", "dead maps"] == 1 and frame.loc["unclipped", "dead maps"] < 1
    assert frame.index.name == "gradient" and pd.isna(frame.loc["straight through", "Gini"])


def test_layers_in_words():
    shares = pd.DataFrame({"inside": [0.251, 0.5]}, index=["conv1", "fc1"])
    assert saliency.pass_gradient(shares) == "conv1: 25% pass gradient; fc1: 50% pass gradient"
    assert saliency.clips_end({"conv1": 1.234}) == "conv1 ends at 1.23" and saliency.clips_end({}) == ""
