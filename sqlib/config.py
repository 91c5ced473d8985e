"""Parameters of a study: what a YAML file in `params/` may say, checked before anything runs.

A study is a grid (data sets x networks x setups x trainings x seeds) plus the parameters its runs share. `load_study`
reads `params/<study>.yaml` and the setups it names from `params/setups/`; every mistake is one line that names the file,
the key, the value and, where there is one, the nearest valid name.
"""

import difflib
import hashlib
import json
import os
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

REPOSITORY = Path(__file__).resolve().parent.parent
PLACES = ("SQLIB_DATA", "SQLIB_PARAMS", "SQLIB_REPORTS")
"""Environment variables that name the folders of the data, of the parameters and of the reports."""


def place(name: str, default: Path) -> Path:
    """The folder that one of `PLACES` names (`~` is the user's own), else `default`; absolute."""
    chosen = os.environ.get(name)
    return Path(os.path.realpath(os.path.expanduser(chosen))) if chosen else default


def fix_places() -> None:
    """Make `PLACES` absolute in the environment, so that for all that is started they mean what they mean here.

    A relative one means the folder in which the command was typed. Snakemake, its jobs and their kernels work in others. So
    does the kernel of a notebook opened by hand, whose environment says where Jupyter was started.
    """
    started = os.environ.get("PWD", "") if "JPY_PARENT_PID" in os.environ else ""
    for name in PLACES:
        if chosen := os.environ.get(name):
            os.environ[name] = os.path.abspath(os.path.join(started, os.path.expanduser(chosen)))


fix_places()
PARAMS = place("SQLIB_PARAMS", REPOSITORY / "params")
REPORTS = REPOSITORY / "reports"

FLOAT = 32
"""The number of bits that stands for "not quantised"."""

# The layers that carry weights, in order, and for each one whether an activation follows it: what a setup may name.
# `sqlib.models` builds exactly these (a test holds the two together).
NETWORK_LAYERS: dict[str, tuple[str, ...]] = {
    "lenet": ("conv1", "conv2", "fc1", "fc2"),
    "sgt_cnn": ("conv1", "conv2", "fc1", "fc2"),
    "lenet5": ("conv1", "conv2", "fc1", "fc2", "fc3"),
}
DATASET_TITLES = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}
DATASET_NAMES = tuple(DATASET_TITLES)


def dataset_title(name: str) -> str:
    """A data set's name as its makers write it."""
    return DATASET_TITLES.get(name, name)


class SqlibError(Exception):
    """An error the user can act on: printed as one line, without a traceback."""


class Strict(BaseModel):
    # Strict: no "1e-3" taken for a number, no "yes" for a truth value; unknown keys are errors.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _check_bits(value: int, lowest: int) -> int:
    if value != FLOAT and not lowest <= value <= 8:
        raise ValueError(f"must be {lowest} to 8, or {FLOAT} for not quantised")
    return value


WeightBits = Annotated[int, Field(description="2 to 8, or 32 = float")]
ActivationBits = Annotated[int, Field(description="1 to 8, or 32 = float")]


class LayerBits(Strict):
    """Bits of one layer: of its weights, and of the activation that follows it (None: take the default's)."""

    weights: WeightBits | None = None
    activations: ActivationBits | None = None

    @field_validator("weights")
    @classmethod
    def _weights(cls, value: int | None) -> int | None:
        return value if value is None else _check_bits(value, 2)

    @field_validator("activations")
    @classmethod
    def _activations(cls, value: int | None) -> int | None:
        return value if value is None else _check_bits(value, 1)


NAME = r"[A-Za-z0-9_-][A-Za-z0-9_.-]*"
Name = Annotated[
    str, Field(pattern=f"^{NAME}$", max_length=100, description="it names a folder, and stands in every page")
]


