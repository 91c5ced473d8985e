"""What a notebook starts from, and its `%%prose` cells: text with the notebook's values in it."""

import pandas as pd
import pytest

from sqlib.checked import SqlibError
from sqlib.report import cells, sections
from sqlib.report.cells import Points, written
from sqlib.report.sections import Report

VALUES = {"rate": 0.125, "names": ["a", "b"], "rows": [(1, "x"), (2, "y")], "points": Points(["one", "two"])}


@pytest.mark.parametrize(
    ("line", "text", "found"),
    [
        ("", 'It is {rate:.1%} of "{", ".join(names)}"', ("", 'It is 12.5% of "a, b"')),
        ("", "Seen:\n\n{points}\n\n$\\frac{{1}}{{2}}$", ("", "Seen:\n\n- one\n- two\n\n$\\frac{1}{2}$")),
        ("if rate > 1", "never {not_there}", ("", "")),
        ("if rate < 1", "so", ("", "so")),
        ("for n, name in rows", "- {name}: {n}", ("", ["- x: 1", "- y: 2"])),
        ("said = for n, name in rows if n > 1", "{name}", ("said", ["y"])),
        ("said = if rate", "yes", ("said", "yes")),
        ("said =", 'ends in "', ("said", 'ends in "')),
    ],
)
def test_a_text_holds_values_where_its_condition_holds_and_for_each_of_them(line, text, found):
    assert written(line, text, VALUES) == found


def test_a_wrong_line_or_an_unknown_name_is_an_error():
    with pytest.raises(SqlibError, match="%%prose unless x: expected nothing"):
        written("unless x", "text", VALUES)
    with pytest.raises(NameError, match="absent"):
        written("", "{absent}", VALUES)


def test_the_magic_shows_as_prose_does_and_keeps_what_has_a_name(monkeypatch):
    class Shell:
        user_ns = dict(VALUES)

        def register_magic_function(self, function, kind, name):
            assert (kind, name) == ("cell", "prose")
            self.run = function

    shell, said = Shell(), []
    monkeypatch.setattr(cells, "prose", said.append)
    cells.load_ipython_extension(shell)
    shell.run("", "{rate}\n")
    shell.run("for n, name in rows", "- {name}")
    shell.run("if not rows", "nothing")
    assert said == ["0.125", "- x\n- y"]
    shell.run("kept = for n, name in rows", "{n}\nof 2")
    shell.run("one =", "{n}\nof 2".replace("n", "rate"))
    assert shell.user_ns["kept"] == ["1\nof 2", "2\nof 2"] and f"{shell.user_ns['kept']}" == "- 1\nof 2\n- 2\nof 2"
    assert shell.user_ns["one"] == "0.125\nof 2" and len(said) == 2


def test_a_folder_without_results_is_an_error_and_one_opened_by_hand_is_not_written_to(tmp_path, monkeypatch, runs):
    monkeypatch.setenv("SQLIB_REPORTS", str(tmp_path))
    with pytest.raises(SqlibError, match="make smoke"):
        Report()
    for name in ("smoke/results", "smoke/runs/mnist/lenet/fp32/standard/seed0"):
        (tmp_path / name).mkdir(parents=True)
    runs.to_csv(tmp_path / "smoke/results/runs.csv", index=False)
    kept = Report(tmp_path / "smoke")
    assert kept.kept and cells._folders["figures"] == tmp_path / "smoke/figures"
    assert kept.reference == "fp32" and len(kept.runs) == 4  # seed 1 is not the study's
    assert len(kept.listed) == 4 and len(kept.missing) == 12
    (tmp_path / "smoke/runs/mnist/lenet/fp32/standard/seed0/result.json").touch()
    assert not Report().kept and cells._folders == {"figures": None, "tables": None}


def test_a_part_has_the_runs_of_one_data_set_and_network(report):
    (place,) = report.places
    assert (place.title, place.network, place.setups, place.fewest) == ("MNIST", "lenet", ["fp32", "w2a2"], "w2a2")
    assert place.trainings == ["standard", "saliency_guided"] and place.seeds == [0, 1]
    assert len(place.planned) == 8 and len(report.planned) == 16
    with pytest.raises(SqlibError, match="no finished run of fashion_mnist/lenet; `make reproduce STUDY=smoke`"):
        report.at("fashion_mnist", "lenet")
    report.runs = report.runs[:0]
    with pytest.raises(SqlibError, match="no finished run of mnist/lenet"):
        report.places  # noqa: B018


def test_caveats_are_said_where_they_hold(report):
    assert [text.split(" images")[0] for text in report.caveats] == ["Trained on 2,000"]
    report.missing, report.listed, report.runs = ["a/b"], ["c", "d"], report.runs[report.runs["seed"] == 0]
    missing, listed, seed, _ = report.caveats
    assert "a/b" in missing and "2 runs" in listed and seed.startswith("**One seed**")
    large = report.study.training.model_copy(update={"images": sections.FULL})
    report.study, report.missing, report.listed = report.study.model_copy(update={"training": large}), [], []
    assert report.caveats == [seed]


def test_dead_maps_are_none_some_or_too_many(report):
    assert report.most_dead == "No run has a dead map."
    for rate, words in ((0.004, "0.40%"), (0.02, "2.00%")):
        report.runs.loc[5, "dead_map_rate"] = rate
        assert f"The most dead maps are {words}, in MNIST, w2a2, standard training, seed 1." in report.most_dead
        assert ("more than the 0.5%" in report.most_dead) == (rate > 0.005)


def test_a_kept_frame_has_all_its_digits_and_one_opened_by_hand_is_not_written(report, tmp_path):
    frame = pd.DataFrame({"setup": ["fp32"], "mean": [1 / 3]})
    report.keep(frame, "t")
    assert (tmp_path / "tables/t.csv").read_text() == "setup,mean\nfp32,0.3333333333333333\n"
    assert "0.3333333333333333" in (tmp_path / "results/t.json").read_text()
    report.kept = False
    report.keep(frame, "u")
    assert not (tmp_path / "tables/u.csv").exists()
