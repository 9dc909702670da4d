"""Every kind of override, one at a time, and what changes it."""

import itertools
import os
import socket
import struct

import netlink
from lab import (GW, HOST, MBOX, PORT, VMAC, Failure, Row, add_override, add_route_here,
                 allowed_redirects, expect, expect_spread, forget, inside, ip, ip_batch,
                 netlink_here, nft, nl)

RTA_VIA = 18    # <linux/rtnetlink.h>


def plain(wire, prefix):
    """plain route"""
    ip(f'route add {prefix} via 192.0.2.1')
    yield expect(wire.send(prefix[1]), GW)


def via_link(wire, prefix):
    """route via link"""
    ip(f'route add {prefix} via link {MBOX} dev eth0')
    yield expect(wire.send(prefix[1]), MBOX)


def multipath(wire, prefix):
    """multipath via link"""
    ip(f'route add {prefix} nexthop via link {MBOX} dev eth0 nexthop via link {GW} dev eth0')
    yield from expect_spread(wire, prefix, ': leg', (MBOX, HOST), (GW, HOST))


def neigh_via(wire, prefix):
    """neigh via"""
    add_override(prefix, 1, 'via 192.0.2.9')
    yield expect(wire.send(prefix[1]), MBOX)


def neigh_via6(wire, prefix):
    """neigh via inet6"""
    add_override(prefix, 2, 'via inet6 2001:db8::9')
    yield expect(wire.send(prefix[1]), MBOX)


def neigh_lladdr(wire, prefix):
    """neigh lladdr"""
    add_override(prefix, 3, f'lladdr {MBOX}')
    yield expect(wire.send(prefix[1]), MBOX)


def neigh_source(wire, prefix):
    """neigh src-lladdr"""
    add_override(prefix, 4, f'src-lladdr {VMAC}')
    yield expect(wire.send(prefix[1]), GW, VMAC)


def neigh_both(wire, prefix):
    """neigh lladdr src-lladdr"""
    add_override(prefix, 5, f'lladdr {MBOX} src-lladdr {VMAC}')
    yield expect(wire.send(prefix[1]), MBOX, VMAC)


def waited(wire, prefix):
    """a packet that waited for ARP"""
    add_override(prefix, 6, f'via 192.0.2.9 src-lladdr {VMAC}')
    forget('192.0.2.9')
    frame = wire.send(prefix[1])
    arp = [what for _, what, address in frame.arp if address == '192.0.2.9']
    if not frame.problem and (arp[:1], arp[-1:]) != (['request'], ['reply']):
        frame = frame._replace(problem=f'no ARP exchange before it, but {frame.arp}')
    yield expect(frame, MBOX, VMAC)


def group(wire, prefix):
    """nexthop group"""
    nl(f'nexthop add id 7 via 192.0.2.1 dev eth0 neigh src-lladdr {VMAC}')
    nl(f'nexthop add id 8 dev eth0 neigh lladdr {MBOX}')
    ip('nexthop add id 9 group 7/8')
    ip(f'route add {prefix} nhid 9')
    yield from expect_spread(wire, prefix, ': member', (GW, VMAC), (MBOX, HOST))


def dead_gateway(wire, prefix):
    """dead gateways"""
    ip('neigh add 192.0.2.77 nud failed dev eth0')
    nl(f'nexthop add id 12 via 192.0.2.77 dev eth0 neigh lladdr {MBOX}')
    nl('nexthop add id 13 via 192.0.2.77 dev eth0 neigh via 192.0.2.1')
    ip('nexthop add id 14 group 12/13')
    ip(f'route add {prefix} nhid 14')
    yield from expect_spread(wire, prefix, ': member', (MBOX, HOST), (GW, HOST))


def dead_default(wire, prefix):
    """dead default gateway"""
    nl(f'nexthop add id 16 via 192.0.2.77 dev eth0 neigh lladdr {MBOX}')
    ip('nexthop add id 17 via 192.0.2.1 dev eth0')
    ip('route add default table 100 nhid 16')
    ip('route append default table 100 nhid 17')
    ip(f'rule add to {prefix} lookup 100')
    yield expect(wire.send(prefix[1]), MBOX)


def replaced(wire, prefix):
    """nexthop object"""
    add_override(prefix, 10, f'lladdr {MBOX}')
    with wire.flow(prefix[1]) as sock:
        yield expect(wire.send_on(sock), MBOX, HOST, ': added')
        nl(f'nexthop replace id 10 via 192.0.2.1 dev eth0 neigh lladdr {GW} src-lladdr {VMAC}')
        yield expect(wire.send_on(sock), GW, VMAC, ': replaced')
        nl('nexthop replace id 10 via 192.0.2.1 dev eth0')
        yield expect(wire.send_on(sock), GW, HOST, ': no override')


def deleted(wire, prefix):
    """route"""
    ip(f'route add {prefix} via link {MBOX} dev eth0')
    with wire.flow(prefix[1]) as sock:
        yield expect(wire.send_on(sock), MBOX, HOST, ': added')
        ip(f'route delete {prefix} via link {MBOX} dev eth0')
        yield expect(wire.send_on(sock), GW, HOST, ': deleted')


def redirect_sent(wire, prefix):
    """redirect by mbox"""
    ip(f'route add {prefix} via 192.0.2.9')
    ip_batch('mbox', f'route add {prefix} via 192.0.2.1 dev eth0')
    for note, route in ((': plain', 'via 192.0.2.1'), (': override', f'via link {GW}')):
        ip_batch('mbox', f'route replace {prefix} {route} dev eth0')
        with allowed_redirects('mbox', 'send_redirects'):
            frame = wire.send(prefix[1])
            redirects = [what for what, *_ in wire.passed if what and what[0] == 'redirect']
        if bool(redirects) != (note == ': plain'):
            frame = frame._replace(problem=f'redirects sent: {redirects}')
        yield expect(frame, MBOX, HOST, note)
    # What host was told about the plain route
    ip('route flush cache')


