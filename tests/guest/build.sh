#!/usr/bin/env bash
# Builds the guest that the demo and the boot tests start: web01.vmlinuz, web01.initrd and web01.img in OUTDIR.
#
# Kernel and busybox are the distribution's packages, fetched with apt-get and unpacked, never installed; the disk is an
# ext4 file system with one page. No root is needed. Nothing is done when the three files are there and this directory
# did not change since they were built.
#
#   tests/guest/build.sh OUTDIR [agent|cloud-init|secure-boot]
#
# With `agent` also agent.cpio.gz, to be appended to the initramfs: qemu-guest-agent and udev from their packages, and the
# libraries that they need from this machine. With `cloud-init` also a directory of that name: its package and the Python
# packages that it needs, for a Python of this machine to read a seed with. With `secure-boot` a directory of that name:
# the loaders by which a firmware with Microsoft's keys starts the distribution's kernel, signed as they are.
#
#   KVMLAUNCH_GUEST_KERNEL   another kernel package, such as linux-image-amd64, which has SATA and e1000e
#   KVMLAUNCH_GUEST_CACHE    where the packages are kept, else .cache/guest of the checkout; delete it to get newer ones
set -euo pipefail
export LC_ALL=C PATH="$PATH:/usr/sbin:/sbin"
umask 022

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
disk_size=64M
# modprobe in the guest picks by what it finds; other kernels may have some of these built in.
needed=(virtio_pci virtio_blk virtio_net ext4 button evdev)
welcome=(pvpanic_pci virtio_scsi sd_mod sr_mod nvme ahci ata_piix virtio_rng virtio_console virtio_balloon virtiofs isofs
    af_packet crc32c_generic crc32c_intel e1000 e1000e)

fail() {
    echo "tests/guest/build.sh: $*" >&2
    exit 1
}

check_tools() {
    local pair
    for pair in apt-get:apt dpkg-deb:dpkg mke2fs:e2fsprogs cpio:cpio depmod:kmod flock:util-linux xz:xz-utils zstd:zstd; do
        command -v "${pair%%:*}" >/dev/null || fail "${pair%%:*} is missing: install the package ${pair#*:}"
    done
}

# Everything that the result depends on, as one number.
fingerprint() {
    (
        cd "$here"
        echo "${KVMLAUNCH_GUEST_KERNEL:-}"
        find build.sh root disk -type f -print0 | sort -z | xargs -0 sha256sum
    ) | sha256sum
}

up_to_date() {
    local file
    for file in vmlinuz initrd img; do
        [ -s "$out/web01.$file" ] || return 1
    done
    [ "$(cat "$out/.web01.guest" 2>/dev/null)" = "$print" ]
}

# The machine's package lists may be old or missing, and only root may renew them: own ones do.
apt_options=(-o APT::Sandbox::User=)
use_own_lists() {
    mkdir -p "$work/apt/lists/partial" "$work/apt/archives/partial"
    apt_options+=(-o "Dir::State::lists=$work/apt/lists" -o "Dir::Cache=$work/apt")
    echo 'guest: fetching package lists'
    apt-get "${apt_options[@]}" -qq update >"$work/apt.log" 2>&1 || fail_with_log 'apt-get update failed'
}

fail_with_log() {
    fail "$1: $(grep -m1 -E '^(E|W|Err)' "$work/apt.log" || tail -n 1 "$work/apt.log")"
}

# The first package that $1 depends on whose name is $2 and a version.
depends_of() {
    apt-cache "${apt_options[@]}" depends --no-recommends --no-suggests "$1" 2>/dev/null |
        awk -v name="$2" '$1 ~ /Depends:$/ && $2 ~ "^" name "-[0-9]" && !found { found = 1; print $2 }'
}

# The names of the packages to fetch, or nothing when the lists know no kernel.
packages() {
    local candidate image='' modules
    for candidate in ${KVMLAUNCH_GUEST_KERNEL:-linux-image-cloud-amd64 linux-image-virtual}; do
        case $candidate in
            linux-image-[0-9]*) image=$candidate ;;
            *) image=$(depends_of "$candidate" linux-image) ;;
        esac
        [ -z "$image" ] || break
    done
    [ -n "$image" ] || return 0
    modules=$(depends_of "$image" linux-modules)
    echo "$image ${modules:+$modules }busybox-static"
}

# Fetches the packages that $1 names into $debs.
download() {
    local names
    names=$("$1")
    [ -n "$names" ] || return 1
    echo "guest: fetching $names"
    rm -rf "$debs.part"
    mkdir -p "$debs.part"
    # shellcheck disable=SC2086 # a list of names
    (cd "$debs.part" && apt-get "${apt_options[@]}" -qq download $names) >"$work/apt.log" 2>&1 || return 1
    mv "$debs.part" "$debs"
}

agent_packages() {
    echo qemu-guest-agent udev
}

