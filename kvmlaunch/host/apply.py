"""Makes and takes back the changes of the host.  Every function here runs under the host-wide lock."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from shlex import quote
from typing import assert_never

from kvmlaunch.errors import Busy, HostFailed, KvmlaunchError, PreflightFailed, Report
from kvmlaunch.facts.mounts import escape_octal, parse_mount
from kvmlaunch.host import journal as journals
from kvmlaunch.host.files import read_number
from kvmlaunch.host.mount import mount_at, unmount_at
from kvmlaunch.host.places import RUN
from kvmlaunch.host.pool import apply_pool, pool_path, undo_pool
from kvmlaunch.host.readers import link_target, names_in
from kvmlaunch.host.rights import rights_of
from kvmlaunch.host.rundir import OWN_FILES, sidecar_files
from kvmlaunch.host.tap import make_tap, remove_tap
from kvmlaunch.host.tree import entered, make_owned, remove_empty
from kvmlaunch.model.change import (
    Change,
    DirectoryChange,
    Entry,
    Journal,
    LogMountChange,
    MountChange,
    PoolChange,
    TapChange,
    change_word,
    render_entry,
)
from kvmlaunch.model.finding import Finding, warning
from kvmlaunch.model.host import Mount, UserFacts
from kvmlaunch.model.run_files import PREPARED
from kvmlaunch.model.value import evolve
from kvmlaunch.units import MIB, count, render_size

Tell = Callable[[str, str], None]
MOUNTED = "nosuid,nodev,noexec"  # of every mount: host/mount.py
RUNTIMES = PurePosixPath("/run/user")  # root makes a user's runtime directory there


def mounts_on(path: str) -> tuple[Mount, ...]:
    """Give what is mounted on a path, the topmost last, as this mount namespace sees it."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        mounts = [parse_mount(line.rstrip("\n")) for line in file if f" {escape_octal(path)} " in line]
    return tuple(mount for mount in mounts if str(mount.path) == path)


def mount_options(change: MountChange) -> str:
    """Give the mount options: `min_size` makes the kernel reserve every page at the mount, or refuse."""
    size = f"pagesize={change.page_size >> 10}K,size={change.size},min_size={change.size}"
    return f"{size},uid={change.uid},gid={change.gid},mode=0700"


def is_ours(mount: Mount, change: MountChange) -> bool:
    """Is a mount the one that this change makes; the kernel leaves out a uid of 0."""
    return (
        mount.type == "hugetlbfs"
        and mount.option("pagesize") == f"{change.page_size // MIB}M"
        and mount.option("min_size") == str(change.size)
        and (mount.option("uid") or "0") == str(change.uid)
    )


def apply_mount(change: MountChange) -> None:
    """Mount hugetlbfs for a VM; its own mount already there is fine, another one is replaced unless it is in use."""
    there, path = mounts_on(change.path), PurePosixPath(change.path)
    if len(there) == 1 and is_ours(there[0], change):
        os.chown(path, change.uid, change.gid, follow_symlinks=False)  # somebody may have given it away
        return
    for _ in there:
        release_mount(path)
    with entered(path, 0, make=True):
        pass
    try:
        mount_at(path, "hugetlbfs", mount_options(change))
    except OSError as error:
        remove_empty(path, 0, up_to=RUN)
        raise mount_refused(path, error) from error


def refuse_replacing(change: MountChange, vm: str) -> None:
    """Refuse to replace a VM's mount by another one while a process uses it (`host.hugetlbfs.busy`)."""
    there, path = mounts_on(change.path), PurePosixPath(change.path)
    using = user_text(path) if there and not is_ours(there[-1], change) else ""
    if using:
        raise Busy(
            Report(
                code="host.hugetlbfs.busy",
                message=f"{path} is in use, and another mount is wanted there",
                where=str(path),
                why=f"it is used {using}; nothing was changed",
                hint=f"kvmlaunch down {vm}   # then the command again",
            )
        )


