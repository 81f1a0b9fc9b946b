"""`doctor`: the host as a whole, looked at for the VMs that are defined."""

import os
import re
import shlex
from collections.abc import Sequence

from kvmlaunch.errors import DefinitionInvalid, KvmlaunchError
from kvmlaunch.host.definitions import definition_files, refuse_closed
from kvmlaunch.model.definition import Definition
from kvmlaunch.model.diagnosis import Diagnosis, Trial
from kvmlaunch.model.host import HostFacts
from kvmlaunch.run.trial import boot_trial
from kvmlaunch.steps.caller import Caller
from kvmlaunch.steps.load import load_subject
from kvmlaunch.steps.names import name_of
from kvmlaunch.steps.resolve import find_binary
from kvmlaunch.steps.tune import look, read_wishes
from kvmlaunch.tune.doctor import diagnose
from kvmlaunch.tune.fleet import vm_wish

BOOT = "/boot"


def kernels_of(definitions: Sequence[Definition]) -> tuple[str, ...]:
    """Give the kernels that can be booted: the host's own, the newest first, then those of definitions.

    A definition's may be of another system, or print nothing on a serial port.
    """
    named = [str(each.boot.kernel) for each in definitions if each.boot.kernel]
    try:
        names = [name for name in os.listdir(BOOT) if name.startswith("vmlinuz-")]
        own = sorted(names, key=version_of, reverse=True)
    except OSError:
        own = []
    return tuple(path for path in (*(f"{BOOT}/{name}" for name in own), *named) if os.access(path, os.R_OK))


def version_of(name: str) -> tuple[int, ...]:
    """Give the numbers in a kernel's name, so that 6.10 comes after 6.9."""
    return tuple(int(number) for number in re.findall(r"[0-9]{1,9}", name))


def try_kvm(caller: Caller, host: HostFacts, definitions: Sequence[Definition], *, boot: bool) -> Trial:
    """Boot a guest under KVM where that can say something that is not known."""
    if host.kvm.device != "usable":
        return Trial(words="/dev/kvm does not open")
    if not boot:
        return Trial(words="--no-boot was given")
    try:
        binary = find_binary(Definition(name="doctor", file=caller.here / "doctor"), caller)
    except KvmlaunchError as error:
        return Trial(words=error.report.message)
    return boot_trial(binary, kernels_of(definitions))


def examine(caller: Caller, words: Sequence[str], *, boot: bool) -> tuple[Diagnosis, ...]:
    """Give every subject of the host, what is wrong first; changes nothing.  Raises DefinitionInvalid."""
    wishes = read_wishes(caller)
    definitions, broken = readable(caller, words)
    host, tuning = look(definitions, wishes)
    trial = try_kvm(caller, host, definitions, boot=boot)
    vms = tuple(vm_wish(each) for each in definitions)
    starting = tuple(vm_wish(each) for each in definitions if words or each.lifecycle.autostart)
    late = {each.name for each in definitions if not each.lifecycle.autostart}
    named = tuple(shlex.quote(word) for word in words if name_of(word) in late)
    return diagnose(host, tuning, wishes, vms, starting, trial, broken=broken, named=named)


def readable(caller: Caller, words: Sequence[str]) -> tuple[tuple[Definition, ...], tuple[str, ...]]:
    """Give the definitions, and the names of those that are broken: they count for nothing until they are mended."""
    found: list[Definition] = []
    broken: list[str] = []
    if not words:
        refuse_closed(caller.search)
    for word in words or definition_files(caller.search):
        try:
            found.append(load_subject(caller, word).definition)
        except DefinitionInvalid:
            broken.append(word)
    return tuple(found), tuple(broken)
