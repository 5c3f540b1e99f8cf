"""Videos, by PyAV: draws the detections of every frame, with the frame rate and times of the original."""

import fractions
import json
import os

import numpy as np
import tqdm

try:
    import av
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("videos need av: pip install 'jaxdet[video]'", name=error.name) from error

from jaxdet.inference.detector import as_json
from jaxdet.inference.drawing import draw


def predict_video(detector, path, output, threshold=0.5):
    """Writes `output`, an .mp4 (H.264) of the frames with their detections drawn, and a .jsonl with one line per frame.

    A line is {"frame": number from 0, "time": seconds, "detections": as in detections.json}. Frames keep their times,
    so a frame rate that varies is kept too. The rotation stored in the file is applied. There is no sound. A side with
    an odd number of pixels grows by one, as H.264 requires. The files appear when they are complete.

    Raises ValueError if the file is not a video, holds no frame, breaks off in the middle, or cannot be encoded again
    by FFmpeg; OSError if it cannot be read.
    """
    names = [category["name"] for category in detector.categories]
    lines_path = output.with_suffix(".jsonl")
    partial = output.with_name(output.name + ".partial"), lines_path.with_name(lines_path.name + ".partial")
    count = 0
    try:
        with (
            open(path, "rb") as file,
            _open(file) as source,
            partial[1].open("w") as lines,
            av.open(str(partial[0]), "w", format="mp4") as target,
        ):
            stream = source.streams.video[0]
            stream.thread_type = "AUTO"
            rate = fractions.Fraction(stream.average_rate or stream.guessed_rate or 25)
            time_base = fractions.Fraction(1, rate.numerator * -(-90_000 // rate.numerator))
            last = -1
            encoder = None
            bar = tqdm.tqdm(_frames(source, stream, rate), total=stream.frames or None, unit="frame", leave=False)
            for count, (image, time) in enumerate(bar, 1):
                if encoder is None:
                    encoder = target.add_stream("libx264", rate=rate)
                    encoder.height, encoder.width = (side + side % 2 for side in image.shape[:2])
                    encoder.pix_fmt = "yuv420p"
                    encoder.options = {"crf": "20"}
                    encoder.codec_context.time_base = time_base
                found = detector(image)
                row = {"frame": count - 1, "time": round(float(time), 6), "detections": as_json(found, names)}
                lines.write(json.dumps(row) + "\n")
                drawn = draw(image, found["boxes"], found["scores"], found["labels"], names, threshold=threshold)
                drawn = np.pad(np.asarray(drawn), ((0, image.shape[0] % 2), (0, image.shape[1] % 2), (0, 0)), "edge")
                frame = av.VideoFrame.from_ndarray(drawn, format="rgb24")
                last = max(last + 1, round(time / time_base))
                frame.pts, frame.time_base = last, time_base
                target.mux(encoder.encode(frame))
            if encoder is None:
                raise ValueError("this video has no frame")
            target.mux(encoder.encode())
        os.replace(partial[1], lines_path)
        os.replace(partial[0], output)
    except (av.error.FFmpegError, ArithmeticError) as error:  # ArithmeticError: impossible times
        raise ValueError(f"the video with its detections cannot be written: {error}") from error
    finally:
        for file in partial:
            file.unlink(missing_ok=True)
    return count


def _open(file):
    try:
        source = av.open(file)
    except (OSError, av.error.FFmpegError) as error:
        raise ValueError(f"cannot be read as a video: {error.strerror}") from error
    if not source.streams.video:
        source.close()
        raise ValueError("this file has no video stream")
    return source


def _frames(source, stream, rate):
    """(uint8 [H, W, 3], time in seconds, a Fraction) of every frame.

    Some containers round times to milliseconds. A time that is this close to a multiple of the frame interval is set to
    it.
    """
    time, shape = -1 / rate, None
    try:
        for frame in source.decode(stream):
            image = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)
            shape = shape or image.shape
            if image.shape != shape:
                raise ValueError(f"the size of its frames changes from {shape[:2]} to {image.shape[:2]}")
            time = time + 1 / rate if frame.pts is None else frame.pts * stream.time_base
            even = round(time * rate) / rate
            yield np.ascontiguousarray(image), even if abs(even - time) <= stream.time_base else time
    except av.error.FFmpegError as error:
        raise ValueError(f"the video breaks off: {error.strerror}") from error
