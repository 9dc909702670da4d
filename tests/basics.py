"""Every kind of override, one at a time, and what changes it."""

import contextlib
import itertools
import os
import socket
import struct
import subprocess

import netlink
from lab import (GW, HOST, IPV4, IPV6, MBOX, PORT, VMAC, Row, add_override, add_route_here,
                 allowed_redirects, beside, both, expect, expect_spread, family, forget, inside,
                 ip, ip_batch, netlink_here, nft, nl, not_router6, refusal)

RTA_VIA = 18    # <linux/rtnetlink.h>


def write(path, value):
    """Write a file of the kernel's."""
    with open(path, 'w', encoding='ascii') as file:
        file.write(f'{value}')


def ip_in(name, line):
    """Run a line of 'ip' in a namespace; return what it prints."""
    command = ['ip', *(['-n', name] if name else []), *line.split()]
    return subprocess.run(command, text=True, capture_output=True, check=True).stdout


@both
def plain(wire, prefix):
    """plain route"""
    ip(f'route add {prefix} via {family(prefix).gw}')
    yield expect(wire.send(prefix[1]), GW)


@both
def via_link(wire, prefix):
    """route via link"""
    yield Row(': to itself', "Link-layer address is the device's own",
              refusal('host', f'route add {prefix} via link {HOST} dev eth0'), None)
    ip(f'route add {prefix} via link {MBOX} dev eth0')
    yield expect(wire.send(prefix[1]), MBOX)


@both
def multipath(wire, prefix):
    """multipath via link"""
    route = f'{prefix} nexthop via link {MBOX} dev eth0 nexthop via link {GW} dev eth0'
    if family(prefix) is IPV6:
        yield Row('', 'IPv6 multipath route can not have a link-layer nexthop',
                  refusal('host', f'route add {route}'), None)
        return
    ip(f'route add {route}')
    yield from expect_spread(wire, prefix, ': leg', (MBOX, HOST), (GW, HOST))


@both
def neigh_via(wire, prefix):
    """neigh via"""
    if family(prefix) is IPV6:
        yield Row(': inet', 'IPv6 nexthop can not have an IPv4 neighbour',
                  refusal('host', 'nexthop add id 1001 dev eth0 via 2001:db8::1 '
                                  'neigh via 192.0.2.9'), None)
    add_override(prefix, 1, f'via {family(prefix).mbox}')
    yield expect(wire.send(prefix[1]), MBOX)


def neigh_via_inet6(wire, prefix):
    """neigh via inet6"""
    add_override(prefix, 2, 'via inet6 2001:db8::9')
    yield expect(wire.send(prefix[1]), MBOX)


@both
def neigh_lladdr(wire, prefix):
    """neigh lladdr"""
    add_override(prefix, 3, f'lladdr {MBOX}')
    yield expect(wire.send(prefix[1]), MBOX)


@both
def neigh_source(wire, prefix):
    """neigh src-lladdr"""
    add_override(prefix, 4, f'src-lladdr {VMAC}')
    yield expect(wire.send(prefix[1]), GW, VMAC)


@both
def neigh_both(wire, prefix):
    """neigh lladdr src-lladdr"""
    add_override(prefix, 5, f'lladdr {MBOX} src-lladdr {VMAC}')
    yield expect(wire.send(prefix[1]), MBOX, VMAC)
    if family(prefix) is IPV6:
        prefix = beside(prefix)
        ip(f'route replace {prefix} nhid 1005')
        yield expect(wire.send(prefix[1]), MBOX, VMAC, ', IPv4 route')


@both
def waited(wire, prefix):
    """waited for a neighbour"""
    mbox = family(prefix).mbox
    add_override(prefix, 6, f'via {mbox} src-lladdr {VMAC}')
    forget(mbox)
    frame = wire.send(prefix[1])
    arp = [what for _, what, address in frame.arp if address == mbox]
    if not frame.problem and (arp[:1], arp[-1:]) != (['request'], ['reply']):
        frame = frame._replace(problem=f'nobody asked and answered before it, but {frame.arp}')
    yield expect(frame, MBOX, VMAC)


