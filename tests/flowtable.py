"""Flows that netfilter's flowtable may take over, and those that it has to leave alone."""

import contextlib
import socket

from lab import (DEADLINE, GW, HOST, IPV4, IPV6, MBOX, TRANSPARENT, VMAC, Failure, Row, both,
                 capture, describe, family, inside, ip_batch, ip_in, passed, run, run_in, stat)
from traffic import protocol_and_destination

# Both ends of the cable between gw and server
GW_TO_SERVER, SERVER = '02:00:00:00:02:01', '02:00:00:00:02:02'
ROUNDS = 5

RULES = '''table inet flows {
    flowtable fast { hook ingress priority 0; devices = { eth0, eth1 }; };
    counter slow { }
    chain forward {
        type filter hook forward priority 0;
        counter name slow
        meta l4proto udp flow add @fast
    }
}'''


def slow_packets():
    """How many packets went by the forward chain of gw."""
    listed = run_in('gw', 'nft list counter inet flows slow')
    return int(listed.partition('packets ')[2].split()[0])


def client(fam):
    """The source of packets to server: gw has a route of its own to it."""
    return f'{fam.lan}150'


@contextlib.contextmanager
def flowtable(fam):
    """gw has a flowtable, and host an address to be used with it."""
    with inside('gw'):
        run('nft', RULES)
    ip_batch('host', f'address add {client(fam)} dev eth0')
    try:
        yield
    finally:
        with inside('gw'):
            run('nft', 'flush ruleset')
        ip_batch('host', f'address delete {client(fam)} dev eth0')


@contextlib.contextmanager
def gw_nexthop(number, words, route):
    """gw has a nexthop object and a route by it; yields what replaces the object."""
    fam = family(route)
    number += fam.first

    def change(words, action='replace'):
        ip_in('gw', f'{fam.option} nexthop {action} id {number} {words}')
    change(words, 'add')
    ip_batch('gw', f'route add {route} nhid {number}')
    try:
        yield change
    finally:
        # The route goes with it.
        ip_batch('gw', f'nexthop delete id {number}')


class Flow:
    """Datagrams between host and server, there and back."""

    def __init__(self, wire, address):
        self.wire = wire
        fam = family(address)
        with inside('server'):
            self.server = socket.socket(fam.number, socket.SOCK_DGRAM)
            self.server.setsockopt(*TRANSPARENT[fam], 1)
            self.server.bind((str(address), 0))
        self.capture = capture('server', 'eth0')
        with inside('host'):
            self.client = socket.socket(fam.number, socket.SOCK_DGRAM)
        self.client.bind((client(fam), 0))
        self.client.connect(self.server.getsockname())
        self.server.connect(self.client.getsockname())
        for sock in self.client, self.server:
            sock.settimeout(DEADLINE)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for sock in self.client, self.server, self.capture:
            sock.close()

    def exchange(self):
        """One datagram there and one back."""
        for sender, receiver, name in ((self.client, self.server, 'server'),
                                       (self.server, self.client, 'host')):
            sender.send(b'datagram')
            try:
                receiver.recv(2048)
            except TimeoutError:
                raise Failure(f'a datagram did not reach {name}') from None

    def frames(self):
        """(dst, src) of the frames that came to server, and of those that gw sent back."""
        there, back = set(), set()
        for data, came_in in passed(self.capture):
            if came_in:
                there |= addresses(data, self.server)
        for port in 'host', 'mbox':
            for _, data, from_there in self.wire.captured(port):
                # What mbox passes on to host is not gw's any more.
                if not from_there and data[6:12].hex(':') != MBOX:
                    back |= addresses(data, self.client)
        return there, back

    def observe(self, note, status, **ways):
        """Rows: whether the flow is offloaded, and its frames there or back."""
        self.frames()
        before = slow_packets()
        for _ in range(ROUNDS):
            self.exchange()
        slow = slow_packets() - before
        seen = {0: 'offloaded', 2 * ROUNDS: 'not offloaded'}.get(
            slow, f'{slow} of {2 * ROUNDS} packets are not offloaded')
        yield Row(note, status, seen, None)
        for way, found in zip(('there', 'back'), self.frames()):
            if way in ways:
                problem = None if len(found) == 1 else f'frames: {found or "none"}'
                yield Row(f'{note}, {way}', ways[way], min(found, default=(None, None)), problem)


