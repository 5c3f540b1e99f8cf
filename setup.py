"""The packages of a wheel: jaxdet, with configs/ where jaxdet.config.command_line looks for recipes."""

from setuptools import find_namespace_packages, setup

setup(
    packages=[*find_namespace_packages(include=["jaxdet*"]), "jaxdet.config.recipes"],
    package_dir={"jaxdet.config.recipes": "configs"},
)
