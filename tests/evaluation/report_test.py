"""The page: its files, its words, and what a browser makes of it."""

import html.parser
import json
import shutil
import types

import numpy as np
import pytest
from PIL import Image

from jaxdet.evaluation import gallery, plots, report
from jaxdet.evaluation.coco import evaluate, proposal_recall
from jaxdet.evaluation.errors import analyse
from tests.evaluation.errors_test import BOX, FAR, HALF, found, truth

ANCHORS = {
    "count": 99,
    "shape": [64, 96],
    "positive_iou": 0.7,
    "ious": [0.3, 0.7],
    "rows": [{"size": "all", "boxes": 3, "shares": [0.9, 0.5], "median": 0.6}],
    "panels": [],
}
LOG = [
    {"step": i, "learning_rate": 1e-3, "loss": 2.0} | dict.fromkeys(report.LOSSES, 1 / i)
    for i in range(1, 90)
]
LOG += [{"step": 50, "val/AP": 0.1, "val/rpn_AP": 0.05, "val/rpn_box": 0.4}]


def one_run(name, shift=0.0):
    """Three pictures: one right and one duplicate, a badly placed box, and nothing but a background error."""
    boxes = truth((1, 1, BOX), (2, 1, BOX), (2, 1, (100, 100, 60, 60)), crowd=(2,), images=(1, 2, 30))
    boxes["categories"] = boxes["categories"][:1]
    for image in boxes["images"]:
        image |= {"width": 300, "height": 240}
    rows = found((1, 1, BOX, 0.9 - shift), (1, 1, BOX, 0.3), (2, 1, HALF, 0.8), (30, 1, FAR, 0.7))
    rows += found((2, 1, (110, 110, 20, 20), 0.6))
    proposals = {
        i: (np.array([[12, 8, 60, 55], [0, 0, 299, 239]], np.float32), np.array([0.9, 0.2]))
        for i in (1, 2, 30)
    }
    results = {
        "roi": evaluate(boxes, rows),
        "rpn": evaluate(boxes, []),
        "proposals": proposal_recall(boxes, proposals),
        "images": 3,
    }
    return report.Run(name, results, boxes, rows, proposals, LOG)


