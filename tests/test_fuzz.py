"""Whatever is in a file, its reader takes it or says in a line that names the file what is wrong: no other exception, no hang,
no huge allocation, no code run."""

import json
import os
import pickle
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from sqlib import files
from sqlib.checked import SqlibError
from sqlib.data import datasets, images, loading
from sqlib.deploy import integer, packed
from sqlib.networks.network import build_model
from sqlib.places import PARAMS
from sqlib.report import front_page, quality_table, runs_table
from sqlib.study import claims, parameters, results, sweeps
from sqlib.study.parameters import load_study
from sqlib.workflow import check
from sqlib.workflow.pages import write_stamps

STUDY = load_study("smoke")
RUN = STUDY.run("mnist/lenet/w2a2/standard/seed0")
# The same examples each time, so that no change is blamed for what an unlucky draw found; SQLIB_FUZZ=50 draws 50 times as many
# new ones.
MORE = int(os.environ.get("SQLIB_FUZZ", "1"))
FEW = settings(
    max_examples=60 * MORE,
    derandomize=MORE == 1,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.fixture(autouse=True)
def limits():
    """A reader that hangs, or asks for 4 GB, fails its test and not the machine."""

    def stop(_number, _frame):
        raise TimeoutError("a reader hangs")

    old = signal.signal(signal.SIGALRM, stop)
    signal.alarm(300)
    if sys.platform == "linux":
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 4 * 2**30, hard))
    yield
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    signal.alarm(0)
    signal.signal(signal.SIGALRM, old)


# ---- what is read --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder of reports with one finished run, its measured maps, verdicts and the trials of a sweep, all valid."""
    reports = tmp_path_factory.mktemp("fuzz")
    folder = RUN.folder(reports)
    torch.manual_seed(0)
    model = build_model(RUN.network, RUN.setup)
    write_stamps(STUDY, reports)
    values = {"correct": torch.ones(5), "gini": torch.rand(5)}
    metrics = {"val_accuracy": 0.5, "test_accuracy": 0.4, "gini": 0.5, "random_auc": 0.5, "deletion_auc": 0.4}
    history = [{"epoch": epoch + 1} for epoch in range(RUN.epochs)]
    results.save_run(
        folder, RUN, model, history, results.Measurements(metrics, {"fractions": [0.0]}, values), time.time() - 2
    )
    mean = {"mean": 0.5, "n": 5}
    sanity = {"spearman": mean, "spearman_foreground": mean, "flagged": False, "flagged_foreground": True}
    method = {"clarity": {"gini": mean}, "faithfulness": {"mean": {"deletion": {"gap": mean}}}, "sanity": sanity}
    quality = {
        "run": RUN.id, "fractions": [0.0, 0.1], "parameters": {"images": 5}, "random_curves": {"mean": {"deletion": [1.0]}},
        "methods": {"gradient": {"straight_through": method}}, "agreement": {"x": {"straight_through": {"ssim": mean}}},
    }  # fmt: skip
    (folder / "quality.json").write_bytes(files.to_json(quality))
    shutil.copy(folder / "per_image.safetensors", folder / "quality.safetensors")
    part = {"label": "w2a2", "effect": -0.1, "low": None, "high": 0.1}
    row = {
        "id": "a", "claim": "Bits cost accuracy.", "dataset": "mnist", "quantity": "gini", "verdict": "supported", **part,
        "parts": [part], "beside": [part], "margin": 0.1,
    }  # fmt: skip
    (reports / "results").mkdir()
    (reports / "results/claims.json").write_bytes(files.to_json([row]))
    history = [{"seconds": 1.0, "val_accuracy": 0.5, "val_dead_map_rate": 0, "val_gini": 0.5, "clips": {"conv1": 2.0}}]
    for trial in sweeps.trials_of(STUDY):
        trial.path(reports).parent.mkdir(parents=True, exist_ok=True)
        content = {"runs": [run.model_dump(mode="json") for run in trial.runs], "stamp": trial.stamp()}
        trial.path(reports).write_bytes(files.to_json({**content, "seeds": [{"seed": 0, "history": history}]}))
    shutil.copytree(PARAMS, reports / "params")
    shutil.copytree(reports / "runs", reports / "old/runs")
    rounded = {"accuracy": 0.5, "dead_map_rate": 0.0, "gini": 0.5}
    (reports / "results/post_training_mnist.json").write_bytes(
        files.to_json({RUN.id.replace("w2a2", "fp32"): {"w2a2": rounded}})
    )
    form = {"images": 5, "same_predictions": 5, "largest_relative": 1e-6, "bytes": 1000}
    (reports / "results/deployed_mnist.json").write_bytes(files.to_json({RUN.id: {"packed": form, "onnx": form}}))
    results.collect(STUDY, reports).to_csv(reports / "results/runs.csv", index=False)
    (reports / "test.idx").write_bytes(datasets.idx_header((2, 3, 4)) + bytes(range(24)))
    Image.fromarray(np.arange(784, dtype=np.uint8).reshape(28, 28)).save(reports / "image.png")
    return reports


