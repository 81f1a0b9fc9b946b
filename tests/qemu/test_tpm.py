"""The emulator of a TPM beside QEMU: started before it, gone with it, told when it dies."""

import os
import signal
import subprocess  # noqa: TID253 - a process that the project knows nothing of
import sys
from pathlib import Path, PurePosixPath

import pytest

from kvmlaunch.run.sidecar import find_server
from tests.sandbox import RUN, TINY, Machine, Result, wait_for

TPM = f"{TINY}[firmware]\ntpm = true\n"
SECURE = f'{TINY}[boot]\nfirmware = "uefi"\n[firmware]\ntpm = true\nsecure_boot = true\n'


def emulators(machine: Machine) -> list[int]:
    """Give the pids of the emulators that run in a machine."""
    return [pid for pid in machine.processes() if b"swtpm" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def notes(machine: Machine) -> str:
    """Give what status notes of a VM."""
    return "\n".join(machine.status("web")["notes"])


def test_the_emulator_ends_with_its_vm(machine: Machine) -> None:
    machine.define("web", TPM)

    machine.ok("up", "web", "--paused")
    during, said = emulators(machine), notes(machine)
    machine.ok("down", "web", "--force", "--timeout", "10ms")
    wait_for("the emulator has ended", lambda: not emulators(machine))

    assert len(during) == 1
    assert "TPM" not in said
    assert machine.leftovers() == []


def test_an_emulator_that_died_is_noted(machine: Machine) -> None:
    machine.define("web", TPM)
    machine.ok("up", "web", "--paused")

    os.kill(emulators(machine)[0], signal.SIGKILL)
    wait_for("it is gone", lambda: not emulators(machine))

    assert "kvmlaunch restart web" in notes(machine)


def test_a_start_that_fails_leaves_no_emulator(machine: Machine) -> None:
    machine.define("web", f'{TPM}[raw]\nargs = ["-device", "no-such-device"]\n')

    failed = machine.run("up", "web")

    assert failed.code == 9, failed.err
    assert emulators(machine) == []
    assert machine.leftovers() == []


def test_variables_of_secure_boot_are_the_vms_own_and_writable_by_firmware_alone(machine: Machine) -> None:
    machine.define("web", SECURE)

    machine.ok("up", "web", "--paused")
    argv = machine.ok("print-cmd", "web").out
    store = machine.outside("/var/lib/kvmlaunch/vm/web/uefi-variables.fd")

    assert "smm=on" in argv
    assert "driver=cfi.pflash01,property=secure,value=on" in argv
    assert store.stat().st_mode & 0o777 == 0o600


def test_the_printed_command_is_told_what_comes_before_it(machine: Machine) -> None:
    machine.define("web", TPM)

    printed = machine.ok("print-cmd", "web")

    assert "swtpm socket --tpm2" in printed.err
    assert f"{RUN}/web/tpm.sock" in printed.err


def test_secure_boot_is_refused_with_variables_that_have_no_keys(machine: Machine) -> None:
    machine.define("web", f'{TINY}[boot]\nfirmware = "uefi"\n')
    machine.ok("up", "web", "--paused")
    machine.ok("down", "web", "--force", "--timeout", "0")
    machine.define("web", SECURE)

    refused = machine.run("up", "web")
    before = machine.run("preflight", "web")
    store = machine.outside("/var/lib/kvmlaunch/vm/web/uefi-variables.fd")
    store.rename(store.with_suffix(".before"))
    machine.ok("up", "web", "--paused")

    assert (refused.code, refused.codes & {"firmware.variables"}) == (6, {"firmware.variables"})
    assert "firmware.variables" in before.codes
    assert store.exists()
    machine.ok("restart", "web", "--force", "--timeout", "0")


def test_variables_that_were_cut_off_are_refused_before_qemu_meets_them(machine: Machine) -> None:
    machine.define("web", f'{TINY}[boot]\nfirmware = "uefi"\n')
    machine.ok("up", "web", "--paused")
    machine.ok("down", "web", "--force", "--timeout", "0")
    store = machine.outside("/var/lib/kvmlaunch/vm/web/uefi-variables.fd")
    whole = store.read_bytes()
    store.write_bytes(whole[:4096])

    refused = machine.run("up", "web")
    store.write_bytes(whole)

    assert (refused.code, refused.codes & {"firmware.variables"}) == (6, {"firmware.variables"})
    assert "cut off" in refused.err
    machine.ok("up", "web", "--paused")


@pytest.mark.parametrize("key", ["firmware.tpm=1", "firmware.secure_boot=true"])
def test_what_cannot_be_is_refused_with_its_place(machine: Machine, key: str) -> None:
    machine.define("web", TINY)

    refused: Result = machine.run("validate", "web", "--set", key)

    assert refused.code == 5
    assert "firmware" in refused.err


def test_an_emulator_that_was_not_noted_any_more_is_ended_too(machine: Machine) -> None:
    machine.define("web", TPM)
    machine.ok("up", "web", "--paused")
    (pid,) = emulators(machine)
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]
    machine.end("web")
    wait_for("the emulator has ended", lambda: not emulators(machine))
    run = machine.rundir("web")
    run.mkdir(mode=0o700)
    (run / "tpm.sock.pid").write_text("0 0\n")
    machine.execute("sh", "-c", 'umask 077; "$@" --daemon', "sh", *(os.fsdecode(word) for word in words))
    left = emulators(machine)

    machine.ok("down", "web")
    wait_for("the emulator has ended", lambda: not emulators(machine))

    assert len(left) == 1


@pytest.mark.parametrize("apart", [False, True])
def test_a_server_counts_where_it_sees_the_same_run_directory(tmp_path: Path, *, apart: bool) -> None:
    stays = "import time; print(flush=True); time.sleep(60)"
    words = [sys.executable, "-c", stays, f"type=unixio,path={tmp_path}/tpm.sock"]
    hidden = f'mount -t tmpfs none {tmp_path} && exec "$@"'
    within = ["unshare", "-m", "sh", "-c", hidden, "sh", *words] if apart else words
    with subprocess.Popen(within, stdout=subprocess.PIPE) as process:  # noqa: S603 - a test's own command
        assert process.stdout is not None
        process.stdout.readline()
        found = find_server(PurePosixPath(tmp_path), "tpm.sock")
        process.kill()

    assert found == (None if apart else process.pid)


def test_what_a_vm_keeps_is_given_to_whom_it_runs_as_next(machine: Machine) -> None:
    machine.define("web", SECURE)
    machine.ok("up", "web", "--paused")
    machine.end("web")

    other = machine.run("up", "web", "--paused", "--set", "security.user=nobody")

    assert other.code == 0, other.err


def test_a_damaged_state_of_the_tpm_is_told_as_that(machine: Machine) -> None:
    machine.define("web", TPM)
    machine.ok("up", "web", "--paused")
    machine.end("web")
    (machine.outside("/var/lib/kvmlaunch/vm/web/tpm") / "tpm2-00.permall").write_text("garbage\n")

    assert machine.run("up", "web", "--paused").codes == {"qemu.tpm"}
