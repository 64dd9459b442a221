"""Certificates for tests: an authority that openssl(1) makes in a directory, and what it signs.

    authority = Authority(box.mkdir("ca"))
    db1 = authority.issue("db1", role="agent", names=["DNS:db1", "IP:127.0.0.1"])
    db1.crt, db1.key, authority.crt                         # PEM files; keys have mode 0600
    {"tls": {"listen": "127.0.0.1:7421", **db1.options}}    # for a configuration
"""
import os
import time

from sandbox import output

DAY_S = 86400
CONFIG = """[ca]
default_ca = test
[test]
database = {dir}/index.txt
serial = {dir}/serial
new_certs_dir = {dir}
certificate = {dir}/ca.crt
private_key = {dir}/ca.key
default_md = sha256
policy = any
unique_subject = no
[any]
organizationName = optional
organizationalUnitName = optional
commonName = optional
"""


def _date(shift_s):
    return time.strftime("%y%m%d%H%M%SZ", time.gmtime(time.time() + shift_s))


class Certificate:
    def __init__(self, directory, name, ca):
        self.crt, self.key = (os.path.join(directory, f"{name}.{end}") for end in ("crt", "key"))
        self.ca = ca

    @property
    def options(self):
        """Of section [tls]."""
        return {"certificate_file": self.crt, "key_file": self.key, "ca_file": self.ca}


class Authority:
    def __init__(self, directory, name="Test CA"):
        self.dir = directory
        self.crt, self.key = (os.path.join(directory, "ca." + end) for end in ("crt", "key"))
        self.config = self._write("ca.conf", CONFIG.format(dir=directory))
        self._write("index.txt", "")
        self._write("serial", "1000\n")
        self._key(self.key)
        output("openssl", "req", "-x509", "-new", "-key", self.key, "-subj", f"/CN={name}",
               "-days", "30", "-out", self.crt)

    def _write(self, name, text):
        path = os.path.join(self.dir, name)
        with open(path, "w", encoding="ascii") as file:
            file.write(text)
        return path

    @staticmethod
    def _key(path):
        output("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", path)
        os.chmod(path, 0o600)

    def issue(self, name, role=None, names=(), purpose="serverAuth,clientAuth", begins_s=-DAY_S,
              ends_s=DAY_S, units=()):
        """A certificate for CN = name with OU = role; names: "DNS:…", "IP:…", "URI:…"; begins_s and
        ends_s count from now."""
        made = Certificate(self.dir, name, self.crt)
        units = [role] if role else list(units)
        subject = "/O=Tests" + "".join(f"/OU={unit}" for unit in units) + f"/CN={name}"
        self._key(made.key)
        request = os.path.join(self.dir, name + ".csr")
        output("openssl", "req", "-new", "-key", made.key, "-subj", subject, "-out", request)
        lines = ["basicConstraints = CA:FALSE"]
        lines += [f"extendedKeyUsage = {purpose}"] if purpose else []
        lines += ["subjectAltName = " + ",".join(names)] if names else []
        extensions = self._write(name + ".ext", "\n".join(lines) + "\n")
        output("openssl", "ca", "-batch", "-notext", "-config", self.config, "-in", request,
               "-extfile", extensions, "-startdate", _date(begins_s), "-enddate", _date(ends_s),
               "-out", made.crt)
        return made
