#!/usr/bin/env python3
"""beostat - show the statistics of the cluster's nodes

usage: beostat.py [view] [selection] [NODES ...]

A line per node; NODES are numbers, ranges, host names: 0-31,40 n[7,9] .3
master login; default all that were heard.  Other views:
  -c, --cpuinfo -m, --meminfo -l, --loadavg -n, --net-dev -s, --stat
  -f, --statfs -a, --all    texts of /proc, statfs of /; one, some or all
  -C, --cpu-percent         each CPU's use, 0 to 1
  -R, --net-rate            bytes a second, received and sent
  -J, --jobs                processes, as each node's procstatd tells
  --dots --daemon           a cell per node; recvstats' own state
  --json --prometheus --ganglia [--cluster NAME]    for other programs
  -b, --brief               no headings; with --up, --down the folded list
  -w, --watch [SECONDS]     show it again and again; default every 2 seconds
  --up --down --top N       nodes that are up, or are not; the first N
  --sort KEY --reverse      by a column, -KEY turned round: node state age
         cpus cpu load running procs mem swap disk in out name; jobs: cpu rss
  --table PATH              default $BEOSTAT_TABLE, else /dev/shm/beostat
  -h, --help, -v, --version
Exit status: 0 all are up, 1 some are not, 2 usage, 3 recvstats is gone.
examples:
  beostat.py -w --sort load               the most loaded first, live
  pdsh -w $(beostat.py -b --up) uptime    run a command where it can run
"""

import _signal as signal        # without its enumerations, which take 0.6 ms
import collections
import gc
import os
import re
import select
import sys
import time
import types

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
try:
    import libbeostat
except ImportError:
    sys.exit("beostat: libbeostat.py is not beside %s: copy it there"
             % os.path.realpath(__file__))

# ---- constants ---------------------------------------------------------

VERSION = "1.0"
WINDOW = 80, 24                 # columns and lines, where none are told
WATCH_S = 2.0
LEAST_WATCH_S = 0.1
HISTORY = 300                   # instants in the line of CPU use
BAR_CELLS, NAME_CELLS = 10, 10
SUMS = 14                       # that measure() gives
BUSY_LOAD, OVER_LOAD = 0.7, 1.3         # per CPU: yellow and red from here
COLOURS = {"dim": "2", "bold": "1", "red": "31", "green": "32",
           "yellow": "33"}
BLOCKS = " \u258f\u258e\u258d\u258c\u258b\u258a\u2589\u2588"
HEIGHTS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
PLAIN_BLOCKS, PLAIN_HEIGHTS = " #", " .:-=+*#"
SHADES = ".:-=+*#%@"
CELLS = {"down": "D", "left": "L", "never": "N", "refused": "!"}
TEXT_TIME = "%a %b %d %H:%M:%S %Y"
JOBS_S, JOBS_LIMIT_S = 0.5, 3.0     # between two answers; for both
JOBS_AT_ONCE = 500              # nodes asked
JOB_KEYS = ("cpu", "rss")
DEFAULTS = dict(nodes=[], texts=None, all=False, view=None, brief=False,
                watch=None, sort=None, reverse=False, top=None, states=None,
                cluster="beostat", table=None)
TMAX_S = 20                     # what gmond says; gmetad waits 4 of them
KEYS = {b"q": "quit", b"\033[A": -1, b"k": -1, b"\033[B": 1, b"j": 1,
        b"\033[5~": "up", b"b": "up", b"\033[6~": "down", b" ": "down",
        b"\033[H": "top", b"g": "top", b"\033[F": "end", b"G": "end"}
KEY = re.compile(rb"\033\[[0-9;]*.|[^\033]")
ENTER = b"\033[?1049h\033[?25l\033[?7l"     # other screen, no cursor, no wrap
LEAVE = b"\033[?7h\033[?25h\033[?1049l"

Picture = collections.namedtuple(
    "Picture", "path time_s status nodes never refused missing jobs")
Picture.__doc__ = """What is shown at one instant.

path, time_s   the table, and when it was read, since the epoch
status         recvstats' Status
nodes          the nodes selected, in order
never          numbers of nodes expected and never heard
refused        {number: error} of nodes that sent what cannot be
missing        errors of nodes asked for that have no sample, or no answer
jobs           [(node number, Job)], of a view that asks for them
"""
Job = collections.namedtuple(
    "Job", "pid user state threads rss_kb cpu command")
Job.__doc__ = """A process; cpu in percent of one CPU."""

# ---- format ------------------------------------------------------------


def safe(text):
    """Return text without anything that a terminal would obey."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else
                   char.encode("unicode_escape").decode() for char in text)


def share(part, whole):
    """Return part of whole in percent, None when that is unknown."""
    return 100.0 * part / whole if whole and part is not None else None


def total(values):
    """Return the sum of the values that are known, None without one."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def less(whole, part):
    """Return whole less part, None when one is unknown."""
    return None if None in (whole, part) else whole - part


