"""Writes the files that keep settings over a reboot, and takes them back: other people's bytes stay as they are."""

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from kvmlaunch.errors import Busy, KvmlaunchError, PreflightFailed, Report
from kvmlaunch.host.apply import mounts_on, release_mount
from kvmlaunch.host.files import remove_if_there, temporary_name, write_atomically
from kvmlaunch.host.fstab import read_region, remove_region, set_region
from kvmlaunch.host.mount import mount_at
from kvmlaunch.host.places import STATE
from kvmlaunch.host.tree import entered, failed, remove_empty
from kvmlaunch.host.tune_journal import Ledger
from kvmlaunch.model.codes import REMEDIES
from kvmlaunch.model.finding import Finding, warning
from kvmlaunch.model.host import Mount
from kvmlaunch.model.tuning import FileEntry, KeptFile, MountEntry
from kvmlaunch.model.value import evolve
from kvmlaunch.tune.fstab import END, FstabLine, duplicate_targets, render_line
from kvmlaunch.tune.keep import FSTAB, HEAD

DIRECTORY_MODE = 0o755
UNITS = ("/run/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
FSTAB_BEFORE = "fstab.before"  # beside the journal
SHARED_OPTIONS = "pagesize=2M,mode=0755"


def read_kept(path: str, kind: str) -> str | None:
    """Give what stands in a file of ours, in our part of fstab, or what a link says; None where there is nothing."""
    try:
        if kind == "link":
            return os.readlink(path)
        if kind == "fstab":
            return read_region(Path(path))
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(fd, encoding="utf-8", errors="surrogateescape", newline="") as file:
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise led_away(path) from error
        raise failed(path, error) from error


def led_away(path: str) -> Busy:
    """Give the refusal of a link where a file of ours would stand: whoever made it wanted none there."""
    why = f"it leads to {os.readlink(path)}"
    message = f"{path} is a link of somebody else's"
    return Busy(Report(code="host.change.conflict", message=message, where=path, why=why, hint=f"rm {path}"))


def is_kept(kept: KeptFile) -> bool:
    """Stands in a file what should stand there, with its mode."""
    try:
        as_text = read_kept(kept.path, kept.kind) == kept.text
    except KvmlaunchError:
        return False
    return as_text and (kept.kind != "file" or status_of(kept.path)[0] == kept.mode)


def apply_file(ledger: Ledger, kept: KeptFile) -> Finding | None:
    """Write one file; gives why it could not be."""
    earlier, made = ledger.find(kept.path), ""
    try:
        before = read_kept(kept.path, kept.kind)
        if isinstance(earlier, FileEntry) and before not in known_texts(earlier):
            return foreign(earlier, "it is not as it was written")
        last = before if isinstance(earlier, FileEntry) and before in {earlier.wanted, earlier.last} else None
        if isinstance(earlier, FileEntry) and (last is not None or before == earlier.before):
            before, mode, made = earlier.before, earlier.before_mode, earlier.made
            uid, gid = earlier.before_uid, earlier.before_gid
        else:
            mode, (uid, gid) = status_of(kept.path)
            made = missing_directory(PurePosixPath(kept.path).parent)
            if before is not None and HEAD in before:  # ours, of a journal that is lost
                before = None
        entry = FileEntry(
            path=kept.path,
            kind=kept.kind,
            before=before,
            before_mode=mode,
            before_uid=uid,
            before_gid=gid,
            wanted=kept.text,
            last=last,
            mode=kept.mode,
            made=made,
            time=ledger.time,
        )
        ledger.put(entry)
        write_kept(kept.path, kept.kind, kept.text, kept.mode)
        ledger.put(evolve(entry, done=True))
    except KvmlaunchError as error:
        if made:
            remove_empty(PurePosixPath(kept.path).parent, 0, up_to=PurePosixPath(made).parent)
        ledger.restore(kept.path, earlier)
        report = error.report
        hint = report.hint or REMEDIES.get(report.code, "")
        return warning(
            code=report.code, message=f"not written: {report.message}", where=kept.path, why=report.why, hint=hint
        )
    return None


def known_texts(entry: FileEntry) -> set[str | None]:
    """Give what may stand in a file without somebody else having written it."""
    return {entry.wanted, entry.last, entry.before}


def foreign(entry: FileEntry, why: str) -> Finding:
    """Give the finding of a file, or of our part of fstab, that somebody else has written since."""
    path = entry.path
    hint = (
        f"mv {path} {path}.theirs && kvmlaunch tune apply --persist   # writes ours anew\n"
        "or: kvmlaunch tune off --force   # takes all tuning back, this file included"
    )
    if entry.kind == "fstab":
        hint = (
            f"move what is not ours behind the line '{END}' of {path}, then the same command again\n"
            "or: kvmlaunch tune off --force   # takes all tuning back, and leaves in fstab what is not ours"
        )
    message = f"{path} was changed by somebody else and is left alone"
    return warning(code="host.change.conflict", message=message, where=path, why=why, hint=hint)


def status_of(path: str) -> tuple[int, tuple[int, int]]:
    """Give a file's mode, and whose it is by uid and gid; those of a new one where there is none."""
    try:
        status = os.stat(path, follow_symlinks=False)
    except OSError:
        return 0o644, (0, 0)
    return status.st_mode & 0o7777, (status.st_uid, status.st_gid)


def missing_directory(path: PurePosixPath) -> str:
    """Give the topmost directory of a path that is not there, "" when all are."""
    missing = [place for place in (path, *path.parents) if not os.path.isdir(place)]
    return str(missing[-1]) if missing else ""


def write_kept(path: str, kind: str, text: str, mode: int, owner: tuple[int, int] = (0, 0)) -> None:
    """Write a file, a link or our lines; raises KvmlaunchError, nothing half-written.  `owner`: uid and gid."""
    place = PurePosixPath(path)
    if kind == "fstab":
        keep_fstab(Path(path))
        set_region(Path(path), (text,))
        return
    with entered(place.parent, 0, make=True, mode=DIRECTORY_MODE) as fd:
        if kind == "link":
            temporary = temporary_name(place.name)
            remove_if_there(fd, temporary)
            try:
                os.symlink(text, temporary, dir_fd=fd)
                os.chown(temporary, *owner, dir_fd=fd, follow_symlinks=False)
                os.rename(temporary, place.name, src_dir_fd=fd, dst_dir_fd=fd)
            except OSError as error:
                raise failed(path, error) from error
        else:
            write_atomically(fd, place.name, text, mode=mode, owner=owner)


def keep_fstab(path: Path) -> None:
    """Keep fstab as it is before we change it, outside of /etc, for whoever has to look; raises KvmlaunchError."""
    try:
        text = path.read_bytes().decode(errors="surrogateescape")
    except FileNotFoundError:
        return
    except OSError as error:
        raise failed(str(path), error) from error
    with entered(STATE, 0, make=True) as fd:
        write_atomically(fd, FSTAB_BEFORE, text)


def undo_other(
    ledger: Ledger, entry: FileEntry | MountEntry, *, force: bool, at_boot: bool = False
) -> Iterator[Finding]:
    """Take a file or the shared mount back; one that a file makes `at_boot` keeps its place, and is not forgotten."""
    if isinstance(entry, MountEntry):
        yield from undo_shared_mount(ledger, entry, stays=at_boot and entry.lasting)
    else:
        yield from undo_file(ledger, entry, force=force)


def undo_file(ledger: Ledger, entry: FileEntry, *, force: bool) -> Iterator[Finding]:
    """Put back what stood in a file, or remove it; one that somebody else has written since is left unless forced."""
    place = PurePosixPath(entry.path)
    if force and entry.kind == "file" and os.path.islink(entry.path):  # whoever masks it has removed ours
        ledger.drop(entry.path)
        return
    live = read_kept(entry.path, entry.kind)
    if live not in known_texts(entry) and not force:
        yield foreign(entry, "it is not as it was written" if live is not None else "it was removed")
        return
    if entry.kind == "fstab":
        try:
            keep_fstab(Path(entry.path))
        except PreflightFailed as error:
            if error.report.code != "host.space":  # what is removed is ours alone, with a copy beside or without
                raise
        remove_region(Path(entry.path), ours="\n".join(filter(None, known_texts(entry))).split("\n"))
        ledger.drop(entry.path)
        return
    owner = (entry.before_uid, entry.before_gid)
    if entry.before is None and live is not None:
        with entered(place.parent, 0) as fd:
            remove_if_there(fd, place.name)
    elif entry.before is not None and (live != entry.before or status_of(entry.path) == (entry.mode, (0, 0))):
        write_kept(entry.path, entry.kind, entry.before, entry.before_mode, owner)
    remove_temporary(place)
    if entry.made:
        remove_empty(place.parent, 0, up_to=PurePosixPath(entry.made).parent)
    ledger.drop(entry.path)


def remove_temporary(place: PurePosixPath) -> None:
    """Remove what a crash left of a file that was not yet whole."""
    with contextlib.suppress(FileNotFoundError), entered(place.parent, 0) as fd:
        remove_if_there(fd, temporary_name(place.name))


def meant_for_others(ledger: Ledger, path: str, files: Sequence[KeptFile]) -> Finding | None:
    """Say that somebody else has a mount unit, or a line of fstab, for the place of the shared mount."""
    why = ""
    for kept in (each for each in files if each.path.endswith(".mount") and each.kind == "file"):
        try:
            text = read_kept(kept.path, kept.kind)
        except KvmlaunchError as error:
            why = f"{error.report.message}: {error.report.why}"
            continue
        if text is not None and not text.startswith(HEAD) and ledger.find(kept.path) is None:
            why = f"{kept.path} is a unit of somebody else's for it"
        packaged = [f"{place}/{PurePosixPath(kept.path).name}" for place in UNITS]
        why = next((f"{unit} is a unit of a package for it" for unit in packaged if os.path.lexists(unit)), why)
    line = render_line(FstabLine(source="hugetlbfs", target=PurePosixPath(path), type="hugetlbfs"))
    try:
        text = Path(FSTAB).read_text(encoding="utf-8", errors="surrogateescape")
        why = next((f"{FSTAB} has a line for it: {other}" for _, other in duplicate_targets(text, (line,))), why)
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        why = f"{FSTAB} cannot be read for lines of others: {error}"
    return taken(path, f"{path} is a mount point of somebody else's: skipped", why) if why else None


def taken(path: str, message: str, why: str) -> Finding:
    """Give the finding of a place for the shared mount that is somebody else's."""
    hint = f"findmnt {path}   # or another place for hugetlbfs in /etc/kvmlaunch/host.toml"
    return warning(code="host.hugetlbfs.place", message=message, where=path, why=why, hint=hint)


def apply_shared_mount(ledger: Ledger, path: str, *, lasting: bool) -> Finding | None:
    """Mount the shared hugetlbfs; there already is fine."""
    place = PurePosixPath(path)
    earlier = ledger.find(path)
    ours = earlier if isinstance(earlier, MountEntry) else None
    lasting = lasting or bool(ours and ours.lasting)
    there = mounts_on(path)
    if os.path.lexists(path) and not os.path.isdir(path):
        return taken(path, f"{path} is no directory: skipped", "a file system is mounted on one")
    if there and serves(there[-1]):
        if ours and lasting != ours.lasting:
            ledger.put(evolve(ours, lasting=lasting))
        return None
    if there:
        message = f"{there[-1].type} of somebody else is mounted on {path}: skipped"
        return taken(path, message, "a mount of ours would hide it")
    made = ours.made if ours and ours.made else missing_directory(place)
    ledger.put(MountEntry(path=path, made=made, lasting=lasting, boot_id=ledger.boot_id, time=ledger.time))
    try:
        with entered(place, 0, make=True, mode=DIRECTORY_MODE):
            pass
        mount_at(place, "hugetlbfs", SHARED_OPTIONS)
    except (OSError, KvmlaunchError) as error:
        remove_made(ledger, place)
        return warning(
            code="host.hugetlbfs.missing",
            message=f"hugetlbfs could not be mounted on {path}: skipped",
            where=path,
            why="; ".join(filter(None, (str(error), error.report.why if isinstance(error, KvmlaunchError) else ""))),
            hint=error.report.hint if isinstance(error, KvmlaunchError) else "",
        )
    return None


def remove_made(ledger: Ledger, place: PurePosixPath) -> None:
    """Remove the directory that was made for the shared mount."""
    entry = ledger.find(str(place))
    if isinstance(entry, MountEntry) and entry.made:
        remove_empty(place, 0, up_to=PurePosixPath(entry.made).parent)
    ledger.drop(str(place))


def forget_mount(ledger: Ledger, wished: str | None) -> None:
    """Forget a shared mount that is gone and not wished: no file makes it any more."""
    for entry in ledger.entries:
        if isinstance(entry, MountEntry) and entry.path != wished and not mounts_on(entry.path):
            remove_made(ledger, PurePosixPath(entry.path))


def note_file(ledger: Ledger, kept: KeptFile) -> None:
    """Write down a file that stands as we would write it and that no journal knows, so that it is removed one day."""
    if ledger.find(kept.path) is None:
        entry = FileEntry(
            path=kept.path,
            kind=kept.kind,
            before=None,
            before_mode=kept.mode,
            wanted=kept.text,
            mode=kept.mode,
            done=True,
            time=ledger.time,
        )
        ledger.put(entry)


def is_served(path: str) -> bool:
    """Is a mount there that is as good as the shared one."""
    there = mounts_on(path)
    return bool(there) and serves(there[-1])


def serves(mount: Mount) -> bool:
    """Is a mount as good as the shared one, whoever made it."""
    return mount.type == "hugetlbfs" and mount.option("pagesize") == "2M"


def is_ours(mount: Mount) -> bool:
    """Is a mount as we make the shared one: the kernel leaves out a mode of 0755."""
    return serves(mount) and not mount.option("mode")


def undo_shared_mount(ledger: Ledger, entry: MountEntry, *, stays: bool) -> Iterator[Finding]:
    """Unmount the shared hugetlbfs, unless a process uses it, or something of somebody else lies there."""
    place = PurePosixPath(entry.path)
    if entry.boot_id != ledger.boot_id and not entry.lasting:  # what is mounted there now is none of ours
        remove_made(ledger, place)
        return
    there = mounts_on(entry.path)
    if there and not is_ours(there[-1]):
        yield warning(
            code="host.change.conflict",
            message=f"{there[-1].type} of somebody else is mounted on {entry.path}, and is left alone",
            where=entry.path,
            why="ours was mounted there, and may lie beneath it",
            hint=f"findmnt {entry.path}   # umount what lies there, then run the command again",
        )
        return
    try:
        if there:
            release_mount(place)
    except KvmlaunchError as error:
        report = error.report
        yield warning(code=report.code, message=report.message, where=entry.path, why=report.why, hint=report.hint)
        return
    if not stays:
        remove_made(ledger, place)
