#!/usr/bin/env python3
"""sendstats - report this node's statistics to the masters

usage: sendstats.py [options] [NODENUMBER] [ADDRESS[:PORT] ...]

Reads /proc once a period and sends a datagram to every master.  NODENUMBER
is 0, 1, 2 ... or -1, the master itself; default $NODE, else the master
tells it by address.  ADDRESS may be a name; default master.
  -r, --rate SECONDS     period; default 1
  -p, --port PORT        UDP port of the masters; default 5545, with -i 3040
  -a, --address ADDRESS  local address to send from
  -i, --interface IF     send to group 239.255.11.224, or another, on IF
  -f, --foreground       stay in the foreground
  -d, --debug            the same, and say what is sent
  --once                 send one message and exit
  --proc DIR             root of /proc; default /proc
  --pid-file FILE        hold the process id in FILE while running
  --key-file FILE        sign with its first key, take requests of any
  --procstatd PORT       answer about this node on TCP; by custom 7885
  --allow NETWORK        who may ask there; default the masters, this node
  -h, --help, -v, --version
Exit status: 0 told to stop, 1 could not start, 2 usage.
examples:
  sendstats.py 7 10.0.0.1       node 7 reports to 10.0.0.1 once a second
  sendstats.py -r 10 7 m1 m2    every 10 seconds, to two masters
  sendstats.py --once -d 7 m1   one message, and say what is sent
"""

import _signal as signal        # without its enumerations: 100 kB less
import _thread
import errno
import fcntl
import os
import select
import socket
import struct
import sys
import time
import types
import zlib
from _operator import _compare_digest as compare_digest  # hmac's own

# ---- constants ---------------------------------------------------------

VERSION = "1.0"
PORT = 5545
PERIOD_S = 1.0
PERIODS_S = 0.01, 3600.0        # the shortest and the longest period
ASKED_PERIODS_S = 0.1, 3600.0   # likewise, when a master asks for one
TOLD_S = 3600.0                 # a period asked for holds no longer
ANSWER_S = 0.2                  # least time between two answers
SPREAD_MOST_S = 60.0
FIRST_S = 0.2                   # from the start to the first message
SETTLE_S = 0.05                 # a master on this machine stores meanwhile
START_S = 1.0                   # the longest a daemon's parent waits
ONCE_S = 2.0                    # the longest --once tries to send
IDENTITY_S = 60.0               # between two looks at /proc/cpuinfo
LOOK_UP_S = 60.0                # between two look-ups of a master's name
RETRY_S = 1.0                   # first wait after a failed look-up
MESSAGE_BYTES = 65000           # no message is longer
CRC_BYTES, MAC_BYTES = 4, 16
CRC_RESIDUE = 0x2144df1c        # CRC-32 of any bytes and their own CRC-32
MOST_CPUS = 3000                # that one can hold
READ_BYTES = 65536
WHOLE_BYTES = 2048              # a shorter read was all of the file
FIRST_LINES = 100               # of /proc/cpuinfo: more than one CPU's
FULL = 10000                    # the busy share of a CPU that never idles
GOLDEN = 0.6180339887498949     # spreads whole numbers evenly over 0 to 1
HOSTS = "/etc/hosts"
OOM_SCORE = b"-900"
STOP = signal.SIGTERM, signal.SIGINT
REQUESTS = 64                   # read at a time
CLIENTS = 10                    # of procstatd; one more is refused
TICK_S = 1.0                    # between two looks for idle clients
IDLE_S = 30.0                   # and one that does nothing is dropped
LINE_BYTES = 256                # a command is no longer
SLICE_S = 0.003                 # of work for clients between two looks
COMMAND_CHARACTERS = 1024       # of a process, in the list of jobs
LOOPBACK = 0x7f000000, 0xff000000       # 127.0.0.0/8
GROUPS = 0xe0000000, 0xf0000000         # 224.0.0.0/4
TTL = 1                         # the group is of one network
SIOCGIFADDR, SIOCGIFNETMASK = 0x8915, 0x891b    # linux/sockios.h

CPUINFO = (                     # keys of one value, in order of preference
    (b"vendor_id", b"CPU implementer"),
    (b"model name", b"cpu model", b"cpu", b"Processor"),
    (b"cpu MHz", b"clock", b"cpu MHz static"),
    (b"cache size",),
    (b"bogomips", b"BogoMIPS", b"bogomips per cpu"),
)
MEMINFO = (b"MemTotal:", b"MemFree:", b"MemAvailable:", b"Buffers:",
           b"Cached:", b"Shmem:", b"SReclaimable:", b"SwapTotal:",
           b"SwapFree:")
DEFAULTS = dict(operands=[], rate=PERIOD_S, port=None, address="",
                interface=None, foreground=False, debug=False, once=False,
                proc="/proc", pid_file=None, key_file=None, procstatd=None,
                allow=None)
STAT = (b"btime", b"ctxt", b"intr", b"processes", b"procs_running",
        b"procs_blocked")

# ---- layout: rows ------------------------------------------------------
# A row is (fields, code): each of its fields has the code.  Meanings and
# units stand beside the same rows of libbeostat.py, and in README.


def layout(rows, only=None):
    """Return (Struct, {field: byte offset}) of a table of fields; the Struct
    passes over those that are not among `only`."""
    code, size, offset = "<", 0, {}
    for fields, field_code, *_ in rows:
        width = struct.calcsize("<" + field_code)
        for field in fields.split():
            offset[field] = size
            size += width
            code += ("%dx" % width if only and field not in only
                     else field_code)
    return struct.Struct(code), offset


# ---- layout: header ----------------------------------------------------
# A change of size or order here raises the last byte of MAGIC.

MAGIC = b"BEO\x01"
SAMPLE, FAREWELL, REQUEST = 1, 2, 3
MASTER, UNNUMBERED = -1, -2
HEADER = (
    ("magic", "4s"), ("length", "I"), ("node", "i"), ("kind version", "H"),
    ("start_us", "Q"), ("sequence", "I"), ("period_s", "f"),
    ("time_s", "d"))
ASK = (("spread_s", "f"),)      # the body of a request
GROUP, GROUP_PORT = "239.255.11.224", 3040      # requests: the next port

# ---- layout: records ---------------------------------------------------
# A change of size or order here raises RECORDS_VERSION.  A value that the
# node does not know is ABSENT; an unknown text is empty.

RECORDS_VERSION = 1
ABSENT = {"H": 2**16 - 1, "I": 2**32 - 1, "Q": 2**64 - 1, "f": -1.0}
CLIPPED = 1                     # a flag: some interfaces did not fit
HOST = (("hostname release", "64s"), ("machine", "16s"))
PROCESSOR = (
    ("vendor", "16s"), ("model", "64s"), ("mhz", "f"), ("cache_kb", "I"),
    ("bogomips", "f"), ("sockets cores ticks_per_s", "H"))
