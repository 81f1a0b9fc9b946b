"""Knobs turned over a made-up /sys: written down first, put back only as we left them, whatever a crash leaves."""

import errno
import json
from pathlib import Path

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from kvmlaunch.errors import PreflightFailed, Report
from kvmlaunch.host.pool_settings import lower_counted, raise_pool
from kvmlaunch.host.settings import apply_setting, files_are_written, settle, undo_setting
from kvmlaunch.host.tune_journal import Ledger, parse_entries, render_entries
from kvmlaunch.model.change import PoolChange
from kvmlaunch.model.finding import Finding
from kvmlaunch.model.tuning import FileEntry, Knob, MountEntry, Setting, SettingEntry, TuneEntry, VmEntry
from kvmlaunch.tune.wish import chosen

pytestmark = pytest.mark.pure

PATH = "/sys/kernel/mm/ksm/sleep_millisecs"
ENTRIES: tuple[TuneEntry, ...] = (
    SettingEntry(key="ksm.run", path="/sys/kernel/mm/ksm/run", before="0", wanted="1", after="1", done=True),
    SettingEntry(key="ksm.run", path="/sys/kernel/mm/ksm/run", before="0", wanted="1"),
    FileEntry(path="/etc/x", kind="file", before=None, before_mode=0o644, wanted="text\udc80", mode=0o644, made="/etc"),
    FileEntry(path="/etc/y", kind="link", before="old", before_mode=0o777, wanted="new", mode=0o644, done=True),
    MountEntry(path="/mnt/huge", made="/mnt", boot_id="b", time="2026-01-01T00:00:00+00:00"),
    SettingEntry(key="vm.swappiness", path="/proc/sys/vm/swappiness", before="60", wanted="7", kept_before=("9", "8")),
    VmEntry(path="/srv/vm/web.toml", lasting=True, boot_id="b", time="2026-01-01T00:00:00+00:00"),
)


class Host:
    """A knob in a directory, and a journal in memory: every version of it in `written`."""

    def __init__(self, root: Path, value: str) -> None:
        """Make the knob."""
        self.root = root
        self.place = root / PATH.lstrip("/")
        self.place.parent.mkdir(parents=True)
        self.value = value
        self.written: list[tuple[TuneEntry, ...]] = []
        self.ledger = Ledger(entries=(), boot_id="b", time="t", write=self.written.append)

    @property
    def value(self) -> str:
        """What the knob holds."""
        return self.place.read_text().strip()

    @value.setter
    def value(self, value: str) -> None:
        """Turn it, as somebody else would."""
        self.place.write_text(f"{value}\n")

    def apply(self, wanted: str, *, lasting: bool = False) -> Finding | None:
        """Turn it as we do."""
        setting = Setting(
            key="ksm.sleep_millisecs",
            knob=Knob(path=PATH, value=self.value),
            wanted=chosen(wanted, "why", "source"),
            keeper="tmpfiles",
        )
        return apply_setting(self.ledger, setting, self.root, lasting=lasting)

    def undo(self, *, force: bool = False) -> list[str]:
        """Put it back; gives the codes of what was found."""
        entry = self.ledger.find(PATH)
        assert isinstance(entry, SettingEntry)
        return [each.report.code for each in undo_setting(self.ledger, entry, self.root, force=force)]


@pytest.fixture
def knob(tmp_path: Path) -> Host:
    """Give a host whose knob holds 20."""
    return Host(tmp_path, "20")


@pytest.mark.parametrize(("drop_caches", "tries"), [(False, 1), (True, 2)])
def test_the_page_cache_is_given_up_only_when_that_was_asked(
    monkeypatch: pytest.MonkeyPatch, *, drop_caches: bool, tries: int
) -> None:
    asked, written = [], []

    def refuse(change: PoolChange, before: int, surplus: int) -> int:
        assert surplus == 0
        asked.append((change.pages, before))
        raise PreflightFailed(Report(code="host.hugepages.short", message="no"))

    monkeypatch.setattr("kvmlaunch.host.pool_settings.apply_pool", refuse)
    monkeypatch.setattr(
        "kvmlaunch.host.pool_settings.write_control", lambda path, text: written.append((str(path), text))
    )
    with pytest.raises(PreflightFailed):
        raise_pool(PoolChange(page_size=2 << 20, pages=16), 4, 0, drop_caches=drop_caches)

    assert asked == [(16, 4)] * tries
    assert written == [("/proc/sys/vm/drop_caches", "3")] * (tries - 1)


