"""The cluster that is backed up: pgbench, a table that does not compress, one that compresses well.
It lives on a loop device over a reflink-capable host volume until the backups are taken."""
import os

import tm
from tm import GIB, MIB

PORTIONS = {"scale": 53, "random_rows": 96000, "json_rows": 245000}  # a GiB of SIZE

SUMS = """select (select sum(abalance) from pgbench_accounts), (select sum(bbalance) from
 pgbench_branches), (select sum(tbalance) from pgbench_tellers), (select coalesce(sum(delta), 0)
 from pgbench_history), (select count(*) from pgbench_history), (select count(*) || ' ' ||
 sum(hashtext(encode(b, 'hex'))) from rnd), (select count(*) || ' ' || sum(hashtext(j::text))
 from js)"""
FIRST_QUERY = "select coalesce(sum(delta), 0), count(*) from pgbench_history"


def wal_size(size_gib):
    return GIB if size_gib >= 1 else 64 * MIB


def volume_size(size_gib):
    """Room for the tables, what the load adds to them, and pg_wal."""
    wanted = size_gib * 1.4 * GIB + 2.2 * wal_size(size_gib) + 256 * MIB
    return int(wanted) // (64 * MIB) * 64 * MIB + 64 * MIB


def make_tables(server, size_gib):
    def rows(name):
        return max(1, int(PORTIONS[name] * size_gib))
    server.pgbench_init(rows("scale"))
    # 1000 random bytes a row stay inline, so the table does not compress.
    server.psql("create extension pgcrypto;\n"
                "create table rnd (id int primary key, b bytea);\n"
                "alter table rnd alter b set storage external;\n"
                f"insert into rnd select i, gen_random_bytes(1000) from"
                f" generate_series(1, {rows('random_rows')}) i;\n"
                "create table js (id int primary key, j jsonb);\n"
                "insert into js select i, jsonb_build_object('id', i, 'kind', 'order', 'state',"
                " (array['new', 'paid', 'sent', 'done'])[1 + i % 4], 'customer', i % 5000,"
                " 'lines', jsonb_build_array(jsonb_build_object('sku', 'SKU-' || i % 97, 'amount',"
                " i % 9, 'price', i % 1000), jsonb_build_object('sku', 'SKU-' || i % 89, 'amount',"
                " i % 7, 'price', i % 900)), 'note', 'delivered by hand, paid on arrival')"
                f" from generate_series(1, {rows('json_rows')}) i;\n"
                "vacuum (analyze, freeze);\ncheckpoint")


class Cluster:
    """server with its volume `pgdata`; node is the Tidemark side of it. archive: the archive
    commands of the tools are joined, so both repositories hold the same WAL."""

    def __init__(self, box, size_gib, node_options):
        self.box, self.size_gib = box, size_gib
        self.volume_size = volume_size(size_gib)
        # The snapshot and what is written while it lives take room on the host volume.
        host = box.volume("host", self.volume_size * 5 // 2 + GIB, "xfs", mkfs=("-m", "reflink=1"))
        self.host, self.volume = host, box.volume("pgdata", self.volume_size, "ext4", host.mount)
        capture = os.path.join(tm.SOURCE, "conf/capture/reflink-loop")
        self.include = box.write("archive.conf", "")
        self.node = tm.Node(
            box, [self.volume], provider="command", name="bench", archive=False,
            settings={"include": self.include, "max_wal_size": f"{wal_size(size_gib) // MIB}MB",
                      "shared_buffers": "512MB" if size_gib >= 1 else "64MB", "autovacuum": "off",
                      "checkpoint_timeout": "15min"},
            volume_options={"snapshot_command": f"{capture} snapshot", "freeze_by": "agent",
                            "drop_command": f"{capture} drop"}, **node_options)
        self.server = self.node.server
        self.mount, self.data = self.volume.mount, self.node.data

    def archive_with(self, *commands):
        """[] switches archiving off, for the restored servers: every round then finds the same
        repository."""
        self.box.write("archive.conf", "synchronous_commit = off\narchive_mode = on\n"
                       f"archive_command = '{' && '.join(commands)}'\n" if commands
                       else "archive_mode = off\n")

    def make(self, say, *commands):
        """commands: see archive_with(); what is written before the tables are there is not worth
        archiving twice."""
        self.archive_with("true")
        self.node.start(agent=False)
        make_tables(self.server, self.size_gib)
        self.archive_with(*commands)
        self.server.reload()
        size = self.server.psql("select pg_size_pretty(sum(pg_database_size(oid)))"
                                " from pg_database")
        say(f"cluster: {size}, on a volume of {self.volume_size / GIB:.1f} GiB (ext4)")

    def load(self, segments):
        """pgbench until that many segments of WAL are written."""
        server = self.server
        segment = int(server.psql("select setting from pg_settings where name ="
                                  " 'wal_segment_size'"))

        def position():
            return int(server.psql("select pg_current_wal_lsn() - '0/0'::pg_lsn"))
        goal = position() + segments * segment
        load = server.pgbench("-c", "4", "-j", "2", "-M", "prepared")
        try:
            tm.poll(lambda: position() >= goal, 3600, f"{segments} segments of load", 0.2)
        finally:
            load.stop()
        # A backend of a killed client may be in the middle of its last transaction.
        tm.poll(lambda: server.psql("select count(*) from pg_stat_activity where backend_type ="
                                    " 'client backend'") == "1", 60, "the load to end")

    def mark(self, name):
        """A restore point, archived; the data's sums there."""
        self.server.psql(f"select pg_create_restore_point('{name}')")
        self.node.wait_archived(self.server.switch_wal(), 900)
        return self.server.psql(SUMS)

    def remove(self):
        """The backups are taken: the place is needed for what is restored."""
        self.server.stop()
        for volume in (self.volume, self.host):
            self.box.umount(volume.mount)
            self.box.unloop(volume.device)
        os.unlink(self.host.image)
