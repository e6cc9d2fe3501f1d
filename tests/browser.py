"""Headless Chromium for tests of pages; a test that wants it is skipped where there is none."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
NO_BROWSER = "no Chromium with chromedriver: apt-get install chromium chromium-driver; the page is not tested"
ARGUMENTS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1400,900")


@contextmanager
def chromium() -> Iterator[Any]:
    """Start one, with its log and the log of its requests."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: the page is not tested")
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    tool = shutil.which("chromedriver") or shutil.which("chromedriver", path=os.environ.get("CHROMEWEBDRIVER", ""))
    if browser is None or tool is None:
        pytest.skip(NO_BROWSER)
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ARGUMENTS:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(tool))
    try:
        yield driver
    finally:
        driver.quit()
