"""`validate`: definitions checked by their text alone; neither the host nor QEMU is looked at."""

from collections.abc import Sequence

from kvmlaunch.define.load import Loaded
from kvmlaunch.host.definitions import definition_files
from kvmlaunch.model.value import frozen
from kvmlaunch.steps.caller import Caller
from kvmlaunch.steps.load import Subject, load, subject_of


@frozen(kw_only=True)
class Checked:
    """What `validate` found in one definition; `subject` is None where it has mistakes."""

    name: str
    file: str
    loaded: Loaded
    subject: Subject | None


def validate(caller: Caller, words: Sequence[str]) -> tuple[Checked, ...]:
    """Check definitions by their text alone; all that can be found without words."""
    wanted = (
        list(words) or [caller.file]
        if words or caller.file
        else [str(path) for path in definition_files(caller.search).values()]
    )
    checked = []
    for word in wanted:
        name, loaded, sources = load(caller, word)
        subject = subject_of(loaded, sources, caller.settings)
        checked.append(Checked(name=name, file=str(sources[0].path), loaded=loaded, subject=subject))
    return tuple(checked)
