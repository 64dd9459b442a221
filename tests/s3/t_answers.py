#!/usr/bin/env python3
"""A server that is none, or means harm: every answer ends the command in time, with the status and
the hint that fit. No object store is needed.
check: build=asan timeout=120"""
import os
import socket
import sys
import threading
from types import SimpleNamespace

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from s3_tool import StoreTool  # noqa: E402
from tm import *  # noqa: E402,F403


def answer(connection, status, body, headers=b""):
    connection.sendall(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n%s\r\n" % (status, len(body), headers)
                       + body)


class Server:
    """answers(connection, head, number) is called for every request; its exceptions hang up."""

    def __init__(self, answers):
        self.answers, self.requests = answers, 0
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.endpoint = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection):
        got = b""
        with connection:
            try:
                while True:
                    while b"\r\n\r\n" not in got:
                        more = connection.recv(65536)
                        if not more:
                            return
                        got += more
                    head, _, got = got.partition(b"\r\n\r\n")
                    self.requests += 1
                    self.answers(connection, head, self.requests)
            except OSError:
                return

    def close(self):
        self.listener.close()


def endless(first, more):
    def answers(connection, _head, _number):
        connection.sendall(first)
        while True:
            connection.sendall(more)
    return answers


def other_token(connection, _head, number):
    """A list that never ends and has nothing in it."""
    answer(connection, b"200 OK", b"<ListBucketResult><IsTruncated>true</IsTruncated>"
           b"<NextContinuationToken>t%d</NextContinuationToken></ListBucketResult>" % number)


def wrong_secret(connection, _head, _number):
    """As AWS does it: what was signed, as text and as hex."""
    signed = b"PUT\n/bucket/" + b"p" * 1500
    answer(connection, b"403 Forbidden",
           b"<Error><Code>SignatureDoesNotMatch</Code><Message>m</Message><CanonicalRequest>" +
           signed + b"</CanonicalRequest><CanonicalRequestBytes>" + b"41 " * len(signed) +
           b"</CanonicalRequestBytes></Error>")


def until_closed(connection, _head, _number):
    connection.sendall(b"HTTP/1.0 200 OK\r\n\r\nshort")
    connection.close()


def of_web_pages(connection, _head, _number):
    answer(connection, b"200 OK", b"<html>" + b"x" * 60000)


CASES = (
    ("100 Continue for ever", "list", endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), "store",
     "headers are longer than 8192 bytes"),
    ("a trailer for ever", "list",
     endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n",
             b"X: y\r\n" * 10), "store", "headers are longer than 8192 bytes"),
    ("a body that ends with the connection", "list", until_closed, "store",
     "where its answer ends.*S3 server"),
    ("an unknown status", "list", lambda c, _h, _n: answer(c, b"999 What", b""), "store",
     "999.*hint: is the endpoint an S3 server"),
    ("web pages", "list", of_web_pages, "store", "ignores ranges.*hint: is the endpoint an S3"),
    ("a wrong secret, at length", "init", wrong_secret, "auth", "hint: the secret key is wrong"),
)


def main():
    box = Sandbox("s3answers")
    need_programs("tidemark")
    keys = box.write("keys", "access_key = a\nsecret_key = b\n", 0o600)
    for what, verb, answers, status, pattern in CASES:
        server = Server(answers)
        done = cli(verb, "--repository=s3://bucket/p", f"--endpoint={server.endpoint}",
                   f"--credentials-file={keys}", timeout_s=60,
                   TIDEMARK_REPOSITORY_RETRY_TIMEOUT="1s")
        server.close()
        is_status(done, status, what)
        like(done.err, f"(?s){pattern}", f"{what}: named")
    server = Server(other_token)
    a_key = SimpleNamespace(access="a", secret="b")
    with StoreTool(None, "s3://bucket/p", server.endpoint, a_key) as tool:
        like(tool("list", "a/")[-1], "^error store .*does not go on", "a list without an end")
    server.close()


run(main)