KERNEL = (
    ("boot_time_s context_switches interrupts forks", "Q"),
    ("running blocked", "I"))
CPU = (
    ("user_ticks nice_ticks system_ticks idle_ticks iowait_ticks irq_ticks "
     "softirq_ticks steal_ticks guest_ticks guest_nice_ticks", "Q"),
    ("busy_fraction user_fraction nice_fraction system_fraction "
     "iowait_fraction", "f"))
LOAD = (("one five fifteen", "f"), ("active total last_pid", "I"))
MEMORY = (
    ("total_bytes free_bytes available_bytes buffers_bytes cached_bytes "
     "shared_bytes reclaimable_bytes swap_total_bytes swap_free_bytes", "Q"),)
DISK = (
    ("block_bytes blocks free_blocks available_blocks files free_files", "Q"),
    ("name_max", "I"))
NETWORK = (("rx_bytes_per_s tx_bytes_per_s", "Q"),)
AGENT = (
    ("cost_us send_errors skipped", "I"),
    ("procstatd_port flags cpus interfaces", "H"))
NODE = HOST + PROCESSOR + KERNEL + CPU + LOAD + MEMORY + DISK + NETWORK + AGENT
ONE_CPU = (
    ("id busy", "H"), ("user_ticks nice_ticks system_ticks idle_ticks", "I"))
INTERFACE = (
    ("name", "16s"), ("rx_bytes rx_packets", "Q"),
    ("rx_errors rx_dropped rx_fifo rx_frame rx_compressed rx_multicast", "I"),
    ("tx_bytes tx_packets", "Q"),
    ("tx_errors tx_dropped tx_fifo tx_collisions tx_carrier tx_compressed",
     "I"),
    ("rx_bytes_per_s tx_bytes_per_s", "Q"))

# ---- parse -------------------------------------------------------------


def codes(rows):
    """Return the code of each field of a table, in order."""
    return [code for fields, code, *_ in rows for _ in fields.split()]


def absent(rows):
    """Return the values of a record of which nothing is known."""
    return tuple(ABSENT.get(code, b"") for code in codes(rows))


def fitting(code, value):
    """Return a number that its code can hold.

    One too large wraps, as the kernel's own counters do; one that makes
    no sense, negative or endless, is absent.
    """
    if code == "f":
        return value if 0 <= value < 1e38 else ABSENT[code]
    if code in ABSENT:
        return value & ABSENT[code] if value >= 0 else ABSENT[code]
    return value


def parse_counts(words, step, keys):
    """Return the number behind each key, ABSENT["Q"] where there is none.

    words   a key, its number and what else makes step words, repeated
    Raises  ValueError when something else follows a key
    """
    found = dict(zip(words[::step], words[1::step]))
    return [int(found.get(key, ABSENT["Q"])) for key in keys]


def parse_meminfo(text):
    """Return the values of MEMORY.

    Raises  ValueError when a number is none
    Source  proc(5), /proc/meminfo, whose unit is the kB of 1,024 bytes
    """
    return [ABSENT["Q"] if kb == ABSENT["Q"] else kb * 1024
            for kb in parse_counts(text[text.find(MEMINFO[0]):].split(), 3,
                                   MEMINFO)]


def parse_loadavg(text):
    """Return the values of LOAD.

    Raises  ValueError when these are not the columns we know
    Source  proc(5), /proc/loadavg
    """
    one, five, fifteen, processes, last_pid = text.split()
    active, total = processes.split(b"/")
    return (*[fitting("f", float(mean)) for mean in (one, five, fifteen)],
            max(int(active) - 1, 0), int(total), int(last_pid))


def parse_stat(text):
    """Return (columns, kernel) of /proc/stat.

    columns  a list for each column of the cpu lines: first the CPU ids,
             -1 for the line of their sums, then user, nice, system ...
    kernel   the values of KERNEL
    Raises   ValueError when the cpu lines are not alike
    Source   proc(5), /proc/stat
    """
    end = text.find(b"\n", text.rfind(b"\ncpu") + 1)
    lines = text[:end].replace(b"cpu ", b"-1 ", 1).replace(b"cpu", b"")
    numbers = list(map(int, lines.split()))
    width = len(lines.split(b"\n", 1)[0].split())
    ids = numbers[::width]
    if width < 5 or len(numbers) != width * (lines.count(b"\n") + 1):
        raise ValueError("/proc/stat: cpu lines of different width")
    if max(ids) >= ABSENT["H"]:
        raise ValueError("/proc/stat: CPU number too high")
    start = text.find(b"\nintr ")       # a long line, but for its sum
    *counts, running, blocked = parse_counts(
        text[start:start + 32].split()[:2]
        + text[text.rfind(b"\nctxt "):].split(), 2, STAT)
    return ([ids] + [numbers[column::width] for column in range(1, width)],
            (*counts, running - (0 < running < ABSENT["Q"]) & ABSENT["I"],
             blocked & ABSENT["I"]))


def fold_ticks(columns):
    """Return lists (ids, user, nice, system, idle) of the cpu lines.

    They sum to all time: irq, softirq and steal count as system, iowait
    as idle; guest time is in user and nice already.
    """
    ids, user, nice, system, idle, *rest = columns
    return (ids, user, nice, list(map(sum, zip(system, *rest[1:4]))),
            list(map(sum, zip(idle, *rest[:1]))))


