"""Other launchers, where they are installed: each gets the machine that kvmlaunch makes, as far as it can be told.

No daemon of the host is asked.  What a peer needs running runs in namespaces of the bench's own and ends with them.  A
peer that refuses is a row with its own words.
"""

import os
import shutil
import subprocess  # noqa: TID253 - libvirtd is a program that stays for a while
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from tests.bench.commands import GROUP as COMMANDS
from tests.bench.measure import HERE, KVMLAUNCH, BenchError, Row, Side, command, compare, in_turn, run, skipped
from tests.bench.starts import GROUP, PAIRS, Vm, sweep, up

PATIENCE: Final = 10.0  # seconds for libvirtd to answer
PAUSED: Final = "up --paused, ordinary memory"
RUNNING: Final = "up, ordinary memory"
VIRSH: Final = "virsh start --paused, libvirtd runs"
VIRT_INSTALL: Final = "virt-install, libvirtd runs"
NATIVE: Final = "virsh domxml-to-native, embedded"
WITHOUT: Final = "print-cmd, without a network"
UNSHARE: Final = ("unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc")

DOMAIN: Final = """\
<domain type='{type}'>
  <name>{name}</name>
  <memory unit='MiB'>256</memory>
  <vcpu>2</vcpu>
  <genid/>
  <os><type arch='x86_64' machine='{machine}'>hvm</type></os>
  <features><acpi/></features>
  <cpu mode='{cpu}'/>
  <clock offset='utc'><timer name='hpet' present='no'/></clock>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw' cache='{cache}' io='{aio}' discard='unmap'/>
      <source file='{image}'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <controller type='usb' model='none'/>
    {network}
    <serial type='pty'><log file='{log}' append='on'/></serial>
    <memballoon model='virtio' autodeflate='on' freePageReporting='on'/>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
  </devices>
</domain>
"""

NETWORK: Final = "<interface type='user'><model type='virtio'/></interface>"
# domxml-to-native opens a tap of the host for whatever network is told, so that the machine it translates has none.
NO_NETWORK: Final = '[network.lan]\ntype = "none"\n'

# Without a PCI controller named it would add fourteen ports for devices to come.
INSTALL: Final = """\
--quiet --noautoconsole --transient --import --osinfo detect=off,require=off
--virt-type {type} --name {name} --memory 256 --vcpus 2 --machine {machine} --cpu mode={cpu}
--metadata genid_enable=yes
--disk path={image},format=raw,bus=virtio,cache={cache},driver.io={aio},driver.discard=unmap
--network user,model=virtio --serial pty,log.file={log},log.append=on --rng /dev/urandom
--memballoon model=virtio,autodeflate=on,freePageReporting=on
--graphics none --video none --sound none --controller usb,model=none --controller pci,model=pcie-root
"""


def reason(error: BenchError) -> str:
    """Give why a peer refused: its last line that says error."""
    lines = str(error).strip().splitlines()
    return next((line for line in reversed(lines) if line.lower().startswith("error")), lines[-1])


def after(argv: list[str], flag: str) -> str:
    """Give the value of the first such option."""
    return argv[argv.index(flag) + 1]


def machine(vm: Vm) -> Mapping[str, str]:
    """Give what a peer has to be told to make the machine that `print-cmd` makes here."""
    argv = vm.argv()
    drive = dict(field.split("=", 1) for field in after(argv, "-drive").split(","))
    kvm = after(argv, "-accel").startswith("kvm")
    return {
        "name": vm.name,
        "type": "kvm" if kvm else "qemu",
        "cpu": "host-passthrough" if kvm else "maximum",
        "machine": after(argv, "-machine").partition(",")[0],
        "image": drive["file"],
        "cache": drive["cache"],
        "aio": drive["aio"],
        "network": NETWORK if "-netdev" in argv else "",
        "log": str(vm.home / "peer-console.log"),
    }


def described(vm: Vm) -> str:
    """Write the machine as libvirt's XML and give the file."""
    document = vm.home / f"{vm.name}.xml"
    document.write_text(DOMAIN.format_map(machine(vm)))
    return str(document)


def beside(group: str, what: str, against: str, ours: Side, theirs: Side) -> Row:
    """Give the row of one peer; whether it works at all is tried first."""
    try:
        theirs()
    except BenchError as error:
        return skipped(group, what, against, reason(error))
    return compare(group, what, against, in_turn(ours, theirs, PAIRS))


