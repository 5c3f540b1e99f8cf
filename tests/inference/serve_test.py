"""The HTTP service: in process with a detector that answers at once, and once as a stranger starts it."""

import asyncio
import contextlib
import io
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

import jaxdet
from benchmarks.serve_load import declaring
from jaxdet.__main__ import main
from jaxdet.data.resizing import Resizing
from jaxdet.inference import export, serve
from tests import tiny
from tests.audit import heard, is_effect

LIMITS = {"max_bytes": 100_000, "max_pixels": 60_000, "max_requests": 4, "body_seconds": 5.0, "answer_seconds": 5.0}


class Corners:
    """A detector of the padded shapes 64 x 96 and 96 x 64 that finds the whole image; its score is the mean red."""

    categories = ({"id": 7, "name": "person"}, {"id": 9, "name": "dog"})
    resizing, variables = Resizing((64,), 96), None
    prepare, finish = jaxdet.Detector.prepare, jaxdet.Detector.finish

    def __init__(self):
        self.batches, self.gate, self.fail = [], threading.Event(), False
        self.entered = threading.Event()
        self.gate.set()

    def detect(self, variables, images, sizes):
        self.entered.set()
        assert self.gate.wait(20)
        self.batches.append(images.shape)
        if self.fail:
            raise RuntimeError("out of memory")
        height, width = sizes.T
        boxes = np.stack([0 * width, 0 * height, width, height], 1).astype(np.float32)
        red = images[..., 0].astype(np.float32).sum((1, 2)) / np.maximum(height * width, 1) / 255
        return boxes[:, None], red[:, None], np.ones((len(sizes), 1), np.int32), (height > 0)[:, None]


def encoded(height=60, width=90, red=128, kind="PNG"):
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = red
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def detector():
    return Corners()


@pytest.fixture
def client(detector):
    app = serve.application(detector, batch_size=4, **LIMITS)
    assert app.state.batches.start() == 6
    detector.batches.clear()
    with TestClient(app) as client:
        yield client


def post(client, body, query="", **headers):
    headers = {"Content-Type": "image/png"} | {name.replace("_", "-"): value for name, value in headers.items()}
    return client.post(f"/detect{query}", content=body, headers=headers)


def test_an_image(client):
    expected = {"width": 90, "height": 60, "detections": [{"box": [0, 0, 90, 60], "score": 0.2, "label": "dog"}]}
    for answer in (
        post(client, encoded(red=51)),
        post(client, encoded(red=51), Content_Type="application/octet-stream"),
        client.post("/detect", files={"anything": ("a.png", encoded(red=51), "image/png")}, data={"note": "x"}),
    ):
        assert answer.status_code == 200 and answer.headers["content-type"] == "application/json"
        found = answer.json()
        (row,) = found["detections"]
        row["score"], row["box"] = round(row["score"], 5), np.round(row["box"], 3).tolist()
        assert found == expected
    assert post(client, encoded(red=51), "?threshold=.3").json()["detections"] == []


@pytest.mark.parametrize(
    "query, accept, kind",
    [
        ("", "image/jpeg", "JPEG"),
        ("", "image/*", "PNG"),
        ("?answer=png", "application/json", "PNG"),
        ("?answer=jpeg&threshold=.1", "*/*", "JPEG"),
    ],
)
def test_the_drawn_image(client, query, accept, kind):
    answer = post(client, encoded(red=200), query, Accept=accept)
    assert answer.status_code == 200
    drawn = Image.open(io.BytesIO(answer.content))
    assert drawn.format == kind and drawn.size == (90, 60)
    assert (np.asarray(drawn)[:2, :, 1] > 100).any()  # a line along the edge


