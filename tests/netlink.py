#!/usr/bin/python3
"""Nexthop objects with a neighbour override, for an 'ip' that knows no such thing.

usage: netlink.py [-4|-6] nexthop add|replace id N [via ADDRESS] dev DEV [neigh NEIGH]
       netlink.py nexthop del id N
       netlink.py nexthop show [id N] [stats]
       netlink.py route get ADDRESS [mark N] [from ADDRESS iif DEV]

NEIGH := [via [inet|inet6] ADDRESS | lladdr LLADDR] [src-lladdr LLADDR | preserve [strict]]
         [selector NAME] [fallback] [counters]

-6 is for an IPv6 nexthop without an address.

Exit status: 1 for wrong words, 2 when the kernel refuses.
"""

import errno
import os
import socket
import struct
import sys
from ipaddress import IPv4Address, IPv6Address, ip_address

# <linux/netlink.h>
SOL_NETLINK, NETLINK_CAP_ACK, NETLINK_EXT_ACK = 270, 10, 11
NLMSG_ERROR, NLMSG_DONE, NLMSGERR_ATTR_MSG = 2, 3, 1
NLM_F_REQUEST, NLM_F_ACK, NLM_F_ACK_TLVS = 0x1, 0x4, 0x200
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_DUMP, NLM_F_CREATE = 0x100, 0x200, 0x300, 0x400
NLA_F_NESTED, NLA_TYPE_MASK = 0x8000, 0x3fff
NLMSGHDR = struct.Struct('=IHHII')
NLATTR = struct.Struct('=HH')
# <linux/rtnetlink.h>
RTM_GETROUTE, RTM_NEWNEXTHOP, RTM_DELNEXTHOP, RTM_GETNEXTHOP = 26, 104, 105, 106
RTA_DST, RTA_SRC, RTA_IIF, RTA_OIF, RTA_GATEWAY = 1, 2, 3, 4, 5
RTA_MARK, RTA_VIA, RTA_NEIGH_OVERRIDE = 16, 18, 33
RTMSG = struct.Struct('=8BI')
# <linux/nexthop.h>
NHA_ID, NHA_GROUP, NHA_BLACKHOLE, NHA_OIF, NHA_GATEWAY = 1, 2, 4, 5, 6
NHA_OP_FLAGS, NHA_OP_FLAG_DUMP_STATS, NHA_NEIGH_OVERRIDE = 14, 1, 19
NHMSG = struct.Struct('=4BI')
# <linux/neigh_override.h>
LLADDR, VIA4, VIA6, SRC_LLADDR, FLAGS, STATS, SELECTOR = 1, 2, 3, 4, 5, 6, 7
FLAG_WORDS = {'fallback': 1, 'preserve': 2, 'strict': 4, 'counters': 8}
STAT_WORDS = {1: 'packets', 2: 'bytes', 3: 'fallback', 4: 'unknown', 5: 'failed', 6: 'forwarded'}

FAMILIES = {'-4': socket.AF_INET, '-6': socket.AF_INET6}
EDITS = {'add': (RTM_NEWNEXTHOP, NLM_F_CREATE | NLM_F_EXCL),
         'replace': (RTM_NEWNEXTHOP, NLM_F_CREATE | NLM_F_REPLACE),
         'del': (RTM_DELNEXTHOP, 0)}


class KernelError(Exception):
    """The kernel said no."""

    def __init__(self, code, reason):
        # Python knows this one by its POSIX name.
        name = 'EOPNOTSUPP' if code == errno.EOPNOTSUPP else errno.errorcode.get(code, code)
        super().__init__(f'{name}: {reason or os.strerror(code)}')


def attribute(kind, data):
    """One attribute, padded."""
    length = NLATTR.size + len(data)
    return NLATTR.pack(length, kind) + data + bytes(-length % 4)


def attributes(data):
    """Attributes by type."""
    found = {}
    while len(data) >= NLATTR.size:
        length, kind = NLATTR.unpack_from(data)
        found[kind & NLA_TYPE_MASK] = data[NLATTR.size:length]
        data = data[(length + 3) & ~3:]
    return found


