#!/usr/bin/env python3
"""The agent's TCP door: who is let in, who is told what, what the log says, and the limits. All
certificates are real, made by openssl for this run."""
import http.client
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from tm import *  # noqa: E402,F403
from certificates import DAY_S, Authority  # noqa: E402
from node import conf_text, make_repository, run_program  # noqa: E402
from s3 import free_ports  # noqa: E402

JSON = {"Content-Type": "application/json"}
COORDINATOR = "coordinator"


class World:
    def __init__(self, box):
        self.box = box
        self.ca = Authority(box.mkdir("ca"))
        self.other_ca = Authority(box.mkdir("other"), "Other CA")
        self.port, self.second_port = free_ports(2)
        self.socket = box.join("agent.sock")
        self.node = self.ca.issue("db1", "agent", ["DNS:db1", "IP:127.0.0.1", "IP:127.0.0.2"])
        self.good = self.ca.issue("co1", COORDINATOR)
        self.url = f"https://127.0.0.1:{self.port}"
        self.sections = {
            "tidemark": {"state_dir": box.mkdir("state"), "socket": self.socket, "node": "db1"},
            "tls": {"listen": f"127.0.0.1:{self.port}", **self.node.options},
            "repository": {"url": make_repository(box)}}
        self.conf = box.write("agent.conf", conf_text(self.sections))
        self.agent = Agent(box, self.conf, self.socket, programs(box))

    def log(self):
        with open(self.agent.log, encoding="utf-8") as file:
            return file.read()

    def cli(self, certificate, *args, ca=None, url=None, **env):
        """`tidemark --agent=… ARGS` with this certificate."""
        options = {**certificate.options, **({"ca_file": ca} if ca else {})}
        conf = self.box.write("cli.conf", conf_text({
            "tidemark": {"state_dir": self.box.join("nowhere")}, "tls": options}))
        return cli(f"--agent={url or self.url}", *args, conf=conf, **env)

    def context(self, certificate, version=None):
        context = ssl.create_default_context(cafile=self.ca.crt)
        if certificate:
            context.load_cert_chain(certificate.crt, certificate.key)
        if version:
            context.maximum_version = version
        return context

    def connect(self, source="127.0.0.1"):
        """A TCP connection from this address of the loopback network; TLS comes later."""
        return socket.create_connection(("127.0.0.1", self.port), 30, (source, 0))

    def request(self, certificate, method, url, body=None, headers=JSON, chunked=False,
                version=None, source="127.0.0.1"):
        """(status, headers, decoded body)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.sock = self.context(certificate, version).wrap_socket(
            self.connect(source), server_hostname="db1")
        try:
            connection.request(method, url, body, headers, encode_chunked=chunked)
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        return answer.status, answer.headers, json.loads(text) if b"{" in text else None


def test_good(world):
    status, headers, body = world.request(world.good, "GET", "/health")
    is_((status, body["node"]), (200, "db1"), "GET /health with a coordinator's certificate")
    is_(headers["Content-Type"], "application/json", "is JSON")
    unlike(world.log(), "path=/health", "who only reads is not logged")
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        status, _, job = world.request(world.good, "POST", "/verifications",
                                       '{"snapshot": "nothing"}', version=version)
        is_(status, 202, f"POST over {version.name}")
        like(world.log(), r'request: method=POST path=/verifications '
             r'subject="CN=co1,OU=coordinator,O=Tests" serial=1001 address=127\.0\.0\.1:\d+ '
             f'status=202 job={job["id"]}\n', "the line says who, with what, and from where")
        world.agent.wait_job(job["id"])
    done = subprocess.run(["openssl", "s_client", "-connect", f"127.0.0.1:{world.port}", "-tls1_1",
                           "-cipher", "ALL:@SECLEVEL=0"], check=False, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)
    like(done.stdout, r"Cipher is \(NONE\)", "TLS 1.1 is refused")
    role = world.ca.issue("by-uri", names=["DNS:x", f"URI:tidemark:{COORDINATOR}"])
    is_(world.request(role, "GET", "/health")[0], 200, "the role as a URI of the certificate")
    several = world.ca.issue("units", units=["people", COORDINATOR])
    is_(world.request(several, "GET", "/health")[0], 200, "the role beside another unit")
    plain = world.ca.issue("no-purpose", COORDINATOR, purpose="")
    is_(world.request(plain, "GET", "/health")[0], 200, "a certificate for every purpose")


def test_command(world):
    done = world.cli(world.good, "status")
    is_status(done, 0, "tidemark --agent=… status")
    like(done.out, "^main/db1: ok\nagent: ", "tells the health of the other host's node")
    done = world.cli(world.good, "jobs", "--json")
    is_status(done, 0, "jobs")
    like(done.out, '"type":"verification"', "lists the agent's, not ours")
    is_status(world.cli(world.good, "status", "--agent-node=db1"), 0, "the node by its name")
    is_status(world.cli(world.good, "status", url=f"https://127.0.0.2:{world.second_port}"),
              "device", "nobody listens there")
    done = world.cli(world.good, "status", https_proxy="http://127.0.0.1:1")
    is_status(done, 0, "no proxy is used")
    done = world.cli(world.good, "verify", "nothing")
    is_status(done, "missing", "a job of the agent's that fails: its own status")
    done = world.cli(world.good, "status", url=f"unix:{world.socket}")
    is_status(done, 0, "--agent=unix:PATH")
    for args, detail in ((["init"], "is about this host"), (["list", "--local"], "contradict"),
                         (["list", "--repository=file:///x"], "contradict")):
        done = world.cli(world.good, *args)
        is_status(done, "usage", " ".join(args))
        like(done.err, detail, "says why")
    done = world.cli(world.good, "status", url=f"http://127.0.0.1:{world.port}")
    is_status(done, "usage", "an address without TLS")
    done = cli("status", "--agent-node=db1")
    is_status(done, "usage", "--agent-node alone")
    done = cli("status", f"--agent={world.url}")
    is_status(done, "config", "without a certificate")
    like(done.err, "hint: set certificate_file, key_file and ca_file in section \\[tls\\]\n",
         "says what to set")


def refused(world, what, certificate, why, alert, subject):
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        before = len(world.log())
        try:
            status = world.request(certificate, "POST", "/verifications", '{"snapshot": "x"}',
                                   version=version)[0]
            ok(False, f"{what}: refused, not answered with {status}")
        except OSError as error:  # of which ssl.SSLError is one
            ok(True, f"{what}: refused over {version.name} ({type(error).__name__})")
        line = poll(lambda: re.search("refused: .*\n", world.log()[before:]), 30, "the log")
        like(line.group(), r"refused: address=127\.0\.0\.1:\d+ subject=" + subject
             + r" unlogged=0 err=\"" + why, f"{what}: the log says who and why")
        unlike(world.log()[before:], "request:", f"{what}: nothing was asked")
    if certificate:
        done = world.cli(certificate, "status", ca=world.ca.crt)
        is_status(done, "auth", f"{what}: exit status of the command line")
        like(done.err, f"the agent at {world.url} does not accept the certificate '.*': .*alert "
             + alert + ".*\nhint: the agent's log says why\n", f"{what}: its message")


def test_refused(world):
    issue = world.ca.issue
    refused(world, "no certificate", None, "there is no client certificate", "", r'"-" serial=-')
    refused(world, "another CA", world.other_ca.issue("co2", COORDINATOR),
            "The certificate issuer is unknown", "unknown ca",
            r'"CN=co2,OU=coordinator,O=Tests" serial=1000')
    refused(world, "expired", issue("old", COORDINATOR, begins_s=-2 * DAY_S, ends_s=-DAY_S),
            "The certificate chain uses expired certificate",
            "certificate expired", '"CN=old,.*" serial=10..')
    refused(world, "not yet valid", issue("young", COORDINATOR, begins_s=DAY_S, ends_s=2 * DAY_S),
            "The certificate chain uses not yet valid certificate",
            "bad certificate", '"CN=young,.*" serial=10..')
    refused(world, "a server's certificate", issue("web", COORDINATOR, purpose="serverAuth"),
            "The certificate chain does not match the intended purpose",
            "bad certificate", '"CN=web,.*" serial=10..')
    for what, certificate in (
            ("role agent", world.node), ("no role", issue("nobody")),
            ("a longer role", issue("longer", "coordinators")),
            ("the role as a DNS name", issue("dns", names=[f"DNS:tidemark:{COORDINATOR}"])),
            ("the role as common name", issue(COORDINATOR))):
        status, headers, body = world.request(certificate, "GET", "/health")
        is_((status, body["code"], headers["Content-Type"]),
            (403, "auth", "application/problem+json"), f"{what}: refused")
        like(body["detail"], r"^the certificate of 'CN=.*' does not have role coordinator$", "why")
        like(world.log(), r"request: method=GET path=/health subject=\"CN=.*status=403",
             "and who only wanted to read is logged, too")
    done = world.cli(world.node, "status")
    is_status(done, "auth", "role agent: exit status of the command line")
    like(done.err, "hint: its subject needs OU = coordinator, or its alternative names URI "
                   "tidemark:coordinator\n", "and its hint")


def test_wrong_agent(world):
    done = world.cli(world.good, "status", "--agent-node=db2")
    is_status(done, "auth", "another node than the one that was meant")
    like(done.err, f"the certificate of {world.url} is not accepted: .*'db2'; it names DNS:db1, "
                   ".*\nhint: it must name 'db2' among its alternative names\n", "says so")
    done = world.cli(world.good, "status", url=f"https://localhost:{world.port}")
    is_status(done, "auth", "a host that the certificate does not name")
    done = world.cli(world.good, "status", "--agent-node=12")
    is_status(done, "config", "a node's name that is an address in a URL")
    done = world.cli(world.good, "status", ca=world.other_ca.crt)
    is_status(done, "auth", "an agent of another CA")
    like(done.err, "hint: '.*/other/ca.crt' must hold the CA that signed it\n", "says so")


def test_false_agent(world):
    """A coordinator's certificate is good enough for libcurl, not for us."""
    world.agent.stop()
    false = world.ca.issue("false", COORDINATOR, ["DNS:db1", "IP:127.0.0.1"])
    tls = {**world.sections["tls"], **false.options}
    conf = world.box.write("false.conf", conf_text({**world.sections, "tls": tls}))
    agent = Agent(world.box, conf, world.socket, programs(world.box), "false").start()
    like(tail(agent.log), "warn: coordinators will refuse our certificate: err=\"'.*false.crt': "
         "the certificate of 'CN=false,OU=coordinator,O=Tests' does not have role agent\"",
         "an agent that has another role says so at its start")
    done = world.cli(world.good, "verify", "nothing")
    is_status(done, "auth", "the command line does not talk to it")
    like(done.err, f"{world.url}: the certificate of 'CN=false,.*' does not have role agent", "why")
    unlike(tail(agent.log, 100), "request: ", "nothing was sent")
    agent.stop()
    world.agent.start()


