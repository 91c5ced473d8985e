"""What sqlib knows of the machine, and the precision that follows from it."""

import contextlib
import types

import pytest
import torch

from sqlib import hardware
from sqlib.checked import SqlibError, validate
from sqlib.networks.network import build_model
from sqlib.networks.passes import computing_in
from sqlib.quant.layers import QuantConv2d
from sqlib.study.jobs import train
from sqlib.study.parameters import Training
from sqlib.training import loop


@pytest.fixture
def processor(monkeypatch, tmp_path):
    """Function (text of /proc/cpuinfo, or None where there is no such file) that makes it this machine's."""

    def pretend(text):
        if text is not None:
            (tmp_path / "cpuinfo").write_text(text)
        monkeypatch.setattr(hardware, "Path", lambda name: tmp_path / name.rsplit("/", 1)[1])
        hardware.instructions.cache_clear()

    yield pretend
    hardware.instructions.cache_clear()


AMD, INTEL = "vendor_id\t: AuthenticAMD\n", "vendor_id\t: GenuineIntel\n"


@pytest.mark.parametrize(
    "text, bfloat16, int8",
    [
        (AMD + "flags\t\t: fpu avx512f avx512_bf16 avx512_vnni sse\n", True, True),
        (INTEL + "model name\t: X\nflags\t\t: fpu avx512f avx512_bf16 avx512_vnni\n", False, True),
        (INTEL + "flags\t\t: fpu amx_bf16 avx_vnni\n", True, True),
        (AMD + "flags\t\t: fpu avx2\n", False, False),
        (AMD + "flags\t\t: not_avx512_bf16x not_avx_vnni\n", False, False),
        ("processor: 0\n", False, False),
        (None, False, False),
    ],
)
def test_units_are_read_from_the_processors_flags(text, bfloat16, int8, processor):
    processor(text)
    assert hardware.bfloat16_units() is bfloat16
    assert hardware.int8_units() is int8


