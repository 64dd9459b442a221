#!/usr/bin/env python3
# check: timeout=300
"""An encrypted repository with a real server: nothing plain in it; every kind of object flipped,
cut, swapped and removed is found and named; wrong, missing and loose key files; a plain repository
put in its place; rotation, also killed; another key file; an older key ring put back; export;
expire; and a restore with only repository and key file.

What somebody who can write, and has no key, does to an object, and who sees it here: T this test,
S tests/unit/t_seal.c (every bit and length, right checksums, so that only the seal can tell).

              bit   cut   another's   another's body   moved in    removed   one that is
                          object      behind the       its object            older or not
                                      right header                           sealed
  pack        T S   T S   T S         T S              S           T         -
  table pack  T S   T S   T S         T S              S           T         -
  manifest    T S   T S   T S         T                -           T         S
  record      T S   T S   T S         T                -           T         S
  WAL         T S   T S   T S         T                -           T         S
  key ring    S     S     S           S                S           T         T
  tidemark.repo S   -     T           S                -           -         T

An older pack, table, manifest or record has another name, which holds a random id."""
import glob
import grp
import json
import os
import pathlib
import pwd
import shutil
import signal
import subprocess
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


def away(node, name):
    """Removes an object; the result puts it back."""
    path = os.path.join(snap.repository(node), name)
    hidden = os.path.join(os.path.dirname(path), ".away-" + os.path.basename(path))
    os.rename(path, hidden)
    return lambda: os.rename(hidden, path)


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
        back = away(node, name)
        done = node.cli("verify", identity)
        ok(done.status in (EXIT["corrupt"], EXIT["missing"], EXIT["refused"]),
           f"{kind}: removed: exit {done.status}") or diag(done.err)
        back()
    is_status(node.cli("verify", identity), 0, "all put right again")


def test_keys(node, box):
    wrong = box.join("wrong.key")
    is_status(node.cli("key", "generate", wrong), 0, "another key file")
    done = node.cli("key", "generate", wrong)
    is_status(done, "refused", "which is not overwritten")
    like(done.err, "is there already\nhint: .*another name", "with a hint")
    for what, options, text in (
            ("a wrong key file", (f"--key-file={wrong}",),
             "is not the one of this repository.*put your copy"),
            ("none", (), "no key file is configured.*put your copy"),
            ("a missing one", ("--key-file=/nonexistent/key",), "No such file.*put your copy"),
            ("the one of WAL", (f"--key-file={node.wal_key}",), "may be used by others|WAL only")):
        done = run_program(os.path.join(node.programs, "tidemark"), "list",
                           f"--repository={node.repository}", *options)
        is_status(done, "auth", f"{what}: 13")
        like(done.err, f"(?s)({text}).*", f"{what}: says so")
        like(done.err, r"\nhint: ", f"{what}: with a hint")
    os.chmod(node.key, 0o644)
    done = node.cli("list", "--local")
    is_status(done, "auth", "one that others may read")
    like(done.err, "may be used by others", "is refused")
    os.chmod(node.key, 0o600)
    lonely = box.join("lonely.key")
    done = node.cli("key", "wal", lonely, TIDEMARK_POSTGRESQL_OS_USER="nobody-of-that-name")
    is_status(done, "config", "a WAL key file for an account that is not there")
    like(done.err, "(?s)server's user: there is no account 'nobody-of.*hint: .*os_user", "says so")
    is_(os.path.exists(lonely), False, "and makes none that only root could read")
    found = os.stat(node.wal_key)
    is_((found.st_mode & 0o777, found.st_uid, pwd.getpwuid(found.st_uid).pw_name,
         grp.getgrgid(found.st_gid).gr_name), (0o640, 0, "root", "postgres"),
        "else it is root:postgres, 0640")
    name_of_wal = f"{1:08X}{0:08X}{1:08X}"
    os.chown(node.wal_key, 0, 0)
    done = node.wal("get", name_of_wal, box.join("log/segment"), "--get-timeout=1s")
    like(done.err, "(?s)open key file.*hint: .*mode 0640.*root:postgres", "root's alone: says so")
    os.chown(node.wal_key, 0, found.st_gid)
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


def test_wal_key(node):
    """The repository's key file in the place of that of WAL, root's and readable by the server."""
    right, whole = (pathlib.Path(path).read_bytes() for path in (node.wal_key, node.key))
    failures = "select failed_count from pg_stat_archiver"
    pathlib.Path(node.wal_key).write_bytes(whole)
    node.server.psql("select pg_logical_emit_message(true, 'test', 'to be archived')")
    failed, last = node.server.psql(failures), node.server.switch_wal()
    poll(lambda: node.server.psql(failures) != failed or below(node, f"wal/main/*/*/{last}"), 60,
         "the repository's key file is refused, or WAL is archived")
    is_(below(node, f"wal/main/*/*/{last}"), [], "nothing is archived with the repository's key")
    done = node.cli("check")
    is_status(done, "auth", "check fails")
    like(done.out, r"FAILED archiving .*opens the whole repository.*\n +hint: make another one",
         "and says so")
    pathlib.Path(node.wal_key).write_bytes(right)
    node.wait_archived(last, 90)


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


def start_rotate(node):
    return subprocess.Popen([os.path.join(node.programs, "tidemark"), "key", "rotate"],
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                            env={**os.environ, "TIDEMARK_CONFIG": node.conf})


def generation_of(node):
    return json.loads(node.cli("key", "status", "--json").out)["generation"]


