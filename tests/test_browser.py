"""Every page as a reader opens it: from its file, without a network, wide and narrow, light and dark, by eye and by ear."""

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from browser import chromium, opened, picture, scrolls_sideways, violations

from sqlib.places import REPOSITORY
from sqlib.report.html import PAGE_LIMIT, TEMPLATES
from sqlib.study.parameters import load_study
from sqlib.workflow.pages import pages_of

pytestmark = pytest.mark.browser

STUDY_LIMIT = 8_000_000
"""Of all pages but those of single runs, in bytes."""

LOOKS = [(1280, "light"), (360, "dark"), (360, "light"), (1280, "dark")]

# What every page must have, told by the page itself.
STRUCTURE = """() => {
  const missing = [], all = (selector) => [...document.querySelectorAll(selector)];
  const need = (right, what) => right || missing.push(what);
  need(document.documentElement.lang === "en", "lang");
  need(document.title.length > 5, "title");
  need(all("h1").length === 1 && all("main").length === 1 && all("footer").length === 1, "one h1, main and footer");
  need(all("a.skip").length === 1, "a link over the top");
  need(all("script, iframe, object, embed").length === 0, "no script");
  const about = all("footer dt").map((term) => term.textContent);
  for (const fact of ["Study", "Run it again", "Machine"]) need(about.includes(fact), fact);
  need(about.some((term) => ["Code", "Revision"].includes(term)), "revision");
  need(about.some((term) => /^(Made|Trained)/.test(term)), "when");
  for (const image of all("img")) {
    need(image.alt.length > 15, `alt text: ${image.alt}`);
    need(image.complete && image.naturalWidth > 0, `image: ${image.alt}`);
    need(image.closest("figure") && image.closest("figure").querySelector("figcaption"), `caption: ${image.alt}`);
  }
  for (const table of all("table")) {
    need(table.caption && table.caption.textContent.trim(), `caption: ${table.textContent.slice(0, 40)}`);
    need([...table.querySelectorAll("th")].every((head) => ["col", "row"].includes(head.scope)), "scope of headers");
  }
  for (const code of all("div.source")) {
    const held = code.closest("details");
    need(held && !held.open && /^Show the code/.test(held.querySelector("summary").textContent), "code is folded");
  }
  return missing;
}"""


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


def of_runs(page: Path) -> bool:
    return page.name in ("train.html", "saliency.html")


def chosen(folder: Path) -> list[Path]:
    """The pages to look at closely: every page about the study, and of the pages about runs the first and last of a kind."""
    pages = sorted(folder.rglob("*.html"))
    kept = [page for page in pages if not of_runs(page)]
    for name in ("train.html", "saliency.html"):
        same = [page for page in pages if page.name == name]
        kept += dict.fromkeys([same[0], same[-1]])
    return kept


def look_at(browser, folder: Path, pages: list[Path]) -> list[str]:
    """What is wrong with the pages, seen in every one of `LOOKS`; leaves pictures of them."""
    wrong = []
    tab, heard = opened(browser)
    for page in pages:
        name = page.relative_to(folder).as_posix()
        tab.goto(page.as_uri())
        for at, (width, scheme) in enumerate(LOOKS):  # no script runs in a page, so it need not be loaded for each
            tab.set_viewport_size({"width": width, "height": 900})
            tab.emulate_media(color_scheme=scheme)
            found = [*heard, *["scrolls sideways"] * scrolls_sideways(tab)]
            if at == 0:
                found += [f"without {what}" for what in tab.evaluate(STRUCTURE)]
            if at < 2:  # both widths and both schemes once
                found += violations(tab)
                picture(tab, f"{folder.name}_{name.removesuffix('.html').replace('/', '_')}_{width}_{scheme}")
            wrong += [f"{name}, {width} px, {scheme}: {fault}" for fault in found]
            heard.clear()
    tab.context.close()
    return wrong


def dead_links(browser, folder: Path) -> list[str]:
    """Links to files or places that are not there, over all pages of a study; each page must load with nothing remote."""
    tab, heard = opened(browser)
    links, places = {}, {}
    for page in folder.rglob("*.html"):
        tab.goto(page.as_uri())
        places[page] = set(tab.eval_on_selector_all("[id]", "all => all.map(one => one.id)"))
        links[page] = tab.eval_on_selector_all("a[href]", "all => all.map(one => one.href)")
    dead = [*heard]
    for page, addresses in links.items():
        for address in addresses:
            parts = urlsplit(address)
            target = Path(unquote(parts.path))
            if parts.scheme == "file" and not target.is_relative_to(folder):
                dead.append(f"{page}: {address} leads out of the study")
            if parts.scheme == "file" and not (
                target.exists() and (not parts.fragment or parts.fragment in places.get(target, ()))
            ):
                dead.append(f"{page}: {address}")
    tab.context.close()
    return dead


def assert_sizes(folder: Path) -> None:
    sizes = {page: page.stat().st_size for page in folder.rglob("*.html")}
    assert max(sizes.values()) <= PAGE_LIMIT, max(sizes, key=sizes.get)
    assert sum(size for page, size in sizes.items() if not of_runs(page)) <= STUDY_LIMIT


