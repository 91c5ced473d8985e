"""The part of the README that is made from results."""

import pytest

from sqlib.config import REPOSITORY, SqlibError
from sqlib.readme import BENCHMARKS, END, START, update_readme


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


@pytest.mark.parametrize("start, end", [(START, END), BENCHMARKS])
def test_the_readme_of_the_repository_has_the_marks(start, end):
    text = (REPOSITORY / "README.md").read_text()
    assert text.count(start) == text.count(end) == 1 and text.index(start) < text.index(end)


def test_each_pair_of_marks_has_its_own_block(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("\n".join([START, END, *BENCHMARKS]))
    update_readme(readme, "study")
    update_readme(readme, "speed", BENCHMARKS)
    text = readme.read_text()
    assert text.index(START) < text.index("study") < text.index(END) < text.index("speed") < text.index(BENCHMARKS[1])
