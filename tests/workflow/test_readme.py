"""The parts of README.md and docs/ that are made from results."""

import pytest

from sqlib.checked import SqlibError
from sqlib.places import REPOSITORY
from sqlib.study.parameters import load_study
from sqlib.workflow.readme import BENCHMARKS, BLOCKS, EXPECTED, RESULTS, expected_block, results_block, update_page


def written(block):
    """What stands between the block's marks on its page."""
    return (REPOSITORY / block.page).read_text().split(block.start)[1].split(block.end)[0].strip()


def test_only_what_stands_between_the_marks_changes_and_twice_is_once(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{RESULTS.start}\nold\n{RESULTS.end}\nafter\n")
    update_page(RESULTS, "new", tmp_path)
    once = readme.read_text()
    assert once == f"before\n{RESULTS.start}\n\nnew\n\n{RESULTS.end}\nafter\n"
    update_page(RESULTS, "new", tmp_path)
    assert readme.read_text() == once


def test_a_page_without_marks_is_refused_and_left_alone(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("no marks")
    with pytest.raises(SqlibError, match="expected the lines"):
        update_page(RESULTS, "new", tmp_path)
    assert readme.read_text() == "no marks"


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_the_pages_of_the_repository_have_the_marks(block):
    text = (REPOSITORY / block.page).read_text()
    assert text.count(block.start) == text.count(block.end) == 1 and text.index(block.start) < text.index(block.end)


def test_each_pair_of_marks_has_its_own_block(tmp_path):
    page = tmp_path / "docs/benchmarks.md"
    page.parent.mkdir()
    page.write_text("\n".join(mark for block in BLOCKS for mark in (block.start, block.end)))
    for block in BLOCKS:
        if block.page == BENCHMARKS.page:
            update_page(block, f"the text of {block.name}", tmp_path)
    text = page.read_text()
    for block in BLOCKS:
        inside = text.split(block.start)[1].split(block.end)[0].strip()
        assert inside == (f"the text of {block.name}" if block.page == BENCHMARKS.page else "")


def test_the_answer_is_what_the_published_results_give():
    study, reports = load_study("paper"), REPOSITORY / "reports/reference"
    block = results_block(study, reports, "reports/reference/figures")
    assert written(RESULTS) == block
    sentences, table, _, picture = block.split("\n\n")
    assert sentences.count(". ") == 2 and "nan" not in block
    assert len(table.splitlines()) == 2 + len(study.datasets) * len(study.setups)
    assert (REPOSITORY / picture.split("](")[1].rstrip(")")).exists()


def test_what_to_expect_is_what_the_published_results_give():
    study = load_study("paper")
    block = expected_block(study, REPOSITORY / "reports/reference")
    without_size = block.rsplit("; all that was made", 1)[0]  # the whole study is larger than what is published of it
    assert written(EXPECTED).startswith(without_size)
    table = block.split("\n\n")[0]
    assert len(table.splitlines()) == 2 + len(study.datasets) and "nan" not in table
