"""IPv6 neighbour discovery: who is asked, which router is chosen, and what no override changes."""

import collections
import contextlib
import select
import socket
import struct
import time
from ipaddress import ip_address

from lab import (DEADLINE, GW, HOST, IPV6, MBOX, VMAC, Row, add_override, expect, flow, inside, ip,
                 ip_batch, know, only6, run_in, sysctls, wait_until, write)
from traffic import NODE_BELOW, another_host, connect_node, expect_delivery

# Types of ICMPv6 messages, of <linux/icmpv6.h>
KINDS = {133: 'RS', 134: 'RA', 135: 'NS', 136: 'NA', 143: 'MLD'}
# Preferences in a router advertisement (RFC 4191)
HIGH, LOW = 0x08, 0x18
# kind, link-layer addresses, IP source, target (or what is there), whether it tells a
# link-layer address
Message = collections.namedtuple('Message', 'kind dst src ip_src target tells')


# --- messages ---

def message(data):
    """The Message in a frame, if it is one."""
    if data[12:14] != b'\x86\xdd':
        return None
    header, place = data[20], 54
    if header == socket.IPPROTO_HOPOPTS:
        header, place = data[place], place + 8 * (data[place + 1] + 1)
    if header != socket.IPPROTO_ICMPV6 or data[place] not in KINDS:
        return None
    ip_src, target = (socket.inet_ntop(socket.AF_INET6, data[start:start + 16].ljust(16))
                      for start in (22, place + 8))
    return Message(KINDS[data[place]], data[0:6].hex(':'), data[6:12].hex(':'), ip_src, target,
                   len(data) >= place + 32)


def messages(wire, kind, target=None, port='host', seconds=DEADLINE):
    """The messages of a kind that a host sends, when the first one is there."""
    found, deadline = [], time.monotonic() + seconds
    while not found and select.select([wire.captures[port]], [], [],
                                      max(0, deadline - time.monotonic()))[0]:
        found += [what for _, data, from_host in wire.captured(port)
                  for what in [message(data)]
                  if from_host and what and what.kind == kind and target in (None, what.target)]
    return found


def link_local(mac):
    """The link-local address that the kernel makes of a link-layer address."""
    return str(ip_address(b'\xfe\x80' + bytes(6) + bytes([int(mac[:2], 16) ^ 2]) +
                          bytes.fromhex(f'{mac[3:8]}:ff:fe:{mac[9:]}'.replace(':', ''))))


def send_message(name, dst, body):
    """Send an ICMPv6 message from the link-local address of a host's eth0."""
    with inside(name):
        raw = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
        device = socket.if_nametoindex('eth0')
    with raw:
        for option in socket.IPV6_UNICAST_HOPS, socket.IPV6_MULTICAST_HOPS:
            raw.setsockopt(socket.IPPROTO_IPV6, option, 255)
        raw.bind((link_local(lladdr_of(name)), 0, 0, device))
        raw.sendto(body, (dst, 0, 0, device))


def lladdr_of(name):
    """The link-layer address of a host's eth0."""
    return {'gw': GW, 'mbox': MBOX, 'node': NODE_BELOW}[name]


def advertisement(preference):
    """A router advertisement: hop limit, flags, lifetime and no times."""
    return struct.pack('!BBHBBHII', 134, 0, 0, 64, preference, 1800, 0, 0)


# --- proxies ---

@only6
def proxied(wire, prefix):
    """proxy NDP"""
    add_override(prefix, 400, f'lladdr {GW} src-lladdr {VMAC}')
    # Who asks is on-link, but packets to it are not sent to it.
    ip(f'route add {IPV6.mbox} via link {GW} dev eth0')
    ip(f'neigh add proxy {prefix[1]} dev eth0')
    ip_batch('mbox', f'route add {prefix[1]} dev eth0')
    wire.forget()
    with sysctls('host', {f'net/ipv6/conf/{name}/proxy_ndp': 1 for name in ('all', 'eth0')}):
        with flow(prefix[1], 'mbox') as sock:
            sock.send(b'to whom it may concern')
        told, = messages(wire, 'NA', str(prefix[1])) or [None]
        yield Row(': advertised', f'NA to {MBOX} from {HOST}, with an address',
                  f'{told.kind} to {told.dst} from {told.src}{", with an address" * told.tells}'
                  if told else 'nothing', None)
        with flow(prefix[1], 'mbox') as sock:
            yield expect_delivery(wire, sock, (GW, VMAC), ': packet')
    ip(f'neigh del proxy {prefix[1]} dev eth0')
    ip(f'route delete {IPV6.mbox} via link {GW} dev eth0')


# --- routers ---

def await_routers(number):
    """Wait until node has default routes."""
    wait_until(lambda: run_in('node', 'ip -6 route show default').count('default') == number,
               f'{number} routers of node')


@only6
def preferred_router(wire, prefix):
    """routers"""
    with another_host(wire):
        with inside('node'):
            write('/proc/sys/net/ipv6/conf/all/forwarding', 0)
        connect_node('eth0', fam=IPV6)
        for number, (name, preference) in enumerate((('mbox', LOW), ('gw', HIGH)), 1):
            send_message(name, f'{IPV6.lan}5', advertisement(preference))
            await_routers(number)

        def to_router(note, lladdr):
            with flow(prefix[1], 'node') as sock:
                return expect_delivery(wire, sock, (lladdr, NODE_BELOW), note, 'node')

        elsewhere = ('', None), (', override',
                                 f'route add {prefix[2]} via link {MBOX} dev eth0')
        for note, line in elsewhere:
            if line:
                ip_batch('node', line)
            yield to_router(f'{note}', GW)
            ip_batch('node', f'neigh replace {link_local(GW)} nud failed dev eth0')
            yield to_router(f'{note}, dead', MBOX)
            ip_batch('node', f'neigh replace {link_local(GW)} lladdr {GW} nud reachable dev eth0')
            yield to_router(f'{note}, back', GW)