@pytest.mark.parametrize("there, dtype", [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_takes_bfloat16_where_there_are_units_for_it(there, dtype, make_run, monkeypatch):
    monkeypatch.setattr(loop, "bfloat16_units", lambda: there)
    assert loop.precision(make_run()) == dtype
    assert loop.precision(make_run(precision="float32")) == torch.float32
    assert loop.precision(make_run(precision="bfloat16")) == torch.bfloat16


def test_unknown_precision_is_refused(tmp_path):
    with pytest.raises(SqlibError, match=r"precision.*'float16'"):
        validate(Training, {"precision": "float16"}, tmp_path / "study.yaml")


def test_convolutions_compute_in_bfloat16_inside_and_in_float32_after_an_error(make_setup):
    model = build_model("lenet", make_setup(4, 4))
    seen = []

    def convolutions():
        return {module.arithmetic for module in model.modules() if isinstance(module, QuantConv2d)}

    with pytest.raises(RuntimeError), computing_in(model, torch.bfloat16):
        seen.append(convolutions())
        raise RuntimeError
    assert seen == [{torch.bfloat16}] and convolutions() == {torch.float32}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run_trains_in_its_precision_and_is_measured_in_float32(precision, make_run, blobs, monkeypatch):
    run = make_run(4, "saliency_guided", precision=precision)
    seen = {True: set(), False: set()}
    forward = QuantConv2d.forward

    def watch(self, x, scale=None):
        seen[self.training and torch.is_grad_enabled()].add(self.arithmetic)
        return forward(self, x, scale)

    monkeypatch.setattr(QuantConv2d, "forward", watch)
    model, history = loop.fit(run, blobs)
    train.measure_trained(run, model, [{**history[-1], "val_accuracy": 1.0}], blobs)
    assert seen == {True: {getattr(torch, precision)}, False: {torch.float32}}


def test_both_precisions_learn_the_same(make_run, blobs):
    losses = [
        loop.fit(make_run(4, precision=precision, epochs=4, learning_rate=5e-3), blobs)[1][-1]["train_loss"]
        for precision in ("float32", "bfloat16")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.1)


@pytest.mark.parametrize("asked, there, expected", [(None, False, "cpu"), (None, True, "cuda"), ("cpu", True, "cpu")])
def test_a_gpu_is_used_where_there_is_one_and_nothing_else_is_asked_for(asked, there, expected, monkeypatch):
    monkeypatch.delenv("SQLIB_DEVICE", raising=False)
    if asked:
        monkeypatch.setenv("SQLIB_DEVICE", asked)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(there))
    assert hardware.device() == torch.device(expected)


@pytest.mark.parametrize("asked", ["cuda:7", "gpu", "meta"])
def test_a_device_that_is_not_there_is_refused(asked, monkeypatch):
    monkeypatch.setenv("SQLIB_DEVICE", asked)
    with pytest.raises(SqlibError, match=f"SQLIB_DEVICE={asked}: there is no such device"):
        hardware.device()


def test_float32_stays_float32_and_threads_are_as_asked():
    before = torch.get_num_threads()
    try:
        torch.backends.cudnn.allow_tf32 = True
        hardware.prepare(1)
        assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


# ---------------------------------------------------------------------------------------------------------- replay


class Graph:
    """Stands for a CUDA graph: computes nothing when it is captured, and everything when it is replayed."""

    def __init__(self, function, generators):
        self.function, self.generators, self.results = function, generators, []

    def replay(self):
        self.results[:] = self.function()


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that `Replayed` captures, where nothing can be captured."""
    captured = []

    def capture(function, generators, device):
        captured.append(Graph(function, generators))
        return captured[-1], captured[-1].results

    monkeypatch.setattr(hardware, "capture", capture)
    monkeypatch.setattr(hardware, "aside", lambda device: contextlib.nullcontext())
    return captured


def test_a_function_is_captured_once_and_replayed_on_the_values_of_each_call(graphs):
    total = torch.zeros(2)

    def function(argument):
        total.add_(argument)
        return (total,)

    replayed = hardware.Replayed(function, torch.zeros(2), (), warm=2)
    kept = [replayed(torch.full((2,), float(i)))[0] for i in range(5)]
    assert len(graphs) == 1
    assert [float(result[0]) for result in kept[2:]] == [3, 6, 10]  # each call keeps its own
    with pytest.raises(RuntimeError):
        replayed(torch.zeros(3))


def test_training_with_replayed_steps_is_the_same_to_the_bit(graphs, make_run, blobs, monkeypatch):
    run = make_run(4, "saliency_guided", epochs=2, batch_size=30, shift=1)  # of 200 images, the last 20
    plain, history = loop.fit(run, blobs)
    assert not graphs
    monkeypatch.setattr(loop, "replayed", hardware.Replayed)
    other, replayed_history = loop.fit(run, blobs)
    (graph,) = graphs
    assert [generator.initial_seed() for generator in graph.generators] == [1, 2]  # all that a step draws from
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), other.parameters(), strict=True))
    assert [e["train_loss"] for e in history] == [e["train_loss"] for e in replayed_history]
    assert [e["train_accuracy"] for e in history] == [e["train_accuracy"] for e in replayed_history]


def test_sqlib_replay_says_whether_steps_are_replayed(monkeypatch):
    on_gpu = torch.zeros(1, device="meta")
    monkeypatch.setattr(type(on_gpu), "is_cuda", True, raising=False)
    for value, expected in (("", True), ("yes", True), ("no", False)):
        monkeypatch.setenv("SQLIB_REPLAY", value)
        assert isinstance(hardware.replayed(print, on_gpu, ()), hardware.Replayed) is expected
    monkeypatch.setenv("SQLIB_REPLAY", "maybe")
    with pytest.raises(SqlibError, match="SQLIB_REPLAY=maybe: expected yes .* or no"):
        hardware.replayed(print, torch.zeros(1), ())


class Streams:
    """Stands for what torch knows of a GPU's streams."""

    def __init__(self):
        self.made, self.log = 0, []

    def stream(self, name):
        return types.SimpleNamespace(
            name=name, wait_stream=lambda other: self.log.append((name, "waits for", other.name))
        )

    def Stream(self, device):
        self.made += 1
        return self.stream("side")


@pytest.fixture
def streams(monkeypatch):
    fake = Streams()
    monkeypatch.setattr(torch.cuda, "Stream", fake.Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: fake.stream("default"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: None)
    hardware.side_stream.cache_clear()
    yield fake
    hardware.side_stream.cache_clear()


def test_all_that_is_done_aside_is_on_one_stream_and_is_waited_for_even_where_it_fails(streams):
    gpu = torch.device("cuda", 0)
    for _ in range(3):
        with hardware.aside(gpu):
            pass
    with pytest.raises(ArithmeticError), hardware.aside(gpu):
        raise ArithmeticError
    assert streams.made == 1
    assert streams.log == [("side", "waits for", "default"), ("default", "waits for", "side")] * 4


def test_a_step_that_cannot_be_recorded_is_named_with_the_way_out(streams, monkeypatch):
    graph = types.SimpleNamespace(register_generator_state=lambda generator: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graph)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, stream: contextlib.nullcontext())
    gpu = torch.device("cuda", 0)
    assert hardware.capture(lambda: "results", (), gpu) == (graph, "results")

    def fails():
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(SqlibError, match="operation not permitted .*; SQLIB_REPLAY=no computes it step by step"):
        hardware.capture(fails, (), gpu)


def test_a_recording_that_fails_names_the_first_cause_and_leaves_the_stream_it_found(streams, monkeypatch):
    now = ["default"]

    @contextlib.contextmanager
    def recording(graph, stream):
        now[0] = "side"
        try:
            yield
        finally:
            # As torch does it: the end of a recording that went wrong fails in its turn, before the stream is changed back.
            raise RuntimeError("capture was invalidated")

    graph = types.SimpleNamespace(register_generator_state=lambda generator: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graph)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", recording)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: now[0])
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: now.__setitem__(0, stream))

    def waits():
        raise RuntimeError("cannot wait for the device here")

    with pytest.raises(SqlibError, match=r"\(cannot wait for the device here\)"):
        hardware.capture(waits, (), torch.device("cuda", 0))
    assert now == ["default"]
