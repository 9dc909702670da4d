"""Routes with neighbour overrides, and clients that meet them: what their cases share."""

import collections
import contextlib
import os
import pathlib
import re
import subprocess
import tempfile
import time

from lab import (GW, MBOX, PREFIXES, Failure, Wire, inside, ip_batch, ip_in, set_up, sysctls,
                 wait_until)

DEADLINE = 20       # seconds that a daemon may take for something
QUIET = 2           # seconds after which it is taken to have nothing left to do

# label, prefix and words of the routes that every case begins with.  The plain
# ones have no override: what happens to them is not because of one.
Route = collections.namedtuple('Route', 'label prefix words')
ROUTES = tuple(Route(label, prefix, words) for (label, words), prefix in zip((
    ('via link', f'via link {MBOX} dev eth0'),
    ('legs', f'nexthop via link {MBOX} dev eth0 nexthop via link {GW} dev eth0'),
    ('mixed', f'nexthop via 192.0.2.1 dev eth0 nexthop via link {MBOX} dev eth0'),
    ('object', 'nhid 1'),
    ('no gateway', 'nhid 2'),
    ('group', 'nhid 9'),
    ('plain', 'via 192.0.2.1 dev eth0'),
    ('plain legs', 'nexthop via 192.0.2.1 dev eth0 nexthop dev eth0'),
    ('plain object', 'nhid 5'),
), PREFIXES))
PREFIX = {route.label: route.prefix for route in ROUTES}
WORDS = {route.label: route.words for route in ROUTES}
NEXTHOPS = ('add id 1 via 192.0.2.1 dev eth0 neigh lladdr ' + MBOX,
            'add id 2 dev eth0 neigh lladdr ' + MBOX, 'add id 5 via 192.0.2.1 dev eth0')
# While a daemon runs
LATER = (Route('later via link', PREFIXES[20], f'via link {MBOX} dev eth0'),
         Route('later object', PREFIXES[21], 'nhid 1'))
# What a neighbour announces, and which of the routes above leads to the next hop
OVER = (('via link', PREFIXES[24]), ('object', PREFIXES[25]), ('plain', PREFIXES[26]))

Row = collections.namedtuple('Row', 'what expected seen')
OPTIONS = {'root': ''}
# networkctl does nothing in a chroot otherwise.
os.environ['SYSTEMD_IGNORE_CHROOT'] = '1'


# --- programs ---

def client_command(*words, name=None):
    """The command of a client, in a namespace."""
    return [*(['nsenter', f'--net=/run/netns/{name}'] if name else []),
            *(['chroot', OPTIONS['root']] if OPTIONS['root'] else []), *words]


def with_sysfs(mode, *words):
    """A command that sees the devices of its namespace; a shell mounts them."""
    mount = f'mount -t sysfs -o {mode} sysfs {OPTIONS["root"]}/sys && exec "$@"'
    return ['nsenter', '--net=/run/netns/host', 'unshare', '--mount', 'sh', '-c', mount, 'sh',
            *client_command(*words)]


def installed(program):
    """Whether a program of a client is there."""
    folders = [''] if program.startswith('/') else ['/usr/sbin/', '/usr/bin/', '/sbin/', '/bin/']
    return any(os.access(OPTIONS['root'] + folder + program, os.X_OK) for folder in folders)


def run(*words, name='host', text=None):
    """Run a client; return (exit status, what it prints, what it complains about)."""
    done = subprocess.run(client_command(*words, name=name), input=text, text=True,
                          capture_output=True, check=False, timeout=DEADLINE)
    return done.returncode, done.stdout, done.stderr.strip()


def output(*words, name='host'):
    """What a client prints that has to work."""
    status, printed, complaint = run(*words, name=name)
    if status:
        raise Failure(f'{" ".join(words)}: {complaint or printed.strip() or status}')
    return printed


def version(*words):
    """The version that a client prints, as (major, minor)."""
    _, printed, complaint = run(*words, name=None)
    found = re.search(r'(\d+)(?:\.(\d+))?[.\d]*', printed + complaint)
    return int(found[1]), int(found[2] or 0)


def ip(line):
    """A line of the client 'ip'."""
    return output('ip', *line.split())


def said(line):
    """What a line of 'ip' prints or complains about, on one line."""
    status, printed, complaint = run('ip', *line.split())
    return one_line(complaint if status else printed)


def one_line(text):
    """A route without line ends and what is usual."""
    text = re.sub(r' weight 1\b| uid 0 cache$', '', ' '.join(text.replace('\\', ' ').split()))
    return text.strip()


