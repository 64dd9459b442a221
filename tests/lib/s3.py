"""Real object stores for tests, and a client of our own to look into them.

    store = ceph(box) or swift(box)        # see s3_ceph.py and s3_swift.py; ready when it returns
    bucket = store.bucket("repo")          # through Client, at the plain endpoint
    store.client().get("repo/key").body

A store has endpoint, tls_endpoint, ca_file, region and keys. Both listen on 127.0.0.1, on ports
that the kernel gave. need_ceph() and need_swift() skip the test aloud where the packages are not
installed. The client signs with its own code (signature V4), so that it checks the product's.
"""
import base64
import collections
import datetime
import hashlib
import hmac
import http.client
import os
import re
import shutil
import signal
import ssl
import subprocess
import threading
import urllib.parse

import tm
from sandbox import kill_pid, poll
from server import free_port

Keys = collections.namedtuple("Keys", "access secret")
Answer = collections.namedtuple("Answer", "status headers body code")
UNSIGNED = "UNSIGNED-PAYLOAD"
NEEDS = {"ceph": ("ceph-mon", "ceph-osd", "radosgw", "faketime", "openssl"),
         "swift": ("swift-proxy-server", "swift-account-server", "swift-container-server",
                   "swift-object-server", "memcached", "openssl")}


def missing(kind):
    """Why a store of this kind cannot be started here; None when it can."""
    absent = [name for name in NEEDS[kind] if not shutil.which(name)]
    return (f"{kind} is not installed (no {' '.join(absent)}; tools/install-deps --{kind} installs"
            " it)") if absent else None


def need_ceph():
    if missing("ceph"):
        tm.skip_all(missing("ceph"))


def need_swift():
    if missing("swift"):
        tm.skip_all(missing("swift"))


def ceph(box, **options):
    from s3_ceph import Ceph
    return _started(lambda attempt: Ceph(box, f"ceph{attempt or ''}", **options))


def swift(box, **options):
    from s3_swift import Swift
    return _started(lambda attempt: Swift(box, f"swift{attempt or ''}", **options))


def _started(make):
    """Somebody may take a port between free_port() and the server's bind(): new ports then."""
    for attempt in range(3):
        store = make(attempt)
        try:
            return store.start()
        except (RuntimeError, TimeoutError) as error:
            store.kill()
            if attempt == 2:
                raise
            tm.diag(f"{store.name} did not start, once more: {error}")


class Daemons:
    """Processes of a store below one directory of the sandbox. Its path is in their arguments, so
    the reaper finds them when this program was killed."""

    def __init__(self, box, name):
        self.box, self.name = box, name
        self.dir = box.mkdir(name)
        self.logs = box.mkdir(f"{name}/log")
        self.processes = {}
        box.before_clean.append(self.kill)
        tm.on_fail(self.show_logs)

    def spawn(self, name, *args, **env):
        with open(os.path.join(self.logs, name + ".out"), "ab") as log:
            self.processes[name] = subprocess.Popen(
                ["prlimit", "--core=0", *args], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                cwd=self.dir, start_new_session=True,
                env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **env})

    def alive(self, name):
        return self.processes[name].poll() is None

    def kill_one(self, name, sig=signal.SIGKILL):
        process = self.processes.pop(name, None)
        if process:
            kill_pid(process.pid, sig)
            process.wait()

    def kill(self):
        """A throw-away store: no clean shutdown needed."""
        for name in reversed(list(self.processes)):
            self.kill_one(name)

    def wait_http(self, name, url, timeout_s=40):
        """Until the daemon answers there; an error when it ends instead."""
        def answers():
            if not self.alive(name):
                raise RuntimeError(f"{name} ended with {self.processes[name].returncode}: "
                                   + self.log_text(name))
            try:
                return Client(url, None).raw("GET", "/").status < 500
            except OSError:
                return False
        poll(answers, timeout_s, f"{name} to answer", 0.02)

    def log_text(self, name, lines=8):
        return "".join(tm.tail(os.path.join(self.logs, f), lines)
                       for f in sorted(os.listdir(self.logs)) if f.startswith(name + "."))

    def show_logs(self):
        for name in sorted(os.listdir(self.logs)):
            text = tm.tail(os.path.join(self.logs, name), 3)
            if text:
                tm.diag(f"{self.name}/{name}:\n{text}")


