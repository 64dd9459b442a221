#!/usr/bin/env python3
"""The rules of the source that a program can check. One test a rule; each line of a failure is
`file:line: what`. clang-tidy's results are kept in build/tidy by content, so that a second run
checks only what changed."""
import concurrent.futures
import functools
import glob
import hashlib
import os
import re
import shutil
import subprocess
import sys

FILE_LINES, FUNCTION_LINES, COLUMNS = 600, 70, 100

# Third-party header (regular expression) -> the files that may include it.
WRAPPERS = {
    r"liburing(/.*)?\.h": ("io/ring.c", "io/ring.h"),
    r"curl/.*": ("io/http_curl.h",),
    r"lz4.*\.h": ("io/codec.c",),
    r"openssl/.*": ("io/crypt.c",),
    r"xxh.*\.h": ("io/hash.c",),
    r"blkid/.*": ("io/device.c",),
    r"bpf/.*": ("io/marks.c", "io/marks.bpf.c"),
    r"(libpq-fe|postgresql/.*|pg_config.*)\.h": ("agent/pg_child.c", "agent/pg_try.c"),
    r"ini\.h": ("agent/conf.c",),
    r"microhttpd\.h": ("agent/api.c",),
    r"gnutls/.*": ("agent/tls.c",),
    r"jansson\.h": ("agent/json.h",),
}
# Directory -> what it may include of ours: dependencies point down only.
LAYERS = {"io": ("io/",), "agent": ("agent/", "io/"), "tools": ("tools/", "agent/", "io/"),
          "bench": ("bench/", "io/"), "tests": ("tests/", "tools/", "agent/", "io/")}
BANNED = {
    "strcpy": "snprintf", "strcat": "snprintf", "sprintf": "snprintf", "vsprintf": "vsnprintf",
    "strncpy": "snprintf or memcpy", "strtok": "strchr or strspn", "gets": "getline",
    "alloca": "a fixed buffer", "system": "an exec'd child", "popen": "an exec'd child",
    "atoi": "strtoul with checks", "atol": "strtoul with checks", "tmpnam": "mkstemp",
    "mktemp": "mkstemp", "strerror": "strerror_r", "localtime": "localtime_r", "gmtime": "gmtime_r",
}
# A test works on names and numbers that it made itself.
TEST_MAY = ("strcpy", "strcat", "sprintf", "atoi", "system", "popen")
# Traces of the machine or the process a change was made on do not belong in the tree.
TRACES = r"/work/|/home/[a-z]|/root/(?!\.)|\b(?:issues|farm)-(?:show|list)\b"

count = failed = 0


def result(rule, problems):
    global count, failed
    count += 1
    problems = list(problems)
    print(f"{'not ' if problems else ''}ok {count} - {rule}", flush=True)
    if problems:
        failed += 1
        for problem in problems[:60]:
            print(f"# {problem}")
        if len(problems) > 60:
            print(f"# … and {len(problems) - 60} more")


def tracked():
    """Every file of the tree: what git tracks and what it would track."""
    done = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], check=False, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    files = done.stdout.split("\n") if done.returncode == 0 else glob.glob("**/*", recursive=True)
    return sorted(f for f in files if os.path.isfile(f) and not f.startswith("build/"))


def read(path):
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def without_text(source):
    """C source with comments, strings and characters blanked, line numbers kept."""
    pattern = r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\''
    return re.sub(pattern, lambda m: re.sub(r"[^\n]", " ", m.group()), source, flags=re.DOTALL)


def lines_with(pattern, text):
    for number, line in enumerate(text.split("\n"), 1):
        for match in re.finditer(pattern, line):
            yield number, match


def wrappers(sources):
    for path in sources:
        if path.startswith("tests/"):
            continue
        for number, match in lines_with(r"^\s*#\s*include <([^>]+)>", read(path)):
            for header, owners in WRAPPERS.items():
                if re.fullmatch(header, match.group(1)) and path not in owners:
                    yield f"{path}:{number}: <{match.group(1)}> belongs into {' or '.join(owners)}"


