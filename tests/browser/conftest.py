"""The system's Chromium for the tests of this folder; they are skipped, with the reason, where there is none."""

import os
import shutil
from importlib.util import find_spec

import pytest

INSTALL = "tests/browser/install_chromium.sh"
NAME = os.environ.get("CHROMIUM") or "chromium"


def pytest_itemcollected(item):
    if "chromium" in item.fixturenames:
        item.add_marker("browser")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):  # before any fixture: without a browser no site is built
    if not item.get_closest_marker("browser"):
        return
    if not find_spec("playwright"):
        pytest.skip("needs playwright: pip install -e '.[dev]'")
    if not shutil.which(NAME):
        pytest.skip(f"needs {NAME}, which is not here: {INSTALL} installs Chromium, or set CHROMIUM to the path of one")


@pytest.fixture(scope="module")  # while it lives, its worker can run no other event loop
def chromium():
    """A headless Chromium, driven by playwright; its pages are closed with it."""
    from playwright.sync_api import sync_playwright

    as_root = ["--no-sandbox"] if os.getuid() == 0 else []  # Chromium's sandbox does not start for root
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which(NAME), args=as_root)
        yield browser
        browser.close()
