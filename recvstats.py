#!/usr/bin/env python3
"""recvstats - store the statistics that nodes send in a shared table

usage: recvstats.py [options]

Checks the messages of sendstats and copies each one unchanged into its
node's slot of a shared-memory file, which libbeostat reads.  Started again,
it takes the old table over: no node disappears.
  -p, --port PORT          UDP port; default 5545, with -i 3040
  -i, --interface IF       listen there only, and to group 239.255.11.224
  -N, --nodes NODES        nodes 0 to NODES-1 are expected; more are welcome
  -f, --foreground         stay in the foreground, log to standard error
  -d, --debug              the same, and log every message
  --table PATH             shared table; default /dev/shm/beostat
  --iprange FIRST[-LAST]   tell nodes their number by address: FIRST is 0
  --max-nodes NODES        refuse higher numbers; default 65536
  --allow NETWORK          take messages from ADDRESS[/BITS] only; repeatable
  --key-file FILE          take only messages signed with a key of FILE
  --rate SECONDS           ask the nodes for this period
  --pid-file FILE          hold the process id in FILE while running
  -h, --help, -v, --version
Exit status: 0 told to stop, 1 could not start, 2 usage.
examples:
  recvstats.py -N 100                              nodes 0 to 99
  recvstats.py --iprange 10.0.0.100-10.0.0.199     10.0.0.107 is node 7
  recvstats.py -d -p 7000 --table /tmp/t           try it out
"""

import argparse
import errno
import fcntl
import mmap
import os
import select
import signal
import socket
import stat
import struct
import sys
import syslog
import time
import zlib
from _operator import _compare_digest as compare_digest  # hmac's own

# ---- constants ---------------------------------------------------------

VERSION = "1.0"
PORT = 5545
TABLE = "/dev/shm/beostat"
NODES, MAX_NODES = 64, 65536
MOST_NODES = 2**24
FIRST_SLOT_BYTES = 2048
MESSAGE_BYTES = 65000           # no message is longer
PERIOD_MOST_S = 3600.0
ASKED_PERIODS_S = 0.1, 3600.0
CRC_BYTES, MAC_BYTES = 4, 16
CRC_RESIDUE = 0x2144df1c        # CRC-32 of any bytes and their own CRC-32
BUFFER_BYTES = 16 << 20         # receive buffer to ask for
NAP_S = 0.010                   # datagrams gather meanwhile
BATCH = 4096                    # datagrams between two looks at the clock
TICK_S = 1.0
CONFLICT_S = 60.0               # between two logs of doubled numbers
CONFLICT_LINES = 10
SPACE_S = 1.0                   # between two tries to make room
WINDOW_BITS = 64
LOG_CHARACTERS = 400
ASK_S = 30.0                    # between two requests to a silent node
RENEW_S = 1200.0                # between two for a period; agents hold it 1 h
SPREAD_S = 1.5                  # the answers of many nodes fall within it
FEW = 20                        # nodes that may answer all at once
TTL = 1                         # the group is of one network
STOP = signal.SIGTERM, signal.SIGINT
SO_RCVBUFFORCE, SO_MEMINFO = 33, 55     # asm-generic/socket.h
SIOCGIFADDR, SIOCGIFNETMASK = 0x8915, 0x891b    # linux/sockios.h
MEMINFO_DROPS = 8                       # linux/sock_diag.h
U32, U64, HALF = 2**32 - 1, 2**64 - 1, 2**31

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

# ---- layout: table -----------------------------------------------------
# One header, padded to TABLE_BYTES, then the slots: node n has slot n + 1.
# A slot is a SLOT record and the node's last message.  A change of size or
# order here raises TABLE_VERSION.

TABLE_MAGIC, TABLE_VERSION = b"BEOTABLE", 1
TABLE_BYTES = 4096
SILENT_PERIODS, SILENT_S = 3, 3.0       # down after these, the longer one
SIGNED, VERIFIED = 1, 2                 # flags of a slot
STATUS = (
    ("magic", "8s"), ("word", "Q"),
    ("version retired slot_bytes slots expected pid port messages_per_s",
     "I"),
    ("start_time_s heartbeat_s request_time_s", "d"))
COUNTERS = (
    ("received stored late repeated stale conflict short long magic_wrong "
     "version_wrong crc_wrong header_wrong number_wrong unnumbered "
     "not_allowed unsigned signature_wrong no_space requests kernel_drops",
     "Q"),)
