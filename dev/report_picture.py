"""Take the picture of a report that stands in the docs: `docs/guides/report.png`.

Chromium with chromedriver must be installed.

    python dev/report_picture.py docs/results/quick.json docs/guides/report.png
"""

import argparse
import shutil
import tempfile
from pathlib import Path

from selenium import webdriver

from outrider.report.page import write_page
from outrider.report.sources import read_source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", type=Path)
    parser.add_argument("output", type=Path)
    given = parser.parse_args()
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    with tempfile.TemporaryDirectory() as place:
        page = Path(place) / "report.html"
        write_page([read_source(given.run)], page)
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
        size = {"width": 1180, "height": 980, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        light = {"name": "prefers-color-scheme", "value": "light"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [light]})
        driver.get(page.as_uri())
        driver.save_screenshot(str(given.output))
        driver.quit()


if __name__ == "__main__":
    main()
