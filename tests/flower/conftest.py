"""Flower and the server cannot be installed together: each environment collects the tests that it can run.

.ci/flower makes the one with Flower, and names its Python to the tests that start a server of this environment.
"""

import os
import warnings
from importlib.util import find_spec

WITH_FLOWER = ["test_flower_aggregation.py", "test_flower_records.py", "test_flower_strategies.py"]
collect_ignore = [] if "ADAMD_FLOWER_PYTHON" in os.environ else ["test_durable_strategies.py"]
if find_spec("flwr") is None:
    collect_ignore += WITH_FLOWER
else:
    collect_ignore = ["test_durable_strategies.py"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its typer uses what newer clicks are about to drop
        import flwr.serverapp.strategy  # noqa: F401 - loaded here, so that its tests need not silence anything
