"""The guest agent's protocol, fed in pieces: what is sent, what is an answer, and what a guest's lies come to."""

import base64
import json
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmlaunch.facts.agent import (
    LONGEST_ANSWER,
    MOST_INTERFACES,
    AgentRefused,
    Conversation,
    Execution,
    Interface,
    NoAgent,
    Query,
    is_open,
    parse_addresses,
    parse_execution,
    parse_frozen,
    parse_interfaces,
)

pytestmark = pytest.mark.pure

TOKEN: Final = 0x1234ABCD
SYNCED: Final = b'\xff{"return": %d}\n' % TOKEN
PING: Final[Query] = ("guest-ping", {})
STATUS: Final[Query] = ("guest-exec-status", {"pid": 7})
DEEPEST: Final = 20_000  # beyond what any Python's parser of JSON takes

# Every key that is read, and some that are not.
KEYS: Final = (
    *("return", "error", "desc", "name", "ip-addresses", "ip-address", "prefix", "label", "frontend-open"),
    *("exited", "exitcode", "signal", "out-data", "err-data", "out-truncated", "err-truncated", "unheard-of"),
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["lo", "qga", "aGk="])
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=6),
    max_leaves=8,
)
ROWS = st.dictionaries(st.sampled_from(KEYS), SCALARS, max_size=8)


def begun(*queries: Query) -> Conversation:
    """Give a conversation that has found its beginning."""
    talk = Conversation(queries=queries, token=TOKEN)
    talk.feed(SYNCED)
    return talk


def commands(sent: bytes) -> list[str]:
    """Give the commands of what is to be sent."""
    return [json.loads(line)["execute"] for line in sent.splitlines()]


def nested(text: str) -> Iterator[object]:
    """Give what becomes of a text with a list in place of `?`: shallow ones, and the deepest that the parser takes."""

    def answers(depth: int) -> list[object]:
        talk = begun(PING)
        with suppress(NoAgent):
            talk.feed(b'{"return": %s}\n' % text.replace("?", "[" * depth + "]" * depth).encode())
        return talk.answers

    limit = 1 + bisect_left(range(1, DEEPEST), 1, key=lambda depth: int(not answers(depth)))
    for depth in (*range(1, 40), *range(max(40, limit - 40), limit)):
        yield from answers(depth)


def test_a_conversation_begins_with_a_delimiter_and_its_own_token() -> None:
    first = Conversation(queries=(PING,), token=TOKEN).begin()

    assert first[:1] == b"\xff"
    assert first[-1:] == b"\n"
    assert json.loads(first[1:]) == {"execute": "guest-sync-delimited", "arguments": {"id": TOKEN}}


def test_each_query_is_sent_when_the_one_before_was_answered() -> None:
    talk = Conversation(queries=(PING, STATUS), token=TOKEN)

    steps = [talk.feed(line) for line in (SYNCED, b'{"return": {}}\n', b'{"return": {"exited": false}}\n')]

    assert [commands(step) for step in steps] == [["guest-ping"], ["guest-exec-status"], []]
    assert talk.done
    assert talk.answers == [{}, {"exited": False}]


def test_arguments_are_sent_only_where_there_are_any() -> None:
    talk = Conversation(queries=(PING, STATUS), token=TOKEN)

    ping, status = (json.loads(talk.feed(line)) for line in (SYNCED, b'{"return": {}}\n'))

    assert ping == {"execute": "guest-ping"}
    assert status["arguments"] == {"pid": 7}


def test_without_queries_the_synchronisation_is_all() -> None:
    talk = Conversation(queries=(), token=TOKEN)

    before = talk.done
    talk.feed(SYNCED)

    assert (before, talk.done) == (False, True)


@pytest.mark.parametrize(
    "stale",
    [
        b'{"return": {"exited": true}}\n',
        b'{"error": {"class": "GenericError", "desc": "of somebody else"}}\n',
        b'half an answer, "return": "',
        b"\xff\xff\xff",
        b"\x00\x80\xfe\n\n\r\n",
        b'\xff{"return": 1}\n',
        b"login: \xff",
    ],
)
def test_what_others_have_left_before_the_token_is_thrown_away(stale: bytes) -> None:
    talk = Conversation(queries=(PING,), token=TOKEN)

    sent = talk.feed(stale + SYNCED)
    talk.feed(b'{"return": {}}\n')

    assert commands(sent) == ["guest-ping"]
    assert talk.answers == [{}]


