"""The profile shown in the documents is a valid one."""

import re
from pathlib import Path

from scaleproof.verdict.profile import layered_profile

PAGE = Path(__file__).parents[2] / "docs" / "profile.md"


def test_the_documented_profile_is_read(tmp_path: Path):
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    file = tmp_path / "scaleproof.toml"
    file.write_text(text)
    profile = layered_profile({}, file)
    assert profile.checks["accuracy-drop"] == {"max_drop": 0.01}
    assert profile.confidence == 0.95
