"""A script to be run within a guest that has no cloud-init: what the seed would set, with --check and --undo.

POSIX shell, shellcheck-clean, and the same whenever it is run again.  `elevator=` on the kernel command line is for
kernels before 5.0 alone, which still read it: Linux f382fb0bcef4, 85c0a037dc7a.
"""

import shlex
from collections.abc import Iterator, Sequence
from typing import Final

from kvmlaunch.model.tweak import Tweak

HEAD: Final = """\
#!/bin/sh
# Sets, within a Linux guest, what makes it fit the host that runs it.  By kvmlaunch guest-script {name}.
#
#   sh guest.sh           set it; run again it changes nothing; ends with 1 when something is left to be done by hand
#   sh guest.sh --check   only say what would change; ends with 1 when anything would, or is left
#   sh guest.sh --undo    take all of it back, whatever is switched on now; ends with 1 when something is left
set -eu

mode=${{1:-set}}
changes=0
left=0
dropped=0
enabled=/var/lib/kvmlaunch/guest-units # what was not enabled before

say() {{
    echo "guest-script: $*"
}}

by_hand() {{ # WHAT
    left=$((left + 1))
    say "$*: do it by hand" >&2
}}

want_file() {{ # PATH TEXT: the file holds this text
    if [ -f "$1" ] && [ "$(cat "$1")" = "$2" ]; then
        return 0
    fi
    changes=$((changes + 1))
    say "$1"
    if [ "$mode" = set ]; then
        mkdir -p "$(dirname "$1")"
        printf '%s\\n' "$2" >"$1"
    fi
}}

drop_file() {{ # PATH
    if [ -e "$1" ]; then
        dropped=$((dropped + 1))
        if rm -f "$1"; then
            say "$1 removed"
        else
            by_hand "$1 could not be removed"
        fi
    fi
}}

install_by_apt() {{ # NAME: a new image has no lists of packages yet
    DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y "$1" || {{
        apt-get -o DPkg::Lock::Timeout=300 update &&
            DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y "$1"
    }}
}}

has_package() {{ # NAME: one that was removed and left its configuration is known too
    if command -v dpkg-query >/dev/null &&
        [ "$(dpkg-query -W -f='${{db:Status-Status}}' "$1" 2>/dev/null)" = installed ]; then
        return 0
    fi
    command -v rpm >/dev/null && rpm -q "$1" >/dev/null 2>&1
}}

leave_package() {{ # NAME
    if has_package "$1"; then
        say "package $1 stays, as others may use it"
    fi
}}

want_package() {{ # NAME
    if has_package "$1"; then
        return 0
    fi
    changes=$((changes + 1))
    say "package $1"
    if [ "$mode" = set ]; then
        if command -v apt-get >/dev/null; then
            install_by_apt "$1"
        elif command -v dnf >/dev/null; then
            dnf install -y "$1"
        elif command -v zypper >/dev/null; then
            zypper --non-interactive install "$1"
        else
            false
        fi || by_hand "$1 was not installed"
    fi
}}

want_unit() {{ # NAME
    if ! command -v systemctl >/dev/null; then
        by_hand "no systemd here for unit $1"
        return 0
    fi
    if systemctl is-enabled --quiet "$1" 2>/dev/null; then
        return 0
    fi
    changes=$((changes + 1))
    say "unit $1"
    if [ "$mode" = set ]; then
        mkdir -p "${{enabled%/*}}"
        echo "$1" >>"$enabled"
        systemctl enable --now "$1" || by_hand "$1 could not be enabled"
    fi
}}

drop_unit() {{ # NAME: only one that this script has enabled
    if [ -f "$enabled" ] && grep -qxF "$1" "$enabled"; then
        if systemctl disable --now "$1"; then
            say "unit $1 disabled"
        elif systemctl cat "$1" >/dev/null 2>&1; then # where it is gone there is nothing to take back
            by_hand "$1 could not be disabled"
            return 0
        fi
        grep -vxF "$1" "$enabled" >"$enabled.new" || true
        mv "$enabled.new" "$enabled"
    fi
}}

update_boot_loader() {{
    if command -v update-grub >/dev/null; then
        update-grub
    elif command -v grub-mkconfig >/dev/null; then
        grub-mkconfig -o /boot/grub/grub.cfg
    elif command -v grub2-mkconfig >/dev/null; then
        grub2-mkconfig -o "$(readlink -e /etc/grub2.cfg || readlink -e /etc/grub2-efi.cfg || echo /boot/grub2/grub.cfg)"
    else
        say 'no update-grub, no grub2-mkconfig, no grub-mkconfig' >&2
        return 1
    fi
}}

grub=$(readlink -f /etc/default/grub) || grub=/etc/default/grub

# A kernel before 5.0 reads elevator= and has noop; a later one has none, by the rule above.
want_elevator() {{
    major=$(uname -r | sed 's/[^0-9].*//')
    if [ "${{major:-9}}" -ge 5 ] || [ ! -f "$grub" ] ||
        grep -Eq '^GRUB_CMDLINE_LINUX(_DEFAULT)?=[^#]*elevator=noop' "$grub"; then
        return 0
    fi
    if ! grep -q '^GRUB_CMDLINE_LINUX="' "$grub"; then
        by_hand "elevator=noop, as $grub has no quoted GRUB_CMDLINE_LINUX"
        return 0
    fi
    changes=$((changes + 1))
    say "$grub: elevator=noop"
    if [ "$mode" = set ]; then
        cp -p "$grub" "$grub.kvmlaunch"
        cp -p "$grub" "$grub.new"
        sed -E 's/^(GRUB_CMDLINE_LINUX="([^"\\\\]|\\\\.)*)"/\\1 elevator=noop"/' "$grub.kvmlaunch" >"$grub.new"
        if cmp -s "$grub.new" "$grub"; then
            rm -f "$grub.new" "$grub.kvmlaunch"
            by_hand "elevator=noop, as GRUB_CMDLINE_LINUX of $grub is not on one line"
            return 0
        fi
        mv "$grub.new" "$grub"
        update_boot_loader || {{ # as it was, so that the next run tries again
            mv "$grub.kvmlaunch" "$grub"
            by_hand 'the boot loader was not updated: elevator=noop'
        }}
    fi
}}

drop_elevator() {{ # only where this script has put it: what was before lies beside it then
    if [ -f "$grub.kvmlaunch" ]; then
        dropped=$((dropped + 1))
        say "$grub: elevator=noop removed"
        cp -p "$grub" "$grub.new"
        sed '/^GRUB_CMDLINE_LINUX=/s/ elevator=noop//' "$grub" >"$grub.new"
        mv "$grub.new" "$grub"
        if update_boot_loader; then
            rm -f "$grub.kvmlaunch"
        else
            left=$((left + 1))
            say 'the boot loader was not updated: run --undo again' >&2
        fi
    fi
}}

at_once() {{ # COMMAND: true at the next start in any case
    if [ "$mode" != check ]; then
        sh -c "$1" >/dev/null 2>&1 || say "not at once, but at the next start: $1"
    fi
}}

set_all() {{
{wanted}}}

undo_all() {{
{undone}    if [ "$left" -eq 0 ]; then
        rm -f "$enabled"
    fi
}}

case $mode in
    set) ;;
    --check) mode=check ;;
    --undo) ;;
    *)
        echo "usage: $0 [--check|--undo]" >&2
        exit 2
        ;;
esac
if [ "$(id -u)" -ne 0 ] && [ "$mode" != check ]; then
    say 'this needs root' >&2
    exit 77
fi
if [ "$mode" = --undo ]; then
    undo_all
    if [ "$left" -ne 0 ]; then
        exit 1
    fi
    exit 0
fi
set_all
if [ "$left" -ne 0 ]; then
    exit 1
elif [ "$changes" -eq 0 ]; then
    say 'all is as it should be'
elif [ "$mode" = check ]; then
    exit 1
fi
"""


