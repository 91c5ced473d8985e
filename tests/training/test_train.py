"""Tests of sqlib.training.loop: single steps against plain re-implementations, and whole tiny runs."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from sqlib.checked import SqlibError
from sqlib.maps.attribution import saliency_map
from sqlib.measures import clarity
from sqlib.networks.network import build_model
from sqlib.study.jobs import train
from sqlib.study.parameters import load_study
from sqlib.training import guided, loop
from sqlib.training.examples import to_float
from sqlib.training.options import Clip, Guidance

METRICS = [
    *("val_accuracy", "test_accuracy", "dead_map_rate", "gini", "entropy", "total_variation", "foreground_lift"),
    *("deletion_auc", "random_auc", "faithfulness_gap", "train_seconds"),
    *("weight_bytes", "float_weight_bytes", "macs", "bit_operations"),
]


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(3)
    return torch.rand(8, 1, 28, 28, generator=generator), torch.randint(10, (8,), generator=generator)


def text_without_seconds(history):
    """All but the times, as text: NaN (the mean clarity of no living map) equals itself there."""
    return repr([{key: value for key, value in entry.items() if key != "seconds"} for entry in history])


# ----------------------------------------------------------------------------------------------------- single steps


@pytest.mark.parametrize("training", ["standard", "saliency_guided"])
def test_one_step_moves_weights_and_clips_and_leaves_no_gradient_on_the_input(training, make_run, batch):
    # Clips low enough to clip, and no penalty: they move by the gradient of the loss alone.
    run = make_run(2, training, clip=Clip(start=0.2, penalty=0.0))
    model = loop.seeded_model(run)
    before = copy.deepcopy(model.state_dict())
    optimizer, _ = loop.make_optimizer(model, run, 10)
    images, labels = batch
    given = images.clone()
    loss, right = loop.train_step(model, optimizer, images, labels, run)
    assert images.grad is None and not images.requires_grad and torch.equal(images, given)
    assert not loss.requires_grad and 0 <= right <= 8
    for name, value in model.state_dict().items():
        assert not torch.equal(value, before[name]), name
    assert model.training and all(p.requires_grad for p in model.parameters())


def test_penalty_is_all_that_moves_a_clip_that_clips_nothing(make_run, batch):
    run = make_run(2, clip=Clip(start=10.0, penalty=3e-3))
    model = loop.seeded_model(run)
    optimizer, _ = loop.make_optimizer(model, run, 10)
    loop.train_step(model, optimizer, *batch, run)
    for clip in model.clips().values():
        assert clip.alpha.grad.item() == 0
        # What Adam remembers of its first gradient: a tenth of that of `penalty * alpha^2`.
        assert optimizer.state[clip.alpha]["exp_avg"].item() == pytest.approx(0.1 * 2 * 3e-3 * 10)
        # Adam's first step is the learning rate: the clips' own, at the first of the two steps of its rise (0.15 * 10).
        assert clip.alpha.item() == pytest.approx(10 - 3e-2 / 2, abs=1e-4)


def test_the_loss_reported_does_not_hold_the_penalty(make_run, batch):
    losses = []
    for penalty in (0.0, 1.0):
        run = make_run(2, clip=Clip(penalty=penalty))
        model = loop.seeded_model(run)
        losses.append(loop.train_step(model, loop.make_optimizer(model, run, 10)[0], *batch, run)[0].item())
    model = loop.seeded_model(run)
    assert losses == pytest.approx([F.cross_entropy(model(batch[0]), batch[1]).item()] * 2)


def test_clips_stay_positive(make_run, batch):
    run = make_run(2, clip=Clip(start=0.02, penalty=1.0, learning_rate=1.0))
    model = loop.seeded_model(run)
    optimizer, _ = loop.make_optimizer(model, run, 1)
    for _ in range(3):
        loop.train_step(model, optimizer, *batch, run)
        assert all(clip.alpha > 0 for clip in model.clips().values())


def test_two_parameter_groups_hold_everything_once(make_run):
    run = make_run(2, weight_decay=0.1, clip=Clip(penalty=3e-3))
    model = loop.seeded_model(run)
    optimizer, _ = loop.make_optimizer(model, run, 10)
    weights, clips = optimizer.param_groups
    assert len(clips["params"]) == 4 and clips["weight_decay"] == 6e-3 and weights["weight_decay"] == 0.1
    assert (weights["initial_lr"], clips["initial_lr"]) == (2e-3, 3e-2)
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in model.parameters()}
    assert len(loop.make_optimizer(loop.seeded_model(make_run(32)), run, 10)[0].param_groups) == 1


def test_learning_rates_that_are_replayed_stay_where_the_step_reads_them(make_run, batch):
    run = make_run(2)
    ends = []
    for replayable in (False, True):
        model = loop.seeded_model(run)
        optimizer, schedule = loop.make_optimizer(model, run, 10, replayable)
        rates = [group["lr"] for group in optimizer.param_groups]
        assert all(isinstance(rate, torch.Tensor) == replayable for rate in rates)
        for step in range(3):
            if replayable:
                assert all(group["lr"] is rate for group, rate in zip(optimizer.param_groups, rates, strict=True))
                expected = [peak * loop.warm_cosine(step, 10) for peak in (2e-3, 3e-2)]
                assert [rate.item() for rate in rates] == pytest.approx(expected)
            loop.train_step(model, optimizer, *batch, run)
            schedule.step()
        ends.append(list(model.parameters()))
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_warm_cosine_by_hand():
    # 20 steps: three up, then a cosine that would reach zero at the 21st.
    assert [loop.warm_cosine(step, 20) for step in range(3)] == pytest.approx([1 / 3, 2 / 3, 1])
    assert loop.warm_cosine(11, 20) == pytest.approx(0.5)  # 9 of 18
    values = [loop.warm_cosine(step, 20) for step in range(21)]
    assert values[2:] == sorted(values[2:], reverse=True)
    assert values[19] > 0 and values[20] == pytest.approx(0)
    assert loop.warm_cosine(0, 1) == 1


def plain_guided_loss(model, images, labels, guidance):
    """Algorithm 1, an image at a time; `mean` or `corner` filling."""
    model.eval()
    masked = []
    for image, label in zip(images, labels, strict=True):
        x = image[None].clone().requires_grad_()
        logits = model(x)[0]
        score = logits[label] if guidance.score == "logit" else logits[label] - logits.logsumexp(0)
        scores = torch.autograd.grad(score, x)[0].flatten()
        scores = scores.abs() if guidance.rank == "abs" else scores
        lowest = sorted(range(784), key=lambda p, scores=scores: scores[p].item())[: int(784 * guidance.fraction)]
        filled = image.flatten().clone()
        filled[lowest] = image.mean() if guidance.fill == "mean" else image[0, 0, 0]
        masked.append(filled.view(1, 28, 28))
    model.train()
    p, q = model(images).softmax(dim=1), model(torch.stack(masked)).softmax(dim=1)
    cross_entropy = -torch.stack([p[i, label].log() for i, label in enumerate(labels)]).mean()
    clean = p.detach() if guidance.detach_clean else p
    divergence = (clean * (clean.log() - q.log())).sum(dim=1).mean()
    return cross_entropy + guidance.kl_weight * divergence


@pytest.mark.parametrize(
    "guidance",
    [
        Guidance(fill="mean", kl_weight=1.0),
        Guidance(fill="mean", kl_weight=20.0, detach_clean=True, rank="signed", score="logit", fraction=0.25),
        Guidance(fill="corner", kl_weight=20.0, rank="signed"),
    ],
)
def test_guided_loss_and_its_gradients_are_those_of_a_plain_loop(guidance, make_setup, batch):
    model = build_model("lenet5", make_setup(32, 32)).train()
    images, labels = batch
    loss, logits = guided.guided_loss(model, images, labels, guidance, None)
    torch.testing.assert_close(logits, model(images), rtol=1e-4, atol=1e-5)
    ours = torch.autograd.grad(loss, list(model.parameters()))
    expected = plain_guided_loss(model, images, labels, guidance)
    reference = torch.autograd.grad(expected, list(model.parameters()))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    for a, b in zip(ours, reference, strict=True):
        assert (a - b).norm() < 1e-3 * b.norm()


@pytest.mark.parametrize("bits", [2, 32])
@pytest.mark.parametrize("network", ["lenet5", "sgt_cnn"])
def test_passes_that_share_what_they_can_give_the_same_bits(network, bits, make_setup, batch, monkeypatch):
    model = build_model(network, make_setup(bits, bits)).train()
    for clip in model.clips().values():
        clip.alpha.data.fill_(1.0)
    results = []
    for passes_of in (guided.shared_passes, guided.both_passes):
        monkeypatch.setattr(guided, "shared_passes", passes_of)
        torch.manual_seed(4)  # of dropout
        loss, logits = guided.guided_loss(model, *batch, Guidance(), torch.Generator().manual_seed(1))
        results.append([loss, logits, *torch.autograd.grad(loss, list(model.parameters()))])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_divergence_counts(make_setup, batch):
    model = build_model("lenet5", make_setup(32, 32)).train()

    def loss(kl_weight):
        generator = torch.Generator().manual_seed(0)
        return guided.guided_loss(model, *batch, Guidance(kl_weight=kl_weight), generator)[0].item()

    plain = F.cross_entropy(model(batch[0]), batch[1]).item()
    assert loss(0.0) == pytest.approx(plain, rel=1e-5)
    assert loss(1000.0) - plain == pytest.approx(1000 * (loss(1.0) - plain), rel=0.02)
    assert loss(1000.0) > plain


# ------------------------------------------------------------------------------------------------------- whole runs


@pytest.mark.parametrize("training", ["standard", "saliency_guided"])
@pytest.mark.parametrize("network", ["lenet5", "sgt_cnn"])
def test_the_same_run_twice_gives_the_same_bytes(training, network, make_run, blobs):
    size = {"images": 40, "batch_size": 20} if network == "sgt_cnn" else {}
    run = make_run(2, training, epochs=2, network=network, **size)

    def disturb(progress):
        torch.rand(7)  # what a callback draws must not reach the weights

    torch.manual_seed(1)
    model, history = loop.fit(run, blobs)
    torch.manual_seed(2)
    again, history_again = loop.fit(run, blobs, on_epoch=disturb)
    for (name, a), b in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert a.numpy().tobytes() == b.numpy().tobytes(), name
    assert text_without_seconds(history) == text_without_seconds(history_again)
    assert not model.training


def test_shifting_the_images_gives_another_model_and_the_same_one_again(make_run, blobs):
    plain, moved, again = (loop.fit(make_run(32, shift=shift), blobs)[0].fc3.weight for shift in (0, 1, 1))
    assert torch.equal(moved, again) and not torch.equal(plain, moved)


def test_another_seed_is_another_model(make_run, blobs):
    models = [loop.fit(make_run(seed=seed), blobs)[0] for seed in (0, 1)]
    assert not torch.equal(models[0].fc3.weight, models[1].fc3.weight)


@pytest.mark.parametrize("bits, training", [(4, "standard"), (2, "saliency_guided"), (32, "saliency_guided")])
def test_a_small_run_learns(bits, training, make_run, blobs):
    seen = []
    # Not from 10: a 2-bit lenet5 rounds all its activations to zero there until the penalty has closed the clips.
    run = make_run(bits, training, epochs=3, images=400, batch_size=20, clip=Clip(start=3.0))
    _, history = loop.fit(run, blobs, on_epoch=lambda p: seen.append((len(p.history), p.strip_maps.shape, p.epochs)))
    assert seen == [(1, (10, 28, 28), 3), (2, (10, 28, 28), 3), (3, (10, 28, 28), 3)]
    assert [entry["epoch"] for entry in history] == [1, 2, 3]
    assert history[-1]["val_accuracy"] > 0.8  # chance is 0.1
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert history[-1]["val_dead_map_rate"] <= 0.05
    assert list(history[0]["clips"]) == ([] if bits == 32 else ["conv1", "conv2", "fc1", "fc2"])
    wanted = {"train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_dead_map_rate", "clips", "seconds"}
    assert wanted <= set(history[0])
    if bits != 32:
        assert all(0 < value != 3 for value in history[-1]["clips"].values())


@pytest.mark.parametrize("bits", [2, 32])
@pytest.mark.parametrize("training", ["standard", "saliency_guided"])
def test_a_loss_that_is_no_number_is_one_clear_error(bits, training, make_run, blobs, monkeypatch):
    real = loop.seeded_model

    def broken(run, *device):
        model = real(run, *device)
        with torch.no_grad():
            model.fc3.bias[0] = math.nan
        return model

    monkeypatch.setattr(loop, "seeded_model", broken)
    with pytest.raises(SqlibError, match="epoch 1, batch 1, at the weights of fc3"):
        loop.fit(make_run(bits, training), blobs)


@pytest.mark.parametrize("network", ["lenet", "sgt_cnn"])
@pytest.mark.parametrize("training", ["standard", "saliency_guided"])
@pytest.mark.parametrize("bits", [2, 4, 32])
def test_a_step_stays_on_its_device_and_waits_for_nothing(bits, training, network, make_run):
    # Tensors on "meta" have no values: reading one, or mixing them with the CPU's, raises. So it would stall a GPU's step.
    run = make_run(bits, training, network=network)
    model = loop.seeded_model(run, "meta")
    optimizer = torch.optim.Adam(model.parameters())  # the fused one knows no "meta"
    images = guided.shifted(torch.rand(8, 1, 28, 28, device="meta"), 1)
    loss, right = loop.train_step(model, optimizer, images, torch.zeros(8, dtype=torch.long, device="meta"), run)
    assert loss.is_meta and right.is_meta and all(parameter.grad.is_meta for parameter in model.parameters())


# ------------------------------------------------------------------------------------------------------- divergence


def test_training_that_diverges_names_epoch_batch_and_layer(make_run, blobs, monkeypatch):
    run = make_run(4, batch_size=20, epochs=2)
    step, seen = loop.train_step, []

    def poisoned(model, *arguments):
        seen.append(model)
        if len(seen) == 13:
            with torch.no_grad():
                model.fc1.weight[3, 5] = math.inf
        return step(model, *arguments)

    monkeypatch.setattr(loop, "train_step", poisoned)
    with pytest.raises(SqlibError, match=r"diverged in epoch 2, batch 3, at the weights of fc1; lower") as error:
        loop.fit(run, blobs)
    assert run.id in str(error.value)


def test_a_loss_that_no_step_looked_at_is_seen_after_the_epoch(make_run, blobs, monkeypatch):
    step, taken = loop.train_step, []

    def unseen(*arguments):
        """As on a GPU, where a step does not look at its loss."""
        loss, right = step(*arguments)
        taken.append(loss)
        return (loss * math.nan if len(taken) == 3 else loss), right

    monkeypatch.setattr(loop, "train_step", unseen)
    with pytest.raises(SqlibError, match="diverged in epoch 1, batch 3, at the loss; lower"):
        loop.fit(make_run(4, batch_size=20, epochs=2), blobs)


def test_what_is_not_finite_is_named_by_layer(make_run):
    def model_with(change):
        model = loop.seeded_model(make_run(4))
        with torch.no_grad():
            change(model)
        return model

    images = torch.rand(2, 1, 28, 28)
    for change, where in [
        (lambda model: model.conv2.bias.fill_(math.nan), "the weights of conv2"),
        (lambda model: model.clips()["fc1"].alpha.fill_(math.inf), "the clip of fc1"),
        (lambda model: model.fc3.bias.fill_(3e38).mul_(2), "the weights of fc3"),
        (lambda model: model.conv1.bias.fill_(3e38), "the output of"),
        (lambda model: None, "the loss"),
    ]:
        assert loop.not_finite(model_with(change), images * (3e38 if "output" in where else 1)).startswith(where)


def test_a_clip_that_leaves_the_numbers_is_named(make_run, batch):
    run = make_run(2, clip=Clip(start=1.0, penalty=0.0))
    model = loop.seeded_model(run)
    optimizer, _ = loop.make_optimizer(model, run, 10)
    optimizer.param_groups[1]["lr"] = math.inf
    with pytest.raises(loop.Diverged, match="the clip of conv1"):
        loop.train_step(model, optimizer, *batch, run)


def test_a_clip_that_closes_stops_the_training(make_run, blobs):
    run = make_run(4, clip=Clip(start=0.05, penalty=1.0, learning_rate=1.0))
    with pytest.raises(SqlibError, match=r"epoch 1, batch 4, at the clip of conv1, which has closed"):
        loop.fit(run, blobs)


def test_a_network_that_guesses_is_not_measured(make_run, blobs, monkeypatch):
    run = make_run(4)
    monkeypatch.setattr(train, "predict", None)  # no test image is looked at
    for found in (0.05, 0.35):
        with pytest.raises(
            SqlibError, match=rf"failed: after epoch 3 it is right about {found:.1%} of 20 .* up to 36.8%"
        ):
            train.measure_trained(run, loop.seeded_model(run), [{"epoch": 3, "val_accuracy": found}], blobs)
    train.check_learned(run, [{"epoch": 1, "val_accuracy": 0.4}])


def test_every_batch_is_announced(make_run, blobs):
    said = []
    loop.fit(make_run(32, epochs=2), blobs, on_batch=lambda *where: said.append(where))
    assert said == [(epoch, batch, 4) for epoch in (1, 2) for batch in (1, 2, 3, 4)]


def test_maps_of_every_epoch_are_those_of_up_to_a_thousand_images_evenly_from_all_classes(make_run, blobs, monkeypatch):
    explained = []

    def count(model, images, targets, *how):
        explained.append(len(images))
        return saliency_map(model, images, targets, *how)

    monkeypatch.setattr(loop, "saliency_map", count)
    monkeypatch.setattr(loop, "MAP_IMAGES", 10)
    loop.fit(make_run(32, validation_images=20), blobs)
    assert explained == [10]


# ----------------------------------------------------------------------------------------------------- measurements


def test_measure(make_run, blobs):
    run = make_run(4, epochs=2, batch_size=20)
    model, history = loop.fit(run, blobs)
    before = copy.deepcopy(model.state_dict())
    result = train.measure_trained(run, model, history, blobs)
    assert set(METRICS) <= set(result.metrics)
    assert all(isinstance(value, (int, float)) for value in result.metrics.values())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training and all(p.grad is None or p.requires_grad for p in model.parameters())

    images, labels = to_float(blobs.test_images[:30]), blobs.test_labels[:30]
    with torch.no_grad():
        predicted = model(images).argmax(dim=1)
    maps = saliency_map(model, images, predicted)
    m = result.metrics
    assert m["test_accuracy"] == pytest.approx((predicted == labels).double().mean().item())
    assert m["val_accuracy"] == history[-1]["val_accuracy"]
    assert m["gini"] == pytest.approx(clarity.gini(maps).nanmean().item())
    assert m["foreground_lift"] == pytest.approx(clarity.foreground_lift(maps, images).nanmean().item())
    assert m["train_seconds"] == pytest.approx(sum(entry["seconds"] for entry in history))
    assert m["faithfulness_gap"] == pytest.approx(m["random_auc"] - m["deletion_auc"])
    assert m["deletion_auc"] < m["random_auc"]  # blanking the salient pixels of a bright block hurts

    accuracy = (predicted[:10] == labels[:10]).double().mean().item()
    assert result.curves["fractions"] == [k / 10 for k in range(10)]
    assert result.curves["deletion"][0] == result.curves["random"][0] == pytest.approx(accuracy)
    assert all(len(curve) == 10 for curve in result.curves.values())

    types = {name: (tuple(t.shape), t.dtype) for name, t in result.per_image.items()}
    expected = {"prediction": torch.int64, "correct": torch.uint8, "dead": torch.uint8}
    expected |= dict.fromkeys(("gini", "entropy", "total_variation", "foreground_lift"), torch.float32)
    assert types == {name: ((30,), dtype) for name, dtype in expected.items()}
    assert torch.equal(result.per_image["prediction"], predicted)


def test_measuring_twice_gives_the_same(make_run, blobs):
    run = make_run(4, epochs=2, batch_size=20)
    model, history = loop.fit(run, blobs)
    first, second = (train.measure_trained(run, model, history, blobs) for _ in range(2))
    assert repr((first.metrics, first.curves)) == repr((second.metrics, second.curves))


def test_step_seconds_leaves_the_global_generator_alone(make_run):
    state = torch.get_rng_state()
    assert 0 < loop.step_seconds(make_run(2, "saliency_guided"), repeats=1) < 60
    assert torch.equal(torch.get_rng_state(), state)


def test_shifted_images_are_the_image_moved_with_black_behind():
    images = torch.arange(1, 1 + 40 * 36, dtype=torch.float32).view(40, 1, 6, 6)
    assert guided.shifted(images, 0) is images
    pixels = images[:, 0].to(torch.uint8)  # as the data sets keep them
    same = guided.shifted(images.to(torch.uint8), 2, torch.Generator().manual_seed(1))
    assert torch.equal(guided.shifted(pixels, 2, torch.Generator().manual_seed(1)), same[:, 0])
    moved = guided.shifted(images, 1, torch.Generator().manual_seed(0))
    found = set()
    for image, result in zip(images, moved, strict=True):
        places = []
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                expected = torch.zeros(1, 6, 6)
                expected[:, max(0, down) : 6 + min(0, down), max(0, right) : 6 + min(0, right)] = image[
                    :, max(0, -down) : 6 + min(0, -down), max(0, -right) : 6 + min(0, -right)
                ]
                if torch.equal(result, expected):
                    places.append((down, right))
        assert len(places) == 1
        found |= set(places)
    assert len(found) == 9


def test_shift_is_each_data_sets_own():
    assert {run.dataset: run.parameters.shift for run in load_study("paper").runs()} == {"mnist": 1, "fashion_mnist": 0}


def test_the_loss_of_an_epoch_is_the_mean_over_its_images(make_run, blobs, monkeypatch):
    seen, step = [], loop.train_step

    def remember(model, optimizer, images, *rest):
        loss, right = step(model, optimizer, images, *rest)
        seen.append((float(loss), len(images)))
        return loss, right

    monkeypatch.setattr(loop, "train_step", remember)
    _, history = loop.fit(make_run(4, batch_size=30), blobs)
    assert {size for _, size in seen[-2:]} == {30, 20}  # of 200 images
    steps = len(seen) // len(history)
    expected = [sum(loss * size for loss, size in seen[i : i + steps]) / 200 for i in range(0, len(seen), steps)]
    assert [entry["train_loss"] for entry in history] == pytest.approx(expected)
