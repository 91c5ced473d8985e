"""JupyterLab in a real browser: the explorer opened, run, moved, filtered and drawn on; training watched and interrupted."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from browser import SCREENSHOTS, chromium
from playwright.sync_api import Page, expect

from sqlib.places import REPOSITORY

pytestmark = pytest.mark.browser

TOKEN = "only-for-this-test"
SECONDS = 1000  # Playwright counts in milliseconds


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of a JupyterLab that serves copies of explore.ipynb and of a long 2_train.ipynb on loopback."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copy(REPOSITORY / "notebooks/explore.ipynb", folder)
    training, once = (REPOSITORY / "notebooks/2_train.ipynb").read_text(), ".run(run_id)"
    assert training.count(once) == 1
    (folder / "2_train.ipynb").write_text(training.replace(once, once + ".model_copy(update={'epochs': 200})"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--ServerApp.ip=127.0.0.1", "--allow-root"]
    command += [f"--ServerApp.port={port}", f"--IdentityProvider.token={TOKEN}", f"--notebook-dir={folder}"]
    own = {name: str(folder / name.lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")}
    own["JUPYTER_CONFIG_PATH"] = str(REPOSITORY / "notebooks/.jupyter")  # as `make lab` has it
    # Published models, whatever studies lie in this checkout: the test is the same everywhere.
    with open(folder / "lab.log", "w") as log:
        running = subprocess.Popen(command, env={**os.environ, **own}, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{address}/api").close()
                break
            except OSError:
                assert running.poll() is None, (folder / "lab.log").read_text()
                time.sleep(0.2)
        yield address
    finally:
        running.terminate()
        running.wait(60)


def run_all(browser, server: str, notebook: str, height: int) -> tuple[Page, list[str]]:
    """(a tab in which all cells of the notebook were told to run, the errors that its console shows)."""
    tab = browser.new_page(viewport={"width": 1400, "height": height})
    tab.set_default_timeout(60 * SECONDS)
    expect.set_options(timeout=60 * SECONDS)
    errors: list[str] = []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.on("request", lambda r: errors.append(r.url) if not r.url.startswith((server, "data:", "blob:")) else None)
    # In a workspace of its own, or JupyterLab would open what the tab before had open, too.
    tab.goto(f"{server}/lab/workspaces/{Path(notebook).stem}/tree/{notebook}?token={TOKEN}")
    tab.wait_for_selector(".jp-Notebook")
    kernel = tab.locator(".jp-Toolbar-kernelName").first
    accept = tab.locator(".jp-Dialog button.jp-mod-accept")
    for _ in range(240):  # JupyterLab asks for the kernel when it is quicker than its own session
        if accept.count():
            accept.first.click()
        elif "Python 3" in kernel.inner_text() and "Unknown" not in (kernel.get_attribute("title") or ""):
            break
        tab.wait_for_timeout(500)
    tab.get_by_role("menuitem", name="Run", exact=True).click()
    tab.get_by_text("Run All Cells", exact=True).click()
    return tab, errors


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def lab(browser, server):
    """(the tab in which the explorer has run, the errors that its console showed)."""
    tab, errors = run_all(browser, server, "explore.ipynb", 1300)
    try:
        expect(tab.locator(".sqx").first).to_be_visible(timeout=180 * SECONDS)
    finally:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        tab.screenshot(path=SCREENSHOTS / "lab.jpg", quality=80)
    return tab, errors


def maps(tab: Page, place: int = 0) -> list[str]:
    """The pictures of one view (0: the test image, 1: the drawing), as addresses."""
    return tab.locator(".sqx").nth(place).locator("img").evaluate_all("all => all.map(one => one.src)")


def changed(tab: Page, before: list[str], place: int = 0) -> list[str]:
    """Waits until a view shows something else than `before`."""
    for _ in range(300):
        now = maps(tab, place)
        if now and now != before:
            return now
        tab.wait_for_timeout(100)
    raise AssertionError("the picture has not changed in 30 seconds")


def choose(tab: Page, what: str, value: str) -> None:
    """Choose from the menu that is called `what`."""
    menu = tab.locator(f".widget-dropdown:has(label:text-is('{what}')) select").first
    menu.select_option(label=value)


def slide(tab: Page, what: str, share: float) -> None:
    """Click on the slider that is called `what`, at this share of its length, once it stands still where it is."""
    track = tab.locator(".widget-slider").filter(has_text=what).first.locator(".noUi-base")
    track.hover(force=True)
    box = None
    while (again := track.bounding_box()) != box:
        box = again
        tab.wait_for_timeout(300)
    tab.mouse.click(box["x"] + box["width"] * share, box["y"] + box["height"] / 2)


def test_a_slider_and_every_menu_change_the_picture(lab):
    tab, errors = lab
    first = maps(tab)
    assert len(first) == 5  # the image and four setups
    assert tab.get_by_text("Jupyter news").count() == 0  # nothing asks to reach out
    slide(tab, "image", 0.6)
    seen = changed(tab, first)
    for what, value in (("method", "input × gradient"), ("gradient", "unclipped"), ("training", "saliency-guided")):
        choose(tab, what, value)
        seen = changed(tab, seen)
    choose(tab, "class", "3")
    seen = changed(tab, seen)
    expect(tab.get_by_text("truth: 3").first).to_be_visible()
    choose(tab, "class", "all classes")
    expect(tab.get_by_text(re.compile(r"Test image \d+, \d+ of 1000")).first).to_be_visible()
    assert maps(tab) == seen  # the image stays, since it passes
    for which in ("some setup is wrong", "setups disagree"):
        choose(tab, "show", which)
        expect(tab.locator(".sqx").first.get_by_text("(wrong)").first).to_be_visible()
    slide(tab, "blank", 1 / 3)
    expect(tab.locator(".sqx").first.get_by_text("without its top 30%").first).to_be_visible()
    assert len(maps(tab)) == 5 + 4
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    tab.screenshot(path=SCREENSHOTS / "lab_image.jpg", quality=80)
    assert errors == []


def test_a_stroke_is_answered_by_every_network(lab):
    tab, errors = lab
    tab.get_by_text("Draw your own").first.click()
    canvas = tab.locator("canvas[aria-label^='Canvas to draw']").first
    canvas.scroll_into_view_if_needed()
    expect(tab.locator(".sqx").nth(1)).to_contain_text("Draw a digit or a garment")
    before, box = maps(tab, 1), canvas.bounding_box()
    tab.mouse.move(box["x"] + 126, box["y"] + 40)
    tab.mouse.down()
    for step in range(20):
        tab.mouse.move(box["x"] + 126 + 2 * (step % 3), box["y"] + 40 + 9 * step)
    tab.mouse.up()
    drawn = changed(tab, before, 1)
    # The map of every network, and the drawing without its top 30%, as it was chosen in the other tab.
    assert before == [] and len(drawn) == 2 * 4
    tab.wait_for_timeout(500)
    # As JupyterLab opens on a laptop, with its list of files: all four stand beside the pad.
    tab.set_viewport_size({"width": 1280, "height": 800})
    tab.wait_for_timeout(500)
    canvas.scroll_into_view_if_needed()
    pad = canvas.bounding_box()
    boxes = [figure.bounding_box() for figure in tab.locator(".sqx").nth(1).locator("figure").all()]
    assert len({round(one["y"]) for one in boxes}) == 1 and boxes[0]["x"] > pad["x"] + pad["width"]
    tab.screenshot(path=SCREENSHOTS / "lab_drawing_1280.jpg", quality=80)
    tab.set_viewport_size({"width": 1400, "height": 1300})
    tab.screenshot(path=SCREENSHOTS / "lab_drawing.jpg", quality=80)
    tab.get_by_role("button", name="clear").click()
    expect(tab.locator(".sqx").nth(1)).to_contain_text("Draw a digit or a garment")
    assert errors == []


def test_training_is_drawn_while_it_lasts_and_an_interruption_keeps_what_there_is(browser, server):
    tab, errors = run_all(browser, server, "2_train.ipynb", 1000)
    line = tab.locator(".jp-OutputArea p").filter(has_text="mnist/lenet/w2a2/saliency_guided/seed0:").first
    curves, maps = (tab.locator(f"img[alt^='{alt}']") for alt in ("Loss and accuracy", "Ten validation images and"))
    expect(curves).to_be_visible(timeout=180 * SECONDS)
    expect(maps).to_be_visible()
    assert curves.evaluate("image => image.naturalWidth") > 400
    before = maps.get_attribute("src")
    for _ in range(300):
        if maps.get_attribute("src") != before:
            break
        tab.wait_for_timeout(100)
    else:
        raise AssertionError("the maps have not changed in 30 seconds")
    expect(line.locator("progress")).to_be_visible()
    expect(line).to_contain_text("s left")
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    line.scroll_into_view_if_needed()
    tab.screenshot(path=SCREENSHOTS / "lab_training.jpg", quality=80)
    tab.get_by_role("menuitem", name="Kernel", exact=True).click()
    tab.get_by_text("Interrupt Kernel", exact=True).click()
    expect(line).to_contain_text("interrupted. What follows is the network after epoch")
    expect(tab.locator("#film_strip img").first).to_be_visible()
    expect(curves).to_have_count(0)
    line.scroll_into_view_if_needed()
    tab.screenshot(path=SCREENSHOTS / "lab_interrupted.jpg", quality=80)
    assert errors == []
