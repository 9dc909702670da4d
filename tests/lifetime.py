"""What may happen to devices, namespaces, routes and nexthops that have overrides.

Every case keeps sockets, packets or a sender at work meanwhile.  A reference
that is left behind shows as a device or a namespace that does not go away.
"""
#
#   host                      lan
#   198.51.100.65             nothing answers there
#   2001:db8:fd::1
#     | life0                   | far0
#   ==+=========================+==
#
# A Cable, which lasts as long as a 'with': host's device on it can go away,
# and the frames are captured at the far end.  leaks looks at what every other
# case has left: it stays the last case, and this the last of the modules.

import collections
import contextlib
import errno
import itertools
import os
import queue
import select
import signal
import socket
import struct
import subprocess
import threading
import time

import netlink
from lab import (DEADLINE, ETH_P_ALL, GW, HOST, IPV4, IPV6, MBOX, PORT, VMAC, Failure, Row,
                 add_override, add_route_here, both, describe, expect, family, inside, ip, ip_batch,
                 netlink_here, nl, without_inet6)

NEAR, NEW = '02:00:00:00:03:01', '02:00:00:00:03:02'
UNKNOWN, ASIDE6 = '198.51.100.72', '2001:db8:1::9'
SINK = PORT + 1     # where floods go to
# A reference too many is waited for without end, and the kernel complains after
# 10 seconds, which scripts/boot does not let pass.
PATIENCE = 60
LOOP = 1            # seconds that what is repeated is repeated for
BURST = 32          # datagrams: less than a socket has room for
BACKLOG = 500       # frames: more than a capture has room for
KMEMLEAK = '/sys/kernel/debug/kmemleak'
RTM_DELLINK, RTMGRP_LINK = 17, 1
RTA_NH_ID = 30
UNREACHABLE = os.strerror(errno.EHOSTUNREACH)
REFUSED = os.strerror(errno.EINVAL)

# note, nexthop number (none: a plain route), words, expected on a Cable
KINDS = (
    (': via link', None, f'via link {MBOX}', (MBOX, NEAR)),
    (': lladdr', 250, f'lladdr {MBOX}', (MBOX, NEAR)),
    (': via', 251, 'via {aside}', (MBOX, NEAR)),
    (': via inet6', 252, f'via inet6 {ASIDE6}', (MBOX, NEAR)),
    (': src-lladdr', 253, f'src-lladdr {VMAC}', (GW, VMAC)),
    (': via + src', 254, f'via {{aside}} src-lladdr {VMAC}', (MBOX, VMAC)),
    # The owner of the source is host itself.
    (': preserve', 255, 'via {aside} preserve fallback counters', (MBOX, NEAR)),
)


def write(path, value):
    """Write a file of the kernel's."""
    with open(path, 'w', encoding='ascii') as file:
        file.write(f'{value}')


# --- devices and namespaces that go away ---

def to_its_end(name, line):
    """Run 'ip' in a namespace, which may not wait for a reference forever."""
    process = subprocess.Popen(['ip', '-n', name, *line.split()],   # pylint: disable=R1732
                               text=True, stderr=subprocess.PIPE)
    try:
        _, reason = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired as error:
        raise Failure(f'ip {line}: not done after {PATIENCE} s') from error
    if process.returncode:
        raise Failure(f'ip {line}: {reason.strip()}')


@contextlib.contextmanager
def goes_away(device):
    """Wait for a device of lan to be gone, after what is done meanwhile."""
    with inside('lan'):
        index = socket.if_nametoindex(device)
        events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        events.bind((0, RTMGRP_LINK))
    with events:
        yield
        events.settimeout(PATIENCE)
        try:
            while True:
                data = events.recv(1 << 16)
                kind = netlink.NLMSGHDR.unpack_from(data)[1]
                if (kind, *struct.unpack_from('=i', data, 20)) == (RTM_DELLINK, index):
                    return
        except TimeoutError as error:
            raise Failure(f'{device} is still there after {PATIENCE} s') from error


def namespace_gone(name, device, users=()):
    """Delete a namespace, whose veth has its other end in lan, and end its users.

    They are ended one after another, so the first one who lets go of the
    namespace finds it without a name but alive.
    """
    with goes_away(device):
        ip_batch(None, f'netns del {name}')
        for user in users:
            user()
    # Its devices are unregistered.  The next to go has to wait until all of it
    # is gone: they are cleaned up one by one.
    ip_batch(None, 'netns add canary')
    ip_batch('lan', 'link add cage type veth peer name life0 netns canary')
    with goes_away('cage'):
        ip_batch(None, 'netns del canary')


