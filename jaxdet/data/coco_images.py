"""The images that a COCO JSON lists, looked up in their folder: which exist, which are whole, and their sizes."""

import concurrent.futures
import os
import posixpath
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32, Int64

from jaxdet.data import decoding
from jaxdet.data.coco_json import entry_value

MISSING = "image file missing"
LEAVES = "file_name leaves the image folder"


class Images(NamedTuple):
    """The usable images, ids ascending.

    image_ids: int64 [N]. sizes: int32 [N, 2], height and width after the EXIF orientation. file_names: list of N,
    relative to the folder. rows: {image id: row above, or None for an image that was left out}. skipped: for each of
    those {"reason", "image_id", "file"}, and some a "detail".
    """

    image_ids: Int64[np.ndarray, " N"]
    sizes: Int32[np.ndarray, "N 2"]
    file_names: list[str]
    rows: dict[int, int | None]
    skipped: list[dict[str, Any]]


def index_images(section: list[Any], folder: str, path: str) -> Images:
    """Looks every entry of the JSON's "images" up in the folder; no image is decoded. Returns `Images`.

    path: of the JSON, for messages. Raises ValueError for an entry that lacks a key or has a value of a wrong type, an
    id below 0 or twice, and where no image is usable.
    """
    if not section:
        raise ValueError(f"{path}: images: the list is empty, so there is nothing to read")
    entries = {}
    for position, entry in enumerate(section):
        image_id = entry_value(path, "images", position, entry, "id", int)
        name = entry_value(path, "images", position, entry, "file_name", str)
        told = [
            None if entry.get(key) is None else entry_value(path, "images", position, entry, key, int)
            for key in ("height", "width")
        ]
        if image_id < 0:
            raise ValueError(f"{path}: images[{position}].id: {image_id} is below 0")
        if image_id in entries:
            raise ValueError(f"{path}: images[{position}].id: {image_id} is there twice")
        entries[image_id] = (name, told)

    rows: dict[int, int | None] = dict.fromkeys(entries)
    kept: list[int] = []
    sizes: list[tuple[int, int]] = []
    skipped: list[dict[str, Any]] = []
    names = {image_id: name for image_id, (name, _) in sorted(entries.items())}

    def leave_out(reason: str, image_id: int, detail: str | None = None) -> None:
        item = {"reason": reason, "image_id": image_id, "file": names[image_id]}
        skipped.append(item | ({"detail": detail} if detail else {}))

    present = _present(names, folder, leave_out)
    if not present:
        raise ValueError(_none_present(names, folder, path, skipped))
    for image_id, size in zip(present, _read_sizes(folder, [names[i] for i in present]), strict=True):
        told = entries[image_id][1]
        if isinstance(size, str):
            leave_out("image unreadable or truncated", image_id, size)
        elif any(expected not in (None, found) for expected, found in zip(told, size, strict=True)):
            detail = f"the JSON says {told[1]}x{told[0]}, the file has {size[1]}x{size[0]}, orientation applied"
            leave_out("image size differs from the JSON", image_id, detail)
        else:
            rows[image_id] = len(kept)
            kept.append(image_id)
            sizes.append(size)
    if not kept:
        raise ValueError(f"{path}: none of its {len(entries)} images is usable: {skipped[:3]}")
    file_names = [names[image_id] for image_id in kept]
    return Images(np.array(kept, np.int64), np.array(sizes, np.int32), file_names, rows, skipped)


def _present(names: dict[int, str], folder: str, leave_out: Callable[..., None]) -> list[int]:
    """Ids of the images whose file is in the folder; each subfolder is listed once, nothing opened."""
    listings, present, root = {}, [], os.path.realpath(folder)
    for image_id, name in names.items():
        if posixpath.isabs(name) or ".." in name.split("/"):
            leave_out(LEAVES, image_id)
            continue
        subfolder, base = posixpath.split(name)
        if subfolder not in listings:
            listings[subfolder] = _listing(os.path.join(folder, subfolder), root)
        if base not in listings[subfolder]:
            leave_out(MISSING, image_id)
        elif listings[subfolder][base]:
            present.append(image_id)
        else:
            leave_out(LEAVES, image_id, "by a symbolic link")
    return present


def _none_present(names: dict[int, str], folder: str, path: str, skipped: list[dict[str, Any]]) -> str:
    """The message where no image is in the folder: what is there instead, and whether a subfolder is meant."""
    first = next(iter(names.values()))
    inside = sorted(os.listdir(folder))
    nearer = [sub for sub in inside if os.path.isfile(os.path.join(folder, sub, first))]
    nearer = [] if posixpath.isabs(first) else nearer
    outside = [
        f"; {item['reason']} {item.get('detail', '')}".rstrip() + f": {item['file']!r}"
        for item in skipped
        if item["reason"] != MISSING
    ]
    return (
        f"none of the {len(names)} images of {path} is in the folder {folder} (the first would be "
        f"{first!r}; the folder holds {len(inside)} entries"
        + (f", such as {inside[0]!r}" if inside else "")
        + (f"; did you mean {os.path.join(folder, nearer[0])}?" if nearer else "")
        + "".join(outside[:1])
        + "). Config keys data.train.images, data.val.images"
    )


def _read_sizes(folder: str, names: Iterable[str]) -> list[tuple[int, int] | str]:
    """(height, width), or what is wrong as a str, of every file. Threads: a network disk answers in parallel."""
    paths = [os.path.join(folder, name) for name in names]
    chunks = [paths[start : start + 64] for start in range(0, len(paths), 64)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        return [size for sizes in pool.map(_chunk_sizes, chunks) for size in sizes]


def _listing(folder: str, root: str) -> dict[str, bool]:
    """{name: whether it lies within `root`, symbolic links followed} of the files in a folder; {} without one."""
    try:
        within = _is_within(folder, root)
        with os.scandir(folder) as entries:
            return {
                entry.name: within and (not entry.is_symlink() or _is_within(entry.path, root))
                for entry in entries
                if _is_file(entry)
            }
    except (OSError, ValueError):  # no such folder; a name that can be none, with a zero byte in it
        return {}


def _is_within(path: str, root: str) -> bool:
    return os.path.commonpath([os.path.realpath(path), root]) == root


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Whether a directory entry is a file, and no pipe that would be waited for; False for links in a circle."""
    try:
        return entry.is_file()
    except OSError:
        return False


def _chunk_sizes(paths: list[str]) -> list[tuple[int, int] | str]:
    sizes: list[tuple[int, int] | str] = []
    for path in paths:
        try:
            sizes.append(decoding.checked_size(path))
        except (ValueError, OSError) as error:
            sizes.append(str(error))
    return sizes
