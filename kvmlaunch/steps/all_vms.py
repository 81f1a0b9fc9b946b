"""What `--all` means."""

from kvmlaunch.errors import KvmlaunchError
from kvmlaunch.host.definitions import definition_files, refuse_closed
from kvmlaunch.steps.caller import Caller
from kvmlaunch.steps.load import load


def autostart_names(caller: Caller) -> tuple[str, ...]:
    """Give the VMs that say lifecycle.autostart, and the broken definitions, so that `up` names their mistakes."""
    refuse_closed(caller.search)
    return tuple(name for name in definition_files(caller.search) if is_wanted(caller, name))


def is_wanted(caller: Caller, name: str) -> bool:
    """Does a definition say autostart; one that cannot even be read is wanted too, so that it is named."""
    try:
        definition = load(caller, name)[1].definition
    except KvmlaunchError:
        return True
    return definition is None or definition.lifecycle.autostart
