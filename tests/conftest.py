"""What several test files need: one thread, setups by their bits, and a small data set that can be learned."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from xdist.scheduler import LoadScopeScheduling

from sqlib import places
from sqlib.quant.bits import LayerBits, Setup
from sqlib.study.parameters import Evaluation, Run, Training
from sqlib.training.examples import Dataset


class Together(LoadScopeScheduling):
    """Each test goes to the worker that is free, but for those that share something dear, such as the smoke study."""

    def _split_scope(self, nodeid: str) -> str:
        path, test = nodeid.split("::", 1)
        file = Path(path).name
        if file == "test_end_to_end.py" or test.startswith(("test_fresh_pages", "test_a_reader_can_walk")):
            return "smoke"
        return file if file in SHARING else nodeid


SHARING = ("test_browser.py", "test_deploy.py", "test_explain.py", "test_fuzz.py", "test_html.py", "test_lab.py")
"""Files whose tests share a browser, a JupyterLab, a network or a page."""


def pytest_xdist_make_scheduler(config, log):
    return Together(config, log)


def pytest_collection_modifyitems(items):
    """What takes longest comes first: the smoke study and what waits for it, then other studies and browsers."""
    items.sort(key=lambda item: ("smoke" not in item.fixturenames, item.get_closest_marker("end_to_end") is None))


@pytest.fixture(autouse=True)
def one_thread():
    """One thread and a fixed seed for every test."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def make_setup():
    """Function (weights, activations, **more) -> Setup."""

    def make(weights, activations, **more):
        default = LayerBits(weights=weights, activations=activations)
        return Setup(name=f"w{weights}a{activations}", title="test", default=default, **more)

    return make


@pytest.fixture
def make_run(make_setup):
    """Function (bits, training, seed, **training parameters) -> a Run of a few seconds at most (lenet5)."""

    def make(bits=2, training="standard", seed=0, epochs=1, network="lenet5", **parameters):
        parameters = {"batch_size": 50, "images": 200, "validation_images": 20, **parameters}
        return Run(
            dataset="mnist",
            network=network,
            setup=make_setup(bits, bits),
            training=training,
            seed=seed,
            epochs=epochs,
            threads=1,
            parameters=Training(epochs=epochs, **parameters),
            evaluation=Evaluation(images=30, faithfulness_images=10),
        )

    return make


@pytest.fixture(scope="session")
def blobs():
    """A data set to be learned in seconds: class c is a bright block in place c, with noise around it."""
    generator = torch.Generator().manual_seed(5)

    def part(count):
        labels = torch.arange(count) % 10
        images = torch.randint(0, 60, (count, 28, 28), generator=generator)
        for image, label in zip(images, labels.tolist(), strict=True):
            row, column = 2 + 13 * (label // 5), 1 + 5 * (label % 5)
            image[row : row + 10, column : column + 5] += 150
        images[:, 0, :] = 0
        return images.to(torch.uint8), labels

    (train, train_labels), (validation, validation_labels), (test, test_labels) = part(400), part(50), part(60)
    return Dataset(
        name="mnist",
        title="blobs",
        classes=tuple("0123456789"),
        train_images=train,
        train_labels=train_labels,
        validation_images=validation,
        validation_labels=validation_labels,
        test_images=test,
        test_labels=test_labels,
        sha256={},
    )


@pytest.fixture(scope="session")
def reproduce():
    """Function (folder for reports) -> what `reproduce smoke --sweeps` printed, run as a user runs it."""

    def run(reports):
        return subprocess.run(
            [sys.executable, "-m", "sqlib", "reproduce", "smoke", "--sweeps"],
            env={**os.environ, "SQLIB_REPORTS": str(reports)},
            cwd=places.REPOSITORY,
            capture_output=True,
            text=True,
            timeout=1800,
        )

    return run


@pytest.fixture(scope="session")
def smoke(tmp_path_factory, reproduce):
    """(folder of the finished smoke study, what making it printed): minutes, and once for all tests."""
    reports = tmp_path_factory.mktemp("reports")
    done = reproduce(reports)
    assert done.returncode == 0, done.stdout + done.stderr
    return reports / "smoke", done
