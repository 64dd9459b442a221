"""A proxy that adds latency to every request and is never the limit (how: tests/s3/tool_delay.c).

    proxy = DelayProxy(box, store.endpoint, latency_ms=20)
    ... the product runs against proxy.endpoint ...
    proxy.stats()["peak"]              # requests without an answer at the same time, at the most
    proxy.latency_ms = 0; proxy.forget()

What the client sends, and only that, is held back; TLS goes through as it is. FaultProxy does more
to a request but carries some 300 MB/s."""
import os
import subprocess
import urllib.parse

import tm


class DelayProxy:
    def __init__(self, box, upstream, latency_ms=0):
        parts = urllib.parse.urlsplit(upstream)
        self.process = subprocess.Popen(
            [os.path.join(tm.BUILD, "tests/s3/tool_delay"), parts.hostname, str(parts.port)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.endpoint = f"{parts.scheme}://{parts.hostname}:{int(self.process.stdout.readline())}"
        self._latency_ms = 0
        self.latency_ms = latency_ms
        box.before_clean.append(self.close)

    def _tell(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    @property
    def latency_ms(self):
        return self._latency_ms

    @latency_ms.setter
    def latency_ms(self, value):
        self._latency_ms = value
        self._tell(f"latency {value}")

    def forget(self):
        """Counters begin anew."""
        self._tell("forget")

    def stats(self):
        """connections, open, peak_open, requests and peak since the last forget()."""
        self._tell("stats")
        words = self.process.stdout.readline().split()
        return {name: int(number) for name, number in zip(words[::2], words[1::2])}

    def close(self):
        self.process.stdin.close()
        self.process.wait(10)
