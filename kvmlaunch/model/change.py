"""One thing to alter on the host, and how to take it back.

Each change is applied and undone by `host/apply.py`; each can be applied twice.  Its JSON form is
what the journal keeps, so a field never changes its meaning.
"""

from typing import Literal

from kvmlaunch.model.value import frozen


@frozen(kw_only=True)
class PoolChange:
    """Raise a hugepage pool by `pages`, of one host NUMA node or (None) of the host.

    Undone by delta: min(what was gained, free − reserved), so that pages of the administrator and
    of other VMs stay.
    """

    page_size: int
    pages: int
    host_numa_node: int | None = None
    compact: bool = False


@frozen(kw_only=True)
class MountChange:
    """Mount hugetlbfs for one VM; `size` bytes are reserved at the mount, for `uid` and `gid` alone."""

    path: str
    page_size: int
    size: int
    uid: int
    gid: int
    host_numa_node: int | None = None


@frozen(kw_only=True)
class LogMountChange:
    """Mount a tmpfs of `size` bytes for what a guest prints, so that it can fill only that."""

    path: str
    size: int
    uid: int
    gid: int


@frozen(kw_only=True)
class DirectoryChange:
    """Make a directory for `uid`; taken back only when it is empty but for our sockets."""

    path: str
    mode: int
    uid: int
    gid: int


@frozen(kw_only=True)
class TapChange:
    """Make a persistent tap, join it to a bridge and set it up; its owner is `uid`."""

    ifname: str
    bridge: str
    uid: int
    multi_queue: bool
    mtu: int | None


Change = PoolChange | MountChange | LogMountChange | DirectoryChange | TapChange
ChangeOwner = Literal["up", "prepared"]


@frozen(kw_only=True)
class Entry:
    """A change in the journal.

    `owner` tells whether a start made it, which ends with the VM, or `preflight --apply`, which stays.
    `before` and `after` are a pool's total as read then, `undo_from` the total when taking it back began,
    None where nothing is counted or it did not come to that: so each step can be repeated after a crash.
    `surplus` are those of the pages of `before` that the kernel lent beyond the pool: raising it makes them the pool's
    own, for good.
    """

    change: Change
    owner: ChangeOwner = "up"
    before: int | None = None
    after: int | None = None
    undo_from: int | None = None
    surplus: int | None = None


@frozen(kw_only=True)
class Journal:
    """The host changes of one VM.

    `state` is `intent` before the first is made, `done` after the last.  `run` is the run directory, whose
    lock tells whether the VM lives.  A journal of another boot is void: its changes died with that boot.
    """

    vm: str
    uid: int
    run: str
    boot_id: str
    time: str
    state: Literal["intent", "done"]
    entries: tuple[Entry, ...]

    def owned(self, owner: ChangeOwner) -> tuple[Entry, ...]:
        """Give the changes of one owner, in the order in which they were made."""
        return tuple(entry for entry in self.entries if entry.owner == owner)


def render_entry(entry: Entry) -> str:
    """Give what was done, with the numbers before and after where something is counted."""
    match entry:
        case Entry(change=PoolChange() as change, before=int(before), after=int(after)):
            where = "vm.nr_hugepages" if change.host_numa_node is None else f"NUMA node {change.host_numa_node}"
            return f"{after - before} × {change.page_size >> 20} MiB reserved ({where} {before} → {after})"
        case _:
            return render_change(entry.change)


def change_word(change: Change) -> str:
    """Give the one word for what a change is about."""
    match change:
        case PoolChange():
            return "hugepages"
        case MountChange() | LogMountChange():
            return "mount"
        case DirectoryChange():
            return "directory"
        case TapChange():
            return "tap"


def render_undone(entry: Entry) -> str:
    """Give one line for people about a change that was taken back."""
    match entry.change:
        case PoolChange() as change:
            gained = change.pages if entry.before is None or entry.after is None else entry.after - entry.before
            where = "" if change.host_numa_node is None else f" on NUMA node {change.host_numa_node}"
            return f"the pool of {change.page_size >> 10} KiB pages lowered by {gained}{where}"
        case MountChange() as change:
            return f"hugetlbfs unmounted from {change.path}"
        case LogMountChange() as change:
            return f"the tmpfs of the logs unmounted from {change.path}"
        case DirectoryChange() as change:
            return f"the directory {change.path} removed"
        case TapChange() as change:
            return f"the tap {change.ifname} removed"


def render_change(change: Change) -> str:
    """Give one line for people."""
    match change:
        case PoolChange():
            where = "" if change.host_numa_node is None else f" on NUMA node {change.host_numa_node}"
            return f"raise the pool of {change.page_size >> 10} KiB pages by {change.pages}{where}"
        case MountChange():
            return f"mount hugetlbfs, {change.size >> 20} MiB of {change.page_size >> 10} KiB pages, on {change.path}"
        case LogMountChange():
            return f"mount a tmpfs of {change.size >> 20} MiB for the logs on {change.path}"
        case DirectoryChange():
            return f"make the directory {change.path} ({change.mode:04o}, uid {change.uid})"
        case TapChange():
            return f"make the tap {change.ifname} for uid {change.uid} and join it to {change.bridge}"