def certificate(directory):
    """A self-signed certificate for 127.0.0.1, s3.localhost and *.s3.localhost: (key, crt)."""
    key, crt = (os.path.join(directory, "tls." + end) for end in ("key", "crt"))
    names = "DNS:localhost,DNS:s3.localhost,DNS:*.s3.localhost,IP:127.0.0.1"
    tm.output("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
              "-nodes", "-days", "30", "-subj", "/CN=localhost", "-addext",
              f"subjectAltName={names}", "-keyout", key, "-out", crt)
    return key, crt


class Store:
    """What Ceph and Swift have in common: two ports, a key, buckets."""

    vhost_domain = "s3.localhost"

    def __init__(self, box, name, tls, keys, region):
        self.daemons = Daemons(box, name)
        self.box, self.name, self.dir = box, name, self.daemons.dir
        self.keys, self.region = keys, region
        self.tls, self.ca_file, self.key_file = tls, None, None
        if tls:
            self.key_file, self.ca_file = certificate(self.dir)

    def kill(self):
        self.daemons.kill()

    def client(self, keys=None, endpoint=None):
        return Client(endpoint or self.endpoint, keys or self.keys, self.region)

    def bucket(self, name, keys=None, lock=False):
        """lock: made with object lock, so with versions."""
        headers = {"x-amz-bucket-object-lock-enabled": "true"} if lock else {}
        answer = self.client(keys).put(name, b"", headers=headers)
        if answer.status != 200:
            raise RuntimeError(f"bucket {name}: {answer.status} {answer.code}")
        return name


def free_ports(count):
    ports = set()
    while len(ports) < count:
        ports.add(free_port())
    return sorted(ports)


def _quote(text, safe=""):
    return urllib.parse.quote(text, safe="-_.~" + safe)


def _hmac(key, text):
    return hmac.new(key, text.encode(), hashlib.sha256).digest()


