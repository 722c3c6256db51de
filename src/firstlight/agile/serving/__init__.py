"""How a version of a function answers an event."""

from firstlight.agile.serving.answer import Answer, Invocation, Load, Throttled
from firstlight.agile.serving.serving import Serving

__all__ = ["Answer", "Invocation", "Load", "Serving", "Throttled"]
