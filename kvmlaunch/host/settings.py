"""Turns the host's knobs and takes that back: written down before and after, put back only where it is as we left it.

Every function here runs under the host-wide lock.
"""

import contextlib
import errno
from collections.abc import Callable, Container, Generator, Iterator, Sequence
from pathlib import Path

from kvmlaunch.errors import KvmlaunchError
from kvmlaunch.facts.memory import parse_meminfo
from kvmlaunch.host.knobs import read_value, write_value
from kvmlaunch.host.pool_settings import counted_anew, counted_entry, kept_before, settled_pool, undo_counted
from kvmlaunch.host.readers import names_in, read_text
from kvmlaunch.host.tune_journal import Ledger
from kvmlaunch.model.codes import REMEDIES
from kvmlaunch.model.finding import Finding, warning
from kvmlaunch.model.tuning import SMALL_PAGE, FileEntry, MountEntry, Setting, SettingEntry, TuneEntry, VmEntry
from kvmlaunch.model.value import evolve
from kvmlaunch.units import GIB, render_size

MIN_FREE = "/proc/sys/vm/min_free_kbytes"
# What the kernel resets when the first is written (measured with Linux 6.18); a scheduler's own knobs begin anew.
COMPANIONS = {
    "/sys/kernel/mm/ksm/advisor_mode": "/sys/kernel/mm/ksm/pages_to_scan",
    "/sys/kernel/mm/transparent_hugepage/enabled": MIN_FREE,
}
OF_QUEUE = {"scheduler": "nr_requests"}
BUSY = "host.setting.busy"
ADVISOR, ADVISED, OWN_KNOBS = "advisor_mode", "pages_to_scan", "iosched"
RUN, ACROSS = "/sys/kernel/mm/ksm/run", "merge_across_nodes"
SHARED, SHARING = "/sys/kernel/mm/ksm/pages_shared", "/sys/kernel/mm/ksm/pages_sharing"
TAKEN_APART = "2"  # of KSM's run


def settle(ledger: Ledger, root: Path = Path("/")) -> None:
    """Put right what a crash left: what was about to be changed was changed or was not, as the host itself tells."""
    ledger.replace(tuple(entry for entry in ledger.entries if not is_forgotten(entry, ledger.boot_id)))
    for entry in ledger.entries:
        if isinstance(entry, SettingEntry) and not entry.lasting and entry.boot_id != ledger.boot_id:
            ledger.drop(entry.path)
        elif isinstance(entry, SettingEntry) and entry.counted and entry.boot_id != ledger.boot_id:
            ledger.put(counted_anew(entry, int(read_value(entry.path, root) or 0), ledger.boot_id, root))
        elif isinstance(entry, SettingEntry) and not entry.done and entry.boot_id == ledger.boot_id:
            settle_one(ledger, entry, read_value(entry.path, root))
        elif isinstance(entry, SettingEntry) and not entry.done and not is_kept_at_boot(ledger, entry, root):
            ledger.drop(entry.path)  # the write died with the boot, and no file sets it
        elif isinstance(entry, SettingEntry) and entry.boot_id != ledger.boot_id:
            ledger.put(booted(entry, read_value(entry.path, root), ledger.boot_id))


def is_kept_at_boot(ledger: Ledger, entry: SettingEntry, root: Path) -> bool:
    """Does a knob hold what a file of ours may have set at boot, or may one of them still be read."""
    files = any(isinstance(each, FileEntry) for each in ledger.entries)
    return files or read_value(entry.path, root) in values_of_files(entry)


def values_of_files(entry: SettingEntry) -> set[str]:
    """Give the values that files of ours may set at boot."""
    return {value for value in (entry.kept, *entry.kept_before) if value is not None}


def booted(entry: SettingEntry, live: str | None, boot_id: str) -> SettingEntry:
    """Give an entry of an earlier boot as it is in this one: set by a file of ours, or by whatever else sets it."""
    if live is None or live in values_of_files(entry) or entry.companion or not values_of_files(entry):
        before = entry.before if entry.default is None else entry.default
        return evolve(entry, before=before, after=entry.kept or entry.after, done=True, boot_id=boot_id)
    return evolve(entry, before=live, after=live, default=live, done=True, boot_id=boot_id)


def is_forgotten(entry: TuneEntry, boot_id: str) -> bool:
    """Was a VM counted until the reboot only, which has come."""
    return isinstance(entry, VmEntry) and not entry.lasting and entry.boot_id != boot_id