class Cable:
    """One more cable of a host."""

    def __init__(self, name='host', number=0, fam=IPV4):
        self.name, self.near, self.far = name, f'life{number}', f'far{number}'
        address, self.gateway, self.aside = (
            f'198.51.100.{64 + 16 * number + host}' if fam is IPV4 else
            f'2001:db8:fd:{number}::{host}' for host in (1, 2, 10))
        self.address = f'{address}/{28 if fam is IPV4 else 64}'
        self.capture = None

    def __enter__(self):
        ip_batch('lan', f'link add {self.far} type veth '
                        f'peer name {self.near} address {NEAR} netns {self.name}',
                 f'link set {self.far} up')
        with inside('lan'):
            self.capture = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            self.capture.bind((self.far, ETH_P_ALL))
        self.capture.setblocking(False)
        self.configure(self.name)
        return self

    def __exit__(self, *_):
        self.capture.close()
        # It may be gone already, that is what the cases are about.
        subprocess.run(['ip', '-n', 'lan', 'link', 'del', self.far], stderr=subprocess.DEVNULL,
                       check=False)

    def configure(self, name, device=None):
        """Addresses and neighbours of our end, or of a device that stands in for it."""
        device = device or self.near
        ip_batch(name, f'link set {device} up', f'address replace {self.address} dev {device}',
                 f'neigh replace {self.gateway} lladdr {GW} dev {device}',
                 f'neigh replace {self.aside} lladdr {MBOX} dev {device}',
                 f'neigh replace {ASIDE6} lladdr {MBOX} dev {device}')

    def route(self, prefix, number, words, device=None):
        """A route by an override: a nexthop object, or a plain route without number."""
        device = device or self.near
        words = words.format(aside=self.aside)
        if number is None:
            ip_batch(self.name, f'route add {prefix} {words} dev {device}')
            return
        number += family(self.gateway).first
        with inside(self.name):
            netlink_here(None, f'nexthop add id {number} via {self.gateway} dev {device} '
                               f'neigh {words}')
        ip_batch(self.name, f'route add {prefix} nhid {number}')


# --- packets ---

def flow(address, name='host', source=None):
    """A connected socket: it keeps its route as long as that is valid.

    Its source has to stay, or it could not take another route.
    """
    fam = family(address)
    with inside(name):
        sock = socket.socket(fam.number, socket.SOCK_DGRAM)
    sock.bind((fam.host if source is None else source, 0))
    sock.connect((str(address), SINK))
    return sock


def sink():
    """Where floods end, unread and uncomplained."""
    with inside('server'):
        # It gets IPv4 as well.
        sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        sock.bind(('::', SINK))
    return sock


def frames(capture):
    """The frames that came in there since last time; not those that keep coming."""
    for _ in range(BACKLOG):
        try:
            data, where = capture.recvfrom(2048)
        except BlockingIOError:
            return
        except OSError as error:
            # Said once, before what is still to be read.
            if error.errno != errno.ENETDOWN:
                raise
            continue
        if where[2] != socket.PACKET_OUTGOING:
            yield data


def sightings(*captures):
    """(address, (dst, src)) of the datagrams that came in there, in the order of payloads."""
    found = [(what, data) for data in itertools.chain(*map(frames, captures))
             for what in [describe(data)] if what and what[0] == 'UDP']
    return [(what[1], (data[0:6].hex(':'), data[6:12].hex(':')))
            for what, data in sorted(found, key=lambda pair: pair[0][2])]


def try_send(sock, payload):
    """Send; return the error, if any."""
    try:
        sock.send(payload)
    except OSError as error:
        return error.strerror
    return None


def outcome(sock, *captures):
    """What becomes of a datagram: how it leaves, or why it does not."""
    payload = os.urandom(8).hex().encode()
    error = try_send(sock, payload)
    deadline = time.monotonic() + DEADLINE
    while not error and select.select(captures, [], [], max(0, deadline - time.monotonic()))[0]:
        for data in itertools.chain(*map(frames, captures)):
            if payload not in data:
                continue
            if data[12:14] == b'\x08\x00' and data[23] == socket.IPPROTO_GRE:
                return f'GRE to {socket.inet_ntoa(data[30:34])}'
            return f'{data[6:12].hex(":")} > {data[0:6].hex(":")}'
    return error or 'no frame'


