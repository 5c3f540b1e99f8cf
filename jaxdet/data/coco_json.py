"""The JSON file of a COCO data set: reading it, checking its structure, and choosing categories."""

import difflib
import json
import os
import re
from collections.abc import Iterable
from typing import Any

from jaxdet.data.types import Category


def load_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Content of a COCO JSON file with its three lists, segmentations and keypoints left out to save memory.

    Raises:
      ValueError: not JSON (with the position), or a section is missing or no list; the message names file and key.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            content: dict[str, Any] = json.load(file, object_hook=_without_masks)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}: no valid JSON, perhaps cut short: {error.msg} at line {error.lineno} column {error.colno} "
            f"(character {error.pos} of {len(error.doc)})"
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: no valid JSON: {error.reason} at byte {error.start}, not UTF-8") from None
    except (RecursionError, ValueError) as error:  # nested without end; a number of thousands of digits
        raise ValueError(f"{path}: no JSON that can be read: {error}") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict):
            raise ValueError(f"{path}: expected a JSON object with images, annotations and categories, got a list")
        if key not in content:
            raise ValueError(f"{path}: no section {key!r}; there are {sorted(content)}")
        if not isinstance(content[key], list):
            raise ValueError(f"{path}: {key}: expected a list, got {short(content[key])}")
    return content


def choose_categories(
    path: str, section: list[Any], names: Iterable[str] | str | None
) -> tuple[tuple[Category, ...], set[int]]:
    """The chosen categories as a tuple of {"id", "name"} ordered by id, and the set of all ids there are.

    Raises:
      ValueError: a malformed section, an id twice, a name that is not there (the nearest is suggested), or none left.
    """
    found = {}
    for position, entry in enumerate(section):
        category_id = entry_value(path, "categories", position, entry, "id", int)
        name = entry_value(path, "categories", position, entry, "name", str)
        if category_id in found:
            raise ValueError(f"{path}: categories[{position}].id: {category_id} is there twice")
        found[category_id] = name
    ids = set(found)
    names = list(found.values()) if names is None else [names] if isinstance(names, str) else list(names)
    for gap in (re.fullmatch(r"N/A (\d+)", name) for name in names):
        if gap and gap[0] not in found.values():
            # torchvision's detectors have outputs for the gaps in COCO's ids
            found.setdefault(int(gap[1]), gap[0])
    there = ", ".join(list(found.values())[:100]) + (", ..." if len(found) > 100 else "")
    for name in names:
        if name not in found.values():
            nearest = difflib.get_close_matches(name.lower(), [other.lower() for other in found.values()], 1)
            hint = [other for other in found.values() if other.lower() in nearest][:1]
            raise ValueError(
                f"{path}: categories: no category named {name!r}"
                + (f", did you mean {hint[0]!r}?" if hint else ".")
                + f" There are: {there or 'none'}"
            )
    if not names:
        raise ValueError(f"{path}: categories: none chosen. There are: {there or 'none'}")
    chosen = tuple(Category(id=i, name=found[i]) for i in sorted(found) if found[i] in names)
    return chosen, ids


def entry_value(path: str, section: str, position: int, entry: Any, key: str, kind: Any) -> Any:
    """entry[key], an int within 64 bits or a str, or a ValueError that says where."""
    if not isinstance(entry, dict):
        raise ValueError(f"{path}: {section}[{position}]: expected an object, got {short(entry)}")
    if key not in entry:
        raise ValueError(f"{path}: {section}[{position}]: no key {key!r}")
    value = entry[key]
    if type(value) is not kind or (kind is int and not -(2**63) <= value < 2**63):
        expected = "an integer" if kind is int else "a string"
        raise ValueError(f"{path}: {section}[{position}].{key}: expected {expected}, got {short(value)}")
    return value


def short(value: object) -> str:
    """`repr`, cut to 60 letters, for a message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _without_masks(item: dict[str, Any]) -> dict[str, Any]:
    item.pop("segmentation", None)
    item.pop("keypoints", None)
    return item