def mount_refused(path: PurePosixPath, error: OSError) -> PreflightFailed:
    """Give the refusal of a mount: pages that are gone since they were counted, or no hugetlbfs."""
    short = error.errno == errno.ENOMEM
    why = "somebody took pages from the pool since they were counted" if short else f"mount: {error.strerror}"
    hint = "grep -i huge /proc/meminfo   # then start it again" if short else "zgrep HUGETLBFS /proc/config.gz"
    return PreflightFailed(
        Report(
            code="host.hugepages.short" if short else "host.hugetlbfs.missing",
            message=f"hugetlbfs could not be mounted on {path}",
            where=str(path),
            why=why,
            hint=hint,
        )
    )


def release_mount(path: PurePosixPath, uid: int = 0, *, detach: bool = False) -> None:
    """Unmount; raises Busy `host.hugetlbfs.busy` when a process still uses it; not mounted is fine.

    One to `detach` goes although somebody reads in it.
    """
    try:
        unmount_at(path, uid=uid, detach=detach)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno == errno.EINVAL:
            return
        raise Busy(
            Report(
                code="host.hugetlbfs.busy",
                message=f"{path} is in use",
                where=str(path),
                why=", ".join(filter(None, (f"umount: {error.strerror}", user_text(path)))),
                hint="end that process, then run the command again",
            )
        ) from error


def user_text(path: PurePosixPath) -> str:
    """Give who uses a mount, as `by pid N (comm)`: maps or opened its files, or is in it; "" when nobody is seen."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace")
            links = (
                f"/proc/{pid}/{name}" for name in ("cwd", "root", *(f"fd/{n}" for n in names_in(f"/proc/{pid}/fd")))
            )
            if f" {path}/" in maps or any(f"{link_target(link)}/".startswith(f"{path}/") for link in links):
                return f"by pid {pid} ({Path(f'/proc/{pid}/comm').read_text(encoding='utf-8').strip()})"
    return ""


def undo_mount(path: PurePosixPath, type_: str, uid: int = 0) -> Iterator[Finding]:
    """Unmount what was mounted there, as long as it is of the type that we mount; says whatever else is there."""
    there = mounts_on(str(path))
    while there and there[-1].type == type_:
        release_mount(path, uid, detach=type_ == "tmpfs")  # logs, which are kept elsewhere by now
        before, there = there, mounts_on(str(path))
        if len(there) == len(before):  # what lies on a directory above hides it
            break
    if any(mount.type == type_ for mount in there):
        what = there[-1].type if there[-1].type != type_ else "a mount"
        why = f"{what} of somebody else lies on it, or on a directory above"
        hint = f"findmnt -T {path}   # umount what lies there, then run the command again"
        report = Report(code="host.hugetlbfs.busy", message=f"{path} is covered", where=str(path), why=why, hint=hint)
        raise Busy(report)
    if there:
        yield warning(
            code="host.change.conflict",
            message=f"{there[-1].type} of somebody else is mounted on {path}",
            where=str(path),
            why=f"{type_} was mounted there",
            hint=f"umount {path}",
        )


def left_files(path: PurePosixPath, uid: int) -> Iterator[Finding]:
    """Say which files lie on a VM's hugetlbfs mount and keep its pages: they go away with it."""
    try:
        with entered(path, uid) as fd:
            names = sorted(os.listdir(fd))
            held = sum(os.stat(name, dir_fd=fd, follow_symlinks=False).st_blocks * 512 for name in names)
    except (OSError, PreflightFailed):
        return
    if names and any(mount.type == "hugetlbfs" for mount in mounts_on(str(path))):
        yield warning(
            code="host.hugetlbfs.files",
            message=f"{count(len(names), 'file')} on the VM's hugetlbfs mount go away with it",
            where=str(path),
            why=f"{', '.join(names[:3])}{', …' if names[3:] else ''}: {render_size(held)}; kvmlaunch makes none there",
        )


def log_options(change: LogMountChange) -> str:
    """Give the mount options of the place of a VM's logs."""
    return f"size={change.size},nr_inodes=64,uid={change.uid},gid={change.gid},mode=0700"


def apply_log_mount(change: LogMountChange) -> None:
    """Mount a tmpfs for the logs of a VM."""
    if mounts_on(change.path):
        return
    try:
        mount_at(PurePosixPath(change.path), "tmpfs", log_options(change), uid=change.uid)
    except OSError as error:
        raise HostFailed(
            Report(
                code="host.failed",
                message=f"tmpfs could not be mounted on {change.path}",
                where=change.path,
                why=error.strerror or "",
            )
        ) from error