def settle_one(ledger: Ledger, entry: SettingEntry, live: str | None) -> None:
    """Finish one entry by what the knob holds now."""
    if live is None or (live == entry.before and entry.after is None):
        ledger.drop(entry.path)
    elif entry.counted:
        ledger.put(settled_pool(entry, int(live)))
    elif live == entry.after:
        ledger.put(evolve(entry, wanted=live, done=True))
    else:
        ledger.put(evolve(entry, after=entry.wanted, done=True))


def skipped(setting_key: str, path: str, why: str, hint: str = "") -> Finding:
    """Give the finding of a setting that could not be made; the others are made all the same."""
    return warning(
        code="host.setting.refused", message=f"{setting_key} could not be set: skipped", where=path, why=why, hint=hint
    )


def is_ours(entry: SettingEntry, live: str) -> bool:
    """Is a knob as we left it, or as a file of ours sets it."""
    return live in {entry.after, entry.kept, *entry.kept_before}


def apply_setting(ledger: Ledger, setting: Setting, root: Path = Path("/"), *, lasting: bool) -> Finding | None:
    """Turn one knob; gives why it could not be.  What was there before the first time is what is put back later."""
    path, wanted = setting.knob.path, setting.wanted.value
    live = read_value(path, root)
    if live is None:
        return skipped(setting.key, path, "it is not there any more")
    earlier = ledger.find(path)
    known = earlier if isinstance(earlier, SettingEntry) else None
    # What somebody else set since is what was there before; what the kernel reset is not.
    before = known.before if known and (is_ours(known, live) or known.companion) else live
    default = known.default if known else None
    entry = SettingEntry(
        key=setting.key,
        path=path,
        before=before,
        wanted=wanted,
        after=known.after if known and is_ours(known, live) else None,
        lasting=lasting or bool(known and known.lasting),
        kept=wanted if lasting else known.kept if known else None,
        kept_before=kept_before(known, wanted) if lasting else known.kept_before if known else (),
        default=before if lasting and default is None else default,
        unmerged=known.unmerged if known else path == RUN and read_value(SHARED, root) == "0",
        boot_id=ledger.boot_id,
        time=ledger.time,
    )
    beside = keep_companions(ledger, setting, root, lasting=entry.lasting)
    ledger.put(entry)
    least = read_value(MIN_FREE, root) if principal_of(MIN_FREE) == path else None
    finding = turn(setting, live, root)
    if finding is None:
        ledger.put(evolve(entry, after=wanted, done=True))
        if entry.lasting:
            make_companions_lasting(ledger, path)
        if least is not None:
            note_reset(ledger, least, root)
        return None
    if lasting and finding.report.code == BUSY:  # a file of ours sets it at boot
        ledger.put(evolve(entry, after=live, done=True))
    else:
        ledger.restore(path, earlier)
    for companion in beside:
        ledger.drop(companion)
    return finding


def note_reset(ledger: Ledger, found: str, root: Path) -> None:
    """Write down what the kernel made of a sysctl beside a knob, so that what somebody sets there later is his.

    What was `found` there before the knob was turned is his already where it was not as we left it.
    """
    entry = ledger.find(MIN_FREE)
    live = read_value(MIN_FREE, root)
    if isinstance(entry, SettingEntry) and entry.companion and live is not None:
        before = entry.before if is_ours(entry, found) or found == entry.before else found
        ledger.put(evolve(entry, before=before, wanted=before, after=live))


def turn(setting: Setting, live: str, root: Path) -> Finding | None:
    """Write a knob; gives why the kernel did not take it, and then leaves what was there."""
    path, wanted = setting.knob.path, setting.wanted.value
    try:
        after = write_value(path, wanted, root)
    except OSError as error:
        if error.errno == errno.EBUSY and path.endswith(ACROSS):
            return merged_already(setting, read_value(RUN, root) or "0")
        return skipped(setting.key, path, f"the kernel refused {wanted}: {error.strerror}")
    if after == wanted:
        return None
    with contextlib.suppress(OSError):
        write_value(path, live, root)
    return skipped(setting.key, path, f"{wanted} was written, {after} is what the kernel made of it")


