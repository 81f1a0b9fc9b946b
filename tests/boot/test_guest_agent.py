"""The real agent in real guests, emulated: commands, addresses, file systems held still, the end; and one that lies."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

import pytest

from kvmlaunch.model.lifecycle import VmState
from kvmlaunch.model.plan import Places
from kvmlaunch.run.agent import ask_agent
from kvmlaunch.steps.agent import channel, frozen_guest
from kvmlaunch.steps.observe import Seen
from tests.boot.conftest import Define, write_guest
from tests.sandbox import KVMLAUNCH, Machine, Result, finish, made_machine, require_root, wait_for

USER: Final = """
[network.lan]
type = "user"
"""
START: Final = """
mkdir -p /var/run /run/qga
for p in /sys/class/virtio-ports/*; do
    qemu-ga -m virtio-serial -p /dev/${p##*/} -t /run/qga >/run/qga.log 2>&1 &
done
"""
REFUSE: Final = r"printf '#!/bin/sh\nexit 1\n' >/sbin/shutdown"
# Agrees to everything, and tells of itself what a terminal would obey and UTF-8 has not.
LIAR: Final = r"""
name='"name": "e\u001b[2J\ud800"'
address='"ip-address": "\u001b]0;t\u0007192.0.2.1", "prefix": 24'
say() { printf "$1%s\n" "$2" >&3; }
(
    exec 3<>/dev/$(ls /sys/class/virtio-ports)
    while :; do
        read -r line <&3 || { sleep 0.1; continue; }
        case $line in
            *sync*) id=${line##* }; say '\377' "{\"return\": ${id%%\}*}}" ;;
            *network*) say '' "{\"return\": [{$name, \"ip-addresses\": [{$address}]}]}" ;;
            *shutdown*) say '' '{"return": {}}' ;;
            *) say '' '{"error": {"desc": "no \u001b[31mred\ud800"}}' ;;
        esac
    done
) &
"""


def wait_until_it_listens(machine: Machine) -> None:
    """Wait until the agent in the guest has opened its channel."""
    wait_for("the agent listens", lambda: "agent.missing" not in machine.run("exec", "web", "--", "true").codes)


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory, cache: Path, built: Path) -> Iterator[Machine]:
    """Give a machine with a guest in which the agent runs, for all tests that leave it as it is."""
    require_root()
    with made_machine(tmp_path_factory.mktemp("agent"), cache) as machine:
        write_guest(machine, built, script=START, more=USER, agent=True)
        machine.ok("up", "web", "--wait", "ready")
        wait_until_it_listens(machine)
        yield machine


def test_the_guests_script_has_udev_set_the_scheduler(guest: Machine) -> None:
    execute(guest, "/lib/systemd/systemd-udevd --daemon")
    script = guest.ok("guest-script", "web").out
    (guest.directory / "guest.sh").write_text(script)

    before = execute(guest, "cat /sys/block/vda/queue/scheduler")
    ran = guest.execute("sh", "-c", f"{KVMLAUNCH} exec web -i -- sh < {guest.directory / 'guest.sh'}")
    wait_for("none is chosen", lambda: "[none]" in execute(guest, "cat /sys/block/vda/queue/scheduler").out)

    assert "[mq-deadline]" in before.out
    assert (ran.code, ran.err.count("do it by hand")) == (1, 3), ran.err  # neither systemd nor packages in this guest


def test_a_disk_that_grows_is_seen_to_by_the_running_guest(guest: Machine) -> None:
    before = execute(guest, "cat /sys/block/vda/size")

    guest.ok("disk", "resize", "web:root", "+16MiB")
    after = execute(guest, "cat /sys/block/vda/size")

    assert int(after.out) - int(before.out) == 16 << 11


def execute(machine: Machine, script: str, *options: str) -> Result:
    """Run a script in the guest."""
    return machine.run("exec", "web", *options, "--", "sh", "-c", script)


def test_a_command_in_the_guest_gives_what_it_prints_and_ends_as_it_ends(guest: Machine) -> None:
    name = guest.run("exec", "web", "--", "uname", "-s")
    both = execute(guest, r"echo out; printf 'err\n' >&2; exit 7")
    killed = execute(guest, "kill -TERM $$")

    assert (name.code, name.out, name.err) == (0, "Linux\n", "")
    assert (both.code, both.out, both.err) == (7, "out\n", "err\n")
    assert (killed.code, killed.out, killed.err) == (143, "", "")


def test_words_reach_the_command_as_they_are(guest: Machine) -> None:
    words = ("", "two words", "-v", "--json", "$HOME; *", '"\\', "é", "--")

    result = guest.run("exec", "web", "--", "printf", r"<%s>\n", *words)

    assert result.code == 0
    assert result.out.splitlines() == [f"<{word}>" for word in words]


def test_standard_input_reaches_the_command_where_that_is_asked_for(guest: Machine) -> None:
    given = guest.execute("sh", "-c", r"printf 'one\0\377two' | kvmlaunch exec web -i -- od -An -tx1")
    empty = guest.execute("sh", "-c", "kvmlaunch exec web --stdin -- wc -c </dev/null")
    without = guest.execute("sh", "-c", "echo unread | kvmlaunch exec web -- wc -c")

    assert (given.code, given.out.strip()) == (0, "6f 6e 65 00 ff 74 77 6f")
    assert (empty.code, empty.out) == (0, "0\n")
    assert (without.code, without.out) == (0, "0\n")


def test_a_command_as_a_document(guest: Machine) -> None:
    both = execute(guest, r"printf 'a\377b'; echo err >&2; exit 3", "--json")
    killed = execute(guest, "kill -KILL $$", "--json")

    assert both.code == 3
    assert both.json == {
        "schema": "kvmlaunch/exec/1",
        "name": "web",
        "code": 3,
        "stdout": "a\ufffdb",
        "stderr": "err\n",
        "truncated": False,
    }
    assert (killed.code, killed.json["code"]) == (137, 137)


def test_a_command_that_is_not_there_is_an_error_in_the_agents_words(guest: Machine) -> None:
    told = guest.run("exec", "web", "--", "/no/such/command")
    document = guest.run("exec", "web", "--json", "--", "/no/such/command")

    assert (told.code, told.codes, told.out) == (1, {"agent.error"}, "")
    assert "/no/such/command" in told.err
    assert (document.code, document.out, document.error["code"]) == (1, "", "agent.error")


def test_a_command_that_does_not_end_in_time_runs_on_and_the_agent_is_there_for_others(guest: Machine) -> None:
    late = guest.run("exec", "web", "--timeout", "300ms", "--", "sleep", "1000")
    again = guest.run("exec", "web", "--", "pidof", "sleep")

    assert (late.code, late.codes, late.out) == (8, {"agent.timeout"}, "")
    assert "sleep has not ended" in late.err
    assert again.code == 0


def test_commands_at_the_same_time_do_not_mix(guest: Machine) -> None:
    started = [
        guest.start("kvmlaunch", "exec", "web", "--", "sh", "-c", f"sleep 0.3; echo {number}; exit {number}")
        for number in range(4)
    ]

    results = [finish(process) for process in started]

    assert [(each.code, each.out) for each in results] == [(number, f"{number}\n") for number in range(4)]


def test_megabytes_that_a_command_prints_come_whole(guest: Machine) -> None:
    result = execute(guest, "yes 0123456 | head -c 4000000", "--timeout", "20s")

    assert result.code == 0, result.err
    assert len(result.out) == 4_000_000
    assert set(result.out.splitlines()) == {"0123456"}


def test_a_megabyte_that_a_command_reads_comes_whole(guest: Machine) -> None:
    result = guest.execute("sh", "-c", "yes 0123456 | head -c 1000000 | kvmlaunch exec web -i -- wc -cl")

    assert result.code == 0, result.err
    assert result.out.split() == ["125000", "1000000"]


def test_status_tells_the_guests_address(guest: Machine) -> None:
    wait_for("the guest has an address", lambda: guest.status("web")["addresses"])

    told = guest.ok("status", "web")
    document = guest.status("web")

    assert "eth0 10.0.2.15/24" in told.out
    assert "eth0 10.0.2.15/24" in document["addresses"]
    assert not [text for text in document["addresses"] if text.startswith("lo ")]


def test_the_guests_file_systems_are_held_still_for_a_while_though_a_killed_command_left_them_so(
    guest: Machine,
) -> None:
    run = PurePosixPath(guest.rundir("web"))
    places = Places(run=run, hugepages=run, state=run, logs=run)
    seen = Seen(name="web", places=places, state=VmState.RUNNING, pid=guest.pid("web"))

    ask_agent(channel(seen), (("guest-fsfreeze-freeze", {}),), seconds=60)  # as a killed command leaves them
    with frozen_guest(seen) as count:
        meanwhile = execute(guest, "echo held >/disk/held")
    after = execute(guest, "echo free >/disk/free; sync; ls /disk")

    assert count.count == 1
    assert (meanwhile.code, meanwhile.codes) == (1, {"agent.error"})
    assert "frozen" in meanwhile.err
    assert after.code == 0
    assert "free" in after.out.split()
    assert "held" not in after.out.split()


def test_down_asks_the_agent_where_the_guest_ignores_its_power_button(machine: Machine, define: Define) -> None:
    define(script=START, append="kvmlaunch.noacpi", disk="", agent=True)
    machine.ok("up", "web", "--wait", "ready")
    wait_until_it_listens(machine)

    ended = machine.ok("down", "web")

    assert "the agent in the guest was asked" in ended.err
    assert "power button" not in ended.err
    assert "ended by" not in ended.err
    assert machine.leftovers() == []


def test_an_agent_that_refuses_leaves_the_power_button(machine: Machine, define: Define) -> None:
    define(script=f"{REFUSE}\n{START}", disk="", agent=True)
    machine.ok("up", "web", "--wait", "ready")
    wait_until_it_listens(machine)

    ended = machine.ok("down", "web")

    assert "the guest's agent: " in ended.err
    assert "now the power button" in ended.err
    assert "ended by" not in ended.err
    assert "power button" in machine.ok("logs", "web").out
    assert machine.leftovers() == []


def test_an_agent_that_lies_harms_no_terminal_and_does_not_keep_its_guest_up(machine: Machine, define: Define) -> None:
    define(script=LIAR, disk="", agent=True)
    machine.ok("up", "web", "--wait", "ready")
    wait_until_it_listens(machine)

    told = machine.run("exec", "web", "--", "true")
    seen = machine.run("status", "web")
    document = machine.run("status", "web", "--json")
    ended = machine.ok("down", "web", "--timeout", "10s")

    assert (told.code, told.codes) == (1, {"agent.error"})
    assert "\x1b" not in told.err
    assert (seen.code, seen.codes) == (0, set()), seen.err
    assert "192.0.2.1/24" in seen.out
    assert "\x1b" not in seen.out
    assert "\x07" not in seen.out
    assert document.code == 0, document.err
    assert "192.0.2.1/24" in document.json["vms"][0]["addresses"][0]
    assert "the agent did not end it; now the power button" in ended.err
    assert "ended by" not in ended.err
    assert machine.leftovers() == []
