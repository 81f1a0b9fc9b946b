"""`ls`, `status`, `monitor`."""

import json
from collections.abc import Sequence
from typing import Any

import click

from kvmlaunch.cli.session import Session, session_command, vm_argument, vms_argument
from kvmlaunch.cli.show import duration_text, say, short_path, show_document, show_failure, show_table, talk
from kvmlaunch.errors import DefinitionInvalid, NotRunning, UnknownVm
from kvmlaunch.facts.console import plain_text
from kvmlaunch.host.definitions import refuse_closed
from kvmlaunch.model.value import asdict
from kvmlaunch.steps.caller import Caller
from kvmlaunch.steps.look import Status, known_names, met_names, running_names, status_of, with_definitions
from kvmlaunch.steps.many import common_code
from kvmlaunch.steps.names import name_of, refuse_unknown
from kvmlaunch.units import MIB

EXAMPLE = """write it such as '{"command-line": "info block"}'"""


def status_document(status: Status) -> dict[str, Any]:
    """Give the JSON form of a status; memory in bytes, times ISO 8601."""
    return {**asdict(status), "seconds": round(status.seconds, 1)}


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
        ("address", ", ".join(status.addresses)),
        ("definition", short_path(status.definition)),
        ("last end", status.last_end),
        *(("note", note) for note in status.notes),
    ]
    return [f"  {word:<12}{plain_text(text)}" for word, text in rows if text]


def met_or_unknown(session: Session, caller: Caller, words: Sequence[str]) -> tuple[list[str], list[int]]:
    """Give the names of the VMs that there are; of each other one it is said that it is unknown: the exit codes."""
    names, codes = [], []
    for word in words:
        try:
            refuse_unknown(caller, word)
            names.append(name_of(word))
        except (UnknownVm, DefinitionInvalid) as error:
            show_failure(session, error, name_of(word))
            codes.append(error.exit_code)
    return names, codes


@click.command()
@vms_argument
@session_command
def status(session: Session, vms: tuple[str, ...]) -> int:
    """Tell how VMs are; all that run when none is named.  Exit code 3 when a named one is not running."""
    caller = session.caller()
    known, unknown = met_or_unknown(session, caller, vms)
    found = with_definitions(caller, status_of(caller, known if vms else met_names(caller)))
    if session.json:
        show_document("status", {"vms": [status_document(each) for each in found]})
    else:
        for each in found:
            click.echo("\n".join([each.name, *status_lines(each)]))
        if not found and not vms:
            talk("no VM is running")
    if not vms:
        return 0
    stopped = [NotRunning.exit_code for each in found if each.pid is None]
    return common_code([*stopped, *unknown])


@click.command()
@click.option("--running", is_flag=True, help="Only those that run.")
@session_command
def ls(session: Session, running: bool) -> None:
    """List VMs: every definition found, and every VM that runs."""
    caller = session.caller()
    found = status_of(caller, running_names(caller) if running else known_names(caller))
    found = with_definitions(caller, found)
    try:
        refuse_closed(caller.search)
    except DefinitionInvalid as error:
        say(session, "ls", "warn", "", f"{error.report.message}: {error.report.why}  [{error.report.code}]")
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
    except (ValueError, RecursionError) as error:
        raise click.UsageError(f"ARGUMENTS is no JSON: {error}; {EXAMPLE}") from error
    if not isinstance(document, dict):
        raise click.UsageError(f"ARGUMENTS is no JSON object; {EXAMPLE}")
    answer = send_command(session.caller(), vm, command, document)
    if session.json:
        show_document("monitor", {"name": name_of(vm), "return": answer})
    else:
        click.echo(json.dumps(answer, indent=1))
