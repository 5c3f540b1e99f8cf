"""The service under load: many requests at a time from another process, broken ones among them.

    python -m benchmarks.serve_load --workdir runs/person --images DIR

Starts `python -m jaxdet serve` and sends images (drawn scenes where none are given), a share of them as something that
no image is: no image, cut in half, 100 megapixels declared, a wrong type, a client that stops in the middle of its
body. Every answer is compared with the detector's own or with the error it must be; the exit code is 1 where one is
wrong. Then the service is told to end while requests are on their way: all that it took must be answered.
"""

import argparse
import asyncio
import collections
import io
import json
import pathlib
import random
import struct
import subprocess
import sys
import time
import zlib

import httpx
import numpy as np
from PIL import Image

import jaxdet
from jaxdet.config.limits import Limits
from jaxdet.data.decoding import decode
from jaxdet.data.synthetic import scenes
from jaxdet.inference.batching import Batches, detect_together
from jaxdet.inference.export import difference

ERRORS = {
    "no image": (400, "not_a_picture"),
    "cut": (400, "damaged_picture"),
    "100 megapixels": (422, "too_many_pixels"),
    "wrong type": (415, "wrong_type"),
    "slow client": (408, "slow_body"),
}


def encoded_images(folder, count):
    """Encoded images: the first of a folder, or drawn scenes of both orientations."""
    if folder:
        return [path.read_bytes() for path in sorted(pathlib.Path(folder).glob("*.jpg"))[:count]]
    encoded = []
    for i in range(count):
        height, width = ((240, 320), (300, 200), (375, 500))[i % 3]
        buffer = io.BytesIO()
        Image.fromarray(scenes.draw_scene(0, i, height, width)[0]).save(buffer, "JPEG", quality=90)
        encoded.append(buffer.getvalue())
    return encoded


