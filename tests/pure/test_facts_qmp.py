"""The monitor's protocol, fed in pieces: what is sent, what is an answer, what is none."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmlaunch.facts.qmp import Conversation, NoQmp, Query, QueryRefused

pytestmark = pytest.mark.pure

GREETING = b'{"QMP": {"version": {}, "capabilities": ["oob"]}}\r\n'
OK = b'{"return": {}}\r\n'
EVENT = b'{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}\r\n'
NAME: Query = ("query-name", {})
ASKED: Query = ("qom-get", {"path": "/machine", "property": "type"})


def sent(text: bytes) -> list[str]:
    """Give the commands of what is to be sent."""
    return [json.loads(line)["execute"] for line in text.splitlines()]


def test_each_query_is_sent_when_the_one_before_was_answered() -> None:
    talk = Conversation(queries=(NAME, ASKED))

    steps = [sent(talk.feed(line)) for line in (GREETING, OK, b'{"return": {"name": "web"}}\r\n')]
    last = talk.feed(b'{"return": "pc-q35-7.2-machine"}\r\n')

    assert steps == [["qmp_capabilities"], ["query-name"], ["qom-get"]]
    assert last == b""
    assert talk.done
    assert talk.answers == [{"name": "web"}, "pc-q35-7.2-machine"]


def test_arguments_are_sent_only_where_there_are_any() -> None:
    talk = Conversation(queries=(NAME, ASKED))
    talk.feed(GREETING)

    name, asked = (json.loads(talk.feed(OK)) for _ in range(2))

    assert name == {"execute": "query-name"}
    assert asked["arguments"] == {"path": "/machine", "property": "type"}


def test_events_are_passed_over_wherever_they_arrive() -> None:
    talk = Conversation(queries=(NAME,))

    talk.feed(GREETING + EVENT)
    talk.feed(EVENT + OK + EVENT)
    talk.feed(EVENT + b'{"return": {"name": "web"}}\r\n' + EVENT)

    assert talk.answers == [{"name": "web"}]


def test_without_queries_the_negotiation_is_all() -> None:
    talk = Conversation(queries=())

    talk.feed(GREETING)
    before = talk.done
    talk.feed(OK)

    assert (before, talk.done) == (False, True)


@given(cuts=st.lists(st.integers(min_value=0, max_value=200), max_size=12))
def test_it_makes_no_difference_where_what_is_received_is_cut(cuts: list[int]) -> None:
    whole = GREETING + OK + EVENT + b'{"return": {"name": "\xc3\xa9"}}\r\n'
    talk = Conversation(queries=(NAME,))
    places = sorted({0, len(whole), *(cut for cut in cuts if cut < len(whole))})

    for first, last in pairwise(places):
        talk.feed(whole[first:last])

    assert talk.answers == [{"name": "é"}]


def test_a_query_that_is_refused_tells_it_in_qemus_words() -> None:
    talk = Conversation(queries=(NAME,))
    talk.feed(GREETING + OK)

    with pytest.raises(QueryRefused, match="The command foo has not been found"):
        talk.feed(b'{"error": {"class": "CommandNotFound", "desc": "The command foo has not been found"}}\r\n')


@pytest.mark.parametrize(
    "line", [b"SSH-2.0-OpenSSH\r\n", b'{"return": {}}\n', b"[]\n", b"\xff\xfe\n", b'"QMP"\n', b"[" * 100_000 + b"\n"]
)
def test_what_is_no_greeting_is_refused(line: bytes) -> None:
    with pytest.raises(NoQmp):
        Conversation(queries=(NAME,)).feed(line)


def test_a_message_that_is_neither_answer_nor_error_nor_event_is_refused() -> None:
    talk = Conversation(queries=(NAME,))
    talk.feed(GREETING)

    with pytest.raises(NoQmp):
        talk.feed(b'{"unheard": "of"}\n')


@pytest.mark.parametrize(("command", "done"), [("quit", True), ("query-name", False)])
def test_the_end_of_the_connection_answers_quit_alone(command: str, done: bool) -> None:  # noqa: FBT001 - a row
    talk = Conversation(queries=((command, {}),))
    talk.feed(GREETING + OK)

    assert talk.close() is done


@given(chunks=st.lists(st.binary(max_size=64) | st.sampled_from([GREETING, OK, EVENT, b"\n", b"{}\n"]), max_size=12))
def test_whatever_is_received_only_its_own_errors_come_out(chunks: list[bytes]) -> None:
    talk = Conversation(queries=(NAME, NAME))

    try:
        for chunk in chunks:
            talk.feed(chunk)
    except (NoQmp, QueryRefused):
        return

    assert len(talk.answers) <= 2
