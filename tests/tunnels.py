"""IPsec and tunnels over overridden routes, and overrides inside of tunnels."""

import contextlib
import socket

from lab import (GW, HOST, IPV4, IPV6, MBOX, NETWORK6, NETWORKS, VMAC, Row, add_override, both,
                 family, flow, ip, ip_batch, know, nl)
from traffic import BOTH, NODE, deliver, expect_frames, frames_to, past_ip, protocol_and_destination

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
        nl(f'{fam.option} nexthop add id {number} dev vxlan7 neigh lladdr {INNER} '
           f'src-lladdr {NODE}')
        ip(f'route add {prefix[2]} nhid {number} src {fam.host}')
        with flow(prefix[2]) as sock:
            problem = deliver(wire, sock)
        frames = frames_to(wire, prefix[1])
    yield expect_frames(frames, (MBOX, VMAC), ': outer frame', problem=problem)
    inner = [past_ip(frame)[8 + 8:] for frame in frames]
    yield expect_frames(inner, (INNER, NODE), ': inner frame', problem=problem)


@both
def gretap(wire, prefix):
    """gretap, no remote"""
    fam = family(prefix)
    number = fam.first + 232
    # The neighbour is the other end: an IPv4 address, or an IPv6 address that stands for one.
    ends = [f'{"::" * (fam is IPV6)}{address}' for address in (IPV4.mbox, IPV4.gw)]
    ip_batch('host', 'link add gretap7 type gretap local 192.0.2.2 dev eth0',
             'link set gretap7 addrgenmode none', 'link set gretap7 up',
             *(f'neigh add {address} lladdr {INNER} nud permanent dev gretap7'
               for address in (prefix[1], *ends)))
    kinds = {IPV4: ((': plain', '', prefix[1]), (': via', f'neigh via {ends[0]}', IPV4.mbox)),
             IPV6: ((': plain', f'via {ends[0]}', IPV4.mbox),
                    (': via', f'via {ends[0]} neigh via {ends[1]}', IPV4.gw),
                    # Nobody says where the other end is.
                    (': lladdr', f'via {ends[0]} neigh lladdr {INNER}', None),
                    # The tunnel would send from the device's address.
                    (': source', f'via {ends[0]} neigh src-lladdr {VMAC}', None))}
    if fam is IPV6:
        ip('route add ::192.0.2.0/120 dev gretap7')
    nl(f'{fam.option} nexthop add id {number} dev gretap7')
    ip(f'route add {prefix[1]} nhid {number} src {fam.host}')
    know(IPV4.gw, IPV4.mbox)
    for note, words, remote in kinds[fam]:
        nl(f'{fam.option} nexthop replace id {number} dev gretap7 {words}')
        wire.forget()
        with flow(prefix[1]) as sock, contextlib.suppress(OSError):
            sock.send(b'inside')
        seen = [f'GRE to {what[1]}, inside it to {past_ip(data)[4:][:6].hex(":")}'
                for _, data, from_host in wire.captured('host')
                for what in [protocol_and_destination(data)]
                if from_host and what and what[0] == socket.IPPROTO_GRE]
        yield Row(note, f'GRE to {remote}, inside it to {INNER}' if remote else 'no frame',
                  ', '.join(seen) or 'no frame', None)
    ip('link delete gretap7')


CASES = (xfrm_transport, xfrm_tunnel, tunnels, vxlan, gretap)
