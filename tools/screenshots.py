"""A report as a browser shows it, on a phone and on a desk: `python tools/screenshots.py REPORT.html`.

Needs Debian's chromium. Writes docs/images/report-400.png and report-1400.png, the upper part of the page.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from commands import ROOT

HEIGHTS = {400: 4000, 1400: 3600}  # pixels, by the width of the window
NARROWEST = 500  # of a headless window; the page is framed, so that it can be narrower


def main() -> None:
    from matplotlib import image

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path, help="report.html of `evaluate` or `compare`")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    given = parser.parse_args()
    browser = shutil.which("chromium")
    if browser is None:
        sys.exit("chromium is not installed; apt-get install chromium.")
    for width, height in HEIGHTS.items():
        with tempfile.TemporaryDirectory() as folder:
            page, picture = Path(folder) / "frame.html", Path(folder) / "picture.png"
            frame = (
                f'<iframe src="{given.report.resolve().as_uri()}" width="{width}" height="{height}" frameborder="0">'
            )
            page.write_text(f'<body style="margin:0">{frame}</iframe>', encoding="utf-8")
            window = f"--window-size={max(width, NARROWEST)},{height}"
            options = ["--headless", "--no-sandbox", "--hide-scrollbars", "--allow-file-access-from-files", window]
            command = [browser, *options, f"--screenshot={picture}", page.as_uri()]
            subprocess.run(command, check=True, capture_output=True, timeout=120)
            image.imsave(given.out / f"report-{width}.png", image.imread(picture)[:height, :width, :3])


if __name__ == "__main__":
    main()
