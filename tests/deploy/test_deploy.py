"""Packed models, the integer runtime and ONNX, on briefly trained networks and the real test images."""

import contextlib
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from sqlib.checked import SqlibError
from sqlib.data import loading
from sqlib.deploy import onnx_export
from sqlib.deploy.integer import IntegerModel, activation_codes, answer
from sqlib.deploy.packed import (
    LARGEST_FILE,
    _container,
    load_packed,
    pack,
    pack_bits,
    read_packed,
    unpack_bits,
)
from sqlib.maps.attribution import saliency_map
from sqlib.networks.network import build_model
from sqlib.networks.passes import predict
from sqlib.places import REPOSITORY
from sqlib.quant.activations import pact
from sqlib.quant.bits import LayerBits, Setup
from sqlib.study.parameters import load_study
from sqlib.training import examples, loop

STUDY = load_study("smoke")


def own_setup(name, weights, activations, **more):
    return Setup(name=name, title=name, default=LayerBits(weights=weights, activations=activations), **more)


SETUPS = {
    **{name: STUDY.setup(name) for name in ("fp32", "w2a2", "w4a4", "mixed")},
    "w3a3": own_setup("w3a3", 3, 3),
    "w8a8": own_setup("w8a8", 8, 8),
    "aligned": own_setup("aligned", 4, 5, zero_aligned=True),
    "aligned2": own_setup("aligned2", 2, 2, zero_aligned=True, weight_method="dorefa"),
    "strange": own_setup(
        "strange", 5, 1, weight_method="minmax",
        layers={"conv2": LayerBits(weights=7, activations=6), "fc1": LayerBits(weights=6, activations=7)},
    ),
    "channels": own_setup("channels", 2, 4, per_channel=True),
    "half": own_setup("half", 4, 4, layers={"conv1": LayerBits(weights=32), "fc1": LayerBits(activations=32)}),
}  # fmt: skip

CASES = [
    ("lenet", "w2a2", 1_000), ("lenet", "w4a4", 1_000), ("lenet", "mixed", 1_000), ("lenet", "w8a8", 1_000),
    ("lenet5", "w2a2", 10_000), ("lenet5", "w4a4", 1_000), ("lenet5", "mixed", 1_000), ("lenet5", "w3a3", 1_000),
    ("lenet5", "aligned", 1_000), ("lenet5", "aligned2", 1_000), ("lenet5", "channels", 1_000),
    ("lenet5", "strange", 1_000), ("sgt_cnn", "w4a4", 100),
]  # fmt: skip


@pytest.fixture(scope="module")
def mnist():
    return loading.load("mnist")


@pytest.fixture(scope="module")
def trained(mnist, tmp_path_factory):
    """`trained(network, setup) -> (model, packed file)`, each made once."""
    made = {}

    def make(network, setup):
        if (network, setup) not in made:
            run = STUDY.make_run("mnist", "lenet", "fp32", "standard", 0)
            parameters = run.parameters.model_copy(update={"images": 1000, "validation_images": 50})
            run = run.model_copy(update={"network": network, "setup": SETUPS[setup], "parameters": parameters})
            model, _ = loop.fit(run, mnist)
            path = tmp_path_factory.mktemp("packed") / "model.packed"
            assert pack(model, path) == path.stat().st_size
            made[network, setup] = model, path
        return made[network, setup]

    return make


# ------------------------------------------------------------------------------------------------------------- bits