def addresses(data, sock):
    """(dst, src) of a frame if it is for a socket."""
    what = describe(data)
    if what and what[:2] == ('UDP', sock.getsockname()[0]):
        return {(data[0:6].hex(':'), data[6:12].hex(':'))}
    return set()


def established(wire, address):
    """A flow that has been offloaded if it is going to be."""
    flow = Flow(wire, address)
    # By the second time, gw knows everybody's link-layer address.
    for _ in range(2):
        flow.exchange()
    return flow


@both
def flow_later(wire, prefix):
    """flowtable"""
    fam = family(prefix)
    with flowtable(fam), gw_nexthop(352, 'dev eth0', client(fam)) as replace, \
            established(wire, prefix[1]) as flow:
        yield from flow.observe(': before', 'offloaded', back=(HOST, GW))
        replace(f'dev eth0 neigh via {fam.mbox}')
        # gw asks for mbox first.
        for _ in range(2):
            flow.exchange()
        yield from flow.observe(': override', 'offloaded', back=(MBOX, GW))
        replace('dev eth0')
        flow.exchange()
        yield from flow.observe(': removed', 'offloaded', back=(HOST, GW))


@both
def flow_counted(wire, prefix):
    """flowtable"""
    fam = family(prefix)
    with flowtable(fam), gw_nexthop(354, f'dev eth0 neigh lladdr {MBOX} counters', client(fam)), \
            established(wire, prefix[1]) as flow:
        yield from flow.observe(': counters', 'offloaded', back=(MBOX, GW))
        yield Row(': counters, packets', str(ROUNDS + 2),
                  str(stat(354 + fam.first, 'packets', 'gw')), None)


@contextlib.contextmanager
def tunnel(prefix):
    """Packets to a prefix, and back to host, go through a tunnel between gw and server."""
    fam = family(prefix)
    kind = 'ipip' if fam is IPV4 else 'ip6tnl mode ip6ip6 encaplimit none'
    for name, local, remote, route in (('gw', 1, 2, prefix), ('server', 2, 1, client(fam))):
        ip_batch(name, f'link add tun0 type {kind} local {fam.beyond}{local} '
                       f'remote {fam.beyond}{remote}', 'link set tun0 up',
                 f'route add {route} dev tun0')
    try:
        yield
    finally:
        for name in 'gw', 'server':
            ip_batch(name, 'link delete tun0')


@both
def flow_tunnel(wire, prefix):
    """flow in a tunnel"""
    fam = family(prefix)
    # It depends on the kernel whether the flowtable looks into tunnels.
    words = f'dev eth1 neigh src-lladdr {VMAC}'
    with flowtable(fam), tunnel(prefix), gw_nexthop(353, words, f'{fam.beyond}2'), \
            established(wire, prefix[1]) as flow:
        flow.frames()
        for _ in range(ROUNDS):
            flow.exchange()
        found = set()
        outer = {IPV4: socket.IPPROTO_IPIP, IPV6: socket.IPPROTO_IPV6}[fam]
        for data, came_in in passed(flow.capture):
            what = protocol_and_destination(data)
            if came_in and what and what[0] == outer:
                found.add((data[0:6].hex(':'), data[6:12].hex(':')))
        problem = None if len(found) == 1 else f'frames: {found or "none"}'
        yield Row('', (SERVER, VMAC), min(found, default=(None, None)), problem)


@both
def flow_bridge(wire, prefix):
    """flow by a bridge port"""
    ip_batch('gw', f'link add br1 address {GW_TO_SERVER} type bridge', 'link set br1 up',
             'link set eth1 master br1')
    fam, words = family(prefix), f'dev br1 neigh lladdr {SERVER} src-lladdr {VMAC}'
    try:
        with flowtable(fam):
            with gw_nexthop(355, words, prefix), established(wire, prefix[1]) as flow:
                yield from flow.observe('', 'offloaded', there=(SERVER, VMAC))
            # There the flow keeps its addresses, and nobody would count.
            with gw_nexthop(356, f'{words} counters', prefix), \
                    established(wire, prefix[1]) as flow:
                for _ in range(ROUNDS):
                    flow.exchange()
                yield Row(': counters, packets', str(ROUNDS + 2),
                          str(stat(356 + fam.first, 'packets', 'gw')), None)
    finally:
        ip_batch('gw', 'link del br1')


CASES = (flow_later, flow_counted, flow_tunnel, flow_bridge)
