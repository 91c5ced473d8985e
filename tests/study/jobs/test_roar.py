"""ROAR: pixels taken away that can be counted by hand, and a data set whose label stands in two known pixels."""

import dataclasses
import shutil

import pytest
import torch
from pydantic import ValidationError

from sqlib import files
from sqlib.checked import SqlibError
from sqlib.measures import faithfulness
from sqlib.places import REPOSITORY
from sqlib.study import results
from sqlib.study.jobs import roar
from sqlib.study.parameters import load_study
from sqlib.training.examples import Dataset

REFERENCE = REPOSITORY / "reports/reference/runs"
SMALL = roar.Budget(setups=("w2a2",), fractions=(0.5,), images=100, epochs=1, validation_images=50)


@pytest.fixture
def study():
    return load_study("paper")


def random_order(count, seed=0):
    return faithfulness.random_order(count, 28 * 28, seed)


# ---- the order of the pixels, and their removal ----------------------------------------------------------------------


def test_the_first_pixels_of_the_order_are_replaced_and_no_others():
    images = torch.tensor([[[1, 2], [3, 4]], [[5, 6], [7, 8]]], dtype=torch.uint8)
    order = torch.tensor([[3, 0, 1, 2], [1, 2, 3, 0]])
    found = roar.remove(images, order, 0.5, 99)
    assert found.dtype == torch.uint8
    assert found.tolist() == [[[99, 2], [3, 99]], [[5, 99], [99, 8]]]
    assert images.tolist() == [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]


@pytest.mark.parametrize("fraction, count", [(0, 0), (0.2, 1), (0.6, 2), (0.7, 3), (1, 4)])  # of 4, rounded
def test_the_number_of_removed_pixels_is_rounded(fraction, count):
    images = torch.ones(3, 2, 2, dtype=torch.uint8)
    removed = roar.remove(images, torch.arange(4).repeat(3, 1), fraction, 0)
    assert (removed == 0).flatten(1).sum(dim=1).tolist() == [count] * 3


def test_orders_and_fractions_that_do_not_fit_are_refused():
    images = torch.ones(3, 2, 2, dtype=torch.uint8)
    with pytest.raises(ValueError, match="expected \\(3, 4\\)"):
        roar.remove(images, torch.arange(4).repeat(2, 1), 0.5, 0)
    with pytest.raises(ValueError, match="expected 0 to 1"):
        roar.remove(images, torch.arange(4).repeat(3, 1), 1.5, 0)


def test_pixels_are_ranked_by_size_and_ties_by_chance():
    maps = torch.tensor([[[0.0, -3.0], [1.0, 0.0]], [[2.0, 0.0], [0.0, 0.0]]])
    chance = torch.tensor([[3, 2, 1, 0], [2, 0, 3, 1]])
    assert roar.rank(maps, chance).tolist() == [[1, 2, 3, 0], [0, 2, 3, 1]]


@pytest.mark.parametrize("size", [0.0, 1e-13])
def test_a_dead_map_is_ranked_by_chance(size):
    chance = faithfulness.random_order(2, 9, seed=3)
    maps = torch.arange(18).view(2, 3, 3) * size / 18
    assert torch.equal(roar.rank(maps, chance), chance)


def test_the_mean_pixel_is_that_of_the_training_images(blobs):
    half = torch.zeros(2, 28, 28, dtype=torch.uint8)
    half[0] = 201
    assert roar.mean_pixel(dataclasses.replace(blobs, train_images=half)) == 100


def test_a_subset_has_equally_many_of_each_class_and_no_test_image(blobs):
    small = roar.subset(blobs, 40, 20)
    assert small.train_labels.bincount().tolist() == [4] * 10 and small.train_images.shape == (40, 28, 28)
    assert small.validation_labels.bincount().tolist() == [2] * 10 and len(small.validation_images) == 20
    assert len(small.test_images) == len(small.test_labels) == 0


def test_training_and_validation_images_lose_equally_many_pixels_each_those_of_its_own_order(blobs):
    white = dataclasses.replace(blobs, train_images=torch.zeros_like(blobs.train_images))
    white.train_images[:, :14] = 200  # the mean: 100, which no pixel has
    white = dataclasses.replace(white, validation_images=white.train_images[:50])
    order = random_order(450)
    found = roar.removed_from(white, order, 0.25)
    gone = torch.cat([found.train_images, found.validation_images]).flatten(1) == 100
    assert gone.sum(dim=1).tolist() == [196] * 450
    assert torch.equal(gone.nonzero()[:, 1].view(450, 196), order[:, :196].sort(dim=1).values)
    assert torch.equal(found.train_labels, blobs.train_labels)


def test_the_random_order_is_another_for_each_image_and_seed():
    a, b = random_order(20, seed=1), random_order(20, seed=2)
    assert torch.equal(a, random_order(20, seed=1))
    assert torch.equal(a.sort(dim=1).values, torch.arange(784).repeat(20, 1))
    firsts = torch.cat([a, b])[:, :78]
    assert len({tuple(first) for first in firsts.tolist()}) == 40
    overlap = len(set(a[0, :392].tolist()) & set(b[0, :392].tolist()))
    assert 150 < overlap < 240  # 196 expected, with a standard deviation of 7


# ---- the retrained networks ------------------------------------------------------------------------------------------

PLANTED = (10 * 28 + 9, 17 * 28 + 18)
"""The places of the two pixels that the label depends on."""