@pytest.mark.parametrize(
    "body, headers, status, error",
    [
        (b"no image", {}, 400, "not_a_picture"),
        (b"", {}, 400, "not_a_picture"),
        (encoded(200, 280)[:300], {}, 400, "damaged_picture"),
        (encoded(300, 300), {}, 422, "too_many_pixels"),
        (declaring(12_500, 8_000), {}, 422, "too_many_pixels"),
        (declaring(50_000, 50_000), {}, 422, "too_many_pixels"),
        (b"x" * 100_001, {}, 413, "too_large"),
        (encoded(), {"Content_Type": "text/plain"}, 415, "wrong_type"),
        (encoded(), {"Content_Type": "application/x-www-form-urlencoded"}, 415, "wrong_type"),
        (encoded(), {"Content_Type": "multipart/form-data"}, 400, "bad_form"),
        (encoded(), {"Content_Type": "multipart/form-data; boundary=x"}, 400, "bad_form"),
        (encoded(), {"Accept": "text/plain"}, 406, "not_acceptable"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_refused(client, body, headers, status, error):
    answer = post(client, body, **headers)
    assert (answer.status_code, answer.json()["error"]) == (status, error)
    assert answer.json()["message"]
    assert post(client, encoded()).status_code == 200


def test_other_refusals(client):
    assert client.get("/nothing").json()["error"] == "not_found"
    assert client.get("/detect").json()["error"] == "wrong_method"
    for query in ("?threshold=x", "?threshold=nan", "?threshold=2", "?answer=gif"):
        assert (post(client, encoded(), query).status_code, post(client, encoded(), query).json()["error"]) == (
            400,
            "bad_query",
        )
    chunked = client.post("/detect", content=iter([b"x" * 60_000] * 2), headers={"Content-Type": "image/png"})
    assert chunked.status_code == 413  # without a Content-Length
    files = {"a": ("a.png", b"x" * 120_000, "image/png")}
    assert client.post("/detect", files=files).status_code == 413
    assert client.post("/detect", files={}, data={"a": "b"}).status_code == 415


def test_a_detector_that_fails_fails_one_request(client, detector):
    detector.fail = True
    answer = post(client, encoded())
    assert (answer.status_code, answer.json()["error"]) == (500, "failed")
    detector.fail = False
    assert post(client, encoded()).status_code == 200
    assert client.get("/health").json() == {"status": "ok"}


def in_threads(functions):
    results = [None] * len(functions)

    def run(i):
        results[i] = functions[i]()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(functions))]
    for thread in threads:
        thread.start()
    return threads, results


def wait_for(condition):
    for _ in range(12_000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError("it did not happen")


def test_more_than_may_wait_are_told_so_and_the_others_are_batched(client, detector):
    detector.gate.clear()
    detector.entered.clear()
    first, one = in_threads([lambda: post(client, encoded(red=1))])
    assert detector.entered.wait(20)
    threads, others = in_threads([lambda i=i: post(client, encoded(red=50 * i + 1)) for i in range(1, 4)])
    wait_for(lambda: len(client.app.state.batches.queue) == 3)
    busy = post(client, encoded())
    assert (busy.status_code, busy.json()["error"], busy.headers["retry-after"]) == (503, "busy", "1")
    detector.gate.set()
    for thread in first + threads:
        thread.join()
    scores = [answer.json()["detections"][0]["score"] for answer in one + others]
    np.testing.assert_allclose(scores, [(50 * i + 1) / 255 for i in range(4)], rtol=1e-5)
    assert detector.batches == [(1, 64, 96, 3), (4, 64, 96, 3)]
    metrics = client.get("/metrics").text
    assert 'jaxdet_answers_total{status="200"} 4.0' in metrics and 'status="503"} 1.0' in metrics
    assert "jaxdet_requests 0.0" in metrics and "jaxdet_batch_pictures_count 2.0" in metrics


def test_what_is_refused_takes_no_place_while_it_is_read_to_its_end(client):
    async def ask():
        async def endless():
            while True:
                yield b"x"
                await asyncio.sleep(0.05)

        transport = httpx.ASGITransport(client.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as connection:
            wrong = [
                asyncio.create_task(
                    connection.post("/detect", content=endless(), headers={"Content-Type": "text/plain"})
                )
                for _ in range(2 * LIMITS["max_requests"])
            ]
            await asyncio.sleep(0.2)
            assert not any(task.done() for task in wrong)
            good = await connection.post("/detect", content=encoded(), headers={"Content-Type": "image/png"})
            return good.status_code, {(await task).status_code for task in wrong}

    assert asyncio.run(ask()) == (200, {415})


def test_pixels_that_pillow_refuses(detector, monkeypatch):
    with pytest.raises(ValueError, match=r"--max-pixels is 90000000, but Pillow decodes at most 89478485 pixels"):
        serve.application(detector, max_pixels=90_000_000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    serve.application(detector, max_pixels=90_000_000)


def test_an_answer_that_takes_too_long(detector):
    app = serve.application(detector, **LIMITS | {"answer_seconds": 0.2})
    app.state.batches.start()
    with TestClient(app) as client:
        detector.gate.clear()
        answer = post(client, encoded())
        assert (answer.status_code, answer.json()["error"]) == (504, "too_slow")
        detector.gate.set()
        assert post(client, encoded()).status_code == 200


def test_page(client):
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html") and "Drop an image" in page.text
    assert "http://" not in page.text and "https://" not in page.text


async def get(app, path):
    """Status of a GET for a path that no client has tidied up."""
    scope = {"type": "http", "http_version": "1.1", "method": "GET", "headers": [], "query_string": b""}
    sent = []

    async def receive():
        return {"type": "http.request"}

    async def send(message):
        sent.append(message)

    await app(scope | {"path": path, "raw_path": path.encode()}, receive, send)
    return sent[0]["status"]


def test_no_file_is_written_and_none_read(detector, tmp_path):
    secret = str(tmp_path / "secret.png")
    pathlib.Path(secret).write_bytes(encoded())
    app = serve.application(detector, **LIMITS | {"max_bytes": 5_000_000})
    app.state.batches.start()
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8).tobytes()
    with TestClient(app) as client:

        def form(name, body, query="", **fields):
            answer = client.post(f"/detect{query}", files={"picture": (name, body, "image/png")}, data=fields)
            return answer.status_code

        # Pillow loads a font and its formats once
        assert (form("a.png", encoded(), "?answer=png"), form("a.png", b"x")) == (200, 400)
        with heard(lambda name, arguments: name == "open" or is_effect(name, arguments)) as events:
            assert form(secret, encoded(), "?answer=png") == 200
            assert form(f"../../../../..{secret}", noise * 12) == 400  # more than Starlette keeps in memory
            assert form(secret, b"", path=secret) == 400
            assert form(secret, secret.encode(), f"?image={secret}") == 400
            assert post(client, secret.encode(), Location=secret, Content_Location=secret).status_code == 400
            for path in (secret, f"/..{secret}", f"/../../../../..{secret}", f"/detect/..{secret}", f"file://{secret}"):
                assert asyncio.run(get(app, path)) == 404
        assert events == []


def test_as_a_stranger_starts_it(tiny_run):
    """Real detections in batches, a client that stops in the middle, and an end that loses nothing."""
    command = [sys.executable, "-m", "jaxdet", "serve", "--workdir", tiny_run.workdir, "--port", "0"]
    command += ["--batch-size", "2", "--body-seconds", "1", "--answer-seconds", "100"]
    process = subprocess.Popen(
        command, cwd=tiny.ROOT, env=tiny.ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "compiled 4 shapes\n"
        line = process.stdout.readline()
        url = httpx.URL(line.split()[-1])
        assert url.host == "127.0.0.1" and str(tiny_run.workdir) in line
        pictures = [tiny.picture(*size, seed=i) for i, size in enumerate([(100, 170), (150, 70)] * 4)]
        bodies = []
        for picture in pictures:
            buffer = io.BytesIO()
            Image.fromarray(picture).save(buffer, "PNG")
            bodies.append(buffer.getvalue())

        def ask(body):
            return httpx.post(url.join("/detect"), content=body, headers={"Content-Type": "image/png"}, timeout=100)

        def stop_in_the_middle():
            head = "POST /detect HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 99\r\n\r\nabc"
            with socket.create_connection((url.host, url.port)) as connection:
                connection.sendall(head.encode())
                with connection.makefile("rb") as answer:
                    return answer.read().decode()

        threads, results = in_threads([lambda b=b: ask(b) for b in bodies] + [stop_in_the_middle])
        for thread in threads:
            thread.join()
        assert results[-1].startswith("HTTP/1.1 408") and "slow_body" in results[-1]
        detector = jaxdet.load(tiny_run.workdir)
        names = [category["name"] for category in detector.categories]
        for picture, answer in zip(pictures, results[:-1], strict=True):
            rows = answer.json()["detections"]
            found = {
                "boxes": np.array([row["box"] for row in rows]),
                "scores": np.array([row["score"] for row in rows]),
                "labels": np.array([names.index(row["label"]) for row in rows]),
            }
            with tiny.quick_compilation():
                expected = detector(picture)
            assert len(rows) == len(expected["scores"]) > 0
            assert export.difference(expected, found, max(picture.shape)) < 1e-4

        answers = []

        def ask_on(body):
            with contextlib.suppress(httpx.TransportError):  # a connection after the end is refused
                while True:
                    answers.append(ask(body).status_code)

        threads, _ = in_threads([lambda b=b: ask_on(b) for b in bodies])
        with httpx.Client(base_url=url) as client:
            wait_for(lambda: "jaxdet_requests 0.0" not in client.get("/metrics").text)
            before = answers.count(200)
            taken = float(client.get("/metrics").text.split("jaxdet_requests ")[-1].split()[0])
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        assert answers.count(200) - before >= taken
        assert process.wait(60) == 0
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()


def test_wrong_arguments(tiny_run, tmp_path):
    with pytest.raises(SystemExit, match="holds no run"):
        main(["serve", "--workdir", str(tmp_path), "--port", "0"])
    with pytest.raises(SystemExit, match="--batch-size must be above 0"):
        main(["serve", "--workdir", str(tmp_path), "--batch-size", "0"])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(SystemExit, match="in use"):
            main(["serve", "--workdir", str(tiny_run.workdir), "--port", port])