def asking(frame):
    """Who asks for the link-layer address of whom, and of which address."""
    what, data, from_host = frame
    if not from_host or not what or what[1] != 'request':
        return None
    if what[0] == 'ARP':
        return f'{socket.inet_ntoa(data[28:32])} at {data[22:28].hex(":")}', what[2]
    return f'{socket.inet_ntop(IPV6.number, data[22:38])} at {data[80:86].hex(":")}', what[2]


@both
def announced(wire, prefix):
    """own source"""
    fam = family(prefix)
    vip, sysctl = f'{fam.lan}7', '/proc/sys/net/ipv4/conf/eth0/arp_announce'
    add_override(prefix, 15, f'src-lladdr {VMAC}')
    ip(f'address add {vip} dev eth0')
    for announce in (0, 1) if fam is IPV4 else (0,):
        note = f' {announce}' if fam is IPV4 else ''
        forget(fam.gw)
        ip_batch('gw', f'neigh replace {vip} lladdr {VMAC} nud reachable dev eth0')
        with inside('host'):
            write(sysctl, announce)
            sock = socket.socket(fam.number, socket.SOCK_DGRAM)
        with sock:
            sock.bind((vip, 0))
            sock.connect((str(prefix[1]), PORT))
            yield expect(wire.send_on(sock), GW, VMAC, note and f', arp_announce{note}')
        asked = {who for who, whom in filter(None, map(asking, wire.passed)) if whom == fam.gw}
        known = ip_in('gw', f'neigh show {vip} dev eth0').split()
        yield Row(f', announced{note}', f'{fam.link}2 at {HOST}; gw knows {vip} at {VMAC}',
                  f'{", ".join(sorted(asked))}; gw knows {known[0]} at {known[2]}', None)
    with inside('host'):
        write(sysctl, 0)
    ip(f'address delete {vip} dev eth0')
    ip_batch('gw', f'neigh delete {vip} dev eth0')


@both
def group(wire, prefix):
    """nexthop group"""
    fam = family(prefix)
    first = fam.first + 7
    nl(f'nexthop add id {first} via {fam.gw} dev eth0 neigh src-lladdr {VMAC}')
    nl(f'{fam.option} nexthop add id {first + 1} dev eth0 neigh lladdr {MBOX}')
    ip(f'nexthop add id {first + 2} group {first}/{first + 1}')
    ip(f'route add {prefix} nhid {first + 2}')
    yield from expect_spread(wire, prefix, ': member', (GW, VMAC), (MBOX, HOST))


@both
def dead_gateway(wire, prefix):
    """dead gateways"""
    fam = family(prefix)
    first = fam.first + 12
    ip(f'neigh add {fam.lan}77 nud failed dev eth0')
    nl(f'nexthop add id {first} via {fam.lan}77 dev eth0 neigh lladdr {MBOX}')
    nl(f'nexthop add id {first + 1} via {fam.lan}77 dev eth0 neigh via {fam.gw}')
    ip(f'nexthop add id {first + 2} group {first}/{first + 1}')
    ip(f'route add {prefix} nhid {first + 2}')
    yield from expect_spread(wire, prefix, ': member', (MBOX, HOST), (GW, HOST))


@both
def dead_default(wire, prefix):
    """dead default gateway"""
    fam = family(prefix)
    first = fam.first + 16
    nl(f'nexthop add id {first} via {fam.lan}77 dev eth0 neigh lladdr {MBOX}')
    ip(f'nexthop add id {first + 1} via {fam.gw} dev eth0')
    ip(f'{fam.option} route add default table 100 nhid {first}')
    ip(f'{fam.option} route append default table 100 nhid {first + 1}')
    ip(f'{fam.option} rule add to {prefix} lookup 100')
    # A router of IPv6 does not look who is alive.
    with not_router6('host'):
        yield expect(wire.send(prefix[1]), MBOX)
        if fam is IPV6:
            nl(f'nexthop replace id {first} via {fam.lan}77 dev eth0')
            yield expect(wire.send(prefix[1]), GW, HOST, ': plain')
            nl(f'nexthop replace id {first} via {fam.mbox} dev eth0 neigh via {fam.lan}77')
            yield expect(wire.send(prefix[1]), GW, HOST, ': via')


