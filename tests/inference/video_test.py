"""Videos, folders and patterns given to `predict`."""

import fractions
import json

import av
import numpy as np
import pytest
from PIL import Image

from jaxdet.__main__ import main

NTSC = fractions.Fraction(30000, 1001)


class Brightest:
    """A detector that finds the red box of `frames`."""

    categories = ({"id": 7, "name": "person"},)

    def __call__(self, image):
        assert image.dtype == np.uint8 and image.flags.c_contiguous
        rows, columns = np.nonzero(image[..., 0].astype(int) - image[..., 2] > 90)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        return {
            "boxes": np.array([box], np.float32),
            "scores": np.array([0.9], np.float32),
            "labels": np.array([0], np.int32),
        }


@pytest.fixture(autouse=True)
def brightest(monkeypatch):
    monkeypatch.setattr("jaxdet.inference.predict.load", lambda workdir: Brightest())


def frame(i, height=96, width=160):
    image = np.full((height, width, 3), 60, np.uint8)
    image[30:60, 20 + 4 * i : 60 + 4 * i] = (230, 30, 30)
    return image


def write_video(path, rate=NTSC, count=8, codec="libx264", pixels="yuv444p", times=None, **size):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frame(0, **size).shape[:2]
        stream.pix_fmt = pixels
        stream.bit_rate = 4_000_000
        if times:
            stream.codec_context.time_base = fractions.Fraction(1, 1000)
        for i in range(count):
            picture = av.VideoFrame.from_ndarray(frame(i, **size), format="rgb24")
            if times:
                picture.pts, picture.time_base = times[i], fractions.Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def read_video(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [(item.time, item.to_ndarray(format="rgb24")) for item in container.decode(stream)]
        return stream.average_rate, frames


def predict(folder, *inputs):
    """Runs the command on a workdir `folder`; returns the folder of the results."""
    main(["predict", "--workdir", str(folder), "--output", str(folder / "out"), *map(str, inputs)])
    return folder / "out"


@pytest.mark.parametrize(
    "name, rate, codec, size",
    [
        ("street.mp4", NTSC, "libx264", {}),
        ("street.mkv", NTSC, "libx264", {"height": 95, "width": 161}),
        ("street.avi", fractions.Fraction(12), "mpeg4", {}),
    ],
)
def test_a_video(tmp_path, name, rate, codec, size, capsys):
    pixels = "yuv444p" if codec == "libx264" else "yuv420p"
    video = write_video(tmp_path / name, rate, codec=codec, pixels=pixels, **size)
    out = predict(tmp_path, video)
    assert sorted(path.name for path in out.iterdir()) == ["street.jsonl", "street.mp4"]
    rows = [json.loads(line) for line in (out / "street.jsonl").read_text().splitlines()]
    drawn_rate, frames = read_video(out / "street.mp4")
    assert drawn_rate == rate and len(rows) == len(frames) == 8
    for i, (row, (time, image)) in enumerate(zip(rows, frames, strict=True)):
        assert row["frame"] == i and row["time"] == pytest.approx(i / rate, abs=1e-5) == pytest.approx(time)
        (found,) = row["detections"]
        assert found["label"] == "person" and found["score"] == pytest.approx(0.9)
        np.testing.assert_allclose(found["box"], [20 + 4 * i, 30, 60 + 4 * i, 60], atol=2)
        height, width = frame(i, **size).shape[:2]
        assert image.shape == (height + height % 2, width + width % 2, 3)
        box = image[26:64, 16 + 4 * i : 64 + 4 * i].astype(int)
        assert (box[..., 1] - box[..., 2] > 60).any()  # the orange line; neither red nor grey is like that
        assert (image[80:94].astype(int) - 60).max() < 12  # the rest as it was
    assert "1 videos" in capsys.readouterr().out


def test_frames_at_uneven_times(tmp_path):
    times = [0, 40, 80, 200, 333, 340, 360, 500]
    video = write_video(tmp_path / "slow.mkv", 25, times=times)
    out = predict(tmp_path, video)
    rows = [json.loads(line) for line in (out / "slow.jsonl").read_text().splitlines()]
    np.testing.assert_allclose([row["time"] for row in rows], np.array(times) / 1000, atol=1e-6)
    np.testing.assert_allclose([time for time, _ in read_video(out / "slow.mp4")[1]], np.array(times) / 1000, atol=1e-3)


def test_videos_that_are_none(tmp_path):
    good = write_video(tmp_path / "good.mp4")
    whole = good.read_bytes()
    for name, content in {"empty": b"", "text": b"no video" * 99, "cut": whole[: len(whole) // 2]}.items():
        (tmp_path / f"{name}.mp4").write_bytes(content)
    names = [tmp_path / f"{name}.mp4" for name in ("empty", "text", "good", "cut", "missing")]
    with pytest.raises(SystemExit) as stop:
        predict(tmp_path, *names)
    lines = str(stop.value).splitlines()
    assert lines[0] == "left out:" and len(lines) == 5
    for line, name in zip(lines[1:], ("empty", "text", "cut", "missing"), strict=True):
        assert line.startswith(f"{tmp_path / name}.mp4: ")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["good.jsonl", "good.mp4"]


@pytest.mark.parametrize("error", ["DemuxerNotFoundError", "UndefinedError", "ExternalError"])
@pytest.mark.parametrize("place", ["reading", "writing"])
def test_a_video_that_ffmpeg_does_not_take(tmp_path, monkeypatch, error, place):
    """The images before and after it have their detections all the same."""
    write_pictures(tmp_path, "a.png", "c.png")
    write_video(tmp_path / "b.mp4", count=2)
    open_video = av.open

    def refuse(file, mode="r", **settings):
        if (mode == "w") == (place == "writing"):
            raise getattr(av.error, error)(1, "nothing is known of it")
        return open_video(file, mode, **settings)

    monkeypatch.setattr(av, "open", refuse)
    with pytest.raises(SystemExit, match=r"b\.mp4: .*cannot be (read as a video|written): .*nothing is known"):
        predict(tmp_path, *(tmp_path / name for name in ("a.png", "b.mp4", "c.png")))
    assert len(json.loads((tmp_path / "out" / "detections.json").read_text())) == 2
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["a.png", "c.png", "detections.json"]


def test_videos_are_not_overwritten(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = write_video(tmp_path / "clip.mp4", count=2).read_bytes()
    main(["predict", "--workdir", "w", "--output", ".", "clip.mp4"])
    assert (tmp_path / "clip.mp4").read_bytes() == before
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["clip-2.jsonl", "clip-2.mp4", "clip.mp4"]


def write_pictures(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(frame(1)).save(folder / name)


def test_folders_and_patterns(tmp_path):
    pictures = tmp_path / "pictures"
    write_pictures(pictures, "b.png", "a.JPG", "deep/er/a.webp", "deep/c.bmp")
    (pictures / "notes.txt").write_text("no image")
    write_video(pictures / "deep" / "v.mov", count=2)
    out = predict(tmp_path, pictures)
    rows = json.loads((out / "detections.json").read_text())
    names = ["a.JPG", "b.png", "deep/c.bmp", "deep/er/a.webp"]
    assert [row["picture"] for row in rows] == [str(pictures / name) for name in names]
    assert [row["drawn"] for row in rows] == ["a.png", "b.png", "c.png", "a-2.png"]
    assert (out / "v.mp4").exists() and (out / "v.jsonl").exists()

    predict(tmp_path, tmp_path / "pict*" / "**" / "*.[bw]*")
    rows = json.loads((out / "detections.json").read_text())
    assert [row["picture"] for row in rows] == [str(pictures / name) for name in names[2:]]

    write_pictures(tmp_path, "[1].png")  # a name that looks like a pattern
    predict(tmp_path, tmp_path / "[1].png")
    assert len(json.loads((out / "detections.json").read_text())) == 1


def test_results_are_not_taken_for_images(tmp_path):
    write_pictures(tmp_path, "a.png")
    for _ in range(2):
        out = predict(tmp_path, tmp_path)
        assert len(json.loads((out / "detections.json").read_text())) == 1


def test_nothing_to_be_found(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as stop:
        predict(tmp_path, tmp_path / "empty", tmp_path / "*.jpg")
    assert f"{tmp_path / 'empty'}: no images or videos in this folder" in str(stop.value)
    assert f"{tmp_path / '*.jpg'}: no file matches this pattern" in str(stop.value)


def test_a_detector_that_finds_nothing_draws_nothing(tmp_path, monkeypatch):
    nothing = {
        "boxes": np.zeros((0, 4), np.float32),
        "scores": np.zeros(0, np.float32),
        "labels": np.zeros(0, np.int32),
    }
    monkeypatch.setattr(Brightest, "__call__", lambda self, image: nothing)
    out = predict(tmp_path, write_video(tmp_path / "dull.mp4", count=3))
    assert [json.loads(line)["detections"] for line in (out / "dull.jsonl").read_text().splitlines()] == [[]] * 3
