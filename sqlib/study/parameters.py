"""Parameters of a study: what a YAML file in `params/` may say, checked before anything runs.

A study is a grid (data sets x networks x setups x trainings x seeds) plus the parameters its runs share. `load_study`
reads `params/<study>.yaml` and the setups it names from `params/setups/`; every mistake is one line that names the file,
the key, the value and, where there is one, the nearest valid name.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from sqlib.checked import NAME, Name, SqlibError, Strict, nearest, short, validate
from sqlib.data.datasets import DATASET_NAMES
from sqlib.networks.architectures import NETWORK_LAYERS, check_network
from sqlib.places import PARAMS, shown_path
from sqlib.quant.bits import Setup
from sqlib.study.yaml import read_yaml
from sqlib.training.options import Clip, Guidance

Epochs = Annotated[int, Field(ge=1, le=1000)]
Shift = Annotated[int, Field(ge=0, le=8, description="pixels")]


def each_once(values: list) -> list:
    """The values, of which there must be one or more, and none twice; ValueError otherwise."""
    if not values or len(set(values)) != len(values):
        raise ValueError("needs at least one, and each only once")
    return values


Seeds = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], AfterValidator(each_once)]


def _unsaid(default: Any) -> Any:
    """A field that is left out where it has its default: runs from before there was such a field keep their digests."""
    return Field(default=default, exclude_if=lambda value: value == default)


class Training(Strict):
    """One run's training; the same for every run of a study but for epochs and shift, which a data set may have of its own.

    shift: each time a training image is used, it is moved by -shift to shift pixels in both directions, black behind it.
    precision: of the convolutions while training; `auto` is bfloat16 where the processor is faster in it, else float32.
    beta2: how slowly Adam forgets the squares of past gradients (Kingma and Ba 2014, algorithm 1).
    """

    epochs: Epochs | dict[str, Epochs] = 4
    shift: Shift | dict[str, Shift] = _unsaid(0)
    batch_size: Annotated[int, Field(ge=1, le=55_000)] = 512
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 2e-3
    beta2: Annotated[float, Field(ge=0, lt=1)] = _unsaid(0.999)
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    images: Annotated[int, Field(ge=10, le=55_000)] = 55_000
    validation_images: Annotated[int, Field(ge=10, le=5_000)] = 5_000
    clip: Clip = Clip()
    guidance: Guidance = Guidance()

    @field_validator("epochs", "shift")
    @classmethod
    def _by_data_set(cls, value: int | dict[str, int]) -> int | dict[str, int]:
        if isinstance(value, dict):
            for name in value:
                if name not in DATASET_NAMES:
                    raise ValueError(f"unknown data set '{name}'{nearest(name, DATASET_NAMES)}")
        return value


class Evaluation(Strict):
    """How many test images the measurements of a finished run use."""

    images: Annotated[int, Field(ge=10, le=10_000)] = 10_000
    faithfulness_images: Annotated[int, Field(ge=10, le=10_000)] = 1_000


class Quality(Strict):
    """What `sqlib.study.jobs.quality` measures on the maps of finished runs: agreement, faithfulness, robustness, sanity.

    images: test images, from the first on, for gradient maps. setups: whose runs are measured (default: all of the
    study). every_method: on whose runs all methods are measured, on fewer images, and not the gradient alone. retrain: data
    sets on which networks are trained again without the most salient pixels (`sqlib.study.jobs.roar`), an expensive check.
    """

    images: Annotated[int, Field(ge=10, le=10_000)] = 1_000
    setups: list[str] | None = None
    every_method: list[str] = []
    retrain: list[str] = []


def _choices(kind: str, known: tuple[str, ...]):
    def check(cls, values: list[str]) -> list[str]:
        for value in values:
            if value not in known:
                raise ValueError(f"unknown {kind} '{value}'{nearest(value, known)}")
        return each_once(values)

    return classmethod(check)


class Study(Strict):
    """A grid of runs and what they share: `params/<name>.yaml`, its setups resolved."""

    name: Name
    title: str
    datasets: list[str]
    networks: list[str] = ["lenet"]
    setups: list[Setup]
    trainings: list[str] = ["standard", "saliency_guided"]
    seeds: Seeds = [0]
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    quality: Quality | None = None
    sweeps: list[str] = []

    _datasets = field_validator("datasets")(_choices("data set", DATASET_NAMES))
    _networks = field_validator("networks")(_choices("network", tuple(NETWORK_LAYERS)))
    _trainings = field_validator("trainings")(_choices("training", ("standard", "saliency_guided")))

    @model_validator(mode="after")
    def _parts(self) -> "Study":
        names = [setup.name for setup in self.setups]
        if len(set(self.sweeps)) != len(self.sweeps):
            raise ValueError("sweeps: each only once")
        if self.quality and self.quality.setups == []:
            raise ValueError("quality.setups: needs at least one setup, or leave it out for all of them")
        for key in ("setups", "every_method"):
            chosen = getattr(self.quality, key, None) or []
            if len(set(chosen)) != len(chosen):
                raise ValueError(f"quality.{key}: each setup only once")
            for name in chosen:
                if name not in names:
                    raise ValueError(f"quality.{key}: the study has no setup '{name}'{nearest(name, names)}")
        for name in self.quality.retrain if self.quality else []:
            if name not in self.datasets:
                raise ValueError(f"quality.retrain: the study has no data set '{name}'{nearest(name, self.datasets)}")
        return self

    def setup(self, name: str) -> Setup:
        """The study's setup of this name; raises SqlibError."""
        for setup in self.setups:
            if setup.name == name:
                return setup
        names = [setup.name for setup in self.setups]
        raise SqlibError(f"study '{self.name}' has no setup '{name}'{nearest(name, names)}")

    def make_run(self, dataset: str, network: str, setup: str, training: str, seed: int) -> "Run":
        """The run of the grid that these name; raises SqlibError for an unknown setup, or a data set without epochs."""
        own = {}
        for key in ("epochs", "shift"):
            own[key] = getattr(self.training, key)
            if isinstance(own[key], dict):
                if dataset not in own[key]:
                    raise SqlibError(f"params/{self.name}.yaml: training.{key} says nothing for data set '{dataset}'")
                own[key] = own[key][dataset]
        return Run(
            dataset=dataset,
            network=network,
            setup=self.setup(setup),
            training=training,
            seed=seed,
            epochs=own["epochs"],
            threads=self.threads,
            parameters=self.training.model_copy(update=own),
            evaluation=self.evaluation,
        )

    def runs(self) -> list["Run"]:
        """Every run of the grid, data set by data set."""
        return [
            self.make_run(dataset, network, setup.name, training, seed)
            for dataset in self.datasets
            for network in self.networks
            for setup in self.setups
            for training in self.trainings
            for seed in self.seeds
        ]

    def quality_runs(self) -> list["Run"]:
        """The runs whose maps `sqlib.study.jobs.quality` measures."""
        chosen = [] if self.quality is None else self.quality.setups
        return [run for run in self.runs() if chosen is None or run.setup.name in chosen]

    def run(self, run_id: str) -> "Run":
        """The run with this id, `dataset/network/setup/training/seed<k>`; raises SqlibError."""
        runs = {run.id: run for run in self.runs()}
        if run_id not in runs:
            raise SqlibError(f"study '{self.name}' has no run '{run_id}'{nearest(run_id, runs)}")
        return runs[run_id]


