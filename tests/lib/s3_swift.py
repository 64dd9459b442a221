"""OpenStack Swift of one node with the s3api middleware: proxy, account, container and object
server, memcached. A second implementation of S3, which lacks what Ceph has: conditional PUT (501).

A proxy server speaks either plain HTTP or TLS, so with tls a second one runs over the same
backends. Starting takes two to four seconds, mostly imports. The sandbox has to lie on a filesystem
with user extended attributes (ext4, xfs).
"""
import os

import tm
from s3 import Keys, Store, free_ports

RINGS = r"""
import sys
from swift.common.ring import RingBuilder
for name, port in zip(("object", "container", "account"), sys.argv[1:]):
    builder = RingBuilder(4, 1, 0)
    builder.add_dev(dict(id=0, region=1, zone=1, ip="127.0.0.1", port=int(port), device="d1",
                         replication_ip="127.0.0.1", replication_port=int(port), weight=1.0,
                         meta=""))
    builder.rebalance()
    builder.get_ring().save(name + ".ring.gz")
"""
HASH = """[swift-hash]
swift_hash_path_prefix = tide
swift_hash_path_suffix = mark
[storage-policy:0]
name = p0
default = yes
"""
COMMON = """[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
swift_dir = {dir}/conf
devices = {dir}/node
mount_check = false
user = {user}
workers = 0
log_level = WARNING
log_statsd_host =
disable_fallocate = true
"""
BACKEND = """[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
"""
PROXY = """[pipeline:main]
pipeline = catch_errors gatekeeper healthcheck cache listing_formats bulk s3api tempauth slo dlo \
versioned_writes symlink proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
allow_account_management = true
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:{cache}
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
storage_domain = s3.localhost
s3_acl = false
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin
[filter:versioned_writes]
use = egg:swift#versioned_writes
allow_object_versioning = true
"""
PLAIN_FILTERS = ("catch_errors", "gatekeeper", "healthcheck", "listing_formats", "bulk", "slo",
                 "dlo", "symlink")


class Swift(Store):
    def __init__(self, box, name="swift", tls=False):
        super().__init__(box, name, tls, Keys("test:tester", "testing"), "us-east-1")
        for part in ("conf", "run", "node/d1"):
            box.mkdir(f"{name}/{part}")
        ports = free_ports(6)
        self.backends = dict(zip(("object", "container", "account"), ports))
        self.cache, self.port, self.tls_port = ports[3:]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.tls_endpoint = f"https://127.0.0.1:{self.tls_port}" if tls else None

    def _write(self, name, port, text, more=""):
        user = tm.output("id", "-un").strip()
        common = COMMON.format(dir=self.dir, user=user, port=port)
        return self.box.write(f"{self.name}/conf/{name}.conf", common + more + text)

    def _configure(self):
        self.box.write(f"{self.name}/conf/swift.conf", HASH)
        for kind, port in self.backends.items():
            self._write(kind, port, BACKEND.format(kind=kind))
        proxy = PROXY.format(cache=self.cache) + "".join(
            f"[filter:{name}]\nuse = egg:swift#{name}\n" for name in PLAIN_FILTERS)
        self._write("proxy", self.port, proxy)
        if self.tls:
            self._write("proxy-tls", self.tls_port, proxy,
                        f"cert_file = {self.ca_file}\nkey_file = {self.key_file}\n")

    def start(self):
        self._configure()
        conf = os.path.join(self.dir, "conf")
        tm.output("/usr/bin/python3", "-c", RINGS, *map(str, self.backends.values()), cwd=conf)
        # -P puts the sandbox into its arguments, where the reaper looks.
        self.daemons.spawn("memcached", "memcached", "-l", "127.0.0.1", "-p", str(self.cache), "-U",
                           "0", "-m", "16", "-u", tm.output("id", "-un").strip(), "-P",
                           os.path.join(self.dir, "run/memcached.pid"))
        kinds = [*self.backends, "proxy"] + (["proxy-tls"] if self.tls else [])
        for kind in kinds:
            self.daemons.spawn(kind, "/usr/bin/python3",
                               f"/usr/bin/swift-{kind.removesuffix('-tls')}-server",
                               os.path.join(conf, kind + ".conf"), "-v")
        for kind, port in self.backends.items():
            self.daemons.wait_http(kind, f"http://127.0.0.1:{port}")
        for kind, url in (("proxy", self.endpoint), ("proxy-tls", self.tls_endpoint)):
            if url:
                self.daemons.wait_http(kind, url)
        return self
