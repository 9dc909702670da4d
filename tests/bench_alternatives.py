"""What else gives the packets of a route other link-layer addresses, for bench.py."""

import contextlib
import os
import socket
import struct

from bpf import (BPF_LINK_CREATE, CONTEXT, INSTRUCTION, KEPT_CONTEXT, NEXTHOP, REDIRECT,
                       REDIRECT_NEIGH, REDIR_NEIGH_SIZE, STORE_BYTES, TCX_EGRESS, TCX_INGRESS,
                       TC_ACT_UNSPEC, bpf, call, clear, copy, instruction, leave, loaded, numbers,
                       store_word)
from lab import GW, HOST, MBOX, VMAC
import netlink

# <linux/bpf.h>, <linux/lwtunnel.h>, <linux/rtnetlink.h>
LWT_XMIT, CHANGE_HEAD = 12, 43
LWTUNNEL_ENCAP_BPF, LWT_BPF_XMIT, LWT_BPF_PROG_FD, LWT_BPF_PROG_NAME = 6, 3, 1, 2
RTM_NEWROUTE, RTA_ENCAP_TYPE, RTA_ENCAP = 24, 21, 22
RT_TABLE_MAIN, RTPROT_BOOT, RT_SCOPE_UNIVERSE, RTN_UNICAST = 254, 3, 0, 1
# struct __sk_buff
DATA, DATA_END = 76, 80
ETH_HLEN, ETH_ALEN = 14, 6

GATEWAY = 'ip neigh add 192.0.2.1 lladdr {gw} nud permanent dev {dev}'
OTHER = 'ip neigh add 192.0.2.9 lladdr {mbox} nud permanent dev {dev}'
PLAIN = (GATEWAY, 'ip route add 203.0.113.0/24 via 192.0.2.1 dev {dev}')
CLSACT = 'tc qdisc add dev eth0 clsact'
TC_FILTER = 'tc filter add dev eth0 egress matchall action'
# eth0 becomes the only port of a bridge.
BRIDGE = ('device br0 link add br0 address {host} type bridge', 'ip link set eth0 master br0',
          'bridge fdb add {gw} dev eth0 master static')
BRIDGES = tuple(f'bridge {number}' for number in range(8))
# Out of another device, where a program sends them on
DETOUR = ('ip link add bpf0 type dummy', 'ip link set bpf0 up',
          'ip route add 203.0.113.0/24 dev bpf0', OTHER, 'destination {each}')
DETOUR_DESTINATIONS = tuple(f'203.0.113.{number}' for number in range(1, 5))


def addresses(dst=MBOX, src=VMAC):
    """The beginning of a frame."""
    return bytes.fromhex(f'{dst}:{src}'.replace(':', ''))


def words(data):
    return struct.unpack(f'={len(data) // 4}i', data)


def on_stack(offset, data):
    return b''.join(store_word(offset + 4 * place, word)
                    for place, word in enumerate(words(data)))


def storer():
    """Writes the addresses by bpf_skb_store_bytes()."""
    return (copy(KEPT_CONTEXT, 1) + on_stack(-16, addresses()) +
            call(STORE_BYTES, CONTEXT, 0, -16, 2 * ETH_ALEN, 0) + leave(TC_ACT_UNSPEC))


