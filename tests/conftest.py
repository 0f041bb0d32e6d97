"""Shared set-up: helpers in this folder can be imported by every test."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """A whole run in which every distributed test was skipped proves nothing: it fails."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    distributed = [item for item in session.items if item.get_closest_marker("distributed")]
    if reporter is None or session.exitstatus != 0 or session.config.option.collectonly:
        return
    passed = {report.nodeid for report in reporter.stats.get("passed", [])}
    on_cpu = [item.nodeid for item in distributed if not item.get_closest_marker("gpu")]
    if on_cpu and not passed.intersection(on_cpu):
        reporter.write_line("no distributed test ran: see the reasons for skipping", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
