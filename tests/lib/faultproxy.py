"""A proxy before an object store that does to requests what networks and servers do to them.

    proxy = FaultProxy(box, store.endpoint)            # in threads of this process
    proxy.rules(Rule("^PUT .*/data/", "status", code=503, prob=0.1, seed=7))
    ... the product runs against proxy.endpoint ...
    proxy.log[-1].fault, proxy.peak, proxy.hits("status")

Rule(match, fault, ...): match is searched in "METHOD target"; the first rule that fires wins.
nth=3 (the third match), every=10, prob=0.1 with seed (decided by the request itself and how often
it was seen, so that the order of threads does not matter), times=N (at most so often). fault can be
a tuple: one of them by the seed. at: bytes (int), a part of the body (float) or None: by the seed.

  delay ms           forwarded later                 rate bps        bodies at bytes per second
  status code        answered here, server unasked (body=, headers=; drain=False: body unread)
  reset              RST before the body; the server never sees the request
  reset_up at        RST after that much of the body     reset_down at   ... of the answer
  lost_answer        executed by the server, then RST    fin_down at     an orderly end instead
  stall_up at, stall_down at   no byte moves for ms; then on
  flip_up at, flip_down at     one bit is wrong
  short_length at    Content-Length and body of the answer are cut: only a checksum can tell
  close_idle         answered in full, then closed       duplicate       sent twice to the server

down() refuses connections and resets those that are open, up() ends that. latency_ms is added to
every request. Host goes through unchanged, so signatures stay valid. Limits: request bodies need a
Content-Length; a chunked answer passes without faults in its body.
"""
import collections
import random
import re
import socket
import ssl
import struct
import threading
import time
import urllib.parse

Exchange = collections.namedtuple("Exchange", "start ms method target length fault status note")
CODES = {503: "SlowDown", 500: "InternalError", 404: "NoSuchKey", 403: "AccessDenied",
         429: "TooManyRequests", 408: "RequestTimeout"}
XML = ('<?xml version="1.0" encoding="UTF-8"?><Error><Code>{}</Code><Message>injected</Message>'
       "</Error>")
PIECE = 256 << 10


class Rule:
    def __init__(self, match, fault, nth=None, every=None, prob=1.0, seed=1, times=None, at=None,
                 ms=0, bps=0, code=503, body=None, headers=None, drain=True, bit=0):
        self.match, self.fault = re.compile(match), fault
        self.nth, self.every, self.prob, self.seed, self.times = nth, every, prob, seed, times
        self.at, self.ms, self.bps, self.code, self.body = at, ms, bps, code, body
        self.headers, self.drain, self.bit = headers or {}, drain, bit
        self.seen = self.fired = 0
        self.lines = collections.Counter()

    def fires(self, line):
        """The Fault for this request or None. Called under the proxy's lock."""
        if not self.match.search(line):
            return None
        self.seen += 1
        self.lines[line] += 1
        rng = random.Random(f"{self.seed} {line} {self.lines[line]}")
        if self.times is not None and self.fired >= self.times:
            return None
        if self.nth is not None:
            hit = self.seen == self.nth
        elif self.every is not None:
            hit = self.seen % self.every == 0
        else:
            hit = rng.random() < self.prob
        if not hit:
            return None
        self.fired += 1
        kind = self.fault if isinstance(self.fault, str) else rng.choice(self.fault)
        return Fault(self, kind, rng.random() if self.at is None else self.at)


class Fault:
    """What happens to one request."""

    def __init__(self, rule, kind, at):
        self.rule, self.kind, self.at = rule, kind, at

    def offset(self, length):
        """Where in a body of that length."""
        if isinstance(self.at, float):
            return int(self.at * length)
        return self.at


class Cut(Exception):
    """The client's connection ends here; the text is the kind of end."""


class Ended(Exception):
    """A peer went away."""


class Reader:
    """Buffered reads from a socket."""

    def __init__(self, sock):
        self.sock, self.buffer = sock, b""

    def _more(self):
        data = self.sock.recv(PIECE)
        if not data:
            raise Ended()
        self.buffer += data

    def until(self, mark):
        while mark not in self.buffer:
            self._more()
        head, _, self.buffer = self.buffer.partition(mark)
        return head + mark

    def some(self, most):
        if not self.buffer:
            self._more()
        data, self.buffer = self.buffer[:most], self.buffer[most:]
        return data


def header(head, name):
    found = re.search(rb"(?im)^" + name.encode() + rb":[ \t]*(.*?)\r$", head)
    return found.group(1).decode("latin-1") if found else None


