"""What the written pages name is there: files, headings, `make` targets, commands, environment variables."""

import pkgutil
import re

import pytest
import typer

from sqlib.places import REPOSITORY
from sqlib.study.claims import load_claims
from sqlib.workflow.commands import app

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
MAKEFILE = (REPOSITORY / "Makefile").read_text()
TARGETS = set(re.search(r"^\.PHONY: (.*)$", MAKEFILE, flags=re.M)[1].split())
COMMANDS = set(typer.main.get_command(app).commands)
FRONT_PAGE_BYTES = 7000
INTERNAL = {"SQLIB_JOB", "SQLIB_UNWATCHED"}  # set by the study for its own processes

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
# docs/extending.md changes the code before it uses it: `test_extending.py`.
as_it_is = pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name != "extending.md"], ids=lambda page: page.name
)


def code(text):
    """Everything that a page sets as code: fenced blocks, then spans."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.M | re.S)
    return [
        *(block for language, block in fenced if language in ("", "sh", "python")),
        *re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)),
    ]


def commands(text):
    """(make targets, jobs of sqlib) that a page names."""
    parts = "\n".join(code(text))
    return (
        set(re.findall(r"^make ([a-z][a-z-]*)", parts, flags=re.M)),
        set(re.findall(r"-m sqlib ([a-z][a-z-]*)", parts)),
    )


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pages
def test_every_command_is_there(page):
    targets, jobs = commands(page.read_text())
    assert targets <= TARGETS
    assert jobs <= COMMANDS | {"seeds"}  # which docs/extending.md adds


def test_a_command_that_is_not_there_would_be_seen():
    text = "Type `make reproduse STUDY=x`, then\n```sh\nmake tests\n.venv/bin/python -m sqlib trian paper\n```\n`make`"
    assert commands(text) == ({"reproduse", "tests"}, {"trian"})


def test_every_target_is_explained():
    named, _ = commands((REPOSITORY / "docs/commands.md").read_text())
    assert named >= TARGETS


def test_the_front_page_fits_on_two_screens_and_leads_to_every_other_page():
    text = (REPOSITORY / "README.md").read_text()
    assert len(text.encode()) <= FRONT_PAGE_BYTES
    assert {"reproduce", "test"} <= commands(text)[0]
    linked = set(re.findall(r"\]\((docs/[\w-]+\.md)", text))
    assert linked == {f"docs/{page.name}" for page in PAGES[1:]}


@as_it_is
def test_every_python_block_runs(page):
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.M | re.S):
        exec(compile(block, page.name, "exec"), {})  # what it says is what a reader would type


@pages
def test_every_relative_link_leads_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    for link in links:
        if not re.match(r"\w+:", link):
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


@pages
def test_every_file_that_is_named_is_there(page):
    folders = {path.name for path in REPOSITORY.iterdir() if path.is_dir()} - {"reports", "data", "build"}
    made = {"benchmarks/profile.txt", "params/setups/first8.yaml", "params/own.yaml"}
    for span in code(page.read_text()):
        if re.fullmatch(r"[\w.-]+(/[\w.-]+)+", span) and span.split("/")[0] in folders and span not in made:
            assert (REPOSITORY / span).exists(), span


def test_every_page_that_the_code_names_is_there():
    sources = [path for name in ("sqlib", "tests", "benchmarks") for path in (REPOSITORY / name).rglob("*.py")]
    sources += [REPOSITORY / "Makefile", REPOSITORY / "Snakefile", *(REPOSITORY / "params").rglob("*.yaml")]
    sources += [*(REPOSITORY / "profiles").rglob("*.yaml"), *(REPOSITORY / "notebooks").glob("*.ipynb")]
    named = {
        (page, source)
        for source in sources
        for page in re.findall(r"docs/[\w-]+\.md|\b[A-Z]{3,}\.md", source.read_text())
    }
    assert not {(page, source.name) for page, source in named if not (REPOSITORY / page).exists()}


@as_it_is
def test_every_function_that_is_named_is_there(page):
    parts = code(page.read_text())
    named = {part for part in parts if re.fullmatch(r"sqlib(\.\w+)+", part)}
    for module, names in re.findall(r"from (sqlib[\w.]*) import ([\w, ]+)", "\n".join(parts)):
        named |= {f"{module}:{name}" for name in names.split(", ")}
    for name in named:
        pkgutil.resolve_name(name)


def test_every_environment_variable_for_users_is_explained():
    sources = [path.read_text() for path in (REPOSITORY / "sqlib").rglob("*.py")]
    read = set(re.findall(r'(?:environ\.get|place)\("(SQLIB_\w+)"', "\n".join(sources)))
    assert {"SQLIB_DATA", "SQLIB_DEVICE", "SQLIB_PARAMS", "SQLIB_REPORTS", "SQLIB_TIME_LIMIT"} <= read
    explained = (REPOSITORY / "docs/commands.md").read_text()
    assert all(f"`{name}`" in explained for name in read - INTERNAL)


def test_every_claim_has_its_place_in_the_map_from_claims_to_commands():
    text = (REPOSITORY / "docs/reproducing.md").read_text()
    assert all(f"`{claim.id}`" in text for claim in load_claims().claims)
