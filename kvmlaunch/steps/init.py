"""`init`: a first definition, written once and never over another."""

import errno
import os
from pathlib import Path

from kvmlaunch.define.rules import check_vm_name
from kvmlaunch.errors import Busy, DefinitionInvalid, Report
from kvmlaunch.host.files import write_new
from kvmlaunch.host.tree import failed
from kvmlaunch.steps.caller import Caller
from kvmlaunch.steps.names import name_of

TEXT = """\
# {name}: three lines are a good VM.  `kvmlaunch explain {name}` says what every other key became, and why.
vcpus  = 2
memory = "2GiB"
disk.root = {{ path = "{name}.img", size = "20GiB" }}   # made by: kvmlaunch disk create {name}

# Install from an image, once:  kvmlaunch up {name} --boot cdrom.install
# [cdrom.install]
# path = "debian.iso"

# Reach the guest's ssh on port 2222 of this host:
# [network.net0]
# forwards = ["tcp:127.0.0.1:2222:22"]
"""


def try_writing(path: Path) -> None:
    """Raise the OSError that writing a new file, and the directories to it, would raise as far as can be told."""
    if os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    nearest = next(each for each in path.parents if each.exists())
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(nearest))


def write_definition(caller: Caller, name: str, directory: str, *, dry_run: bool = False) -> Path:
    """Write a first definition; raises DefinitionInvalid `def.name`, Busy `vm.exists`, HostFailed.

    With a dry run the path is given where it could be written.
    """
    if wrong := check_vm_name(name):
        meant = name_of(Path(name).name)
        hint = wrong.hint if check_vm_name(meant) else f"kvmlaunch init {meant}"
        raise DefinitionInvalid(Report(code=wrong.code, message=wrong.message, where=name, why=wrong.why, hint=hint))
    path = Path(caller.here) / directory / f"{name}.toml"
    try:
        if dry_run:
            try_writing(path)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_new(path, TEXT.format(name=name))
    except FileExistsError as error:
        raise Busy(
            Report(code="vm.exists", message=f"{path} is there already", where=str(path), hint=f"kvmlaunch show {name}")
        ) from error
    except OSError as error:
        raise failed(str(path), error) from error
    return path
