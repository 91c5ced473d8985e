"""sqlib.study.results: files that are whole or absent, results that are read strictly, stamps that move only with content."""

import hashlib
import json
import math
import os
import shutil
import subprocess
import time

import pytest
import torch

from sqlib import files
from sqlib.checked import SqlibError
from sqlib.networks.network import build_model
from sqlib.places import REPOSITORY
from sqlib.study import origin, results
from sqlib.study.origin import cpu_version, git_state, provenance
from sqlib.study.parameters import load_study
from sqlib.workflow.pages import write_stamps

METRICS = {"val_accuracy": 0.5, "test_accuracy": 0.4, "gini": float("nan"), "train_seconds": 1.5, "anything": 3}


@pytest.fixture(scope="module")
def study():
    return load_study("smoke")


@pytest.fixture
def saved(study, tmp_path):
    """(run, its folder, the model in it): an untrained model saved as a finished run."""
    run = study.run("mnist/lenet/w2a2/standard/seed0")
    folder = run.folder(tmp_path)
    torch.manual_seed(0)
    model = build_model(run.network, run.setup)
    write_stamps(study, tmp_path)
    per_image = {"prediction": torch.arange(5), "gini": torch.tensor([0.1, 0.2, 0.3, 0.4, float("nan")])}
    curves = {"fractions": [0.0, 0.1], "deletion": [1.0, 0.5], "random": [1.0, 0.9]}
    history = [{"epoch": epoch + 1} for epoch in range(run.epochs)]
    results.save_run(folder, run, model, history, results.Measurements(METRICS, curves, per_image), time.time() - 2)
    return run, folder, model.eval()


def edit(folder, change):
    """Rewrite result.json after `change` has been applied to its content."""
    path = folder / "result.json"
    result = json.loads(path.read_text())
    change(result)
    path.write_text(json.dumps(result))


def test_json_has_null_for_what_json_cannot_say():
    value = {"a": float("nan"), 1: [math.inf, (torch.tensor(2), 0.5)]}
    assert json.loads(files.to_json(value)) == {"a": None, "1": [None, [2, 0.5]]}


# ---- a finished run ------------------------------------------------------------------------------------------------


def test_a_saved_run_is_read_back(saved):
    run, folder, model = saved
    result = results.read_result(folder)
    assert result["id"] == run.id
    assert result["metrics"]["gini"] is None
    assert results.run_of(folder) == run
    loaded = results.load_model(folder)
    assert not loaded.training
    image = torch.rand(2, 1, 28, 28)
    assert torch.equal(loaded(image), model(image))
    per_image = results.load_per_image(folder)
    assert per_image["prediction"].dtype == torch.int64
    assert per_image["gini"].isnan().sum() == 1
    assert results.fault(folder) is None


def test_a_result_says_where_it_comes_from(saved):
    origin = results.read_result(saved[1])["provenance"]
    assert origin["packages"]["torch"] == torch.__version__.split("+")[0] or "+" in origin["packages"]["torch"]
    assert set(origin["data"]) == {"train-images", "train-labels", "t10k-images", "t10k-labels"}
    assert origin["started"] < origin["ended"]
    assert origin["seconds"] >= 2
    assert origin["peak_memory_mb"] > 50
    assert origin["threads"] == torch.get_num_threads()
    assert origin["seed"] == 0
    assert origin["notebook"] == hashlib.sha256((REPOSITORY / "notebooks/2_train.ipynb").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "text, expected",
    [
        (
            "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\nstepping\t: 1\n\nprocessor\t: 1\n",
            "family 25, model 17, stepping 1",
        ),
        ("processor\t: 0\nCPU part\t: 0xd40\n", None),
        (None, None),
    ],
)
def test_a_processor_is_told_by_more_than_its_name(monkeypatch, tmp_path, text, expected):
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(origin, "Path", lambda name: tmp_path / name.rsplit("/", 1)[1])
    assert cpu_version() == expected


@pytest.fixture
def own_and_other(tmp_path, monkeypatch):
    """(our repository, with one commit; another)."""
    git = ["git", "-c", "user.name=n", "-c", "user.email=e"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    for name in ("own", "other"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "file").write_text(name)
        for command in (["init", "-q"], ["add", "file"], ["commit", "-q", "-m", name]):
            subprocess.run([*git, *command], cwd=folder, env=clean, check=True)
    monkeypatch.setattr(origin, "REPOSITORY", tmp_path / "own")
    return tmp_path / "own", tmp_path / "other"


@pytest.mark.parametrize(
    "variables",
    [
        ["GIT_DIR"],
        ["GIT_DIR", "GIT_WORK_TREE"],
        ["GIT_DIR", "GIT_INDEX_FILE"],
        ["GIT_INDEX_FILE"],
        ["GIT_OBJECT_DIRECTORY"],
        ["GIT_COMMON_DIR"],
        ["GIT_NAMESPACE"],
    ],
)
def test_the_revision_is_ours_wherever_git_is_told_to_look(own_and_other, monkeypatch, variables):
    own, other = own_and_other
    expected = git_state()
    assert len(expected["revision"]) == 40 and expected["dirty"] is False
    values = {"GIT_DIR": other / ".git", "GIT_WORK_TREE": own, "GIT_INDEX_FILE": other / ".git/index"}
    values |= {"GIT_OBJECT_DIRECTORY": other / ".git/objects", "GIT_COMMON_DIR": other / ".git", "GIT_NAMESPACE": "x"}
    for name in variables:
        monkeypatch.setenv(name, str(values[name]))
    assert git_state() == expected
    (own / "file").write_text("changed")
    assert git_state() == {**expected, "dirty": True}


def test_the_revision_is_known_whatever_the_folder_is_called(own_and_other, monkeypatch):
    expected = git_state()
    for name in ("o'brien {b} ", "\n", "\udcff"):
        own = own_and_other[0].rename(own_and_other[1].with_name(name))
        monkeypatch.setattr(origin, "REPOSITORY", own)
        assert git_state() == expected
        own.rename(own_and_other[0])


def test_a_copy_without_git_says_nothing(own_and_other, monkeypatch):
    own, other = own_and_other
    copy = other / "copy"
    copy.mkdir()
    monkeypatch.setattr(origin, "REPOSITORY", copy)
    monkeypatch.setenv("GIT_DIR", str(own / ".git"))
    assert git_state() is None


def test_provenance_does_without_git(monkeypatch):
    def no_git(*_, **__):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", no_git)
    assert provenance()["git"] is None


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"format": 2}', b'{"format": 1}', b"[" * 100_000]
)
def test_a_malformed_result_is_one_clear_line(tmp_path, content):
    (tmp_path / "result.json").write_bytes(content)
    for read in (results.read_result, results.run_of, results.load_model):
        with pytest.raises(SqlibError, match=r"result\.json: ") as caught:
            read(tmp_path)
        assert "\n" not in str(caught.value)


