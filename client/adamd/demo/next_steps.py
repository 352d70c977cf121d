"""The demo's last words: the next steps for a newcomer."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from adamd.transports.endpoint import DEFAULT_URL


def steps(url: str | None) -> str:
    """Return the next steps, each of which works as it stands.

    Args:
        url: a running server; None: the steps start one.

    """
    command, at = _command(), url or DEFAULT_URL
    lines = ["What next?", ""]
    if url is None:
        lines += [f"  {command} serve", f"      starts a server at {at}, with a store of its own"]
    if at.startswith("http"):
        lines += [
            f"  curl {at}/v1/sessions \\",
            """    --json '{"name": "first", "parameters": [1.0, 2.0]}'""",
            f"  curl -X PUT {at}/v1/sessions/first/steps/1 \\",
            """    --json '{"gradient": [0.5, -0.5]}'""",
            f"      an optimizer for any language: {at}/docs has every call",
        ]
    argument, option = ("", "") if url is None else (f'"{url}"', f" --url {url}")
    return "\n".join(
        [
            *lines,
            f"  session = adamd.connect({argument}).create(w, lr=0.001)",
            "  w = session.step(gradient)",
            "      the same from Python, in your own loop",
            f"  adamd.torch.Adam(model.parameters(), lr=0.001{argument and f', url={argument}'})",
            "      in the place of torch.optim.Adam; docs/jax.md says the same of JAX",
            f"  {command} sessions{option}",
            f"  {command} watch first{option}",
            "      what a server has, and where one session stands, live",
            "",
            "README.md tells the rest; examples/ has small programs in eight languages.",
        ]
    )


def _command() -> str:
    """Return the command that starts adamd: its name where the shell finds this very program, else a path."""
    ours = Path(sys.executable).parent / "adamd"
    on_path = shutil.which("adamd")
    if not ours.exists() or (on_path is not None and Path(on_path).resolve() == ours.resolve()):
        return "adamd"
    relative = os.path.relpath(ours)
    return str(ours) if relative.startswith("..") else relative
