"""IPsec and tunnels over overridden routes, and overrides inside of tunnels."""

import contextlib
import socket

from lab import (GW, HOST, IPV4, IPV6, MBOX, NETWORK6, NETWORKS, VMAC, add_override, both, family,
                 flow, ip, ip_batch)
from traffic import BOTH, NODE, deliver, expect_frames, frames_to, past_ip

INNER = '02:00:00:00:03:02'


@contextlib.contextmanager
def esp(mode, number, inner, outer):
    """ESP from host to server for what host sends to an address."""
    keys = f"auth-trunc hmac(sha256) 0x{'5a' * 32} 128 enc cbc(aes) 0x{'a5' * 16}"
    host = family(inner).host
    for name, direction in ('host', 'out'), ('server', 'in'):
        ip_batch(name, f'xfrm state add src {host} dst {outer} proto esp spi {number} '
                       f'mode {mode} {keys}',
                 f'xfrm policy add src {host} dst {inner} dir {direction} '
                 f'tmpl src {host} dst {outer} proto esp mode {mode}')
    try:
        yield
    finally:
        for name in 'host', 'server':
            ip_batch(name, 'xfrm policy flush', 'xfrm state flush')


def expect_inside(wire, inner, outer, lladdrs, note=''):
    """The row of a datagram to an address that leaves inside of (address, protocol)."""
    with flow(inner) as sock:
        problem = deliver(wire, sock)
    return expect_frames(frames_to(wire, *outer), lladdrs, note, problem=problem)


@both
def xfrm_transport(wire, prefix):
    """xfrm: transport mode"""
    add_override(prefix, 200, BOTH)
    with esp('transport', 200, prefix[1], prefix[1]):
        yield expect_inside(wire, prefix[1], (prefix[1], socket.IPPROTO_ESP), (MBOX, VMAC))


@both
def xfrm_tunnel(wire, prefix):
    """xfrm: tunnel mode"""
    inner, outer = prefix[1], prefix[2]
    add_override(inner, 201, f'lladdr {MBOX}')
    add_override(outer, 202, f'src-lladdr {VMAC}')
    with esp('tunnel', 201, inner, outer):
        esp_packet = outer, socket.IPPROTO_ESP
        yield expect_inside(wire, inner, esp_packet, (GW, VMAC))
        ip(f'route replace {outer} via {family(prefix).gw}')
        yield expect_inside(wire, inner, esp_packet, (GW, HOST), ', plain')


@contextlib.contextmanager
def tunnel(prefix, device, kind):
    """A tunnel from host to an address of server."""
    host = family(prefix).host
    # An IPv6 tunnel wants an address, not only a route to itself.
    ip_batch('server', f'address add {prefix[1]} dev lo')
    for name, local, remote in (('host', host, prefix[1]),
                                ('server', prefix[1], host)):
        # Nothing of its own is to go through it as well.
        ip_batch(name, f'link add {device} type {kind} local {local} remote {remote}',
                 f'link set {device} addrgenmode none', f'link set {device} up')
    try:
        yield
    finally:
        for name in 'host', 'server':
            ip_batch(name, f'link delete {device}')
        ip_batch('server', f'address delete {prefix[1]} dev lo')


@both
def tunnels(wire, prefix):
    """tunnel"""
    fam = family(prefix)
    add_override(prefix[1], 206, BOTH)
    # An address of each family that is behind the tunnel; note, kind, protocol
    inner4, inner6 = NETWORKS[1][-2], NETWORK6[-2]
    kinds = {IPV4: ((inner4, ': GRE', 'gre', socket.IPPROTO_GRE),
                    (inner6, ': GRE, IPv6 inside', 'gre', socket.IPPROTO_GRE),
                    (inner6, ': sit', 'sit', socket.IPPROTO_IPV6)),
             IPV6: ((inner6, ': GRE', 'ip6gre encaplimit none', socket.IPPROTO_GRE),
                    (inner4, ': GRE, IPv4 inside', 'ip6gre encaplimit none', socket.IPPROTO_GRE),
                    (inner6, ': ip6tnl', 'ip6tnl mode any encaplimit none', socket.IPPROTO_IPV6),
                    (inner4, ': ip6tnl, IPv4 inside', 'ip6tnl mode any encaplimit none',
                     socket.IPPROTO_IPIP))}
    for inner, note, kind, protocol in kinds[fam]:
        with tunnel(prefix, 'tun7', kind):
            ip(f'route add {inner} dev tun7 src {family(inner).host}')
            yield expect_inside(wire, inner, (prefix[1], protocol), (MBOX, VMAC), note)


@both
def vxlan(wire, prefix):
    """VXLAN"""
    fam = family(prefix)
    add_override(prefix[1], 207, BOTH)
    number = fam.first + 208
    with tunnel(prefix, 'vxlan7', 'vxlan id 7 dstport 4789'):
        ip_batch('server', f'link set vxlan7 address {INNER}')
        ip(f'{fam.option} nexthop add id {number} dev vxlan7 neigh lladdr {INNER} '
           f'src-lladdr {NODE}')
        ip(f'route add {prefix[2]} nhid {number} src {fam.host}')
        with flow(prefix[2]) as sock:
            problem = deliver(wire, sock)
        frames = frames_to(wire, prefix[1])
    yield expect_frames(frames, (MBOX, VMAC), ': outer frame', problem=problem)
    inner = [past_ip(frame)[8 + 8:] for frame in frames]
    yield expect_frames(inner, (INNER, NODE), ': inner frame', problem=problem)


CASES = (xfrm_transport, xfrm_tunnel, tunnels, vxlan)
