"""The states of one direction of a connection, from its source to its sink.

A connection is two flows. Everything that a flow can be is in `TRANSITIONS`: no flag beside it says
whether the source is read, the sink watched, or the end passed on.
"""

from collections.abc import Mapping
from enum import Enum, auto

__all__ = ["READS", "TRANSITIONS", "WATCHES", "Event", "Flow", "after"]


class Flow(Enum):
    """What one direction is doing."""

    FLOWING = auto()  # the source is read; the sink has taken everything so far
    HELD = auto()  # the sink takes no more for now, so the source is not read
    ENDING = auto()  # the source has ended, and the sink has not taken everything yet
    ENDED = auto()  # the sink has everything, and knows that it is the end


class Event(Enum):
    """What happens to a flow."""

    SINK_FULL = auto()  # a write was not taken whole
    SINK_DRAINED = auto()  # what was left over has been taken
    SOURCE_ENDED = auto()  # the source will send nothing more


# A pair that is missing cannot happen: a held or ended flow does not read its source, and a sink
# that took everything has nothing to drain.
TRANSITIONS: Mapping[tuple[Flow, Event], Flow] = {
    (Flow.FLOWING, Event.SINK_FULL): Flow.HELD,
    (Flow.FLOWING, Event.SOURCE_ENDED): Flow.ENDED,
    (Flow.HELD, Event.SINK_DRAINED): Flow.FLOWING,
    # One read can bring both the last bytes, which fill the sink, and the end.
    (Flow.HELD, Event.SOURCE_ENDED): Flow.ENDING,
    (Flow.ENDING, Event.SINK_DRAINED): Flow.ENDED,
}

# In which states the source is read, and in which the sink is watched for room.
READS = frozenset({Flow.FLOWING})
WATCHES = frozenset({Flow.HELD, Flow.ENDING})


def after(flow: Flow, event: Event) -> Flow:
    """Return the state that follows; a pair that is not in the table is a bug (KeyError)."""
    return TRANSITIONS[flow, event]
