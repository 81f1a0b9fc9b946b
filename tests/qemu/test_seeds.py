"""The seed for cloud-init as `up` writes it: its image, whose it is, when it is written anew, and what is refused."""

import io
import pwd
from pathlib import Path
from typing import Any, Final

import pycdlib
import pytest
import yaml

from tests.sandbox import TINY, Machine

STATE: Final = "/var/lib/kvmlaunch/vm/web"
ENABLED: Final = "[cloud_init]\nenabled = true\n"
ALICE: Final = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAINZ2ACQhJu+8WlfbwbfVO0ynm0cr9AWGfFCI3wKSpDlk alice"
BOB: Final = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDN8f8yS2RYmVqnZ7XCCUgq1q2p8u4m3OU9fD5bYJQxW bob"
FULL: Final = f"""
[cloud_init]
user_data = "user-data.yaml"
network = "network.yaml"
meta_data = "meta-data.yaml"
hostname = "front"
ssh_keys = ["{ALICE}", "{BOB}"]
"""
USER_DATA: Final = "#cloud-config\npackages: [é]\n"
NETWORK: Final = "version: 2\nethernets: {}\n"


def seed(machine: Machine) -> Path:
    """Give the seed of the VM, as it lies for us."""
    return machine.outside(f"{STATE}/seed.iso")


def define(machine: Machine, table: str = ENABLED, user_data: bytes = USER_DATA.encode()) -> None:
    """Write a definition with a seed, and the files that go into it."""
    place = machine.define("web", f"{TINY}{table}").parent
    (place / "user-data.yaml").write_bytes(user_data)
    (place / "network.yaml").write_text(NETWORK)
    (place / "meta-data.yaml").write_text("region: north\n")


def start(machine: Machine, *options: str) -> None:
    """Start the VM, which stays at its firmware, and end it."""
    machine.ok("up", "web", "--paused", *options)
    machine.end("web")


def content(image: Path) -> dict[str, bytes]:
    """Give the files of an image by name."""
    iso = pycdlib.PyCdlib()
    iso.open(str(image))
    found = {}
    for child in iso.list_children(rr_path="/"):
        if child.is_file():
            stream = io.BytesIO()
            name = child.rock_ridge.name().decode()
            iso.get_file_from_iso_fp(stream, rr_path=f"/{name}")
            found[name] = stream.getvalue()
    iso.close()
    return found


def refused(machine: Machine, *words: str) -> tuple[int, str]:
    """Give exit code and stable code of a command that is refused."""
    result = machine.run(*words, "--json")
    return result.code, result.error["code"] if result.code else "not refused"


def changes(machine: Machine) -> set[str]:
    """Give what lies in the VM's directories: nothing before its first start."""
    places = [machine.outside(each) for each in (STATE, "/run/kvmlaunch/vm/web")]
    return {str(path) for place in places if place.exists() for path in place.rglob("*")}


def test_a_file_of_the_seed_that_changed_is_a_difference_of_the_running_vm(machine: Machine) -> None:
    define(machine, FULL)
    machine.ok("up", "web", "--paused")

    same = machine.run("diff", "web")
    define(machine, FULL, user_data=b"#cloud-config\npackages: [jq]\n")
    changed = machine.run("diff", "web", "--json")
    machine.end("web")
    machine.ok("up", "web", "--paused")
    again = machine.run("diff", "web")

    assert (same.code, changed.code, again.code) == (0, 10, 0)
    assert changed.json["differences"] == ["+ the seed of cloud-init says something else"]


def test_a_seed_that_is_written_anew_beside_a_running_vm_bars_no_restart(machine: Machine) -> None:
    define(machine, FULL)
    machine.ok("up", "web", "--paused")
    define(machine, FULL, user_data=b"#cloud-config\npackages: [jq]\n")
    machine.ok("preflight", "web", "--apply")

    notes = machine.status("web")["notes"]
    machine.ok("restart", "web", "--force", "--timeout", "10ms")
    machine.end("web")
    machine.ok("preflight", "web", "--undo")

    assert not any("disk.replaced" in note for note in notes)


