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
  --table PATH, --fresh    shared table, /dev/shm/beostat; make it empty
  --iprange FIRST[-LAST]   number nodes that send none by address: FIRST is 0
  --max-nodes NODES, --max-bytes BYTES     bounds of it: 65536, 256M
  --allow NETWORK          take messages from ADDRESS[/BITS] only; repeatable
  --key-file FILE          take only messages signed with a key of FILE
  --rate SECONDS           ask the nodes for this period
  --pid-file FILE          hold the process id in FILE while running
  -h, --help, -v, --version
Exit status: 0 told to stop, 1 could not start or go on, 2 usage.
examples:
  recvstats.py -N 100                              nodes 0 to 99
  recvstats.py --iprange 10.0.0.100-10.0.0.199     10.0.0.107 is node 7
  recvstats.py -d -p 7000 --table /dev/shm/t       try it out
"""

import argparse
import collections
import errno
import fcntl
import functools
import mmap
import os
import select
import signal
import socket
import stat
import struct
import sys
import time
import zlib

# ---- constants ---------------------------------------------------------

f"needs Python 3.6 or newer"    # an older one shows this line, and ends
VERSION = "1.1"
PORT = 5545
TICK_S = 1.0                    # between two heartbeats
CRC_BYTES, MAC_BYTES = 4, 16
CRC_RESIDUE = 0x2144df1c        # CRC-32 of any bytes and their own CRC-32
MESSAGE_BYTES = 65000           # no message is longer
TOLD_S = 60.0                   # between two lines about the same
U32, U64, HALF = 2**32 - 1, 2**64 - 1, 2**31
READ_BYTES = 65536              # of a file, at a time
NEVER = float("inf")


class StartError(Exception):
    """What keeps the program from starting or going on, and what to do."""


def ignore(*_):
    """Do nothing."""


def attempt(call, *args):
    """Make a call that may fail; return whether it did not."""
    try:
        call(*args)
    except OSError:
        return False
    return True


def explain(error):
    """Return what an error says, and of which file."""
    if isinstance(error, OSError) and error.strerror:
        return ("%s: %s" % (error.filename, error.strerror)
                if error.filename else error.strerror)
    return str(error)


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
ASK = (("spread_s", "f"), ("agent_start_us", "Q"))  # the body of a request
GROUP, GROUP_PORT = "239.255.11.224", 3040      # requests: the next port

# ---- layout: table -----------------------------------------------------
# A header, padded to TABLE_BYTES; the index, a u32 for each number from -1
# on, the place of the node's slot in units of UNIT_BYTES, 0 never heard; the
# slots, each a SLOT record and the node's last message.  A change of size
# or order here raises TABLE_VERSION.

TABLE_MAGIC, TABLE_VERSION = b"BEOTABLE", 2
TABLE_BYTES, ENTRY_BYTES, UNIT_BYTES = 4096, 4, 64
SILENT_PERIODS, SILENT_S = 3, 3.0       # down after these, the longer one
SIGNED, VERIFIED = 1, 2                 # flags of a slot
STATUS = (
    ("magic", "8s"), ("word", "Q"), ("version entries pid port", "I"),
    ("pid_start_ticks pid_namespace", "Q"), ("start_time_s", "d"),
    ("used_bytes", "Q"), ("used_entries expected messages_per_s stopped", "I"),
    ("heartbeat_s uptime_s away_s request_time_s", "d"))
COUNTERS = (
    ("received stored late repeated stale conflict clock_wrong short long "
     "magic_wrong version_wrong crc_wrong header_wrong number_wrong "
     "unnumbered not_allowed unsigned signature_wrong no_space requests "
     "kernel_drops log_drops", "Q"),)
RECENT = tuple((" ".join("recent_" + field for field in fields.split()), code)
               for fields, code in COUNTERS)
TABLE_HEADER = STATUS + COUNTERS + RECENT + (("crc", "I"),)
SLOT = (
    ("word", "Q"), ("heard_s heard_time_s silent_from_s", "d"),
    ("window received lost", "Q"), ("address", "4s"), ("number", "i"),
    ("message_bytes room_bytes restarts", "I"), ("port flags", "H"),
    ("unused", "48s"))

# ---- check -------------------------------------------------------------
# What a datagram is, whatever its node.

PERIOD_MOST_S = 3600.0
HEADER_STRUCT, _ = layout(HEADER)
LEAST_BYTES = HEADER_STRUCT.size + CRC_BYTES


def check(message, size, header, address, keys):
    """Return the counter of a datagram that may not be stored, else "".

    message  the buffer; what is behind size is of an older datagram
    header   what is unpacked of it
    address  the bytes of its sender's
    keys     what must have signed it, or None
    """
    magic, length, node, kind, _, _, _, period_s, _ = header
    if size < LEAST_BYTES:
        return "short"
    if magic != MAGIC:
        return "version_wrong" if magic[:3] == MAGIC[:3] else "magic_wrong"
    if size < length or length < LEAST_BYTES:
        return "short"
    if size - length not in (0, MAC_BYTES) or size > MESSAGE_BYTES:
        return "long"
    if not keys and zlib.crc32(message[:length]) != CRC_RESIDUE:
        return "crc_wrong"
    if not (0 < kind < REQUEST and 0 < period_s <= PERIOD_MOST_S):
        return "requests" if kind == REQUEST else "header_wrong"
    if keys:
        if length == size:
            return "unsigned"
        data = message[:length]
        if node == UNNUMBERED:          # it goes by its address
            data = bytes(data) + address
        if not keys.verify(data, message[length:size]):
            return "signature_wrong"
    return ""


def network(text):
    """Return the network of `ADDRESS[/BITS]`."""
    from ipaddress import IPv4Network   # 0.3 MB: only who names one pays
    return IPv4Network(text, strict=False)


def is_in(address, networks):
    """Return whether an address, a.b.c.d, is in one of the networks."""
    from ipaddress import IPv4Address
    return any(IPv4Address(address) in each for each in networks)


# ---- claim -------------------------------------------------------------
# Whose file is at the path, and who is at work on it.

TABLE = "/dev/shm/beostat"
FIRST_USER = 1000               # lower ones are the system's: trusted
MOVES_S = 1.5                   # a heartbeat moves within
TABLE_STRUCT, TABLE_AT = layout(TABLE_HEADER)


def parse_table_header(data):
    """Return {field: value} of a table's header.

    Raises  StartError when these are not the bytes of one
    """
    if len(data) < TABLE_STRUCT.size or not data.startswith(TABLE_MAGIC):
        raise StartError("the table was cut off meanwhile: start again")
    return dict(zip(TABLE_AT, TABLE_STRUCT.unpack_from(data)))


def find_damage(header, size, entries, now):
    """Return why a table cannot be adopted, "" when it can.

    header   of parse_table_header()
    size     of the file
    entries  that its index must have at least
    """
    if header["version"] != TABLE_VERSION:
        return "of version %d" % header["version"]
    if TABLE_BYTES + header["entries"] * ENTRY_BYTES > size:
        return "cut off"
    if header["entries"] < entries:
        return "too small an index for --max-nodes"
    if not header["heartbeat_s"] <= now:
        return "of before this machine's start"
    return ""


class InUse(StartError):
    """Another recvstats is at work on the table."""


def read_process(pid):
    """Return (start time in ticks since boot, effective user id, whether it
    lives: a dead one stays until its parent has waited for it).

    Raises  OSError
    Source  proc(5), /proc/PID/stat and status
    """
    with open("/proc/%d/stat" % pid) as file:
        state, *fields = file.read().rpartition(")")[2].split()
    with open("/proc/%d/status" % pid) as file:
        uids, = [line for line in file if line.startswith("Uid:")]
    return int(fields[18]), int(uids.split()[2]), state not in "ZXx"


def read_pid_namespace():
    """Return the inode of this process's PID namespace, 0 unknown."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def has_writer(fd, header, owner):
    """Return whether the process that a table names is at work on it.

    Where it cannot be seen, in another PID namespace or a /proc that hides
    it, a heartbeat that moves tells.
    owner  user id of the file
    """
    if header["stopped"]:
        return False
    if header["pid_namespace"] == read_pid_namespace() != 0:
        try:
            os.kill(header["pid"], 0)
        except (ProcessLookupError, OverflowError):
            return False
        except OSError:
            pass                        # another user's
        try:
            return header["pid"] != os.getpid() and read_process(
                header["pid"]) == (header["pid_start_ticks"], owner, True)
        except (OSError, ValueError):
            pass                        # hidden
    limit = time.monotonic() + MOVES_S
    while time.monotonic() < limit:
        time.sleep(MOVES_S / 10)
        data = os.pread(fd, TABLE_STRUCT.size, 0)
        if parse_table_header(data)["heartbeat_s"] != header["heartbeat_s"]:
            return True
    return False


