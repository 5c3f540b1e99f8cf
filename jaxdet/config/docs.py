"""Writes the tables of docs/config.md and docs/serve.md: python -m jaxdet.config.docs, in a clone.

Only what stands between the two marks of a page is written.
"""

import itertools
import pathlib

from jaxdet.config.keys import KEYS
from jaxdet.config.limits import LIMITS
from jaxdet.config.presets import RECIPES, TORCHVISION

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs"
BEGIN, END = "<!-- written by python -m jaxdet.config.docs -->\n", "<!-- to here -->\n"


def keys():
    """A table for each section of a config, and one of the presets side by side."""
    text = ""
    for section, group in itertools.groupby(KEYS.values(), lambda key: key.name.rpartition(".")[0]):
        rows = [(f"`{key.name}`", default(key), key.rule.words, key.meaning) for key in group]
        text += f"\n## {section or 'Run'}\n\n" + table(("key", "default", "values", "meaning"), rows)
    rows = [
        (f"`{name}`", *(f"`{recipe[name]!r}`" for recipe in RECIPES.values())) for name in KEYS if name in TORCHVISION
    ]
    return text + "\n## Presets\n\n" + table(("key", *RECIPES), rows) + "\n"


def limits():
    """The table of the service's limits."""
    rows = [(f"`--{key.name.replace('_', '-')}`", default(key), key.meaning) for key in LIMITS]
    return "\n" + table(("flag", "default", "meaning"), rows) + "\n"


PAGES = {"config.md": keys, "serve.md": limits}


def page(name):
    """What a page of docs/ should be: as it is, with its tables anew."""
    before, _, rest = (DOCS / name).read_text().partition(BEGIN)
    return before + BEGIN + PAGES[name]() + END + rest.partition(END)[2]


def default(key):
    """A default with its unit: `1333` pixels."""
    value = f"{key.default:_}" if type(key.default) is int else repr(key.default)
    return f"`{value}` {key.unit}".strip()


def table(head, rows):
    """Rows of texts in Markdown."""
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    for name in PAGES:
        (DOCS / name).write_text(page(name))