def reset(sock):
    """Closes it with an RST."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if isinstance(sock, ssl.SSLSocket):  # close() would say goodbye first
            sock = socket.socket(fileno=sock.detach())
        sock.close()
    except OSError:
        pass


class Mover:
    """Moves one body and applies the faults of its direction ("up" or "down")."""

    def __init__(self, reader, length, out, fault, direction):
        self.reader, self.left, self.out, self.position = reader, length, out, 0
        self.fault, self.kind = fault, fault.kind if fault else None
        names = {f"{kind}_{direction}" for kind in ("reset", "fin", "stall", "flip")}
        if direction == "down":
            names.add("short_length")
        self.at = fault.offset(length) if self.kind in names else None
        self.kind = self.kind.removesuffix("_" + direction) if self.kind in names else self.kind

    def move(self):
        if self.at == 0:
            self.reached(b"")
        while self.left:
            data = self.reader.some(min(self.left, PIECE))
            self.left -= len(data)
            if self.at is not None and self.position <= self.at < self.position + len(data):
                data = self.reached(data)
            if self.kind == "rate":
                time.sleep(len(data) / self.fault.rule.bps)
            self.position += len(data)
            self.out(data)

    def reached(self, data):
        """The fault's place is in data (or before the body's first byte)."""
        index = self.at - self.position
        if self.kind in ("reset", "fin"):
            self.out(data[:index])
            raise Cut(self.kind)
        if self.kind == "short_length":
            self.out(data[:index])
            self.out = lambda _data: None
            return b""
        if self.kind == "stall":
            self.out(data[:index])
            self.position += index
            self.at = None
            time.sleep(self.fault.rule.ms / 1000)
            return data[index:]
        if self.kind == "flip" and data:
            data = bytearray(data)
            data[index] ^= 1 << self.fault.rule.bit
        return data


class Connection:
    """One client's connection, served by a thread."""

    def __init__(self, proxy, client):
        self.proxy, self.client, self.server = proxy, client, None
        self.reader = self.answers = None

    def serve(self):
        try:
            self.client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.proxy.context:
                self.client = self.proxy.context.wrap_socket(self.client, server_side=True)
            self.reader = Reader(self.client)
            while self.exchange(self.reader.until(b"\r\n\r\n")):
                pass
        except (OSError, Ended, ValueError):
            pass
        finally:
            self.close()

    def close(self):
        for sock in (self.client, self.server):
            if sock:
                try:
                    sock.close()
                except OSError:
                    pass

    def exchange(self, head):
        """One request. True when the connection can take another one."""
        method, target = head.split(b" HTTP/", 1)[0].decode("latin-1").split(" ", 1)
        length = int(header(head, "content-length") or 0)
        fault = self.proxy.begin(f"{method} {target}")
        start, status, note, go_on = time.time(), 0, "", False
        try:
            if self.proxy.latency_ms or (fault and fault.kind == "delay"):
                wait_ms = self.proxy.latency_ms + (fault.rule.ms if fault else 0)
                time.sleep(wait_ms / 1000)
            if fault and fault.kind == "status":
                status, go_on = fault.rule.code, self.answer_here(head, length, fault)
            elif fault and fault.kind == "reset":
                raise Cut("reset")
            else:
                status, go_on = self.forward(head, method, length, fault)
        except Cut as cut:
            note = str(cut)
            if note == "reset":
                reset(self.client)
        except (OSError, Ended):
            note = "peer ended"
        finally:
            self.proxy.end(Exchange(start, (time.time() - start) * 1000, method, target, length,
                                    fault.kind if fault else None, status, note))
        return go_on

    def answer_here(self, head, length, fault):
        rule = fault.rule
        unread = header(head, "expect") or not rule.drain
        if not unread:
            Mover(self.reader, length, lambda _data: None, None, "up").move()
        body = rule.body if rule.body is not None else XML.format(
            CODES.get(rule.code, "InternalError"))
        body = b"" if head.startswith(b"HEAD ") else body.encode()
        lines = [f"HTTP/1.1 {rule.code} Injected", "Content-Type: application/xml",
                 f"Content-Length: {len(body)}", *(f"{k}: {v}" for k, v in rule.headers.items())]
        self.client.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        return not unread

    def connect(self):
        self.server = socket.create_connection(self.proxy.upstream, timeout=300)
        self.server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.answers = Reader(self.server)

    def forward(self, head, method, length, fault):
        if self.server is None:
            self.connect()
        if fault and fault.kind == "duplicate":
            body = bytearray()
            Mover(self.reader, length, body.extend, None, "up").move()
            self.server.sendall(head + body)
            self.skip_answer(method)
            self.server.sendall(head + body)
            return self.answer(method, fault)
        self.server.sendall(head)
        if length and header(head, "expect"):
            first = self.answers.until(b"\r\n\r\n")
            if not first.startswith(b"HTTP/1.1 100"):
                self.client.sendall(first)  # refused without the body
                return int(first[9:12]), False
            self.client.sendall(first)
        Mover(self.reader, length, self.server.sendall, fault, "up").move()
        return self.answer(method, fault)

    def skip_answer(self, method):
        head = self.answers.until(b"\r\n\r\n")
        self.pass_body(head, method, lambda _data: None, None)

    def answer(self, method, fault):
        head = self.answers.until(b"\r\n\r\n")
        # radosgw sends the body when the head is acknowledged; the kernel would do that in 40 ms
        self.server.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        status, kind = int(head[9:12]), fault.kind if fault else None
        if kind == "lost_answer":
            raise Cut("reset")
        length = header(head, "content-length")
        if kind == "short_length" and length:
            self.client.sendall(re.sub(rb"(?im)^content-length:.*?\r$", b"Content-Length: %d\r"
                                       % fault.offset(int(length)), head))
        else:
            self.client.sendall(head)
        self.pass_body(head, method, self.client.sendall, fault)
        last = (header(head, "connection") or "").lower() == "close"
        return status, not last and kind != "close_idle"

    def pass_body(self, head, method, out, fault):
        if method == "HEAD" or head[9:12] in (b"204", b"304"):
            return
        if (header(head, "transfer-encoding") or "").lower() == "chunked":
            self.pass_chunked(out)
        else:
            length = int(header(head, "content-length") or 0)
            Mover(self.answers, length, out, fault, "down").move()

    def pass_chunked(self, out):
        size = 1
        while size:
            line = self.answers.until(b"\r\n")
            size = int(line.split(b";")[0], 16)
            out(line)
            Mover(self.answers, size + 2, out, None, "down").move()


