"""What was seen of the live QEMU, to be held against the promises of its plan."""

from kvmlaunch.model.value import frozen


@frozen(kw_only=True)
class RamMapping:
    """A mapping of smaps that holds guest RAM, sizes in bytes."""

    size: int
    page_size: int
    resident: int
    flags: frozenset[str]
    name: str = ""


@frozen(kw_only=True)
class DriveEvidence:
    """A drive as the live QEMU has it; `open_flags` are those of every descriptor on its file."""

    id: str
    path: str
    format: str
    readonly: bool
    direct: bool
    no_flush: bool
    writeback: bool
    detect_zeroes: str
    iops: int
    bandwidth: int
    open_flags: tuple[int, ...] = ()


@frozen(kw_only=True)
class Evidence:
    """What was read from the live QEMU: QMP, smaps, fdinfo, status, cmdline, and its log."""

    kvm_enabled: bool
    name: str
    uuid: str
    machine: str
    vcpus: int
    ram: tuple[RamMapping, ...]
    drives: tuple[DriveEvidence, ...]
    seccomp: int
    no_new_privs: int
    uid: int
    cap_eff: int
    locked_bytes: int
    cmdline: tuple[str, ...]
    run_state: str = "running"
    log: str = ""


def said_by(program: str, log: str) -> list[str]:
    """Give the lines of a log that a program printed as its own, each once: they begin with the last part of its path.

    QEMU repeats what it says of a vCPU for the next one; of an image that it finds damaged it tells without its name.
    """
    begins = (f"{program.rpartition('/')[2]}: ", "qcow2: ")
    return list(dict.fromkeys(line for line in log.splitlines() if line.startswith(begins)))