def format_age(age_s):
    """Return seconds, minutes, hours or days in at most 4 characters."""
    for unit, unit_s in ("d", 86400), ("h", 3600), ("m", 60):
        if age_s >= 2 * unit_s:
            return "%d%s" % (age_s // unit_s, unit)
    return "%.1f" % age_s if age_s < 9.95 else "%.0f" % age_s


def format_percent(value):
    """Return a percentage in at most 4 characters."""
    if value is None:
        return "-"
    return "%.1f" % value if value < 99.95 else "%.0f" % value


def format_bytes(count):
    """Return a count in at most 5 characters, k, M, G for powers of 1000."""
    if count is None:
        return "-"
    if count < 1000:
        return "%d" % count
    for unit in "kMGTPE":
        count /= 1000.0
        if count < 999.5:
            break
    return ("%.1f%s" if count < 99.95 else "%.0f%s") % (count, unit)


def format_bar(value, blocks):
    """Return a bar of BAR_CELLS for a percentage."""
    steps = len(blocks) - 1
    filled = int(min(value or 0, 100) / 100 * BAR_CELLS * steps)
    cells = blocks[-1] * (filled // steps)
    if filled % steps:
        cells += blocks[filled % steps]
    return cells.ljust(BAR_CELLS)


# A column: key for --sort, heading, width (negative: flush left), format or
# function, whether its highest value sorts first, how soon it gives way in
# a narrow window (0 never).
COLUMNS = (
    ("node", "node", 5, "%d", False, 0),
    ("state", "state", -5, "%s", False, 0),
    ("age", "age", 4, format_age, False, 5),
    ("cpus", "cpus", 4, "%d", True, 6),
    ("cpu", "cpu%", 4, format_percent, True, 0),
    ("load", "load", 6, "%.2f", True, 1),
    ("running", "run", 4, "%d", True, 8),
    ("procs", "procs", 5, "%d", True, 7),
    ("mem", "mem%", 4, format_percent, True, 2),
    ("swap", "swap%", 5, format_percent, True, 9),
    ("disk", "disk%", 5, format_percent, True, 10),
    ("in", "in/s", 5, format_bytes, True, 3),
    ("out", "out/s", 5, format_bytes, True, 4),
    ("name", "name", -1, safe, False, 0),
)
SORT_KEYS = [key for key, *_ in COLUMNS]
CPU_COLUMN, MEMORY_COLUMN = SORT_KEYS.index("cpu"), SORT_KEYS.index("mem")


PICK = libbeostat.picker((
    "host.hostname", "cpu.busy_fraction", "load.one", "load.active",
    "load.total", "memory.total_bytes", "memory.free_bytes",
    "memory.available_bytes", "memory.buffers_bytes", "memory.cached_bytes",
    "memory.swap_total_bytes", "memory.swap_free_bytes", "disk.block_bytes",
    "disk.blocks", "disk.free_blocks", "disk.available_blocks",
    "network.rx_bytes_per_s", "network.tx_bytes_per_s", "agent.cpus"))


def measure(node):
    """Return (host name, what of a node can be added up).

    The latter are CPUs, their weight and how much of it is busy, load,
    running and all processes, used and all memory, swap and disk in bytes,
    and bytes a second in and out.
    """
    (name, busy, load, active, procs, memory, free, available, buffers,
     cached, swap, swap_free, block, blocks, free_blocks, available_blocks,
     rx, tx, cpus) = PICK(node)
    weight = cpus or 1
    if available is None and None not in (free, cached):
        # Kernels before 3.14: free memory, buffers and caches stand in.
        available = total((free, buffers, cached))
    used_memory = less(memory, available)
    used_disk = less(blocks, free_blocks)
    known_disk = None not in (used_disk, available_blocks, block)
    return libbeostat.unpack_text(name), (
        cpus, weight, None if busy is None else busy * weight, load, active,
        procs, None if used_memory is None else max(used_memory, 0), memory,
        less(swap, swap_free), swap,
        used_disk * block if known_disk else None,
        (used_disk + available_blocks) * block if known_disk else None,
        rx, tx)


def derive(number, state, age_s, name, sums):
    """Return values in the order of COLUMNS, of a node or of a sum."""
    (cpus, weight, busy, load, active, procs, memory, all_memory, swap,
     all_swap, disk, all_disk, rx, tx) = sums
    return (number, state, age_s, cpus, share(busy, weight), load, active,
            procs, share(memory, all_memory), share(swap, all_swap),
            share(disk, all_disk), rx, tx, name)


def measure_all(all_sums):
    """Return the sums and means of what measure() gave, likewise."""
    return derive("total", "%d up" % len(all_sums), None, None,
                  [total(column) for column in zip(*all_sums)]
                  or [None] * SUMS)


def sort_nodes(nodes, key, reverse):
    """Return nodes by a column, -KEY turned round; unknown values last."""
    if not key:
        return nodes[::-1] if reverse else nodes
    place = SORT_KEYS.index(key.lstrip("-"))
    pairs = [(derive(node.number, node.state, node.age_s,
                     *measure(node))[place], node) for node in nodes]
    known = sorted((pair for pair in pairs if pair[0] is not None),
                   key=lambda pair: pair[0],
                   reverse=COLUMNS[place][4] ^ (key[0] == "-") ^ reverse)
    return [node for _, node in known] + [
        node for value, node in pairs if value is None]


def format_lists(picture):
    """Return the lines that name the nodes that are not up."""
    lists = [(state, [node.number for node in picture.nodes
                      if node.state == state]) for state in ("down", "left")]
    lists.append(("never heard", picture.never))
    lines = ["%s: %s" % (state, libbeostat.fold_nodes(numbers))
             for state, numbers in lists if numbers]
    return lines + ["refused: %s" % error for _, error
                    in sorted(picture.refused.items())]


def choose_columns(args):
    """Return [(place in COLUMNS, heading, width, format)] of a table.

    In a window that is watched, columns give way until the rest fits;
    where there is room to spare, bars are put in.
    """
    places = list(range(len(COLUMNS)))
    widths = [abs(column[2]) + 1 for column in COLUMNS[:-1]] + [NAME_CELLS]
    spare = args.width - sum(widths) if args.live else 0
    for place in sorted(places, key=lambda place: -COLUMNS[place][5]):
        if spare < 0 and COLUMNS[place][5]:
            places.remove(place)
            spare += widths[place]
    columns = [(place,) + COLUMNS[place][1:4] for place in places]
    if spare >= 2 * (BAR_CELLS + 1):
        for place in MEMORY_COLUMN, CPU_COLUMN:
            columns.insert(place, (
                place, "", BAR_CELLS,
                lambda value: format_bar(value, args.blocks)))
    return columns


def format_cell(form, value):
    """Return a value by a column's format or function, - when unknown."""
    if value is None:
        return "-"
    return form % value if isinstance(form, str) else form(value)


def row_formatter(columns, texts):
    """Return the function that formats values, of COLUMNS, as a row.

    One template does it where all numbers are known.
    texts   template of a row of texts
    """
    template = " ".join(
        "%%%d%s" % (width, form[1:] if isinstance(form, str) else "s")
        for _, _, width, form in columns)
    places = [place for place, *_ in columns]
    functions = [(cell, form) for cell, (*_, form) in enumerate(columns)
                 if not isinstance(form, str)]

    def format_row(values):
        cells = [values[place] for place in places]
        for cell, function in functions:
            cells[cell] = function(cells[cell])
        try:
            return template % tuple(cells)
        except TypeError:
            return texts % tuple([format_cell(form, values[place])
                                  for place, _, _, form in columns])
    return format_row


def row_colour(node, args):
    """Return the colour of a node's row: watched, by its load per CPU."""
    if node.state != "up":
        return "dim"
    if not args.live:
        return ""
    load = (node.load.one or 0) / (node.agent.cpus or 1)
    return ("red" if load > OVER_LOAD else "yellow" if load > BUSY_LOAD
            else "green")


def format_table(picture, args):
    """Return the status view: a line per node, totals, who is not up."""
    columns = choose_columns(args)
    texts = " ".join("%%%ds" % width for _, _, width, _ in columns)
    format_row, lines, up = row_formatter(columns, texts), [], []
    for node in picture.nodes:
        name, sums = measure(node)
        if node.state == "up":
            up.append(sums)
        values = derive(node.number, node.state, node.age_s, name, sums)
        lines.append((format_row(values), row_colour(node, args)))
    if args.brief:
        return lines
    values = measure_all(up)
    totals = ["" if values[place] is None else
              values[place] if place < 2 else format_cell(form, values[place])
              for place, _, _, form in columns]
    return ([(texts % tuple([column[1] for column in columns]), "bold")]
            + lines + [((texts % tuple(totals)).rstrip(), "bold")]
            + [(line, "") for line in format_lists(picture)])


def format_numbers(picture, args):
    """Return the folded list of the nodes, for pdsh -w."""
    folded = libbeostat.fold_nodes(node.number for node in picture.nodes)
    return [(folded, "")] if folded else []


def format_dots(picture, args):
    """Return a cell per node: how busy it is, or that it is not up."""
    cells = {node.number: ("red" if node.state == "down" else "dim",
                           CELLS[node.state]) if node.state != "up" else
             ("", SHADES[int((node.cpu.busy_fraction or 0)
                             * (len(SHADES) - 1) + 0.5)])
             for node in picture.nodes}
    cells.update((number, ("red", CELLS["refused"]))
                 for number in picture.refused)
    cells.update((number, ("dim", CELLS["never"]))
                 for number in picture.never)
    label = max([len(str(number)) for number in cells] or [1])
    across = max((args.width - label - 1) // 10 * 10, 1)
    rows = sorted({number // across * across for number in cells})
    lines = []
    for first in rows:
        numbers = range(max(first, 0), first + across)
        if first < 0:
            numbers = [libbeostat.MASTER]
        line = [cells.get(number, ("", " ")) for number in numbers]
        lines.append(("%*d %s" % (label, numbers[0], "".join(
            paint(cell, colour, args.colours) for colour, cell in line)
            .rstrip()), ""))
    return lines + [("%s idle to busy, D down, L left, N never heard, "
                     "! refused" % SHADES, "")]


def describe_daemon(picture):
    """Return (name, value) pairs of recvstats' own state."""
    status = picture.status
    age_s = picture.time_s - status.start_time_s
    used = len(picture.nodes) + len(picture.refused)
    return [
        ("recvstats", "running, pid %d" % status.pid if status.running
         else "gone (was pid %d)" % status.pid),
        ("uptime", format_age(max(age_s, 0))),
        ("port", status.port),
        ("messages/s", status.messages_per_s),
        ("last request", time.strftime(TEXT_TIME, time.localtime(
            status.request_time_s)) if status.request_time_s else "none"),
        ("table", "%s, %s bytes" % (safe(picture.path), format_bytes(
            libbeostat.TABLE_BYTES + status.slots * status.slot_bytes))),
        ("slots", "%d of %d bytes, %d used, %d free" % (
            status.slots, status.slot_bytes, used, status.slots - used)),
        ("expected", "%d nodes" % status.expected)] + [
            (field, getattr(status, field))
            for field, *_ in libbeostat.COUNTERS]


def describe_losses(nodes):
    """Return (name, value) pairs: messages lost, by which nodes."""
    rows = [("lost", nodes)] + [("lost by node %d" % node.number, [node])
                                for node in nodes if node.lost]
    pairs = []
    for name, some in rows:
        lost = sum(node.lost for node in some)
        sent = lost + sum(node.received for node in some)
        pairs.append((name, "%d of %d (%.4f %%)" % (
            lost, sent, share(lost, sent) or 0)))
    return pairs


def describe_agents(nodes):
    """Return (name, value) pairs of what agents sign, cost, and think the
    time is."""
    pairs = []
    unverified = [node.number for node in nodes
                  if node.signature == "unverified"]
    if unverified:
        pairs.append(("unverified", libbeostat.fold_nodes(unverified)
                      + " sign, and recvstats has no --key-file"))
    costs = sorted((node.agent.cost_us, node.number) for node in nodes
                   if node.agent.cost_us is not None)
    if costs:
        pairs.append(("agent's cost", "median %d us a sample, worst %d us "
                      "(node %d)" % (costs[len(costs) // 2][0], *costs[-1])))
    skews = [(abs(node.time_s - node.heard_time_s), node.number)
             for node in nodes]
    if skews:
        pairs.append(("clock skew", "at most %.1f s (node %d)" % max(skews)))
    return pairs


def format_daemon(picture, args):
    """Return recvstats' own state, losses, and how the agents are."""
    return [("%-16s %s" % pair, "") for pair in (
        describe_daemon(picture) + describe_losses(picture.nodes)
        + describe_agents(picture.nodes))]


# The texts of /proc.  Of each file, what the message carries.

MEMINFO = (
    ("MemTotal", "total_bytes"), ("MemFree", "free_bytes"),
    ("MemAvailable", "available_bytes"), ("Buffers", "buffers_bytes"),
    ("Cached", "cached_bytes"), ("SwapTotal", "swap_total_bytes"),
    ("SwapFree", "swap_free_bytes"), ("Shmem", "shared_bytes"),
    ("SReclaimable", "reclaimable_bytes"))
CPUINFO = (
    ("vendor_id\t", "vendor", "%s"), ("model name\t", "model", "%s"),
    ("cpu MHz\t\t", "mhz", "%.3f"), ("cache size\t", "cache_kb", "%d KB"),
    ("sockets\t\t", "sockets", "%d"), ("cpu cores\t", "cores", "%d"),
    ("bogomips\t", "bogomips", "%.2f"))
STAT = (
    ("intr", "interrupts"), ("ctxt", "context_switches"),
    ("btime", "boot_time_s"), ("processes", "forks"),
    ("procs_running", "running"), ("procs_blocked", "blocked"))
STATFS = (
    ("f_bsize", "block_bytes"), ("f_blocks", "blocks"),
    ("f_bfree", "free_blocks"), ("f_bavail", "available_blocks"),
    ("f_files", "files"), ("f_ffree", "free_files"),
    ("f_namelen", "name_max"))
NET_DEV_HEAD = (
    "Inter-|   Receive                                                |"
    "  Transmit",
    " face |bytes    packets errs drop fifo frame compressed multicast|bytes"
    "    packets errs drop fifo colls carrier compressed")
NET_DEV_ROW = ("%6s: %7d %7d %4d %4d %4d %5d %10d %9d "
               "%8d %7d %4d %4d %4d %5d %7d %10d")


def text_cpuinfo(node):
    """Return the lines of /proc/cpuinfo, for all CPUs in one."""
    lines = ["processors\t: %d" % node.agent.cpus]
    for key, field, form in CPUINFO:
        value = getattr(node.processor, field)
        if value not in (None, ""):
            lines.append("%s: %s" % (key, form % (
                safe(value) if isinstance(value, str) else value)))
    return lines


def text_meminfo(node):
    """Return the lines of /proc/meminfo."""
    return ["%-15s %8d kB" % (key + ":", getattr(node.memory, field) // 1024)
            for key, field in MEMINFO
            if getattr(node.memory, field) is not None]


def text_loadavg(node):
    """Return the line of /proc/loadavg."""
    if None in node.load:
        return []
    return ["%.2f %.2f %.2f %d/%d %d" % node.load]


def text_net_dev(node):
    """Return the lines of /proc/net/dev."""
    return [*NET_DEV_HEAD] + [
        NET_DEV_ROW % (safe(each.name), *each[1:17])
        for each in node.interfaces]


def text_stat(node):
    """Return the lines of /proc/stat; a CPU has four columns of ticks."""
    lines = []
    if node.cpu.user_ticks is not None:
        lines.append("cpu  " + " ".join("%d" % ticks for ticks in node.cpu[:10]
                                        if ticks is not None))
    lines += ["cpu%d %d %d %d %d" % (cpu.id, *cpu[2:]) for cpu in node.cpus]
    return lines + ["%s %d" % (key, getattr(node.kernel, field))
                    for key, field in STAT
                    if getattr(node.kernel, field) is not None]


def text_statfs(node):
    """Return the fields of statfs(2) of /."""
    return ["%s: %d" % (key, getattr(node.disk, field))
            for key, field in STATFS if getattr(node.disk, field) is not None]


def text_cpu_percent(node):
    """Return each CPU's use in the last period, 0 to 1."""
    return ["cpu%d %.4f" % cpu[:2] for cpu in node.cpus]


def text_net_rate(node):
    """Return the network rate, received and sent."""
    if None in node.network:
        return []
    return ["Network rate %d bytes/second" % sum(node.network)]


# short and long option, title, its text, whether --all shows it
TEXTS = (
    ("-c", "--cpuinfo", "/proc/cpuinfo", text_cpuinfo, True),
    ("-m", "--meminfo", "/proc/meminfo", text_meminfo, True),
    ("-l", "--loadavg", "/proc/loadavg", text_loadavg, True),
    ("-n", "--net-dev", "/proc/net/dev", text_net_dev, True),
    ("-s", "--stat", "/proc/stat", text_stat, True),
    ("-f", "--statfs", "statfs of /", text_statfs, True),
    ("-C", "--cpu-percent", "CPU use, 0 to 1", text_cpu_percent, False),
    ("-R", "--net-rate", "network rate", text_net_rate, False),
)


def format_texts(picture, args):
    """Return texts of /proc, node by node, or with --brief a line each."""
    lines = []
    for node in picture.nodes:
        if args.brief:
            words = [word for _, text in args.texts for line in text(node)
                     for word in line.split()]
            lines.append(" ".join(["%d" % node.number] + words))
            continue
        lines.append("=============== Node: %s (index %d) ==============="
                     % (safe(node.host.hostname), node.number))
        if node.state != "up":
            lines.append("*** %s, last heard %.1f s ago ***"
                         % (node.state, node.age_s))
        when = time.strftime(TEXT_TIME, time.localtime(node.time_s))
        for title, text in args.texts:
            lines += ["", " *** %s *** %s" % (title, when)] + text(node)
        lines.append("")
    return [(line, "") for line in lines]


def parse_jobs(answer):
    """Return {pid: [ppid, uid, state, threads, rss, vsize, ticks, command]}.

    answer  procstatd's: a count, then a line per process
    Raises  ValueError when it is none
    """
    count, *lines = answer.decode("utf-8", "replace").strip().split("\n")
    if int(count) != len(lines):
        raise ValueError("answer is cut off")
    jobs = {}
    for line in lines:
        pid, ppid, uid, state, *numbers, command = line.split(" ", 8)
        threads, rss, vsize, ticks = map(int, numbers)
        jobs[int(pid)] = [int(ppid), int(uid), state, threads, rss, vsize,
                          ticks, command]
    return jobs


def measure_jobs(first, second, elapsed_s, hz, user_name):
    """Return the Jobs of two answers; one that is new has no CPU use."""
    jobs = []
    for pid, (_, uid, state, threads, rss, _, ticks, command) in (
            second.items()):
        before = first[pid][6] if pid in first else ticks
        jobs.append(Job(pid, user_name(uid), state, threads, rss,
                        100 * max(ticks - before, 0) / hz / elapsed_s,
                        command))
    return jobs


def format_jobs(picture, args):
    """Return a line for each process of the nodes."""
    row = "%5s %7s %-8s %s %4s %6s %5s %s"
    jobs = sorted(picture.jobs, reverse=not args.reverse,
                  key=lambda pair: pair[1].rss_kb if args.sort == "rss"
                  else pair[1].cpu)
    lines = [(row % (number, job.pid, safe(job.user)[:8], safe(job.state),
                     job.threads, format_bytes(job.rss_kb * 1024),
                     "%.1f" % job.cpu, safe(job.command)), "")
             for number, job in jobs[:args.top]]
    head = [(row % ("node", "pid", "user", "s", "thr", "rss", "cpu%",
                    "command"), "bold")]
    return lines if args.brief else head + lines


def node_document(node):
    """Return what --json says of one node."""
    document = {field: getattr(node, field) for field in (
        "number", "state", "age_s", "heard_time_s", "time_s",
        "start_time_s", "period_s", "sequence", "address", "port",
        "received", "lost", "restarts", "signature")}
    for part in libbeostat.PARTS:
        record = getattr(node, part)
        document[part] = dict(zip(record._fields, record))
    for part in "cpus", "interfaces":
        document[part] = [dict(zip(each._fields, each))
                          for each in getattr(node, part)]
    return document


def format_json(picture, args):
    """Return one JSON document of all there is; null is unknown.

    A node has a line of its own, but where each document must be a line.
    """
    import json                         # costs more than the status view
    text = json.JSONEncoder(check_circular=False).encode
    new_line = "" if args.watch else "\n"
    nodes = [text(node_document(node)) for node in picture.nodes]
    return [('{"path": %s, "time_s": %s, "recvstats": %s, "nodes": [%s], '
             '"never": %s, "refused": %s}' % (
                 text(picture.path), text(picture.time_s),
                 text(picture.status._asdict()),
                 new_line + (", " + new_line).join(nodes) + new_line,
                 text(picture.never),
                 text({"%d" % number: str(error) for number, error
                       in sorted(picture.refused.items())})), "")]


def escape_label(text):
    """Return text as it stands in quotes in Prometheus' format."""
    return safe(text).replace("\\", r"\\").replace('"', r'\"')


def cpu_seconds(node):
    """Return [({mode}, seconds)] of a node's CPU time since boot."""
    hz = node.processor.ticks_per_s
    return [({"mode": mode[:-len("_ticks")]}, ticks / hz)
            for mode, ticks in zip(node.cpu._fields, node.cpu[:8])
            if ticks is not None and hz]


def device_counts(field):
    """Return the function that gives [({device}, count)] of a node."""
    return lambda node: [({"device": each.name}, getattr(each, field))
                         for each in node.interfaces]


def node_info(node):
    """Return the labels that tell what a node is."""
    return [({"hostname": node.host.hostname, "release": node.host.release,
              "machine": node.host.machine, "model": node.processor.model,
              "address": node.address}, 1)]


def of(record, field, scale=1):
    """Return the function that gives a node's field, scaled."""
    def value(node):
        found = getattr(getattr(node, record), field)
        return None if found is None else found * scale
    return value


def size_of(field, scale=1):
    """Return the function that gives blocks of / in bytes, scaled."""
    return lambda node: (
        None if None in (node.disk.block_bytes, getattr(node.disk, field))
        else getattr(node.disk, field) * node.disk.block_bytes * scale)


# name behind beostat_node_, type, help, value (or labels and values) of a
# node; the first ones of nodes that are not up as well.
ALWAYS = (
    ("up", "gauge", "1 while the node's samples arrive.",
     lambda node: int(node.state == "up")),
    ("age_seconds", "gauge", "Time since the last sample arrived.",
     lambda node: node.age_s),
    ("info", "gauge", "What the node is.", node_info),
    ("received_messages_total", "counter", "Messages received.",
     lambda node: node.received),
    ("lost_messages_total", "counter", "Messages sent that never came.",
     lambda node: node.lost),
    ("agent_restarts_total", "counter", "Starts of the agent but the first.",
     lambda node: node.restarts),
)
WHILE_UP = (
    ("boot_time_seconds", "gauge", "Boot time, since the epoch.",
     of("kernel", "boot_time_s")),
    ("time_seconds", "gauge", "Time of the sample by the node's clock.",
     lambda node: node.time_s),
    ("load1", "gauge", "1m load average.", of("load", "one")),
    ("load5", "gauge", "5m load average.", of("load", "five")),
    ("load15", "gauge", "15m load average.", of("load", "fifteen")),
    ("procs_running", "gauge", "Processes running.",
     of("kernel", "running")),
    ("procs_blocked", "gauge", "Processes waiting for input or output.",
     of("kernel", "blocked")),
    ("procs", "gauge", "Processes.", of("load", "total")),
    ("cpus", "gauge", "CPUs on line.", of("agent", "cpus")),
    ("cpu_busy_ratio", "gauge", "Use of all CPUs over the last period.",
     of("cpu", "busy_fraction")),
    ("cpu_seconds_total", "counter", "CPU time since boot.", cpu_seconds),
    ("context_switches_total", "counter", "Context switches since boot.",
     of("kernel", "context_switches")),
    ("intr_total", "counter", "Interrupts since boot.",
     of("kernel", "interrupts")),
    ("forks_total", "counter", "Processes made since boot.",
     of("kernel", "forks")),
) + tuple(
    ("memory_" + field, "gauge", "%s of /proc/meminfo." % key,
     of("memory", field)) for key, field in MEMINFO) + (
    ("filesystem_size_bytes", "gauge", "Size of /.", size_of("blocks")),
    ("filesystem_free_bytes", "gauge", "Free in /.", size_of("free_blocks")),
    ("filesystem_avail_bytes", "gauge", "Free in / to users.",
     size_of("available_blocks")),
    ("filesystem_files", "gauge", "Inodes of /.", of("disk", "files")),
    ("filesystem_files_free", "gauge", "Free inodes of /.",
     of("disk", "free_files")),
) + tuple(
    ("network_%s_%s_total" % (way, what), "counter",
     "%s column of /proc/net/dev." % field, device_counts(field))
    for way, columns in (
        ("receive", ("rx_bytes", "rx_packets", "rx_errors", "rx_dropped")),
        ("transmit", ("tx_bytes", "tx_packets", "tx_errors", "tx_dropped")))
    for field, what in zip(columns, ("bytes", "packets", "errs", "drop"))
) + (
    ("agent_cost_seconds", "gauge", "CPU time of the agent per sample.",
     of("agent", "cost_us", 1e-6)),
)


def format_prometheus(picture, args):
    """Return all there is in Prometheus' text format.

    A node that is not up has no measurements: a last value would live on
    for ever.
    """
    up = [node for node in picture.nodes if node.state == "up"]
    lines = []
    for metrics, nodes in (ALWAYS, picture.nodes), (WHILE_UP, up):
        for name, kind, text, value_of in metrics:
            name = "beostat_node_" + name
            rows = []
            for node in nodes:
                value = value_of(node)
                if not isinstance(value, list):
                    value = [({}, value)]
                rows += ['%s{node="%d"%s} %s' % (
                    name, node.number, "".join(
                        ',%s="%s"' % (label, escape_label(each))
                        for label, each in labels.items()), number)
                    for labels, number in value if number is not None]
            if rows:
                lines += ["# HELP %s %s" % (name, text),
                          "# TYPE %s %s" % (name, kind)] + rows
    lines += ["# HELP beostat_recvstats_up 1 while recvstats is at work.",
              "# TYPE beostat_recvstats_up gauge",
              "beostat_recvstats_up %d" % picture.status.running,
              "# HELP beostat_recvstats_datagrams_total What became of "
              "datagrams.", "# TYPE beostat_recvstats_datagrams_total counter"]
    lines += ['beostat_recvstats_datagrams_total{result="%s"} %d' % (
        field, getattr(picture.status, field))
        for field, *_ in libbeostat.COUNTERS[1:]]
    return [(line, "") for line in lines]


# gmond's name, type, unit, whether it changes, value of a node
GANGLIA = (
    ("load_one", "float", " ", True, of("load", "one")),
    ("load_five", "float", " ", True, of("load", "five")),
    ("load_fifteen", "float", " ", True, of("load", "fifteen")),
    ("proc_run", "uint32", " ", True, of("load", "active")),
    ("proc_total", "uint32", " ", True, of("load", "total")),
    ("cpu_num", "uint16", "CPUs", False, of("agent", "cpus")),
    ("cpu_speed", "uint32", "MHz", False, of("processor", "mhz")),
    ("cpu_user", "float", "%", True, of("cpu", "user_fraction", 100)),
    ("cpu_nice", "float", "%", True, of("cpu", "nice_fraction", 100)),
    ("cpu_system", "float", "%", True, of("cpu", "system_fraction", 100)),
    ("cpu_wio", "float", "%", True, of("cpu", "iowait_fraction", 100)),
    ("cpu_idle", "float", "%", True, lambda node: less(
        100, of("cpu", "busy_fraction", 100)(node))),
    ("mem_total", "float", "KB", False, of("memory", "total_bytes", 1 / 1024)),
    ("mem_free", "float", "KB", True, of("memory", "free_bytes", 1 / 1024)),
    ("mem_shared", "float", "KB", True,
     of("memory", "shared_bytes", 1 / 1024)),
    ("mem_buffers", "float", "KB", True,
     of("memory", "buffers_bytes", 1 / 1024)),
    ("mem_cached", "float", "KB", True,
     of("memory", "cached_bytes", 1 / 1024)),
    ("swap_total", "float", "KB", False,
     of("memory", "swap_total_bytes", 1 / 1024)),
    ("swap_free", "float", "KB", True,
     of("memory", "swap_free_bytes", 1 / 1024)),
    ("bytes_in", "float", "bytes/sec", True, of("network", "rx_bytes_per_s")),
    ("bytes_out", "float", "bytes/sec", True,
     of("network", "tx_bytes_per_s")),
    ("disk_total", "double", "GB", False,
     size_of("blocks", 1e-9)),
    ("disk_free", "double", "GB", True,
     size_of("free_blocks", 1e-9)),
    ("part_max_used", "float", "%", True,
     lambda node: share(*measure(node)[1][10:12])),
    ("boottime", "uint32", "s", False, of("kernel", "boot_time_s")),
    ("machine_type", "string", "", False, of("host", "machine")),
    ("os_name", "string", "", False, lambda node: "Linux"),
    ("os_release", "string", "", False, of("host", "release")),
)


def escape_xml(value):
    """Return a value as it stands in quotes in XML."""
    if isinstance(value, str):
        text = safe(value)
        for char, name in ("&", "amp"), ("<", "lt"), (">", "gt"), (
                '"', "quot"):
            text = text.replace(char, "&%s;" % name)
        return text
    return "%d" % value if isinstance(value, int) else "%.3f" % value


def format_ganglia(picture, args):
    """Return gmond's XML: one cluster, a host per node."""
    lines = ['<?xml version="1.0" encoding="UTF-8" standalone="yes"?>',
             '<GANGLIA_XML VERSION="3.7.2" SOURCE="gmond">',
             '<CLUSTER NAME="%s" LOCALTIME="%d" OWNER="unspecified" '
             'LATLONG="unspecified" URL="unspecified">' % (
                 escape_xml(args.cluster), picture.time_s)]
    for node in picture.nodes:
        heard = 'TN="%d" TMAX="%d" DMAX="0"' % (node.age_s, TMAX_S)
        lines.append(
            '<HOST NAME="%s" IP="%s" TAGS="" REPORTED="%d" %s LOCATION='
            '"unspecified" GMOND_STARTED="%d">' % (
                # gmetad makes a folder of this name.
                escape_xml(node.host.hostname.replace("/", "_")),
                node.address,
                node.heard_time_s, heard, node.start_time_s))
        for name, kind, unit, varies, value_of in GANGLIA:
            value = value_of(node)
            if value is not None:
                if kind.startswith("uint"):
                    value = int(value)
                lines.append(
                    '<METRIC NAME="%s" VAL="%s" TYPE="%s" UNITS="%s" %s '
                    'SLOPE="%s" SOURCE="gmond"/>' % (
                        name, escape_xml(value), kind, unit, heard,
                        "both" if varies else "zero"))
        lines.append("</HOST>")
    return [(line, "") for line in lines + ["</CLUSTER>", "</GANGLIA_XML>"]]


def paint(text, colour, colours):
    """Return text in a colour, where colours are wanted."""
    if colour and colours:
        return "\033[%sm%s\033[0m" % (COLOURS[colour], text)
    return text


def format_lines(lines, args):
    """Return the bytes of a view's lines, for any encoding."""
    text = "".join(paint(line, colour, args.colours) + "\n"
                   for line, colour in lines)
    return text.encode(sys.stdout.encoding or "utf-8", "backslashreplace")


def format_frame(lines, head, first, args):
    """Return the bytes that redraw a window with lines from first on.

    The heading of a table stays on top; what does not fit is counted.
    """
    fixed = head + [line for line in lines[:1] if line[1] == "bold"]
    body = lines[len(fixed) - len(head):]
    room = max(args.height - len(fixed) - 1, 1)
    shown = body[first:first + room]
    hidden = len(body) - len(shown)
    foot = [("q quits" + (", j k PgUp PgDn scroll: %d lines not shown"
                          % hidden if hidden > 0 else ""), "dim")]
    text = "\033[H" + "\n".join(
        paint(line if "\033" in line else line[:args.width], colour,
              args.colours) + "\033[K"
        for line, colour in (fixed + shown + foot)[:args.height]) + "\033[J"
    return text.encode(sys.stdout.encoding or "utf-8", "backslashreplace")


def format_head(picture, history, args):
    """Return the lines above a view that is watched."""
    states = [node.state for node in picture.nodes]
    values = measure_all([measure(node)[1] for node in picture.nodes
                          if node.state == "up"])
    counts = ", ".join("%d %s" % (states.count(state), state)
                       for state in ("up", "down", "left")
                       if state in states) or "none heard"
    if not picture.status.running:
        counts += "; RECVSTATS IS GONE"
    line = "%s  %d nodes: %s  %s CPUs  load %s" % (
        time.strftime("%H:%M:%S", time.localtime(picture.time_s)),
        len(states), counts, values[3] or 0, format_cell("%.1f", values[5]))
    history.append(values[CPU_COLUMN] or 0)
    cells = [args.heights[int(value / 100 * (len(args.heights) - 1) + 0.5)]
             for value in history]
    text = "cpu %4s%% " % format_percent(values[CPU_COLUMN])
    return [(line, "bold"),
            (text + "".join(cells[-max(args.width - len(text), 1):]), "")]


# ---- files and sockets -------------------------------------------------


def read_named(cluster, operands):
    """Return (nodes, errors) of the nodes that a user named.

    operands  lists of numbers, and host names
    Raises    BadNodeList
    """
    nodes, errors, everyone = [], [], None
    for operand in operands:
        try:
            numbers = libbeostat.parse_nodes(operand)
        except libbeostat.BadNodeList:
            everyone = everyone or list(cluster)
            numbers = [node.number for node in everyone
                       if node.host.hostname == operand]
            if not numbers:
                raise
        for number in numbers:
            try:
                nodes.append(cluster.node(number))
            except libbeostat.BeostatError as error:
                errors.append(error)
    return nodes, errors


class Question:
    """A connection to one node's procstatd, asked for its jobs twice."""

    def __init__(self, node, sock, now):
        self.node, self.sock, self.limit = node, sock, now + JOBS_LIMIT_S
        self.answers, self.data, self.ask_due = [], b"", now
        sock.setblocking(False)
        sock.connect_ex((node.address, node.agent.procstatd_port))

    def awaits(self, now):
        """Return the event of poll(2) to wait for."""
        return select.POLLOUT if now >= self.ask_due else select.POLLIN

    def go_on(self, event, now):
        """Take what is there, or ask when it is time.

        Returns  whether both answers have come
        Raises   OSError, ValueError
        """
        if now > self.limit:
            raise ValueError("no answer in %g s" % JOBS_LIMIT_S)
        if event & select.POLLOUT and now >= self.ask_due:
            self.sock.send(b"jobs\n")
            self.ask_due = float("inf")
        elif event & (select.POLLIN | select.POLLHUP | select.POLLERR):
            data = self.sock.recv(1 << 20)
            self.data += data
            if not data:
                raise ValueError("closed the connection")
            if self.data.endswith(b"\n\n"):
                self.answers.append((now, parse_jobs(self.data)))
                self.data, self.ask_due = b"", now + JOBS_S
        return len(self.answers) == 2

    def jobs(self, user_name):
        """Return [(node number, Job)] of both answers."""
        (before, first), (after, second) = self.answers
        return [(self.node.number, job) for job in measure_jobs(
            first, second, after - before,
            self.node.processor.ticks_per_s or 100, user_name)]


def read_user_name(uid):
    """Return the name of a user here, or the number."""
    import pwd                          # for one view alone
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return "%d" % uid


def ask_jobs(nodes):
    """Return ([(node number, Job)], errors) of the nodes, asked at once."""
    import socket                       # for one view alone
    names, jobs, errors, questions = {}, [], [], {}

    def user_name(uid):
        if uid not in names:
            names[uid] = read_user_name(uid)
        return names[uid]

    for node in nodes:
        if node.state == "up" and node.agent.procstatd_port:
            question = Question(node, socket.socket(), time.monotonic())
            questions[question.sock.fileno()] = question
        else:
            errors.append("node %d: %s" % (
                node.number, "runs no procstatd (sendstats.py --procstatd)"
                if node.state == "up" else node.state))
    while questions:
        poll = select.poll()
        for fd, question in questions.items():
            poll.register(fd, question.awaits(time.monotonic()))
        events = dict(poll.poll(20))
        for fd, question in list(questions.items()):
            try:
                if not question.go_on(events.get(fd, 0), time.monotonic()):
                    continue
                jobs += question.jobs(user_name)
            except (OSError, ValueError) as error:
                errors.append("node %d: %s: %s" % (
                    question.node.number, question.node.address,
                    getattr(error, "strerror", None) or error))
            questions.pop(fd).sock.close()
    return jobs, errors


def read_picture(cluster, args):
    """Return the Picture of the nodes selected, sorted."""
    missing, never, refused, jobs = [], [], {}, []
    if args.nodes and args.view is not format_daemon:
        nodes, missing = read_named(cluster, args.nodes)
    else:
        nodes = list(cluster)
        refused, never = cluster.refused, cluster.never()
    if args.states:
        nodes = [node for node in nodes if node.state in args.states]
    if args.view is format_jobs:
        for first in range(0, len(nodes), JOBS_AT_ONCE):
            more, errors = ask_jobs(nodes[first:first + JOBS_AT_ONCE])
            jobs += more
            missing += errors
    else:
        nodes = sort_nodes(nodes, args.sort, args.reverse)[:args.top]
    return Picture(cluster.path, time.time(), cluster.status, nodes, never,
                   refused, missing, jobs)


def write(data):
    """Write bytes to standard output, at once.

    Raises  BeostatError
    """
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except OSError as error:
        raise libbeostat.BeostatError("cannot write: %s" % error.strerror)


def window():
    """Return (columns, lines) of the terminal, else of $COLUMNS, $LINES."""
    try:
        return os.get_terminal_size(sys.stdout.fileno())
    except (OSError, ValueError):
        return [int(os.environ.get(name, "")) if os.environ.get(
            name, "").isdigit() else default
            for name, default in zip(("COLUMNS", "LINES"), WINDOW)]


class Screen:
    """A terminal in raw mode with its other screen, given back at exit."""

    def __enter__(self):
        import termios
        import tty
        self.input = sys.stdin.fileno()
        self.before = termios.tcgetattr(self.input)
        tty.setcbreak(self.input)
        write(ENTER)
        self.reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer)    # a resize ends the wait for a key
        signal.signal(signal.SIGWINCH, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        return self

    def __exit__(self, *_):
        import termios
        signal.set_wakeup_fd(-1)
        write(LEAVE)
        termios.tcsetattr(self.input, termios.TCSADRAIN, self.before)

    def read_keys(self, wait_s):
        """Return what the keys typed ask for, in order.

        None were after the wait, or when the window changed its size.
        """
        ready, _, _ = select.select([self.input, self.reader], [], [],
                                    max(wait_s, 0))
        if self.reader in ready:
            os.read(self.reader, 64)
        typed = os.read(self.input, 64) if self.input in ready else b""
        if self.input in ready and not typed:
            return ["quit"]             # the terminal is gone
        return [KEYS[key] for key in KEY.findall(typed) if key in KEYS]


# ---- run ---------------------------------------------------------------


def watch_screen(cluster, args):
    """Redraw the view in a terminal until q; return the last Picture."""
    history, first = collections.deque(maxlen=HISTORY), 0
    with Screen() as screen:
        due = time.monotonic()
        while True:
            if time.monotonic() >= due:
                picture = read_picture(cluster, args)
                args.width, args.height = window()
                head = format_head(picture, history, args)
                due = max(due + args.watch, time.monotonic())
            args.width, args.height = window()
            lines = args.view(picture, args)
            write(format_frame(lines, head, first, args))
            page = max(args.height - 4, 1)
            for key in screen.read_keys(due - time.monotonic()):
                if key == "quit":
                    return picture
                first += {"up": -page, "down": page, "top": -first,
                          "end": len(lines)}.get(key, key)
                first = max(min(first, len(lines) - 1 - page), 0)


def watch(cluster, args):
    """Show the view again and again; return the last Picture."""
    if args.live:
        return watch_screen(cluster, args)
    while True:
        picture = read_picture(cluster, args)
        write(format_lines(args.view(picture, args), args))
        if args.view not in DOCUMENTS:
            write(b"\n")
        time.sleep(args.watch)


# ---- command line ------------------------------------------------------

DOCUMENTS = format_json, format_prometheus, format_ganglia
VIEWS = {"--json": format_json, "--prometheus": format_prometheus,
         "--ganglia": format_ganglia, "--dots": format_dots,
         "--daemon": format_daemon, "--jobs": format_jobs}


def make_parser():
    """Return the parser of the options; its help is the text above."""
    import argparse
    parser = argparse.ArgumentParser(
        prog="beostat", usage="beostat.py [view] [selection] [NODES ...]",
        # A width, lest it load shutil for it.
        formatter_class=lambda prog: argparse.HelpFormatter(prog, width=79))
    parser.format_help = lambda: __doc__ or parser.format_usage()
    option = parser.add_argument
    option("nodes", nargs="*")
    for short, long, title, text, _ in TEXTS:
        option(short, long, dest="texts", action="append_const",
               const=(title, text))
    option("-a", "--all", action="store_true")
    for long, view in VIEWS.items():
        option(*["-J"] * (view is format_jobs), long, dest="view",
               action="store_const", const=view)
    option("-b", "--brief", action="store_true")
    option("-w", "--watch", nargs="?", const="")
    option("--sort")
    option("--reverse", action="store_true")
    option("--top", type=int)
    option("--up", dest="states", action="store_const", const=("up",))
    option("--down", dest="states", action="store_const",
           const=("down", "left"))
    option("--cluster")
    option("--table")
    option("-v", "--version", action="version", version="beostat " + VERSION)
    parser.set_defaults(**DEFAULTS)
    return parser


def parse_args(argv):
    """Return the options; argparse exits 2 on a usage error.

    Without an option it is not loaded: it costs a third of a view's time.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not any(word.startswith("-") for word in words):
        return check_args(types.SimpleNamespace(**dict(DEFAULTS,
                                                       nodes=words)))
    while "--sort" in words[:-1]:       # lest -KEY look like an option
        place = words.index("--sort")
        words[place:place + 2] = ["--sort=" + words[place + 1]]
    return check_args(make_parser().parse_args(words))


def refuse(text):
    """Exit 2 with an error of usage."""
    make_parser().error(text)


def check_args(args):
    """Return the options, completed; argparse exits 2 when they clash."""
    keys = JOB_KEYS if args.view is format_jobs else SORT_KEYS
    if args.sort and args.sort.lstrip("-") not in keys:
        refuse("--sort %s: choose from %s" % (args.sort, " ".join(keys)))
    if args.top is not None and args.top < 1:
        refuse("--top %d: at least 1" % args.top)
    if args.watch is not None:
        try:
            args.watch = float(args.watch or WATCH_S)
        except ValueError:              # it was the first of NODES
            args.nodes = [args.watch] + args.nodes
            args.watch = WATCH_S
        if not LEAST_WATCH_S <= args.watch <= 1e6:
            refuse("--watch: at least %g seconds" % LEAST_WATCH_S)
    if args.all:
        args.texts = [(title, text) for _, _, title, text, shown in TEXTS
                      if shown] + [each for each in args.texts or []
                                   if each[1] in (text_cpu_percent,
                                                  text_net_rate)]
    if args.texts and args.view:
        refuse("one view at a time")
    if args.texts:
        args.view = format_texts
    elif args.view is None:
        args.view = (format_numbers if args.brief and args.states
                     else format_table)
    terminal = sys.stdout.isatty() and os.environ.get("TERM") not in (
        None, "", "dumb")
    args.colours = (terminal and "NO_COLOR" not in os.environ
                    and args.view not in DOCUMENTS)
    args.live = (args.watch is not None and terminal and sys.stdin.isatty()
                 and args.view not in DOCUMENTS)
    args.width, args.height = window()
    wide = "utf" in (sys.stdout.encoding or "").lower()
    args.blocks = BLOCKS if wide else PLAIN_BLOCKS
    args.heights = HEIGHTS if wide else PLAIN_HEIGHTS
    return args


def complain(text):
    """Write a line to standard error."""
    print("beostat: %s" % text, file=sys.stderr, flush=True)


def main(argv=None):
    """Return the exit status."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    picture = None
    try:
        args = parse_args(argv)
        with libbeostat.open(args.table) as cluster:
            if args.watch is None:
                gc.disable()            # there will be no garbage in time
                picture = read_picture(cluster, args)
                write(format_lines(args.view(picture, args), args))
            else:
                picture = watch(cluster, args)
    except KeyboardInterrupt:
        return 1
    except libbeostat.BadNodeList as error:
        complain(error)
        return 2
    except libbeostat.NoTable as error:
        complain("%s: recvstats is not running: start it with recvstats.py"
                 % error)
        return 3
    except libbeostat.BeostatError as error:
        complain(error)
        return 3
    return report(picture)


def report(picture):
    """Say what is missing from a view; return the exit status."""
    for error in picture.missing:
        complain(error)
    if not picture.status.running:
        complain("%s: recvstats (pid %d) is gone: start it again with "
                 "recvstats.py" % (picture.path, picture.status.pid))
        return 3
    up = all(node.state == "up" for node in picture.nodes)
    return 0 if up and not picture.missing and not picture.refused else 1


if __name__ == "__main__":
    os._exit(main())        # all is written; to free it takes a quarter more