def test_body(world):
    long = '{"snapshot": "' + "x" * 70000 + '"}'

    def post(body, headers=JSON, chunked=False):
        return world.request(world.good, "POST", "/verifications", body, headers, chunked)
    status, _, body = post(long)
    is_((status, body["detail"]), (413, "the body is longer than 64 KiB"), "a body too long")
    is_(post(iter([long.encode()]), {**JSON, "Transfer-Encoding": "chunked"}, True)[0], 413,
        "without a length")
    status = post(None, {**JSON, "Content-Length": "4000000000"})[0]
    is_(status, 413, "announced as huge: not read")
    is_(post("{}", {"Content-Type": "text/plain"})[0], 415, "another type")
    try:  # the answer comes while they are still being sent: the reset behind it may be faster
        status = world.request(world.good, "GET", "/health", headers={"X-Long": "x" * 100000})[0]
    except (OSError, http.client.BadStatusLine):
        status = 431
    is_(status, 431, "headers too long")
    status, _, body = world.request(world.node, "POST", "/verifications", long)
    is_(status, 403, "with the wrong role that is the answer")


def closed(connection):
    """The server hung up on it."""
    connection.settimeout(0)
    try:
        return connection.recv(4096) == b""
    except (BlockingIOError, ssl.SSLWantReadError):
        return False
    except OSError:
        return True


