#!/bin/sh
# The static gate: layers, wrappers, banned functions, sizes, formats, clang-tidy. Prints TAP.
# `tests/tidy.sh --fast` leaves clang-tidy out, `--shallow` (in `make check`) lets its analyzer look
# less deep: 20 s instead of three minutes for the tree; `tests/tidy.sh FILE…` runs only clang-tidy
# on FILEs.
cd "$(dirname "$0")/.." || exit 70
exec python3 tests/lib/tidy.py "$@"
