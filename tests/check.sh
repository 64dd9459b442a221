#!/bin/sh
# Runs every test; see tests/README.md. Options: --campaign (the long loops whole), a pattern
# (or TESTS=pattern): only tests whose name contains it or matches it as a glob.
cd "$(dirname "$0")/.." || exit 70
exec python3 tests/lib/check.py "$@"