@pytest.fixture(scope="module")
def reference() -> Path:
    return REPOSITORY / "reports/reference"


def test_published_pages_are_fit_to_read(browser, reference):
    assert look_at(browser, reference, chosen(reference)) == []


def test_published_pages_lead_on(browser, reference):
    assert dead_links(browser, reference) == []
    assert_sizes(reference)


@pytest.mark.end_to_end
def test_fresh_pages_are_fit_to_read(browser, smoke):
    folder, _ = smoke
    assert look_at(browser, folder, chosen(folder)) == []


@pytest.mark.end_to_end
def test_fresh_pages_lead_on(browser, smoke):
    folder, _ = smoke
    assert dead_links(browser, folder) == []
    assert_sizes(folder)


@pytest.mark.end_to_end
def test_a_reader_can_walk_through_the_study(browser, smoke):
    """From the index by 'next' through all pages about the study, and from a run to its comparison and back."""
    folder, _ = smoke
    tab, _ = opened(browser)

    def follow(link) -> None:
        with tab.expect_navigation():  # to its end: what is asked of half a page may not be there yet
            link.click()

    tab.goto((folder / "index.html").as_uri())
    seen = []
    while tab.locator("a[rel=next]").count():
        follow(tab.locator("a[rel=next]"))
        seen.append(Path(urlsplit(tab.url).path).name)
    assert seen == [
        page.html.name for page in pages_of(load_study("smoke")) if page.run is None and page.kind.name != "sweep"
    ]
    while tab.locator("a[rel=prev]").count():
        follow(tab.locator("a[rel=prev]"))
    assert tab.url.endswith("/index.html")

    run = load_study("smoke").runs()[0]
    tab.goto((run.folder(folder) / "saliency.html").as_uri())
    for link, lands in (("Training", "train.html"), ("Comparison", f"compare_{run.dataset}.html")):
        follow(tab.locator("nav.related").get_by_role("link", name=re.compile(link)))
        assert tab.url.endswith(f"/{lands}")
    follow(tab.get_by_role("link", name=f"seed {run.seed}, {run.setup.name}, {run.training}", exact=True))
    assert tab.url == (run.folder(folder) / "train.html").as_uri()
    assert tab.locator("nav[aria-label=Breadcrumb] a").count() == 2


def test_on_a_phone_the_verdicts_are_in_view(browser, reference, tmp_path):
    """They stand in the third column, behind a claim's name and a data set; the rest may be moved into view."""
    style = (TEMPLATES / "style.css").read_text()
    page = tmp_path / "claims.html"
    page.write_text(
        re.sub(
            r"<style>.*?</style>",
            lambda _: f"<style>{style}</style>",
            (reference / "claims.html").read_text(),
            count=1,
            flags=re.DOTALL,
        )
    )
    tab, _ = opened(browser, 360)
    tab.goto(page.as_uri())
    verdicts = tab.locator("#claims tbody tr > :nth-child(3)")
    assert verdicts.count() == 18
    ends = verdicts.evaluate_all(
        """cells => cells.map(cell => {
            const range = document.createRange();
            range.selectNodeContents(cell);
            return range.getBoundingClientRect().right;
        })"""
    )
    assert max(ends) <= 360


def test_keyboard_and_paper(browser, reference):
    """Whoever has no mouse sees where they are, and paper shows no menus and no folded code."""
    tab, _ = opened(browser)
    tab.goto((reference / "compare_mnist.html").as_uri())
    tab.keyboard.press("Tab")
    focus = "(() => { const at = document.activeElement; return [at.className, getComputedStyle(at).outlineStyle] })()"
    assert tab.evaluate(focus) == ["skip", "solid"]
    tab.keyboard.press("Tab")
    assert tab.evaluate(focus)[1] == "solid"
    tab.emulate_media(media="print")
    assert tab.locator("details:visible, .steps:visible, .skip:visible").count() == 0
    assert tab.locator("table:visible").count() > 0
    assert tab.pdf(format="A4").startswith(b"%PDF")


BAD = """<!DOCTYPE html><html><head><title>x</title></head><body><main><h1>One</h1><h1>Two</h1>
<p style="color: #999; background: #aaa">hard to read</p><div style="width: 2000px">wide</div>
<img src="https://example.org/a.png"><a href="gone.html">gone</a><a href="#nowhere">nowhere</a>
<table><tr><th>a</th></tr></table><script>throw Error("bad")</script></main></body></html>"""


def test_what_is_wrong_with_a_page_is_found(browser, tmp_path):
    (tmp_path / "bad.html").write_text(BAD)
    found = "\n".join(look_at(browser, tmp_path, [tmp_path / "bad.html"]))
    for fault in (
        *("remote: https://example.org/a.png", "failed: https", "script: bad", "scrolls sideways", "lang", "no script"),
        *("one h1", "caption", "scope of headers", "Run it again", "alt text", "color-contrast", "image-alt"),
    ):
        assert fault in found, fault
    dead = "\n".join(dead_links(browser, tmp_path))
    assert "gone.html" in dead and "#nowhere" in dead