def test_up_writes_a_seed_that_is_roots_alone(machine: Machine) -> None:
    define(machine)

    machine.ok("up", "web", "--paused")

    status = seed(machine).stat()
    assert (status.st_mode & 0o7777, status.st_uid) == (0o600, 0)
    assert seed(machine).parent.stat().st_mode & 0o7777 == 0o700


def test_a_seed_has_what_the_definition_says(machine: Machine) -> None:
    define(machine, FULL)

    start(machine)

    files = content(seed(machine))
    meta: Any = yaml.safe_load(files["meta-data"])
    assert set(files) == {"user-data", "meta-data", "vendor-data", "network-config"}
    assert files["user-data"].decode() == USER_DATA
    assert files["network-config"].decode() == NETWORK
    assert (meta["local-hostname"], len(meta["public-keys"]), meta["region"]) == ("front", 2, "north")
    assert b"    want_package qemu-guest-agent\n" in files["vendor-data"]


def test_a_seed_is_labelled_as_cloud_init_looks_for_it(machine: Machine) -> None:
    define(machine)

    start(machine)
    said = machine.execute("blkid", "-p", "-o", "export", f"{STATE}/seed.iso")

    assert "LABEL=cidata" in said.out.splitlines()
    assert "TYPE=iso9660" in said.out.splitlines()


def test_a_second_start_leaves_the_very_file(machine: Machine) -> None:
    define(machine)
    start(machine)
    first = seed(machine).stat()

    start(machine)

    second = seed(machine).stat()
    assert (first.st_ino, first.st_mtime_ns) == (second.st_ino, second.st_mtime_ns)


@pytest.mark.parametrize(
    "change",
    [
        ("hostname = ", 'hostname = "back"'),
        ("ssh_keys = ", f'ssh_keys = ["{ALICE}"]'),
        ("network = ", "trim = false"),
    ],
)
def test_a_seed_is_written_anew_when_what_it_says_changes(machine: Machine, change: tuple[str, str]) -> None:
    define(machine, FULL)
    start(machine)
    before = content(seed(machine))
    line = next(line for line in FULL.splitlines() if line.startswith(change[0]))

    define(machine, FULL.replace(line, change[1]))
    start(machine)

    assert content(seed(machine)) != before
    assert {path.name for path in seed(machine).parent.iterdir()} == {"seed.iso", "seed.sha256", "machine"}


def test_user_data_that_changes_is_taken_at_the_next_start(machine: Machine) -> None:
    define(machine, FULL)
    start(machine)

    define(machine, FULL, b"#!/bin/sh\necho :\n")
    start(machine)

    assert content(seed(machine))["user-data"] == b"#!/bin/sh\necho :\n"


@pytest.mark.parametrize("lost", ["seed.iso", "seed.sha256"])
def test_a_seed_of_which_a_part_is_lost_is_written_anew(machine: Machine, lost: str) -> None:
    define(machine)
    start(machine)
    (seed(machine).parent / lost).unlink()

    start(machine)

    assert set(content(seed(machine))) == {"user-data", "meta-data", "vendor-data"}


def test_a_vm_that_gets_another_user_has_a_seed_that_is_his(machine: Machine) -> None:
    define(machine)
    start(machine)

    define(machine, f'{ENABLED}[security]\nuser = "nobody"\n')
    result = machine.run("up", "web", "--paused")

    assert result.code == 0, result.err
    assert seed(machine).stat().st_uid == pwd.getpwnam("nobody").pw_uid


@pytest.mark.parametrize(
    "user_data",
    [b"", b"users: []\n", b"#cloud-config\n- a\n", b"#cloud-config\na: [\n", b"\xff\xfe", b"#!".ljust((1 << 20) + 1)],
    ids=range(6),
)
def test_user_data_that_cloud_init_would_not_take_is_refused_before_anything_is_changed(
    machine: Machine, user_data: bytes
) -> None:
    define(machine, FULL, user_data)

    answers = [refused(machine, "up", "web", *options) for options in (("--paused",), ("-n",))]

    assert answers == [(5, "def.seed")] * 2
    assert changes(machine) == set()
    assert machine.leftovers() == []


def test_user_data_with_a_tag_that_yaml_chokes_on_is_refused_and_no_bug(machine: Machine) -> None:
    define(machine, FULL, b'#cloud-config\na: !!int ""\n')

    result = machine.run("up", "web", "--paused")

    assert (result.code, result.codes) == (5, {"def.seed"}), result.err