def busy_shares(ticks, before, period_ticks):
    """Return each CPU's busy share of a period, 0 to FULL.

    ticks         (used, idle) ticks of each CPU
    before        the same a period ago
    period_ticks  length of the period, which stands in for an idle
                  counter that went backwards
    """
    shares = []
    for (used, idle), (used_before, idle_before) in zip(ticks, before):
        used -= used_before
        idle -= idle_before
        if idle < 0:
            idle = max(int(period_ticks) - used, 0)
        shares.append(used * FULL // (used + idle) if used > 0 else 0)
    return shares


def split_shares(busy, sums, before):
    """Return fractions [busy, user, nice, system, iowait] of a period.

    sums, before  the ten tick counters of all CPUs, now and a period ago
    """
    user, nice, system, idle, iowait, irq, softirq, steal, *_ = [
        now - then if now > then else 0 for now, then in zip(sums, before)]
    system += irq + softirq + steal
    used = (user + nice + system) or 1
    return [busy, busy * user / used, busy * nice / used,
            busy * system / used,
            ABSENT["f"] if sums[4] == ABSENT["Q"]
            else (1 - busy) * iowait / (idle + iowait or 1)]


def parse_net_dev(text):
    """Return (interface names, their columns, a list each).

    Raises  ValueError when the kernel's columns are not the 16 we know
    Source  proc(5), /proc/net/dev
    """
    words = text[text.find(b"\n", text.find(b"\n") + 1):].replace(
        b":", b" ").split()             # behind two heading lines
    if len(words) % 17:
        raise ValueError("/proc/net/dev: not 16 columns")
    return words[::17], [list(map(int, words[column::17]))
                         for column in range(1, 17)]


def rates(counts, before, elapsed_s):
    """Return the rates a second of counters; 0 after a reset."""
    return [int((now - then) / elapsed_s) if now > then else 0
            for now, then in zip(counts, before)]


def align(names, values, names_before, before):
    """Return the values of a period ago in the order of names; what is
    new has its value of now."""
    if names == names_before:
        return before
    known = dict(zip(names_before, before))
    return [known.get(*pair) for pair in zip(names, values)]


def parse_cpuinfo(text):
    """Return the values of PROCESSOR but ticks_per_s.

    Raises  ValueError when a number is none
    Source  /proc/cpuinfo, whose keys differ from machine to machine
    """
    found = {}
    for line in text.split(b"\n", FIRST_LINES)[:FIRST_LINES]:
        key, _, value = line.partition(b":")
        found.setdefault(key.strip(), value.strip())
    vendor, model, mhz, cache, bogomips = [
        next((found[key] for key in keys if found.get(key)), b"")
        for keys in CPUINFO]
    sockets = [line for line in text.split(b"\n")
               if line.startswith((b"physical id", b"core id"))]
    cores = set(zip(sockets[::2], sockets[1::2]))
    return (vendor, model,
            fitting("f", float(mhz.rstrip(b"MHz") or ABSENT["f"])),
            int(cache.partition(b" ")[0] or ABSENT["I"]),
            fitting("f", float(bogomips or ABSENT["f"])),
            len({socket_id for socket_id, _ in cores}) or ABSENT["H"],
            len(cores) or ABSENT["H"])


def parse_request(data):
    """Return (node, start_us, sequence, period_s, spread_s) of a request.

    Raises  ValueError when it is none
    """
    if len(data) != REQUEST_BYTES or zlib.crc32(data) != CRC_RESIDUE:
        raise ValueError("not a request")
    magic, _, node, kind, _, start_us, sequence, period_s, _ = (
        HEADER_STRUCT.unpack_from(data))
    spread_s, = ASK_STRUCT.unpack_from(data, HEADER_STRUCT.size)
    low, high = ASKED_PERIODS_S
    if (magic != MAGIC or kind != REQUEST or not 0 <= spread_s <= SPREAD_MOST_S
            or not (period_s == 0 or low * 0.999 <= period_s <= high)):
        raise ValueError("a request that makes no sense")
    return node, start_us, sequence, period_s, spread_s


def parse_network(text):
    """Return (address, mask) of `ADDRESS[/BITS]` as whole numbers.

    Raises  ValueError
    """
    address, slash, bits = text.partition("/")
    try:
        number = int.from_bytes(socket.inet_pton(socket.AF_INET, address),
                                "big")
    except OSError:
        raise ValueError("%s is not ADDRESS[/BITS]" % text)
    bits = int(bits) if slash else 32
    if not 0 <= bits <= 32:
        raise ValueError("%s: 0 to 32 bits" % text)
    mask = (1 << 32) - (1 << 32 - bits)
    return number & mask, mask


def is_in(address, networks):
    """Return whether an address, a.b.c.d, is in one of the networks."""
    number = int.from_bytes(socket.inet_aton(address), "big")
    return any(number & mask == network for network, mask in networks)


def parse_job(stat, page_kb):
    """Return (name, ppid, state, threads, rss_kb, vsize_kb, ticks).

    stat    text of /proc/PID/stat, whose name may hold blanks and brackets
    Raises  ValueError, IndexError
    """
    head, _, tail = stat.rpartition(b")")
    fields = tail.split()
    return (head.partition(b"(")[2], int(fields[1]), fields[0].decode(),
            int(fields[17]), int(fields[21]) * page_kb,
            int(fields[20]) // 1024, int(fields[11]) + int(fields[12]))


def parse_destination(text, port):
    """Return (host, port) of `ADDRESS[:PORT]`.

    Raises  ValueError, which says that it is none
    """
    host, colon, number = text.partition(":")
    if colon:
        port = int(number) if number.isdigit() else 0
    if not host or not 0 < port < 65536:
        raise ValueError("%s is not ADDRESS[:PORT]" % text)
    return host, port


# ---- format ------------------------------------------------------------

HEADER_STRUCT, _ = layout(HEADER)
ASK_STRUCT, _ = layout(ASK)
NODE_STRUCT, _ = layout(NODE)
INTERFACE_STRUCT, _ = layout(INTERFACE)
NODE_CODES, CPU_CODES, INTERFACE_CODES = [
    "".join(codes(rows)) for rows in (NODE, ONE_CPU, INTERFACE)]
REQUEST_BYTES = HEADER_STRUCT.size + ASK_STRUCT.size + CRC_BYTES
CPU_BYTES = struct.calcsize("<" + CPU_CODES)
RECORDS_BYTES = (               # for all CPUs and interfaces of a message
    MESSAGE_BYTES - HEADER_STRUCT.size - NODE_STRUCT.size - CRC_BYTES
    - MAC_BYTES)
NO_CPU, NO_LOAD, NO_MEMORY, NO_NETWORK, NO_PROCESSOR, NO_STAT = (
    absent(CPU), absent(LOAD), absent(MEMORY), absent(NETWORK),
    absent(PROCESSOR)[:-1], (None, absent(KERNEL)))
NO_CPUS, NO_INTERFACES = ([], [], None), ([], [])


def text_bytes(text, size):
    """Return text as whole UTF-8 characters in at most size bytes."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    return (text.encode("utf-8", "replace")[:size]
            .decode("utf-8", "ignore").encode("utf-8"))


def flatten(columns, most):
    """Return the values of records, row by row, and how many there are.

    columns  a list for each field, the first most of which are taken
    """
    rows = list(zip(*columns))[:most]
    return [value for row in rows for value in row], len(rows)


def pack_records(values, cpus, interfaces, structs={}):
    """Return the bytes of a node's records, whatever /proc made us count."""
    shape = cpus, interfaces
    if shape not in structs:
        structs.clear()
        structs[shape] = struct.Struct(
            "<" + NODE_CODES + CPU_CODES * cpus
            + INTERFACE_CODES * interfaces)
    try:
        return structs[shape].pack(*values)
    except (struct.error, OverflowError):
        rows = NODE + ONE_CPU * cpus + INTERFACE * interfaces
        return structs[shape].pack(*map(fitting, codes(rows), values))


def printable(data):
    """Return bytes of any kind as text on one line."""
    text = data.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else
                   char.encode("unicode_escape").decode() for char in text)


def known(code, value):
    """Return a field's value as text or number, None when it is absent."""
    if isinstance(value, bytes):
        return value.rstrip(b"\0").decode() or None
    return None if value == ABSENT[code] else value


def format_values(node, more):
    """Return a procstatd reply, a line per value that is known: under
    procstatd's own names, then more.

    node, more  {field of the node record: value}, {name: value}
    """
    total, free, boot = map(node.get, ("total_bytes", "free_bytes",
                                       "boot_time_s"))
    pairs = [("load1", node.get("one")), ("load5", node.get("five")),
             ("load15", node.get("fifteen")),
             ("mem_used", None if None in (total, free) else total - free),
             ("mem_free", free), ("shm_tot", node.get("shared_bytes")),
             ("proc", node.get("total")),
             ("uptime", None if boot is None else int(time.time()) - boot)]
    lines = ["%s %s" % (name, "%.7g" % value if isinstance(value, float)
                        else value)
             for name, value in pairs + list(more.items())
             if value is not None]
    return ("\n".join(lines) + "\n\n").encode()


def name_values(rows, values):
    """Return {field: value} of a record, None for what is absent."""
    return dict(zip(layout(rows)[1], map(known, codes(rows), values)))


def format_everything(message):
    """Return the reply with all values of a message."""
    node = name_values(NODE, NODE_STRUCT.unpack_from(message,
                                                     HEADER_STRUCT.size))
    return format_values(node, node)


def format_quick(columns, kernel, load):
    """Return procstatd's short reply, from /proc/stat and /proc/loadavg."""
    ticks = {}
    if columns:
        ticks = dict(zip(("user_ticks", "nice_ticks", "system_ticks",
                          "idle_ticks"),
                         [column[0] for column in fold_ticks(columns)[1:]]))
    return format_values(name_values(KERNEL + LOAD, (*kernel, *load)), ticks)


def pack_message(header, body):
    """Return a message: its header, its body and their CRC-32.

    header  (node, kind, start_us, sequence, period_s, time_s)
    """
    node, kind, start_us, sequence, period_s, time_s = header
    data = HEADER_STRUCT.pack(
        MAGIC, HEADER_STRUCT.size + len(body) + CRC_BYTES, node, kind,
        RECORDS_VERSION, start_us, sequence, period_s, time_s) + body
    return data + zlib.crc32(data).to_bytes(CRC_BYTES, "little")


# ---- files and sockets -------------------------------------------------


def is_address(host):
    """Return whether host is an IPv4 address rather than a name."""
    try:
        return bool(socket.inet_pton(socket.AF_INET, host))
    except OSError:
        return False


def is_group(host):
    """Return whether host is a multicast address."""
    return is_address(host) and is_in(host, [GROUPS])


def read_all(fd):
    """Return the bytes of a /proc file.

    One pread may return only the first page of a long file; a read of
    less than half a page was all of it.
    """
    data = more = os.pread(fd, READ_BYTES, 0)
    while more and len(data) > WHOLE_BYTES:
        more = os.pread(fd, READ_BYTES, len(data))
        data += more
    return data


class Sampler:
    """The node's /proc files, kept open, and the last counters read.

    A file that is missing or odd gives absent values, and is tried again
    once a minute.
    last, older  what rates are computed from, of the last sample and of the
                 one before: (CLOCK_MONOTONIC, of CPUs, of interfaces)
                 of CPUs: their ids, -1 the sums; the (used, idle) ticks of
                 each; the ten tick counters of all
                 of interfaces: their names, the bytes (received, sent)
    """

    def __init__(self, root, node, period_s, procstatd_port=0):
        self.root, self.node, self.period_s = root, node, period_s
        self.procstatd_port = procstatd_port
        self.start_us = int(time.time() * 1e6)
        self.sequence = self.send_errors = self.skipped = 0
        self.files = {}
        self.cost_s = time.process_time()
        self.identity = b""
        self.identity_due = 0.0
        self.last = self.older = 0.0, NO_CPUS, NO_INTERFACES
        self.take(SAMPLE)               # so that the first rates are real
        self.sequence = 0

    def read(self, name, parse, unknown):
        """Return what parse makes of a file, or unknown."""
        try:
            return parse(read_all(self.files[name]))
        except (KeyError, OSError, ValueError, IndexError):
            return unknown

    def read_identity(self):
        """Read what seldom changes; open the files that are not."""
        foreign = os.path.realpath(self.root) != "/proc"
        for name in "stat", "meminfo", "loadavg", "net/dev", "cpuinfo":
            # net is a link to the reader's own network, not the host's.
            places = ["1/" + name, name] if foreign and "/" in name else [name]
            for place in places:
                if name not in self.files:
                    try:
                        self.files[name] = os.open(
                            os.path.join(self.root, place),
                            os.O_RDONLY | os.O_CLOEXEC)
                    except OSError:
                        pass
        host = os.uname()
        vendor, model, *numbers = self.read(
            "cpuinfo", parse_cpuinfo, NO_PROCESSOR)
        self.identity = (
            text_bytes(host.nodename, 64), text_bytes(host.release, 64),
            text_bytes(host.machine, 16), text_bytes(vendor, 16),
            text_bytes(model, 64)) + tuple(numbers) + (
                os.sysconf("SC_CLK_TCK"),)

    def take_cpus(self, columns, before, elapsed_s):
        """Return (values of CPU, columns of ONE_CPU, their counters)."""
        ids_before, ticks_before, sums_before = before
        ids, user, nice, system, idle = fold_ticks(columns)
        ticks = list(zip(map(sum, zip(user, nice, system)), idle))
        shares = busy_shares(ticks, align(ids, ticks, ids_before,
                                          ticks_before),
                             elapsed_s * self.identity[-1])
        if ids != self.last[1][0]:
            self.identity_due = 0.0
        sums = [column[0] for column in columns[1:11]]
        sums += [ABSENT["Q"]] * (10 - len(sums))
        wrapped = [[count & ABSENT["I"] for count in column[1:]]
                   for column in (user, nice, system, idle)]
        return (sums + split_shares(shares[0] / FULL, sums,
                                    sums_before or sums),
                [ids[1:], shares[1:]] + wrapped, (ids, ticks, sums))

    def take_interfaces(self, interfaces, before, elapsed_s):
        """Return (values of NETWORK, columns of INTERFACE, their counters)."""
        names, columns = interfaces
        counts = list(zip(columns[0], columns[8]))
        counts_before = align(names, counts, *before)
        rx, tx = [rates([pair[way] for pair in counts],
                        [pair[way] for pair in counts_before], elapsed_s)
                  for way in (0, 1)]
        summed = [sum([rate for name, rate in zip(names, way)
                       if name != b"lo"]) for way in (rx, tx)]
        shown = [name if name.isalnum() else text_bytes(name, 16)
                 for name in names]
        return summed, [shown] + columns + [rx, tx], (names, counts)

    def take(self, kind):
        """Return the message of a new sample.

        Its rates go back to the sample before it; when that is too near,
        to the one before that.
        """
        now = time.monotonic()
        if now - self.last[0] >= FIRST_S * 0.9:
            self.older = self.last
        if now >= self.identity_due:
            self.read_identity()
            self.identity_due = now + IDENTITY_S
        body = self.take_records(now)
        self.sequence = self.sequence + 1 & ABSENT["I"]
        return pack_message((self.node, kind, self.start_us, self.sequence,
                             self.period_s, time.time()), body)

    def take_records(self, now):
        """Return the bytes of the node record, the CPUs, the interfaces."""
        taken, cpus_before, interfaces_before = self.older
        elapsed_s = now - taken or 1.0
        columns, kernel = self.read("stat", parse_stat, NO_STAT)
        interfaces = self.read("net/dev", parse_net_dev, None)
        cpu, cpus, cpus_now = NO_CPU, [], NO_CPUS
        network, records, interfaces_now = NO_NETWORK, [], NO_INTERFACES
        if columns:
            cpu, cpus, cpus_now = self.take_cpus(columns, cpus_before,
                                                 elapsed_s)
        if interfaces:
            network, records, interfaces_now = self.take_interfaces(
                interfaces, interfaces_before, elapsed_s)
        self.last = now, cpus_now, interfaces_now
        cpus, cpu_count = flatten(cpus, MOST_CPUS)
        room = RECORDS_BYTES - cpu_count * CPU_BYTES
        records, count = flatten(records, room // INTERFACE_STRUCT.size)
        clipped = (count < len(interfaces_now[0])
                   or cpu_count < len(cpus_now[0]) - 1)
        disk = os.statvfs("/")
        cost_s, self.cost_s = self.cost_s, time.process_time()
        return pack_records((
            *self.identity, *kernel, *cpu,
            *self.read("loadavg", parse_loadavg, NO_LOAD),
            *self.read("meminfo", parse_meminfo, NO_MEMORY),
            disk.f_frsize, disk.f_blocks, disk.f_bfree, disk.f_bavail,
            disk.f_files, disk.f_ffree, disk.f_namemax, *network,
            int((self.cost_s - cost_s) * 1e6), self.send_errors,
            self.skipped, self.procstatd_port, CLIPPED if clipped else 0,
            cpu_count, count, *cpus, *records), cpu_count, count)


class StartError(Exception):
    """What keeps the program from starting, and what to do."""


class Keys:
    """The keys of a file, one per line: the first signs, all verify.

    Raises  StartError when others may read the file, or it holds none
    """

    def __init__(self, path):
        # It loads OpenSSL, which costs 3 MB: only those who sign pay.
        from hashlib import blake2b
        self.blake2b, self.path, self.trouble = blake2b, path, ""
        self.read()

    def read(self):
        """Read the file."""
        try:
            with open(self.path, "rb") as file:
                found = os.fstat(file.fileno())
                keys = file.read().split(b"\n")
        except OSError as error:
            raise StartError("%s: %s" % (self.path, error.strerror))
        keys = [key.strip() for key in keys if key.strip()]
        if found.st_mode & 0o007:
            raise StartError("%s: others may read it: chmod o= %s"
                             % (self.path, self.path))
        if not keys or max(map(len, keys)) > self.blake2b.MAX_KEY_SIZE:
            raise StartError("%s: must hold keys of 1 to %d bytes, one a "
                             "line" % (self.path, self.blake2b.MAX_KEY_SIZE))
        self.keys = keys
        self.seen = found.st_ino, found.st_mtime, found.st_size

    def refresh(self):
        """Read the file when it has changed; keep the old keys when the
        new file will not do, and say so once in self.trouble."""
        try:
            found = os.stat(self.path)
            if (found.st_ino, found.st_mtime, found.st_size) != self.seen:
                self.read()
                self.trouble = ""
        except (OSError, StartError) as error:
            self.trouble = str(error)

    def sign(self, data, key=None):
        """Return the MAC_BYTES to put behind a message."""
        return self.blake2b(data, key=key or self.keys[0],
                            digest_size=MAC_BYTES).digest()

    def verify(self, data, mac):
        """Return whether one of the keys made the MAC."""
        return any([compare_digest(self.sign(data, key), mac)
                    for key in self.keys])


def ask(host, answers):
    """Append to answers the address of a name, or the OSError."""
    try:
        # As bytes: a str would make Python load its IDNA tables.
        answers.append(socket.getaddrinfo(
            host.encode(), None, socket.AF_INET, socket.SOCK_DGRAM)[0][4][0])
    except (OSError, UnicodeError) as error:
        answers.append(error)


def read_hosts_time():
    """Return when /etc/hosts was changed, 0 without it."""
    try:
        return os.stat(HOSTS).st_mtime_ns
    except OSError:
        return 0


def find_interface(name):
    """Return (index, network, mask) of an interface.

    Raises  OSError when it is not there or has no IPv4 address
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        numbers = []
        try:
            index = socket.if_nametoindex(name)
            for request in SIOCGIFADDR, SIOCGIFNETMASK:
                answer = fcntl.ioctl(sock, request, struct.pack(
                    "16s24x", name.encode()[:15]))
                numbers.append(int.from_bytes(answer[20:24], "big"))
        except OSError as error:
            raise OSError(error.errno, "interface %s %s" % (
                name, "has no IPv4 address" if error.errno
                == errno.EADDRNOTAVAIL else "is not there"))
    address, mask = numbers
    return index, address & mask, mask


def join_group(group, port, place):
    """Return a socket that hears a multicast group on one interface."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, struct.pack(
        "=4s4si", socket.inet_aton(group), bytes(4), place[0]))
    sock.bind((group, port))
    return sock


