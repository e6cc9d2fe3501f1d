"""Take the picture of the served page that stands in the docs: `docs/start/page.png`.

The page must be served (`outrider serve smollm2-135m --method hybrid`), and Chromium with chromedriver be installed.
With `--compare` the same turn is decoded plainly too, so that the picture shows the gain: on a quiet machine only. It
prints the answer's figures, and the longest step over the median, which tells a quiet machine from a busy one.

    python dev/page_picture.py http://127.0.0.1:8000 docs/start/page.png --compare
"""

import argparse
import shutil
import statistics
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.support.wait import WebDriverWait

EXAMPLE = "document.querySelectorAll('.examples button')[2].click()"
BUTTONS = "return document.querySelectorAll('.turn-foot button').length > 1"
COMPARE = "document.querySelectorAll('.turn-foot button')[1].click()"
COMPARED = "return document.querySelector('.turn .result')?.textContent"
STEPS = "return document.querySelector('acceptance-ribbon').steps"
HOLD = "document.querySelectorAll('.turn .token')[arguments[0]].click(); document.activeElement.blur(); scrollTo(0, 0)"


def telling(steps: list[dict[str, Any]]) -> int:
    """Return the first token of a step that kept several nodes and rejected some."""
    kept = [sum(node["outcome"] == "accepted" for node in step["nodes"]) for step in steps]
    best = max(range(2, len(steps)), key=lambda place: (0 < kept[place] < len(steps[place]["nodes"]), kept[place]))
    return sum(len(step["tokens"]) for step in steps[:best])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("url")
    parser.add_argument("output", type=Path)
    parser.add_argument("--compare", action="store_true")
    given = parser.parse_args()
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    wait = WebDriverWait(driver, 300)
    size = {"width": 1180, "height": 820, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.get(given.url)
    wait.until(lambda page: page.execute_script("return 'ready' in document.documentElement.dataset"))
    driver.execute_script(EXAMPLE)
    wait.until(lambda page: page.execute_script(BUTTONS))
    if given.compare:
        driver.execute_script(COMPARE)
        print(wait.until(lambda page: page.execute_script(COMPARED)))
    steps = driver.execute_script(STEPS)
    spent = [step["ms"]["total"] for step in steps]
    print(f"{len(steps)} steps; longest over median: {max(spent) / statistics.median(spent):.1f}")
    driver.execute_script(HOLD, telling(steps))
    driver.save_screenshot(str(given.output))
    driver.quit()


if __name__ == "__main__":
    main()
