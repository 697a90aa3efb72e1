"""Debian's chromium, driven by selenium."""

import contextlib
import json
import shutil
import time

import pytest

BROWSER, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
needs_browser = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="no chromium: apt-get install chromium chromium-driver"
)


@contextlib.contextmanager
def browser(width=1400):
    """A browser without a screen, which keeps what pages ask for and what goes wrong in them."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(word)
    options.add_argument(f"--window-size={width},1000")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(service=webdriver.ChromeService(DRIVER), options=options)
    try:
        yield driver
    finally:
        driver.quit()


def requests_of(driver):
    """Addresses that pages have asked for since the last call, but those that hold their content."""
    rows = [json.loads(row["message"])["message"] for row in driver.get_log("performance")]
    sent = [row["params"] for row in rows if row["method"] == "Network.requestWillBeSent"]
    urls = [row["request"]["url"] for row in sent]
    return [url for url in urls if not url.startswith(("data:", "blob:", "chrome:", "about:"))]


def waited(driver, wanted, seconds=90):
    """What `wanted` gives of the driver, when it is something."""
    from selenium.common.exceptions import WebDriverException

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(WebDriverException):
            if found := wanted(driver):
                return found
        time.sleep(0.2)
    raise AssertionError(f"waited {seconds} s")
