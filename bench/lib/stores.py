"""Where the repositories lie: a directory, or buckets of a Ceph of one node (radosgw, TLS)."""
import os
import shutil
import subprocess
import time

import measure
import s3
import tm
from s3_node import Place


class Directory:
    """A repository in a directory, on a filesystem of its own: leaving that empties its caches, and
    its device counts what was read."""

    name, remote, servers = "directory", False, ()
    reference = "fio, O_DIRECT, 1 MiB × 8"

    def __init__(self, box, size):
        self.box = box
        self.image = box.image("repository.img", size, fallocate=True)
        self.device = box.loop(self.image)
        measure.fill(self.device, size)
        box.mkfs(self.device, "ext4", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard")
        self.mount = box.mount(self.device, "repositories")
        self.paths = {"tidemark": box.mkdir("repositories/tidemark", 0o2770),
                      "pgbackrest": box.mkdir("repositories/pgbackrest", user="postgres")}
        shutil.chown(self.paths["tidemark"], "root", "postgres")
        os.chmod(self.paths["tidemark"], 0o2770)
        self.url = "file://" + self.paths["tidemark"]

    def node_options(self):
        return {"repository": self.url}

    def pgbackrest_options(self):
        return [f"repo1-path={self.paths['pgbackrest']}"]

    def environment(self):
        return []

    def stored(self, tool):
        return measure.tree_bytes(self.paths[tool])

    def make_cold(self):
        self.box.umount(self.mount)
        self.box.mount(self.device, self.mount)

    def reference_read(self, size):
        """(seconds, bytes) of reading about that much of it by other means, cold."""
        return measure.fio(self.device, "read", size), size


class ObjectStore:
    """Both tools speak TLS to the same gateway: pgBackRest cannot do without. The gateway keeps its
    data in memory, and it and the monitor and OSD behind it run on this machine: their CPU time is
    counted, and what a network would cost is not in it."""

    name, remote, device = "s3", True, None
    reference = "curl, 8 connections, TLS"

    def __init__(self, box, size):
        self.box = box
        self.store = s3.ceph(box, memory_mib=size >> 20)
        self.place = Place(box, self.store, "tidemark", "repo", endpoint=self.store.tls_endpoint)
        self.store.bucket("pgbackrest")
        self.url = self.place.url

    @property
    def servers(self):
        return [process.pid for process in self.store.daemons.processes.values()]

    def node_options(self):
        return {"repository": self.url, "options": {**self.place.options(), "wal": {
            "credentials_file": self.place.credentials}}}

    def environment(self):
        """For commands on a host without configuration."""
        names = {"ENDPOINT": "endpoint", "CA_FILE": "ca_file",
                 "CREDENTIALS_FILE": "credentials_file"}
        section = self.place.section()
        return [f"TIDEMARK_REPOSITORY_{key}={section[name]}" for key, name in names.items()] + [
            f"TIDEMARK_WAL_CREDENTIALS_FILE={self.place.credentials}"]

    def pgbackrest_options(self):
        port = self.store.tls_endpoint.rpartition(":")[2]
        return ["repo1-type=s3", "repo1-path=/repo", "repo1-s3-bucket=pgbackrest",
                "repo1-s3-endpoint=127.0.0.1", f"repo1-storage-port={port}",
                f"repo1-s3-region={self.store.region}", "repo1-s3-uri-style=path",
                "repo1-storage-verify-tls=n", f"repo1-s3-key={self.store.keys.access}",
                f"repo1-s3-key-secret={self.store.keys.secret}"]

    def stored(self, tool):
        """The gateway's own account of the bucket."""
        text = tm.output("radosgw-admin", "-c", self.store.conf, "bucket", "stats",
                         f"--bucket={tool}", "--sync-stats")
        found = [line for line in text.splitlines() if '"size_actual"' in line]
        return sum(int(line.split(":")[1].strip(" ,")) for line in found[:1])

    def make_cold(self):
        """The gateway has no cache of data that could be emptied."""

    def reference_read(self, size):
        """The packs of the repository, by curl: at least size bytes where there are so many."""
        client = self.store.client(endpoint=self.store.tls_endpoint)
        lines = []
        for key in self.place.keys_below("pack/"):
            path = f"/{self.place.bucket}/{self.place.prefix}/{key}"
            headers = client.sign("GET", path, {}, {"host": f"{client.host}:{client.port}"},
                                  s3.UNSIGNED)
            lines.append("\n".join([f'url = "{self.store.tls_endpoint}{path}"',
                                    'output = "/dev/null"', "insecure", "silent", "fail",
                                    'write-out = "%{size_download}\\n"',
                                    *(f'header = "{k}: {v}"' for k, v in headers.items())]))
        config = self.box.write("curl.conf", "\nnext\n".join(lines), 0o600)
        started = time.monotonic()
        text = tm.output("curl", "--parallel", "--parallel-max", "8", "-K", config)
        return time.monotonic() - started, sum(map(int, text.split()))


def make(name, box, size_gib):
    """The store that STORE= names."""
    if name == "directory":
        return Directory(box, int(size_gib * 4 * tm.GIB) + tm.GIB)
    if s3.missing("ceph"):
        raise RuntimeError(s3.missing("ceph"))
    return ObjectStore(box, int(size_gib * 2 * tm.GIB) + 3 * tm.GIB)