@pytest.mark.parametrize(
    "line",
    [
        b'\xff{"return": %d}\n' % (TOKEN + 1),
        b'{"return": %d}\n' % TOKEN,
        b'\xff{"return": "%d"}\n' % TOKEN,
        b'\xff{"return": [%d]}\n' % TOKEN,
        b'\xff{"error": {"desc": "%d"}}\n' % TOKEN,
        b"\xff%d\n" % TOKEN,
        b"\xff" + b"[" * 100_000 + b"\n",
        b"\xff\n",
    ],
)
def test_without_our_own_token_behind_a_delimiter_nothing_is_asked(line: bytes) -> None:
    talk = Conversation(queries=(PING,), token=TOKEN)

    sent = talk.feed(line)

    assert sent == b""
    assert not talk.synced
    assert not talk.done


@given(cuts=st.lists(st.integers(min_value=0, max_value=200), max_size=12))
def test_it_makes_no_difference_where_what_is_received_is_cut(cuts: list[int]) -> None:
    whole = b'stale\xfe\n{"return": 1}\n' + SYNCED + b'{"return": "\xc3\xa9"}\n{"return": {"exited": false}}\n'
    talk = Conversation(queries=(PING, STATUS), token=TOKEN)
    places = sorted({0, len(whole), *(cut for cut in cuts if cut < len(whole))})

    sent = b"".join(talk.feed(whole[first:last]) for first, last in pairwise(places))

    assert commands(sent) == ["guest-ping", "guest-exec-status"]
    assert talk.answers == ["é", {"exited": False}]


def test_what_follows_the_last_answer_is_no_answer_of_ours() -> None:
    talk = begun(PING)

    sent = talk.feed(b'{"return": {}}\n{"error": {"desc": "late"}}\nno JSON\n')

    assert sent == b""
    assert talk.answers == [{}]


def test_a_query_that_is_refused_tells_it_in_the_guests_words() -> None:
    talk = begun(STATUS)

    with pytest.raises(AgentRefused, match="Invalid parameter 'pid'"):
        talk.feed(b'{"error": {"class": "GenericError", "desc": "Invalid parameter \'pid\'"}}\n')


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"SSH-2.0-OpenSSH\r\n",
        b"{}\n",
        b"[]\n",
        b"null\n",
        b"\xff\xfe\n",
        b'{"unheard": "of"}\n',
        b'{"error": "no object"}\n',
        b'{"error": {"desc": 7}}\n',
        b'{"error": {}}\n',
        b'{"return": %s}\n' % (b"9" * 5000),
        b'{"return": %s}\n' % (b"[" * 100_000),
    ],
)
def test_what_is_neither_return_nor_error_is_no_answer(line: bytes) -> None:
    talk = begun(PING)

    with pytest.raises(NoAgent):
        talk.feed(line)


