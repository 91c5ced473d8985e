"""Does what is deployed answer as what was trained? The packed integer model and the ONNX file against torch, image by image."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sqlib import files
from sqlib.checked import SqlibError
from sqlib.data.loading import load
from sqlib.deploy.integer import IntegerModel
from sqlib.deploy.onnx_export import export_onnx
from sqlib.files import write_atomically
from sqlib.networks.architectures import NETWORK_LAYERS
from sqlib.networks.passes import predict
from sqlib.study import results
from sqlib.study.parameters import Run, Study
from sqlib.training.examples import to_float


def compare_logits(trained: np.ndarray, deployed: np.ndarray) -> dict[str, Any]:
    """Two arrays of logits (N,classes): on how many images the predictions agree, and how far apart the logits are.

    `largest_relative`: the largest difference of two logits over the largest absolute logit of that image.
    """
    scale = np.abs(trained).max(axis=1, keepdims=True)
    apart = np.abs(deployed.astype(np.float64) - trained) / np.maximum(scale, np.finfo(np.float32).tiny)
    return {
        "images": len(trained),
        "same_predictions": int((trained.argmax(axis=1) == deployed.argmax(axis=1)).sum()),
        "largest_relative": float(apart.max()),
        "equal_bit_for_bit": bool(np.array_equal(trained, deployed)),
    }


def onnx_logits(path: Path, images: np.ndarray, batch: int = 500) -> np.ndarray:
    """Logits (N,classes) of an ONNX file for float images (N,C,28,28), by onnxruntime on one thread; SqlibError if absent."""
    try:
        import onnxruntime
    except ImportError:
        raise SqlibError(
            "running ONNX files needs the package 'onnxruntime': install it into this environment"
        ) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    parts = [images[start : start + batch] for start in range(0, len(images), batch)]
    return np.concatenate([session.run(None, {"images": part})[0] for part in parts])


def compare_forms(run: Run, folder: Path, test_images: Tensor) -> dict[str, Any]:
    """A finished quantised run against its packed and ONNX forms on its test images (the first of these).

    `packed` and `onnx`: what `compare_logits` finds, each with `bytes`, the size of its file. SqlibError when the run is not
    there or has a float layer.
    """
    torch.set_num_threads(run.threads)
    model, pixels = results.load_model(folder), test_images[: run.evaluation.images]
    images = to_float(pixels)
    trained = predict(model, images).numpy()
    packed = results.pack_run(folder, again=True)
    with tempfile.TemporaryDirectory() as place:
        onnx = Path(place) / "model.onnx"
        size = export_onnx(model, onnx)
        return {
            "packed": {
                "bytes": packed.stat().st_size,
                **compare_logits(trained, IntegerModel.load(packed).logits(pixels.numpy())),
            },
            "onnx": {"bytes": size, **compare_logits(trained, onnx_logits(onnx, images.numpy()))},
        }


def check_deployment(study: Study, dataset: str, reports: Path) -> dict[str, dict[str, Any]]:
    """`compare_forms` of every run of the first seed that runs in integers, by its id; writes `results/deployed_<data set>.json`.

    SqlibError when a run is not there, and, after everything was written, when a packed model gives another prediction
    than the trained one: that must not happen.
    """
    chosen = [run for run in study.runs() if run.dataset == dataset and run.seed == study.seeds[0]]
    chosen = [run for run in chosen if run.setup.all_quantised(NETWORK_LAYERS[run.network])]
    images = load(dataset).test_images
    found = {run.id: compare_forms(run, run.folder(reports), images) for run in chosen}
    write_atomically(reports / "results" / f"deployed_{dataset}.json", files.to_json(found))
    wrong = [name for name, forms in found.items() if forms["packed"]["same_predictions"] < forms["packed"]["images"]]
    if wrong:
        raise SqlibError(f"the packed model answers otherwise than the trained one: {', '.join(wrong)}")
    return found
