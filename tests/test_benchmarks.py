"""That the benchmarks measure what they say: the machinery and the fairness of the comparison, never the clock."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import authors
import brevitas_net
import elsewhere
import gemm
import gpu
import profile_step
import run as benchmark
import scale
import steps
import timing
from sqlib import hardware
from sqlib.hardware import bfloat16_units, replayed
from sqlib.maps.masking import explain_pass, mask_least_salient
from sqlib.networks.architectures import ARCHITECTURES
from sqlib.networks.network import build_model
from sqlib.places import REPOSITORY
from sqlib.quant import kernels
from sqlib.study.origin import provenance
from sqlib.study.parameters import load_setup, load_study
from sqlib.study.results import read_result
from sqlib.workflow.readme import BENCHMARKS, ELSEWHERE, GPU, SCALE

pytestmark = pytest.mark.slow


def test_alternate_calls_the_sides_in_turn_and_leaves_the_warm_up_out():
    called = []
    over, under = timing.alternate(lambda: called.append("over"), lambda: called.append("under"), repeats=3, warm_up=2)
    assert called == ["over", "under"] * 5
    assert len(over) == len(under) == 3


def test_summary():
    assert timing.summary([4.0, 1.0, 3.0, 2.0, 5.0]) == {"median": 3.0, "n": 5, "spread": [2.0, 4.0]}


def test_arithmetic_of_a_step():
    model = build_model("lenet", load_setup("fp32"))
    macs = 24 * 24 * 25 * 32 + 8 * 8 * 25 * 32 * 64 + 1024 * 128 + 128 * 10
    first = 24 * 24 * 25 * 32  # whose input gradient only an explanation needs
    assert gemm.step_flops(model, batch=512) == 512 * 2 * (3 * macs - first)
    assert gemm.step_flops(model, 512, "saliency_guided") == 512 * 2 * (7 * macs - 2 * first)
    assert gemm.step_flops(model, 1, integers=True) == gemm.step_flops(model, 1)
    coded = build_model("lenet", load_setup("w4a4"))
    in_integers = 2 * 8 * 8 * 25 * 32 * 64  # conv2, once forward
    assert gemm.step_flops(coded, 1, integers=True) == gemm.step_flops(coded, 1) - in_integers
    assert (
        gemm.step_flops(coded, 1, "saliency_guided", True)
        == gemm.step_flops(coded, 1, "saliency_guided") - 2 * in_integers
    )
    assert gemm.product_flops(10) == 2000


def test_the_ceiling_is_the_ratio_with_nothing_but_arithmetic_below():
    case = benchmark.Case("r", "c", ("over", lambda: lambda: time.sleep(0.02)), ("under", lambda: lambda: None),
                          arithmetic=(4e9, "float32"))  # fmt: skip
    found = benchmark.measure(case, 3, 0, {"float32_gflops": {"median": 200.0}}, builds=2)
    assert found["n"] == 6 and len(found["builds"]) == 2
    assert found["ceiling"] == pytest.approx(found["seconds"]["over"] * 50) and found["ceiling"] > 1


def fixed(*medians):
    return {str(m): {"median": m, "n": 9, "spread": [m, m], "builds": [m, m], "seconds": {}} for m in medians}


@pytest.mark.parametrize(
    "ratio, medians, worst, met",
    [
        ("quantised_over_float", (1.1, 1.3), 1.3, False),
        ("quantised_over_float", (1.1, 1.25), 1.25, True),
        ("gemm_fraction", (0.7, 0.9), 0.7, False),
        ("gemm_fraction", (0.8, 0.9), 0.8, True),
    ],
)
def test_the_case_furthest_from_the_target_stands_for_the_ratio(ratio, medians, worst, met):
    entry = benchmark.conclude(ratio, fixed(*medians))
    assert (entry["median"], entry["case"], entry["met"]) == (worst, str(worst), met)
    assert entry["cases"][str(worst)]["met"] is met and any(case["met"] for case in entry["cases"].values())


def test_a_target_between_the_builds_is_neither_met_nor_missed():
    cases = fixed(1.1, 1.2)
    cases["1.2"]["builds"] = [1.1, 1.2, 1.3]
    entry = benchmark.conclude("quantised_over_float", cases)
    assert entry["met"] is None and entry["cases"]["1.1"]["met"] is True
    assert benchmark.VERDICTS[entry["met"]] == "unclear"


def test_each_build_is_a_new_one():
    built = []
    sides = [(side, lambda side=side: built.append(side) or (lambda: None)) for side in ("over", "under")]
    benchmark.measure(benchmark.Case("r", "c", *sides), 2, 0, {}, builds=3)
    assert built == ["over", "under"] * 3


def test_a_machine_that_has_just_been_busy_is_waited_for_but_not_for_ever(monkeypatch, capsys):
    slept = []
    loads = iter([2.0, 0.9, 0.4])
    monkeypatch.setattr(benchmark.time, "sleep", slept.append)
    monkeypatch.setattr(benchmark.os, "getloadavg", lambda: (next(loads), 2.0, 2.0))
    benchmark.wait_until_idle()
    assert slept == [5, 5] and capsys.readouterr().err.count("waiting until the machine is idle") == 1
    monkeypatch.setattr(benchmark.os, "getloadavg", lambda: (2.0, 2.0, 2.0))
    benchmark.wait_until_idle(most=20)
    assert len(slept) == 2 + 4


def is_measured(entry):
    return entry["n"] in (2, 2 * timing.BUILDS) and entry["median"] > 0 and 0 < entry["spread"][0] <= entry["spread"][1]


def test_quick_run_writes_every_ratio(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(brevitas_net, "why_not", lambda: "not measured: pip install brevitas")
    path = tmp_path / "results.json"
    benchmark.main(["--quick", "--threads", "1", "--output", str(path)])
    results = json.loads(path.read_text())
    assert results["quick"] is True and results["threads"] == 1 and results["torch"] == torch.__version__
    assert {"machine", "ratios", "git", "date", "load_average", "gemm", "batch", "repeats"} <= set(results)
    assert isinstance(results["machine"]["cores"], int)
    assert is_measured(results["gemm"]["float32_gflops"]) and is_measured(results["gemm"]["bfloat16_gflops"])
    assert list(results["ratios"]) == list(benchmark.TARGETS)

    cases = {ratio: list(entry["cases"]) for ratio, entry in results["ratios"].items()}
    precisions = ("float32", "bfloat16") if bfloat16_units() else ("float32",)
    kinds = ("lenet/fp32", "lenet/w4a4", "sgt_cnn/fp32", "sgt_cnn/w4a4")
    assert cases == {
        "quantised_over_float": [f"{network}, {p}" for p in precisions for network in ("lenet", "sgt_cnn")],
        "guided_over_standard": [f"{kind}, {p}" for p in precisions for kind in kinds],
        "authors_over_ours": [f"sgt_cnn, {precisions[-1]}"],
        "brevitas_over_ours_float32": [],
        "brevitas_over_ours_bfloat16": [],
        "gemm_fraction": ["lenet", "sgt_cnn"],
        "float32_over_bfloat16": ["lenet/w4a4/standard", "lenet/w4a4/saliency_guided"] if precisions[1:] else [],
        "float_over_integers": [f"{n}/{t}" for n in ("lenet", "sgt_cnn") for t in ("standard", "saliency_guided")]
        if kernels.integers()
        else [],
    }
    for ratio, entry in results["ratios"].items():
        if cases[ratio]:
            assert is_measured(entry) and entry["met"] in (True, False, None)
            assert all(is_measured(case) and len(case["seconds"]) == 2 for case in entry["cases"].values())
        else:
            assert (entry["median"], entry["n"], entry["spread"], entry["met"]) == (None, 0, None, None)
    assert results["ratios"]["brevitas_over_ours_float32"]["reason"] == "not measured: pip install brevitas"

    rows = benchmark.page_table(results).splitlines()
    assert all(sum(f"`{ratio}`" in row for row in rows) == 1 for ratio in benchmark.TARGETS)
    assert all(row.count("|") == 9 for row in rows if row.startswith("|"))
    busy = {**results, "load_average": {"before": [0.9, 0.9, 0.9]}}
    assert "The machine was busy" in benchmark.page_table(busy)
    assert "The machine was busy" not in benchmark.page_table({**busy, "load_average": {"before": [0.1, 0.9, 0.9]}})

    printed = capsys.readouterr().out
    assert all(ratio in printed for ratio in benchmark.TARGETS)
    assert "pip install brevitas" in printed


def test_a_step_without_integers_has_none_and_leaves_them_on(monkeypatch):
    seen = []
    monkeypatch.setattr(kernels, "integers", lambda: True)
    steps.without_integers(lambda: seen.append(kernels.integers()))()
    assert seen == [False] and kernels.integers()


def test_too_few_repeats_are_refused(capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["--repeats", "8"])
    assert "at least 9" in capsys.readouterr().err


@pytest.fixture
def same_networks():
    """`(authors' network, ours)` with the same weights."""
    torch.manual_seed(3)
    ours, theirs = build_model("sgt_cnn", load_setup("fp32")), authors.Net()
    theirs.load_state_dict(ours.state_dict())
    return theirs.eval(), ours.eval()


def test_the_authors_network_and_its_maps_are_ours(same_networks):
    theirs, ours = same_networks
    images, labels = torch.rand(3, 1, 28, 28), torch.tensor([1, 5, 9])
    with torch.no_grad():
        torch.testing.assert_close(theirs(images), ours(images).log_softmax(dim=1), rtol=1e-4, atol=1e-5)
    maps = authors.saliency(theirs, images, labels)
    images.requires_grad_()
    expected = explain_pass(ours(images), images, labels, "log_prob")
    torch.testing.assert_close(maps, expected, rtol=1e-3, atol=1e-6)


def test_the_authors_masking_is_ours():
    images, maps = torch.rand(5, 1, 28, 28) * 0.7 + 0.1, torch.randn(5, 28, 28)
    guidance = authors.GUIDANCE
    generator = torch.Generator().manual_seed(7)
    ours = mask_least_salient(images, maps, guidance.fraction, guidance.rank, guidance.fill, generator)

    # The numbers that ours drew, in its order of pixels, put into the order from the lowest pixel up.
    count = maps[0].numel() // 2
    drawn = torch.rand(5, 1, count, generator=generator.manual_seed(7)).squeeze(1)
    pixels = maps.flatten(1).topk(count, dim=1, largest=False, sorted=False).indices
    rank = maps.flatten(1).argsort(dim=1).argsort(dim=1).gather(1, pixels)
    noise = torch.empty(5, count).scatter(1, rank, drawn)
    assert torch.equal(authors.mask_lowest(images, maps, guidance.fraction, noise), ours)

    # And with noise of its own: the same pixels, within the image's own range.
    own = authors.mask_lowest(images, maps, guidance.fraction)
    assert torch.equal(own != images, ours != images)
    low, high = images.flatten(1).aminmax(dim=1)
    assert (own.flatten(1) >= low[:, None]).all() and (own.flatten(1) <= high[:, None]).all()


def test_the_brevitas_network_has_our_layers():
    """In a process of its own: Brevitas warns, and needs a `distutils` that a search for pip takes away."""
    layers = {
        name: [list(getattr(layer, tensor).shape) for tensor in ("weight", "bias")]
        for name, layer in build_model("lenet", load_setup("w4a4")).named_modules()
        if name.count(".") == 0 and hasattr(layer, "weight")
    }
    code = """if True:
        import json, torch, brevitas_net
        assert brevitas_net.why_not() is None, brevitas_net.why_not()  # `make test` installs it
        net = brevitas_net.Net()
        assert net.conv1.quant_weight().bit_width == net.conv1_act.act_quant.bit_width() == 4
        brevitas_net.step(batch=4)()
        assert net(torch.rand(2, 1, 28, 28)).shape == (2, 10)
        layers = {name: net.get_submodule(name) for name in %r}
        print(json.dumps({name: [list(layer.weight.shape), list(layer.bias.shape)] for name, layer in layers.items()}))
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(brevitas_net.__file__).parent)}
    command = [sys.executable, "-c", code % list(layers)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == layers and len(layers) == 4


def test_what_differs_elsewhere_is_held_against_the_same_seed_and_the_published_numbers(tmp_path):
    seeds = [run.seed for run in elsewhere.runs()]
    published = {run.seed: read_result(run.folder(REPOSITORY / "reports/reference")) for run in elsewhere.runs()}
    for variant in elsewhere.VARIANTS:
        for seed in seeds:
            metrics = {name: published[seed]["metrics"][name] for name in elsewhere.METRICS}
            tensors = {"weight.fc1": torch.full((3,), float(seed)), "prediction": torch.arange(10) + 10 * seed}
            if variant == "float32":
                metrics["gini"] += 0.25
                tensors["weight.fc1"] = tensors["weight.fc1"] + 1
                tensors["prediction"] = tensors["prediction"].clone().index_fill_(0, torch.tensor([0]), 99)
            path = tmp_path / f"{variant}-{seed}.safetensors"
            save_file(tensors, path, metadata={"metrics": json.dumps(metrics)})
    results = elsewhere.compare(tmp_path, seeds)
    assert len(seeds) == 3 and all(results["as_published"].values())
    threads, single = results["variants"]["two threads"], results["variants"]["float32"]
    assert all(entry["same_weights"] and entry["answers_that_differ"] == 0 for entry in threads)
    assert all(not entry["same_weights"] and entry["answers_that_differ"] == 0.1 for entry in single)
    assert [round(entry["change"]["gini"], 9) for entry in single] == [0.25] * 3
    assert results["seeds"]["answers_that_differ"] == [1.0] * 3
    text = elsewhere.table({**results, "provenance": provenance(0.0)})
    assert "| two threads | 3 of 3 | 0.0, 0.0, 0.0 |" in text and "+0.250, +0.250, +0.250" in text


def test_no_more_threads_train_at_a_time_than_asked(monkeypatch, tmp_path):
    active, most, seen = [], [], []

    def train_one(command, **_):
        variant = command[3]
        active.append(elsewhere.VARIANTS[variant][0].get("threads", 1))
        most.append(sum(active))
        seen.append(tuple(command[3:5]))
        time.sleep(0.02)
        active.remove(elsewhere.VARIANTS[variant][0].get("threads", 1))

    monkeypatch.setattr(elsewhere.subprocess, "run", train_one)
    monkeypatch.setattr(elsewhere, "compare", lambda *_: {})
    monkeypatch.setattr(elsewhere, "provenance", lambda _: {})
    monkeypatch.setattr(elsewhere, "table", lambda _: "a table")
    monkeypatch.setattr(elsewhere, "update_page", lambda *_: None)
    monkeypatch.setattr(elsewhere, "OUTPUT", tmp_path / "elsewhere.json")
    elsewhere.main(["--jobs", "2"])
    assert max(most) == 2 and len(set(seen)) == len(seen) == 3 * len(elsewhere.VARIANTS)


# ------------------------------------------------------------------------------------------------------------- GPU


def test_without_a_gpu_nothing_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no NVIDIA GPU here"):
        gpu.main(["--output", str(tmp_path / "gpu.json")])
    assert not list(tmp_path.iterdir())


def test_what_is_timed_on_a_gpu_is_the_study():
    run = load_study("paper").run("mnist/lenet/w4a4/saliency_guided/seed0")
    assert gpu.make_run("w4a4", "saliency_guided", run.epochs) == run
    assert benchmark.Size().batch == gpu.LARGE


def test_inside_step_by_step_nothing_is_replayed():
    with gpu.step_by_step():
        assert hardware.replayed("the function", None, ()) == "the function"
    assert hardware.replayed is replayed


@pytest.mark.parametrize(
    "block, output, table",
    [
        (BENCHMARKS, benchmark.OUTPUT, benchmark.page_table),
        (GPU, gpu.OUTPUT, gpu.table),
        (SCALE, scale.OUTPUT, scale.table),
        (ELSEWHERE, elsewhere.OUTPUT, elsewhere.table),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_what_the_pages_say_is_what_was_measured(block, output, table):
    shown = (REPOSITORY / block.page).read_text().split(block.start)[1].split(block.end)[0]
    assert shown.strip() == table(json.loads(output.read_text())).strip()


def test_a_gpu_gave_the_same_bits_as_the_page_says():
    assert set(json.loads(gpu.OUTPUT.read_text())["furthest_weight"].values()) == {0.0}


def test_the_table_of_the_gpu_says_what_was_met_and_what_differs():
    results = json.loads(gpu.OUTPUT.read_text())
    rows = {
        row.split("|")[1].strip() + row.split("|")[2]: row
        for row in gpu.table(results).splitlines()
        if ", guided |" in row
    }
    for entry in results["epochs"]:
        if entry["replayed"] and (entry["setup"], entry["training"]) == ("w4a4", "saliency_guided"):
            row = rows[f"w4a4, guided {entry['batch']} "]
            assert f"{entry['median']:.2f}" in row and ("**no**" in row) == (entry["median"] > 1)
    results["furthest_weight"]["fp32/standard"] = 0.25
    results["answers"]["w2a2"]["differ"] = 17
    assert "weights up to 0.25 apart" in gpu.table(results) and "w2a2 17" in gpu.table(results)


# ------------------------------------------------------------------------------------------------- as the work grows


def test_the_graph_alone_is_measured_and_earlier_parts_stay(tmp_path, capsys):
    path = tmp_path / "scale.json"
    origin = {
        "cpu": "an older one", "cores": 2, "packages": {"torch": "2.0"}, "ended": "2026-01-01T00:00:00+00:00", "git": None,
    }  # fmt: skip
    earlier = {"maps": {"dataset": "mnist", "runs": 6, "images": 50, "seconds": 7.0}, "provenance": {"maps": origin}}
    path.write_text(json.dumps(earlier))
    scale.main(["graph", "--runs", "90", "--output", str(path)])
    results = json.loads(path.read_text())
    assert [row["runs"] for row in results["graph"]] == [96]  # whole grids
    assert all(row[part] > 0 for row in results["graph"] for part in ("stamps", "planning", "collecting"))
    assert results["maps"] == earlier["maps"] and results["provenance"]["maps"] == origin
    printed = capsys.readouterr().out
    assert "| 96 |" in printed and "6 runs (mnist, 50 images each)" in printed
    assert "graph: " in printed and "maps: an older one, 2 cores, torch 2.0, 2026-01-01, no git" in printed


def test_all_parts_are_measured_where_none_is_named_and_none_where_one_is_unknown(tmp_path, monkeypatch, capsys):
    measured = []
    monkeypatch.setattr(scale, "measure", lambda part, *_: measured.append(part) or (None if part == "maps" else []))
    path = tmp_path / "scale.json"
    with pytest.raises(SystemExit):
        scale.main(["graphs", "--output", str(path)])
    assert "'graphs': expected one of steps, graph, studies, maps" in capsys.readouterr().err
    assert not measured and not path.exists()
    scale.main(["--output", str(path)])
    assert measured == list(scale.PARTS)
    assert set(json.loads(path.read_text())) == {"steps", "graph", "studies", "provenance"}
    assert "the paper study is not finished" in capsys.readouterr().err


@pytest.mark.parametrize("planning, verdict", [(120.0, "yes"), (120.1, "**no**")])
def test_what_was_asked_is_asked_of_the_largest_graph_only(planning, verdict):
    row = {"runs": 9_984, "stamps": 1.0, "planning": planning, "collecting": 60.1}
    results = {"graph": [{**row, "runs": 960, "planning": 999.0}, row], "provenance": {"graph": provenance(0.0)}}
    small, large = (line for line in scale.table(results).splitlines() if line.startswith(("| 960", "| 9,984")))
    assert "at most" not in small
    assert f"at most 120: {verdict}" in large and "at most 60: **no**" in large
    assert "at most" not in scale.table({**results, "graph": results["graph"][:1]})


def test_a_step_is_widened_by_its_channels_and_hidden_units(monkeypatch):
    lenet, wide = ARCHITECTURES["lenet"], scale.widened(2)
    assert (scale.widened(1).convs, scale.widened(1).hidden) == (lenet.convs, lenet.hidden)
    assert [conv.channels for conv in wide.convs] == [2 * conv.channels for conv in lenet.convs]
    assert wide.hidden == tuple(2 * hidden for hidden in lenet.hidden)
    step, macs = scale.wide_step(0.25, "float32", 4)
    _, twice = scale.wide_step(0.5, "float32", 4)
    assert 2 < twice / macs < 4
    monkeypatch.setattr(scale, "steadily", lambda step, repeats: timing.steadily(step, repeats, least=0))
    assert scale.milliseconds(lambda: step, 3)["n"] == 3 * timing.BUILDS


def test_a_whole_small_study_is_what_is_timed(tmp_path, monkeypatch):
    asked = []
    done = subprocess.CompletedProcess([], 0)
    monkeypatch.setattr(scale.subprocess, "run", lambda command, env, **_: asked.append((command, env)) or done)
    assert scale.measure_study(2, 1, tmp_path)["runs"] == 4
    ((command, environment),) = asked
    assert command[-4:] == ["reproduce", "small", "--cores", "1"]
    study = load_study("small", Path(environment["SQLIB_PARAMS"]))
    assert len(study.runs()) == 4 and not study.sweeps and study.quality_runs()


def test_a_study_that_fails_while_it_is_timed_says_why():
    with pytest.raises(SystemExit, match=r"out of luck\s+.*failed: nothing was measured"):
        scale.carry_out([sys.executable, "-c", "raise SystemExit('out of luck')"], dict(os.environ))


def test_short_steps_are_repeated_until_they_fill_their_time():
    called = []
    times = timing.steadily(lambda: called.append(time.sleep(0.01)), repeats=2, warm_up=1, least=0.1)
    assert len(called) == len(times) + 1 and len(times) > 2 and sum(times) >= 0.1
    assert len(timing.steadily(lambda: time.sleep(0.01), repeats=4, least=0.001)) == 4


def test_a_profile_names_the_operations_of_every_kind_of_step(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(brevitas_net, "why_not", lambda: "not measured: pip install brevitas")
    path, taken, ours = tmp_path / "profile.txt", [], steps.ours
    monkeypatch.setattr(steps, "ours", lambda *a, precision: taken.append(precision) or ours(*a, precision=precision))
    profile_step.main(["--batch", "2", "--threads", "1", "--precision", "bfloat16", "--output", str(path)])
    heading, *parts = path.read_text().split("\n== ")
    assert taken == ["bfloat16"] * 8  # both networks, float and quantised, ordinary and guided
    assert "2 images, bfloat16, threads: 1" in heading and str(path) in capsys.readouterr().out
    assert len(parts) == 9 and all("conv" in part and "Self CPU" in part for part in parts)
    assert sum("Pact" in part for part in parts) == 4  # w4a4, both networks and trainings