@contextlib.contextmanager
def two_routers(prefix, first):
    """Two nexthops on host for a prefix, which are probed as often as there are packets."""
    for action, number in ('add', first), ('append', first + 1):
        ip(f'nexthop add id {number} via {IPV6.gw} dev eth0')
        ip(f'-6 route {action} default table 401 nhid {number}')
    ip(f'-6 rule add to {prefix} lookup 401')
    with sysctls('host', {'net/ipv6/conf/eth0/router_probe_interval': 0,
                          'net/ipv6/conf/all/forwarding': 0}):
        yield
    ip(f'-6 rule delete to {prefix} lookup 401')


@only6
def probed(wire, prefix):
    """probed"""
    gone, lost, first = f'{IPV6.lan}77', f'{IPV6.lan}78', IPV6.first + 401
    # note, gateway, override, who gets the packet, who is asked for
    kinds = ((': plain', gone, '', GW, {gone}),
             (': via', IPV6.mbox, f'neigh via {gone}', GW, {gone}),
             (': via, incomplete', gone, f'neigh via {IPV6.mbox}', MBOX, {IPV6.mbox}),
             (': lladdr', gone, f'neigh lladdr {MBOX}', MBOX, set()),
             (': fallback', gone, f'neigh via {lost} fallback', GW, {gone}))
    with two_routers(prefix, first):
        for note, gateway, neigh, dst, asked in kinds:
            ip(f'nexthop replace id {first} via {gateway} dev eth0 {neigh}')
            for address in gone, lost:
                ip(f'neigh replace {address} nud failed dev eth0')
            know(IPV6.gw, IPV6.mbox)
            if asked == {IPV6.mbox}:
                ip(f'neigh replace {IPV6.mbox} nud incomplete dev eth0')
            # That has to be some time ago.
            time.sleep(0.05)
            wire.forget()
            # One lookup only: that for the source would be the one that probes.
            with flow(prefix[1], source=IPV6.host) as sock:
                time.sleep(0.1)
                targets = {told.target for told in messages(wire, 'NS', seconds=0)}
                # Hosts of cases before are asked for as well.
                targets &= {gone, lost, IPV6.mbox, IPV6.gw}
                frame = wire.send_on(sock)
            if not frame.problem and targets != asked:
                frame = frame._replace(problem=f'asked for: {targets}')
            yield expect(frame, dst, HOST, note)


# --- optimistic addresses ---

@contextlib.contextmanager
def optimistic_node(wire):
    """node, with an address that is not known to be its own yet; yields it."""
    conf, address = '/proc/sys/net/ipv6/conf/eth0', f'{IPV6.lan}66'
    with another_host(wire):
        with inside('node'):
            write('/proc/sys/net/ipv6/conf/all/forwarding', 0)
        connect_node('eth0', fam=IPV6)
        ip_batch('node', f'route add default via {IPV6.gw} dev eth0',
                 f'neigh replace {IPV6.gw} lladdr {GW} dev eth0')
        with inside('node'):
            for name, value in (('accept_dad', 1), ('dad_transmits', 30), ('optimistic_dad', 1),
                                ('use_optimistic', 1)):
                write(f'{conf}/{name}', value)
        ip_batch('node', f'address add {address}/64 dev eth0 optimistic')
        yield address


@only6
def optimistic(wire, prefix):
    """optimistic"""
    nexthop = f'id {IPV6.first + 404} via {IPV6.mbox} dev eth0'
    own = f'{IPV6.lan}5', link_local(NODE_BELOW)
    with optimistic_node(wire) as address:
        ip_batch('node', f'nexthop add {nexthop}')
        ip_batch('node', f'route add {prefix} nhid {IPV6.first + 404}')
        # The neighbour is not known: a router is asked to forward it, unless packets do not
        # go to the neighbour.
        for note, neigh, dst in (': plain', '', GW), (': lladdr', f'neigh lladdr {MBOX}', MBOX):
            ip_batch('node', f'nexthop replace {nexthop} {neigh}')
            ip_batch('node', f'neigh replace {IPV6.mbox} nud failed dev eth0')
            with flow(prefix[1], 'node', source=address) as sock:
                yield expect_delivery(wire, sock, (dst, NODE_BELOW), note, 'node')
        for note, neigh, gone, expected in (
                (': via', '', (), own[1]),
                (': source', f'src-lladdr {VMAC}', (), own[1]),
                (': no link-local', f'src-lladdr {VMAC}', own[1:], own[0]),
                (': no other', f'src-lladdr {VMAC}', own[:1], None)):
            ip_batch('node', f'nexthop replace {nexthop} neigh via {IPV6.mbox} {neigh}')
            ip_batch('node', *(f'address delete {one}/64 dev eth0' for one in gone),
                     f'neigh flush to {IPV6.mbox} dev eth0 nud all')
            wire.forget()
            with flow(prefix[1], 'node', source=address) as sock:
                sock.send(b'who is there?')
            asked = {f'{ask.ip_src}{", with an address" * ask.tells}'
                     for ask in messages(wire, 'NS', IPV6.mbox, 'node', 1)}
            yield Row(note, f'{expected}, with an address' if expected else 'nobody',
                      ' '.join(asked) or 'nobody', None)


CASES = (proxied, preferred_router, probed, optimistic)
