"""The files that make settings last: which ones this host reads at boot, and what stands in them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Final

from kvmlaunch.model.finding import Finding, warning
from kvmlaunch.model.tuning import BootLine, HostTuning, KeptFile, Setting
from kvmlaunch.model.wishes import HOST_FILE, HostWishes
from kvmlaunch.tune.fstab import FstabLine, render_line
from kvmlaunch.units import GIB, MIB, render_size

SYSCTL_FILE: Final = "/etc/sysctl.d/80-kvmlaunch.conf"
UDEV_FILE: Final = "/etc/udev/rules.d/80-kvmlaunch.rules"
TMPFILES_FILE: Final = "/etc/tmpfiles.d/kvmlaunch.conf"
UNIT_FILE: Final = "/etc/systemd/system/kvmlaunch-hugepages.service"
SCRIPT_FILE: Final = "/etc/kvmlaunch/boot.sh"
GRUB_FILE: Final = "/etc/default/grub.d/kvmlaunch.cfg"
FSTAB: Final = "/etc/fstab"
SHARED_OPTIONS: Final = ("pagesize=2M", "mode=0755", "nosuid", "nodev")
HEAD: Final = "# Written by kvmlaunch tune apply --persist; kvmlaunch tune off removes it.\n"
UNITS: Final = {"K": 1 << 10, "M": MIB, "G": GIB}
SYSTEMD: Final = "systemd"
GRUBBY: Final = "grub2"  # begins the command of distributions that have grubby
CLASSIC: Final = ("init", "openrc-init", "runit")  # names of process 1 that run /etc/init.d and /etc/rc.local


def sysctl_name(path: str) -> str:
    """Give the name of a sysctl; the pool of 2 MiB pages is vm.nr_hugepages, as x86-64's default size is 2 MiB."""
    if path.startswith("/sys/kernel/mm/hugepages/"):
        return "vm.nr_hugepages"
    return path.removeprefix("/proc/sys/").replace("/", ".")


def overriding(tuning: HostTuning, setting: Setting) -> BootLine | None:
    """Give the line that wins over ours at boot with another value; None where ours wins, or is not there.

    Of sysctl.d and of udev's rules the last one wins.  Where our script runs it comes after all of them.
    """
    if setting.keeper == "boot" or (tuning.init != SYSTEMD and not script_inactive(tuning)):
        return None
    file = {"sysctl": SYSCTL_FILE, "udev": UDEV_FILE, "tmpfiles": TMPFILES_FILE}[setting.keeper]
    name = sysctl_name(setting.knob.path) if setting.keeper == "sysctl" else setting.knob.path
    lines = [line for line in tuning.boot_lines if line.keeper == setting.keeper and is_for(line, name)]
    if not any(line.file == file for line in lines):
        return None
    if setting.keeper == "tmpfiles":
        lines = effective(lines)
    winner = lines[-1]
    if winner.file == file or winner.value == setting.wanted.value:
        return None
    as_good = setting.counted and winner.value.isdecimal() and int(winner.value) >= int(setting.wanted.value)
    return None if as_good else winner


def is_for(line: BootLine, name: str) -> bool:
    """Does a line set this: a pattern of tmpfiles.d may, one of sysctl.d does not where a name is written out."""
    return line.name == name or (line.keeper == "tmpfiles" and PurePosixPath(name).match(line.name))


def effective(lines: Sequence[BootLine]) -> list[BootLine]:
    """Give the lines of tmpfiles.d that are carried out: of those for one path, as it is written, the first alone.

    Measured with systemd-tmpfiles 252: a pattern is another path than what it matches, and is carried out in its turn.
    """
    first: dict[str, BootLine] = {}
    for line in lines:
        first.setdefault(line.name, line)
    return list(first.values())


def kept_by(settings: Sequence[Setting], *keepers: str) -> tuple[Setting, ...]:
    """Give the settings that these keep."""
    return tuple(setting for setting in settings if setting.keeper in keepers)


