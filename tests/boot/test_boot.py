"""Real Linux guests, emulated: what the guest sees is what was planned, and it ends as it is asked to."""

import json
import re
import signal
import tomllib

from tests.boot.conftest import NO_NETWORK, Define
from tests.sandbox import RUN, Machine, is_alive, wait_for

USER = """
[network.lan]
type = "user"
forwards = ["tcp:127.0.0.1:8080:80"]
"""


def facts(machine: Machine) -> dict[str, str]:
    """Give what the guest told on its console, by its first word."""
    lines = re.findall(r"^guest: (\w+) ?(.*?)\r?$", machine.ok("logs", "web").out, re.MULTILINE)
    return dict(reversed(lines))


def test_a_guest_sees_the_machine_that_was_defined_and_serves_its_page(machine: Machine, define: Define) -> None:
    define(more=USER, disk='[disk.root]\npath = "web.img"\nserial = "system"\nqueues = 2\n',
           lifecycle="", append="")  # fmt: skip
    place = machine.directory / "vmdefs" / "web.toml"
    place.write_text(
        place.read_text()
        .replace("vcpus = 1", "vcpus = 2")
        .replace('ready = "console:guest: ready"', 'ready = "http://127.0.0.1:8080/"')
    )

    machine.ok("up", "web", "--wait", "ready")
    page = machine.execute("curl", "-fsS", "http://127.0.0.1:8080/")
    said = facts(machine)
    ended = machine.ok("down", "web")

    assert "vda" in page.out
    assert said["cpus"] == "2"
    assert 90_000 < int(said["memory"].split()[0]) < 131_072
    assert "size=67108864" in said["disk"]
    assert "serial=system" in said["disk"]
    assert "queues=2" in said["disk"]
    assert "mounted" in said
    assert "ended by" not in ended.err
    assert machine.leftovers() == []


def test_the_kernel_and_its_command_line_reach_qemu_as_they_were_written(machine: Machine, define: Define) -> None:
    define(append="a=b,c 'd e' f==g,,h")
    place = machine.directory / "vmdefs" / "web.toml"

    machine.ok("up", "web", "--paused")
    kernel, append = (
        machine.ok("monitor", "web", "qom-get", json.dumps({"path": "/machine", "property": name}), "--json").json
        for name in ("kernel", "append")
    )

    written = tomllib.loads(place.read_text())["boot"]
    assert append["return"] == written["append"]
    assert "f==g,,h" in append["return"]
    assert kernel["return"] == written["kernel"]


def test_the_guest_is_told_whether_its_disk_has_a_volatile_cache(machine: Machine, define: Define) -> None:
    seen = {}
    for cache in ("writeback", "writethrough"):
        define(disk=f'[disk.root]\npath = "web.img"\ncache = "{cache}"\n')
        machine.ok("up", "web", "--wait", "ready")
        seen[cache] = re.findall(r"write_cache=(.*?) scheduler", facts(machine)["disk"])[0]
        machine.ok("down", "web")
        (machine.outside("/var/log/kvmlaunch/web/console.log")).unlink()

    assert seen == {"writeback": "write back", "writethrough": "write through"}


def test_a_guest_that_powers_itself_off_leaves_its_reason(machine: Machine, define: Define) -> None:
    define(script="(sleep 1; poweroff -f) &")
    machine.ok("up", "web", "--wait", "ready")

    wait_for("the guest is off", lambda: not machine.qemus())
    seen = machine.status("web")
    machine.ok("up", "web", "--paused")

    assert seen["state"] == "ended"
    assert seen["last_end"] == "the guest powered down"


def test_a_guest_that_reboots_goes_on_in_the_same_process(machine: Machine, define: Define) -> None:
    define(script="[ -e /disk/second ] || { touch /disk/second; sync; reboot -f; }")

    machine.ok("up", "web", "--wait", "ready")
    pid = machine.pid("web")

    assert machine.qemus() == [pid]
    assert machine.ok("logs", "web").out.count("guest: kernel") == 2
    machine.ok("down", "web")


def test_a_guest_that_ignores_the_power_button_is_left_alone_until_forced(machine: Machine, define: Define) -> None:
    define(append="kvmlaunch.noacpi", disk="")
    machine.ok("up", "web", "--wait", "ready")
    pid = machine.pid("web")

    gentle = machine.run("down", "web", "--timeout", "1s")
    alive = is_alive(pid)
    forced = machine.ok("down", "web", "--force", "--timeout", "1s")

    assert (gentle.code, gentle.codes) == (8, {"vm.stop.timeout"})
    assert alive
    assert "SIGTERM" in forced.err
    assert machine.leftovers() == []


