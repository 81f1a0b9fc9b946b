"""How a guest can end: `status` gives the reason, and a QEMU that was told to outlive its guest is ended by `down`."""

from typing import Final

from tests.boot.conftest import NO_NETWORK, Define
from tests.sandbox import Machine, wait_for

NO_SHUTDOWN: Final = '[raw]\nargs = ["-no-shutdown"]\n'
PANIC: Final = "modprobe pvpanic-pci; (sleep 2; echo c >/proc/sysrq-trigger) &"


def test_a_guest_that_powers_off_leaves_its_qemu_where_that_was_asked_for_and_down_ends_it(
    machine: Machine, define: Define
) -> None:
    define(script="(sleep 2; poweroff -f) &", disk="", more=f"{NO_NETWORK}{NO_SHUTDOWN}")
    machine.ok("up", "web", "--wait", "ready")
    wait_for("the guest is off", lambda: machine.status("web")["run_state"] == "shutdown")

    seen = machine.status("web")
    again = machine.ok("up", "web")
    resumed = machine.run("resume", "web")
    ended = machine.ok("down", "web")

    assert (seen["state"], seen["last_end"]) == ("paused", "the guest powered down")
    assert again.codes == {"vm.paused"}
    assert (resumed.code, resumed.codes, "kvmlaunch restart web" in resumed.err) == (7, {"vm.state"}, True)
    assert "had powered down" in ended.err
    assert machine.leftovers() == []


def test_a_qemu_that_would_outlive_its_guest_ends_with_it_on_the_way_down(machine: Machine, define: Define) -> None:
    define(disk="", more=f"{NO_NETWORK}{NO_SHUTDOWN}")
    machine.ok("up", "web", "--wait", "ready")

    ended = machine.ok("down", "web")

    assert "did not power down" not in ended.err
    assert machine.leftovers() == []


def test_a_service_whose_qemu_would_outlive_its_guest_ends_with_it(machine: Machine, define: Define) -> None:
    define(disk="", more=f"{NO_NETWORK}{NO_SHUTDOWN}")
    process = machine.start("kvmlaunch", "up", "web", "--foreground")
    log = machine.rundir("web") / "log" / "console.log"
    wait_for("the guest is ready", lambda: log.exists() and b"guest: ready" in log.read_bytes())

    process.terminate()
    _, err = process.communicate(timeout=100)

    assert process.returncode == 0, err
    assert "did not power down" not in err
    assert machine.leftovers() == []


def test_a_guest_whose_reboots_are_to_end_it_leaves_that_as_its_reason(machine: Machine, define: Define) -> None:
    define(script="(sleep 2; reboot -f) &", disk="", more=f'{NO_NETWORK}[raw]\nargs = ["-no-reboot"]\n')
    machine.ok("up", "web", "--wait", "ready")

    wait_for("it has ended", lambda: not machine.qemus())

    assert machine.status("web")["last_end"] == "the guest reset, and QEMU was told to end then"


def test_a_panic_that_the_guest_can_tell_of_is_the_reason_of_its_end(machine: Machine, define: Define) -> None:
    define(script=PANIC, disk="", more=f'{NO_NETWORK}[raw]\nargs = ["-device", "pvpanic-pci"]\n')
    machine.ok("up", "web", "--wait", "ready")

    wait_for("it has ended", lambda: not machine.qemus())
    seen = machine.status("web")
    machine.ok("up", "web", "--paused")

    assert (seen["state"], seen["last_end"]) == ("ended", "the guest panicked")


def test_a_guest_that_is_paused_by_its_panic_stays_to_be_looked_at(machine: Machine, define: Define) -> None:
    define(script=PANIC, disk="", lifecycle='on_crash = "pause"')
    machine.ok("up", "web", "--wait", "ready")
    wait_for("it has panicked", lambda: machine.status("web")["run_state"] == "guest-panicked")

    seen = machine.status("web")
    gentle = machine.run("down", "web", "--timeout", "100ms")
    pids = machine.qemus()

    assert seen["state"] == "paused"
    assert (gentle.code, gentle.codes) == (7, {"vm.state"})
    assert "stands still (guest-panicked)" in gentle.err
    assert "kvmlaunch reset web" in gentle.err
    assert pids == [seen["pid"]]
    assert "Kernel panic" in machine.ok("logs", "web").out
    machine.ok("reset", "web")
    assert machine.status("web")["run_state"] == "running"
    machine.end("web")


def test_a_panic_that_the_guest_cannot_tell_of_leaves_it_running(machine: Machine, define: Define) -> None:
    define(script=PANIC, disk="")
    machine.ok("up", "web", "--wait", "ready")

    wait_for("it has panicked", lambda: "Kernel panic" in machine.ok("logs", "web").out)

    assert machine.status("web")["run_state"] == "running"
