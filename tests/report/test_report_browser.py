"""The page in a real browser: sorting, filtering, night, print, two widths, and nothing asked of the network."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from report.studies import make_study

from qat_vsam.report.page import write_report

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
)
WIDTHS = (1400, 400)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A headless chromium that keeps a log of its console and of its requests."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is missing; pip install -e '.[test]'")
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("no chromium with chromedriver; apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a study of three precisions."""
    return write_report(make_study(), tmp_path_factory.mktemp("report"))


@pytest.fixture
def look(browser: Any, page: Path) -> Callable[..., Any]:
    """Opens the page: `look(width=400, dark=True, script=False)`."""

    def opened(width: int = 1400, dark: bool = False, script: bool = True) -> Any:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        for command, settings in (
            ("Emulation.setEmulatedMedia", {"media": "", "features": [scheme]}),
            ("Emulation.setDeviceMetricsOverride", size),
            ("Emulation.setScriptExecutionDisabled", {"value": not script}),
        ):
            browser.execute_cdp_cmd(command, settings)
        browser.get("about:blank")
        browser.get_log("browser")
        browser.get_log("performance")
        browser.get(page.as_uri())
        return browser

    return opened


def rows(browser: Any) -> list[str]:
    """The arms that are shown, in their order."""
    script = "return [...document.querySelectorAll('#arms tbody tr:not(.group)')].filter(r => r.offsetHeight).map("
    return list(browser.execute_script(script + "r => r.cells[0].firstChild.textContent.trim())"))


def column(browser: Any, index: int) -> list[float | None]:
    """What the shown rows are sorted by in a column."""
    script = "return [...document.querySelectorAll('#arms tbody tr:not(.group)')].filter(r => r.offsetHeight).map("
    values = browser.execute_script(script + f"r => r.cells[{index}].dataset.sort)")
    return [None if value is None else float(value) for value in values]


def head(browser: Any, title: str, nth: int = 0) -> Any:
    """The button in the head of a column."""
    return browser.find_elements("xpath", f"//table[@id='arms']//button[normalize-space()='{title}']")[nth]


@pytest.mark.parametrize("dark", [False, True], ids=["day", "night"])
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_logged_nothing_is_asked_for_and_nothing_sticks_out(
    width: int, dark: bool, look: Callable[..., Any], page: Path
) -> None:
    browser = look(width=width, dark=dark)
    for button in browser.find_elements("css selector", "button"):
        if button.is_displayed():
            browser.execute_script("arguments[0].click()", button)
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    assert {url for url in asked if not url.startswith("data:")} == {page.as_uri()}
    assert browser.get_log("browser") == []
    assert browser.execute_script("return document.documentElement.scrollWidth") == width


def test_a_head_sorts_its_better_end_first_then_the_other_then_puts_the_rows_back(look: Callable[..., Any]) -> None:
    browser = look()
    before = rows(browser)
    accuracy = head(browser, "Test, %")
    accuracy.click()
    assert column(browser, 1) == sorted(column(browser, 1), reverse=True)
    assert rows(browser) != before
    accuracy.click()
    assert column(browser, 1) == sorted(column(browser, 1))
    assert len(rows(browser)) == len(before)
    accuracy.click()
    assert rows(browser) == before
    assert browser.find_elements("css selector", "[aria-sort]") == []


def test_cheap_sorts_first_and_arms_without_a_value_stand_last_at_both_ends(look: Callable[..., Any]) -> None:
    browser = look()
    reach = head(browser, "Gradients", 1)
    index = int(reach.get_attribute("data-column"))
    for reverse in (False, True):
        reach.click()
        values = column(browser, index)
        known = [value for value in values if value is not None]
        assert 0 < len(known) < len(values)
        assert values == [*sorted(known, reverse=reverse), *[None] * (len(values) - len(known))]


def test_names_sort_as_words(look: Callable[..., Any]) -> None:
    browser = look()
    head(browser, "Method").click()
    assert rows(browser) == sorted(rows(browser), key=str.lower)


def test_the_table_is_filtered_by_text_and_by_precision_and_counts_what_is_left(look: Callable[..., Any]) -> None:
    browser = look()
    everything = rows(browser)
    find = browser.find_element("id", "find")
    find.send_keys("vsam")
    assert rows(browser) == [name for name in everything if "VSAM" in name]
    browser.find_element("xpath", "//span[@id='groups']/button[.='W4A4']").click()
    assert rows(browser) == [name for name in everything if "VSAM" in name and "W4A4" not in name]
    assert browser.find_element("id", "count").text == f"{len(rows(browser))} of {len(everything)} methods"
    heads = [
        element.text for element in browser.find_elements("css selector", "#arms .group") if element.is_displayed()
    ]
    assert heads == ["Float32", "W2A2"]
    head(browser, "Test, %").click()
    assert all("VSAM" in name and "W4A4" not in name for name in rows(browser))


