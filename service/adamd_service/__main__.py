"""The command ``adamd``: serve, sessions, watch, selftest, demo, version."""

from __future__ import annotations

import math
import sys
import time
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

import adamd
from adamd.errors import AdamdError, TransportError
from adamd.terminal import say, take_any_words

app = typer.Typer(
    help="Adam as a daemon: a durable optimizer server, and what belongs to it.\n\n"
    "[bold]adamd demo[/] shows what it does; [bold]adamd serve[/] starts a server at http://127.0.0.1:8000, and a "
    "program sends it gradients: [bold]/docs[/] there has every call.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
COLUMNS = ("id", "name", "step", "optimizer", "parameters", "dtype", "durability", "age")
PIPED_COLUMNS = 300  # for another program, which reads lines
LIST_TIMEOUT = adamd.Timeout(first=2.0, total=30.0)  # a person waits for the answer
BulkDir = Annotated[
    Path | None,
    typer.Option(help="where vectors above 512 KiB lie \\[<data-dir>/bulk, or the --redis-url]"),
]
RedisUrl = Annotated[
    str | None,
    typer.Option(
        help="use your Redis ≥ 6.2 or Valkey instead: redis://, rediss://, unix://, …; every user of this machine can "
        "read a password in it (ps): give that in ADAMD_REDIS_URL or a file"
    ),
]
RedisUrlFile = Annotated[Path | None, typer.Option(help="a file that holds this URL, as a mounted secret")]
Lossy = Annotated[
    bool | None, typer.Option("--allow-lossy-store", help="accept a store that may evict keys or keeps no AOF")
]
Lost = Annotated[
    bool | None,
    typer.Option(
        "--allow-lost-vectors",
        help="the bulk directory that the store used last is lost for good: start with this one, once; the sessions "
        "that had vectors there are damaged",
    ),
]
Trusted = Annotated[
    bool | None,
    typer.Option("--store-trusted", help="CONFIG is forbidden; I know that it persists and never evicts"),
]
GrpcPort = Annotated[str | None, typer.Option(help="0 takes a free one, off serves HTTP alone \\[50051]")]
RootPath = Annotated[
    str | None, typer.Option(help="the path below which a proxy has this server, as in /adamd \\[none]")
]
WATCH_TIMEOUT = adamd.Timeout(first=2.0, total=math.inf)
NO_LOSS = (
    "adamd: no loss is told with its steps; it is shown where one is: session.step(gradient, loss=…), in torch "
    "optimizer.step(lambda: loss), over HTTP the header Adamd-Metrics"
)


class Demo(StrEnum):
    """The demos."""

    kill = "kill"
    federated = "federated"


Url = Annotated[str | None, typer.Option(envvar="ADAMD_URL", help="the server, as in http://localhost:8000")]


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="where to listen \\[127.0.0.1]")] = None,
    port: Annotated[str | None, typer.Option(help="0 takes a free one \\[8000]")] = None,
    grpc_port: GrpcPort = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="where the private store keeps its data \\[~/.local/share/adamd]")
    ] = None,
    bulk_dir: BulkDir = None,
    redis_url: RedisUrl = None,
    redis_url_file: RedisUrlFile = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N: where updates run \\[auto]")] = None,
    fsync: Annotated[
        str | None, typer.Option(help="the private store's appendfsync: always or everysec \\[always]")
    ] = None,
    allow_lossy_store: Lossy = None,
    allow_lost_vectors: Lost = None,
    store_trusted: Trusted = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(help="a web page's origin that may call, as in http://localhost:3000; repeatable"),
    ] = None,
    allowed_host: Annotated[
        list[str] | None, typer.Option(help="a further name that Host may have; repeatable \\[loopback's, there only]")
    ] = None,
    root_path: RootPath = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error \\[info]")] = None,
) -> None:
    """Serve optimizer sessions over HTTP and gRPC, until Ctrl-C or SIGTERM.

    [bold]adamd serve[/]: on this machine only, at port 8000, with a private store that starts and ends with it.

    [bold]adamd serve --host 0.0.0.0 --data-dir /srv/adamd[/]: for others too, its data where you say.

    [bold]adamd serve --redis-url redis://store:6379[/]: with your own store; any number of servers may share it.

    Each option is also an environment variable: --data-dir is ADAMD_DATA_DIR. The bounds (ADAMD_MAX_BODY_BYTES, …)
    are in docs/running-a-server.md.
    """
    options = {name: value for name, value in locals().items() if value not in (None, [])}
    _warn_of_passwords(redis_url)
    try:
        from pydantic import ValidationError

        from adamd_service.device.choose import DeviceRefused
        from adamd_service.serve import serve as run
        from adamd_service.settings import ServerSettings, refused
        from adamd_service.store import StoreRefused
    except ModuleNotFoundError as error:
        raise SystemExit(
            f"adamd: {error.name} is missing; the server is an extra: pip install 'adamd[service]'"
        ) from None

    try:
        run(ServerSettings(**options), _say_or_log)
    except ValidationError as error:
        raise SystemExit(f"adamd: {refused(error, options)}") from None
    except (StoreRefused, DeviceRefused, AdamdError) as error:
        raise SystemExit(f"adamd: {error}") from None


