"""The SDK's log: ``logging.getLogger("adamd")``, on stderr where nobody configured it."""

import logging
from typing import Final

LOG: Final = logging.getLogger("adamd")
