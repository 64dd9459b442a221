#!/usr/bin/env python3
"""`tidemark expire` in a bucket, encrypted: keys that may not delete say so and change nothing;
those that may remove in batches, kill -9 at every removal, and what is left is whole. Ages are
the server's.
check: build=release timeout=400"""
import json
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import s3  # noqa: E402
from faultproxy import Rule  # noqa: E402
from s3_node import World, credentials_file  # noqa: E402
from tm import *  # noqa: E402,F403


def identities(world):
    done = world.cli("list", "--json")
    records = [json.loads(line) for line in done.out.splitlines()]
    return {r["tag"]: r["id"] for r in records}


def test_killed(world, short):
    """By name, and an expire that dies at each removal."""
    world.change(2)
    is_status(world.snapshot("t4"), 0, "snapshot t4")
    identity = identities(world)["t4"]
    world.proxy.rules(Rule(f"^GET .*/volume/.*{identity}", "status", code=403))
    done = world.cli("expire", "--local", "t4", "--confirm", **short)
    is_status(done, "auth", "its manifest cannot be read")
    ok("t4" not in world.tags(), "by its name it is withdrawn all the same")
    world.proxy.rules()
    before, stops = set(world.place.keys_below()), 0
    for point in range(0, 100 if CAMPAIGN else 4):
        def ended():  # killed, or at its end; until then it is within its grace
            done = world.cli("expire", "--local", TIDEMARK_TEST_STOP=f"expire-remove-{point}",
                             **short)
            return done if done.status or set(world.place.keys_below()) != before else None
        if poll(ended, 120, "the end of the grace").status == 0:
            break
        stops += 1
    ok(stops >= 3, f"expire was killed {stops} times")
    is_status(world.cli("expire", "--local", **short), 0, "the next one comes to its end")
    is_([k for k in world.place.keys_below() if identity in k], [], "nothing of t4 is left")
    is_status(world.cli("verify", "t3"), 0, "t3 verifies")
    is_(world.place.keys_below("reading/"), [], "which leaves no mark")


def main():
    s3.need_ceph()
    box = need_root() or Sandbox("s3expire")
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian")
    store = s3.ceph(box)
    world = World(box, store, "expire")
    world.node.encrypt()
    world.start()
    is_status(world.snapshot("t1"), 0, "snapshot t1")
    world.server.psql("create table junk (pad text); alter table junk alter pad set storage "
                      "external; insert into junk select (select string_agg(md5(random()::text"
                      " || j || i), '') from generate_series(1, 32768) j) from"
                      " generate_series(1, 40) i")
    is_status(world.snapshot("t2"), 0, "snapshot t2, with whole packs of its own")
    world.server.psql("drop table junk")
    is_status(world.snapshot("t3"), 0, "snapshot t3, which needs none of them")
    ids = identities(world)
    world.node.sections["retention"] = {"count": 1}
    world.node.write_conf()
    short = {"TIDEMARK_TEST_GRACE_S": "1"}  # the server's clock cannot be set
    poor = store.user("poor", "read, write")
    store.share("expire", store.keys, "poor")
    env = {"TIDEMARK_REPOSITORY_CREDENTIALS_FILE": credentials_file(box, "poor-keys", poor),
           **short}
    is_status(world.cli("expire", "--local", **short), 0, "t1 and t2 are withdrawn")
    is_(world.tags(), ["t3"], "and gone for readers")
    before = set(world.place.keys_below())

    def refused():
        done = world.cli("expire", "--local", **env)
        return done if done.status else None
    done = poll(refused, 60, "the end of the grace")
    is_status(done, "auth", "their grace is over, the key may not delete")
    like(done.err, "the key of this host may not delete: .*\nhint: run `tidemark expire` where",
         "and it is said")
    is_(sorted(before - set(world.place.keys_below())), [], "nothing was removed")
    done = world.cli("expire", "--json", "--local", **short)
    is_status(done, 0, "keys that may")
    after = set(world.place.keys_below())
    gone = before - after
    ok({f"snapshot/main/db-expire/{ids[t]}.json" for t in ("t1", "t2")} <= gone, "remove records")
    is_([k for k in after if k.startswith("volume/") and ids["t3"] not in k], [], "manifests")
    ok(any(k.startswith("pack/") for k in gone), "packs that nobody needs")
    result = json.loads(done.out.splitlines()[-1])["result"]
    is_(result["objects"] + result["wal_objects"],
        len([k for k in gone if not k.startswith(("withdrawn/", "horizon/"))]),
        "and say how many")
    is_status(world.cli("verify", "t3"), 0, "the kept one verifies")
    test_killed(world, short)
    is_status(world.restore("t3"), 0, "and is restored")
    world.check_rows("t3", "expired")
    world.stop()


run(main)
