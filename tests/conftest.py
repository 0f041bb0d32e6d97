"""Shared set-up: helpers in this folder can be imported by every test."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--corpus-part",
        default="0/1",
        metavar="I/N",
        help="every Nth case of the corpus, from I on",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what ``--corpus-part`` does not ask for."""
    first, every = map(int, config.getoption("--corpus-part").split("/"))
    cases = [item for item in items if item.get_closest_marker("corpus")]
    left_out = set(cases) - set(cases[first::every])
    config.hook.pytest_deselected(items=list(left_out))
    items[:] = [item for item in items if item not in left_out]


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
