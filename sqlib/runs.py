"""What a run leaves behind: its folder of files, where they came from, and the stamps that say what it depends on.

A run folder holds `result.json`, `model.safetensors` and `per_image.safetensors`. Each file appears whole or not at
all, and `result.json` is written last, so a folder with a valid `result.json` is a finished run.
"""

import ast
import contextlib
import functools
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from sqlib import resources
from sqlib.config import DATASET_NAMES, REPORTS, REPOSITORY, Run, SqlibError, Study, dataset_title, digest, place
from sqlib.files import reading, write_atomically

if TYPE_CHECKING:  # torch and pandas take a second or more to import; only the functions that need them pay for it
    import pandas
    import torch

FORMAT = 1
PACKED = "packed.safetensors"
"""The model with its weights at their real bits, beside `model.safetensors`; see docs/packed-format.md."""
FIRST_COLUMNS = (
    "dataset", "network", "setup", "training", "seed", "val_accuracy", "test_accuracy", "dead_map_rate", "gini",
    "entropy", "deletion_auc", "random_auc", "train_seconds", "weight_bytes",
)  # fmt: skip
PACKAGES = (
    "torch", "torchvision", "captum", "numpy", "scipy", "scikit-image", "pandas", "matplotlib", "safetensors",
    "papermill", "nbconvert", "nbclient", "ipykernel", "snakemake",
)  # fmt: skip

# What each kind of page is made from: its notebook and the sqlib modules whose code decides what is on it. For a
# training run these are the modules that decide its numbers; how the pages look is redone without training.
SOURCES = {
    "train": ("2_train.ipynb", "data", "quant", "models", "saliency", "machine", "train", "metrics"),
    "sweep_trial": ("data", "quant", "models", "saliency", "machine", "train", "metrics"),
    "post_training": ("post_training", "data", "quant", "models", "saliency", "machine", "metrics"),
    "deployed": ("deployed", "deploy", "onnx_export", "data", "quant", "models", "machine"),
    "quality": (
        "quality",
        "faithfulness",
        "sanity",
        "robustness",
        "data",
        "quant",
        "models",
        "saliency",
        "machine",
        "metrics",
    ),
    "roar": ("roar", "data", "quant", "models", "saliency", "machine", "train", "metrics"),
    "explanations": (
        "8_explanations.ipynb",
        "quality_table",
        "quality_plots",
        "roar_plots",
        "stats",
        "data",
        "saliency",
        "metrics",
        "plots",
    ),
    "data": ("1_data.ipynb", "data", "plots"),
    "saliency": ("3_saliency.ipynb", "data", "quant", "models", "saliency", "machine", "metrics", "plots", "inside"),
    "compare": ("4_compare.ipynb", "quality", "data", "quant", "models", "saliency", "machine", "metrics", "plots"),
    "tables": ("5_tables.ipynb", "plots", "metrics", "quality_table", "stats"),
    "claims": ("6_claims.ipynb", "claims", "stats", "plots"),
    "sweep": ("7_parameters.ipynb", "sweeps", "plots"),
    "index": ("index", "claims", "pages", "templates/*", "templates/*/*"),
}


def reports_root() -> Path:
    """The folder of all reports: `$SQLIB_REPORTS` if set, else `reports/` in the repository."""
    return place("SQLIB_REPORTS", REPORTS)


# ---- JSON ------------------------------------------------------------------------------------------------------------


