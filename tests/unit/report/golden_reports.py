"""The fixed study behind the golden reports. To write them anew, after looking at the difference:

PYTHONPATH=tests python tests/unit/report/golden_reports.py
"""

import tempfile
from pathlib import Path

from report_cases import mixed_verdict, summary_of

from scaleproof.report.formats import render_text

GOLDEN = Path(__file__).parents[2] / "golden"
FILES = {
    "markdown": "report.md",
    "junit": "report.junit.xml",
    "json": "report.json",
    "terminal": "report.txt",
}


def golden_texts(folder: Path) -> dict[str, str]:
    """Each format's text for the same study; ``folder`` is where the study is built."""
    summary = summary_of(folder, mixed_verdict(), seeds=(0, 1))
    return {name: render_text(summary, name) for name in FILES}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, text in golden_texts(Path(folder) / "study").items():
            (GOLDEN / FILES[name]).write_text(text, encoding="utf-8")
            print(f"wrote {GOLDEN / FILES[name]}")


if __name__ == "__main__":
    main()
