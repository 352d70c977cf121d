"""The command ``adamd``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

import adamd
from adamd.errors import AdamdError

app = typer.Typer(
    help="Adam as a daemon: a durable optimizer server, and what belongs to it.\n\n"
    "[bold]adamd demo[/] shows what it does; [bold]adamd serve[/] starts a server at http://127.0.0.1:8000, and a "
    "program sends it gradients: [bold]/docs[/] there has every call.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
Url = Annotated[str | None, typer.Option(envvar="ADAMD_URL", help="the server, as in http://localhost:8000")]


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="where to listen \\[127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="0 takes a free one \\[8000]")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="where the private store keeps its data")] = None,
    redis_url: Annotated[
        str | None, typer.Option(help="use your Redis ≥ 6.2 or Valkey instead: redis://, rediss://, unix://, …")
    ] = None,
    fsync: Annotated[str | None, typer.Option(help="the private store's appendfsync: always or everysec")] = None,
    allow_lossy_store: Annotated[
        bool | None, typer.Option("--allow-lossy-store", help="accept a store that may evict keys or keeps no AOF")
    ] = None,
    store_trusted: Annotated[
        bool | None,
        typer.Option("--store-trusted", help="CONFIG is forbidden; I know that it persists and never evicts"),
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error")] = None,
) -> None:
    """Serve optimizer sessions over HTTP.

    Each option is also an environment variable: --data-dir is ADAMD_DATA_DIR. The bounds (ADAMD_MAX_BODY_BYTES,
    ADAMD_HOT_BYTES, ADAMD_IN_FLIGHT_BYTES, …) are in the README.
    """
    given = {name: value for name, value in locals().items() if value is not None}
    try:
        from pydantic import ValidationError

        from adamd_service.serve import serve as run
        from adamd_service.settings import ServerSettings
        from adamd_service.store import StoreRefused
    except ModuleNotFoundError as error:
        raise SystemExit(
            f"adamd: {error.name} is missing; the server is an extra: pip install 'adamd[service]'"
        ) from None
    try:
        settings = ServerSettings(**given)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise SystemExit(f"adamd: {faults}") from None
    try:
        run(settings, lambda line: print(line, flush=True))
    except (StoreRefused, AdamdError) as error:
        raise SystemExit(f"adamd: {error}") from None


@app.command()
def sessions(url: Url = None) -> None:
    """List the sessions of a server, the oldest first.

    Example: adamd sessions --url http://localhost:8000
    """
    table = Table("id", "name", "step", "optimizer", "parameters", "dtype", "durability")
    try:
        with adamd.connect(url) as client:
            for item in client.sessions():
                table.add_row(*_row(item))
    except AdamdError as error:
        raise SystemExit(
            f"adamd: {error}\nIs a server there? adamd serve starts one; --url or ADAMD_URL names it."
        ) from None
    Console().print(table if table.row_count else "no sessions yet: client.create(…) or POST /v1/sessions makes one")


def _row(item: Any) -> tuple[str, ...]:
    return tuple(
        str(item.get(key) if item.get(key) is not None else "—")
        for key in ("id", "name", "step", "optimizer", "parameters", "dtype", "durability")
    )


@app.command()
def demo(
    url: Annotated[str | None, typer.Option(help="use this server, and leave it alive")] = None,
) -> None:
    """Train a classifier on real images through a server that is killed in the middle."""
    from adamd.demo import main as run

    try:
        status = run(Console(), url)
    except KeyboardInterrupt:
        status = 130  # as the shell has it; what was started is ended
    except AdamdError as error:
        raise SystemExit(f"adamd: {error}") from None
    raise SystemExit(status)


@app.command()
def version() -> None:
    """Print the version."""
    print(adamd.__version__)


def main() -> None:
    """Run the command."""
    app()


if __name__ == "__main__":
    main()
