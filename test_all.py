"""test_all - what beostat promises, as tests

    python3 -m pytest test_all.py

Real files, sockets and processes: every test has a port of its own and a
table in a temporary folder, and ends what it started.
"""

import contextlib
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import time
import zlib

import pytest

import beostat
import libbeostat
import recvstats
import sendstats

HERE = os.path.dirname(os.path.abspath(__file__))
TOOLS = "sendstats.py", "recvstats.py", "libbeostat.py", "beostat.py"
LIMIT_S = 10.0                          # for anything to happen

# ---- fixtures: /proc of several machines -------------------------------
# Each text is in the format of the kernel that the comment names.

# 2.4.20, one CPU: four columns of ticks, meminfo with its old table on
# top, no MemAvailable; eth0 touches its count.
I686 = {
    "cpuinfo": """\
processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 8
model name\t: Pentium III (Coppermine)
stepping\t: 6
cpu MHz\t\t: 863.872
cache size\t: 256 KB
fdiv_bug\t: no
bogomips\t: 1723.59
""",
    "meminfo": """\
        total:    used:    free:  shared: buffers:  cached:
Mem:  262381568 254210048  8171520        0 21102592 150683648
Swap: 536829952  4096000 532733952
MemTotal:       256232 kB
MemFree:          7980 kB
MemShared:           0 kB
Buffers:         20608 kB
Cached:         146152 kB
SwapCached:       1000 kB
Active:         122004 kB
SwapTotal:      524248 kB
SwapFree:       520248 kB
""",
    "loadavg": "0.20 0.18 0.12 1/80 11206\n",
    "net/dev": """\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:  104503    1301    0    0    0     0          0         0   104503    1301    0    0    0     0       0          0
  eth0:1235461773 3510213   17    2    1     3          0        11 4013244571 4120551    5    0    0    91       7          0
""",
    "stat": """\
cpu  1132430 3104 220311 51234907
cpu0 1132430 3104 220311 51234907
page 5741 1808
swap 1 0
intr 1462898 1462898 0 0 0 0 3 0 0 1 0 0 0 0 0 0 0
disk_io: (2,0):(31,31,5764,0,0) (3,0):(9,9,72,0,0)
ctxt 115315
btime 1062191376
processes 86031
""",
}

# 2.6.18, two CPUs in two sockets, one core each: eight columns of ticks.
XEON = {
    "cpuinfo": "".join("""\
processor\t: %d
vendor_id\t: GenuineIntel
cpu family\t: 15
model\t\t: 4
model name\t: Intel(R) Xeon(TM) CPU 3.00GHz
stepping\t: 3
cpu MHz\t\t: 2992.703
cache size\t: 2048 KB
physical id\t: %d
siblings\t: 1
core id\t\t: 0
cpu cores\t: 1
flags\t\t: fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov
bogomips\t: 5989.%02d
clflush size\t: 64

""" % (cpu, 3 * cpu, 50 + cpu) for cpu in range(2)),
    "meminfo": """\
MemTotal:      4043516 kB
MemFree:        211344 kB
Buffers:        316292 kB
Cached:        2884532 kB
SwapCached:          0 kB
Active:        1803180 kB
SwapTotal:     2031608 kB
SwapFree:      2031504 kB
Dirty:             160 kB
Slab:           242024 kB
HugePages_Total:     0
HugePages_Free:      0
Hugepagesize:     2048 kB
""",
    "loadavg": "2.06 2.01 1.73 4/131 20712\n",
    "net/dev": """\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:94105221  331211    0    0    0     0          0         0 94105221  331211    0    0    0     0       0          0
  eth0:3121110921 22301117    0    0    0     0          0         0 2001222333 21010101    0    0    0     0       0          0
  eth1:       0       0    0    0    0     0          0         0        0       0    0    0    0     0       0          0
  sit0:       0       0    0    0    0     0          0         0        0       0    0    0    0     0       0          0
""",
    "stat": """\
cpu  17005 41 6102 1400211 2103 51 330 7
cpu0 8601 20 3001 700101 1203 50 230 3
cpu1 8404 21 3101 700110 900 1 100 4
intr 7523133 7120101 8 0 0 4 0 3 0 1 0 0 0 109 0 31313 0
ctxt 9312345
btime 1184240113
processes 20712
procs_running 3
procs_blocked 1
""",
}

# 6.18, two CPUs in one socket, no swap; ten columns of ticks.
EPYC = {
    "cpuinfo": "".join("""\
processor\t: %d
vendor_id\t: AuthenticAMD
cpu family\t: 26
model\t\t: 2
model name\t: AMD EPYC
stepping\t: 1
microcode\t: 0x1000065
cpu MHz\t\t: 2596.118
cache size\t: 1024 KB
physical id\t: 0
siblings\t: 2
core id\t\t: %d
cpu cores\t: 2
apicid\t\t: %d
fpu\t\t: yes
cpuid level\t: 28
flags\t\t: fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat
bugs\t\t: sysret_ss_attrs null_seg spectre_v1 spectre_v2
bogomips\t: 5192.23
TLB size\t: 192 4K pages
address sizes\t: 48 bits physical, 48 bits virtual
power management:

""" % (cpu, cpu, cpu) for cpu in range(2)),
    "meminfo": """\
MemTotal:       24684092 kB
MemFree:        24598216 kB
MemAvailable:   24489196 kB
Buffers:             432 kB
Cached:            13512 kB
SwapCached:            0 kB
Active:             5320 kB
Active(anon):       1352 kB
SwapTotal:             0 kB
SwapFree:              0 kB
Zswap:                 0 kB
Shmem:              8856 kB
KReclaimable:      12044 kB
Slab:              31788 kB
SReclaimable:      12044 kB
SUnreclaim:        19744 kB
VmallocTotal:   34359738367 kB
HugePages_Total:       0
HugePages_Free:        0
Hugepagesize:       2048 kB
DirectMap4k:       28672 kB
""",
    "loadavg": "0.00 0.01 0.05 1/77 2051\n",
    "net/dev": """\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:    3245      30    0    0    0     0          0         0     3245      30    0    0    0     0       0          0
  eth0: 151721133   104512    0    0    0     0          0         0  3214512   41021    0    0    0     0       0          0
""",
    "stat": """\
cpu  608 0 928 127363 38 0 9 6 0 0
cpu0 238 0 450 63747 2 0 4 2 0 0
cpu1 369 0 478 63615 36 0 4 4 0 0
intr 70713 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 1 1 14 0 0 129 11 0 23
ctxt 172333
btime 1795226462
processes 2055
procs_running 2
procs_blocked 0
softirq 41812 0 8529 3 348 5468 0 2 16392 0 11070
""",
}

# 5.10 on Arm: no MHz, no model name, no cache, no sockets.
ARM64 = {
    "cpuinfo": "".join("""\
processor\t: %d
BogoMIPS\t: 50.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x3
CPU part\t: 0xd0c
CPU revision\t: 1

""" % cpu for cpu in range(4)),
    "meminfo": EPYC["meminfo"].replace("24684092", "16384000"),
    "loadavg": "3.99 4.01 4.05 5/312 99121\n",
    "net/dev": EPYC["net/dev"].replace("  eth0:", "enP2p1s0:"),
    "stat": """\
cpu  400 0 400 4000 40 4 4 0 0 0
cpu0 100 0 100 1000 10 1 1 0 0 0
cpu1 100 0 100 1000 10 1 1 0 0 0
cpu2 100 0 100 1000 10 1 1 0 0 0
cpu3 100 0 100 1000 10 1 1 0 0 0
intr 5012
ctxt 71717
btime 1700000000
processes 3131
procs_running 5
procs_blocked 0
softirq 100 1 2 3 4 5 6 7 8 9 55
""",
}

