"""Why QEMU refused or died, from its exit status and its own words."""

import re

from kvmlaunch.errors import Report

KNOWN = (
    (
        re.compile(r'Failed to get (?:shared )?"\w+" lock'),
        "disk.locked",
        "an image is in use by another process",
        "fuser -v IMAGE   shows who holds it",
    ),
    (
        re.compile(r"Could not set up host forwarding rule|Address already in use"),
        "host.port.used",
        "a forwarded port is taken",
        "ss -lpn   shows who holds it",
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
)
SIGNALS = {
    7: (
        "qemu.signal.bus",
        "QEMU died of SIGBUS: its memory backing is exhausted",
        "grep -i huge /proc/meminfo; look for a cgroup limit or a full tmpfs",
    ),
    31: (
        "qemu.signal.sys",
        "QEMU died of SIGSYS: the seccomp filter caught a forbidden call",
        "--set security.sandbox=false   tells whether it is the sandbox",
    ),
    6: (
        "qemu.signal.abrt",
        "QEMU aborted: a bug of QEMU's, or an option that it does not expect",
        "kvmlaunch print-cmd NAME --pretty   shows the options; please report it",
    ),
    9: ("qemu.signal.kill", "QEMU was killed (SIGKILL)", "dmesg | grep -i oom   tells whether memory ran out"),
}


def report_death(status: int, text: str, argv: tuple[str, ...], log: str) -> Report:
    """Give the report of a QEMU that ended: `status` is negative for a signal, its text stands verbatim."""
    words = text.strip()
    quoted = words or "QEMU said nothing"
    if status < 0:
        code, message, hint = SIGNALS.get(
            -status, ("qemu.exit", f"QEMU was ended by signal {-status}", f"kill -l {-status}   names it")
        )
        return Report(code=code, message=message, where=log, why=quoted, hint=hint)
    for pattern, code, message, hint in KNOWN:
        if pattern.search(words):
            return Report(code=code, message=message, where=log, why=quoted, hint=hint)
    return Report(
        code="qemu.exit",
        message=f"QEMU ended with exit status {status}",
        where=log,
        why=quoted,
        hint=f"{argv[0]} --help   or kvmlaunch print-cmd NAME --pretty",
    )
