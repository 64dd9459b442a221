#!/usr/bin/env python3
# check: build=release timeout=180
"""`tidemark check` of a node that looks right: a table of what is wrong with it, and the one line
that has to say so. The intact node passes before, between and after."""
import os
import re
import shutil
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from tm import *  # noqa: E402,F403
import schemas  # noqa: E402
import snapshots as snap  # noqa: E402


def intact(node, what, **options):
    done = node.cli("check", **options)
    is_status(done, 0, f"{what}: the intact node passes") or diag(done.out)
    return done


def failed(node, what, want, line, hint, **options):
    """Exactly one line fails, and its hint helps."""
    done = node.cli("check", **options)
    is_status(done, want, f"{what}: exit status")
    found = [text for text in done.out.splitlines() if text.startswith("FAILED")]
    ok(len(found) == 1, f"{what}: one line fails") or diag(done.out)
    like(done.out, rf"(?m)^FAILED {line}.*\n +hint: {hint}", f"{what}: the line and its hint")


def set_option(node, section, **values):
    node.sections[section].update(values)
    node.write_conf()


def test_directory(node):
    wrong = node.data + "x"
    set_option(node, "postgresql", data_directory=wrong)
    node.agent.stop()
    failed(node, "no such data_directory", "config",
           rf"server +data_directory '{wrong}': No such file", "correct `data_directory`")
    done = node.cli("snapshot", "--tag", "wrong")
    is_status(done, "config", "no such data_directory: snapshot refuses it, too")
    like(done.err, "`data_directory` of the configuration", "and names the option")
    set_option(node, "postgresql", data_directory=os.path.dirname(node.data))
    failed(node, "another data_directory", "config",
           rf"server +the server has data directory '{node.data}', but", "correct `connection` or")
    set_option(node, "postgresql", data_directory=node.data)
    intact(node, "data_directory")


def test_repository(node, box):
    path = snap.repository(node)
    wal = path + "/wal"
    for directory in (path, wal):
        output("chown", "root:root", directory)
        os.chmod(directory, 0o755)
    failed(node, "not writable for the server's user", "store",
           r"archiving +the server's user 'postgres' cannot write to the repository",
           r"wal/ and all in it belong to \[repository\] group")
    for directory in (path, wal):
        output("chown", "root:postgres", directory)
        os.chmod(directory, 0o2770)
    done = intact(node, "rights")
    like(done.out, rf"(?m)^warn +writing +who is not root can write to '{path}' \(mode 2770\).*\n +"
         "hint: README, Set up", "but for what the server's user could remove")
    os.chmod(path, 0o2750)
    done = intact(node, "rights of the root")
    like(done.out, r"(?m)^ok +writing +possible", "without that all is ok")
    os.rename(path, path + "-away")
    done = node.cli("check")
    is_status(done, "store", "repository absent: exit status")
    like(done.out, "(?m)^FAILED repository .*\n +hint: is its filesystem mounted",
         "repository absent: its hint")
    like(done.out, "(?m)^FAILED archiving +there is no repository", "and nothing archives to it")
    os.rename(path + "-away", path)
    done = intact(node, "repository")
    like(done.out, r"(?m)^ok +repository .*[KMGT]iB free", "free space is looked at")
    small = box.volume("small", 128 * MIB)
    set_option(node, "repository", url="file://" + small.mount)
    is_status(node.cli("init"), 0, "init in an empty mount point")
    failed(node, "little space", "store", r"repository +the filesystem of '.*' has only .* free",
           "free space there")
    set_option(node, "repository", url=node.repository)
    intact(node, "space")


def archive_to(node, url, command):
    """The archiver hears of a new command some time later."""
    node.server.psql(f"alter system set archive_command = '{command}'")
    node.server.reload()

    def arrives():
        segment = node.server.switch_wal()
        node.wait_archived(segment)
        return any(segment in files for _, _, files in os.walk(url[len("file://"):] + "/wal"))
    poll(arrives, 60, f"WAL to arrive in {url}")


