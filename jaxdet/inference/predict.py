"""Detections of files for people to look at: pictures, folders, patterns and videos."""

import glob
import json
import pathlib

import tqdm

import jaxdet
from jaxdet.data.images import decode
from jaxdet.inference.detector import as_json
from jaxdet.inference.drawing import draw
from jaxdet.runs.files import write_whole
from jaxdet.runs.workdir import Workdir

PICTURES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".tif", ".tiff", ".bmp", ".gif"),
    *(".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm"),
)
VIDEOS = (
    *(".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts"),
    *(".wmv", ".flv", ".3gp", ".ogv"),
)


def predict_all(workdir, inputs, output=None, threshold=0.5):
    """Writes each picture with its detections drawn and OUTPUT/detections.json with those of all pictures.

    inputs: files, folders (pictures and videos in them and below, by suffix), or glob patterns that name no file. A video
    becomes NAME.mp4 and NAME.jsonl, a line a frame (see jaxdet.inference.video). output: a folder, WORKDIR/predictions where None;
    where it lies in a folder that is given, its files are not taken, and no input is written over. threshold: the lowest
    score that is drawn; all are written.

    Returns what to print, and a line for each input that was left out. Raises FileNotFoundError where there is no run.
    """
    output = pathlib.Path(output or Workdir(workdir).predictions)
    paths, failed = find(inputs, output)
    detector = jaxdet.load(workdir)
    output.mkdir(parents=True, exist_ok=True)
    names = [category["name"] for category in detector.categories]
    results, videos, taken = [], 0, _names_in(output, paths)
    for path in tqdm.tqdm(paths, unit="file" if any(map(is_video, paths)) else "picture"):
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
        draw(image, found["boxes"], found["scores"], found["labels"], names, threshold=threshold).save(
            output / drawn
        )
        results.append({"picture": str(path), "drawn": drawn, "detections": as_json(found, names)})
    written = [f"{videos} videos, each with a .jsonl of a line a frame, in {output}"] if videos else []
    if results or not videos:
        write_whole(output / "detections.json", json.dumps(results, indent=1) + "\n")
        written += [f"{len(results)} pictures and detections.json (boxes x1 y1 x2 y2 in pixels) in {output}"]
    return "\n".join(written), failed


def find(inputs, output):
    """The files that inputs stand for, in their order and sorted within each, and a line for each that stands for none."""
    paths, failed = [], []
    for given in map(str, inputs):
        path = pathlib.Path(given)
        if path.is_dir():
            if path.resolve() == output.resolve():
                failed.append(f"{given}: is the output folder too; name another one with --output")
                continue
            root = path
            found = sorted(item for item in path.rglob("*") if item.suffix.lower() in (*PICTURES, *VIDEOS))
            nothing = f"no pictures or videos in this folder; looked for {' '.join((*PICTURES, *VIDEOS))}"
        elif not path.exists() and glob.has_magic(given):
            root = next(folder for folder in path.parents if not glob.has_magic(str(folder)))
            found = sorted(map(pathlib.Path, glob.glob(given, recursive=True)))
            nothing = "no file fits this pattern"
        else:
            paths.append(given)
            continue
        drawings = output if _is_below(output, root) else None  # of an earlier call
        found = [item for item in found if item.is_file() and not (drawings and _is_below(item, drawings))]
        paths += map(str, found)
        failed += [] if found else [f"{given}: {nothing}"]
    return paths, failed


def is_video(path):
    """Whether a file is taken for a video, by its suffix."""
    return pathlib.Path(path).suffix.lower() in VIDEOS


def _is_below(path, folder):
    return folder.resolve() in path.resolve().parents


def _names_in(folder, paths):
    """Names of the files that lie in the folder itself: those that must not be written over."""
    paths = map(pathlib.Path, paths)
    return {path.name for path in paths if path.parent.resolve() == folder.resolve()}


def _free_name(path, suffix, taken):
    """STEM.png, or STEM-2.png .. where that is taken: by a picture of that name of another folder, or by an input."""
    stem = pathlib.Path(path).stem
    name, number = f"{stem}{suffix}", 2
    while name in taken:
        name, number = f"{stem}-{number}{suffix}", number + 1
    taken.add(name)
    return name
