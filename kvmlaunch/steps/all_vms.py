"""What `--all` means."""

from kvmlaunch.host.definitions import definition_files
from kvmlaunch.steps.caller import Caller
from kvmlaunch.steps.load import load


def autostart_names(caller: Caller) -> tuple[str, ...]:
    """Give the VMs that say lifecycle.autostart, and the broken definitions, so that `up` names their mistakes."""
    wanted = []
    for name in definition_files(caller.search):
        definition = load(caller, name)[1].definition
        if definition is None or definition.lifecycle.autostart:
            wanted.append(name)
    return tuple(wanted)
