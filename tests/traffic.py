"""Sockets that send, and captures that see: what the cases share beside lab."""

import contextlib
import errno
import itertools
import os
import queue
import select
import socket
import subprocess
import threading
import time
from ipaddress import ip_address

from lab import (DEADLINE, GW, IPV4, IPV6, MBOX, PORT, VMAC, Failure, Row, capture, describe,
                 family, flow, inside, ip_batch, netlink_here, set_sysctls)

BOTH = f'lladdr {MBOX} src-lladdr {VMAC}'
# <linux/udp.h>, <linux/in.h>
SOL_UDP, UDP_SEGMENT = 17, 103
IP_PMTUDISC_DONT, IP_PMTUDISC_WANT, IP_PMTUDISC_DO = 0, 1, 2
# IP_MTU_DISCOVER and, of <linux/in6.h>, IPV6_MTU_DISCOVER
MTU_DISCOVER = {IPV4: (socket.IPPROTO_IP, 10), IPV6: (socket.IPPROTO_IPV6, 23)}
# One more host on the LAN: its device, and what is below that
NODE, NODE_BELOW = '02:00:00:00:00:05', '02:00:00:00:00:06'
# Of our end of a cable; another one
NEAR, NEW = '02:00:00:00:03:01', '02:00:00:00:03:02'
ASIDE6 = '2001:db8:1::9'
SINK = PORT + 1     # where floods go to
LOOP = 1            # seconds that what is repeated is repeated for
# A reference too many is waited for without end, and the kernel complains after
# 10 seconds, which scripts/boot does not let pass.
PATIENCE = 60
BACKLOG = 500       # frames: more than a capture has room for


# --- one datagram ---

def run_in(name, command):
    """Run a command in a namespace; return what it prints."""
    with inside(name):
        done = subprocess.run(command.split(), text=True, capture_output=True, check=False)
    if done.returncode:
        raise Failure(f'{command}: {done.stderr.strip()}')
    return done.stdout


def netlink_in(name, line):
    """Run a line of netlink.py in a namespace."""
    with inside(name):
        return netlink_here(name, line)


def send_as(wire, source, address, name='host'):
    """Send a datagram with a source of others; return its Frame on host's cable."""
    with flow(address, name, source=source) as sock:
        return wire.send_on(sock)


@contextlib.contextmanager
def ignored_sources():
    """Let the bridge not learn from host: it does not have the owners on its cable."""
    ip_batch('lan', 'link set host type bridge_slave learning off')
    try:
        yield
    finally:
        ip_batch('lan', 'link set host type bridge_slave learning on')


def send_in_vain(wire, source, address):
    """Send what is going to be dropped; return what passed nevertheless."""
    wire.captured('host')
    with flow(address, source=source) as sock, contextlib.suppress(PermissionError):
        sock.send(b'in vain')
    return frames_to(wire, address)


def deliver(wire, sock, size=0, segments=1):
    """Send datagrams of a size at once; return what went wrong."""
    wire.sent += 1
    parts = [(b'datagram %d.%d ' % (wire.sent, part)).ljust(size, b'.')
             for part in range(segments)]
    wire.forget()
    sock.send(b''.join(parts))
    return None if all(map(wire.delivered, parts)) else 'it did not reach server'


def protocol_and_destination(data):
    """Of an IP packet in a frame; for IPv6 what the first header says."""
    if data[12:14] == b'\x08\x00':
        return data[23], ip_address(data[30:34])
    return (data[20], ip_address(data[38:54])) if data[12:14] == b'\x86\xdd' else None


def past_ip(frame):
    """What comes after the IP header in a frame, which has no options."""
    return frame[14 + (20 if frame[12:14] == b'\x08\x00' else 40):]


def frames_to(wire, address, protocol=socket.IPPROTO_UDP, port='host'):
    """The frames to an address that came from the host at a port."""
    wanted = protocol, ip_address(str(address))
    return [data for _, data, from_host in wire.captured(port)
            if from_host and protocol_and_destination(data) == wanted]


def awaited(wire, address, protocol=socket.IPPROTO_UDP):
    """The frames from host to an address that server does not get."""
    frames = []
    while not frames and select.select([wire.captures['host']], [], [], DEADLINE)[0]:
        frames += frames_to(wire, address, protocol)
    return frames


def expect_frames(frames, lladdrs, note='', count=1, problem=None):
    """The row of frames that have all the same link-layer addresses."""
    seen = {(frame[0:6].hex(':'), frame[6:12].hex(':')) for frame in frames}
    if len(frames) != count:
        problem = problem or f'{len(frames)} frames instead of {count}'
    return Row(note, lladdrs, min(seen - {lladdrs} or seen, default=(None, None)), problem)