def owner_rights(change: DirectoryChange) -> UserFacts:
    """Give whose rights make and remove a directory: root's in root's own trees, else the user's."""
    path = PurePosixPath(change.path)
    in_roots_tree = RUN in path.parents or path.parent == RUNTIMES
    return UserFacts(uid=0, gid=0) if in_roots_tree else UserFacts(uid=change.uid, gid=change.gid)


def apply_directory(change: DirectoryChange) -> None:
    """Make a directory for a user, with his own rights where it lies in his tree."""
    with rights_of(owner_rights(change)):
        make_owned(PurePosixPath(change.path), change.uid, change.gid, change.mode)


def undo_directory(change: DirectoryChange) -> Iterator[Finding]:
    """Remove a directory when it is empty but for sockets of a QEMU that is gone; says what else lies there."""
    path = PurePosixPath(change.path)
    with contextlib.suppress(FileNotFoundError, PreflightFailed), rights_of(owner_rights(change)):
        with entered(path, change.uid) as fd:
            for name in (*OWN_FILES, *sidecar_files(fd), PREPARED):
                with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                    os.unlink(name, dir_fd=fd)
            names = os.listdir(fd)
        if names:
            yield warning(
                code="host.change.conflict",
                message=f"{path} stays: it holds {count(len(names), 'file')} of somebody else",
                where=str(path),
                why=", ".join(sorted(names)[:3]),
                hint=f"rmdir {path}   # once it is empty",
            )
        with entered(path.parent, change.uid) as parent, contextlib.suppress(OSError):
            os.rmdir(path.name, dir_fd=parent)


def begun(change: Change) -> Entry:
    """Give the entry of a change that is to be made, with what a pool holds before it."""
    if not isinstance(change, PoolChange):
        return Entry(change=change)
    before, surplus = (read_number(pool_path(change, name)) for name in ("nr_hugepages", "surplus_hugepages"))
    return Entry(change=change, before=before, surplus=surplus)


def is_there(change: Change) -> bool:
    """Is what a change makes there already, so that it is not ours to take back."""
    match change:
        case DirectoryChange():
            return os.path.isdir(change.path)
        case TapChange():
            return False
        case LogMountChange():
            return bool(mounts_on(change.path))
        case PoolChange() | MountChange():
            return False
        case _:
            assert_never(change)


def apply_entry(entry: Entry) -> Entry:
    """Make one change; gives the entry with what was read afterwards."""
    change = entry.change
    match change:
        case PoolChange():
            return evolve(entry, after=apply_pool(change, entry.before or 0, entry.surplus or 0))
        case MountChange():
            apply_mount(change)
        case LogMountChange():
            apply_log_mount(change)
        case DirectoryChange():
            apply_directory(change)
        case TapChange():
            make_tap(change)
        case _:
            assert_never(change)
    return entry


def command_of(entry: Entry) -> str:
    """Give the command that makes a change as we make it by system calls; "" of a tap, which ip(8) makes."""
    change = entry.change
    match change:
        case PoolChange():
            return f"echo {entry.after} > {pool_path(change, 'nr_hugepages')}"
        case MountChange():
            return f"mount -t hugetlbfs -o {MOUNTED},{mount_options(change)} none {quote(change.path)}"
        case LogMountChange():
            return f"mount -t tmpfs -o {MOUNTED},{log_options(change)} none {quote(change.path)}"
        case DirectoryChange():
            return f"install -d -m {change.mode:04o} -o {change.uid} -g {change.gid} {quote(change.path)}"
        case TapChange():
            return ""
        case _:
            assert_never(change)


def undo_command_of(entry: Entry) -> str:
    """Give the command that takes a change back as we do it by system calls; "" of a tap, which ip(8) removes."""
    change = entry.change
    match change:
        case PoolChange():
            pool = pool_path(change, "nr_hugepages")
            return f"echo $(($(cat {pool}) - {change.pages})) > {pool}"
        case MountChange() | LogMountChange():
            return f"umount {quote(change.path)}"
        case DirectoryChange():
            return f"rmdir {quote(change.path)}"
        case TapChange():
            return ""
        case _:
            assert_never(change)