def declaring(width, height):
    """A PNG whose header says so many pixels, and which has hardly any data."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


def resident_mib(pid, name="VmRSS"):
    """Memory that a process holds, or with VmHWM the most it held, in MiB."""
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


async def slow(url, body):
    """Half of a body, and then nothing. Returns (status, JSON)."""
    reader, writer = await asyncio.open_connection(url.host, url.port)
    head = (
        f"POST /detect HTTP/1.1\r\nHost: {url.host}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body[: len(body) // 2])
    await writer.drain()
    answer = await reader.read()
    writer.close()
    head, _, content = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(content)


async def ask(client, url, kind, body):
    """One request of a kind; (status, JSON)."""
    if kind == "slow client":
        return await slow(url, body)
    content = {
        "no image": b"no image " * 500,
        "cut": body[: len(body) // 2],
        "100 megapixels": declaring(12_500, 8_000),
    }
    if kind == "form":
        answer = await client.post("/detect", files={"picture": ("a.jpg", body, "image/jpeg")})
    else:
        media = "text/plain" if kind == "wrong type" else "image/jpeg"
        answer = await client.post("/detect", content=content.get(kind, body), headers={"Content-Type": media})
    return answer.status_code, answer.json()


async def load(url, encoded, options, pid):
    """Sends everything; returns (kind, image, status, JSON) of each request, seconds, and memory over time in MiB."""
    rng = random.Random(0)
    kinds = [
        rng.choice(list(ERRORS)) if rng.random() < options.broken else rng.choice(("good", "form"))
        for _ in range(options.requests)
    ]
    waiting, answers, memory = collections.deque(enumerate(kinds)), [], []
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:

        async def worker():
            while waiting:
                number, kind = waiting.popleft()
                which = number % len(encoded)
                try:
                    answer = await ask(client, url, kind, encoded[which])
                except (httpx.TransportError, OSError) as error:
                    answer = 0, {"error": repr(error)}
                answers.append((kind, which, *answer))
                if len(answers) % 50 == 0:
                    memory.append(resident_mib(pid))
                    print(f"{len(answers)} answers, {memory[-1]:.0f} MiB", file=sys.stderr)

        started = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(options.concurrency)))
        return answers, time.perf_counter() - started, memory


async def shut_down(url, encoded, process):
    """Ends the service while it works; (requests answered, requests that were sent before)."""
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        tasks = [asyncio.create_task(ask(client, url, "good", encoded[i % len(encoded)])) for i in range(8)]
        while "jaxdet_requests 8.0" not in (await client.get("/metrics")).text and not all(t.done() for t in tasks):
            await asyncio.sleep(0.01)
        process.terminate()
        done = await asyncio.gather(*tasks, return_exceptions=True)
    return sum(isinstance(answer, tuple) and answer[0] == 200 for answer in done), len(tasks)


def answers_at(detector, image, sizes):
    """The detector's answers in batches of all sizes: where two scores are equal, rounding decides, and it differs by
    size.
    """
    padded, size, scales = detector.prepare(image)
    found = [detect_together(detector, [(padded, size, scales)], count) for count in sizes]
    return [detector.finish([part[0] for part in parts], scales, image.shape[:2]) for parts in found]


def images_a_second(detector, images):
    """Of the detector by itself, one image after the other, decoded already."""
    started = time.perf_counter()
    for image in images:
        detector(image)
    return len(images) / (time.perf_counter() - started)


def wrong_answers(answers, expected, labels):
    """What is wrong with answers, one line each, and the most that detections differ."""
    wrong, worst = [], 0.0
    for kind, which, status, content in answers:
        if kind in ERRORS:
            if (status, content.get("error")) != ERRORS[kind]:
                wrong.append(f"{kind}: {status} {content}")
            continue
        if status != 200:
            wrong.append(f"{kind}: {status} {content}")
            continue
        rows = content["detections"]
        found = {
            "boxes": np.array([row["box"] for row in rows]).reshape(-1, 4),
            "scores": np.array([row["score"] for row in rows]),
            "labels": np.array([labels.index(row["label"]) for row in rows], int),
        }
        side = max(content["width"], content["height"])
        apart = min(difference(one, found, side) for one in expected[which])
        worst = max(worst, apart)
        if apart > 1e-4:
            wrong.append(f"{kind}: image {which} differs by {apart:.1e}")
    return wrong, worst


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--images", metavar="DIR", help="folder of .jpg files (default: drawn scenes)")
    parser.add_argument("--different", type=int, default=40, help="different images (default: 40)")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--broken", type=float, default=0.2, help="share of broken requests (default: .2)")
    parser.add_argument("--batch-size", type=int, default=Limits().batch_size)
    parser.add_argument("--body-seconds", type=float, default=3)
    parser.add_argument("--json", metavar="FILE", help="write the numbers there as well")
    options = parser.parse_args()
    encoded = encoded_images(options.images, options.different)
    detector = jaxdet.load(options.workdir)
    images = [decode(body) for body in encoded]
    sizes = Batches(detector, options.batch_size, waiting=0).sizes
    expected = [answers_at(detector, image, sizes) for image in images]
    alone = [images_a_second(detector, images)]
    settings = {name: getattr(options, name) for name in ("workdir", "batch_size", "body_seconds")}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    command = [sys.executable, "-m", "jaxdet", "serve", "--port=0", "--answer-seconds=120", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            for line in process.stdout:
                if " on http" in line:
                    break
            else:
                sys.exit("the service did not start")
            url = httpx.URL(line.split()[-1])
            before = resident_mib(process.pid)
            answers, seconds, memory = asyncio.run(load(url, encoded, options, process.pid))
            most = resident_mib(process.pid, "VmHWM")
            answered, sent = asyncio.run(shut_down(url, encoded, process))
            code = process.wait(60)
        finally:
            process.kill()
    alone.append(images_a_second(detector, images))
    labels = [category["name"] for category in detector.categories]
    wrong, worst = wrong_answers(answers, expected, labels)
    good = sum(kind not in ERRORS for kind, *_ in answers)
    counts = collections.Counter(kind for kind, *_ in answers)
    middle = memory[len(memory) // 2] if memory else before
    print(f"{len(answers)} answers in {seconds:.1f} s: {', '.join(f'{n} {kind}' for kind, n in counts.most_common())}")
    print(f"{len(wrong)} wrong; detections differ by at most {worst:.1e}")
    print("\n".join(wrong[:10]))
    print(
        f"{good / seconds:.2f} images a second; the detector alone, one after the other, "
        f"{alone[0]:.2f} before and {alone[1]:.2f} after"
    )
    print(
        f"memory {before:.0f} MiB before, {middle:.0f} in the middle, {(memory or [before])[-1]:.0f} at the end, "
        f"{most:.0f} at most"
    )
    print(f"told to end with {sent} requests on their way: {answered} answered, exit code {code}")
    if options.json:
        numbers = {"images_per_s": good / seconds, "alone_per_s": alone, "answers": len(answers)}
        numbers |= {"wrong": len(wrong), "difference": worst, "memory_mib": most}
        pathlib.Path(options.json).write_text(json.dumps(numbers, indent=2))
    sys.exit(bool(wrong) or answered != sent or code != 0)


if __name__ == "__main__":
    main()
