"""For tests of provider precopy: a server under load whose volumes are captured live, the exact
compare of an image with the frozen device, and a server on the image itself."""
import base64
import ctypes
import glob
import io
import os
import re
import shutil
import subprocess
import sys

import snapshots as snap
import tidemark_reader
from disks import SlowDisk, zram_volume
from sandbox import kill_pid
from server import Ledger, Server
from t_restore import Story
from tm import MIB, is_, ok, output

CHUNK = 32 << 10
LOAD = os.path.join(os.path.dirname(os.path.abspath(__file__)), "precopy_load.py")
DDL = """create table ddl_:client_id as select i, md5(i::text) from generate_series(1, 3000) i;
create index on ddl_:client_id (md5);
drop table ddl_:client_id;
"""


class Writer:
    """precopy_load.py until stop()."""

    def __init__(self, *args):
        self.process = subprocess.Popen([sys.executable, LOAD, *map(str, args)],
                                        stdin=subprocess.DEVNULL)

    def running(self):
        return self.process.poll() is None

    def stop(self):
        kill_pid(self.process.pid)
        self.process.wait()


class Load:
    """Everything at once; the files on the data volume, so that WAL has room on its own."""

    def __init__(self, story, dice):
        server, mount = story.server, story.node.volumes[0].mount
        self.parts = [server.pgbench(),
                      server.pgbench("-c", "1", "-f", story.box.write("ddl.sql", DDL))]
        os.makedirs(mount + "/churn", exist_ok=True)
        pg_wal = os.path.realpath(story.node.data + "/pg_wal")
        links = (story.wal_volume or story.node.volumes[0]).mount + "/links"
        os.makedirs(links, exist_ok=True)
        self.writers = [Writer("churn", mount + "/churn", mount, dice.getrandbits(30)),
                        Writer("segments", pg_wal, links, dice.getrandbits(30))]
        self.parts[0].wait_transactions(50)

    def stop(self):
        ok(all(part.process.poll() is None for part in self.parts)
           and all(writer.running() for writer in self.writers), "the load ran all the time")
        for part in self.parts + self.writers:
            part.stop()


class Moved:
    """Files with the names of WAL segments (of a future that PostgreSQL does not touch) which stop
    being one in every way there is, without a write to their blocks. size: of the one that is
    renamed."""

    def __init__(self, story, size=MIB):
        self.story = story
        self.volume = story.wal_volume or story.node.volumes[0]
        self.wal = os.path.realpath(story.node.data + "/pg_wal")
        self.away = self.volume.mount + "/away"
        os.makedirs(self.away, exist_ok=True)
        self.open_fd, self.files = None, {}
        ways = ["kept", "recycled", "removed", "renamed", "partial", "linked", "link", "cloned",
                "clone"][:9 if story.fs == "xfs" else 7]
        for number, way in enumerate(ways):
            path = f"{self.wal}/000000010000FFFF{number:08X}"
            with open(path, "wb") as file:
                file.write(os.urandom(size if way == "renamed" else MIB))
                os.fsync(file.fileno())
            shutil.chown(path, "postgres", "postgres")
            self.files[way] = path
        self.content = {way: self._read(path) for way, path in self.files.items()}

    @staticmethod
    def _read(path):
        with open(path, "rb") as file:
            return file.read()

    def _clone(self, way):
        output("cp", "--reflink=always", self.files[way], f"{self.away}/{way}")

    def move(self):
        """Each in its way; afterwards self.files says where its bytes are."""
        files, away = self.files, self.away
        for way, path in (("recycled", files["recycled"][:-2] + "FF"),
                          ("renamed", away + "/renamed"),
                          ("partial", files["partial"] + ".partial")):
            os.rename(files[way], path)
            files[way] = path
        self.open_fd = os.open(files["removed"], os.O_RDONLY)
        os.unlink(files.pop("removed"))
        for way in "linked", "link":
            os.link(files[way], f"{away}/{way}")
        for way in {"cloned", "clone"} & set(files):
            self._clone(way)
        for way in {"link", "clone"} & set(files):  # and what it was made from is gone
            os.unlink(files[way])
            files[way] = f"{away}/{way}"

    def wrong(self, image):
        """The ways whose bytes are not in the image."""
        mount, end = self.story.mount_image(image, "moved")
        found = {way for way, path in self.files.items()
                 if self._read(mount + path[len(self.volume.mount):]) != self.content[way]}
        end()
        return sorted(found)

    def remove(self):
        os.close(self.open_fd)
        for path in self.files.values():
            os.unlink(path)
        shutil.rmtree(self.away)
        for way in {"linked", "cloned"} & set(self.files):
            self.files.pop(way)


# --- the image ------------------------------------------------------------------------------------
_lz4 = ctypes.CDLL("liblz4.so.1")


