"""What the page of a data set says: copies, balance, and which classes look alike."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from sqlib.report.sections import data


def test_copies_of_training_images_are_counted(blobs):
    assert data.copies(blobs) == {"validation": 0, "test": 0}
    again = replace(blobs, test_images=blobs.train_images[:3])
    assert data.copies(again) == {"validation": 0, "test": 3}
    assert data.copied({"validation": 0, "test": 0}).startswith("No validation or test image is a pixel")
    assert data.copied({"validation": 0, "test": 3}).startswith("0 validation and 3 test images are pixel")


def test_balance_of_classes_in_words():
    counts = pd.DataFrame({"class": ["a", "b"], "train": [1000, 1000]})
    assert data.balance(counts) == "Every class has the same number of training images (1,000)"
    counts["train"] = [1200, 900]
    assert data.balance(counts).endswith("from 900 training images (b) to 1,200 (a)")


def test_means_tell_which_classes_are_alike_and_name_a_class(blobs):
    means = data.class_means(blobs)
    assert means.shape == (10, 28, 28) and means[0] == pytest.approx(
        blobs.train_images[blobs.train_labels == 0].numpy().mean(axis=0)
    )
    assert data.nearest_mean_accuracy(blobs, means) == 1
    means[7] = means[2]
    assert data.most_alike(means) == (2, 7, pytest.approx(1))
    assert data.nearest_mean_accuracy(blobs, np.zeros_like(means)) == pytest.approx(0.1)