def test_a_service_is_powered_down_by_sigterm(machine: Machine, define: Define) -> None:
    define(disk="")
    process = machine.start("kvmlaunch", "up", "web", "--foreground")
    log = machine.rundir("web") / "log" / "console.log"
    wait_for("the guest is ready", lambda: log.exists() and b"guest: ready" in log.read_bytes())

    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=100)

    assert process.returncode == 0, err
    assert "did not power down" not in err
    assert machine.leftovers() == []


def test_a_guest_that_never_gets_ready_is_told_and_left_running(machine: Machine, define: Define) -> None:
    define(script="sleep 3600", disk="")

    result = machine.run("up", "web", "--wait", "ready", "--timeout", "8s")

    assert (result.code, result.codes & {"vm.start.timeout"}) == (8, {"vm.start.timeout"})
    assert machine.status("web")["run_state"] == "running"
    machine.end("web")


def test_a_guest_that_fills_its_serial_port_fills_only_its_own_log_and_goes_on(
    machine: Machine, define: Define
) -> None:
    define(script="(while :; do cat /bin/busybox; done) > /dev/ttyS0 & sleep 2", disk="")
    machine.ok("up", "web", "--wait", "started")
    log = machine.rundir("web") / "log" / "console.log"
    machine.execute("mount", "-o", "remount,size=2m", f"{RUN}/web/log")
    wait_for("its log is full", lambda: log.stat().st_size > (1 << 20) + (1 << 19), 120)

    seen = machine.status("web")
    machine.ok("logs", "web", "--json")

    assert seen["run_state"] == "running"
    assert log.stat().st_size <= 2 << 20
    machine.end("web")
    kept = machine.outside("/var/log/kvmlaunch/web")
    assert sum(path.stat().st_size for path in kept.glob("console.log*")) <= 8 << 20


def test_what_a_guest_prints_reaches_logs_without_its_escapes(machine: Machine, define: Define) -> None:
    define(script=r"printf '\033[31mred\033]0;title\007\n' > /dev/ttyS0", disk="")

    machine.ok("up", "web", "--wait", "ready")
    clean, raw = machine.ok("logs", "web").out, machine.ok("logs", "web", "--raw").out

    assert "red" in clean
    assert "\x1b" not in clean
    assert "\x1b[31mred" in raw
    machine.end("web")


def test_a_console_client_that_stops_reading_does_not_stop_the_guest(machine: Machine, define: Define) -> None:
    line = "0123456789" * 5
    script = f"i=0; while [ $i -lt 4000 ]; do echo $i {line}; i=$((i+1)); done > /dev/ttyS0"
    define(script=script, disk="")
    machine.ok("up", "web")
    stuck = machine.start("sh", "-c", "sleep infinity | kvmlaunch console web | sleep infinity")
    wait_for("it is connected", (machine.rundir("web") / "console.sock.lock").exists)

    wait_for("the guest got to its end", lambda: b"guest: ready" in read(machine), 150)

    assert stuck.poll() is None
    assert machine.run("console", "web").code == 7
    machine.end("web")


def read(machine: Machine) -> bytes:
    """Give the live console log."""
    place = machine.rundir("web") / "log" / "console.log"
    return place.read_bytes() if place.exists() else b""


def test_a_full_host_file_system_pauses_the_guest_and_resume_goes_on_after_it_is_freed(
    machine: Machine, define: Define
) -> None:
    script = "(sleep 1; dd if=/dev/zero of=/dev/vda bs=64k count=200 conv=fsync; echo guest: written > /dev/ttyS0) &"
    define(script=script, disk='[disk.data]\npath = "/srv/data.img"\ncache = "writeback"\n', more=NO_NETWORK)
    machine.execute("mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", "/srv")
    machine.execute("truncate", "-s", "16M", "/srv/data.img")
    machine.ok("up", "web", "--wait", "ready")

    wait_for("the guest is paused", lambda: machine.status("web")["run_state"] == "io-error")
    seen = machine.status("web")
    down = machine.run("down", "web")
    again = machine.run("resume", "web")
    machine.execute("mount", "-o", "remount,size=64m", "/srv")
    machine.ok("resume", "web")
    wait_for("the guest has written", lambda: b"guest: written" in read(machine))

    assert (down.code, down.codes) == (7, {"vm.state"})
    assert "hears no power button" in down.err
    assert seen["state"] == "paused"
    assert any("waits for its storage" in note for note in seen["notes"])
    assert (again.code, again.codes) == (7, {"vm.state"})
    assert "disk data: there is no space" in again.err
    assert machine.status("web")["run_state"] == "running"
    machine.ok("down", "web")


def test_what_the_guest_has_flushed_survives_a_killed_qemu(machine: Machine, define: Define) -> None:
    define(script="echo kept > /disk/kept; sync; echo guest: flushed > /dev/ttyS0")
    machine.ok("up", "web", "--wait", "ready")
    machine.kill(machine.pid("web"))

    assert b"kept\n" in (machine.directory / "vmdefs" / "web.img").read_bytes()
