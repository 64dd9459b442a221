"""What a restore costs: wall time, CPU-seconds of all its processes (a cgroup) and of the kernel's
threads, bytes of devices. And the state in which every run begins: cold caches, warm free memory.
"""
import os
import subprocess
import time

TICKS = os.sysconf("SC_CLK_TCK")
GROUP_PREFIX = "tidemark-bench-"


def cgroup_root():
    """Where cgroup2 is mounted. cpu.stat is there whether the cpu controller is enabled or not."""
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        for line in file:
            left, _, right = line.partition(" - ")
            if right.split()[0] == "cgroup2":
                return left.split()[4]
    raise RuntimeError("cgroup2 is not mounted: CPU-seconds of daemons cannot be counted")


class Group:
    """A cgroup: every process started in it, and every child of these, is counted, also when it
    becomes a daemon. box removes it."""

    def __init__(self, box, name):
        root = cgroup_root()
        remove_stale_groups(root)
        self.path = os.path.join(root, f"{GROUP_PREFIX}{os.getpid()}-{name}")
        os.makedirs(self.path, exist_ok=True)
        box.before_clean.append(self.remove)

    def command(self, args, user=None):
        """args, to be run inside the group, as user."""
        if user:
            args = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--", *args]
        return ["sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', self.path, *args]

    def cpu_s(self):
        with open(self.path + "/cpu.stat", encoding="ascii") as file:
            return int(file.readline().split()[1]) / 1e6

    def remove(self):
        try:
            os.rmdir(self.path)
        except OSError:
            pass  # processes are still in it: remove_stale_groups() finds it next time


def remove_stale_groups(root):
    for name in os.listdir(root):
        pid = name.removeprefix(GROUP_PREFIX).split("-")[0]
        if name.startswith(GROUP_PREFIX) and not os.path.exists(f"/proc/{pid}"):
            try:
                os.rmdir(os.path.join(root, name))
            except OSError:
                pass


def _stat(pid):
    """Fields of /proc/PID/stat from the third on (proc(5)); None when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()
    except OSError:
        return None


def process_cpu_s(pids):
    """User and system time of these processes."""
    found = [fields for fields in map(_stat, pids) if fields]
    return sum(int(x[11]) + int(x[12]) for x in found) / TICKS


def kernel_threads():
    """CPU seconds of each of the kernel's own threads: loop devices, write-back, journals. Of the
    whole machine: on a busy one others' work is in it."""
    found = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        fields = _stat(name)
        if fields and int(fields[1]) == 2:
            found[name, fields[19]] = (int(fields[11]) + int(fields[12])) / TICKS
    return found


def kernel_cpu_s(before):
    """Since kernel_threads() gave before. A worker that ended meanwhile is lost; they stay for
    minutes when they are idle."""
    return sum(cpu - before.get(key, 0) for key, cpu in kernel_threads().items())


def machine_s():
    """(busy, stolen) seconds of all processors."""
    with open("/proc/stat", encoding="ascii") as file:
        fields = [int(x) for x in file.readline().split()[1:]]
    return (sum(fields[:3]) + sum(fields[5:8])) / TICKS, fields[7] / TICKS


def device_bytes(device):
    """(read, written) since boot."""
    number = os.stat(device).st_rdev
    path = f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/stat"
    with open(path, encoding="ascii") as file:
        fields = file.read().split()
    return int(fields[2]) * 512, int(fields[6]) * 512


def tree_bytes(path):
    """Bytes of all files below path."""
    return sum(os.lstat(os.path.join(top, name)).st_size
               for top, _, names in os.walk(path) for name in names)


def cold_and_warm(directory, warm_bytes):
    """Nothing cached, and warm_bytes of free memory touched a moment ago. On virtual machines free
    pages go back to the host; their next first touch costs up to 2.9 CPU-seconds a GiB, which
    hits buffered copies and not direct I/O. A server that has been up for a while does not see
    that, so it must not decide a comparison. It holds for some seconds only: on a machine so busy
    that a run takes longer, buffered copies pay again, and only quiet runs compare fairly."""
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as file:
        file.write("3\n")
    path = os.path.join(directory, "warm")
    with open(path, "w+b", buffering=0) as file:
        os.unlink(path)
        file.truncate(warm_bytes)
        buffer = bytearray(1 << 20)
        while file.readinto(buffer):
            pass


def warm_bytes(wanted):
    """wanted, but never more than 60 % of what is free."""
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return min(wanted, int(line.split()[1]) * 1024 * 6 // 10)
    return wanted


def fill(device, size):
    """Zeros, so that no run pays for blocks that the file below a loop device has not got yet, or
    for a thin device's."""
    subprocess.run(["dd", "if=/dev/zero", f"of={device}", "bs=1M", f"count={size >> 20}",
                    "oflag=direct", "conv=fsync", "status=none"], check=True)


def fio(device, kind, size, depth=8):
    """Seconds for size bytes of device, O_DIRECT, 1 MiB requests, depth at a time."""
    started = time.monotonic()
    subprocess.run(["fio", "--name=reference", f"--filename={device}", f"--rw={kind}", "--bs=1M",
                    "--direct=1", "--ioengine=libaio", f"--iodepth={depth}", f"--size={size}",
                    "--allow_file_create=0"]
                   + (["--end_fsync=1"] if kind == "write" else ["--readonly"]), check=True,
                   stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def start(args, log, **options):
    """Popen with both outputs in the file log."""
    with open(log, "ab") as file:
        return subprocess.Popen(args, stdin=subprocess.DEVNULL, stdout=file,
                                stderr=subprocess.STDOUT, cwd="/", **options)


class Meter:
    """Differences of everything since the Meter was made."""

    def __init__(self, group, target, repository=None, servers=()):
        self.group, self.target, self.repository = group, target, repository
        self.servers = list(servers)
        self.threads = kernel_threads()
        self.first = self._read()

    def _read(self):
        busy, stolen = machine_s()
        devices = [device_bytes(self.target)] + (
            [device_bytes(self.repository)] if self.repository else [])
        return {"s": time.monotonic(), "process_cpu_s": self.group.cpu_s(),
                "server_cpu_s": process_cpu_s(self.servers),
                "kernel_cpu_s": kernel_cpu_s(self.threads),
                "machine_busy_s": busy, "machine_stolen_s": stolen,
                "target_written": devices[0][1], "target_read": devices[0][0],
                "repository_read": devices[1][0] if self.repository else 0}

    def read(self):
        now = self._read()
        now = {key: now[key] - value for key, value in self.first.items()}
        now["cpu_s"] = now["process_cpu_s"] + now["server_cpu_s"] + now["kernel_cpu_s"]
        return {key: round(value, 4) for key, value in now.items()}
