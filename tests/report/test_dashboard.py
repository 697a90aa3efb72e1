"""trackio's own page in a real browser: what a run has told it."""

import os
import re
import subprocess
import sys

import pytest

from builders import ROOT, tiny_run
from pages import browser, needs_browser, waited

pytestmark = [pytest.mark.slow, needs_browser]
CURVES = ("AP50", "loss", "lr", "images_per_s")


@pytest.fixture
def address(tmp_path):
    """Of the page that shows a run."""
    own = {**os.environ, "TRACKIO_DIR": str(tmp_path / "tracker"), "OMP_NUM_THREADS": "1"}
    keys = {"run__pictures": True, "run__tracker": "trackio", "run__project": "tiny"}
    argv = tiny_run(tmp_path, **keys, train__evaluate_every=2, train__steps=4)
    subprocess.run([sys.executable, "train_accelerate.py", *argv], cwd=ROOT, env=own, check=True)
    show = [sys.executable, "-u", "-m", "trackio.cli", "show", "--project", "tiny"]
    own["BROWSER"] = "true"  # it would open one
    with subprocess.Popen(show, env=own, stdout=subprocess.PIPE, text=True) as process:
        try:
            for line in process.stdout:
                if found := re.search(r"http://[\d.:]+", line):
                    yield found[0]
                    break
        finally:
            process.terminate()


def test_curves_and_pictures_of_a_run_are_shown(address):
    from selenium.webdriver.common.by import By

    with browser() as driver:
        driver.get(f"{address}/?project=tiny")
        words = waited(driver, lambda d: _words_with(d, "grad_norm"))
        assert [curve for curve in CURVES if curve not in words] == []
        assert waited(driver, lambda d: len(d.find_elements(By.TAG_NAME, "canvas")) > 5)
        if folder := os.environ.get("SCREENSHOTS"):
            driver.save_screenshot(f"{folder}/curves.png")
        tabs = driver.find_elements(By.XPATH, "//*[normalize-space(text())='Media & Tables']")
        tabs[0].click()
        pictures = waited(driver, _pictures)
        assert len(pictures) >= 3
        if folder := os.environ.get("SCREENSHOTS"):
            driver.save_screenshot(f"{folder}/pictures.png")


def _words_with(driver, word):
    words = driver.find_element("tag name", "body").text
    return words if word in words else None


def _pictures(driver):
    """Those of the run that are loaded; none before three of them are."""
    script = "return [...document.images].filter(i => i.naturalWidth > 200).map(i => i.src)"
    found = driver.execute_script(script)
    return found if len(found) >= 3 else None
