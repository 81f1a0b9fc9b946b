"""`clone`: a VM like another."""

import click

from kvmlaunch.cli.progress import bar
from kvmlaunch.cli.session import Session, complete_vm, session_command
from kvmlaunch.cli.show import say, short_path, show_document
from kvmlaunch.cli.snapshot import settle_first


@click.command()
@click.argument("new", metavar="NEW")
@click.option(
    "--from", "base", required=True, metavar="VM", shell_complete=complete_vm, help="The VM to clone; it must be down."
)
@click.option("--full", is_flag=True, help="Copy the disks, in place of overlays that rest on them.")
@click.option("-n", "--dry-run", is_flag=True, help="Print the definition that would be written, and do nothing.")
@session_command
def clone(session: Session, new: str, base: str, full: bool, dry_run: bool) -> None:
    """Make a VM NEW like another: a definition that extends its, and overlays of its disks, or copies.

    As long as overlays rest on them, the disks of the other VM are not written to.
    """
    from kvmlaunch.steps.clone import clone as make  # noqa: PLC0415 - completion wants the options only

    if session.overrides:
        message = "--set is for this one command; what the clone is to have goes into its definition"
        raise click.UsageError(message)
    settle_first(session, base, dry_run=dry_run)
    with bar(session, f"{new}: cloning {base}") as progress:
        cloned = make(session.caller(), new, base, full=full, dry_run=dry_run, progress=progress)
    if session.json:
        chains = [{"disk": name, "chain": [image.path for image in chain]} for name, chain in cloned.chains]
        document = {"name": new, "file": str(cloned.file), "text": cloned.text, "disks": chains, "dry_run": dry_run}
        show_document("clone", document)
        return
    if dry_run:
        say(session, new, "ok", "would write", short_path(str(cloned.file)))
        click.echo(cloned.text, nl=False)
    else:
        say(session, new, "ok", "written", short_path(str(cloned.file)))
    for name, chain in cloned.chains:
        text = " ← ".join(short_path(image.path) for image in chain)
        say(session, new, "ok", "disk", f"{name}: {text}")
    if cloned.common:
        say(session, new, "ok", "shared", f"{', '.join(cloned.common)}: read-only in both")
    if cloned.overlaid:
        say(session, new, "warn", "", f"{base} does not start as long as the clone's overlays rest on its disks")
        say(session, new, "warn", "", "both run where: its disks are readonly = true; or clone with --full")
    if cloned.shared:
        keys = ", ".join(cloned.shared)
        say(session, new, "warn", "", f"as {base} has it: {keys}; write the clone's own before both run")
