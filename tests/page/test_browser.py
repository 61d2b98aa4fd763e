"""The page and the server in headless Chromium: no errors, nothing plays by itself, every figure is drawn and answers.

SPEECHSSL_SCREENSHOTS=docs (with SPEECHSSL_SCREENSHOTS_OF=RUN[:RUN...], else of the tiny runs) writes screenshots there.
"""

import os
import sys
import threading
import time
from pathlib import Path

import pytest
from tiny_run import ROOT

from speechssl.page.write import write_page

sys.path.insert(0, str(ROOT / "tools"))

import long_page

pytest.importorskip("sklearn", reason="the maps need the extra [report]")


@pytest.fixture
def opened(browser):
    """Opens an address in a fresh page that fails the test on any complaint, and on any request beyond it."""
    contexts, problems = [], []

    def open_page(address: str, *, width: int = 1280, scheme: str = "light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: note(request.url))
        origin = address.split("/listen")[0]

        def note(url: str) -> None:
            if not url.startswith(("data:", "blob:", origin)):
                problems.append(f"asks for {url}")

        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


def until(page, expression: str, seconds: float = 20.0) -> None:
    """Waits for an expression to become true. (Playwright's own way needs eval, which the page's policy forbids.)"""
    deadline = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, expression
        time.sleep(0.05)


@pytest.fixture(scope="module")
def address(demo) -> str:
    write_page([demo / "pretrain", demo / "tuned"], demo / "browser.html", each=2)
    return (demo / "browser.html").as_uri()


def test_every_figure_is_drawn_and_nothing_plays(opened, address):
    page = opened(address)
    assert page.evaluate("[...document.querySelectorAll('audio')].every(a => a.paused && a.currentTime === 0)")
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    empty = page.evaluate(
        """[...document.querySelectorAll('figure, .strip, .ink, .plot svg, .map circle')]
        .filter(e => { const box = e.getBoundingClientRect(); return box.width < 1 || box.height < 1; })
        .map(e => e.outerHTML.slice(0, 100))"""
    )
    assert empty == []
    outside = page.evaluate(
        """[...document.querySelectorAll('.plot polyline')].filter(line => {
          const box = line.getBoundingClientRect(), plot = line.closest('.plot').getBoundingClientRect();
          return box.left < plot.left - 2 || box.right > plot.right + 2 || box.top < plot.top - 2
            || box.bottom > plot.bottom + 2; }).map(line => line.closest('figure').id)"""
    )
    assert outside == []


def test_values_are_read_by_pointer_and_by_keyboard(opened, address):
    page = opened(address)
    plot = page.locator("#curve-0-loss .plot")
    readout = plot.locator(".readout")
    assert not readout.is_visible()
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    page.mouse.move(box["x"] + box["width"] - 1, box["y"] + 20)
    assert readout.inner_text().startswith("10.0 updates")
    plot.focus()
    page.keyboard.press("Home")
    assert readout.inner_text().startswith("1.00 updates")
    page.keyboard.press("ArrowRight")
    assert readout.inner_text().startswith("2.00 updates")
    page.keyboard.press("Escape")
    assert not readout.is_visible()


def test_a_legend_hides_a_run_and_brings_out_a_speaker(opened, address):
    page = opened(address)
    line = page.locator("#curve-0-loss polyline").first
    button = page.locator("#learning .legend .run").first
    assert line.is_visible()
    button.focus()
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "false"
    assert not line.is_visible()
    button.click()
    assert line.is_visible()
    page.locator(".maps [data-class='0']").first.click()
    assert page.locator(".map circle.faint").count() > 0
    assert page.locator(".map circle.faint[data-class='0']").count() == 0


def test_sound_plays_when_it_is_asked_for(opened, address):
    page = opened(address)
    strip = page.locator(".mask .strip").first
    strip.scroll_into_view_if_needed()
    strip.click(position={"x": 0.5 * strip.bounding_box()["width"], "y": 10})
    until(page, "document.querySelector('.mask audio').currentTime > 0.2")
    assert page.locator(".mask .now").first.is_visible()
    assert page.evaluate("[...document.querySelectorAll('audio')].filter(a => !a.paused).length") <= 1


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_no_width_makes_the_page_scroll_sideways(opened, address, width):
    page = opened(address, width=width)
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_dark_is_dark_and_texts_can_be_read(opened, address):
    for scheme, paper in (("light", 255), ("dark", 0)):
        page = opened(address, scheme=scheme)
        paint = page.evaluate(
            """['background-color', 'color'].map(what =>
            getComputedStyle(document.body).getPropertyValue(what).match(/\\d+/g).map(Number))"""
        )
        background, ink = (sum(rgb) / 3 for rgb in paint)
        assert abs(background - paper) < 40
        assert abs(background - ink) > 150


def test_a_long_run_opens(opened, demo, tmp_path):
    """Whole, and without a complaint; how soon is measured by tools/long_page.py, on a machine that is free."""
    write_page([long_page.stretch(demo / "tuned/ctc", tmp_path / "long")], tmp_path / "long.html")
    page = opened((tmp_path / "long.html").as_uri())
    loaded = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
    assert 0 < loaded <= page.evaluate(long_page.PAINTED)  # both in milliseconds
    plot = page.locator("#curve-0-ctc .plot")
    plot.focus()
    page.keyboard.press("End")
    assert plot.locator(".readout").inner_text().startswith("400,000 updates")


def test_the_server_transcribes_a_file_and_the_microphone(opened, demo, running):
    from speechssl.listener import Listener

    address = running(Listener(demo / "tuned/ctc", demo / "corpus/train.jsonl"))
    page = opened(f"{address}/")
    page.locator("input[type=file]").set_input_files(demo / "corpus/train-3.flac")
    page.wait_for_selector(".answer .strip")
    assert page.locator("[role=status]").inner_text() == "0.8 s heard."
    assert page.locator(".answer .posteriors .ink").bounding_box()["height"] > 1
    assert "speaker0" in page.locator(".answer table").inner_text()
    assert page.evaluate("document.querySelector('audio').paused")
    page.locator(".record").click()
    until(page, "document.querySelector('[role=status]').textContent === 'Recording ...'")
    time.sleep(1)
    page.locator(".record").click()
    until(page, "document.querySelector('[role=status]').textContent.endsWith('s heard.')")


@pytest.fixture
def running():
    """Starts the application on a free port of this machine, and stops it."""
    uvicorn = pytest.importorskip("uvicorn", reason="the server needs the extra [serve]")
    started = []

    def start(listener) -> str:
        from speechssl.serve import Limits, build_app

        server = uvicorn.Server(uvicorn.Config(build_app(listener, Limits()), port=0, log_level="warning"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        started.append((server, thread))
        while not server.started:
            time.sleep(0.05)
        port = server.servers[0].sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}"

    yield start
    for server, thread in started:
        server.should_exit = True
        thread.join(timeout=20)


def test_screenshots(opened, demo, address):
    folder = os.environ.get("SPEECHSSL_SCREENSHOTS")
    if not folder:
        pytest.skip("SPEECHSSL_SCREENSHOTS names no folder for pictures")
    if runs := os.environ.get("SPEECHSSL_SCREENSHOTS_OF"):
        write_page(runs.split(":"), demo / "shown.html", title="speechssl demo")
        address = (demo / "shown.html").as_uri()
    for name, width, scheme in (("light", 1280, "light"), ("dark", 1280, "dark"), ("narrow", 390, "light")):
        page = opened(address, width=width, scheme=scheme)
        height = min(page.evaluate("document.documentElement.scrollHeight"), 12_000)
        page.set_viewport_size({"width": width, "height": height})
        page.screenshot(path=Path(folder) / f"report-{name}.jpg", quality=60)