def await_request(capture, address):
    """Wait until an address is asked for."""
    deadline = time.monotonic() + DEADLINE
    while select.select([capture], [], [], max(0, deadline - time.monotonic()))[0]:
        if ('ARP', 'request', address) in map(describe, frames(capture)):
            return
    raise Failure(f'nobody asks for {address}')


class Flood(threading.Thread):
    """Sends on sockets as fast as it can, and watches cables, during a 'with'."""

    def __init__(self, socks, captures):
        super().__init__(daemon=True)
        self.socks, self.captures = socks, captures
        # By address: what was seen, one after another, and the last error
        self.seen = {sock.getpeername()[0]: [] for sock in socks}
        self.errors = {}
        self.rounds, self.stopping = queue.SimpleQueue(), False

    def __enter__(self):
        sightings(*self.captures)
        self.start()
        return self

    def __exit__(self, *_):
        self.stopping = True
        self.join()
        for sock in self.socks:
            sock.close()

    def run(self):
        numbers = itertools.count()
        while not self.stopping:
            for sock in self.socks * 8:
                address = sock.getpeername()[0]
                error = try_send(sock, b'%08d' % next(numbers))
                self.errors[address] = error or self.errors.get(address)
            for address, seen in sightings(*self.captures):
                # What others send is none of our business.
                if self.seen.get(address, [seen])[-1:] != [seen]:
                    self.seen[address].append(seen)
            self.rounds.put(next(numbers))

    def more(self, rounds=5):
        """Wait until that much has been sent from now on."""
        while not self.rounds.empty():
            self.rounds.get()
        try:
            # One is under way.
            for _ in range(1 + rounds):
                self.rounds.get(timeout=PATIENCE)
        except queue.Empty as error:
            raise Failure('the sender is stuck') from error


def expect_steps(flood, address, note, *steps):
    """A row for each step: what was seen one after another, and nothing else."""
    seen = flood.seen[str(address)]
    for number, (name, step) in enumerate(steps):
        problem = None
        if len(seen) != len(steps) and number == len(steps) - 1:
            problem = f'seen, one after another: {seen}'
        yield Row(note + name, step, seen[number] if number < len(seen) else (None, None), problem)


# --- devices ---

@both
def removed(wire, prefix):
    """removed"""
    fam = family(prefix)
    for note, number, words, step in without_inet6(fam, KINDS):
        with Cable(fam=fam) as cable, sink():
            cable.route(prefix, number, words)
            with Flood([flow(prefix[1])], [cable.capture, wire.captures['host']]) as flood:
                flood.more()
                to_its_end('host', 'link del life0')
                flood.more()
            yield from expect_steps(flood, prefix[1], note, (', before', step),
                                    (', after', (GW, HOST)))
            if number and f'id {fam.first + number} ' in nl('nexthop show'):
                raise Failure(f'nexthop {fam.first + number} is still there')


def moved(_, prefix):
    """moved"""
    ip_batch(None, 'netns add elsewhere')
    ip(f'route add unreachable {prefix} metric 9999')
    for note, number, words, step in KINDS[0], KINDS[5]:
        with Cable() as cable:
            cable.route(prefix, number, words)
            with Flood([flow(prefix[1])], [cable.capture]) as flood:
                flood.more()
                to_its_end('host', 'link set life0 netns elsewhere')
                cable.configure('elsewhere')
                flood.more()
            yield from expect_steps(flood, prefix[1], note, (', before', step))
            yield Row(f'{note}, after', UNREACHABLE, str(flood.errors[str(prefix[1])]), None)
            cable.name = 'elsewhere'
            cable.route(prefix, 256, f'lladdr {GW} src-lladdr {NEW}')
            with flow(prefix[1], 'elsewhere', '') as sock:
                yield Row(f'{note}, elsewhere', f'{NEW} > {GW}', outcome(sock, cable.capture), None)
    ip(f'route del unreachable {prefix} metric 9999')
    with Cable('elsewhere') as cable:
        namespace_gone('elsewhere', cable.far)


