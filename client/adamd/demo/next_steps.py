"""What the demo says at its end: how to go on from here."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from adamd.transports.endpoint import DEFAULT_URL


def steps(url: str | None) -> str:
    """Return the next steps, each of which works as it stands.

    Args:
        url: a server that is there already; None: one is to be started.

    """
    command, at = _command(), url or DEFAULT_URL
    told = ["What next?", ""]
    if url is None:
        told += [f"  {command} serve", f"      starts a server at {at}, with a store of its own"]
    if at.startswith("http"):
        told += [
            f"  curl {at}/v1/sessions \\",
            """    --json '{"name": "first", "parameters": [1.0, 2.0]}'""",
            f"  curl -X PUT {at}/v1/sessions/first/steps/1 \\",
            """    --json '{"gradient": [0.5, -0.5]}'""",
            f"      an optimizer for any language: {at}/docs has every call",
        ]
    given, option = ("", "") if url is None else (f'"{url}"', f" --url {url}")
    return "\n".join(
        [
            *told,
            f"  session = adamd.connect({given}).create(w, lr=0.001)",
            "  w = session.step(gradient)",
            "      the same from Python, in your own loop",
            f"  adamd.torch.Adam(model.parameters(), lr=0.001{given and f', url={given}'})",
            "      in the place of torch.optim.Adam; the README says the same of JAX",
            f"  {command} sessions{option}",
            f"  {command} watch first{option}",
            "      what a server has, and where one session stands, live",
            "",
            "README.md tells the rest; examples/ has small programs in eight languages.",
        ]
    )


def _command() -> str:
    """Return what a shell calls us by: the name alone where that finds this very program."""
    ours = Path(sys.executable).parent / "adamd"
    found = shutil.which("adamd")
    if not ours.exists() or (found is not None and Path(found).resolve() == ours.resolve()):
        return "adamd"
    here = os.path.relpath(ours)
    return str(ours) if here.startswith("..") else here