def test_archive(node, box):
    """A segment has to arrive in this repository, whatever the server says of its archiving."""
    before = node.server.psql("select pg_walfile_name(pg_current_wal_insert_lsn())")
    done = intact(node, "archive")
    found = re.search("(?m)^ok +archiving +segment ([0-9A-F]{24}) was ended and is in", done.out)
    if ok(found, "the segment that arrived is named") or diag(done.out):
        ok(found[1] >= before, "it is one of now")
        ok(any(found[1] in files for _, _, files in os.walk(snap.repository(node))), "it is there")
    other = make_repository(box, "other")
    sections = {**node.sections, "repository": {**node.sections["repository"], "url": other}}
    conf = box.write("other.conf", conf_text(sections))
    is_status(node.cli("init", conf=conf), 0, "another repository")
    archive_to(node, other, node.archive_command.replace(node.conf, conf))
    failed(node, "archives to another repository", "refused",
           "archiving +the server does not archive to this repository: [0-9A-F]{24} was archived, "
           "but is not here", "archive_command is '.*other.conf': does the configuration that it")
    archive_to(node, node.repository, node.archive_command)
    intact(node, "archive again")


def test_backlog(node):
    """What waits is told before a segment is asked for, which would be behind it."""
    command = node.server.psql("show archive_command")
    archive_to(node, node.repository, node.archive_command)
    document = schemas.conform(node.cli, "nothing waits", "status", want=1)[0]["archiving"]
    is_([document["waiting"], document["next"], document["failing"]], [0, None, None],
        "status: nothing waits")
    like(node.cli("status").out, f"(?m)^archiving: nothing waits; last {document['last']}, .* ago$",
         "and what was archived last")
    node.server.psql("alter system set archive_command = 'false # tidemark-wal push'")
    node.server.reload()

    def failing():
        node.server.psql("select pg_logical_emit_message(false, 'backlog', 'x')")
        node.server.switch_wal()
        return node.server.psql("select last_failed_wal from pg_stat_archiver where"
                                " last_failed_time > last_archived_time")
    name = poll(failing, 60, "a failure")
    last = node.server.psql("select last_archived_wal from pg_stat_archiver")
    ready = os.path.join(node.data, "pg_wal/archive_status", name + ".ready")
    hour_ago = int(os.stat(ready).st_mtime) - 3600
    os.utime(ready, (hour_ago, hour_ago))
    count = sum(x.endswith(".ready") for x in os.listdir(os.path.dirname(ready)))
    found = schemas.conform(node.cli, "files wait", "status", want=1)[0]["archiving"]
    is_([found[x] for x in ("waiting", "next", "next_since_s", "last", "failing")],
        [count, name, hour_ago, last, name], "status --json: how many wait, and since when")
    line = rf"{count} WAL files? waits?, {name} for 6. min; last {last}, .* ago; " \
           rf"archiving of {name} fails"
    like(node.cli("status").out, f"(?m)^archiving: {line}\nwarning: archiving fails, last at 20.*"
         "`tidemark check` says why$", "status says it, and warns")
    like(node.cli("check").out, rf"(?m)^warn +backlog +{line}\n +hint: pg_wal keeps all of it",
         "check warns, because it is so old")
    at = r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC"
    like(node.cli("check").out, rf"(?m)^FAILED archiving +archiving of {name} fails, last at {at}",
         "check says since when")
    os.utime(node.conf, (time.time() + 2,) * 2)  # as one that was just put right
    like(node.cli("check").out, rf"(?m)^FAILED archiving +archiving of {name} failed at {at}, "
         rf"before '{node.conf}' was changed: .*\n +hint: PostgreSQL tries again within a minute",
         "check says that it was before the configuration was changed")
    node.server.psql(f"alter system set archive_command = '{command}'")
    node.server.reload()
    poll(lambda: not any(x.endswith(".ready") for x in os.listdir(os.path.dirname(ready))), 60,
         "their archiving")
    like(intact(node, "backlog").out, "(?m)^ok +backlog +nothing waits; last ", "and then no more")


