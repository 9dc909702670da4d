"""What host itself sends, besides single datagrams."""

import select
import socket

from lab import DEADLINE, HOST, IPV6, MBOX, PORT, VMAC, flow, ip, only6
from traffic import BOTH, awaited, expect_delivery, expect_frames, frames_to


@only6
def anycast(wire, prefix):
    """anycast"""
    # It is the address of all routers of the prefix, if that is on-link: no error goes there.
    everyone, number = prefix[0], IPV6.first + 411
    ip(f'-6 nexthop add id {number} dev eth0 neigh src-lladdr {VMAC}')
    for note, route, dst in ((': on-link', 'dev eth0', None), (': source', f'nhid {number}', None),
                             (': via link', f'via link {MBOX} dev eth0', MBOX)):
        ip(f'route replace {prefix} {route}')
        wire.forget()
        with flow(IPV6.host, 'server', source=str(everyone), port=PORT + 2) as sock:
            sock.send(b'nobody is there')
            refused_with = select.select([sock], [], [], DEADLINE if dst else 0.2)[0]
        frames = frames_to(wire, everyone, socket.IPPROTO_ICMPV6)
        yield expect_frames(frames, (dst, dst and HOST), note, 1 if dst else 0,
                            'server was not told' if dst and not refused_with else None)


def broadcast(wire, prefix):
    """broadcast"""
    everybody = '255.255.255.255'
    ip(f'nexthop add id 231 dev eth0 neigh {BOTH}')
    for destination in prefix, everybody:
        ip(f'route add {destination} nhid 231')

    def unicast(note):
        with flow(prefix[1]) as sock:
            return expect_delivery(wire, sock, (MBOX, VMAC), note)
    # Their routes could share what the nexthop caches.
    yield unicast(': unicast before')
    with flow(everybody) as sock:
        sock.send(b'to whom it may concern')
    yield expect_frames(awaited(wire, everybody), ('ff:ff:ff:ff:ff:ff', HOST))
    yield unicast(': unicast behind')
    ip(f'route delete {everybody}')


CASES = (anycast, broadcast)