@both
def readdressed(wire, prefix):
    """address"""
    fam = family(prefix)
    lan = ((': via link', None, f'via link {MBOX} dev eth0', (MBOX, HOST), (MBOX, NEW)),
           (': lladdr', 256, f'lladdr {MBOX}', (MBOX, HOST), (MBOX, NEW)),
           (': via', 257, f'via {fam.mbox}', (MBOX, HOST), (MBOX, NEW)),
           (': via inet6', 258, f'via inet6 {IPV6.mbox}', (MBOX, HOST), (MBOX, NEW)),
           (': src-lladdr', 259, f'src-lladdr {VMAC}', (GW, VMAC)))
    for note, number, words, *steps in without_inet6(fam, lan):
        if number:
            add_override(prefix, number, words)
        else:
            ip(f'route add {prefix} {words}')
        with sink(), Flood([flow(prefix[1])], [wire.captures['host']]) as flood:
            flood.more()
            ip(f'link set eth0 address {NEW}')
            flood.more()
        ip(f'link set eth0 address {HOST}')
        ip(f'route del {prefix}')
        yield from expect_steps(flood, prefix[1], note, *zip((', before', ', after'), steps))
    # What the neighbours have learnt
    for name in 'gw', 'mbox':
        ip_batch(name, 'neigh flush dev eth0')


# --- devices that change their type ---

def enslave(device, master):
    """Make it the only port of a team or a bond, and the active one."""
    ip(f'link set {device} down')
    ip(f'link set {device} master {master}')
    if master != 'team0':
        return
    with inside('host'):
        index = socket.if_nametoindex(device)
        done = subprocess.run(['teamnl', master, 'setoption', 'activeport', str(index)],
                              text=True, capture_output=True, check=False)
    if done.returncode:
        raise Failure(f'teamnl: {done.stderr.strip()}')


@contextlib.contextmanager
def master_of_ports(master, words):
    """A team or a bond with a Cable as its port, and a GRE device that can be one.

    A GRE device without remote has link-layer addresses: those of the remotes.
    """
    with Cable() as cable:
        ip('address flush dev life0')
        ip(f'link add {master} address {NEAR} type {words}')
        ip('link add gre1 type gre local 192.0.2.2')
        if master == 'team0':
            with inside('host'):
                subprocess.run(['teamnl', master, 'setoption', 'mode', 'activebackup'], check=True)
            # Without carrier the nexthops would go.
            ip(f'link set {master} carrier on')
        enslave('life0', master)
        cable.configure('host', master)
        try:
            yield cable
        finally:
            ip(f'link del {master}')
            ip('link del gre1')


def expect_outcomes(note, socks, captures, *expected):
    """A row for each socket."""
    for (name, sock), wanted in zip(socks.items(), expected):
        yield Row(f'{name}, {note}', wanted, outcome(sock, *captures), None)


def team(wire, prefix):
    """team"""
    with master_of_ports('team0', 'team') as cable, contextlib.ExitStack() as stack:
        captures = cable.capture, wire.captures['host']
        socks = {}
        for address, (note, number, words, _) in zip(prefix, (KINDS[0], KINDS[4], KINDS[5])):
            cable.route(address, number, words, 'team0')
            socks[note] = stack.enter_context(flow(address))
        ethernet = f'{NEAR} > {MBOX}', f'{VMAC} > {GW}', f'{VMAC} > {MBOX}'
        yield from expect_outcomes('Ethernet', socks, captures, *ethernet)

        ip('link set life0 nomaster')
        enslave('gre1', 'team0')
        yield from expect_outcomes('GRE', socks, captures, *[REFUSED] * len(socks))
        ip(f'route add {prefix[3]} via link 192.0.2.9 dev team0')
        gre = {': 4 bytes': stack.enter_context(flow(prefix[3]))}
        yield from expect_outcomes('GRE', gre, captures, 'GRE to 192.0.2.9')

        ip('link set gre1 nomaster')
        enslave('life0', 'team0')
        yield from expect_outcomes('again', socks, captures, *ethernet)
        yield from expect_outcomes('Ethernet', gre, captures, REFUSED)


