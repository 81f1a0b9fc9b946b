"""`validate`: definitions checked by their text alone; neither the host nor QEMU is looked at."""

from collections.abc import Sequence

from kvmlaunch.define.load import Loaded
from kvmlaunch.errors import KvmlaunchError
from kvmlaunch.host.definitions import definition_files, refuse_closed
from kvmlaunch.model.value import frozen
from kvmlaunch.steps.caller import Caller
from kvmlaunch.steps.load import STANDARD_INPUT, Subject, load, subject_of
from kvmlaunch.steps.names import name_of


@frozen(kw_only=True)
class Checked:
    """What `validate` found in one definition; `subject` is None where it has mistakes."""

    name: str
    file: str
    loaded: Loaded
    subject: Subject | None


@frozen(kw_only=True)
class Unread:
    """A definition that could not be read at all: there is none, or others can write it."""

    name: str
    error: KvmlaunchError


def validate(caller: Caller, words: Sequence[str]) -> tuple[Checked | Unread, ...]:
    """Check definitions by their text alone; all that can be found without words.  One keeps no other from it."""
    wanted = list(words) or [caller.file] if words or caller.file else []
    if not wanted:
        refuse_closed(caller.search)
        wanted = [str(path) for path in definition_files(caller.search).values()]
    return tuple(validate_one(caller, word) for word in dict.fromkeys(wanted))


def validate_one(caller: Caller, word: str) -> Checked | Unread:
    """Check one definition."""
    try:
        name, loaded, sources = load(caller, word)
    except KvmlaunchError as error:
        return Unread(name=name_of(word), error=error)
    subject = subject_of(loaded, sources, caller.settings)
    file = word if word == STANDARD_INPUT else str(sources[0].path)
    return Checked(name=name, file=file, loaded=loaded, subject=subject)
