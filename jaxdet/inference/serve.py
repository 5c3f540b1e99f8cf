"""A detector as a small HTTP service: POST an image, get its detections.

Images are decoded in a few threads and detected in one (jaxdet.inference.batching). Bytes, pixels, number and time of
the requests are limited, each with a status and a JSON error of its own. Bodies stay in memory; no file is read or
written.
"""

import asyncio
import concurrent.futures
import contextlib
import functools
import io
import signal
import socket
import time

from PIL import Image

try:
    import prometheus_client
    import uvicorn
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.formparsers import MultiPartException, MultiPartParser
    from starlette.requests import ClientDisconnect
    from starlette.responses import HTMLResponse, JSONResponse, Response
    from starlette.routing import Route
except ModuleNotFoundError as error:
    message = "jaxdet serve needs starlette and uvicorn: pip install 'jaxdet[serve]'"
    raise ModuleNotFoundError(message, name=error.name) from error

from jaxdet.config.limits import Limits
from jaxdet.data.decoding import FORMATS, decode
from jaxdet.inference.batching import Batches, Full
from jaxdet.inference.detector import as_json, load
from jaxdet.inference.drawing import draw
from jaxdet.inference.serve_page import PAGE

DRAWN = {"image/png": "PNG", "image/jpeg": "JPEG"}
DECODERS = 2  # images at full size in memory at the same time


class Refused(Exception):
    """A refused request: HTTP status, an error code for programs, a message for people."""

    def __init__(self, status, error, message):
        self.status, self.error, self.message = status, error, message


def serve(workdir, host, port, **limits):
    """Serves the detector of a workdir until SIGINT or SIGTERM, then answers the accepted requests and returns.

    limits: see jaxdet.config.limits. Raises FileNotFoundError if there is no run, OSError if the port is taken,
    ValueError if it is not a port number, or as `application`.
    """
    if not 0 <= port < 65536:
        raise ValueError(f"--port is {port}; ports are 0 to 65535")
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))  # before the compilation, which takes minutes; no connection is accepted yet
        detector = load(workdir)
        app = application(detector, **limits)
        shown = f"[{host}]" if ":" in host else host
        print(f"compiled {app.state.batches.start()} shapes", flush=True)
        # longer than clients keep idle connections, so that none is closed while a client sends a request
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            lifespan="on",
            http="h11",  # limits the size of a request header
            timeout_keep_alive=75,
            timeout_graceful_shutdown=app.state.seconds,
        )
        server = uvicorn.Server(config)
        listener.listen(1024)
        print(f"{workdir} on http://{shown}:{listener.getsockname()[1]}", flush=True)
        for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn raises them again at its end
            signal.signal(number, lambda *_: None)
        server.run(sockets=[listener])


