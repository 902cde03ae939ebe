#!/usr/bin/env python3
"""sendstats - report this node's statistics to the masters

    sendstats.py [options] [NODENUMBER] [ADDRESS[:PORT] ...]

Reads /proc once a period, packs one sample into one message and sends it
as one UDP datagram to every master named.  A lost one is replaced by the
next.  The reader of a sample needs no other: rates are computed here.

Exit status: 0 told to stop, 1 could not start, 2 usage.
"""

import _thread
import argparse
import os
import select
import signal
import socket
import struct
import sys
import time
import zlib

# ---- constants ---------------------------------------------------------

VERSION = "1.0"
PORT = 5545
PERIOD_S = 1.0
PERIODS_S = 0.01, 3600.0        # the shortest and the longest period
FIRST_S = 0.2                   # from the start to the first message
SETTLE_S = 0.05                 # a master on this machine stores meanwhile
START_S = 1.0                   # the longest a daemon's parent waits
ONCE_S = 5.0                    # the longest --once tries to send
IDENTITY_S = 60.0               # between two looks at /proc/cpuinfo
LOOK_UP_S = 60.0                # between two look-ups of a master's name
RETRY_S = 1.0                   # first wait after a failed look-up
MESSAGE_BYTES = 65000           # no message is longer
CRC_BYTES = 4
MOST_CPUS = 3000                # that one can hold
READ_BYTES = 65536
WHOLE_BYTES = 2048              # a shorter read was all of the file
FIRST_LINES = 100               # of /proc/cpuinfo: more than one CPU's
FULL = 10000                    # the busy share of a CPU that never idles
GOLDEN = 0.6180339887498949     # spreads whole numbers evenly over 0 to 1
OOM_SCORE = b"-900"
STOP = signal.SIGTERM, signal.SIGINT

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
STAT = (b"btime ", b"ctxt ", b"intr ", b"processes ", b"procs_running ",
        b"procs_blocked ")

# ---- layout: rows ------------------------------------------------------
# A row is (fields, code, unit, meaning); each of its fields has the code.


def layout(rows):
    """Return (Struct, {field: byte offset}) of a table of fields."""
    code, offset = "<", {}
    for fields, field_code, _unit, _meaning in rows:
        for field in fields.split():
            offset[field] = struct.calcsize(code)
            code += field_code
    return struct.Struct(code), offset


# ---- layout: header ----------------------------------------------------
# A change of size or order here raises the last byte of MAGIC.

MAGIC = b"BEO\x01"
SAMPLE, FAREWELL, REQUEST = 1, 2, 3
MASTER, UNNUMBERED = -1, -2
HEADER = (
    ("magic", "4s", "", "b'BEO' and the header's version, 1"),
    ("length", "I", "bytes", "of the message, its CRC included"),
    ("node", "i", "", "number; -1 the master, -2 to be told by address"),
    ("kind", "H", "", "1 sample, 2 farewell, 3 request"),
    ("version", "H", "", "of the records that follow"),
    ("start_us", "Q", "us", "when the agent started, since the epoch"),
    ("sequence", "I", "", "1, 2, 3 ... since that start; it wraps"),
    ("period_s", "f", "s", "between two samples"),
    ("time_s", "d", "s", "of the sample, since the epoch, node's clock"),
)

# ---- layout: records ---------------------------------------------------
# A change of size or order here raises RECORDS_VERSION.  A value that the
# node does not know is ABSENT; an unknown text is empty.