@pytest.mark.parametrize("first", [b"", SYNCED])
def test_an_answer_without_an_end_is_cut_off_at_the_limit(first: bytes) -> None:
    talk = Conversation(queries=(PING,), token=TOKEN)
    talk.feed(first)
    chunk = b"x" * (LONGEST_ANSWER // 8)
    for _ in range(8):
        talk.feed(chunk)

    with pytest.raises(NoAgent, match="longer than 64 MiB"):
        talk.feed(b"x")


@given(chunks=st.lists(st.binary(max_size=64) | st.sampled_from([SYNCED, b"\n", b'{"return": 0}\n']), max_size=12))
def test_whatever_is_received_only_its_own_errors_come_out(chunks: list[bytes]) -> None:
    talk = Conversation(queries=(PING, STATUS), token=TOKEN)

    try:
        for chunk in chunks:
            talk.feed(chunk)
    except (NoAgent, AgentRefused):
        return

    assert len(talk.answers) <= 2


def test_a_command_that_runs_has_not_exited() -> None:
    assert parse_execution({"exited": False}) == Execution(exited=False)


def test_a_command_that_has_ended_gives_its_status_and_what_it_printed() -> None:
    answer = {"exited": True, "exitcode": 3, "out-data": "b3V0AP8=", "err-data": "ZXJy", "out-truncated": True}

    found = parse_execution(answer)

    assert found == Execution(exited=True, status=3, out=b"out\0\xff", err=b"err", truncated=True)
    assert found.code == 3


@pytest.mark.parametrize("lie", [{"exitcode": 10**30}, {"exitcode": "0"}, {"exitcode": 0, "signal": 10**30}])
def test_a_status_that_no_system_has_is_no_status(lie: dict[str, object]) -> None:
    with pytest.raises(NoAgent, match="no number"):
        parse_execution({"exited": True, **lie})


@pytest.mark.parametrize("answer", [-5, "many", None, True, {}])
def test_an_agent_that_tells_no_number_of_file_systems_is_not_believed(answer: object) -> None:
    with pytest.raises(NoAgent, match="no number"):
        parse_frozen(answer)


def test_a_command_that_ended_without_any_code_is_no_success() -> None:
    with pytest.raises(NoAgent, match="no exit code"):
        parse_execution({"exited": True})


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ({"exited": True, "exitcode": 0}, 0),
        ({"exited": True, "exitcode": 255}, 255),
        ({"exited": True, "exitcode": 256}, 255),
        ({"exited": True, "exitcode": 0xC0000005}, 255),
        ({"exited": True, "exitcode": -5}, 255),
        ({"exited": True, "signal": 9}, 137),
        ({"exited": True, "signal": 127}, 255),
        ({"exited": True, "exitcode": 0, "signal": 15}, 143),
    ],
)
def test_the_exit_code_is_a_shells_and_never_zero_for_a_larger_one(answer: object, code: int) -> None:
    assert parse_execution(answer).code == code


def test_an_exception_that_ended_a_command_in_windows_is_a_failure_and_what_it_printed_is_kept() -> None:
    # qga/commands.c gives a status from 0xC0000000 on as `signal`, out of a signed int.
    found = parse_execution({"exited": True, "signal": -1073741819, "out-data": "b3V0"})

    assert (found.code, found.out) == (255, b"out")


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [],
        {},
        "exited",
        {"exited": 1},
        {"exited": "true"},
        {"exited": True, "exitcode": True},
        {"exited": True, "exitcode": 1.0},
        {"exited": True, "exitcode": "0"},
        {"exited": True, "exitcode": None},
        {"exited": True, "signal": []},
        {"exited": True, "out-data": "no base64!"},
        {"exited": True, "out-data": "YQ"},
        {"exited": True, "out-data": "\ud800"},
        {"exited": True, "err-data": "é"},
        {"exited": True, "err-data": {"a": "b"}},
    ],
)
def test_a_status_that_is_none_is_no_answer_of_an_agent(answer: object) -> None:
    with pytest.raises(NoAgent):
        parse_execution(answer)


@given(output=st.binary(), errors=st.binary(), status=st.integers(min_value=0, max_value=255))
def test_whatever_a_command_prints_comes_out_as_it_was(output: bytes, errors: bytes, status: int) -> None:
    answer = {
        "exited": True,
        "exitcode": status,
        "out-data": base64.b64encode(output).decode(),
        "err-data": base64.b64encode(errors).decode(),
    }

    found = parse_execution(answer)

    assert (found.out, found.err, found.code) == (output, errors, status)


@given(answer=VALUES | ROWS.map(lambda row: {**row, "exited": True}))
def test_whatever_a_guest_tells_of_a_command_only_no_agent_comes_out(answer: object) -> None:
    try:
        found = parse_execution(answer)
    except NoAgent:
        return

    assert 0 <= found.code <= 255