def flagged(path):
    return quality_table.flagged(quality_table.QualityValues(STUDY, path.parents[6]))


def collected_trials(path):
    return sweeps.collect_trials(STUDY, sweeps.load_sweep("quick"), path.parents[3])


def beside(read):
    """A reader of all results of the study, where the file is one of them: `read(reports)`."""
    return lambda path: read(next(parent for parent in path.parents if (parent / "params").exists()))


def unverified(read):
    """A reader of tensors of which `result.json` states no sum, so that it is not simply that which differs."""

    def reader(path):
        result = path.parent / "result.json"
        content = result.read_text()
        try:
            result.write_text(json.dumps({**json.loads(content), "files": {}}))
            return read(path.parent)
        finally:
            result.write_text(content)

    return reader


TRIAL = sweeps.trials_of(STUDY)[0].path(Path())
FOLDER = Path("runs") / RUN.id
# name -> (file, how it is read)
READERS = {
    "packed": (FOLDER / results.PACKED, lambda path: integer.IntegerModel.load(path).logits(np.zeros((1, 28, 28), np.uint8))),
    "packed for torch": (FOLDER / results.PACKED, packed.load_packed),
    "deployed": (Path("results/deployed_mnist.json"), beside(lambda reports: runs_table.deployed_of(STUDY, reports))),
    "table of runs": (Path("results/runs.csv"), beside(lambda reports: runs_table.runs_of(STUDY, reports))),
    "result": (FOLDER / "result.json", lambda path: results.run_of(path.parent)),
    "result, collected": (FOLDER / "result.json", beside(lambda reports: results.collect(STUDY, reports))),
    "result, compared": (FOLDER / "result.json", beside(lambda reports: check.compare_studies(STUDY, reports, reports / "old"))),
    "result, indexed": (FOLDER / "result.json", beside(lambda reports: front_page.write_index(STUDY, reports))),
    "result, judged": (FOLDER / "result.json", lambda path: results.fault(path.parent)),
    "post-training": (Path("results/post_training_mnist.json"), beside(lambda reports: results.collect(STUDY, reports))),
    "checkpoint": (FOLDER / "model.safetensors", unverified(results.load_model)),
    "values": (FOLDER / "per_image.safetensors", unverified(results.load_per_image)),
    "quality": (FOLDER / "quality.json", flagged),
    "quality values": (FOLDER / "quality.safetensors", flagged),
    "quality tensors": (FOLDER / "quality.safetensors", unverified(results.load_quality)),
    "verdicts": (Path("results/claims.json"), claims.read_claims),
    "trial": (TRIAL, collected_trials),
    "study": (Path("params/smoke.yaml"), lambda path: load_study("smoke", path.parent)),
    "setup": (Path("params/setups/w2a2.yaml"), lambda path: parameters.load_setup("w2a2", path.parent)),
    "sweep": (Path("params/sweeps/quick.yaml"), lambda path: sweeps.trials(STUDY, sweeps.load_sweep("quick", path.parents[1]))),
    "claims": (Path("params/claims.yaml"), claims.load_claims),
    "idx": (Path("test.idx"), loading.read_idx),
    "image": (Path("image.png"), images.read_image),
}  # fmt: skip
JSON = [name for name, (path, _) in READERS.items() if path.suffix == ".json"]
YAML = [name for name, (path, _) in READERS.items() if path.suffix == ".yaml"]