RECORDS_VERSION = 1
ABSENT = {"H": 2**16 - 1, "I": 2**32 - 1, "Q": 2**64 - 1, "f": -1.0}
CLIPPED = 1                     # a flag: some interfaces did not fit
HOST = (
    ("hostname release", "64s", "", "node name, kernel release; uname(2)"),
    ("machine", "16s", "", "hardware name; uname(2)"),
)
PROCESSOR = (
    ("vendor", "16s", "", "vendor_id; /proc/cpuinfo"),
    ("model", "64s", "", "model name; /proc/cpuinfo"),
    ("mhz", "f", "MHz", "cpu MHz of the first CPU; /proc/cpuinfo"),
    ("cache_kb", "I", "kB", "cache size; /proc/cpuinfo"),
    ("bogomips", "f", "", "of the first CPU; /proc/cpuinfo"),
    ("sockets cores", "H", "", "distinct physical ids, cores in them; "
     "/proc/cpuinfo"),
    ("ticks_per_s", "H", "Hz", "USER_HZ; sysconf(3)"),
)
KERNEL = (
    ("boot_time_s", "Q", "s", "btime, since the epoch; /proc/stat"),
    ("context_switches interrupts forks", "Q", "", "ctxt, intr, processes "
     "since boot; /proc/stat"),
    ("running blocked", "I", "", "procs_running less the agent itself, "
     "procs_blocked; /proc/stat"),
)
CPU = (
    ("user_ticks nice_ticks system_ticks idle_ticks iowait_ticks irq_ticks "
     "softirq_ticks steal_ticks guest_ticks guest_nice_ticks", "Q", "ticks",
     "of all CPUs since boot; cpu line of /proc/stat"),
    ("busy_fraction user_fraction nice_fraction system_fraction "
     "iowait_fraction", "f", "", "0 to 1, over the last period; busy is "
     "user, nice and system"),
)
LOAD = (
    ("one five fifteen", "f", "", "load averages; /proc/loadavg"),
    ("active total last_pid", "I", "", "processes running (less the agent "
     "itself), processes, newest process id; /proc/loadavg"),
)
MEMORY = (
    ("total_bytes free_bytes available_bytes buffers_bytes cached_bytes "
     "shared_bytes reclaimable_bytes swap_total_bytes swap_free_bytes",
     "Q", "bytes", "MemTotal MemFree MemAvailable Buffers Cached Shmem "
     "SReclaimable SwapTotal SwapFree; /proc/meminfo"),
)
DISK = (
    ("block_bytes", "Q", "bytes", "size of a block of /; statvfs(3)"),
    ("blocks free_blocks available_blocks", "Q", "blocks", "of /: all, "
     "free, free to users; statvfs(3)"),
    ("files free_files", "Q", "", "inodes of /; statvfs(3)"),
    ("name_max", "I", "", "longest file name in /; statvfs(3)"),
)
NETWORK = (
    ("rx_bytes_per_s tx_bytes_per_s", "Q", "bytes/s", "received and sent "
     "over the last period, all interfaces but lo"),
)
AGENT = (
    ("cost_us", "I", "us", "CPU time of the agent since its last sample"),
    ("send_errors", "I", "", "messages that the kernel refused to send"),
    ("skipped", "I", "", "samples left out because one overran"),
    ("procstatd_port", "H", "", "TCP port of its procstatd, 0 none"),
    ("flags", "H", "", "1 some interfaces did not fit in the message"),
    ("cpus interfaces", "H", "", "records that follow: CPUs that are on "
     "line, interfaces"),
)
NODE = HOST + PROCESSOR + KERNEL + CPU + LOAD + MEMORY + DISK + NETWORK + AGENT
ONE_CPU = (
    ("id", "H", "", "CPU number; /proc/stat"),
    ("busy", "H", "1/10000", "share of the last period"),
    ("user_ticks nice_ticks system_ticks idle_ticks", "I", "ticks",
     "since boot, they wrap; irq, softirq and steal are in system, iowait "
     "in idle; /proc/stat"),
)
INTERFACE = (
    ("name", "16s", "", "of the interface; /proc/net/dev"),
    ("rx_bytes rx_packets", "Q", "", "received; /proc/net/dev"),
    ("rx_errors rx_dropped rx_fifo rx_frame rx_compressed rx_multicast",
     "I", "", "receive columns, they wrap; /proc/net/dev"),
    ("tx_bytes tx_packets", "Q", "", "sent; /proc/net/dev"),
    ("tx_errors tx_dropped tx_fifo tx_collisions tx_carrier tx_compressed",
     "I", "", "transmit columns, they wrap; /proc/net/dev"),
    ("rx_bytes_per_s tx_bytes_per_s", "Q", "bytes/s", "over the last "
     "period"),
)

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


def parse_counts(text, keys):
    """Return the number behind each key, ABSENT["Q"] where there is none.

    text    lines of `key number ...`
    Raises  ValueError when something else follows a key
    """
    counts = []
    text = b"\n" + text
    for key in keys:
        start = text.find(b"\n" + key)
        if start < 0:
            counts.append(ABSENT["Q"])
        else:
            start += len(key) + 1
            counts.append(int(text[start:start + 32].split(None, 1)[0]))
    return counts


