"""What every page shares: a folder of its own, and the templates."""

import pathlib

import jinja2

from jaxdet.runs.files import write_whole


def check_folder(folder, sign):
    """Makes a folder for a page. Raises ValueError if it holds anything but an older page."""
    folder = pathlib.Path(folder)
    if folder.exists() and not (folder / sign).exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} holds something else than an older page; name another folder with --output")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def fresh_folder(folder, sign, images):
    """A folder for a page, with an empty subfolder for its images; the file `sign` tells a later call that both may be
    reused.

    An older page goes before its images do, so that index.html, where there is one, is whole. Raises ValueError if
    there is something else in the folder, which might get lost.
    """
    folder = check_folder(folder, sign)
    write_whole(folder / sign, "{}\n")
    (folder / "index.html").unlink(missing_ok=True)
    (folder / images).mkdir(exist_ok=True)
    for old in (folder / images).glob("*.jpg"):
        old.unlink()
    return folder


def render(template, **values):
    """A page of the templates beside this file."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jaxdet.pages"), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    return environment.get_template(template).render(values)
