"""Tests of sqlib.study.parameters: what a parameter file may say, and that every mistake is one clear line."""

import shutil

import pytest
import yaml

from sqlib import checked, places
from sqlib.checked import SqlibError
from sqlib.networks.architectures import ARCHITECTURES, NETWORK_LAYERS
from sqlib.networks.network import build_model
from sqlib.places import PARAMS
from sqlib.quant.bits import LayerBits
from sqlib.study import parameters
from sqlib.study.parameters import load_study

SETUP = "title: A\ndefault: {weights: 2, activations: 2}\n"
STUDY = "title: T\ndatasets: [mnist]\nsetups: [a, b]\n"


@pytest.fixture
def params(tmp_path):
    folder = tmp_path / "params"
    (folder / "setups").mkdir(parents=True)
    (folder / "setups" / "a.yaml").write_text(SETUP)
    (folder / "setups" / "b.yaml").write_text("title: B\ndefault: {weights: 4, activations: 4}\n")
    (folder / "s.yaml").write_text(STUDY)
    return folder


def complaint(params, study=None, setup=None, name="s"):
    """The error of loading the study with `study` appended, or replaced when it says `datasets`, as its only line."""
    if study is not None:
        (params / "s.yaml").write_text(study if "datasets" in study else STUDY + study)
    if setup is not None:
        (params / "setups" / "a.yaml").write_text(setup)
    with pytest.raises(checked.SqlibError) as caught:
        parameters.load_study(name, params)
    message = str(caught.value)
    assert "\n" not in message, message
    return message


# ------------------------------------------------------------------------------------------------- good parameters


def test_shipped_studies():
    paper = parameters.load_study("paper")
    assert len(paper.runs()) == 2 * 4 * 2 * 3
    assert len({run.id for run in paper.runs()}) == 48
    assert [setup.name for setup in paper.setups] == ["fp32", "w4a4", "mixed", "w2a2"]
    smoke = parameters.load_study("smoke")
    assert len(smoke.runs()) == 2 * 4 * 2 * 1
    assert all(isinstance(value, float) for value in (smoke.training.learning_rate, paper.training.learning_rate))


def test_every_shipped_setup_loads_and_fits_every_network():
    for path in (places.PARAMS / "setups").glob("*.yaml"):
        setup = parameters.load_setup(path.stem)
        assert setup.name == path.stem
        for network in NETWORK_LAYERS:
            build_model(network, setup)


def test_mixed_is_four_bits_at_the_ends():
    mixed = parameters.load_setup("mixed")
    bits = [mixed.bits(layer, NETWORK_LAYERS["lenet"]) for layer in NETWORK_LAYERS["lenet"]]
    assert bits == [(4, 4), (2, 2), (2, 2), (4, 2)]
    assert [mixed.bits(layer, NETWORK_LAYERS["lenet5"])[0] for layer in NETWORK_LAYERS["lenet5"]] == [4, 2, 2, 2, 4]


def test_bits_of_a_named_layer_go_before_first_last_and_default(make_setup):
    part = LayerBits
    setup = make_setup(2, 2, first=part(weights=4), last=part(weights=8), layers={"conv1": part(activations=3)})
    assert setup.bits("conv1", NETWORK_LAYERS["lenet"]) == (4, 3)
    assert setup.bits("conv2", NETWORK_LAYERS["lenet"]) == (2, 2)
    assert setup.bits("fc2", NETWORK_LAYERS["lenet"]) == (8, 2)
    assert setup.bits("fc2", NETWORK_LAYERS["lenet5"]) == (2, 2)  # not the last one there


def test_is_float(make_setup):
    assert make_setup(32, 32).is_float
    assert not make_setup(32, 2).is_float
    assert not make_setup(32, 32, last=LayerBits(weights=4)).is_float


@pytest.mark.parametrize("network", NETWORK_LAYERS)
def test_network_layers_are_those_of_the_built_networks(network, make_setup):
    model = build_model(network, make_setup(2, 2))
    built = [name for name, module in model.named_modules() if hasattr(module, "weight")]
    assert tuple(built) == NETWORK_LAYERS[network]
    assert list(ARCHITECTURES) == list(NETWORK_LAYERS)