def parse_meminfo(text):
    """Return the values of MEMORY.

    Raises  ValueError when a number is none
    Source  proc(5), /proc/meminfo, whose unit is the kB of 1,024 bytes
    """
    unknown = ABSENT["Q"]
    return [kb if kb == unknown else kb * 1024
            for kb in parse_counts(text, MEMINFO)]


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
    width = len(lines.split(b"\n", 1)[0].split())
    numbers = [int(number) for number in lines.split()]
    if width < 5 or len(numbers) % width:
        raise ValueError("/proc/stat: cpu lines of different width")
    if max(numbers[::width]) >= ABSENT["H"]:
        raise ValueError("/proc/stat: CPU number too high")
    kernel = parse_counts(text[end + 1:], STAT)
    if 0 < kernel[4] < ABSENT["Q"]:
        kernel[4] -= 1
    kernel[4:] = [min(count, ABSENT["I"]) for count in kernel[4:]]
    return [numbers[column::width] for column in range(width)], kernel


def fold_ticks(columns):
    """Return lists (ids, user, nice, system, idle) of the cpu lines.

    They sum to all time: irq, softirq and steal count as system, iowait
    as idle; guest time is in user and nice already.
    """
    ids, user, nice, system, idle, *rest = columns
    return (ids, user, nice,
            [sum(ticks) for ticks in zip(system, *rest[1:4])],
            [sum(ticks) for ticks in zip(idle, *rest[:1])])


def busy_shares(counters, before, period_ticks):
    """Return each CPU's busy share of a period, 0 to FULL.

    counters      (used, idle) ticks of each CPU
    before        the same a period ago
    period_ticks  length of the period, which stands in for an idle
                  counter that went backwards
    """
    shares = []
    for (used, idle), (used_before, idle_before) in zip(counters, before):
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
    grown = [max(now - then, 0) for now, then in zip(sums, before or sums)]
    user, nice, system, idle, iowait, irq, softirq, steal = grown[:8]
    used = user, nice, system + irq + softirq + steal
    waiting = (ABSENT["f"] if sums[4] == ABSENT["Q"]
               else (1 - busy) * iowait / (idle + iowait or 1))
    return ([busy] + [busy * ticks / (sum(used) or 1) for ticks in used]
            + [waiting])


def parse_net_dev(text):
    """Return [(interface name, its 16 columns)].

    Raises  ValueError when the kernel's columns are not the 16 we know
    Source  proc(5), /proc/net/dev
    """
    interfaces = []
    for line in text.splitlines()[2:]:              # two heading lines
        name, _, counters = line.rpartition(b":")
        columns = [int(number) for number in counters.split()]
        if len(columns) != 16:
            raise ValueError("/proc/net/dev: %d columns" % len(columns))
        interfaces.append((name.strip(), columns))
    return interfaces


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


def rate(count, before, elapsed_s):
    """Return a counter's rate a second; 0 after a reset."""
    return int((count - before) / elapsed_s) if count > before else 0


def parse_destination(text, port):
    """Return (host, port) of `HOST[:PORT]`.

    Raises  ValueError when the port is none
    """
    host, colon, number = text.partition(":")
    port = int(number) if colon else port
    if not host or not 0 < port < 65536:
        raise ValueError(text)
    return host, port


# ---- format ------------------------------------------------------------

HEADER_STRUCT, _ = layout(HEADER)
NODE_STRUCT, _ = layout(NODE)
INTERFACE_STRUCT, _ = layout(INTERFACE)
CPU_CODES = "".join(codes(ONE_CPU))
CPU_BYTES = struct.calcsize("<" + CPU_CODES)
NO_CPU, NO_LOAD, NO_MEMORY, NO_NETWORK, NO_PROCESSOR, NO_STAT = (
    absent(CPU), absent(LOAD), absent(MEMORY), absent(NETWORK),
    absent(PROCESSOR)[:-1], (None, absent(KERNEL)))