@pytest.fixture(scope="module")
def planted():
    """1,000 training and 200 validation images of noise; five levels of one pixel and two of another are the ten classes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(1200) % 10
    images = torch.randint(0, 40, (1200, 784), generator=generator)
    images[:, PLANTED[0]] = (labels // 2) * 60
    images[:, PLANTED[1]] = (labels % 2) * 240
    images = images.to(torch.uint8).view(1200, 28, 28)
    return Dataset(
        name="mnist", title="planted", classes=tuple("0123456789"), sha256={},
        train_images=images[:1000], train_labels=labels[:1000],
        validation_images=images[1000:], validation_labels=labels[1000:],
        test_images=images[:0], test_labels=labels[:0],
    )  # fmt: skip


def test_without_the_two_pixels_of_the_label_nothing_is_learned_but_at_random_it_is(planted, make_run):
    retraining = make_run(bits=32, images=1000, epochs=6, batch_size=25, learning_rate=6e-3)
    oracle = torch.zeros(1200, 784)
    oracle[:, PLANTED] = -1.0  # the sign says nothing
    intact, random, explained = roar.retrain_without(planted, {"oracle": oracle.view(-1, 28, 28)}, [retraining], (0.1,))
    assert intact[0] > 0.9 and random[0][0] > 0.6  # both pixels are still there in 81% of the images
    assert explained["oracle"][0][0] < 0.2  # chance is 0.1


def test_dead_maps_are_worth_what_a_random_order_is_worth_and_numbers_repeat(blobs, make_run):
    data = roar.subset(blobs, 100, 50)
    retrainings = [make_run(bits=32, images=100, seed=seed, learning_rate=3e-3) for seed in (7, 8)]
    maps = {"dead": torch.zeros(150, 28, 28)}
    first = roar.retrain_without(data, maps, retrainings, (0.3, 0.9))
    torch.rand(5)  # whatever is drawn elsewhere
    assert roar.retrain_without(data, maps, retrainings, (0.3, 0.9)) == first
    intact, random, explained = first
    assert explained["dead"] == random
    assert len(intact) == len(random) == 2 and [len(part) for part in random] == [2, 2]


def test_a_retrained_network_is_float_has_the_studys_recipe_and_no_more_than_the_budget(study):
    run = roar.retraining(study, "mnist", 100, roar.Budget(images=500, epochs=2))
    assert run.setup.is_float and run.training == "standard" and run.seed == 100
    assert (run.parameters.images, run.epochs, run.parameters.epochs, run.parameters.shift) == (500, 2, 2, 0)
    assert run.parameters.batch_size == study.training.batch_size
    assert run.parameters.learning_rate == study.training.learning_rate
    smoke = roar.retraining(load_study("smoke"), "mnist", 100, roar.Budget())
    assert (smoke.parameters.images, smoke.epochs) == (2000, 2)


def test_maps_explain_the_predicted_class_and_do_not_depend_on_the_batch(blobs):
    model = results.load_model(REFERENCE / "fashion_mnist/lenet/w2a2/standard/seed0")
    images = blobs.train_images[:7]
    maps = roar.maps_of(model, images)
    floats = images.unsqueeze(1).float() / 255
    expected = roar.saliency_map(model, floats, roar.predict(model, floats).argmax(dim=1))
    assert torch.equal(maps, expected)
    torch.testing.assert_close(roar.maps_of(model, images, batch=3), expected)


# ---- a study's runs --------------------------------------------------------------------------------------------------


def test_the_explained_runs_are_the_budgets_setups_in_every_training(study):
    found = [run.id for run in roar.explained_runs(study, "mnist", roar.Budget())]
    assert found == [
        f"mnist/lenet/{setup}/{training}/seed0"
        for setup in ("fp32", "w2a2")
        for training in ("standard", "saliency_guided")
    ]
    with pytest.raises(SqlibError, match="none of the setups w3a3"):
        roar.explained_runs(study, "mnist", roar.Budget(setups=("w3a3",)))


def test_published_runs_are_measured_and_the_result_is_written(tmp_path, study):
    (tmp_path / "runs").symlink_to(REFERENCE)
    found = roar.remove_and_retrain(study, "fashion_mnist", tmp_path, SMALL)
    path = tmp_path / "results/roar_fashion_mnist.json"
    assert files.read_json(path) == found
    assert (found["seeds"], found["fractions"]) == ([100, 101], [0.5])
    assert (found["images"], found["epochs"], found["validation_images"]) == (100, 1, 50)
    assert found["fill"] == pytest.approx(73, abs=10)  # the mean of all 60,000 images
    assert list(found["explained"]) == [
        "fashion_mnist/lenet/w2a2/standard/seed0",
        "fashion_mnist/lenet/w2a2/saliency_guided/seed0",
    ]
    guided = found["explained"]["fashion_mnist/lenet/w2a2/saliency_guided/seed0"]
    assert (guided["setup"], guided["training"], guided["seed"], guided["dead_map_rate"]) == (
        "w2a2", "saliency_guided", 0, 0,
    )  # fmt: skip
    expected = [chance[0] - own[0] for chance, own in zip(found["random"], guided["accuracy"])]
    assert guided["gap"] == pytest.approx(expected)


@pytest.mark.parametrize("missing", ["result.json", results.PACKED])
def test_a_missing_model_is_named_with_what_to_do(tmp_path, study, missing):
    run = study.run("mnist/lenet/w2a2/standard/seed0")
    shutil.copytree(REFERENCE / run.id, tmp_path / "runs" / run.id)
    (tmp_path / "runs" / run.id / missing).unlink()
    with pytest.raises(SqlibError, match="python -m sqlib train paper mnist/lenet/w2a2/standard/seed0"):
        roar.remove_and_retrain(study, "mnist", tmp_path, SMALL)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"fractions": ()}, {"fractions": (0.0, 0.5)}, {"fractions": (0.9, 0.5)}, {"seeds": (1,)}, {"seeds": (1, 1)},
        {"images": 5}, {"unknown": 1},
    ],
)  # fmt: skip
def test_a_budget_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValidationError):
        roar.Budget(**wrong)
