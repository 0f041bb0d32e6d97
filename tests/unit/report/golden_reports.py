"""The fixed studies behind the golden reports. To write them anew, after looking at the difference:

PYTHONPATH=tests python tests/unit/report/golden_reports.py
"""

import tempfile
from pathlib import Path

from report_cases import mixed_verdict, summary_of, unsynced_verdict

from observed import build_observed
from scaleproof.report.formats import render_text
from scaleproof.report.summary import summarise

GOLDEN = Path(__file__).parents[2] / "golden"
FILES = {
    "markdown": "report.md",
    "junit": "report.junit.xml",
    "json": "report.json",
    "terminal": "report.txt",
}

OBSERVED_FILES = {"markdown": "observed.md", "terminal": "observed.txt"}
"""A script observed alone: what differs from a comparison."""


def golden_texts(folder: Path) -> dict[str, str]:
    """The text of each file; ``folder`` is where the studies are built."""
    summary = summary_of(folder / "compared", mixed_verdict(), seeds=(0, 1))
    observed = summarise(build_observed(folder / "observed"), unsynced_verdict())
    texts = {file: render_text(summary, name) for name, file in FILES.items()}
    return texts | {file: render_text(observed, name) for name, file in OBSERVED_FILES.items()}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for file, text in golden_texts(Path(folder)).items():
            (GOLDEN / file).write_text(text, encoding="utf-8")
            print(f"wrote {GOLDEN / file}")


if __name__ == "__main__":
    main()
