"""With the core alone everything imports but what an extra is for, and that says which extra to install."""

import json
import re
import subprocess
import sys

from tests import tiny

# Of the marked ones in requirements.txt; those left out are needed by Orbax and Grain too
OPTIONAL = ["av", "jinja2", "matplotlib", "prometheus_client", "python_multipart", "starlette", "uvicorn"]
OPTIONAL += ["tensorflow_datasets"]
IMPORT_EVERYTHING = """
import importlib, json, pathlib, sys
sys.modules.update(dict.fromkeys(json.loads(sys.argv[1])))  # None: as if not installed
failed = {}
for path in sorted(pathlib.Path("jaxdet").rglob("*.py")):
    name = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        failed[name] = str(error)
from jaxdet.data.tfds import TfdsSource
try:
    TfdsSource("nowhere")
except ModuleNotFoundError as error:
    failed["TfdsSource"] = str(error)
from jaxdet.__main__ import main
try:
    main(["serve", "--workdir", "nowhere"])
except SystemExit as end:
    failed["jaxdet serve"] = end.code
print(json.dumps(failed))
"""


def test_the_core_imports_alone_and_the_rest_names_its_extra():
    command = [sys.executable, "-c", IMPORT_EVERYTHING, json.dumps(OPTIONAL)]
    done = subprocess.run(command, cwd=tiny.ROOT, stdout=subprocess.PIPE, text=True, check=True)
    failed = json.loads(done.stdout.splitlines()[-1])
    serve = "jaxdet serve needs starlette and uvicorn: pip install 'jaxdet[serve]'"
    assert failed.pop("jaxdet serve") == f"jaxdet: {serve}" and failed.pop("jaxdet.inference.serve") == serve
    assert failed.pop("jaxdet.inference.video") == "videos need av: pip install 'jaxdet[video]'"
    assert "pip install 'jaxdet[tfds]'" in failed.pop("TfdsSource")
    assert failed and all(name.split(".")[1] == "pages" for name in failed)
    assert set(failed.values()) == {
        "jaxdet report and inspect need jinja2 and matplotlib: pip install 'jaxdet[report]'"
    }


def test_what_is_optional_is_marked():
    lines = (tiny.ROOT / "requirements.txt").read_text().splitlines()
    extras = {line.split(">")[0].replace("-", "_"): re.findall(r"# \[(\w+)\]", line) for line in lines}
    assert {extra for found in extras.values() for extra in found} == {"coco", "report", "serve", "tfds", "video"}
    assert all(extras[module] for module in OPTIONAL)