class Destination:
    """A master: its name, its address, and the socket connected to it.

    A name is looked up by a thread, so that a name server that does not
    answer delays no sample: at the start, once a minute, when /etc/hosts
    has changed, after an error, and with growing waits while there is no
    answer.  Meanwhile the last address stays in use.
    """

    def __init__(self, host, port, local, interface=None):
        self.host, self.port, self.local = host, port, local
        self.interface = interface if is_group(host) else None
        self.place = None
        self.name = "%s:%d" % (host, port)
        self.address = self.sock = self.group = None
        self.trouble = "name not looked up yet"
        self.answers, self.asking, self.asked = [], False, 0.0
        self.last_request = []
        self.ask_due, self.retry_s = 0.0, RETRY_S
        self.is_name, self.hosts_time = not is_address(host), 0
        if not self.is_name:
            self.address, self.ask_due = host, float("inf")

    def look_up(self, now):
        """Take the answer of the last look-up; start one that is due."""
        if self.answers:
            answer, self.asking = self.answers.pop(), False
            if isinstance(answer, str):
                self.sock = self.sock if answer == self.address else None
                self.address, self.retry_s = answer, RETRY_S
                self.ask_due = now + LOOK_UP_S
            else:
                self.trouble = answer.strerror or str(answer)
                self.ask_due = now + self.retry_s
                self.retry_s = min(self.retry_s * 2, LOOK_UP_S)
        elif self.is_name and not self.asking and (
                now >= self.ask_due or read_hosts_time() != self.hosts_time):
            self.asking, self.asked = True, now
            self.hosts_time = read_hosts_time()
            _thread.start_new_thread(ask, (self.host, self.answers))

    def connect(self):
        """Return a new socket to the address."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        if self.interface:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF,
                            struct.pack("=4s4si", bytes(4), bytes(4),
                                        self.place[0]))
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, TTL)
        sock.bind((self.local, 0))
        sock.connect((self.address, self.port))
        return sock

    def follow(self):
        """Take new sockets when the interface has become another.

        Raises  OSError when it is not there or has no address
        """
        if self.interface:
            place = find_interface(self.interface)
            if place != self.place or not self.group:
                self.place, self.sock = place, None
                self.group = join_group(self.address, self.port + 1, place)

    def sockets(self):
        """Return the sockets on which a master may ask for something."""
        return [sock for sock in (self.sock, self.group) if sock]

    def receive(self, sock):
        """Return a datagram that a master may have sent, else None."""
        try:
            data, sender = sock.recvfrom(REQUEST_BYTES + MAC_BYTES + 1)
        except OSError as error:
            if not isinstance(error, BlockingIOError):
                self.trouble, self.sock = error.strerror, None
            return None
        if sock is self.group and not is_in(sender[0], [self.place[1:]]):
            return None                 # from another network
        return data

    def send(self, message, now):
        """Return whether the kernel took the message.

        An error may be the answer to the message before this one, or tell
        of a route that is gone: so once more, from a new socket.
        """
        self.look_up(now)
        for _ in range(2 if self.address else 0):
            try:
                self.follow()
                self.sock = self.sock or self.connect()
                self.sock.send(message)
                return True
            except OSError as error:
                self.trouble, self.sock = error.strerror, None
        if self.is_name and self.address:       # it may have moved
            self.ask_due = min(self.ask_due, self.asked + RETRY_S)
            self.look_up(now)
        return False


def open_signals(numbers):
    """Return a descriptor that reads a byte, the number, per signal."""
    reader, writer = os.pipe()
    for fd in reader, writer:
        os.set_blocking(fd, False)
    signal.set_wakeup_fd(writer)
    for number in numbers:
        signal.signal(number, lambda *_: None)
    return reader


def daemonize(wait_s):
    """Fork; in the child, return the function that lets the parent go.

    The parent exits 0 when the child calls it, or after wait_s (None: no
    limit), and 1 when the child ends before.  Until then the child's
    errors reach the caller's terminal.
    """
    spare = 0
    while spare <= 2:                   # lest a socket get the number of
        spare = os.open("/", os.O_RDONLY)       # a standard file, and lose it
    os.close(spare)
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        heard, _, _ = select.select([reader], [], [], wait_s)
        os._exit(0 if not heard or os.read(reader, 1) else 1)
    os.close(reader)
    os.setsid()

    def release():
        try:
            null = os.open(os.devnull, os.O_RDWR)
        except OSError:                 # a root without /dev
            null = os.open("/", os.O_RDONLY)
        for fd in 0, 1, 2:
            os.dup2(null, fd)
        os.close(null)
        os.chdir("/")                   # what lies elsewhere may go
        os.write(writer, b".")
        os.close(writer)
    return release


class PidFile:
    """The file of --pid-file, if one is named: locked while this runs,
    which tells a stale one; written once ready, removed at the end.

    Raises  StartError when another process holds it, OSError
    """

    def __init__(self, path):
        self.file = open(path, "a+") if path else None
        try:
            if path:
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.file.seek(0)
            raise StartError("%s: is of another that runs (pid %s)" % (
                path, self.file.read().strip() or "unknown"))

    def write(self):
        """Write this process's number."""
        if self.file:
            self.file.truncate(0)
            self.file.write("%d\n" % os.getpid())
            self.file.flush()

    def remove(self):
        """Remove the file, if it still is this one."""
        try:
            if self.file and os.path.samestat(os.fstat(self.file.fileno()),
                                              os.stat(self.file.name)):
                os.unlink(self.file.name)
        except OSError:
            pass                        # it is gone, or its folder read-only