def test_a_knob_is_written_down_before_it_is_turned_and_after(knob: Host) -> None:
    knob.apply("500")

    (before,), (after,) = knob.written
    assert isinstance(before, SettingEntry)
    assert isinstance(after, SettingEntry)
    assert (before.before, before.wanted, before.after, before.done) == ("20", "500", None, False)
    assert (after.after, after.done) == ("500", True)
    assert knob.value == "500"


def test_what_was_there_before_the_first_time_is_put_back(knob: Host) -> None:
    knob.apply("500")
    knob.apply("700")

    assert knob.undo() == []
    assert knob.value == "20"
    assert knob.ledger.entries == ()


def test_a_knob_that_somebody_else_turned_since_is_left_alone_unless_forced(knob: Host) -> None:
    knob.apply("500")
    knob.value = "33"

    first, left = knob.undo(), knob.value
    forced = knob.undo(force=True)

    assert first == ["host.change.conflict"]
    assert left == "33"
    assert forced == []
    assert knob.value == "20"


def test_a_knob_set_to_what_it_held_before_is_still_left_to_who_turned_it_since(knob: Host) -> None:
    knob.apply("500")
    knob.apply("20")
    knob.value = "33"

    assert knob.undo() == ["host.change.conflict"]
    assert knob.value == "33"


@pytest.mark.parametrize(
    ("cmdline", "others", "before", "live", "gain"),
    [
        ("quiet", "", 0, 16, 16),
        ("quiet", "", 0, 10, 10),
        ("hugepages=512", "", 0, 512, 0),
        ("hugepages=8", "", 0, 16, 8),
        ("hugepages=512", "", 0, 16, 0),
        ("quiet", "vm.nr_hugepages = 12", 0, 16, 4),
        ("hugepages=512", "vm.nr_hugepages = 12", 0, 16, 4),
        ("quiet", "", 64, 16, 16),
        ("quiet", "vm.nr_hugepages = 12", 64, 16, 4),
        ("quiet", "", 64, 80, 0),
    ],
)
def test_a_pool_of_a_later_boot_is_counted_from_what_others_asked_for(
    tmp_path: Path, cmdline: str, others: str, before: int, live: int, gain: int
) -> None:
    pool = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"
    texts = {
        pool: str(live),
        "/proc/cmdline": cmdline,
        "/proc/meminfo": "Hugepagesize:    2048 kB",
        "/etc/sysctl.d/50-admin.conf": others,
        "/etc/sysctl.d/80-kvmlaunch.conf": "vm.nr_hugepages = 16",
    }
    for path, text in texts.items():
        (tmp_path / path[1:]).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path[1:]).write_text(f"{text}\n")
    total = str(max(16, before))
    entry = SettingEntry(
        key="hugepages.2MiB", path=pool, before=str(before), wanted="16", after=total, done=True, counted=True,
        lasting=True,
    )  # fmt: skip
    ledger = Ledger(entries=(entry,), boot_id="later", time="t", write=lambda _: None)

    settle(ledger, tmp_path)
    (found,) = ledger.entries

    assert isinstance(found, SettingEntry)
    assert int(found.after or 0) - int(found.before) == gain


def test_a_knob_that_was_put_back_by_hand_is_forgotten(knob: Host) -> None:
    knob.apply("500")
    knob.value = "20"

    assert knob.undo() == []
    assert knob.ledger.entries == ()


def test_applying_over_what_somebody_else_set_takes_that_for_the_state_before(knob: Host) -> None:
    knob.apply("500")
    knob.value = "33"
    knob.apply("500")

    knob.undo()

    assert knob.value == "33"


