"""Names that both sides write: headers, media types, patterns of references (docs/protocol.md)."""

from __future__ import annotations

OCTETS = "application/octet-stream"
SAFETENSORS = "application/vnd.safetensors"
JSON = "application/json"
PROBLEM = "application/problem+json"
CSV = "text/csv"
EVENTS = "text/event-stream"

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
BASE = "Adamd-Base"
KIND = "Adamd-Kind"
NUM_EXAMPLES = "Adamd-Num-Examples"
IDEMPOTENCY = "Idempotency-Key"

ASKED = (DTYPE, ENCODING, ANSWER_DTYPE, SETTINGS, METRICS, BASE, KIND, NUM_EXAMPLES)  # in requests
TOLD = (STEP, DTYPE, OVERFLOWED, DURABILITY, REPLAYED, DIVERGED, APPLIED_STEP, STOP, WARNING)  # in answers

MAX_STEP = 2**53
# A session's id, and what a name may be. No name can be an id: none begins with s_ or m_. (Without a lookahead, which
# not every reader of the OpenAPI document knows.)
ID_PATTERN = r"[sm]_[a-z0-9_]{1,61}"
NAME_PATTERN = r"(?:[A-Za-ln-rt-z0-9][A-Za-z0-9._-]{0,127}|[ms](?:[A-Za-z0-9.-][A-Za-z0-9._-]{0,126})?)"
NAME_WORDS = (
    "1 to 128 of A-Z, a-z, 0-9, '.', '_' and '-', the first a letter or a digit, and not s_… or m_…, as ids are"
)
CLIENT_PATTERN = r"[A-Za-z0-9._-]{1,64}"  # who contributes to rounds
KINDS = ("delta", "parameters", "gradient")  # what a contribution's vector is
LONGEST_WAIT = 60.0  # seconds that a request may wait for a task, or for a step
REF_PATTERN = rf"{ID_PATTERN}|{NAME_PATTERN}|-[a-z0-9-]{{0,62}}"  # the last are names that earlier versions took