def build_files(settings: Sequence[Setting], tuning: HostTuning, wishes: HostWishes) -> Iterator[KeptFile]:
    """Give the files of `--persist`: those that this host's init reads."""
    sysctls = tuple(each for each in kept_by(settings, "sysctl") if not each.counted or tuning.default_page == 2 * MIB)
    if sysctls:
        yield render_sysctl(sysctls, tuning)
    if tuning.init == SYSTEMD:
        yield from build_systemd(settings)
    else:
        yield from build_script(settings, tuning)
    if kept_by(settings, "udev") and (tuning.udev or tuning.init == SYSTEMD):
        yield render_udev(kept_by(settings, "udev"), tuning)
    if wishes.hugetlbfs:
        mount = render_mount(wishes.hugetlbfs, tuning)
        yield mount
        if mount.kind == "file":
            yield render_link(mount.path, "multi-user.target")


def render_sysctl(settings: Sequence[Setting], tuning: HostTuning) -> KeptFile:
    """Give the file of sysctl.d; of huge pages it holds the sum for all VMs that start with the host.

    A larger pool that another file, or the kernel command line, asks for is not lowered by ours, which comes later; one
    that somebody set without a file would be by `sysctl -p`, so the command leaves it out.
    """
    lines = [f"# {setting.wanted.reason or HOST_FILE}\n{line_of(setting, tuning)}\n" for setting in settings]
    read = tuning.init == SYSTEMD or (tuning.init in CLASSIC and tuning.procps_script)
    inactive = "" if read else f"process 1 is {tuning.init or 'unknown'}, and nothing here applies sysctl.d at boot"
    command = f"sysctl -p {SYSCTL_FILE}"
    larger = [each for each in settings if each.counted and int(each.knob.value) > kept_pages(each, tuning)]
    if larger:
        command = f"grep -v '^{sysctl_name(larger[0].knob.path)}' {SYSCTL_FILE} | sysctl -p -"
    if inactive:  # of the two files the one that never lowers a pool
        command = SCRIPT_FILE
    return KeptFile(path=SYSCTL_FILE, text=HEAD + "".join(lines), command=command, inactive=inactive)


def line_of(setting: Setting, tuning: HostTuning) -> str:
    """Give a setting as a line of sysctl.d."""
    value = str(kept_pages(setting, tuning)) if setting.counted else setting.wanted.value
    return f"{sysctl_name(setting.knob.path)} = {value}"


def kept_pages(setting: Setting, tuning: HostTuning) -> int:
    """Give the pages of a pool that are set at boot: what is wished, or more where something else asks for more."""
    name = sysctl_name(setting.knob.path)
    others = [line.value for line in tuning.boot_lines if line.name == name and line.file != SYSCTL_FILE]
    booted = boot_pages(tuning.cmdline, tuning.default_page, 2 * MIB)
    return max(int(setting.wanted.value), booted, *(int(other) for other in others if other.isdecimal()))


def check_kept(
    settings: Sequence[Setting], tuning: HostTuning, raised: Mapping[str, Mapping[str, int]]
) -> Iterator[Finding]:
    """Say which pages stand in no file, and are neither VMs' own: whoever reads ours with `sysctl` takes them away.

    `raised` gives by a pool's control file the pages that each VM has in it by itself.
    """
    for setting in kept_by(settings, "sysctl"):
        if setting.counted and tuning.default_page == 2 * MIB:
            pages = int(setting.knob.value) - sum(raised.get(setting.knob.path, {}).values())
            kept = kept_pages(setting, tuning)
            if pages > kept:
                yield warning(
                    code="host.hugepages.unkept",
                    message=f"the pool has {pages} pages, and {SYSCTL_FILE} says {kept}",
                    where=setting.knob.path,
                    why="somebody set more without a file: the next boot, sysctl -p and sysctl --system lower them",
                    hint=f'hugepage_pools = {{ "2MiB" = {pages} }}   # in {HOST_FILE}, keeps them',
                )