def test_a_setup_file_and_its_name_add_runs(tmp_path):
    params = tmp_path / "params"
    shutil.copytree(places.PARAMS, params)
    (params / "setups" / "mine.yaml").write_text("title: Mine\ndefault: {weights: 3, activations: 3}\n")
    text = (params / "smoke.yaml").read_text()
    (params / "smoke.yaml").write_text(text.replace("setups: [fp32,", "setups: [mine, fp32,"))
    before, after = parameters.load_study("smoke"), parameters.load_study("smoke", params)
    assert len(after.runs()) == len(before.runs()) + 4
    assert "mnist/lenet/mine/standard/seed0" in {run.id for run in after.runs()}


@pytest.mark.parametrize(
    "text, value", [("1e-3", 1e-3), ("1E-3", 1e-3), ("2.5e-3", 2.5e-3), ("0.01", 0.01), ("1", 1.0)]
)
def test_numbers_with_an_exponent_are_numbers(params, text, value):
    (params / "s.yaml").write_text(STUDY + f"training: {{learning_rate: {text}}}\n")
    assert parameters.load_study("s", params).training.learning_rate == value


def test_epochs_of_each_data_set(params):
    (params / "s.yaml").write_text(
        STUDY.replace("[mnist]", "[mnist, fashion_mnist]") + "training: {epochs: {mnist: 3, fashion_mnist: 6}}\n"
    )
    runs = parameters.load_study("s", params).runs()
    assert {(run.dataset, run.epochs, run.parameters.epochs) for run in runs} == {
        ("mnist", 3, 3),
        ("fashion_mnist", 6, 6),
    }


def test_run_by_id_and_its_folder(params, tmp_path):
    study = parameters.load_study("s", params)
    run = study.run("mnist/lenet/b/saliency_guided/seed0")
    assert (run.setup.name, run.training, run.seed) == ("b", "saliency_guided", 0)
    assert run.folder(tmp_path) == tmp_path / "runs" / "mnist" / "lenet" / "b" / "saliency_guided" / "seed0"
    with pytest.raises(checked.SqlibError, match="did you mean 'mnist/lenet/b/standard/seed0'"):
        study.run("mnist/lenet/b/standrd/seed0")


def test_a_run_survives_json_and_its_digest_says_what_changed(params):
    run = parameters.load_study("s", params).runs()[0]
    again = parameters.Run.model_validate_json(run.model_dump_json())
    assert again == run
    assert checked.digest(again) == checked.digest(run)
    changed = run.model_copy(update={"seed": 1})
    assert checked.digest(changed) != checked.digest(run)
    assert checked.digest({"b": 1, "a": 2}) == checked.digest({"a": 2, "b": 1})


# -------------------------------------------------------------------------------------------------- bad parameters