def test_a_knob_that_is_gone_is_skipped_when_made_and_when_put_back(knob: Host) -> None:
    knob.apply("500")
    knob.place.unlink()

    made = knob.ledger.find(PATH)
    undone = knob.undo()

    assert made is not None
    assert undone == ["host.setting.refused"]
    assert knob.ledger.entries == ()


def test_a_value_that_the_kernel_refuses_leaves_knob_and_journal_as_they_were(knob: Host) -> None:
    knob.apply("500")
    knob.place.unlink()
    knob.place.symlink_to("/proc/version")  # a file of the kernel that takes nothing

    found = knob.apply("700")

    entry = knob.ledger.find(PATH)
    assert found is not None
    assert found.report.code == "host.setting.refused"
    assert isinstance(entry, SettingEntry)
    assert (entry.before, entry.wanted, entry.done) == ("20", "500", True)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("earlier", [None, "500"])
def test_a_crash_between_is_put_right_by_what_the_knob_holds(knob: Host, turned: bool, earlier: str | None) -> None:  # noqa: FBT001 - a row
    if earlier:
        knob.apply(earlier)
    knob.apply("700")
    ledger = Ledger(entries=knob.written[-2], boot_id="b", time="t", write=knob.written.append)
    if not turned:
        knob.value = earlier or "20"
    knob.ledger = ledger

    settle(ledger, knob.root)
    found = knob.undo() if ledger.entries else []

    assert found == []
    assert knob.value == "20"
    assert ledger.entries == ()


def reboot(knob: Host, value: str) -> None:
    """Begin another boot, at which the knob holds a value."""
    knob.value = value
    knob.ledger.boot_id += "+"
    settle(knob.ledger, knob.root)


def test_what_a_file_sets_at_boot_is_put_back_whatever_was_done_in_between(knob: Host) -> None:
    """The default is 20, and a file of ours says 30."""
    unread, foreign, other, dropped = (Host(knob.root / name, "20") for name in "abcd")
    for each in (unread, foreign, other, dropped):
        each.apply("30", lasting=True)
    reboot(unread, "20")  # nothing read the file
    unread.apply("30")
    foreign.value = "45"
    foreign.apply("30")
    other.apply("25")  # host.toml says another value now, and the file was not written again
    entry = dropped.ledger.find(PATH)
    assert isinstance(entry, SettingEntry)
    list(undo_setting(dropped.ledger, entry, dropped.root, force=False, stays=True))
    values = dropped.value

    for each in (unread, foreign, other, dropped):
        reboot(each, "30")
    found = [each.undo() for each in (unread, foreign, other, dropped)]

    assert values == "20"
    assert found == [[], [], [], []]
    assert [each.value for each in (unread, foreign, other, dropped)] == ["20"] * 4


def test_a_runtime_value_over_that_of_a_file_is_put_back_after_a_reboot_too(knob: Host) -> None:
    knob.apply("30", lasting=True)
    knob.apply("25")
    reboot(knob, "30")
    knob.apply("25")

    assert knob.undo() == []
    assert knob.value == "20"


def test_a_file_that_could_not_be_written_anew_still_sets_what_is_ours(knob: Host) -> None:
    knob.apply("30", lasting=True)
    files_are_written(knob.ledger, set())
    knob.apply("25", lasting=True)  # and /etc is full
    reboot(knob, "30")

    assert knob.undo() == []
    assert knob.value == "20"
    assert knob.ledger.entries == ()


def test_an_intent_whose_boot_ended_is_void_where_no_file_made_it_true(knob: Host) -> None:
    knob.apply("30", lasting=True)
    cut_off = Ledger(entries=knob.written[0], boot_id="b", time="t", write=knob.written.append)
    knob.ledger = cut_off

    reboot(knob, "60")

    assert knob.ledger.entries == ()
    assert knob.value == "60"