def test_a_guests_devices_are_given_with_their_addresses_without_loopback_and_those_of_a_link() -> None:
    answer = [
        {"name": "lo", "ip-addresses": [{"ip-address": "127.0.0.1", "ip-address-type": "ipv4", "prefix": 8}]},
        {
            "name": "eth0",
            "hardware-address": "52:54:00:fc:4b:a1",
            "ip-addresses": [
                {"ip-address": "10.0.2.15", "ip-address-type": "ipv4", "prefix": 24},
                {"ip-address": "fe80::5054:ff:fefc:4ba1", "ip-address-type": "ipv6", "prefix": 64},
                {"ip-address": "2001:db8::1", "ip-address-type": "ipv6", "prefix": 64},
            ],
        },
        {"name": "eth1", "ip-addresses": [{"ip-address": "FE80::1", "prefix": 64}]},
        {"name": "eth2", "hardware-address": "52:54:00:00:00:02"},
    ]

    assert parse_interfaces(answer) == (Interface(name="eth0", addresses=("10.0.2.15/24", "2001:db8::1/64")),)


@pytest.mark.parametrize("answer", [None, {}, "eth0", 7, [], [None, 7, "eth0", []], [{}], [{"name": "eth0"}]])
def test_an_answer_without_devices_gives_none(answer: object) -> None:
    assert parse_interfaces(answer) == ()


@pytest.mark.parametrize(
    "rows", [None, {}, "10.0.2.15", [None, 7, "10.0.2.15"], [{}], [{"prefix": 24}], [{"ip-address": None, "prefix": 8}]]
)
def test_a_row_without_an_address_gives_none(rows: object) -> None:
    assert parse_addresses(rows) == ()


def test_a_guest_that_tells_of_a_million_devices_is_cut_short() -> None:
    rows = [{"ip-address": "192.0.2.1", "prefix": 24}] * 1000

    found = parse_interfaces([{"name": "eth0", "ip-addresses": rows}] * 1000)

    assert len(found) == MOST_INTERFACES
    assert {len(each.addresses) for each in found} == {MOST_INTERFACES}


@given(answer=VALUES | st.lists(ROWS | ROWS.map(lambda row: {"name": "eth0", "ip-addresses": [row]}), max_size=3))
def test_whatever_a_guest_tells_of_its_devices_texts_come_out(answer: object) -> None:
    found = parse_interfaces(answer)

    assert all(each.addresses for each in found)
    assert all(isinstance(text, str) for each in found for text in (each.name, *each.addresses))


@pytest.mark.parametrize(
    "text",
    [
        '[{"name": ?, "ip-addresses": [{"ip-address": "192.0.2.1", "prefix": 24}]}]',
        '[{"name": "eth0", "ip-addresses": [{"ip-address": ?, "prefix": 24}]}]',
        '[{"name": "eth0", "ip-addresses": [{"ip-address": "192.0.2.1", "prefix": ?}]}]',
    ],
)
def test_devices_that_are_nested_as_deeply_as_the_parser_takes_are_no_error_of_ours(text: str) -> None:
    for answer in nested(text):
        parse_interfaces(answer)


@pytest.mark.parametrize("key", ["exitcode", "out-data", "err-truncated"])
def test_a_status_that_is_nested_as_deeply_as_the_parser_takes_is_no_error_of_ours(key: str) -> None:
    for answer in nested(f'{{"exited": true, "{key}": ?}}'):
        try:
            parse_execution(answer)
        except NoAgent:
            continue


@pytest.mark.parametrize(
    ("chardevs", "opened"),
    [
        ([{"label": "qga", "frontend-open": True, "filename": "unix:qga.sock"}], True),
        ([{"label": "qga", "frontend-open": False}], False),
        ([{"label": "qmp", "frontend-open": True}, {"label": "qga", "frontend-open": False}], False),
        ([{"label": "qmp", "frontend-open": True}], False),
        ([{"label": "qga", "frontend-open": 1}], False),
        ([{"label": "qga"}], False),
        ([None, 7, [], {}], False),
        ([], False),
        ({}, False),
        (None, False),
    ],
)
def test_a_channel_is_open_when_the_guest_has_opened_just_that_one(chardevs: object, opened: bool) -> None:  # noqa: FBT001 - a row
    assert is_open(chardevs, "qga") is opened


@given(chardevs=VALUES)
def test_whatever_is_told_of_channels_one_is_open_or_not(chardevs: object) -> None:
    assert is_open(chardevs, "qga") in {True, False}
