"""tests/s3/tool_store as an object: the product's store, one operation at a time."""
import os
import subprocess
import threading

import tm


class StoreTool:
    """`with StoreTool(store, "s3://bucket/prefix") as tool: tool("put", "a", 100, 7)` → "ok"."""

    def __init__(self, store, url, endpoint=None, keys=None, **options):
        tm.need_programs("tests/s3/tool_store")
        endpoint = endpoint or store.endpoint
        keys = keys or store.keys
        if endpoint.startswith("https"):
            options.setdefault("ca_file", store.ca_file)
        words = [f"{k}={v}" for k, v in {"endpoint": endpoint, **options}.items()]
        self.lock = threading.Lock()
        self.process = subprocess.Popen(
            [os.path.join(tm.BUILD, "tests/s3/tool_store"), url, *words], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**os.environ, "AWS_ACCESS_KEY_ID": keys.access,
                 "AWS_SECRET_ACCESS_KEY": keys.secret})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __call__(self, *words):
        """The answer's line; of `list` the names as well, before it."""
        with self.lock:
            self.process.stdin.write(" ".join(map(str, words)) + "\n")
            self.process.stdin.flush()
            lines = []
            while True:
                line = self.process.stdout.readline()
                if not line:
                    raise RuntimeError(f"tool_store ended with {self.process.wait()}")
                lines.append(line.rstrip("\n"))
                if words[0] != "list" or lines[-1].startswith(("ok ", "error ")):
                    return lines if words[0] == "list" else lines[0]

    def names(self, prefix):
        *names, last = self("list", prefix)
        if not last.startswith("ok "):
            raise RuntimeError(last)
        return [line.split()[0] for line in names]

    def close(self):
        self.process.stdin.close()
        self.process.wait(30)
