"""IPsec and tunnels over overridden routes, and overrides inside of tunnels."""

import contextlib
import socket

from lab import GW, HOST, MBOX, VMAC, Row, add_override, both, family, flow, ip, ip_batch, nl
from traffic import BOTH, NODE, awaited, deliver, expect_frames, frames_to, past_ip

INNER = '02:00:00:00:03:02'


@contextlib.contextmanager
def esp(mode, number, inner, outer):
    """ESP from host to server for what host sends to an address."""
    keys = f"auth-trunc hmac(sha256) 0x{'5a' * 32} 128 enc cbc(aes) 0x{'a5' * 16}"
    for name, direction in ('host', 'out'), ('server', 'in'):
        ip_batch(name, f'xfrm state add src 192.0.2.2 dst {outer} proto esp spi {number} '
                       f'mode {mode} {keys}',
                 f'xfrm policy add src 192.0.2.2 dst {inner} dir {direction} '
                 f'tmpl src 192.0.2.2 dst {outer} proto esp mode {mode}')
    try:
        yield
    finally:
        for name in 'host', 'server':
            ip_batch(name, 'xfrm policy flush', 'xfrm state flush')


def expect_esp(wire, inner, outer, lladdrs, note=''):
    """The row of a datagram that leaves as ESP."""
    with flow(inner) as sock:
        problem = deliver(wire, sock)
    return expect_frames(frames_to(wire, outer, socket.IPPROTO_ESP), lladdrs, note,
                         problem=problem)


def xfrm_transport(wire, prefix):
    """xfrm: transport mode"""
    add_override(prefix, 200, BOTH)
    with esp('transport', 200, prefix[1], prefix[1]):
        yield expect_esp(wire, prefix[1], prefix[1], (MBOX, VMAC))


def xfrm_tunnel(wire, prefix):
    """xfrm: tunnel mode"""
    add_override(prefix[1], 201, f'lladdr {MBOX}')
    add_override(prefix[2], 202, f'src-lladdr {VMAC}')
    with esp('tunnel', 201, prefix[1], prefix[2]):
        yield expect_esp(wire, prefix[1], prefix[2], (GW, VMAC))
        ip(f'route replace {prefix[2]} via 192.0.2.1')
        yield expect_esp(wire, prefix[1], prefix[2], (GW, HOST), ', plain')


def make_tunnel(prefix, device, kind, options=''):
    """A tunnel from host to an address of server."""
    host = family(prefix).host
    for name, local, remote in (('host', host, prefix[1]),
                                ('server', prefix[1], host)):
        # Nothing of its own is to go through it as well.
        ip_batch(name, f'link add {device} type {kind} local {local} remote {remote} {options}',
                 f'link set {device} addrgenmode none', f'link set {device} up')


def remove_tunnel(device):
    """Without the route through it."""
    for name in 'host', 'server':
        ip_batch(name, f'link delete {device}')


def gre(wire, prefix):
    """GRE"""
    add_override(prefix[1], 206, BOTH)
    make_tunnel(prefix, 'gre7', 'gre')
    ip(f'route add {prefix[2]} dev gre7 src 192.0.2.2')
    with flow(prefix[2]) as sock:
        problem = deliver(wire, sock)
    yield expect_frames(frames_to(wire, prefix[1], socket.IPPROTO_GRE), (MBOX, VMAC),
                        problem=problem)
    remove_tunnel('gre7')


@both
def vxlan(wire, prefix):
    """VXLAN"""
    fam = family(prefix)
    add_override(prefix[1], 207, BOTH)
    make_tunnel(prefix, 'vxlan7', 'vxlan', 'id 7 dstport 4789')
    ip_batch('server', f'link set vxlan7 address {INNER}')
    number = fam.first + 208
    nl(f'{fam.option} nexthop add id {number} dev vxlan7 neigh lladdr {INNER} src-lladdr {NODE}')
    ip(f'route add {prefix[2]} nhid {number} src {fam.host}')
    with flow(prefix[2]) as sock:
        problem = deliver(wire, sock)
    frames = frames_to(wire, prefix[1])
    yield expect_frames(frames, (MBOX, VMAC), ': outer frame', problem=problem)
    inner = [past_ip(frame)[8 + 8:] for frame in frames]
    yield expect_frames(inner, (INNER, NODE), ': inner frame', problem=problem)
    remove_tunnel('vxlan7')


def gretap(wire, prefix):
    """gretap, no remote"""
    ip_batch('host', 'link add gretap7 type gretap local 192.0.2.2 dev eth0',
             'link set gretap7 addrgenmode none', 'link set gretap7 up',
             *(f'neigh add {address} lladdr {INNER} nud permanent dev gretap7'
               for address in (prefix[1], '192.0.2.9')), 'nexthop add id 232 dev gretap7',
             f'route add {prefix[1]} nhid 232 src 192.0.2.2')
    for note, neigh, remote in ((': plain', '', prefix[1]),
                                (': via', 'neigh via 192.0.2.9', '192.0.2.9')):
        nl(f'nexthop replace id 232 dev gretap7 {neigh}')
        with flow(prefix[1]) as sock:
            wire.forget()
            sock.send(b'inside')
        frames = awaited(wire, remote, socket.IPPROTO_GRE)
        seen = {f'GRE to {remote}, inside it to {frame[14 + 20 + 4:][:6].hex(":")}'
                for frame in frames}
        yield Row(note, f'GRE to {remote}, inside it to {INNER}', ', '.join(seen) or 'no frame',
                  None)
    ip('link delete gretap7')


CASES = (xfrm_transport, xfrm_tunnel, gre, vxlan, gretap)