def lower_oom_score():
    """Ask the kernel to end others first when memory runs out."""
    try:
        with open("/proc/self/oom_score_adj", "wb") as file:
            file.write(OOM_SCORE)
    except OSError:
        pass                            # only root may


class Procstatd:
    """Answers TCP clients about this node, a slice of work at a time.

    clients  {socket: client}, a client being a dict of
             heard  when it last did something, CLOCK_MONOTONIC
             lines  bytes received, not yet commands
             reply  bytes to send
             job    generator of the reply under way, or None
    """

    def __init__(self, port, may_ask, root):
        self.may_ask, self.root = may_ask, root
        self.sampler = Sampler(root, UNNUMBERED, 1.0)
        self.page_kb = os.sysconf("SC_PAGE_SIZE") // 1024
        self.clients = {}
        self.listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.listener.setblocking(False)
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self.listener.bind(("", port))
            self.listener.listen(CLIENTS)
        except OSError as error:
            raise StartError("--procstatd %d: %s" % (port, error.strerror))

    def readers(self):
        """Return the sockets to read: a client waits for its reply first."""
        return [self.listener] + [
            sock for sock, client in self.clients.items()
            if not (client["reply"] or client["job"]
                    or b"\n" in client["lines"])]

    def writers(self):
        """Return the sockets with a reply to send."""
        return [sock for sock, client in self.clients.items()
                if client["reply"]]

    def serve(self, ready, until):
        """Take what clients send, and work for them until then at most.

        ready   sockets that can be read or written
        """
        now = time.monotonic()
        for sock, client in list(self.clients.items()):
            try:
                if sock in ready:
                    self.exchange(sock, client)
                    client["heard"] = now
                self.work(client, min(until, now + SLICE_S))
            except (OSError, ValueError):
                client["heard"] = -IDLE_S       # gone, or makes no sense
            if now - client["heard"] > IDLE_S:
                del self.clients[sock]
                sock.close()
        if self.listener in ready:
            self.accept(now)

    def accept(self, now):
        """Take a new client, or refuse it at once."""
        try:
            sock, address = self.listener.accept()
        except OSError:
            return
        if len(self.clients) < CLIENTS and self.may_ask(address[0]):
            sock.setblocking(False)
            self.clients[sock] = dict(heard=now, lines=b"", reply=b"",
                                      job=None)
        else:
            sock.close()

    def exchange(self, sock, client):
        """Send some of a reply, or take some of the next commands.

        Raises  OSError, ValueError when the client is to be dropped
        """
        if client["reply"]:
            client["reply"] = client["reply"][sock.send(client["reply"]):]
            return
        data = sock.recv(LINE_BYTES)
        client["lines"] += data
        if not data or len(client["lines"].partition(b"\n")[0]) > LINE_BYTES:
            raise ValueError("the end, or a line that is too long")

    def work(self, client, end):
        """Go on with a client's reply until then; begin the next one.

        Raises  ValueError for a command that is none, `quit` among them
        """
        while time.monotonic() < end and not client["reply"]:
            if client["job"]:
                try:
                    client["reply"] = next(client["job"])
                except StopIteration:
                    client["job"] = None
                continue
            line, newline, rest = client["lines"].partition(b"\n")
            if not newline:
                return
            if line.strip() not in self.COMMANDS:
                raise ValueError("no command")
            client["lines"] = rest
            client["job"] = self.COMMANDS[line.strip()](self)

    def init(self):
        """Begin to measure: the rates of `send` go back to here."""
        self.sampler.take(SAMPLE)
        yield b"\n"

    def send(self):
        """Reply everything that a sample has."""
        yield format_everything(self.sampler.take(SAMPLE))

    def quik(self):
        """Reply what /proc/stat and /proc/loadavg have."""
        columns, kernel = self.sampler.read("stat", parse_stat, NO_STAT)
        load = self.sampler.read("loadavg", parse_loadavg, NO_LOAD)
        yield format_quick(columns, kernel, load)

    def jobs(self):
        """Reply the number of processes, then a line for each."""
        lines = []
        for pid in filter(str.isdigit, os.listdir(self.root)):
            lines += read_job(self.root, pid, self.page_kb)
            yield b""
        yield ("%d\n%s\n" % (len(lines), "".join(lines))).encode()

    COMMANDS = {b"init": init, b"send": send, b"quik": quik, b"jobs": jobs}


