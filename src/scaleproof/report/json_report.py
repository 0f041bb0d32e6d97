"""The report for programs: every number unrounded, ``null`` where one is missing or not finite.

``report_version`` grows when a field changes its meaning or goes away, not when one is added.
"""

import msgspec

from scaleproof.report.summary import Summary

REPORT_VERSION = 1


def render(summary: Summary) -> str:
    """Indented JSON, ending in a line feed."""
    # msgspec writes NaN and infinities as null: JSON has no word for them.
    fields = {name: getattr(summary, name) for name in summary.__struct_fields__}
    data = msgspec.json.encode({"report_version": REPORT_VERSION, **fields})
    return msgspec.json.format(data, indent=2).decode() + "\n"
