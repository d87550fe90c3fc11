"""Headless Chromium, driven by selenium: what tests of the page do in it. Skips where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1280,900",
    "--lang=en-US", "--force-prefers-reduced-motion",
)  # fmt: skip


@contextmanager
def chromium(profile: Path) -> Iterator[Any]:
    """A browser with a profile of its own, and without a network."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="no selenium: pip install selenium")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("no Chromium with its chromedriver: install Debian's packages chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield found
    finally:
        found.quit()


def complaints(browser: Any) -> list[str]:
    """What the console has said since it was last asked."""
    return [line["message"] for line in browser.get_log("browser") if line["level"] != "INFO"]


def grave_findings(browser: Any) -> list[tuple[str, str, list[str]]]:
    """What axe finds serious or critical: the rule, how bad it is, and the first places."""
    axe = pytest.importorskip("axe_core_python.selenium", reason="no axe: pip install axe-core-python")
    browser.set_script_timeout(60)
    return [
        (each["id"], each["impact"], [node["html"][:160] for node in each["nodes"][:3]])
        for each in axe.Axe().run(browser)["violations"]
        if each["impact"] in ("serious", "critical")
    ]


def one(browser: Any, selector: str) -> Any:
    """The first element of a kind."""
    return browser.find_element("css selector", selector)


def press(browser: Any, *keys: str) -> None:
    """Press keys, wherever the focus is."""
    from selenium.webdriver.common.action_chains import ActionChains

    chain = ActionChains(browser)
    for key in keys:
        chain.send_keys(key)
    chain.perform()


def wait(browser: Any, script: str) -> Any:
    """Wait until an expression is true."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 10, poll_frequency=0.05).until(lambda _: browser.execute_script(f"return {script}"))


def keys() -> Any:
    """The names of keys."""
    from selenium.webdriver.common.keys import Keys

    return Keys
