"""Nexthop objects that name a neighbour, and the source that their packets have."""

import socket

from lab import (GW, HOST, IPV4, IPV6, MBOX, PORT, VMAC, Row, add_override, both, expect,
                 expect_spread, family, flow, forget, inside, ip, ip_batch, nl, not_router6, write)
from traffic import run_in


@both
def neigh_via(wire, prefix):
    """neigh via"""
    add_override(prefix, 1, f'via {family(prefix).mbox}')
    yield expect(wire.send(prefix[1]), MBOX)


def neigh_via_inet6(wire, prefix):
    """neigh via inet6"""
    add_override(prefix, 2, 'via inet6 2001:db8::9')
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
        server = f'{IPV4.beyond}2'
        ip(f'route add {server} nhid 1005')
        yield expect(wire.send(server), MBOX, VMAC, ', IPv4 route')
        ip(f'route delete {server}')


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
        known = run_in('gw', f'ip neigh show {vip} dev eth0').split()
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
def replaced(wire, prefix):
    """nexthop object"""
    fam = family(prefix)
    nexthop = f'id {fam.first + 10} via {fam.gw} dev eth0'
    add_override(prefix, 10, f'lladdr {MBOX}')
    with flow(prefix[1]) as sock:
        yield expect(wire.send_on(sock), MBOX, HOST, ': added')
        nl(f'nexthop replace {nexthop} neigh lladdr {GW} src-lladdr {VMAC}')
        yield expect(wire.send_on(sock), GW, VMAC, ': replaced')
        nl(f'nexthop replace {nexthop}')
        yield expect(wire.send_on(sock), GW, HOST, ': no override')


@both
def dead_default(wire, prefix):
    """dead default gateway"""
    fam = family(prefix)
    first = fam.first + 16
    ip(f'neigh replace {fam.lan}77 nud failed dev eth0')
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


CASES = (neigh_via, neigh_via_inet6, neigh_source, neigh_both, waited, announced, group, replaced,
         dead_default)
