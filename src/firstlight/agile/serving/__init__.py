"""How a version of a function answers an event."""

from firstlight.agile.serving.answer import Answer, Load, Outcome, Throttled
from firstlight.agile.serving.serving import Serving

__all__ = ["Answer", "Load", "Outcome", "Serving", "Throttled"]
