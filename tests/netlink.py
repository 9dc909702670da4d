"""Netlink requests of which every byte counts, or which no tool makes."""

import errno
import os
import socket
import struct

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
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_VIA, RTA_NEIGH_OVERRIDE = 1, 4, 5, 18, 33
RTMSG = struct.Struct('=8BI')
# <linux/nexthop.h>
NHA_ID, NHA_GROUP, NHA_BLACKHOLE, NHA_OIF, NHA_GATEWAY = 1, 2, 4, 5, 6
NHA_OP_FLAGS, NHA_NEIGH_OVERRIDE = 14, 19
NHMSG = struct.Struct('=4BI')
# <linux/neigh_override.h>
LLADDR, VIA4, VIA6, SRC_LLADDR, FLAGS, SELECTOR = 1, 2, 3, 4, 5, 7


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
