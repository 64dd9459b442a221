"""A Ceph of one node: monitor, OSD in memory, RADOS gateway. About a second from nothing to
serving, no manager, no systemd, everything below one directory of the sandbox.

Facts the configuration rests on (Ceph 16.2, radosgw(8), ceph.conf(5)): without authentication the
gateway still asks for a secure monitor session unless ms_mon_client_mode says crc; a set rgw_region
wants a zone group of that name; `localhost` in the Host header is taken as a bucket's name, an IP
address or rgw_dns_name is not; paxos waits a second a change unless told otherwise.
"""
import json
import os
import signal
import uuid

import tm
from s3 import Client, Keys, Store, free_ports
from sandbox import poll

CONF = """[global]
fsid = {fsid}
mon_host = v2:127.0.0.1:{mon_port}
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
ms_bind_ipv4 = true
ms_bind_msgr1 = false
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
run_dir = {dir}/run
admin_socket = {dir}/run/$name.asok
pid_file = {dir}/run/$name.pid
log_file = {dir}/log/$name.log
crash_dir = {dir}/run
log_to_stderr = false
err_to_stderr = true
no_mon_config = true
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 4
osd_pool_default_pgp_num = 4
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_warn_on_pool_no_redundancy = false
mon_warn_on_insecure_global_id_reclaim_allowed = false
mon_max_pg_per_osd = 1000
[mon]
mon_data = {dir}/mon
mon_cluster_log_file = {dir}/log/cluster.log
mon_data_avail_crit = 1
mon_data_avail_warn = 2
paxos_propose_interval = 0.02
paxos_min_wait = 0.01
mon_osd_initial_require_min_compat_client = luminous
[osd]
osd_data = {dir}/osd
osd_objectstore = memstore
memstore_device_bytes = {memory}
osd_crush_update_on_start = false
osd_class_update_on_start = false
osd_op_num_shards = 2
[client]
ms_mon_client_mode = crc
rgw_data = {dir}/rgw
rgw_dns_name = s3.localhost
rgw_thread_pool_size = 64
rgw_rados_pool_pg_num_min = 4
rgw_override_bucket_index_max_shards = 1
rgw_dynamic_resharding = false
rgw_run_sync_thread = false
rgw_enable_usage_log = false
rgw_gc_obj_min_wait = 5
rgw_gc_processor_period = 5
rgw_gc_processor_max_time = 60
"""

# The OSD's id, its place and the gateway's pools, in one process: each `ceph` command would start
# a Python of its own.
PREPARE = r"""
import json, sys
import rados
cluster = rados.Rados(conffile=sys.argv[1], name="client.admin")
cluster.connect(timeout=30)
def command(**words):
    status, _out, text = cluster.mon_command(json.dumps(words), b"", timeout=30)
    if status:
        sys.exit(f"{words}: {status} {text}")
command(prefix="osd new", uuid=sys.argv[2])
command(prefix="osd crush add", id=0, weight=1.0, args=["root=default", "host=h0"])
for pool in (".rgw.root", "default.rgw.log", "default.rgw.control", "default.rgw.meta",
             "default.rgw.buckets.index", "default.rgw.buckets.data",
             "default.rgw.buckets.non-ec"):
    command(prefix="osd pool create", pool=pool, pg_num=16 if pool.endswith(".data") else 4)
    command(prefix="osd pool application enable", pool=pool, app="rgw")
"""


class Gateway:
    """A radosgw with a plain port and, with TLS, a second one."""

    def __init__(self, ceph, name, options=None, clock=None):
        self.ceph, self.name = ceph, name
        self.clock = ["faketime", "-f", clock] if clock else []
        self.port, self.tls_port = free_ports(2)
        self.options = options or {}
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.tls_endpoint = f"https://127.0.0.1:{self.tls_port}" if ceph.tls else None

    def start(self):
        listen = f"beast endpoint=127.0.0.1:{self.port}"
        if self.ceph.tls:
            listen += (f" ssl_endpoint=127.0.0.1:{self.tls_port} ssl_certificate="
                       f"{self.ceph.ca_file} ssl_private_key={self.ceph.key_file}")
        options = [f"--{key}={value}" for key, value in self.options.items()]
        self.ceph.daemons.spawn(self.name, *self.clock, "radosgw", "-f", "-c", self.ceph.conf, "-n",
                                f"client.{self.name}", f"--rgw_frontends={listen}", *options)
        self.ceph.daemons.wait_http(self.name, self.endpoint)
        return self

    def kill(self, sig=signal.SIGKILL):
        self.ceph.daemons.kill_one(self.name, sig)