def application(detector, **limits):
    """The ASGI application. Call `app.state.batches.start()` before the first request.

    limits: values of jaxdet.config.limits other than the defaults. `app.state.seconds` is the longest time of a
    request. Raises ValueError if max_pixels is above `PIL.Image.MAX_IMAGE_PIXELS`, because Pillow would refuse such
    images.
    """
    limits = Limits(**limits)
    if Image.MAX_IMAGE_PIXELS is not None and limits.max_pixels > Image.MAX_IMAGE_PIXELS:
        raise ValueError(
            f"--max-pixels is {limits.max_pixels}, but Pillow decodes at most {Image.MAX_IMAGE_PIXELS} pixels"
        )
    registry = prometheus_client.CollectorRegistry()
    answers = prometheus_client.Counter(
        "jaxdet_answers", "Answers to images, by HTTP status.", ["status"], registry=registry
    )
    seconds = prometheus_client.Histogram(
        "jaxdet_answer_seconds", "From a request's header to its answer.", registry=registry
    )
    batches_seen = prometheus_client.Histogram(
        "jaxdet_batch_pictures", "Images in a batch.", buckets=(1, 2, 4, 8, 16, 32), registry=registry
    )
    taken = prometheus_client.Gauge("jaxdet_requests", "Requests being worked on.", registry=registry)
    batches = Batches(detector, limits.batch_size, limits.max_requests, batches_seen.observe)
    pool = concurrent.futures.ThreadPoolExecutor(DECODERS, "decoder")
    names = [category["name"] for category in detector.categories]
    in_work = 0

    async def in_pool(function, *arguments):
        return await asyncio.get_running_loop().run_in_executor(pool, function, *arguments)

    def submit(body):
        """Decodes and submits in one step, so that at most DECODERS images at full size are in memory."""
        image = decode_body(body, limits.max_pixels)
        return image.shape[:2], batches.submit(image)

    async def detections(body):
        try:
            size, found = await in_pool(submit, body)
        except Full:
            raise busy() from None
        return size, await asyncio.wrap_future(found)

    async def answer(request):
        kind, threshold = wanted(request)
        check_type(request)
        body = await read(request, limits.max_bytes, limits.body_seconds)
        request.state.whole = True
        try:
            async with asyncio.timeout(limits.answer_seconds):
                (height, width), found = await detections(body)
                if kind in DRAWN:
                    drawn = await in_pool(drawing, body, found, names, 0.5 if threshold is None else threshold, kind)
                    return Response(drawn, media_type=kind)
        except TimeoutError:
            raise Refused(504, "too_slow", f"no answer within {limits.answer_seconds:g} s") from None
        rows = [row for row in as_json(found, names) if row["score"] >= (threshold or 0)]
        return JSONResponse({"width": width, "height": height, "detections": rows})

    async def counted(request):
        nonlocal in_work
        if in_work >= limits.max_requests:
            raise busy()
        in_work += 1
        taken.set(in_work)
        try:
            return await answer(request)
        finally:
            in_work -= 1
            taken.set(in_work)

    async def detect(request):
        started = time.perf_counter()
        try:
            response = await counted(request)
        except Refused as refusal:
            headers = {}
            if not getattr(request.state, "whole", False):
                # the rest of the body would be taken for the next request
                headers["Connection"] = "close"
                if refusal.status != 408:
                    await drain(request, 4 * limits.max_bytes)
            response = problem(refusal.status, refusal.error, refusal.message, headers)
        except ClientDisconnect:
            response = problem(400, "gone", "the body was not sent to its end")
        except Exception as error:
            response = problem(500, "failed", f"{type(error).__name__} in the detector; the log has more")
            uvicorn.config.logger.exception("an image failed", exc_info=error)
        answers.labels(response.status_code).inc()
        seconds.observe(time.perf_counter() - started)
        return response

    def health(request):
        alive = batches.thread.is_alive()
        return JSONResponse({"status": "ok" if alive else "stopped"}, 200 if alive else 503)

    def metrics(request):
        return Response(prometheus_client.generate_latest(registry), media_type="text/plain; version=0.0.4")

    @contextlib.asynccontextmanager
    async def lifespan(app):
        yield
        await asyncio.to_thread(batches.close)
        pool.shutdown()

    app = Starlette(
        routes=[
            Route("/", lambda request: HTMLResponse(PAGE)),
            Route("/detect", detect, methods=["POST"]),
            Route("/health", health),
            Route("/metrics", metrics),
        ],
        lifespan=lifespan,
        exception_handlers={HTTPException: http_problem},
    )
    app.state.batches = batches
    app.state.seconds = limits.body_seconds + limits.answer_seconds + 2  # a refusal reads for one more second
    return app


def problem(status, error, message, headers=None):
    """An error as JSON."""
    headers = dict(headers or {}) | ({"Retry-After": "1"} if status == 503 else {})
    return JSONResponse({"error": error, "message": message}, status, headers)


def http_problem(request, error):
    """Starlette's own 404 and 405 as JSON."""
    words = {404: "not_found", 405: "wrong_method"}
    message = f"{error.detail}: POST an image to /detect, or GET /, /health or /metrics"
    return problem(error.status_code, words.get(error.status_code, "refused"), message, error.headers)


def busy():
    return Refused(503, "busy", "too many images are waiting; try again")


