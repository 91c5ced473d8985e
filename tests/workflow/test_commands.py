"""The command line: every job is listed, every mistake is one line, the driver reads Snakemake rightly."""

import fcntl
import io
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save

from sqlib import places
from sqlib.places import REPOSITORY
from sqlib.study import results
from sqlib.workflow import commands as command_line
from sqlib.workflow import forkserver

JOBS = (
    "data", "train", "trial", "sweep", "post-training", "deployed", "quality", "roar", "explanations", "saliency", "compare",
    "tables", "claims", "index",
    "reports", "figures", "plan", "reproduce",
    "lab", "pack", "predict", "explain", "export", "unlock", "check", "publish",
)  # fmt: skip


def sqlib(*arguments, **environment):
    """Run `python -m sqlib ...`; its CompletedProcess."""
    return subprocess.run(
        [sys.executable, "-m", "sqlib", *arguments],
        env={**os.environ, **{key: str(value) for key, value in environment.items()}},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
    )


def assert_one_line(done, *words):
    """The process ended with exit code 2 and one line on stderr that has all `words`."""
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for word in words:
        assert word in done.stderr


def test_help_lists_every_job():
    done = sqlib("--help", COLUMNS="100")
    assert done.returncode == 0
    listed = [line.split()[0] for line in done.stdout.split("Commands:")[1].splitlines() if line.strip()]
    assert sorted(listed) == sorted(JOBS)
    assert "..." not in done.stdout.split("Commands:")[1]


def test_help_needs_no_heavy_import():
    code = (
        "import sys, sqlib.workflow.commands; print({'torch', 'pandas', 'matplotlib', 'papermill'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("job", ["train", "reproduce"])
def test_a_mistyped_study_names_the_nearest(job, tmp_path):
    more = ["mnist/lenet/fp32/standard/seed0"] if job == "train" else []
    assert_one_line(sqlib(job, "smoek", *more, SQLIB_REPORTS=tmp_path), "params/smoek.yaml", "'smoke'")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "smoke", "mnist/lenet/w2a3/standard/seed0"], ["no run", "'mnist/lenet/w2a2/standard/seed0'"]),
        (["compare", "smoke", "fashion"], ["no data set 'fashion'", "fashion_mnist"]),
        (["compare", "smoke", "mnist", "--network", "lenet6"], ["no network 'lenet6'"]),
        (["data", "fasion_mnist"], ["unknown data set", "'fashion_mnist'"]),
        (["reproduce", "smoke", "--profile", "slrum"], ["unknown profile", "'slurm'"]),
        (["reports", "smoke"], ["no results yet"]),
        (["publish", "smoke"], ["--force"]),
        (["publish", "paper"], ["not complete", "make sweeps"]),
    ],
)
def test_mistakes_are_one_line(arguments, words, tmp_path):
    assert_one_line(sqlib(*arguments, SQLIB_REPORTS=tmp_path), *words)


def test_an_unknown_job_names_the_nearest():
    done = sqlib("trian")
    assert done.returncode == 2
    assert "'train'" in done.stderr
    assert "Traceback" not in done.stderr


def test_reports_that_cannot_be_written_are_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    assert_one_line(sqlib("reproduce", "smoke", SQLIB_REPORTS=tmp_path / "file"), "cannot write")


