"""Packets of others: balanced by IPVS, sent on by segments."""

import contextlib
import socket

from lab import (GW, HOST, IPV6, MBOX, PORT, VMAC, add_override, both, family, flow, ip,
                 ip_batch, know, only6, run_in, sysctls)
from traffic import (BOTH, another_host, connect_node, deliver, expect_delivery, expect_frames,
                     frames_to)


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
    ip(f'nexthop add {nexthop} via {fam.mbox} dev eth0 neigh lladdr {GW} src-lladdr {VMAC}')
    ip(f'route add {prefix[2]} nhid {fam.first + 205}')
    ip(f'address add {prefix[1]} dev eth0')
    ip_batch('mbox', f'route add {prefix[1]} via {fam.host}')
    with balanced(prefix[1], prefix[2]), flow(prefix[1], 'mbox') as sock:
        yield expect_delivery(wire, sock, (GW, VMAC))
        # mbox is known, but it is not host that sends.
        ip(f'nexthop replace {nexthop} via {fam.gw} dev eth0 neigh preserve strict')
        yield expect_delivery(wire, sock, (GW, HOST), ', preserve')
    ip(f'address delete {prefix[1]} dev eth0')


@only6
def segments(wire, prefix):
    """End.X"""
    # What node sends to the second address goes by the first, and then to the gateway.
    final, number = prefix[2], IPV6.first + 412
    ip(f'-6 nexthop add id {number} dev eth0 neigh src-lladdr {VMAC}')
    ip(f'-6 nexthop add id {number + 1} dev eth0 neigh via {IPV6.mbox}')
    ip(f'route add {prefix[1]} encap seg6local action End.X nh6 {IPV6.gw} dev eth0')
    enabled = {f'net/ipv6/conf/{name}/seg6_enabled': 1 for name in ('all', 'eth0')}
    with another_host(wire), sysctls('server', enabled):
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
    ip(f'route delete {IPV6.gw}')


CASES = (ipvs, ipvs_director, segments)
