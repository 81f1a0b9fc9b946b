"""A name or a file becomes a definition, with every text that took part."""

import os
import shlex
from collections.abc import Mapping
from functools import cache
from pathlib import Path, PurePosixPath

from kvmlaunch.define.layers import Source, wanted_files
from kvmlaunch.define.load import Loaded, Surroundings, load_definition
from kvmlaunch.define.positions import locate
from kvmlaunch.define.report import as_set
from kvmlaunch.define.resolved import render_origin
from kvmlaunch.errors import DefinitionInvalid, KvmlaunchError, Report, UnknownVm
from kvmlaunch.host.definitions import SUFFIX, definition_files, find_definition, load_profiles, read_file, refuse_name
from kvmlaunch.host.rundir import read_contents
from kvmlaunch.model.choice import Origin
from kvmlaunch.model.definition import SHORTHANDS, Definition
from kvmlaunch.model.finding import Finding, errors_of
from kvmlaunch.model.value import evolve, frozen
from kvmlaunch.steps.caller import Caller
from kvmlaunch.steps.names import is_file

STANDARD_INPUT = "-"
STANDARD_INPUT_NAME = "stdin"
MOST_FILES = 64


@frozen(kw_only=True)
class Subject:
    """A definition with the texts that it was made of, by absolute path, and its warnings.

    `settings` are the `--set` options that it was made with, as they are pasted behind a command.
    """

    definition: Definition
    texts: Mapping[str, str]
    settings: str = ""
    findings: tuple[Finding, ...] = ()


@cache
def profiles() -> Mapping[str, str]:
    """Give the built-in profiles, read once."""
    return load_profiles()


def running_hint(caller: Caller, name: str) -> str:
    """Give the same command for the file that a VM of this name runs from, or how it is ended where that is gone.

    "" where none is known.
    """
    try:
        run = caller.places(name).run
        record = read_contents(run, caller.uid).record if os.stat(run).st_uid == caller.uid else None
    except (OSError, KvmlaunchError):
        return ""
    if record is None:
        return ""
    if not os.path.isfile(record.definition):
        return f"kvmlaunch down {name}   # it was started from {record.definition}, which is gone: or put that back"
    words = shlex.split(caller.line)
    place = next((at for at, word in enumerate(words) if at > 1 and word.partition(":")[0] == name), None)
    if place is None:
        return ""
    words[place] = f"{record.definition}{words[place].removeprefix(name)}"
    return f"{shlex.join(words)}   # what {name} was started from"


def first_source(caller: Caller, word: str) -> tuple[str, Source]:
    """Give the name of a VM and its own text; `word` is a name, a file, or `-`."""
    if word == STANDARD_INPUT and caller.file:
        message = f"{caller.file} and standard input are two definitions"
        hint = f"{caller.command} -f {shlex.quote(caller.file)} {Path(caller.file).stem}"
        raise UnknownVm(Report(code="vm.unknown", message=message, why="one of them is meant", hint=hint))
    if word == STANDARD_INPUT:
        return STANDARD_INPUT_NAME, Source(path=caller.here / STANDARD_INPUT_NAME, text=caller.standard_input)
    misses = caller.file and not is_file(word) and Path(caller.file).stem != word
    if misses and os.path.lexists(caller.here / caller.file):
        why = f"the name of a VM is its file's, so this file defines {Path(caller.file).stem}"
        hint = caller.again(word, Path(caller.file).stem)
        raise UnknownVm(Report(code="vm.unknown", message=f"{caller.file} does not define {word}", why=why, hint=hint))
    if caller.file or is_file(word):
        path = Path(caller.here / (caller.file or word))
    else:
        try:
            path = find_definition(word, caller.search)
        except UnknownVm as unknown:
            hint = running_hint(caller, word) or unknown.report.hint
            raise type(unknown)(unknown.report._replace(hint=hint)) from unknown
    path = path.absolute()
    name = path.name.removesuffix(SUFFIX)
    try:
        return name, Source(path=PurePosixPath(path), text=read_file(path, caller.trust))
    except DefinitionInvalid as error:
        if os.path.lexists(path):
            raise
        if not caller.file and not word.endswith(SUFFIX):
            refuse_name(word)  # it has a slash, and leads to no file
        if name not in definition_files(caller.search):
            raise
        hint = f"{caller.command} {name}"
        raise DefinitionInvalid(error.report._replace(hint=hint)) from error


