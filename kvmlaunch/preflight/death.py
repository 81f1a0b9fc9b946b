"""Why QEMU refused or died, from its exit status and its own words."""

import json
import re
import shlex
from collections.abc import Collection
from pathlib import PurePosixPath

from kvmlaunch.errors import Report
from kvmlaunch.model.codes import REMEDIES

ROOTS_LOGS = "/var/log/kvmlaunch/"  # those of others lie in their state: STATE/log/VM/qemu.log
KNOWN = (
    (
        re.compile(r'Failed to get (?:shared )?"\w+" lock'),
        "disk.locked",
        "an image is in use by another process",
        "fuser -v {image}   # shows who holds it",
    ),
    (
        re.compile(r"Could not set up host forwarding rule|Address already in use"),
        "host.port.used",
        "a forwarded port is taken, or its address is none of this host's",
        "ss -lpn; ip -br address   # shows who holds it, and which addresses there are",
    ),
    (
        re.compile(
            r"-drive .*format=qcow2,.*: (?:qcow2 header|Reference count|Image does not contain a ref|Snapshot table"
            r"|Active L1|L1 table|Header extension|Unsupported cluster size|Could not (?:read L1|initialize refcount))"
        ),
        "disk.corrupt",
        "an image is damaged: QEMU cannot open it",
        "kvmlaunch disk check {vm}   # tells which; then go back to a backup",
    ),
    (
        re.compile(r"unable to map backing store"),
        "host.hugepages.short",
        "the hugepages are gone",
        "grep -i huge /proc/meminfo",
    ),
    (
        re.compile(r"Could not access KVM kernel module|failed to initialize kvm", re.IGNORECASE),
        "host.kvm.permission",
        "KVM cannot be used",
        "ls -l /dev/kvm",
    ),
    (
        re.compile(r"tpm-emulator: TPM result for CMD_INIT"),
        "qemu.tpm",
        "the emulator of the TPM cannot read its state",
        "ls -l {state}/vm/{vm}/tpm   # put a backup there: without it its keys are lost",
    ),
)
# `CPUID.07H:EBX.avx512f [bit 16]`, `CPUID[eax=07h,ecx=00h].EBX.hle [bit 4]`, `MSR(48CH).vmx-ept-2mb [bit 16]`
LACKS = re.compile(
    r"doesn't support requested feature: (?:CPUID\.\w+:\w+|CPUID\[[^\]]*\]\.\w+|\w+\(\w+\))\.(\S+) \[bit"
)
IMAGE = re.compile(r"using the image \[(.+)\]")
SIGNALS = {
    7: (
        "qemu.signal.bus",
        "QEMU died of SIGBUS: its memory backing is exhausted",
        "grep -i huge /proc/meminfo   # or it is the limit of a cgroup, or a full tmpfs",
    ),
    31: (
        "qemu.signal.sys",
        "QEMU died of SIGSYS: the seccomp filter caught a forbidden call",
        "kvmlaunch up {vm} --set security.sandbox=false   # tells whether it is the sandbox",
    ),
    6: (
        "qemu.signal.abrt",
        "QEMU aborted: a bug of QEMU's, or an option that it does not expect",
        "kvmlaunch print-cmd {vm} --pretty   # shows the options; please report it",
    ),
    9: ("qemu.signal.kill", "QEMU was killed (SIGKILL)", "dmesg | grep -i oom   # tells whether memory ran out"),
}


def vm_of(argv: tuple[str, ...]) -> str:
    """Give the name of the VM that a command line of ours starts."""
    named = re.search(r"\bguest=([^,]+)", argv[argv.index("-name") + 1]) if "-name" in argv[:-1] else None
    return named[1] if named else "VM"


def do_without(features: Collection[str]) -> str:
    """Give the lines of a definition that ask for none of these CPU features."""
    if not features:
        return REMEDIES["host.cpu.features"]
    switches = ", ".join(f'{json.dumps(name) if "." in name else name} = "off"' for name in features)
    return f"features = {{ {switches} }}   # in [cpu]; or another model; auto asks for none that cannot be given"


def report_death(status: int, text: str, argv: tuple[str, ...], log: str) -> Report:
    """Give the report of a QEMU that ended: `status` is negative for a signal, its text stands verbatim."""
    words, vm = text.strip(), vm_of(argv)
    quoted = words or "QEMU said nothing"
    if status < 0:
        code, message, hint = SIGNALS.get(
            -status, ("qemu.exit", f"QEMU was ended by signal {-status}", f"kill -l {-status}   # names it")
        )
        return Report(code=code, message=message, where=log, why=quoted, hint=hint.format(vm=vm))
    if "doesn't support requested features" in words:
        return Report(
            code="host.cpu.features",
            message="the accelerator cannot give the CPU features that were asked for",
            where=log,
            why=quoted,
            hint=do_without(dict.fromkeys(LACKS.findall(words))),
        )
    for pattern, code, message, hint in KNOWN:
        if pattern.search(words):
            image = IMAGE.search(words)
            state = "/var/lib/kvmlaunch" if log.startswith(ROOTS_LOGS) else PurePosixPath(log).parent.parent.parent
            fix = hint.format(image=shlex.quote(image[1]) if image else "IMAGE", vm=vm, state=state)
            return Report(code=code, message=message, where=log, why=quoted, hint=fix)
    return Report(
        code="qemu.exit",
        message=f"QEMU ended with exit status {status}",
        where=log,
        why=quoted,
        hint=f"kvmlaunch print-cmd {vm} --pretty   # or {argv[0]} --help",
    )