def text_bytes(text, size):
    """Return text as whole UTF-8 characters in at most size bytes."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    return (text.encode("utf-8", "replace")[:size]
            .decode("utf-8", "ignore").encode("utf-8"))


def pack_record(record, rows, values):
    """Return the bytes of a record, whatever /proc made us count."""
    try:
        return record.pack(*values)
    except (struct.error, OverflowError):
        return record.pack(*map(fitting, codes(rows), values))


def pack_cpus(ids, shares, ticks):
    """Return the bytes of all CPU records.

    ticks   lists (user, nice, system, idle)
    """
    width = len(CPU_CODES)
    values = [0] * (width * len(ids))
    for place, column in enumerate((ids, shares) + ticks):
        values[place::width] = column
    wrap = ABSENT["I"]
    return struct.pack("<" + CPU_CODES * len(ids),
                       *[value & wrap for value in values])


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
    """

    def __init__(self, root, node, period_s):
        self.root = root
        self.node = node
        self.period_s = period_s
        self.start_us = int(time.time() * 1e6)
        self.sequence = self.send_errors = self.skipped = 0
        self.files = {}
        self.cost_s = time.process_time()
        self.identity = b""
        self.identity_due = self.taken = 0.0
        self.cpu_ids, self.cpu_counters, self.cpu_sums = [], [], None
        self.net_bytes = {}
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

    def take_cpus(self, columns, elapsed_s):
        """Return (values of CPU, bytes of the CPU records)."""
        ids, *ticks = fold_ticks(columns)
        counters = [(user + nice + system, idle)
                    for user, nice, system, idle in zip(*ticks)]
        before = self.cpu_counters
        if ids != self.cpu_ids:
            known = dict(zip(self.cpu_ids, before))
            before = [known.get(*pair) for pair in zip(ids, counters)]
            self.identity_due = 0.0
        shares = busy_shares(counters, before, elapsed_s * self.identity[-1])
        self.cpu_ids, self.cpu_counters = ids, counters
        sums = [column[0] for column in columns[1:11]]
        sums += [ABSENT["Q"]] * (10 - len(sums))
        fractions = split_shares(shares[0] / FULL, sums, self.cpu_sums)
        self.cpu_sums = sums
        some = slice(1, MOST_CPUS + 1)
        return sums + fractions, pack_cpus(
            ids[some], shares[some], tuple(column[some] for column in ticks))

    def take_interfaces(self, interfaces, elapsed_s):
        """Return (values of NETWORK, list of interface records)."""
        records, rx_sum, tx_sum, net_bytes = [], 0, 0, {}
        for name, columns in interfaces:
            now = columns[0], columns[8]
            before = self.net_bytes.get(name, now)
            rx, tx = [rate(*pair, elapsed_s) for pair in zip(now, before)]
            net_bytes[name] = now
            if name != b"lo":
                rx_sum += rx
                tx_sum += tx
            if not name.isalnum():
                name = text_bytes(name, 16)
            records.append(pack_record(INTERFACE_STRUCT, INTERFACE,
                                       [name] + columns + [rx, tx]))
        self.net_bytes = net_bytes
        return (rx_sum, tx_sum), records

    def take(self, kind):
        """Return the message of a new sample."""
        now = time.monotonic()
        elapsed_s = max(now - self.taken, 1e-3)
        self.taken = now
        if now >= self.identity_due:
            self.read_identity()
            self.identity_due = now + IDENTITY_S
        columns, kernel = self.read("stat", parse_stat, NO_STAT)
        interfaces = self.read("net/dev", parse_net_dev, None)
        cpu, cpus, network, records = NO_CPU, b"", NO_NETWORK, []
        if columns:
            cpu, cpus = self.take_cpus(columns, elapsed_s)
        else:
            self.cpu_ids = []
        if interfaces is not None:
            network, records = self.take_interfaces(interfaces, elapsed_s)
        room = (MESSAGE_BYTES - HEADER_STRUCT.size - NODE_STRUCT.size
                - len(cpus) - CRC_BYTES) // INTERFACE_STRUCT.size
        cpu_count = len(cpus) // CPU_BYTES
        clipped = len(records) > room or cpu_count < len(self.cpu_ids) - 1
        disk = os.statvfs("/")
        cost_s, self.cost_s = self.cost_s, time.process_time()
        node = pack_record(NODE_STRUCT, NODE, (
            *self.identity, *kernel, *cpu,
            *self.read("loadavg", parse_loadavg, NO_LOAD),
            *self.read("meminfo", parse_meminfo, NO_MEMORY),
            disk.f_frsize, disk.f_blocks, disk.f_bfree, disk.f_bavail,
            disk.f_files, disk.f_ffree, disk.f_namemax, *network,
            int((self.cost_s - cost_s) * 1e6), self.send_errors,
            self.skipped, 0, CLIPPED if clipped else 0, cpu_count,
            len(records[:room])))
        self.sequence = self.sequence + 1 & ABSENT["I"]
        return pack_message(
            (self.node, kind, self.start_us, self.sequence, self.period_s,
             time.time()), node + cpus + b"".join(records[:room]))


