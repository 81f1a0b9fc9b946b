"""`validate`, `show`, `init`, `schema`."""

import shlex
from typing import TYPE_CHECKING

import click

from kvmlaunch.cli.many import Document
from kvmlaunch.cli.session import (
    STANDARD_INPUT,
    Session,
    complete_vm,
    definitions_argument,
    dry_run_option,
    facts_option,
    session_command,
    standard_input,
)
from kvmlaunch.cli.show import (
    error_document,
    finding_document,
    say,
    short_path,
    show_document,
    show_error,
    show_failure,
    show_warnings,
    talk,
)
from kvmlaunch.model.finding import errors_of
from kvmlaunch.steps.load import STANDARD_INPUT_NAME
from kvmlaunch.steps.many import common_code
from kvmlaunch.units import count

if TYPE_CHECKING:
    from kvmlaunch.steps.fleet import Together
    from kvmlaunch.steps.validate import Checked, Unread


SEARCHED = "vmdefs"  # beneath the working directory, where names are looked for


def show_definition(session: Session, checked: "Checked", beside: "Together | None") -> tuple[int, Document]:
    """Print what is wrong with a definition, alone and beside the others; gives the exit code and the JSON form."""
    errors = errors_of(checked.loaded.findings)
    failure = beside.failures.get(checked.file) if beside else None
    conflicts = beside.findings.get(checked.file, ()) if beside else ()
    document: Document = {
        "name": checked.name,
        "file": checked.file,
        "findings": [finding_document(finding) for finding in (*checked.loaded.findings, *conflicts)],
    }
    if beside and checked.file in beside.resolved:
        document["fits"] = not conflicts
    if failure:
        show_failure(session, failure, checked.name)
        document["error"] = error_document(failure)
    if not session.json:
        for finding in errors:
            show_error(session, finding.report)
        show_warnings(session, checked.name, checked.loaded.findings)
        show_verdict(session, checked, "mistake", "definition", len(errors))
        for finding in conflicts:
            show_error(session, finding.report, checked.name)
        if "fits" in document:
            show_verdict(session, checked, "conflict", "together", len(conflicts))
    return 5 if errors else failure.exit_code if failure else 6 if conflicts else 0, document


def show_unread(session: Session, unread: "Unread") -> tuple[int, Document]:
    """Print why a definition could not be read; gives the exit code and the JSON form."""
    show_failure(session, unread.error, unread.name)
    document: Document = {"name": unread.name, "file": "", "findings": [], "error": error_document(unread.error)}
    return unread.error.exit_code, document


def show_verdict(session: Session, checked: "Checked", noun: str, word: str, number: int) -> None:
    """Say of a definition how many mistakes or conflicts it has."""
    path = short_path(checked.file)
    say(
        session, checked.name, "FAIL" if number else "ok", word, f"{path}{f'  {count(number, noun)}' if number else ''}"
    )


@click.command()
@definitions_argument
@click.option("--together", is_flag=True, help="Plan them on this host, and check whether all can run at once.")
@facts_option
@session_command
def validate(session: Session, vms: tuple[str, ...], together: bool, facts: str | None) -> int:
    """Check definitions, all mistakes at once: VMs, files, - for standard input; all when none is named."""
    from kvmlaunch.steps.validate import Checked  # noqa: PLC0415 - completion wants the options only
    from kvmlaunch.steps.validate import validate as validate_all  # noqa: PLC0415

    if facts and not together:
        raise click.UsageError("--facts names the host for --together")
    caller = session.caller(
        facts=facts, standard_input=standard_input(STANDARD_INPUT) if STANDARD_INPUT in vms else b""
    )
    checked = validate_all(caller, vms)
    beside = None
    if together:
        from kvmlaunch.steps.fleet import resolve_together  # noqa: PLC0415 - the text alone needs no plan

        subjects = {each.file: each.subject for each in checked if isinstance(each, Checked) and each.subject}
        beside = resolve_together(caller, subjects)
    if STANDARD_INPUT in vms and not caller.standard_input.strip() and not session.json:
        say(session, STANDARD_INPUT_NAME, "warn", "", "standard input was empty: every key has its default")
    done = [
        show_definition(session, each, beside) if isinstance(each, Checked) else show_unread(session, each)
        for each in checked
    ]
    if session.json:
        show_document("validate", {"definitions": [document for _, document in done]})
    elif not checked:
        talk("no definition was found; kvmlaunch init NAME writes a first one")
    return common_code(code for code, _ in done)


@click.command()
@click.argument("what", shell_complete=complete_vm)
@click.option("--resolved", is_flag=True, help="Every key with its value, defaults, profile and templates merged.")
@click.option("--origin", is_flag=True, help="With --resolved: where each value comes from.")
@session_command
def show(session: Session, what: str, resolved: bool, origin: bool) -> None:
    """Print the definition of a VM as written, or profile:NAME, a built-in profile."""
    from kvmlaunch.steps.load import all_sources, first_source, load_subject, profiles, text_of  # noqa: PLC0415 - beside its use

    name = what.removeprefix("profile:")
    if session.overrides and not (resolved or origin):
        raise click.UsageError("the text as written has nothing of --set; show --resolved has")
    if what.startswith("profile:"):
        if name not in profiles():
            raise click.UsageError(f"no profile {name!r}; there are {', '.join(sorted(profiles()))}")
        text = profiles()[name]
    elif resolved or origin:
        from kvmlaunch.define.resolved import render_resolved  # noqa: PLC0415 - beside its use
        from kvmlaunch.steps.load import origin_text  # noqa: PLC0415

        subject = load_subject(session.caller(standard_input=standard_input(what)), what)
        told = (lambda where: short_path(origin_text(subject, where))) if origin else None
        text = render_resolved(subject.definition, told)
    else:
        caller = session.caller(standard_input=standard_input(what))
        text = text_of(all_sources(caller, first_source(caller, what)[1])[0])
    if session.json:
        show_document("show", {"name": name, "text": text})
    else:
        click.echo(text.rstrip("\n"))


@click.command()
@click.argument("name")
@click.option("--dir", "directory", default=SEARCHED, metavar="DIR", help="Where to write it.")
@dry_run_option
@session_command
def init(session: Session, name: str, directory: str, dry_run: bool) -> None:
    """Write a first definition, three lines that are a good VM, into DIR (./vmdefs)."""
    from kvmlaunch.steps.init import write_definition  # noqa: PLC0415 - beside its use

    if session.overrides or session.file:
        raise click.UsageError("init writes a definition, and takes no --set and no --file")
    directory = session.directories[0] if session.directories and directory == SEARCHED else directory
    path = write_definition(session.caller(), name, directory, dry_run=dry_run)
    file = short_path(str(path))
    if session.json:
        show_document("init", {"name": name, "file": str(path), "dry_run": dry_run})
    elif dry_run:
        say(session, name, "ok", "would write", file)
    else:
        word = name if directory == SEARCHED and not session.directories else shlex.quote(file)
        say(session, name, "ok", "written", f"{file} · kvmlaunch validate {word}")


@click.command()
@session_command
def schema(session: Session) -> None:
    """Print the JSON Schema of definitions; editors with TOML support complete and check by it."""
    from kvmlaunch.define.schema import render_schema  # noqa: PLC0415 - beside its use

    del session
    click.echo(render_schema().rstrip("\n"))