def test_a_pool_that_an_older_file_of_ours_raises_at_boot_is_given_back_whole(tmp_path: Path) -> None:
    pool_at(tmp_path, total=100, free=100)
    entry = evolve(raised(before=0, after=50), kept="50", kept_before=("100",), boot_id="a")
    ledger = Ledger(entries=(entry,), boot_id="b", time="t", write=lambda _: None)

    settle(ledger, tmp_path)
    (found,) = ledger.entries

    assert isinstance(found, SettingEntry)
    assert (found.before, found.after) == ("0", "100")


def files_of(root: Path, **values: str) -> None:
    """Write knobs of KSM."""
    for name, value in values.items():
        place = root / "sys/kernel/mm/ksm" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"{value}\n")


def setting_of(name: str, value: str, wanted: str) -> Setting:
    """Give the setting of a knob of KSM."""
    knob = Knob(path=f"/sys/kernel/mm/ksm/{name}", value=value)
    return Setting(key=f"ksm.{name}", knob=knob, wanted=chosen(wanted, "why", "source"), keeper="tmpfiles")


def undone(ledger: Ledger, root: Path) -> list[str]:
    """Put all back, the last first; gives the codes of what was found."""
    return [
        finding.report.code
        for entry in reversed(ledger.entries)
        if isinstance(entry, SettingEntry)
        for finding in undo_setting(ledger, entry, root, force=False)
    ]


def test_what_the_kernel_reset_is_put_back_though_it_was_wished_later(tmp_path: Path) -> None:
    files_of(tmp_path, advisor_mode="[none] scan-time", pages_to_scan="250")
    ledger = Ledger(entries=(), boot_id="b", time="t", write=lambda _: None)
    (tmp_path / "sys/kernel/mm/ksm/advisor_mode").write_text("none\n")

    apply_setting(ledger, setting_of("advisor_mode", "none", "scan-time"), tmp_path, lasting=False)
    files_of(tmp_path, pages_to_scan="100")  # as the kernel does
    apply_setting(ledger, setting_of("advisor_mode", "scan-time", "none"), tmp_path, lasting=False)
    apply_setting(ledger, setting_of("pages_to_scan", "100", "700"), tmp_path, lasting=False)

    assert undone(ledger, tmp_path) == []
    assert (tmp_path / "sys/kernel/mm/ksm/pages_to_scan").read_text().strip() == "250"
    assert ledger.entries == ()


def test_a_number_that_the_advisor_chooses_again_is_left_to_it(tmp_path: Path) -> None:
    files_of(tmp_path, advisor_mode="scan-time", pages_to_scan="100")
    ledger = Ledger(entries=(), boot_id="b", time="t", write=lambda _: None)

    apply_setting(ledger, setting_of("advisor_mode", "scan-time", "none"), tmp_path, lasting=False)
    apply_setting(ledger, setting_of("pages_to_scan", "100", "700"), tmp_path, lasting=False)

    assert undone(ledger, tmp_path) == []
    assert ledger.entries == ()


def scheduler_of(root: Path) -> tuple[Path, Ledger, Setting]:
    """Make a queue with a scheduler that has a knob of its own; gives it, a journal, and another scheduler wished."""
    queue = root / "sys/block/vda/queue"
    (queue / "iosched").mkdir(parents=True)
    (queue / "scheduler").write_text("mq-deadline\n")
    (queue / "iosched/read_expire").write_text("123\n")
    knob = Knob(path="/sys/block/vda/queue/scheduler", value="mq-deadline")
    setting = Setting(key="scheduler.vda", knob=knob, wanted=chosen("none", "why", "source"), keeper="udev")
    return queue, Ledger(entries=(), boot_id="b", time="t", write=lambda _: None), setting


def test_a_scheduler_brings_its_own_knobs_back(tmp_path: Path) -> None:
    queue, ledger, setting = scheduler_of(tmp_path)

    apply_setting(ledger, setting, tmp_path, lasting=False)
    (queue / "iosched/read_expire").write_text("500\n")  # as the kernel does

    assert undone(ledger, tmp_path) == []
    assert (queue / "iosched/read_expire").read_text().strip() == "123"


