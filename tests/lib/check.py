#!/usr/bin/env python3
"""`make check`: builds, runs every test program, counts TAP, cleans up. tests/README.md is the
manual. The last line is "N passed, N failed, N skipped"; the exit status is 0 only when something
passed and nothing failed."""
import concurrent.futures
import fnmatch
import glob
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

import sandbox

SOURCE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
JOBS = int(os.environ.get("TIDEMARK_JOBS") or 2)
TIMEOUT_S = 300
CAMPAIGN_FACTOR = 12
STOP_S = 90  # how long a test may take to clean up after SIGTERM


class Test:
    """One test program. kind is the build variant it runs against (release, asan, tsan) or ""."""

    def __init__(self, name, command, variant="", timeout_s=TIMEOUT_S, alone=False, env=None):
        self.name, self.command, self.variant = name, command, variant
        self.timeout_s, self.alone, self.env = timeout_s, alone, env or {}


class Totals:
    def __init__(self):
        self.passed = self.failed = self.skipped = 0
        self.skips, self.failures = [], []


def campaign():
    return os.environ.get("TIDEMARK_CAMPAIGN") == "1"


# --- finding tests --------------------------------------------------------------------------------
def directives(path):
    """`check: build=asan,tsan timeout=60 alone` in the first 40 lines of a test's source."""
    found = {}
    with open(path, encoding="utf-8") as file:
        for line in file.readlines()[:40]:
            match = re.search(r"\bcheck: ([\w=, ]+)", line)
            for word in match.group(1).split() if match else ():
                key, _, value = word.partition("=")
                if key in ("build", "campaign", "timeout", "alone"):
                    found[key] = value or "1"
    return found


def without_aslr(variant):
    """TSan of gcc 12 cannot place its shadow beside every random layout of this kernel."""
    return ["setarch", "-R"] if variant == "tsan" else []


def unit_tests():
    for path in sorted(glob.glob("tests/unit/t_*.c")):
        words = directives(path)
        for variant in words.get("build", "asan").split(","):
            program = f"build/{variant}/{path[:-2]}"
            name = path[:-2] if variant == "asan" else f"{path[:-2]} ({variant})"
            yield Test(name, without_aslr(variant) + [program], variant,
                       int(words.get("timeout", TIMEOUT_S)), "alone" in words)


def script_tests():
    for path in sorted(glob.glob("tests/*/t_*.py") + glob.glob("tests/*/t_*.sh")):
        words = directives(path)
        own = "asan" if path.split("/")[1] in ("cli", "cluster", "pg", "s3", "sim") else "release"
        variants = words.get("build", own).split(",")
        if campaign():
            variants += filter(None, words.get("campaign", "").split(","))
        for variant in variants:
            name = path if variant == own else f"{path} ({variant})"
            yield Test(name, without_aslr(variant) + [os.path.abspath(path)], variant,
                       int(words.get("timeout", TIMEOUT_S)), "alone" in words)


def header_tests():
    headers = sorted(glob.glob("io/*.h") + glob.glob("agent/*.h") + glob.glob("tests/*.h"))
    yield Test("headers", ["python3", "tests/lib/headers.py", *headers])


def fuzz_tests():
    for path in sorted(glob.glob("build/fuzz/fuzz_*")):
        if os.access(path, os.X_OK) and "." not in os.path.basename(path):
            name = os.path.basename(path)
            yield Test(f"fuzz/{name}", ["python3", "tests/lib/fuzz.py", path,
                                        f"tests/fuzz/corpus/{name[5:]}"])


def demo_tests():
    if os.path.exists("tests/demo.py"):
        for fs, variant in (("ext4", "release"), ("xfs", "asan")):
            yield Test(f"demo ({fs})", ["tests/demo.py", "--tap"], variant, 600,
                       env={"TIDEMARK_DEMO_FS": fs})
        yield Test("demo (s3)", ["tests/demo.py", "--tap", "--store=s3"], "release", 600,
                   env={"TIDEMARK_DEMO_CHAPTERS": "3" if campaign() else "1"})


def all_tests():
    yield from header_tests()
    deep = campaign()
    yield Test("tidy", ["tests/tidy.sh"] + ([] if deep else ["--shallow"]), timeout_s=900)
    yield from unit_tests()
    yield from script_tests()
    yield from fuzz_tests()
    yield from demo_tests()


