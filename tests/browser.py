"""What the tests of pages and of the explorer need of a real browser: Debian's chromium, driven by Playwright."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from sqlib.config import REPOSITORY

SCREENSHOTS = REPOSITORY / "build/screenshots"
"""Here the tests leave pictures of what they saw, for people to look at."""

OPTIONS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-sync", "--disable-component-update"),
    *("--disable-background-networking", "--force-color-profile=srgb"),
]


def installed() -> str | None:
    """Chromium's path, or None; in CI the test fails without one."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None and os.environ.get("CI"):
        pytest.fail("no chromium found: CI must install it (apt-get install chromium)")
    return found


@contextmanager
def chromium() -> Iterator[Browser]:
    """A running chromium; the test is skipped where there is none. No notebook can be executed in this process meanwhile."""
    path = installed()
    if path is None:
        pytest.skip("no chromium (Debian: apt-get install chromium)")
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