def test_a_schedulers_own_knobs_wait_while_it_is_not_put_back_itself(tmp_path: Path) -> None:
    queue, ledger, setting = scheduler_of(tmp_path)

    apply_setting(ledger, setting, tmp_path, lasting=False)
    (queue / "scheduler").write_text("bfq\n")  # somebody else
    (queue / "iosched/read_expire").write_text("77\n")
    first, theirs = undone(ledger, tmp_path), (queue / "iosched/read_expire").read_text().strip()
    (queue / "scheduler").write_text("none\n")
    again = undone(ledger, tmp_path)

    assert (first, theirs) == (["host.change.conflict"], "77")
    assert again == []
    assert (queue / "iosched/read_expire").read_text().strip() == "123"
    assert ledger.entries == ()


def test_nothing_is_written_down_beside_a_scheduler_that_the_kernel_refused(tmp_path: Path) -> None:
    queue, ledger, setting = scheduler_of(tmp_path)
    (queue / "scheduler").unlink()
    (queue / "scheduler").symlink_to("/proc/version")  # a file of the kernel that takes nothing

    found = apply_setting(ledger, setting, tmp_path, lasting=False)

    assert found is not None
    assert ledger.entries == ()


def test_a_schedulers_knobs_that_we_brought_ourselves_are_nobodys(tmp_path: Path) -> None:
    queue, ledger, _ = scheduler_of(tmp_path)
    knob = Knob(path="/sys/block/vda/queue/scheduler", value="none")
    for word in ("bfq", "mq-deadline"):
        setting = Setting(key="scheduler.vda", knob=knob, wanted=chosen(word, "why", "source"), keeper="udev")
        apply_setting(ledger, setting, tmp_path, lasting=False)
        (queue / f"iosched/of_{word}").write_text("1\n")

    assert undone(ledger, tmp_path) == []
    assert ledger.entries == ()


@pytest.mark.parametrize(("live", "codes", "last"), [("90000", [], "100"), ("777", ["host.change.conflict"], "777")])
def test_what_the_kernel_made_of_a_sysctl_goes_back_and_what_somebody_set_there_stays(
    tmp_path: Path, live: str, codes: list[str], last: str
) -> None:
    thp, least = tmp_path / "sys/kernel/mm/transparent_hugepage/enabled", tmp_path / "proc/sys/vm/min_free_kbytes"
    for place, text in ((thp, "never"), (least, "100")):
        place.parent.mkdir(parents=True)
        place.write_text(f"{text}\n")
    ledger = Ledger(entries=(), boot_id="b", time="t", write=lambda _: None)
    knob = Knob(path="/sys/kernel/mm/transparent_hugepage/enabled", value="never")
    setting = Setting(key="thp.enabled", knob=knob, wanted=chosen("madvise", "why", "source"), keeper="tmpfiles")

    apply_setting(ledger, setting, tmp_path, lasting=False)
    entry = ledger.find("/proc/sys/vm/min_free_kbytes")
    assert isinstance(entry, SettingEntry)
    ledger.put(evolve(entry, after="90000"))  # as the kernel does when it is written
    least.write_text(f"{live}\n")

    assert undone(ledger, tmp_path) == codes
    assert least.read_text().strip() == last


def test_what_has_to_wait_for_the_next_boot_is_ours_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files_of(tmp_path, merge_across_nodes="1")
    ledger = Ledger(entries=(), boot_id="b", time="t", write=lambda _: None)

    def busy(*_: object) -> str:
        raise OSError(errno.EBUSY, "busy")

    monkeypatch.setattr("kvmlaunch.host.settings.write_value", busy)
    found = apply_setting(ledger, setting_of("merge_across_nodes", "1", "0"), tmp_path, lasting=True)
    monkeypatch.undo()
    files_of(tmp_path, merge_across_nodes="0")  # a file of ours, at the next boot
    ledger.boot_id = "later"
    settle(ledger, tmp_path)

    assert found is not None
    assert found.report.code == "host.setting.busy"
    assert undone(ledger, tmp_path) == []
    assert (tmp_path / "sys/kernel/mm/ksm/merge_across_nodes").read_text().strip() == "1"


