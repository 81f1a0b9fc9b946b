"""Taps of ours on a real bridge, in a network namespace: made, joined, removed, also after crashes."""

import json
import signal

import pytest

from tests.crashes import describe, killed_at, points, sample
from tests.sandbox import TINY, Machine

BRIDGED = TINY.replace('type = "none"', 'type = "bridge"\nbridge = "br0"')


def links(machine: Machine) -> dict[str, str]:
    """Give the network devices with the bridge that each is joined to."""
    found = json.loads(machine.execute("ip", "-json", "link", "show").out)
    return {link["ifname"]: link.get("master", "") for link in found}


@pytest.fixture
def bridge(machine: Machine) -> dict[str, str]:
    """Make a bridge; gives the devices before anything starts.  /sys shows the devices of who mounted it."""
    machine.execute("mount", "-t", "sysfs", "sysfs", "/sys")
    machine.execute("ip", "link", "add", "br0", "type", "bridge")
    machine.execute("ip", "link", "set", "br0", "up")
    machine.define("web", BRIDGED)
    return links(machine)


def test_a_tap_is_made_joined_and_removed(machine: Machine, bridge: dict[str, str]) -> None:
    machine.ok("up", "web", "--paused")
    during = {name: master for name, master in links(machine).items() if name not in bridge}
    machine.end("web")

    assert list(during.values()) == ["br0"]
    assert links(machine) == bridge
    assert machine.leftovers() == []


def test_a_missing_bridge_is_refused_before_anything_changes(machine: Machine) -> None:
    machine.define("web", BRIDGED)
    before = links(machine)

    result = machine.run("up", "web", "--paused")

    assert result.code == 6
    assert result.codes == {"host.bridge.missing"}
    assert links(machine) == before


def test_a_killed_qemu_has_its_tap_removed_by_the_next_command(machine: Machine, bridge: dict[str, str]) -> None:
    machine.ok("up", "web", "--paused")
    machine.kill(machine.pid("web"), signal.SIGKILL)

    machine.ok("down", "web")

    assert links(machine) == bridge
    assert machine.leftovers() == []


def test_two_vms_on_one_bridge_have_taps_of_their_own(machine: Machine, bridge: dict[str, str]) -> None:
    machine.define("mail", BRIDGED)

    machine.ok("up", "web", "mail", "--paused", "-j", "2")
    during = {name: master for name, master in links(machine).items() if name not in bridge}
    machine.ok("down", "--all", "--force", "--timeout", "10ms", "-j", "2")

    assert sorted(during.values()) == ["br0", "br0"]
    assert links(machine) == bridge


def test_the_mtu_that_is_written_is_the_taps(machine: Machine, bridge: dict[str, str]) -> None:
    machine.define("web", BRIDGED.replace('bridge = "br0"', 'bridge = "br0"\nmtu = 1400'))

    machine.ok("up", "web", "--paused")
    found = json.loads(machine.execute("ip", "-json", "link", "show").out)

    assert [link["mtu"] for link in found if link["ifname"] not in bridge] == [1400]


def test_a_tap_is_prepared_kept_over_down_and_undone(machine: Machine, bridge: dict[str, str]) -> None:
    machine.ok("preflight", "web", "--apply")
    prepared = links(machine)
    machine.ok("up", "web", "--paused")
    machine.end("web")
    kept = links(machine)
    machine.ok("preflight", "web", "--undo")

    assert len(prepared) == len(bridge) + 1
    assert kept == prepared
    assert links(machine) == bridge
    assert machine.leftovers() == []


def test_a_prepared_tap_with_other_queues_is_made_anew_and_undone(machine: Machine, bridge: dict[str, str]) -> None:
    machine.ok("preflight", "web", "--apply")
    machine.define("web", BRIDGED.replace("vcpus = 1", "vcpus = 2"))

    machine.ok("up", "web", "--paused")
    machine.end("web")
    machine.ok("preflight", "web", "--apply")
    settled = machine.ok("preflight", "web", "--json").json["vms"][0]["changes"]
    machine.ok("preflight", "web", "--undo")

    assert settled == []
    assert links(machine) == bridge
    assert machine.leftovers() == []


def test_a_prepared_tap_is_joined_again_after_a_vm_had_it_elsewhere(machine: Machine, bridge: dict[str, str]) -> None:
    machine.execute("ip", "link", "add", "br1", "type", "bridge")
    machine.execute("ip", "link", "set", "br1", "up")
    machine.ok("preflight", "web", "--apply")
    prepared = links(machine)
    machine.define("web", BRIDGED.replace("br0", "br1"))

    machine.ok("up", "web", "--paused")
    during = sorted(links(machine).values())
    machine.end("web")
    after = links(machine)
    machine.ok("preflight", "web", "--undo")

    assert during.count("br1") == 1
    assert after == prepared
    assert links(machine).keys() == {*bridge, "br1"}


def test_up_killed_while_it_makes_a_tap_leaves_none(machine: Machine, bridge: dict[str, str]) -> None:
    machine.ok("print-cmd", "web")
    words = ("up", "web", "--paused")
    places = points(machine, *words, after=r"flock", others=4)
    machine.end("web")

    for point in sample([point for point in places if point.name not in {"mkdirat", "openat", "fchown"}], 5):
        killed_at(machine, point, *words)
        try:
            machine.end("web")
            assert links(machine) == bridge
            assert machine.leftovers() == []
        except AssertionError as error:
            error.add_note(describe(point, words))
            raise


def test_a_failed_start_removes_its_tap(machine: Machine, bridge: dict[str, str]) -> None:
    machine.define("web", f'{BRIDGED}[raw]\nargs = ["-device", "no-such-device"]\n')

    result = machine.run("up", "web", "--paused")

    assert result.code == 9
    assert links(machine) == bridge


def test_an_existing_tap_is_used_and_left(machine: Machine, bridge: dict[str, str]) -> None:
    machine.define("web", TINY.replace('type = "none"', 'type = "tap"\nifname = "mine"'))
    machine.execute("ip", "tuntap", "add", "dev", "mine", "mode", "tap")

    result = machine.run("up", "web", "--paused")

    assert result.code == 0, result.err
    machine.end("web")
    assert links(machine) == {**bridge, "mine": ""}