def boot_pages(cmdline: Sequence[str], default_page: int, page_size: int) -> int:
    """Give the pages of a size that the kernel command line reserves: kernel docs, hugetlbpage.rst."""
    size, pages = default_page, 0
    for word in cmdline:
        key, _, value = word.partition("=")
        if key == "hugepagesz":
            number, unit = value[:-1], value[-1:].upper()
            size = int(number) * UNITS.get(unit, 0) if number.isdecimal() else 0
        elif key == "hugepages" and size == page_size and not pages:  # the kernel ignores a second one
            counts = [each.rpartition(":")[2] for each in value.split(",")]  # 64, or by node 0:32,1:32
            pages = sum(int(each) for each in counts if each.isdecimal())
    return pages


def identity_of(setting: Setting, tuning: HostTuning) -> tuple[str, str] | None:
    """Give what tells the device of a setting from every other one; None where its name alone does."""
    identities = [device.identity for device in tuning.queues]
    for device in tuning.queues:
        place = f"/sys/block/{device.name.replace('/', '!')}/"
        if setting.knob.path.startswith(place) and identities.count(device.identity) == 1:
            return device.identity
    return None


def render_udev(settings: Sequence[Setting], tuning: HostTuning) -> KeptFile:
    """Give the rules that set a device's queue, or a module's parameter, as soon as it appears: udev(7)."""
    lines = []
    for setting in settings:
        _, _, kind, name, *rest = setting.knob.path.split("/")  # /sys/block/NAME/queue/FILE, /sys/module/NAME/...
        device = f'KERNEL=="{name.replace("!", "/")}"'  # as udev has it
        if identity := identity_of(setting, tuning):
            device = f'ATTR{{{identity[0]}}}=="{identity[1]}"'
        match = f'ACTION=="add|change", SUBSYSTEM=="{kind}", {device}'
        lines.append(f'{match}, ATTR{{{"/".join(rest)}}}="{setting.wanted.value}"\n')
    command = "udevadm control --reload && udevadm trigger --subsystem-match=block"
    if any(setting.knob.path.startswith("/sys/module/") for setting in settings):
        command += " && udevadm trigger --type=subsystems"  # modules are among those: udevadm(8)
    return KeptFile(path=UDEV_FILE, text=HEAD + "".join(lines), command=command)


def build_systemd(settings: Sequence[Setting]) -> Iterator[KeptFile]:
    """Give what systemd reads: tmpfiles.d for control files, and a unit that raises the pool early at boot."""
    kept = kept_by(settings, "tmpfiles")
    if kept:
        lines = [f"w {setting.knob.path} - - - - {setting.wanted.value}\n" for setting in kept]
        command = f"systemd-tmpfiles --create {TMPFILES_FILE}"
        yield KeptFile(path=TMPFILES_FILE, text=HEAD + "".join(lines), command=command)
    pools = [setting for setting in settings if setting.counted]
    if pools:
        yield render_unit(pools)
        yield render_link(UNIT_FILE, "sysinit.target")


def render_unit(pools: Sequence[Setting]) -> KeptFile:
    """Give the unit that raises the pools before services fragment the memory; sysctl.d comes after it and agrees."""
    raising = "".join(
        f"ExecStart=/bin/sh -c '[ \"$$(cat {path})\" -ge {pages} ] || echo {pages} > {path}'\n"
        for path, pages in ((pool.knob.path, pool.wanted.value) for pool in pools)
    )
    text = f"""\
{HEAD}[Unit]
Description=Huge pages for virtual machines
DefaultDependencies=no
Conflicts=shutdown.target
Before=sysinit.target systemd-sysctl.service shutdown.target
ConditionPathExists=/sys/kernel/mm/hugepages

[Service]
Type=oneshot
RemainAfterExit=yes
{raising}
[Install]
WantedBy=sysinit.target
"""
    return KeptFile(path=UNIT_FILE, text=text, command="systemctl daemon-reload", by_hand=True)