class StartError(Exception):
    """What keeps the program from starting, and what to do."""


def ask(host, answers):
    """Append to answers the address of a name, or the OSError."""
    try:
        # As bytes: a str would make Python load its IDNA tables.
        answers.append(socket.getaddrinfo(
            host.encode(), None, socket.AF_INET, socket.SOCK_DGRAM)[0][4][0])
    except (OSError, UnicodeError) as error:
        answers.append(error)


class Destination:
    """A master: its name, its address, and the socket connected to it.

    A name is looked up by a thread, so that a name server that does not
    answer delays no sample: at the start, once a minute, after an error,
    and with growing waits while there is no answer.  Meanwhile the last
    address stays in use.
    """

    def __init__(self, host, port, local):
        self.host, self.port, self.local = host, port, local
        self.name = "%s:%d" % (host, port)
        self.address = self.sock = None
        self.trouble = "name not looked up yet"
        self.answers, self.asking = [], False
        self.ask_due, self.retry_s = 0.0, RETRY_S
        if is_address(host):
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
        elif now >= self.ask_due and not self.asking:
            self.asking = True
            _thread.start_new_thread(ask, (self.host, self.answers))

    def connect(self):
        """Return a new socket to the address."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.bind((self.local, 0))
        sock.connect((self.address, self.port))
        return sock

    def send(self, message, now):
        """Return whether the kernel took the message.

        An error may be the answer to the message before this one, or tell
        of a route that is gone: so once more, from a new socket.
        """
        self.look_up(now)
        for _ in range(2 if self.address else 0):
            try:
                self.sock = self.sock or self.connect()
                self.sock.send(message)
                return True
            except OSError as error:
                self.trouble, self.sock = error.strerror, None
                if not is_address(self.host):
                    self.ask_due = min(self.ask_due, now + RETRY_S)
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
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        heard, _, _ = select.select([reader], [], [], wait_s)
        os._exit(0 if not heard or os.read(reader, 1) else 1)
    os.close(reader)
    os.setsid()

    def release():
        null = os.open(os.devnull, os.O_RDWR)
        for fd in 0, 1, 2:
            os.dup2(null, fd)
        os.close(null)
        os.write(writer, b".")
        os.close(writer)
    return release


def write_pid(path):
    """Write this process's number to a file, for init scripts."""
    with open(path, "w") as file:
        file.write("%d\n" % os.getpid())


def lower_oom_score():
    """Ask the kernel to end others first when memory runs out."""
    try:
        with open("/proc/self/oom_score_adj", "wb") as file:
            file.write(OOM_SCORE)
    except OSError:
        pass                            # only root may


# ---- run ---------------------------------------------------------------


def next_due(now, period_s, phase_s):
    """Return the first instant of a fixed phase that is not too near.

    An instant that passed while a sample overran is skipped.
    """
    due = now + period_s - (now - phase_s) % period_s
    if due - now < min(FIRST_S, period_s / 2):
        due += period_s
    return due


def wait(due, signals):
    """Return the numbers of the signals that came before due."""
    while True:
        left_s = due - time.monotonic()
        if left_s <= 0:
            return b""
        if select.select([signals], [], [], left_s)[0]:
            return os.read(signals, 64)


def send_all(sampler, destinations, kind, debug):
    """Take a sample; return to how many destinations it was sent."""
    message = sampler.take(kind)
    now, sent = time.monotonic(), 0
    for destination in destinations:
        if destination.send(message, now):
            sent += 1
        else:
            sampler.send_errors += 1
        if debug:
            print("sequence %d, %d bytes to %s: %s" % (
                sampler.sequence, len(message), destination.name,
                "sent" if destination.sock else destination.trouble),
                flush=True)
    return sent


