#!/usr/bin/env python3
# check: build=release timeout=60
"""The secret key of an s3:// repository while a request is on its way: in no argument, in no
output, and in the process' memory only where core dumps leave it out (VmFlags dd, proc(5)). The
server is one that never answers, so that the process stands still in the middle of a request."""
import os
import re
import socket
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from tm import *  # noqa: E402,F403

SECRET = "Zq7-very/secret+key-0123456789abcdef"


def mappings(pid):
    """(start, end, left out of dumps) of every mapping."""
    found, bounds = [], None
    with open(f"/proc/{pid}/smaps", encoding="ascii", errors="replace") as file:
        for line in file:
            head = re.match(r"([0-9a-f]+)-([0-9a-f]+) (\S+)", line)
            if head:
                bounds = (int(head[1], 16), int(head[2], 16))
            elif line.startswith("VmFlags:"):
                found.append((*bounds, " dd" in line))
    return found


def copies(pid, needle):
    """How many copies of needle are in memory that is dumped, and in memory that is not."""
    counts = [0, 0]
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for start, end, left_out in mappings(pid):
            try:
                memory.seek(start)
                counts[left_out] += memory.read(end - start).count(needle)
            except (OSError, OverflowError, ValueError):
                continue  # [vvar] and [vsyscall]
    return counts


def look(box, listener, args, **env):
    """Starts a program, looks at it while it waits for the server: what is wrong with it."""
    name = os.path.basename(args[0])
    log = box.join(name + ".out")
    with open(log, "wb") as out:
        process = subprocess.Popen(args, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                   env={"PATH": os.environ["PATH"], **env})
    try:
        connection, _ = listener.accept()
        with connection:
            request = connection.recv(65536).decode()
            like(request, "(?i)authorization: AWS4-HMAC-SHA256 Credential=KEYID/",
                 f"{name}: a signed request is on its way")
            unlike(request, re.escape(SECRET), f"{name}: without the secret")
            with open(f"/proc/{process.pid}/cmdline", "rb") as file:
                ok(SECRET.encode() not in file.read(), f"{name}: nor is it in the arguments")
            dumped, left_out = copies(process.pid, SECRET.encode())
            ok(left_out > 0, f"{name}: it is in memory ({left_out} copies)")
            is_(dumped, 0, f"{name}: never where a core dump would show it")
            process.kill()
    finally:
        process.kill()
        process.wait()
    with open(log, encoding="utf-8") as file:
        unlike(file.read(), re.escape(SECRET), f"{name}: nor in what it says")


def main():
    box = need_root() or Sandbox("secrets")
    need_programs("tidemark", "tidemark-wal-worker", "tidemark-inspect")
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(20)
    endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
    keys = box.write("keys", f"access_key = KEYID\nsecret_key = {SECRET}\n", 0o600)
    options = ["--repository=s3://bucket/p", f"--endpoint={endpoint}",
               f"--credentials-file={keys}"]
    state = {"TIDEMARK_TIDEMARK_STATE_DIR": box.mkdir("state")}
    look(box, listener, [os.path.join(BUILD, "tidemark"), "list", *options], **state)
    look(box, listener, [os.path.join(BUILD, "tidemark-inspect"), *options, "tidemark.repo"])
    look(box, listener, [os.path.join(BUILD, "tidemark-wal-worker"), "get",
                         "000000010000000000000001", box.join("x"), "--system-id=1", *options])
    listener.close()


run(main)
