"""Draws the detections of image files, folders, patterns and videos, and writes them as JSON."""

import glob
import json
import pathlib

import tqdm

from jaxdet.data.decoding import decode
from jaxdet.inference.detector import as_json, load
from jaxdet.inference.drawing import draw
from jaxdet.runs.files import write_whole
from jaxdet.runs.workdir import Workdir

IMAGES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".tif", ".tiff", ".bmp", ".gif"),
    *(".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm"),
)
VIDEOS = (
    *(".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts"),
    *(".wmv", ".flv", ".3gp", ".ogv"),
)


def predict_all(workdir, inputs, output=None, threshold=0.5):
    """Writes each image with its detections drawn, and OUTPUT/detections.json with the detections of all images.

    inputs: files, folders (all images and videos below them, by suffix), or glob patterns. A video becomes NAME.mp4 and
    NAME.jsonl, with a line per frame (see jaxdet.inference.video). output: a folder, by default WORKDIR/predictions. If
    it is inside an input folder, its files are not read; no input is overwritten. threshold: the lowest score that is
    drawn; the JSON has all detections.

    Returns what to print, and a line for each input that was left out. Raises FileNotFoundError if there is no run.
    """
    output = pathlib.Path(output or Workdir(workdir).predictions)
    paths, failed = find(inputs, output)
    detector = load(workdir)
    output.mkdir(parents=True, exist_ok=True)
    names = [category["name"] for category in detector.categories]
    results, videos, taken = [], 0, _names_in(output, paths)
    for path in tqdm.tqdm(paths, unit="file" if any(map(is_video, paths)) else "image"):
        try:
            if is_video(path):
                from jaxdet.inference.video import predict_video  # PyAV is needed for videos only

                drawn = _free_name(path, ".mp4", taken)
                predict_video(detector, path, output / drawn, threshold)
                videos += 1
                continue
            image = decode(path)
        except (ImportError, OSError, ValueError) as error:
            failed.append(f"{path}: {error}")
            continue
        found = detector(image)
        drawn = _free_name(path, ".png", taken)
        image = draw(image, found["boxes"], found["scores"], found["labels"], names, threshold=threshold)
        image.save(output / drawn)
        results.append({"picture": str(path), "drawn": drawn, "detections": as_json(found, names)})
    written = [f"{videos} videos, each with a .jsonl of one line per frame, in {output}"] if videos else []
    if results or not videos:
        write_whole(output / "detections.json", json.dumps(results, indent=1) + "\n")
        written += [f"{len(results)} images and detections.json (boxes x1 y1 x2 y2 in pixels) in {output}"]
    return "\n".join(written), failed


def find(inputs, output):
    """The files that the inputs name, sorted within each input, and a line for each input that names none."""
    paths, failed = [], []
    for given in map(str, inputs):
        path = pathlib.Path(given)
        if path.is_dir():
            if path.resolve() == output.resolve():
                failed.append(f"{given}: is also the output folder; name another one with --output")
                continue
            root = path
            found = sorted(item for item in path.rglob("*") if item.suffix.lower() in (*IMAGES, *VIDEOS))
            nothing = f"no images or videos in this folder; looked for {' '.join((*IMAGES, *VIDEOS))}"
        elif not path.exists() and glob.has_magic(given):
            root = next(folder for folder in path.parents if not glob.has_magic(str(folder)))
            found = sorted(map(pathlib.Path, glob.glob(given, recursive=True)))
            nothing = "no file matches this pattern"
        else:
            paths.append(given)
            continue
        drawings = output if _is_below(output, root) else None  # drawn by an earlier call
        found = [item for item in found if item.is_file() and not (drawings and _is_below(item, drawings))]
        paths += map(str, found)
        failed += [] if found else [f"{given}: {nothing}"]
    return paths, failed


def is_video(path):
    """Whether a file counts as a video, by its suffix."""
    return pathlib.Path(path).suffix.lower() in VIDEOS


def _is_below(path, folder):
    return folder.resolve() in path.resolve().parents


def _names_in(folder, paths):
    """Names of the inputs in the folder itself, which must not be overwritten."""
    paths = map(pathlib.Path, paths)
    return {path.name for path in paths if path.parent.resolve() == folder.resolve()}


def _free_name(path, suffix, taken):
    """STEM.png, or STEM-2.png and so on if the name is taken by an input or an image from another folder."""
    stem = pathlib.Path(path).stem
    name, number = f"{stem}{suffix}", 2
    while name in taken:
        name, number = f"{stem}-{number}{suffix}", number + 1
    taken.add(name)
    return name
