"""What `--all` means."""

from kvmlaunch.host.definitions import definition_files
from kvmlaunch.steps.caller import Caller
from kvmlaunch.steps.load import load


def autostart_names(caller: Caller) -> tuple[str, ...]:
    """Give the VMs whose definition says lifecycle.autostart; a broken definition is among them, so that `up` names its mistakes."""
    wanted = []
    for name in definition_files(caller.search):
        definition = load(caller, name)[1].definition
        if definition is None or definition.lifecycle.autostart:
            wanted.append(name)
    return tuple(wanted)
