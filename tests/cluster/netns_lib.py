"""Every node of a cluster, and its coordinator, in a network namespace of its own, each with one
link to a bridge that is in another. A link that is cut loses everything and tells nobody: no RST,
no ICMP, and the neighbours' addresses stay known.

    net = Net(box)
    cluster = NetCluster(box, net).start()              # 10.77.0.11, 10.77.0.12, …
    coordinator = NetCoordinator(box, net, cluster).start()
    cluster.primary.link.cut()
    cluster.primary.link.heal()

The namespaces are files below the sandbox, bind mounts as those of ip-netns(8): they go when the
sandbox is cleaned and takes its interfaces along. Nothing is made in the host's own namespace.
Control sockets and PostgreSQL's Unix sockets are files: the test reaches them across a cut."""
import contextlib
import ctypes
import os
import shutil
import subprocess

import tm
from certificates import Authority
from cluster_lib import Cluster, Coordinator, Member
from sandbox import output

CLONE_NEWNET = 0x40000000
NETWORK = "10.77.0"
LIBC = ctypes.CDLL(None, use_errno=True)


def missing():
    """Why there can be no such network here; "" when there can."""
    for tool in ("ip", "unshare", "nsenter"):
        if not shutil.which(tool):
            return f"{tool} is not installed"
    for kind in (("bridge",), ("veth", "peer", "name", "tm-b")):
        done = subprocess.run(["unshare", "--net", "ip", "link", "add", "name", "tm-a", "type",
                               *kind], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                              stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            return f"this kernel makes no {kind[0]}: {done.stderr.strip()}"
    return ""


class Namespace:
    def __init__(self, box, name):
        box.mkdir("netns")
        self.name, self.file = name, box.write(f"netns/{name}", "")
        output("unshare", f"--net={self.file}", "true")
        self.ip("link", "set", "lo", "up")

    def ip(self, *args):
        output("nsenter", f"--net={self.file}", "ip", *args)

    @contextlib.contextmanager
    def inside(self):
        """This thread, and what it starts, is in the namespace."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        after = os.open(self.file, os.O_RDONLY)
        try:
            _enter(after)
            yield
        finally:
            _enter(before)
            os.close(before)
            os.close(after)

    def wrap(self, function):
        """function, called inside."""
        def wrapped(*args, **options):
            with self.inside():
                return function(*args, **options)
        return wrapped


def _enter(fd):
    if LIBC.setns(fd, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


class Link(Namespace):
    """A host: its namespace and its cable."""

    def __init__(self, net, name, number):
        super().__init__(net.box, name)
        self.net, self.port, self.number = net, f"tm{number}", number
        self.address = f"{NETWORK}.{number}"
        net.switch.ip("link", "add", "name", self.port, "type", "veth", "peer", "name", "tmup")
        net.switch.ip("link", "set", "dev", "tmup", "netns", self.file)
        net.switch.ip("link", "set", "dev", self.port, "master", "tmbridge", "up")
        self.ip("link", "set", "dev", "tmup", "address", mac(number), "up")
        self.ip("address", "add", f"{self.address}/24", "dev", "tmup")

    def meet(self, other):
        self.ip("neighbour", "replace", other.address, "lladdr", mac(other.number), "dev", "tmup",
                "nud", "permanent")

    def cut(self):
        self.net.switch.ip("link", "set", "dev", self.port, "down")

    def heal(self):
        self.net.switch.ip("link", "set", "dev", self.port, "up")


def mac(number):
    return f"02:00:00:77:00:{number:02x}"


class Net:
    def __init__(self, box):
        self.box, self.links, self.switch = box, [], Namespace(box, "switch")
        self.authority = Authority(box.mkdir("ca"))
        self.switch.ip("link", "add", "name", "tmbridge", "type", "bridge")
        self.switch.ip("link", "set", "dev", "tmbridge", "up")

    def link(self, name):
        made = Link(self, name, 11 + len(self.links))
        for other in self.links:
            other.meet(made)
            made.meet(other)
        self.links.append(made)
        return made


class NetMember(Member):
    """Agent and server are started inside; standbys come over TCP. What is sent into a cut is
    noticed after seconds."""

    def __init__(self, box, name, repository, size, options, net):
        super().__init__(box, name, repository, size, options)
        self.link = net.link(name)
        self.agent.start = self.link.wrap(self.agent.start)
        self.server.program = self.link.wrap(self.server.program)
        self.own_settings = {"listen_addresses": self.link.address}
        self.settings.update(wal_receiver_timeout="3s", wal_sender_timeout="3s",
                             **self.own_settings)
        self.open_door(net.authority, self.link.address)
        init = self.server.init
        self.server.init = lambda *args, **options: self._let_in(init(*args, **options))

    def _let_in(self, _):
        with open(os.path.join(self.data, "pg_hba.conf"), "a", encoding="ascii") as file:
            file.write(f"host all,replication all {NETWORK}.0/24 trust\n")

    def conninfo_to(self, primary):
        return (f"host={primary.link.address} port={primary.server.port} user=postgres"
                f" application_name={self.name} connect_timeout=3")


class NetCluster(Cluster):
    def __init__(self, box, net, names=("db1", "db2", "db3"), options=None):
        self.net = net
        super().__init__(box, names, options=options)

    def make_member(self, name, size, options, **more):
        return NetMember(self.box, name, self.repository, size, options, self.net)


class NetCoordinator(Coordinator):
    def __init__(self, box, net, cluster, name="ops", options=None):
        tls = net.authority.issue(name, "coordinator").options
        super().__init__(box, cluster, name, {"tls": tls, **(options or {})})
        self.link = net.link(name)
        self.agent.start = self.link.wrap(self.agent.start)


def need_net():
    reason = missing()
    if reason:
        tm.skip_all(reason)


__all__ = ["Net", "NetCluster", "NetCoordinator", "need_net"]
