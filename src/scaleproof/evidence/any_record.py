"""Whatever may stand in a rank's file."""

from scaleproof.evidence.checkpoints import CheckpointRecord
from scaleproof.evidence.close_ups import CloseUp
from scaleproof.evidence.observations import Observation
from scaleproof.evidence.records import Record
from scaleproof.evidence.schedules import ScheduleRecord

AnyRecord = Record | Observation | CloseUp | ScheduleRecord | CheckpointRecord