def chosen(tests, patterns):
    for test in tests:
        if not patterns or any(p in test.name or fnmatch.fnmatch(test.name, p) for p in patterns):
            yield test


# --- building -------------------------------------------------------------------------------------
def make(*args):
    return subprocess.run(["make", "-s", "--no-print-directory", f"-j{JOBS}", "DEV=1", *args],
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, errors="replace", check=False)


def build(totals, patterns):
    """Builds what the chosen tests need. Fuzz targets are found after they are built."""
    tsan = [t.command[-1] for t in unit_tests() if t.variant == "tsan"]
    if any(t.variant == "tsan" for t in script_tests()):
        tsan += ["build/tsan/tests/s3/tool_pipes", "build/tsan/tests/s3/tool_catalog"]
    for directory in ("build/tidy", "build/fuzz/crashes"):
        os.makedirs(directory, exist_ok=True)
    steps = [("release", ["all"]), ("asan", ["SAN=asan", "all", "unit"])]
    both = [*unit_tests(), *script_tests()]
    if tsan and (not patterns or any(t.variant == "tsan" for t in chosen(both, patterns))):
        steps.append(("tsan", ["SAN=tsan", *tsan]))
    if not patterns or any("fuzz" in p for p in patterns):
        steps.append(("fuzz", ["fuzz"]))
    if any(t.variant == "release" for t in unit_tests()):
        steps[0][1].append("unit")
    for name, args in steps:
        start = time.monotonic()
        print(f"building {name} …", flush=True)
        done = make(*args)
        report(totals, f"build {name}", f"{'not ' if done.returncode else ''}ok 1 - make\n1..1\n"
               + done.stdout, done.returncode, time.monotonic() - start)
        if done.returncode:
            return False
    return True


# --- running --------------------------------------------------------------------------------------
class Runner:
    """Starts tests in sessions of their own, so that a test that hangs can be stopped whole."""

    def __init__(self):
        self.running, self.lock, self.stopping = {}, threading.Lock(), False

    def environment(self, test, reports):
        env = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL")}
        env["TIDEMARK_BUILD"] = os.path.join(SOURCE, "build", test.variant or "release")
        # Reports go to files: those of a daemon or of a server's archive_command count too.
        common = f"log_path={reports}/report"
        env["ASAN_OPTIONS"] = f"{common}:exitcode=99:detect_stack_use_after_return=0"
        env["UBSAN_OPTIONS"] = f"{common}:print_stacktrace=1:exitcode=99"
        env["TSAN_OPTIONS"] = f"{common}:exitcode=99:halt_on_error=1"
        env["LSAN_OPTIONS"] = "exitcode=99"
        return {**env, **test.env}

    def run(self, test):
        """(output, exit status or text, seconds)."""
        try:
            return ("", "stopped", 0.0) if self.stopping else self.start_and_wait(test)
        except OSError as error:  # one program that cannot be executed must not end the others
            return "", str(error), 0.0

    def start_and_wait(self, test):
        factor = CAMPAIGN_FACTOR if campaign() else 1
        reports = tempfile.mkdtemp(prefix="tidemark-reports-", dir="/var/tmp")
        os.chmod(reports, 0o1777)
        start = time.monotonic()
        with tempfile.TemporaryFile() as out:
            process = subprocess.Popen(test.command, stdin=subprocess.DEVNULL, stdout=out,
                                       stderr=out, start_new_session=True,
                                       env=self.environment(test, reports))
            with self.lock:
                self.running[process.pid] = process
            status = self.wait(process, test.timeout_s * factor)
            with self.lock:
                del self.running[process.pid]
            out.seek(0)
            text = out.read().decode("utf-8", "replace")
        for path in sorted(glob.glob(reports + "/report*")):
            with open(path, encoding="utf-8", errors="replace") as file:
                text += "\n" + file.read()[:8000]
            status = status or "sanitizer report"
        shutil.rmtree(reports, ignore_errors=True)
        return text, status, time.monotonic() - start

    def wait(self, process, timeout_s):
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.stop(process)
            return f"stopped after {timeout_s} s"

    def stop(self, process):
        for number, wait_s in ((signal.SIGTERM, STOP_S), (signal.SIGKILL, 10)):
            try:
                os.killpg(process.pid, number)
                process.wait(wait_s)
            except ProcessLookupError:
                process.wait()
            except subprocess.TimeoutExpired:
                continue
            return

    def stop_all(self):
        self.stopping = True
        with self.lock:
            processes = list(self.running.values())
        for process in processes:
            try:
                os.killpg(process.pid, signal.SIGTERM)
            except ProcessLookupError:
                pass
        end = time.monotonic() + STOP_S
        for process in processes:
            while process.poll() is None and time.monotonic() < end:
                time.sleep(0.05)
            if process.poll() is None:
                self.stop(process)