def check(kind, flags, body):
    """Raise what the last message of an answer says."""
    code = -struct.unpack_from('=i', body)[0]
    if code:
        # A refused request comes back as its bare header.
        tlvs = body[4 + (NLMSGHDR.size if kind == NLMSG_ERROR else 0):]
        reason = attributes(tlvs).get(NLMSGERR_ATTR_MSG) if flags & NLM_F_ACK_TLVS else None
        raise KernelError(code, reason and reason.rstrip(b'\0').decode())


def request(kind, flags, body):
    """Send one request; return the bodies of the answers."""
    flags |= NLM_F_REQUEST | NLM_F_ACK
    answers = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        sock.settimeout(30)
        sock.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
        sock.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
        sock.send(NLMSGHDR.pack(NLMSGHDR.size + len(body), kind, flags, 1, 0) + body)
        while True:
            data = sock.recv(1 << 16)
            while data:
                length, kind, flags, _, _ = NLMSGHDR.unpack_from(data)
                body, data = data[NLMSGHDR.size:length], data[(length + 3) & ~3:]
                if kind in (NLMSG_ERROR, NLMSG_DONE):
                    check(kind, flags, body)
                    return answers
                answers.append(body)


def pack_neigh(words):
    """The nest that the words after 'neigh' make."""
    nest, flags = b'', 0
    for word in words:
        if word in FLAG_WORDS:
            flags |= FLAG_WORDS[word]
        elif word == 'via':
            value = next(words, '')
            family = {'inet': IPv4Address, 'inet6': IPv6Address}.get(value)
            address = family(next(words, '')) if family else ip_address(value)
            nest += attribute(VIA4 if address.version == 4 else VIA6, address.packed)
        elif word in ('lladdr', 'src-lladdr'):
            lladdr = bytes.fromhex(next(words, '').replace(':', ' '))
            nest += attribute(LLADDR if word == 'lladdr' else SRC_LLADDR, lladdr)
        elif word == 'selector':
            nest += attribute(SELECTOR, next(words, '').encode() + b'\0')
        else:
            raise ValueError(f"unknown word '{word}' after 'neigh'")
    return nest + (attribute(FLAGS, struct.pack('=I', flags)) if flags else b'')


def pack_nexthop(words, family):
    """The body of a request from the words of a nexthop."""
    words, body = iter(words), b''
    for word in words:
        if word == 'id':
            body += attribute(NHA_ID, struct.pack('=I', int(next(words, ''))))
        elif word == 'via':
            address = ip_address(next(words, ''))
            family = socket.AF_INET if address.version == 4 else socket.AF_INET6
            body += attribute(NHA_GATEWAY, address.packed)
        elif word == 'dev':
            index = socket.if_nametoindex(next(words, ''))
            body += attribute(NHA_OIF, struct.pack('=I', index))
        elif word == 'stats':
            body += attribute(NHA_OP_FLAGS, struct.pack('=I', NHA_OP_FLAG_DUMP_STATS))
        elif word == 'neigh':
            body += attribute(NHA_NEIGH_OVERRIDE | NLA_F_NESTED, pack_neigh(words))
        else:
            raise ValueError(f"unknown word '{word}'")
    return NHMSG.pack(family, 0, 0, 0, 0) + body


def pack_lookup(words):
    """The body of a request for the route of a packet."""
    words = iter(words)
    destination = ip_address(next(words, ''))
    body, bits = attribute(RTA_DST, destination.packed), 8 * len(destination.packed)
    source_bits = 0
    for word in words:
        if word == 'mark':
            body += attribute(RTA_MARK, struct.pack('=I', int(next(words, ''), 0)))
        elif word == 'from':
            source = ip_address(next(words, ''))
            body += attribute(RTA_SRC, source.packed)
            source_bits = 8 * len(source.packed)
        elif word == 'iif':
            index = socket.if_nametoindex(next(words, ''))
            body += attribute(RTA_IIF, struct.pack('=I', index))
        else:
            raise ValueError(f"unknown word '{word}'")
    family = socket.AF_INET if destination.version == 4 else socket.AF_INET6
    return RTMSG.pack(family, bits, source_bits, *[0] * 6) + body