def layers(sources):
    for path in sources:
        allowed = LAYERS.get(path.split("/")[0])
        for number, match in lines_with(r'^\s*#\s*include "([^"]+)"', read(path)):
            if allowed and not match.group(1).startswith(allowed):
                yield f'{path}:{number}: includes "{match.group(1)}"'


def banned(sources):
    pattern = r"(?<![\w.>])(" + "|".join(BANNED) + r")\s*\("
    for path in sources:
        for number, match in lines_with(pattern, without_text(read(path))):
            name = match.group(1)
            if path.startswith("tests/") and name in TEST_MAY:
                continue
            yield f"{path}:{number}: {name}(): use {BANNED[name]}"


def typedefs(sources):
    for path in sources:
        for number, _ in lines_with(r"\btypedef\s+(struct|union|enum)\b", without_text(read(path))):
            yield f"{path}:{number}: typedef of a struct, union or enum"


def header_data(sources):
    for path in sources:
        if path.endswith(".h") and not path.startswith("tests/"):
            for number, _ in lines_with(r"^static (?!inline)(?!.*\binline\b)", read(path)):
                yield f"{path}:{number}: static data or function in a header"


def file_sizes(files):
    for path in files:
        if path.endswith((".c", ".h", ".py", ".sh")):
            lines = read(path).count("\n")
            if lines > FILE_LINES:
                yield f"{path}:1: {lines} lines, limit {FILE_LINES}"


def function_sizes(sources):
    """clang-format puts a function's braces, and only those, alone into column 0."""
    for path in sources:
        start = None
        for number, line in enumerate(read(path).split("\n"), 1):
            if line == "{":
                start = number
            elif line == "}" and start:
                if number - start - 1 > FUNCTION_LINES:
                    yield f"{path}:{start}: {number - start - 1} lines, limit {FUNCTION_LINES}"
                start = None


def columns(files):
    for path in files:
        if path.endswith((".c", ".h", ".py", ".sh")):
            for number, line in enumerate(read(path).split("\n"), 1):
                if len(line.expandtabs(4)) > COLUMNS:
                    yield f"{path}:{number}: {len(line)} columns, limit {COLUMNS}"


def leftovers(files):
    pattern = r"\b(FIXME|XXX|HACK)\b|\bTODO\b(?!\(\w+\): decision needed)"
    for path in files:
        if path.endswith((".c", ".h", ".py", ".sh", "Makefile")) and path != "tests/lib/tidy.py":
            for number, match in lines_with(pattern, read(path)):
                yield f"{path}:{number}: {match.group()}"


def traces(files):
    for path in files:
        if path == "tests/lib/tidy.py" or path.startswith(("tests/golden/", "tests/fuzz/corpus/")):
            continue
        for number, match in lines_with(TRACES, read(path)):
            yield f"{path}:{number}: {match.group()}"


def exit_statuses():
    """README's table and err.c's agree."""
    statuses = re.findall(r'\[ERR_\w+\] = \{"(\w+)", (\d+)\}', read("io/err.c"))
    if not statuses:
        yield "io/err.c: no table of exit statuses found"
    for name, status in statuses:
        if not re.search(rf"^\| *{status} *\| *{name} *\|", read("README.md"), re.MULTILINE):
            yield f"README.md: no row '| {status} | {name} |' under Exit statuses"


