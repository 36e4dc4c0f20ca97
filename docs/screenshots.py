"""Takes the pictures of the studio that the pages show, after real edits by the embedded model.

    python docs/screenshots.py

Needs Chromium and the extra `dev`.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "examples" / "picture.png"
SIZES = {"studio": (1280, 860), "studio-phone": (390, 844)}
"""Name of a picture -> the window's width and height."""
EDITS = ("make it night", "make it sunset")
"""Each of the original: two branches."""
_MAX_BYTES = 400_000
_MINUTES = 60_000.0


@contextmanager
def studio(port: int = 7879) -> Iterator[str]:
    """The address of a studio as `wordbrush ui` shows it."""
    command = [sys.executable, "-m", "wordbrush", "ui", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        found = re.search(r"http\S+", process.stdout.readline())
        if found is None:
            raise SystemExit("the studio did not start: its message stands above")
        yield found[0]
    finally:
        process.terminate()
        process.wait()


def edit(page: Page) -> None:
    """Upload the picture and edit it twice."""
    page.locator("#drop input[type=file]").set_input_files(PICTURE)
    page.locator("#view img").wait_for()
    page.get_by_role("tab", name="Settings").click()
    page.get_by_label("Seed").fill("0")
    page.get_by_role("tab", name="History").click()
    for instruction in EDITS:
        if page.locator("#undo").is_enabled():
            page.locator("#undo").click()
            page.locator("#notice", has_text="The original").wait_for()
        page.get_by_label("What should change?").fill(instruction)
        page.keyboard.press("Enter")
        page.locator("#notice", has_text=re.compile(rf"“{instruction}” · seed")).wait_for()
        page.locator("#run").wait_for()


def main() -> None:
    """Edit once, and take the picture at every size."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        raise SystemExit("needs Chromium: apt-get install chromium")
    with studio() as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(10 * _MINUTES)
        page.goto(url)
        page.locator("#drop").wait_for()
        edit(page)
        for name, (width, height) in SIZES.items():
            page.set_viewport_size({"width": width, "height": height})
            page.mouse.move(0, 0)
            page.wait_for_timeout(2000)  # what moves comes to rest
            path = ROOT / "docs" / "pictures" / f"{name}.png"
            page.screenshot(path=path)
            print(f"{path.relative_to(ROOT)}: {path.stat().st_size:,} bytes")
            if path.stat().st_size > _MAX_BYTES:
                raise SystemExit(f"{path.name} is larger than {_MAX_BYTES:,} bytes")
        browser.close()


if __name__ == "__main__":
    main()
