#!/usr/bin/env python3
"""Keys of an encrypted repository in a bucket: two that rotate at once, on a store that creates
objects once (Ceph) and on one that replaces them (Swift); another key file where versions are kept.
check: build=asan timeout=200"""
import json
import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import s3  # noqa: E402
from s3_node import Place  # noqa: E402
from tm import *  # noqa: E402,F403
import tm  # noqa: E402

ROUNDS = 40 if CAMPAIGN else 6


class Keys:
    """`tidemark key` for a repository of its own."""

    def __init__(self, box, place):
        self.place, self.key = place, box.join(f"{place.bucket}.key")
        self.conf = box.write(f"{place.bucket}.conf", tm.conf_text({
            "tidemark": {"state_dir": box.mkdir(f"{place.bucket}-state", 0o755)},
            "repository": place.section(key_file=self.key)}))
        for args in (("key", "generate", self.key), ("init", "--cipher=aes-256-gcm")):
            is_status(tm.cli(*args, conf=self.conf), 0, f"{place.what}: {args[0]}")

    def start(self):
        return subprocess.Popen([os.path.join(tm.BUILD, "tidemark"), "key", "rotate"],
                                env={**os.environ, "TIDEMARK_CONFIG": self.conf},
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def generation(self):
        done = tm.cli("key", "status", "--json", conf=self.conf)
        return json.loads(done.out)["generation"] if done.status == 0 else done.err


def test_at_once(box, place):
    """Where objects are replaced both may be told that there is another, never neither."""
    keys = Keys(box, place)
    told, ends = True, []
    for _ in range(ROUNDS):
        before = keys.generation()
        both = [keys.start(), keys.start()]
        ends.append([process.wait(60) for process in both])
        told = told and keys.generation() - before >= ends[-1].count(0)
    ok(told, f"{place.what}: each rotation that ended well has its own generation: {ends}")
    is_({status for pair in ends for status in pair} <= {0, EXIT["busy"]}, True,
        f"{place.what}: the others are told (17)")
    is_status(tm.cli("key", "rotate", conf=keys.conf), 0, f"{place.what}: rotate alone")
    newest = f"key/{keys.generation():08x}"
    client = place.store.client(place.keys)
    first, copy = (client.get(f"{place.bucket}/{name}").body for name in (newest, newest + ".copy"))
    is_(len(first) > 192 and first == copy, True, f"{place.what}: leaves two of the same bytes")


def test_versions(box, place):
    """A bucket that keeps versions: what is only hidden could still be opened with the old file."""
    keys, new = Keys(box, place), box.join("versions-new.key")
    client = place.store.client(place.keys)
    is_status(tm.cli("key", "generate", new, conf=keys.conf), 0, "another key file")
    done = tm.cli("key", "rewrap", new, conf=keys.conf)
    is_status(done, 0, "takes the place of the first")
    ok("could not be removed" not in done.err, "and says nothing of what is left")
    is_(client.versions(place.bucket, "key/00000001"), [], "no version of the old ring is there")
    is_(len(client.versions(place.bucket, "key/00000002")), 2, "only the new one")


def main():
    s3.need_ceph()
    box = Sandbox("s3keys")
    need_programs("tidemark")
    ceph = s3.ceph(box)
    test_at_once(box, Place(box, ceph, "keys", what="Ceph"))
    test_versions(box, Place(box, ceph, "versions", lock=True))
    if s3.missing("swift"):
        skip(s3.missing("swift"))
    else:
        test_at_once(box, Place(box, s3.swift(box), "swift-keys", what="Swift"))


run(main)
