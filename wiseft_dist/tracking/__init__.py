"""What happened, and when: ``events.jsonl`` is the truth, Weights & Biases mirrors it."""

from wiseft_dist.tracking.events import append_event, read_events, read_events_from
from wiseft_dist.tracking.tracker import Tracker, tell_failure, tracking, wandb_mode

__all__ = ["Tracker", "append_event", "read_events", "read_events_from", "tell_failure", "tracking", "wandb_mode"]