def hidden(node, script):
    """In a mount namespace of its own, after the script."""
    return limited(node, "unshare", "--mount", "sh", "-ec", script + '\nexec "$@"', "sh")


def test_room(node):
    """What cannot be written to, and what is too small, and what is late."""
    path, state = snap.repository(node), node.state_dir
    done = hidden(node, f"mount --bind {path} {path}; mount -o remount,ro,bind {path}")
    is_status(done, "store", "a repository that is read-only: exit status")
    like(done.out, r"(?m)^FAILED writing +nothing can be written: .*Read-only file sys.*\n +hint: ",
         "a repository that is read-only: its line")
    done = hidden(node, f"mount -t tmpfs -o size=8m none {state}")
    is_status(done, "device", "a small state_dir: exit status")
    like(done.out, r"(?m)^FAILED space +the filesystem of state_dir .* 8.0 MiB free, 16.\d MiB are "
         r"needed\n +hint: free space", "a small state_dir: its line")
    if not shutil.which("faketime"):
        skip("faketime is not installed", 4)
        return
    for ahead, status, word in (("+30s", 0, "warn"), ("-300s", "config", "FAILED")):
        done = limited(node, "env", "NO_FAKE_STAT=1", "faketime", "-f", ahead)
        is_status(done, status, f"clock {ahead}: exit status")
        like(done.out, rf"(?m)^{word} +clock +the clocks differ by (2\d|30|29\d|300) s: here it is "
             r".*UTC\n +hint: set the wrong one", f"clock {ahead}: its line")


def test_ranges(node):
    """What `list` says of the archive, and of a segment that is not there."""
    for _ in range(3):
        node.wait_archived(node.server.switch_wal())
    there = sorted(name for _, _, names in os.walk(snap.repository(node) + "/wal")
                   for name in names if len(name) == 24)
    found = schemas.conform(node.cli, "WAL", "list", "--wal", want=1)
    is_([(r["cluster"], r["timeline"], r["first"], r["last"], r["segments"], r["missing"])
         for r in found], [("main", 1, there[0], there[-1], len(there), 0)],
        "list --wal: what is there")
    like(node.cli("list", "--wal").out, rf"^TL +FIRST WAL .*\n *1  {there[0]}  {there[-1]} "
         rf"+{len(there)} +0 ", "for people, too")
    unlike(node.cli("list").out, "FIRST WAL", "list without it asks for no WAL")
    path = segment_path(node, there[-2])
    os.rename(path, node.box.join("aside.wal"))
    is_([r["missing"] for r in schemas.conform(node.cli, "gap", "list", "--wal")], [1],
        "list --wal: one is missing")
    os.rename(node.box.join("aside.wal"), path)


def segment_path(node, name):
    return next(os.path.join(path, name) for path, _, names
                in os.walk(snap.repository(node) + "/wal") if name in names)


def test_gap(node):
    """What the hint says about a gap clears it."""
    for _ in range(3):
        segment = node.server.switch_wal()
        node.wait_archived(segment)
    gone = f"{segment[:16]}{int(segment[16:], 16) - 1:08X}"
    os.rename(segment_path(node, gone), node.box.join("aside.wal"))
    hint = "no recovery passes it: .*take a new snapshot, then .*`tidemark expire TAG"
    failed(node, "a gap", "missing", f"wal +the WAL from snapshot 'stale' on has a gap: .*{gone}",
           hint)
    is_status(node.cli("snapshot", "--tag", "after-gap"), 0, "a new snapshot")
    failed(node, "a gap and a new snapshot", "missing", "wal .*has a gap", hint)
    is_status(node.cli("export", "t1", node.box.join("t1-again.img")), 0, "an old one is exported")
    like(node.cli("status").out, "(?m)^last snapshot: after-gap, ",
         "which is not the last snapshot for status")
    is_status(node.cli("expire", "stale", "t1", "--confirm"), 0, "those from before the gap go")
    like(intact(node, "gap").out, "(?m)^ok +wal +no gap from snapshot 'after-gap' on",
         "gap: nothing needs it any more")


