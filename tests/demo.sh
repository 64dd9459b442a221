#!/bin/sh
# The main job, told with a private server: see tests/demo.py; with --cluster, that of a cluster:
# see tests/cluster/demo.py. It needs root for volumes (sudo is used where there is one) and cleans
# up after itself, also after Ctrl-C.
cd "$(dirname "$0")/.." || exit 70
python3 tests/lib/reap.py
story=tests/demo.py
[ "$1" = --cluster ] && story=tests/cluster/demo.py && shift
python3 "$story" "$@"
status=$?
python3 tests/lib/reap.py
exit $status