def bond(wire, prefix):
    """bond"""
    with (master_of_ports('bond0', 'bond mode active-backup') as cable,
          contextlib.ExitStack() as stack):
        captures = cable.capture, wire.captures['host']
        socks = {}
        for address, (note, number, words, _) in zip(prefix, (KINDS[0], KINDS[4], KINDS[5])):
            cable.route(address, number, words, 'bond0')
            socks[note] = stack.enter_context(flow(address))
        ethernet = f'{NEAR} > {MBOX}', f'{VMAC} > {GW}', f'{VMAC} > {MBOX}'
        yield from expect_outcomes('Ethernet', socks, captures, *ethernet)

        # The bond is down for a moment: the routes go.
        ip('link set life0 nomaster')
        enslave('gre1', 'bond0')
        yield from expect_outcomes('GRE', socks, captures, *[f'{HOST} > {GW}'] * len(socks))
        ip(f'route add {prefix[3]} via link 192.0.2.9 dev bond0')
        gre = {': 4 bytes': stack.enter_context(flow(prefix[3]))}
        yield from expect_outcomes('GRE', gre, captures, 'GRE to 192.0.2.9')

        # It stays up.
        ip('link set gre1 nomaster')
        enslave('life0', 'bond0')
        yield from expect_outcomes('Ethernet', gre, captures, REFUSED)


# --- namespaces ---

@contextlib.contextmanager
def sender_inside(name, addresses):
    """A process in a namespace that sends until it is ended; yields what ends it."""
    pid = os.fork()
    if not pid:
        try:
            with inside(name):
                sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            os.nice(10)     # Else nobody keeps up with it.
            for address in itertools.cycle(map(str, addresses)):
                with contextlib.suppress(OSError):
                    sock.sendto(b'from inside', (address, SINK))
        finally:
            os._exit(1)     # pylint: disable=protected-access

    def end():
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    try:
        yield end
    finally:
        # It has been ended already, if all went well.
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            end()


def namespace(_, prefix):
    """namespace"""
    ip_batch(None, 'netns add doomed')
    ip_batch('doomed', 'link add feed address 02:00:00:00:03:04 type veth '
                       'peer name feed netns host', 'link set feed up')
    ip_batch('host', 'link set feed up', f'route add {prefix} via link 02:00:00:00:03:04 dev feed')
    with inside('doomed'):
        write('/proc/sys/net/ipv4/ip_forward', 1)
    with Cable('doomed') as cable:
        for address, (_, number, words, _) in zip(prefix, (KINDS[0], KINDS[5])):
            cable.route(address, number, words)
        with inside('doomed'):
            netlink_here(None, f'nexthop add id 260 dev life0 neigh lladdr {GW} src-lladdr {NEW}')
            # Nobody answers for it: the packets wait.
            netlink_here(None, f'nexthop add id 261 dev life0 neigh via {UNKNOWN}')
        ip_batch('doomed', 'nexthop add id 262 group 260', f'route add {prefix[2]} nhid 262',
                 'nexthop add id 263 group 261', f'route add {prefix[3]} nhid 263')
        socks = [flow(address) for address in prefix]
        socks[3].send(b'waits')
        await_request(cable.capture, UNKNOWN)
        with (sender_inside('doomed', prefix) as end_sender,
              Flood(socks, [cable.capture]) as flood):
            flood.more()
            namespace_gone('doomed', cable.far, [flood.more, end_sender])
            del flood.captures[:]
            flood.more()
        late = sum(1 for _ in frames(cable.capture))
    yield from expect_steps(flood, prefix[0], ': via link', ('', (MBOX, NEAR)))
    yield from expect_steps(flood, prefix[1], ': via + src', ('', (MBOX, VMAC)))
    yield from expect_steps(flood, prefix[2], ': group', ('', (GW, NEW)))
    late += len(flood.seen[str(prefix[3])])
    yield Row(': gone', 'no frame', f'{late} frames' if late else 'no frame', None)


# --- routes and nexthops ---

@contextlib.contextmanager
def repeated(change):
    """Make a change over and over meanwhile."""
    stop = threading.Event()

    def run():
        while not stop.is_set():
            change()
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def discarded(snmp):
    """The packets that host has not sent, because their route was freed just then."""
    snmp.seek(0)
    names, values = (line.split() for line in snmp if line.startswith('Ip:'))
    counters = dict(zip(names, values))
    return int(counters['OutRequests']) - int(counters['OutTransmits'])


