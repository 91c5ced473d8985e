"""What the tests of pages and of the explorer need of a real browser: Debian's chromium, driven by Playwright."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from sqlib.places import REPOSITORY

SCREENSHOTS = REPOSITORY / "build/screenshots"
"""Here the tests leave pictures of what they saw, for people to look at."""

NAMES = ("chromium", "chromium-browser", "google-chrome")
"""What it is called; the Makefile looks for the same, and where there is none it leaves out what is marked `browser`."""

OPTIONS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-sync", "--disable-component-update"),
    *("--disable-background-networking", "--force-color-profile=srgb"),
]


@contextmanager
def chromium() -> Iterator[Browser]:
    """A running chromium; the test fails where there is none. No notebook can be executed in this process meanwhile."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.fail(
            f"none of {', '.join(NAMES)} found (Debian: apt-get install chromium); -m 'not browser' leaves this out"
        )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=OPTIONS)
        yield browser
        browser.close()


def opened(browser: Browser, width: int = 1280, scheme: str = "light") -> tuple[Page, list[str]]:
    """(an empty tab without a network, the list that its errors and its requests to other machines go to)."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    tab, heard = context.new_page(), []
    tab.on("console", lambda message: message.type == "error" and heard.append(f"console: {message.text}"))
    tab.on("pageerror", lambda error: heard.append(f"script: {error}"))
    tab.on("request", lambda r: r.url.startswith(("file:", "data:")) or heard.append(f"remote: {r.url}"))
    tab.on("requestfailed", lambda r: heard.append(f"failed: {r.url[:200]}"))
    return tab, heard


def scrolls_sideways(tab: Page) -> bool:
    """Whether what is laid out is wider than the window."""
    return tab.evaluate("document.documentElement.scrollWidth > innerWidth")


def violations(tab: Page) -> list[str]:
    """What axe-core finds serious or critical on the page that is open."""
    found = Axe().run(tab).response["violations"]
    return [
        f"{violation['id']}: {violation['help']}: {node['html'][:160]}"
        for violation in found
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"][:3]
    ]


def picture(tab: Page, name: str) -> Path:
    """Writes a screenshot of the whole page to `SCREENSHOTS`."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    path = SCREENSHOTS / f"{name}.jpg"
    tab.screenshot(path=path, full_page=True, quality=80)
    return path