@both
def replaced(wire, prefix):
    """nexthop object"""
    fam = family(prefix)
    nexthop = f'id {fam.first + 10} via {fam.gw} dev eth0'
    add_override(prefix, 10, f'lladdr {MBOX}')
    with wire.flow(prefix[1]) as sock:
        yield expect(wire.send_on(sock), MBOX, HOST, ': added')
        nl(f'nexthop replace {nexthop} neigh lladdr {GW} src-lladdr {VMAC}')
        yield expect(wire.send_on(sock), GW, VMAC, ': replaced')
        nl(f'nexthop replace {nexthop}')
        yield expect(wire.send_on(sock), GW, HOST, ': no override')


@both
def deleted(wire, prefix):
    """route"""
    ip(f'route add {prefix} via link {MBOX} dev eth0')
    with wire.flow(prefix[1]) as sock:
        yield expect(wire.send_on(sock), MBOX, HOST, ': added')
        ip(f'route delete {prefix} via link {MBOX} dev eth0')
        yield expect(wire.send_on(sock), GW, HOST, ': deleted')


@both
def redirect_sent(wire, prefix):
    """redirect by mbox"""
    fam = family(prefix)
    ip(f'route add {prefix} via {fam.mbox}')
    ip_batch('mbox', f'route add {prefix} via {fam.link}1 dev eth0')
    # A redirect now would keep the next one back: their rate is limited.
    for note, route in ((': override', f'via link {GW}'), (': plain', f'via {fam.link}1')):
        ip_batch('mbox', f'route replace {prefix} {route} dev eth0')
        with allowed_redirects('mbox', 'send_redirects', fam):
            frame = wire.send(prefix[1])
            redirects = [what for what, *_ in wire.passed if what and what[0] == 'redirect']
        if bool(redirects) != (note == ': plain'):
            frame = frame._replace(problem=f'redirects sent: {redirects}')
        yield expect(frame, MBOX, HOST, note)
    # What host was told about the plain route
    ip('route flush cache')


@both
def redirect_received(wire, prefix):
    """redirect by gw"""
    fam = family(prefix)
    number, mbox = fam.first + 18, f'{fam.link}9'
    nl(f'nexthop add id {number} via {fam.link}1 dev eth0 neigh lladdr {GW}')
    ip(f'route add {prefix} nhid {number}')
    ip(f'neigh replace {mbox} lladdr {MBOX} dev eth0')
    with allowed_redirects('host', 'accept_redirects', fam):
        yield expect(wire.send(prefix[1]), GW, HOST, ': before')
        wire.redirect(prefix[1], mbox)
        frame = wire.send(prefix[1])
        seen = nl(f'route get {prefix[1]}')
        # An IPv6 gateway changes, but the override is kept.
        if f'via {mbox if fam is IPV6 else fam.gw} ' not in seen:
            frame = frame._replace(problem=f'not the gateway: {seen}')
        yield expect(frame, GW, HOST, ': after')


@both
def bridge_dnat(wire, prefix):
    """DNAT on the bridge"""
    fam = family(prefix)
    table, sysctl = ('ip', 'iptables') if fam is IPV4 else ('ip6', 'ip6tables')
    ip(f'route add {prefix} via {fam.gw}')
    ip_batch('lan', f'address add {fam.lan}100/{fam.length} dev br0',
             f'route add {prefix} via link {MBOX} dev br0')
    rules = (f'table {table} nat {{ chain pre {{ type nat hook prerouting priority -100; '
             f'{table} daddr {prefix[1]} udp dport {PORT} dnat to {prefix[2]}; }}; }}')
    with inside('lan'):
        write(f'/proc/sys/net/bridge/bridge-nf-call-{sysctl}', 1)
        nft(rules)
    behind = 'mbox', prefix[2]
    yield expect(wire.send(prefix[1], behind=behind), MBOX, HOST)
    # The frame keeps its source: it does not matter whose address that is.
    ip_batch('lan', f'route delete {prefix}')
    for number, note, neigh in ((16, ': lladdr, strict', f'lladdr {MBOX}'),
                                (17, ': via, strict', f'via {fam.mbox}')):
        number += fam.first
        with inside('lan'):
            netlink_here(None, f'{fam.option} nexthop add id {number} dev br0 '
                               f'neigh {neigh} preserve strict')
        ip_batch('lan', 'neigh flush dev br0', f'route replace {prefix} nhid {number}')
        # The first one waits for the neighbour.
        yield expect(wire.send(prefix[1], behind=behind), MBOX, HOST, f'{note}, first')
        yield expect(wire.send(prefix[1], behind=behind), MBOX, HOST, note)
    with inside('lan'):
        nft('flush ruleset')


