"""The page in a real browser, headless Chromium: what is clicked, typed and read aloud. Skipped where there is none.

With a folder in EMA_SELECT_PICTURES, pictures of the page are put there, to be looked at.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from onetrainer_ema_select.manifest import LegRecord
from onetrainer_ema_select.report import make_report

from . import runs
from .chromium import chromium, complaints, grave_findings, keys, one, press, wait

PICTURES = os.environ.get("EMA_SELECT_PICTURES", "")
STEPS = (0, 100, 200, 300, 400)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with everything in it, in a folder and with prompts of awkward names."""
    workspace = tmp_path_factory.mktemp("browser") / "run #1 100% 样图"
    runs.add_samples(workspace, steps=STEPS, size=96)
    runs.add_samples(workspace, ["one set"], steps=STEPS[:2], size=32, sets=[""], first=len(runs.PROMPTS))
    runs.add_config(workspace)
    runs.add_validation(workspace, range(50, 401, 50))
    runs.add_drift(workspace, range(20, 401, 20))
    runs.add_snapshots(workspace, [200, 400])
    leg = LegRecord(id="second", choices={"resume_weights": "EMA"}, began_from="backup", began_at_step=200)
    for step in (200, 300, 400):
        backup = workspace / "backup" / f"{runs.time_of(step)}-backup-{step}-{step // 100}-0"
        runs.add_backup(backup, step=step, epoch=step // 100, leg=leg if step > 200 else None)
    return make_report(workspace).path


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium, without a window."""
    with chromium(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture
def opened(browser: Any, page: Path) -> Iterator[Any]:
    """The page, just opened; nothing may have been said on the console in the end."""
    browser.get(page.as_uri())
    assert browser.execute_script("return document.documentElement.dataset.ready") == "yes"
    yield browser
    assert complaints(browser) == []
    assert browser.execute_script("return window.broken") is None


def show_pictures(browser: Any) -> None:
    browser.execute_script("document.getElementById('pictures').scrollIntoView({behavior: 'instant'})")
    wait(browser, "document.querySelector('.prompt .ema img').naturalWidth > 0")


def style(browser: Any, selector: str, name: str) -> str:
    return browser.execute_script(
        f"return getComputedStyle(document.querySelector({selector!r})).getPropertyValue({name!r})"
    )


def test_nothing_of_the_run_has_become_part_of_the_page(opened: Any) -> None:
    titles = [each.get_attribute("textContent") for each in opened.find_elements("css selector", ".prompt h3 bdi")]
    assert titles == [*runs.PROMPTS, "one set"]
    assert len(opened.find_elements("css selector", "script:not([type])")) == 1


def test_the_slider_goes_through_the_steps_of_all_prompts(opened: Any) -> None:
    show_pictures(opened)
    first = opened.execute_script("return document.querySelector('.prompt .ema img').src")
    slider = one(opened, ".prompt .steps")
    assert slider.get_attribute("aria-valuetext").startswith("step 400, epoch 4 · the sets differ by ")
    opened.execute_script("arguments[0].focus({preventScroll: true})", slider)
    press(opened, keys().ARROW_LEFT, keys().ARROW_LEFT)
    assert one(opened, ".prompt .where").text.startswith("step 200, epoch 2")
    assert opened.execute_script("return document.querySelector('.prompt .ema img').src") != first
    values = [each.get_attribute("value") for each in opened.find_elements("css selector", ".steps")]
    assert values == ["2"] * len(runs.PROMPTS) + ["1"], "the last prompt has two steps, of which the later is nearer"
    one(opened, "#together").click()
    opened.execute_script("arguments[0].focus({preventScroll: true})", slider)
    press(opened, keys().HOME)
    values = [each.get_attribute("value") for each in opened.find_elements("css selector", ".steps")]
    assert values[:2] == ["0", "2"]
    alt = opened.execute_script("return document.querySelector('.prompt .non-ema img').alt")
    assert alt == f"non-EMA, step 0: {runs.PROMPTS[0]}"


def test_swipe_and_blend_by_keys_and_by_pointer(opened: Any) -> None:
    show_pictures(opened)
    opened.execute_script("document.querySelector('input[value=side]').focus({preventScroll: true})")
    press(opened, keys().ARROW_RIGHT)
    assert one(opened, "#pictures").get_attribute("data-mode") == "swipe"
    boxes = opened.execute_script(
        "return ['.ema', '.non-ema'].map(set => document.querySelector(`.prompt ${set} .picture`)"
        ".getBoundingClientRect()).map(box => [box.x, box.width])"
    )
    assert boxes[0] == boxes[1], "one lies on the other"
    mixer = one(opened, ".mixer")
    opened.execute_script("arguments[0].focus({preventScroll: true})", mixer)
    press(opened, keys().HOME, *[keys().ARROW_RIGHT] * 3)
    assert style(opened, ".prompt .non-ema .picture", "clip-path") == "inset(0px 0px 0px 3%)"
    from selenium.webdriver.common.action_chains import ActionChains

    picture = one(opened, ".prompt .non-ema .picture")
    width = boxes[0][1]
    ActionChains(opened).move_to_element_with_offset(picture, 0, 0).click_and_hold().move_by_offset(
        int(width / 4), 0
    ).release().perform()
    assert 73 <= int(mixer.get_attribute("value")) <= 77
    assert not one(opened, "#full").is_displayed()
    opened.execute_script("document.querySelector('input[value=swipe]').focus({preventScroll: true})")
    press(opened, keys().ARROW_RIGHT)
    assert style(opened, ".prompt .non-ema .picture", "opacity").startswith("0.7")
    picture_of(opened, "blend")


def test_full_size_is_the_original(opened: Any) -> None:
    show_pictures(opened)
    opened.execute_script("document.querySelector('.prompt .non-ema .picture').focus({preventScroll: true})")
    press(opened, keys().ENTER)
    assert one(opened, "#full").is_displayed()
    wait(opened, "document.getElementById('full-image').naturalWidth == 96")
    source = opened.execute_script("return document.getElementById('full-image').src")
    assert source.startswith("file://")
    assert "no-ema" in source
    press(opened, keys().ARROW_LEFT)
    assert one(opened, "#full-title").text == f"non-EMA, step 300: {runs.PROMPTS[0]}"
    one(opened, "#full-set").click()
    assert one(opened, "#full-title").text == f"EMA, step 300: {runs.PROMPTS[0]}"
    wait(opened, "document.getElementById('full-image').naturalWidth == 96")
    press(opened, keys().ESCAPE)
    assert not one(opened, "#full").is_displayed()


def test_a_command_is_copied_whole_with_and_without_a_clipboard(opened: Any) -> None:
    opened.execute_cdp_cmd("Browser.grantPermissions", {"permissions": ["clipboardReadWrite"]})
    command = opened.execute_script("return document.querySelector('.point[open] code').textContent")
    assert command.startswith("onetrainer-ema-select export ")
    one(opened, ".point[open] .copy").click()
    wait(opened, "document.getElementById('said').textContent == 'Copied'")
    read = "navigator.clipboard.readText().then(arguments[0], error => arguments[0](String(error)))"
    assert opened.execute_async_script(read) == command
    second = opened.execute_script(
        "navigator.clipboard.writeText = () => Promise.reject(new Error('not allowed'));"
        "return document.querySelectorAll('.point[open] code')[1].textContent"
    )
    opened.find_elements("css selector", ".point[open] .copy")[1].click()
    wait(opened, "document.querySelectorAll('.point[open] .copy')[1].classList.contains('copied')")
    assert opened.execute_async_script(read) == second != command


def test_marks_on_the_line_are_read_and_lead_to_their_commands(opened: Any) -> None:
    opened.execute_script("document.querySelector('.line .mark').focus()")
    press(opened, keys().ARROW_RIGHT)
    said = one(opened, "#line-readout").text
    assert said.startswith("Backup, step 300, epoch 3: EMA, non-EMA. ")
    press(opened, keys().ENTER)
    target = one(opened, ".point:target")
    assert target.get_attribute("open") is not None
    assert "step 300" in target.find_element("css selector", "summary").text


def test_curves_are_read_by_keys_and_by_pointer(opened: Any) -> None:
    plot = one(opened, ".plot")
    opened.execute_script("arguments[0].focus()", plot)
    press(opened, keys().HOME, keys().ARROW_RIGHT)
    text = plot.get_attribute("aria-valuetext")
    assert text.startswith("step 100 · EMA 0.1")
    assert text == opened.execute_script("return document.querySelector('.chart .readout').textContent")
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(opened).move_to_element_with_offset(plot, int(plot.size["width"] / 2) - 2, 0).perform()
    assert plot.get_attribute("aria-valuetext").startswith("step 400")


def test_both_languages_and_both_themes(opened: Any) -> None:
    assert one(opened, "#pictures-title").text == "Pictures"
    one(opened, "#language").click()
    assert one(opened, "#pictures-title").text == "图片"
    assert one(opened, "html").get_attribute("lang") == "zh"
    assert opened.title == "run #1 100% 样图：EMA 还是非 EMA"
    label = opened.execute_script("return document.querySelector('.line .mark').getAttribute('aria-label')")
    assert label.startswith("备份，第 200 步")
    show_pictures(opened)
    assert "第 400 步" in one(opened, ".prompt .where").text
    light = style(opened, "body", "background-color")
    opened.execute_script("document.getElementById('theme').click()")
    assert style(opened, "body", "background-color") != light
    # is remembered; taken back for the tests to come
    opened.execute_script("document.getElementById('theme').click(); document.getElementById('language').click()")
    assert one(opened, "#pictures-title").text == "Pictures"


@pytest.mark.parametrize(("theme", "mode"), [("light", "side"), ("dark", "swipe")])
def test_axe_finds_nothing_serious(opened: Any, theme: str, mode: str) -> None:
    opened.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    )
    opened.execute_script(
        "localStorage.clear(); delete document.documentElement.dataset.theme;"
        f"document.querySelector('input[value={mode}]').click();"
        "document.querySelectorAll('details').forEach(each => { each.open = true; });"
    )
    if mode == "swipe":  # in the other one, most pictures have not been shown yet
        opened.execute_script("dispatchEvent(new Event('beforeprint'))")
    found = grave_findings(opened)
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert found == []


@pytest.mark.parametrize("kind", ["light", "dark", "phone"])
def test_it_fits_its_width(opened: Any, kind: str) -> None:
    width = 390 if kind == "phone" else 1280
    metrics = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": kind == "phone"}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    media = {"features": [{"name": "prefers-color-scheme", "value": "dark" if kind == "dark" else "light"}]}
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    opened.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width
    picture_of(opened, kind)
    opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_it_prints_with_its_pictures(opened: Any) -> None:
    printed = base64.b64decode(opened.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"])
    assert printed.startswith(b"%PDF")
    assert printed.count(b"/Subtype /Image") >= 2 * len(runs.PROMPTS)
    if PICTURES:
        Path(PICTURES, "report-print.pdf").write_bytes(printed)


def test_a_page_that_was_taken_elsewhere_shows_its_own_copies(browser: Any, page: Path, tmp_path: Path) -> None:
    moved = tmp_path / "report.html"
    moved.write_bytes(page.read_bytes())
    browser.get(moved.as_uri())
    show_pictures(browser)
    browser.execute_script("document.querySelector('.prompt .ema .picture').click()")
    wait(browser, "document.getElementById('full-image').src.startsWith('data:')")
    assert one(browser, "#full-title").text.endswith("this is the page's own small copy.)")
    complaints(browser)  # that the original could not be loaded stands there, rightly


def picture_of(browser: Any, name: str) -> None:
    """A picture of the whole page, where somebody wants to look at it."""
    if PICTURES:
        size = browser.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 9000), "scale": 1}
        shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
        Path(PICTURES, f"report-{name}.png").write_bytes(base64.b64decode(shot["data"]))
