#!/usr/bin/env python3
"""A job whose object store does not answer can be cancelled, however long it would try."""
import os
import socket
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from tm import *  # noqa: E402,F403


def main():
    need_programs("tidemark", "tidemark-agent")
    box = Sandbox("cancel-store")
    refusing = socket.socket()
    refusing.bind(("127.0.0.1", 0))  # and never listens
    box.write("keys", "access_key = key\nsecret_key = secret\n", 0o600)
    conf = box.join("tidemark.conf")
    box.write("tidemark.conf", conf_text({
        "tidemark": {"state_dir": box.mkdir("state"), "socket": box.join("sock")},
        "repository": {"url": "s3://bucket/p", "retry_timeout": "1h",
                       "endpoint": f"http://127.0.0.1:{refusing.getsockname()[1]}",
                       "credentials_file": box.join("keys")}}))
    agent = Agent(box, conf, box.join("sock")).start()
    code, body = agent.api("POST", "/verifications", {"snapshot": "t"})
    is_(code, 202, "a job that needs the store")
    poll(lambda: agent.api("GET", f"/jobs/{body['id']}")[1].get("phase") == "record", 30,
         "the job to try")
    is_status(cli("cancel", body["id"], conf=conf, timeout_s=60), 0, "cancel")
    ended = agent.wait_job(body["id"], 60)
    is_(ended["state"], "cancelled", "the job ends as cancelled")
    like(str(ended.get("error")), "cancelled while the store failed.*127.0.0.1",
         "and says what it waited for")
    agent.stop()


run(main)