class Client:
    """One S3 user at one endpoint, path style. Each thread has a connection of its own that is kept
    alive. paths are "bucket/key"; keys None = anonymous."""

    def __init__(self, endpoint, keys, region="us-east-1", timeout_s=60):
        parts = urllib.parse.urlsplit(endpoint)
        self.host, self.port, self.secure = parts.hostname, parts.port, parts.scheme == "https"
        self.keys, self.region, self.timeout_s = keys, region, timeout_s
        self.local = threading.local()

    def connection(self):
        found = getattr(self.local, "connection", None)
        if found is None:
            if self.secure:
                context = ssl.create_default_context()
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
                found = http.client.HTTPSConnection(self.host, self.port, timeout=self.timeout_s,
                                                    context=context)
            else:
                found = http.client.HTTPConnection(self.host, self.port, timeout=self.timeout_s)
            self.local.connection = found
        return found

    def sign(self, method, path, query, headers, payload, skew_s=0):
        """headers with x-amz-date, x-amz-content-sha256 and Authorization."""
        now = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=skew_s)
        stamp = now.strftime("%Y%m%dT%H%M%SZ")
        signed = {k.lower(): str(v).strip() for k, v in headers.items()}
        signed.update({"x-amz-date": stamp, "x-amz-content-sha256": payload})
        names = ";".join(sorted(signed))
        pairs = "&".join(f"{_quote(k)}={_quote(v)}" for k, v in sorted(query.items()))
        request = "\n".join([method, _quote(path, "/"), pairs,
                             "".join(f"{k}:{signed[k]}\n" for k in sorted(signed)), names,
                             payload])
        scope = f"{stamp[:8]}/{self.region}/s3/aws4_request"
        key = ("AWS4" + self.keys.secret).encode()
        for part in scope.split("/"):
            key = _hmac(key, part)
        text = (f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n"
                + hashlib.sha256(request.encode()).hexdigest())
        signed["authorization"] = (f"AWS4-HMAC-SHA256 Credential={self.keys.access}/{scope}, "
                                   f"SignedHeaders={names}, Signature={_hmac(key, text).hex()}")
        return signed

    def raw(self, method, target, headers=None, body=b""):
        """One request as it is, on this thread's connection; a broken one is not used again."""
        connection = self.connection()
        try:
            connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
            merged = {"host": f"{self.host}:{self.port}", **(headers or {})}
            if body or method in ("PUT", "POST"):
                merged["content-length"] = len(body)
            for name, value in merged.items():
                connection.putheader(name, str(value))
            connection.endheaders()
            if body:
                connection.send(body)
            answer = connection.getresponse()
            data = answer.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            if isinstance(error, OSError):
                raise
            raise ConnectionError(f"{type(error).__name__}: {error}") from error
        found = re.search(rb"<Code>(.*?)</Code>", data)
        return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, data,
                      found.group(1).decode() if found else "")

    def request(self, method, path, query=None, headers=None, body=b"", payload=None, host=None,
                skew_s=0):
        path, query = "/" + path, query or {}
        headers = {**(headers or {}), "host": host or f"{self.host}:{self.port}"}
        if self.keys:
            headers = self.sign(method, path, query, headers,
                                payload or hashlib.sha256(body).hexdigest(), skew_s)
        target = _quote(path, "/")
        if query:
            target += "?" + "&".join(f"{_quote(k)}={_quote(v)}" for k, v in sorted(query.items()))
        return self.raw(method, target, headers, body)

    def put(self, path, body, **options):
        return self.request("PUT", path, body=body, **options)

    def get(self, path, **options):
        return self.request("GET", path, **options)

    def head(self, path, **options):
        return self.request("HEAD", path, **options)

    def delete(self, path, **options):
        return self.request("DELETE", path, **options)

    def list(self, bucket, prefix="", page=1000):
        """All keys, with as many requests as it takes."""
        keys, query = [], {"list-type": "2", "prefix": prefix, "encoding-type": "url",
                           "max-keys": str(page)}
        while True:
            answer = self.request("GET", bucket, query)
            if answer.status != 200:
                raise RuntimeError(f"list of {bucket}: {answer.status} {answer.code}")
            keys += [urllib.parse.unquote_plus(k.decode())
                     for k in re.findall(rb"<Key>(.*?)</Key>", answer.body)]
            token = re.search(rb"<NextContinuationToken>(.*?)</", answer.body)
            if not token:
                return keys
            query["continuation-token"] = token.group(1).decode().replace("&amp;", "&")

    def versions(self, bucket, prefix="", page=1000):
        """Every version there is: (key, version id, is a delete marker), of a key newest first."""
        found, query = [], {"versions": "", "prefix": prefix, "max-keys": str(page)}
        while True:
            answer = self.request("GET", bucket, query)
            if answer.status != 200:
                raise RuntimeError(f"versions of {bucket}: {answer.status} {answer.code}")
            for kind, text in re.findall(rb"<(Version|DeleteMarker)>(.*?)</\1>", answer.body, re.S):
                key, version = (re.search(rb"<%s>(.*?)</" % name, text).group(1).decode()
                                for name in (b"Key", b"VersionId"))
                found.append((urllib.parse.unquote_plus(key), version, kind == b"DeleteMarker"))
            if b"<IsTruncated>true" not in answer.body:
                return found
            query["key-marker"], query["version-id-marker"] = (
                re.search(rb"<%s>(.*?)</" % name, answer.body).group(1).decode()
                for name in (b"NextKeyMarker", b"NextVersionIdMarker"))

    def lock(self, path, version=None):
        """(mode, Unix seconds) of the retention of an object; None."""
        answer = self.request("GET", path,
                              {"retention": "", **({"versionId": version} if version else {})})
        mode, date = (re.search(rb"<%s>(.*?)</" % name, answer.body)
                      for name in (b"Mode", b"RetainUntilDate"))
        if answer.status != 200 or not mode or not date:
            return None
        date = datetime.datetime.strptime(date.group(1).decode()[:19], "%Y-%m-%dT%H:%M:%S")
        return mode.group(1).decode(), int(date.replace(tzinfo=datetime.timezone.utc).timestamp())

    def retain(self, path, mode, until_s):
        """Sets the retention of an object."""
        date = datetime.datetime.utcfromtimestamp(until_s).strftime("%Y-%m-%dT%H:%M:%SZ")
        body = (f"<Retention><Mode>{mode}</Mode><RetainUntilDate>{date}</RetainUntilDate>"
                "</Retention>").encode()
        digest = base64.b64encode(hashlib.md5(body).digest()).decode()
        return self.request("PUT", path, {"retention": ""}, {"content-md5": digest}, body)

    def mirror(self, bucket, directory, prefix=""):
        """Every object as a file: a repository that tools for directories can read."""
        for key in self.list(bucket, prefix):
            path = os.path.join(directory, key[len(prefix):].lstrip("/"))
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(self.get(f"{bucket}/{key}").body)
        return directory
