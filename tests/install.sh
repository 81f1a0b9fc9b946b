#!/usr/bin/env bash
# Installs what `make demo` or `make test` needs and this machine lacks: packages of the distribution, then .venv.
#
#   tests/install.sh demo|test
#
# PYTHON names the Python for .venv, else the first of python3, python3.13, python3.12, python3.11 that is new enough.
# Nothing is done when all is there, so it may be run every time.
set -euo pipefail
# An ordinary user's PATH need not have the directories of mke2fs and depmod.
export PATH="$PATH:/usr/sbin:/sbin"

cd -P "$(dirname "${BASH_SOURCE[0]}")/.."
venv=.venv
stamp=$venv/.installed

# A command, or a file, and the Debian package that has it.
for_demo=(qemu-system-x86_64:qemu-system-x86 mke2fs:e2fsprogs cpio:cpio depmod:kmod curl:curl xz:xz-utils zstd:zstd)
for_test=(qemu-img:qemu-utils /usr/share/OVMF:ovmf ip:iproute2 strace:strace socat:socat jq:jq fusermount3:fuse3 setfacl:acl swtpm:swtpm shellcheck:shellcheck mformat:mtools
    systemd-analyze:systemd findmnt:util-linux sysctl:procps lvs:lvm2 mkfs.btrfs:btrfs-progs)

fail() {
    echo "tests/install.sh: $*" >&2
    exit 1
}

# What "missing" finds is told by path or by command: a QEMU that was built by hand counts too.
missing() {
    local pair
    for pair in "$@"; do
        case ${pair%%:*} in
            /*) [ -e "${pair%%:*}" ] || echo "${pair#*:}" ;;
            *) command -v "${pair%%:*}" >/dev/null || echo "${pair#*:}" ;;
        esac
    done
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
}

# Debian keeps what `python3 -m venv` needs in a package of its own.
missing_for_venv() {
    local python
    python=$(find_python)
    if [ -n "$python" ]; then
        "$python" -c 'import ensurepip; ensurepip.version()' 2>/dev/null || echo "${python##*/}-venv"
    elif ! command -v python3 >/dev/null; then
        echo python3-venv
    fi
}

install_packages() {
    local as_root=() install log
    if ! command -v apt-get >/dev/null; then
        fail "this distribution has no apt-get: install what Debian calls $*, then try again"
    fi
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || fail "not root and no sudo: let root do: apt-get install $*"
        as_root=(sudo)
    fi
    echo "installing packages: $*"
    as_root+=(env DEBIAN_FRONTEND=noninteractive)
    # A machine that has just started may still be updating itself: wait for it.
    install=(apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=300)
    log=$(mktemp)
    # The first try needs no network but for the packages; it fails where package lists are old or were never fetched.
    if ! "${as_root[@]}" "${install[@]}" "$@" </dev/null >"$log" 2>&1; then
        "${as_root[@]}" apt-get update -qq -o DPkg::Lock::Timeout=300 </dev/null >"$log" 2>&1 || true
        if ! "${as_root[@]}" "${install[@]}" "$@" </dev/null >>"$log" 2>&1; then
            cat "$log" >&2
            rm -f "$log"
            fail "apt-get could not install $*"
        fi
    fi
    rm -f "$log"
}

# What .venv was made from. It holds absolute paths, so it does not survive a move of the checkout.
wanted_stamp() {
    echo "$PWD $(cksum <pyproject.toml)"
}

venv_has() {
    [ -x "$venv/bin/kvmlaunch" ] && grep -qxF "$1 $(wanted_stamp)" "$stamp" 2>/dev/null
}

make_venv() {
    local tier=$1 python
    if venv_has test || venv_has "$tier"; then
        return
    fi
    python=$(find_python)
    if [ -z "$python" ]; then
        fail "Python 3.11 or newer is needed, found $(python3 --version 2>&1): install one with its venv module and name it: make PYTHON=python3.12 …"
    fi
    if ! "$venv/bin/python" -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
        ! head -n 1 "$venv/bin/pip" | grep -qF "$PWD/"; then
        echo "making $venv with $("$python" --version)"
        rm -rf "$venv"
        "$python" -m venv "$venv" || fail "$python could not make $venv"
    fi
    echo "installing kvmlaunch into $venv"
    case $tier in
        demo) set -- -e . ;;
        test) set -- -e '.[dev]' ;;
    esac
    "$venv/bin/python" -m pip install -qq --disable-pip-version-check "$@" </dev/null || fail 'pip could not install kvmlaunch'
    echo "$tier $(wanted_stamp)" >"$stamp"
}

main() {
    local packages
    case ${1:-} in
        demo) packages=$(missing "${for_demo[@]}") ;;
        test) packages=$(missing "${for_demo[@]}" "${for_test[@]}") ;;
        *) fail 'usage: tests/install.sh demo|test' ;;
    esac
    if ! venv_has test && ! venv_has "$1"; then
        packages="$packages $(missing_for_venv)"
    fi
    # shellcheck disable=SC2086 # a list of names
    set -- "$1" $packages
    if [ $# -gt 1 ]; then
        install_packages "${@:2}"
    fi
    make_venv "$1"
}

main "$@"