def redirect_received(wire, prefix):
    """redirect by gw"""
    nl(f'nexthop add id 18 via 192.0.2.1 dev eth0 neigh lladdr {GW}')
    ip(f'route add {prefix} nhid 18')
    ip(f'neigh replace 192.0.2.9 lladdr {MBOX} dev eth0')
    with allowed_redirects('host', 'accept_redirects'):
        yield expect(wire.send(prefix[1]), GW, HOST, ': before')
        wire.redirect(prefix[1], '192.0.2.9')
        frame = wire.send(prefix[1])
        seen = nl(f'route get {prefix[1]}')
        if 'via 192.0.2.9 ' not in seen:
            frame = frame._replace(problem=f'the gateway did not change: {seen}')
        yield expect(frame, GW, HOST, ': after')


def bridge_dnat(wire, prefix):
    """DNAT on the bridge"""
    ip(f'route add {prefix} via 192.0.2.1')
    ip_batch('lan', 'address add 192.0.2.100/24 dev br0',
             f'route add {prefix} via link {MBOX} dev br0')
    rules = (f'table ip nat {{ chain pre {{ type nat hook prerouting priority -100; '
             f'ip daddr {prefix[1]} udp dport {PORT} dnat to {prefix[2]}; }}; }}')
    with inside('lan'):
        with open('/proc/sys/net/bridge/bridge-nf-call-iptables', 'w', encoding='ascii') as file:
            file.write('1')
        nft(rules)
    behind = 'mbox', prefix[2]
    yield expect(wire.send(prefix[1], behind=behind), MBOX, HOST)
    # The frame keeps its source: it does not matter whose address that is.
    ip_batch('lan', f'route delete {prefix}')
    for number, note, neigh in ((16, ': lladdr, strict', f'lladdr {MBOX}'),
                                (17, ': via, strict', 'via 192.0.2.9')):
        with inside('lan'):
            netlink_here(None, f'nexthop add id {number} dev br0 neigh {neigh} preserve strict')
        ip_batch('lan', 'neigh flush dev br0', f'route replace {prefix} nhid {number}')
        # The first one waits for the neighbour.
        yield expect(wire.send(prefix[1], behind=behind), MBOX, HOST, f'{note}, first')
        yield expect(wire.send(prefix[1], behind=behind), MBOX, HOST, note)
    with inside('lan'):
        nft('flush ruleset')


def route_get(_, prefix):
    """ip route get"""
    ip(f'route add {prefix} via link {MBOX} dev eth0')
    expected = f'{prefix[1]} via link {MBOX} dev eth0'
    yield Row('', expected, ip(f'route get {prefix[1]}').partition(' src ')[0], None)


def via_twice(_, prefix):
    """two RTA_VIA"""
    ways = {'via 192.0.2.1': struct.pack('=H4s', socket.AF_INET, socket.inet_aton('192.0.2.1')),
            f'via link {MBOX}': struct.pack('=H', socket.AF_PACKET) +
                                bytes.fromhex(MBOX.replace(':', ''))}
    for first, last in itertools.permutations(ways):
        with inside('host'):
            device = struct.pack('=I', socket.if_nametoindex('eth0'))
            add_route_here(prefix, (netlink.RTA_OIF, device), (RTA_VIA, ways[first]),
                           (RTA_VIA, ways[last]))
        expected = f'{prefix} {last} dev eth0 proto static'
        yield Row(f': {last.split()[1]}', expected, ip(f'route show {prefix}').strip(), None)
        ip(f'route delete {prefix} {last}')


def netlink_get(_, prefix):
    """netlink.py"""
    add_override(prefix, 11, 'via 192.0.2.9')
    words = 'via 192.0.2.1 dev eth0 neigh via 192.0.2.9'
    yield Row(' route get', f'{prefix[1]} {words}', nl(f'route get {prefix[1]}'), None)
    yield Row(' nexthop show', f'id 11 {words}', nl('nexthop show id 11'), None)


def refused_by_hardware(_, prefix):
    """netdevsim"""
    # It programs the routes of the namespace that it is made in.
    with open('/sys/bus/netdevsim/new_device', 'w', encoding='ascii') as file:
        file.write('1 1')
    device, = os.listdir('/sys/bus/netdevsim/devices/netdevsim1/net')
    ip_batch(None, f'address add 192.0.2.2/24 dev {device}', f'link set {device} up')
    expected = 'netdevsim: Neighbour overrides are not supported'
    for note, command, line in (
            (' route', ip_batch, f'route add {prefix} via link {MBOX} dev {device}'),
            (' nexthop', netlink_here, f'nexthop add id 15 dev {device} neigh lladdr {MBOX}')):
        try:
            seen = command(None, line) or 'not refused'
        except (Failure, netlink.KernelError) as error:
            seen = str(error)
        yield Row(note, expected, expected if expected in seen else seen, None)
    with open('/sys/bus/netdevsim/del_device', 'w', encoding='ascii') as file:
        file.write('1')


CASES = (plain, via_link, multipath, neigh_via, neigh_via6, neigh_lladdr, neigh_source,
         neigh_both, waited, group, dead_gateway, dead_default, replaced, deleted,
         redirect_sent, redirect_received, bridge_dnat, route_get, via_twice,
         netlink_get, refused_by_hardware)