def to_json(value: Any) -> bytes:
    """JSON of `value`, indented, with NaN and infinity (which JSON does not have) as null."""
    return (json.dumps(_finite(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    if hasattr(value, "item"):  # a number of numpy or torch
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; SqlibError if it is missing, unreadable or not an object."""
    try:
        content = json.loads(Path(path).read_bytes(), parse_constant=_no_number)
    except FileNotFoundError:
        raise SqlibError(f"{path}: no such file") from None
    except OSError as error:
        raise SqlibError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise SqlibError(f"{path}: damaged, not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise SqlibError(f"{path}: damaged, expected an object, found {type(content).__name__}")
    return content


# ---- a finished run ------------------------------------------------------------------------------------------------


def save_run(
    folder: Path,
    run: Run,
    model: "torch.nn.Module",
    history: list[dict],
    metrics: dict[str, float],
    curves: dict[str, list[float]],
    per_image: dict[str, "torch.Tensor"],
    started: datetime | float,
) -> None:
    """Write `model.safetensors`, `per_image.safetensors`, `result.json` and `packed.safetensors`, each atomically.

    metrics: numbers by name (accuracies and rates as fractions). curves: lists of equal length. per_image: (N,) tensors
    over the test images. started: when the run began, an aware datetime or `time.time()`. SqlibError if not writable, and,
    before anything is written, for a training that was interrupted (fewer epochs in its history than the run has).
    """
    if len(history) < run.epochs:
        raise SqlibError(
            f"{run.id}: interrupted after epoch {len(history)} of {run.epochs}: nothing is saved; train it to its end"
        )
    from safetensors.torch import save

    from sqlib.deploy import pack
    from sqlib.machine import device_name
    from sqlib.train import precision

    folder, device = Path(folder), next(model.parameters()).device
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    weights = save(state)
    write_atomically(folder / "model.safetensors", weights)
    images = save({name: tensor.detach().cpu().contiguous() for name, tensor in per_image.items()})
    write_atomically(folder / "per_image.safetensors", images)
    stamp = folder / "parameters.json"
    sources = read_json(stamp).get("sources") if stamp.exists() else sources_of("train")
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
        "metrics": metrics,
        "curves": curves,
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


# What readers rely on; all of it may be missing or null.
_ORIGIN = {
    "git": dict, "packages": dict, "data": dict, "cpu": str, "cpu_version": str, "platform": str, "python": str,
    "precision": str, "device": str, "started": str, "ended": str, "seconds": int | float,
}  # fmt: skip


def read_result(folder: Path) -> dict[str, Any]:
    """The content of a run folder's `result.json`; SqlibError if it is missing or malformed."""
    path = Path(folder) / "result.json"
    result = read_json(path)
    if result.get("format") != FORMAT:
        raise SqlibError(f"{path}: format is {result.get('format')!r}, this version reads {FORMAT}: make the run again")
    kinds = {
        "id": str, "run": dict, "digest": str, "metrics": dict, "curves": dict, "history": list, "provenance": dict,
    }  # fmt: skip
    for key, kind in kinds.items():
        if not isinstance(result.get(key), kind):
            raise SqlibError(f"{path}: malformed: '{key}' is missing or not {kind.__name__}")
    for name, value in result["metrics"].items():
        number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
        if not (number or value is None):
            raise SqlibError(f"{path}: malformed: metrics.{' '.join(name.split())[:80]} is not a number")
    files = result.get("files", {})  # hashed by `fault`: nothing but a run's own may be named
    known = isinstance(files, dict) and files.keys() <= {"model.safetensors", "per_image.safetensors"}
    if not known or not all(isinstance(stated, str) for stated in files.values()):
        raise SqlibError(f"{path}: malformed: 'files' is not the SHA-256 of each of the run's files")
    origin = result["provenance"]
    for key, kind in _ORIGIN.items():
        if not isinstance(origin.get(key), kind | None):
            raise SqlibError(f"{path}: malformed: provenance.{key} is not {kind}")
    if not isinstance((origin.get("git") or {}).get("revision", ""), str):
        raise SqlibError(f"{path}: malformed: provenance.git.revision is not a text")
    return result


def run_of(folder: Path) -> Run:
    """The parameters of the finished run in `folder`; SqlibError if there is none or its parameters are not valid."""
    result = read_result(folder)
    try:
        run = Run.model_validate(result["run"])
    except ValidationError as error:
        first = error.errors()[0]
        where = " ".join(".".join(map(str, first["loc"])).split())[:120]
        raise SqlibError(f"{folder}/result.json: malformed: run.{where}: {first['msg']}") from None
    if digest(run) != result["digest"]:
        raise SqlibError(f"{folder}/result.json: altered: its parameters do not have the digest it states")
    return run


def load_model(folder: Path) -> "torch.nn.Module":
    """The trained model of a run folder, in eval mode; SqlibError if anything is missing, damaged or does not fit.

    Where only the packed model is there, as in reports/reference, that: its answers and maps are the same.
    """
    from sqlib.deploy import load_packed
    from sqlib.models import build_model

    run, packed = run_of(folder), Path(folder) / PACKED
    if packed.exists() and not (Path(folder) / "model.safetensors").exists():
        return load_packed(packed)
    model = build_model(run.network, run.setup).float()  # whatever number torch takes when nobody says one
    try:
        model.load_state_dict(_read_tensors(Path(folder), "model.safetensors"), strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise SqlibError(f"{folder}/model.safetensors does not fit network '{run.network}': {reason}") from None
    return model.eval()


def pack_run(folder: Path, again: bool = False) -> Path:
    """Write a finished run's `packed.safetensors`; returns its path.

    Nothing is done when the one there is whole and newer than the result, unless it is to be made `again`.
    """
    from sqlib.deploy import pack

    folder = Path(folder)
    packed = folder / PACKED
    if not (folder / "model.safetensors").exists():
        return packed  # a published run: there is nothing to pack
    if again or not is_packed(folder):
        pack(load_model(folder), packed, class_names(run_of(folder)))
    return packed


def class_names(run: Run) -> tuple[str, ...]:
    """The names of the classes that a run tells apart: those of its data set."""
    from sqlib.data import source_of

    return source_of(run.dataset).classes


def is_packed(folder: Path) -> bool:
    """Whether a run's `packed.safetensors` is there, whole, and not older than its result. Takes a millisecond or two."""
    from sqlib.deploy import read_packed

    packed, result = Path(folder) / PACKED, Path(folder) / "result.json"
    with contextlib.suppress(SqlibError, OSError):
        read_packed(packed)
        return packed.stat().st_mtime >= result.stat().st_mtime
    return False


def load_per_image(folder: Path) -> dict[str, "torch.Tensor"]:
    """The (N,) tensors of `per_image.safetensors`, one entry a test image; SqlibError if missing or damaged."""
    return _read_tensors(Path(folder), "per_image.safetensors")


def load_quality(folder: Path) -> dict[str, "torch.Tensor"]:
    """The (N,) tensors of `quality.safetensors` (`sqlib.quality`); SqlibError if missing or damaged."""
    return _read_tensors(Path(folder), "quality.safetensors")


def _read_tensors(folder: Path, name: str) -> dict[str, "torch.Tensor"]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    stated = read_result(folder).get("files", {}).get(name)
    try:
        content = (folder / name).read_bytes()
        if stated and hashlib.sha256(content).hexdigest() != stated:
            raise SqlibError(f"{folder / name}: damaged: its SHA-256 is not the one in result.json; make the run again")
        return load(content)
    except OSError as error:
        raise SqlibError(f"{folder / name}: cannot be read: {error.strerror}") from None
    except (SafetensorError, ValueError, KeyError) as error:
        raise SqlibError(f"{folder / name}: damaged: {' '.join(str(error).split())[:200]}") from None


def fault(folder: Path) -> str | None:
    """Why a run has to be made (again), in a few words, or None: its result is whole and belongs to its parameters.

    Reads and hashes the run's files, but builds no model: takes milliseconds, without importing torch.
    """
    folder = Path(folder)
    if not (folder / "result.json").exists():
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
    folders = sorted(
        path.parent
        for path in runs.glob("*/*/*/*/seed*/result.json")
        if (path.parent / "model.safetensors").exists() or (path.parent / PACKED).exists()
    )
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
        if not (folder / "result.json").exists():
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


# ---- provenance ----------------------------------------------------------------------------------------------------


def provenance(started: datetime | float | None = None) -> dict[str, Any]:
    """Where a result comes from: code revision, versions, hardware, threads, times (UTC), peak memory of this process.

    What cannot be found out (no git, say) is null; nothing here fails.
    """
    end = datetime.now(UTC)
    if isinstance(started, int | float):
        started = datetime.fromtimestamp(started, UTC)
    torch = sys.modules.get("torch")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "git": git_state(),
        "python": platform.python_version(),
        "packages": package_versions(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_model(),
        "cpu_version": cpu_version(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads() if torch else None,
        "started": started.astimezone(UTC).isoformat(timespec="seconds") if started else None,
        "ended": end.isoformat(timespec="seconds"),
        "seconds": round((end - started).total_seconds(), 1) if started else None,
        "peak_memory_mb": round(peak / (2**20 if sys.platform == "darwin" else 2**10)),
    }


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
    origin = {
        **provenance(started),
        "study": study.name,
        "parameters": study.model_dump(mode="json"),
        "digest": digest(study),
        "notebook": notebook and {"name": notebook, "sha256": notebook_sum(notebook)},
        **made_from(of, reports),
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
    kinds = {**_ORIGIN, "digest": str, "seeds": list, "notebook": dict, "precision": list}
    for key, kind in kinds.items():
        if key not in origin and key != "device":
            raise SqlibError(f"{path}: malformed: {key} is missing")
        if not isinstance(origin.get(key), kind | None):
            raise SqlibError(f"{path}: malformed: {key} is not {kind}")
    data, git, packages = (origin.get(key) or {} for key in ("data", "git", "packages"))
    if not (data.keys() <= set(DATASET_NAMES) and all(isinstance(sums, dict) for sums in data.values())):
        raise SqlibError(f"{path}: malformed: data is not the sums of files by data set")
    if (git and not git.keys() >= {"revision", "dirty"}) or not packages.keys() >= set(PACKAGES):
        raise SqlibError(f"{path}: malformed: git or packages lacks an entry")
    return origin


def made_from(of: Sequence[Run], reports: Path) -> dict[str, Any]:
    """Of some runs: the SHA-256 sums of their data by data set, the precisions in which the finished ones were trained, and
    their seeds."""
    finished = [run.folder(reports) for run in of if (run.folder(reports) / "result.json").exists()]
    precisions = {read_result(folder)["provenance"].get("precision") for folder in finished}
    return {
        "data": {dataset: data_sums(dataset) for dataset in dict.fromkeys(run.dataset for run in of)},
        "precision": sorted(precisions - {None}),
        "seeds": sorted({run.seed for run in of}),
    }


def notebook_sum(name: str) -> str | None:
    """SHA-256 of a file in `notebooks/`; None if it is not there (an installed package)."""
    path = REPOSITORY / "notebooks" / name
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def git_state() -> dict[str, Any] | None:
    """{"revision": commit, "dirty": whether tracked files differ from it}, or None outside git."""

    # Where git is told by variables to look (in a hook, say), it would speak of another repository, wherever it is started.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(REPOSITORY), *arguments]
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=True
        )
        return os.fsdecode(done.stdout).removesuffix("\n")

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != REPOSITORY:
            return None  # a copy without .git inside some other repository
        return {"revision": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None


def package_versions() -> dict[str, str | None]:
    """Installed version of each of `PACKAGES` (None: not installed)."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def cpu_model() -> str | None:
    """The processor's name as the system gives it."""
    return _cpuinfo().get("model name") or platform.processor() or None


def cpu_version() -> str | None:
    """Such as 'family 25, model 17, stepping 1': a rented machine's name for its processor may not say more than the maker."""
    told = _cpuinfo()
    parts = {"family": told.get("cpu family"), "model": told.get("model"), "stepping": told.get("stepping")}
    return ", ".join(f"{name} {value}" for name, value in parts.items() if value) or None


def _cpuinfo() -> dict[str, str]:
    """What Linux says of the first processor, by its own words; empty elsewhere."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}


def usable_cores() -> int:
    """Number of cores this process may use, as `sqlib.resources` finds it."""
    return resources.cores()


def data_sums(dataset: str) -> dict[str, str]:
    """SHA-256 of each file of a data set, as `sqlib.data` demands it."""
    from sqlib.data import source_of

    return dict(source_of(dataset).sha256)


# ---- stamps: what has to be made again -----------------------------------------------------------------------------


def run_stamp(run: Run) -> dict[str, Any]:
    """What a run's numbers depend on: its parameters and the sources of `SOURCES["train"]`."""
    return {"run": run.model_dump(mode="json"), "digest": digest(run), "sources": sources_of("train")}


def compared_with(study: Study, run: Run) -> list[Run]:
    """The float runs that a run's maps are compared with: the one of its seed; for a float run, those of later seeds."""
    setup = next((setup for setup in study.setups if setup.is_float), None)
    if setup is None:
        return []
    seeds = study.seeds[study.seeds.index(run.seed) + 1 :] if run.setup.is_float else [run.seed]
    return [Run.make(study, run.dataset, run.network, setup.name, run.training, seed) for seed in seeds]


def compare_page(study: Study, dataset: str, network: str) -> str:
    """Name of the comparison page of a data set; that of the study's first network goes without the network's name."""
    return f"compare_{dataset}" if network == study.networks[0] else f"compare_{dataset}_{network}"


def sources_of(page: str) -> str:
    """`sources_digest` of what a kind of page (a key of `SOURCES`) is made from."""
    return sources_digest(SOURCES[page])


@functools.cache
def sources_digest(names: tuple[str, ...]) -> str:
    """16 hexadecimal digits over the meaning of source files: comments, docstrings and formatting do not count.

    names: a sqlib module (`train`), a notebook (`2_train.ipynb`, of which only the cells count) or a pattern of files
    in `sqlib/` (`templates/*`, of which every byte counts). A file that is not there counts as empty. Computed once in
    a process: what was imported does not change either.
    """
    parts = []
    for name in names:
        if name.endswith(".ipynb"):
            parts.append((name, _notebook_meaning(REPOSITORY / "notebooks" / name)))
        elif "*" in name:
            files = sorted(path for path in (REPOSITORY / "sqlib").glob(name) if path.is_file())
            parts += [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files]
        else:
            path = REPOSITORY / "sqlib" / f"{name}.py"
            parts.append((name, python_meaning(path.read_text(encoding="utf-8")) if path.exists() else ""))
    return digest(parts)


def python_meaning(source: str) -> str:
    """Canonical text of Python code without comments, docstrings and formatting, the same on Python 3.11 to 3.13.

    (`ast.dump` would do, but what it leaves out differs between those versions.)
    """

    def dump(node: Any) -> str:
        if isinstance(node, ast.AST):
            fields = ((name, getattr(node, name, None)) for name in node._fields)
            inner = [f"{name}={dump(value)}" for name, value in fields if value is not None and value != []]
            return f"{type(node).__name__}({','.join(inner)})"
        if isinstance(node, list):
            return f"[{','.join(dump(part) for part in node if not is_text(part))}]"
        return repr(node)

    def is_text(node: Any) -> bool:
        return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)

    return dump(ast.parse(source))


def _notebook_meaning(path: Path) -> list[list[str]]:
    if not path.exists():
        return []
    cells = []
    for cell in read_json(path).get("cells", []):
        source = "".join(cell.get("source", []))
        if cell.get("cell_type") == "code":
            with contextlib.suppress(SyntaxError):  # a cell with a magic command counts as it is written
                source = python_meaning(source)
        cells.append([str(cell.get("cell_type")), source])
    return cells
