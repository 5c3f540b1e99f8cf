"""Every limit of `jaxdet serve` once. `python -m jaxdet.config.docs` writes them into docs/serve.md."""

import collections

from jaxdet.config.rules import Key, Rule

_POSITIVE = Rule("above 0", lambda v: v > 0)
LIMITS = (
    Key("batch_size", 4, _POSITIVE, "largest batch", "images"),
    Key("max_bytes", 20_000_000, _POSITIVE, "largest request body", "bytes"),
    Key("max_pixels", 50_000_000, _POSITIVE, "largest image", "pixels"),
    Key("max_requests", 64, _POSITIVE, "requests that are worked on at a time", "requests"),
    Key("body_seconds", 10.0, _POSITIVE, "time for a request body to arrive", "seconds"),
    Key("answer_seconds", 30.0, _POSITIVE, "time from there to the answer", "seconds"),
)
Limits = collections.namedtuple("Limits", [key.name for key in LIMITS], defaults=[key.default for key in LIMITS])
