"""The script for a guest without cloud-init, run in a machine whose /etc is a copy and whose tools are fakes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sandbox import PATH, TINY, Machine, Result

RULE = "udev/rules.d/60-kvmlaunch-scheduler.rules"
GRUB = 'GRUB_DEFAULT=0\nGRUB_CMDLINE_LINUX="quiet"\nGRUB_TIMEOUT=5\n'
SYSTEMCTL = """#!/bin/sh
echo "$*" >>{place}/heard
case $1 in
    is-enabled) grep -qx "$3" {place}/enabled ;;
    enable) echo "$3" >>{place}/enabled ;;
    disable) sed -i "/^$3\\$/d" {place}/enabled ;;
esac
"""


@pytest.fixture
def guest(machine: Machine) -> Iterator[Path]:
    """Give /etc of a machine that stands for a guest: a copy, with fakes of what changes more than files."""
    etc, tools = machine.directory / "etc", machine.directory / "tools"
    machine.execute("sh", "-euc", f"cp -a /etc {etc}; mount --bind {etc} /etc; mount -t tmpfs tmpfs /var/lib/dpkg")
    tools.mkdir()
    fakes = {"systemctl": SYSTEMCTL.format(place=tools), "uname": "#!/bin/sh\necho 6.1.0\n"}
    fakes |= {"update-grub": f"#!/bin/sh\necho update-grub >>{tools}/heard\n", "udevadm": "#!/bin/sh\nexit 0\n"}
    fakes |= {"dpkg-query": "#!/bin/sh\nprintf installed\n"}
    for name, text in fakes.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    (tools / "enabled").write_text("fstrim.timer\n")
    (tools / "heard").write_text("")
    (etc / "default").mkdir(exist_ok=True)
    (etc / "default/grub").write_text(GRUB)
    machine.define("web", TINY)
    (machine.directory / "guest.sh").write_text(machine.ok("guest-script", "web").out)
    yield etc
    machine.execute("umount", "/var/lib/dpkg")


def run(machine: Machine, *words: str) -> Result:
    """Run the script in the machine."""
    path = f"{machine.directory / 'tools'}:{PATH}"
    return machine.execute("sh", machine.directory / "guest.sh", *words, env={"PATH": path})


def test_the_script_is_plain_shell(machine: Machine, guest: Path) -> None:
    del guest

    checked = machine.execute("shellcheck", "--shell=sh", machine.directory / "guest.sh")

    assert (checked.code, checked.out) == (0, "")


def test_set_twice_it_changes_nothing_more_and_undone_all_is_as_before(machine: Machine, guest: Path) -> None:
    enabled = machine.directory / "tools/enabled"

    before = run(machine, "--check")
    made = run(machine)
    rule, units = (guest / RULE).read_text(), enabled.read_text().split()
    again, checked = run(machine), run(machine, "--check")
    undone = run(machine, "--undo")

    assert before.code == 1
    assert made.code == 0, made.err
    assert 'ATTR{queue/scheduler}="none"' in rule
    assert units == ["fstrim.timer", "qemu-guest-agent.service"]
    assert "as it should be" in again.out
    assert checked.code == 0
    assert undone.code == 0, undone.err
    assert not (guest / RULE).exists()
    assert enabled.read_text().split() == ["fstrim.timer"]
    assert (guest / "default/grub").read_text() == GRUB


def test_only_a_kernel_that_still_reads_elevator_gets_it(machine: Machine, guest: Path) -> None:
    (machine.directory / "tools/uname").write_text("#!/bin/sh\necho 4.19.0-27-amd64\n")

    run(machine)
    during = (guest / "default/grub").read_text()
    run(machine)
    again = (guest / "default/grub").read_text()
    run(machine, "--undo")

    assert 'GRUB_CMDLINE_LINUX="quiet elevator=noop"' in during
    assert again == during
    assert (guest / "default/grub").read_text() == GRUB
    assert (machine.directory / "tools/heard").read_text().count("update-grub") == 2


def test_a_boot_loader_that_was_not_updated_is_tried_again_and_keeps_nothing_else_back(
    machine: Machine, guest: Path
) -> None:
    tools = machine.directory / "tools"
    (tools / "uname").write_text("#!/bin/sh\necho 4.19.0-27-amd64\n")
    works = (tools / "update-grub").read_text()
    (tools / "update-grub").write_text("#!/bin/sh\nexit 1\n")

    failed = run(machine)
    during, units = (guest / "default/grub").read_text(), (tools / "enabled").read_text().split()
    checked = run(machine, "--check")
    (tools / "update-grub").write_text(works)
    made = run(machine)

    assert (failed.code, made.code) == (1, 0)
    assert "not updated" in failed.err
    assert during == GRUB
    assert "qemu-guest-agent.service" in units
    assert checked.code == 1
    assert "elevator=noop" in (guest / "default/grub").read_text()


def test_a_package_that_only_left_its_configuration_is_not_there(machine: Machine, guest: Path) -> None:
    del guest
    (machine.directory / "tools/dpkg-query").write_text("#!/bin/sh\nprintf config-files\n")

    assert "package qemu-guest-agent" in run(machine, "--check").out


@pytest.mark.parametrize(
    ("text", "code"), [('GRUB_CMDLINE_LINUX="quiet elevator=noop"\n', 0), ("GRUB_CMDLINE_LINUX=quiet\n", 1)]
)
def test_what_the_script_did_not_write_into_grubs_defaults_it_does_not_take_away(
    machine: Machine, guest: Path, text: str, code: int
) -> None:
    (machine.directory / "tools/uname").write_text("#!/bin/sh\necho 4.19.0-27-amd64\n")
    (guest / "default/grub").write_text(text)

    made, undone = run(machine), run(machine, "--undo")

    assert (made.code, "by hand" in made.err, undone.code) == (code, bool(code), 0)
    assert (guest / "default/grub").read_text() == text


@pytest.mark.parametrize(
    ("text", "becomes"),
    [
        (
            '# elevator=noop\nGRUB_CMDLINE_LINUX="quiet"\n',
            '# elevator=noop\nGRUB_CMDLINE_LINUX="quiet elevator=noop"\n',
        ),
        ('GRUB_CMDLINE_LINUX="a=\\"x y\\" z"\n', 'GRUB_CMDLINE_LINUX="a=\\"x y\\" z elevator=noop"\n'),
    ],
)
def test_grubs_defaults_are_edited_as_the_shell_reads_them(
    machine: Machine, guest: Path, text: str, becomes: str
) -> None:
    (machine.directory / "tools/uname").write_text("#!/bin/sh\necho 4.19.0-27-amd64\n")
    (guest / "default/real").write_text(text)
    (guest / "default/grub").unlink()
    (guest / "default/grub").symlink_to("real")

    run(machine)
    during = (guest / "default/real").read_text()
    run(machine, "--undo")

    assert during == becomes
    assert (guest / "default/real").read_text() == text
    assert (guest / "default/grub").is_symlink()


def test_without_systemd_it_is_said_what_is_left_to_be_done(machine: Machine, guest: Path) -> None:
    (machine.directory / "tools/systemctl").unlink()
    for path in ("/bin/systemctl", "/usr/bin/systemctl"):
        machine.execute("sh", "-euc", f"test ! -e {path} || mount --bind {guest}/default/grub {path}")

    checked = run(machine, "--check")

    assert checked.code == 1
    assert "no systemd here for unit fstrim.timer: do it by hand" in checked.err
    assert "all is as it should be" not in checked.out


def test_a_windows_guest_gets_no_linux_script(machine: Machine) -> None:
    machine.define("web", f'os = "windows"\n{TINY}')

    assert machine.run("guest-script", "web").code == 2


def test_a_switch_that_is_off_leaves_its_part_out(machine: Machine) -> None:
    machine.define("web", f"{TINY}[cloud_init]\nenabled = false\nscheduler = false\nagent = false\ntrim = false\n")

    script = machine.ok("guest-script", "web").out

    setting, _, undoing = script.partition("undo_all() {")
    assert "60-kvmlaunch-scheduler" not in setting
    assert "want_package qemu-guest-agent" not in script
    assert "want_unit fstrim.timer" not in script
    assert "60-kvmlaunch-scheduler" in undoing  # it may have been set before


def test_what_cannot_be_taken_back_is_told_and_tried_again(machine: Machine, guest: Path) -> None:
    tools = machine.directory / "tools"
    works = (tools / "systemctl").read_text()
    run(machine)
    (tools / "systemctl").write_text('#!/bin/sh\n[ "$1" = cat ]\n')

    failed = run(machine, "--undo")
    (tools / "systemctl").write_text(works)
    undone = run(machine, "--undo")

    assert (failed.code, undone.code) == (1, 0), undone.err
    assert "could not be disabled" in failed.err
    assert "disabled" not in failed.out
    assert "unit qemu-guest-agent.service disabled" in undone.out
    assert not (guest / RULE).exists()


def test_a_unit_that_is_gone_is_taken_back(machine: Machine, guest: Path) -> None:
    run(machine)
    (machine.directory / "tools/systemctl").write_text("#!/bin/sh\nexit 1\n")

    undone = run(machine, "--undo")

    assert undone.code == 0, undone.err
    assert not (guest / RULE).exists()


def test_an_option_that_there_is_not_is_refused(machine: Machine, guest: Path) -> None:
    refused = run(machine, "--all")

    assert refused.code == 2
    assert "--check" in refused.err
    assert not (guest / RULE).exists()
