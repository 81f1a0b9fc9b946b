"""`doctor`: the host as a whole, looked at for the VMs that are defined."""

import os
from collections.abc import Sequence

from kvmlaunch.errors import KvmlaunchError
from kvmlaunch.model.definition import Definition
from kvmlaunch.model.diagnosis import Diagnosis, Trial
from kvmlaunch.model.host import HostFacts
from kvmlaunch.run.trial import boot_trial
from kvmlaunch.steps.caller import Caller
from kvmlaunch.steps.resolve import find_binary
from kvmlaunch.steps.tune import definitions_of, look, read_wishes
from kvmlaunch.tune.doctor import diagnose
from kvmlaunch.tune.fleet import vm_wish

BOOT = "/boot"


def kernels_of(definitions: Sequence[Definition]) -> tuple[str, ...]:
    """Give the kernels that can be booted: those of definitions, then the host's own, the newest first."""
    named = [str(each.boot.kernel) for each in definitions if each.boot.kernel]
    try:
        own = sorted((name for name in os.listdir(BOOT) if name.startswith("vmlinuz-")), reverse=True)
    except OSError:
        own = []
    return tuple(path for path in (*named, *(f"{BOOT}/{name}" for name in own)) if os.access(path, os.R_OK))


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
    definitions = definitions_of(caller, words, every=True)
    host, tuning = look(definitions)
    trial = try_kvm(caller, host, definitions, boot=boot)
    starting = tuple(vm_wish(each) for each in definitions if words or each.lifecycle.autostart)
    return diagnose(host, tuning, wishes, starting, trial)