def test_plain(world):
    with world.connect() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        received = b"".join(iter(lambda: connection.recv(4096), b""))
        unlike(received.decode("latin-1"), "HTTP/1", "plain HTTP gets no answer of HTTP")
    is_(world.request(world.good, "GET", "/health")[0], 200, "others do")


def refusals(world):
    """(lines, what they say was left out)."""
    left_out = re.findall(r"refused: .* unlogged=(\d+)", world.log())
    return len(left_out), sum(map(int, left_out))


def test_flood(world):
    """Strangers do not fill the log; what is left out is counted by the next line."""
    lines, left_out = refusals(world)
    for _ in range(200):
        try:
            world.request(None, "GET", "/health")
        except OSError:
            pass
    lines = refusals(world)[0] - lines
    ok(30 <= lines < 200, f"{lines} lines about 200 refusals")
    return 200 - lines + left_out


def test_after_flood(world, left_out):
    def counted():
        try:
            world.request(None, "GET", "/health")
        except OSError:
            pass
        return refusals(world)[1] >= left_out
    ok(poll(counted, 60, "the count"), f"{left_out} that were left out are counted later")


def test_slow_handshake(world):
    """A byte now and then does not hold a connection for longer than a handshake may take."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = world.context(None).wrap_bio(incoming, outgoing, server_hostname="db1")
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        pass
    hello = outgoing.read()
    with world.connect() as connection:
        sent = 0

        def ends():
            nonlocal sent
            if closed(connection):
                return True
            try:
                sent += connection.send(hello[sent:sent + 1])
            except OSError:
                return True
            return False
        poll(ends, 90, "the agent to hang up", 0.3)
        ok(sent < len(hello), f"it hung up after {sent} of {len(hello)} bytes")


def test_many(world):
    """One host cannot take all connections; the control socket has its own."""
    first = [world.connect() for _ in range(100)]
    poll(lambda: sum(map(closed, first)) >= 68, 60, "those over the limit to be closed")
    is_(sum(map(closed, first)), 68, "32 connections from one address stay, the others are closed")
    is_(world.request(world.good, "GET", "/health", source="127.0.0.2")[0], 200,
        "another address is answered")
    is_(world.agent.api("GET", "/health")[0], 200, "so is the socket")
    second = [world.connect("127.0.0.3") for _ in range(32)]
    is_(world.agent.api("GET", "/health")[0], 200, "with all 64 taken the socket still answers")
    for connection in first + second:
        connection.close()

    def answers():
        try:
            return world.request(world.good, "GET", "/health")[0] == 200
        except OSError:
            return False
    ok(poll(answers, 60, "an answer"), "once they are closed everybody is answered")


def starts_not(world, what, options, status, message, hint=""):
    tls = {key: value for key, value in {**world.sections["tls"], **options}.items() if value}
    conf = world.box.write("bad.conf", conf_text({**world.sections, "tls": tls}))
    done = run_program(world.agent.program, f"--config={conf}")
    is_status(done, status, f"{what}: the agent does not start")
    like(done.err, "error: .*" + message, f"{what}: says why")
    if hint:
        like(done.err, "hint: " + hint, f"{what}: and what to do")
    ok(not os.path.exists(world.socket), f"{what}: no socket is left")


def test_start(world):
    box = world.box
    open_key, group_key = box.join("open.key"), box.join("group.key")
    for path, mode in ((open_key, 0o644), (group_key, 0o640)):
        shutil.copy(world.node.key, path)
        os.chmod(path, mode)
        starts_not(world, f"a key with mode {mode:04o}", {"key_file": path}, "auth",
                   rf"\[tls\]: key '{path}' may be used by others \(mode {mode:04o}\)",
                   f"chmod 600 '{path}'")
    os.chmod(open_key, 0o600)
    os.chown(open_key, 65534, 65534)
    starts_not(world, "a key of somebody's", {"key_file": open_key}, "auth",
               "belongs to user 65534")
    starts_not(world, "another's key", {"key_file": world.good.key}, "auth",
               "the key is not the certificate's")
    locked = box.join("locked.key")
    output("openssl", "pkcs8", "-topk8", "-in", world.node.key, "-passout", "pass:x",
           "-out", locked)
    os.chmod(locked, 0o600)
    starts_not(world, "an encrypted key", {"key_file": locked}, "auth", "holds no key",
               "it is encrypted")
    starts_not(world, "no certificate in the file", {"certificate_file": world.node.key}, "config",
               "holds no certificates")
    starts_not(world, "no CA in the file", {"ca_file": box.write("empty", "")}, "config",
               "holds no certificates")
    starts_not(world, "a CA that is too long", {"ca_file": box.write("long", "x" * 70000)},
               "config", "is longer than 64 KiB")
    starts_not(world, "no such file", {"ca_file": box.join("none")}, "config",
               r"\[tls\]: open '.*none': No such file")
    starts_not(world, "an option is missing", {"ca_file": ""}, "config",
               r"bad.conf: \[tls\] listen needs certificate_file, key_file and ca_file\n")
    starts_not(world, "a name to listen on", {"listen": "db1:7421"}, "config",
               r"bad.conf:\d+: listen: 'db1:7421' is not valid, expected: ADDRESS:PORT\n")
    starts_not(world, "an address of another host", {"listen": "192.0.2.1:7421"}, "device",
               "bind '192.0.2.1:7421': Cannot assign requested address")
    with socket.create_server(("127.0.0.1", world.second_port)):
        starts_not(world, "a port that is taken", {"listen": f"127.0.0.1:{world.second_port}"},
                   "busy", "Address already in use")
    key = world.good.key
    os.chmod(key, 0o644)
    done = world.cli(world.good, "status")
    is_status(done, "auth", "the command line does not use such a key either")
    os.chmod(key, 0o600)


def test_check(world):
    done = cli("check", conf=world.conf)
    like(done.out, r"ok     certificate    role agent, until \d{4}-", "tidemark check looks at it")
    old = world.ca.issue("old-agent", "agent", begins_s=-2 * DAY_S, ends_s=-DAY_S)
    tls = {**world.sections["tls"], **old.options}
    done = cli("check", conf=world.box.write("old.conf", conf_text({**world.sections, "tls": tls})))
    like(done.out, "FAILED certificate    '.*old-agent.crt': .*expired", "and finds one that ended")


def main():
    need_root()
    need_tools("openssl")
    need_programs("tidemark", "tidemark-agent")
    world = World(Sandbox("tls"))
    is_status(cli("init", conf=world.conf), 0, "init")
    world.agent.start()
    test_good(world)
    test_command(world)
    test_refused(world)
    test_wrong_agent(world)
    test_false_agent(world)
    test_body(world)
    test_plain(world)
    test_many(world)
    left_out = test_flood(world)
    test_slow_handshake(world)
    test_after_flood(world, left_out)
    test_check(world)
    world.agent.stop()
    test_start(world)


run(main)