def test_concurrent(node):
    """Two at once: each that ends with 0 has a generation of its own."""
    before = generation_of(node)
    ends = []
    for _ in range(4):
        both = [start_rotate(node), start_rotate(node)]
        ends += [process.wait(60) for process in both]
    is_(set(ends) <= {0, EXIT["busy"]}, True, f"two rotations at once, four times: {ends}")
    is_(generation_of(node), before + ends.count(0), "none took another's place")


def test_killed(node):
    """kill -9 of rotate, anywhere: the ring can be read, and rotated again."""
    rng, _ = seeded()
    for _ in range(8):
        with start_rotate(node) as process:
            try:
                process.wait(rng.uniform(0, 0.06))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
        done = node.cli("key", "status", "--json")
        if done.status != 0:
            break
    is_status(done, 0, f"rotate was killed eight times: {len(below(node, 'key/*'))} objects")
    is_status(node.cli("key", "rotate"), 0, "rotate once more")
    is_status(node.cli("verify", "three"), 0, "what was sealed before is read")


def test_rollback(node):
    """Whoever can write puts an older key ring back; this host knows that there was a newer one."""
    generation = generation_of(node)
    newest = [away(node, name) for name in below(node, f"key/{generation:08x}*")]
    is_(len(newest), 2, "the newest key ring, and its copy")
    for what, args in (("list", ("list", "--local")), ("snapshot", ("snapshot", "--tag", "evil")),
                       ("rotate", ("key", "rotate"))):
        done = node.cli(*args)
        is_status(done, "refused", f"an older key ring: {what} is refused")
        like(done.err, rf"(?s)host has seen {generation:08x}.*hint: .*put key/{generation:08x} "
             rf"back.*remove {node.state_dir}/keyring-[0-9a-f]*\.json", "how to go on")
    memory = glob.glob(f"{node.state_dir}/keyring-*.json")
    is_(len(memory), 1, "that is remembered in state_dir")
    os.unlink(memory[0])
    is_status(node.cli("list", "--local"), 0, "without which it is believed")
    for back in newest:
        back()
    is_status(node.cli("list", "--local"), 0, "put right again")


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
    done = node.cli("key", "rewrap", new)
    is_status(done, "auth", "rewrap to a key file that is not there")
    like(done.err, f"No such file.*\nhint: make it first: `tidemark key generate {new}`",
         "says how it is made")
    is_status(node.cli("key", "generate", new), 0, "another key file")
    done = node.cli("key", "rewrap", new)
    is_status(done, 0, "takes the place of the first")
    like(done.err, r"\bremove that of \[wal\] and\s+make it anew", "and says what comes next")
    is_status(node.cli("list", "--local"), "auth", "which is good for nothing now")
    os.unlink(node.key)
    os.rename(new, node.key)
    done = node.cli("key", "wal", node.wal_key)
    is_status(done, "refused", "the key file of WAL from before is not overwritten")
    like(done.err, "is there already\nhint: remove it first", "and the hint says so")
    os.unlink(node.wal_key)
    is_status(node.cli("key", "wal", node.wal_key), 0, "and makes one for WAL")
    node.server.psql("insert into secrets values ('after the change of keys')")
    node.wait_archived(node.server.switch_wal())
    is_status(node.cli("verify", "three"), 0, "three is good with the new file")


def test_export_expire(node, box):
    image = box.join("three.img")
    is_status(node.cli("export", "three", image), 0, "export")
    with open(image, "rb") as file:
        ok(KNOWN[0] in file.read(), "the image is readable")
    os.unlink(image)
    is_status(node.cli("snapshot", "--tag", "four"), 0, "a snapshot")
    identity = json.loads(node.cli("show", "four", "--json").out)["id"]
    is_status(node.cli("expire", "four", "--confirm"), 0, "is expired")
    mark = os.path.join(snap.repository(node), f"withdrawn/{identity}")
    then = os.stat(mark).st_mtime - 25 * 3600
    os.utime(mark, (then, then))
    is_status(node.cli("expire"), 0, "and removed when its mark is a day old")
    is_(below(node, f"*/*/{identity}/*"), [], "all that was its own")
    is_status(node.cli("verify", "three"), 0, "three is whole")


def test_restore(node, box):
    """A damaged pack, then the whole of it: no configuration, only repository and key files."""
    identity = json.loads(node.cli("show", "three", "--json").out)["id"]
    node.agent.stop()
    node.server.stop()
    node.destroy(node.volumes[0])
    state = box.mkdir("fresh-state", 0o755)
    blank = box.loop(box.image("blank.img", 420 * MIB))
    args = ("restore", "--yes", f"--repository={node.repository}", f"--key-file={node.key}",
            f"--wal-key-file={node.wal_key}", f"--device=pgdata:{blank}", "three")
    program = os.path.join(node.programs, "tidemark")
    env = {"TIDEMARK_TIDEMARK_STATE_DIR": state}
    name = below(node, f"pack/*/{identity}/*")[0]  # earlier ones may not be needed any more
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
    like(node.cli("list").out, r"(?m)^one .*\ntwo .*\n$", "list shows both")
    like(node.cli("list", "--wal").out, r"^TL .*\n +1  [0-9A-F]{24}", "and, with --wal, the WAL")
    test_nothing_plain(node)
    test_keys(node, box)
    test_wal_key(node)
    test_damage(node)
    test_plain_in_its_place(node, box)
    test_rotation(node)
    test_concurrent(node)
    test_killed(node)
    test_rollback(node)
    test_export_expire(node, box)
    test_restore(node, box)


run(main)