@pytest.mark.parametrize(
    ("before", "available", "last", "codes"),
    [
        ("0", 64 << 20, "0", []),
        ("5", 64 << 20, "0", []),
        ("0", 1 << 20, "0", ["host.setting.refused"]),
    ],
)
def test_what_was_merged_since_is_taken_apart_where_there_is_room(
    tmp_path: Path, before: str, available: int, last: str, codes: list[str]
) -> None:
    files_of(tmp_path, run="0", pages_shared=before, pages_sharing=before)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text(f"MemTotal: {64 << 20} kB\nMemAvailable: {available} kB\n")
    ledger = Ledger(entries=(), boot_id="b", time="t", write=lambda _: None)

    apply_setting(ledger, setting_of("run", "0", "1"), tmp_path, lasting=False)
    files_of(tmp_path, pages_sharing="16320")

    assert undone(ledger, tmp_path) == codes
    assert (tmp_path / "sys/kernel/mm/ksm/run").read_text().strip() == last


POOL = "/sys/kernel/mm/hugepages/hugepages-2048kB"


def pool_at(root: Path, *, total: int, free: int, lent: int = 0) -> Path:
    """Make a pool of 2 MiB pages; gives its control file."""
    place = root / POOL[1:]
    place.mkdir(parents=True, exist_ok=True)
    for name, number in (("nr", total), ("free", free), ("resv", 0), ("surplus", lent)):
        (place / f"{name}_hugepages").write_text(f"{number}\n")
    return place / "nr_hugepages"


def raised(*, before: int, after: int) -> SettingEntry:
    """Give the entry of a pool."""
    return SettingEntry(
        key="hugepages.2MiB", path=f"{POOL}/nr_hugepages", before=str(before), wanted=str(after), after=str(after),
        done=True, counted=True, lasting=True, boot_id="b",
    )  # fmt: skip


def test_pages_of_others_stay_though_a_lowering_was_cut_off(tmp_path: Path) -> None:
    nr = pool_at(tmp_path, total=110, free=110)
    ledger = Ledger(entries=(raised(before=10, after=110),), boot_id="b", time="t", write=lambda _: None)
    noted: list[tuple[TuneEntry, ...]] = []
    ledger.write = noted.append

    list(lower_counted(ledger, raised(before=10, after=110), 60, tmp_path))
    lowered = int(nr.read_text())
    cut_off = Ledger(entries=noted[0], boot_id="b", time="t", write=lambda _: None)
    pool_at(tmp_path, total=lowered, free=lowered)
    undone(cut_off, tmp_path)

    assert lowered == 60
    assert int(nr.read_text()) == 10


def test_an_administrator_who_lowers_a_pool_keeps_his_pages(tmp_path: Path) -> None:
    nr = pool_at(tmp_path, total=60, free=60)
    ledger = Ledger(entries=(raised(before=10, after=110),), boot_id="b", time="t", write=lambda _: None)

    undone(ledger, tmp_path)

    assert int(nr.read_text()) == 10


def test_pages_that_were_lent_when_a_pool_was_raised_are_lent_again(tmp_path: Path) -> None:
    nr = pool_at(tmp_path, total=7, free=3)
    ledger = Ledger(
        entries=(evolve(raised(before=4, after=7), surplus="4"),), boot_id="b", time="t", write=lambda _: None
    )

    undone(ledger, tmp_path)

    assert int(nr.read_text()) == 0


def test_a_pool_that_a_file_raises_at_boot_is_ours_whatever_is_wished_since(tmp_path: Path) -> None:
    pool_at(tmp_path, total=100, free=100)
    entry = evolve(raised(before=0, after=50), kept="100", boot_id="a")
    ledger = Ledger(entries=(entry,), boot_id="b", time="t", write=lambda _: None)

    settle(ledger, tmp_path)
    (found,) = ledger.entries

    assert isinstance(found, SettingEntry)
    assert (found.before, found.after) == ("0", "100")