@given(st.integers(2, 8).flatmap(lambda b: st.tuples(st.just(b), st.lists(st.integers(0, 2**b - 1), min_size=1))))
def test_bits_survive_and_lie_where_the_documentation_says(case):
    bits, values = case
    stream = pack_bits(np.array(values), bits)
    number = sum(value << (i * bits) for i, value in enumerate(values))
    assert stream.tobytes() == number.to_bytes(-(-len(values) * bits // 8), "little")
    assert unpack_bits(stream, bits, len(values)).tolist() == values


def test_bits_by_hand():
    assert pack_bits(np.array([0, 1, 2, 3]), 2).tolist() == [0xE4]
    assert pack_bits(np.array([1, 7, 4]), 3).tolist() == [0b00111001, 0b1]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_the_integer_runtime_rounds_activations_as_pact_does(bits):
    # Among so many values some lie where another order of multiplying and dividing rounds to another level.
    generator = torch.Generator().manual_seed(bits)
    n = 2**bits - 1
    for clip in (0.37, 1.9, 3.3000002):
        y = 1.1 * clip * torch.rand(1_000_000, generator=generator) - 0.05 * clip
        expected = (pact(y, clip, bits).double() * n / float(np.float32(clip))).round().int().numpy()
        assert np.array_equal(activation_codes(y.numpy().copy(), np.float32(clip), bits), expected)


# ---------------------------------------------------------------------------------------------------- same answers


@pytest.mark.parametrize(("network", "setup", "count"), CASES)
def test_integer_model_equals_the_trained_one(trained, mnist, network, setup, count):
    model, path = trained(network, setup)
    images = mnist.test_images[:count]
    expected = predict(model, examples.to_float(images)).numpy()
    integer = IntegerModel.load(path)
    logits = integer.logits(images.numpy())
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(logits, expected)
    few = images[:60].numpy()
    np.testing.assert_array_equal(integer.predict(few[:, None]), expected[:60].argmax(axis=1))
    codes = integer.codes(few)
    for name, clip in model.clips().items():
        assert codes[name].dtype == np.uint8 and codes[name].max() <= 2**clip.bits - 1


@pytest.mark.parametrize(
    ("network", "setup"), [(n, s) for n, s, _ in CASES if n == "lenet5"] + [("lenet5", "half"), ("lenet", "fp32")]
)
def test_packed_torch_model_equals_the_trained_one(trained, mnist, tmp_path, network, setup):
    model, path = trained(network, setup)
    state = torch.get_rng_state()
    loaded = load_packed(path)
    assert torch.equal(torch.get_rng_state(), state)
    images = examples.to_float(mnist.test_images[:64])
    logits = predict(model, images)
    assert torch.equal(predict(loaded, images), logits)
    for surrogate in ("straight_through", "unclipped"):
        maps = [saliency_map(m, images, logits.argmax(dim=1), surrogate=surrogate) for m in (model, loaded)]
        assert torch.equal(*maps)
    pack(loaded, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_a_reader_written_from_the_documentation(trained, mnist):
    model, path = trained("lenet5", "w3a3")
    with safe_open(path, framework="numpy") as file:
        layers = json.loads(file.metadata()["layers"])
        assert {key: file.metadata()[key] for key in ("format", "version", "input_scale")} == {
            "format": "sqlib-packed", "version": "1", "input_scale": "255",
        }  # fmt: skip
        for layer in layers:
            bits, count = layer["weight_bits"], int(np.prod(layer["shape"]))
            stream = int.from_bytes(file.get_tensor(layer["name"] + ".weight").tobytes(), "little")
            codes = [2 * (stream >> (i * bits) & (2**bits - 1)) - (2**bits - 1) for i in range(0, count, 97)]
            expected, step, _ = model.get_submodule(layer["name"]).codes()
            assert codes == expected.flatten()[::97].int().tolist()
            assert file.get_tensor(layer["name"] + ".step") == step.numpy()
    # 3 bits a weight, and little beside: that is what packing is for.
    weights = sum(model.get_submodule(name).weight.numel() for name in model.layer_names)
    assert weights * 3 / 8 < path.stat().st_size < weights * 3 / 8 + 5_000


def test_integer_model_needs_no_torch(trained, mnist, tmp_path):
    model, path = trained("lenet5", "w4a4")
    np.save(tmp_path / "images.npy", mnist.test_images[:20].numpy())
    code = (
        "import sys, numpy; sys.modules['torch'] = None; from sqlib.deploy.integer import IntegerModel;"
        f"print(IntegerModel.load({str(path)!r}).predict(numpy.load({str(tmp_path / 'images.npy')!r})).tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == predict(model, examples.to_float(mnist.test_images[:20])).argmax(dim=1).tolist()


# ---------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(("setup", "layer"), [("half", "conv1"), ("fp32", "conv1")])
def test_integer_model_refuses_float_layers(trained, setup, layer):
    _, path = trained("lenet5" if setup == "half" else "lenet", setup)
    with pytest.raises(SqlibError, match=f"layer '{layer}' .* is not quantised"):
        IntegerModel.load(path)


@pytest.mark.parametrize(
    "images",
    [np.zeros((2, 28, 28), np.float32), np.zeros((28, 28), np.uint8), np.zeros((1, 3, 28, 28), np.uint8),
     np.zeros((1, 28, 27), np.uint8)],
)  # fmt: skip
def test_integer_model_refuses_other_images(trained, images):
    with pytest.raises(SqlibError, match="expected uint8 pixels, 28x28"):
        IntegerModel.load(trained("lenet5", "w4a4")[1]).logits(images)


def test_no_images_give_no_logits(trained):
    integer = IntegerModel.load(trained("lenet5", "w4a4")[1])
    assert integer.logits(np.zeros((0, 28, 28), np.uint8)).shape == (0, 10)


def rewritten(path, tmp_path, change):
    """The packed file with `change(metadata, tensors)` applied and a fresh, valid checksum."""
    packed = read_packed(path)
    with safe_open(path, framework="numpy") as file:
        metadata = {key: value for key, value in file.metadata().items() if key != "sha256"}
    tensors = dict(packed.tensors)
    change(metadata, tensors)
    (tmp_path / "changed").write_bytes(_container(tensors, metadata))
    return tmp_path / "changed"


def edit_layer(**values):
    def change(metadata, tensors):
        layers = json.loads(metadata["layers"])
        layers[1].update(values)
        metadata["layers"] = json.dumps(layers)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, t: m.update(version="2"), "version '2': this program reads version 1"),
        (lambda m, t: m.update(format="other"), "not a packed model"),
        (lambda m, t: m.update(network="alexnet"), "unknown network"),
        (lambda m, t: m.update(input_scale="1"), "input_scale"),
        (lambda m, t: m.update(input_shape="[1, 999999, 28]"), "input_shape"),
        (lambda m, t: m.pop("layers"), "no 'layers'"),
        (lambda m, t: m.update(setup="{}"), "setup"),
        (lambda m, t: m.update(layers="[" * 100_000), "layers"),
        (edit_layer(weight_bits=5), "bits are not those of setup"),
        (edit_layer(weight_bits=True), "layers.1.weight_bits"),
        (edit_layer(padding=4), "does not fit|larger"),
        (edit_layer(pool=0), "layers.1.pool"),
        (edit_layer(shape=[2**23, 6, 5, 5]), "larger than any network"),
        (edit_layer(shape=[16, 6, -5, 5]), "layers.1.shape"),
        (edit_layer(surprise=1), "surprise"),
        (lambda m, t: t.pop("fc1.bias"), "fc1.bias"),
        (lambda m, t: t.update(extra=np.zeros(3, np.uint8)), "extra"),
        (lambda m, t: t.update({"fc1.weight": t["fc1.weight"][:-1]}), "fc1.weight' is U8"),
        (lambda m, t: t.update({"fc1.step": np.array(np.nan, "<f4")}), "not finite"),
        (lambda m, t: t.update({"fc1.step": np.array(0, "<f4")}), "expected a positive number"),
        (lambda m, t: t.update({"conv1_act.clip": np.array(1, "<f4")}), "conv1_act.clip"),
        (lambda m, t: t.update({"conv1.clip": np.array(-1, "<f4")}), "expected a positive number"),
        (lambda m, t: t.update({"conv1.bias": np.zeros(6, np.uint8)}), "conv1.bias' is U8"),
    ],
)  # fmt: skip
def test_a_file_that_lies_is_refused_in_one_line(trained, tmp_path, change, message):
    path = rewritten(trained("lenet5", "w4a4")[1], tmp_path, change)
    with pytest.raises(SqlibError, match=message) as caught:
        read_packed(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_other_files_are_refused(tmp_path):
    for content in (
        b"",
        b"\x00" * 7,
        b"hello, world, hello",
        (2**62).to_bytes(8, "little") + b"{}",
        b"\x02" + b"\x00" * 7 + b"{}",
    ):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(SqlibError, match="not a packed model"):
            IntegerModel.load(tmp_path / "file")
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(SqlibError, match="no such file|not a file"):
            load_packed(path)
    with (tmp_path / "large").open("wb") as file:
        file.truncate(LARGEST_FILE + 1)
    with pytest.raises(SqlibError, match="larger than 64 MiB"):
        IntegerModel.load(tmp_path / "large")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(draws=st.data())
def test_damaged_bytes_never_crash_and_never_pass(trained, draws):
    content = bytearray(trained("lenet5", "w4a4")[1].read_bytes())
    kind = draws.draw(st.sampled_from(["cut", "flip", "header", "longer"]))
    if kind == "cut":
        content = content[: draws.draw(st.integers(0, len(content) - 1))]
    elif kind == "longer":
        content += draws.draw(st.binary(min_size=1, max_size=20))
    else:
        end = len(content) if kind == "flip" else 2500
        for position in draws.draw(st.lists(st.integers(0, end - 1), min_size=1, max_size=3, unique=True)):
            content[position] ^= draws.draw(st.integers(1, 255))
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        try:
            packed = read_packed(Path(file.name))
        except SqlibError as error:
            assert "\n" not in str(error)
        else:  # only the table of tensors may change unseen, in what means the same: spaces, swapped equals
            assert packed.layers == read_packed(trained("lenet5", "w4a4")[1]).layers


def test_a_model_that_is_not_finite_is_not_packed(tmp_path):
    model = build_model("lenet5", SETUPS["w4a4"])
    model.fc1.bias.data[0] = float("nan")
    with pytest.raises(SqlibError, match="layer 'fc1' holds a value that is not finite"):
        pack(model, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_the_checksum_is_the_documented_one(trained):
    content = trained("lenet5", "w4a4")[1].read_bytes()
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length])["__metadata__"]
    total = hashlib.sha256()
    for key in sorted(set(metadata) - {"sha256"}):
        total.update(f"{key}\n{metadata[key]}\n".encode())
    total.update(content[8 + length :])
    assert total.hexdigest() == metadata["sha256"]


PUBLISHED = sorted(REPOSITORY.glob("reports/reference/runs/**/packed.safetensors"))


def split(path):
    """(header, data) of a safetensors file."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def joined(header, content):
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content


def test_published_files_are_still_read():
    assert PUBLISHED
    for path in PUBLISHED:
        assert read_packed(path).classes is None


@pytest.mark.parametrize("old", [False, True])
def test_no_two_entries_of_the_table_can_be_swapped(trained, tmp_path, old):
    path = PUBLISHED[0] if old else trained("lenet5", "w4a4")[1]
    header, content = split(path)
    assert ("table_sha256" in header["__metadata__"]) is not old
    names = [name for name in header if name != "__metadata__"]
    pairs = [(a, b) for i, a in enumerate(names) for b in names[:i]]
    assert ("fc1.clip", "conv1.clip") in pairs
    for a, b in pairs:
        for swapped in (
            {**header, a: header[b], b: header[a]},
            {**header, a: {**header[a], "data_offsets": header[b]["data_offsets"]},
             b: {**header[b], "data_offsets": header[a]["data_offsets"]}},
        ):  # fmt: skip
            (tmp_path / "swapped").write_bytes(joined(swapped, content))
            with pytest.raises(SqlibError, match="not a packed model, or damaged|damaged packed model"):
                read_packed(tmp_path / "swapped")


@pytest.mark.parametrize("old", [False, True])
def test_a_table_that_says_a_name_twice_or_another_shape_is_refused(trained, tmp_path, old):
    header, content = split(PUBLISHED[0] if old else trained("lenet5", "w4a4")[1])
    text = json.dumps(header)
    clips = [json.dumps({name: header[name]})[1:-1] for name in ("conv1.clip", "conv2.clip")]
    moved = clips[0].replace(json.dumps(header["conv1.clip"]["data_offsets"]),
                             json.dumps(header["conv2.clip"]["data_offsets"]))  # fmt: skip
    for changed in (text.replace(clips[0], f"{moved}, {clips[0]}"), text.replace(clips[0], f"{clips[0]}, {moved}")):
        assert changed != text
        changed = changed.encode()
        (tmp_path / "twice").write_bytes(len(changed).to_bytes(8, "little") + changed + content)
        with contextlib.suppress(SqlibError):  # taken only with the values that the file had
            found = read_packed(tmp_path / "twice").tensors
            at = header["conv1.clip"]["data_offsets"]
            assert found["conv1.clip"].tobytes() == content[at[0] : at[1]]
    name = next(name for name, entry in header.items() if entry.get("dtype") == "F32" and entry["shape"])
    header[name]["shape"] = [*header[name]["shape"], 1]
    (tmp_path / "shape").write_bytes(joined(header, content))
    with pytest.raises(SqlibError, match="damaged packed model"):
        read_packed(tmp_path / "shape")


def test_a_packed_file_knows_its_classes_and_has_the_same_tensors(trained, tmp_path):
    model, path = trained("lenet5", "w4a4")
    names = tuple(f"class {i}, 靴" for i in range(10))
    pack(model, tmp_path / "named", names)
    assert read_packed(tmp_path / "named").classes == IntegerModel.load(tmp_path / "named").classes == names
    assert split(tmp_path / "named")[1] == split(path)[1]
    (header, _), (published, _) = split(path), split(PUBLISHED[0])
    assert set(header["__metadata__"]) == {*published["__metadata__"], "table_sha256"}
    lines = [json.dumps([name, entry["dtype"], entry["shape"], entry["data_offsets"]]) + "\n"
             for name, entry in header.items() if name != "__metadata__"]  # fmt: skip
    assert header["__metadata__"]["table_sha256"] == hashlib.sha256("".join(lines).encode()).hexdigest()


@pytest.mark.parametrize("classes", ['["a"]', '[""]', "1", '["a\\u001b", "b", "c", "d", "e", "f", "g", "h", "i", "j"]'])
def test_class_names_that_are_none_are_refused(trained, tmp_path, classes):
    path = rewritten(trained("lenet5", "w4a4")[1], tmp_path, lambda m, t: m.update(classes=classes))
    with pytest.raises(SqlibError, match="damaged packed model: .*class"):
        read_packed(path)


def test_an_answer_in_words():
    assert answer(9, 0.9731, ("", *"12345678", "Ankle boot")) == "class 9, Ankle boot (97.3%)"
    assert answer(7, 1.0, "0123456789") == answer(7, 1.0, None) == "class 7 (100.0%)"


# ---------------------------------------------------------------------------------------------------------------- ONNX


@pytest.mark.parametrize(("network", "setup", "count"), [*CASES, ("lenet5", "half", 1_000), ("lenet", "fp32", 1_000)])
def test_onnx_equals_the_trained_model(trained, mnist, tmp_path, network, setup, count):
    import onnxruntime as runtime

    model, packed = trained(network, setup)
    images = examples.to_float(mnist.test_images[:count])
    expected = predict(model, images).numpy()
    for opset in (None, 21, 13):  # the smallest types; none of 2 bits; none but of 8 bits
        path = tmp_path / f"{opset}.onnx"
        assert onnx_export.export_onnx(model, path, opset) == path.stat().st_size
        session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
        logits = np.concatenate([session.run(["logits"], {"images": part.numpy()})[0] for part in images.split(500)])
        assert (logits.argmax(axis=1) == expected.argmax(axis=1)).mean() >= 0.9999
        np.testing.assert_allclose(logits, expected, atol=1e-3)
    if setup == "w2a2":
        assert (tmp_path / "None.onnx").stat().st_size < packed.stat().st_size + 5_000


def test_onnx_types_are_the_smallest(trained, tmp_path):
    import onnx

    onnx_export.export_onnx(trained("lenet", "mixed")[0], tmp_path / "model.onnx")
    proto = onnx.load(tmp_path / "model.onnx")
    types = {item.name: onnx.TensorProto.DataType.Name(item.data_type) for item in proto.graph.initializer}
    assert [types[f"{name}.weight"] for name in ("conv1", "conv2", "fc1", "fc2")] == [
        "UINT4",
        "UINT2",
        "UINT2",
        "UINT4",
    ]
    kinds = {node.op_type for node in proto.graph.node}
    assert {"QuantizeLinear", "DequantizeLinear", "Conv", "Gemm"} <= kinds


@pytest.mark.parametrize("opset", [None, 11, 20, 21, 24, 25, onnx_export.NEWEST_OPSET])
def test_onnx_of_an_opset_has_its_smallest_types_and_the_same_logits(trained, mnist, tmp_path, opset):
    import onnx
    import onnxruntime as runtime

    model, _ = trained("lenet5", "w2a2")
    images = examples.to_float(mnist.test_images[:200])
    onnx_export.export_onnx(model, tmp_path / "model.onnx", opset)
    proto = onnx.load(tmp_path / "model.onnx")
    assert proto.opset_import[0].version == (opset or 25)
    types = {onnx.TensorProto.DataType.Name(item.data_type) for item in proto.graph.initializer}
    assert types - {"FLOAT", "UINT8"} == ({"UINT2"} if (opset or 25) >= 25 else {"UINT4"} if opset >= 21 else set())
    session = runtime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    np.testing.assert_array_equal(logits, predict(model, images).numpy())


@pytest.mark.parametrize("opset", [-1, 0, 10, 28, 10**9])
def test_an_opset_that_cannot_say_it_is_refused(tmp_path, opset):
    with pytest.raises(SqlibError, match=f"opset {opset}: expected 11 .* to 27") as caught:
        onnx_export.export_onnx(build_model("lenet5", SETUPS["w4a4"]), tmp_path / "model.onnx", opset)
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []
