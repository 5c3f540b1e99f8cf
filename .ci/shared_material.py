"""pytest plugin: how many tests that use the shared reference material ran, and no silent skips where it is there."""

import os
import pathlib
from collections import Counter

import pytest

FOLDER = pathlib.Path(os.environ.get("JAXDET_SHARED", pathlib.Path(__file__).resolve().parents[2] / "shared"))

outcomes = Counter()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item):
    (yield).get_result().uses_shared = "shared" in getattr(item, "fixturenames", ())


def pytest_runtest_logreport(report):
    """Where pytest-xdist distributes the tests, the reports of all processes come here."""
    if getattr(report, "uses_shared", False) and (report.when == "call" or report.outcome != "passed"):
        outcomes[report.outcome] += 1


def pytest_sessionfinish(session):
    if outcomes["skipped"] and FOLDER.is_dir() and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter):
    counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items())) or "no tests"
    where = FOLDER if FOLDER.is_dir() else f"absent, looked for it at {FOLDER}"
    terminalreporter.section("shared reference material")
    terminalreporter.line(f"{counts} ({where})")
    if outcomes["skipped"] and FOLDER.is_dir():
        terminalreporter.line("ERROR: the material is there, and these tests must not be skipped")