def test_a_study_being_made_is_not_made_twice(tmp_path):
    (tmp_path / "smoke").mkdir()
    with open(tmp_path / "smoke/.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("process 1")
        file.flush()
        assert_one_line(sqlib("reproduce", "smoke", SQLIB_REPORTS=tmp_path), "another process (process 1)")


def test_a_stale_lock_of_snakemake_is_removed(tmp_path):
    locks = tmp_path / "smoke/.snakemake/locks"
    locks.mkdir(parents=True)
    (locks / "0.input.lock").write_text("x")
    done = sqlib("unlock", "smoke", SQLIB_REPORTS=tmp_path)
    assert done.returncode == 0
    assert not locks.exists()


def test_reports_go_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("SQLIB_REPORTS", str(tmp_path))
    assert places.reports_root() == tmp_path
    monkeypatch.delenv("SQLIB_REPORTS")
    assert places.reports_root() == REPOSITORY / "reports"


@pytest.mark.parametrize(
    "variables, signals",
    [
        ({"SQLIB_MADE_BY_MAKE": "1", "MAKELEVEL": "1"}, [signal.SIGKILL]),
        ({"MAKELEVEL": "1"}, []),  # typed in a terminal that `make lab` has opened
        ({"SQLIB_JOB": "1", "SQLIB_MADE_BY_MAKE": "1"}, [signal.SIGTERM]),
    ],
)
def test_what_make_starts_ends_with_make_and_a_job_with_its_driver(variables, signals, monkeypatch, capsys):
    sent = []
    monkeypatch.setattr(forkserver, "die_with_parent", sent.append)
    for name in ("SQLIB_JOB", "SQLIB_MADE_BY_MAKE", "MAKELEVEL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["sqlib", "--help"])
    monkeypatch.delenv(forkserver.ADDRESS, raising=False)
    assert forkserver.run_there(["--help"]) is None
    with pytest.raises(SystemExit):
        command_line.main()
    assert sent == signals
    assert capsys.readouterr().out.startswith("Usage")


W2A2 = REPOSITORY / "reports/reference/runs/mnist/lenet/w2a2/standard/seed0"


@pytest.mark.slow
@pytest.mark.parametrize("command, made", [("export", "model.onnx"), ("pack", "small.safetensors")])
def test_what_a_command_did_not_write_it_does_not_replace(tmp_path, command, made):
    theirs, own = tmp_path / "mine.txt", tmp_path / made
    theirs.write_text("mine")
    assert_one_line(sqlib(command, str(W2A2), "--output", str(theirs)), "mine.txt is there already", "--output")
    assert theirs.read_text() == "mine"
    for _ in range(2):  # its own it does
        done = sqlib(command, str(W2A2), "--output", str(own))
        assert done.returncode == 0 and own.exists(), done.stderr
    other = {"export": "pack", "pack": "export"}[command]
    before = own.read_bytes()
    assert_one_line(sqlib(other, str(W2A2), "--output", str(own)), "is there already")
    assert own.read_bytes() == before


def test_trained_weights_are_not_replaced_by_a_packed_model(tmp_path):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(save({"fc1.weight": torch.ones(3)}))
    before = weights.read_bytes()
    assert_one_line(sqlib("pack", str(W2A2), "--output", str(weights)), "is there already")
    assert weights.read_bytes() == before


@pytest.mark.slow
def test_a_run_folder_stands_for_its_packed_model(tmp_path):
    from PIL import Image

    from sqlib.data.loading import load

    image = tmp_path / "digit.png"
    Image.fromarray(load("mnist").test_images[0].numpy()).save(image)
    by_file, by_folder = (sqlib("predict", str(path), str(image)) for path in (W2A2 / "packed.safetensors", W2A2))
    assert by_file.returncode == 0 and "class 7" in by_file.stdout and by_folder.stdout == by_file.stdout


@pytest.mark.slow
def test_predict_goes_on_and_names_classes(tmp_path, monkeypatch, capsys):
    from PIL import Image

    from sqlib.data.loading import load
    from sqlib.deploy.packed import pack

    def predict(*arguments):
        monkeypatch.setattr(sys, "argv", ["sqlib", "predict", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            command_line.main()
        said = capsys.readouterr()
        return stop.value.code, said.out.splitlines(), said.err.splitlines()

    boot, bad, blank = (tmp_path / name for name in ("boot.png", "bad.png", "blank.png"))
    Image.fromarray(255 - load("fashion_mnist").test_images[0].numpy()).save(boot)
    bad.write_text("no picture")
    Image.new("L", (28, 28), 255).save(blank)
    run = REPOSITORY / "reports/reference/runs/fashion_mnist/lenet/w2a2/standard/seed0"
    code, out, err = predict(run, bad, boot, blank, boot)
    assert (code, len(err)) == (1, 4) and out == [f"{boot}: class 9, Ankle boot (99.9%)"] * 2
    assert [line.startswith("error: ") for line in err] == [True, False, True, False]
    assert predict(run, boot) == (0, out[:1], err[1:2])

    packed = tmp_path / "packed.safetensors"
    shutil.copy(run / "packed.safetensors", packed)
    assert predict(packed, boot)[1] == [f"{boot}: class 9 (99.9%)"]  # one of before they knew their classes, alone
    (tmp_path / "result.json").write_text("{}")
    code, out, err = predict(packed, boot)
    assert (code, out) == (0, [f"{boot}: class 9 (99.9%)"]) and err[0].startswith("the classes have numbers alone: ")
    (tmp_path / "result.json").unlink()
    pack(results.load_model(run), packed, results.class_names(results.run_of(run)))
    assert predict(packed, boot)[1] == [f"{boot}: class 9, Ankle boot (99.9%)"]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_a_terminal_cannot_say_is_replaced(tmp_path, encoding, monkeypatch):
    from PIL import Image

    from sqlib.data.loading import load

    def say(*arguments):
        """(exit code, stdout, stderr) of a command whose streams have the encoding and no way around it."""
        streams = [io.TextIOWrapper(io.BytesIO(), encoding, "strict") for _ in range(2)]
        monkeypatch.setattr(sys, "argv", ["sqlib", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdout", streams[0])
        monkeypatch.setattr(sys, "stderr", streams[1])
        with pytest.raises(SystemExit) as stop:
            command_line.main()
        for stream in streams:
            stream.flush()
        return stop.value.code, *(stream.buffer.getvalue().decode(encoding) for stream in streams)

    names = ["靴é.png", os.fsdecode(b"b\xff.png"), "weg字.png"]
    for name in names[:2]:
        Image.fromarray(load("mnist").test_images[0].numpy()).save(tmp_path / name)
    paths = [tmp_path / name for name in names]
    for command in (["predict", W2A2], ["explain", "--output", tmp_path / "out字", W2A2]):
        code, out, err = say(*command, *paths)
        assert (code, out.count("class 7"), len(err.splitlines())) == (1, 2, 1), err
        assert ("靴" in out) == (encoding == "utf-8")
    for command in (["train", "靴", "x"], ["data", "靴"], ["export", "靴"], ["plan", "靴"]):
        code, _, err = say(*command)
        assert code == 2 and err.startswith("error: ") and ("靴" in err) == (encoding == "utf-8")


@pytest.mark.slow
def test_export_takes_an_opset_and_refuses_one_in_a_line(tmp_path):
    path = tmp_path / "m.onnx"
    assert_one_line(sqlib("export", str(W2A2), "--opset", "9", "--output", str(path)), "opset 9", "expected 11")
    done = sqlib(
        "export", str(W2A2), "--onnx", "--opset", "13", "--output", str(path)
    )  # --onnx: of before, without effect
    assert done.returncode == 0 and path.stat().st_size > 180_000, done.stderr
    assert "--onnx" not in sqlib("export", "--help").stdout


def test_a_misspelt_key_that_is_needed_is_named(tmp_path):
    shutil.copytree(REPOSITORY / "params", tmp_path / "params")
    text = (REPOSITORY / "params/smoke.yaml").read_text()
    (tmp_path / "params/mine.yaml").write_text(text.replace("setups:", "setps:", 1))
    done = sqlib("plan", "mine", SQLIB_PARAMS=tmp_path / "params")
    assert done.returncode == 2 and "unknown key 'setps'; did you mean 'setups'?" in done.stderr.splitlines()[0]
    (tmp_path / "params/mine.yaml").write_text(text.replace("datasets:", "dataset:", 1))
    done = sqlib("plan", "mine", SQLIB_PARAMS=tmp_path / "params")
    assert done.returncode == 2 and "unknown key 'dataset'; did you mean 'datasets'?" in done.stderr.splitlines()[0]


@pytest.mark.parametrize("name", ["smoke.yaml", "params/smoke.yaml"])
def test_a_study_is_named_without_its_folder_and_ending(name):
    assert_one_line(sqlib("plan", name), "write its name alone, 'smoke'")
