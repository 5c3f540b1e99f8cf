"""What a browser makes of the page."""

import shutil
import types

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A headless Chromium with `.look(folder, width)`, which opens a report; skipped where there is none."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no chromium with chromedriver (Debian: apt-get install chromium chromium-driver)")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    switches = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
    switches += f" disable-component-update disable-sync user-data-dir={tmp_path_factory.mktemp('chromium')}"
    for switch in switches.split():
        options.add_argument(f"--{switch}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options, webdriver.ChromeService(driver))

    def look(folder, width=1280):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        chrome.get((folder / "index.html").resolve().as_uri())
        return chrome

    yield types.SimpleNamespace(look=look, chrome=chrome)
    chrome.quit()


def text_of(chrome, selector):
    return [chrome.execute_script("return arguments[0].textContent", e) for e in elements(chrome, selector)]


def elements(chrome, selector):
    return chrome.find_elements("css selector", selector)


def pixels(chrome, selector="#pictures canvas", number=0):
    """How many pixels of an overlay have something drawn on them, after all that was asked for is drawn."""
    script = """
        const [selector, number, done] = arguments;
        requestAnimationFrame(() => requestAnimationFrame(() => {
          const canvas = document.querySelectorAll(selector)[number];
          const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", {willReadFrequently: true});
          copy.drawImage(canvas, 0, 0);
          const data = copy.getImageData(0, 0, canvas.width, canvas.height).data;
          let drawn = 0;
          for (let i = 3; i < data.length; i += 4) drawn += data[i] > 0;
          done(drawn);
        }));"""
    return chrome.execute_async_script(script, selector, number)


def go_to(chrome, selector):
    """Scrolls there and waits until images in sight are drawn on."""
    from selenium.webdriver.support.ui import WebDriverWait

    script = "document.querySelector(arguments[0]).scrollIntoView({behavior: 'instant'})"
    chrome.execute_script(script, selector)
    WebDriverWait(chrome, 20).until(pixels)


def set_score(chrome, value):
    chrome.execute_script(
        "const s = document.getElementById('score'); s.value = arguments[0];"
        "s.dispatchEvent(new Event('input', {bubbles: true}))",
        value,
    )


@pytest.mark.parametrize("width", [1280, 390])
def test_it_fits_and_the_console_stays_empty(browser, page, both, width, tmp_path):
    for folder in (page, both):
        chrome = browser.look(folder, width)
        go_to(chrome, "#gallery")
        assert chrome.execute_script("return document.documentElement.scrollWidth") <= width
        broken = "return [...document.images].filter(i => i.loading != 'lazy' && !i.naturalWidth).length"
        assert chrome.execute_script(broken) == 0
        assert chrome.save_screenshot(str(tmp_path / "page.png"))
        assert len(np.unique(np.asarray(Image.open(tmp_path / "page.png").convert("L")))) > 30
        assert chrome.get_log("browser") == []


def test_slider_and_switches(browser, page):
    chrome = browser.look(page)
    go_to(chrome, "#pictures")
    assert text_of(chrome, "#score-value") == ["0.90"]  # precision 1, recall 1/2: the best F1
    assert text_of(chrome, "#tally") == ["1 right, 0 wrong, 1 missed"]
    set_score(chrome, 0.5)
    assert text_of(chrome, "#tally") == ["1 right, 2 wrong, 1 missed"]
    counts = [text.strip().replace("\u00d7", "x") for text in text_of(chrome, ".count")]
    assert counts == ["✓1 x0 ?0", "✓0 x1 ?1", "✓0 x1 ?0"]
    set_score(chrome, 0.1)
    assert text_of(chrome, "#tally") == ["1 right, 3 wrong, 1 missed"]
    set_score(chrome, 0.95)
    assert text_of(chrome, "#tally") == ["0 right, 0 wrong, 2 missed"]
    assert text_of(chrome, "#score-value") == ["0.95"]
    set_score(chrome, 0.5)
    drawn = [pixels(chrome)]
    for switch in ("#show-proposals", "#show-detections", "#show-truth", "#show-proposals"):
        elements(chrome, switch)[0].send_keys(" ")
        drawn.append(pixels(chrome))
    both, with_proposals, without_detections, only_proposals, nothing = drawn
    assert both > 0 and without_detections > only_proposals > nothing == 0
    assert with_proposals != both and with_proposals != without_detections


def test_by_keyboard(browser, page):
    chrome = browser.look(page)
    from selenium.webdriver import ActionChains, Keys

    def press(key):
        ActionChains(chrome).send_keys(key).perform()

    slider = elements(chrome, "#score")[0]
    slider.send_keys(Keys.ARROW_RIGHT)
    assert text_of(chrome, "#score-value") == ["0.91"]
    slider.send_keys(Keys.ARROW_LEFT)
    chrome.execute_script("document.querySelectorAll('.picture')[0].focus()")
    press(Keys.ENTER)
    assert text_of(chrome, "#viewer-title") == ["Image 1"]
    assert pixels(chrome, "#viewer canvas") > 0
    assert text_of(chrome, ".list p") == ["1 right, 0 wrong, 0 missed: .90 correct"]
    press(Keys.ARROW_RIGHT)
    assert text_of(chrome, "#viewer-title") == ["Image 2"]
    press(Keys.ARROW_LEFT)
    press(Keys.ARROW_LEFT)
    assert text_of(chrome, "#viewer-title") == ["Image 30"]
    elements(chrome, "#viewer #show-truth")[0].send_keys(" ")  # the switches are at hand here too
    press(Keys.ESCAPE)
    focus = chrome.execute_script("return document.activeElement.parentElement.dataset.id")
    assert focus == "30" and len(elements(chrome, "main > section > .tools")) == 1
    assert chrome.get_log("browser") == []


def test_order_of_the_images(browser, page):
    chrome = browser.look(page)
    set_score(chrome, 0.5)
    order = "return [...document.querySelectorAll('#pictures figure')].map(f => f.dataset.id)"
    assert chrome.execute_script(order) == ["1", "2", "30"]
    elements(chrome, "#order option[value=missed]")[0].click()
    assert chrome.execute_script(order) == ["2", "1", "30"]
    elements(chrome, "#order option[value=chosen]")[0].click()
    assert chrome.execute_script(order) == ["1", "2", "30"]


def test_two_runs_side_by_side(browser, both):
    chrome = browser.look(both)
    set_score(chrome, 0.5)
    assert text_of(chrome, "#tally") == ["A: 1 right, 2 wrong, 1 missed · B: 0 right, 2 wrong, 2 missed"]
    assert len(elements(chrome, "#pictures canvas")) == 6 and len(elements(chrome, "#pictures figure")) == 3
    go_to(chrome, "#pictures")
    assert pixels(chrome, number=0) != pixels(chrome, number=1)