def show_number(data):
    """A number."""
    return int.from_bytes(data, sys.byteorder)


def show_device(data):
    """The name of a device."""
    return socket.if_indextoname(show_number(data))


def show_lladdr(data):
    """A link-layer address."""
    return data.hex(':')


def show_via(data):
    """RTA_VIA: a family and an address of it."""
    if show_number(data[:2]) == socket.AF_PACKET:
        return f'link {show_lladdr(data[2:])}'
    return f'inet6 {ip_address(data[2:])}'


def show_group(data):
    """The members of a group and their weights."""
    return '/'.join(f'{member},{low + 256 * high + 1}'
                    for member, low, high in struct.iter_unpack('=IBB2x', data))


def show(data, fields):
    """Attributes as words, those of fields and in their order."""
    found = attributes(data)
    return ' '.join(f'{word}{value(found[kind])}'
                    for kind, word, value in fields if kind in found)


def show_flags(data):
    """The flags as words."""
    flags = show_number(data)
    return ' '.join(word for word in ('preserve', 'strict', 'fallback', 'counters')
                    if flags & FLAG_WORDS[word])


def show_stats(data):
    """The counters, each with its name."""
    return ' '.join(f'{word} {show_number(value)}' for kind, word in STAT_WORDS.items()
                    for value in [attributes(data).get(kind)] if value is not None)


def show_neigh(data):
    """What follows 'neigh'."""
    return show(data, ((VIA4, 'via ', ip_address), (VIA6, 'via inet6 ', ip_address),
                       (LLADDR, 'lladdr ', show_lladdr),
                       (SRC_LLADDR, 'src-lladdr ', show_lladdr),
                       (SELECTOR, 'selector ', lambda name: name[:-1].decode()),
                       (FLAGS, '', show_flags), (STATS, 'stats ', show_stats)))


NEXTHOP = ((NHA_ID, 'id ', show_number), (NHA_GROUP, 'group ', show_group),
           (NHA_BLACKHOLE, 'blackhole', bytes.decode),
           (NHA_GATEWAY, 'via ', ip_address), (NHA_OIF, 'dev ', show_device),
           (NHA_NEIGH_OVERRIDE, 'neigh ', show_neigh))
ROUTE = ((RTA_DST, '', ip_address), (RTA_SRC, 'from ', ip_address),
         (RTA_GATEWAY, 'via ', ip_address), (RTA_VIA, 'via ', show_via),
         (RTA_OIF, 'dev ', show_device),
         (RTA_NEIGH_OVERRIDE, 'neigh ', show_neigh))


def run(words, family=socket.AF_INET):
    """Run a command; return the lines that it prints."""
    if words and words[0] in FAMILIES:
        return run(words[1:], FAMILIES[words[0]])
    if words[:2] == ['nexthop', 'show']:
        body = pack_nexthop(words[2:], socket.AF_UNSPEC)
        answers = request(RTM_GETNEXTHOP, 0 if 'id' in words else NLM_F_DUMP, body)
        return [show(answer[NHMSG.size:], NEXTHOP) for answer in answers]
    if words[:1] == ['nexthop'] and words[1:2] and words[1] in EDITS:
        request(*EDITS[words[1]], pack_nexthop(words[2:], family))
        return []
    if words[:2] == ['route', 'get'] and words[2:]:
        return [show(answer[RTMSG.size:], ROUTE)
                for answer in request(RTM_GETROUTE, 0, pack_lookup(words[2:]))]
    raise ValueError('see -h for what there is')


def main(words):
    """The command line."""
    if {'-h', '--help'} & set(words):
        print(__doc__.strip())
        return 0
    try:
        for line in run(words):
            print(line)
    except KernelError as error:
        print(f'netlink.py: {error}', file=sys.stderr)
        return 2
    except (ValueError, OSError, struct.error) as error:
        print(f'netlink.py: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
