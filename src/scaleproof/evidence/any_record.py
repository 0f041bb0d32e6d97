"""Whatever may stand in a rank's file."""

from scaleproof.evidence.close_ups import CloseUp
from scaleproof.evidence.observations import Observation
from scaleproof.evidence.records import Record

AnyRecord = Record | Observation | CloseUp