def test_layout(node, box):
    outside = box.mkdir("outside", 0o700, "postgres")
    like(intact(node, "layout").out, r"(?m)^ok +layout +.* tablespaces \(0\) are on the volumes",
         "layout: said")
    node.server.psql(f"create tablespace outside location '{outside}'")
    failed(node, "a tablespace elsewhere", "refused",
           f"layout +tablespace '{outside}' is not on a configured volume",
           r"add a \[volume NAME\]")
    node.server.psql("drop tablespace outside")


def test_other_repository(node):
    """What was done with another repository says nothing of this one; the state_dir is one."""
    done = node.cli("check", "--local", conf=node.box.join("other.conf"))
    for line in ("verification +no snapshot of this repository has been verified",
                 "drill +no drill yet: no restore from this repository"):
        like(done.out, f"(?m)^warn +{line}", f"another repository: {line.split()[0]}")


def test_new_node(node):
    """After init, before the agent was ever started; and a section that is not whole."""
    sections = {**node.sections, "tidemark": {**node.sections["tidemark"],
                                              "state_dir": node.box.join("never-made")},
                "postgresql": {**node.sections["postgresql"], "data_directory": None}}
    done = node.cli("check", "--local", conf=node.box.write("new.conf", conf_text(sections)))
    is_status(done, 0, "no state_dir yet: no failure")
    like(done.out, "(?m)^warn +state_dir .*never-made.*\n +hint: the agent makes",
         "no state_dir yet: said")
    like(done.out, "(?m)^warn +server +it answers, but data_directory is not set\n +hint: set it",
         "no data_directory: said")


def test_track(node):
    set_option(node, "volume pgdata", provider="precopy", track="yes")
    done = hidden(node, "mount -t tmpfs none /sys/fs/bpf")
    is_status(done, "refused", "track without bpffs: exit status")
    like(done.out, r"(?m)^FAILED track +volume 'pgdata', track = yes: no BPF file system .*\n +"
         "hint: mount -t bpf", "track without bpffs: its line")
    done = hidden(node, "mount -t bpf none /sys/fs/bpf")
    is_status(done, 0, "track")
    like(done.out, "(?m)^ok +track +marks can be kept in /sys/fs/bpf; they take .* of the kernel",
         "track: it was tried")
    set_option(node, "volume pgdata", provider=None, track=None)


def test_agent(node, box):
    """An agent that was not told."""
    node.agent.start()
    intact(node, "agent")
    set_option(node, "tidemark", lanes=1)
    failed(node, "edited configuration", "config",
           rf"agent +'{node.conf}' was changed after the agent read it",
           "systemctl restart tidemark-agent")
    done = node.cli("check", f"--agent=unix:{node.socket}", conf=box.join("other.conf"))
    is_status(done, "config", "--agent: the one there is asked")
    like(done.out, rf"\AFAILED agent +'{node.conf}' was changed", "--agent: about its own file")
    like(done.out, "(?m)^ok +archiving ", "--agent: and its server")
    done = node.cli("check", "--agent=unix:/nonexistent/agent.sock")
    is_status(done, "device", "--agent: none is there")
    is_(len(done.out.splitlines()), 2, "--agent: then nothing is checked instead") or diag(done.out)
    done = node.cli("status")
    is_status(done, 0, "edited configuration: the node is healthy all the same")
    like(done.out, f"(?m)^configuration: '{node.conf}' was changed", "status says it, too")
    done = node.cli("snapshot", "--tag", "stale")
    is_status(done, 0, "edited configuration: a snapshot is taken all the same")
    like(done.err, "warn: the configuration was changed after the agent read it", "with a warning")
    for verb in ("restore", "expire"):
        like(node.cli(verb, "--dry-run", *(["stale"] if verb == "restore" else [])).err,
             "warn: the configuration was changed after the agent read it", f"{verb} warns, too")
    wrong = box.write("wrong.conf", conf_text({**node.sections, "postgresql": {
        **node.sections["postgresql"], "data_directory": "/nowhere"}}))
    done = node.cli("check", conf=wrong)
    is_status(done, "config", "another file than the agent's is checked from here")
    like(done.out, "(?m)^ok +agent +answers, but has read another file", "which it says")
    node.agent.stop()
    node.agent.start()
    intact(node, "restarted agent")


