"""`validate`, `show`, `init`, `schema`."""

import click

from kvmlaunch.cli.session import Session, complete_vm, session_command, standard_input, vms_argument
from kvmlaunch.cli.show import finding_document, say, short_path, show_document, show_error, show_warnings
from kvmlaunch.model.finding import errors_of


@click.command()
@vms_argument
@session_command
def validate(session: Session, vms: tuple[str, ...]) -> int:
    """Check definitions, all mistakes at once: VMs, files, - for standard input; all when none is named."""
    from kvmlaunch.steps.validate import validate as validate_all  # noqa: PLC0415 - completion wants the options only

    checked = validate_all(session.caller(standard_input=standard_input("-") if "-" in vms else b""), vms)
    bad = [each for each in checked if errors_of(each.loaded.findings)]
    if session.json:
        rows = [
            {
                "name": each.name,
                "file": each.file,
                "findings": [finding_document(finding) for finding in each.loaded.findings],
            }
            for each in checked
        ]
        show_document("validate", {"definitions": rows})
        return 5 if bad else 0
    for each in checked:
        errors = errors_of(each.loaded.findings)
        for finding in errors:
            show_error(session, finding.report)
        show_warnings(session, each.name, each.loaded.findings)
        mistakes = f"{len(errors)} mistake{'s' if len(errors) > 1 else ''}"
        say(
            session,
            each.name,
            "FAIL" if errors else "ok",
            "definition",
            f"{short_path(each.file)}{f'  {mistakes}' if errors else ''}",
        )
    if not checked:
        click.echo("no definition was found; kvmlaunch init NAME writes a first one", err=True)
    return 5 if bad else 0


@click.command()
@click.argument("what", shell_complete=complete_vm)
@click.option("--resolved", is_flag=True, help="Every key with its value, defaults, profile and templates merged.")
@click.option("--origin", is_flag=True, help="With --resolved: where each value comes from.")
@session_command
def show(session: Session, what: str, resolved: bool, origin: bool) -> None:
    """Print the definition of a VM as written, or profile:NAME, a built-in profile."""
    from kvmlaunch.steps.load import all_sources, first_source, load_subject, profiles, text_of  # noqa: PLC0415 - beside its use

    name = what.removeprefix("profile:")
    if what.startswith("profile:"):
        if name not in profiles():
            raise click.UsageError(f"no profile {name!r}; there are {', '.join(sorted(profiles()))}")
        text = profiles()[name]
    elif resolved or origin:
        from kvmlaunch.define.resolved import render_origin, render_resolved  # noqa: PLC0415 - beside its use

        subject = load_subject(session.caller(standard_input=standard_input(what)), what)
        text = render_resolved(subject.definition, (lambda where: short_path(render_origin(where))) if origin else None)
    else:
        caller = session.caller(standard_input=standard_input(what))
        text = text_of(all_sources(caller, first_source(caller, what)[1])[0])
    if session.json:
        show_document("show", {"name": name, "text": text})
    else:
        click.echo(text.rstrip("\n"))


@click.command()
@click.argument("name")
@click.option("--dir", "directory", default="vmdefs", metavar="DIR", help="Where to write it.")
@session_command
def init(session: Session, name: str, directory: str) -> None:
    """Write a first definition, three lines that are a good VM, into DIR (./vmdefs)."""
    from kvmlaunch.steps.init import write_definition  # noqa: PLC0415 - beside its use

    path = write_definition(session.caller(), name, directory)
    if session.json:
        show_document("init", {"name": name, "file": str(path)})
    else:
        say(session, name, "ok", "written", f"{short_path(str(path))} · kvmlaunch validate {name}")


@click.command()
@session_command
def schema(session: Session) -> None:
    """Print the JSON Schema of definitions; editors with TOML support complete and check by it."""
    from kvmlaunch.define.schema import render_schema  # noqa: PLC0415 - beside its use

    del session
    click.echo(render_schema().rstrip("\n"))
