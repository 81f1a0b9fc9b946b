"""`print-cmd`, `explain`, `diff`."""

from typing import TYPE_CHECKING

import click

from kvmlaunch.cli.session import (
    Session,
    complete_vm,
    definition_argument,
    facts_option,
    session_command,
    standard_input,
    vm_argument,
)
from kvmlaunch.cli.show import short_path, show_document, show_table, show_warnings, talk
from kvmlaunch.errors import Report, UnknownVm
from kvmlaunch.host.definitions import names_in
from kvmlaunch.model.value import asdict
from kvmlaunch.steps.names import is_file, name_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from kvmlaunch.builder.render import Row
    from kvmlaunch.steps.resolve import Resolved


@click.command(name="print-cmd")
@definition_argument
@click.option("--pretty", is_flag=True, help="An option a line.")
@click.option("-0", "null", is_flag=True, help="Words ended by NUL, for xargs -0.")
@click.option("--comments", is_flag=True, help="A bash array, every option beneath its reasons.")
@click.option("--boot", "boot_from", default="", metavar="cdrom.NAME", help="As for up --boot.")
@click.option("--paused", is_flag=True, help="As for up --paused.")
@facts_option
@session_command
def print_cmd(
    session: Session,
    vm: str,
    pretty: bool,
    null: bool,
    comments: bool,
    boot_from: str,
    paused: bool,
    facts: str | None,
) -> None:
    """Print the QEMU command line that `up` runs for VM, which is a name, a file, or - for standard input.

    Needs no root, takes no lock, changes nothing but its own cache.
    """
    from kvmlaunch.builder import render  # noqa: PLC0415 - completion wants the options only
    from kvmlaunch.steps.compile import compile_vm  # noqa: PLC0415

    if session.json + pretty + null + comments > 1:
        raise click.UsageError("--json, --pretty, --comments and -0 are each a form of its own: take one of them")
    caller = session.caller(facts=facts, standard_input=standard_input(vm))
    resolved = compile_vm(caller, vm, boot_from=boot_from, paused=paused)
    plan, places = resolved.plan, resolved.places
    if not session.json:
        tell_about(session, resolved)
    if session.json:
        show_document("print-cmd", render.plan_document(plan, places))
    elif null:
        click.echo("".join(f"{word}\0" for word in render.render_argv(plan, places)), nl=False)
    else:
        renderer = render.render_pretty if pretty else render.render_comments if comments else render.render_line
        click.echo(renderer(plan, places))


def tell_about(session: Session, resolved: "Resolved") -> None:
    """Say the fallbacks, to whom the command belongs when `up` would not run it as the caller, and what it needs."""
    import shlex  # noqa: PLC0415 - completion wants the options only

    from kvmlaunch.builder.vm import build_sidecars  # noqa: PLC0415 - imported by the plan already
    from kvmlaunch.steps.start_findings import lacks_seed  # noqa: PLC0415

    show_warnings(session, resolved.name, resolved.plan.findings)
    user = resolved.host.user
    if resolved.host.caller_uid == 0 and user.uid != 0 and not session.quiet:
        talk(f"up runs this as {user.name}: put before it  setpriv --reuid={user.uid} --regid={user.gid} --init-groups")
    if session.quiet:
        return
    if resolved.plan.vcpu_pins or resolved.plan.iothread_pins:
        talk(f"it waits with -S for its threads to be pinned: kvmlaunch up {resolved.name} does that, and lets it run")
    for argv in build_sidecars(resolved.subject.definition, resolved.host, resolved.places).values():
        talk(f"up starts beside it, and first: {shlex.join(argv)}")
    if lacks_seed(resolved):
        what = "up" if resolved.host.caller_uid else "up, or preflight --apply,"
        talk(f"{what} writes the seed of cloud-init first, which is not there as it should be")


def row_document(row: "Row") -> dict[str, str]:
    """Give the JSON form of a decision."""
    from kvmlaunch.builder.render import render_origin  # noqa: PLC0415 - imported by explain already

    return {
        "key": row.key,
        "value": row.value,
        "reason": row.reason,
        "source": row.source,
        "origin": render_origin(row.origin),
        "option": row.flag,
    }


def row_cells(session: Session, row: "Row") -> tuple[str, str, str]:
    """Give a decision as cells; the source with -v."""
    from kvmlaunch.builder.render import render_origin  # noqa: PLC0415 - imported by explain already

    origin = short_path(render_origin(row.origin))
    why = f"{'auto: ' if row.reason else ''}{row.reason or origin}"
    source = f"   [{row.source}]" if session.verbose and row.source else ""
    return row.key, row.value, f"{why}{source}"


def show_meaning(session: Session, word: str) -> bool:
    """Print what a code or a topic means; tells whether the word is one."""
    from kvmlaunch.model.codes import CODES, REMEDIES, TOPICS  # noqa: PLC0415 - completion wants the options only

    if word in TOPICS:
        document: dict[str, object] = {"topic": word, "sentences": list(TOPICS[word])}
        text = "\n".join(TOPICS[word])
    elif word in CODES:
        (exit_code, sentence), remedy = CODES[word], REMEDIES.get(word, "")
        document = {"code": word, "exit": exit_code, "sentence": sentence, "remedy": remedy}
        lines = [word, sentence, f"exit code {exit_code}" if exit_code else "a warning: it stops nothing", remedy]
        text = "\n  ".join(line for line in lines if line)
    else:
        return False
    if session.json:
        show_document("meaning", document)
    else:
        click.echo(text)
    return True