def read_user_name(uid):
    """Return a user's name, or the number."""
    try:
        import pwd
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OSError, ImportError):
        return "%d" % uid


def unguessable(path):
    """Return a name beside a path that nobody can have taken before."""
    return "%s.%s" % (path, os.urandom(8).hex())


def set_aside(path, uid, log):
    """Rename what an untrusted user has put at the default path.

    Raises  StartError where only root may
    """
    if os.geteuid():
        raise StartError(
            "%s: belongs to %s, whose table nobody believes: let root remove "
            "it, or choose another with --table" % (path, read_user_name(uid)))
    aside = unguessable(path)
    os.rename(path, aside)
    log("%s: belonged to %s, who is not trusted: now %s" % (
        path, read_user_name(uid), aside))


def open_regular(path):
    """Return (descriptor, its stat) of a regular file; its name is not
    followed, and no device or pipe is opened.

    Raises  OSError, StartError
    """
    refused = StartError("%s: is not a table: it is left alone: choose "
                         "another with --table" % path)
    if not stat.S_ISREG(os.lstat(path).st_mode):
        raise refused
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
                 | os.O_CLOEXEC)
    found = os.fstat(fd)
    data = os.pread(fd, len(TABLE_MAGIC), 0)
    if not stat.S_ISREG(found.st_mode) or data not in (b"", TABLE_MAGIC):
        os.close(fd)
        raise refused
    return fd, found


def claim(path, is_default, entries, log):
    """Return whether a table at the path is to be adopted, rather than made.

    Nothing is touched that is not ours, and nobody of this version who is at
    work is disturbed: the header of others may be another.
    is_default  whether nobody named the path: then what an untrusted user
                has put there is not believed
    Raises      StartError, InUse, OSError
    """
    try:
        uid = os.lstat(path).st_uid
    except FileNotFoundError:
        return False
    if is_default and uid >= FIRST_USER and uid != os.geteuid():
        set_aside(path, uid, log)
        return False
    fd, found = open_regular(path)
    try:
        if not found.st_size:
            return False
        data = os.pread(fd, TABLE_BYTES, 0).ljust(TABLE_BYTES, b"\0")
        header = parse_table_header(data)
        damage = find_damage(header, found.st_size, entries,
                             time.monotonic())
        if (header["version"] == TABLE_VERSION
                and has_writer(fd, header, found.st_uid)):
            raise InUse("%s: in use by another recvstats (pid %d, user %s): "
                        "end it, or choose another with --table"
                        % (path, header["pid"], read_user_name(uid)))
    finally:
        os.close(fd)
    if uid != os.geteuid():
        damage = "of user " + read_user_name(uid)
        if os.geteuid() or uid >= FIRST_USER:
            raise StartError(
                "%s: belongs to %s: run recvstats as that user, remove it, or "
                "choose another with --table" % (path, read_user_name(uid)))
    if damage:
        log("%s: was %s: made anew" % (path, damage))
    return not damage


# ---- places ------------------------------------------------------------
# Where the slots of a table lie.

STEP_BYTES = 256 << 10          # the file grows by, or by what a slot needs
SPACE_S = 1.0                   # between two tries to make room
SHARE_BYTES = 1536              # set aside for each node of -N
RECENT_TICKS = 60               # that "the last minute" is
COUNTER_NAMES = COUNTERS[0][0].split()
NOT_RECEIVED = "kernel_drops", "log_drops"      # counters of other things
IDENTITY = slice(TABLE_AT["version"], TABLE_AT["used_bytes"])
REST = slice(TABLE_AT["used_bytes"], TABLE_STRUCT.size)
SLOT_STRUCT, SLOT_AT = layout(SLOT)
SLOT_BODY, _ = layout(SLOT[1:-1])               # what is behind the word
WORD_BYTES = SLOT_AT["heard_s"]
HEAD_BYTES = SLOT_STRUCT.size - WORD_BYTES      # of a slot, less its word
HOLDS, _ = layout(SLOT + HEADER, (
    "number", "message_bytes", "room_bytes", "length"))


