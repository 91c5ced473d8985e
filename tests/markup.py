"""What is looked for in the HTML of pages."""

import re
from html.parser import HTMLParser
from pathlib import Path

from browser import chromium, opened, scrolls_sideways


class Elements(HTMLParser):
    """Every start tag of a page with its attributes."""

    def __init__(self, path: Path):
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.found if name == tag]


def assert_offline(path: Path) -> None:
    """No script, no event handler, and no address of another machine outside plain links."""
    for tag, attributes in Elements(path).found:
        assert tag not in ("script", "iframe", "object", "embed"), tag
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if tag != "a" and name in ("src", "href", "srcset", "data", "poster"):
                assert not re.match(r"\s*(https?:)?//", value or ""), (tag, value)
    style = re.search(r"<style>(.*?)</style>", path.read_text(encoding="utf-8"), re.DOTALL)[1]
    assert "@import" not in style
    assert "url(" not in style


def assert_held(page: Path):
    """Whatever is wide on the page scrolls or shrinks by itself, as its source tells."""
    text = page.read_text()
    loose, seen = loose_parts(text)
    assert loose == []
    rules = {
        "table": r"\.table \{[^}]*overflow-x: auto",
        "pre": r"pre \{[^}]*overflow-x: auto",
        "img": r"figure img[^{]*\{[^}]*max-width: 100%",
    }
    assert "table" in seen
    for tag in seen & rules.keys():
        assert re.search(rules[tag], text), rules[tag]


def fits(page: Path, width: int) -> bool:
    """Whether nothing on the page scrolls sideways in a window of this width."""
    with chromium() as browser:
        tab, _ = opened(browser, width)
        tab.goto(page.as_uri())
        assert tab.evaluate("innerWidth") == width
        return not scrolls_sideways(tab)


def loose_parts(page: str) -> tuple[list[str], set[str]]:
    """(tables and images that nothing holds, every tag of the page)."""
    parser = Containers()
    parser.feed(page)
    return parser.loose, parser.seen


class Containers(HTMLParser):
    """What may be wider than a window, and stands in nothing that scrolls or shrinks it."""

    VOID = ("meta", "link", "img", "br", "hr", "input")

    def __init__(self):
        super().__init__()
        self.open: list[tuple[str, str]] = []
        self.loose: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag, attributes):
        classes = dict(attributes).get("class") or ""
        inside = [*self.open, (tag, classes)]
        held = {
            "table": any(name == "div" and "table" in kind.split() for name, kind in self.open),
            "img": any(name == "figure" for name, _ in self.open) or "plain" in classes.split(),
        }
        self.seen.add(tag)
        if not held.get(tag, True):
            self.loose.append(tag)
        if tag not in self.VOID:
            self.open = inside

    def handle_endtag(self, tag):
        while self.open and self.open.pop()[0] != tag:
            pass
