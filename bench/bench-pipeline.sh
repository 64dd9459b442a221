#!/bin/sh
# bench/bench-pipeline.sh [LANES…] [sealed]: push and pull between RAM-backed loop devices and a
# directory store, for each lane count (default 1 2 4). Prints GB/s and CPU-seconds per GB of
# volume, beside the references measured in the same run. Seconds vary with what else the machine
# does; compare rows of one run, and CPU-seconds. sealed: once more with an encrypted repository.
#
#   SIZE_MIB=1024        volume size
#   REPOSITORY_DIR=DIR   where the repository lies (default: a temporary directory in /var/tmp)
#   TARGET_DIR=DIR       where the image under the target lies (default /dev/shm: RAM)
set -eu
cd "$(dirname "$0")/.."
program=${TIDEMARK_BUILD:-build/release}/bench/bench-pipeline
size_mib=${SIZE_MIB:-1024}
ram=$(mktemp -d /dev/shm/tidemark-bench-XXXXXX)
disk=$(mktemp -d "${REPOSITORY_DIR:-/var/tmp}/tidemark-bench-XXXXXX")
far=$(mktemp -d "${TARGET_DIR:-/dev/shm}/tidemark-bench-XXXXXX")
source=''
target=''
clean_up() {
    [ -z "$source" ] || losetup -d "$source"
    [ -z "$target" ] || losetup -d "$target"
    rm -rf "$ram" "$disk" "$far"
}
trap clean_up EXIT
trap 'exit 130' INT TERM
truncate -s "${size_mib}M" "$ram/source" "$far/target"
source=$(losetup -f --show --direct-io=on "$ram/source")
target=$(losetup -f --show --direct-io=on "$far/target")
[ $# -gt 0 ] || set -- 1 2 4
load=$(cut -d' ' -f1 /proc/loadavg)
echo "# volume ${size_mib} MiB, $(nproc) cores, kernel $(uname -r), load average $load"
"$program" "$source" "$target" "$disk/repository" "$ram" "$@"