TABLE_HEADER = STATUS + COUNTERS + (("crc", "I"),)
SLOT = (
    ("word", "Q"), ("heard_s heard_time_s", "d"),
    ("window received lost", "Q"), ("address", "4s"),
    ("message_bytes restarts", "I"), ("port flags", "H"))

# ---- parse -------------------------------------------------------------

HEADER_STRUCT, HEADER_AT = layout(HEADER)
TABLE_STRUCT, TABLE_AT = layout(TABLE_HEADER)
SLOT_STRUCT, SLOT_AT = layout(SLOT)
ASK_STRUCT, _ = layout(ASK)
SLOT_BODY, _ = layout(SLOT[1:])         # all but the word
STATE, STATE_AT = layout(SLOT + HEADER)
# What of STATE each message needs: window to lost, address, restarts, start
# and sequence of the last one.
LAST, _ = layout(SLOT + HEADER, (
    "window", "received", "lost", "address", "restarts", "start_us",
    "sequence"))
CAUSES = COUNTERS[0][0].split()
(RECEIVED, STORED, LATE, REPEATED, STALE, CONFLICT, SHORT, LONG, MAGIC_WRONG,
 VERSION_WRONG, CRC_WRONG, HEADER_WRONG, NUMBER_WRONG, NO_NUMBER,
 NOT_ALLOWED, UNSIGNED, SIGNATURE_WRONG, NO_SPACE, REQUESTS,
 KERNEL_DROPS) = range(len(CAUSES))


def parse_address(text):
    """Return an IPv4 address as a whole number.

    Raises  OSError when text is none
    """
    return int.from_bytes(socket.inet_pton(socket.AF_INET, text), "big")


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


def silence_s(period_s):
    """Return how long a node of this period is silent before it is down."""
    return max(SILENT_S, SILENT_PERIODS * period_s)


def fault(size, data):
    """Return the counter of a datagram that is not a message.

    size    bytes received
    data    the buffer, which holds an older datagram's bytes further on
    """
    magic, length, *_ = HEADER_STRUCT.unpack_from(data)
    if size < HEADER_STRUCT.size + CRC_BYTES:
        return SHORT
    if magic != MAGIC:
        return VERSION_WRONG if magic[:3] == MAGIC[:3] else MAGIC_WRONG
    if size - length not in (0, MAC_BYTES) or size > MESSAGE_BYTES:
        return SHORT if size < length else LONG
    size = length
    if zlib.crc32(data[:size]) != CRC_RESIDUE:
        return CRC_WRONG
    kind, = struct.unpack_from("<H", data, HEADER_AT["kind"])
    return REQUESTS if kind == REQUEST else HEADER_WRONG


# ---- format ------------------------------------------------------------


def format_nodes(nodes):
    """Return numbers as a folded list, n[0-3,8], of bounded length.

    The master, -1, comes first and by its name.
    """
    spans = []
    for node in sorted(nodes):
        if node == MASTER:
            continue
        if spans and node == spans[-1][1] + 1:
            spans[-1][1] = node
        else:
            spans.append([node, node])
    text = ",".join("%d" % first if first == last else "%d-%d" % (first, last)
                    for first, last in spans)
    if len(text) > LOG_CHARACTERS:
        text = "%s... (%d nodes)" % (text[:LOG_CHARACTERS], len(nodes))
    text = "n[%s]" % text if text.strip("0123456789") else "n" + text
    return ",".join(["master"] * (MASTER in nodes) + [text] * bool(spans))


def pack_request(node, start_us, sequence, period_s, spread_s):
    """Return the request for a sample, and for a period from now on."""
    size = HEADER_STRUCT.size + ASK_STRUCT.size + CRC_BYTES
    data = HEADER_STRUCT.pack(MAGIC, size, node, REQUEST, 1, start_us,
                              sequence, period_s, time.time())
    data += ASK_STRUCT.pack(spread_s)
    return data + zlib.crc32(data).to_bytes(CRC_BYTES, "little")


def pack_table_header(values):
    """Return the bytes of the table's header, of word 0.

    values  all behind its version, but the CRC
    """
    data = TABLE_STRUCT.pack(TABLE_MAGIC, 0, TABLE_VERSION, *values, 0)
    data = data[:-CRC_BYTES]
    return data + zlib.crc32(data).to_bytes(CRC_BYTES, "little")