class Setup(Strict):
    """A bit-width assignment: `params/setups/<name>.yaml`.

    Bits of a layer, most specific first: `layers[name]`, then `first` or `last` for the network's first and last layer,
    then `default`. The last layer's output are the logits, which are never quantised.
    """

    name: Name
    title: str
    default: LayerBits
    first: LayerBits = LayerBits()
    last: LayerBits = LayerBits()
    layers: dict[str, LayerBits] = {}
    weight_method: Literal["sawb", "dorefa", "minmax"] = "sawb"
    zero_aligned: bool = False
    per_channel: Annotated[bool, Field(exclude_if=lambda value: not value)] = False  # later than the first results
    note: str = ""

    @model_validator(mode="after")
    def _complete(self) -> "Setup":
        if self.default.weights is None or self.default.activations is None:
            raise ValueError("default needs both weights and activations")
        known = sorted({layer for layers in NETWORK_LAYERS.values() for layer in layers})
        for layer in self.layers:
            if layer not in known:
                raise ValueError(f"layers: unknown layer '{layer}'{nearest(layer, known)}")
        fitted = (4, 8) if self.zero_aligned else (2, 3, 4, 8)
        for part in (self.default, self.first, self.last, *self.layers.values()):
            if self.weight_method == "sawb" and part.weights not in (None, FLOAT, *fitted):
                raise ValueError(
                    f"weights: {part.weights} bits{' zero-aligned' * self.zero_aligned}: weight_method 'sawb' is made for "
                    f"{', '.join(map(str, fitted))}; take weight_method 'minmax' or 'dorefa'"
                )
        return self

    def bits(self, layer: str, network: str) -> tuple[int, int]:
        """Bits of the weights of `layer` and of the activation behind it, in `network`; raises SqlibError."""
        names = NETWORK_LAYERS[network]
        if layer not in names:
            raise SqlibError(f"network '{network}' has no layer '{layer}'{nearest(layer, names)}")
        ends = [self.first] * (layer == names[0]) + [self.last] * (layer == names[-1])
        chain = [self.layers.get(layer, LayerBits()), *ends, self.default]
        weights = next(b.weights for b in chain if b.weights is not None)
        activations = next(b.activations for b in chain if b.activations is not None)
        return weights, activations

    def check_network(self, network: str) -> None:
        """Raises SqlibError when the setup names a layer that `network` does not have."""
        for layer in self.layers:
            self.bits(layer, network)

    def all_quantised(self, network: str) -> bool:
        """Whether every layer of `network` has integer weights and every activation integer codes: it runs in integers."""
        *hidden, last = (self.bits(layer, network) for layer in NETWORK_LAYERS[network])
        return last[0] != FLOAT and all(FLOAT not in bits for bits in hidden)

    @property
    def is_float(self) -> bool:
        """Whether nothing at all is quantised."""
        parts = [self.default, self.first, self.last, *self.layers.values()]
        return all(bits in (None, FLOAT) for part in parts for bits in (part.weights, part.activations))


class Clip(Strict):
    """How PACT's clip `a` starts and moves (DESIGN.md: wide, and closed by its penalty)."""

    start: Annotated[float, Field(gt=0, le=1e4)] = 10.0
    penalty: Annotated[float, Field(ge=0, le=1)] = 1e-3
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 3e-2


class Guidance(Strict):
    """Saliency-guided training (Ismail et al. 2021, algorithm 1); see `sqlib.train`."""

    fraction: Annotated[float, Field(gt=0, lt=1)] = 0.5
    rank: Literal["signed", "abs"] = "abs"
    fill: Literal["uniform", "corner", "mean"] = "uniform"
    score: Literal["logit", "log_prob"] = "log_prob"
    kl_weight: Annotated[float, Field(ge=0, le=1e3)] = 1.0
    detach_clean: bool = False


Epochs = Annotated[int, Field(ge=1, le=1000)]
Shift = Annotated[int, Field(ge=0, le=8, description="pixels")]