def round_up(size):
    """Return a size as the next multiple of UNIT_BYTES."""
    return -(-size // UNIT_BYTES) * UNIT_BYTES


def find_places(view, index):
    """Return (end of the last slot, entries whose place cannot be).

    view   the bytes of a table
    index  the places of its slots, in UNIT_BYTES
    """
    end = round_up(TABLE_BYTES + len(index) * ENTRY_BYTES)
    wrong = []
    for place, entry in sorted(
            (units * UNIT_BYTES, entry)
            for entry, units in enumerate(index) if units):
        number, size, room = entry - 2, 0, 0
        if end <= place <= len(view) - HOLDS.size:
            number, size, room, _ = HOLDS.unpack_from(view, place)
        slot_end = place + SLOT_STRUCT.size + room
        if (number == entry - 1 and size <= room and slot_end <= len(view)
                and slot_end % UNIT_BYTES == 0):
            end = slot_end
        else:
            wrong.append(entry)
    return end, wrong


def is_whole(view, place):
    """Return whether a slot holds a whole message, as far as its CRC
    tells."""
    _, size, _, length = HOLDS.unpack_from(view, place)
    start = place + SLOT_STRUCT.size
    return (LEAST_BYTES <= length <= size
            and zlib.crc32(view[start:start + length]) == CRC_RESIDUE)


# ---- table -------------------------------------------------------------


class Table:
    """The shared file, of which this process is the only writer.

    view         its bytes
    words, index the same as 64-bit words; its index
    status, counts         {field: value} of STATUS, of COUNTERS
    spare_bytes  set aside for nodes of -N that were never heard
    """

    def __init__(self, path, port, entries, expected, most_bytes):
        self.path, self.most_bytes, self.fd = path, most_bytes, -1
        self.view = self.words = self.index = memoryview(b"")
        self.start_s = self.counted_s = time.monotonic()
        self.grow_due = 0.0
        self.spare_bytes, pid = 0, os.getpid()
        self.counts = dict.fromkeys(COUNTER_NAMES, 0)
        self.history = collections.deque([self.counts.copy()],
                                         RECENT_TICKS + 1)
        self.status = dict.fromkeys(layout(STATUS)[1], 0)
        self.status.update(
            magic=TABLE_MAGIC, version=TABLE_VERSION, entries=entries, pid=pid,
            port=port, pid_namespace=read_pid_namespace(), expected=expected,
            start_time_s=time.time(), heartbeat_s=self.start_s,
            used_bytes=round_up(TABLE_BYTES + entries * ENTRY_BYTES))
        try:
            self.status["pid_start_ticks"], _, _ = read_process(pid)
        except (OSError, ValueError):
            pass                        # no /proc: the heartbeat will tell

    def map(self, fd):
        """Work on all of a file.

        Raises  OSError, and nothing has changed
        """
        size = os.fstat(fd).st_size // UNIT_BYTES * UNIT_BYTES
        self.use(fd, memoryview(mmap.mmap(fd, size)))

    def use(self, fd, view):
        """Work on a file that is mapped, and let go of what was before.

        Every view of it is made here: one that is exported keeps a mapping
        from being closed.
        """
        self.unmap()
        self.fd, self.view = fd, view
        self.words = view.cast("Q")
        end = TABLE_BYTES + self.status["entries"] * ENTRY_BYTES
        self.index = view[TABLE_BYTES:end].cast("I")

    def unmap(self):
        """Let go of the mapping."""
        mapped = self.view.obj
        for view in self.index, self.words, self.view:
            view.release()
        if mapped:
            mapped.close()

    def make(self, size):
        """Put a new file at the path, with the slots that are held.

        It is complete and allocated before it gets the name, by a rename;
        until then its own name cannot be guessed, so nobody is in the way.
        Raises  OSError, and nothing has changed
        """
        temporary = unguessable(self.path)
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL
                     | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(fd, 0o644)        # whatever the umask
            os.posix_fallocate(fd, 0, size)
            new = memoryview(mmap.mmap(fd, size))
            held = min(self.status["used_bytes"], len(self.view))
            new[:held] = self.view[:held]
            new[:TABLE_STRUCT.size] = self.pack_header()
            os.rename(temporary, self.path)
        except OSError:
            attempt(os.unlink, temporary)
            attempt(os.close, fd)
            raise
        old = self.fd
        self.use(fd, new)
        attempt(os.close, old)          # -1 is none

    def adopt(self):
        """Take over the file at the path; return the numbers whose slots
        were damaged: dropped where their place cannot be, else empty until
        their node's next message.

        What is in use is found anew from index and slots.
        Raises  OSError, StartError
        """
        fd = os.open(self.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        data = os.pread(fd, TABLE_STRUCT.size, 0)
        header = parse_table_header(data)
        self.status.update(entries=header["entries"],
                           used_entries=header["entries"])
        self.map(fd)
        end, damaged = find_places(self.view, self.index.tolist())
        for entry in damaged:
            self.index[entry] = 0
        used_entries = 0
        for entry, place in self.places():
            used_entries = entry + 1
            if not is_whole(self.view, place):
                self.clear(entry, place)
                damaged.append(entry)
            if self.words[place // WORD_BYTES] % 2:
                self.words[place // WORD_BYTES] += 1
        self.status.update(used_bytes=end, used_entries=used_entries)
        self.resume_clock(data, header)
        self.words[1] |= 1
        self.view[IDENTITY] = self.pack_header()[IDENTITY]
        self.write_header()
        return [entry - 1 for entry in damaged]

    def resume_clock(self, data, header):
        """Go on with the clock by which silence counts, from the heartbeat
        of an earlier recvstats, unless it was killed while it wrote it."""
        now = time.monotonic()
        self.status["heartbeat_s"] = now
        if zlib.crc32(data[TABLE_AT["version"]:]) == CRC_RESIDUE:
            self.status["request_time_s"] = header["request_time_s"]
            self.status["away_s"] = header["away_s"] + max(
                now - header["heartbeat_s"], 0)

    def clear(self, entry, place):
        """Make a slot one of which no message is known."""
        _, _, room, _ = HOLDS.unpack_from(self.view, place)
        self.publish(place, WORD_BYTES, SLOT_BODY.pack(
            *[0] * 6, b"", entry - 1, 0, room, 0, 0, 0))
        self.publish(place, SLOT_STRUCT.size, bytes(HEADER_STRUCT.size))

    def places(self):
        """Yield (entry of the index, byte offset of the slot) of the nodes
        that were heard."""
        used = self.index[:self.status["used_entries"]].tolist()
        for entry, units in enumerate(used):
            if units:
                yield entry, units * UNIT_BYTES

    def grow(self, end, now):
        """Let the file reach to end, and further where there is room.

        It grows in place and keeps its name: readers need not follow.  The
        room is allocated at once: a full file system is an error here, not
        a SIGBUS when the page is touched.  After an error it is not tried
        again for SPACE_S.
        Raises  OSError, and the table is as it was
        """
        size = len(self.view)
        if end <= size:
            return
        step = min(end + STEP_BYTES,
                   self.most_bytes // UNIT_BYTES * UNIT_BYTES)
        if end > step:
            raise OSError(errno.ENOSPC, "--max-bytes %d reached: raise it, or "
                          "begin with --fresh" % self.most_bytes)
        if now < self.grow_due:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.grow_due = now + SPACE_S
        if not attempt(os.posix_fallocate, self.fd, size, step - size):
            os.posix_fallocate(self.fd, size, end - size)
        self.map(self.fd)
        self.grow_due = 0.0

    def reserve(self):
        """Set room aside for the nodes of -N that were never heard, so that
        no flood of other numbers takes it.

        Raises  OSError
        """
        heard = self.index[1:1 + self.status["expected"]].tolist()
        self.spare_bytes = heard.count(0) * SHARE_BYTES
        self.grow(self.status["used_bytes"] + self.spare_bytes, NEVER)

    def add_slot(self, node, message_bytes, now):
        """Return (place, room) of a new slot behind the last one.

        The header counts it before anything is written there, and its
        place is put into the index when it is whole: killed in between, it
        was never there.  An expected node gets all its share, lest a short
        message of somebody else leave it too little.
        Raises  OSError
        """
        spare, used = self.spare_bytes, self.status["used_bytes"]
        slot_bytes = round_up(SLOT_STRUCT.size + message_bytes)
        if 0 <= node < self.status["expected"] and not self.index[node + 1]:
            spare -= SHARE_BYTES
            slot_bytes = max(slot_bytes, SHARE_BYTES)
        end = used + slot_bytes
        self.grow(end + spare, now)
        self.spare_bytes = spare
        self.status["used_bytes"] = end
        self.status["used_entries"] = max(self.status["used_entries"],
                                          node + 2)
        self.write_header()
        return used, end - used - SLOT_STRUCT.size

    def publish(self, place, offset, data):
        """Replace bytes of a slot; readers see the old ones or the new.

        Its word is odd meanwhile.  Only slice copies touch the table: a
        Struct that packs in place fills its target with zeros first, and
        readers see them.
        """
        word, start = place // WORD_BYTES, place + offset
        self.words[word] |= 1           # a new place may hold anything
        self.view[start:start + len(data)] = data
        self.words[word] += 1

    def pack_header(self):
        """Return the bytes of the header, its word 0."""
        counts = self.counts.values()
        data = TABLE_STRUCT.pack(
            *self.status.values(), *counts,
            *map(int.__sub__, counts, self.history[0].values()),
            0)[:-CRC_BYTES]
        crc = zlib.crc32(data[TABLE_AT["version"]:])
        return data + crc.to_bytes(CRC_BYTES, "little")

    def write_header(self):
        """Bring the header up to date.

        Its identity is written once, and read here first.
        Raises  InUse when it is another's
        """
        data = self.pack_header()
        if self.view[IDENTITY] != data[IDENTITY]:
            pid = parse_table_header(bytes(self.view[:TABLE_BYTES]))["pid"]
            raise InUse("%s: taken by another recvstats (pid %d)"
                        % (self.path, pid))
        self.words[1] |= 1
        self.view[REST] = data[REST]
        self.words[1] += 1

    def beat(self, now):
        """Write the header, with a heartbeat and what was counted."""
        counts, status = self.counts, self.status
        counts["received"] = sum(counts.values()) - sum(
            counts[name] for name in ("received", *NOT_RECEIVED))
        elapsed_s = now - self.counted_s
        if elapsed_s >= TICK_S:         # else a signal made it tick
            messages = counts["received"] - self.history[-1]["received"]
            status["messages_per_s"] = min(round(messages / elapsed_s), U32)
            self.history.append(counts.copy())
            self.counted_s = now
        status["heartbeat_s"] = now
        status["uptime_s"] = max(now - self.start_s, 0)
        self.write_header()

    def is_in_place(self):
        """Return whether the path still names this file, as far as can be
        told."""
        try:
            return os.path.samestat(os.lstat(self.path), os.fstat(self.fd))
        except FileNotFoundError:
            return False
        except OSError:
            return True


# ---- order -------------------------------------------------------------
# Who may write a slot, and in which order.

HELD_S = 60.0                   # who sends nothing holds a number no longer
WINDOW_BITS = 64

# With a key?  Held by who sent it last?  From its address?  In which order?
# What becomes of it.  None is any; the first row that fits decides.
OWNERSHIP = (
    # The node's farewell overtook it: it has left all the same.
    (None, None, None, "overtaken", "late"),
    # The key tells who it is, wherever it is now: only a newer message can
    # be the node's own, an older one may be a replay, for ever.
    (True, None, None, "newer", "stored"),
    (True, None, None, "behind", "late"),
    (True, None, None, "older", "stale"),
    # Nobody sends under this number now: whoever does may have it.
    (False, False, None, None, "stored"),
    # A second sender must not disturb the first.
    (False, True, False, None, "conflict"),
    # The sender itself: overtaken, repeated, or a second agent there.
    (False, True, True, "newer", "stored"),
    (False, True, True, "behind", "late"),
    (False, True, True, "older", "stale"),
)


def decide(keyed, held, same, order):
    """Return the counter of a message that does not follow the last one."""
    facts = keyed, held, same, order
    return next(counter for *wanted, counter in OWNERSHIP if all(
        want in (None, fact) for want, fact in zip(wanted, facts)))


def silence_s(period_s):
    """Return how long a node of this period is silent before it is down."""
    return max(SILENT_S, SILENT_PERIODS * period_s)


def begin(received, lost, restarts, last_start, start, sequence):
    """Return (window, lost, restarts) with a message that does not follow
    the last one.

    Bit n of the window: the message n before this one came, or is not
    missed.
    """
    if not received:
        return 1, 0, 0                  # what came before, nobody awaited
    if start > last_start:
        window = U64 << min(sequence, WINDOW_BITS) & U64 | 1
        return window, lost + max(sequence - 1, 0), restarts + 1
    return U64, lost, restarts + 1 if start < last_start else restarts


# ---- nodes -------------------------------------------------------------
# What comes of a message, and what state its node is in.  All that is known
# of a node is in its slot.

AHEAD_S = 60.0                  # a signed message may be of the future by
ADDRESSES = 16384               # senders remembered
NEWS_CHARACTERS = 400           # of a list in the log
RIVAL_LINES = 10

SILENT_FROM, _ = layout(SLOT, ("silent_from_s",))
# What of a slot each message needs, and that of a number never heard.
LAST, _ = layout(SLOT + HEADER, (
    "window", "received", "lost", "address", "room_bytes", "restarts",
    "start_us", "sequence"))
NOTHING = 0, 0, 0, b"", 0, 0, -1, 0
State = collections.namedtuple(
    "State", "silent_from_s address port kind start_us sequence period_s")
STATE, _ = layout(SLOT + HEADER, State._fields)
COUNTS, _ = layout(SLOT, ("window", "received", "lost"))
COUNTS_AT, COUNTS_END = SLOT_AT["window"], SLOT_AT["address"]


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
    if len(text) > NEWS_CHARACTERS:
        text = "%s... (%d nodes)" % (text[:NEWS_CHARACTERS], len(nodes))
    text = "n[%s]" % text if text.strip("0123456789") else "n" + text
    return ",".join((["master"] if MASTER in nodes else [])
                    + ([text] if spans else []))


class Nodes:
    """The nodes of a table, and what happened to them.

    buffer  the slot header but for its word, then the datagram received
    silent  the nodes that are down or have left
    news    {what happened: the nodes it happened to} not yet logged
    rivals, moved  {node: two addresses} that both send it; that it had, has
    """

    def __init__(self, table, args, keyed, log):
        self.table, self.keyed, self.log = table, keyed, log
        self.flags = SIGNED | VERIFIED if keyed else SIGNED
        self.max_nodes, self.iprange = args.max_nodes, args.iprange
        self.allowed = args.allow
        self.buffer = memoryview(bytearray(SLOT_STRUCT.size + 65536))
        self.message = self.buffer[HEAD_BYTES:]
        self.silent = {node for node, state in self.states()
                       if self.state_of(state) != "up"}
        self.news, self.rivals, self.moved = {}, {}, {}
        self.full_due = 0.0
        self.wall_s = time.time() - time.monotonic()
        # Bounded, or forged addresses would fill the memory.
        self.admit = functools.lru_cache(ADDRESSES)(self.read_address)

    def read_address(self, address):
        """Return the bytes of an address, b"" when it may not send."""
        if self.allowed and not is_in(address, self.allowed):
            return b""
        return socket.inet_aton(address)

    def number_of(self, address):
        """Return the number of a node that does not know it, by its address;
        UNNUMBERED when it has none."""
        first, last = self.iprange or (1, 0)
        number = int.from_bytes(socket.inet_aton(address), "big")
        return number - first if first <= number <= last else UNNUMBERED

    def states(self):
        """Yield (node, its State) of the nodes that were heard."""
        for entry, place in self.table.places():
            yield entry - 1, State(*STATE.unpack_from(self.table.view,
                                                      place))

    def state_of(self, state):
        """Return up, down or left."""
        status = self.table.status
        silent_s = (status["heartbeat_s"] - status["away_s"]
                    - state.silent_from_s)
        if state.kind == FAREWELL:
            return "left"
        return "down" if silent_s > silence_s(state.period_s) else "up"

    def store(self, size, sender, address, header, now):
        """Put a good message, less its MAC, into its slot if it is newer than
        the last; return the counter that it adds to."""
        _, length, node, kind, _, start, sequence, _, time_s = header
        if node == UNNUMBERED:
            node = self.number_of(sender[0])
        if not MASTER <= node < self.max_nodes:
            return "unnumbered" if node == UNNUMBERED else "number_wrong"
        if self.keyed and max(start / 1e6, time_s) > (
                now + self.wall_s + AHEAD_S):
            return "clock_wrong"
        table = self.table
        old = place = table.index[node + 1] * UNIT_BYTES
        window, received, lost, owner, room, restarts, last_start, last = (
            LAST.unpack_from(table.view, place) if place else NOTHING)
        gap = sequence - last & U32
        follows = start == last_start and 0 < gap < HALF
        if not follows or address != owner:
            counter = self.outcome(node, place, address, start, sequence, now)
            if counter != "stored":
                return counter
        if follows:
            window = (window << gap | 1) & U64 if gap < WINDOW_BITS else 1
            lost += gap - 1
        else:
            window, lost, restarts = begin(received, lost, restarts,
                                           last_start, start, sequence)
        if length > room:
            place, room = self.make_room(node, length, room, now)
            if not place:
                return "no_space"
        if node in self.silent or kind == FAREWELL or not received:
            self.keep_news(node, kind, received)
        SLOT_BODY.pack_into(            # our own memory: nobody sees zeros
            self.buffer, 0, now, now + self.wall_s,
            now - table.status["away_s"], window, received + 1,
            lost if lost <= U64 else U64, address, node, length, room,
            restarts, sender[1], self.flags if size > length else 0)
        table.publish(place, WORD_BYTES, self.buffer[:HEAD_BYTES + length])
        if place != old:
            table.index[node + 1] = place // UNIT_BYTES
        return "stored"

    def outcome(self, node, place, address, start, sequence, now):
        """Return "stored" when a message that does not follow the last one
        may replace it, else the counter that it adds to."""
        if not place:
            return "stored"             # the first of its node
        state = State(*STATE.unpack_from(self.table.view, place))
        behind = state.sequence - sequence & U32
        order = "newer"
        if start < state.start_us:
            order = "older"
        elif start == state.start_us and behind < HALF:
            order = "behind"
        left = state.kind == FAREWELL
        if left and order == "behind" and behind < WINDOW_BITS:
            order = "overtaken"
        silent_s = now - self.table.status["away_s"] - state.silent_from_s
        up = not left and silent_s <= silence_s(state.period_s)
        same = address == state.address
        counter = decide(self.keyed, up and silent_s <= HELD_S, same, order)
        if counter == "late":
            return self.late(place, behind)
        if counter == "conflict":
            self.rivals[node] = address, state.address
        elif counter == "stored" and up and not same:
            self.moved[node] = state.address, address
        return counter

    def late(self, place, behind):
        """Count a message overtaken by newer ones; return its counter."""
        window, received, lost = COUNTS.unpack_from(self.table.view, place)
        if behind >= WINDOW_BITS or window >> behind & 1:
            return "repeated"
        if behind < received + lost:    # it was counted as lost
            lost = max(lost - 1, 0)
        else:                           # it came before the first one heard
            lost = behind - received
        self.table.publish(place, COUNTS_AT, COUNTS.pack(
            window | 1 << behind, received + 1, lost)[COUNTS_AT:COUNTS_END])
        return "late"

    def make_room(self, node, size, room, now):
        """Return (place, room) of a new slot, (0, 0) when there is none.

        It holds the message and a quarter more; for one that has outgrown
        its slot, twice the room of before; no more where room is short.
        """
        trouble, wanted = "", max(2 * room, size if room else size + size // 4)
        for wanted in min(wanted, MESSAGE_BYTES), size:
            try:
                return self.table.add_slot(node, wanted, now)
            except OSError as error:
                trouble = trouble or error.strerror
        if now >= self.full_due:
            self.full_due = now + TOLD_S
            self.log("%s: cannot grow: %s: messages that fit are stored, "
                     "others counted as no_space" % (self.table.path, trouble))
        return 0, 0

    def keep_news(self, node, kind, received):
        """Keep the news that a message is for the log."""
        if kind == FAREWELL:
            news = "left"
            self.silent.add(node)
        else:
            news = "up again" if received else "up"
            self.silent.discard(node)
        self.news.setdefault(news, set()).add(node)

    def sweep(self):
        """Find the nodes that fell silent since the last sweep."""
        table, silent = self.table, self.silent
        latest = (table.status["heartbeat_s"] - table.status["away_s"]
                  - SILENT_S)
        unpack, view = SILENT_FROM.unpack_from, table.view
        for entry, place in table.places():
            if unpack(view, place) < (latest,) and entry - 1 not in silent:
                state = State(*STATE.unpack_from(view, place))
                if self.state_of(state) == "down":
                    silent.add(entry - 1)
                    self.news.setdefault("down", set()).add(entry - 1)

    def log_news(self):
        """Log what happened, as far as the log has room: the rest of it
        waits, folded."""
        for news in sorted(self.news):
            if self.log.has_room():
                self.log("%s: %s" % (news, format_nodes(self.news.pop(news))))

    def log_rivals(self):
        """Log which numbers two addresses send, and which have moved."""
        for pairs, form in (
                (self.rivals, "node %d: %s sends this number too; it belongs "
                 "to %s until that is down: give one of them another"),
                (self.moved, "node %d: was up at %s and is now at %s")):
            nodes = sorted(pairs)
            for node in nodes[:RIVAL_LINES]:
                self.log(form % (node, *map(socket.inet_ntoa, pairs[node])))
            if nodes[RIVAL_LINES:]:
                self.log("more like this: %s" % format_nodes(
                    nodes[RIVAL_LINES:]))
            pairs.clear()


# ---- requests ----------------------------------------------------------
# Masters ask nodes for a sample: all when they start, silent ones for ever.

ASKED_PERIODS_S = 0.1, 3600.0
ASK_S = 60.0                    # between two requests to a silent node
RENEW_S = 1200.0                # between two for a period; agents hold it 1 h
ASKS = 100                      # a second, in all
SPREAD_S = 1.5                  # answers to the group fall within it
PERIOD_ERROR_S = 1e-3           # a period is the same, or nearly
ASK_STRUCT, _ = layout(ASK)


def pack_request(node, order, period_s, spread_s, agent_start_us):
    """Return the request for a sample, and for a period from now on.

    order           (start_us, sequence) of the request
    agent_start_us  of the agent that is meant, 0 any
    """
    data = HEADER_STRUCT.pack(
        MAGIC, HEADER_STRUCT.size + ASK_STRUCT.size + CRC_BYTES, node,
        REQUEST, 1, *order, period_s, time.time())
    data += ASK_STRUCT.pack(spread_s, agent_start_us)
    return data + zlib.crc32(data).to_bytes(CRC_BYTES, "little")


class Requests:
    """Who is to be asked for a sample.

    queue  {node: None}, in the order in which they are asked
    """

    def __init__(self, sock, nodes, args, keys):
        self.sock, self.nodes, self.keys = sock, nodes, keys
        self.rate_s = args.rate or 0.0
        self.group = (GROUP, args.port + 1) if args.interface else None
        self.start_us, self.sequence = int(time.time() * 1e6), 0
        self.queue, self.ask_due, self.renew_due = {}, 0.0, 0.0

    def queue_due(self, now):
        """Queue the nodes that are to be asked.

        All of them at the start, and now and then so that they keep the
        period asked for; silent ones once a minute, and those whose period
        is another.
        """
        renews, asks = now >= self.renew_due, now >= self.ask_due
        if renews:
            self.renew_due = now + (RENEW_S if self.rate_s else NEVER)
        if asks:
            self.ask_due = now + ASK_S
        silent = self.nodes.silent
        asked = [node for node, state in self.nodes.states()
                 if state.kind != FAREWELL and (
                     renews or asks and node in silent or self.rate_s
                     and abs(state.period_s - self.rate_s) > PERIOD_ERROR_S)
                 ] if renews or asks or self.rate_s and self.nodes.news else []
        asked.sort(key=lambda node: node in silent)     # who can, first
        if self.group and (asked or renews):
            asked = [UNNUMBERED]
        self.queue.update(dict.fromkeys(asked))

    def send(self):
        """Send what is due now; what is lost is sent again in its time."""
        table = self.nodes.table
        for node in [*self.queue][:ASKS]:
            del self.queue[node]
            address, start_us, spread_s = self.group, 0, SPREAD_S
            if node != UNNUMBERED:
                state = State(*STATE.unpack_from(
                    table.view, table.index[node + 1] * UNIT_BYTES))
                address = socket.inet_ntoa(state.address), state.port
                start_us, spread_s = state.start_us, 0.0
            self.sequence = self.sequence + 1 & U32
            data = pack_request(node, (self.start_us, self.sequence),
                                self.rate_s, spread_s, start_us)
            if self.keys:
                data += self.keys.sign(data)
            if attempt(self.sock.sendto, data, address):    # else: no route
                table.status["request_time_s"] = time.time()


# ---- group -------------------------------------------------------------
# With -i: one interface is listened to, and the group on it.

TTL = 1                         # the group is of one network
IFNAMSIZ = 16                   # linux/if.h
SIOCGIFINDEX, SIOCGIFADDR, SIOCGIFNETMASK = 0x8933, 0x8915, 0x891b
INTERFACE_TROUBLE = {           # of ioctl, by netdevice(7)
    errno.ENODEV: " is not there",
    errno.EADDRNOTAVAIL: " has no IPv4 address"}


def interface(name):
    """Return what may be the name of an interface, as it is.

    Raises  ValueError
    """
    if not 0 < len(os.fsencode(name)) < IFNAMSIZ:
        raise ValueError("not a name of 1 to 15 bytes: %r" % name)
    return name


def find_interface(name):
    """Return (index, network) of an interface.

    Raises  OSError; ENODEV when it is not there
    """
    request = struct.pack("16s24x", os.fsencode(name))
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            index, address, mask = [
                fcntl.ioctl(sock, code, request)[16:24]
                for code in (SIOCGIFINDEX, SIOCGIFADDR, SIOCGIFNETMASK)]
    except OSError as error:
        raise OSError(error.errno, "interface %s%s" % (
            name, INTERFACE_TROUBLE.get(error.errno,
                                        ": " + error.strerror)))
    return struct.unpack_from("=i", index)[0], network("%s/%s" % (
        socket.inet_ntoa(address[4:]), socket.inet_ntoa(mask[4:])))


def bind_to_interface(sock, interface):
    """Let a socket hear one interface only.

    Any user may where it is bound to none yet, root where it is bound to one
    that has gone; before Linux 5.7, always root.
    Raises  OSError
    """
    name = os.fsencode(interface)
    try:
        bound = sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE,
                                IFNAMSIZ)
    except OSError:
        bound = b""                     # to one that has gone
    if bound.rstrip(b"\0") != name:
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name)
        except PermissionError as error:
            raise OSError(error.errno, "interface %s: start recvstats again, "
                          "if need be as root or with CAP_NET_RAW" % interface)


def join_group(sock, interface, index):
    """Let a socket hear the group on one interface, and only that.

    index   of the interface
    Raises  OSError
    """
    group = struct.pack("=4s4si", socket.inet_aton(GROUP), bytes(4), index)
    option = sock.setsockopt
    bind_to_interface(sock, interface)
    # It may have been none, or was lost.
    attempt(option, socket.IPPROTO_IP, socket.IP_DROP_MEMBERSHIP, group)
    option(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
    option(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, group)
    option(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, TTL)


class Group:
    """The interface that a socket listens to.

    index    of the interface, 0 while it is not there: then the socket
             may hear others, and what it hears does not count
    trouble  why it is not there
    """

    def __init__(self, sock, interface):
        self.sock, self.interface = sock, interface
        self.index, self.trouble = 0, ""

    def rejoin(self, log):
        """Join again when the interface has become another; return whether
        it has."""
        try:
            index, _ = find_interface(self.interface)
            if index == self.index and not self.trouble:
                return False
            join_group(self.sock, self.interface, index)
            for _ in range(BUFFER_BYTES // DATAGRAM_BYTES):
                self.sock.recv(1)       # what other interfaces left there
        except BlockingIOError:
            pass
        except OSError as error:
            if error.strerror != self.trouble:
                log("%s: waiting for it" % error.strerror)
            self.trouble = error.strerror
            if error.errno == errno.ENODEV:
                self.index = 0
            return False
        self.index, self.trouble = index, ""
        return True


# ---- socket ------------------------------------------------------------

BUFFER_BYTES = 16 << 20         # receive buffer that is wanted
DATAGRAM_BYTES = 512            # of it, that the shortest one takes at least
SO_RCVBUFFORCE, SO_MEMINFO = 33, 55     # asm-generic/socket.h
MEMINFO_DROPS = 8                       # linux/sock_diag.h


def open_socket(port, interface):
    """Return a UDP socket bound to a port, which nobody else may have; of one
    interface, where it is there, so that others may have it on theirs.

    Raises  StartError
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    if interface:
        attempt(bind_to_interface, sock, interface)
    for option in SO_RCVBUFFORCE, socket.SO_RCVBUF:
        if attempt(sock.setsockopt, socket.SOL_SOCKET, option, BUFFER_BYTES):
            break                       # only root may force it
    sock.setblocking(False)
    try:
        sock.bind(("", port))
    except OSError as error:
        advice = find_user(port)
        if error.errno == errno.EACCES:
            advice = ": choose one above 1023 with -p, or run as root"
        raise StartError("UDP port %d: %s%s" % (port, error.strerror, advice))
    return sock


def find_user(port):
    """Return " by pid ..." of who uses a UDP port, "" if nobody can tell.

    Source  proc(5), /proc/net/udp and /proc/PID/fd
    """
    try:
        with open("/proc/net/udp") as file:
            rows = [line.split() for line in file][1:]
    except OSError:
        return ""
    links = {"socket:[%s]" % row[9] for row in rows
             if int(row[1].partition(":")[2], 16) == port}
    from glob import iglob              # it passes what is another user's
    for path in iglob("/proc/[0-9]*/fd/*"):
        try:
            if os.readlink(path) in links:
                return (" by pid %s: end it, or choose another with -p"
                        % path.split("/")[2])
        except OSError:
            pass                        # closed since it was listed
    return ""


def read_drops(sock, before):
    """Return how many datagrams the kernel dropped for want of buffer; as
    before where it does not tell (before Linux 4.12)."""
    try:
        words = sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 9 * 4)
    except OSError:
        return before
    drops = struct.unpack("=9I", words)[MEMINFO_DROPS]
    return before + (drops - before & U32)      # its counter wraps


# ---- keys --------------------------------------------------------------


class Keys:
    """The keys of a file, one per line: the first signs, all verify.

    trouble  why the file as it is now will not do, or ""
    Raises   StartError when others may read the file, or it holds none
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
        self.states = [self.blake2b(key=key, digest_size=MAC_BYTES)
                       for key in keys]
        self.seen = self.version(found)

    def version(self, found):
        """Return what of a stat result changes when the file does."""
        return found.st_ino, found.st_size, found.st_mtime, found.st_ctime

    def refresh(self, anew=False):
        """Read the file when it has changed, or anew; keep the old keys
        when the new file will not do, and say why in self.trouble."""
        try:
            if anew or self.version(os.stat(self.path)) != self.seen:
                self.read()
            self.trouble = ""
        except (OSError, StartError) as error:
            self.trouble = explain(error)

    def sign(self, data, state=None):
        """Return the MAC_BYTES to put behind a message."""
        mac = (state or self.states[0]).copy()
        mac.update(data)
        return mac.digest()

    def verify(self, data, mac):
        """Return whether one of the keys made the MAC.

        A set looks for a salted hash first: its time does not tell where
        two MACs differ (hmac is not in a minimal Python).
        """
        return bytes(mac) in {self.sign(data, state) for state in self.states}


# ---- daemon ------------------------------------------------------------
# What a process needs that runs for years beside others.

STOP = signal.SIGTERM, signal.SIGINT
FDS = 65536                     # may be open, where /proc does not tell


def wait_for(files, wait_s):
    """Return those files that can be read within wait_s seconds.

    By poll, since select knows no descriptor above 1,023.
    Raises  OSError
    """
    poll = select.poll()
    fds = {}
    for file in files:
        fd = file if isinstance(file, int) else file.fileno()
        fds[fd] = file
        poll.register(fd, select.POLLIN)
    ready = poll.poll(None if wait_s == NEVER else max(wait_s, 0) * 1000)
    return [fds[fd] for fd, _ in ready]


def open_signals(numbers):
    """Return a descriptor that reads a byte, the number, per signal."""
    reader, writer = os.pipe()
    for fd in reader, writer:
        os.set_blocking(fd, False)
    signal.set_wakeup_fd(writer)
    for number in numbers:
        signal.signal(number, ignore)
    return reader


def read_signals(reader):
    """Return the numbers of the signals that came, b"" when none did."""
    try:
        return os.read(reader, READ_BYTES)
    except OSError:
        return b""


def close_inherited():
    """Close what the caller left open, lest its locks be held for ever, and
    open the standard files, lest a socket get their numbers.

    Raises  OSError
    """
    try:
        fds = os.listdir("/proc/self/fd")
    except OSError:
        fds = []
    os.closerange(3, max(map(int, fds), default=FDS) + 1)
    spare = 0
    while spare <= 2:
        spare = os.open("/", os.O_RDONLY)
    os.close(spare)


def is_ready(reader, wait_s):
    """Return whether a daemon's child is, or may yet be, within wait_s.

    reader  what the child writes a byte to when it is ready
    """
    try:
        late = not wait_for([reader], wait_s)
    except OSError:
        late = False                    # wait for as long as it takes
    try:
        return late or bool(os.read(reader, 1))
    except OSError:
        return True                     # the child goes on without us


def release_standard():
    """Let go of the caller's terminal.

    Raises  OSError
    """
    try:
        null = os.open(os.devnull, os.O_RDWR)
    except OSError:                     # a root without /dev
        null = os.open("/", os.O_RDONLY)
    for fd in 0, 1, 2:
        attempt(os.dup2, null, fd)
    os.close(null)


def daemonize(wait_s):
    """Fork; in the child, return the function that lets the parent go.

    The parent exits 0 when the child calls it, or after wait_s, and 1 when
    the child ends before.  Until then the child's errors reach the
    caller's terminal.  The parent's end changes nothing for the child.
    Raises  OSError
    """
    close_inherited()
    reader, writer = os.pipe()
    if os.fork():
        attempt(os.close, writer)
        os._exit(0 if is_ready(reader, wait_s) else 1)
    attempt(os.close, reader)
    os.setsid()

    def release():
        attempt(os.chdir, "/")          # what lies elsewhere may go
        attempt(release_standard)
        attempt(os.write, writer, b".")
        attempt(os.close, writer)
    return release


def tell_ready():
    """Tell systemd that the daemon is ready, where it waits for that.

    Source  sd_notify(3)
    """
    path = os.environ.get("NOTIFY_SOCKET")
    if path:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            attempt(sock.sendto, b"READY=1",
                    path[:1].replace("@", "\0") + path[1:])


def is_in_place(fd, path):
    """Return whether a path still names an open file."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except OSError:
        return False


def lock_pid_file(path):
    """Return the descriptor of a pid file that is locked, and in place.

    Raises  StartError when it is of another that runs, OSError
    """
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
                     | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.pread(fd, READ_BYTES, 0).strip()
            raise StartError(
                "%s: is of another that runs (pid %s): end it, or choose "
                "another with --pid-file" % (
                    path, text.decode() if text.isdigit() else "unknown"))
        if is_in_place(fd, path):
            return fd
        os.close(fd)                    # its process has just ended


def hold_pid_file(path):
    """Write this process's number to a file, if one is named; return the
    function that removes the file, if it still is this one.

    It stays locked while this runs, which tells a stale one, and has a mode
    that lets nobody else lock it.
    Raises  StartError, also when the file is not a pid file of ours
    """
    if not path:
        return ignore
    try:
        fd, text = lock_pid_file(path), b"not a plain file"
        found = os.fstat(fd)
        if stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
            text = os.pread(fd, READ_BYTES, 0).strip()
        if text and not text.isdigit():
            raise StartError("%s: is not a pid file: name another" % path)
        if found.st_uid != os.geteuid():
            raise StartError("%s: belongs to another user: remove it, or name "
                             "another" % path)
        os.fchmod(fd, 0o600)
        os.ftruncate(fd, 0)
        os.pwrite(fd, b"%d\n" % os.getpid(), 0)
    except OSError as error:
        raise StartError("%s: %s" % (path, error.strerror))

    def remove():
        if is_in_place(fd, path):
            attempt(os.unlink, path)
    return remove


# ---- log ---------------------------------------------------------------
# Nothing here ever waits: a log that is full or hung loses lines, and
# recvstats goes on.

SYSLOG, PRIORITY = "/dev/log", 30       # daemon.info
LOG_LINES, LOG_LINE_S = 20, 3.0         # at once; and then one in this time
LINE_CHARACTERS = 1000


class Log:
    """Lines to standard error, or to syslog over a socket of its own.

    drops  how many could not be written
    said   what is said once and no more
    """

    def __init__(self, foreground):
        self.foreground, self.drops, self.said = foreground, 0, set()
        self.lines, self.filled_s = LOG_LINES, time.monotonic()

    def has_room(self):
        """Return whether a line may be written that can wait."""
        now = time.monotonic()
        self.lines = min(self.lines + (now - self.filled_s) / LOG_LINE_S,
                         LOG_LINES)
        self.filled_s = now
        return self.lines >= 1

    def __call__(self, text):
        """Write a line, if that can be done at once."""
        self.lines = max(self.lines - 1, 0)
        line = "recvstats: %s" % text.replace("\n", "\\n")
        data = line[:LINE_CHARACTERS].encode("utf-8", "backslashreplace")
        if not attempt(self.write_stderr if self.foreground
                       else self.send_syslog, data):
            self.drops += 1

    def once(self, text):
        """Write a line unless it was written before."""
        if text not in self.said:
            self.said.add(text)
            self(text)

    def write_stderr(self, data):
        """Write a line to standard error, if its reader takes it."""
        poller = select.poll()
        poller.register(2, select.POLLOUT)
        if not poller.poll(0):
            raise BlockingIOError("standard error is full")
        os.write(2, data + b"\n")

    def send_syslog(self, data):
        """Send a line to syslog."""
        head = "<%d>%s recvstats[%d]" % (
            PRIORITY, time.strftime("%b %d %H:%M:%S"), os.getpid())
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.connect(SYSLOG)        # anew: it may have been restarted
            sock.send(head.encode() + data[len("recvstats"):])


# ---- run ---------------------------------------------------------------

NODES = 64                      # for which a new table has room
CLAIMS = 20                     # of a path that another user wants too
NAP_LEAST_S, NAP_MOST_S = 0.005, 0.100  # datagrams gather meanwhile
GATHER_BYTES = 16384            # of the buffer for each: most of it is spare
BATCH = 4096                    # datagrams between two reads of the clock
GAP_S = 2.0                     # without a heartbeat: nobody listened
NICER = -10                     # than it was started: nobody starves it
FAULT_S = 0.1                   # a failed call is not tried again before
DROPS = (                       # a line a minute each, with what to do
    ("unnumbered", "give its node a number, or its address with --iprange"),
    ("number_wrong", "give its node a lower number, or raise --max-nodes"),
    ("not_allowed", "name its network with --allow, or its interface with -i"),
    ("unsigned", "start its agent with --key-file"),
    ("signature_wrong", "give its agent a key of --key-file"),
    ("clock_wrong", "set its clock"),
    ("stale", "two agents run there, end one; or its clock went back"),
    ("version_wrong", "it is newer: update the master first"),
)


class Receiver:
    """One run: what becomes of each datagram, and what is due each second.

    examples  {counter: sender of the last datagram that added to it}
    gather    how many datagrams are to gather before it wakes up
    """

    def __init__(self, table, args, log, keys, sock=None):
        self.table, self.log, self.keys, self.sock = table, log, keys, sock
        self.is_default, self.debug = args.table is None, args.debug
        self.nodes = Nodes(table, args, bool(keys), log)
        self.requests = Requests(sock, self.nodes, args, keys)
        self.group = Group(sock, args.interface) if args.interface else None
        self.message, self.admit = self.nodes.message, self.nodes.admit
        self.store = self.nodes.store
        self.examples, self.told = {}, {}
        self.told_due, self.path_due, self.gather = 0.0, 0.0, 1

    def accept(self, size, sender, now):
        """Store the datagram in the buffer; return the counter that it adds
        to.

        sender  (address, port)
        now     CLOCK_MONOTONIC
        """
        address = self.admit(sender[0])
        if not address:
            return "not_allowed"
        header = HEADER_STRUCT.unpack_from(self.message)
        return (check(self.message, size, header, address, self.keys)
                or self.store(size, sender, address, header, now))

    def refuse(self, *_):
        """Store nothing: the interface to listen to is not there."""
        return "not_allowed"

    def choose(self):
        """Return what each datagram is given to now: accept or refuse, with
        --debug one that tells."""
        accept = self.accept
        if self.group and not self.group.index:
            accept = self.refuse
        return debugging(self, accept) if self.debug else accept

    def wake(self, now):
        """Let the time in which nobody listened count for nothing."""
        status = self.table.status
        gap_s = now - status["heartbeat_s"]
        if gap_s > GAP_S:
            status["away_s"] += gap_s
            status["heartbeat_s"] = now

    def tick(self, now, told=b""):
        """Do what is due once a second.

        told    the numbers of the signals that came
        Raises  InUse
        """
        nodes, table = self.nodes, self.table
        nodes.wall_s = time.time() - time.monotonic()
        self.wake(now)
        table.status["heartbeat_s"] = now
        nodes.sweep()
        self.refresh_keys(signal.SIGHUP in told)
        if self.group and self.group.rejoin(self.log):
            self.requests.renew_due = 0.0
        if self.sock:
            self.requests.queue_due(now)
            self.requests.send()
        nodes.log_news()
        self.log_refused(now)
        if now >= self.path_due:
            self.keep_path(now)
        self.beat(now)

    def beat(self, now):
        """Write a heartbeat, and what kernel and log have dropped."""
        counts = self.table.counts
        if self.sock:
            counts["kernel_drops"] = read_drops(self.sock,
                                                counts["kernel_drops"])
        counts["log_drops"] = self.log.drops
        self.table.beat(now)

    def refresh_keys(self, anew):
        """Read the keys again when their file has changed, or anew."""
        if self.keys:
            trouble = self.keys.trouble
            self.keys.refresh(anew)
            if self.keys.trouble not in ("", trouble):
                self.log("%s: the old keys stay" % self.keys.trouble)

    def log_refused(self, now):
        """Log what is refused, each cause once a minute."""
        if now >= self.told_due and (self.nodes.rivals or self.nodes.moved):
            self.told_due = now + TOLD_S
            self.nodes.log_rivals()
        for counter, advice in DROPS:
            count = self.table.counts[counter]
            before, due = self.told.get(counter, (0, now))
            if count > before and now >= due:
                self.told[counter] = count, now + TOLD_S
                self.log("%s: %d datagrams dropped, the last one from %s:%d: "
                         "%s" % (counter, count - before,
                                 *self.examples[counter], advice))

    def keep_path(self, now):
        """Put the table back where its path names another file or none.

        What is not to be touched there is not read again for a while: to
        see whether somebody writes it may last MOVES_S.
        Raises  InUse when that is another recvstats' table
        """
        table = self.table
        if table.is_in_place():
            return
        try:
            claim(table.path, self.is_default, table.status["entries"],
                  self.log)
            table.make(len(table.view))
            self.log("%s: was gone: made anew" % table.path)
        except InUse:
            raise
        except (StartError, OSError) as error:
            if isinstance(error, StartError):
                self.path_due = now + TOLD_S
            self.log.once("%s: gone, and cannot be made: %s" % (
                table.path, getattr(error, "strerror", error)))

    def stop(self, now):
        """Leave the table in good order: what is counted, and that this is
        the end."""
        self.wake(now)
        self.table.status["stopped"] = 1
        self.beat(now)


def debugging(receiver, accept):
    """Return accept with a line of log for each datagram."""
    def accept_and_tell(size, sender, now):
        counter = accept(size, sender, now)
        node = "no node"
        if size >= LEAST_BYTES:
            node = "node %d" % HEADER_STRUCT.unpack_from(receiver.message)[2]
        receiver.log("%s:%d: %s, %d bytes: %s"
                     % (*sender, node, size, counter))
        return counter
    return accept_and_tell


def drain(receive, receiver, now):
    """Store what the socket holds, up to BATCH datagrams; return how many.

    receive  the socket's recvfrom_into
    """
    message, examples = receiver.message, receiver.examples
    counts, accept = receiver.table.counts, receiver.choose()
    for count in range(BATCH):
        try:
            size, sender = receive(message)
        except BlockingIOError:
            return count
        counter = accept(size, sender, now)
        counts[counter] += 1
        if counter != "stored":
            examples[counter] = sender
    return BATCH


def choose_nap(nap_s, count, gather):
    """Return how long datagrams are to gather: until there are as many as
    that, if they come as they did in the last nap.

    count   of datagrams that were found after it
    """
    if count == BATCH:
        return 0.0                      # there may be more
    return min(max(nap_s * gather / max(count, 1), NAP_LEAST_S), NAP_MOST_S)


def run(receiver, sock, signals):
    """Store messages until told to stop.

    Datagrams gather while it naps: one wake-up serves them all.  It waits
    for the socket only when none came meanwhile.
    Raises  InUse when another recvstats has taken the table
    """
    told, count, nap_s = b"", 0, 0.0
    now = due = time.monotonic()
    while not set(told) & set(STOP):
        try:
            ready = (wait_for([signals], nap_s) if count else
                     wait_for([sock, signals], due - now))
            if signals in ready:
                told += read_signals(signals)
            now = time.monotonic()
            receiver.wake(now)
            count = drain(sock.recvfrom_into, receiver, now)
            nap_s = choose_nap(nap_s, count, receiver.gather)
        except OSError as error:        # it is tried again, and never spins
            receiver.log.once("goes on after: %s" % explain(error))
            attempt(time.sleep, FAULT_S)
            told += read_signals(signals)
            continue                    # no heartbeat: nobody listened
        if told or now >= due:
            receiver.tick(now, told)
            told, due = bytes(set(told) & set(STOP)), now + TICK_S


# ---- start -------------------------------------------------------------


def open_table(args, log):
    """Return (the Table, how many nodes it holds), adopted or made.

    Raises  StartError
    """
    path = args.table or TABLE
    table = Table(path, args.port, args.max_nodes + 1, args.nodes,
                  args.max_bytes)
    try:
        damaged = []
        for turn in range(1, CLAIMS + 1):
            try:
                adopts = claim(path, args.table is None, args.max_nodes + 1,
                               log)
                if adopts and not args.fresh:
                    damaged = table.adopt()
                else:
                    table.make(min(
                        table.status["used_bytes"] + NODES * SHARE_BYTES,
                        args.max_bytes // UNIT_BYTES * UNIT_BYTES))
                break
            except IsADirectoryError:   # somebody puts it there each time
                if turn == CLAIMS:
                    raise
        if damaged:
            log("%s: %d slots were damaged and are empty now: %s" % (
                path, len(damaged), format_nodes(damaged)))
        table.reserve()
    except OSError as error:
        raise StartError("%s: cannot be made: %s: choose another with "
                         "--table" % (path, error.strerror or error))
    return table, sum(1 for _ in table.places())


def start(args, log):
    """Return (receiver, socket), ready to run.

    The port is bound before the table is opened: of two that start at
    once on one port, only one gets there.
    Raises  StartError, OSError
    """
    keys = Keys(args.key_file) if args.key_file else None
    sock = open_socket(args.port, args.interface)
    table, held = open_table(args, log)
    receiver = Receiver(table, args, log, keys, sock)
    if receiver.is_default and os.geteuid() >= FIRST_USER:
        complain("%s: no other user will believe it: run recvstats as root "
                 "or a system user" % table.path)
    log("version %s, port %d, %s: %d nodes taken over%s" % (
        VERSION, args.port, table.path, held,
        "; it is on a disk: put it on a tmpfs, as /dev/shm"
        if os.major(os.fstat(table.fd).st_dev) else ""))
    size = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    receiver.gather = size // GATHER_BYTES
    if size // 2 < BUFFER_BYTES:
        log("receive buffer is %d bytes, not %d: run as root or raise "
            "net.core.rmem_max" % (size // 2, BUFFER_BYTES))
    return receiver, sock


# ---- command line ------------------------------------------------------

MAX_NODES, MAX_BYTES = 65536, 256 << 20
NODES_MOST = 2**24              # that --max-nodes may say


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


def byte_count(text):
    """Return the bytes of `268435456`, `256M` or `1G`."""
    unit = "KMG".find(text[-1:].upper()) + 1
    return int(text[:-1] if unit else text) << 10 * unit


def address_range(text):
    """Return (first, last) address of FIRST[-LAST] as whole numbers; last
    is None when it is not said."""
    first, dash, last = text.partition("-")
    try:
        first, last = [int.from_bytes(socket.inet_pton(
            socket.AF_INET, address), "big") for address in (
                first, last if dash else first)]
    except OSError:
        raise argparse.ArgumentTypeError(
            "%s is not FIRST[-LAST], two IPv4 addresses" % text)
    if last < first:
        raise argparse.ArgumentTypeError("%s: ends before it begins" % text)
    return first, last if dash else None


def make_parser():
    """Return the parser of the options; its help is the text above."""
    parser = argparse.ArgumentParser(
        prog="recvstats", usage="recvstats.py [options]",
        # A width, lest it load shutil for it.
        formatter_class=lambda prog: argparse.HelpFormatter(prog, width=79))
    parser.format_help = lambda: __doc__ or parser.format_usage()
    option = parser.add_argument
    option("-p", "--port", type=number_in(1, 65535, int))
    option("-i", "--interface", type=interface)
    option("-N", "--nodes", type=number_in(0, NODES_MOST, int), default=0)
    option("-f", "--foreground", action="store_true")
    option("-d", "--debug", action="store_true")
    option("--table", type=os.path.abspath)
    option("--fresh", action="store_true")
    option("--iprange", type=address_range)
    option("--max-nodes", type=number_in(1, NODES_MOST, int),
           default=MAX_NODES)
    option("--max-bytes", type=byte_count, default=MAX_BYTES)
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
    if args.iprange and args.iprange[1] is None:
        first, _ = args.iprange
        args.iprange = first, first + args.max_nodes - 1
    least = round_up(TABLE_BYTES + (args.max_nodes + 1) * ENTRY_BYTES)
    least += max(args.nodes, 1) * SHARE_BYTES
    if args.max_bytes < least:
        parser.error("--max-bytes %d: -N %d and --max-nodes %d need %d" % (
            args.max_bytes, args.nodes, args.max_nodes, least))
    args.foreground = args.foreground or args.debug
    return args


def write_line(stream, text):
    """Write a line of text at once, if anybody takes it."""
    if stream:                          # a closed one is None
        attempt(os.write, stream.fileno(),
                (text + "\n").encode("utf-8", "backslashreplace"))


def complain(text):
    """Write a line to standard error."""
    write_line(sys.stderr, "recvstats: " + text)


def main(argv=None):
    """Return the exit status: 0 told to stop, 1 could not start or go on."""
    remove_pid_file, release, log = ignore, tell_ready, ignore
    try:
        args = parse_args(argv)
        if not args.foreground:
            release, log = daemonize(NEVER), Log(False)
        remove_pid_file = hold_pid_file(args.pid_file)
        attempt(os.nice, NICER)
        signals = open_signals(STOP + (signal.SIGHUP,))
        receiver, sock = start(args, Log(args.foreground))
        drain(sock.recvfrom_into, receiver, time.monotonic())
        receiver.tick(time.monotonic())
        if receiver.group and not (receiver.group.index or args.foreground):
            complain("%s: waiting for it" % receiver.group.trouble)
        release()
        run(receiver, sock, signals)
        receiver.stop(time.monotonic())
        receiver.log("told to stop")
    except (StartError, OSError, ImportError) as error:
        complain(explain(error))
        log(explain(error))             # the terminal may be gone
        return 1
    except Exception as error:
        log("ends by a fault of its own: %r" % error)
        raise
    finally:
        remove_pid_file()
    return 0


if __name__ == "__main__":
    sys.exit(main())
