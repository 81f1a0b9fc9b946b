"""`ls`, `status`, `monitor`."""

import json
from typing import Any

import click
from attrs import asdict

from kvmlaunch.cli.session import Session, session_command, vm_argument, vms_argument
from kvmlaunch.cli.show import duration_text, plain_text, short_path, show_document, show_table
from kvmlaunch.steps.look import Status, known_names, met_names, running_names, status_of, with_definitions
from kvmlaunch.units import MIB


def status_document(status: Status) -> dict[str, Any]:
    """Give the JSON form of a status; memory in bytes, times ISO 8601."""
    return {**asdict(status), "seconds": round(status.seconds, 1), "notes": list(status.notes)}


def status_lines(status: Status) -> list[str]:
    """Give a status for people, nothing empty."""
    rows = [("state", status.state + (f" ({status.run_state})" if status.run_state not in {"", status.state} else ""))]
    if status.pid:
        rows.append(
            (
                "pid",
                f"{status.pid}, for {duration_text(status.seconds)}, as uid {status.user}"
                if status.started
                else str(status.pid),
            )
        )
        rows += [
            ("accelerator", status.accelerator),
            ("memory", f"{status.memory}, {status.resident // MIB} MiB resident" if status.memory else ""),
        ]
    rows += [
        ("definition", short_path(status.definition)),
        ("last end", status.last_end),
        *(("note", note) for note in status.notes),
    ]
    return [f"  {word:<12}{plain_text(text)}" for word, text in rows if text]


@click.command()
@vms_argument
@session_command
def status(session: Session, vms: tuple[str, ...]) -> int:
    """Tell how VMs are; all that run when none is named.  Exit code 3 when a named one is not running."""
    caller = session.caller()
    known = set(known_names(caller))
    unknown = [name for name in vms if name not in known]
    found = status_of(caller, [name for name in vms if name in known] if vms else met_names(caller))
    if session.json:
        show_document("status", {"vms": [status_document(each) for each in found]})
    else:
        for each in found:
            click.echo("\n".join([each.name, *status_lines(each)]))
        if not found and not unknown:
            click.echo("no VM is running", err=True)
    for name in unknown:
        from kvmlaunch.host.definitions import find_definition  # noqa: PLC0415 - on this error only

        find_definition(name, caller.search)
    return 3 if vms and any(each.pid is None for each in found) else 0


@click.command()
@click.option("--running", is_flag=True, help="Only those that run.")
@session_command
def ls(session: Session, running: bool) -> None:
    """List VMs: every definition found, and every VM that runs."""
    caller = session.caller()
    found = status_of(caller, running_names(caller) if running else known_names(caller))
    found = with_definitions(caller, found)
    if session.json:
        show_document("ls", {"vms": [status_document(each) for each in found]})
        return
    rows = [("VM", "STATE", "PID", "FOR", "MEMORY", "DEFINITION")]
    rows += [
        (
            each.name,
            each.state,
            str(each.pid or ""),
            duration_text(each.seconds) if each.pid else "",
            each.memory if each.pid else "",
            short_path(each.definition),
        )
        for each in found
    ]
    show_table(rows)


@click.command()
@vm_argument
@click.argument("command")
@click.argument("arguments", required=False, default="{}")
@session_command
def monitor(session: Session, vm: str, command: str, arguments: str) -> None:
    """Send one QMP command to a VM and print its answer as JSON; ARGUMENTS is a JSON object.

    The monitor has the full power of QEMU's user.
    """
    from kvmlaunch.steps.control import send_command  # noqa: PLC0415 - beside its use

    try:
        document = json.loads(arguments)
    except ValueError as error:
        raise click.UsageError(f"ARGUMENTS is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise click.UsageError('ARGUMENTS is a JSON object, such as {"device": "disk-root"}')
    answer = send_command(session.caller(), vm, command, document)
    if session.json:
        show_document("monitor", {"name": vm, "return": answer})
    else:
        click.echo(json.dumps(answer, indent=1))
