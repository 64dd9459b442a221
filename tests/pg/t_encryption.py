#!/usr/bin/env python3
# check: timeout=300
"""An encrypted repository with a real server: nothing plain in it; every kind of object flipped,
cut and swapped is corrupt and named; wrong, missing and loose key files; a plain repository put in
its place; rotation; another key file; and a restore with only repository and key file."""
import glob
import json
import os
import shutil
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from tm import *  # noqa: E402,F403
import snapshots as snap  # noqa: E402

# Texts that the volume, its records and the WAL are full of.
KNOWN = (b"a secret of the customer", b"archive_command", b"pgbench_accounts", b"mount_point",
         b"START WAL LOCATION", b"TMREGION")


def below(node, pattern):
    """Names of objects."""
    root = snap.repository(node)
    return sorted(os.path.relpath(path, root) for path in glob.glob(f"{root}/{pattern}"))


def load(node, name):
    with open(os.path.join(snap.repository(node), name), "rb") as file:
        return file.read()


def save(node, name, data):
    path = os.path.join(snap.repository(node), name)
    os.chmod(path, 0o640)
    with open(path, "wb") as file:
        file.write(data)


def test_nothing_plain(node):
    names = [name for name in below(node, "**/*") + below(node, "*/*") + below(node, "*/*/*")
             + below(node, "*/*/*/*") + below(node, "*/*/*/*/*")
             if os.path.isfile(os.path.join(snap.repository(node), name))]
    names = sorted(set(names))
    found = [(name, text) for name in names for text in KNOWN if text in load(node, name)]
    kinds = {name.split("/")[0] for name in names}
    is_(kinds >= {"pack", "table", "volume", "snapshot", "wal", "key"}, True,
        f"{len(names)} objects of every kind")
    is_(found, [], "nothing that is known stands in them")
    plain = [name for name in names if not name.startswith(("key/", "tidemark"))
             and load(node, name)[16:20] == bytes(4)]
    is_(plain, [], "and each names its key")


def kinds_of(node):
    """Kind -> an object that 'two' needs, and another good one of the kind."""
    records = {json.loads(line)["tag"]: json.loads(line)["id"]
               for line in node.cli("list", "--json").out.splitlines()}
    one, two = records["one"], records["two"]
    wal = below(node, "wal/main/*/*/" + "[0-9A-F]" * 24)
    segment = node.cli("show", "two", "--json")
    lsn = json.loads(segment.out)["postgresql"]["start_lsn"].split("/")
    name = f"{1:08X}{int(lsn[0], 16):08X}{int(lsn[1], 16) >> 24:08X}"
    own = [path for path in wal if path.endswith(name)][0]
    return {
        "pack": (below(node, f"pack/*/{two}/*")[0], below(node, f"pack/*/{one}/*")[0]),
        "table": (below(node, f"table/*/{two}/*")[0], below(node, f"table/*/{one}/*")[0]),
        "manifest": (below(node, f"volume/*/{two}")[0], below(node, f"volume/*/{one}")[0]),
        "record": (below(node, f"snapshot/*/*/{two}.json")[0],
                   below(node, f"snapshot/*/*/{one}.json")[0]),
        "WAL": (own, [path for path in wal if path != own][0]),
    }, two


