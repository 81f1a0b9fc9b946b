#!/bin/sh
# Unpack QEMU 10 of Debian's backports, with the libraries and firmware that it needs, under OUTDIR; nothing is
# installed, no root is needed, and a second run does nothing.  OUTDIR/qemu-system-x86_64, qemu-img and qemu-io start it.
set -eu

out=${1:?usage: fetch-10.sh OUTDIR}
mkdir -p "$out"
out=$(cd "$out" && pwd)
exec 9>"$out/lock"
flock 9 # tests run side by side: one unpacks, the others wait for it
if "$out/qemu-system-x86_64" -version 2>/dev/null; then
  exit 0
fi

apt=$out/apt
mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$apt/debs"
keys=/usr/share/keyrings/debian-archive-keyring.gpg
mirror=$(apt-get indextargets --format '$(RELEASE) $(REPO_URI)' | sed -n 's/^bookworm //p' | head -n 1)
if [ -z "$mirror" ]; then
  echo "apt on this machine has no Debian bookworm to take the mirror from" >&2
  exit 1
fi
for suite in bookworm bookworm-updates bookworm-backports; do
  echo "deb [signed-by=$keys] $mirror $suite main"
done >"$apt/sources.list"
: >"$apt/status"

# apt with its own sources, lists and cache; the host's are neither read nor written.
apart() {
  tool=$1
  shift
  "$tool" -q -o Dir::Etc::sourcelist="$apt/sources.list" -o Dir::Etc::sourceparts=/dev/null \
    -o Dir::Etc::preferencesparts=/dev/null -o Dir::State="$apt" -o Dir::State::lists="$apt/lists" \
    -o Dir::State::status="$apt/status" -o Dir::Cache="$apt/cache" -o Debug::NoLocking=1 -o APT::Sandbox::User= "$@"
}
apart apt-get update

# To an empty status file every dependency is missing, so apt names them all; the C library stays the host's.
apart apt-get install --print-uris -y --no-install-recommends -t bookworm-backports qemu-system-x86 qemu-utils |
  sed -n "s/^'[^']*' \([^_ ]*\)_.*/\1/p" |
  grep -Evx 'libc6|libc-bin|libgcc-s1|libstdc\+\+6|gcc-12-base|dpkg|perl-base|debconf|tar|base-files' |
  sort -u >"$apt/packages"
cd "$apt/debs"
# shellcheck disable=SC2046 # package names hold no blanks
apart apt-get download -t bookworm-backports $(cat "$apt/packages")
for deb in ./*.deb; do
  dpkg-deb -x "$deb" "$out/root"
done
rm -rf "$apt"

root=$out/root
share=$root/usr/share
for name in qemu-system-x86_64 qemu-img qemu-io; do
  case $name in
    qemu-system-*) places="-L '$share/qemu' -L '$share/seabios' -L '$root/usr/lib/ipxe/qemu'" ;;
    *) places= ;;
  esac
  cat >"$out/$name" <<WRAPPER
#!/bin/sh
export LD_LIBRARY_PATH='$root/usr/lib/x86_64-linux-gnu:$root/lib/x86_64-linux-gnu'
export QEMU_MODULE_DIR='$root/usr/lib/x86_64-linux-gnu/qemu'
exec '$root/usr/bin/$name' $places "\$@"
WRAPPER
  chmod 755 "$out/$name"
done
"$out/qemu-system-x86_64" -version