def read_job(root, pid, page_kb):
    """Return [the line of a process], [] when it has vanished.

    Source  proc(5), /proc/PID/stat and cmdline
    """
    folder = os.path.join(root, pid)
    texts = []
    try:
        for name in "stat", "cmdline":
            fd = os.open(os.path.join(folder, name), os.O_RDONLY)
            try:
                texts.append(os.read(fd, READ_BYTES))
            finally:
                os.close(fd)
        name, ppid, *numbers = parse_job(texts[0], page_kb)
        uid = os.stat(folder).st_uid
    except (OSError, ValueError, IndexError):
        return []
    command = texts[1].rstrip(b"\0").replace(b"\0", b" ")
    command = command or b"[" + name + b"]"     # a thread of the kernel
    return ["%s %d %d %s %d %d %d %d %s\n" % (
        pid, ppid, uid, *numbers, printable(command)[:COMMAND_CHARACTERS])]


# ---- run ---------------------------------------------------------------


def next_due(now, period_s, phase_s):
    """Return the first instant of a fixed phase that is not too near.

    An instant that passed while a sample overran is skipped.
    """
    due = now + period_s - (now - phase_s) % period_s
    if due - now < min(FIRST_S, period_s / 2):
        due += period_s
    return due


class Agent:
    """One run: its samples, where they go, and who may ask for more.

    due, answer_due     when the next sample is, and one asked for
    answered            when the last message left
    listen_at           masters are not listened to before: nobody makes
                        the agent work more than five times a second
    told_until          the period asked for holds as long
    """

    def __init__(self, args):
        self.args, self.phase = args, (args.node - UNNUMBERED) * GOLDEN % 1
        self.sampler = Sampler(args.proc, args.node, args.rate,
                               args.procstatd or 0)
        self.destinations = [
            Destination(host, port, args.address, args.interface)
            for host, port in args.destinations]
        self.procstatd = None
        if args.procstatd:
            self.procstatd = Procstatd(args.procstatd, self.may_ask,
                                       args.proc)
        self.keys = Keys(args.key_file) if args.key_file else None
        self.signals = open_signals(STOP + (signal.SIGHUP,))
        self.started = time.monotonic()
        self.due = self.answer_due = self.told_until = float("inf")
        self.answered = self.listen_at = 0.0

    def may_ask(self, address):
        """Return whether an address may use procstatd."""
        if self.args.allow:
            return is_in(address, self.args.allow)
        return is_in(address, [LOOPBACK]) or address in [
            each.address for each in self.destinations]

    def wait(self):
        """Serve masters and clients until a sample is due.

        Returns  the numbers of the signals that came before
        """
        while True:
            now = time.monotonic()
            until = min(self.due, self.answer_due)
            if now >= until:
                return b""
            masters, readers, writers = {}, [], []
            if now >= self.listen_at:
                masters = {sock: each for each in self.destinations
                           for sock in each.sockets()}
            else:
                until = min(until, self.listen_at)
            daemon = self.procstatd
            if daemon:
                readers, writers = daemon.readers(), daemon.writers()
                if len(readers) + len(writers) <= len(daemon.clients):
                    if until - now > SLICE_S:
                        until = now             # a reply is under way
                elif daemon.clients:
                    until = min(until, now + TICK_S)
            ready, writable, _ = select.select(
                [self.signals, *masters, *readers], writers, [],
                max(until - now, 0) if until < float("inf") else None)
            if self.signals in ready:
                return os.read(self.signals, 64)
            for sock in ready:
                if sock in masters:
                    self.hear(masters[sock], sock)
            if daemon:
                daemon.serve(ready + writable,
                             min(self.due, self.answer_due) - SLICE_S)

    def hear(self, destination, sock):
        """Take what a master asks for, if it is one that may."""
        now = time.monotonic()
        self.listen_at = now + ANSWER_S
        for _ in range(REQUESTS):
            data = destination.receive(sock)
            if data is None:
                return
            try:
                node, *order, period_s, spread_s = parse_request(
                    self.verified(data))
            except ValueError:
                continue
            if node not in (UNNUMBERED, self.args.node):
                continue
            if self.keys and order <= destination.last_request:
                continue                        # replayed
            destination.last_request = order
            self.told_until = now + TOLD_S
            self.set_period(period_s or self.args.rate, now)
            self.answer_due = min(self.answer_due, max(
                now + spread_s * self.phase, self.answered + ANSWER_S))

    def verified(self, data):
        """Return a request without its MAC.

        Raises  ValueError when it must have one, and has not
        """
        mac = data[REQUEST_BYTES:]
        if len(mac) == MAC_BYTES:
            data = data[:REQUEST_BYTES]
        if self.keys and not self.keys.verify(data, mac):
            raise ValueError("not signed with a key of ours")
        return data

    def set_period(self, period_s, now):
        """Take another period, from the next sample on."""
        if abs(period_s - self.sampler.period_s) > 1e-6:
            self.sampler.period_s = period_s
            self.due = next_due(now, period_s, self.phase * period_s)

    def send(self, kind):
        """Take a sample; return to how many destinations it was sent."""
        message = self.sampler.take(kind)
        if self.keys:
            self.keys.refresh()
            message += self.keys.sign(message)
        now, sent = time.monotonic(), 0
        self.answered, self.answer_due = now, float("inf")
        for each in self.destinations:
            taken = each.send(message, now)
            sent += taken
            self.sampler.send_errors += not taken
            if self.args.debug:
                print("sequence %d, %d bytes to %s: %s" % (
                    self.sampler.sequence, len(message), each.name,
                    "sent" if taken else each.trouble), flush=True)
        return sent

    def look_again(self, now):
        """Look names up and read the keys again, as SIGHUP asks."""
        if self.keys:
            self.keys.refresh()
        for each in self.destinations:
            if each.is_name:
                each.ask_due = min(each.ask_due, now)
                each.look_up(now)

    def start(self):
        """Send the first message, or try for START_S.

        Returns  whether to go on: it was not told to stop, nor --once
        Raises   StartError when --once could not send
        """
        sent, once = 0, self.args.once
        limit = self.started + (ONCE_S if once else START_S)
        for each in self.destinations:
            each.look_up(self.started)
        while self.destinations and not sent and time.monotonic() < limit:
            self.due = time.monotonic() + FIRST_S
            if set(self.wait()) - {signal.SIGHUP}:
                return False
            sent = self.send(SAMPLE)
        troubles = ["%s: %s" % (each.name, each.trouble)
                    for each in self.destinations if not each.sock]
        if once and not sent:
            raise StartError("; ".join(troubles))
        for trouble in troubles:
            complain(trouble + ": trying again")
        time.sleep(0 if once else SETTLE_S)
        return not once

    def run(self):
        """Send a sample a period until told to stop, then a farewell."""
        if self.destinations:
            period_s = self.sampler.period_s
            self.due = next_due(time.monotonic(), period_s,
                                self.phase * period_s)
        while True:
            told = self.wait()
            if set(told) - {signal.SIGHUP}:
                break
            now = time.monotonic()
            if told:
                self.look_again(now)
                continue
            if now < self.due:                  # asked for
                self.send(SAMPLE)
                continue
            self.send(SAMPLE)
            if now > self.told_until:
                self.set_period(self.args.rate, now)
            period_s = self.sampler.period_s
            before, self.due = self.due, next_due(
                time.monotonic(), period_s, self.phase * period_s)
            self.sampler.skipped += max(
                round((self.due - before) / period_s) - 1, 0)
        if self.destinations:
            self.send(FAREWELL)