def merged_already(setting: Setting, run: str) -> Finding:
    """Give the finding of a setting that has to wait until nothing is merged: at boot nothing is; KSM's `run` stays."""
    steps = ((TAKEN_APART, RUN), (setting.wanted.value, setting.knob.path), (run, RUN))
    return warning(
        code=BUSY,
        message=f"{setting.key} cannot be set while pages are merged",
        where=setting.knob.path,
        why="ksm.rst: merge_across_nodes is changed only when there are no merged pages",
        hint=" && ".join(f"echo {value} > {path}" for value, path in steps)
        + "   # takes them apart first; or the next boot, with --persist",
    )


def companions_of(path: str, root: Path) -> list[str]:
    """Give the knobs that the kernel sets anew when one is written."""
    directory, _, name = path.rpartition("/")
    found = [COMPANIONS[path]] if path in COMPANIONS else []
    if name in OF_QUEUE:
        found.append(f"{directory}/{OF_QUEUE[name]}")
        own = f"{directory}/{OWN_KNOBS}"
        found += [f"{own}/{each}" for each in sorted(names_in(str(root / own.lstrip("/"))))]
    return found


def principal_of(path: str) -> str:
    """Give the knob beside which the kernel sets one anew, "" for none."""
    for principal, companion in COMPANIONS.items():
        if path == companion:
            return principal
    queue, slash, rest = path.partition("/queue/")
    beside = slash and (rest in OF_QUEUE.values() or rest.startswith(f"{OWN_KNOBS}/"))
    return f"{queue}/queue/scheduler" if beside else ""


def waits(ledger: Ledger, entry: SettingEntry) -> bool:
    """Is it a companion whose principal is not put back: what is there belongs to what the principal holds now."""
    principal = ledger.find(principal_of(entry.path)) if entry.companion else None
    return isinstance(principal, SettingEntry) and principal.after != principal.before


def keep_companions(ledger: Ledger, setting: Setting, root: Path, *, lasting: bool) -> list[str]:
    """Write down what the kernel resets beside a knob: it is put back after that knob is.  Gives what is new of it."""
    added: list[str] = []
    principal = ledger.find(setting.knob.path)
    if isinstance(principal, SettingEntry) and principal.after != principal.before:
        return added  # what belongs to a value of ours is nobody's
    for path in companions_of(setting.knob.path, root):
        live, known = read_value(path, root), ledger.find(path)
        known_back = isinstance(known, SettingEntry) and known.companion and is_back(ledger, known)
        there = isinstance(principal, SettingEntry) and setting.knob.value == principal.before
        if live is not None and isinstance(known, SettingEntry) and known_back and there:
            ledger.put(evolve(known, before=live, wanted=live, after=live, lasting=known.lasting or lasting))
        elif live is not None and known is None:
            added.append(path)
            ledger.put(
                SettingEntry(
                    key=f"{setting.key.rpartition('.')[0]}.{path.rpartition('/')[2]}",
                    path=path,
                    before=live,
                    wanted=live,
                    after=live,
                    done=True,
                    lasting=lasting,
                    companion=True,
                    boot_id=ledger.boot_id,
                    time=ledger.time,
                )
            )
    return added


def make_lasting(ledger: Ledger, setting: Setting, borrowed: int) -> None:
    """Write down that a file of ours sets a knob from now on, which holds that value already.

    Of a pool that is filled by the pages of running VMs the file will make ours.
    """
    entry = ledger.find(setting.knob.path)
    if isinstance(entry, SettingEntry):
        default = entry.before if entry.default is None else entry.default
        wanted = setting.wanted.value
        before = kept_before(entry, wanted)
        ledger.put(evolve(entry, lasting=True, kept=wanted, kept_before=before, default=default))
        make_companions_lasting(ledger, entry.path)
    elif setting.counted:
        live = int(setting.knob.value)
        ledger.put(evolve(counted_entry(ledger, setting, live, borrowed, lasting=True), done=True))


def make_companions_lasting(ledger: Ledger, path: str) -> None:
    """Write down that what the kernel resets beside a knob is reset at every boot from now on."""
    for each in ledger.entries:
        if isinstance(each, SettingEntry) and each.companion and principal_of(each.path) == path and not each.lasting:
            ledger.put(evolve(each, lasting=True))


