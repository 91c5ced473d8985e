"""Stamps: the small files by which Snakemake sees what has to be made again.

A stamp holds the parameters of a job and the digest of the sources that decide its results. It is rewritten only when its
content changes, so content, not time, decides.
"""

import hashlib
from pathlib import Path
from typing import Any

from sqlib import files
from sqlib.files import write_atomically
from sqlib.places import PARAMS
from sqlib.study import results, sources, sweeps
from sqlib.study.parameters import Study


def write_stamps(study: Study, reports_folder: Path) -> list[Path]:
    """Write the input stamps of every job of a study, but touch only files whose content changes; return those.

    `runs/<id>/parameters.json` holds a resolved run and the digests of what its numbers depend on; `stamps/<page>.json`
    the same for every other page. Snakemake compares their times with those of the outputs.
    """
    reports_folder = Path(reports_folder)
    stamps = {run.folder(reports_folder) / "parameters.json": sources.run_stamp(run) for run in study.runs()}
    for trial in sweeps.trials_of(study):
        stamps[trial.stamp_path(reports_folder)] = trial.stamp()
    for name, content in page_stamps(study).items():
        stamps[reports_folder / "stamps" / f"{name}.json"] = content
    changed = []
    for path, content in stamps.items():
        data = files.to_json(content)
        if not path.exists() or path.read_bytes() != data:
            write_atomically(path, data)
            changed.append(path)
    return changed


def page_stamps(study: Study) -> dict[str, dict[str, Any]]:
    """The stamps of all pages but those of single runs, by name."""
    every = study.runs()
    stamps: dict[str, dict[str, Any]] = {"saliency": {"sources": sources.sources_of("saliency")}}
    for dataset in study.datasets:
        stamps[f"data_{dataset}"] = {"dataset": dataset, "sources": sources.sources_of("data")}
        for network in study.networks:
            ids = [run.id for run in every if (run.dataset, run.network) == (dataset, network)]
            stamps[results.compare_page(study, dataset, network)] = {
                "runs": ids,
                "sources": sources.sources_of("compare"),
            }
    stamps["tables"] = {"runs": [run.id for run in every], "sources": sources.sources_of("tables")}
    stated = hashlib.sha256((PARAMS / "claims.yaml").read_bytes()).hexdigest()
    stamps["claims"] = {"runs": [run.id for run in every], "claims": stated, "sources": sources.sources_of("claims")}
    setups = [setup.model_dump(mode="json") for setup in study.setups]
    stamps["post_training"] = {"setups": setups, "sources": sources.sources_of("post_training")}
    stamps["deployed"] = {"sources": sources.sources_of("deployed")}
    if study.quality is not None:
        stated = study.quality.model_dump(mode="json")
        stamps["quality"] = {"quality": stated, "sources": sources.sources_of("quality")}
        stamps |= {f"roar_{dataset}": {"sources": sources.sources_of("roar")} for dataset in study.quality.retrain}
        for dataset in study.datasets:
            ids = [run.id for run in study.quality_runs() if run.dataset == dataset]
            stamps[f"explanations_{dataset}"] = {"runs": ids, "sources": sources.sources_of("explanations")}
    for name in study.sweeps:
        stated = hashlib.sha256((PARAMS / "sweeps" / f"{name}.yaml").read_bytes()).hexdigest()
        ids = [trial.id for trial in sweeps.trials(study, sweeps.load_sweep(name))]
        stamps[f"sweep_{name}"] = {"sweep": stated, "trials": ids, "sources": sources.sources_of("sweep")}
    stamps["index"] = {"study": study.model_dump(mode="json"), "sources": sources.sources_of("index")}
    return stamps