def send_burst(wire, sock, first, snmp):
    """Send datagrams; return how many nobody knows the fate of."""
    before = discarded(snmp)
    wanted = {b'%d' % number for number in range(first, first + BURST)}
    for payload in sorted(wanted):
        sock.send(payload)
    missing = discarded(snmp) - before
    while len(wanted) > missing and select.select([wire.server], [], [], DEADLINE)[0]:
        wanted.discard(wire.server.recv(2048))
    return len(wanted) - missing


def under_traffic(wire, address, states, change):
    """Send all the time while changes are made; the row of what was seen.

    A packet is discarded when its route is freed between the lookup and the
    output.  That happens to plain routes, too; it is counted.
    """
    seen, legal, lost, sent = collections.Counter(), {*states.values()}, 0, 0
    with inside('host'):
        snmp = open('/proc/net/snmp', encoding='ascii')     # pylint: disable=R1732
    wire.captured('host')
    with snmp, wire.flow(address) as sock, repeated(change):
        before, started = discarded(snmp), time.monotonic()
        while (time.monotonic() < started + LOOP or
               not seen.keys() >= legal and time.monotonic() < started + 10 * DEADLINE):
            lost += abs(send_burst(wire, sock, sent, snmp))
            sent += BURST
            seen.update(step for to, step in sightings(wire.captures['host'])
                        if to == str(address))
        dropped = discarded(snmp) - before
    problem = None
    if seen.total() != sent - dropped or dropped > sent / 10:
        problem = f'{sent} datagrams, {dropped} discarded, {seen.total()} frames'
    return Row('', f'{len(legal)} states, 0 frames mixed, 0 lost',
               f'{len(legal & seen.keys())} states, '
               f'{sum(seen[step] for step in seen.keys() - legal)} frames mixed, {lost} lost',
               problem)


def replaced_object(wire, prefix):
    """replaced: object"""
    states = {f'neigh lladdr {GW} src-lladdr {NEAR}': (GW, NEAR),
              f'neigh lladdr {MBOX} src-lladdr {NEW}': (MBOX, NEW),
              'neigh via 192.0.2.9': (MBOX, HOST),
              f'neigh src-lladdr {VMAC}': (GW, VMAC),
              '': (GW, HOST)}
    words = itertools.cycle(states)

    def change():
        nl(f'nexthop replace id 264 via 192.0.2.1 dev eth0 {next(words)}')
    change()
    ip(f'route add {prefix} nhid 264')
    yield under_traffic(wire, prefix[1], states, change)
    nl(f'nexthop replace id 264 via 192.0.2.1 dev eth0 neigh lladdr {MBOX} src-lladdr {NEAR}')
    yield expect(wire.send(prefix[1]), MBOX, NEAR, ', at the end')


def replaced_route(wire, prefix):
    """replaced: route"""
    nl(f'nexthop add id 265 dev eth0 neigh lladdr {MBOX} src-lladdr {VMAC}')
    states = {f'via link {MBOX} dev eth0': (MBOX, HOST),
              'nhid 265': (MBOX, VMAC),
              'via 192.0.2.1 dev eth0': (GW, HOST)}

    words = itertools.cycle(states)

    def change():
        ip(f'route replace {prefix} {next(words)}')
    change()
    yield under_traffic(wire, prefix[1], states, change)
    ip(f'route replace {prefix} via link {MBOX} dev eth0')
    yield expect(wire.send(prefix[1]), MBOX, HOST, ', at the end')


def slab_objects():
    """The objects that the kernel has, of any kind, when all is freed that is to be."""
    # A device that goes away waits for the RCU callbacks; a nexthop's frees
    # the route, the route's the override.
    for _ in range(4):
        ip('link add barrier type dummy')
        ip('link del barrier')
    with open('/proc/slabinfo', encoding='ascii') as file:
        return sum(int(line.split()[1]) for line in file if line[:4] not in ('slab', '# na'))


def kernel_has(symbol):
    """Tell if something is built into the kernel."""
    with open('/proc/kallsyms', encoding='ascii') as file:
        return any(line.split()[2] == symbol for line in file)


