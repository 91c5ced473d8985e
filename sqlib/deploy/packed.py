"""Packed models: one small file with weights at their real bits, and an integer runtime that needs only numpy.

`pack` writes a trained network, `IntegerModel` classifies with it in integer arithmetic (uint8 pixels, int32 sums in
every convolution and linear layer, codes in between), `load_packed` makes a torch model of it again. All three give the
predictions of the model that was packed. The format, complete enough to write another reader, is in
docs/packed-format.md; the readers here trust nothing in a file and answer anything amiss with a one-line SqlibError.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import safetensors
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from sqlib.checked import SqlibError
from sqlib.files import write_atomically
from sqlib.networks.architectures import NETWORK_LAYERS, check_network
from sqlib.quant.bits import FLOAT, Setup

if TYPE_CHECKING:
    from sqlib.networks.network import Network


FORMAT, VERSION = "sqlib-packed", "1"
INPUT_SCALE = 255
IMAGE_SIZE = 28
# More than any network here needs by far; what a damaged file asks beyond them is refused before memory is taken.
LARGEST_FILE = 64 * 2**20
LARGEST_HEADER = 2**20
LARGEST_LAYER = 10**9  # multiply-accumulates an image
LARGEST_ACTIVATION = 10**6  # elements an image
BATCH = 50
Size = Annotated[int, Field(ge=1, le=2**24)]
ClassName = Annotated[str, Field(min_length=1, max_length=100)]


class Layer(BaseModel):
    """One layer as the file describes it (see docs/packed-format.md)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str
    kind: Literal["conv", "linear"]
    shape: Annotated[tuple[Size, ...], Field(min_length=2, max_length=4)]
    padding: Annotated[int, Field(ge=0, le=IMAGE_SIZE)] = 0
    pool: Annotated[int, Field(ge=1, le=IMAGE_SIZE)] = 1
    weight_bits: int
    zero_aligned: bool
    activation_bits: int | None

    @property
    def top(self) -> int:
        """The largest weight code; the smallest is its negative."""
        return 2 ** (self.weight_bits - 1) - 1 if self.zero_aligned else 2**self.weight_bits - 1

    @property
    def count(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Packed:
    """A packed file's content, checked: tensors by name, weights still packed."""

    network: str
    setup: Setup
    input_shape: tuple[int, int, int]
    layers: tuple[Layer, ...]
    tensors: dict[str, np.ndarray]
    classes: tuple[str, ...] | None = None

    def codes(self, layer: Layer) -> np.ndarray:
        """Weight codes (int32) of a quantised layer, in the layer's shape."""
        index = unpack_bits(self.tensors[f"{layer.name}.weight"], layer.weight_bits, layer.count).astype(np.int32)
        codes = index - layer.top if layer.zero_aligned else 2 * index - layer.top
        return codes.reshape(layer.shape)


# ------------------------------------------------------------------------------------------------------------- bits
def pack_bits(index: np.ndarray, bits: int) -> np.ndarray:
    """Integers 0 to 2^bits - 1 as a little-endian stream of bits: uint8 (ceil(n * bits / 8),), zeros at the end."""
    planes = np.unpackbits(index.astype(np.uint8).reshape(-1, 1), axis=1, bitorder="little", count=bits)
    return np.packbits(planes.reshape(-1), bitorder="little")


def unpack_bits(stream: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The first `count` integers of a stream that `pack_bits` made: uint8 (count,)."""
    planes = np.unpackbits(stream, bitorder="little", count=count * bits).reshape(count, bits)
    return np.packbits(planes, axis=1, bitorder="little").reshape(count)


def packed_size(count: int, bits: int) -> int:
    return -(-count * bits // 8)


# ---------------------------------------------------------------------------------------------------------- writing
def describe(model: "Network") -> tuple[Layer, ...]:
    """The layers of a network as a packed file describes them."""
    layers = []
    for name in model.layer_names:
        module, activation = model.get_submodule(name), getattr(model, f"{name}_act", None)
        conv = name in model.convs
        layers.append(
            Layer(
                name=name,
                kind="conv" if conv else "linear",
                shape=tuple(module.weight.shape),
                padding=module.padding[0] if conv else 0,
                pool=module.pool if conv else 1,
                weight_bits=module.bits,
                zero_aligned=module.bits != FLOAT and (module.zero_aligned or module.bits == 8),
                activation_bits=None if activation is None else activation.bits,
            )
        )
    return tuple(layers)


def pack(model: "Network", path: Path, classes: Sequence[str] | None = None) -> int:
    """Write a trained network, and the names of its classes, to a packed file, atomically; its size in bytes.

    The same model gives the same bytes. Float layers are stored in float32 (such a file loads with `load_packed`; the
    integer runtime refuses it). Raises SqlibError when the file cannot be written, a value of the model is not finite, or it
    is none of the study's networks.
    """
    import torch

    from sqlib.networks.network import Network

    if not isinstance(model, Network):
        raise SqlibError(f"a {type(model).__name__}: only the study's networks have a packed form (`build_model`)")
    tensors: dict[str, np.ndarray] = {}
    layers = describe(model)
    with torch.no_grad():
        for layer in layers:
            module = model.get_submodule(layer.name)
            if layer.weight_bits == FLOAT:
                tensors[f"{layer.name}.weight"] = _float32(module.weight, layer.name)
            else:
                codes, step, _ = module.codes()
                codes = codes.cpu().numpy().astype(np.int32)
                index = codes + layer.top if layer.zero_aligned else (codes + layer.top) // 2
                tensors[f"{layer.name}.weight"] = pack_bits(index, layer.weight_bits)
                tensors[f"{layer.name}.step"] = _float32(step.flatten() if step.dim() else step, layer.name)
            tensors[f"{layer.name}.bias"] = _float32(module.bias, layer.name)
            if layer.activation_bits not in (None, FLOAT):
                clip = getattr(model, f"{layer.name}_act").alpha
                tensors[f"{layer.name}.clip"] = _float32(clip, layer.name)
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "network": model.name,
        "setup": model.setup.model_dump_json(),
        "input_shape": json.dumps([model.get_submodule(model.layer_names[0]).in_channels, IMAGE_SIZE, IMAGE_SIZE]),
        "input_scale": str(INPUT_SCALE),
        "layers": json.dumps([layer.model_dump() for layer in layers]),
        **({} if classes is None else {"classes": json.dumps(list(classes))}),
    }
    content = _container(tensors, metadata)
    write_atomically(Path(path), content)
    return len(content)


def _float32(tensor, layer: str) -> np.ndarray:
    array = tensor.detach().cpu().numpy().astype("<f4")
    if not np.isfinite(array).all():
        raise SqlibError(
            f"layer '{layer}' holds a value that is not finite: there is nothing to pack; train the run again"
        )
    return array


def _container(tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> bytes:
    """A safetensors file. Written here and not by the library, whose metadata comes in a new order each time."""
    header = _table({name: ("U8" if a.dtype == np.uint8 else "F32", a.shape) for name, a in tensors.items()})
    data = b"".join(tensors[name].tobytes() for name in header)
    metadata = {**metadata, "table_sha256": _table_checksum(header)}
    metadata["sha256"] = _checksum(metadata, data)
    text = json.dumps({"__metadata__": metadata, **header}, ensure_ascii=True).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def _table(tensors: dict[str, tuple[str, tuple[int, ...]]]) -> dict[str, dict]:
    """The safetensors header of tensors, given their types and shapes: F32 before U8, in order of name, without gaps."""
    header, offset = {}, 0
    for name, (dtype, shape) in sorted(tensors.items(), key=lambda item: (item[1][0] == "U8", item[0])):
        end = offset + math.prod(shape) * (1 if dtype == "U8" else 4)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    return header


def _table_checksum(header: dict[str, dict]) -> str:
    lines = [[name, entry["dtype"], entry["shape"], entry["data_offsets"]] for name, entry in header.items()]
    return hashlib.sha256("".join(json.dumps(line) + "\n" for line in lines).encode()).hexdigest()


def _checksum(metadata: dict[str, str], data: bytes) -> str:
    text = "".join(f"{key}\n{metadata[key]}\n" for key in sorted(metadata) if key != "sha256")
    return hashlib.sha256(text.encode() + data).hexdigest()


# ---------------------------------------------------------------------------------------------------------- reading
def read_packed(path: Path) -> Packed:
    """Read and check a packed file; SqlibError (one line) if it is missing, damaged, of another version or kind."""
    path = Path(path)
    metadata, tensors = _read_container(path)

    def value(key: str) -> str:
        if key not in metadata:
            raise SqlibError(f"{path}: damaged packed model: no '{key}' in its metadata")
        return metadata[key]

    if metadata.get("format") != FORMAT:
        raise SqlibError(
            f"{path}: not a packed model (its metadata does not say format = '{FORMAT}'); make one with `pack`"
        )
    if value("version") != VERSION:
        raise SqlibError(
            f"{path}: packed format version {value('version')[:20]!r}: this program reads version {VERSION}"
        )
    layers = _parse(path, "layers", TypeAdapter(tuple[Layer, ...]), value("layers"))
    setup = _parse(path, "setup", TypeAdapter(Setup), value("setup"))
    shape = _parse(path, "input_shape", TypeAdapter(tuple[Size, Size, Size]), value("input_shape"))
    classes = _parse(path, "classes", TypeAdapter(tuple[ClassName, ...] | None), metadata.get("classes", "null"))
    network = value("network")
    try:
        if network not in NETWORK_LAYERS:
            raise SqlibError(f"unknown network {network[:40]!r}")
        if value("input_scale") != str(INPUT_SCALE):
            raise SqlibError(f"input_scale {value('input_scale')[:20]!r}, expected {INPUT_SCALE}")
        _check_layers(network, setup, shape, layers)
        if classes is not None and len(classes) != layers[-1].shape[0]:
            raise SqlibError(f"{len(classes)} class names for {layers[-1].shape[0]} classes")
        if not all(name.isprintable() for name in classes or ()):
            raise SqlibError("a class name that cannot be printed")
        _check_tensors(layers, tensors, setup.per_channel)
    except SqlibError as error:
        raise SqlibError(f"{path}: damaged packed model: {error}") from None
    return Packed(network, setup, shape, layers, tensors, classes)


def is_packed(path: Path) -> bool:
    """Whether a file is a packed model, whole, damaged in its values or of another version."""
    try:
        with safetensors.safe_open(path, "numpy") as file:
            return (file.metadata() or {}).get("format") == FORMAT
    except (OSError, safetensors.SafetensorError):
        return False


def _read_container(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    try:
        if not path.is_file():
            raise SqlibError(f"{path}: no such file" if not path.exists() else f"{path}: not a file")
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise SqlibError(f"{path}: cannot be read: {error.strerror or error}") from None
    if len(content) > LARGEST_FILE:
        raise SqlibError(f"{path}: larger than {LARGEST_FILE // 2**20} MiB, so not a packed model")
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or not 2 <= length <= min(len(content) - 8, LARGEST_HEADER):
        raise SqlibError(f"{path}: not a packed model, or cut short: no whole safetensors header")
    try:
        header = json.loads(content[8 : 8 + length].decode("utf-8"))
        entries = dict(safetensors.deserialize(content))
    except (safetensors.SafetensorError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise SqlibError(f"{path}: not a packed model, or damaged: {reason}") from None
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    if not isinstance(metadata, dict):
        raise SqlibError(f"{path}: not a packed model: its safetensors header has no metadata")
    types = {"U8": np.dtype(np.uint8), "F32": np.dtype("<f4")}
    for name, entry in entries.items():
        if entry["dtype"] not in types:
            raise SqlibError(
                f"{path}: damaged packed model: tensor {name[:40]!r} is of type {entry['dtype']}, not U8 or F32"
            )
    # The tensors' places follow from their names, types and shapes, which the layers state; so a sum of metadata and data
    # covers the whole file, also one written before there was a sum of the table.
    table = _table({name: (entry["dtype"], tuple(entry["shape"])) for name, entry in entries.items()})
    data = content[8 + length :]
    if metadata.get("format") == FORMAT and metadata.get("version") == VERSION:
        try:
            intact = metadata.get("sha256") == _checksum(metadata, data)
            intact &= metadata.get("table_sha256") in (None, _table_checksum(table))
        except UnicodeEncodeError:  # half a surrogate pair, which JSON can spell
            intact = False
        if not intact:
            raise SqlibError(f"{path}: damaged packed model: its content does not match its SHA-256 sum")
        if {name: entry for name, entry in header.items() if name != "__metadata__"} != table:
            raise SqlibError(f"{path}: damaged packed model: its tensors are not in their places")
    tensors = {}
    for name, entry in entries.items():
        tensors[name] = np.frombuffer(bytes(entry["data"]), types[entry["dtype"]]).reshape(entry["shape"])
    return metadata, tensors


def _parse(path: Path, key: str, adapter: TypeAdapter, text: str):
    try:
        return adapter.validate_json(text)
    except (ValidationError, SqlibError) as error:
        detail = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        where = ".".join(str(part) for part in (key, *detail["loc"]))
        raise SqlibError(
            f"{path}: damaged packed model: {where[:80]}: {' '.join(detail['msg'].split())[:200]}"
        ) from None


def _check_layers(network: str, setup: Setup, input_shape: tuple[int, ...], layers: tuple[Layer, ...]) -> None:
    """Names and bits are those of network and setup, and each layer's output fits the next one; SqlibError."""
    channels, height, width = input_shape
    if (height, width) != (IMAGE_SIZE, IMAGE_SIZE) or channels > 16:
        raise SqlibError(f"input_shape {list(input_shape)}, expected [channels, {IMAGE_SIZE}, {IMAGE_SIZE}]")
    names = tuple(layer.name for layer in layers)
    if names != NETWORK_LAYERS[network]:
        raise SqlibError(f"the layers of '{network}' are {', '.join(NETWORK_LAYERS[network])}")
    check_network(setup, network)
    size, features = IMAGE_SIZE, None
    for layer in layers:
        bits, activation_bits = setup.bits(layer.name, names)
        if layer is layers[-1]:
            activation_bits = None
        aligned = bits != FLOAT and (setup.zero_aligned or bits == 8)
        if (layer.weight_bits, layer.activation_bits, layer.zero_aligned) != (bits, activation_bits, aligned):
            raise SqlibError(f"layer '{layer.name}': its bits are not those of setup '{setup.name[:40]}'")
        if layer.kind == "conv":
            if features is not None or len(layer.shape) != 4 or layer.shape[2] != layer.shape[3]:
                raise SqlibError(f"layer '{layer.name}': not a convolution that fits here")
            out, expected, kernel, _ = layer.shape
            side = size + 2 * layer.padding - kernel + 1
            fits = expected == channels and layer.padding < kernel and side >= layer.pool
            operations, elements = layer.count * side * side, max(out * side * side, layer.count // out * side * side)
            channels, size = out, side // layer.pool
        else:
            features = channels * size * size if features is None else features
            fits = len(layer.shape) == 2 and layer.shape[1] == features and layer.pool == 1 and layer.padding == 0
            operations, elements = layer.count, max(layer.shape[:2])
            features = layer.shape[0]
        if not fits:
            raise SqlibError(f"layer '{layer.name}': shape {list(layer.shape)} does not fit what comes before it")
        if operations > LARGEST_LAYER or elements > LARGEST_ACTIVATION:
            raise SqlibError(
                f"layer '{layer.name}': shape {list(layer.shape)} is larger than any network of this study"
            )
    if features is None:
        raise SqlibError("its last layer is not linear")


def _check_tensors(layers: tuple[Layer, ...], tensors: dict[str, np.ndarray], per_channel: bool) -> None:
    """Exactly the tensors the layers need, of the right type, shape and range; SqlibError."""
    expected: dict[str, tuple[str, tuple[int, ...]]] = {}
    for layer in layers:
        if layer.weight_bits == FLOAT:
            expected[f"{layer.name}.weight"] = ("F32", layer.shape)
        else:
            expected[f"{layer.name}.weight"] = ("U8", (packed_size(layer.count, layer.weight_bits),))
            expected[f"{layer.name}.step"] = ("F32", layer.shape[:1] if per_channel else ())
        expected[f"{layer.name}.bias"] = ("F32", layer.shape[:1])
        if layer.activation_bits not in (None, FLOAT):
            expected[f"{layer.name}.clip"] = ("F32", ())
    if expected.keys() != tensors.keys():
        names = ", ".join(sorted(name[:40] for name in expected.keys() ^ tensors.keys())[:4])
        raise SqlibError(f"tensors missing or not asked for: {names}")
    for name, (dtype, shape) in expected.items():
        array = tensors[name]
        found = "U8" if array.dtype == np.uint8 else "F32"
        if (found, array.shape) != (dtype, shape):
            raise SqlibError(f"tensor '{name}' is {found} {list(array.shape)}, expected {dtype} {list(shape)}")
        if dtype == "F32" and not np.isfinite(array).all():
            raise SqlibError(f"tensor '{name}' holds a value that is not finite")
        # The reciprocal of a smaller number would not be finite either.
        if name.endswith((".step", ".clip")) and not (array >= np.finfo(np.float32).tiny).all():
            raise SqlibError(f"tensor '{name}' is {array.min():g}, expected a positive number")
    for layer in layers:
        if layer.weight_bits == FLOAT:
            continue
        stream = tensors[f"{layer.name}.weight"]
        used = layer.count * layer.weight_bits % 8
        if used and stream[-1] >> used:
            raise SqlibError(f"tensor '{layer.name}.weight': the bits behind its last code are not zero")
        if layer.zero_aligned and unpack_bits(stream, layer.weight_bits, layer.count).max() > 2 * layer.top:
            raise SqlibError(f"tensor '{layer.name}.weight' holds a code above {layer.top}")


def load_packed(path: Path) -> "Network":
    """A torch model, in eval mode, of a packed file: same predictions, logits and saliency maps as the model packed.

    Its weights are the quantised ones and stay as they are: it is for looking and measuring, not for training on.
    Raises SqlibError if the file is damaged or its layers are not those of the network it names.
    """
    import torch

    from sqlib.networks.network import build_model

    packed = read_packed(path)
    with torch.random.fork_rng(devices=[]):  # the initial weights are thrown away: leave no trace in the generator
        try:
            model = build_model(packed.network, packed.setup, packed.input_shape[0], packed.layers[-1].shape[0])
        except ValueError as error:
            raise SqlibError(f"{path}: {error}") from None
    if describe(model) != packed.layers:
        raise SqlibError(f"{path}: damaged packed model: its layers are not those of network '{packed.network}'")
    for layer in packed.layers:
        module = model.get_submodule(layer.name)

        def tensor(part: str, name: str = layer.name):
            return torch.from_numpy(packed.tensors[f"{name}.{part}"].astype(np.float32))

        module.bias.data.copy_(tensor("bias"))
        if layer.weight_bits == FLOAT:
            module.weight.data.copy_(tensor("weight"))
        else:
            codes = torch.from_numpy(packed.codes(layer).astype(np.float32))
            step = tensor("step")
            module.fix_codes(codes, step.reshape(-1, *[1] * (codes.dim() - 1)) if step.dim() else step)
        if layer.activation_bits not in (None, FLOAT):
            getattr(model, f"{layer.name}_act").alpha.data.copy_(tensor("clip"))
    return model.eval()