def test_capture(node):
    """What the default provider needs is tried, and named when it is missing. Root without some of
    its capabilities; a kernel without BTF, as far as our namespace shows; a device that does not
    count; and the other providers, for which there is nothing of that kind to try."""
    others = "(?s)capture .*providers? .*(freeze|command)"
    for missing in ("cap_bpf", "cap_perfmon"):
        done = limited(node, "setpriv", f"--bounding-set=-{missing[4:]},-sys_admin")
        is_status(done, "refused", f"without {missing}: exit status")
        like(done.out, r"(?m)^FAILED capture +provider precopy: .*CAP_BPF and CAP_PERFMON",
             f"without {missing}: it is named")
        like(done.out, others, f"without {missing}: the others are, too")
    done = limited(node, "unshare", "--mount", "sh", "-c",
                   'mount -t tmpfs none /sys/kernel/btf && exec "$@"', "sh")
    is_status(done, "refused", "without BTF: exit status")
    like(done.out, r"(?m)^FAILED capture +provider precopy: this kernel has no BTF", "is named")
    like(done.out, others, "without BTF: the others are, too")
    switch = f"/sys/block/{os.path.basename(node.volumes[0].device)}/queue/iostats"
    write_file(switch, "0")
    failed(node, "no statistics", "refused",
           r"capture +.*a write of our own was not counted by the kernel",
           r"its statistics are off: echo 1 >(/sys/dev/block/\d+:\d+/queue/iostats), or")
    write_file(switch, "1")
    like(intact(node, "precopy").out, "(?m)^ok +capture +precopy: a write to each volume was seen",
         "and when nothing is missing it says so")
    for provider, text in (("freeze", "writes will stand still"), ("offline", "nobody may write")):
        set_option(node, "volume pgdata", provider=provider)
        like(intact(node, provider).out, f"(?m)^ok +capture +{provider}: {text}", "said")
    set_option(node, "volume pgdata", provider=None)
    is_([n for n in os.listdir(node.volumes[0].mount) if n not in ("data", "lost+found")], [],
        "nothing of it is left on the volume")


def limited(node, *prefix):
    """`tidemark check` without an agent, by another program, which takes something away first."""
    return run_program(shutil.which(prefix[0]), *prefix[1:],
                       os.path.join(node.programs, "tidemark"), "check", conf=node.conf)


def write_file(path, text):
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


def test_users(node):
    done = node.cli("check", user="postgres")
    like(done.out, "(?m)^FAILED agent .*\n +hint: .*'postgres' must not be in group tidemark",
         "the server's user is not told to join group tidemark")
    os.chmod(node.socket, 0o666)
    intact(node, "the agent", user="daemon")
    done = node.cli("check", "--local", user="daemon")
    for name in ("state_dir", "repository", "volumes"):
        like(done.out, rf"(?m)^FAILED {name} .*Permission denied\n +hint: run this as root",
             f"somebody who does without the agent: {name}")


