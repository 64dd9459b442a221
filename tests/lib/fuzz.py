#!/usr/bin/env python3
"""Smoke run of one libFuzzer target: its whole corpus, then new inputs for FUZZ_SECONDS (default
10; a campaign takes 300). New inputs go to a scratch directory; a crash keeps its input in
build/fuzz/crashes/ and prints the command that repeats it."""
import os
import random
import subprocess
import sys
import tempfile


def main(program, corpus):
    campaign = os.environ.get("TIDEMARK_CAMPAIGN") == "1"
    seconds = int(os.environ.get("FUZZ_SECONDS") or (300 if campaign else 10))
    seed = int(os.environ.get("TIDEMARK_SEED") or random.SystemRandom().randrange(1, 1 << 31))
    crashes = os.path.abspath("build/fuzz/crashes") + "/"
    os.makedirs(crashes, exist_ok=True)
    name = os.path.basename(program)
    inputs = len(os.listdir(corpus)) if os.path.isdir(corpus) else 0
    with tempfile.TemporaryDirectory(prefix="tidemark-fuzz-", dir="/var/tmp") as scratch:
        args = [program, f"-max_total_time={seconds}", f"-seed={seed}", "-timeout=10",
                "-rss_limit_mb=2048", "-print_final_stats=1", f"-artifact_prefix={crashes}{name}-",
                scratch] + ([corpus] if inputs else [])
        env = {k: v for k, v in os.environ.items() if not k.endswith("SAN_OPTIONS")}
        done = subprocess.run(args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, errors="replace", env=env,
                              check=False)
    print(f"# seed {seed}, {seconds} s")
    print(f"{'' if inputs else 'not '}ok 1 - {name} has a corpus ({inputs} inputs)")
    print(f"{'not ' if done.returncode else ''}ok 2 - no crash in {seconds} s")
    lines = done.stdout.splitlines()
    keep = lines[-80:] if done.returncode else [x for x in lines if "number_of_executed" in x]
    print("".join(f"# {line}\n" for line in keep) + "1..2")
    return done.returncode != 0 or not inputs


sys.exit(main(*sys.argv[1:]))