def _warn_of_passwords(redis_url: str | None) -> None:
    if redis_url is not None and "@" in redis_url:
        print(
            "adamd: every user of this machine can read the password in --redis-url (ps); "
            "ADAMD_REDIS_URL or --redis-url-file keep it from them",
            file=sys.stderr,
            flush=True,
        )


def _say_or_log(line: str) -> None:
    """Print a line; log it if stdout is closed."""
    if not say(line):
        import structlog

        structlog.get_logger().warning("stdout takes nothing any more; the server goes on", said=line)


@app.command()
def sessions(url: Url = None) -> None:
    """List the sessions of a server as they stand now, the oldest first.

    Example: adamd sessions --url http://localhost:8000
    """
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for column in COLUMNS:
        unbroken = column not in ("id", "name")  # these are broken where the terminal is narrow, and cut nowhere
        right = column in ("step", "parameters", "age")
        table.add_column(column, no_wrap=unbroken, overflow="fold", justify="right" if right else "left")
    try:
        with adamd.connect(url, timeout=LIST_TIMEOUT) as client:
            for item in client.sessions():
                table.add_row(*_row(item))
    except TransportError as error:
        raise SystemExit(_unanswered(client.url, error)) from None
    except (AdamdError, ModuleNotFoundError) as error:
        raise SystemExit(f"adamd: {error}") from None
    console = Console() if sys.stdout.isatty() else Console(width=PIPED_COLUMNS)
    console.print(table if table.row_count else "no sessions yet: client.create(…) or POST /v1/sessions makes one")