def undo_entry(entry: Entry) -> Iterator[Finding]:
    """Take one change back; may be repeated, takes back only what is still there and ours, and says what is not."""
    change = entry.change
    match change:
        case PoolChange():
            yield from undo_pool(entry, change)
        case MountChange():
            path = PurePosixPath(change.path)
            yield from left_files(path, change.uid)
            yield from undo_mount(path, "hugetlbfs")
            remove_empty(path, 0, up_to=RUN)
        case LogMountChange():
            yield from undo_mount(PurePosixPath(change.path), "tmpfs", change.uid)
        case DirectoryChange():
            yield from undo_directory(change)
        case TapChange():
            remove_tap(change)
        case _:
            assert_never(change)


def restore_prepared(staying: list[Entry], entry: Entry) -> Iterator[Finding]:
    """Make again what a VM's mount or tap had replaced and what stays: it gives way to the one prepared."""
    gone, prepared = entry.change, [each.change for each in staying]
    if isinstance(gone, TapChange):
        for tap in [each for each in prepared if isinstance(each, TapChange) and each.ifname == gone.ifname]:
            make_tap(tap)
    mounts = [each for each in prepared if isinstance(each, MountChange)] if isinstance(gone, MountChange) else []
    for change in mounts[-1:]:
        try:
            apply_mount(change)
        except PreflightFailed as error:
            yield warning(
                code="host.change.conflict",
                message=f"what was prepared on {change.path} is not there again",
                where=change.path,
                why=error.report.why,
                hint=error.report.hint,
            )


def apply_changes(head: Journal, changes: tuple[Change, ...], tell: Tell) -> Journal:
    """Make changes in order, journalled before the first; on any failure all of them are taken back.

    `head` is the VM's journal so far: what it holds already stays in it.
    """
    for change in changes:
        if isinstance(change, MountChange):
            refuse_replacing(change, head.vm)
    fresh = tuple(begun(change) for change in changes if not is_there(change))
    if not fresh:
        return head
    journal = evolve(head, state="intent", entries=(*head.entries, *fresh))
    journals.write_journal(journal)
    made: list[Entry] = []
    try:
        for entry in fresh:
            made.append(apply_entry(entry))
            if isinstance(entry.change, PoolChange):
                later = fresh[len(made) :]
                journals.write_journal(evolve(journal, entries=(*head.entries, *made, *later)))
            tell(change_word(entry.change), render_entry(made[-1]))
            if command := command_of(made[-1]):
                tell("exec", command)
        done = evolve(journal, state="done", entries=(*head.entries, *made))
        journals.write_journal(done)
    except BaseException:
        tried = (*made, *fresh[len(made) :][:1])  # those after it were never begun
        undo_entries(evolve(journal, entries=(*head.entries, *tried)), tried)
        raise
    return done


def undo_entries(journal: Journal, entries: tuple[Entry, ...]) -> tuple[Finding, ...]:
    """Take entries of a journal back, the last first, and write down what is left; gives what was found changed.

    Stops at the first that cannot be taken back, as those before it carry it: a pool is not lowered beneath a
    mount that is in use.  Raises Busy, HostFailed.
    """
    found: list[Finding] = []
    staying = [each for each in journal.entries if not any(each is entry for entry in entries)]
    for entry in reversed(entries):
        noted = entry
        if isinstance(entry.change, PoolChange) and entry.undo_from is None:
            noted = evolve(entry, undo_from=read_number(pool_path(entry.change, "nr_hugepages")))
            journal = journals.replaced(journal, entry, noted)
            journals.write_journal(journal)
        try:
            found += undo_entry(noted)
            found += restore_prepared(staying, noted)
        except KvmlaunchError as error:
            journals.write_journal(evolve(journal, state="done"))
            error.problems = (*error.problems, *(finding.report for finding in found))
            raise
        journal = journals.replaced(journal, noted, None)
    journals.write_journal(evolve(journal, state="done"))
    return tuple(found)