# 4.18, 256 CPUs of which 128 to 191 are off line: ids with a hole, and
# files of many pages.
WIDE_IDS = [*range(128), *range(192, 256)]
WIDE = {
    "cpuinfo": "".join(
        EPYC["cpuinfo"].split("\n\n")[0].replace("processor\t: 0",
                                                 "processor\t: %d" % cpu)
        .replace("physical id\t: 0", "physical id\t: %d" % (cpu % 128 // 64))
        .replace("core id\t\t: 0", "core id\t\t: %d" % (cpu % 64)) + "\n\n"
        for cpu in WIDE_IDS),
    "meminfo": EPYC["meminfo"].replace("24684092", "2113929216"),
    "loadavg": "191.50 180.25 128.00 193/4013 4194303\n",
    "net/dev": EPYC["net/dev"],
    "stat": "cpu  %d 0 0 %d 0 0 0 0 0 0\n" % (
        5000000000 * len(WIDE_IDS), 7000000 * len(WIDE_IDS)) + "".join(
            "cpu%d 5000000000 0 0 7000000 0 0 0 0 0 0\n" % cpu
            for cpu in WIDE_IDS)
    + "intr 99" + " 0" * 8000 + "\nctxt 5\nbtime 1600000000\n"
    "processes 77\nprocs_running 192\nprocs_blocked 2\n",
}

# A sandbox that shows no network, no load and no per-CPU lines.
CONTAINER = {
    "cpuinfo": EPYC["cpuinfo"],
    "meminfo": "MemTotal:        2097152 kB\nMemFree:         1048576 kB\n",
    "stat": "cpu  10 0 20 300 0 0 0 0 0 0\nintr 1\nctxt 0\nbtime 0\n"
            "processes 0\nprocs_running 1\nprocs_blocked 0\n",
}


def write_proc(folder, files):
    """Make a /proc of these texts; return its path."""
    for name, text in files.items():
        path = os.path.join(str(folder), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file:
            file.write(text)
    return str(folder)


# ---- fixtures: processes and messages ----------------------------------


def free_port():
    """Return a UDP port that nobody uses now."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def wait_for(what, limit_s=LIMIT_S):
    """Return the first true value of what(); fail after the limit."""
    end = time.monotonic() + limit_s
    while True:
        value = what()
        if value:
            return value
        assert time.monotonic() < end, "waited %g s" % limit_s
        time.sleep(0.02)


def tool(name, *args, **more):
    """Run a tool to its end; return it, with text output."""
    return subprocess.run(
        [sys.executable, os.path.join(HERE, name), *map(str, args)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=30,
        universal_newlines=True, **more)


class Running:
    """Processes of a test, its port and its table."""

    def __init__(self, folder):
        self.folder, self.port = str(folder), free_port()
        self.table = os.path.join(self.folder, "table")
        self.processes, self.pids = [], []

    def start(self, name, *args, **more):
        """Start a tool in the foreground; return the process."""
        process = subprocess.Popen(
            [sys.executable, os.path.join(HERE, name), *map(str, args)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            universal_newlines=True, **more)
        self.processes.append(process)
        return process

    def recvstats(self, *args, **more):
        """Start recvstats on the port and the table; return it."""
        process = self.start("recvstats.py", "-f", "-p", self.port,
                             "--table", self.table, *args, **more)
        first = process.stderr.readline()
        assert "slots of" in first, first + process.stderr.read()
        return process

    def sendstats(self, *args, **more):
        """Start an agent of this port; return it."""
        return self.start("sendstats.py", "-f", "-p", self.port, *args,
                          **more)

    def beostat(self, *args, **more):
        """Run beostat on the table to its end."""
        return tool("beostat.py", "--table", self.table, *args, **more)

    def send(self, *messages):
        """Send datagrams to recvstats."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for message in messages:
                sock.sendto(message, ("127.0.0.1", self.port))

    def open(self):
        """Return the table's Cluster."""
        return libbeostat.open(self.table)

    def wait_up(self, number):
        """Return the node once it is up."""
        def look():
            with contextlib.suppress(libbeostat.BeostatError):
                with self.open() as cluster:
                    node = cluster.node(number)
                    return node.state == "up" and node
        return wait_for(look)

    def wait_count(self, counter, count=1):
        """Wait until a counter of recvstats has reached a count."""
        with self.open() as cluster:
            wait_for(lambda: getattr(cluster.status, counter) >= count)

    def end(self):
        """End all that was started."""
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self.processes:
            process.kill()
            process.communicate()


@pytest.fixture
def running(tmp_path):
    """Processes, ended when the test is."""
    running = Running(tmp_path)
    yield running
    running.end()


@pytest.fixture
def receiver(tmp_path):
    """A Receiver on a table of its own, without a socket."""
    return new_receiver(tmp_path)


def new_receiver(folder, *options):
    """Return a Receiver whose log is the list receiver.lines."""
    args = recvstats.parse_args(["--table", os.path.join(str(folder), "t"),
                                 *options])
    table = recvstats.Table(args.table, args.nodes, args.port)
    table.adopt()
    if not table.slots:
        table.make((args.nodes or 64) + 1, recvstats.FIRST_SLOT_BYTES)
    lines = []
    receiver = recvstats.Receiver(table, args, lines.append)
    receiver.lines = lines
    return receiver


def close(receiver):
    """Let go of a receiver's table, as the end of its process would."""
    table = receiver.table
    mapped = table.view.obj
    table.words.release()
    table.view.release()
    mapped.close()
    os.close(table.fd)


def feed(receiver, message, address="10.0.0.1", now=None, port=4000):
    """Give a receiver a datagram; return the counter's name."""
    receiver.message[:len(message)] = message
    cause = receiver.accept(len(message), (address, port),
                            time.monotonic() if now is None else now)
    receiver.table.counts[cause] += 1
    return recvstats.CAUSES[cause]


BODY = sendstats.Sampler("/proc", 0, 1.0).take(sendstats.SAMPLE)[40:-4]


def message(node=0, sequence=1, start=1000, kind=sendstats.SAMPLE,
            period_s=1.0, body=BODY, time_s=1e9):
    """Return a message of this machine's values, or of another body."""
    return sendstats.pack_message(
        (node, kind, start, sequence, period_s, time_s), body)


def decode(data, number=0):
    """Return the Node of a message."""
    slot = libbeostat.SLOT_STRUCT.pack(
        2, time.monotonic(), time.time(), 1, 1, 0, bytes([10, 0, 0, 1]),
        len(data), 0, 4000, 0) + data
    node = libbeostat.Node(number, slot, time.monotonic())
    libbeostat.check(node.message, node.time_s)
    return node


def sample_of(folder, files, later=None):
    """Return the Node that an agent makes of a /proc, read twice.

    later  the files that have changed at the second time
    """
    root = write_proc(folder, files)
    sampler = sendstats.Sampler(root, 0, 1.0)
    if later:
        write_proc(folder, later)
        sampler.taken = time.monotonic() - 1.0
    return decode(sampler.take(sendstats.SAMPLE))


# ---- layouts pinned ----------------------------------------------------


def part(file, name):
    """Return one part of a file: the text behind its `# ---- name` rule."""
    with open(os.path.join(HERE, file)) as source:
        parts = re.split(r"^# ---- (.+?) -+$", source.read(), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2]))[name].strip()


SHARED = (
    ("layout: rows", "sendstats.py", "recvstats.py"),
    ("layout: rows", "sendstats.py", "libbeostat.py"),
    ("layout: header", "sendstats.py", "recvstats.py"),
    ("layout: header", "sendstats.py", "libbeostat.py"),
    ("layout: records", "sendstats.py", "libbeostat.py"),
    ("layout: table", "recvstats.py", "libbeostat.py"),
)


@pytest.mark.parametrize("name, first, other", SHARED)
def test_copies_are_one_text(name, first, other):
    assert part(first, name) == part(other, name)


def test_functions_of_both_daemons_are_one_text():
    import inspect
    for name in "open_signals", "daemonize", "write_pid", "number_in":
        assert (inspect.getsource(getattr(sendstats, name))
                == inspect.getsource(getattr(recvstats, name))), name


def test_header_bytes_are_for_ever():
    data = message(node=7, sequence=9, start=1234567, period_s=0.5,
                   time_s=2.0, body=b"")
    assert data.hex() == (
        "42454f01" "2c000000" "07000000" "0100" "0100" "87d6120000000000"
        "09000000" "0000003f" "0000000000000040" + data[-4:].hex())
    assert struct.unpack("<I", data[-4:])[0] == zlib.crc32(data[:-4])


@pytest.mark.parametrize("rows, size, offsets", [
    (sendstats.HEADER, 40, {"node": 8, "start_us": 16, "time_s": 32}),
    (sendstats.NODE, 550, {"hostname": 0, "vendor": 144, "mhz": 224,
                           "boot_time_s": 242, "user_ticks": 282,
                           "busy_fraction": 362, "one": 366,
                           "total_bytes": 390, "block_bytes": 462,
                           "cost_us": 530, "interfaces": 548}),
    (sendstats.ONE_CPU, 20, {"busy": 2, "idle_ticks": 16}),
    (sendstats.INTERFACE, 112, {"tx_bytes": 56, "rx_bytes_per_s": 96}),
    (recvstats.SLOT, 64, {"heard_s": 8, "address": 48, "port": 60}),
    (recvstats.TABLE_HEADER, 204, {"word": 8, "retired": 20, "slots": 28,
                                   "heartbeat_s": 56, "received": 72}),
])
def test_offsets_are_for_ever(rows, size, offsets):
    record, offset = sendstats.layout(rows)
    assert record.size == size
    assert {field: offset[field] for field in offsets} == offsets


def test_message_of_eight_cpus_and_three_interfaces_fits_one_frame():
    mac = 16
    size = 40 + 550 + 8 * 20 + 3 * 112 + 4 + mac
    assert size <= 1472


# ---- parse -------------------------------------------------------------

MACHINES = (
    # why, files, {record: {field: want}}
    ("2.4.20, one CPU", I686, {
        "processor": {"vendor": "GenuineIntel", "mhz": 863.872,
                      "cache_kb": 256, "bogomips": 1723.59,
                      "sockets": None, "cores": None},
        "kernel": {"boot_time_s": 1062191376, "interrupts": 1462898,
                   "running": None, "blocked": None},
        "cpu": {"user_ticks": 1132430, "idle_ticks": 51234907,
                "iowait_ticks": None, "steal_ticks": None},
        "load": {"one": 0.2, "total": 80, "last_pid": 11206},
        "memory": {"total_bytes": 256232 * 1024, "available_bytes": None,
                   "swap_free_bytes": 520248 * 1024},
        "agent": {"cpus": 1, "interfaces": 2, "flags": 0}}),
    ("2.6.18, two sockets", XEON, {
        "processor": {"model": "Intel(R) Xeon(TM) CPU 3.00GHz",
                      "sockets": 2, "cores": 2, "cache_kb": 2048},
        "kernel": {"running": 2, "blocked": 1, "forks": 20712},
        "cpu": {"steal_ticks": 7, "guest_ticks": None},
        "load": {"active": 3},
        "memory": {"cached_bytes": 2884532 * 1024, "shared_bytes": None},
        "agent": {"cpus": 2, "interfaces": 4}}),
    ("6.18, one socket", EPYC, {
        "processor": {"sockets": 1, "cores": 2, "mhz": 2596.118},
        "cpu": {"guest_nice_ticks": 0},
        "memory": {"available_bytes": 24489196 * 1024,
                   "reclaimable_bytes": 12044 * 1024,
                   "swap_total_bytes": 0},
        "agent": {"cpus": 2, "interfaces": 2}}),
    ("5.10, Arm", ARM64, {
        "processor": {"vendor": "0x41", "model": "", "mhz": None,
                      "cache_kb": None, "bogomips": 50.0, "sockets": None},
        "agent": {"cpus": 4}}),
    ("4.18, 192 of 256 CPUs", WIDE, {
        "processor": {"sockets": 2, "cores": 128},
        "kernel": {"context_switches": 5, "forks": 77, "blocked": 2},
        "cpu": {"user_ticks": 960000000000},
        "load": {"one": 191.5, "last_pid": 4194303},
        "agent": {"cpus": 192}}),
    ("a container", CONTAINER, {
        "load": {"one": None, "total": None},
        "memory": {"total_bytes": 2147483648, "buffers_bytes": None,
                   "swap_total_bytes": None},
        "network": {"rx_bytes_per_s": None, "tx_bytes_per_s": None},
        "agent": {"cpus": 0, "interfaces": 0}}),
    ("nothing at all", {"empty": ""}, {
        "processor": {"model": "", "mhz": None, "cores": None},
        "kernel": {"boot_time_s": None, "running": None},
        "cpu": {"user_ticks": None, "busy_fraction": None},
        "memory": {"total_bytes": None}}),
)


@pytest.mark.parametrize("files, want", [row[1:] for row in MACHINES],
                         ids=[row[0] for row in MACHINES])
def test_sample_of_a_machine(tmp_path, files, want):
    node = sample_of(tmp_path, files)
    for record, fields in want.items():
        got = getattr(node, record)._asdict()
        assert {field: got[field] for field in fields} == fields


def test_cpu_records_go_by_id_and_wrap(tmp_path):
    node = sample_of(tmp_path, WIDE)
    assert [cpu.id for cpu in node.cpus] == WIDE_IDS
    assert node.cpus[150].id == 214
    assert node.cpus[150].user_ticks == 5000000000 % 2**32


def test_cpu_ticks_sum_to_all_time(tmp_path):
    node = sample_of(tmp_path, XEON)
    assert node.cpus[0][2:] == (8601, 20, 3001 + 50 + 230 + 3, 700101 + 1203)


def test_interface_name_may_touch_its_count(tmp_path):
    lo, eth0 = sample_of(tmp_path, I686).interfaces
    assert eth0[:9] == ("eth0", 1235461773, 3510213, 17, 2, 1, 3, 0, 11)
    assert eth0[9:] == (4013244571, 4120551, 5, 0, 0, 91, 7, 0, 0, 0)
    assert lo.name == "lo" and lo.rx_packets == 1301


def changed(files, name, *pairs):
    """Return the files with pairs of texts replaced in one of them."""
    text = files[name]
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    return {name: text}


BUSY = (
    # why, changes of EPYC's stat in one second, busy: node, CPU 0, CPU 1
    ("a quarter of one CPU", [
        ("cpu  608 0 928 127363", "cpu  633 0 928 127538"),
        ("cpu0 238 0 450 63747", "cpu0 263 0 450 63822"),
        ("cpu1 369 0 478 63615", "cpu1 369 0 478 63715")], .125, .25, 0),
    ("steal and irq are busy", [
        ("cpu1 369 0 478 63615 36 0 4 4", "cpu1 369 0 478 63665 36 20 4 34"),
    ], 0, 0, .5),
    ("iowait is idle and may go backwards", [
        ("cpu0 238 0 450 63747 2", "cpu0 248 0 450 63727 0")], 0, .1, 0),
    ("a counter was reset", [
        ("cpu0 238 0 450 63747", "cpu0 0 0 1 0")], 0, 0, 0),
)


@pytest.mark.parametrize("changes, node_busy, first, second",
                         [row[1:] for row in BUSY],
                         ids=[row[0] for row in BUSY])
def test_busy(tmp_path, changes, node_busy, first, second):
    node = sample_of(tmp_path, EPYC, changed(EPYC, "stat", *changes))
    busy = [node.cpu.busy_fraction] + [cpu.busy_fraction
                                       for cpu in node.cpus]
    assert busy == pytest.approx([node_busy, first, second], abs=.01)


def test_cpu_that_goes_off_line_shifts_nothing(tmp_path):
    lines = ARM64["stat"].splitlines(True)
    later = "".join(line for line in lines if not line.startswith("cpu1"))
    later = later.replace("cpu3 100 0 100 1000", "cpu3 150 0 100 1050")
    node = sample_of(tmp_path, ARM64, {"stat": later})
    assert [(cpu.id, cpu.busy_fraction) for cpu in node.cpus] == [
        (0, 0), (2, 0), (3, .5)]


def test_rates(tmp_path):
    later = changed(EPYC, "net/dev", ("151721133", "151821133"),
                    ("3214512", "3224512"), ("3245      30", "9245      30"))
    node = sample_of(tmp_path, EPYC, later)
    assert node.network == pytest.approx((100000, 10000), rel=.05)
    lo, eth0 = node.interfaces
    assert lo.rx_bytes_per_s == pytest.approx(6000, rel=.05)
    assert eth0.tx_bytes_per_s == pytest.approx(10000, rel=.05)


def test_rate_after_a_reset_is_zero(tmp_path):
    node = sample_of(tmp_path, EPYC, changed(
        EPYC, "net/dev", ("151721133", "12"), ("3214512", "3214513000")))
    assert node.network.rx_bytes_per_s == 0
    assert node.network.tx_bytes_per_s > 1e9


STRANGE = (
    ("stat", "cpu  1 2\ncpu0 1 2 3 4\n"),
    ("stat", "cpu  1 2 3 x 5\n"),
    ("stat", "cpu  1 2 3 4\ncpu99999 1 2 3 4\n"),
    ("stat", "\0\xff"),
    ("stat", "cpu  1 2 3 4 5 6 7 8 9 10 11 12\nctxt 1e99\n"),
    ("meminfo", "MemTotal: lots kB\n"),
    ("meminfo", "MemTotal: " + "9" * 30 + " kB\nMemFree: -5 kB\n"),
    ("loadavg", "nan inf -1 1/2 3\n"),
    ("loadavg", "0.1 0.2\n"),
    ("net/dev", "a\nb\neth0: 1 2 3\n"),
    ("net/dev", "a\nb\n\x1b[2J\xff: " + "99999999999999999999999 " * 16),
    ("cpuinfo", "cpu MHz : fast\nmodel name : \x1b[31m\xff\n"),
    ("cpuinfo", "cache size : huge\n"),
)


@pytest.mark.parametrize("name, text", STRANGE)
def test_strange_text_is_absent_and_never_fatal(tmp_path, name, text):
    node = sample_of(tmp_path, EPYC, {name: text})
    for record in [*libbeostat.PARTS, "cpus", "interfaces"]:
        for value in getattr(node, record):
            assert value is None or value == value
    if name != "meminfo":
        assert node.memory.total_bytes == 24684092 * 1024


def test_interfaces_that_do_not_fit_are_left_out_with_a_flag(tmp_path):
    line = " veth%d: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n"
    many = "a\nb\n" + "".join(line % number for number in range(701))
    node = sample_of(tmp_path, dict(EPYC, **{"net/dev": many}))
    assert len(node.message) <= 65000
    assert node.agent.flags == sendstats.CLIPPED
    assert node.agent.interfaces == len(node.interfaces) == 574
    assert node.interfaces[-1].name == "veth573"


def test_numbers_of_this_machine_are_true():
    sampler = sendstats.Sampler("/proc", 5, 1.0)
    node = decode(sampler.take(sendstats.SAMPLE))
    with open("/proc/meminfo") as file:
        total_kb = int(file.readline().split()[1])
    assert node.memory.total_bytes == total_kb * 1024
    assert node.host.hostname == os.uname().nodename
    assert node.agent.cpus == os.sysconf("SC_NPROCESSORS_ONLN")
    disk = os.statvfs("/")
    assert node.disk.blocks * node.disk.block_bytes == (
        disk.f_blocks * disk.f_frsize)
    with open("/proc/stat") as file:
        boot = re.search(r"^btime (\d+)", file.read(), re.M)
    assert abs(node.kernel.boot_time_s - int(boot.group(1))) <= 1
    assert [one.name for one in node.interfaces] == [
        line.split(":")[0].strip() for line in open("/proc/net/dev")
        if ":" in line]


NODE_LISTS = (
    ("0-3,8,n[10-12],.4,master", [0, 1, 2, 3, 8, 10, 11, 12, 4, -1]),
    ("n[007-010]", [7, 8, 9, 10]),
    ("-1", [-1]),
    ("node5, n6 ,7", [5, 6, 7]),
    ("3,3,2-4", [3, 2, 4]),
    ("n[1-2,5]", [1, 2, 5]),
)


@pytest.mark.parametrize("text, numbers", NODE_LISTS)
def test_node_list(text, numbers):
    assert libbeostat.parse_nodes(text) == numbers


@pytest.mark.parametrize("text", [
    "", ",", "5-3", "0-99999999999", "n[1-2", "n1-2]", "n[]", "n[a]", "x",
    "n[1]x", "1-2-3", "host7", "-2", "--1", "n[[1]]", "3..4", "n[1-]"])
def test_wrong_node_list_is_refused(text):
    with pytest.raises(libbeostat.BadNodeList):
        libbeostat.parse_nodes(text)


FOLDS = (
    ([0, 1, 2, 3, 8], "n[0-3,8]"),
    ([8, 8, -1], "master,n8"),
    (range(1001), "n[0-1000]"),
    (["n007", "n008", "n009", "n010"], "n[007-010]"),
    (["n1", "n01", "n001", "n2"], "n[001,01,1-2]"),
    (["a1", "b2", "b3", "login"], "a1,b[2-3],login"),
    ([], ""),
)


@pytest.mark.parametrize("nodes, text", FOLDS)
def test_fold(nodes, text):
    assert libbeostat.fold_nodes(nodes) == text


def test_expand_undoes_fold_and_no_zero_is_lost():
    import random
    chance = random.Random(11)
    for _ in range(503):
        names = {chance.choice(("n", "cn-", "")) + "%0*d" % (
            chance.randrange(1, 5), chance.choice((
                chance.randrange(12), chance.randrange(90, 111),
                chance.randrange(2000))))
            for _ in range(chance.randrange(1, 60))}
        folded = libbeostat.fold_nodes(names)
        expanded = libbeostat.expand_nodes(folded)
        assert sorted(expanded) == sorted(names), folded


# ---- table -------------------------------------------------------------


def test_table_is_dense_readable_and_small(receiver):
    found = os.stat(receiver.table.path)
    assert found.st_mode & 0o777 == 0o644
    assert found.st_size == 4096 + 65 * 2048
    assert found.st_blocks * 512 >= found.st_size


@pytest.mark.parametrize("umask", [0o077, 0o000])
def test_mode_does_not_depend_on_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        receiver = new_receiver(tmp_path)
    finally:
        os.umask(before)
    assert os.stat(receiver.table.path).st_mode & 0o777 == 0o644


def test_table_grows_while_a_reader_iterates(tmp_path):
    receiver = new_receiver(tmp_path, "-N", "2")
    with libbeostat.open(receiver.table.path) as cluster:
        for number in range(1001):
            assert feed(receiver, message(number)) == "stored"
            if number % 101 == 0:
                cluster.look_due = 0.0
                assert [node.number for node in cluster] == list(
                    range(number + 1))
        iteration = iter(cluster)
        seen = [next(iteration).number for _ in range(3)]
        big = decode(message(1, body=BODY)).message
        wide = message(1, 2, body=body_of_cpus(400))
        assert len(wide) > 8000 > len(big)
        assert feed(receiver, wide) == "stored"
        assert receiver.table.slot_bytes == 16384
        seen += [node.number for node in iteration]
        assert seen == list(range(1001))
        cluster.look_due = 0.0
        assert len(cluster[1].cpus) == 400
        assert len(cluster) == 1001 and not cluster.refused


def body_of_cpus(count):
    """Return the body of a message with that many CPUs."""
    columns = list(range(count)), [0] * count, tuple([[7] * count] * 4)
    node = bytearray(BODY[:550])
    node[546:550] = struct.pack("<HH", count, 0)
    return bytes(node) + sendstats.pack_cpus(*columns)


def test_restart_adopts_the_table(tmp_path):
    receiver = new_receiver(tmp_path)
    for number in range(-1, 7):
        feed(receiver, message(number, 5))
    close(receiver)
    receiver = new_receiver(tmp_path)
    with libbeostat.open(receiver.table.path) as cluster:
        assert [node.number for node in cluster] == list(range(-1, 7))
    assert feed(receiver, message(3, 5)) == "repeated"
    assert feed(receiver, message(3, 6)) == "stored"


def test_slot_left_odd_by_a_killed_writer(tmp_path):
    receiver = new_receiver(tmp_path)
    feed(receiver, message(0))
    feed(receiver, message(1))
    table = receiver.table
    table.words[4096 // 8 + 256] |= 1               # node 0, whole
    place = 4096 + 2 * 2048
    table.words[place // 8] |= 1                    # node 1, torn
    table.view[place + 100:place + 104] = b"torn"
    with libbeostat.open(table.path) as cluster:
        assert cluster[0].state == "up"
        assert [node.number for node in cluster] == [0]
        assert set(cluster.refused) == {1}
    close(receiver)
    receiver = new_receiver(tmp_path)
    assert feed(receiver, message(1)) == "stored"
    with libbeostat.open(receiver.table.path) as cluster:
        assert [node.number for node in cluster] == [0, 1]


WRECKS = (
    ("empty", lambda path: open(path, "wb").close()),
    ("noise", lambda path: open(path, "wb").write(os.urandom(70000))),
    ("a folder", lambda path: os.makedirs(os.path.join(path, "full"))),
    ("a fifo", os.mkfifo),
    ("a link", lambda path: os.symlink("/etc/passwd", path)),
    ("cut off", lambda path: cut(path, 50000)),
    ("cut in the header", lambda path: cut(path, 100)),
    ("other version", lambda path: other_version(path)),
)


def cut(path, size):
    """Make a table and leave only its first bytes."""
    close(new_receiver(os.path.dirname(path)))
    os.rename(os.path.join(os.path.dirname(path), "t"), path)
    with open(path, "r+b") as file:
        file.truncate(size)


def other_version(path):
    """Make a table of version 2."""
    cut(path, 4096 + 65 * 2048)
    with open(path, "r+b") as file:
        data = bytearray(file.read(204))
        data[16:20] = struct.pack("<I", 2)
        data[8:16] = bytes(8)
        data[200:204] = struct.pack("<I", zlib.crc32(data[:200]))
        file.seek(0)
        file.write(data)


@pytest.mark.parametrize("wreck", [row[1] for row in WRECKS],
                         ids=[row[0] for row in WRECKS])
def test_wreck_is_an_error_of_the_library_and_is_replaced(
        running, wreck):
    wreck(running.table)
    with pytest.raises(libbeostat.BeostatError) as error:
        running.open()
    assert running.table in str(error.value)
    shown = running.beostat()
    assert (shown.returncode, shown.stdout) == (3, "")
    assert shown.stderr.count("\n") == 1 and "Traceback" not in shown.stderr
    with open("/etc/passwd", "rb") as file:
        before = file.read()
    running.recvstats()
    running.send(message(3))
    running.wait_up(3)
    with open("/etc/passwd", "rb") as file:
        assert file.read() == before


def test_no_table(tmp_path):
    path = str(tmp_path / "none")
    with pytest.raises(libbeostat.NoTable):
        libbeostat.open(path)
    shown = tool("beostat.py", "--table", path)
    assert shown.returncode == 3 and shown.stdout == ""
    assert shown.stderr == (
        "beostat: %s: No such file or directory: recvstats is not running: "
        "start it with recvstats.py\n" % path)


def test_table_of_the_environment(running):
    running.recvstats()
    running.send(message(0))
    running.wait_up(0)
    shown = tool("beostat.py", env=dict(os.environ,
                                        BEOSTAT_TABLE=running.table))
    assert shown.returncode == 0 and " 0 up " in shown.stdout


def test_second_recvstats_is_refused(running):
    first = running.recvstats()
    second = tool("recvstats.py", "-f", "-p", free_port(), "--table",
                  running.table)
    assert second.returncode == 1
    assert second.stderr == ("recvstats: %s: in use by another recvstats "
                             "(pid %d)\n" % (running.table, first.pid))


def test_table_that_vanished_comes_back(running):
    running.recvstats()
    running.send(message(4))
    running.wait_up(4)
    with running.open() as cluster:
        os.unlink(running.table)
        wait_for(lambda: os.path.exists(running.table))
        running.send(message(4, 2), message(5))
        running.wait_up(5)
        wait_for(lambda: 5 in cluster)
        assert cluster[4].sequence == 2


# ---- loop --------------------------------------------------------------


def broken(data, **changes):
    """Return a message with header fields changed, and its CRC right."""
    header = dict(zip(sendstats.layout(sendstats.HEADER)[1],
                      sendstats.HEADER_STRUCT.unpack_from(data)))
    header.update(changes)
    data = sendstats.HEADER_STRUCT.pack(*header.values()) + data[40:-4]
    return data + struct.pack("<I", zlib.crc32(data))


GOOD = message(3, 2)
BAD = (
    # counter, datagram
    ("short", b""),
    ("short", b"BEO\x01"),
    ("short", GOOD[:43]),
    ("short", GOOD[:-1]),
    ("long", GOOD + b"\0"),
    ("long", broken(GOOD, length=len(GOOD) - 1)),
    ("magic_wrong", b"x" + GOOD[1:]),
    ("magic_wrong", b"x" * 600),
    ("version_wrong", broken(GOOD, magic=b"BEO\x02")),
    ("crc_wrong", GOOD[:100] + b"\x7f" + GOOD[101:]),
    ("crc_wrong", GOOD[:-1] + bytes([GOOD[-1] ^ 1])),
    ("header_wrong", broken(GOOD, kind=0)),
    ("header_wrong", broken(GOOD, kind=4)),
    ("header_wrong", broken(GOOD, kind=sendstats.REQUEST)),
    ("header_wrong", broken(GOOD, period_s=float("nan"))),
    ("header_wrong", broken(GOOD, period_s=float("inf"))),
    ("header_wrong", broken(GOOD, period_s=-1.0)),
    ("number_wrong", broken(GOOD, node=65536)),
    ("number_wrong", broken(GOOD, node=-3)),
    ("number_wrong", broken(GOOD, node=2**31 - 1)),
    ("unnumbered", broken(GOOD, node=-2)),
)


@pytest.mark.parametrize("counter, datagram", BAD)
def test_bad_datagram_is_counted_by_its_cause(receiver, counter, datagram):
    assert feed(receiver, message(3, 1)) == "stored"
    before = bytes(receiver.table.view)
    assert feed(receiver, datagram) == counter
    assert bytes(receiver.table.view) == before


def test_bad_datagrams_on_the_wire(running):
    running.recvstats()
    running.send(message(3), *[datagram for _, datagram in BAD])
    running.wait_count("received", len(BAD) + 1)
    with running.open() as cluster:
        status = cluster.status
        for counter in {counter for counter, _ in BAD}:
            assert getattr(status, counter) == sum(
                counter == other for other, _ in BAD), counter
        assert status.stored == 1 and cluster[3].sequence == 1


def test_order(receiver):
    """Each message, and what the node's received and lost are then."""
    steps = (
        (dict(sequence=5), "stored", 1, 0),
        (dict(sequence=6), "stored", 2, 0),
        (dict(sequence=6), "repeated", 2, 0),
        (dict(sequence=9), "stored", 3, 2),
        (dict(sequence=7), "late", 4, 1),
        (dict(sequence=7), "repeated", 4, 1),
        (dict(sequence=8), "late", 5, 0),
        (dict(sequence=109), "stored", 6, 99),
        (dict(sequence=9), "repeated", 6, 99),      # too old to tell
        (dict(sequence=110), "stored", 7, 99),
        (dict(start=999, sequence=111), "stale", 7, 99),
        (dict(start=2000, sequence=1), "stored", 8, 99),
        (dict(start=2000, sequence=2**32 - 1), "repeated", 8, 99),
        (dict(start=3000, sequence=4), "stored", 9, 102),
        (dict(start=3000, sequence=2), "late", 10, 101),
        (dict(start=3000, sequence=2), "repeated", 10, 101),
    )
    with libbeostat.open(receiver.table.path) as cluster:
        for change, counter, received, lost in steps:
            assert feed(receiver, message(7, **change)) == counter, change
            assert (cluster[7].received, cluster[7].lost) == (
                received, lost), change
        assert cluster[7].restarts == 2 and cluster[7].sequence == 4


def test_sequence_wraps(receiver):
    for sequence in 2**32 - 2, 2**32 - 1, 0, 1:
        assert feed(receiver, message(7, sequence)) == "stored"
    with libbeostat.open(receiver.table.path) as cluster:
        assert (cluster[7].received, cluster[7].lost) == (4, 0)


def test_number_belongs_to_its_address_until_the_node_is_down(receiver):
    now = time.monotonic()
    assert feed(receiver, message(7), "10.0.0.1", now) == "stored"
    assert feed(receiver, message(7, start=2000), "10.0.0.2",
                now + 2.9) == "conflict"
    receiver.tick(now + 2.9, 0)
    receiver.tick(now + 2.95, 0)
    text = "node 7: 10.0.0.2 sends this number too; it belongs to 10.0.0.1"
    assert sum(text in line for line in receiver.lines) == 1
    assert feed(receiver, message(7, start=3000), "10.0.0.2",
                now + 3.1) == "stored"
    with libbeostat.open(receiver.table.path) as cluster:
        assert cluster[7].address == "10.0.0.2"


def test_older_agent_is_taken_once_the_node_is_down(receiver):
    now = time.monotonic()
    feed(receiver, message(7, 9, start=5000), now=now)
    assert feed(receiver, message(7, 1, start=4000), now=now + 3) == "stale"
    assert feed(receiver, message(7, 1, start=4000),
                now=now + 3.1) == "stored"


def test_farewell(receiver):
    now = time.monotonic()
    feed(receiver, message(7, 1), now=now)
    assert feed(receiver, message(7, 3, kind=sendstats.FAREWELL),
                now=now) == "stored"
    with libbeostat.open(receiver.table.path) as cluster:
        assert cluster[7].state == "left"
        assert feed(receiver, message(7, 2), now=now) == "late"
        assert cluster[7].state == "left"
        receiver.tick(now, 0)
        assert feed(receiver, message(7, 1, start=2000), "10.0.0.9",
                    now=now) == "stored"
        assert cluster[7].state == "up"
        receiver.tick(now, 0)
    assert receiver.lines == ["left: n7", "up: n7", "up again: n7"]


@pytest.mark.parametrize("period_s, silence_s", [(0.1, 3), (1, 3), (7, 21)])
def test_down_after_three_periods(receiver, period_s, silence_s):
    now = time.monotonic()
    for number in 2, 3, 4:
        feed(receiver, message(number, period_s=period_s), now=now)
    receiver.tick(now + silence_s - .1, 0)
    assert receiver.lines == ["up: n[2-4]"]
    receiver.tick(now + silence_s + .1, 0)
    receiver.tick(now + silence_s + 1, 0)
    assert receiver.lines[1:] == ["down: n[2-4]"]
    feed(receiver, message(3, 2), now=now + silence_s + 2)
    receiver.tick(now + silence_s + 2, 0)
    assert receiver.lines[2:] == ["up again: n3"]


def test_states_that_a_reader_sees(receiver):
    now = time.monotonic()
    feed(receiver, message(0), now=now)
    feed(receiver, message(1), now=now - 3.1)
    feed(receiver, message(2, period_s=2), now=now - 5.5)
    with libbeostat.open(receiver.table.path) as cluster:
        assert [node.state for node in cluster] == ["up", "down", "up"]
        assert cluster[1].age_s == pytest.approx(3.1, abs=1)


def test_iprange(tmp_path):
    receiver = new_receiver(tmp_path, "--iprange", "10.0.0.100-10.0.0.131")
    for address, counter in (("10.0.0.100", "stored"),
                             ("10.0.0.131", "stored"),
                             ("10.0.0.99", "unnumbered"),
                             ("10.0.0.132", "unnumbered")):
        assert feed(receiver, message(-2), address) == counter
    with libbeostat.open(receiver.table.path) as cluster:
        assert [node.number for node in cluster] == [0, 31]


def test_max_nodes_bounds_the_table(tmp_path):
    receiver = new_receiver(tmp_path, "--max-nodes", "100")
    assert feed(receiver, message(100)) == "number_wrong"
    assert feed(receiver, message(99)) == "stored"
    assert receiver.table.slots == 101


def test_no_space(receiver, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")
    now = time.monotonic()
    feed(receiver, message(0), now=now)
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        for step in range(3):
            assert feed(receiver, message(1000), now=now + 2 * step) == (
                "no_space")
            assert feed(receiver, message(0, 2 + step), now=now) == "stored"
    assert os.listdir(os.path.dirname(receiver.table.path)) == ["t"]
    assert len(receiver.lines) == 1 and "no_space" in receiver.lines[0]
    assert feed(receiver, message(1000), now=now + 9) == "stored"


LIES = (
    ("counts beyond its length", (546, struct.pack("<HH", 9, 9))),
    ("counts below its length", (546, struct.pack("<HH", 0, 0))),
    ("NaN", (366, struct.pack("<f", float("nan")))),
    ("endless", (370, struct.pack("<f", float("inf")))),
    ("negative", (362, struct.pack("<f", -0.5))),
    ("not UTF-8", (0, b"\xff\xfe")),
    ("a CPU over 100 %", (552, struct.pack("<H", 10001))),
    ("an interface that is not UTF-8", (550 + 20 * os.cpu_count(), b"\xc3(")),
)


@pytest.mark.parametrize("place, data", [row[1] for row in LIES],
                         ids=[row[0] for row in LIES])
def test_lie_is_that_nodes_error_and_the_others_are_shown(
        receiver, place, data):
    body = bytearray(BODY)
    body[place:place + len(data)] = data
    for number in 0, 2:
        feed(receiver, message(number))
    assert feed(receiver, message(1, body=bytes(body))) == "stored"
    with libbeostat.open(receiver.table.path) as cluster:
        with pytest.raises(libbeostat.BadSample):
            cluster[1]
        assert [node.number for node in cluster] == [0, 2]
        assert list(cluster.refused) == [1]


def test_sample_of_a_newer_agent(receiver):
    feed(receiver, message(0))
    assert feed(receiver, broken(message(1), version=2)) == "stored"
    with libbeostat.open(receiver.table.path) as cluster:
        with pytest.raises(libbeostat.OtherVersion):
            cluster[1]
        assert [node.number for node in cluster] == [0]


def test_errors_of_the_library(tmp_path):
    receiver = new_receiver(tmp_path, "-N", "9")
    feed(receiver, message(3))
    receiver.table.write_header()
    with libbeostat.open(receiver.table.path) as cluster:
        for number, error in ((5, libbeostat.NeverHeard),
                              (9999, libbeostat.NoSuchNode),
                              (-2, libbeostat.NoSuchNode)):
            with pytest.raises(error):
                cluster[number]
        assert cluster.never() == [0, 1, 2, 4, 5, 6, 7, 8]
        assert 3 in cluster and 5 not in cluster and len(cluster) == 1
        assert cluster.status.expected == 9


def test_reader_that_is_kept_does_not_grow(receiver):
    feed(receiver, message(0))
    with libbeostat.open(receiver.table.path) as cluster:
        files = len(os.listdir("/proc/self/fd"))
        for _ in range(301):
            cluster.look_due = 0.0
            assert len(list(cluster)) == 1
            receiver.table.make(receiver.table.slots, 2048)
        assert len(os.listdir("/proc/self/fd")) == files


# ---- command line ------------------------------------------------------


@pytest.mark.parametrize("name", ["sendstats", "recvstats", "beostat"])
def test_help_fits_a_screen_and_ends_with_examples(name):
    for option in "-h", "--help":
        shown = tool(name + ".py", option)
        assert shown.returncode == 0 and shown.stderr == ""
        lines = shown.stdout.splitlines()
        assert len(lines) <= 50 and max(map(len, lines)) <= 79
        assert "examples:" in lines and lines[-1].startswith("  ")


@pytest.mark.parametrize("name", ["sendstats", "recvstats", "beostat"])
def test_version(name):
    for option in "-v", "--version":
        shown = tool(name + ".py", option)
        assert shown.returncode == 0
        assert shown.stdout == "%s %s\n" % (name, sendstats.VERSION)


USAGE = (
    ("sendstats.py", "--nonsense"), ("sendstats.py", "-r", "0"),
    ("sendstats.py", "-r", "often"), ("sendstats.py", "-p", "70000"),
    ("sendstats.py", "0", "master:0"), ("sendstats.py", "0", "a:b"),
    ("sendstats.py", "-3"), ("sendstats.py", "2147483648"),
    ("recvstats.py", "-p", "0"), ("recvstats.py", "-N", "-1"),
    ("recvstats.py", "--iprange", "10.0.0.9-10.0.0.1"),
    ("recvstats.py", "--iprange", "here"),
    ("recvstats.py", "-N", "9", "--max-nodes", "8"),
    ("recvstats.py", "operand"),
    ("beostat.py", "--nonsense"),
)


@pytest.mark.parametrize("command", USAGE)
def test_usage_error(command):
    shown = tool(*command)
    assert shown.returncode == 2 and shown.stdout == ""
    assert "usage: " + command[0] in shown.stderr
    assert "Traceback" not in shown.stderr


def test_node_of_the_environment_must_be_a_number():
    shown = tool("sendstats.py", "--once", "127.0.0.1",
                 env=dict(os.environ, NODE="seven"))
    assert shown.returncode == 2 and "$NODE" in shown.stderr


START_ERRORS = (
    ("sendstats.py", ["-a", "192.0.2.1", "0", "127.0.0.1"],
     "sendstats: -a 192.0.2.1: Cannot assign requested address: "
     "name an address of this node\n"),
    ("sendstats.py", ["--proc", "/nowhere", "0", "127.0.0.1"],
     "sendstats: --proc /nowhere: no such folder\n"),
    ("sendstats.py", ["--pid-file", "/nowhere/pid", "0", "127.0.0.1"],
     "sendstats: [Errno 2] No such file or directory: '/nowhere/pid'\n"),
    ("recvstats.py", ["--table", "/nowhere/table"],
     "recvstats: [Errno 2] No such file or directory: "
     "'/nowhere/table.new'\n"),
)


@pytest.mark.parametrize("name, options, want", START_ERRORS)
def test_start_error_is_one_line(name, options, want):
    for more in [], ["-f"]:
        port = ["-p", free_port()]
        shown = tool(name, *more, *port, *options)
        assert (shown.returncode, shown.stdout, shown.stderr) == (1, "", want)


def test_port_in_use(running):
    running.recvstats()
    for more in [], ["-f"]:
        other = os.path.join(running.folder, "other")
        shown = tool("recvstats.py", *more, "-p", running.port, "--table",
                     other)
        assert shown.returncode == 1
        assert shown.stderr == ("recvstats: UDP port %d: Address already in "
                                "use\n" % running.port)
        assert not os.path.exists(other)


# ---- end to end on loopback --------------------------------------------


def test_the_line_of_the_readme(running):
    """Daemons, started one after the other, then the command at once."""
    files = [os.path.join(running.folder, name) for name in ("r", "s")]
    line = ("{0} recvstats.py -p {1} --table {2} --pid-file {3} && "
            "{0} sendstats.py -p {1} --pid-file {4} 0 127.0.0.1 && "
            "{0} beostat.py --table {2}").format(
                sys.executable, running.port, running.table, *files)
    shown = subprocess.run(line, shell=True, cwd=HERE, timeout=20,
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                           universal_newlines=True)
    for path in files:
        with open(path) as file:
            running.pids.append(int(file.read()))
    assert (shown.returncode, shown.stderr) == (0, "")
    heading, node, total = shown.stdout.splitlines()
    assert heading.split()[:4] == ["node", "state", "age", "cpus"]
    assert node.split()[:2] == ["0", "up"]
    assert node.split()[3] == "%d" % os.sysconf("SC_NPROCESSORS_ONLN")
    assert node.split()[-1] == os.uname().nodename
    assert total.startswith("total 1 up")
    for pid, path in zip(reversed(running.pids), reversed(files)):
        os.kill(pid, signal.SIGTERM)
        wait_for(lambda: not os.path.exists(path), 1.5)
    after = running.beostat()
    assert after.returncode == 3
    assert after.stdout.splitlines()[1].split()[:2] == ["0", "left"]
    assert "is gone: start it again" in after.stderr


def test_agent_that_is_killed_is_down_after_three_periods(running):
    running.recvstats()
    agent = running.sendstats(2, "127.0.0.1", "-r", "0.25")
    running.wait_up(2)
    agent.kill()
    agent.wait()
    killed = time.monotonic()
    with running.open() as cluster:
        wait_for(lambda: cluster[2].state == "down")
    assert 2.5 < time.monotonic() - killed < 4.5
    shown = running.beostat()
    assert shown.returncode == 1 and "down: n2\n" in shown.stdout


def test_farewell_is_seen_at_once(running):
    running.recvstats()
    agent = running.sendstats(2, "127.0.0.1", "-r", "60")
    running.wait_up(2)
    agent.terminate()
    assert agent.wait(1.0) == 0
    with running.open() as cluster:
        wait_for(lambda: cluster[2].state == "left", 1.0)
    assert "left: n2\n" in running.beostat().stdout


def test_recvstats_killed_and_started_again(running):
    first = running.recvstats()
    for number in range(5):
        running.sendstats(number, "127.0.0.1", "-r", "0.2")
    for number in range(5):
        running.wait_up(number)
    first.kill()
    first.wait()
    assert running.beostat().returncode in (0, 1)   # its heartbeat is new
    running.recvstats()
    with running.open() as cluster:
        assert [node.number for node in cluster] == list(range(5))
        before = cluster[0].sequence
        wait_for(lambda: cluster[0].sequence > before + 1)
        assert cluster.status.stale == cluster.status.repeated == 0


def test_several_masters_and_one_that_refuses_until_it_is_there(running):
    other = Running(running.folder)
    other.table += "2"
    try:
        running.recvstats()
        running.sendstats("-r", "0.1", 3, "127.0.0.1",
                          "127.0.0.1:%d" % other.port, "no.such.name")
        running.wait_up(3)
        time.sleep(0.5)
        other.recvstats()
        node = other.wait_up(3)
        assert node.sequence > 3
        assert node.agent.send_errors > 0           # the name
        with running.open() as cluster:
            assert cluster[3].lost == 0
    finally:
        other.end()


def test_number_of_the_environment_or_by_address(running):
    running.recvstats("--iprange", "127.0.0.1-127.0.0.9")
    running.sendstats("--once", "127.0.0.1", env=dict(os.environ, NODE="6"))
    running.wait_up(6)
    running.sendstats("--once", "127.0.0.1", "-a", "127.0.0.5",
                      env={key: value for key, value in os.environ.items()
                           if key != "NODE"})
    assert running.wait_up(4).address == "127.0.0.5"
    running.sendstats("--once", -1, "127.0.0.1")
    running.wait_up(-1)
    shown = running.beostat("master", "-1")
    assert [line.split()[0] for line in shown.stdout.splitlines()] == [
        "node", "-1", "-1", "total"]


def test_debug_says_what_is_sent_and_received(running):
    receiver = running.start("recvstats.py", "-d", "-p", running.port,
                             "--table", running.table)
    wait_for(lambda: os.path.exists(running.table))
    agent = tool("sendstats.py", "-d", "--once", "-p", running.port, 7,
                 "127.0.0.1")
    assert re.fullmatch(r"sequence 1, \d+ bytes to 127.0.0.1:%d: sent\n"
                        % running.port, agent.stdout)
    running.wait_up(7)
    receiver.terminate()
    _, log = receiver.communicate()
    assert re.search(r"127.0.0.1:\d+: node 7, \d+ bytes: stored", log)


def test_once_that_cannot_send_fails():
    shown = tool("sendstats.py", "--once", 0, "no.such.name")
    assert shown.returncode == 1
    assert re.fullmatch(r"sendstats: no.such.name:5545: .+\n", shown.stderr)


def test_samples_keep_a_fixed_phase(running):
    running.recvstats()
    running.sendstats(1, "127.0.0.1", "-r", "0.25")
    running.wait_up(1)
    times = set()
    with running.open() as cluster:
        wait_for(lambda: times.add(cluster[1].time_s) or len(times) > 7)
    first, *rest = sorted(times)[1:]
    for other in rest:
        periods = (other - first) / 0.25
        assert abs(periods - round(periods)) < 0.2


@pytest.mark.parametrize("period_s", [0.1, 1.0, 60.0])
def test_next_due(period_s):
    for phase_s in 0.0, 0.03, 0.9 * period_s:
        due = 1000.0
        for _ in range(13):
            due, before = sendstats.next_due(due + 1e-4, period_s,
                                             phase_s), due
            off = (due - phase_s) % period_s
            assert min(off, period_s - off) < 1e-6
            assert before == 1000.0 or abs(
                due - before - period_s) < 1e-6
        late = sendstats.next_due(due + 2.6 * period_s, period_s, phase_s)
        assert late - due > 2.6 * period_s          # skipped, not queued


@pytest.mark.parametrize("name", ["sendstats.py", "recvstats.py",
                                  "libbeostat.py"])
def test_file_alone_in_an_empty_folder(tmp_path, name):
    with open(os.path.join(HERE, name)) as source:
        (tmp_path / name).write_text(source.read())
    command = [sys.executable, "-I", "-S", name]
    option = [] if name == "libbeostat.py" else ["--help"]
    shown = subprocess.run(command + option, cwd=str(tmp_path), timeout=20,
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert (shown.returncode, shown.stderr) == (0, b"")
    assert os.listdir(str(tmp_path)) == [name]


def test_agent_needs_only_modules_of_a_minimal_python():
    """Those that Debian's python3-minimal has not may not be loaded."""
    code = ("import sys; sys.argv = ['sendstats', '--once', '0', "
            "'127.0.0.1:9']; sys.path.insert(0, %r); import sendstats; "
            "sendstats.main(); print(*sys.modules)" % HERE)
    shown = subprocess.run([sys.executable, "-I", "-S", "-c", code],
                           stdout=subprocess.PIPE, timeout=20,
                           universal_newlines=True)
    missing = {"mmap", "json", "shutil", "hmac", "encodings.idna"}
    assert not missing & set(shown.stdout.split())


def test_json(running):
    running.recvstats("-N", "3")
    running.sendstats(1, "127.0.0.1")
    running.wait_up(1)
    shown = running.beostat("--json")
    document = json.loads(shown.stdout)
    assert document["path"] == running.table
    assert document["recvstats"]["running"] is True
    assert document["never"] == [0, 2] and document["refused"] == {}
    node, = document["nodes"]
    assert (node["number"], node["state"]) == (1, "up")
    assert node["host"]["hostname"] == os.uname().nodename
    assert len(node["cpus"]) == node["agent"]["cpus"]
    assert node["processor"]["ticks_per_s"] == os.sysconf("SC_CLK_TCK")
    named = json.loads(running.beostat("--json", "1").stdout)["nodes"]
    assert named[0]["kernel"]["boot_time_s"] == node["kernel"]["boot_time_s"]


def test_exit_status(running):
    running.recvstats("-N", "2")
    running.send(message(0), message(1, kind=sendstats.FAREWELL))
    running.wait_up(0)
    for nodes, status in (["0"], 0), (["0-1"], 1), ([], 1), (["1"], 1), (
            ["7"], 1), (["0", os.uname().nodename], 1), (["5-3"], 2), (
            ["no-such-host"], 2):
        shown = running.beostat(*nodes)
        assert shown.returncode == status, nodes
        assert "Traceback" not in shown.stderr
    shown = running.beostat("0,99")
    assert shown.stderr == "beostat: node 99: not in the table\n"


# ---- README ------------------------------------------------------------


def describe(rows):
    """Return a record's table as README shows it."""
    record, offset = sendstats.layout(rows)
    lines = ["Offset  Type  Unit     Fields: meaning"]
    for fields, code, unit, meaning in rows:
        first = fields.split()[0]
        lines += textwrap.wrap(
            "%s: %s" % (fields, meaning), 79, break_long_words=False,
            initial_indent="%6d  %-4s  %-8s " % (offset[first], code,
                                                 unit or "-"),
            subsequent_indent=" " * 23)
    return "\n".join(lines + ["%6d  end" % record.size])


def readme():
    """Return the text of README."""
    with open(os.path.join(HERE, "README")) as file:
        return file.read()


@pytest.mark.parametrize("rows", [
    sendstats.HEADER, sendstats.NODE, sendstats.ONE_CPU, sendstats.INTERFACE,
    recvstats.TABLE_HEADER, recvstats.SLOT],
    ids="header node cpu interface table slot".split())
def test_readme_formats_are_the_layouts(rows):
    assert describe(rows) in readme()


def test_readme_fits_a_terminal():
    assert max(map(len, readme().splitlines())) <= 79


@pytest.mark.parametrize("name", ["sendstats.py", "recvstats.py",
                                  "beostat.py"])
def test_readme_explains_every_option(name):
    shown = tool(name, "--help").stdout
    options = set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", shown.split(
        "examples:")[0].split("options:")[-1]))
    section = re.search(r"\n  %s\n(.*?)\n(?:  )?\S" % name, readme(), re.S)
    for option in options:
        assert re.search(r"(?<![\w-])%s(?![\w-])" % option,
                         section.group(1)), option


def test_readme_names_every_counter_and_error():
    text = readme()
    for counter in recvstats.CAUSES:
        assert counter in text
    for name, kind in vars(libbeostat).items():
        if isinstance(kind, type) and issubclass(kind, Exception):
            assert name in text
