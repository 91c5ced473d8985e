"""A packed model computed in integers, with numpy alone: what a device would do."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from sqlib.checked import SqlibError
from sqlib.deploy.packed import BATCH, INPUT_SCALE, Layer, Packed, read_packed
from sqlib.quant.bits import FLOAT


# ---------------------------------------------------------------------------------------------------------- running
class IntegerModel:
    """A packed network in integer arithmetic, in numpy alone: every sum of every layer is an int32.

    Between the layers, float32 does what the trained model does, in the same order: sum x step, + bias, clip, x levels,
    / clip, round half to even. So its codes, logits and predictions equal the trained model's.
    """

    def __init__(self, packed: Packed):
        """Raises SqlibError for a network with a float layer, and where a sum might not fit 32 bits."""
        self.network, self.setup, self.input_shape = packed.network, packed.setup, packed.input_shape
        self.layers, self.classes = packed.layers, packed.classes
        self._weights, self._steps, self._biases, self._clips = {}, {}, {}, {}
        input_scale, largest = np.float32(INPUT_SCALE), INPUT_SCALE
        for layer in self.layers:
            name = layer.name
            if FLOAT in (layer.weight_bits, layer.activation_bits):
                what = "float weights" if layer.weight_bits == FLOAT else "float activation"
                raise SqlibError(
                    f"layer '{name}' of setup '{self.setup.name}' is not quantised ({what}): the integer runtime"
                    " needs integers everywhere; sqlib.deploy.packed.load_packed reads such a file"
                )
            codes = packed.codes(layer)
            self._weights[name] = codes.reshape(layer.shape[0], -1)
            worst = int(np.abs(self._weights[name]).sum(axis=1, dtype=np.int64).max()) * largest
            if worst >= 2**31:
                raise SqlibError(f"layer '{name}': sums up to {worst} do not fit 32-bit integers")
            self._steps[name] = np.divide(packed.tensors[f"{name}.step"], input_scale, dtype=np.float32)
            self._biases[name] = packed.tensors[f"{name}.bias"]
            if layer.activation_bits is not None:
                largest = 2**layer.activation_bits - 1
                clip = packed.tensors[f"{name}.clip"]
                # n / clip the way torch divides a number by a tensor: reciprocal first, then the product.
                with np.errstate(over="ignore"):
                    input_scale = np.float32(np.float32(1) / clip) * np.float32(largest)
                if not np.isfinite(input_scale):
                    raise SqlibError(f"layer '{name}': its clip {clip.item():g} is too small")
                self._clips[name] = clip

    @classmethod
    def load(cls, path: Path) -> "IntegerModel":
        """The model in a packed file; SqlibError if the file is damaged or has a float layer."""
        packed = read_packed(path)
        try:
            return cls(packed)
        except SqlibError as error:
            raise SqlibError(f"{path}: {error}") from None

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Logits (N,classes) float32 of uint8 images (N,28,28) or (N,C,28,28); SqlibError for anything else."""
        return self._run(images, None)

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Classes (N,) int64 of uint8 images, see `logits`."""
        return self.logits(images).argmax(axis=1)

    def codes(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Activation codes behind each hidden layer, by its name: uint8 (N,C,H,W) or (N,features)."""
        parts: dict[str, list[np.ndarray]] = {layer.name: [] for layer in self.layers[:-1]}
        self._run(images, parts)
        return {name: np.concatenate(part) for name, part in parts.items() if part}

    def _run(self, images: np.ndarray, keep: dict[str, list[np.ndarray]] | None) -> np.ndarray:
        images = self._checked(images)
        logits = np.empty((len(images), self.layers[-1].shape[0]), np.float32)
        for start in range(0, len(images), BATCH):
            # The images are the last axis throughout: the innermost loop is then long and contiguous.
            x = np.ascontiguousarray(images[start : start + BATCH].transpose(1, 2, 3, 0)).astype(np.int32)
            for layer in self.layers[:-1]:
                x = self._activate(self._sums(x, layer), layer)
                if keep is not None:
                    keep[layer.name].append(np.moveaxis(x, -1, 0).astype(np.uint8))
            logits[start : start + BATCH] = self._rescale(self._sums(x, self.layers[-1]), self.layers[-1]).T
        return logits

    def _checked(self, images: np.ndarray) -> np.ndarray:
        images = np.asarray(images)
        if images.ndim == 3:
            images = images[:, None]
        if images.dtype != np.uint8 or images.shape[1:] != self.input_shape:
            wanted = "x".join(map(str, self.input_shape[1:]))
            raise SqlibError(
                f"images of type {images.dtype} and shape {images.shape}: expected uint8 pixels, {wanted} each,"
                f" {self.input_shape[0]} channel(s)"
            )
        return images

    def _sums(self, x: np.ndarray, layer: Layer) -> np.ndarray:
        """int32 sums of a layer: x (C,H,W,N) -> (O,H',W',N), pooled; or (anything,N) -> (O,N)."""
        weight = self._weights[layer.name]
        n = x.shape[-1]
        if layer.kind == "linear":
            return np.einsum("ok,kn->on", weight, x.reshape(-1, n))
        if layer.padding:
            p = layer.padding
            x = np.pad(x, ((0, 0), (p, p), (p, p), (0, 0)))
        kernel = layer.shape[2]
        windows = sliding_window_view(x, (kernel, kernel), axis=(1, 2))  # (C,H',W',N,k,k)
        height, width = windows.shape[1:3]
        columns = windows.transpose(0, 4, 5, 1, 2, 3).reshape(weight.shape[1], -1)
        sums = np.einsum("ok,km->om", weight, columns).reshape(-1, height, width, n)
        p = layer.pool
        if p > 1:
            sums = sums[:, : height // p * p, : width // p * p]
            sums = sums.reshape(len(sums), height // p, p, width // p, p, n).max(axis=(2, 4))
        return sums

    def _rescale(self, sums: np.ndarray, layer: Layer) -> np.ndarray:
        """float32: sums x step + bias."""
        bias = self._biases[layer.name].reshape(-1, *[1] * (sums.ndim - 1))
        with np.errstate(over="ignore"):
            y = sums.astype(np.float32)
            y *= self._steps[layer.name].reshape(-1, *[1] * (sums.ndim - 1))
            y += bias
        return y

    def _activate(self, sums: np.ndarray, layer: Layer) -> np.ndarray:
        """int32 codes 0 to 2^bits - 1 behind a layer: PACT of the rescaled sums."""
        return activation_codes(self._rescale(sums, layer), self._clips[layer.name], layer.activation_bits)


def activation_codes(y: np.ndarray, clip: np.ndarray, bits: int) -> np.ndarray:
    """int32 codes 0 to 2^bits - 1 of float32 values (overwritten), any shape: those of PACT with this clip."""
    np.clip(y, 0, clip, out=y)
    # Multiplied, then divided, as PACT does: one factor n / clip would now and then round to another level.
    y *= np.float32(2**bits - 1)
    y /= clip
    return np.rint(y, out=y).astype(np.int32)


def answer(number: int, probability: float, classes: Sequence[str] | None) -> str:
    """A prediction in words: 'class 9, Ankle boot (99.8%)'; the number alone if the classes have no names but numbers."""
    name = str(number) if classes is None else classes[number]
    return f"class {number}{'' if name == str(number) else f', {name}'} ({probability:.1%})"
