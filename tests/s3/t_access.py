#!/usr/bin/env python3
"""Where keys come from (file, environment, AWS file), which are refused, and what is said when an
address, a name, a certificate or a clock is wrong.
check: build=asan timeout=120"""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import s3  # noqa: E402
from s3_node import Place, credentials_file  # noqa: E402
from tm import *  # noqa: E402,F403


def conf_of(box, name, place, **more):
    """A configuration for `tidemark init` alone."""
    return box.write(name, conf_text({
        "tidemark": {"cluster": "main", "node": "n1", "state_dir": box.mkdir("state-" + name),
                     "socket": box.join(name + ".sock")},
        "repository": place.section(**more)}))


def sources(box, store):
    """The three places keys come from; each makes a repository of its own."""
    keys = store.keys
    environment = {"AWS_ACCESS_KEY_ID": keys.access, "AWS_SECRET_ACCESS_KEY": keys.secret}
    shared = box.write("aws", "[default]\naws_access_key_id = nobody\naws_secret_access_key = x\n"
                       f"[backup]\naws_access_key_id = {keys.access}\n"
                       f"aws_secret_access_key = {keys.secret}\n", 0o600)
    aws = {"AWS_SHARED_CREDENTIALS_FILE": shared, "AWS_PROFILE": "backup"}
    for name, options, env in (("file", {}, {}),
                               ("environment", {"credentials_file": None}, environment),
                               ("shared", {"credentials_file": None}, aws)):
        place = Place(box, store, "keys-" + name)
        conf = conf_of(box, name + ".conf", place, **options)
        is_status(cli("init", conf=conf, **env), 0, f"keys from the {name}")
        is_status(cli("list", conf=conf, **env), 0, f"and to read with, from the {name}")


def refused(box, store):
    place = Place(box, store, "refused")
    is_status(cli("init", conf=conf_of(box, "good.conf", place)), 0, "the intact case")
    for mode in (0o644, 0o666):
        loose = credentials_file(box, f"loose-{mode:o}", store.keys, mode)
        done = cli("list", conf=conf_of(box, "loose.conf", place, credentials_file=loose))
        is_status(done, "auth", f"mode {mode:o} is refused")
        like(done.err, rf"(?s){loose}.*hint: .*(chmod|6[04]0)", "with name and remedy")
    cases = (
        ("no key at all", {"credentials_file": None}, "auth", "hint: .*credentials"),
        ("an absent file", {"credentials_file": box.join("absent")}, "auth", "absent.*hint: "),
        ("a wrong secret", {"credentials_file": credentials_file(
            box, "wrong", s3.Keys(store.keys.access, "wrong"))}, "auth", "hint: "),
        ("an unknown key", {"credentials_file": credentials_file(
            box, "unknown", s3.Keys("NOBODY", "wrong"))}, "auth", "hint: "),
        ("another's bucket", {"credentials_file": credentials_file(
            box, "other", store.user("other"))}, "auth", "hint: "))
    for what, options, want, pattern in cases:
        done = cli("list", conf=conf_of(box, "bad.conf", place, **options))
        is_status(done, want, what)
        like(done.err, f"(?s)error: .*{pattern}", f"{what}: says so")


def hints(box, ceph):
    """Wrong addresses, names and clocks are named."""
    place = Place(box, ceph, "hints")
    is_status(cli("init", conf=conf_of(box, "hints.conf", place)), 0, "the intact case")
    clock = ceph.late_gateway()
    cases = (
        ("a clock that is an hour off", {"endpoint": clock.endpoint}, (12, 13), "clock"),
        ("no such bucket", {"url": "s3://absent-bucket"}, (12, 15), "absent-bucket"),
        ("nobody listens", {"endpoint": f"http://127.0.0.1:{s3.free_ports(1)[0]}",
                            "retry_timeout": "1s"}, (12,), "refused|connect"),
        ("no such host", {"endpoint": "http://no-such-host.invalid", "retry_timeout": "1s"}, (12,),
         "no-such-host.invalid"),
        ("plain HTTP to a TLS port", {"endpoint": ceph.tls_endpoint.replace("https", "http"),
                                      "retry_timeout": "1s"}, (12,), "http"),
        ("an unknown certificate", {"endpoint": ceph.tls_endpoint, "ca_file": None}, (13,),
         "certificate"),
        ("path style where hosts are buckets", {
            "endpoint": f"http://localhost:{ceph.gateway.port}", "addressing": "path"},
         (12,), "addressing = virtual"))
    for what, options, statuses, pattern in cases:
        done = cli("list", conf=conf_of(box, "hints.conf", place, **options))
        ok(done.status in statuses, f"{what}: exit {done.status}")
        like(done.err, f"(?si)error: .*({pattern}).*hint: |error: .*hint: .*({pattern})",
             f"{what}: named")


def main():
    s3.need_ceph()
    box = need_root() or Sandbox("s3access")
    need_programs("tidemark")
    store = s3.ceph(box)
    sources(box, store)
    refused(box, store)
    hints(box, store)


run(main)