def writer():
    """Writes the addresses into the packet."""
    stores = b''.join(instruction(0x62, 2, 0, 4 * place, word)
                      for place, word in enumerate(words(addresses())))
    return (instruction(0x61, 2, 1, DATA) + instruction(0x61, 3, 1, DATA_END) + copy(4, 2) +
            instruction(0x07, 4, value=ETH_HLEN) +
            instruction(0x2d, 4, 3, len(stores) // INSTRUCTION.size) + stores +
            leave(TC_ACT_UNSPEC))


def redirector(ifindex):
    """Sends packets to the neighbour 192.0.2.9."""
    return (clear(NEXTHOP, REDIR_NEIGH_SIZE) + store_word(NEXTHOP, socket.AF_INET) +
            store_word(NEXTHOP + 4, numbers('192.0.2.9')[0][1]) +
            call(REDIRECT_NEIGH, ifindex, NEXTHOP, REDIR_NEIGH_SIZE, 0) + leave())


def xmitter(ifindex):
    """Makes the whole header."""
    header = addresses() + b'\x08\x00' + bytes(2)
    return (copy(KEPT_CONTEXT, 1) + call(CHANGE_HEAD, CONTEXT, ETH_HLEN, 0) +
            on_stack(-16, header) + call(STORE_BYTES, CONTEXT, 0, -16, ETH_HLEN, 0) +
            call(REDIRECT, ifindex, 0) + leave())


def attached(make, device='eth0', place=TCX_EGRESS):
    """Setup: a program on a device, by tcx; make is given the index of eth0."""
    @contextlib.contextmanager
    def attach(_):
        with loaded(make(socket.if_nametoindex('eth0'))) as program:
            link, _ = bpf(BPF_LINK_CREATE, '=4I', program, socket.if_nametoindex(device), place,
                          0)
        try:
            yield
        finally:
            os.close(link)
    return attach


@contextlib.contextmanager
def lwtunnel_route(_):
    """Setup: a route with a program that transmits."""
    index = socket.if_nametoindex('eth0')
    with loaded(xmitter(index), LWT_XMIT) as program:
        xmit = (netlink.attribute(LWT_BPF_PROG_FD, struct.pack('=I', program)) +
                netlink.attribute(LWT_BPF_PROG_NAME, b'bench\0'))
        encap = netlink.attribute(LWT_BPF_XMIT | netlink.NLA_F_NESTED, xmit)
        netlink.request(
            RTM_NEWROUTE, netlink.NLM_F_CREATE | netlink.NLM_F_EXCL,
            netlink.RTMSG.pack(socket.AF_INET, 24, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT,
                               RT_SCOPE_UNIVERSE, RTN_UNICAST, 0) +
            netlink.attribute(netlink.RTA_DST, socket.inet_aton('203.0.113.0')) +
            netlink.attribute(netlink.RTA_GATEWAY, socket.inet_aton('192.0.2.1')) +
            netlink.attribute(netlink.RTA_OIF, struct.pack('=I', index)) +
            netlink.attribute(RTA_ENCAP_TYPE, struct.pack('=H', LWTUNNEL_ENCAP_BPF)) +
            netlink.attribute(RTA_ENCAP | netlink.NLA_F_NESTED, encap))
    yield


def nft(family, chain, rule):
    """Setup: one rule."""
    return ('nft', f'add table {family} bench; add chain {family} bench c {{ {chain} }}; '
            f'add rule {family} bench c {rule}')


def cases(make_case):
    """The cases, for local packets and for forwarding."""
    for where in ('udp', 'forward'):
        def case(word, text, setup, *frame, where=where, **more):
            reference = more.pop('reference', 'gateway')
            return make_case(f'{where}.{word}', where, more.pop('kernels', 'n'), text, setup,
                             f'{where}.{reference}', *(frame or (MBOX, VMAC)),
                             **{'alternative': True} | more)

        yield case('neighbour', 'permanent neighbour on a dummy address, onlink (no source)',
                   ('ip neigh add 192.0.2.200 lladdr {mbox} nud permanent dev {dev}',
                    'ip route add 203.0.113.0/24 via 192.0.2.200 dev {dev} onlink'), MBOX, HOST)
        yield case('skbmod', 'tc skbmod',
                   (*PLAIN, CLSACT, TC_FILTER + ' skbmod set dmac {mbox} set smac {vmac}'))
        yield case('pedit', 'tc pedit',
                   (*PLAIN, CLSACT, TC_FILTER + ' pedit ex munge eth dst set {mbox} '
                                                'munge eth src set {vmac}'))
        yield case('bpf-store', 'tc BPF, bpf_skb_store_bytes()',
                   (*PLAIN, attached(lambda _: storer())))
        yield case('bpf-write', 'tc BPF, direct packet access',
                   (*PLAIN, attached(lambda _: writer())))
        if where == 'udp':
            yield case('bpf-neigh', 'tc BPF, bpf_redirect_neigh() (no source)',
                       (*DETOUR, attached(redirector, 'bpf0')), MBOX, HOST, 2,
                       each=DETOUR_DESTINATIONS)
        else:
            yield case('bpf-neigh', 'tc BPF, bpf_redirect_neigh() at ingress (no source)',
                       (OTHER, attached(redirector, 'in0', TCX_INGRESS)), MBOX, HOST)
        yield case('lwtunnel', 'lwtunnel BPF xmit', (lwtunnel_route,), entries=0)
        yield case('nft', 'nft netdev egress',
                   (*PLAIN, nft('netdev', 'type filter hook egress device eth0 priority 0;',
                                f'ether daddr set {MBOX} ether saddr set {VMAC}')))
        if where == 'udp':
            yield case('nft-fwd', 'nft netdev fwd to (no source)',
                       (*DETOUR, nft('netdev', 'type filter hook egress device bpf0 priority 0;',
                                     'fwd ip to 192.0.2.9 device "eth0"')), MBOX, HOST, 2,
                       each=DETOUR_DESTINATIONS)
        else:
            yield case('nft-fwd', 'nft netdev fwd to, at ingress (no source)',
                       (OTHER, nft('netdev', 'type filter hook ingress device in0 priority 0;',
                                   'fwd ip to 192.0.2.9 device "eth0"')), MBOX, HOST)
            yield case('ipvs', 'IPVS DR (no source)',
                       ('ip link set lo up', 'ip route add local 203.0.113.0/24 dev lo', OTHER,
                        'ipvsadm -A -u 203.0.113.1:9 -s rr',
                        'ipvsadm -a -u 203.0.113.1:9 -r 192.0.2.9 -g'), MBOX, HOST)
        # A bridge finds its ports by a hash, too: the best of a few bridges.
        yield case('bridge', 'plain, bridge', (*BRIDGE, *PLAIN), GW, HOST, reference='bridge',
                   kernels='ufn', alternative=False, each=BRIDGES)
        yield case('bridge-src', 'gateway + src-lladdr, bridge',
                   (*BRIDGE, GATEWAY,
                    'ip nexthop add id 1 via 192.0.2.1 dev {dev} neigh src-lladdr {vmac}',
                    'ip route add 203.0.113.0/24 nhid 1'), GW, VMAC, reference='bridge',
                   alternative=False, each=BRIDGES)
        yield case('bridge-nft', 'nft bridge postrouting (source only)',
                   (*BRIDGE, *PLAIN, nft('bridge', 'type filter hook postrouting priority 0;',
                                         f'ether saddr set {VMAC}')), GW, VMAC,
                   reference='bridge', each=BRIDGES)