BAD_STUDIES = [
    ("treads: 2\n", "unknown key 'treads'", "did you mean 'threads'?"),
    ("training: {epoch: 2}\n", "unknown key 'training.epoch'", "did you mean 'epochs'?"),
    ("training: {clip: {penaltie: 2}}\n", "'training.clip.penaltie'", "did you mean 'penalty'?"),
    ("name: other\n", "unknown key 'name'", ""),
    ("threads: 0\n", "threads = 0", "greater than or equal to 1"),
    ('training: {learning_rate: "1e-3"}\n', "training.learning_rate = '1e-3'", "without quotes"),
    ("training: {learning_rate: fast}\n", "training.learning_rate = 'fast'", "number"),
    ("training: {learning_rate: .nan}\n", "training.learning_rate = nan", ""),
    ("training: {learning_rate: .inf}\n", "training.learning_rate = inf", ""),
    ("training: {weight_decay: .nan}\n", "training.weight_decay = nan", ""),
    ("training: {clip: {start: .inf}}\n", "training.clip.start = inf", ""),
    ("training: {clip: {penalty: .nan}}\n", "training.clip.penalty = nan", ""),
    ("training: {clip: {start: 0}}\n", "training.clip.start = 0", "greater than 0"),
    ("training: {guidance: {fraction: 1.5}}\n", "training.guidance.fraction = 1.5", "less than 1"),
    ("training: {guidance: {fraction: 0}}\n", "training.guidance.fraction = 0", "greater than 0"),
    ("training: {guidance: {rank: asb}}\n", "training.guidance.rank = 'asb'", "did you mean 'abs'?"),
    ("training: {guidance: {detach_clean: 1}}\n", "training.guidance.detach_clean = 1", ""),
    ("training: {epochs: 0}\n", "training.epochs = 0", "greater than or equal to 1"),
    ("training: {epochs: 1.5}\n", "training.epochs = 1.5", "integer"),
    ('training: {epochs: "3"}\n', "training.epochs = '3'", "without quotes"),
    ("training: {epochs: {mnist: 0}}\n", "training.epochs.mnist = 0", "greater than or equal to 1"),
    ("training: {epochs: {mnits: 1}}\n", "training.epochs", "did you mean 'mnist'?"),
    ("training: {epochs: {fashion_mnist: 1}}\n", "training.epochs", "'mnist'"),
    ("training: {epochs: 1, epochs: 2}\n", "key 'epochs' is given twice", ""),
    ("training: {}\ntraining: {}\n", "key 'training' is given twice", ""),
    ("training: 3\n", "training = 3", ""),
    ("seeds: [1, 1]\n", "seeds = [1, 1]", "only once"),
    ("seeds: []\n", "seeds = []", "at least one"),
    ("seeds: [-1]\n", "seeds.0 = -1", "greater than or equal to 0"),
    ("seeds: [true]\n", "seeds.0 = True", "integer"),
    ("seeds: off\n", "seeds = 'off'", "list"),
    ("networks: [lent]\n", "unknown network 'lent'", "did you mean 'lenet'?"),
    ("trainings: [guided]\n", "unknown training 'guided'", "did you mean 'saliency_guided'?"),
    ("trainings: standard\n", "trainings = 'standard'", "list"),
    ("evaluation: {images: 10001}\n", "evaluation.images = 10001", "10000"),
    ("title: T\ndatasets: [mnits]\nsetups: [a]\n", "unknown data set 'mnits'", "did you mean 'mnist'?"),
    ("title: T\ndatasets: []\nsetups: [a]\n", "datasets = []", "at least one"),
    ("title: T\ndatasets: [mnist]\nsetups: [aa]\n", "params/setups/aa.yaml", "did you mean 'a'?"),
    ("title: T\ndatasets: [mnist]\nsetups: [a, a]\n", "setups", "only once"),
    ("title: T\ndatasets: [mnist]\nsetups: a\n", "setups", "list"),
    ("datasets: [mnist]\nsetups: [a]\n", "key 'title' is missing", ""),
    ("datasets: [mnist\n", "not valid YAML", ""),
    ("- datasets\n", "list", "expected 'key: value'"),
]


@pytest.mark.parametrize("study, key, hint", BAD_STUDIES, ids=[study.strip()[-40:] for study, *_ in BAD_STUDIES])
def test_a_bad_study_is_one_line_with_file_key_and_value(params, study, key, hint):
    message = complaint(params, study=study)
    assert f"params/s.yaml: {key}" in message or (f"{params / 's.yaml'}: " in message and key in message)
    assert hint in message


def default(bits):
    return f"title: A\ndefault: {bits}\n"


