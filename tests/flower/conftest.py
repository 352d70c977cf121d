"""Without Flower there is nothing to collect here; .ci/run makes an environment that has it."""

import warnings
from importlib.util import find_spec

if find_spec("flwr") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its typer uses what newer clicks are about to drop
        import flwr.serverapp.strategy  # noqa: F401 - loaded here, so that its tests need not silence anything
