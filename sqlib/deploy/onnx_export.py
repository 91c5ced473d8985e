"""Trained networks as standard ONNX files, quantised parts as QuantizeLinear / DequantizeLinear around integers.

The graph takes `images` (N,C,28,28) float32 in [0,1] and gives `logits` (N,classes). Weights are stored as unsigned
integers in the smallest type ONNX has for their bits (2: UINT2, 3 and 4: UINT4, more: UINT8), activations pass through
the same types, and dequantising (scale 1, or 2 where the codes are odd) and one addition give back their *codes*; the
real step comes in one multiplication after each sum, as in `sqlib.quant.layers`. Convolutions then add integers, which float32
holds exactly, and an ONNX runtime lands on the same side of every rounding as the trained model does. With the steps in
the dequantisation instead, sums would differ in their last bit, and now and then a whole activation level.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from sqlib.checked import SqlibError
from sqlib.deploy.packed import IMAGE_SIZE, INPUT_SCALE, Layer, describe, pack_bits
from sqlib.files import write_atomically
from sqlib.quant.bits import FLOAT

if TYPE_CHECKING:
    from sqlib.networks.network import Network

OLDEST_OPSET, NEWEST_OPSET = 11, 27
"""Before: Clip does not take its bounds as inputs, Gemm asks for a third. Behind: onnxruntime 1.32 has no quantisers."""

# The opset a type is written in where none is asked for, and its version of the file format: the first whose QuantizeLinear
# and DequantizeLinear know the type, but for 8 bits, which older ones know too.
OPSETS = {2: (25, 13), 4: (21, 10), 8: (21, 10)}


def storage_bits(bits: int, smallest: int = 2) -> int:
    """Bits of the smallest unsigned type for codes of `bits` bits, where types have 2, 4 or 8 but not less than `smallest`."""
    return next(size for size in OPSETS if max(bits, smallest) <= size)


def smallest_type(opset: int | None) -> int:
    """Bits of the smallest unsigned type that an opset has, 2, 4 or 8; SqlibError for an opset nothing can be written in."""
    if opset is not None and not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise SqlibError(
            f"opset {opset}: expected {OLDEST_OPSET} (older ones cannot say what these networks do) to {NEWEST_OPSET} (the"
            " newest that onnxruntime runs); 25 has 2-bit types, 21 has 4-bit types"
        )
    return next(size for size, (first, _) in OPSETS.items() if opset is None or size == 8 or opset >= first)


def exported(path: Path) -> bool:
    """Whether a file is an ONNX model that `export_onnx` has written."""
    import onnx

    try:
        return onnx.load(path, load_external_data=False).producer_name == "sqlib"
    except Exception:  # whatever a parser says of what is no ONNX file
        return False


def export_onnx(model: "Network", path: Path, opset: int | None = None) -> int:
    """Write a trained network as an ONNX file, atomically; the size of the file in bytes.

    opset: the version of ONNX, for runtimes that do not know the newest types: UINT2 came with opset 25, UINT4 with 21.
    None: the first opset with the smallest types of all for this network, but not below 21. Raises SqlibError when the
    package onnx is missing or does not know the opset, the model is not finite, or the file cannot be written.
    """
    try:
        import onnx
    except ImportError:
        raise SqlibError("exporting to ONNX needs the package 'onnx': install it into this environment") from None
    with torch.no_grad():
        graph = _Graph(onnx, model, opset).build()
    content = graph.SerializeToString(deterministic=True)
    write_atomically(Path(path), content)
    return len(content)


class _Graph:
    """Nodes and constants of the graph, layer by layer."""

    def __init__(self, onnx, model: "Network", opset: int | None):
        self.onnx, self.model, self.opset, self.smallest = onnx, model, opset, smallest_type(opset)
        self.nodes, self.constants, self.used = [], {}, {8}

    def build(self):
        helper, types = self.onnx.helper, self.onnx.TensorProto
        layers = describe(self.model)
        channels, classes = layers[0].shape[1], layers[-1].shape[0]
        # `value` is the real activation, `codes` the same as integers in float32 (None: it has none),
        # `scale` codes per unit.
        value, codes, scale = "images", None, None
        if layers[0].weight_bits != FLOAT:
            scale = torch.tensor(float(INPUT_SCALE))
            pixels = self.node("Mul", [value, self.constant("pixel_scale", scale)], "pixels")
            codes = self.coded(pixels, 8, "pixels")
        for layer in layers:
            if layer.kind == "linear" and layer is next(item for item in layers if item.kind == "linear"):
                value = value and self.node("Flatten", [value], f"{layer.name}_flat", axis=1)
                codes = codes and self.node("Flatten", [codes], f"{layer.name}_flat_codes", axis=1)
            value = self.layer(layer, value, codes, scale)
            codes = scale = None
            if layer.activation_bits is not None:
                value, codes, scale = self.activation(layer, value)
        self.nodes[-1].output[0] = "logits"
        graph = helper.make_graph(
            self.nodes,
            f"{self.model.name}_{self.model.setup.name}",
            [helper.make_tensor_value_info("images", types.FLOAT, ["N", channels, IMAGE_SIZE, IMAGE_SIZE])],
            [helper.make_tensor_value_info("logits", types.FLOAT, ["N", classes])],
            list(self.constants.values()),
        )
        opset, ir_version = OPSETS[min(self.used)]
        if self.opset is not None:
            opset = self.opset
            ir_version = helper.find_min_ir_version_for([helper.make_opsetid("", opset)])
        proto = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", opset)],
            ir_version=ir_version,
            producer_name="sqlib",
            doc_string=f"{self.model.name}, {self.model.setup.title}. images: float32 in [0,1], rounded to 255ths.",
        )
        self.onnx.checker.check_model(proto, full_check=True)
        return proto

    def layer(self, layer: Layer, value: str | None, codes: str | None, scale: torch.Tensor | None) -> str:
        """Sum, pool, rescale, bias: what `QuantConv2d` and `QuantLinear` do, in their order."""
        name, module = layer.name, self.model.get_submodule(layer.name)
        if layer.weight_bits == FLOAT:
            weight, step, x = self.constant(f"{name}.weight", module.weight), None, value
        else:
            weight_codes, step, _ = module.codes()
            weight, x = self.weight(layer, weight_codes), codes or value
            step = step if codes is None else step / (INPUT_SCALE if value == "images" else scale)
        if layer.kind == "conv":
            sums = self.node("Conv", [x, weight], f"{name}_sums", pads=[layer.padding] * 4)
            if layer.pool > 1:
                sizes = [layer.pool] * 2
                sums = self.node("MaxPool", [sums], f"{name}_pooled", kernel_shape=sizes, strides=sizes)
            bias = module.bias.view(-1, 1, 1)
        else:
            sums = self.node("Gemm", [x, weight], f"{name}_sums", transB=1)
            bias = module.bias
        if step is not None:
            if step.dim():  # one a channel
                step = step.reshape(-1, 1, 1) if layer.kind == "conv" else step.flatten()
            sums = self.node("Mul", [sums, self.constant(f"{name}.step", step)], f"{name}_rescaled")
        return self.node("Add", [sums, self.constant(f"{name}.bias", bias)], name)

    def weight(self, layer: Layer, codes: torch.Tensor) -> str:
        """The weight codes, from the integers k >= 0 of the packed format: k - top if zero-aligned, else 2 k - top."""
        name, size = layer.name, storage_bits(layer.weight_bits, self.smallest)
        codes = codes.cpu().numpy().astype(np.int64)
        index = codes + layer.top if layer.zero_aligned else (codes + layer.top) // 2
        stored = self.integers(f"{name}.weight", size, layer.shape, index)
        spacing = self.constant(f"{name}.weight_spacing", torch.tensor(1.0 if layer.zero_aligned else 2.0))
        zero = self.integers(f"zero_uint{size}", size, (), np.array(0))
        shifted = self.node("DequantizeLinear", [stored, spacing, zero], f"{name}_weight_shifted")
        # Odd codes have no integer zero point; and an Add here keeps runtimes from fusing into kernels
        # without 2-bit types.
        lowest = self.constant(f"{name}.weight_lowest", torch.tensor(-float(layer.top)))
        return self.node("Add", [shifted, lowest], f"{name}_weight_codes")

    def activation(self, layer: Layer, value: str) -> tuple[str, str | None, torch.Tensor | None]:
        """ReLU, or PACT as in `sqlib.quant.activations.pact`: `(real values, codes, codes per unit)`."""
        name = f"{layer.name}_act"
        if layer.activation_bits == FLOAT:
            return self.node("Relu", [value], name), None, None
        module = getattr(self.model, name)
        clip = module.alpha.detach()
        bounds = [self.constant("zero", torch.tensor(0.0)), self.constant(f"{name}.clip", clip)]
        clipped = self.node("Clip", [value, *bounds], f"{name}_clipped")
        top = self.constant(f"{name}.top", torch.tensor(2.0**module.bits - 1))
        scaled = self.node("Mul", [clipped, top], f"{name}_scaled")
        scaled = self.node("Div", [scaled, self.constant(f"{name}.clip", clip)], f"{name}_levels")
        codes = self.coded(scaled, layer.activation_bits, name)
        following = self.model.layer_names[self.model.layer_names.index(layer.name) + 1]
        if self.model.get_submodule(following).bits != FLOAT:
            return "", codes, module.code_scale
        step = self.constant(f"{name}.step", clip / (2**module.bits - 1))
        return self.node("Mul", [codes, step], name), codes, module.code_scale

    def coded(self, scaled: str, bits: int, name: str) -> str:
        """Rounded half to even into an integer type and back."""
        size = storage_bits(bits, self.smallest)
        one = self.constant("one", torch.tensor(1.0))
        zero = self.integers(f"zero_uint{size}", size, (), np.array(0))
        stored = self.node("QuantizeLinear", [scaled, one, zero], f"{name}_uint{size}")
        return self.node("DequantizeLinear", [stored, one, zero], f"{name}_codes")

    def node(self, kind: str, inputs: list[str], output: str, **attributes) -> str:
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name: str, tensor: torch.Tensor) -> str:
        array = tensor.detach().cpu().numpy().astype(np.float32)
        if not np.isfinite(array).all():
            raise SqlibError(
                f"'{name}' holds a value that is not finite: there is nothing to export; train the run again"
            )
        self.constants[name] = self.onnx.numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
        return name

    def integers(self, name: str, size: int, shape: tuple[int, ...], values: np.ndarray) -> str:
        kind = getattr(self.onnx.TensorProto, f"UINT{size}")
        raw = pack_bits(values, size).tobytes()
        self.constants[name] = self.onnx.helper.make_tensor(name, kind, shape, raw, raw=True)
        self.used.add(size)
        return name