def render_link(unit: str, target: str) -> KeptFile:
    """Give the link that enables a unit: what `systemctl enable` makes."""
    name = unit.rpartition("/")[2]
    return KeptFile(path=f"/etc/systemd/system/{target}.wants/{name}", text=unit, kind="link")


def build_script(settings: Sequence[Setting], tuning: HostTuning) -> Iterator[KeptFile]:
    """Give the script for a host without systemd: every setting in it, for /etc/rc.local to run."""
    if not settings:
        return
    lines = [script_line(setting, tuning) for setting in settings]
    text = f"""\
#!/bin/sh
{HEAD}
set_knob() {{
    if [ -w "$2" ]; then
        echo "$1" > "$2" || echo "kvmlaunch: $2 does not take $1" >&2
    fi
}}

raise_pool() {{
    if [ -r "$2" ] && [ "$(cat "$2")" -lt "$1" ]; then
        set_knob "$1" "$2"
    fi
}}

set_device() {{ # value, file of the device, file that tells it from others, what stands there
    for device in /sys/block/*; do
        if [ -r "$device/$3" ] && [ "$(sed 's/^ *//; s/ *$//' "$device/$3")" = "$4" ]; then
            set_knob "$1" "$device/$2"
        fi
    done
}}

{"".join(lines)}"""
    yield KeptFile(path=SCRIPT_FILE, text=text, mode=0o755, command=SCRIPT_FILE, inactive=script_inactive(tuning))


def script_line(setting: Setting, tuning: HostTuning) -> str:
    """Give the line of our script that makes a setting."""
    path, value = setting.knob.path, setting.wanted.value
    if identity := identity_of(setting, tuning):
        file = path.split("/", 4)[4]  # of /sys/block/NAME/queue/FILE
        return f"set_device {value} {file} {identity[0]} '{identity[1]}'\n"
    return f"{'raise_pool' if setting.counted else 'set_knob'} {value} {path}\n"


def script_inactive(tuning: HostTuning) -> str:
    """Give why nothing runs our script at boot, "" where /etc/rc.local does."""
    run = re.split(r"(?m)^\s*exit\b", tuning.local_script or "")[0].splitlines()
    if tuning.init not in CLASSIC:
        return f"process 1 is {tuning.init or 'unknown'}, which is not known to run /etc/rc.local"
    if not any(SCRIPT_FILE in line.partition("#")[0] for line in run):
        return "/etc/rc.local does not run it"
    return "" if tuning.local_runs else "/etc/rc.local may not be executed: chmod +x /etc/rc.local"


def render_mount(place: str, tuning: HostTuning) -> KeptFile:
    """Give the shared mount: a mount unit where systemd runs, a line of /etc/fstab elsewhere."""
    if tuning.init != SYSTEMD:
        line = FstabLine(source="hugetlbfs", target=PurePosixPath(place), type="hugetlbfs", options=SHARED_OPTIONS)
        why = f"process 1 is {tuning.init or 'unknown'}, which is not known to mount what {FSTAB} says"
        return KeptFile(
            path=FSTAB, text=render_line(line), kind="fstab", inactive="" if tuning.init in CLASSIC else why
        )
    name = f"{escape_unit(place)}.mount"
    text = f"""\
{HEAD}[Unit]
Description=Shared huge pages

[Mount]
What=hugetlbfs
Where={place.replace("%", "%%")}
Type=hugetlbfs
Options={",".join(SHARED_OPTIONS)}

[Install]
WantedBy=multi-user.target
"""
    return KeptFile(path=f"/etc/systemd/system/{name}", text=text, command="systemctl daemon-reload", by_hand=True)


def escape_unit(place: str) -> str:
    """Give the name of a mount unit without its ending: systemd.unit(5), "String Escaping"."""
    words = []
    for part in place.strip("/").split("/"):
        kept = (
            character if character.isascii() and (character.isalnum() or character in ":_.") else escaped(character)
            for character in part
        )
        words.append("".join(kept))
    name = "-".join(words)
    return f"\\x2e{name[1:]}" if name.startswith(".") else name


