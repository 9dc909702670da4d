"""Every kind of override, one at a time, and what changes it."""

import contextlib
import itertools
import os
import socket
import struct
import subprocess

import netlink
from lab import (GW, HOST, MBOX, PORT, VMAC, Row, add_override, add_route_here, allowed_redirects,
                 expect, expect_spread, forget, inside, ip, ip_batch, netlink_here, nft, nl,
                 refusal)

RTA_VIA = 18    # <linux/rtnetlink.h>
VIP = '192.0.2.7'   # of the virtual router


def write(path, value):
    """Write a file of the kernel's."""
    with open(path, 'w', encoding='ascii') as file:
        file.write(f'{value}')


def ip_in(name, line):
    """Run a line of 'ip' in a namespace; return what it prints."""
    command = ['ip', *(['-n', name] if name else []), *line.split()]
    return subprocess.run(command, text=True, capture_output=True, check=True).stdout


def plain(wire, prefix):
    """plain route"""
    ip(f'route add {prefix} via 192.0.2.1')
    yield expect(wire.send(prefix[1]), GW)


def via_link(wire, prefix):
    """route via link"""
    yield Row(': to itself', "Link-layer address is the device's own",
              refusal('host', f'route add {prefix} via link {HOST} dev eth0'), None)
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


def announced(wire, prefix):
    """own source"""
    add_override(prefix, 15, f'src-lladdr {VMAC}')
    ip(f'address add {VIP}/32 dev eth0')
    for announce in 0, 1:
        forget('192.0.2.1')
        ip_batch('gw', f'neigh replace {VIP} lladdr {VMAC} nud reachable dev eth0')
        with inside('host'):
            write('/proc/sys/net/ipv4/conf/eth0/arp_announce', announce)
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with sock:
            sock.bind((VIP, 0))
            sock.connect((str(prefix[1]), PORT))
            yield expect(wire.send_on(sock), GW, VMAC, f', arp_announce {announce}')
        asked = {f'{socket.inet_ntoa(data[28:32])} at {data[22:28].hex(":")}'
                 for what, data, from_host in wire.passed
                 if from_host and what == ('ARP', 'request', '192.0.2.1')}
        known = ip_in('gw', f'neigh show {VIP} dev eth0').split()
        yield Row(f', announced {announce}', f'192.0.2.2 at {HOST}; gw knows {VIP} at {VMAC}',
                  f'{", ".join(sorted(asked))}; gw knows {known[0]} at {known[2]}', None)
    with inside('host'):
        write('/proc/sys/net/ipv4/conf/eth0/arp_announce', 0)
    ip(f'address delete {VIP}/32 dev eth0')
    ip_batch('gw', f'neigh delete {VIP} dev eth0')


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
    # A redirect now would keep the next one back: their rate is limited.
    for note, route in ((': override', f'via link {GW}'), (': plain', 'via 192.0.2.1')):
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
        if 'via 192.0.2.1 ' not in seen:
            frame = frame._replace(problem=f'the gateway changed: {seen}')
        yield expect(frame, GW, HOST, ': after')


def bridge_dnat(wire, prefix):
    """DNAT on the bridge"""
    ip(f'route add {prefix} via 192.0.2.1')
    ip_batch('lan', 'address add 192.0.2.100/24 dev br0',
             f'route add {prefix} via link {MBOX} dev br0')
    rules = (f'table ip nat {{ chain pre {{ type nat hook prerouting priority -100; '
             f'ip daddr {prefix[1]} udp dport {PORT} dnat to {prefix[2]}; }}; }}')
    with inside('lan'):
        write('/proc/sys/net/bridge/bridge-nf-call-iptables', 1)
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
    # It programs the routes of the namespace that it is made in: here also others'.
    ip_batch(None, 'link add other0 type veth peer name other1', 'link set other1 up',
             'link set other0 up')
    netlink_here(None, f'nexthop add id 15 dev other0 neigh lladdr {MBOX}')
    routes = f'{prefix[0]} nhid 15', f'{prefix[1]} via link {MBOX} dev other0'
    ip_batch(None, *(f'route add {route}' for route in routes))
    ports = '/sys/bus/netdevsim/devices/netdevsim1/net'
    try:
        write('/sys/bus/netdevsim/new_device', '1 1')
        yield Row(' beside others', 'made', 'made' if os.path.exists(ports) else 'not made', None)
        done = subprocess.run(['devlink', 'dev', 'reload', 'netdevsim/netdevsim1'], text=True,
                              capture_output=True, check=False)
        yield Row(' reloaded', 'reloaded', done.stderr.strip() or 'reloaded', None)
        device, = os.listdir(ports)
        ip_batch(None, f'address add 192.0.2.2/24 dev {device}', f'link set {device} up')
        for name, note, expected in (
                (device, '', 'netdevsim: Neighbour overrides are not supported'),
                ('other0', ', other', 'not refused')):
            yield Row(f' route{note}', expected,
                      refusal(None, f'route add {prefix[2]} via link {MBOX} dev {name}'), None)
            yield Row(f' nexthop{note}', expected,
                      refusal(None, f'nexthop add id 16 dev {name} neigh lladdr {MBOX}'), None)
    finally:
        with contextlib.suppress(OSError):
            write('/sys/bus/netdevsim/del_device', '1')
        ip_batch(None, 'link delete other0')


CASES = (plain, via_link, multipath, neigh_via, neigh_via6, neigh_lladdr, neigh_source,
         neigh_both, waited, announced, group, dead_gateway, dead_default, replaced, deleted,
         redirect_sent, redirect_received, bridge_dnat, route_get, via_twice,
         netlink_get, refused_by_hardware)