def clang_format(sources):
    done = subprocess.run(["clang-format", "--dry-run", "-Werror", *sources], check=False,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        for line in done.stdout.split("\n"):
            if " error: " in line:
                yield line.replace("code should be clang-formatted", "run clang-format -i")


def shellcheck(files):
    shebangs = ("#!/bin/sh", "#!/bin/bash", "#!/usr/bin/env bash")
    scripts = [f for f in files if f.endswith(".sh")
               or os.access(f, os.X_OK) and read(f).startswith(shebangs)]
    done = subprocess.run(["shellcheck", "-f", "gcc", "-S", "warning", *scripts], check=False,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.stdout.split("\n")[:-1] if done.returncode else []


@functools.cache
def tidy_flags():
    done = subprocess.run(["pg_config", "--includedir"], check=False, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return ["-std=gnu17", "-D_GNU_SOURCE", "-I.", '-DTIDEMARK_VERSION="0"', "-isystem",
            done.stdout.strip() or "/usr/include/postgresql"]


def dependencies(path):
    """The headers of ours that the file sees."""
    done = subprocess.run(["gcc", "-MM", *tidy_flags(), path], check=False, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return [x for x in done.stdout.replace("\\\n", " ").split()[1:] if not x.startswith("/")]


def clang_tidy_file(path, common, analyzer):
    text = common + repr(analyzer) + "".join(read(x) for x in [path, *dependencies(path)])
    cache = f"build/tidy/{hashlib.sha256(text.encode()).hexdigest()}"
    if os.path.exists(cache):
        return []
    first = [] if path == "io/err.c" else ["-include", "tests/lib/analyzer.h"]
    done = subprocess.run(["clang-tidy", "--quiet", "--warnings-as-errors=*", path, "--", *first,
                           *tidy_flags(), *analyzer], check=False, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    if done.returncode == 0:
        with open(cache, "w", encoding="ascii"):
            pass
        return []
    lines = [x for x in done.stdout.split("\n") if " error: " in x or " warning: " in x]
    here = os.getcwd() + "/"
    return [x.replace(here, "") for x in lines] or [f"{path}: clang-tidy: exit {done.returncode}"]


def clang_tidy(sources, shallow=False):
    """Clean files are remembered by their own bytes, their headers, the flags and the checks.
    shallow: no inlining of functions and fewer paths, 0.3 s a file instead of 3 s."""
    analyzer = ["-Xclang", "-analyzer-config", "-Xclang", "mode=shallow"] if shallow else []
    os.makedirs("build/tidy", exist_ok=True)
    common = read(".clang-tidy") + read("tests/lib/analyzer.h") + repr(tidy_flags())
    # Unit tests are repetitive by nature; ASan, UBSan and their own assertions watch them.
    chosen = [f for f in sources if f.endswith(".c")
              and not f.startswith("tests/") and not f.endswith(".bpf.c")]
    with concurrent.futures.ThreadPoolExecutor(int(os.environ.get("TIDEMARK_JOBS") or 2)) as pool:
        for problems in pool.map(lambda path: clang_tidy_file(path, common, analyzer), chosen):
            yield from problems


def main(args):
    files = tracked()
    sources = [f for f in files if f.endswith((".c", ".h"))]
    named = [a for a in args if not a.startswith("-")]
    if named:
        result("clang-tidy", clang_tidy(named))
        print("1..1")
        return failed != 0
    result("third-party headers only in their wrapper", wrappers(sources))
    result("dependencies point down: tools, agent, io", layers(sources))
    result("no banned functions", banned(sources))
    result("no typedefs of structs", typedefs(sources))
    result("headers hold no static data", header_data(sources))
    result(f"no file over {FILE_LINES} lines", file_sizes(files))
    result(f"no function over {FUNCTION_LINES} lines", function_sizes(sources))
    result(f"no line over {COLUMNS} columns", columns(files))
    result("no leftover marks", leftovers(files))
    result("no traces of a developer's machine", traces(files))
    result("README lists every exit status", exit_statuses())
    result("clang-format", clang_format(sources))
    if shutil.which("shellcheck"):
        result("shellcheck", shellcheck(files))
    else:
        print(f"ok {count + 1} # SKIP shellcheck is not installed")
        globals()["count"] += 1
    if "--fast" not in args:
        shallow = "--shallow" in args
        result("clang-tidy, shallow" if shallow else "clang-tidy", clang_tidy(sources, shallow))
    print(f"1..{count}")
    return failed != 0


sys.exit(main(sys.argv[1:]))