class Ceph(Store):
    """memory_mib: how much data the store takes; see room()."""

    def __init__(self, box, name="ceph", memory_mib=4096, tls=True):
        keys = Keys("TIDEMARKTESTKEY00001", "tidemark/test+secret0000000000000000001")
        super().__init__(box, name, tls, keys, "us-east-1")
        for part in ("mon", "osd", "rgw", "run"):
            box.mkdir(f"{name}/{part}")
        self.mon_port = free_ports(1)[0]
        self.conf = box.write(f"{name}/ceph.conf", CONF.format(
            fsid=uuid.uuid4(), mon_port=self.mon_port, dir=self.dir, memory=memory_mib << 20))
        self.gateway = Gateway(self, "rgw")

    @property
    def endpoint(self):
        return self.gateway.endpoint

    @property
    def tls_endpoint(self):
        return self.gateway.tls_endpoint

    def start(self):
        monmap, osd = os.path.join(self.dir, "monmap"), str(uuid.uuid4())
        with open(self.conf, encoding="utf-8") as file:
            fsid = file.read().split("fsid = ")[1].split("\n")[0]
        tm.output("monmaptool", "--create", "--clobber", "--fsid", fsid, "--enable-all-features",
                  "--addv", "a", f"[v2:127.0.0.1:{self.mon_port}]", monmap)
        tm.output("ceph-mon", "-c", self.conf, "--mkfs", "-i", "a", "--monmap", monmap)
        self.daemons.spawn("mon.a", "ceph-mon", "-f", "-c", self.conf, "-i", "a")
        tm.output("/usr/bin/python3", "-c", PREPARE, self.conf, osd)
        tm.output("ceph-osd", "-c", self.conf, "-i", "0", "--mkfs", "--osd-uuid", osd)
        self.daemons.spawn("osd.0", "ceph-osd", "-f", "-c", self.conf, "-i", "0")
        tm.output("radosgw-admin", "-c", self.conf, "user", "create", "--uid=tidemark",
                  "--display-name=tidemark", f"--access-key={self.keys.access}",
                  f"--secret={self.keys.secret}", "--caps=users=*;buckets=*")
        self.gateway.start()
        return self

    def throttled_gateway(self, requests):
        """A second gateway that answers 503 SlowDown to more than so many requests at once."""
        return Gateway(self, "rgw-slow", {"rgw_max_concurrent_requests": requests}).start()

    def late_gateway(self, clock="+1h"):
        """A second gateway whose clock is off."""
        return Gateway(self, "rgw-clock", clock=clock).start()

    def _admin(self, method, path, **query):
        client = Client(self.endpoint, self.keys)
        answer = client.request(method, "admin/" + path, {"format": "json", **query})
        if answer.status not in (200, 201, 204):
            raise RuntimeError(f"{method} /admin/{path} {query}: {answer.status} {answer.body}")
        return json.loads(answer.body) if answer.body.startswith((b"{", b"[")) else None

    def user(self, uid, op_mask=None):
        """Another user; op_mask like "read, write" leaves out "delete". Returns its Keys."""
        keys = Keys(uid.upper() + "KEY", uid + "+secret/0123456789")
        query = {"uid": uid, "display-name": uid, "access-key": keys.access,
                 "secret-key": keys.secret}
        if op_mask:
            query["op-mask"] = op_mask
        self._admin("PUT", "user", **query)
        return keys

    def suspend(self, uid, suspended=True):
        self._admin("POST", "user", uid=uid, suspended=str(suspended).lower())

    def remove_key(self, keys):
        self._admin("DELETE", "user", key="", **{"access-key": keys.access})

    def quota(self, uid, max_bytes):
        """The user cannot store more. Gateways cache it for a while, so this is set before the
        user writes. (The admin interface answers 501 to it in 16.2.)"""
        for verb in (["set", "--quota-scope=user", f"--max-size={max_bytes}"],
                     ["enable", "--quota-scope=user"]):
            tm.output("radosgw-admin", "-c", self.conf, "quota", *verb, f"--uid={uid}")

    def share(self, bucket, owner, other_uid):
        """other_uid may do in bucket what its op-mask allows."""
        policy = {"Version": "2012-10-17", "Statement": [{
            "Effect": "Allow", "Principal": {"AWS": [f"arn:aws:iam:::user/{other_uid}"]},
            "Action": "s3:*", "Resource": [f"arn:aws:s3:::{bucket}",
                                           f"arn:aws:s3:::{bucket}/*"]}]}
        answer = self.client(owner).request("PUT", bucket, {"policy": ""},
                                            body=json.dumps(policy).encode())
        if answer.status not in (200, 204):
            raise RuntimeError(f"policy of {bucket}: {answer.status} {answer.body}")

    def pause(self, paused=True):
        """Stops (continues) the OSD: every request that needs data hangs meanwhile."""
        self.daemons.processes["osd.0"].send_signal(signal.SIGSTOP if paused else signal.SIGCONT)

    def ask(self, daemon, *words):
        """Text that a running daemon ("rgw", "osd.0") answers through its admin socket."""
        name = daemon if "." in daemon else f"client.{daemon}"
        socket = os.path.join(self.dir, "run", f"{name}.asok")
        poll(lambda: os.path.exists(socket), 10, socket)
        return tm.output("ceph", "--admin-daemon", socket, *map(str, words))

    def config(self, daemon, key, value):
        """Changes an option of a running daemon."""
        self.ask(daemon, "config", "set", key, value)

    def room(self, size=None):
        """The disk takes size bytes more than it holds before it is full (None: plenty). From 95 %
        on every pool is marked full; what clients write and remove then waits for space."""
        self.config("osd.0", "osd_heartbeat_interval", 1)  # how often the OSD looks
        used = json.loads(self.ask("osd.0", "perf", "dump", "osd"))["osd"]["stat_bytes_used"]
        capacity = used * 4 + (4 << 30) if size is None else (used + size) * 100 // 95
        self.config("osd.0", "memstore_device_bytes", capacity)

    def is_full(self):
        pools = json.loads(tm.output("ceph", "-c", self.conf, "osd", "dump", "--format=json"))
        return all("full" in pool["flags_names"] for pool in pools["pools"])