def test_damage(node):
    kinds, identity = kinds_of(node)
    is_status(node.cli("verify", identity), 0, "the intact case")
    for kind, (name, other) in kinds.items():
        data, stranger = load(node, name), load(node, other)
        cuts = [len(data) - 1, len(data) // 2, 192, 100]
        flip = bytearray(data)
        flip[-1] ^= 1
        headed = data[:192] + stranger[192:]  # with the right header: only the seal can tell
        cases = [("a flipped bit", bytes(flip)), ("another's bytes", stranger),
                 ("another's body", headed)] + [(f"cut at {cut}", data[:cut]) for cut in cuts]
        for what, damaged in cases:
            save(node, name, damaged)
            done = node.cli("verify", identity)
            good = done.status == EXIT["corrupt"] and name in done.err
            if not ok(good, f"{kind}: {what}: exit {done.status}"):
                diag(done.err)
        save(node, name, data)
    is_status(node.cli("verify", identity), 0, "all put right again")


def test_keys(node, box):
    wrong = box.join("wrong.key")
    is_status(node.cli("key", "generate", wrong), 0, "another key file")
    done = node.cli("key", "generate", wrong)
    is_status(done, "refused", "which is not overwritten")
    for what, options, text in (
            ("a wrong key file", (f"--key-file={wrong}",), "is not the one of this repository"),
            ("none", (), "no key file is configured"),
            ("a missing one", ("--key-file=/nonexistent/key",), "No such file"),
            ("the one of WAL", (f"--key-file={node.wal_key}",), "may be used by others|WAL only")):
        done = run_program(os.path.join(node.programs, "tidemark"), "list",
                           f"--repository={node.repository}", *options)
        is_status(done, "auth", f"{what}: 13")
        like(done.err, f"(?s)({text}).*hint: ", f"{what}: says so, with a hint")
    os.chmod(node.key, 0o644)
    done = node.cli("list", "--local")
    is_status(done, "auth", "one that others may read")
    like(done.err, "may be used by others", "is refused")
    os.chmod(node.key, 0o600)
    segment = os.path.basename(kinds_of(node)[0]["WAL"][0])
    to = box.join("log/segment")
    is_status(node.wal("get", segment, to), 0, "the server's user gets WAL with its own key file")
    loose = node.box.join("copy.key")
    shutil.copyfile(node.key, loose)
    shutil.chown(loose, "postgres", "postgres")
    os.chmod(loose, 0o600)
    done = node.wal("get", segment, to, f"--key-file={loose}", "--get-timeout=1s")
    is_(done.status, 126, "and does not use one that opens everything")
    like(done.err, "must not have it", "as it says")


def test_plain_in_its_place(node, box):
    """Whoever can write to the store puts a plain tidemark.repo there."""
    plain = make_repository(box, "plain")
    done = run_program(os.path.join(node.programs, "tidemark"), "init", f"--repository={plain}")
    is_status(done, 0, "a plain repository")
    data = {name: load(node, name) for name in ("tidemark.repo", "tidemark.repo.copy")}
    for name in data:
        with open(os.path.join(plain.removeprefix("file://"), name), "rb") as file:
            save(node, name, file.read())
    done = node.cli("snapshot", "--tag", "evil", "--local")
    is_status(done, "refused", "is not written to")
    like(done.err, "is not encrypted, but there is a key_file", "and why")
    for name, was in data.items():
        save(node, name, was)


def test_rotation(node):
    done = node.cli("key", "rotate", "--json")
    is_status(done, 0, "rotate")
    is_(json.loads(done.out)["data_key"], 3, "a new key")
    is_status(node.cli("snapshot", "--tag", "three"), 0, "an incremental with it")
    identity = json.loads(node.cli("show", "three", "--json").out)["id"]
    is_(load(node, below(node, f"volume/*/{identity}")[0])[16], 3, "is sealed with it")
    for tag in ("one", "two", "three"):
        is_status(node.cli("verify", tag), 0, f"{tag} is good")
    new = node.box.join("new.key")
    is_status(node.cli("key", "generate", new), 0, "another key file")
    is_status(node.cli("key", "rewrap", new), 0, "takes the place of the first")
    is_status(node.cli("list", "--local"), "auth", "which is good for nothing now")
    os.unlink(node.key)
    os.rename(new, node.key)
    os.unlink(node.wal_key)
    is_status(node.cli("key", "wal", node.wal_key), 0, "and makes one for WAL")
    node.server.psql("insert into secrets values ('after the change of keys')")
    node.wait_archived(node.server.switch_wal())
    is_status(node.cli("verify", "three"), 0, "three is good with the new file")


def test_restore(node, box):
    """A damaged pack, then the whole of it: no configuration, only repository and key files."""
    node.agent.stop()
    node.server.stop()
    node.destroy(node.volumes[0])
    state = box.mkdir("fresh-state", 0o755)
    blank = box.loop(box.image("blank.img", 420 * MIB))
    args = ("restore", "--yes", f"--repository={node.repository}", f"--key-file={node.key}",
            f"--wal-key-file={node.wal_key}", f"--device=pgdata:{blank}", "three")
    program = os.path.join(node.programs, "tidemark")
    env = {"TIDEMARK_TIDEMARK_STATE_DIR": state}
    name = kinds_of(node)[0]["pack"][1]
    data = load(node, name)
    damaged = bytearray(data)
    damaged[200:-1:4096] = bytes(len(range(200, len(data) - 1, 4096)))
    save(node, name, bytes(damaged))
    done = run_program(program, *args, **env)
    is_status(done, "corrupt", "a restore from a damaged pack")
    like(done.err, name, "names it")
    like(done.out + done.err, r"`\[wal\]` and `key_file = …`", "the plan says what archiving needs")
    is_(node.server.running(), False, "and nothing is started")
    save(node, name, data)
    job = max(glob.glob(state + "/jobs/*"), key=os.path.getmtime)
    done = run_program(program, "restore", "--yes", "--resume", os.path.basename(job),
                       f"--repository={node.repository}", f"--key-file={node.key}",
                       f"--wal-key-file={node.wal_key}", **env)
    if not is_status(done, 0, "put right, it goes on"):
        diag(done.out)
    node.server.wait_ready()
    is_(node.server.psql("select count(*) from secrets"), "3000", "the rows of the tag are back")
    node.server.stop("immediate", check=False)
    box.umount(node.volumes[0].mount)


def main():
    box = need_root() or Sandbox("t_encryption")
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian")
    node = Node(box, [box.volume("pgdata", 400 * MIB)],
                options={"tidemark": {"freeze_deadline": "60s"}})
    node.encrypt()
    node.start()
    node.server.psql("create table secrets (t text); insert into secrets select"
                     " 'a secret of the customer ' || i from generate_series(1, 2000) i")
    node.server.pgbench_init(1)
    is_status(node.cli("snapshot", "--tag", "one"), 0, "a snapshot")
    node.server.psql("insert into secrets select 'a secret of the customer ' || i"
                     " from generate_series(1, 1000) i")
    is_status(node.cli("snapshot", "--tag", "two"), 0, "an incremental")
    is_(node.cli("list").out.count("\n"), 3, "list shows both")
    test_nothing_plain(node)
    test_keys(node, box)
    test_damage(node)
    test_plain_in_its_place(node, box)
    test_rotation(node)
    test_restore(node, box)


run(main)