def hold(whole, name, content):
    """Read `content` in place of the file; what the reader gave, or the message of its SqlibError."""
    path, read = whole / READERS[name][0], READERS[name][1]
    valid = path.read_bytes()
    try:
        path.write_bytes(content)
        return read(path)
    except SqlibError as error:
        for line in str(error).splitlines():
            assert path.name in line or path.stem in line or str(whole) in line, line
            assert len(line) < 1500
        return str(error)
    finally:
        path.write_bytes(valid)


@pytest.mark.parametrize("name", READERS)
def test_what_is_valid_is_read(whole, name):
    found = hold(whole, name, (whole / READERS[name][0]).read_bytes())
    assert not isinstance(found, str), found


# ---- bytes ---------------------------------------------------------------------------------------------------------


class Trap:
    """Pickled, it would make a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", READERS)
def test_no_reader_runs_code(whole, name, tmp_path):
    trap = tmp_path / "sprung"
    for content in (
        pickle.dumps(Trap(trap)),
        f"title: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{trap}']]".encode(),
        f"!!python/object/new:os.system ['touch {trap}']".encode(),
        f"__import__('pathlib').Path({str(trap)!r}).touch()".encode(),
    ):
        assert isinstance(hold(whole, name, content), str)
    torch.save(Trap(trap), tmp_path / "saved.pt")
    assert isinstance(hold(whole, name, (tmp_path / "saved.pt").read_bytes()), str)
    assert not trap.exists()


@pytest.mark.parametrize("name", READERS)
def test_any_bytes(whole, name):
    @FEW
    @given(st.binary(max_size=200) | st.text(max_size=100).map(lambda text: text.encode()))
    def check(content):
        hold(whole, name, content)

    check()


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file(whole, name):
    valid = (whole / READERS[name][0]).read_bytes()
    head = st.integers(0, min(len(valid), 1500) - 1)
    place = head | st.integers(0, len(valid) - 1)
    damage = st.tuples(st.sampled_from(["flip", "cut", "insert", "remove", "repeat"]), place, st.integers(0, 255))

    @FEW
    @given(st.lists(damage, min_size=1, max_size=3))
    def check(damages):
        content = bytearray(valid)
        for kind, at, value in damages:
            match kind:
                case "flip":
                    content[at : at + 1] = [value]
                case "cut":
                    del content[at:]
                case "insert":
                    content[at:at] = bytes([value])
                case "remove":
                    del content[at : at + value]
                case "repeat":
                    content[at:at] = content[at : at + value]
        hold(whole, name, bytes(content))

    check()


# ---- values --------------------------------------------------------------------------------------------------------


def nested(depth):
    value = 0
    for _ in range(depth):
        value = [value]
    return value


ODD = [
    None, True, False, 0, -1, 2**31, 2**63, 10**400, -0.5, 1e308, float("nan"), float("inf"), "", "x", "1e-3", "../../x",
    "<script>", "a\nb", "\x00", "\ud800", "x" * 100_000, [], [[]], {}, {"": None}, {"int": 1}, [None], nested(300),
]  # fmt: skip


def places(value, at=()):
    """The path of every value inside a value of lists and mappings."""
    yield at
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(part, (*at, key))


def changed(value, at, how):
    """A copy of `value` in which `how` was done to what is at `at`: ("put", odd value), ("drop",) or ("add", key, value)."""
    if not at:
        if how[0] == "put":
            return how[1]
        if how[0] == "add" and isinstance(value, dict):
            return {**value, how[1]: how[2]}
        return value
    copy = dict(value) if isinstance(value, dict) else list(value)
    if how[0] == "drop" and len(at) == 1:
        del copy[at[0]]
    else:
        copy[at[0]] = changed(value[at[0]], at[1:], how)
    return copy


odd = st.sampled_from(ODD)
change = (
    st.tuples(st.just("put"), odd)
    | st.just(("drop",))
    | st.tuples(
        st.just("add"), st.sampled_from(["", "x", "int", "intensity", "dict[", "function-", "a\nb", "layers"]), odd
    )
)


def check_changes(whole, name, load, dump):
    valid = load((whole / READERS[name][0]).read_bytes())
    everywhere = list(places(valid))

    @settings(FEW, max_examples=150 * MORE)
    @given(st.lists(st.tuples(st.sampled_from(everywhere), change), min_size=1, max_size=2))
    def check(changes):
        content = valid
        for at, how in changes:
            if at in list(places(content)):
                content = changed(content, at, how)
        hold(whole, name, dump(content))

    check()


@pytest.mark.parametrize("name", JSON)
def test_other_values_in_json(whole, name):
    check_changes(whole, name, json.loads, lambda content: json.dumps(content).encode())


@pytest.mark.parametrize("name", YAML)
def test_other_values_in_yaml(whole, name):
    # JSON is YAML, and quicker written; YAML has no surrogates and other words for what is no number.
    def dump(content):
        text = json.dumps(content).replace("\\ud800", "?").replace("NaN", ".nan").replace("Infinity", ".inf")
        return text.encode()

    check_changes(whole, name, yaml.safe_load, dump)


@pytest.mark.parametrize("name", [*YAML, *JSON])
def test_deep_nesting(whole, name):
    for opening in (b"[", b'{"a":', b"- "):
        assert isinstance(hold(whole, name, opening * 5_000), str)


def test_yaml_of_terabytes_is_refused(whole):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 14)]
    for name in YAML:
        assert "aliases" in hold(whole, name, "\n".join([*lines, "title: *a13", "setups: *a13"]).encode())
        assert "larger than" in hold(whole, name, b"#" * 300_000)


@pytest.mark.parametrize(
    "value", ['!!int ""', "!!float x", "!!bool x", "!!timestamp x", "2026-99-99", "9" * 5000, "0x_", r'"\UFFFFFFFF"']
)
def test_yaml_that_is_not_what_it_looks_like(whole, value):
    for name in YAML:
        assert "not valid YAML" in hold(whole, name, f"title: {value}".encode())


@pytest.mark.parametrize(
    "name", ["packed", "packed for torch", "checkpoint", "values", "quality values", "quality tensors"]
)
def test_sizes_that_safetensors_state(whole, name):
    """Valid containers whose header asks for more than there is, for nothing, for other types, or for a name that is odd."""
    path = whole / READERS[name][0]
    valid = path.read_bytes()
    length = int.from_bytes(valid[:8], "little")
    header, content = json.loads(valid[8 : 8 + length]), valid[8 + length :]
    first = next(key for key in header if key != "__metadata__")

    def held(entry, name_of=first, body=content):
        text = json.dumps({**{key: part for key, part in header.items() if key != first}, name_of: entry}).encode()
        return hold(whole, name, len(text).to_bytes(8, "little") + text + body)

    start, end = header[first]["data_offsets"]
    for dtype in (
        "F32",
        "F64",
        "BF16",
        "F16",
        "F8_E4M3",
        "F4",
        "F6_E2M3",
        "E8M0",
        "I64",
        "U8",
        "BOOL",
        "C64",
        "x",
        None,
        1,
    ):
        whole_bytes = [[end - start], [(end - start) // 4]]
        for shape in ([], [0], [0, 2**62], [2**62, 0], [2**40] * 2, [-1], *whole_bytes, None, [None], [1.5], [10**30]):
            held({"dtype": dtype, "shape": shape, "data_offsets": [start, end]})
            held({"dtype": dtype, "shape": shape, "data_offsets": [start, start]})
    for offsets in ([0, 2**63], [2**63, 0], [-1, 1], [end, start], [0], None, [start, end, end]):
        assert isinstance(held({**header[first], "data_offsets": offsets}), str)
    assert isinstance(held(header[first], "\ud800"), str)
    assert isinstance(held(header[first], "x" * 10_000), str) or name not in (
        "packed",
        "packed for torch",
        "checkpoint",
    )
    for size in (0, 1, 2**31, 2**63, 2**64 - 1):
        assert isinstance(hold(whole, name, size.to_bytes(8, "little") + valid[8:]), str)