def files_are_written(ledger: Ledger, wished: Container[str], root: Path = Path("/")) -> None:
    """Forget what files of ours set earlier, as every one of them is written anew: values, and knobs that are back."""
    settings = [each for each in ledger.entries if isinstance(each, SettingEntry)]
    back = {each.path for each in settings if is_back(ledger, each) and not came_again(each, root)}
    for entry in ledger.entries:
        if entry.path in back and entry.path not in wished and principal_of(entry.path) not in wished:
            ledger.drop(entry.path)
        elif isinstance(entry, SettingEntry) and entry.kept_before:
            ledger.put(evolve(entry, kept_before=()))


def rank(entry: TuneEntry) -> int:
    """Give when an entry is taken back: what stands in a file first, what depends on another knob last."""
    return 0 if isinstance(entry, FileEntry) else 2 if isinstance(entry, SettingEntry) and entry.companion else 1


def is_set_at_boot(ledger: Ledger, entry: SettingEntry) -> bool:
    """Does a file of ours set a knob, or the one beside which the kernel resets it."""
    principal = ledger.find(principal_of(entry.path)) if entry.companion else entry
    return isinstance(principal, SettingEntry) and principal.kept is not None


def is_back(ledger: Ledger, entry: SettingEntry) -> bool:
    """Is a knob as it was before already, and written down only as a file of ours sets it at the next boot."""
    if entry.companion:
        principal = ledger.find(principal_of(entry.path))
        return isinstance(principal, SettingEntry) and is_back(ledger, principal)
    return entry.kept is not None and entry.after == entry.before


def came_again(entry: SettingEntry, root: Path = Path("/")) -> bool:
    """Has a file of ours been read since a knob was put back, so that it holds what that sets."""
    live = read_value(entry.path, root)
    return live is not None and entry.after == entry.before != live and live in values_of_files(entry)


def undo_setting(
    ledger: Ledger, entry: SettingEntry, root: Path = Path("/"), *, force: bool, stays: bool = False
) -> Iterator[Finding]:
    """Put one knob back where it is as we left it; says what is not, which `force` overwrites.

    `stays` is for one that a file of ours sets at the next boot again: it is not forgotten.
    """
    live = read_value(entry.path, root)
    if waits(ledger, entry):
        return
    if live is None or is_advised(entry, root):
        yield from forget_setting(ledger, entry, live)
        return
    if came_again(entry, root):
        entry = evolve(entry, after=live)
    if entry.counted:
        yield from undo_counted(ledger, evolve(entry, undo_from=entry.undo_from or live), root, stays=stays)
        return
    his = not force and not entry.companion and is_back(ledger, entry)  # it was put back, and set by him since
    if live != entry.before and not his:
        refused = yield from set_back(ledger, entry, live, root, force=force)
        if refused:
            return
    if stays:
        made = entry.after if entry.companion and entry.after != entry.before else entry.kept  # by the kernel, at boot
        ledger.put(evolve(entry, after=entry.before, kept=made, done=True))
    else:
        ledger.drop(entry.path)


def set_back(
    ledger: Ledger, entry: SettingEntry, live: str, root: Path, *, force: bool
) -> Generator[Finding, None, bool]:
    """Write what a knob held before; tells whether that was refused, by the kernel or as somebody else has set it."""
    reset = entry.companion and entry.path != MIN_FREE  # by the kernel, with what it belongs to
    if not is_ours(entry, live) and not force and not reset:
        yield conflict(entry, live)
        return True
    try:
        yield from take_apart(ledger, entry, root)
        back = write_back(ledger, entry, root)
    except OSError as error:
        yield skipped(entry.key, entry.path, f"the kernel refused {entry.before}: {error.strerror}")
        return True
    if back != entry.before:
        yield skipped(entry.key, entry.path, f"{entry.before} was written, {back} is what the kernel made of it")
    return back != entry.before


def forget_setting(ledger: Ledger, entry: SettingEntry, live: str | None) -> Iterator[Finding]:
    """Forget a knob that is gone, or that KSM's advisor has again; while that was not put back itself, it waits."""
    advisor = ledger.find(f"{entry.path.rpartition('/')[0]}/{ADVISOR}")
    if live is not None and advisor is not None:
        yield skipped(entry.key, entry.path, "the kernel's advisor chooses it, and was not put back")
        return
    ledger.drop(entry.path)
    if live is None and not entry.companion:
        yield skipped(entry.key, entry.path, "it is not there any more")


