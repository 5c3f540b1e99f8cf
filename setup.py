"""The packages and requirements of the wheel. pyproject.toml cannot mark lines of requirements.txt as optional."""

import pathlib
import re

from setuptools import find_namespace_packages, setup


def requirements(name):
    """{"EXTRA" of the lines marked `# [EXTRA]`, "" of the others: what they require}."""
    found = {}
    for line in pathlib.Path(__file__).with_name(name).read_text().splitlines():
        requirement, _, comment = line.partition("#")
        if requirement.strip():
            extra = re.match(r" \[(\w+)\]", comment)
            found.setdefault(extra[1] if extra else "", []).append(requirement.strip())
    return found


extras = requirements("requirements.txt")
core = extras.pop("")
everything = [line for extra in extras.values() for line in extra]
setup(
    # configs/ lies where jaxdet.config.command_line looks for recipes
    packages=[*find_namespace_packages(include=["jaxdet*"]), "jaxdet.config.recipes"],
    package_dir={"jaxdet.config.recipes": "configs"},
    install_requires=core,
    extras_require=extras | {"all": everything, "dev": requirements("requirements-dev.txt")[""]},
)