def outlive(prefix, number):
    """An override that a socket's route has kept when its nexthop was deleted."""
    netlink_here(None, f'nexthop add id 266 via 192.0.2.1 dev eth0 neigh lladdr {MBOX} '
                       f'src-lladdr 02:00:00:00:04:{number & 15:02x} counters')
    add_route_here(prefix, (RTA_NH_ID, struct.pack('=I', 266)))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((str(prefix[1]), SINK))
        sock.send(b'by override')
        netlink_here(None, 'nexthop del id 266')
        # Else the socket keeps it to its end.
        if number % 2:
            sock.send(b'afterwards')


def outlived(wire, prefix):
    """outlived"""
    wire.captured('host')
    keeps_freed = kernel_has('kasan_report')
    # The kernel's caches grow at first; what leaks does so every time.
    for _ in range(1 if keeps_freed else 8):
        seen, number, before = collections.Counter(), 0, slab_objects()
        end = time.monotonic() + LOOP / 2
        with sink(), inside('host'):
            while time.monotonic() < end:
                outlive(prefix, number)
                number += 1
                seen.update(dst for _, (dst, _) in sightings(wire.captures['host']))
            # The last ones may be under way.
            capture = wire.captures['host']
            while (seen.total() < number + number // 2 and
                   select.select([capture], [], [], DEADLINE)[0]):
                seen.update(dst for _, (dst, _) in sightings(capture))
        grown = slab_objects() - before
        if grown < number / 2:
            break
    yield Row('', f'{number} by override, {number // 2} afterwards',
              f'{seen[MBOX]} by override, {seen[GW]} afterwards', None)
    if keeps_freed:
        yield Row(': memory', None, 'not checked: KASAN keeps what was freed', None)
    else:
        yield Row(': memory', 'no more than before',
                  'no more than before' if grown < number / 2 else f'{grown} objects more', None)


# --- packets that wait for a neighbour ---

def leave_waiting(cable, prefix):
    """Packets that only their waiting keeps: the socket that sent them is closed."""
    ip(f'neigh del {cable.aside} dev life0')
    with inside('host'):
        write('/proc/sys/net/ipv4/neigh/life0/mcast_solicit', 99)
    cable.route(prefix, 267, f'via {cable.aside} src-lladdr {VMAC}')
    with flow(prefix[1]) as sock:
        for _ in range(3):
            sock.send(b'waits')
    await_request(cable.capture, cable.aside)


def resolved(cable, number=3):
    """The neighbour answers; what has left when number packets had the time to."""
    ip(f'neigh replace {cable.aside} lladdr {MBOX} dev life0')
    seen = []
    deadline = time.monotonic() + DEADLINE
    while len(seen) < number and time.monotonic() < deadline:
        select.select([cable.capture], [], [], max(0, deadline - time.monotonic()))
        seen += [step for _, step in sightings(cable.capture)]
    return seen


def waiting(_, prefix):
    """waiting"""
    replace = f'nexthop replace id 267 dev life0 neigh lladdr {GW}'
    for note, change, line in (
            (': route deleted', ip, f'route del {prefix}'),
            (': nexthop deleted', ip, 'nexthop del id 267'),
            (': nexthop replaced', nl, replace)):
        with Cable() as cable:
            leave_waiting(cable, prefix)
            change(line)
            seen = resolved(cable)
        problem = f'{seen}' if len(seen) != 3 or len({*seen}) != 1 else None
        yield Row(note, (MBOX, VMAC), seen[0] if seen else (None, None), problem)
    with Cable() as cable:
        leave_waiting(cable, prefix)
        ip('link set life0 down')
        cable.configure('host')
        # What comes now comes after what might come.
        cable.route(prefix, None, f'via link {GW}')
        with flow(prefix[1]) as sock:
            sock.send(b'afterwards')
        seen = resolved(cable, 1)
        yield Row(': device down', f'{[(GW, NEAR)]}', f'{seen}', None)
    with Cable() as cable:
        leave_waiting(cable, prefix)
        to_its_end('host', 'link del life0')
        yield Row(': device removed', '[]', f'{sightings(cable.capture)}', None)


# --- down and up ---

def down(wire, prefix):
    """down"""
    for note, number, words, step in KINDS[0], KINDS[5], KINDS[6]:
        with Cable() as cable, sink():
            cable.route(prefix, number, words)
            with Flood([flow(prefix[1])], [cable.capture, wire.captures['host']]) as flood:
                flood.more()
                ip('link set life0 down')
                flood.more()
                cable.configure('host')
                flood.more()
                cable.route(prefix, number, words)
                flood.more()
        yield from expect_steps(flood, prefix[1], note, (', before', step),
                                (', down', (GW, HOST)), (', up', step))