def is_advised(entry: SettingEntry, root: Path) -> bool:
    """Is it KSM's number of pages while the kernel's advisor chooses that, which then nobody can write."""
    directory, _, name = entry.path.rpartition("/")
    return name == ADVISED and read_value(f"{directory}/{ADVISOR}", root) not in {None, "none"}


def take_apart(ledger: Ledger, entry: SettingEntry, root: Path) -> Iterator[Finding]:
    """Take merged pages apart before KSM is stopped again, where none were merged before and there is room for it.

    It is a passing step of ours, written down before it is made.
    """
    sharing = read_value(SHARING, root) or "0"
    if entry.path != RUN or entry.before != "0" or not entry.unmerged or sharing == "0":
        return
    if missing := lacking_room(root):
        yield skipped(entry.key, entry.path, missing, hint=f"echo 2 > {RUN}   # once there is room")
        return
    ledger.put(evolve(entry, wanted=TAKEN_APART, done=False))
    write_value(RUN, TAKEN_APART, root)


def lacking_room(root: Path) -> str:
    """Give why pages that are merged are not taken apart: the memory that this takes; "" where it is there."""
    size = int(read_value(SHARING, root) or 0) * SMALL_PAGE
    room = parse_meminfo(read_text(str(root / "proc/meminfo")) or "")
    if size <= max(0, room.get("MemAvailable", 0) - max(GIB, room.get("MemTotal", 0) // 10)):
        return ""
    return f"taking what is merged apart needs {render_size(size)}: it stays merged"


def write_back(ledger: Ledger, entry: SettingEntry, root: Path) -> str:
    """Write what a knob held before and give what is read back; raises OSError.

    merge_across_nodes is refused while pages are merged, so they are taken apart first: ksm.rst.
    """
    try:
        return write_value(entry.path, entry.before, root)
    except OSError as error:
        run = read_value(RUN, root)
        if error.errno != errno.EBUSY or not entry.path.endswith(ACROSS) or run is None:
            raise
        if missing := lacking_room(root):
            raise OSError(errno.ENOMEM, missing) from error
        earlier = ledger.find(RUN)
        passing = SettingEntry(
            key="ksm.run", path=RUN, before=run, wanted=TAKEN_APART, boot_id=ledger.boot_id, time=ledger.time
        )
        # A crash at this leaves KSM as it should not be.
        ledger.put(evolve(earlier, done=False, wanted=TAKEN_APART) if isinstance(earlier, SettingEntry) else passing)
        write_value(RUN, TAKEN_APART, root)
        try:
            return write_value(entry.path, entry.before, root)
        finally:
            write_value(RUN, run, root)
            ledger.restore(RUN, earlier)


def conflict(entry: SettingEntry, live: str) -> Finding:
    """Give the finding of a knob that somebody else has turned since."""
    return warning(
        code="host.change.conflict",
        message=f"{entry.key} was changed by somebody else and is left alone",
        where=entry.path,
        why=f"it was {entry.before}, was set to {entry.after}, and is {live}",
        hint="kvmlaunch tune off --force   # sets it back all the same",
    )


def undo_all(
    ledger: Ledger,
    undo_other: Callable[[FileEntry | MountEntry, bool], Iterator[Finding]],
    entries: Sequence[TuneEntry],
    *,
    force: bool,
    rewritten: bool = False,
) -> Iterator[Finding]:
    """Take entries of the journal back: files, then the last first, at last what the kernel resets beside others.

    What cannot be taken back stays written down; so does what is, as long as a file of ours may set it at the next
    boot: one that could not be taken back, or with `rewritten` one that is written only later.
    """
    vms = {entry.path for entry in entries if isinstance(entry, VmEntry)}
    ledger.replace(tuple(entry for entry in ledger.entries if entry.path not in vms))
    latest_first = [entry for entry in reversed(entries) if not isinstance(entry, VmEntry)]
    for entry in sorted(latest_first, key=rank):
        at_boot = rewritten or any(isinstance(each, FileEntry) for each in ledger.entries)
        try:
            if isinstance(entry, SettingEntry):
                yield from undo_setting(ledger, entry, force=force, stays=at_boot and is_set_at_boot(ledger, entry))
            else:
                yield from undo_other(entry, at_boot)
        except KvmlaunchError as error:
            report = error.report
            hint = report.hint or REMEDIES.get(report.code, "")
            yield warning(code=report.code, message=report.message, where=report.where, why=report.why, hint=hint)