@pytest.mark.parametrize("script", [True, False])
def test_more_columns_unfold_with_and_without_script(script: bool, look: Callable[..., Any]) -> None:
    browser = look(script=script)
    folded = browser.find_elements("css selector", "#arms td.folded")
    assert folded
    assert not folded[0].is_displayed()
    browser.find_element("id", "more").click()
    assert folded[0].is_displayed()


def test_the_page_is_whole_without_script(look: Callable[..., Any]) -> None:
    browser = look(script=False)
    study = make_study()
    shown = [row for row in browser.find_elements("css selector", "#arms tbody tr:not(.group)") if row.is_displayed()]
    assert len(shown) == len(study.arms)
    assert not browser.find_element("id", "find").is_displayed()
    assert not browser.find_element("id", "theme").is_displayed()
    assert len([f for f in browser.find_elements("css selector", "figure svg.wide") if f.is_displayed()]) == 4


def ground(browser: Any) -> int:
    """How bright the page is, from 0 to 255."""
    colour = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    return int(re.findall(r"\d+", colour)[0])


def ink(browser: Any) -> int:
    """How bright the text of a figure is."""
    colour = browser.execute_script("return getComputedStyle(document.querySelector('figure svg.wide text')).fill")
    return int(re.findall(r"\d+", colour)[0])


def test_night_follows_the_system_and_the_button_turns_it_for_figures_too(look: Callable[..., Any]) -> None:
    browser = look(dark=True)
    assert ground(browser) < 60 < 140 < ink(browser)
    browser.find_element("id", "theme").click()
    assert ground(browser) > 200 > 110 > ink(browser)
    browser = look(dark=False)
    assert ground(browser) > 200
    browser.find_element("id", "theme").click()
    assert ground(browser) < 60 < 140 < ink(browser)


def test_print_is_light_without_controls_and_with_folded_text(look: Callable[..., Any]) -> None:
    browser = look(dark=True)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert ground(browser) > 200
    assert not browser.find_element("css selector", ".controls").is_displayed()
    assert browser.find_element("css selector", "figure svg.wide").is_displayed()
    seen = "return [...document.querySelectorAll('details ul, details dl')].every((list) => list.checkVisibility())"
    assert browser.execute_script(seen)
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    assert base64.b64decode(printed["data"]).startswith(b"%PDF")


def test_a_page_turned_to_night_by_its_button_prints_light(look: Callable[..., Any]) -> None:
    browser = look(dark=False)
    browser.find_element("id", "theme").click()
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert ground(browser) > 200
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    browser.execute_script("dispatchEvent(new Event('afterprint'))")
    assert ground(browser) < 60


def test_on_a_telephone_the_first_column_stays_and_figures_are_drawn_for_it(look: Callable[..., Any]) -> None:
    browser = look(width=400)
    place = "return document.querySelector('#arms tbody tr:nth-child(2) th').getBoundingClientRect().left"
    before = browser.execute_script(place)
    moved = "const box = document.querySelector('#arms').parentElement; box.scrollLeft = 300; return box.scrollLeft"
    assert browser.execute_script(moved) == 300
    assert browser.execute_script(place) == before
    assert not any(figure.is_displayed() for figure in browser.find_elements("css selector", "svg.wide"))
    narrow = browser.find_elements("css selector", "svg.narrow")
    assert narrow
    for figure in narrow:
        assert figure.is_displayed()
        assert figure.size["width"] == pytest.approx(float(figure.get_dom_attribute("viewBox").split()[2]), abs=1)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_answer_is_on_the_first_screen(width: int, look: Callable[..., Any]) -> None:
    browser = look(width=width)
    answer = browser.find_element("id", "answer")
    assert answer.rect["y"] + answer.rect["height"] < 900


@pytest.mark.parametrize("width", WIDTHS)
def test_names_in_figures_lie_on_no_mark_and_on_no_other_name(width: int, look: Callable[..., Any]) -> None:
    browser = look(width=width)
    kind = "wide" if width > 640 else "narrow"
    script = """
        const box = (e) => { const b = e.getBoundingClientRect(); return [b.left, b.top + 2, b.right, b.bottom - 2]; };
        return [...document.querySelectorAll(`figure svg.${arguments[0]}`)].map((svg) => ({
          texts: [...svg.querySelectorAll("text")].map((e) => [e.textContent, box(e)]),
          marks: [...svg.querySelectorAll(".mark, .ring")].map((e) => box(e)),
        }));
    """

    def meet(a: list[float], b: list[float]) -> bool:
        return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]

    figures = browser.execute_script(script, kind)
    assert len(figures) == 4
    for figure in figures:
        for number, (text, box) in enumerate(figure["texts"]):
            assert not [other for other, place in figure["texts"][:number] if meet(box, place)], text
            assert not [mark for mark in figure["marks"] if meet(box, mark)], text
