"""The record of a run and the journal are input: anything may stand in them, and only ValueError comes out."""

import json
import random
from collections.abc import Callable

import pytest
from attrs import asdict, evolve
from hypothesis import given
from hypothesis import strategies as st

from kvmlaunch.facts.record import (
    parse_cmdline,
    parse_last_end,
    parse_lock_taker,
    parse_record,
    parse_start_time,
    render_record,
)
from kvmlaunch.host.journal import parse_journal, render_journal
from kvmlaunch.model.change import (
    DirectoryChange,
    Entry,
    Journal,
    LogMountChange,
    MountChange,
    PoolChange,
    TapChange,
    render_change,
)
from kvmlaunch.model.record import Record

RECORD = Record(
    vm="web", uuid="153105ea-21b8-8551-819e-b6bff2e5ab30", state="running", pid=4711, start_time=99, boot_id="b",
    launcher=4710, launcher_start=98, uid=0, definition="/srv/web.toml", digest="d",
    started="2026-01-01T00:00:00+00:00",
    argv=("qemu", "-uuid", "x"), accelerator="tcg", memory="ordinary", stop_timeout=90.0, notes=("one",),
)  # fmt: skip
CHANGES = (
    PoolChange(page_size=2 << 20, pages=16, host_numa_node=0, compact=True),
    MountChange(path="/run/kvmlaunch/hugepages/0/web/mount", page_size=2 << 20, size=32 << 20, uid=0, gid=0),
    LogMountChange(path="/run/kvmlaunch/vm/web/log", size=16 << 20, uid=0, gid=0),
    DirectoryChange(path="/run/user/1000/kvmlaunch", mode=0o700, uid=1000, gid=1000),
    TapChange(ifname="kl0", bridge="br0", uid=0, multi_queue=False, mtu=None),
)
JOURNAL = Journal(
    vm="web", uid=0, run="/run/kvmlaunch/vm/web", boot_id="b", time="2026-01-01T00:00:00+00:00",
    state="done", entries=tuple(Entry(change=change, owner="prepared", before=1, after=17) for change in CHANGES),
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def test_a_record_is_read_back_as_it_was_written() -> None:
    assert parse_record(render_record(RECORD)) == RECORD


def test_a_journal_is_read_back_as_it_was_written() -> None:
    assert parse_journal(render_journal(JOURNAL)) == JOURNAL


def test_every_kind_of_change_has_a_line_for_people() -> None:
    assert all(render_change(change) for change in CHANGES)


@given(name=st.sampled_from(sorted(asdict(RECORD))), value=JSON)
def test_a_record_with_any_value_is_a_record_or_refused(name: str, value: object) -> None:
    document = {**json.loads(render_record(RECORD)), name: value}

    try:
        record = parse_record(json.dumps(document))
    except ValueError:
        return

    assert record.pid >= 0
    assert record.state != "running" or record.pid > 1


@pytest.mark.parametrize("pid", [-1, 0, 1, 1 << 23, "12", None, 4.5, True, float("inf")])
def test_a_running_record_with_a_pid_that_must_not_be_signalled_is_refused(pid: object) -> None:
    document = {**json.loads(render_record(RECORD)), "pid": pid}

    with pytest.raises(ValueError, match=r"impossible|type"):
        parse_record(json.dumps(document))


def spoiled(text: str, chance: random.Random) -> str:
    """Give a text with some of its characters lost, doubled, or put elsewhere."""
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(text))
        match chance.randrange(4):
            case 0:
                text = text[:at]
            case 1:
                text = text[:at] + chance.choice('{}[]",:0-ex\x00null') + text[at + 1 :]
            case 2:
                text = text[:at] + text[at : at + 40] + text[at:]
            case _:
                text = text[:at] + text[at + chance.randint(1, 20) :]
        text = text or " "
    return text


@pytest.mark.parametrize(
    ("parse", "text"),
    [(parse_record, render_record(RECORD)), (parse_journal, render_journal(JOURNAL))],
    ids=["record", "journal"],
)
def test_a_thousand_spoiled_texts_are_read_or_refused(parse: Callable[[str], object], text: str) -> None:
    chance = random.Random(20)  # noqa: S311 - repeatable, no secret

    for _ in range(1000):
        broken = spoiled(text, chance)
        try:
            parse(broken)
        except ValueError:
            continue


@pytest.mark.parametrize("text", ["", "[]", "null", "3", '"x"', "[" * 100_000, '{"schema": 2}', '{"schema": 99}'])
def test_texts_that_are_no_journal_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_journal(text)


JOURNAL_TYPES = {
    "pages as text": ('"pages": 16', '"pages": "16"'),
    "pages below zero": ('"pages": 16', '"pages": -16'),
    "a path as a number": ('"path": "/run/kvmlaunch/vm/web/log"', '"path": 7'),
    "before as text": ('"before": 1', '"before": "1"'),
    "an owner of its own": ('"owner": "prepared"', '"owner": "me"'),
    "a uid as text": ('"uid": 0', '"uid": "0"'),
}


@pytest.mark.parametrize("name", sorted(JOURNAL_TYPES))
def test_a_journal_with_a_value_of_the_wrong_type_is_refused_before_anything_is_undone(name: str) -> None:
    before, after = JOURNAL_TYPES[name]
    text = render_journal(JOURNAL)
    assert before in text

    with pytest.raises(ValueError, match=r"."):
        parse_journal(text.replace(before, after, 1))


@given(st.text())
def test_any_event_log_gives_a_reason_or_none(text: str) -> None:
    assert isinstance(parse_last_end(text), str)


def test_the_last_end_is_that_of_the_last_shutdown() -> None:
    events = [
        {"event": "SHUTDOWN", "data": {"guest": True, "reason": "guest-reset"}},
        {"event": "RESET"},
        {"event": "SHUTDOWN", "data": {"guest": True, "reason": "guest-shutdown"}},
    ]

    assert parse_last_end("\n".join(["{half", *map(json.dumps, events), '{"event": "SHUTD'])) == "guest-shutdown"


def test_a_guest_panic_is_an_end() -> None:
    assert parse_last_end('{"event": "GUEST_PANICKED", "data": {}}') == "guest-panic"


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=15))
def test_the_start_time_is_found_behind_any_command_name(name: str) -> None:
    fields = " ".join(str(number) for number in range(4, 53))

    assert parse_start_time(f"7 ({name}) S {fields}") == 22


@pytest.mark.parametrize("text", ["", "7", "7 (x)", "7 (x) S a b c", ")" * 30])
def test_a_stat_of_another_shape_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_start_time(text)


def test_words_of_a_cmdline_may_be_empty() -> None:
    assert parse_cmdline("qemu\0\0-name\0a b\0") == ("qemu", "", "-name", "a b")
    assert parse_cmdline("") == ()


def test_only_a_held_flock_on_the_inode_counts() -> None:
    locks = (
        "1: FLOCK  ADVISORY  WRITE 100 00:19:41 0 EOF\n1: -> FLOCK  ADVISORY  WRITE 101 00:19:42 0 EOF\n"
        "2: POSIX  ADVISORY  WRITE 100 00:19:43 0 EOF\n3: OFDLCK ADVISORY  READ -1 00:19:44 0 EOF\n"
    )

    takers = [parse_lock_taker(locks, "00:19", inode) for inode in (41, 42, 43, 44, 4)]
    assert takers == [100, None, None, None, None]


def test_a_record_keeps_every_field_that_it_has() -> None:
    changed = evolve(RECORD, state="intent", pid=0, argv=(), notes=())

    assert parse_record(render_record(changed)) == changed