def unpack_table_header(data):
    """Return {field: value} of a table's header, None when it is none."""
    data = data[:8] + bytes(8) + data[16:TABLE_STRUCT.size]
    if len(data) < TABLE_STRUCT.size or zlib.crc32(data) != CRC_RESIDUE:
        return None
    header = dict(zip(TABLE_AT, TABLE_STRUCT.unpack(data)))
    if (header["magic"], header["version"]) != (TABLE_MAGIC, TABLE_VERSION):
        return None
    return header


# ---- files and sockets -------------------------------------------------


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


class Table:
    """The shared file, of which this process is the only writer.

    slots, slot_bytes  its size, 0 before there is a file
    view, words        all its bytes; the same as 64-bit words
    counts             the counters, in the order of COUNTERS
    """

    def __init__(self, path, expected, port):
        self.path, self.expected, self.port = path, expected, port
        self.slots = self.slot_bytes = self.messages_per_s = 0
        self.counts = [0] * len(CAUSES)
        self.start_time_s, self.request_time_s = time.time(), 0.0
        self.fd = self.view = self.words = None

    def find(self):
        """Open and lock the file at the path, if it is a table of ours.

        Returns  (descriptor, its header), or (None, None)
        Raises   StartError when another recvstats is using it
        """
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK
                         | os.O_CLOEXEC)
        except OSError:
            return None, None           # make() will say what is wrong
        found, header = os.fstat(fd), None
        if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid():
            header = unpack_table_header(os.pread(fd, TABLE_BYTES, 0))
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(fd)
                raise StartError("%s: in use by another recvstats (pid %s)" % (
                    self.path, header["pid"] if header else "unknown"))
        if (header and not header["retired"] and found.st_size == TABLE_BYTES
                + header["slots"] * header["slot_bytes"]
                and header["heartbeat_s"] <= time.monotonic()):
            return fd, header
        os.close(fd)
        return None, None

    def adopt(self):
        """Take over the table of an earlier recvstats, if there is one.

        Returns  how many samples it holds
        Raises   StartError when another recvstats is using it
        """
        fd, header = self.find()
        if fd is None:
            return 0
        self.use(fd, header["slots"], header["slot_bytes"])
        self.request_time_s = header["request_time_s"]
        self.words[1] += self.words[1] & 1
        return sum(self.mend(slot) for slot in range(self.slots))

    def mend(self, slot):
        """Make a slot fit for use after its writer was killed.

        Returns  whether it holds a whole sample
        """
        start = TABLE_BYTES + slot * self.slot_bytes
        body = start + SLOT_STRUCT.size
        length, = struct.unpack_from("<I", self.view,
                                     start + SLOT_AT["message_bytes"])
        message = self.view[body:min(body + length, start + self.slot_bytes)]
        whole = HEADER_STRUCT.size < length == len(message)
        if whole:                       # as far as its CRC tells
            length, = struct.unpack_from("<I", message, HEADER_AT["length"])
            whole = zlib.crc32(message[:length]) == CRC_RESIDUE
        if not whole:
            self.view[start + 8:body] = bytes(SLOT_STRUCT.size - 8)
        self.words[start // 8] += self.words[start // 8] & 1
        return whole

    def use(self, fd, slots, slot_bytes):
        """Work on this file from now on."""
        if self.fd is not None:
            os.close(self.fd)           # which unlocks it
        self.fd, self.slots, self.slot_bytes = fd, slots, slot_bytes
        self.view = memoryview(
            mmap.mmap(fd, TABLE_BYTES + slots * slot_bytes))
        self.words = self.view.cast("Q")

    def make(self, slots, slot_bytes):
        """Put a new file in the path's place, with the samples so far.

        It is complete, allocated and locked before it gets the name; the
        old one is then marked retired.
        Raises  OSError when the file system refuses
        """
        temporary = self.path + ".new"
        if os.path.lexists(temporary):
            os.unlink(temporary)        # a killed recvstats left it
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL
                     | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            os.fchmod(fd, 0o644)        # whatever the umask
            os.posix_fallocate(fd, 0, TABLE_BYTES + slots * slot_bytes)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.copy_slots(fd, slots, slot_bytes)
            if os.path.isdir(self.path) and not os.path.islink(self.path):
                os.rename(self.path, "%s.moved-%d" % (self.path, time.time()))
            os.rename(temporary, self.path)
        except OSError:
            os.unlink(temporary)
            os.close(fd)
            raise
        if self.fd is not None:
            self.write_header(retired=1)
        self.use(fd, slots, slot_bytes)
        self.write_header()

    def copy_slots(self, fd, slots, slot_bytes):
        """Copy header and samples to a larger file."""
        old, old_bytes = self.view, self.slot_bytes
        with mmap.mmap(fd, TABLE_BYTES + slots * slot_bytes) as new:
            for slot in range(self.slots):
                start = TABLE_BYTES + slot * slot_bytes
                from_ = TABLE_BYTES + slot * old_bytes
                new[start:start + old_bytes] = old[from_:from_ + old_bytes]
            new[:TABLE_STRUCT.size] = self.pack_header(
                slots, slot_bytes, 0, time.monotonic())

    def pack_header(self, slots, slot_bytes, retired, heartbeat_s):
        """Return the bytes of the header."""
        return pack_table_header((
            retired, slot_bytes, slots, self.expected, os.getpid(),
            self.port, self.messages_per_s, self.start_time_s,
            heartbeat_s, self.request_time_s, *self.counts))

    def write_header(self, retired=0, heartbeat_s=None):
        """Bring the header up to date; a heartbeat of 0 says farewell."""
        if heartbeat_s is None:
            heartbeat_s = time.monotonic()
        data = self.pack_header(self.slots, self.slot_bytes, retired,
                                heartbeat_s)
        self.words[1] += 1
        self.view[16:len(data)] = data[16:]
        self.words[1] += 1

    def is_in_place(self):
        """Return whether the path still names this file."""
        try:
            return os.path.samestat(os.lstat(self.path), os.fstat(self.fd))
        except OSError:
            return False


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


def join_group(sock, interface, place):
    """Let a socket hear the group on one interface, and only that.

    place   of find_interface()
    Raises  OSError
    """
    group = struct.pack("=4s4si", socket.inet_aton(GROUP), bytes(4), place[0])
    option = sock.setsockopt
    option(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
    try:
        option(socket.IPPROTO_IP, socket.IP_DROP_MEMBERSHIP, group)
    except OSError:
        pass                            # it was none, or was lost
    option(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
    option(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, group)
    option(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, TTL)


def open_socket(port, shared):
    """Return a UDP socket bound to a port.

    shared  whether agents on this machine use the port too
    Raises  StartError
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    if shared:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    for option in SO_RCVBUFFORCE, socket.SO_RCVBUF:
        try:
            sock.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
            break
        except OSError:
            pass                        # only root may force it
    sock.setblocking(False)
    try:
        sock.bind(("", port))
    except OSError as error:
        raise StartError("UDP port %d: %s%s" % (port, error.strerror,
                                                find_user(port)))
    return sock


def find_user(port):
    """Return " by pid ..." of who uses a UDP port, "" if nobody can tell.

    Source  proc(5), /proc/net/udp and /proc/PID/fd
    """
    with open("/proc/net/udp") as file:
        rows = [line.split() for line in file][1:]
    links = {"socket:[%s]" % row[9] for row in rows
             if int(row[1].partition(":")[2], 16) == port}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        folder = "/proc/%s/fd" % pid
        try:
            for fd in os.listdir(folder):
                if os.readlink(os.path.join(folder, fd)) in links:
                    return (" by pid %s: end it, or choose another with -p"
                            % pid)
        except OSError:
            pass                        # it has ended, or is another user's
    return ""


def read_drops(sock):
    """Return how many datagrams the kernel dropped for want of buffer."""
    words = sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 9 * 4)
    return struct.unpack("=9I", words)[MEMINFO_DROPS]


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


# ---- run ---------------------------------------------------------------


class Receiver:
    """Decides what becomes of a datagram.

    All it knows of a node is in the node's slot.  Beside that:
    buffer  the slot header but for its word, then the datagram received
    silent  the nodes that are down or have left
    news    {what happened: the nodes it happened to} since the last tick
    """

    def __init__(self, table, args, log, sock=None):
        self.table, self.log, self.sock = table, log, sock
        self.interface, self.place = args.interface, None
        self.port, self.rate_s = args.port, args.rate or 0.0
        self.asked, self.ask_due, self.renew_due = 0, 0.0, 0.0
        self.start_us = int(time.time() * 1e6)
        self.networks, self.known = args.allow, {}
        self.keys = Keys(args.key_file) if args.key_file else None
        self.max_nodes, self.iprange = args.max_nodes, args.iprange
        self.buffer = memoryview(bytearray(SLOT_BODY.size + 65536))
        self.message = self.buffer[SLOT_BODY.size:]
        self.silent, self.news, self.conflicts = set(), {}, {}
        self.space_due, self.conflict_due, self.full = 0.0, 0.0, False
        self.wall_s = time.time() - time.monotonic()

    def accept(self, size, sender, now):
        """Store the datagram in the buffer; return the counter it adds to.

        sender  (address, port)
        now     CLOCK_MONOTONIC
        """
        message, table = self.message, self.table
        address = self.known.get(sender[0]) or self.admit(sender[0])
        if not address:
            return NOT_ALLOWED
        magic, length, node, kind, _, start, sequence, period_s, _ = (
            HEADER_STRUCT.unpack_from(message))
        flags = SIGNED if size == length + MAC_BYTES else 0
        if not (magic == MAGIC and (length == size or flags)
                and size <= MESSAGE_BYTES and 0 < kind < REQUEST
                and 0 < period_s <= PERIOD_MOST_S
                and (self.keys or zlib.crc32(message[:length])
                     == CRC_RESIDUE)):
            return fault(size, message)
        if self.keys:
            if not flags:
                return UNSIGNED
            if not self.keys.verify(message[:length], message[length:size]):
                return SIGNATURE_WRONG
            flags |= VERIFIED
        if node == UNNUMBERED:
            node = self.number_of(sender[0])
        if not MASTER <= node < self.max_nodes:
            return NO_NUMBER if node == UNNUMBERED else NUMBER_WRONG
        if ((node + 1 >= table.slots
             or SLOT_STRUCT.size + size > table.slot_bytes)
                and not self.make_room(node, size, now)):
            return NO_SPACE
        return self.store(size, sender, address, flags, node, kind, start,
                          sequence, now)

    def store(self, size, sender, address, flags, node, kind, start,
              sequence, now):
        """Put a good message into its slot, if it is newer than the last.

        Returns  STORED, or the counter it adds to instead
        """
        place = TABLE_BYTES + (node + 1) * self.table.slot_bytes
        window, received, lost, owner, restarts, last_start, last = (
            LAST.unpack_from(self.table.view, place))
        gap = sequence - last & U32
        if start == last_start and address == owner and 0 < gap < HALF:
            window = (window << gap | 1) & U64 if gap < WINDOW_BITS else 1
            lost += gap - 1
        else:
            cause = self.judge(place, address, node, start, sequence, now)
            if cause != STORED:
                return cause
            self.known[sender[0]] = address
            window = U64                # nothing before it is missed
            if last_start not in (0, start):
                restarts += 1
            if 0 < last_start < start:
                window = U64 << min(sequence, WINDOW_BITS) & U64 | 1
                lost += max(sequence - 1, 0)
        if node in self.silent or kind == FAREWELL or not received:
            self.note(node, kind, received)
        self.buffer[:SLOT_BODY.size] = SLOT_BODY.pack(
            now, now + self.wall_s, window, received + 1, lost, address,
            size, restarts, sender[1], flags)
        self.publish(place, SLOT_BODY.size + size)
        return STORED

    def publish(self, place, size):
        """Replace a slot by the buffer; readers see the old or the new.

        Only slice copies touch the table: a Struct that packs in place
        fills its target with zeros first, and readers see them.
        """
        word, words = place >> 3, self.table.words
        words[word] += 1
        self.table.view[place + 8:place + 8 + size] = self.buffer[:size]
        words[word] += 1

    def judge(self, place, address, node, start, sequence, now):
        """Return STORED when a message that does not follow the last one
        may take its place, else the counter it adds to."""
        slot = dict(zip(STATE_AT, STATE.unpack_from(
            self.table.view, place)))
        if not slot["message_bytes"]:
            return STORED
        left = slot["kind"] == FAREWELL
        alive = not left and now <= slot["heard_s"] + silence_s(
            slot["period_s"])
        if alive and address != slot["address"]:
            self.conflicts[node] = address, slot["address"]
            return CONFLICT
        if start == slot["start_us"] and (alive or left or self.keys):
            behind = slot["sequence"] - sequence & U32
            if not (self.keys and behind >= HALF):      # it is newer
                return self.late(place, slot, behind)
        if start < slot["start_us"] and (alive or self.keys):
            return STALE
        return STORED

    def late(self, place, slot, behind):
        """Note a message overtaken by newer ones; return its counter."""
        bit = 1 << min(behind, WINDOW_BITS)
        if slot["window"] & bit or bit > U64:
            return REPEATED
        slot["window"] |= bit
        slot["received"] += 1
        slot["lost"] = max(slot["lost"] - 1, 0)
        self.buffer[:SLOT_BODY.size] = SLOT_BODY.pack(
            *[slot[field] for field in [*SLOT_AT][1:]])
        self.publish(place, SLOT_BODY.size)
        return LATE

    def admit(self, address):
        """Return the bytes of an address, b"" when it may not send."""
        number = parse_address(address)
        if self.networks and not any(number & mask == network
                                     for network, mask in self.networks):
            return b""
        return socket.inet_aton(address)

    def number_of(self, address):
        """Return the number of a node that does not know it, by address;
        UNNUMBERED when it has none."""
        first, last = self.iprange or (1, 0)
        number = parse_address(address)
        return number - first if first <= number <= last else UNNUMBERED

    def make_room(self, node, size, now):
        """Return whether the table has a slot for the message now."""
        table = self.table
        slots, slot_bytes = table.slots, table.slot_bytes
        if now < self.space_due:
            return False
        while slots <= node + 1:
            slots *= 2
        while slot_bytes < SLOT_STRUCT.size + size:
            slot_bytes *= 2
        try:
            table.make(min(slots, self.max_nodes + 1), slot_bytes)
        except OSError as error:
            self.space_due = now + SPACE_S
            if not self.full:
                self.log("%s: cannot grow: %s: known nodes are updated, new "
                         "ones counted as no_space" % (table.path,
                                                       error.strerror))
            self.full = True
            return False
        self.full = False
        self.log("%s: now %d slots of %d bytes" % (table.path, table.slots,
                                                   table.slot_bytes))
        return True

    def note(self, node, kind, received):
        """Keep the news that a message is for the next tick's log."""
        if kind == FAREWELL:
            news = "left"
            self.silent.add(node)
        else:
            news = "up again" if received else "up"
            self.silent.discard(node)
        self.news.setdefault(news, set()).add(node)

    def sweep(self, now):
        """Find the nodes that fell silent since the last sweep."""
        table = self.table
        heard = struct.Struct("<8xd%dx" % (table.slot_bytes - 16))
        for slot, (heard_s,) in enumerate(
                heard.iter_unpack(table.view[TABLE_BYTES:])):
            if 0 < heard_s < now - SILENT_S and slot - 1 not in self.silent:
                state = dict(zip(STATE_AT, STATE.unpack_from(
                    table.view, TABLE_BYTES + slot * table.slot_bytes)))
                if now > heard_s + silence_s(state["period_s"]):
                    self.silent.add(slot - 1)
                    self.news.setdefault("down", set()).add(slot - 1)

    def tick(self, now, drops):
        """Do what is due once a second."""
        table = self.table
        self.wall_s = time.time() - time.monotonic()
        self.sweep(now)
        if self.keys:
            trouble = self.keys.trouble
            self.keys.refresh()
            if self.keys.trouble not in ("", trouble):
                self.log("%s: the old keys stay" % self.keys.trouble)
        if self.sock:
            self.follow_interface()
            self.ask_nodes(now)
        for news, nodes in sorted(self.news.items()):
            self.log("%s: %s" % (news, format_nodes(nodes)))
        self.news = {}
        if self.conflicts and now >= self.conflict_due:
            self.conflict_due = now + CONFLICT_S
            self.log_conflicts()
        received = sum(table.counts[STORED:KERNEL_DROPS])
        table.messages_per_s = received - table.counts[RECEIVED]
        table.counts[RECEIVED] = received
        table.counts[KERNEL_DROPS] = drops
        if not table.is_in_place():
            self.replace()
        table.write_header()

    def follow_interface(self):
        """Join the group again when the interface has become another."""
        if not self.interface:
            return
        try:
            place = find_interface(self.interface)
            if place != self.place:
                join_group(self.sock, self.interface, place)
        except OSError as error:
            place = error.strerror
            if place != self.place:
                self.log("%s: waiting for it" % place)
        if place != self.place:
            self.place, self.ask_due = place, 0.0

    def ask_nodes(self, now):
        """Send the requests that are due.

        To all nodes at the start, and now and then so that they keep the
        period asked for; to silent ones every 30 s.
        """
        if now < self.ask_due and not (self.news and self.rate_s):
            return
        everyone, asked = now >= self.renew_due, []
        self.ask_due = now + ASK_S
        if everyone:
            self.renew_due = now + (RENEW_S if self.rate_s else float("inf"))
        for node, slot in self.states():
            if slot["kind"] != FAREWELL and (
                    everyone or node in self.silent or self.rate_s
                    and abs(slot["period_s"] - self.rate_s) > 1e-3):
                asked.append((node, (socket.inet_ntoa(slot["address"]),
                                     slot["port"])))
        spread_s = SPREAD_S if everyone or len(asked) > FEW else 0.0
        if self.interface and (everyone or asked):
            asked = [(UNNUMBERED, (GROUP, self.port + 1))]
        for node, address in asked:
            self.ask(node, address, spread_s)

    def ask(self, node, address, spread_s):
        """Send one request; one that is lost is sent again in its time."""
        self.asked = self.asked + 1 & U32
        data = pack_request(node, self.start_us, self.asked, self.rate_s,
                            spread_s)
        if self.keys:
            data += self.keys.sign(data)
        try:
            self.sock.sendto(data, address)
            self.table.request_time_s = time.time()
        except OSError:
            pass

    def states(self):
        """Yield (node, its slot and message header) of the nodes heard."""
        table = self.table
        for slot in range(table.slots):
            state = dict(zip(STATE_AT, STATE.unpack_from(
                table.view, TABLE_BYTES + slot * table.slot_bytes)))
            if state["message_bytes"]:
                yield slot - 1, state

    def log_conflicts(self):
        """Log which numbers two addresses send."""
        for node, pair in sorted(self.conflicts.items())[:CONFLICT_LINES]:
            self.log("node %d: %s sends this number too; it belongs to %s "
                     "until that is down" % (
                         node, *map(socket.inet_ntoa, pair)))
        if len(self.conflicts) > CONFLICT_LINES:
            self.log("%d more nodes like this: %s" % (
                len(self.conflicts) - CONFLICT_LINES,
                format_nodes(self.conflicts)))
        self.conflicts = {}

    def replace(self):
        """Put the table back where its path names another file or none.

        Raises  StartError when that is another recvstats' table
        """
        table = self.table
        fd, _ = table.find()
        if fd is not None:
            os.close(fd)
        try:
            table.make(table.slots, table.slot_bytes)
            self.log("%s: was gone or another file, made anew" % table.path)
        except OSError as error:
            if not self.full:
                self.log("%s: gone, and not to be made: %s"
                         % (table.path, error.strerror))
            self.full = True


def debugging(accept, message, log):
    """Return accept with a line of log for each datagram."""
    def accept_and_tell(size, sender, now):
        cause = accept(size, sender, now)
        node, = struct.unpack_from("<i", message, HEADER_AT["node"])
        log("%s:%d: node %d, %d bytes: %s"
            % (*sender, node, size, CAUSES[cause]))
        return cause
    return accept_and_tell


def drain(receive, buffer, accept, counts, now):
    """Store what the socket holds; return how many datagrams, up to BATCH.

    receive  the socket's recvfrom_into
    accept   returns the counter that a datagram adds to
    """
    for done in range(BATCH):
        try:
            size, sender = receive(buffer)
        except OSError:                 # none left
            return done
        counts[accept(size, sender, now)] += 1
    return BATCH


def run(args, receiver, sock, signals):
    """Store messages until told to stop.

    Datagrams gather while it naps: one wake-up serves them all.
    """
    accept, counts = receiver.accept, receiver.table.counts
    if args.debug:
        accept = debugging(accept, receiver.message, receiver.log)
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    poller.register(signals, select.POLLIN)
    now = tick_due = time.monotonic()
    while True:
        for fd, _ in poller.poll(max(tick_due - now, 0) * 1000):
            if fd == signals:
                if set(os.read(signals, 64)) - {signal.SIGHUP}:
                    return
                tick_due = now          # which reads the keys again
        time.sleep(NAP_S)
        done = BATCH
        while done == BATCH and now <= tick_due:
            now = time.monotonic()
            done = drain(sock.recvfrom_into, receiver.message, accept,
                         counts, now)
        now = time.monotonic()
        if now >= tick_due:
            receiver.tick(now, read_drops(sock))
            tick_due = now + TICK_S


def start(args, log):
    """Return (receiver, socket), ready to run.

    Raises  StartError, OSError
    """
    table = Table(args.table, args.nodes, args.port)
    was_there, samples = os.path.lexists(args.table), table.adopt()
    replaced = was_there and not table.slots
    sock = open_socket(args.port, args.interface)
    slots = (args.nodes or NODES) + 1
    if table.slots < slots:
        try:
            table.make(slots, table.slot_bytes or FIRST_SLOT_BYTES)
        except OSError as error:
            raise StartError("%s: cannot be made: %s: choose another with "
                             "--table" % (args.table, error.strerror))
    receiver = Receiver(table, args, log, sock)
    receiver.sweep(time.monotonic())
    receiver.news = {}                  # silent while nobody listened
    size = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2
    log("version %s, port %d, %s: %d slots of %d bytes, %d samples taken "
        "over" % (VERSION, args.port, args.table, table.slots,
                  table.slot_bytes, samples))
    if replaced:
        log("%s: was no table of this version, or another user's: made anew"
            % args.table)
    if size < BUFFER_BYTES:
        log("receive buffer is %d bytes, not %d: run as root or raise "
            "net.core.rmem_max" % (size, BUFFER_BYTES))
    return receiver, sock


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


def address_range(text):
    """Return (first, last) address of FIRST[-LAST] as whole numbers."""
    first, dash, last = text.partition("-")
    try:
        first = parse_address(first)
        last = parse_address(last) if dash else U32
    except OSError:
        raise argparse.ArgumentTypeError(
            "%s is not FIRST[-LAST], two IPv4 addresses" % text)
    if last < first:
        raise argparse.ArgumentTypeError("%s: ends before it begins" % text)
    return first, last


def make_parser():
    """Return the parser of the options; its help is the text above."""
    parser = argparse.ArgumentParser(
        prog="recvstats", usage="recvstats.py [options]",
        # A width, lest it load shutil for it.
        formatter_class=lambda prog: argparse.HelpFormatter(prog, width=79))
    parser.format_help = lambda: __doc__ or parser.format_usage()
    option = parser.add_argument
    option("-p", "--port", type=number_in(1, 65535, int))
    option("-i", "--interface")
    option("-N", "--nodes", type=number_in(0, MOST_NODES, int), default=0)
    option("-f", "--foreground", action="store_true")
    option("-d", "--debug", action="store_true")
    option("--table", type=os.path.abspath, default=TABLE)
    option("--iprange", type=address_range)
    option("--max-nodes", type=number_in(1, MOST_NODES, int),
           default=MAX_NODES)
    option("--allow", type=network, action="append")
    option("--key-file", type=os.path.abspath)
    option("--rate", type=number_in(*ASKED_PERIODS_S))
    option("--pid-file", type=os.path.abspath)
    option("-v", "--version", action="version",
           version="recvstats " + VERSION)
    return parser


def parse_args(argv):
    """Return the options; argparse exits 2 on a usage error."""
    parser = make_parser()
    args = parser.parse_args(argv)
    args.port = args.port or (GROUP_PORT if args.interface else PORT)
    if args.nodes > args.max_nodes:
        parser.error("-N %d is more than --max-nodes %d"
                     % (args.nodes, args.max_nodes))
    args.foreground = args.foreground or args.debug
    return args


def open_log(foreground):
    """Return the function that logs a line."""
    if foreground:
        return complain
    syslog.openlog("recvstats", syslog.LOG_PID, syslog.LOG_DAEMON)
    return syslog.syslog


def complain(text):
    """Write a line to standard error."""
    print("recvstats: %s" % text, file=sys.stderr, flush=True)


def explain(error):
    """Return what an error at the start says, and of which file."""
    if isinstance(error, OSError) and error.filename:
        return "%s: %s" % (error.filename, error.strerror)
    return str(error)


def main(argv=None):
    """Return the exit status: 0 told to stop, 1 could not start."""
    args = parse_args(argv)
    try:
        pid_file = PidFile(args.pid_file)
        try:
            release = str if args.foreground else daemonize(None)
            signals = open_signals(STOP + (signal.SIGHUP,))
            receiver, sock = start(args, open_log(args.foreground))
            receiver.tick(time.monotonic(), 0)
            if isinstance(receiver.place, str) and not args.foreground:
                complain("%s: waiting for it" % receiver.place)
            pid_file.write()
            release()
            run(args, receiver, sock, signals)
            receiver.table.write_header(heartbeat_s=0.0)
        finally:
            pid_file.remove()
    except (StartError, OSError) as error:
        text = explain(error)
        complain(text)
        if not args.foreground:         # its terminal may be gone
            syslog.syslog(syslog.LOG_ERR, text)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