def show_key(session: Session, path: str) -> bool:
    """Print what a key of a definition means, and those beneath it; tells whether there is such a key.

    A word that is nearly a code is no name of somebody's disk.
    """
    import difflib

    from kvmlaunch.define.meaning import meanings  # noqa: PLC0415 - completion wants the options only
    from kvmlaunch.model.codes import CODES  # noqa: PLC0415

    key, *beneath = meanings(path) or (None,)
    if key is None or (key.path.endswith(".NAME") and difflib.get_close_matches(path, CODES, cutoff=0.9)):
        return False
    if session.json:
        show_document("key", {**asdict(key), "keys": [asdict(each) for each in beneath]})
        return True
    lines = [key.path, key.sentence, f"holds    {key.holds}", f"default  {key.default}" if key.default else ""]
    click.echo("\n  ".join(line for line in lines if line))
    if beneath:
        click.echo()
        show_table([(each.path, each.holds, each.default, each.sentence) for each in beneath])
    return True


def no_meaning(word: str, vms: "Iterable[str]", error: UnknownVm) -> UnknownVm:
    """Give the refusal of a word that is neither a VM nor a key, code or topic, with what is nearest to it."""
    import difflib

    from kvmlaunch.define.keys import key_paths  # noqa: PLC0415 - imported by the search already
    from kvmlaunch.model.codes import CODES, TOPICS  # noqa: PLC0415

    known = {key.replace(".NAME", ""): key for key in key_paths()} | {each: each for each in (*CODES, *TOPICS, *vms)}
    near = difflib.get_close_matches(word, known, n=1)
    hint = (
        f"kvmlaunch explain {known[near[0]]}"
        if near
        else "kvmlaunch ls   # lists the VMs, kvmlaunch explain --help the topics"
    )
    report = Report(
        code="vm.unknown",
        message=f"{word} is no VM, key, code or topic",
        where=error.report.where,
        why=error.report.why if error.report.where else "",
        hint=hint,
    )
    return UnknownVm(report)


def rows_at(name: str, rows: "Sequence[Row]", keys: "Sequence[str]") -> "tuple[Row, ...]":
    """Give the decisions at and beneath some keys; raises UsageError for a key that has none, with the nearest."""
    from kvmlaunch.builder.render import select_rows  # noqa: PLC0415 - imported by explain already
    from kvmlaunch.define.meaning import meanings  # noqa: PLC0415 - for keys that are named

    for key in keys:
        if select_rows(tuple(rows), (key,)):
            continue
        import difflib

        near = difflib.get_close_matches(key, sorted(ancestry(row.key for row in rows)), n=1)
        mean = f"; did you mean {near[0]}?" if near else f"; kvmlaunch explain {name} lists all"
        if any("NAME" not in each.path for each in meanings(key)[:1]):
            mean = f": no option comes of it; kvmlaunch explain {key} tells what it means"
        raise click.UsageError(f"{name} has no decision at {key}{mean}")
    return select_rows(tuple(rows), tuple(keys))


def ancestry(keys: "Iterable[str]") -> set[str]:
    """Give key paths and the tables above them."""
    return {key[:end] for key in keys for end in (*(at for at, letter in enumerate(key) if letter == "."), len(key))}


@click.command()
@click.argument("what", shell_complete=complete_vm)
@click.argument("keys", nargs=-1)
@facts_option
@session_command
def explain(session: Session, what: str, keys: tuple[str, ...], facts: str | None) -> None:
    """Tell every decision about a VM with its reason, KEYS only at and beneath these; or what a key or a code means.

    WHAT is a VM, a key of a definition such as disk.cache, a code that stands in brackets behind an error, or a
    topic: security.
    """
    if not keys and show_meaning(session, what):
        return
    from kvmlaunch.steps.compile import explain as explain_vm  # noqa: PLC0415

    caller = session.caller(facts=facts, standard_input=standard_input(what))
    try:
        resolved, every = explain_vm(caller, what)
    except UnknownVm as error:
        if is_file(what) or caller.file:
            raise
        if not keys and show_key(session, what):
            return
        raise no_meaning(what, names_in(caller.search), error) from error
    rows = rows_at(resolved.name, every, keys)
    if session.json:
        show_document("explain", {"name": resolved.name, "choices": [row_document(row) for row in rows]})
        return
    show_table([row_cells(session, row) for row in rows])
    beside = (each for each in resolved.plan.findings if not keys or each.key in {row.key for row in rows})
    show_warnings(session, resolved.name, beside)


@click.command()
@vm_argument
@click.option("--running", is_flag=True, help="Compare with the running VM, which is what is done.")
@session_command
def diff(session: Session, vm: str, running: bool) -> int:
    """Compare a running VM with what its definition would start now: exit code 10 when they differ."""
    del running
    from kvmlaunch.steps.compile import diff_running  # noqa: PLC0415 - completion wants the options only

    lines = diff_running(session.caller(), vm)
    if session.json:
        show_document("diff", {"name": name_of(vm), "differences": list(lines)})
    elif lines:
        click.echo("\n".join(lines))
    else:
        talk(f"{name_of(vm)}: no difference")
    return 10 if lines else 0