class Run(Strict):
    """One trained model: everything that decides its weights and its measurements, resolved."""

    dataset: str
    network: str
    setup: Setup
    training: Literal["standard", "saliency_guided"]
    seed: int
    epochs: int
    threads: int
    parameters: Training
    evaluation: Evaluation

    @property
    def id(self) -> str:
        return f"{self.dataset}/{self.network}/{self.setup.name}/{self.training}/seed{self.seed}"

    def folder(self, reports: Path) -> Path:
        """The run's folder under `reports/<study>`."""
        return Path(reports) / "runs" / self.id


def check_name(kind: str, name: str) -> None:
    """SqlibError unless the name of a setup, study or sweep can name a file and a folder."""
    if not re.fullmatch(NAME, str(name)):
        raise SqlibError(
            f"{kind} name '{short(name, 80)}': only letters, digits, '_', '.' and '-' may be in it (it names folders)"
        )


def load_setup(name: str, folder: Path | None = None) -> Setup:
    """The setup in `<folder>/<name>.yaml` (default `params/setups`); raises SqlibError."""
    path = Path(folder or PARAMS / "setups") / f"{name}.yaml"
    check_name("setup", name)
    content = read_yaml(path)
    if "name" in content:
        raise SqlibError(f"{shown_path(path)}: unknown key 'name': a setup is called after its file")
    setup = validate(Setup, {**content, "name": name}, path)
    known = sorted({layer for layers in NETWORK_LAYERS.values() for layer in layers})
    for layer in setup.layers:
        if layer not in known:
            raise SqlibError(f"{shown_path(path)}: layers: unknown layer '{layer}'{nearest(layer, known)}")
    return setup


def load_study(name: str, params: Path | None = None) -> Study:
    """The study in `<params>/<name>.yaml` with its setups; raises SqlibError (one line) for anything amiss."""
    params = Path(params or PARAMS)
    if name.endswith(".yaml") and (params / Path(name).name).exists():
        raise SqlibError(f"study '{short(name, 80)}': write its name alone, '{Path(name).stem}'")
    check_name("study", name)
    path = params / f"{name}.yaml"
    if not path.exists():
        known = sorted(p.stem for p in params.glob("*.yaml") if p.stem != "claims")  # those are rules, no study
        raise SqlibError(f"{shown_path(path)}: no such file{nearest(name, known)}")
    content = read_yaml(path)
    if "name" in content:
        raise SqlibError(f"{shown_path(path)}: unknown key 'name': a study is called after its file")
    if "setups" not in content:
        validate(Study, {**content, "name": name}, path)  # says so, after a key that it may be misspelt as
    if not isinstance(content.get("setups"), list):
        raise SqlibError(f"{shown_path(path)}: setups: expected a list of names of files in params/setups/")
    names = content["setups"]
    if len(set(map(str, names))) != len(names) or not names:
        raise SqlibError(f"{shown_path(path)}: setups: needs at least one setup, and each only once")
    available = sorted(p.stem for p in (params / "setups").glob("*.yaml"))
    for setup in names:
        if str(setup) not in available:
            raise SqlibError(
                f"{shown_path(path)}: setups: no file params/setups/{short(setup, 80)}.yaml{nearest(setup, available)}"
            )
    setups = [load_setup(str(setup), params / "setups") for setup in names]
    study = validate(Study, {**content, "name": name, "setups": setups}, path)
    known = sorted(p.stem for p in (params / "sweeps").glob("*.yaml"))
    for sweep in study.sweeps:
        if sweep not in known:
            raise SqlibError(f"{shown_path(path)}: sweeps: no file params/sweeps/{sweep}.yaml{nearest(sweep, known)}")
    for setup in study.setups:
        for network in study.networks:
            try:
                check_network(setup, network)
            except SqlibError as error:
                raise SqlibError(f"{shown_path(params / 'setups' / f'{setup.name}.yaml')}: layers: {error}") from None
    study.runs()
    return study
