"""The names that both sides write: headers and media types (DESIGN section 5)."""

from __future__ import annotations

OCTETS = "application/octet-stream"
SAFETENSORS = "application/vnd.safetensors"
JSON = "application/json"
PROBLEM = "application/problem+json"

STEP = "Adamd-Step"
DTYPE = "Adamd-Dtype"
ENCODING = "Adamd-Encoding"
ANSWER_DTYPE = "Adamd-Answer-Dtype"
OVERFLOWED = "Adamd-Overflowed"
DURABILITY = "Adamd-Durability"
REPLAYED = "Adamd-Replayed"
SETTINGS = "Adamd-Settings"
METRICS = "Adamd-Metrics"
SESSION = "Adamd-Session"
SHAPE = "Adamd-Shape"
DIVERGED = "Adamd-Diverged"
APPLIED_STEP = "Adamd-Applied-Step"
STOP = "Adamd-Stop"
WARNING = "Adamd-Warning"
IDEMPOTENCY = "Idempotency-Key"

ASKED = (DTYPE, ENCODING, ANSWER_DTYPE, SETTINGS, METRICS)  # in requests
TOLD = (STEP, DTYPE, OVERFLOWED, DURABILITY, REPLAYED, DIVERGED, APPLIED_STEP, STOP, WARNING)  # in answers

MAX_STEP = 2**53
NAME_PATTERN = r"[a-z0-9-]{1,63}"
