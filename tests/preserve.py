"""Packets that keep the link-layer address of their IP source's owner."""

import contextlib
import socket

from lab import (GW, HOST, IPV4, MBOX, add_override, both, expect, family, flow, ip,
                 ip_batch, know, sysctls)
from traffic import another_host, connect_node, ignored_sources, send_as
from tracing import OVERRIDES, by_gw, expect_choice, traced


@contextlib.contextmanager
def by_mark(owner, gateway, mark):
    """Packets with a mark, which the reverse path check looks at, find another gateway."""
    ip(f'route add {owner} via {gateway} table {mark}')
    rule = f'fwmark {mark} to {owner} lookup {mark}'
    ip(f'{family(owner).option} rule add {rule}')
    with sysctls('host', {'net/ipv4/conf/eth0/src_valid_mark': 1}):
        yield
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
def preserve_forwarded(wire, prefix):
    """forward"""
    fam = family(prefix)
    know(fam.gw, fam.mbox)
    add_override(prefix[1], 399, 'preserve strict')
    with another_host(wire), traced(OVERRIDES) as lines:
        connect_node('eth0', fam=fam)
        ip_batch('node', f'route add {prefix[1]} via {fam.host}')
        frame = send_as(wire, fam.mbox, prefix[1], 'node')
        yield expect_choice(' as mbox', lines(), frame, (fam.mbox, prefix[1]),
                            f'{by_gw(fam)}, {HOST} (forwarded)')


CASES = (preserve_mark, preserve_forwarded)
