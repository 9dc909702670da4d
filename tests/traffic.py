"""Sockets that send, and captures that see: what the cases share beside lab."""

import contextlib
import errno
import itertools
import os
import select
import socket
import time
from ipaddress import ip_address

from lab import (DEADLINE, GW, IPV4, IPV6, MBOX, PORT, VMAC, Row, capture, describe, family, flow,
                 inside, ip_batch, set_sysctls)

BOTH = f'lladdr {MBOX} src-lladdr {VMAC}'
# One more host on the LAN: its device, and what is below that
NODE, NODE_BELOW = '02:00:00:00:00:05', '02:00:00:00:00:06'
# Of our end of a cable; another one
NEAR, NEW = '02:00:00:00:03:01', '02:00:00:00:03:02'
SINK = PORT + 1     # where floods go to
LOOP = 1            # seconds that what is repeated is repeated for
BACKLOG = 500       # frames: more than a capture has room for


# --- one datagram ---

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


def deliver(wire, sock):
    """Send a datagram; return what went wrong."""
    wire.sent += 1
    payload = b'datagram %d' % wire.sent
    wire.forget()
    sock.send(payload)
    return None if wire.delivered(payload) else 'it did not reach server'


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
# A Cable, which lasts as long as a 'with'; the frames are captured at the far end.


class Cable:
    """One more cable of a host."""

    def __init__(self, fam=IPV4):
        self.near, self.far = 'life0', 'far0'
        address, self.gateway, self.aside = (
            f'198.51.100.{64 + host}' if fam is IPV4 else f'2001:db8:fd::{host}'
            for host in (1, 2, 10))
        self.address = f'{address}/{28 if fam is IPV4 else 64}'
        self.capture = None

    def __enter__(self):
        ip_batch('lan', f'link add {self.far} type veth '
                        f'peer name {self.near} address {NEAR} netns host',
                 f'link set {self.far} up')
        self.capture = capture('lan', self.far)
        self.configure(self.near)
        return self

    def __exit__(self, *_):
        self.capture.close()
        ip_batch('lan', f'link del {self.far}')

    def configure(self, device):
        """Addresses and neighbours of our end, or of a device that stands in for it."""
        ip_batch('host', f'link set {device} up',
                 f'address replace {self.address} dev {device} nodad',
                 f'neigh replace {self.gateway} lladdr {GW} dev {device}',
                 f'neigh replace {self.aside} lladdr {MBOX} dev {device}')


def to_sink(address):
    """Where a flood comes from. Its source stays, or it could not take another route."""
    return flow(address, source=family(address).host, port=SINK)


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


def outcome(sock, *captures):
    """What becomes of a datagram: how it leaves, or why it does not."""
    payload = os.urandom(8).hex().encode()
    try:
        sock.send(payload)
    except OSError as error:
        return error.strerror
    deadline = time.monotonic() + DEADLINE
    while select.select(captures, [], [], max(0, deadline - time.monotonic()))[0]:
        for data in itertools.chain(*map(arrivals, captures)):
            if payload not in data:
                continue
            if data[12:14] == b'\x08\x00' and data[23] == socket.IPPROTO_GRE:
                return f'GRE to {socket.inet_ntoa(data[30:34])}'
            return f'{data[6:12].hex(":")} > {data[0:6].hex(":")}'
    return 'no frame'


# --- packets that are not sent ---

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