class FaultProxy:
    """certificate: (key, crt) files: TLS on the client's side then, plain to the server."""

    def __init__(self, box, upstream, certificate=None, latency_ms=0):
        parts = urllib.parse.urlsplit(upstream)
        self.upstream, self.latency_ms = (parts.hostname, parts.port), latency_ms
        self.context = None
        if certificate:
            self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.context.load_cert_chain(certificate[1], certificate[0])
        self.lock = threading.Lock()
        self.active, self.log, self.open = [], [], set()
        self.connections = self.running = self.peak = self.peak_connections = 0
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = self.listener.getsockname()[1]
        self.endpoint = f"http{'s' if certificate else ''}://127.0.0.1:{self.port}"
        self._accept()
        box.before_clean.append(self.close)

    def _accept(self):
        listener = self.listener

        def loop():
            while True:
                try:
                    client, _address = listener.accept()
                except OSError:
                    return
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()
        threading.Thread(target=loop, daemon=True).start()

    def _serve(self, client):
        connection = Connection(self, client)
        with self.lock:
            self.open.add(connection)
            self.connections += 1
            self.peak_connections = max(self.peak_connections, len(self.open))
        connection.serve()
        with self.lock:
            self.open.discard(connection)

    def rules(self, *rules):
        """These from now on; none = everything passes."""
        with self.lock:
            self.active = list(rules)

    def begin(self, line):
        with self.lock:
            self.running += 1
            self.peak = max(self.peak, self.running)
            for rule in self.active:
                fault = rule.fires(line)
                if fault:
                    return fault
        return None

    def end(self, exchange):
        with self.lock:
            self.running -= 1
            self.log.append(exchange)

    def hits(self, kind=None):
        """The exchanges that a fault (of this kind) befell."""
        return [x for x in list(self.log) if x.fault and kind in (None, x.fault)]

    def requests(self, pattern):
        return [x for x in list(self.log) if re.search(pattern, f"{x.method} {x.target}")]

    def forget(self):
        """Starts log and peaks anew."""
        with self.lock:
            self.log, self.connections = [], 0
            self.peak, self.peak_connections = self.running, len(self.open)

    def down(self):
        """Nobody listens any more, every connection is reset."""
        self.close()

    def up(self):
        self.listener = socket.create_server(("127.0.0.1", self.port), backlog=256)
        self._accept()

    def close(self):
        try:
            self.listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        except OSError:
            pass
        self.listener.close()
        with self.lock:
            connections = list(self.open)
        for connection in connections:
            try:
                # shutdown() wakes the thread, which closes; a reset needs the linger set before.
                connection.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                                             struct.pack("ii", 1, 0))
                connection.client.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