def all_sources(caller: Caller, first: Source) -> tuple[Source, ...]:
    """Give a text and every text that it extends, each once; one that cannot be read is left for the loader to name."""
    found = {first.path: first}
    waiting = list(wanted_files(first, caller.home))
    while waiting and len(found) < MOST_FILES:
        path = waiting.pop(0)
        if path in found or not Path(path).is_file():
            continue
        found[path] = Source(path=path, text=read_file(Path(path), caller.trust))
        waiting += wanted_files(found[path], caller.home)
    return tuple(found.values())


def load(caller: Caller, word: str) -> tuple[str, Loaded, tuple[Source, ...]]:
    """Load a VM; the mistakes are in what is given."""
    name, first = first_source(caller, word)
    sources = all_sources(caller, first)
    surroundings = Surroundings(environment=caller.environment, home=caller.home, working_directory=caller.here)
    return name, load_definition(name, sources, caller.overrides, surroundings, profiles()), sources


def load_subject(caller: Caller, word: str) -> Subject:
    """Load a VM; raises DefinitionInvalid with every mistake."""
    name, loaded, sources = load(caller, word)
    subject = subject_of(loaded, sources, caller.settings)
    if subject is None:
        raise invalid(name, errors_of(loaded.findings))
    return subject


def subject_of(loaded: Loaded, sources: tuple[Source, ...], settings: str) -> Subject | None:
    """Give a loaded VM with its texts, None where it has mistakes."""
    if loaded.definition is None or errors_of(loaded.findings):
        return None
    texts = {str(source.path): text_of(source) for source in sources}
    return Subject(definition=loaded.definition, texts=texts, settings=settings, findings=loaded.findings)


def invalid(name: str, errors: tuple[Finding, ...]) -> DefinitionInvalid:
    """Give the refusal of a definition."""
    reports = tuple(finding.report for finding in errors)
    summary = (
        reports[0]
        if len(reports) == 1
        else reports[0]._replace(message=f"{name} has {len(reports)} mistakes", where="", why="", hint="")
    )
    return DefinitionInvalid(summary, reports)


def text_of(source: Source) -> str:
    """Give a source as text."""
    return source.text if isinstance(source.text, str) else source.text.decode(errors="replace")


def written_key(key: str, text: str) -> tuple[int, int] | None:
    """Give line and column of a key path, or of the shorthand or the table that stands for it."""
    shorthand = next((word for word, path in SHORTHANDS.items() if path == key), None)
    return locate(text, key) or (locate(text, shorthand) if shorthand else None)


def place_finding(subject: Subject, finding: Finding) -> Finding:
    """Give a finding with the file, line and column of its key, where it was written at all."""
    if not finding.key or finding.report.where:
        return finding
    origin = subject.definition.origin(finding.key)
    where = finding.key
    if origin.kind == "file":
        position = written_key(finding.key, subject.texts.get(origin.place, ""))
        where = f"{origin.place}{f':{position[0]}:{position[1]}' if position else ''} {finding.key}"
    elif origin.kind == "profile":
        where = f"profile {origin.place}: {finding.key}"
    elif origin.kind == "set":
        hint = as_set(finding.report.hint, finding.key)
        return evolve(finding, report=finding.report._replace(where=f"--set {finding.key}", hint=hint))
    return evolve(finding, report=finding.report._replace(where=where))


def origin_text(subject: Subject, origin: Origin) -> str:
    """Give where a value comes from, of a file with line and column: `/srv/web01.toml:3:8 disk`."""
    position = written_key(origin.key, subject.texts.get(origin.place, "")) if origin.kind == "file" else None
    place = f"{origin.place}:{position[0]}:{position[1]}" if position else origin.place
    return render_origin(evolve(origin, place=place))


def place_findings(subject: Subject, findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """Give findings with their places, and root's command in them with the options that they were found with."""
    return tuple(with_settings(subject, place_finding(subject, finding)) for finding in findings)


def with_settings(subject: Subject, finding: Finding) -> Finding:
    """Give a finding whose command for root, where it has one, is for the VM as it was asked for."""
    report = finding.report
    if not subject.settings or " --apply" not in report.hint:
        return finding
    return evolve(finding, report=report._replace(hint=report.hint.replace(" --apply", f" --apply{subject.settings}")))
