"""Debian's chromium on the page of a real server. Pages may neither contact another host nor report an error."""

import os
import shutil
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

from spawning import free_port, start_command

PATIENCE = 60_000  # ms, on a machine that other work shares
_START = 120.0  # s


def chromium():
    """Return the browser's path, or None."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def is_needed():
    """Return whether a missing browser is a failure, as it is in CI."""
    return "CI" in os.environ


@contextmanager
def browsing():
    """Run chromium without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def serving(*words, errors):
    """Run `darklens serve WORDS` on a free port and yield its address; standard error goes to a file."""
    port = free_port()
    server = start_command(["serve", *words, "--port", port], errors)
    try:
        _wait_for(f"http://127.0.0.1:{port}/readyz", server, errors)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.join(30)
        server.kill()


def _wait_for(address, server, errors):
    deadline = time.monotonic() + _START
    while time.monotonic() < deadline:
        if not server.is_alive():
            raise RuntimeError(f"The server stopped: {errors.read_text()}")
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise RuntimeError(f"No server after {_START:g} s at {address}.")


class Watched:
    """A page in a separate context that records requests to other hosts and errors in the console."""

    def __init__(self, browser, address, *, width=1400, theme="light"):
        self.context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=theme, reduced_motion="reduce", accept_downloads=True
        )
        self.context.set_default_timeout(PATIENCE)
        self.page = self.context.new_page()
        self.foreign_requests, self.errors = [], []
        self.page.on("request", lambda request: self._note(request.url, address))
        self.page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(address)
        self.page.locator("#examples button").first.wait_for()

    def _note(self, url, address):
        if not url.startswith((address, "data:", "blob:")):
            self.foreign_requests.append(url)

    def settle(self):
        """Wait until no request is in flight."""
        self.page.locator("#results[aria-busy=false]").wait_for()
