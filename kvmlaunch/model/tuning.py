"""The host's knobs as seen once, what is wanted of them, and what keeps that over a reboot."""

from collections.abc import Mapping
from typing import Final, Literal

from kvmlaunch.model.choice import Choice
from kvmlaunch.model.finding import Finding
from kvmlaunch.model.value import Factory, frozen

SMALL_PAGE: Final = 4096  # bytes, on x86-64
Keeper = Literal["sysctl", "udev", "tmpfiles", "boot"]


@frozen(kw_only=True)
class Knob:
    """A control file: the value in use, and the words that it offers where it lists them."""

    path: str
    value: str
    offered: tuple[str, ...] = ()


@frozen(kw_only=True)
class BlockDevice:
    """A device beneath VMs' disks; `vms` have one on it.  `queues` are its hardware queues.

    `identity` is the file beneath /sys/block/NAME that tells it from others, and what stands there: it stays when the
    kernel counts its disks in another order.
    """

    name: str
    identity: tuple[str, str] | None = None
    scheduler: Knob | None = None
    read_ahead: Knob | None = None
    rotational: bool | None = None
    queues: int = 0
    vms: tuple[str, ...] = ()


@frozen(kw_only=True)
class PageHolder:
    """A process that has huge pages mapped: `bytes` of pages of `page_size`, 0 for those of an unknown size."""

    pid: int
    command: str
    bytes: int
    page_size: int = 0


@frozen(kw_only=True)
class BootLine:
    """A setting in one of the files that sysctl, udev or tmpfiles read at boot, in the order in which they read them.

    `name` is a sysctl's, or the path of a control file; `sure` is false where a condition of the line is not told.
    """

    keeper: Keeper
    file: str
    name: str
    value: str
    sure: bool = True


@frozen(kw_only=True)
class HostTuning:
    """The host's knobs.

    `devices` lie at the bottom of VMs' disks, `opened` are those that are opened for them: a logical volume, a disk.
    `ksm` holds every file of KSM by name, empty where the kernel has none; `governors` those of the CPUs by
    number; `parameters` are KVM's by `module.name`; `buddies` counts a NUMA node's free blocks of
    1, 2, 4, … pages; `daemons` are the pids of programs that tune the host as well, by name.
    `init` is the name of process 1; `local_script` the text of /etc/rc.local, None where there is none, `local_runs`
    whether it may be executed; `own_words` is what an earlier `--boot` of ours told GRUB;
    `grub` the command that renews GRUB's configuration, "" where this host boots otherwise.  `default_page` is the
    size of the huge pages that vm.nr_hugepages counts, `memory` the host's bytes; `uksm` tells whether a kernel with
    UKSM scans, `hidden` how many files a shared hugetlbfs would hide.
    """

    devices: tuple[BlockDevice, ...] = ()
    opened: tuple[BlockDevice, ...] = ()
    ksm: Mapping[str, Knob] = Factory(dict)
    uksm: bool = False
    thp: Knob | None = None
    thp_defrag: Knob | None = None
    sysctls: Mapping[str, Knob] = Factory(dict)
    governors: Mapping[int, Knob] = Factory(dict)
    parameters: Mapping[str, Knob] = Factory(dict)
    cmdline: tuple[str, ...] = ()
    buddies: Mapping[int, tuple[int, ...]] = Factory(dict)
    daemons: Mapping[str, int] = Factory(dict)
    holders: tuple[PageHolder, ...] = ()
    boot_lines: tuple[BootLine, ...] = ()
    init: str = ""
    udev: bool = False
    local_script: str | None = None
    local_runs: bool = True
    procps_script: bool = False
    own_words: str = ""
    default_page: int = 2 << 20
    hidden: int = 0
    memory: int = 0
    grub: str = ""

    @property
    def queues(self) -> tuple[BlockDevice, ...]:
        """Every device beneath a VM's disk, each once."""
        return tuple({each.name: each for each in (*self.opened, *self.devices)}.values())

    @property
    def nodes(self) -> int:
        """How many NUMA nodes have memory."""
        return len(self.buddies)

    @property
    def largest_block(self) -> int:
        """Bytes of the largest free block, 0 where that is not known."""
        orders = (order for counts in self.buddies.values() for order, number in enumerate(counts) if number)
        return max((SMALL_PAGE << order for order in orders), default=0)

    def free_in_blocks(self, size: int) -> int:
        """Give the free bytes that lie in blocks of at least `size` bytes."""
        return sum(
            number * (SMALL_PAGE << order)
            for counts in self.buddies.values()
            for order, number in enumerate(counts)
            if SMALL_PAGE << order >= size
        )


