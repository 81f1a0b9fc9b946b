"""`top`: what the VMs use, live on a terminal, plain lines where it is piped."""

import contextlib
import errno
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from kvmlaunch.cli.run import DurationType
from kvmlaunch.cli.session import Session, session_command, use_color, vms_argument
from kvmlaunch.cli.show import say, show_document, show_table, table_lines
from kvmlaunch.errors import NotRunning
from kvmlaunch.model.value import asdict
from kvmlaunch.units import KIB, MIB, render_size

if TYPE_CHECKING:
    from kvmlaunch.facts.usage import Usage

HEAD = ("VM", "CPU%", "MEMORY", "PAGES", "SWAP", "KSM", "READ/s", "WRITE/s", "READ", "WRITE", "LATENCY", "IN", "OUT")
SECONDS = 2.0
GIGA = 1 << 30


def amount(size: float | None) -> str:
    """Give bytes in four figures at most, "-" for what is not known."""
    if size is None:
        return "-"
    for unit, length in (("G", GIGA), ("M", MIB), ("K", KIB)):
        if size >= length:
            return f"{size / length:.1f}{unit}" if size < 100 * length else f"{size / length:.0f}{unit}"
    return f"{size:.0f}"


def rate_text(rate: float | None) -> str:
    """Give requests a second, "-" for what is not known."""
    return "-" if rate is None else f"{rate:.0f}"


def latency_text(seconds: float | None) -> str:
    """Give the time of a request for people."""
    if seconds is None:
        return "-"
    microseconds = seconds * 1e6
    return f"{microseconds:.0f}µs" if microseconds < KIB else f"{seconds * 1e3:.1f}ms"


def pages_text(usage: "Usage") -> str:
    """Give what backs a VM's memory: reserved huge pages by their size, transparent ones, ordinary ones."""
    now = usage.now
    if now.hugetlb and now.hugetlb_page:
        return f"{now.hugetlb // now.hugetlb_page}×{render_size(now.hugetlb_page)}"
    if now.hugetlb:
        return f"{amount(now.hugetlb)} huge"
    return f"{amount(now.huge)} THP" if now.huge else "4K"


def row_of(name: str, usage: "Usage") -> tuple[str, ...]:
    """Give a VM as a row."""
    now = usage.now
    return (
        name,
        f"{usage.cpu * 100:.0f}",
        amount(now.resident + now.hugetlb),
        pages_text(usage),
        amount(now.swapped),
        amount(now.merged),
        rate_text(usage.reads),
        rate_text(usage.writes),
        amount(usage.read_bytes),
        amount(usage.written_bytes),
        latency_text(usage.latency),
        amount(usage.received),
        amount(usage.sent),
    )


def rows_of(found: "Mapping[str, Usage]") -> list[tuple[str, ...]]:
    """Give the table, the busiest VM first."""
    order = sorted(found.items(), key=lambda item: (-item[1].cpu, item[0]))
    return [HEAD, *(row_of(name, usage) for name, usage in order)]


def usage_document(name: str, usage: "Usage") -> dict[str, Any]:
    """Give the JSON form of a VM's usage: sizes in bytes, rates a second, times in seconds."""
    now = asdict(usage.now)
    memory = {key: now[key] for key in ("resident", "huge", "hugetlb", "hugetlb_page", "swapped", "merged")}
    rates = {key: value for key, value in asdict(usage).items() if key != "now"}
    return {"name": name, **memory, **rates}


@click.command()
@vms_argument
@click.option("--once", is_flag=True, help="Show one table, and end.")
@click.option(
    "--interval", type=DurationType(), default=SECONDS, show_default="2s", metavar="TIME", help="Between two looks."
)
@session_command
def top(session: Session, vms: tuple[str, ...], once: bool, interval: float) -> int:
    """Show what the running VMs use: CPU, memory and what backs it, disks, network.  Ctrl-C ends it.

    READ/s and WRITE/s are requests, READ and WRITE bytes a second; IN and OUT are those of a tap.
    """
    from kvmlaunch.steps.names import name_of, refuse_unknown  # noqa: PLC0415 - completion wants the options only
    from kvmlaunch.steps.top import usages  # noqa: PLC0415

    caller = session.caller()
    for word in vms:
        refuse_unknown(caller, word)
    looks = usages(caller, tuple(map(name_of, vms)), interval)
    if session.json:
        found = next(looks)
        show_document("top", {"seconds": interval, "vms": [usage_document(*item) for item in found.items()]})
        return show_missing(session, vms, found)
    if once:
        found = next(looks)
        show_table(rows_of(found))
        return show_missing(session, vms, found)
    if sys.stdout.isatty():
        show_live(session, looks)
    else:
        for found in looks:
            if vms and not found:
                return show_missing(session, vms, found)
            show_table(rows_of(found))
            click.echo()
    return 0


def show_missing(session: Session, vms: tuple[str, ...], found: "Mapping[str, Usage]") -> int:
    """Say which of the VMs that were asked for have no row; gives the exit code, as `status` does."""
    from kvmlaunch.steps.names import name_of  # noqa: PLC0415 - completion wants the options only

    missing = [name for name in map(name_of, vms) if name not in found]
    for name in missing if not session.json else ():
        say(session, name, "skip", "top", "it does not run")
    if not vms and not found and not session.json:
        say(session, "top", "skip", "", "no VM runs")
    return NotRunning.exit_code if missing else 0


@contextlib.contextmanager
def terminal_may_go() -> Iterator[None]:
    """End quietly when the terminal goes away that a table is drawn on."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO:
            raise


def show_live(session: Session, looks: "Iterator[Mapping[str, Usage]]") -> None:
    """Show a table that is drawn anew with every look, until it is interrupted."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(no_color=not use_color(session, stream_is_terminal=True))
    with terminal_may_go(), Live(console=console, auto_refresh=False, screen=True) as live:
        live.update(Text("looking …"), refresh=True)
        for found in looks:
            if not sys.stdout.isatty():
                return
            text = "\n".join(fitted(rows_of(found), console.size.width, console.size.height))
            live.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)


def fitted(rows: Sequence[Sequence[str]], width: int, height: int) -> list[str]:
    """Give a table's lines for a screen: closer where it is narrow, and how many rows are below where it is low."""
    lines = table_lines(rows)
    if any(len(line) > width for line in lines):
        lines = table_lines(rows, gap=1)
    if len(lines) > height > 1:
        below = len(lines) - height + 1
        lines = [*lines[: height - 1], f"… {below} more"]
    return lines
