"""What host itself sends, besides single datagrams."""

import contextlib
import errno
import re
import select
import socket

from lab import (DEADLINE, GW, HOST, IPV6, MBOX, PORT, VMAC, Failure, Row, add_override, both,
                 family, flow, inside, ip, ip_batch, know, nl, only6, write)
from traffic import (BOTH, IP_PMTUDISC_DO, IP_PMTUDISC_WANT, MTU_DISCOVER, SOL_UDP, UDP_SEGMENT,
                     awaited, deliver, expect_delivery, expect_frames, frames_to, past_ip,
                     segmentation_off)

IPV6_FREEBIND = 78  # <linux/in6.h>
TCP_FIN, TCP_SYN, TCP_RST = 1, 2, 4


def fragment(fam):
    """The protocol of what is a part of a UDP packet."""
    return socket.IPPROTO_FRAGMENT if fam is IPV6 else socket.IPPROTO_UDP


@both
def gso(wire, prefix):
    """GSO in software"""
    add_override(prefix, 210, BOTH)
    with flow(prefix[1]) as sock, segmentation_off('host'):
        sock.setsockopt(SOL_UDP, UDP_SEGMENT, 1000)
        problem = deliver(wire, sock, 1000, 10)
    yield expect_frames(frames_to(wire, prefix[1]), (MBOX, VMAC), '', 10, problem)


def refused(sock, size):
    """What a datagram of a size is refused with."""
    try:
        sock.send(bytes(size))
    except OSError as error:
        return errno.errorcode[error.errno]
    return 'not refused'


@contextlib.contextmanager
def small_mtu(prefix):
    """A prefix that only small packets can go to."""
    route = f'{prefix} via {family(prefix).beyond}2'
    ip_batch('gw', f'route add {route} mtu 1300')
    try:
        yield
    finally:
        ip_batch('gw', f'route delete {route}')


def learn_mtu(sock, fam):
    """Let host hear from gw that a packet is too big."""
    sock.setsockopt(*MTU_DISCOVER[fam], IP_PMTUDISC_DO)
    sock.send(bytes(1400))
    if not select.select([sock], [], [], DEADLINE)[0]:
        raise Failure('gw did not answer')
    # It is the error that came in.
    sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


@both
def pmtu(wire, prefix):
    """PMTU"""
    fam = family(prefix)
    add_override(prefix, 211, BOTH)
    with small_mtu(prefix), flow(prefix[1]) as sock:
        learn_mtu(sock, fam)
        yield Row(': too big', 'EMSGSIZE', refused(sock, 1400), None)
        yield expect_delivery(wire, sock, (MBOX, VMAC), ': small enough')
        sock.setsockopt(*MTU_DISCOVER[fam], IP_PMTUDISC_WANT)
        problem = deliver(wire, sock, 1400)
        yield expect_frames(frames_to(wire, prefix[1], fragment(fam)), (MBOX, VMAC),
                            ': fragments', 2, problem)
        nl(f'nexthop replace id {fam.first + 211} via {fam.gw} dev eth0 neigh src-lladdr {VMAC}')
        yield expect_delivery(wire, sock, (GW, VMAC), ': override replaced')


@only6
def aged(_, prefix):
    """PMTU, aged"""
    nexthop = f'id {IPV6.first + 410} via {IPV6.gw} dev eth0'
    nl(f'nexthop add {nexthop}')
    ip(f'route add {prefix} nhid {IPV6.first + 410}')
    # What was learned about a gateway goes when that is no router, if packets go there.
    for note, neigh, kept in ((': plain', '', 'none'),
                              (': source', f'neigh src-lladdr {VMAC}', 'none'),
                              (': lladdr', f'neigh lladdr {MBOX}', 'mtu 1300'),
                              (': via', f'neigh via {IPV6.mbox}', 'mtu 1300')):
        nl(f'nexthop replace {nexthop} {neigh}')
        know(IPV6.gw, IPV6.mbox)
        with small_mtu(prefix), flow(prefix[1]) as sock:
            learn_mtu(sock, IPV6)
        learned = re.findall('mtu [0-9]+', ip(f'route get {prefix[1]}'))
        with inside('host'):
            write('/proc/sys/net/ipv6/route/flush', 1)
        seen = re.findall('mtu [0-9]+', ip(f'route get {prefix[1]}'))
        yield Row(note, kept, ' '.join(seen) or 'none', None if learned else 'nothing was learned')


