"""The page: its files and its words."""

import html.parser
import json
import shutil

import pytest
from PIL import Image

from jaxdet.evaluation.errors import analyse
from jaxdet.pages import gallery, plots, report_page
from jaxdet.runs.workdir import Workdir
from tests.evaluation.errors_test import BOX, FAR, found, truth
from tests.pages.small_report import ANCHORS, one_run, read_image


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
    assert {section for section, _ in report_page.SECTIONS} <= set(parsed.ids)
    assert "runs/&lt;one&gt;" in text and "runs/<one>" not in text
    assert {path.name for path in (page / "pictures").iterdir()} == {"1.jpg", "2.jpg", "30.jpg", "negative-00.jpg"}
    assert Image.open(page / "pictures" / "1.jpg").size == (300, 240)


def test_numbers_beside_the_page(page):
    numbers = json.loads((page / "report.json").read_text())
    run = numbers["runs"]["runs/<one>"]
    assert run["error_kinds"]["localisation"] == run["error_kinds"]["duplicate"] == 1
    assert run["error_kinds"]["background"] == run["error_kinds"]["ignored"] == 1
    assert run["AP50_repaired"] == 1 and run["calibration"]["precision"][0] is None
    assert run["proposal_recall"]["medium"]["AR@10"] == run["results"]["proposals"]["AR@100"]
    assert numbers["pictures"] == [1, 2, 30]


def test_a_second_report_leaves_no_old_images(page, tmp_path):
    folder = shutil.copytree(page, tmp_path / "report")
    report_page.write(folder, [one_run("a")], read_image, ANCHORS, choice=report_page.Choice(1, "worst"))
    assert {path.name for path in (folder / "pictures").iterdir()} == {"2.jpg", "negative-00.jpg"}


def test_where_writing_is_cut_off_there_is_no_page(page, tmp_path):
    def fail(image_id):
        raise KeyboardInterrupt

    folder = shutil.copytree(page, tmp_path / "report")
    with pytest.raises(KeyboardInterrupt):
        report_page.write(folder, [one_run("a")], fail, ANCHORS)
    assert not (folder / "index.html").exists()
    assert report_page.write(folder, [one_run("a")], read_image, ANCHORS).exists()


def test_the_page_comes_last(tmp_path, monkeypatch):
    there = []
    write = report_page.write_whole

    def noting(path, text):
        there.append((path.name, len(list((tmp_path / "pictures").glob("*")))))
        write(path, text)

    for module in ("page", "report_page"):
        monkeypatch.setattr(f"jaxdet.pages.{module}.write_whole", noting)
    report_page.write(tmp_path, [one_run("a")], read_image, ANCHORS)
    assert [name for name, _ in there] == ["report.json", "report.json", "index.html"]
    assert there[-1][1] == len(list((tmp_path / "pictures").glob("*"))) > 0


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "mine.jpg").touch()
    with pytest.raises(ValueError, match="name another folder with --output"):
        report_page.write(tmp_path, [one_run("a")], read_image, ANCHORS)
    assert (tmp_path / "pictures" / "mine.jpg").exists()


@pytest.mark.parametrize("part", ["images", "categories", "annotations"])
def test_runs_on_different_truth_are_not_compared(tmp_path, part):
    first, second = one_run("runs/a"), one_run("runs/b")
    del second.truth[part][-1]
    with pytest.raises(ValueError, match=f"runs/a and runs/b were evaluated on different {part}"):
        report_page.write(tmp_path / "page", [first, second], read_image, ANCHORS)
    assert not (tmp_path / "page").exists()


def test_names_that_utf8_cannot_hold(tmp_path):
    text = report_page.write(tmp_path, [one_run("runs/caf\udce9")], read_image, ANCHORS).read_text(encoding="utf-8")
    assert r"runs/caf\udce9" in text
    assert list(json.loads((tmp_path / "report.json").read_text())["runs"]) == ["runs/caf\udce9"]
    assert not list(tmp_path.glob("*.partial"))


def test_images_that_do_not_decode_are_left_out(tmp_path):
    report_page.write(tmp_path, [one_run("a")], lambda i: None if i == 30 else read_image(i), ANCHORS)
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {"1.jpg", "2.jpg"}


def test_without_a_log_and_without_a_box_head(tmp_path):
    run = one_run("converted")
    del run.results["roi"]
    text = report_page.write(tmp_path, [run._replace(log=[])], read_image, ANCHORS).read_text()
    assert "No metrics.jsonl" in text and "with RoI head" not in text


def test_logs_that_lack_keys_or_their_end(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "rpn_box": 0.5}\n[]\n{"step": 2, "rpn_b')
    log = Workdir(tmp_path).metrics()
    assert log == [{"step": 1, "rpn_box": 0.5}] and Workdir(tmp_path / "nowhere").metrics() == []
    assert len(report_page.training_plots([log])) == 1


def test_choice_of_images():
    run = one_run("a")
    errors = analyse(run.truth, run.detections)
    # an image's error: .3 | .8 + 1 | .7
    assert gallery.choose(run.truth, run.detections, errors, 80, "worst") == [2, 30, 1]
    assert gallery.choose(run.truth, run.detections, errors, 80, "random", 5) == [1, 2, 30]
    some = {tuple(gallery.choose(run.truth, run.detections, errors, 1, "random", seed)) for seed in range(20)}
    assert some == {(1,), (2,), (30,)}
    with pytest.raises(ValueError, match="random or worst"):
        gallery.choose(run.truth, run.detections, errors, 1, "best")
    for wrong, message in (((-1, "worst"), "-1 images"), ((1, "random", -2), "-2 as the seed")):
        with pytest.raises(ValueError, match=message):
            gallery.check_choice(*wrong)


def test_the_slider_starts_at_the_best_f1():
    boxes = truth((1, 1, BOX), (2, 1, BOX), crowd=())
    rows = found((1, 1, FAR, 0.9), (1, 1, BOX, 0.8), (2, 1, BOX, 0.555), (2, 1, FAR, 0.3))
    assert gallery.best_threshold(rows, analyse(boxes, rows)) == 0.55
    assert gallery.best_threshold([], analyse(boxes, [])) == 0.5
    assert gallery.best_threshold(rows[:1], analyse(boxes, rows[:1])) == 0.5


def test_what_is_drawn_over_an_image():
    run = one_run("a")
    errors = analyse(run.truth, run.detections)
    overlay = gallery.overlays(run.truth, [2], [(run.detections, errors, run.proposals)])[2]
    assert overlay["truth"] == [{"box": list(BOX), "crowd": False}, {"box": [100, 100, 60, 60], "crowd": True}]
    (of_run,) = overlay["runs"]
    assert [(row["kind"], row["score"]) for row in of_run["detections"]] == [("localisation", 0.8), ("ignored", 0.6)]
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
