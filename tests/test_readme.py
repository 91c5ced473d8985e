"""The part of the README that is made from results."""

import pytest

from sqlib.config import REPOSITORY, SqlibError
from sqlib.readme import END, START, update_readme


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


def test_the_readme_of_the_repository_has_the_marks():
    text = (REPOSITORY / "README.md").read_text()
    assert text.count(START) == text.count(END) == 1 and text.index(START) < text.index(END)