def read_image(image_id):
    return np.full((240, 300, 3), 40 + image_id, np.uint8)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The folder of the report of one run."""
    folder = tmp_path_factory.mktemp("report")
    report.write(folder, [one_run("runs/<one>")], read_image, ANCHORS, ("3 pictures & more",))
    return folder


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """That of two runs."""
    folder = tmp_path_factory.mktemp("report")
    report.write(folder, [one_run("runs/a"), one_run("runs/b", 0.5)], read_image, ANCHORS)
    return folder


class Addresses(html.parser.HTMLParser):
    """Every address that a page names, and its ids."""

    def __init__(self, text):
        super().__init__()
        self.addresses, self.ids = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.addresses += [value for name, value in attributes if name in ("src", "href", "xlink:href")]
        self.ids += [value for name, value in attributes if name == "id"]


def test_every_file_is_there_and_nothing_comes_from_elsewhere(page):
    text = (page / "index.html").read_text()
    parsed = Addresses(text)
    for address in parsed.addresses:
        if address.startswith("#"):
            assert address[1:] in parsed.ids
        else:
            assert address == "data:," or (page / address).is_file(), address
    assert len(parsed.ids) == len(set(parsed.ids))
    assert {section for section, _ in report.SECTIONS} <= set(parsed.ids)
    assert "runs/&lt;one&gt;" in text and "runs/<one>" not in text
    assert {path.name for path in (page / "pictures").iterdir()} == {
        "1.jpg",
        "2.jpg",
        "30.jpg",
        "negative-00.jpg",
    }
    assert Image.open(page / "pictures" / "1.jpg").size == (300, 240)


def test_numbers_beside_the_page(page):
    numbers = json.loads((page / "report.json").read_text())
    run = numbers["runs"]["runs/<one>"]
    assert run["error_kinds"]["localisation"] == run["error_kinds"]["duplicate"] == 1
    assert run["error_kinds"]["background"] == run["error_kinds"]["ignored"] == 1
    assert run["AP50_repaired"] == 1 and run["calibration"]["precision"][0] is None
    assert run["proposal_recall"]["medium"]["AR@10"] == run["results"]["proposals"]["AR@100"]
    assert numbers["pictures"] == [1, 2, 30]


def test_a_second_report_leaves_no_old_pictures(page, tmp_path):
    folder = shutil.copytree(page, tmp_path / "report")
    report.write(folder, [one_run("a")], read_image, ANCHORS, choice=report.Choice(1, "worst"))
    assert {path.name for path in (folder / "pictures").iterdir()} == {"2.jpg", "negative-00.jpg"}


def test_where_writing_is_cut_off_there_is_no_page(page, tmp_path):
    def fail(image_id):
        raise KeyboardInterrupt

    folder = shutil.copytree(page, tmp_path / "report")
    with pytest.raises(KeyboardInterrupt):
        report.write(folder, [one_run("a")], fail, ANCHORS)
    assert not (folder / "index.html").exists()
    assert report.write(folder, [one_run("a")], read_image, ANCHORS).exists()


def test_the_page_comes_last(tmp_path, monkeypatch):
    there = []
    write = report.write_whole

    def noting(path, text):
        there.append((path.name, len(list((tmp_path / "pictures").glob("*")))))
        write(path, text)

    monkeypatch.setattr(report, "write_whole", noting)
    report.write(tmp_path, [one_run("a")], read_image, ANCHORS)
    assert [name for name, _ in there] == ["report.json", "report.json", "index.html"]
    assert there[-1][1] == len(list((tmp_path / "pictures").glob("*"))) > 0


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "mine.jpg").touch()
    with pytest.raises(ValueError, match="name another folder with --output"):
        report.write(tmp_path, [one_run("a")], read_image, ANCHORS)
    assert (tmp_path / "pictures" / "mine.jpg").exists()


@pytest.mark.parametrize("part", ["images", "categories", "annotations"])
def test_runs_on_different_truth_are_not_compared(tmp_path, part):
    first, second = one_run("runs/a"), one_run("runs/b")
    del second.truth[part][-1]
    with pytest.raises(ValueError, match=f"runs/a and runs/b were evaluated on different {part}"):
        report.write(tmp_path / "page", [first, second], read_image, ANCHORS)
    assert not (tmp_path / "page").exists()


def test_names_that_utf8_cannot_hold(tmp_path):
    text = report.write(tmp_path, [one_run("runs/caf\udce9")], read_image, ANCHORS).read_text(
        encoding="utf-8"
    )
    assert r"runs/caf\udce9" in text
    assert list(json.loads((tmp_path / "report.json").read_text())["runs"]) == ["runs/caf\udce9"]
    assert not list(tmp_path.glob("*.partial"))


def test_pictures_that_do_not_decode_are_left_out(tmp_path):
    report.write(tmp_path, [one_run("a")], lambda i: None if i == 30 else read_image(i), ANCHORS)
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {"1.jpg", "2.jpg"}


def test_without_a_log_and_without_a_box_head(tmp_path):
    run = one_run("converted")
    del run.results["roi"]
    text = report.write(tmp_path, [run._replace(log=[])], read_image, ANCHORS).read_text()
    assert "No metrics.jsonl" in text and "with RoI head" not in text


def test_logs_that_lack_keys_or_their_end(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "rpn_box": 0.5}\n[]\n{"step": 2, "rpn_b')
    log = report.read_log(tmp_path)
    assert log == [{"step": 1, "rpn_box": 0.5}] and report.read_log(tmp_path / "nowhere") == []
    assert len(report.training_plots([log])) == 1


def test_choice_of_pictures():
    run = one_run("a")
    errors = analyse(run.truth, run.detections)
    # a picture's error: .3 | .8 + 1 | .7
    assert gallery.choose(run.truth, run.detections, errors, 80, "worst") == [2, 30, 1]
    assert gallery.choose(run.truth, run.detections, errors, 80, "random", 5) == [1, 2, 30]
    some = {tuple(gallery.choose(run.truth, run.detections, errors, 1, "random", seed)) for seed in range(20)}
    assert some == {(1,), (2,), (30,)}
    with pytest.raises(ValueError, match="random or worst"):
        gallery.choose(run.truth, run.detections, errors, 1, "best")
    for wrong, message in (((-1, "worst"), "-1 pictures"), ((1, "random", -2), "-2 as the seed")):
        with pytest.raises(ValueError, match=message):
            gallery.check_choice(*wrong)


def test_the_slider_starts_at_the_best_f1():
    boxes = truth((1, 1, BOX), (2, 1, BOX), crowd=())
    rows = found((1, 1, FAR, 0.9), (1, 1, BOX, 0.8), (2, 1, BOX, 0.555), (2, 1, FAR, 0.3))
    assert gallery.best_threshold(rows, analyse(boxes, rows)) == 0.55
    assert gallery.best_threshold([], analyse(boxes, [])) == 0.5
    assert gallery.best_threshold(rows[:1], analyse(boxes, rows[:1])) == 0.5


def test_what_is_drawn_over_a_picture():
    run = one_run("a")
    errors = analyse(run.truth, run.detections)
    overlay = gallery.overlays(run.truth, [2], [(run.detections, errors, run.proposals)])[2]
    assert overlay["truth"] == [
        {"box": list(BOX), "crowd": False},
        {"box": [100, 100, 60, 60], "crowd": True},
    ]
    (of_run,) = overlay["runs"]
    assert [(row["kind"], row["score"]) for row in of_run["detections"]] == [
        ("localisation", 0.8),
        ("ignored", 0.6),
    ]
    assert of_run["found"] == [0, 0] and of_run["proposals"][0] == [12, 8, 48, 47, 0.9]


def test_a_crop_at_the_edge_tells_where_its_box_is(tmp_path):
    box = gallery.save_crop(read_image(1), (0, 0, 100, 50), tmp_path / "crop.jpg")
    width, height = Image.open(tmp_path / "crop.jpg").size
    assert box[:2] == [0, 0]
    assert box[2] * width / (box[3] * height) == pytest.approx(2, rel=0.02)


def test_plots_take_the_colours_of_the_page():
    svg = plots.over_steps("a < b", [("one", [1, 2], [3, 4], 0, ""), ("two", [1, 2], [1, 2], 1, "o")])
    other = plots.over_steps("c", [("one", [1, 2], [3, 4], 0, "")])
    assert svg.startswith('<svg role="img" aria-label="a &lt; b"') and "var(--series-2)" in svg
    assert not any(colour in svg for colour in plots._PROPERTIES)
    ids = [set(Addresses(text).ids) for text in (svg, other)]
    assert ids[0] and not ids[0] & ids[1]


# ---- in a browser ----------------------------------------------------------------------------------------------------


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
    """Scrolls there and waits until pictures in sight are drawn on."""
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
    assert text_of(chrome, "#viewer-title") == ["Picture 1"]
    assert pixels(chrome, "#viewer canvas") > 0
    assert text_of(chrome, ".list p") == ["1 right, 0 wrong, 0 missed: .90 correct"]
    press(Keys.ARROW_RIGHT)
    assert text_of(chrome, "#viewer-title") == ["Picture 2"]
    press(Keys.ARROW_LEFT)
    press(Keys.ARROW_LEFT)
    assert text_of(chrome, "#viewer-title") == ["Picture 30"]
    elements(chrome, "#viewer #show-truth")[0].send_keys(" ")  # the switches are at hand here too
    press(Keys.ESCAPE)
    focus = chrome.execute_script("return document.activeElement.parentElement.dataset.id")
    assert focus == "30" and len(elements(chrome, "main > section > .tools")) == 1
    assert chrome.get_log("browser") == []


def test_order_of_the_pictures(browser, page):
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
