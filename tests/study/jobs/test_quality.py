"""Tests of sqlib.study.jobs.quality: the job on small untrained networks, its files, and the agreement between runs."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from sqlib import files
from sqlib.checked import SqlibError
from sqlib.maps.attribution import METHODS, saliency_map
from sqlib.measures import clarity, faithfulness, robustness, sanity
from sqlib.networks.network import build_model
from sqlib.networks.passes import predict
from sqlib.study import parameters, results
from sqlib.study.jobs import quality
from sqlib.training.examples import to_float
from sqlib.training.loop import seeded_model

SETUPS = (32, 2)
SEEDS = (0, 1, 2)


@pytest.fixture
def study(make_setup):
    return parameters.Study(
        name="test",
        title="test",
        datasets=["mnist"],
        networks=["lenet5"],
        setups=[make_setup(bits, bits) for bits in SETUPS],
        trainings=["standard"],
        seeds=list(SEEDS),
        training=parameters.Training(epochs=1),
        quality=parameters.Quality(images=30, every_method=["w2a2"]),
    )


@pytest.fixture
def reports(study, tmp_path):
    """A folder with the finished runs of the study, as their seeds initialised them."""
    for run in study.runs():
        model, one = seeded_model(run), {"dead": torch.zeros(1)}
        for clip in model.clips().values():  # behind a clip of 10 an untrained 2-bit lenet5 is dead
            clip.alpha.data.fill_(2.0)
        measured = results.Measurements({"test_accuracy": 0.1}, {}, one)
        results.save_run(run.folder(tmp_path), run, model, [{}] * run.epochs, measured, started=0.0)
    return tmp_path


@pytest.fixture(autouse=True)
def small(monkeypatch, blobs):
    monkeypatch.setattr(quality, "load", lambda name: blobs)
    monkeypatch.setattr(quality, "FEWER", {"clarity": 8, "faithfulness": 6, "sanity": 4, "robustness": 3})
    monkeypatch.setattr(quality, "FEWEST", {"clarity": 5, "faithfulness": 5, "sanity": 2, "robustness": 2})


def run_of(study, bits, seed=0):
    return study.run(f"mnist/lenet5/w{bits}a{bits}/standard/seed{seed}")


@pytest.mark.slow
def test_the_job_writes_what_it_returns(study, reports):
    run = run_of(study, 2)
    folder = run.folder(reports)
    result = quality.measure_quality(study, run, folder)
    written = (folder / "quality.json").read_bytes()
    assert written == files.to_json(result) and files.read_json(folder / "quality.json")["run"] == run.id
    assert sorted(result["methods"]) == sorted(METHODS)
    few = quality.images_for("gradient", "unclipped", 30)
    assert few["clarity"] == 8 and quality.images_for("gradient", "straight_through", 30)["sanity"] == 30
    for method, by_surrogate in result["methods"].items():
        expected = ["straight_through"] if not METHODS[method].uses_gradient else ["straight_through", "unclipped"]
        assert list(by_surrogate) == expected
        for surrogate, measured in by_surrogate.items():
            n = (
                5
                if METHODS[method].passes >= quality.COSTLY
                else 30
                if (method, surrogate) == ("gradient", "straight_through")
                else 8
            )
            assert set(measured) == {"clarity", "faithfulness", "sanity", "robustness"}
            assert measured["clarity"]["dead"]["n"] == n
            assert set(measured["faithfulness"]) == {"corner", "mean", "blurred"}
            assert (measured["robustness"] is None) == (not METHODS[method].uses_gradient)
            assert [depth["layer"] for depth in measured["sanity"]["depths"]] == ["fc3", "fc2", "fc1", "conv2", "conv1"]
            assert isinstance(measured["sanity"]["flagged"], bool)

    tensors = load_file(folder / "quality.safetensors")
    gradient = result["methods"]["gradient"]["straight_through"]
    for name, summary in gradient["clarity"].items():
        values = tensors[f"gradient/straight_through/{name}"]
        assert len(values) == 30
        if summary["n"]:
            assert values.nanmean().item() == pytest.approx(summary["mean"], abs=1e-6)
    deletion = gradient["faithfulness"]["corner"]["deletion"]
    assert deletion["gap"]["mean"] == pytest.approx(deletion["random_auc"]["mean"] - deletion["auc"]["mean"], abs=1e-6)
    assert faithfulness.area_under(torch.tensor(deletion["curve"])) == pytest.approx(deletion["auc"]["mean"], abs=1e-6)

    (folder / "quality.json").unlink()
    quality.measure_quality(study, run, folder)
    assert (folder / "quality.json").read_bytes() == written  # the same bytes again


def test_a_float_network_has_one_surrogate_and_dead_maps_never_become_numbers(make_setup, blobs):
    model = build_model("lenet5", make_setup(32, 32)).eval()
    with torch.no_grad():
        model.fc3.weight.zero_()
    state = torch.get_rng_state()
    methods, _, per_image = quality.measure_maps_of(model, blobs, 0, 30, ("gradient",))
    assert torch.equal(torch.get_rng_state(), state)
    assert list(methods["gradient"]) == ["straight_through"]
    measured = methods["gradient"]["straight_through"]
    assert measured["clarity"]["dead"] == {"mean": 1.0, "n": 30}
    assert measured["clarity"]["gini"]["n"] == measured["robustness"]["sensitivity"]["n"] == 0
    assert measured["faithfulness"]["mean"]["insertion"]["gap"]["n"] == 0
    assert not measured["sanity"]["flagged"]
    assert per_image["gradient/straight_through/deletion_corner_gap"].isnan().all()
    assert json.loads(files.to_json(measured))["clarity"]["gini"] == {"mean": None, "n": 0}


def test_summary_leaves_out_what_is_no_number():
    assert quality.mean_and_count(torch.tensor([1.0, math.nan, 4.0])) == {"mean": 2.5, "n": 2}


def test_a_model_agrees_with_itself_where_it_is_right(make_setup, blobs):
    model = build_model("lenet5", make_setup(32, 32)).eval()
    images = blobs.test_images.float() / 255
    images = images.view(-1, 1, 28, 28)
    labels = model(images).argmax(dim=1)
    labels[::3] = (labels[::3] + 1) % 10  # as if it were wrong there
    for value in quality.agreement(model, model, images, labels).values():
        assert value[::3].isnan().all()
        right = torch.arange(len(value)) % 3 > 0
        torch.testing.assert_close(value[right], torch.ones(int(right.sum())))
    wrong = quality.agreement(model, model, images, (model(images).argmax(dim=1) + 1) % 10)
    assert all(value.isnan().all() for value in wrong.values())


def test_a_float_method_is_measured_on_the_gradient_alone_unless_the_study_says_so(study, reports):
    run = run_of(study, 32)
    result = quality.measure_quality(study, run, run.folder(reports))
    assert list(result["methods"]) == ["gradient"] and result["parameters"]["images"] == 30


def test_agreement_names_the_runs_it_compared(study, reports, blobs):
    def agreement_with(run):
        model = results.load_model(run.folder(reports))
        return quality.agreement_with(
            study, run, reports, model, to_float(blobs.test_images[:30]), blobs.test_labels[:30]
        )

    floats = [run_of(study, 32, seed) for seed in SEEDS]
    run = run_of(study, 2, 1)
    means, per_image = agreement_with(run)
    assert list(means) == [floats[1].id] and set(means[floats[1].id]) == {"straight_through", "unclipped"}
    name = f"agreement/{floats[1].id}/unclipped/ssim"
    assert per_image[name].shape == (30,)
    assert means[floats[1].id]["unclipped"]["ssim"]["n"] == int((~per_image[name].isnan()).sum())

    # The ceiling: every pair of float runs once, at the run of the earlier seed.
    pairs = [list(agreement_with(other)[0]) for other in floats]
    assert pairs == [[floats[1].id, floats[2].id], [floats[2].id], []]

    (floats[1].folder(reports) / "result.json").unlink()
    assert agreement_with(run) == ({}, {})


def test_the_insertion_control_is_a_random_order_too(make_setup, blobs):
    model = build_model("lenet5", make_setup(32, 32)).eval()
    images, labels = quality.to_float(blobs.test_images[:9]), blobs.test_labels[:9]
    controls = quality.random_controls(model, images, labels, seed=3)
    order = faithfulness.random_order(9, 784, 3)
    for fill in faithfulness.FILLS:
        for direction, its_order in (("deletion", order), ("insertion", order.flip(1))):
            expected = faithfulness.still_right(model, images, labels, its_order, fill, direction)
            assert torch.equal(controls[fill, direction], expected), (fill, direction)


def test_a_run_that_is_not_there(study, tmp_path):
    run = run_of(study, 2)
    with pytest.raises(SqlibError, match="no such file"):
        quality.measure_quality(study, run, run.folder(tmp_path))


@pytest.mark.parametrize("method", ["gradient", "smoothgrad"])
def test_what_is_known_already_changes_no_value(method, study, make_setup, blobs, monkeypatch):
    # More images for clarity than a batch, so that SmoothGrad's noise of the few is not that of the first of the many.
    many = {"clarity": 70, "faithfulness": 66, "sanity": 4, "robustness": 3}
    monkeypatch.setattr(quality, "FEWER", many)
    monkeypatch.setattr(quality, "FEWEST", many)
    model = seeded_model(run_of(study, 2)).eval()
    for clip in model.clips().values():
        clip.alpha.data.fill_(2.0)
    _, _, values = quality.measure_maps_of(model, blobs, 0, 70, (method,))
    images, labels = to_float(blobs.test_images[:70]), blobs.test_labels[:70]
    targets = predict(model, images).argmax(dim=1)
    how = (method, "unclipped")
    maps = saliency_map(model, images, targets, *how)
    # A processor may add up a batch of another size in another order. So a map that is handed on must be the one that a
    # batch of its own gives but for that, and what is made of it the same to the last bit.
    for few in (3, 4):
        if (known := quality.first(maps, few, method)) is not None:
            torch.testing.assert_close(known, saliency_map(model, images[:few], targets[:few], *how))
    known = quality.first(maps, 3, method)
    moved = robustness.sensitivity(model, images[:3], targets[:3], *how, seed=0, maps=known)
    assert torch.equal(values[f"{method}/unclipped/sensitivity"].nan_to_num(-1), moved.nan_to_num(-1))
    known = quality.first(maps, 4, method)
    similar = sanity.randomisation(model, images[:4], targets[:4], *how, 0, maps=known).spearman[-1]
    assert torch.equal(values[f"{method}/unclipped/sanity_spearman"].nan_to_num(-2), similar.nan_to_num(-2))
    maps = maps[:66]
    for fill in faithfulness.FILLS:
        for direction in faithfulness.DIRECTIONS:
            order = faithfulness.salient_order(maps)
            right = faithfulness.still_right(model, images[:66], labels[:66], order, fill, direction)
            areas = faithfulness.areas_under(right.T).masked_fill(clarity.dead(maps), torch.nan)
            found = values[f"{method}/unclipped/{direction}_{fill}_auc"]
            assert torch.equal(found.nan_to_num(-1), areas.to(found).nan_to_num(-1))