class Daemon:
    """A client that keeps running."""

    def __init__(self, *words, name='host', sysfs=None, env=None):
        self.log = tempfile.TemporaryFile('w+')     # pylint: disable=consider-using-with
        self.process = subprocess.Popen(            # pylint: disable=consider-using-with
            with_sysfs(sysfs, *words) if sysfs else client_command(*words, name=name),
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
            env={**os.environ, **(env or {})})
        self.words = words

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def text(self):
        """What it has printed."""
        self.log.seek(0)
        return self.log.read()

    def ready(self, condition):
        """Wait until it can be asked; fail if it ends."""
        def met():
            if self.process.poll() is not None:
                raise Failure(f'{self.words[0]} ended: {one_line(self.text()[-300:])}')
            try:
                return condition()
            except Failure:
                return False
        return wait_until(met, self.words[0])

    def busy(self):
        """The share of a processor that it takes now."""
        def used():
            fields = pathlib.Path(f'/proc/{self.process.pid}/stat').read_text(encoding='ascii')
            ticks = sum(map(int, fields.rpartition(')')[2].split()[11:13]))
            return ticks / os.sysconf('SC_CLK_TCK')
        before = used()
        time.sleep(QUIET)
        return (used() - before) / QUIET

    def state(self):
        """Whether it runs, and is idle."""
        if self.process.poll() is not None:
            return f'ended with status {self.process.returncode}'
        share = self.busy()
        return 'runs, idle' if share < 0.25 else f'runs, {share:.0%} of a processor'

    def stop(self):
        """Stop it as a service manager does; what came out."""
        self.process.terminate()
        return f'status {self.process.wait(DEADLINE)}'


# --- the kernel's side ---

def host(line):
    """Set something with 'ip', whatever it prints."""
    ip_batch('host', line)


def add_route(route, table='main'):
    host(f'route add {route.prefix} table {table} {route.words}')


def without_compat():
    """Dumps without the nexthops of objects for a while."""
    return sysctls('host', {'net/ipv4/nexthop_compat_mode': 0})


def snapshot(table='main'):
    """What the kernel has: nexthops, with their overrides, and routes."""
    found = {f'nexthop {line.split()[1]}': re.sub(' (scope|proto|weight) .*| $', '', line)
             for line in ip_in('host', 'nexthop show').splitlines()}
    with inside('host'):
        printed = subprocess.run(['ip', '-o', '-d', 'route', 'show', 'table', str(table)],
                                 text=True, capture_output=True, check=True).stdout
    labels = {str(route.prefix): route.label for route in (*ROUTES, *LATER)}
    for line in printed.splitlines():
        words = re.sub(r' nh_info .*?(?= nexthop |$)', '', one_line(line)).split()
        label = labels.get(words[1])
        if label:
            found[label] = '; '.join(filter(None, (found.get(label), ' '.join(words[2:]))))
    return found


def difference(before, after, own=()):
    """What became of things, without those that are the client's own."""
    parts = []
    for word, labels in (('lost', before.keys() - after.keys()),
                         ('new', after.keys() - before.keys() - {*own}),
                         ('changed', {label for label in before.keys() & after.keys()
                                      if before[label] != after[label]})):
        if labels:
            parts.append(f'{word}: {names(labels)}')
    return '; '.join(parts) or 'all kept'


def names(labels):
    """Labels in the order of the routes; all nexthops as one word."""
    order = [route.label for route in (*ROUTES, *LATER)]
    listed = sorted((label for label in labels if label in order), key=order.index)
    objects = sorted(label for label in labels if label not in order)
    if {f'nexthop {number}' for number in (1, 2, 5, 9)} <= {*objects}:
        objects = ['all nexthops']
    if {*listed} >= {*order[:len(ROUTES)]}:
        listed = ['all routes', *listed[len(ROUTES):]]
    return ', '.join(listed + objects)


def place(wire, address):
    """Where a packet to an address goes."""
    frame = wire.send(address)
    if frame.dst:
        name = {GW: 'gw', MBOX: 'mbox'}.get(frame.dst, frame.dst)
        return f'{name}, but {frame.problem}' if frame.problem else name
    asked = {what[2] for what, *_ in wire.passed if what and what[:2] == ('ARP', 'request')}
    return f'asks for {", ".join(sorted(asked))}' if asked else 'nowhere'


def place_by_table(wire, address, table):
    """The same, by another table."""
    host(f'rule add to {address} lookup {table}')
    try:
        return place(wire, address)
    finally:
        host(f'rule del to {address} lookup {table}')


def add_routes():
    """The nexthops and routes of this file."""
    ip_batch('host', *(f'nexthop {line}' for line in NEXTHOPS))
    host('nexthop add id 9 group 1/2')
    for route in ROUTES:
        add_route(route)


@contextlib.contextmanager
def lan():
    """The hosts of lab.py, anew, and the routes of this file; a Wire."""
    set_up()
    try:
        host('link set lo up')
        add_routes()
        yield Wire()
    finally:
        for name in os.listdir('/run/netns'):
            ip_batch(None, f'netns delete {name}')


def recursive_rows(wire, words):
    """Routes by BGP whose next hop is behind one of the routes, and where packets go."""
    wait_until(lambda: said(f'route show {OVER[2][1]}'), 'a route by BGP')
    time.sleep(QUIET)
    for (label, prefix), (route, expected) in zip(OVER, words):
        yield Row(f'next hop behind {label}: route', route.format(PREFIX[label][1]),
                  re.sub(r'^\S+ (nhid \d+ )?', '', said(f'route show {prefix}')))
        yield Row(f'next hop behind {label}: packet', expected.format(PREFIX[label][1]),
                  place(wire, prefix[1]))