def report(totals, name, text, status, seconds):
    """Counts the TAP of one program and prints its line; a failure shows the whole output."""
    passed = failed = skipped = 0
    planned, seen, whys = None, 0, []
    for line in text.splitlines():
        plan = re.match(r"1\.\.(\d+)(?:\s*# SKIP\s*(.*))?", line, re.IGNORECASE)
        result = re.match(r"(not )?ok\b(?:\s+\d+)?(.*)", line)
        if plan:
            planned = int(plan.group(1))
            if planned == 0:
                skipped += 1
                whys.append(plan.group(2) or "no reason given")
        elif result:
            seen += 1
            why = re.search(r"#\s*SKIP\S*\s*(.*)", result.group(2), re.IGNORECASE)
            if why:
                skipped += 1
                whys.append(why.group(1) or "no reason given")
            elif result.group(1):
                failed += 1
            else:
                passed += 1
        elif line.startswith("Bail out!"):
            failed += 1
    problems = []
    if planned is None or (planned and planned != seen):
        problems.append(f"planned {planned} tests, saw {seen}")
    if status and not failed:
        problems.append(f"ended with {status}")
    failed += bool(problems)
    totals.passed += passed
    totals.failed += failed
    totals.skipped += skipped
    totals.skips += [(name, why) for why in dict.fromkeys(whys)]
    word = "FAIL" if failed else "ok  " if passed else "skip"
    print(f"{word} {name}: {passed} passed, {failed} failed, {skipped} skipped, {seconds:.1f} s",
          flush=True)
    if failed:
        totals.failures.append(name)
        print("".join(f"     | {line}\n" for line in text.splitlines()[-400:]), end="")
        print("".join(f"     {problem}\n" for problem in problems), end="", flush=True)


def run_all(totals, tests, runner):
    tests = list(tests)
    together = [t for t in tests if not t.alone]
    with concurrent.futures.ThreadPoolExecutor(JOBS) as pool:
        waiting = {pool.submit(runner.run, test): test for test in together}
        for future in concurrent.futures.as_completed(waiting):
            if not runner.stopping:
                report(totals, waiting[future].name, *future.result())
    for test in tests:
        if test.alone and not runner.stopping:
            report(totals, test.name, *runner.run(test))


def reap(when):
    left = sandbox.reap_stale(lambda text: print(f"({when}: {text})", flush=True))
    for item in left:
        print(f"({when}: could not remove {item})")


def summary(totals, start):
    if totals.skips:
        print("\nSkipped:")
        for name, why in totals.skips:
            print(f"  {name}: {why}")
    if totals.failures:
        print("\nFailed: " + ", ".join(totals.failures))
    print(f"\n{time.monotonic() - start:.0f} s")
    print(f"{totals.passed} passed, {totals.failed} failed, {totals.skipped} skipped", flush=True)


def main(args):
    os.chdir(SOURCE)
    if "--campaign" in args:
        args.remove("--campaign")
        os.environ["TIDEMARK_CAMPAIGN"] = "1"
    built = "--built" in args
    if built:
        args.remove("--built")
    patterns = args or os.environ.get("TESTS", "").split()
    totals, runner, start = Totals(), Runner(), time.monotonic()

    def interrupt(number, _frame):
        # The second Ctrl-C has to wait too: cleaning must not be cut short.
        for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(sig, signal.SIG_IGN)
        print("\nstopping: the running tests clean up …", flush=True)
        runner.stop_all()
        totals.failed += 1
        totals.failures.append(f"stopped by signal {number}")

    for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(sig, interrupt)
    # As the user who called, so that build/ is theirs; what runs below it needs root.
    good = built or build(totals, patterns)
    if good and not built and not runner.stopping:
        sandbox.become_root("--built")
    reap("before")
    if good and not runner.stopping:
        run_all(totals, chosen(all_tests(), patterns), runner)
    reap("after")
    summary(totals, start)
    return 0 if totals.passed and not totals.failed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