@app.command()
def watch(
    session: Annotated[str, typer.Argument(help="its id or its name")],
    url: Url = None,
) -> None:
    """Show where a session stands, live, until Ctrl-C: its step, its loss and other metrics, and the next step's lr.

    Over gRPC it is told of every change; over HTTP it looks twice a second. A server that goes away is waited for.

    Example: adamd watch run-7 --url grpc://localhost:50051
    """
    console = Console()
    try:
        live = console.status(f"{session}: …") if console.is_terminal else nullcontext()
        with adamd.connect(url, timeout=WATCH_TIMEOUT) as client, live as line:
            met, hinted = False, False

            def away(error: AdamdError) -> None:
                if not met:  # and it is not waited for: a wrong address is told soon
                    return
                message = f"{session}: no answer from {client.url} ({_reason(error)}); waiting until it is back"
                if line is None:
                    print(f"adamd: {message}", file=sys.stderr, flush=True)
                else:
                    line.update(Text(message))

            for view in client.watch(session, away=away):
                met = True
                if line is None:
                    print(_sight(session, view), flush=True)
                else:
                    line.update(Text(_sight(session, view)))
                if not hinted and view["step"] and "loss" not in view["metrics"]:
                    hinted = True
                    print(NO_LOSS, file=sys.stderr, flush=True)
    except TransportError as error:
        raise SystemExit(_unanswered(client.url, error)) from None
    except (AdamdError, ModuleNotFoundError) as error:
        raise SystemExit(f"adamd: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit(0) from None


def _sight(session: str, view: dict[str, Any]) -> str:
    metrics = dict(view["metrics"])
    loss = {"loss": metrics.pop("loss")} if "loss" in metrics else {}
    words = [session, f"step {view['step']:,}", *(f"{name} {value:.6g}" for name, value in (loss | metrics).items())]
    lr, schedule = view["lr"], view["settings"].get("schedule")
    if lr is not None:
        words.append(f"lr {lr:.6g}" + (f" ({schedule['name']})" if schedule else ""))
    if view["diverged"]:
        words.append("diverged")
    return _printable("  ".join(words))


def _printable(words: str) -> str:
    """Return a server's words without control characters, which could steer the terminal."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in words)


def _unanswered(url: str, error: TransportError) -> str:
    if error.extra.get("permanent"):  # somebody answers, or could, but not so
        message = str(error)
        return f"adamd: {message}" if url in message else f"adamd: {url}: {message}"
    there = "Start one here: adamd serve. Or name another" if _is_local(url) else "Is it running there? Or name another"
    return (
        f"adamd: no adamd server answers at {url} ({_reason(error)}).\n"
        f"{there}: --url http://host:8000, or ADAMD_URL in the environment."
    )


def _is_local(url: str) -> bool:
    """Say whether a URL names this machine."""
    return urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")


def _reason(error: AdamdError) -> str:
    """Return the last attempt's own words, without the address and the advice that surround them."""
    last = error.extra.get("last", error)
    return (str(last).partition(": ")[2] or str(last)).partition(";")[0]


def _row(item: dict[str, Any]) -> tuple[Text, ...]:
    cells = [item.get(key) for key in COLUMNS[:-1]]
    if "damaged" in item:
        cells[2] = "damaged"  # in place of its step; the server tells why
    words = [f"{value:,}" if isinstance(value, int) else "—" if value is None else str(value) for value in cells]
    words.append(_age(time.time() - float(item.get("created_at", 0.0))))
    return tuple(Text(_printable(word)) for word in words)


def _age(seconds: float) -> str:
    """Return a length of time in its largest unit."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{max(0, int(seconds))} s"


@app.command()
def selftest(
    device: Annotated[str, typer.Option(envvar="ADAMD_DEVICE", help="auto, cpu, cuda or cuda:N")] = "auto",
    quick: Annotated[bool, typer.Option("--quick", help="Adam and AdamW alone, without measuring")] = False,
) -> None:
    """Compare what this machine computes with the reference, bit for bit, and tell its speed.

    Exit status 0: every bit is right; 1: not, or the device cannot be had.

    Example: adamd selftest --device cuda
    """
    try:
        from adamd_service.device.choose import DeviceRefused, checked, device_of
        from adamd_service.selftest import selftest as run
    except ModuleNotFoundError as error:
        raise SystemExit(
            f"adamd: {error.name} is missing; it comes with the server: pip install 'adamd[service]'"
        ) from None

    def lost(error: Exception) -> None:
        print(f"FAIL  the GPU is lost: {error}", flush=True)

    try:
        chosen = device_of(checked(device), None, lost, lambda line: print(f"note  {line}", flush=True))
        well = run(chosen, lambda line: print(line, flush=True), quick=quick)
    except DeviceRefused as error:
        raise SystemExit(f"adamd: {error}") from None
    raise SystemExit(0 if well else 1)


@app.command()
def demo(
    which: Annotated[Demo, typer.Argument(help="kill: one program; federated: twenty clients in rounds")] = Demo.kill,
    url: Annotated[str | None, typer.Option(help="use this server, and do not kill it")] = None,
) -> None:
    """Train a classifier on real images through a server that is killed in the middle.

    [bold]adamd demo[/]: one program, one server, every bit compared. Half a minute; it leaves only demo-loss.png.

    [bold]adamd demo federated[/]: twenty processes, each with images of its own that stay with it. Some are slow, some
    drop out, some send twice, two are poisoned; the server is killed in the middle of a round. It shows what a trimmed
    mean withstands and a plain one does not, and what waiting costs. Two minutes; it leaves only demo-federated.png.

    Neither needs anything that runs already. docs/federated.md tells how to do the same with machines of your own.
    """
    from adamd.demo.federated.run import main as federated
    from adamd.demo.run import main as kill

    run = federated if which is Demo.federated else kill
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
    take_any_words()
    app()


if __name__ == "__main__":
    main()
