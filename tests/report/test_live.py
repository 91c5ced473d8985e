"""The live picture of training: what is drawn, in which order, and what is left on the page."""

import re

import pytest
import torch

from sqlib.report import live
from sqlib.study.parameters import load_study
from sqlib.training.loop import Progress


class Handle:
    def __init__(self):
        self.shown = []

    def update(self, what):
        self.shown.append(what)


def entry(epoch):
    values = {"train_loss": 0.5, "train_accuracy": 0.8, "val_loss": 0.4, "val_accuracy": 0.9, "val_dead_map_rate": 0.02}
    return {"epoch": epoch, **values, "val_gini": 0.5, "clips": {"conv1": 3.0}, "seconds": 10.0}


def test_each_epoch_updates_line_curves_and_maps_and_close_clears_the_pictures(monkeypatch):
    monkeypatch.delenv("SQLIB_UNWATCHED", raising=False)
    handles = []

    def display(what, display_id):
        handles.append(Handle())
        return handles[-1]

    monkeypatch.setattr(live, "display", display)
    study = load_study("smoke")
    run = study.make_run("mnist", "lenet", "w2a2", "standard", 0).model_copy(update={"epochs": 2})
    picture = live.LiveTraining(run)
    images, history = torch.rand(10, 28, 28), []
    for epoch in (1, 2):
        history.append(entry(epoch))
        picture(Progress(None, history, images, torch.rand(10, 28, 28), 2))
    picture.close()

    line, curves, maps = handles
    assert "epoch 1 of 2" in line.shown[0].data and "about 10 s left" in line.shown[0].data
    assert "epoch 2 of 2" in line.shown[1].data and "done" in line.shown[1].data and len(line.shown) == 2
    assert len(curves.shown) == len(maps.shown) == 3
    for shown in (*curves.shown[:2], *maps.shown[:2]):  # pictures, not figures, which JupyterLab shows by name
        assert re.match(r'<img alt="[A-Z][^"]+" style="width: \d+px" src="data:image/png;base64,iVBOR', shown.data)
    assert curves.shown[-1].data == maps.shown[-1].data == ""
    assert len(picture.strips) == 2 and torch.equal(picture.images, images)


def test_nothing_is_drawn_where_nobody_watches(monkeypatch):
    monkeypatch.setenv("SQLIB_UNWATCHED", "1")
    line, curves, maps = handles = [Handle(), Handle(), Handle()]
    given = iter(handles)
    monkeypatch.setattr(live, "display", lambda what, display_id: next(given))
    monkeypatch.setattr(live, "training_curves", None)  # would fail if it were called
    picture = live.LiveTraining(load_study("smoke").make_run("mnist", "lenet", "fp32", "standard", 0))
    picture(Progress(None, [entry(1)], torch.rand(10, 28, 28), torch.rand(10, 28, 28), 1))
    assert len(picture.strips) == 1
    picture.close()
    assert "epoch 1 of 1" in line.shown[0].data  # in the notebook as it is kept while it runs
    assert [handle.shown[-1].data for handle in handles] == ["", "", ""] and len(curves.shown) == len(maps.shown) == 1


def test_batches_are_told_once_a_second_with_the_time_left(monkeypatch):
    monkeypatch.delenv("SQLIB_UNWATCHED", raising=False)
    handles, now = [], iter([100.0, 100.5, 130.0, 130.5, 132.0])

    def display(what, display_id):
        handles.append(Handle())
        return handles[-1]

    monkeypatch.setattr(live, "display", display)
    monkeypatch.setattr(live.time, "monotonic", lambda: next(now))
    run = load_study("smoke").make_run("mnist", "lenet", "w2a2", "standard", 0).model_copy(update={"epochs": 2})
    picture = live.LiveTraining(run)
    for batch in (2, 5, 6, 9):
        picture.batch(1, batch, 20)
    assert len(handles[0].shown) == 2
    assert '<progress aria-label="training"' in handles[0].shown[0].data
    assert "batch 5 of 20" in handles[0].shown[0].data and "estimating the time left" in handles[0].shown[0].data
    # The first steps, which warm up, do not count: from the fifth on, 4 took 2 s, and 32 of 40 are left.
    assert "batch 9 of 20" in handles[0].shown[1].data and "about 16 s left" in handles[0].shown[1].data


def test_an_interrupted_training_leaves_what_it_had(monkeypatch):
    monkeypatch.setenv("SQLIB_UNWATCHED", "1")
    handles = []

    def display(what, display_id):
        handles.append(Handle())
        return handles[-1]

    monkeypatch.setattr(live, "display", display)
    picture = live.LiveTraining(load_study("smoke").make_run("mnist", "lenet", "fp32", "standard", 0))
    with pytest.raises(live.Interrupted, match="before the first epoch ended") as raised:
        picture.interrupted()
    assert raised.value._render_traceback_() == [str(raised.value)]
    model, history = torch.nn.Identity(), [entry(1)]
    picture(Progress(model, history, torch.rand(10, 28, 28), torch.rand(10, 28, 28), 3))
    history.append(entry(2))  # as `fit` does before it tells of it
    assert picture.interrupted() == (model, history[:1]) and not model.training
    line = handles[0].shown[-1].data
    assert "interrupted" in line and "after epoch 1 of" in line and "nothing is saved" in line and "left" not in line
    picture.history = history[:1] * picture.run.epochs
    picture.interrupted()
    assert "nothing is saved" not in handles[0].shown[-1].data  # it is: all epochs are there
