"""`validate`: definitions checked by their text alone; neither the host nor QEMU is looked at."""

from collections.abc import Sequence

from kvmlaunch.define.load import Loaded
from kvmlaunch.host.definitions import definition_files
from kvmlaunch.model.value import frozen
from kvmlaunch.steps.caller import Caller
from kvmlaunch.steps.load import load


@frozen(kw_only=True)
class Checked:
    """What `validate` found in one definition."""

    name: str
    file: str
    loaded: Loaded


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
        checked.append(Checked(name=name, file=str(sources[0].path), loaded=loaded))
    return tuple(checked)