# ---- command line ------------------------------------------------------


def number_in(low, high, kind=float):
    """Return argparse's check of a number between two others."""
    from argparse import ArgumentTypeError

    def number(text):
        value = kind(text)
        if not low <= value <= high:
            raise ArgumentTypeError(
                "%s is not between %s and %s" % (text, low, high))
        return value
    return number


def network(text):
    """Return argparse's reading of a network."""
    from argparse import ArgumentTypeError
    try:
        return parse_network(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error))


def node_number(text):
    """Return a node number.

    Raises  ValueError when text is none
    """
    node = int(text)
    if not UNNUMBERED <= node < 2**31:
        raise ValueError("node number %s is out of range" % text)
    return node


def parse_operands(args, operands, environment):
    """Set the node number and the destinations of args.

    Raises  ValueError, which says what is wrong
    """
    args.node = UNNUMBERED
    if operands and operands[0].lstrip("-").isdigit():
        args.node = node_number(operands.pop(0))
    elif args.procstatd and not operands and not environment.get("NODE"):
        args.destinations = []          # procstatd alone
        return
    elif environment.get("NODE"):
        try:
            args.node = node_number(environment["NODE"])
        except ValueError:
            raise ValueError("$NODE is no node number: %r"
                             % environment["NODE"])
    args.destinations = [parse_destination(operand, args.port)
                         for operand in operands or [
                             GROUP if args.interface else "master"]]