@frozen(kw_only=True)
class Setting:
    """One knob and what is wanted of it.

    `key` names it for people (`scheduler.vda`); `cost` is what it takes; `counted` tells a number that is raised by
    what is missing and lowered by what was gained, as others count there too.  `keeper` is what makes it last.
    """

    key: str
    knob: Knob
    wanted: Choice[str]
    keeper: Keeper
    cost: str = ""
    counted: bool = False

    @property
    def differs(self) -> bool:
        """Must it be changed; of what is counted more is as good."""
        if self.counted and self.knob.value.isdecimal() and self.wanted.value.isdecimal():
            return int(self.knob.value) < int(self.wanted.value)
        return self.knob.value != self.wanted.value


@frozen(kw_only=True)
class KeptFile:
    """A file that makes settings last.

    `kind` tells a whole file, a symbolic link whose target is `text`, or lines of ours within /etc/fstab.  `command`
    makes it take effect without a reboot, "" where nothing must be run, and is left to the user when it is to be run
    `by_hand`: tuning itself has made the rest true already.  `inactive` says why nothing reads it at boot, "" where
    something does.  `option` is that of `tune apply` which writes it.
    """

    path: str
    text: str
    kind: Literal["file", "link", "fstab"] = "file"
    mode: int = 0o644
    command: str = ""
    by_hand: bool = False
    inactive: str = ""
    option: Literal["--persist", "--boot"] = "--persist"


@frozen(kw_only=True)
class SettingEntry:
    """A knob in the journal of tuning: what it held, what is wanted, and `after`, as we last left it.

    Until it is `done` a crash may have come between; `after` is then that of an earlier time, None where there was
    none.  `undo_from` is what a counted one held when taking it back began.  A setting that is not `lasting` died with
    the boot in which it was made.  A `companion` is what the kernel resets beside another one: it was never wished.

    `kept` is the value that a file of ours sets at boot, None where none does, and `default` what would be there
    then without it; until all files are written one may still set an earlier value, of `kept_before`.

    Of a counted one `before` are the pages that are neither ours nor those of running VMs, which were `borrowed`;
    what we gained is `after` less `before`.
    `surplus` are pages that the kernel had lent beyond the pool, and that raising it made the pool's own.
    `unmerged` tells of KSM that nothing was merged before.
    """

    key: str
    path: str
    before: str
    wanted: str
    after: str | None = None
    undo_from: str | None = None
    done: bool = False
    counted: bool = False
    lasting: bool = False
    companion: bool = False
    kept: str | None = None
    default: str | None = None
    kept_before: tuple[str, ...] = ()
    borrowed: str = "0"
    surplus: str = "0"
    unmerged: bool = False
    boot_id: str = ""
    time: str = ""


@frozen(kw_only=True)
class FileEntry:
    """A file in the journal of tuning; `before` is the text that was there, None where there was no file, and whose.

    `last` is the text that we had left there before, None where we had left none: a crash may have kept it.  `made` is
    the topmost directory that was made for it, "" where all were there.
    """

    path: str
    kind: Literal["file", "link", "fstab"]
    before: str | None
    before_mode: int
    wanted: str
    mode: int
    last: str | None = None
    before_uid: int = 0
    before_gid: int = 0
    made: str = ""
    done: bool = False
    time: str = ""


@frozen(kw_only=True)
class MountEntry:
    """The shared hugetlbfs in the journal of tuning; `made` is the topmost directory made for it, "" for none.

    A `lasting` one is made at every boot, by a file of ours.
    """

    path: str
    made: str
    lasting: bool = False
    boot_id: str = ""
    time: str = ""


@frozen(kw_only=True)
class VmEntry:
    """A VM that counted when the host was tuned; `path` is its definition.

    One that does not start with the host was `named`.
    """

    path: str
    named: bool = True
    lasting: bool = False
    boot_id: str = ""
    time: str = ""


TuneEntry = SettingEntry | FileEntry | MountEntry | VmEntry


@frozen(kw_only=True)
class TunePlan:
    """What the host should be: settings in the order in which they are made, and the files that would keep them."""

    settings: tuple[Setting, ...] = ()
    files: tuple[KeptFile, ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def changes(self) -> tuple[Setting, ...]:
        """The settings that differ."""
        return tuple(setting for setting in self.settings if setting.differs)
