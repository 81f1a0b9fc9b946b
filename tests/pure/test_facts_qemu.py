"""The answers of QEMU binaries, the cache of what they told, and programs that are no QEMU."""

import json
from contextlib import suppress
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmlaunch.errors import HostFailed, PreflightFailed, TimedOut
from kvmlaunch.facts import qemu, qemu_cache
from kvmlaunch.host.command import run_tool
from kvmlaunch.host.qemu_probe import load_answers, probe_qemu, save_answers
from kvmlaunch.model.qemu import QemuCaps

pytestmark = pytest.mark.pure

QEMUS = Path(__file__).resolve().parents[1] / "qemus"
VERSIONS = sorted(place.name for place in QEMUS.iterdir() if place.is_dir())


def caps(version: str) -> QemuCaps:
    return qemu.parse_answers(load_answers(QEMUS / version))


@pytest.mark.parametrize("version", VERSIONS)
def test_what_every_qemu_has(version: str) -> None:
    found = caps(version)
    assert found.version_text.startswith(version)
    assert found.device_has("virtio-blk-pci", "num-queues")
    assert found.aio == {"threads", "native", "io_uring"}
    assert {"host", "max", "qemu64"} <= set(found.cpu_models)
    assert {"memory-backend-file", "iothread", "rng-random"} <= found.objects
    assert {"sandbox", "nodefaults", "drive", "hdb", "m"} <= found.bare_options
    assert {"hpet", "vmport", "mem-merge", "dump-guest-core"} <= found.machine_properties
    assert found.accelerators == {"kvm", "tcg"}


def test_what_version_7_lacks() -> None:
    old, new = caps("7.2.22"), caps("10.0")
    assert not old.device_has("virtio-blk-pci", "iothread-vq-mapping")
    assert new.device_has("virtio-blk-pci", "iothread-vq-mapping")
    assert new.qcow2 - old.qcow2 == {"discard-no-unref"}
    assert (old.options["overcommit"]["mem-lock"], new.options["overcommit"]["mem-lock"]) == ("boolean", "string")
    assert "run-with" not in old.options
    assert new.options["run-with"]["user"] == "string"
    assert old.bare_options - new.bare_options >= {"runas", "chroot", "no-hpet"}


def test_machine_types() -> None:
    old, new = caps("7.2.22"), caps("10.0")
    assert [sum(machine.deprecated for machine in found.machines) for found in (old, new)] == [4, 43]
    newest = old.machine("q35")
    assert newest is not None
    assert (newest.name, newest.cpu_max) == ("pc-q35-7.2", 288)


@pytest.mark.parametrize("version", VERSIONS)
def test_pruning_again_changes_nothing(version: str) -> None:
    answers = load_answers(QEMUS / version)
    assert qemu.prune_answers(answers) == answers


@pytest.mark.parametrize("version", VERSIONS)
def test_the_cache_gives_back_what_was_put_in(version: str) -> None:
    assert qemu_cache.parse_caps(json.loads(qemu_cache.render_caps(caps(version)))) == caps(version)


def test_queries_end_with_quit() -> None:
    commands = [json.loads(line) for line in qemu.render_queries((7, 2, 22)).splitlines() if line]
    assert [commands[0]["execute"], commands[-1]["execute"]] == ["qmp_capabilities", "quit"]
    assert len({command.get("id") for command in commands}) == len(commands)


@pytest.mark.parametrize("drop", [*qemu.QUERIES, qemu.QUIT])
def test_a_reply_that_is_missing_is_named(drop: str) -> None:
    lines = [json.dumps({"return": [], "id": name}) for name in (*qemu.QUERIES, qemu.QUIT) if name != drop]
    with pytest.raises(ValueError, match=drop):
        qemu.parse_replies("\n".join(["a module's warning", *lines]))


@pytest.mark.parametrize("name", [*qemu.QUERIES, qemu.DEVICES, qemu.TYPES])
@settings(deadline=None)
@given(
    text=st.text()
    | st.sampled_from(["null", "1", "[1]", "[[]]", "{}", "[{}]", '{"a": 1}', '[{"name": 1}]', "[" * 5000])
)
def test_no_answer_makes_it_fail_but_with_a_sentence(name: str, text: str) -> None:
    answers = {**load_answers(QEMUS / "7.2.22"), name: text}
    for read in (qemu.parse_answers, qemu.prune_answers):
        with suppress(ValueError):
            read(answers)


