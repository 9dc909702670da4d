"""Packets that keep the link-layer address of their IP source's owner."""

import contextlib
import socket

from lab import (GW, HOST, IPV4, IPV6, MBOX, VMAC, add_override, both, expect, family, flow, inside,
                 ip, ip_batch, know, nl, nobody, without_inet6, write)
from traffic import another_host, connect_node, ignored_sources, send_as
from tracing import OVERRIDES, by_gw, expect_choice, traced


@contextlib.contextmanager
def by_mark(owner, gateway, mark):
    """Packets with a mark, which the reverse path check looks at, find another gateway."""
    path = '/proc/sys/net/ipv4/conf/eth0/src_valid_mark'
    ip(f'route add {owner} via {gateway} table {mark}')
    rule = f'fwmark {mark} to {owner} lookup {mark}'
    ip(f'{family(owner).option} rule add {rule}')
    with inside('host'):
        write(path, 1)
    try:
        yield
    finally:
        with inside('host'):
            write(path, 0)
        ip(f'{family(owner).option} rule delete {rule}')


@both
def preserve_mark(wire, prefix):
    """mark"""
    fam = family(prefix)
    owner = f'{fam.beyond}88'
    know(fam.gw, fam.mbox)
    add_override(prefix[1], 396, 'preserve')
    with flow(prefix[1], source=owner) as sock, ignored_sources():
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 396)
        yield expect(wire.send_on(sock), GW, HOST, ': preserve, no rule')
        with by_mark(owner, fam.mbox, 396):
            # IPv6 has no reverse path check that could look at it.
            yield expect(wire.send_on(sock), GW, MBOX if fam is IPV4 else HOST, ': preserve')
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 0)
            yield expect(wire.send_on(sock), GW, HOST, ': preserve, no mark')


@both
def preserve_link(wire, prefix):
    """owner by route"""
    fam = family(prefix)
    owner, number = f'{fam.beyond}89', fam.first + 398
    know(fam.gw, fam.mbox, IPV6.mbox)
    add_override(prefix[1], 397, 'preserve')
    nl(f'{fam.option} nexthop add id {number} dev eth0')
    ip(f'route add {owner} nhid {number}')
    kinds = ((': lladdr', f'lladdr {MBOX} src-lladdr {VMAC}'), (': via', f'via {fam.mbox}'),
             (': via inet6', f'via inet6 {IPV6.mbox}'))
    for note, neigh in without_inet6(fam, kinds):
        nl(f'nexthop replace id {number} via {fam.gw} dev eth0 neigh {neigh}')
        with ignored_sources():
            yield expect(send_as(wire, owner, prefix[1]), GW, MBOX, note)
    ip(f'route delete {owner}')


@both
def preserve_forwarded(wire, prefix):
    """forward"""
    fam = family(prefix)
    know(fam.gw, fam.mbox)
    add_override(prefix[1], 399, 'preserve strict')
    with another_host(wire), traced(OVERRIDES) as lines:
        connect_node('eth0', fam=fam)
        ip_batch('node', f'route add {prefix[1]} via {fam.host}')
        # IPv6 has no such filter.
        kinds = [(who, source, rp_filter) for who, source, rp_filter in (
            ('mbox', fam.mbox, 0), ('mbox', fam.mbox, 2), ('nobody', nobody(fam), 0))
                 if fam is IPV4 or not rp_filter]
        for who, source, rp_filter in kinds:
            with inside('host'):
                write('/proc/sys/net/ipv4/conf/eth0/rp_filter', rp_filter)
            frame = send_as(wire, source, prefix[1], 'node')
            note = f' as {who}' + f', rp_filter {rp_filter}' * (fam is IPV4)
            yield expect_choice(note, lines(), frame, (source, prefix[1]),
                                f'{by_gw(fam)}, {HOST} (forwarded)')
    with inside('host'):
        write('/proc/sys/net/ipv4/conf/eth0/rp_filter', 0)


CASES = (preserve_mark, preserve_link, preserve_forwarded)