def await_change(text, words, line):
    """Wait until 'ip' shows something 'with' words, or 'without' them."""
    deadline = time.monotonic() + 3 * DEADLINE
    while (words in ip(line)) != (text == 'with'):
        if time.monotonic() > deadline:
            raise Failure(f"'ip {line}' is not {text} {words}")


def expect_legs(note, socks, cables, *legs):
    """The row of the cables that datagrams leave by; legs: a cable's number, dst, src."""
    for sock in socks:
        sock.send(b'spread')
    seen = collections.Counter()
    captures = {cable.capture: number for number, cable in enumerate(cables)}
    deadline = time.monotonic() + DEADLINE
    while (seen.total() < len(socks) and
           select.select(captures, [], [], max(0, deadline - time.monotonic()))[0]):
        for capture, number in captures.items():
            seen.update((number, *step) for _, step in sightings(capture))
    problem = None
    if seen.keys() != {*legs} or seen.total() != len(socks):
        problem = f'seen: {seen}'
    return Row(note, ' '.join(cables[number].near for number, _, _ in legs),
               ' '.join(sorted({cables[number].near for number, _, _ in seen})), problem)


def carrier(_, prefix):
    """carrier"""
    with contextlib.ExitStack() as stack:
        cables = [stack.enter_context(Cable(number=number)) for number in (0, 1)]
        # The ports of the senders spread them over the legs.
        socks = [stack.enter_context(flow(prefix[1])) for _ in range(16)]
        with inside('host'):
            for name in 'life0', 'life1':
                write(f'/proc/sys/net/ipv4/conf/{name}/ignore_routes_with_linkdown', 1)

        legs = (0, MBOX, NEAR), (1, GW, VMAC)
        second = f'nexthop add id 269 via {cables[1].gateway} dev life1 neigh src-lladdr {VMAC}'
        nl(f'nexthop add id 268 dev life0 neigh lladdr {MBOX}')
        nl(second)
        ip('nexthop add id 270 group 268/269')
        ip(f'route add {prefix} nhid 270')
        yield expect_legs(': group', socks, cables, *legs)
        ip_batch('lan', 'link set far1 down')
        # The group has lost it for good.
        await_change('without', '/269', 'nexthop show id 270')
        yield expect_legs(': group, lost', socks, cables, legs[0])
        ip_batch('lan', 'link set far1 up')
        await_change('with', 'state UP', 'link show life1')
        nl(second)
        ip('nexthop replace id 270 group 268/269')
        yield expect_legs(': group, back', socks, cables, *legs)

        legs = (0, MBOX, NEAR), (1, GW, NEAR)
        ip(f'route replace {prefix} nexthop via link {MBOX} dev life0 '
           f'nexthop via link {GW} dev life1')
        yield expect_legs(': route', socks, cables, *legs)
        ip_batch('lan', 'link set far0 down')
        await_change('with', 'linkdown', f'route show {prefix}')
        yield expect_legs(': route, lost', socks, cables, legs[1])
        ip_batch('lan', 'link set far0 up')
        await_change('without', 'linkdown', f'route show {prefix}')
        yield expect_legs(': route, back', socks, cables, *legs)


# --- memory ---

def leaks(_, __):
    """leaks"""
    if not os.path.ismount('/sys/kernel/debug'):
        subprocess.run(['mount', '-t', 'debugfs', 'none', '/sys/kernel/debug'], check=True)
    if not os.path.exists(KMEMLEAK):
        yield Row('', None, 'not checked: the kernel has no kmemleak', None)
        return
    # Nothing younger is reported, and nothing that was not found the time before.
    time.sleep(5.5)
    for _ in range(2):
        write(KMEMLEAK, 'scan')
    with open(KMEMLEAK, encoding='ascii') as file:
        objects = file.read().split('unreferenced object ')[1:]
    ours = [text for text in objects if 'neigh_override' in text]
    yield Row('', '0 overrides', f'{len(ours)} overrides', ours[0] if ours else None)


CASES = (removed, moved, readdressed, team, bond, namespace, replaced_object, replaced_route,
         outlived, waiting, down, carrier, leaks)