def set_lines(tweak: Tweak) -> Iterator[str]:
    """Give what sets one thing."""
    if tweak.package:
        yield f"want_package {shlex.quote(tweak.package)}"
    for path, text in tweak.files:
        yield f"want_file {shlex.quote(path)} {shlex.quote(text.rstrip())}"
    if tweak.name == "scheduler":
        yield "want_elevator"
    if tweak.command:
        yield f"at_once {shlex.quote(tweak.command)}"
    if tweak.unit:
        yield f"want_unit {shlex.quote(tweak.unit)}"


def undo_lines(tweak: Tweak) -> Iterator[str]:
    """Give what takes one thing back; a package stays, as others may use it."""
    if tweak.unit:
        yield f"drop_unit {shlex.quote(tweak.unit)}"
    if tweak.package:
        yield f"leave_package {shlex.quote(tweak.package)}"
    if not tweak.files:
        return
    yield "dropped=0"
    for path, _ in tweak.files:
        yield f"drop_file {shlex.quote(path)}"
    if tweak.name == "scheduler":
        yield "drop_elevator"
    yield 'if [ "$dropped" -ne 0 ]; then'
    if tweak.name == "scheduler":
        yield "    say 'the schedulers in use stay until the next start'"
    yield f"    at_once {shlex.quote(tweak.undo)}"
    yield "fi"


def render_script(name: str, tweaks: Sequence[Tweak]) -> str:
    """Give the script of a VM's guest.  It takes back whatever any of its kind may have set."""
    chosen = [tweak for tweak in tweaks if tweak.wanted.value]
    wanted = "".join(f"    {line}\n" for tweak in chosen for line in set_lines(tweak)) or "    :\n"
    undone = "".join(f"    {line}\n" for tweak in reversed(tweaks) for line in undo_lines(tweak))
    return HEAD.format(name=name, wanted=wanted, undone=undone)