# Python itself is the machine's.
cloud_init_packages() {
    apt-cache "${apt_options[@]}" depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces \
        --no-enhances cloud-init 2>/dev/null | grep -E '^(cloud-init|python3-.*)$' | grep -vx python3-minimal | sort -u | xargs
}

# Fetches what function $2 names into directory $1 of the cache, unless it is there; $3 is what lacks when apt knows none.
fetch() {
    debs=$cache/$1
    [ ! -d "$debs" ] || return 0
    [ "$(dpkg --print-architecture)" = amd64 ] || fail "the guest is an x86-64 one, this machine is $(dpkg --print-architecture)"
    download "$2" && return
    use_own_lists
    download "$2" && return
    if grep -qE '^(E|W|Err)' "$work/apt.log"; then
        fail_with_log 'fetching packages failed'
    fi
    fail "no package $3 is known to apt"
}

fetch_packages() {
    fetch "${KVMLAUNCH_GUEST_KERNEL:-packages}" packages \
        "${KVMLAUNCH_GUEST_KERNEL:-linux-image-cloud-amd64 or linux-image-virtual}"
}

# The agent's answer to guest-shutdown is /sbin/shutdown, which busybox has not.
build_agent() {
    local library root=$work/agent
    fetch agent agent_packages 'qemu-guest-agent or udev'
    mkdir -p "$work/agent-package" "$root/bin" "$root/sbin" "$root/lib/systemd"
    for deb in "$debs"/*.deb; do
        dpkg-deb -x "$deb" "$work/agent-package"
    done
    find "$work/agent-package" -type f \( -path '*bin/qemu-ga' -o -path '*bin/udevadm' \) -exec cp {} "$root/bin/" \;
    ln -s /bin/udevadm "$root/lib/systemd/systemd-udevd"
    ! ldd "$root"/bin/* | grep 'not found' || fail 'libraries are not on this machine: install qemu-system-x86 and udev'
    for library in $(ldd "$root"/bin/* | grep -o '	.*/[^ ]*' | grep -o '/[^ ]*'); do
        mkdir -p "$root${library%/*}"
        cp -L "$library" "$root$library"
    done
    printf '#!/bin/sh\nsetsid sh -c "sleep 0.2; poweroff" &\n' >"$root/sbin/shutdown"
    chmod 755 "$root/sbin/shutdown"
    (cd "$root" && find . -mindepth 1 -printf '%P\n' | sort | cpio --quiet -o -H newc --owner=0:0 --reproducible) |
        gzip -n -6 >"$work/agent.cpio.gz"
    mv -f "$work/agent.cpio.gz" "$out/"
}

build_cloud_init() {
    fetch cloud-init cloud_init_packages cloud-init
    mkdir -p "$work/cloud-init"
    for deb in "$debs"/*.deb; do
        dpkg-deb -x "$deb" "$work/cloud-init"
    done
    rm -rf "$out/cloud-init"
    mv "$work/cloud-init" "$out/"
    touch "$out/cloud-init"
}

secure_boot_packages() {
    echo shim-signed grub-efi-amd64-signed
}

build_secure_boot() {
    fetch secure-boot secure_boot_packages 'shim-signed or grub-efi-amd64-signed'
    mkdir -p "$work/secure-boot" "$work/loaders"
    for deb in "$debs"/*.deb; do
        dpkg-deb -x "$deb" "$work/loaders"
    done
    find "$work/loaders" -name shimx64.efi.signed -exec cp {} "$work/secure-boot/BOOTX64.EFI" \;
    find "$work/loaders" -name grubx64.efi.signed -exec cp {} "$work/secure-boot/grubx64.efi" \;
    rm -rf "$out/secure-boot"
    mv "$work/secure-boot" "$out/"
    touch "$out/secure-boot"
}

# Tells whether what function $1 builds beside the guest is there and as old as the guest at most.
has_extra() {
    case $1 in
        build_agent) [ "$out/agent.cpio.gz" -nt "$out/.web01.guest" ] ;;
        build_cloud_init) [ "$out/cloud-init" -nt "$out/.web01.guest" ] ;;
        build_secure_boot) [ "$out/secure-boot" -nt "$out/.web01.guest" ] ;;
    esac
}

build_guest() {
    fetch_packages
    echo 'guest: building'
    unpack_packages
    build_initrd
    build_disk
    install_files
    echo "guest: built in $1, Linux $release"
}

# Leaves the kernel's file in $vmlinuz and the name of its modules' directory in $release.
unpack_packages() {
    local deb kernels
    mkdir -p "$work/unpacked"
    # Some releases ship /lib and /bin, some /usr/lib and /usr/bin: here they are the same directories.
    ln -s . "$work/unpacked/usr"
    for deb in "$debs"/*.deb; do
        dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$work/unpacked" --keep-directory-symlink --exclude=./usr/share --no-same-owner
    done
    kernels=("$work"/unpacked/boot/vmlinuz-*)
    vmlinuz=${kernels[0]}
    release=${vmlinuz##*/vmlinuz-}
    [ -s "$vmlinuz" ] || fail "no kernel in $debs: delete that directory"
    [ -d "$work/unpacked/lib/modules/$release" ] || fail "no modules for $release in $debs: delete that directory"
    depmod -b "$work/unpacked" "$release"
}