def run(args, release):
    """Send a sample a period until told to stop; once with --once.

    release  called when the first message has left, or after START_S
    Raises   StartError when --once could not send
    """
    sampler = Sampler(args.proc, args.node, args.rate)
    destinations = [Destination(host, port, args.address)
                    for host, port in args.destinations]
    signals = open_signals(STOP)
    started = time.monotonic()
    for destination in destinations:
        destination.look_up(started)
    due, released = started + FIRST_S, False
    phase_s = (args.node - UNNUMBERED) * GOLDEN % 1 * args.rate
    while not wait(due, signals):
        sent = send_all(sampler, destinations, SAMPLE, args.debug)
        now = time.monotonic()
        if released:
            before, due = due, next_due(now, args.rate, phase_s)
            sampler.skipped += max(round((due - before) / args.rate) - 1, 0)
        elif sent or now >= started + (ONCE_S if args.once else START_S):
            if args.once:
                break
            time.sleep(SETTLE_S)
            release()
            released = True
            due = next_due(time.monotonic(), args.rate, phase_s)
        else:
            due = now + FIRST_S
    if not args.once:
        send_all(sampler, destinations, FAREWELL, args.debug)
    elif not sent:
        raise StartError("; ".join("%s: %s" % (each.name, each.trouble)
                                   for each in destinations))


# ---- command line ------------------------------------------------------


EPILOG = """\
examples:
  sendstats.py 7 10.0.0.1        node 7 reports to 10.0.0.1 once a second
  sendstats.py -r 10 7 m1 m2     every 10 seconds, to two masters
  sendstats.py -1 127.0.0.1      the master reports itself
  sendstats.py --once -d 7 m1    one message, and say what is sent
"""


def number_in(low, high, kind=float):
    """Return argparse's check of a number between two others."""
    def number(text):
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(
                "%s is not between %s and %s" % (text, low, high))
        return value
    return number


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
    elif environment.get("NODE"):
        try:
            args.node = node_number(environment["NODE"])
        except ValueError:
            raise ValueError("$NODE is no node number: %r"
                             % environment["NODE"])
    args.destinations = [parse_destination(operand, args.port)
                         for operand in operands or ["master"]]


def parse_args(argv, environment):
    """Return the options; argparse exits 2 on a usage error."""
    parser = argparse.ArgumentParser(
        prog="sendstats", epilog=EPILOG,
        usage="sendstats.py [options] [NODENUMBER] [ADDRESS[:PORT] ...]",
        description="Send this node's statistics to the masters.",
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(
            prog, max_help_position=26, width=79))
    option = parser.add_argument
    option("operands", nargs="*", metavar="NODENUMBER ADDRESS", help="this "
           "node's number (default $NODE, else told by its address) and "
           "the masters (default master)")
    option("-r", "--rate", type=number_in(*PERIODS_S), default=PERIOD_S,
           metavar="SECONDS", help="period (default %(default)g)")
    option("-p", "--port", type=number_in(1, 65535, int), default=PORT,
           help="UDP port of the masters (default %(default)s)")
    option("-a", "--address", default="",
           help="local address to send from")
    option("-f", "--foreground", action="store_true",
           help="stay in the foreground")
    option("-d", "--debug", action="store_true",
           help="stay in the foreground and say what is sent")
    option("--once", action="store_true",
           help="send one message and exit")
    option("--proc", default="/proc", metavar="DIR",
           help="root of /proc (default %(default)s)")
    option("--pid-file", metavar="FILE",
           help="hold the process id in FILE while running")
    option("-v", "--version", action="version",
           version="sendstats " + VERSION)
    args, more = parser.parse_known_args(argv)
    try:        # argparse loses operands that follow an option
        for word in more:
            if word.startswith("-") and not word[1:].isdigit():
                raise ValueError("unrecognized argument: " + word)
        parse_operands(args, args.operands + more, environment)
    except ValueError as error:
        parser.error(str(error))
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


def main(argv=None):
    """Return the exit status: 0 told to stop, 1 could not start."""
    args = parse_args(argv, os.environ)
    try:
        check_start(args)
        release = str
        if not (args.debug or args.foreground or args.once):
            release = daemonize(START_S)
        lower_oom_score()
        if args.pid_file:
            write_pid(args.pid_file)
        try:
            run(args, release)
        finally:
            if args.pid_file:
                os.unlink(args.pid_file)
    except (StartError, OSError) as error:
        print("sendstats: %s" % error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