def measure_native(home: Path) -> Row:
    """Give the row of `print-cmd` against libvirt's own translation by its embedded driver."""
    if not shutil.which("virsh"):
        return skipped(COMMANDS, WITHOUT, NATIVE, "virsh is not installed")
    vm = Vm(name="native", home=home, run=home, pages=0)
    vm.define()
    with (home / "vmdefs" / f"{vm.name}.toml").open("a") as definition:
        definition.write(NO_NETWORK)
    root = home / "embed"
    (root / "etc").mkdir(parents=True)
    # The QEMU that libvirt asks first has to reach this directory, which is its owner's alone.
    (root / "etc" / "qemu.conf").write_text(f'user = "+{os.getuid()}"\ngroup = "+{os.getgid()}"\n')
    virsh = ("virsh", "-c", f"qemu:///embed?root={root}", "domxml-to-native", "qemu-argv", described(vm))
    theirs = command(*virsh, extra={"XDG_RUNTIME_DIR": str(home)})
    return beside(COMMANDS, WITHOUT, NATIVE, command(KVMLAUNCH, "print-cmd", vm.name, at=home), theirs)


@contextmanager
def libvirtd(home: Path) -> Iterator[str]:
    """Run a libvirtd of our own for a while and give its address; all that it started ends with it.

    Raises BenchError when there is none to run, or it does not answer.
    """
    missing = [tool for tool in ("virsh", "libvirtd", "unshare") if not shutil.which(tool)]
    if missing:
        raise BenchError(f"{missing[0]} is not installed")
    if os.geteuid() != 0:
        raise BenchError("a libvirtd of its own needs root")
    log = home / "libvirtd.log"
    words = [*UNSHARE, str(HERE / "libvirtd.sh"), str(home)]
    # Leaving closes the pipe, which ends the script, and waits.
    with (
        log.open("wb") as written,
        subprocess.Popen(words, stdin=subprocess.PIPE, stdout=written, stderr=written) as daemon,  # noqa: S603 - our own
    ):
        uri = f"qemu+unix:///system?socket={home / 'libvirt-sock'}"
        if not answers(uri, daemon):
            raise BenchError(f"libvirtd does not answer: {cause(log.read_text(errors='replace'))}")
        yield uri


def cause(log: str) -> str:
    """Give the line of a log that says why, without its time and place: what follows is only that it ended."""
    lines = log.splitlines() or ["it says nothing"]
    return next((line for line in lines if " failed: " in line), lines[-1]).rpartition(" : ")[2]


def answers(uri: str, daemon: subprocess.Popen[bytes]) -> bool:
    """Wait until libvirtd answers; False when it ended, or takes too long."""
    until = time.monotonic() + PATIENCE
    while daemon.poll() is None and time.monotonic() < until:
        with suppress(BenchError):
            run(("virsh", "-c", uri, "uri"))
            return True
        time.sleep(0.05)
    return False


def measure_virsh(vm: Vm, uri: str) -> Row:
    """Give the row of `virsh start --paused`, until it returns; libvirt has read its XML before."""
    virsh = ("virsh", "-c", uri)
    document = described(vm)

    def theirs() -> float:
        run((*virsh, "define", document))
        seconds = run((*virsh, "start", "--paused", vm.name))
        run((*virsh, "destroy", vm.name))
        run((*virsh, "undefine", vm.name))
        return seconds

    return beside(GROUP, PAUSED, VIRSH, lambda: up(vm, "--paused"), theirs)


def measure_virt_install(vm: Vm, uri: str) -> Row:
    """Give the row of virt-install, which cannot start paused, so that both run."""
    if not shutil.which("virt-install"):
        return skipped(GROUP, RUNNING, VIRT_INSTALL, "virt-install is not installed")
    values = machine(vm)
    words = [word.format_map(values) for word in INSTALL.split()]

    def theirs() -> float:
        seconds = run(("virt-install", "--connect", uri, *words), extra={"XDG_CACHE_HOME": str(vm.home)})
        run(("virsh", "-c", uri, "destroy", vm.name))
        return seconds

    return beside(GROUP, RUNNING, VIRT_INSTALL, lambda: up(vm), theirs)


def measure_libvirt(vm: Vm) -> Iterator[Row]:
    """Give the rows of `virsh start` and virt-install, both with one libvirtd."""
    with ExitStack() as stack:
        try:
            uri = stack.enter_context(libvirtd(vm.home))
        except BenchError as error:
            yield skipped(GROUP, PAUSED, VIRSH, reason(error))
            yield skipped(GROUP, RUNNING, VIRT_INSTALL, reason(error))
            return
        yield measure_virsh(vm, uri)
        yield measure_virt_install(vm, uri)


def measure_peers(vm: Vm) -> Iterator[Row]:
    """Give the rows of starts against other launchers."""
    vm.define()
    try:
        yield from measure_libvirt(vm)
    except BaseException:
        sweep(vm)
        raise
    why = "is installed, and not measured here" if shutil.which("quickemu") else "is not installed"
    yield skipped(GROUP, RUNNING, "quickemu", f"quickemu {why}")