# The files of the modules named, each with all that it depends on; names that are no module are left out.
module_files() {
    awk -v wanted="$*" '
        {
            name = $1
            sub(/:$/, "", name)
            sub(/^.*\//, "", name)
            sub(/\.ko.*$/, "", name)
            gsub(/-/, "_", name)
            sub(/:/, "", $1)
            files[name] = $0
        }
        END {
            count = split(wanted, names, " ")
            for (i = 1; i <= count; i++) {
                parts = split(files[names[i]], paths, " ")
                for (j = 1; j <= parts; j++) if (!(paths[j] in seen)) { seen[paths[j]] = 1; print paths[j] }
            }
        }' "$work/unpacked/lib/modules/$release/modules.dep"
}

check_modules() {
    local name built_in
    built_in=$(tr - _ <"$work/unpacked/lib/modules/$release/modules.builtin")
    for name in "${needed[@]}"; do
        if [ -z "$(module_files "$name")" ]; then
            [[ $built_in == */"$name".ko* ]] || fail "the kernel $release has no $name"
        fi
    done
}

# busybox's modprobe may lack a decompressor that this kernel's modules need, and unpacking is slow on an emulated CPU.
copy_module() {
    local from=$work/unpacked/lib/modules/$release/$1 to=$work/root/lib/modules/$release/$1
    mkdir -p "${to%/*}"
    case $1 in
        *.ko.xz) xz -dc "$from" >"${to%.xz}" ;;
        *.ko.zst) zstd -dcq "$from" >"${to%.zst}" ;;
        *.ko.gz) gzip -dc "$from" >"${to%.gz}" ;;
        *) cp "$from" "$to" ;;
    esac
}

build_initrd() {
    local module applet
    cp -R "$here/root" "$work/root"
    mkdir -p "$work"/root/{bin,dev,proc,sys,disk,run,tmp,root,var/run,var/log}
    ln -s . "$work/root/usr"
    cp "$work/unpacked/bin/busybox" "$work/root/bin/busybox"
    for applet in $("$work/root/bin/busybox" --list); do
        [ "$applet" = busybox ] || ln -s busybox "$work/root/bin/$applet"
    done
    check_modules
    for module in $(module_files "${needed[@]}" "${welcome[@]}"); do
        copy_module "$module"
    done
    cp "$work/unpacked/lib/modules/$release"/modules.{order,builtin,builtin.modinfo} "$work/root/lib/modules/$release/"
    depmod -b "$work/root" "$release"
    rm -f "$work/root/lib/modules/$release"/modules.{order,builtin*,*.bin,devname,softdep,symbols}
    (cd "$work/root" && find . -mindepth 1 -printf '%P\n' | sort | cpio --quiet -o -H newc --owner=0:0 --reproducible) |
        gzip -n -6 >"$work/web01.initrd"
}

# Every block is written: a sparse image would be filled block by block while the guest runs.
build_disk() {
    mke2fs -q -t ext4 -L web01 -E root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0 -d "$here/disk" "$work/sparse.img" "$disk_size" >/dev/null
    dd if="$work/sparse.img" of="$work/web01.img" bs=1M status=none
}

install_files() {
    cp "$vmlinuz" "$work/web01.vmlinuz"
    chmod 644 "$work"/web01.*
    rm -f "$out/.web01.guest"
    mv -f "$work"/web01.{vmlinuz,initrd,img} "$out/"
    echo "$print" >"$out/.web01.guest"
}

main() {
    local extra=
    case ${2:-} in
        agent) extra=build_agent ;;
        cloud-init) extra=build_cloud_init ;;
        secure-boot) extra=build_secure_boot ;;
    esac
    [ $# -eq 1 ] || { [ $# -eq 2 ] && [ -n "$extra" ]; } || fail 'usage: tests/guest/build.sh OUTDIR [agent|cloud-init|secure-boot]'
    mkdir -p "$1" 2>/dev/null || fail "$1 cannot be made"
    out=$(cd "$1" && pwd)
    [ -w "$out" ] || fail "$out cannot be written to"
    check_tools
    # Two builds at once take turns; the second finds the work done.
    exec 8<"$out"
    flock 8
    print=$(fingerprint)
    if up_to_date && { [ -z "$extra" ] || has_extra "$extra"; }; then
        echo "guest: up to date in $1"
        return
    fi
    work=$(mktemp -d "$out/.guest.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    cache=${KVMLAUNCH_GUEST_CACHE:-$here/../../.cache/guest}
    mkdir -p "$cache" 2>/dev/null || fail "$cache cannot be made"
    cache=$(cd "$cache" && pwd)
    exec 9<"$cache"
    flock 9
    up_to_date || build_guest "$1"
    if [ -n "$extra" ]; then
        "$extra"
        echo "guest: $2 built in $1"
    fi
}

main "$@"