def _decompress(data, size):
    """tidemark_reader's own takes half a minute a volume."""
    out = ctypes.create_string_buffer(size)
    if _lz4.LZ4_decompress_safe(data, out, len(data), size) != size:
        raise tidemark_reader.Bad("LZ4")
    return out.raw


def read_image(node, tag, volume):
    """(file, map) like snapshots.image()."""
    path = node.box.join(f"{tag}-{volume}.img")
    entries = io.StringIO()
    tidemark_reader.lz4_decompress = _decompress
    repository = tidemark_reader.Repository(snap.repository(node))
    source = tidemark_reader.Volume(repository, tidemark_reader.find_record(repository, tag),
                                    volume)
    with open(path, "wb") as out:
        out.truncate(source.size)
        source.read(0, out, entries)
    for file in source.files.values():
        file.close()
    return path, [line.split()[0] for line in entries.getvalue().splitlines()]


def minus(spans, cuts):
    """Both sorted, neither overlapping."""
    rest = []
    for start, end in spans:
        for low, high in cuts:
            if high <= start or low >= end:
                continue
            if low > start:
                rest.append((start, low))
            start = max(start, min(high, end))
        if start < end:
            rest.append((start, end))
    return rest


def chunks_of(spans, count):
    found = bytearray(count)
    for start, end in spans:
        for chunk in range(start // CHUNK, (end - 1) // CHUNK + 1):
            found[chunk] = 1
    return found


class Compared:
    """Chunks of an image that are not the frozen device's; those that nobody looked at but that
    hold something; how many were looked at; the images, which the caller removes."""

    def __init__(self):
        self.wrong, self.invented, self.total, self.images = [], [], 0, {}

    def remove(self):
        for path in self.images.values():
            os.unlink(path)


# --- the node -------------------------------------------------------------------------------------
class LiveStory(Story):
    """A node whose volumes are captured live, by the default provider; the agent keeps the frozen
    devices in self.kept. disk: what the data volume is, loop or zram. slow: with a tablespace on a
    SlowDisk."""

    def __init__(self, box, fs, name, disk="loop", slow=False, **options):
        self.fs, self.disk, self.slow_disk = fs, disk, None
        super().__init__(box, name, fs, provider=None, size=512 * MIB, tablespace=slow,
                         settings={"max_wal_size": "96MB"}, **options)
        self.kept = box.mkdir("kept-" + name)
        if slow:  # first of the group: its marks are read at once when they have been taken
            first = "volume " + self.tablespace.name
            sections = self.node.sections
            self.node.sections = {first: sections[first], **sections}
        # Small memory makes the last pass small: several passes, on any machine.
        self.set(memory_max="64MiB")

    def data_disk(self, name, size, fs):
        if self.disk == "zram":
            return zram_volume(self.box, name, size, fs)
        return self.box.volume(name, size, fs)

    def tablespace_disk(self, name, fs):
        self.slow_disk = SlowDisk(self.box, name, 320 * MIB, fs)
        return self.slow_disk.volume

    def begin(self, tag=None):
        self.node.start(agent=False)
        self.server.pgbench_init(4)
        where = f" tablespace ts_{self.tablespace.name}" if self.tablespace else ""
        self.server.psql(f"create table orders (id int primary key, amount int){where};\n"
                         "insert into orders select i, i % 97 from generate_series(1, 5000) i")
        self.ledger = Ledger(self.server).create()
        return self

    def set(self, **options):
        self.node.sections["tidemark"].update(options)
        self.node.write_conf()

    def agent(self, **environ):
        """A new agent; the evidence of what came before is gone."""
        self.node.agent.stop()
        self.forget()
        self.node.agent.start(TIDEMARK_TEST_PRECOPY_KEEP=self.kept, **environ)

    def forget(self):
        for name in os.listdir(self.kept):
            os.unlink(os.path.join(self.kept, name))

    def stalls_ms(self):
        """Of every freeze of the last snapshot."""
        with open(self.kept + "/stalls", encoding="ascii") as file:
            return [int(line) / 1e6 for line in file]

    def spans(self, volume):
        found = {"used": [], "wal": [], "changed": [], "late": []}
        with open(f"{self.kept}/{volume}.extents", encoding="ascii") as file:
            for line in file:
                kind, offset, length = line.split()
                found[kind].append((int(offset), int(offset) + int(length)))
        return found

    def compare(self, tag):
        """Every chunk that the agent claims to have looked at (it was used and not WAL, or marked
        later) must be the frozen device's. Discards go on while it is frozen: what they hit was
        free, and may read back as anything."""
        found = Compared()
        for volume in self.node.volumes:
            image, chunks = read_image(self.node, tag, volume.name)
            spans, kept = self.spans(volume.name), f"{self.kept}/{volume.name}.img"
            looked = chunks_of(minus(spans["used"], spans["wal"]) + spans["changed"], len(chunks))
            late = chunks_of(spans["late"], len(chunks))
            seen = [c if looked[i] and not late[i] else "free" for i, c in enumerate(chunks)]
            found.wrong += [(volume.name, i) for i in snap.differences(image, kept, seen, CHUNK)]
            found.wrong += [(volume.name, i) for i, c in enumerate(chunks)
                            if looked[i] and c == "free"]
            found.invented += [(volume.name, i) for i, c in enumerate(chunks)
                               if not looked[i] and c != "free"]
            found.total += sum(looked)
            found.images[volume.name] = image
        return found

    def mount_image(self, path, name):
        """(mount point, a function that ends it)"""
        device = self.box.loop(path)
        mount = self.box.mount(device, name, *("-o", "nouuid") * (self.fs == "xfs"))

        def end():
            self.box.umount(mount)
            self.box.unloop(device)
        return mount, end

    def same_files(self, tag, images):
        """By the filesystems' own word: every file of the frozen device is in the image with its
        bytes, but for WAL segments, which are left out. Ends the copy of the frozen device."""
        for name, image in images.items():
            copy, end_copy = self.mount_image(f"{self.kept}/{name}.img", "frozen")
            mount, end = self.mount_image(image, "image")
            done = subprocess.run(["diff", "-r", "-q", "--no-dereference", "-x",
                                   "[0-9A-F]" * 24, copy, mount], text=True, check=False,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            # diff says it of every socket, whatever it is compared with.
            wrong = [line for line in done.stdout.splitlines()
                     if not re.fullmatch(r"File .* is a socket while file .* is a socket", line)]
            is_(wrong[:10], [], f"{tag}: every file of {name} is as it was")
            end()
            end_copy()

    def start_image(self, tag, record, images):
        """A server on the image itself, beside its original, with nothing of ours but the WAL:
        recovered to the tag, it has all rows, and neither amcheck nor pg_checksums find a fault."""
        box = self.box
        mounts = {name: self.mount_image(path, f"started-{name}") for name, path in images.items()}
        moved = {v.mount: mounts[v.name][0] for v in self.node.volumes}
        server = Server(box, moved[self.node.volumes[0].mount] + "/data")
        prepare(server.data, moved, record, self.node, server.port)
        server.start()
        server.wait_ready()
        least, most = self.bounds
        count, last = self.ledger.present(server)
        is_((server.psql("select count(*), sum(amount) from orders"), count,
             least <= last <= most, len(set(server.pgbench_sums()[:4])), server.amcheck()[0]),
            (f"5000|{sum(i % 97 for i in range(1, 5001))}", last, True, 1, 0),
            f"{tag}: the image starts, with commits 1 … {last} ({least} to {most}), and is sound")
        server.stop()
        is_(server.program("pg_checksums", "--check", "-D", server.data, check=False).returncode,
            0, f"{tag}: every checksum in it is right")
        for _, end in mounts.values():
            end()

    def remove_repository(self):
        subprocess.run(["rm", "-rf", snap.repository(self.node)], check=True)


def prepare(data, moved, record, node, port):
    """What a person would do by hand: links to the copies, an empty pg_wal, backup_label, and
    settings that keep it away from its original."""
    def relink(path):
        target = os.readlink(path)
        for old, new in moved.items():
            if target.startswith(old + "/"):
                os.unlink(path)
                os.symlink(new + target[len(old):], path)
                return
        raise RuntimeError(f"{path} leads to {target}")

    postgres = record["postgresql"]
    if os.path.islink(data + "/pg_wal"):
        relink(data + "/pg_wal")
    for path in glob.glob(data + "/pg_tblspc/*"):
        relink(path)
    stale = glob.glob(data + "/pg_wal/[0-9A-F]*") + glob.glob(data + "/postmaster.*")
    for path in stale:
        os.unlink(path)
    with open(data + "/backup_label", "wb") as file:
        file.write(base64.b64decode(postgres["backup_label"]))
    with open(data + "/recovery.signal", "wb"):
        pass
    with open(data + "/postgresql.auto.conf", "a", encoding="ascii") as file:
        file.write(f"port = {port}\narchive_mode = off\n"
                   f"restore_command = 'TIDEMARK_WAL_PREFETCH=0 {node.programs}/tidemark-wal get"
                   f" %f %p --config={node.conf}'\n"
                   f"recovery_target_name = '{postgres['restore_point']}'\n"
                   "recovery_target_action = promote\n")
    for name in ("backup_label", "recovery.signal"):
        subprocess.run(["chown", "postgres:", f"{data}/{name}"], check=True)
