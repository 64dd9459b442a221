#!/usr/bin/env python3
# check: build=asan
"""What a coordinator answers without any node: its page, on which nothing of others can run or
load, requests that a browser sends for another site, Idempotency-Key."""
import html.parser
import json
import os
import re
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "lib"), HERE]
from tm import *  # noqa: E402, F403
from node import make_repository  # noqa: E402
from cluster_lib import Coordinator  # noqa: E402

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>&amp;\"'"


class Ghost:
    """A member without an agent."""

    def __init__(self, name, address):
        self.name, self.address, self.socket = name, address, None


class Ghosts:
    def __init__(self, repository, *members):
        self.repository, self.members = repository, members


class Page(html.parser.HTMLParser):
    """Its elements, their attributes, its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text = set(), set(), ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.text += data


def test_page(coordinator):
    status, headers, text = coordinator.agent.request("GET", "/")
    is_((status, headers["Content-Type"]), (200, "text/html; charset=utf-8"), "GET /: a page")
    like(headers["Content-Security-Policy"], "^default-src 'none'; style-src 'unsafe-inline'; "
         ".*form-action 'none'; frame-ancestors 'none'$", "that runs nothing and loads nothing")
    is_((headers["X-Content-Type-Options"], headers["Cache-Control"]), ("nosniff", "no-store"),
        "and is taken for what it is, now")
    page = Page(text)
    is_(page.tags, {"html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "div",
                    "table", "tr", "th", "td", "span"}, "has these elements and no other")
    is_(page.attributes, {"lang", "charset", "http-equiv", "content", "name", "class"},
        "no attribute that does anything, but for its refresh")
    ok(page.text.count(EVIL.replace(" ", "+")) >= 2,
       "an address and an error are there, as text")
    like(page.text, "(?s)main: unreachable.*db1.*db2", "with the state and the nodes")
    like(page.text, "(?s)Last snapshots.*first.*failed.*node db1: ", "and the last snapshots")


def test_self_check(coordinator):
    """No agent answers."""
    ok(poll(lambda: re.search("self-check: status=failed .*node db1 is unreachable",
                              tail(coordinator.agent.log)), 60, "its self-check"),
       "its self-check says that nobody answers")
    done = coordinator.cli("status")
    is_status(done, "device", "cluster status: so does the exit status")
    like(done.out, "(?m)^db1 +unreachable ", "and the table")


def test_stale(coordinator):
    """Its configuration was changed, not an agent's."""
    with open(coordinator.conf, "a", encoding="ascii") as file:
        file.write("# changed\n")
    for args in (("cluster", "status"), ("status",)):
        done = run_program(os.path.join(BUILD, "tidemark"), *args, conf=coordinator.conf)
        like(done.out, f"(?m)^configuration: '{coordinator.conf}' was changed .*: "
             "systemctl restart tidemark-coordinator$", " ".join(args) + " says what to restart")


def test_of_agent(box, repository):
    """An agent has none."""
    conf = box.write("agent.conf", f"[tidemark]\nstate_dir = {box.mkdir('agent-state')}\n"
                     f"socket = {box.join('agent.sock')}\n[repository]\nurl = {repository}\n")
    agent = Agent(box, conf, box.join("agent.sock")).start()
    is_(agent.api("GET", "/")[0], 404, "an agent has no page")
    is_(agent.api("GET", "/health"), (200, agent.api("GET", "/health")[1]), "but health")
    agent.stop()


def test_browsers(coordinator):
    evil = {"Origin": "https://evil.example.com"}
    for method, path in (("POST", "/cluster/snapshots"), ("DELETE", "/jobs/" + "0" * 32)):
        is_(coordinator.agent.request(method, path, {"tag": "x"}, evil)[0], 403,
            f"{method} for a page of another site: refused")
    is_(coordinator.agent.request("GET", "/version", None, evil)[0], 200, "to read is no harm")


def test_keys(coordinator):
    """The same key twice is the same job."""
    def post(path, key, **body):
        status, _, text = coordinator.agent.request("POST", path, body, {"Idempotency-Key": key})
        return status, json.loads(text).get("id")
    for path, body, other in (("/cluster/snapshots", {"tag": "first"}, {"tag": "second"}),
                              ("/cluster/restores", {"snapshot": "first"}, {"snapshot": "second"})):
        status, job = post(path, "key of " + path, **body)
        is_(status, 202, f"POST {path} with a key")
        is_(post(path, "key of " + path, **body), (202, job), "again: the same job")
        coordinator.agent.wait_job(job)
        is_(post(path, "key of " + path, **body), (202, job), "and when it has ended")
        is_(post(path, "key of " + path, **other)[0], 422, "for another request: refused")
        status, another = post(path, "another for " + path, **body)
        ok(status == 202 and another != job, "another key: another job")
        coordinator.agent.wait_job(another)


def main():
    box = need_root() or Sandbox("page")
    need_programs("tidemark", "tidemark-coordinator")
    repository = make_repository(box)
    path = box.join(EVIL.replace(" ", "+"))
    coordinator = Coordinator(box, Ghosts(repository, Ghost("db1", "unix:" + path),
                                          Ghost("db2", "unix:" + box.join("nobody")))).start()
    is_status(run_program(os.path.join(BUILD, "tidemark"), "init", conf=coordinator.conf), 0,
              "a repository")
    test_self_check(coordinator)
    test_keys(coordinator)
    test_page(coordinator)
    test_browsers(coordinator)
    test_of_agent(box, repository)
    test_stale(coordinator)
    coordinator.agent.stop()


run(main)