class Training(Strict):
    """One run's training; the same for every run of a study but for epochs and shift, which a data set may have of its own.

    shift: each time a training image is used, it is moved by -shift to shift pixels in both directions, black behind it.
    precision: of the convolutions while training; `auto` is bfloat16 where the processor is faster in it, else float32.
    beta2: how slowly Adam forgets the squares of past gradients (Kingma and Ba 2014, algorithm 1).
    """

    epochs: Epochs | dict[str, Epochs] = 4
    shift: Annotated[Shift | dict[str, Shift], Field(exclude_if=lambda value: value == 0)] = 0
    batch_size: Annotated[int, Field(ge=1, le=55_000)] = 512
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 2e-3
    beta2: Annotated[float, Field(ge=0, lt=1, exclude_if=lambda value: value == 0.999)] = 0.999
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
    """What `sqlib.quality` measures on the maps of finished runs: agreement, faithfulness, robustness, sanity.

    images: test images, from the first on, for gradient maps. setups: whose runs are measured (default: all of the
    study). every_method: on whose runs all methods are measured, on fewer images, and not the gradient alone. retrain: data
    sets on which networks are trained again without the most salient pixels (`sqlib.roar`), an expensive check.
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
        if len(set(values)) != len(values) or not values:
            raise ValueError(f"needs at least one {kind}, and each only once")
        return values

    return classmethod(check)


class Study(Strict):
    """A grid of runs and what they share: `params/<name>.yaml`, its setups resolved."""

    name: Name
    title: str
    datasets: list[str]
    networks: list[str] = ["lenet"]
    setups: list[Setup]
    trainings: list[str] = ["standard", "saliency_guided"]
    seeds: list[Annotated[int, Field(ge=0, lt=2**31)]] = [0]
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    quality: Quality | None = None
    sweeps: list[str] = []

    _datasets = field_validator("datasets")(_choices("data set", DATASET_NAMES))
    _networks = field_validator("networks")(_choices("network", tuple(NETWORK_LAYERS)))
    _trainings = field_validator("trainings")(_choices("training", ("standard", "saliency_guided")))

    @field_validator("seeds")
    @classmethod
    def _seeds(cls, value: list[int]) -> list[int]:
        if not value or len(set(value)) != len(value):
            raise ValueError("needs at least one seed, and each only once")
        return value

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

    def runs(self) -> list["Run"]:
        """Every run of the grid, data set by data set."""
        return [
            Run.make(self, dataset, network, setup.name, training, seed)
            for dataset in self.datasets
            for network in self.networks
            for setup in self.setups
            for training in self.trainings
            for seed in self.seeds
        ]

    def quality_runs(self) -> list["Run"]:
        """The runs whose maps `sqlib.quality` measures."""
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

    @classmethod
    def make(cls, study: Study, dataset: str, network: str, setup: str, training: str, seed: int) -> "Run":
        own = {}
        for key in ("epochs", "shift"):
            own[key] = getattr(study.training, key)
            if isinstance(own[key], dict):
                if dataset not in own[key]:
                    raise SqlibError(f"params/{study.name}.yaml: training.{key} says nothing for data set '{dataset}'")
                own[key] = own[key][dataset]
        return cls(
            dataset=dataset,
            network=network,
            setup=study.setup(setup),
            training=training,
            seed=seed,
            epochs=own["epochs"],
            threads=study.threads,
            parameters=study.training.model_copy(update=own),
            evaluation=study.evaluation,
        )

    @property
    def id(self) -> str:
        return f"{self.dataset}/{self.network}/{self.setup.name}/{self.training}/seed{self.seed}"

    def folder(self, reports: Path) -> Path:
        """The run's folder under `reports/<study>`."""
        return Path(reports) / "runs" / self.id