def test_a_missing_result_is_one_clear_line(tmp_path):
    with pytest.raises(SqlibError, match=r"result\.json: no such file"):
        results.read_result(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda result: result.pop("metrics"), "metrics: Field required"),
        (lambda result: result["metrics"].update(gini="high"), "metrics.gini: Input should be a valid number"),
        (lambda result: result["run"].update(seed="0"), "run.seed"),
        (lambda result: result["run"].update(colour="red"), "run.colour"),
        (lambda result: result["run"].update(seed=7), "altered"),
    ],
)
def test_an_altered_result_is_refused(saved, change, message):
    _, folder, _ = saved
    edit(folder, change)
    with pytest.raises(SqlibError, match=message):
        results.run_of(folder)
    assert results.fault(folder) is not None


def test_a_flipped_bit_in_a_model_is_found(saved):
    _, folder, _ = saved
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    assert "damaged" in results.fault(folder)
    with pytest.raises(SqlibError, match="damaged"):
        results.load_model(folder)


def test_a_model_that_does_not_fit_is_refused(saved):
    _, folder, _ = saved
    edit(folder, lambda result: result["files"].clear())
    (folder / "model.safetensors").write_bytes((folder / "per_image.safetensors").read_bytes())
    with pytest.raises(SqlibError, match="does not fit network 'lenet'"):
        results.load_model(folder)
    (folder / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(SqlibError, match="damaged"):
        results.load_model(folder)


def test_a_run_of_other_parameters_or_code_is_not_finished(saved):
    _, folder, _ = saved
    stamp = json.loads((folder / "parameters.json").read_text())
    (folder / "parameters.json").write_text(json.dumps({**stamp, "digest": "0"}))
    assert results.fault(folder) == "its parameters were changed"
    (folder / "parameters.json").write_text(json.dumps({**stamp, "sources": "0"}))
    assert "code" in results.fault(folder)


def test_collect_has_a_row_a_run_and_the_agreed_columns_first(saved, study, tmp_path):
    table = results.collect(study, tmp_path)
    assert tuple(table.columns[: len(results.FIRST_COLUMNS)]) == results.FIRST_COLUMNS
    assert len(table) == 1
    row = table.iloc[0]
    assert (row.dataset, row.network, row.setup, row.training, row.seed) == ("mnist", "lenet", "w2a2", "standard", 0)
    assert row.test_accuracy == 0.4
    assert math.isnan(row.gini)
    assert row.anything == 3
    assert results.collect(None, tmp_path).equals(table)


def test_collect_of_nothing_has_the_columns(study, tmp_path):
    table = results.collect(study, tmp_path)
    assert len(table) == 0
    assert tuple(table.columns) == results.FIRST_COLUMNS


# ---- digests of sources ---------------------------------------------------------------------------------------------


def test_an_interrupted_training_is_not_saved(study, tmp_path):
    run = study.runs()[0].model_copy(update={"epochs": 3})
    with pytest.raises(SqlibError, match=r"interrupted after epoch 1 of 3: nothing is saved"):
        results.save_run(tmp_path / "run", run, None, [{"epoch": 1}], results.Measurements(), time.time())
    assert not (tmp_path / "run").exists()


def test_a_packed_model_counts_only_whole_and_not_older_than_its_result(tmp_path):
    published = REPOSITORY / "reports/reference/runs/mnist/lenet/w2a2/standard/seed0"
    assert not results.is_packed(tmp_path)
    for name in ("result.json", results.PACKED):
        shutil.copyfile(published / name, tmp_path / name)
    os.utime(tmp_path / "result.json", (1e9, 1e9))
    assert results.is_packed(tmp_path)
    os.utime(tmp_path / results.PACKED, (1e9 - 1, 1e9 - 1))
    assert not results.is_packed(tmp_path)
    data = (tmp_path / results.PACKED).read_bytes()
    (tmp_path / results.PACKED).write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    assert not results.is_packed(tmp_path)
