"""Runs ``adamd demo``: training on real images through a server that is killed, with every bit compared."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn

import adamd
from adamd.demo import curve, digits, next_steps
from adamd.demo.beginning import begun, spinner
from adamd.demo.digits import Images, Params
from adamd.demo.server import DemoServer, NotStarted
from adamd.errors import AdamdError

EPOCHS = 16
LR = 0.004
OWED_ACCURACY = 0.95  # of the test images
PICTURE = Path("demo-loss.png")
FREEZE_AFTER = 0.4  # of a step's usual time after it is sent


def main(console: Console, url: str | None = None) -> int:
    """Run the demo; return the exit status: 0 only if every check holds.

    Args:
        console: where the output goes.
        url: use this server, and kill nothing; None starts one.

    """
    return begun(console, url, _show)


def _show(console: Console, url: str | None) -> int:
    yours = url
    learn, test = digits.load()
    _introduce(console, learn, test)
    with ExitStack() as stack:
        server = None
        if url is None:
            server = stack.enter_context(DemoServer())
            starting = "starting a server (the first time on a machine takes half a minute)"
            with console.status(starting, spinner=spinner(console)):
                server.start()
            console.print("  [bold]server[/]    started for this demo; it stores each step, then answers\n")
            url = server.url
        else:
            console.print(f"  [bold]server[/]    {url}; it is yours, so it will not be killed\n")
        client = stack.enter_context(adamd.connect(url))
        run = _train(console, client, learn, server)
        kill = None if run.killer is None else run.killer.step
        _report(console, run)
        calm = _train(console, client, learn, None, again=True)
    status = _conclude(console, run, calm, test, kill)
    if status == 0:
        console.print(f"\n{next_steps.steps(yours)}", markup=False, highlight=False, soft_wrap=True)
    return status


def _introduce(console: Console, learn: Images, test: Images) -> None:
    params = digits.size(digits.start())
    console.print("\n[bold]adamd demo[/]: a program learns to read digits; its optimizer lives in a server\n")
    console.print(
        f"  [bold]images[/]    {len(learn) + len(test):,} real scans (UCI): {len(learn):,} to learn from, "
        f"{len(test)} for the test\n"
        f"  [bold]program[/]   a small network in NumPy; it sends gradients, gets {params:,} parameters",
        highlight=False,
    )


# -- training


@dataclass
class Training:
    """One training: its losses and the trained network."""

    losses: list[float] = field(default_factory=list)
    params: Params = field(default_factory=dict)
    killer: Killer | None = None


def _train(
    console: Console, client: adamd.Client, learn: Images, server: DemoServer | None, *, again: bool = False
) -> Training:
    """Train through a new session; with a ``server``, kill that in the middle."""
    batches = digits.batches(learn, EPOCHS)
    params = digits.start()
    session = client.create(params, lr=LR, durability="committed", labels={"made-by": "adamd demo"})
    run = Training()
    with _progress(console, len(batches), "the same again, undisturbed" if again else "training") as show:
        run.killer = None if server is None else Killer(server, len(batches) // 2, show)
        try:
            for number, batch in enumerate(batches, 1):
                loss, gradient = digits.loss_and_gradient(params, learn, batch)
                with nullcontext() if run.killer is None else run.killer.watch(number):
                    params = session.step(gradient, loss=loss)
                run.losses.append(loss)
                show(completed=number, loss=f"{loss:.3f}")
        except BaseException:
            if server is not None:
                server.close()  # so that a start which is under way ends too
            raise
        finally:
            if run.killer is not None:
                run.killer.join()
        run.params = session.parameters()
    session.delete()
    return run


Show = Callable[..., None]


@contextmanager
def _progress(console: Console, steps: int, doing: str) -> Iterator[Show]:
    """Show one live line: the progress, the loss, and what is happening."""
    columns: list[Any] = [
        SpinnerColumn(spinner(console)),
        BarColumn(24),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}"),
    ]
    with Progress(*columns, TextColumn("{task.description}"), console=console, transient=True) as progress:
        task: TaskID = progress.add_task(doing, total=steps, loss="–")

        def show(**fields: Any) -> None:
            progress.update(task, **fields)

        yield show


class Killer:
    """Kills the server while a step is under way, and starts it again. The step's own thread only waits and retries.

    The server is frozen first, and killed only if the step still has no answer. So the kill always hits a step under
    way.
    """

    def __init__(self, server: DemoServer, first: int, show: Show) -> None:
        self._server = server
        self._first = first
        self._show = show
        self._waiting = threading.Event()  # a step is sent and not answered
        self._times: list[float] = []
        self._thread: threading.Thread | None = None
        self._failed: NotStarted | None = None
        self.step: int | None = None
        self.away = 0.0  # seconds from the kill to the new server

    @contextmanager
    def watch(self, number: int) -> Iterator[None]:
        """Surround one step; from the planned one on, try to kill the server in it."""
        self.join()  # a try that came too late for the step before
        began = time.monotonic()
        self._waiting.set()
        if number >= self._first and self.step is None:
            self._thread = threading.Thread(target=self._try, args=(number,))
            self._thread.start()
        try:
            yield
        except AdamdError:
            if self._failed is not None:
                raise self._failed from None
            raise
        finally:
            self._waiting.clear()
            self._times.append(time.monotonic() - began)

    def join(self) -> None:
        """Wait until the thread has done its work."""
        if self._thread is not None:
            self._thread.join()

    def _try(self, number: int) -> None:
        time.sleep(FREEZE_AFTER * statistics.median(self._times))
        self._server.freeze()
        if not self._waiting.is_set():  # the answer was faster; the next step then
            self._server.thaw()
            return
        self.step = number
        self._server.kill()
        killed = time.monotonic()
        self._show(description=f"[red]kill -9: the server is dead, and step {number} waits for its answer")
        time.sleep(0.5)  # for a person to see it
        self._show(description="[yellow]the server starts again; the program just keeps asking")
        try:
            self._server.start()
        except NotStarted as error:
            self._failed = error
            return
        self.away = time.monotonic() - killed
        self._show(description="training goes on, where it was")


# -- the results


def _report(console: Console, run: Training) -> None:
    """Say in two lines what happened to the server."""
    killer, steps = run.killer, len(run.losses)
    if killer is None:
        console.print(f"  [green]✓[/] {steps} steps, each on the server's disk before it was answered", highlight=False)
        return
    if killer.step is None:
        console.print("  [red]✗[/] every step was answered before the server could be killed")
        return
    console.print(
        f"  [red]✗[/] step {killer.step} was on its way when the server was killed: kill -9\n"
        f"  [green]✓[/] a new one was there {killer.away:.1f} s later; the program just asked again and went on\n"
        f"  [green]✓[/] {steps} steps, each on the server's disk before it was answered",
        highlight=False,
    )


def _conclude(console: Console, run: Training, calm: Training, test: Images, kill: int | None) -> int:
    """Show the curve, the accuracy and the comparison; return the exit status."""
    right = digits.right(run.params, test)
    share = right / len(test)
    equal = digits.same_bits(run.params, calm.params) and run.losses == calm.losses
    console.print()
    if curve.drawable(console.encoding):
        console.print(curve.terminal(run.losses, kill))
        console.print()
    title = f"adamd demo: {len(run.losses)} steps, {share:.1%} of the test images right"
    curve.picture(PICTURE, run.losses, kill, title)
    console.print(f"test accuracy: {share:.3f} ({right} of {len(test)} images it had never seen)", highlight=False)
    console.print(f"loss curve: {PICTURE}", highlight=False)
    verdict = "bits equal" if equal else "bits DIFFER"
    if run.killer is None:
        console.print(f"two runs, without a kill: {verdict}", style="bold", highlight=False)
        return 0 if equal and share >= OWED_ACCURACY else 1
    console.print(
        f"{digits.size(run.params):,} parameters, compared with a run in which nothing was killed:",
        highlight=False,
    )
    console.print(f"killed and resumed: {verdict}" if kill else "nothing was killed", style="bold", highlight=False)
    return 0 if equal and kill and share >= OWED_ACCURACY else 1