def nearest(word: str, known) -> str:
    """' (did you mean ...?; known: ...)' for an error message."""
    known = [str(k) for k in known]
    close = difflib.get_close_matches(str(word), known, n=1, cutoff=0.5)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    listed = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    return f"{hint} (known: {listed})"


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML with 1e-3 read as the number it is (YAML 1.1 takes it for text), a key given twice refused, and aliases, too.

    (Lists of aliases to lists of aliases ... make a value of terabytes from a file of a few lines.)
    """

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(
                None, None, "aliases (*name) are not allowed", self.peek_event().start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable):  # else the call below says what is wrong
                if key in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"key '{key}' is given twice", node.start_mark)
                seen.add(key)
        return super().construct_mapping(node, deep)


_UniqueKeyLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


LARGEST_YAML = 200_000
"""Bytes; the files of the project have a few thousand."""


def short(value: Any, length: int = 300) -> str:
    """A value as text on one line, cut at `length` characters."""
    text = " ".join(str(value).split())
    return text if len(text) <= length else f"{text[:length]} ..."


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; raises SqlibError when there is none."""
    path = Path(path)
    shown = shown_path(path)
    try:
        if path.stat().st_size > LARGEST_YAML:
            raise SqlibError(f"{shown}: larger than {LARGEST_YAML // 1000} kB, so no file of parameters")
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except FileNotFoundError:
        known = sorted(p.stem for p in path.parent.glob("*.yaml"))
        raise SqlibError(f"{shown}: no such file{nearest(path.stem, known)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SqlibError(f"{shown}: cannot be read: {error}") from None
    except yaml.MarkedYAMLError as error:
        at = error.problem_mark or error.context_mark
        where = f"line {at.line + 1}, column {at.column + 1}: " if at else ""
        raise SqlibError(f"{shown}: not valid YAML: {where}{short(error.problem or error)}") from None
    except yaml.YAMLError as error:
        raise SqlibError(f"{shown}: not valid YAML: {short(error)}") from None
    # What PyYAML lets through: values that are not what their tag or look says (!!int "", 2026-99-99), deep nesting.
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise SqlibError(f"{shown}: not valid YAML: {short(error)}") from None
    if content is None:
        raise SqlibError(f"{shown}: holds nothing: expected 'key: value' lines")
    if not isinstance(content, dict):
        kind = {"list": "a list", "str": "text"}.get(type(content).__name__, type(content).__name__)
        raise SqlibError(f"{shown}: expected 'key: value' lines, found {kind}")
    return content


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
    return validate(Setup, {**content, "name": name}, path)


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
                setup.check_network(network)
            except SqlibError as error:
                raise SqlibError(f"{shown_path(params / 'setups' / f'{setup.name}.yaml')}: layers: {error}") from None
    study.runs()
    return study


def digest(value: Any) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a JSON-able value or pydantic model."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def shown_path(path: Path) -> str:
    try:
        return os.fspath(path.resolve().relative_to(REPOSITORY))
    except ValueError:
        return os.fspath(path)


def validate(model: type[BaseModel], content: dict, path: Path):
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise SqlibError("\n".join(f"{shown_path(path)}: {line}" for line in mistakes(model, error))) from None


def mistakes(model: type[BaseModel], error: ValidationError) -> list[str]:
    """What is wrong, a line for each mistake: key, value, what was expected, the nearest valid name."""
    # An unknown key first: it may be the one that is missing, misspelt.
    details = sorted(error.errors(), key=lambda detail: detail["type"] != "extra_forbidden")
    lines = [short(_one_line(model, detail), 600) for detail in details if _of_this_kind(detail)]
    return list(dict.fromkeys(lines))


def _of_this_kind(detail: dict) -> bool:
    """Where a value may be a number or a mapping, pydantic complains on behalf of both: keep the one that was meant."""
    if detail["type"] == "extra_forbidden":
        return True
    branch = str(detail["loc"][-1]) if detail["loc"] else ""
    is_mapping = isinstance(detail.get("input"), dict)
    return not (branch.startswith("dict[") and not is_mapping) and not (
        re.match(r"int$|constrained-int", branch) and is_mapping
    )


def _one_line(model: type[BaseModel], detail: dict) -> str:
    location = [str(part) for part in detail["loc"]]
    # pydantic names the members of a union in the location; they mean nothing to the reader of a YAML file.
    unions = r"(int|constrained-.*|dict\[.*|function-.*)"
    *above, last = location or [""]
    above = [part for part in above if not re.fullmatch(unions, part)]
    if detail["type"] == "extra_forbidden":  # a key of the user's own, whatever it is called
        return f"unknown key '{'.'.join([*above, last])}'{nearest(last, _keys_at(model, above))}"
    key = ".".join(above if re.fullmatch(unions, last) else [*above, last])
    value = detail.get("input")
    if detail["type"] == "missing":
        return f"key '{key}' is missing"
    message = re.sub(r"^(Value error, |Input should be )", "", detail["msg"])
    shown = "" if isinstance(value, (dict, BaseModel)) else f" = {short(repr(value), 80)}"
    wrong = message if detail["type"] == "value_error" else f"should be {message}"
    hint = ""
    if isinstance(value, str) and detail["type"] == "literal_error":
        options = re.findall(r"'([^']*)'", detail["ctx"]["expected"])
        hint = nearest(value, options).split(" (known")[0]
    elif isinstance(value, str) and re.fullmatch(r"[-+0-9.eE_]+", value):
        hint = " (it is text here: write the number without quotes)"
    return f"{key}{shown}: {wrong}{hint}" if key else f"{wrong}{hint}"


def _keys_at(model: type[BaseModel], location: list[str]) -> list[str]:
    for part in location:
        field = model.model_fields.get(part)
        annotation = field.annotation if field else None
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
        elif field is None or part == "layers":
            model = LayerBits
    return [name for name in model.model_fields if name != "name"]