@settings(deadline=None)
@given(
    name=st.sampled_from(sorted(json.loads(qemu_cache.render_caps(caps("10.0"))))),
    value=st.none() | st.integers() | st.text() | st.lists(st.none() | st.lists(st.integers())) | st.just({"a": [[]]}),
)
def test_no_cached_value_makes_it_fail_but_with_a_sentence(name: str, value: object) -> None:
    with suppress(ValueError):
        qemu_cache.parse_caps({**json.loads(qemu_cache.render_caps(caps("10.0"))), name: value})


@settings(deadline=None)
@given(text=st.text())
def test_no_help_makes_it_fail_but_with_a_sentence(text: str) -> None:
    qemu.parse_help(text)
    with suppress(ValueError):
        qemu.parse_help_version(text)


def test_answers_saved_and_loaded_tell_the_same(tmp_path: Path) -> None:
    answers = load_answers(QEMUS / "10.0")
    save_answers(answers, tmp_path / "qemu")
    assert load_answers(tmp_path / "qemu") == answers
    with pytest.raises(HostFailed):
        load_answers(tmp_path)


def fake(place: Path, text: str) -> Path:
    place.write_text(f"#!/bin/sh\n{text}\n")
    place.chmod(0o755)
    return place


def test_a_binary_that_is_missing(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("x")
    for name in ("none", "plain", "."):
        with pytest.raises(PreflightFailed) as caught:
            probe_qemu(tmp_path / name, cache=None)
        assert caught.value.report.code == "qemu.missing"
        assert "apt install" in caught.value.report.hint


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("echo hello", "calls itself 'hello'"),
        ("echo QEMU emulator version 6.2.0", "6.2.0"),
        ("exit 3", "ended with 3"),
        ("kill -9 $$", "ended with -9"),
        ("echo QEMU emulator version 7.2.0", "no answer to query-version"),
    ],
)
def test_a_program_that_is_no_qemu(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(PreflightFailed) as caught:
        probe_qemu(fake(tmp_path / "qemu", text), cache=tmp_path / "cache")
    assert caught.value.report.code == "qemu.version"
    assert why in caught.value.report.why
    assert not (tmp_path / "cache").exists()


def test_a_tool_says_how_it_ended() -> None:
    assert run_tool(["cat"], input="caf\u00e9").out == "caf\u00e9"
    assert run_tool(["cat"]).out == ""
    done = run_tool(["sh", "-c", "echo one; echo two >&2; exit 4"])
    assert (done.status, done.out, done.err) == (4, "one\n", "two\n")
    assert run_tool(["sh", "-c", "kill -TERM $$"]).status == -15


def test_a_tool_has_no_terminal_and_a_plain_environment() -> None:
    done = run_tool(["sh", "-c", "test -t 1 || env"])
    assert "LC_ALL=C" in done.out
    assert "HOME=" not in done.out


def test_a_tool_that_is_missing_names_its_package() -> None:
    with pytest.raises(HostFailed) as caught:
        run_tool(["swtpm-none"])
    assert (caught.value.report.code, caught.value.report.hint) == ("host.tool.missing", "")
    with pytest.raises(HostFailed) as caught:
        run_tool(["/none/virtiofsd"])
    assert caught.value.report.hint == "apt install virtiofsd"


def test_a_tool_that_does_not_end_is_killed() -> None:
    with pytest.raises(TimedOut):
        run_tool(["sleep", "60"], timeout=0.2)


@pytest.mark.parametrize("argv", [[], ["true", None], ["true", 1], ["true", ["a"]]])
def test_a_tool_takes_words_only(argv: list[str]) -> None:
    with pytest.raises(AssertionError):
        run_tool(argv)


def test_paths_of_capabilities_are_pure() -> None:
    assert caps("10.0").binary == PurePosixPath("/usr/bin/qemu-system-x86_64")


def test_what_is_on_or_off_is_told_by_its_type_and_by_no_pruned_name() -> None:
    kinds = {"pmu": "bool", "hv-no-nonarch-coresharing": "OnOffAuto", "phys-bits": "uint32"}
    told = [{"name": name, "type": kind} for name, kind in kinds.items()]

    assert qemu.parse_switches(told) == {"pmu", "hv-no-nonarch-coresharing"}
    assert qemu.parse_switches(list(kinds)) == frozenset()
