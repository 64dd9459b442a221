"""Repositories in an object store, for nodes: where they are, with which key, as which options.

    place = Place(box, store, "bucket", "prefix")
    node = Node(box, [volume], repository=place.url, options=place.options(retry_timeout="20s"))
"""
import json
import os
import shutil
import subprocess
import sys

import tm
from faultproxy import FaultProxy


def credentials_file(box, name, keys, mode=0o640):
    """Readable by root and by the server's group, as tidemark-wal needs it."""
    path = box.write(name, f"access_key = {keys.access}\nsecret_key = {keys.secret}\n", mode)
    if os.geteuid() == 0:
        shutil.chown(path, "root", "postgres")
    return path


class Place:
    """A repository in a bucket of the store, which is made. sealed: for the test to know. options:
    of [repository]."""

    def __init__(self, box, store, bucket, prefix="", keys=None, endpoint=None, what="",
                 sealed=False, lock=False, **options):
        self.what, self.sealed = what or bucket, sealed
        self.box, self.store, self.bucket, self.prefix = box, store, bucket, prefix
        self.keys, self.endpoint = keys or store.keys, endpoint or store.endpoint
        self.url = f"s3://{bucket}" + (f"/{prefix}" if prefix else "")
        self.more = options
        store.bucket(bucket, self.keys, lock)
        self.credentials = credentials_file(box, f"credentials-{bucket}", self.keys)

    def section(self, **more):
        """[repository]"""
        found = {"url": self.url, "endpoint": self.endpoint, "group": None,
                 "credentials_file": self.credentials, **self.more, **more}
        if self.endpoint.startswith("https"):
            found.setdefault("ca_file", self.store.ca_file)
        return found

    def options(self, **more):
        """What Node() takes as options."""
        return {"repository": self.section(**more)}

    def keys_below(self, prefix=""):
        """Names of objects in the repository that begin with prefix, through our own client."""
        top = self.prefix + "/" if self.prefix else ""
        return [k.removeprefix(top) for k in
                self.store.client(self.keys).list(self.bucket, top + prefix)]

    def mirror(self, name):
        """The repository as a directory, for readers that share no code with the product."""
        top = self.prefix + "/" if self.prefix else ""
        return self.store.client(self.keys).mirror(self.bucket, self.box.mkdir(name), top)

    def node(self, volumes, name="node", wal_volume=None, options=None, **more):
        """A node whose repository is here."""
        merged = {**(options or {})}
        merged["repository"] = self.section(**merged.get("repository", {}))
        return tm.Node(self.box, volumes, wal_volume, name=name, repository=self.url,
                       options=merged, **more)


class World:
    """A server on a small volume whose repository lies behind a fault proxy (proxy=False: without).
    Its table `orders` grows by a tag each; rows_of[tag] says what it held then."""

    def __init__(self, box, store, bucket, keys=None, proxy=True, size=400 << 20, options=None,
                 **repository):
        self.box, self.store = box, store
        self.proxy = FaultProxy(box, store.endpoint) if proxy else None
        self.place = Place(box, store, bucket, keys=keys, **{
            "endpoint": self.proxy.endpoint if proxy else store.endpoint, **repository})
        self.volume = box.volume("pgdata-" + bucket, size)
        self.node = self.place.node([self.volume], name="db-" + bucket, options={
            "tidemark": {"freeze_deadline": "60s"}, **(options or {})})
        self.server, self.cli = self.node.server, self.node.cli
        self.rows_of, self.step, self.timeline = {}, 0, 1

    def start(self):
        self.node.start()
        self.server.psql("create table orders (id int, pad text);")
        self.change()
        return self

    def change(self, megabytes=12):
        """Rows that do not compress, a row of 1 MiB each."""
        self.step += 1
        self.server.psql(
            "alter table orders alter pad set storage external;\n"
            f"insert into orders select {self.step}, (select string_agg(md5(random()::text"
            f" || j || i), '') from generate_series(1, 32768) j) from"
            f" generate_series(1, {megabytes}) i")

    def rows(self):
        return self.server.psql("select count(*), coalesce(sum(hashtext(pad)::bigint), 0),"
                                " max(id) from orders")

    def snapshot(self, tag):
        """Result of `tidemark snapshot`; the rows are remembered."""
        self.rows_of[tag] = self.rows()
        return self.cli("snapshot", "--tag", tag)

    def tags(self):
        done = self.cli("list", "--json")
        if done.status != 0:
            raise RuntimeError(f"list: exit {done.status}: {done.err}")
        found = [json.loads(line) for line in done.out.splitlines()]
        return sorted(record.get("record", record)["tag"] for record in found)

    def restore(self, tag, *args):
        return self.cli("restore", tag, "--yes", *args)

    def check_rows(self, tag, what):
        """After a restore to tag: a new timeline with the rows of then."""
        self.server.wait_ready()
        self.timeline = self.server.timeline()
        tm.is_(self.rows(), self.rows_of[tag], f"{what}: the rows of {tag} are back")
        tm.is_(self.server.amcheck()[0], 0, f"{what}: amcheck finds nothing")

    def read_back(self, tag, what, check="all"):
        """Reads the whole snapshot with a reader that shares no code with the product. check: the
        digests of all chunks, or of every N-th."""
        path = self.place.mirror(f"mirror-{tag}")
        image = self.box.join(f"mirror-{tag}.img")
        reader = os.path.join(tm.SOURCE, "tests/lib/tidemark_reader.py")
        args = [sys.executable, reader, path, tag, self.volume.name, image, f"--check={check}"]
        done = subprocess.run(args, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, check=False)
        if not tm.is_(done.returncode, 0, f"{what}: another reader reads {tag} from the objects"):
            tm.diag(done.stdout[-2000:])
        shutil.rmtree(path)
        if os.path.exists(image):
            os.unlink(image)

    def stop(self):
        self.node.agent.stop()
        self.server.stop("immediate", check=False)
        self.box.umount(self.volume.mount)
        self.box.unloop(self.volume.device)
        os.unlink(self.volume.image)