@pytest.mark.parametrize("name", ["network.yaml", "meta-data.yaml"])
def test_a_table_that_is_none_is_refused(machine: Machine, name: str) -> None:
    define(machine, FULL)
    path = machine.directory / "vmdefs" / name
    answers = []

    for text in ("- a\n", "a: [\n", "version: 2\nethernets: {}\n#" + "x" * (1 << 20) + "\nmore: 1\n"):
        path.write_text(text)
        answers.append(refused(machine, "up", "web", "--paused"))

    assert answers == [(5, "def.seed")] * 3
    assert changes(machine) == set()


@pytest.mark.parametrize("kind", ["rm", "rm-mkdir"])
@pytest.mark.parametrize("name", ["user-data.yaml", "network.yaml", "meta-data.yaml"])
def test_a_file_that_cannot_be_read_is_refused_before_anything_is_changed(
    machine: Machine, name: str, kind: str
) -> None:
    define(machine, FULL)
    path = machine.directory / "vmdefs" / name
    path.unlink()
    if kind == "rm-mkdir":
        path.mkdir()

    result = machine.run("up", "web", "--paused")

    assert (result.code, result.codes) == (6, {"seed.file"})
    assert name in result.err
    assert changes(machine) == set()


def test_user_data_that_is_a_pipe_is_refused_and_nobody_waits_for_it(machine: Machine) -> None:
    define(machine, FULL)
    path = machine.directory / "vmdefs" / "user-data.yaml"
    path.unlink()
    machine.execute("mkfifo", path)

    result = machine.run("up", "web", "--paused")

    assert result.code in {5, 6}
    assert result.codes <= {"def.seed", "seed.file"}


def test_preflight_tells_of_a_seed_that_up_would_refuse(machine: Machine) -> None:
    define(machine, FULL, b"users: []\n")

    result = machine.run("preflight", "web")

    assert result.code != 0
    assert "def.seed" in result.codes


def test_the_printed_command_names_the_seed_and_writes_none(machine: Machine) -> None:
    define(machine)

    printed = machine.ok("print-cmd", "web").out

    assert f"file={STATE}/seed.iso" in printed
    assert "readonly=on" in printed
    assert changes(machine) == set()


def test_explain_tells_of_every_switch_and_why(machine: Machine) -> None:
    define(machine, "[cloud_init]\ntrim = false\n")

    rows = {
        row["key"]: row["value"]
        for row in machine.ok("explain", "web", "--json").json["choices"]
        if row["key"].startswith("cloud_init.")
    }
    text = machine.ok("explain", "web").out

    for name, value in (("enabled", True), ("scheduler", True), ("trim", False), ("agent", True), ("haltpoll", False)):
        assert rows[f"cloud_init.{name}"] == ("on" if value else "off")
        assert f"cloud_init.{name}" in text


def test_a_seed_that_is_switched_off_is_not_written(machine: Machine) -> None:
    define(machine, FULL.replace("[cloud_init]", "[cloud_init]\nenabled = false"))

    machine.ok("up", "web", "--paused")

    assert not seed(machine).exists()


def test_a_seed_that_somebody_else_put_a_link_in_the_place_of_is_replaced_and_the_target_stays(
    machine: Machine,
) -> None:
    define(machine)
    start(machine)
    target = machine.directory / "precious"
    target.write_text("precious")
    seed(machine).unlink()
    seed(machine).symlink_to(target)
    (seed(machine).parent / "seed.sha256").unlink()

    start(machine)

    assert target.read_text() == "precious"
    assert not seed(machine).is_symlink()


def test_up_of_a_running_vm_tells_that_its_seed_would_be_another(machine: Machine) -> None:
    define(machine, FULL)
    machine.ok("up", "web", "--paused")

    same = machine.ok("up", "web", "--paused")
    (machine.directory / "vmdefs" / "user-data.yaml").write_text("#cloud-config\npackages: [htop]\n")
    other = machine.ok("up", "web", "--paused")

    assert "[vm.changed]" not in same.err
    assert "the seed of cloud-init changed since the start  [vm.changed]" in other.err