@both
def route_get(_, prefix):
    """ip route get"""
    ip(f'route add {prefix} via link {MBOX} dev eth0')
    expected = f'{prefix[1]} via link {MBOX} dev eth0'
    # IPv6 says that the packet is from nobody yet.
    seen = ip(f'route get {prefix[1]}').replace(' from :: ', ' ')
    yield Row('', expected, seen.partition(' src ')[0].partition(' proto ')[0], None)


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


@both
def netlink_get(_, prefix):
    """netlink.py"""
    fam = family(prefix)
    number, inet6 = fam.first + 11, 'inet6 ' * (fam is IPV6)
    add_override(prefix, 11, f'via {fam.mbox}')
    words = f'via {fam.gw} dev eth0 neigh via {inet6}{fam.mbox}'
    yield Row(' route get', f'{prefix[1]} {words}', nl(f'route get {prefix[1]}'), None)
    yield Row(' nexthop show', f'id {number} {words}', nl(f'nexthop show id {number}'), None)


@both
def refused_by_hardware(_, prefix):
    """netdevsim"""
    # It programs the routes of the namespace that it is made in: here also others'.
    ip_batch(None, 'link add other0 type veth peer name other1', 'link set other1 up',
             'link set other0 up')
    fam = family(prefix)
    first = fam.first + 15
    netlink_here(None, f'{fam.option} nexthop add id {first} dev other0 neigh lladdr {MBOX}')
    routes = f'{prefix[0]} nhid {first}', f'{prefix[1]} via link {MBOX} dev other0'
    ip_batch(None, *(f'route add {route}' for route in routes))
    ports = '/sys/bus/netdevsim/devices/netdevsim1/net'
    try:
        write('/sys/bus/netdevsim/new_device', '1 1')
        yield Row(' beside others', 'made', 'made' if os.path.exists(ports) else 'not made', None)
        done = subprocess.run(['devlink', 'dev', 'reload', 'netdevsim/netdevsim1'], text=True,
                              capture_output=True, check=False)
        yield Row(' reloaded', 'reloaded', done.stderr.strip() or 'reloaded', None)
        device, = os.listdir(ports)
        ip_batch(None, f'address add {fam.host}/{fam.length} dev {device}', f'link set {device} up')
        for name, note, expected in (
                (device, '', 'netdevsim: Neighbour overrides are not supported'),
                ('other0', ', other', 'not refused')):
            yield Row(f' route{note}', expected,
                      refusal(None, f'route add {prefix[2]} via link {MBOX} dev {name}'), None)
            yield Row(f' nexthop{note}', expected,
                      refusal(None, f'{fam.option} nexthop add id {first + 1} dev {name} '
                                    f'neigh lladdr {MBOX}'), None)
    finally:
        with contextlib.suppress(OSError):
            write('/sys/bus/netdevsim/del_device', '1')
        ip_batch(None, 'link delete other0')


CASES = (plain, via_link, multipath, neigh_via, neigh_via_inet6, neigh_lladdr, neigh_source,
         neigh_both, waited, announced, group, dead_gateway, dead_default, replaced, deleted,
         redirect_sent, redirect_received, bridge_dnat, route_get, via_twice,
         netlink_get, refused_by_hardware)