def test_restore(node):
    """A restore that stopped half way is what is wrong, not what it left unmounted."""
    is_status(node.cli("snapshot", "--tag", "t1"), 0, "a snapshot")
    node.agent.stop()
    node.agent.start(TIDEMARK_TEST_STOP="pulling")
    isnt(node.cli("restore", "t1", "--yes").status, 0, "a restore dies while it pulls")
    node.agent.stop()
    done = node.cli("check")
    is_status(done, "partial", "an unfinished restore decides the exit status")
    like(done.out, r"(?m)^FAILED health +restore [0-9a-f]+ stopped at step .*\n +hint: .*--resume",
         "its line says how to go on")
    is_(done.out.count("FAILED"), 1, "what it took apart is no failure") or diag(done.out)
    for name in ("volumes", "capture", "space", "server", "archiving"):
        like(done.out, rf"(?m)^- +{name} +not looked at: a restore is unfinished, see health",
             f"{name} says so")
    schemas.conform_all(node.cli, "unfinished restore", 2, 3)
    is_status(node.cli("restore", "--resume", "--yes"), 0, "resumed")
    node.server.wait_ready()
    node.agent.start()
    done = intact(node, "resumed")
    like(done.out, "(?m)^ok +drill +'t1' was restored here .* ago", "a restore counts as a drill")
    isnt(node.cli("verify", "nothing").status, 0, "a job fails")
    is_status(node.cli("verify", "t1"), 0, "t1 is verified")
    like(node.cli("check").out, "(?m)^ok +verification +'t1' was read back and found good .* ago",
         "which check knows")
    is_status(node.cli("verify", "--percent=50", "t1"), 0, "a sample of it is verified")
    like(node.cli("check").out, "(?m)^ok +verification +a sample of 50 % of 't1' was read back",
         "which check does not take for all of it")
    is_status(node.cli("expire", "t1"), 0, "what expire would do")
    is_status(node.cli("export", "t1", node.box.join("t1.img")), 0, "an export")
    schemas.conform_all(node.cli, "a restored node", 2, 7)
    for args in (("pin", "t1"), ("unpin", "t1"), ("restore", "--dry-run", "t1")):
        schemas.conform(node.cli, "a restored node", *args, want=1)
    document = {"check": "x", "result": "ok", "ok": True, "detail": ""}
    is_([len(schemas.problems("check", {**document, **more})) > 0 for more in (
        {}, {"unknown": 1}, {"ok": False}, {"result": "failed", "ok": False})],
        [False, True, True, True], "a schema refuses what it does not describe")


def main():
    box = need_root() or Sandbox("check")
    need_programs("tidemark", "tidemark-agent", "tidemark-wal", "tidemark-guardian")
    if not os.path.exists("/sys/kernel/btf/vmlinux"):
        skip_all("this kernel has no BTF: the default provider is not possible")
    node = Node(box, [box.volume("pgdata", 448 * MIB)], provider=None,
                options={"wal": {"archive_timeout": "20s"},
                         "tidemark": {"freeze_deadline": "20s", "resume": "wait"}})
    node.start()
    node.wait_archived(node.server.switch_wal())
    done = intact(node, "begin")
    like(done.out, "(?m)^ok +agent +answers: what follows", "the agent makes the checks")
    for line in ("snapshots +there is no snapshot", "verification +no snap", "drill +no drill yet"):
        like(done.out, f"(?m)^warn +{line}.*\n +hint: ", f"a warning is no failure: {line}")
    schemas.conform_all(node.cli, "empty repository")
    test_ranges(node)
    test_layout(node, box)
    test_directory(node)
    test_repository(node, box)
    test_archive(node, box)
    test_backlog(node)
    test_room(node)
    test_capture(node)
    test_new_node(node)
    test_track(node)
    test_agent(node, box)
    test_users(node)
    test_restore(node)
    test_other_repository(node)
    test_gap(node)
    node.server.stop()


run(main)
