"""Why QEMU died: its own words stand beneath a code, a cause and the next command."""

import pytest

from kvmlaunch.model.codes import CODES
from kvmlaunch.preflight.death import report_death

ARGV = ("/usr/bin/qemu-system-x86_64", "-nodefaults")
LOG = "/var/log/kvmlaunch/web01/qemu.log"


@pytest.mark.parametrize(
    ("signal", "code", "words"),
    [
        (7, "qemu.signal.bus", "memory backing"),
        (31, "qemu.signal.sys", "seccomp"),
        (6, "qemu.signal.abrt", "aborted"),
        (9, "qemu.signal.kill", "killed"),
        (15, "qemu.exit", "signal 15"),
        (11, "qemu.exit", "signal 11"),
    ],
)
def test_a_signal_is_told_in_words(signal: int, code: str, words: str) -> None:
    report = report_death(-signal, "", ARGV, LOG)

    assert report.code == code
    assert words in report.message
    assert report.why == "QEMU said nothing"
    assert report.hint


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('qemu: -device x: Failed to get "write" lock\nIs another process using the image [/a.img]?', "disk.locked"),
        ('qemu: -device x: Failed to get shared "write" lock', "disk.locked"),
        ("qemu: -netdev user,id=x: Could not set up host forwarding rule 'tcp:127.0.0.1:80-:80'", "host.port.used"),
        ("qemu: -vnc 127.0.0.1:1: Failed to bind socket: Address already in use", "host.port.used"),
        ("qemu: unable to map backing store for guest RAM: Cannot allocate memory", "host.hugepages.short"),
        ("Could not access KVM kernel module: Permission denied", "host.kvm.permission"),
        ("qemu: tpm-emulator: TPM result for CMD_INIT: 0x101 operation failed", "qemu.tpm"),
        ("qemu: failed to initialize KVM: Operation not permitted", "host.kvm.permission"),
        ("qemu: -drive file=/a.qcow2,format=qcow2,if=none: Snapshot table offset invalid", "disk.corrupt"),
        ("qemu: -drive file=/a.img,format=raw,if=none: Snapshot table offset invalid", "qemu.exit"),
        ("qemu: -device x: Property not found", "qemu.exit"),
        ("", "qemu.exit"),
    ],
)
def test_its_own_words_tell_the_cause_and_stand_verbatim(text: str, code: str) -> None:
    report = report_death(1, f"{text}\n", ARGV, LOG)

    assert report.code == code
    assert report.why == (text or "QEMU said nothing")
    assert report.where == LOG
    assert report.hint


@pytest.mark.parametrize("who", ["TCG", "Host"])
def test_cpu_features_that_cannot_be_given_are_named_as_the_lines_that_do_without_them(who: str) -> None:
    lacks = f"qemu: warning: {'host' if who == 'Host' else who} doesn't support requested feature: CPUID"
    text = f"{lacks}.01H:ECX.pcid [bit 17]\n{lacks}.07H:EBX.avx512f [bit 16]\n{lacks}.01H:ECX.sse4.1 [bit 19]\n"
    text += f"{lacks}[eax=80000001h].ECX.3dnowprefetch [bit 8]\n"

    report = report_death(1, f"{text}qemu: {who} doesn't support requested features\n", ARGV, LOG)

    assert report.code == "host.cpu.features"
    assert 'features = { pcid = "off", avx512f = "off", "sse4.1" = "off", 3dnowprefetch = "off" }' in report.hint
    assert "bit 17" in report.why


def test_features_in_words_that_are_not_known_have_a_fix_all_the_same() -> None:
    report = report_death(1, "qemu: warning: lacks x\nqemu: TCG doesn't support requested features\n", ARGV, LOG)

    assert (report.code, "features = {" in report.hint) == ("host.cpu.features", False)
    assert "cpu.features" in report.hint


def test_an_unknown_end_names_its_status() -> None:
    assert "exit status 42" in report_death(42, "", ARGV, LOG).message


def test_a_signal_is_no_matter_of_words() -> None:
    report = report_death(-7, 'Failed to get "write" lock', ARGV, LOG)

    assert report.code == "qemu.signal.bus"
    assert "write" in report.why


def test_every_code_is_registered() -> None:
    codes = {report_death(status, "", ARGV, LOG).code for status in (1, -6, -7, -9, -15, -31)}

    assert codes <= CODES.keys()
