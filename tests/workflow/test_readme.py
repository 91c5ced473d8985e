"""The part of the README that is made from results."""

import pytest

from sqlib.checked import SqlibError
from sqlib.places import REPOSITORY
from sqlib.study.parameters import load_study
from sqlib.workflow.readme import (
    BENCHMARKS,
    ELSEWHERE,
    END,
    EXPECTED,
    FAULTS,
    GPU,
    SCALE,
    START,
    expected_block,
    update_readme,
)


def test_only_what_stands_between_the_marks_changes_and_twice_is_once(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{START}\nold\n{END}\nafter\n")
    update_readme(readme, "new")
    once = readme.read_text()
    assert once == f"before\n{START}\n\nnew\n\n{END}\nafter\n"
    update_readme(readme, "new")
    assert readme.read_text() == once


def test_a_readme_without_marks_is_refused_and_left_alone(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("no marks")
    with pytest.raises(SqlibError, match="expected the lines"):
        update_readme(readme, "new")
    assert readme.read_text() == "no marks"


@pytest.mark.parametrize(
    "page, start, end",
    [
        ("README.md", START, END),
        ("README.md", *BENCHMARKS),
        ("README.md", *GPU),
        ("README.md", *SCALE),
        ("REPRODUCING.md", *EXPECTED),
        ("REPRODUCING.md", *ELSEWHERE),
        ("REPRODUCING.md", *FAULTS),
    ],
)
def test_the_pages_of_the_repository_have_the_marks(page, start, end):
    text = (REPOSITORY / page).read_text()
    assert text.count(start) == text.count(end) == 1 and text.index(start) < text.index(end)


def test_each_pair_of_marks_has_its_own_block(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("\n".join([START, END, *BENCHMARKS]))
    update_readme(readme, "study")
    update_readme(readme, "speed", BENCHMARKS)
    text = readme.read_text()
    assert text.index(START) < text.index("study") < text.index(END) < text.index("speed") < text.index(BENCHMARKS[1])


def test_what_to_expect_is_what_the_published_results_give():
    study, text = load_study("paper"), (REPOSITORY / "REPRODUCING.md").read_text()
    block = expected_block(study, REPOSITORY / "reports/reference")
    found = text[text.index(EXPECTED[0]) + len(EXPECTED[0]) : text.index(EXPECTED[1])]
    without_size = block.rsplit("; all that was made", 1)[0]  # the whole study is larger than what is published of it
    assert found.strip().startswith(without_size)
    table = block.split("\n\n")[0]
    assert len(table.splitlines()) == 2 + len(study.datasets) and "nan" not in table
