"""Pages in a real browser: Debian's chromium, driven by selenium (README: `make test-slow`)."""

import shutil
import time
from pathlib import Path

import pytest

import pages as pages_of
from builders import tiny_run, write_coco
from runs import train
from tools import check_data, compare

pytestmark = [pytest.mark.slow, pages_of.needs_browser]
WIDTHS_PX = (390, 1400)
LOOK = """
const colour = getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number);
const ink = getComputedStyle(document.querySelector('svg text')).fill.match(/\\d+/g).map(Number);
const outside = [...document.querySelectorAll('main *')].filter(e => {
  const box = e.getBoundingClientRect();
  return box.right > innerWidth + 1 && !e.closest('.wide, figure, pre, svg, details');
});
return {
  width: document.documentElement.scrollWidth, inner: innerWidth,
  dark: colour[0] < 128, ink: ink[0], outside: outside.map(e => e.tagName),
  broken: [...document.images].filter(i => !i.complete || !i.naturalWidth).length,
  images: document.images.length,
  charts: [...document.querySelectorAll('.card svg')].map(e => e.getBoundingClientRect().width),
  small: [...document.querySelectorAll('svg text')].filter(e => e.getBoundingClientRect().height < 6).length,
};
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The pages of a run, of a dataset and of two runs."""
    folder = tmp_path_factory.mktemp("pages")
    keys = {"run__pictures": True, "train__evaluate_every": 2, "train__steps": 4}
    train(tiny_run(folder, **keys))
    shutil.copytree(folder / "run", folder / "other", symlinks=True)
    data = write_coco(folder / "more", 8, ids=(1, 3, 17))
    given = ["--data.source", "coco", "--data.path", str(data), "--workers", "1"]
    check_data.main([*given, "--data.val_fraction", "0.5", "--html", str(folder / "data.html")])
    runs = [str(folder / "run"), str(folder / "other")]
    compare.main([*runs, "--html", str(folder / "both.html")])
    return [folder / "run/report.html", folder / "data.html", folder / "both.html"]


@pytest.fixture(scope="module")
def browser():
    with pages_of.browser() as driver:
        yield driver


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS_PX)
def test_pages_need_nothing_and_fit(pages, browser, width, dark):
    for page in pages:
        command = browser.execute_cdp_cmd
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        command("Emulation.setDeviceMetricsOverride", size)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        command("Emulation.setEmulatedMedia", {"features": scheme})
        for kind in ("performance", "browser"):
            browser.get_log(kind)  # of the page before
        browser.get(page.as_uri())
        time.sleep(0.3)
        assert pages_of.requests_of(browser) == [page.as_uri()]
        assert browser.get_log("browser") == []
        seen = browser.execute_script(LOOK)
        assert seen["inner"] == width
        assert seen["width"] <= width, page.name
        assert seen["outside"] == [], page.name
        assert seen["broken"] == 0
        assert seen["dark"] is dark
        assert (seen["ink"] > 128) is dark  # charts take the colour of text
        assert len(seen["charts"]) >= 5
        assert all(300 < chart < 700 for chart in seen["charts"])
        assert seen["small"] == 0
    assert browser.get_log("browser") == []


def test_an_error_or_a_request_would_be_seen(browser, tmp_path):
    """What the test above counts on."""
    page = tmp_path / "bad.html"
    page.write_text('<script>console.error("x")</script><img src="http://127.0.0.1:9/x.png">')
    for kind in ("performance", "browser"):
        browser.get_log(kind)
    browser.get(page.as_uri())
    time.sleep(0.5)
    assert "http://127.0.0.1:9/x.png" in pages_of.requests_of(browser)
    assert browser.get_log("browser")


def test_pages_are_small(pages):
    assert all(Path(page).stat().st_size < 4_000_000 for page in pages)