BAD_SETUPS = [
    (default("{weights: 0, activations: 2}"), "default.weights = 0", "2 to 8, or 32"),
    (default("{weights: 1, activations: 2}"), "default.weights = 1", "2 to 8, or 32"),
    (default("{weights: 2, activations: 17}"), "default.activations = 17", "1 to 8, or 32"),
    (default("{weights: 2, activations: -1}"), "default.activations = -1", "1 to 8, or 32"),
    (default("{weights: 2.0, activations: 2}"), "default.weights = 2.0", "integer"),
    (default("{weights: true, activations: 2}"), "default.weights = True", "integer"),
    (default('{weights: "2", activations: 2}'), "default.weights = '2'", "without quotes"),
    (default("{weights: 4:2, activations: 2}"), "default.weights = '4:2'", "integer"),  # base 60 in YAML 1.1
    (default("{weights: 2}"), "default", "activations"),
    (SETUP + "layers: {cnv1: {weights: 4}}\n", "unknown layer 'cnv1'", "did you mean 'conv1'?"),
    (SETUP + "layers: {conv1: {weights: 0}}\n", "layers.conv1.weights = 0", "2 to 8, or 32"),
    (SETUP + "layers: {conv1: {weight: 4}}\n", "'layers.conv1.weight'", "did you mean 'weights'?"),
    (SETUP + "layers: {fc3: {weights: 4}}\n", "fc3", "lenet"),  # a layer of lenet5, in a study of lenet
    (SETUP + "first: {weight: 4}\n", "unknown key 'first.weight'", "did you mean 'weights'?"),
    (SETUP + "weight_method: swab\n", "weight_method = 'swab'", "did you mean 'sawb'?"),
    (SETUP + "name: b\n", "unknown key 'name'", ""),
    (SETUP + "title: B\n", "key 'title' is given twice", ""),
    # What SAWB has no coefficients for must not wait for the training to fail.
    (default("{weights: 5, activations: 2}"), "5", "minmax"),
    (SETUP + "zero_aligned: true\n", "2", "minmax"),
]


@pytest.mark.parametrize("setup, key, hint", BAD_SETUPS, ids=[setup.strip()[-40:] for setup, *_ in BAD_SETUPS])
def test_a_bad_setup_is_one_line_with_file_key_and_value(params, setup, key, hint):
    message = complaint(params, setup=setup)
    assert "params/setups/a.yaml" in message
    assert key in message
    assert hint in message


def test_each_of_two_mistakes_has_its_own_line(params):
    (params / "s.yaml").write_text(STUDY + "threads: 0\nseeds: []\n")
    with pytest.raises(checked.SqlibError) as caught:
        parameters.load_study("s", params)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert all("s.yaml: " in line for line in lines)


def test_a_missing_study_names_the_nearest(params):
    assert "did you mean 's'?" in complaint(params, name="ss")


def test_a_setup_name_cannot_leave_its_folder(params):
    with pytest.raises(checked.SqlibError, match="names folders"):
        parameters.load_setup("../s", params / "setups")


def test_parameters_cannot_be_changed_afterwards():
    run = parameters.load_study("smoke").runs()[0]
    with pytest.raises(ValueError, match="frozen"):
        run.seed = 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sweeps": ["quick", "quick"]}, "sweeps: each only once"),
        ({"sweeps": ["quik"]}, "sweeps: no file params/sweeps/quik.yaml; did you mean 'quick'"),
        ({"quality": {"setups": []}}, "quality.setups: needs at least one setup"),
        ({"quality": {"setups": ["fp32", "fp32"]}}, "quality.setups: each setup only once"),
        ({"quality": {"every_method": ["w2a3"]}}, "quality.every_method: the study has no setup 'w2a3'"),
        (
            {"quality": {"retrain": ["mnits"]}},
            "quality.retrain: the study has no data set 'mnits'; did you mean 'mnist'",
        ),
    ],
)
def test_parts_of_a_study_that_are_not_there(tmp_path, change, message):
    shutil.copytree(PARAMS, tmp_path / "params")
    content = yaml.safe_load((PARAMS / "smoke.yaml").read_text()) | change
    (tmp_path / "params/smoke.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(SqlibError) as raised:
        load_study("smoke", tmp_path / "params")
    assert message in str(raised.value) and "\n" not in str(raised.value) and "smoke.yaml: " in str(raised.value)


def test_an_empty_file_and_a_name_that_is_a_path(tmp_path):
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(SqlibError, match="holds nothing"):
        load_study("empty", tmp_path)
    with pytest.raises(SqlibError, match="study name '../params/smoke'"):
        load_study("../params/smoke")
