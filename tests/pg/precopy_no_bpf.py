#!/usr/bin/env python3
"""precopy_no_bpf.py PROGRAM ARGS: runs it where bpf() is not permitted, whatever its rights, as in
a kernel that is locked down: by a seccomp filter."""
import ctypes
import os
import platform
import struct
import sys

PR_SET_SECCOMP, MODE_FILTER = 22, 2
LOAD_NR, JUMP_EQ, RETURN = 0x20, 0x15, 0x06
ALLOW, NOT_PERMITTED = 0x7fff0000, 0x00050001
BPF = {"x86_64": 321, "aarch64": 280}[platform.machine()]

code = b"".join(struct.pack("=HBBI", *line) for line in (
    (LOAD_NR, 0, 0, 0), (JUMP_EQ, 0, 1, BPF), (RETURN, 0, 0, NOT_PERMITTED), (RETURN, 0, 0, ALLOW)))
lines = ctypes.create_string_buffer(code, len(code))
program = struct.pack("@HP", len(code) // 8, ctypes.addressof(lines))
if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_SECCOMP, MODE_FILTER, program, 0, 0):
    sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
os.execv(sys.argv[1], sys.argv[1:])