def make_parser():
    """Return the parser of the options; its help is the text above."""
    import argparse
    parser = argparse.ArgumentParser(
        prog="sendstats",
        usage="sendstats.py [options] [NODENUMBER] [ADDRESS[:PORT] ...]",
        # A width, lest it load shutil, which a minimal Python has not.
        formatter_class=lambda prog: argparse.HelpFormatter(prog, width=79))
    parser.format_help = lambda: __doc__ or parser.format_usage()
    option = parser.add_argument
    option("operands", nargs="*")
    option("-r", "--rate", type=number_in(*PERIODS_S))
    option("-p", "--port", type=number_in(1, 65535, int))
    option("-a", "--address")
    option("-i", "--interface")
    option("-f", "--foreground", action="store_true")
    option("-d", "--debug", action="store_true")
    option("--once", action="store_true")
    option("--proc", type=os.path.abspath)
    option("--pid-file", type=os.path.abspath)
    option("--key-file", type=os.path.abspath)
    option("--procstatd", type=number_in(1, 65535, int))
    option("--allow", type=network, action="append")
    option("-v", "--version", action="version",
           version="sendstats " + VERSION)
    parser.set_defaults(**DEFAULTS)
    return parser


def is_option(word):
    """Return whether a word is an option, rather than a node's number."""
    return word.startswith("-") and not word[1:].isdigit()


def parse_args(argv, environment):
    """Return the options; argparse exits 2 on a usage error.

    Without an option it is not loaded: it costs 5 ms and 1 MB.
    """
    args, more = types.SimpleNamespace(**DEFAULTS), argv
    if any(map(is_option, argv)):
        args, more = make_parser().parse_known_args(argv)
    args.port = args.port or (GROUP_PORT if args.interface else PORT)
    try:        # argparse loses operands that follow an option
        for word in filter(is_option, more):
            raise ValueError("unrecognized argument: " + word)
        parse_operands(args, args.operands + more, environment)
    except ValueError as error:
        make_parser().error(str(error))
    return args


def check_start(args):
    """Find what would keep the agent from sending.

    Raises  StartError
    """
    try:
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).bind(
            (args.address, 0))
    except OSError as error:
        raise StartError("-a %s: %s: name an address of this node"
                         % (args.address, error.strerror or error))
    if not os.path.isdir(args.proc):
        raise StartError("--proc %s: no such folder" % args.proc)


def complain(text):
    """Write a line to standard error."""
    print("sendstats: %s" % text, file=sys.stderr)


def explain(error):
    """Return what an error at the start says, and of which file."""
    if isinstance(error, OSError) and error.filename:
        return "%s: %s" % (error.filename, error.strerror)
    return str(error)


def main(argv=None):
    """Return the exit status: 0 told to stop, 1 could not start."""
    args = parse_args(sys.argv[1:] if argv is None else argv, os.environ)
    try:
        check_start(args)
        pid_file = PidFile(args.pid_file)
        try:
            release = str
            if not (args.debug or args.foreground or args.once):
                release = daemonize(START_S)
            lower_oom_score()
            agent = Agent(args)
            if agent.start():
                pid_file.write()
                release()
                agent.run()
        finally:
            pid_file.remove()
    except (StartError, OSError) as error:
        complain(explain(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
