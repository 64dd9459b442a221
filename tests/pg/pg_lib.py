"""tests/pg/tool_pg for tests of agent/pg."""
import os
import shutil
import subprocess

import tm
from node import Result


class Tool:
    """tests/pg/tool_pg in a directory of its own, where it is tidemark-agent as well."""

    def __init__(self, box, server, **options):
        self.dir = box.mkdir("tools")
        self.path = os.path.join(self.dir, "tool_pg")
        for name in ("tool_pg", "tidemark-agent"):
            shutil.copy2(os.path.join(tm.BUILD, "tests/pg/tool_pg"), os.path.join(self.dir, name))
        self.options = {"postgresql.data_directory": server.data,
                        "postgresql.connection": server.conninfo.replace(" dbname=postgres", ""),
                        "postgresql.bin_directory": tm.PG_BIN, "postgresql.os_user": "postgres",
                        "tidemark.state_dir": box.mkdir("state", 0o700),
                        "postgresql.start_timeout": "20s", **options}

    def args(self, *args, **options):
        merged = {**self.options, **{k.replace("__", "."): v for k, v in options.items()}}
        return [self.path, *(f"--{k}={v}" for k, v in merged.items() if v is not None),
                *map(str, args)]

    def __call__(self, *args, timeout_s=60, **options):
        done = subprocess.run(self.args(*args, **options), text=True, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False,
                              timeout=timeout_s)
        return Result(done.returncode, done.stdout.rstrip("\n"), done.stderr)