@only6
def anycast(wire, prefix):
    """anycast"""
    # It is the address of all routers of the prefix, if that is on-link: no error goes there.
    everyone, number = prefix[0], IPV6.first + 411
    nl(f'-6 nexthop add id {number} dev eth0 neigh src-lladdr {VMAC}')
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


@both
def marked(wire, prefix):
    """mark"""
    fam = family(prefix)
    number = fam.first + 212
    nl(f'nexthop add id {number} via {fam.gw} dev eth0 neigh {BOTH}')
    ip(f'route add {prefix[1]} table 212 nhid {number}')
    ip(f'route add {prefix[2]} table 212 via link {MBOX} dev eth0')
    ip(f'{fam.option} rule add fwmark 212 to {prefix} lookup 212')
    yield Row(': netlink.py route get', f'{prefix[1]} via {fam.gw} dev eth0 neigh {BOTH}',
              nl(f'route get {prefix[1]} mark 212'), None)
    yield Row(': no mark', f'{prefix[1]} via {fam.gw} dev eth0',
              nl(f'route get {prefix[1]}'), None)
    yield Row(': ip route get', f'{prefix[2]} via link {MBOX} dev eth0',
              ip(f'route get {prefix[2]} mark 212').replace(' from ::', '')
              .partition(' table ')[0], None)
    for address, lladdrs, note in ((prefix[1], (MBOX, VMAC), ': nexthop object'),
                                   (prefix[2], (MBOX, HOST), ': via link')):
        with flow(address) as sock:
            yield expect_delivery(wire, sock, (GW, HOST), f'{note}, no mark')
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 212)
            yield expect_delivery(wire, sock, lladdrs, note)
    ip(f'{fam.option} rule delete fwmark 212 to {prefix} lookup 212')


def converse(client, listener, address):
    """Connect, send something either way, close; return what went wrong."""
    data = bytes(range(256)) * 160
    client.settimeout(DEADLINE)
    listener.settimeout(DEADLINE)
    client.connect((str(address), PORT))
    client.sendall(data)
    client.shutdown(socket.SHUT_WR)
    peer, _ = listener.accept()
    with peer, peer.makefile('rb') as file:
        peer.settimeout(DEADLINE)
        received = file.read()
        peer.sendall(received)
    with client.makefile('rb') as file:
        return None if file.read() == received == data else 'the data did not arrive'


def expect_segments(wire, address, flags, note, problem=None):
    """The row of TCP segments to an address; some of them have the flags."""
    frames = frames_to(wire, address, socket.IPPROTO_TCP)
    seen = 0
    for frame in frames:
        seen |= past_ip(frame)[13]
    if seen & flags != flags:
        problem = problem or f'flags seen: {seen:#04x}'
    return expect_frames(frames, (MBOX, VMAC), note, len(frames), problem)


@both
def tcp(wire, prefix):
    """TCP"""
    fam = family(prefix)
    add_override(prefix, 215, BOTH)
    with inside('server'):
        there = socket.create_server(('', PORT), family=fam.number)
        from_there = [socket.socket(fam.number), socket.socket(fam.number)]
    with inside('host'):
        here = socket.create_server(('', PORT), family=fam.number)
        from_here = socket.socket(fam.number)
    for sock, address in zip(from_there, (prefix[1], prefix[2])):
        if fam is IPV6:
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
        sock.bind((str(address), 0))
        sock.settimeout(DEADLINE)
    with there, here, from_here, from_there[0], from_there[1]:
        wire.forget()
        problem = converse(from_here, there, prefix[1])
        yield expect_segments(wire, prefix[1], TCP_SYN | TCP_FIN, ': to server', problem)
        problem = converse(from_there[0], here, fam.host)
        yield expect_segments(wire, prefix[1], TCP_SYN | TCP_FIN, ': from server', problem)
        code = from_there[1].connect_ex((fam.host, PORT + 1))
        problem = None if code == errno.ECONNREFUSED else 'it was not refused'
        yield expect_segments(wire, prefix[2], TCP_RST, ': refused', problem)


def broadcast(wire, prefix):
    """broadcast"""
    everybody = '255.255.255.255'
    nl(f'nexthop add id 231 dev eth0 neigh {BOTH}')
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


CASES = (gso, pmtu, aged, anycast, marked, tcp, broadcast)