def escaped(character: str) -> str:
    """Give the bytes of a character, each in hexadecimal behind a backslash and an x."""
    return "".join(f"\\x{byte:02x}" for byte in character.encode())


def boot_words(settings: Sequence[Setting], tuning: HostTuning) -> list[str]:
    """Give the words for the kernel command line: a size of pages that is there already is read there alone.

    grubby knows each word once: of two sizes only the larger pages, which need it most, are told to it, and the early
    unit raises the others; where somebody else's word is there it is told none.
    """
    counted = [each for each in settings if each.counted]
    pools = [each for each in counted if page_size_of(each) not in reserved_sizes(tuning)]
    if tuning.grub.startswith(GRUBBY):
        pools = [] if reserved_sizes(tuning) else sorted(pools, key=page_size_of, reverse=True)[:1]
    words = []
    for pool in sorted(pools, key=page_size_of):
        words += [f"hugepagesz={'1G' if page_size_of(pool) == GIB else '2M'}", f"hugepages={pool.wanted.value}"]
    words += [f"transparent_hugepage={each.wanted.value}" for each in settings if each.key == "thp.enabled"]
    return words


def page_size_of(pool: Setting) -> int:
    """Give the size in bytes of a pool's pages."""
    return GIB if f"{GIB >> 10}kB" in pool.knob.path else 2 * MIB


def reserved_sizes(tuning: HostTuning) -> frozenset[int]:
    """Give the sizes of pages that the kernel command line reserves for somebody else: not those we told it."""
    words = re.findall(r"hugepage\w+=\w+", tuning.own_words)
    return frozenset(
        size
        for size in (2 * MIB, GIB)
        if boot_pages(tuning.cmdline, tuning.default_page, size) and not boot_pages(words, tuning.default_page, size)
    )


def check_boot(settings: Sequence[Setting], tuning: HostTuning) -> Iterator[Finding]:
    """Say which pool `--boot` cannot change: the kernel reads a size of pages once, and the first time counts."""
    counted = [each for each in settings if each.counted]
    reserved = reserved_sizes(tuning)
    every = bool(reserved) and tuning.grub.startswith(GRUBBY)
    for pool in [each for each in counted if every or page_size_of(each) in reserved]:
        size = page_size_of(pool)
        booted = boot_pages(tuning.cmdline, tuning.default_page, size)
        if booted < int(pool.wanted.value):
            yield warning(
                code="host.cmdline.hugepages",
                message=f"{pool.wanted.value} pages of {render_size(size)} are not asked of the boot loader",
                where="/proc/cmdline",
                why="the kernel command line has hugepages= of somebody else, or of ours until the next boot: "
                + (
                    "grubby would put ours in its place" if tuning.grub.startswith(GRUBBY) else "it is read once a size"
                ),
                hint="take hugepages= out of the boot loader's configuration, reboot, then run the command again",
            )


def build_boot(settings: Sequence[Setting], tuning: HostTuning) -> Iterator[KeptFile]:
    """Give the drop-in of `--boot` for GRUB: huge pages, while memory is still empty, and transparent ones."""
    words = boot_words(settings, tuning)
    if words and tuning.grub.startswith(GRUBBY):
        command = f"grubby --update-kernel=ALL --args='{' '.join(words)}'"
        text = f"{HEAD}# {command}\n"
        why = "this distribution's GRUB does not read default/grub.d: run the command"
        yield KeptFile(path=GRUB_FILE, text=text, command=command, by_hand=True, inactive=why, option="--boot")
    elif words:
        text = f'{HEAD}GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX {" ".join(words)}"\n'
        inactive = "" if tuning.grub else "this host has no GRUB that update-grub or grub2-mkconfig configures"
        yield KeptFile(path=GRUB_FILE, text=text, command=tuning.grub, by_hand=True, inactive=inactive, option="--boot")