def wanted(request):
    """(media type of the answer, threshold or None) by the query, `answer` and `threshold`, or the Accept header."""
    threshold = request.query_params.get("threshold")
    try:
        threshold = None if threshold is None else float(threshold)
        if threshold is not None and not 0 <= threshold <= 1:
            raise ValueError
    except ValueError:
        raise Refused(400, "bad_query", "threshold is a number from 0 to 1") from None
    kinds = {"json": "application/json", "png": "image/png", "jpeg": "image/jpeg"}
    if answer := request.query_params.get("answer"):
        if answer not in kinds:
            raise Refused(400, "bad_query", f"answer is one of {', '.join(kinds)}")
        return kinds[answer], threshold
    accepted = [part.partition(";")[0].strip() for part in request.headers.get("accept", "*/*").split(",")]
    for kind in accepted:
        for ours in kinds.values():
            if kind in (ours, "*/*", ours.partition("/")[0] + "/*"):
                return ours, threshold
    raise Refused(406, "not_acceptable", f"answers are {', '.join(kinds.values())}")


def check_type(request):
    """Raises Refused if the type of the body cannot hold an image."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not (kind.startswith("image/") or kind in ("application/octet-stream", "multipart/form-data")):
        message = f"Content-Type is {kind or 'missing'}; send an image type or multipart/form-data"
        raise Refused(415, "wrong_type", message)


async def read(request, max_bytes, body_seconds):
    """The bytes of the image: the body, or the first file of a multipart form."""
    too_large = Refused(413, "too_large", f"a body may have at most {max_bytes} bytes")
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > max_bytes:
        raise too_large

    async def chunks():
        received = 0
        async for chunk in request.stream():
            received += len(chunk)
            if received > max_bytes:
                raise too_large
            yield chunk

    try:
        async with asyncio.timeout(body_seconds):
            if not request.headers["content-type"].lower().startswith("multipart/"):
                return b"".join([chunk async for chunk in chunks()])
            parser = MultiPartParser(request.headers, chunks(), max_files=1, max_fields=16)
            parser.spool_max_size = max_bytes + 1  # never to disk
            form = await parser.parse()
    except TimeoutError:
        raise Refused(408, "slow_body", f"the body did not arrive within {body_seconds:g} s") from None
    except (MultiPartException, KeyError) as error:
        raise Refused(400, "bad_form", f"the multipart form cannot be read: {error}") from None
    try:
        files = [value for _, value in form.multi_items() if not isinstance(value, str)]
        if not files:
            raise Refused(400, "bad_form", "the form holds no file")
        return await files[0].read()
    finally:
        await form.close()


async def drain(request, most):
    """Reads the rest of a body for a second. A client that is cut off while sending would never read the error."""
    if request.headers.get("expect"):  # it has not sent the body yet
        return
    received = 0
    with contextlib.suppress(TimeoutError, ClientDisconnect, RuntimeError):  # RuntimeError: it was read to the end
        async with asyncio.timeout(1):
            async for chunk in request.stream():
                received += len(chunk)
                if received > most:
                    return


def decode_body(body, max_pixels):
    """Decodes a body. Raises Refused if it is not an image, has too many pixels, or is damaged."""
    many = functools.partial(Refused, 422, "too_many_pixels")
    try:
        with Image.open(io.BytesIO(body), formats=FORMATS) as image:
            width, height = image.size
    except Image.DecompressionBombError:
        raise many(f"an image may have at most {max_pixels} pixels") from None
    except Exception:  # the decoders raise a dozen types on corrupt bytes
        raise Refused(400, "not_a_picture", "the body is not an image in a known format") from None
    if width * height > max_pixels:
        raise many(f"the image has {width} x {height} pixels; at most {max_pixels} are allowed")
    try:
        return decode(body)
    except ValueError as error:
        raise Refused(400, "damaged_picture", str(error)) from None


def drawing(body, found, names, threshold, kind):
    """The encoded image with its detections."""
    boxes, scores, labels = found["boxes"], found["scores"], found["labels"]
    drawn = draw(decode(body), boxes, scores, labels, names, threshold=threshold)
    buffer = io.BytesIO()
    drawn.save(buffer, DRAWN[kind])
    return buffer.getvalue()
