"""A report, or the page of `darklens serve`, as a browser shows it on a phone and on a desk, for docs/images.

python tools/screenshots.py REPORT.html           report-400.png and report-1400.png, the upper part of the report
python tools/screenshots.py --page ADDRESS        page-400.png and page-1400.png of an example lens, also in dark

Needs Debian's chromium.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEIGHTS = {400: 4000, 1400: 3600}  # pixels of a report, by the width of the window
NARROWEST = 500  # of a headless window; the report is framed, so that it can be narrower
PAGE_HEIGHTS = {400: 3400, 1400: 2100}
PATIENCE = 120_000  # ms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path, nargs="?", help="report.html of `evaluate` or `compare`")
    parser.add_argument("--page", help="address of a running `darklens serve`, such as http://127.0.0.1:8000")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    options = parser.parse_args()
    browser = shutil.which("chromium")
    if browser is None:
        sys.exit("chromium is not installed; apt-get install chromium.")
    if (options.report is None) == (options.page is None):
        parser.error("give a report, or the address of a page.")
    if options.page is None:
        of_report(browser, options.report, options.out)
    else:
        of_page(browser, options.page, options.out)


def of_report(browser: str, report: Path, out: Path) -> None:
    from matplotlib import image

    for width, height in HEIGHTS.items():
        with tempfile.TemporaryDirectory() as folder:
            page, picture = Path(folder) / "frame.html", Path(folder) / "picture.png"
            frame = f'<iframe src="{report.resolve().as_uri()}" width="{width}" height="{height}" frameborder="0">'
            page.write_text(f'<body style="margin:0">{frame}</iframe>', encoding="utf-8")
            window = f"--window-size={max(width, NARROWEST)},{height}"
            options = ["--headless", "--no-sandbox", "--hide-scrollbars", "--allow-file-access-from-files", window]
            command = [browser, *options, f"--screenshot={picture}", page.as_uri()]
            subprocess.run(command, check=True, capture_output=True, timeout=120)
            image.imsave(out / f"report-{width}.png", image.imread(picture)[:height, :width, :3])


def of_page(browser: str, address: str, out: Path) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        for width, height in PAGE_HEIGHTS.items():
            for theme, suffix in (("light", ""), ("dark", "-dark")):
                page = running.new_page(
                    viewport={"width": width, "height": 900}, color_scheme=theme, reduced_motion="reduce"
                )
                page.set_default_timeout(PATIENCE)
                page.goto(address)
                page.locator("#examples button").nth(1).click()
                page.locator(".map-figure").first.wait_for()
                page.locator("#results[aria-busy=false]").wait_for()
                whole = page.evaluate("document.documentElement.scrollHeight")
                shown = {"x": 0, "y": 0, "width": width, "height": min(height, whole)}
                page.screenshot(path=out / f"page-{width}{suffix}.png", full_page=True, clip=shown)
                page.close()
        running.close()


if __name__ == "__main__":
    main()