def expect_delivery(wire, sock, lladdrs, note='', port='host'):
    """The row of one datagram, on the cable of its sender or of another host."""
    problem = deliver(wire, sock)
    frames = frames_to(wire, sock.getpeername()[0], port=port)
    return expect_frames(frames, lladdrs, note, problem=problem)


@contextlib.contextmanager
def segmentation_off(name):
    """Let the kernel cut UDP segments before a host's device gets them."""
    run_in(name, 'ethtool -K eth0 tx-udp-segmentation off')
    try:
        yield
    finally:
        run_in(name, 'ethtool -K eth0 tx-udp-segmentation on')


# --- one more host on the LAN ---

@contextlib.contextmanager
def another_host(wire, bridge_end='node'):
    """A host on the LAN, node; what the bridge has of its cable may be a VLAN device."""
    ip_batch(None, 'netns add node')
    try:
        set_sysctls('node')
        ip_batch('lan', f'link add node type veth peer name eth0 address {NODE_BELOW} netns node',
                 'link set node up')
        if bridge_end != 'node':
            ip_batch('lan', f'link add link node name {bridge_end} type vlan id 5')
        ip_batch('lan', f'link set {bridge_end} master br0 up')
        with capture('lan', 'node') as wire.captures['node']:
            yield bridge_end
    finally:
        wire.captures.pop('node', None)
        ip_batch('lan', 'link delete node')
        ip_batch(None, 'netns delete node')


def connect_node(device, bridge_end='node', fam=IPV4):
    """Give node's device its address, when all is up."""
    # The kernel notes a carrier later, but at once when somebody asks.
    ip_batch('node', 'link set eth0 up', 'link show dev eth0')
    ip_batch('lan', 'link show dev node', f'link show dev {bridge_end}')
    ip_batch('node', f'link set {device} up', f'link show dev {device}',
             f'address add {fam.lan}5/{fam.length} dev {device}')


# --- one more cable of a host ---
#
#   host                      lan
#   198.51.100.65             nothing answers there
#   2001:db8:fd::1
#     | life0                   | far0
#   ==+=========================+==
#
# A Cable, which lasts as long as a 'with': host's device on it can go away,
# and the frames are captured at the far end.

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
        self.capture = capture('lan', self.far)
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
        ip_batch(name, f'link set {device} up',
                 f'address replace {self.address} dev {device} nodad',
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


def to_sink(address, name='host'):
    """Where a flood comes from. Its source stays, or it could not take another route."""
    return flow(address, name, source=family(address).host, port=SINK)


def sink():
    """Where floods end, unread and uncomplained."""
    with inside('server'):
        # It gets IPv4 as well.
        sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        sock.bind(('::', SINK))
    return sock


def arrivals(sock):
    """The frames that came in there since last time; not those that keep coming."""
    for _ in range(BACKLOG):
        try:
            data, where = sock.recvfrom(2048)
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
    found = [(what, data) for data in itertools.chain(*map(arrivals, captures))
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
        for data in itertools.chain(*map(arrivals, captures)):
            if payload not in data:
                continue
            if data[12:14] == b'\x08\x00' and data[23] == socket.IPPROTO_GRE:
                return f'GRE to {socket.inet_ntoa(data[30:34])}'
            return f'{data[6:12].hex(":")} > {data[0:6].hex(":")}'
    return error or 'no frame'


def await_request(sock, address):
    """Wait until an address is asked for."""
    deadline = time.monotonic() + DEADLINE
    while select.select([sock], [], [], max(0, deadline - time.monotonic()))[0]:
        asked = [what[1:] for what in map(describe, arrivals(sock)) if what]
        if ('request', str(ip_address(address))) in asked:
            return
    raise Failure(f'nobody asks for {address}')


# --- a sender that does not stop ---

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


def counters_of_host(address):
    """The IP counters of host, for discarded()."""
    with inside('host'):
        return open({IPV4: '/proc/net/snmp', IPV6: '/proc/net/snmp6'}[family(address)],
                    encoding='ascii')


def discarded(snmp):
    """The packets that host has not sent, because their route was freed just then."""
    snmp.seek(0)
    lines = [line.split() for line in snmp if line.startswith('Ip')]
    # IPv6 has a line for each counter.
    counted = dict(zip(*lines) if lines[0][0] == 'Ip:' else lines)
    requests, transmits = (int(value) for name, value in counted.items()
                           if name.endswith(('OutRequests', 'OutTransmits')))
    return requests - transmits
