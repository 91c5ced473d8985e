"""What a run leaves behind: its folder of files, where they came from, and the stamps that say what it depends on.

A run folder holds `result.json`, `model.safetensors` and `per_image.safetensors`. Each file appears whole or not at
all, and `result.json` is written last, so a folder with a valid `result.json` is a finished run.
"""

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from sqlib.checked import Recorded, SqlibError, check_recorded, digest
from sqlib.data.datasets import DATASET_NAMES, dataset_title
from sqlib.files import read_json, reading, to_json, write_atomically
from sqlib.measures import MEASURES
from sqlib.places import reports_root
from sqlib.study.origin import PACKAGES, data_sums, notebook_sum, provenance
from sqlib.study.parameters import Run, Study
from sqlib.study.sources import TRAIN, sources_of

if TYPE_CHECKING:
    import numpy
    import pandas
    import torch


FORMAT = 1
PACKED = "packed.safetensors"
"""The model with its weights at their real bits, beside `model.safetensors`; see docs/packed-format.md."""
FIRST_COLUMNS = (
    "dataset", "network", "setup", "training", "seed", *(row.name for row in MEASURES.values() if row.every_run),
)  # fmt: skip


# ---- a finished run ------------------------------------------------------------------------------------------------
@dataclass
class Measurements:
    """What was measured of a trained network on the test images.

    metrics: numbers by name (accuracies and rates as fractions). curves: lists of equal length. per_image: (N,) tensors.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    curves: dict[str, list[float]] = field(default_factory=dict)
    per_image: dict[str, "torch.Tensor"] = field(default_factory=dict)


def save_run(
    folder: Path,
    run: Run,
    model: "torch.nn.Module",
    history: list[dict],
    measured: Measurements,
    started: float,
) -> None:
    """Write `model.safetensors`, `per_image.safetensors`, `result.json` and `packed.safetensors`, each atomically.

    history: an entry an epoch. started: `time.time()` when the run began. SqlibError if not writable,
    and, before anything is written, for a training that was interrupted (fewer epochs in its history than the run has).
    """
    if len(history) < run.epochs:
        raise SqlibError(
            f"{run.id}: interrupted after epoch {len(history)} of {run.epochs}: nothing is saved; train it to its end"
        )
    from safetensors.torch import save

    from sqlib.deploy.packed import pack
    from sqlib.hardware import device_name
    from sqlib.training.loop import precision

    folder, device = Path(folder), next(model.parameters()).device
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    weights = save(state)
    write_atomically(folder / "model.safetensors", weights)
    images = save({name: tensor.detach().cpu().contiguous() for name, tensor in measured.per_image.items()})
    write_atomically(folder / "per_image.safetensors", images)
    stamp = folder / "parameters.json"
    sources = read_json(stamp).get("sources") if stamp.exists() else sources_of(TRAIN)
    result = {
        "format": FORMAT,
        "id": run.id,
        "run": run.model_dump(mode="json"),
        "digest": digest(run),
        "sources": sources,
        "files": {
            "model.safetensors": hashlib.sha256(weights).hexdigest(),
            "per_image.safetensors": hashlib.sha256(images).hexdigest(),
        },
        "metrics": measured.metrics,
        "curves": measured.curves,
        "history": history,
        "provenance": {
            **provenance(started),
            "data": data_sums(run.dataset),
            "notebook": notebook_sum("2_train.ipynb"),
            "seed": run.seed,
            "device": device_name(device),
            "precision": str(precision(run, device)).removeprefix("torch."),
        },
    }
    write_atomically(folder / "result.json", to_json(result))
    pack(model, folder / PACKED, class_names(run))


class _Git(Recorded):
    revision: str
    dirty: bool | None = None


class _Origin(Recorded):
    """Where a result comes from."""

    git: _Git | None = None
    packages: dict | None = None
    data: dict | None = None
    cpu: str | None = None
    cpu_version: str | None = None
    platform: str | None = None
    python: str | None = None
    started: str | None = None
    ended: str | None = None
    seconds: float | None = None


class _RunOrigin(_Origin):
    precision: str | None = None
    device: str | None = None


class _JobOrigin(_Origin):
    """The same of what is no run."""

    data: dict[Literal[DATASET_NAMES], dict] | None = None
    precision: list | None = None
    digest: str | None = None
    seeds: list | None = None
    notebook: dict | None = None


class _Result(Recorded):
    """`result.json`. files: hashed by `fault`, so that nothing but a run's own may be named."""

    id: str
    run: dict
    digest: str
    metrics: dict[str, Annotated[float, Field(gt=-1e300, lt=1e300)] | None]
    curves: dict
    history: list
    provenance: _RunOrigin
    files: dict[Literal["model.safetensors", "per_image.safetensors"], str] = {}


