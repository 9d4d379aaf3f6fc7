"""How noisy a corpus of narrated videos is: late captions, captions and clips that match nothing.

``python -m norton_losses.audit features.npz --report report.html`` makes a page of it.
"""

from norton_losses.audit.corpus_audit import audit
from norton_losses.audit.narration import Narration
from norton_losses.audit.output import AuditOutput, CaptionAudits, Rate, VideoAudits
from norton_losses.audit.report import write_report

__all__ = [
    "AuditOutput",
    "CaptionAudits",
    "Narration",
    "Rate",
    "VideoAudits",
    "audit",
    "write_report",
]