def test_a_knob_that_a_file_set_at_boot_again_is_not_back(knob: Host) -> None:
    knob.apply("30", lasting=True)
    entry = knob.ledger.find(PATH)
    assert isinstance(entry, SettingEntry)
    list(undo_setting(knob.ledger, entry, knob.root, force=False, stays=True))

    reboot(knob, "30")
    found = knob.ledger.find(PATH)

    assert isinstance(found, SettingEntry)
    assert (found.before, found.after) == ("20", "30")
    assert knob.undo() == []
    assert knob.value == "20"


@pytest.mark.parametrize(("lasting", "kept"), [(False, 0), (True, 1)])
def test_what_does_not_last_is_void_after_a_reboot(knob: Host, lasting: bool, kept: int) -> None:  # noqa: FBT001 - a row
    knob.apply("500", lasting=lasting)
    knob.ledger.boot_id = "another"

    settle(knob.ledger, knob.root)

    assert len(knob.ledger.entries) == kept


def test_the_journal_is_read_back_as_it_was_written() -> None:
    assert parse_entries(render_entries(ENTRIES)) == ENTRIES


def test_a_journal_of_a_release_that_knew_less_is_read() -> None:
    document = json.loads(render_entries(ENTRIES))
    for entry in document["entries"]:
        for name in ("kept", "default", "borrowed", "unmerged"):
            entry.pop(name, None)

    assert parse_entries(json.dumps(document)) == ENTRIES


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"before": "0"', '"before": 0'),
        ('"done": true', '"done": 1'),
        ('"wanted": "1"', '"wanted": null'),
        ('"kind": "setting"', '"kind": "other"'),
        ('"path": "/etc/x"', '"place": "/etc/x"'),
        ("kvmlaunch/tune-journal/1", "kvmlaunch/tune-journal/9"),
    ],
)
def test_a_journal_of_another_shape_is_refused_whole(before: str, after: str) -> None:
    text = render_entries(ENTRIES)
    assert before in text

    with pytest.raises(ValueError, match=r"."):
        parse_entries(text.replace(before, after, 1))


@given(text=st.text(max_size=200))
def test_whatever_stands_in_the_journal_only_valueerror_comes_out(text: str) -> None:
    try:
        parse_entries(text)
    except ValueError:
        return


def test_an_entry_takes_the_place_of_an_earlier_one_of_its_path(knob: Host) -> None:
    first = ENTRIES[0]
    assert isinstance(first, SettingEntry)
    knob.ledger.put(first)
    knob.ledger.put(evolve(first, after="2"))
    knob.ledger.put(ENTRIES[2])

    assert [entry.path for entry in knob.ledger.entries] == [first.path, "/etc/x"]


def test_a_value_of_the_earlier_boot_is_nobodys_once_no_file_set_it(knob: Host) -> None:
    knob.value = "33"
    knob.apply("7", lasting=True)
    reboot(knob, "60")  # in which nothing read the file

    assert knob.undo() == []
    assert knob.value == "60"


def test_a_file_that_is_read_after_a_knob_was_looked_at_is_still_ours(knob: Host) -> None:
    knob.apply("30", lasting=True)
    reboot(knob, "20")  # the file was not read yet
    knob.value = "30"  # and now it was

    assert knob.undo() == []
    assert knob.value == "20"


def test_a_pool_that_was_being_lowered_at_a_crash_is_counted_once(tmp_path: Path) -> None:
    pool_at(tmp_path, total=8, free=8)
    entry = evolve(raised(before=0, after=12), undo_from="12")  # four pages were given, and then the crash came
    ledger = Ledger(entries=(entry,), boot_id="b", time="t", write=lambda _: None)

    list(lower_counted(ledger, entry, 8, tmp_path))

    lowered = ledger.find(entry.path)
    assert isinstance(lowered, SettingEntry)
    assert (lowered.after, lowered.undo_from) == ("8", None)