class _WithRun(Recorded):
    run: Run


def finished(folder: Path) -> bool:
    """Whether a run folder has its `result.json`, which is written last."""
    return (Path(folder) / "result.json").is_file()


def saved_model(folder: Path) -> Path | None:
    """The file of a run folder that `load_model` reads, None if there is none: results are published with some models."""
    files = (Path(folder) / name for name in ("model.safetensors", PACKED))
    return next((path for path in files if path.is_file()), None)


def read_result(folder: Path) -> dict[str, Any]:
    """The content of a run folder's `result.json`; SqlibError if it is missing or malformed."""
    path = Path(folder) / "result.json"
    result = read_json(path)
    if result.get("format") != FORMAT:
        raise SqlibError(f"{path}: format is {result.get('format')!r}, this version reads {FORMAT}: make the run again")
    check_recorded(_Result, result, path)
    metrics = result["metrics"]
    if None not in (metrics.get("random_auc"), metrics.get("deletion_auc")):  # all that older versions wrote
        metrics.setdefault("faithfulness_gap", metrics["random_auc"] - metrics["deletion_auc"])
    return result


def run_of(folder: Path) -> Run:
    """The parameters of the finished run in `folder`; SqlibError if there is none or its parameters are not valid."""
    result = read_result(folder)
    check_recorded(_WithRun, result, Path(folder) / "result.json")
    run = Run.model_validate(result["run"])
    if digest(run) != result["digest"]:
        raise SqlibError(f"{folder}/result.json: altered: its parameters do not have the digest it states")
    return run


