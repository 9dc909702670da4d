"""Packets of others: forwarded, balanced by IPVS, translated on a bridge."""

import contextlib
import socket

from lab import (GW, HOST, IPV4, IPV6, MBOX, PORT, VMAC, Row, add_override, both, expect, family,
                 flow, inside, ip, ip_batch, know, netlink_here, nft, nl, only6, write)
from traffic import (BOTH, IP_PMTUDISC_DONT, MTU_DISCOVER, SOL_UDP, UDP_SEGMENT, another_host,
                     connect_node, deliver, expect_delivery, expect_frames, frames_to, netlink_in,
                     run_in, segmentation_off)


@both
def host_forwards(_, prefix):
    """host forwards"""
    fam = family(prefix)
    number, mbox = fam.first + 213, fam.mbox
    neigh = f'lladdr {GW} src-lladdr {VMAC}'
    # IPv6 does not say where the packet comes from.
    comes = f' from {mbox}' * (fam is IPV4)
    nl(f'nexthop add id {number} via {fam.mbox} dev eth0 neigh {neigh}')
    ip(f'route add {prefix[1]} nhid {number}')
    ip(f'route add {prefix[2]} via link {GW} dev eth0')
    yield Row(': netlink.py', f'{prefix[1]}{comes} via {mbox} dev eth0 neigh {neigh}',
              nl(f'route get {prefix[1]} from {mbox} iif eth0'), None)
    line = ' '.join(ip(f'route get {prefix[2]} from {mbox} iif eth0').split())
    yield Row(': ip route get', f'{prefix[2]}{comes} via link {GW} dev eth0',
              line.partition(' cache')[0].partition(' metric ')[0], None)


@both
def mbox_forwards(wire, prefix):
    """mbox forwards"""
    fam = family(prefix)
    ip(f'route add {prefix} via {fam.mbox}')
    # Nobody has the gateway's address.
    first = fam.first + 214
    for number, address, metrics in (first, prefix[1], ''), (first + 2, prefix[2], 'mtu 600'):
        netlink_in('mbox', f'nexthop add id {number} via {fam.lan}77 dev eth0 '
                           f'neigh lladdr {GW} src-lladdr {VMAC}')
        ip_batch('mbox', f'route add {address} nhid {number} {metrics}')
    with flow(prefix[1]) as sock:
        yield expect_delivery(wire, sock, (GW, VMAC), port='mbox')
        sock.setsockopt(SOL_UDP, UDP_SEGMENT, 1000)
        with segmentation_off('mbox'):
            problem = deliver(wire, sock, 1000, 10)
        yield expect_frames(frames_to(wire, prefix[1], port='mbox'), (GW, VMAC), ': GSO', 10,
                            problem)
    # IPv6 routers do not cut packets.
    if fam is IPV6:
        return
    with flow(prefix[2]) as sock:
        sock.setsockopt(*MTU_DISCOVER[IPV4], IP_PMTUDISC_DONT)
        sock.setsockopt(SOL_UDP, UDP_SEGMENT, 1000)
        problem = deliver(wire, sock, 1000, 10)
        yield expect_frames(frames_to(wire, prefix[2], port='mbox'), (GW, VMAC),
                            ': GSO, fragments', 20, problem)


@contextlib.contextmanager
def balanced(service, server, method='gatewaying'):
    """IPVS on host sends what is for service to server, by default as it is."""
    service, server = (f'[{address}]:{PORT}' if family(address) is IPV6 else f'{address}:{PORT}'
                       for address in (service, server))
    run_in('host', f'ipvsadm -A -u {service} -s rr')
    try:
        run_in('host', f'ipvsadm -a -u {service} -r {server} --{method}')
        yield
    finally:
        run_in('host', f'ipvsadm -D -u {service}')


@both
def ipvs(wire, prefix):
    """IPVS"""
    add_override(prefix[2], 204, BOTH)
    with balanced(prefix[1], prefix[2]):
        with flow(prefix[1]) as sock:
            yield expect_delivery(wire, sock, (MBOX, VMAC), ': gateway')
        ip(f'route replace {prefix[2]} via link {MBOX} dev eth0')
        with flow(prefix[1]) as sock:
            yield expect_delivery(wire, sock, (MBOX, HOST), ': via link')


@both
def ipvs_director(wire, prefix):
    """IPVS: from another host"""
    fam = family(prefix)
    nexthop = f'id {fam.first + 205}'
    nl(f'nexthop add {nexthop} via {fam.mbox} dev eth0 neigh lladdr {GW} src-lladdr {VMAC}')
    ip(f'route add {prefix[2]} nhid {fam.first + 205}')
    ip(f'address add {prefix[1]} dev eth0')
    ip_batch('mbox', f'route add {prefix[1]} via {fam.host}')
    with balanced(prefix[1], prefix[2]), flow(prefix[1], 'mbox') as sock:
        yield expect_delivery(wire, sock, (GW, VMAC))
        # mbox is known, but it is not host that sends.
        nl(f'nexthop replace {nexthop} via {fam.gw} dev eth0 neigh preserve strict')
        yield expect_delivery(wire, sock, (GW, HOST), ', preserve')
    ip(f'address delete {prefix[1]} dev eth0')


@only6
def segments(wire, prefix):
    """End.X"""
    # What node sends to the second address goes by the first, and then to the gateway.
    final, number = prefix[2], IPV6.first + 412
    nl(f'-6 nexthop add id {number} dev eth0 neigh src-lladdr {VMAC}')
    nl(f'-6 nexthop add id {number + 1} dev eth0 neigh via {IPV6.mbox}')
    ip(f'route add {prefix[1]} encap seg6local action End.X nh6 {IPV6.gw} dev eth0')
    with another_host(wire), inside('server'):
        for name in 'all', 'eth0':
            write(f'/proc/sys/net/ipv6/conf/{name}/seg6_enabled', 1)
        connect_node('eth0', fam=IPV6)
        ip_batch('node', f'route add {prefix[1]} via {IPV6.host}',
                 f'route add {final} encap seg6 mode inline segs {prefix[1]} dev eth0')
        for note, route, lladdrs in ((': plain', 'dev eth0', (GW, HOST)),
                                     (': via link', f'via link {MBOX} dev eth0', (MBOX, HOST)),
                                     (': source', f'nhid {number}', (GW, VMAC)),
                                     (': via', f'nhid {number + 1}', (MBOX, HOST))):
            ip(f'route replace {IPV6.gw} {route}')
            know(IPV6.gw, IPV6.mbox)
            with flow(final, 'node') as sock:
                problem = deliver(wire, sock)
            yield expect_frames(frames_to(wire, final, socket.IPPROTO_ROUTING), lladdrs, note,
                                problem=problem)
        for name in 'all', 'eth0':
            write(f'/proc/sys/net/ipv6/conf/{name}/seg6_enabled', 0)
    ip(f'route delete {IPV6.gw}')


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


CASES = (host_forwards, mbox_forwards, ipvs, ipvs_director, segments, bridge_dnat)
