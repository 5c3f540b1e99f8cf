"""The wheels that benchmarks.gpu needs on a machine without a network, which has PRESENT and its requirements.

    python -m benchmarks.wheels wheels       beforehand, with a network (make gpu-wheels)

fills the folder with WANTED and its requirements, without those of PRESENT, and removes other wheels. On the machine,
`take` installs those that are missing.
"""

import argparse
import importlib.metadata
import json
import pathlib
import re
import subprocess
import sys
import tempfile

# torchvision needs pillow; WANTED shares no other requirement with torch
PRESENT = ("jax==0.11.2", "flax", "optax", "orbax-checkpoint", "pillow")
WANTED = (
    "grain",
    "beartype",
    "httpx",
    "hypothesis",
    "jaxtyping",
    "ml_collections",
    "pytest",
    "python-multipart",
    "safetensors",
    "starlette",
    "tensorboardX",
    "tqdm",
    "uvicorn",
)
MOST = 60  # MiB of all wheels
# CPython 3.12 of x86-64 Linux, whatever runs this
MACHINE = ("--python-version=3.12", "--implementation=cp", "--only-binary=:all:")
MACHINE += tuple(f"--platform=manylinux_2_{minor}_x86_64" for minor in range(17, 36))
MACHINE += tuple(f"--platform=manylinux{name}_x86_64" for name in (1, 2010, 2014))
BOUNDS = ("--constraint=requirements.txt", "--constraint=requirements-dev.txt")
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")


def resolve(requirements, bounds=()):
    """{name: version} of the packages that pip would install for some requirements on an empty machine."""
    with tempfile.TemporaryDirectory() as folder:
        report = pathlib.Path(folder) / "report.json"
        options = ("--dry-run", "--ignore-installed", f"--target={folder}", f"--report={report}")
        options += (
            "--ignore-requires-python",
        )  # pip install asks for this Python's version, pip download for MACHINE's
        subprocess.run([*PIP, "install", *options, *MACHINE, *bounds, *requirements], check=True)
        installed = json.loads(report.read_text())["install"]
    return {normal(each["metadata"]["name"]): each["metadata"]["version"] for each in installed}


def normal(name):
    """The one spelling of a package's name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def package(wheel):
    """Name of the package in a wheel, by its path."""
    return normal(wheel.name.split("-")[0])


def collect(folder):
    """Fills a folder and returns its wheels. Raises ValueError where they are larger than MOST."""
    folder = pathlib.Path(folder)
    present = resolve(PRESENT)
    needed = {name: version for name, version in resolve(WANTED, BOUNDS).items() if name not in present}
    folder.mkdir(parents=True, exist_ok=True)
    for wheel in folder.glob("*.whl"):
        wheel.unlink()
    exact = [f"{name}=={version}" for name, version in needed.items()]
    subprocess.run([*PIP, "download", "--no-deps", f"--dest={folder}", *MACHINE, *exact], check=True)
    wheels = sorted(folder.glob("*.whl"), key=lambda wheel: -wheel.stat().st_size)
    if size(wheels) > MOST:
        largest = ", ".join(f"{package(wheel)} {size([wheel]):.1f}" for wheel in wheels[:5])
        raise ValueError(f"{folder} holds {size(wheels):.1f} MiB, {MOST} are allowed; the largest are {largest}")
    return wheels


def size(wheels):
    """MiB of all of them."""
    return sum(wheel.stat().st_size for wheel in wheels) / 2**20


def lacking(names, target):
    """The packages that neither this environment nor the folder `target` has."""
    path = [*sys.path, str(target)]
    return [name for name in names if not any(importlib.metadata.distributions(name=name, path=path))]


def take(folder, target):
    """Installs what is missing from a folder of wheels into `target`, for PYTHONPATH. Returns the names.

    Raises FileNotFoundError if anything of WANTED is then still missing.
    """
    wheels = {package(wheel): str(wheel) for wheel in sorted(pathlib.Path(folder).glob("*.whl"))}
    missing = lacking(wheels, target)
    if missing:
        options = ("--no-index", "--no-deps", "--no-compile", f"--target={target}")
        subprocess.run([*PIP, "install", *options, *(wheels[name] for name in missing)], check=True)
    if still := lacking(WANTED, target):
        raise FileNotFoundError(
            f"neither this environment nor {folder} has {', '.join(still)}; "
            "make gpu-wheels fills the folder, with a network"
        )
    return missing


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    wheels = collect(parser.parse_args().folder)
    for wheel in wheels:
        print(f"{size([wheel]):6.1f} MiB  {wheel.name}")
    print(f"{size(wheels):6.1f} MiB  {len(wheels)} wheels")


if __name__ == "__main__":
    main()