def load_model(folder: Path) -> "torch.nn.Module":
    """The trained model of a run folder, in eval mode; SqlibError if anything is missing, damaged or does not fit.

    Where only the packed model is there, as in reports/reference, that: its answers and maps are the same.
    """
    from sqlib.deploy.packed import load_packed
    from sqlib.networks.network import build_model

    run, saved = run_of(folder), saved_model(folder)
    if saved is not None and saved.name == PACKED:
        return load_packed(saved)
    model = build_model(run.network, run.setup).float()  # whatever number torch takes when nobody says one
    try:
        model.load_state_dict(_tensors_of_run(Path(folder), "model.safetensors"), strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise SqlibError(f"{folder}/model.safetensors does not fit network '{run.network}': {reason}") from None
    return model.eval()


def pack_run(folder: Path, again: bool = False) -> Path:
    """Write a finished run's `packed.safetensors`; returns its path.

    Nothing is done when the one there is whole and newer than the result, unless it is to be made `again`.
    """
    from sqlib.deploy.packed import pack

    folder = Path(folder)
    packed = folder / PACKED
    if not (folder / "model.safetensors").exists():
        return packed  # a published run: there is nothing to pack
    if again or not is_packed(folder):
        pack(load_model(folder), packed, class_names(run_of(folder)))
    return packed


def class_names(run: Run) -> tuple[str, ...]:
    """The names of the classes that a run tells apart: those of its data set."""
    from sqlib.data.datasets import source_of

    return source_of(run.dataset).classes


def is_packed(folder: Path) -> bool:
    """Whether a run's `packed.safetensors` is there, whole, and not older than its result. Takes a millisecond or two."""
    from sqlib.deploy.packed import read_packed

    packed, result = Path(folder) / PACKED, Path(folder) / "result.json"
    with contextlib.suppress(SqlibError, OSError):
        read_packed(packed)
        return packed.stat().st_mtime >= result.stat().st_mtime
    return False


def load_per_image(folder: Path) -> dict[str, "torch.Tensor"]:
    """The (N,) tensors of `per_image.safetensors`, one entry a test image; SqlibError if missing or damaged."""
    return _tensors_of_run(Path(folder), "per_image.safetensors")


def load_quality(folder: Path) -> "dict[str, numpy.ndarray]":
    """The (N,) float32 values of `quality.safetensors` (`sqlib.study.jobs.quality`); SqlibError if missing or damaged."""
    from safetensors.numpy import load

    path, summary = Path(folder) / "quality.safetensors", Path(folder) / "quality.json"
    stated = (read_json(summary).get("files") if summary.exists() else None) or {}
    check_recorded(dict[str, str], stated, summary)
    tensors = _read_tensors(path, load, stated.get(path.name), summary.name)
    for name, values in tensors.items():
        if values.ndim != 1 or values.dtype != "float32":
            raise SqlibError(f"{path}: damaged: {name[:80]!r} is {values.dtype} {values.shape}, not float32 (images,)")
    return tensors


def _tensors_of_run(folder: Path, name: str) -> dict[str, "torch.Tensor"]:
    from safetensors.torch import load

    return _read_tensors(folder / name, load, read_result(folder).get("files", {}).get(name), "result.json")


def _read_tensors(path: Path, load: Callable[[bytes], dict], stated: str | None, by: str) -> dict[str, Any]:
    """What `load` makes of a safetensors file; SqlibError if it is not there, damaged, or has not the sum that is stated."""
    from safetensors import SafetensorError

    try:
        content = path.read_bytes()
        if stated and hashlib.sha256(content).hexdigest() != stated:
            raise SqlibError(f"{path}: damaged: its SHA-256 is not the one in {by}; make it again")
        return load(content)
    except OSError as error:
        raise SqlibError(f"{path}: cannot be read: {error.strerror}") from None
    except (SafetensorError, ValueError, LookupError, TypeError) as error:
        raise SqlibError(f"{path}: damaged: {' '.join(str(error).split())[:200]}") from None


def fault(folder: Path) -> str | None:
    """Why a run has to be made (again), in a few words, or None: its result is whole and belongs to its parameters.

    Reads and hashes the run's files, but builds no model: takes milliseconds, without importing torch.
    """
    folder = Path(folder)
    if not finished(folder):
        return "not made yet"
    try:
        stamp, result = read_json(folder / "parameters.json"), read_result(folder)
        run_of(folder)
    except SqlibError as error:
        return str(error)
    if result["digest"] != stamp.get("digest"):
        return "its parameters were changed"
    if result.get("sources") != stamp.get("sources"):
        return "the code or the notebook that makes it was changed"
    for name, stated in result.get("files", {}).items():
        try:
            found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        if found != stated:
            return f"{name} is damaged (its SHA-256 is not the one in result.json)"
    return None


def any_reports_folder(root: Path | None = None) -> Path:
    """The first of reports/paper, reports/reference, reports/smoke that has a finished run; SqlibError when none has.

    What a notebook opened by hand looks at when it is told nothing else.
    """
    root = reports_root() if root is None else Path(root)
    for name in ("paper", "reference", "smoke"):
        if next((root / name / "runs").glob("*/*/*/*/seed*/result.json"), None):
            return root / name
    raise SqlibError(f"no finished run under {root}: run `make smoke` (minutes) or `make reproduce` first")


def any_run_folder(setup: str | None = None, root: Path | None = None) -> Path:
    """The first finished run of `any_reports_folder` whose model is there, of this setup if there is one."""
    runs = any_reports_folder(root) / "runs"
    folders = sorted(path.parent for path in runs.glob("*/*/*/*/seed*/result.json") if saved_model(path.parent))
    if not folders:
        raise SqlibError(f"no trained model under {runs}: run `make smoke` (minutes) or `make reproduce` first")
    return next((folder for folder in folders if folder.parts[-3] == setup), folders[0])


def describe_run(run: Run) -> "pandas.DataFrame":
    """A run's parameters in words, one row each: for the first table of its notebooks."""
    import pandas

    p, clip, guidance = run.parameters, run.parameters.clip, run.parameters.guidance
    rows = {
        "data set": dataset_title(run.dataset),
        "network": run.network,
        "setup": f"{run.setup.name}: {run.setup.title}",
        "training": run.training.replace("_", "-"),
        "seed": run.seed,
        "training images": f"{p.images:,}, {run.epochs} epoch{'s' * (run.epochs > 1)} in batches of {p.batch_size}",
        **(
            {"shift": f"each image up to {p.shift} pixel{'s' * (p.shift > 1)} in both directions, anew each time"}
            if p.shift
            else {}
        ),
        "optimiser": f"Adam, learning rate {p.learning_rate:g} at its peak, beta2 {p.beta2:g}, weight decay {p.weight_decay:g}",
    }
    if not run.setup.is_float:
        rows["weights"] = f"{run.setup.weight_method}{', zero-aligned' * run.setup.zero_aligned}"
        rows["weights"] += ", a clip for each channel" if run.setup.per_channel else ", a clip for each layer"
        rows["PACT clip"] = f"starts at {clip.start:g}, penalty {clip.penalty:g}, learning rate {clip.learning_rate:g}"
    if run.training == "saliency_guided":
        rows["guidance"] = (
            f"least salient {guidance.fraction:.0%} of the pixels ({guidance.rank} gradient of the {guidance.score}) "
            f"replaced ({guidance.fill}), KL weight {guidance.kl_weight:g}"
            f"{', clean branch detached' * guidance.detach_clean}"
        )
    return pandas.DataFrame({"value": {what: str(value) for what, value in rows.items()}}).rename_axis("parameter")


def collect(study: Study | None, reports_folder: Path) -> "pandas.DataFrame":
    """One row for every finished run, in the order of the study; `FIRST_COLUMNS` first, then its other metrics.

    study: None takes every run under `<reports_folder>/runs`. Runs not made yet are left out. Rates are fractions 0..1,
    absent values NaN. SqlibError if a result is malformed.
    """
    import pandas

    runs = Path(reports_folder) / "runs"
    if study is None:
        folders = sorted(path.parent for path in runs.glob("*/*/*/*/seed*/result.json"))
    else:
        folders = [run.folder(reports_folder) for run in study.runs()]
    rows, rounded = [], _post_training(Path(reports_folder) / "results")
    for folder in folders:
        if not finished(folder):
            continue
        result, run = read_result(folder), run_of(folder)
        keys = {"dataset": run.dataset, "network": run.network, "setup": run.setup.name, "training": run.training}
        packed = folder / PACKED
        size = {"packed_bytes": packed.stat().st_size} if packed.exists() else {}
        afterwards = rounded.get((*keys.values(), run.seed), {})
        rows.append({**keys, "seed": run.seed, **result["metrics"], **size, **afterwards})
    table = pandas.DataFrame(rows)
    others = [column for column in table.columns if column not in FIRST_COLUMNS]
    table = table.reindex(columns=[*FIRST_COLUMNS, *others])
    numbers = [column for column in table.columns if column not in FIRST_COLUMNS[:4]]
    table[numbers] = table[numbers].apply(pandas.to_numeric)
    return table


def _post_training(results: Path) -> dict[tuple, dict[str, float]]:
    """What post-training quantisation of the float runs gave, by (dataset, network, setup, training, seed) it stands beside."""
    found = {}
    for path in results.glob("post_training_*.json"):
        with reading(path):
            for run_id, setups in read_json(path).items():
                dataset, network, _, training, seed = run_id.split("/")
                for setup, measured in setups.items():
                    values = {key: measured[key] for key in ("accuracy", "dead_map_rate", "gini")}
                    values = {f"post_training_{key}": None if v is None else float(v) for key, v in values.items()}
                    found[dataset, network, setup, training, int(seed.removeprefix("seed"))] = values
    return found


def compared_with(study: Study, run: Run) -> list[Run]:
    """The float runs that a run's maps are compared with: the one of its seed; for a float run, those of later seeds."""
    setup = next((setup for setup in study.setups if setup.is_float), None)
    if setup is None:
        return []
    seeds = study.seeds[study.seeds.index(run.seed) + 1 :] if run.setup.is_float else [run.seed]
    return [study.make_run(run.dataset, run.network, setup.name, run.training, seed) for seed in seeds]


def compare_page(study: Study, dataset: str, network: str) -> str:
    """Name of the comparison page of a data set; that of the study's first network goes without the network's name."""
    return f"compare_{dataset}" if network == study.networks[0] else f"compare_{dataset}_{network}"


# ---- where results come from -----------------------------------------------------------------------------------------


def write_origin(
    study: Study,
    reports: Path,
    name: str,
    started: float,
    made: Sequence[Path],
    of: Sequence[Run],
    notebook: str | None = None,
) -> None:
    """Write `provenance/<name>.json`, for what is no run: where the files of a job come from, each with its SHA-256.

    Beside `provenance`: the study's parameters and their digest; seeds, data and precision of the runs that it is made `of`;
    and the notebook (a name in `notebooks/`) with its SHA-256. started: `time.time()` when the job began.
    """
    reports = Path(reports)
    folders = [folder for run in of if finished(folder := run.folder(reports))]
    precisions = {read_result(folder)["provenance"].get("precision") for folder in folders}
    origin = {
        **provenance(started),
        "study": study.name,
        "parameters": study.model_dump(mode="json"),
        "digest": digest(study),
        "notebook": notebook and {"name": notebook, "sha256": notebook_sum(notebook)},
        "data": {dataset: data_sums(dataset) for dataset in dict.fromkeys(run.dataset for run in of)},
        "precision": sorted(precisions - {None}),
        "seeds": sorted({run.seed for run in of}),
        "threads": study.threads,
        "made": {path.relative_to(reports).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in made},
    }
    write_atomically(origin_path(reports, name), to_json(origin))


def origin_path(reports: Path, name: str) -> Path:
    """Where `write_origin` writes; name: such as `tables` or `runs/mnist/lenet/fp32/standard/seed0/saliency`."""
    return Path(reports) / "provenance" / f"{name}.json"


def read_origin(path: Path) -> dict[str, Any]:
    """What `write_origin` wrote; SqlibError if it is not there or damaged."""
    origin = read_json(path)
    lacking = (_JobOrigin.model_fields.keys() - origin.keys()) | (set(PACKAGES) - (origin.get("packages") or {}).keys())
    if lacking:
        raise SqlibError(f"{path}: damaged: {', '.join(sorted(lacking))} is missing")
    check_recorded(_JobOrigin, origin, path)
    return origin
