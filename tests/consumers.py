"""Whatever sends packets over an overridden route, not only UDP sockets."""

import contextlib
import errno
import re
import select
import socket
import subprocess
from ipaddress import ip_address, ip_network

from lab import (DEADLINE, ETH_P_ALL, GW, HOST, IPV4, IPV6, MBOX, PORT, VMAC, Failure, Row,
                 add_override, both, family, inside, ip, ip_batch, netlink_here, nft, nl,
                 refusal, set_sysctls)
from lab import forget as forget_neighbours

BOTH = f'lladdr {MBOX} src-lladdr {VMAC}'
# One more host on the LAN: its device, and what is below that
NODE, NODE_BELOW = '02:00:00:00:00:05', '02:00:00:00:00:06'
INNER = '02:00:00:00:03:02'

# <linux/in.h>, <linux/udp.h>
IP_PMTUDISC_DONT, IP_PMTUDISC_WANT, IP_PMTUDISC_DO = 0, 1, 2
# IP_MTU_DISCOVER and, of <linux/in6.h>, IPV6_MTU_DISCOVER and IPV6_FREEBIND
MTU_DISCOVER = {IPV4: (socket.IPPROTO_IP, 10), IPV6: (socket.IPPROTO_IPV6, 23)}
IPV6_FREEBIND = 78
SOL_UDP, UDP_SEGMENT = 17, 103
TCP_FIN, TCP_SYN, TCP_RST = 1, 2, 4


# --- what the cases share ---

def run_in(name, command):
    """Run a command in a namespace; return what it prints."""
    with inside(name):
        done = subprocess.run(command.split(), text=True, capture_output=True, check=False)
    if done.returncode:
        raise Failure(f'{command}: {done.stderr.strip()}')
    return done.stdout


def netlink_in(name, line):
    """Run a line of netlink.py in a namespace."""
    with inside(name):
        return netlink_here(name, line)


def connected(name, address, device=None):
    """A UDP socket in a namespace, perhaps bound to a device."""
    with inside(name):
        sock = socket.socket(family(address).number, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    if device:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
    sock.connect((str(address), PORT))
    return sock


def forget(wire):
    """Nothing that has passed until now matters."""
    for port in wire.captures:
        wire.captured(port)


def deliver(wire, sock, size=0, segments=1):
    """Send datagrams of a size at once; return what went wrong."""
    wire.sent += 1
    parts = [(b'datagram %d.%d ' % (wire.sent, part)).ljust(size, b'.')
             for part in range(segments)]
    forget(wire)
    sock.send(b''.join(parts))
    return None if all(map(wire.delivered, parts)) else 'it did not reach server'


def frames_to(wire, address, protocol=socket.IPPROTO_UDP, port='host'):
    """The frames to an address that came from the host at a port."""
    wanted = protocol, ip_address(str(address))
    return [data for _, data, from_host in wire.captured(port)
            if from_host and protocol_and_destination(data) == wanted]


def protocol_and_destination(data):
    """Of an IP packet in a frame; for IPv6 what the first header says."""
    if data[12:14] == b'\x08\x00':
        return data[23], ip_address(data[30:34])
    return (data[20], ip_address(data[38:54])) if data[12:14] == b'\x86\xdd' else None


def past_ip(frame):
    """What comes after the IP header in a frame, which has no options."""
    return frame[14 + (20 if frame[12:14] == b'\x08\x00' else 40):]


def awaited(wire, address, protocol=socket.IPPROTO_UDP):
    """The frames from host to an address that server does not get."""
    frames = []
    while not frames and select.select([wire.captures['host']], [], [], DEADLINE)[0]:
        frames += frames_to(wire, address, protocol)
    return frames


def addresses(frame):
    """(destination, source) of a frame."""
    return frame[0:6].hex(':'), frame[6:12].hex(':')


def expect_frames(frames, lladdrs, note='', count=1, problem=None):
    """The row of frames that have all the same link-layer addresses."""
    seen = {addresses(frame) for frame in frames}
    if len(frames) != count:
        problem = problem or f'{len(frames)} frames instead of {count}'
    return Row(note, lladdrs, min(seen - {lladdrs} or seen, default=(None, None)), problem)


def expect_delivery(wire, sock, lladdrs, note='', port='host'):
    """The row of one datagram, on the cable of its sender or of another host."""
    problem = deliver(wire, sock)
    frames = frames_to(wire, sock.getpeername()[0], port=port)
    return expect_frames(frames, lladdrs, note, problem=problem)


@contextlib.contextmanager
def another_host(wire, bridge_end='node'):
    """A host on the LAN, node; what the bridge has of its cable may be a VLAN device."""
    ip_batch(None, 'netns add node')
    try:
        set_sysctls('node')
        ip_batch('lan', f'link add node type veth peer name eth0 address {NODE_BELOW} netns node',
                 'link set node up')
        if bridge_end != 'node':
            ip_batch('lan', f'link add link node name {bridge_end} type vlan id 5')
        ip_batch('lan', f'link set {bridge_end} master br0 up')
        with inside('lan'), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as capture:
            capture.bind(('node', ETH_P_ALL))
            capture.setblocking(False)
            wire.captures['node'] = capture
            yield bridge_end
    finally:
        wire.captures.pop('node', None)
        ip_batch('lan', 'link delete node')
        ip_batch(None, 'netns delete node')


def connect_node(device, bridge_end='node', fam=IPV4):
    """Give node's device its address, when all is up."""
    # The kernel notes a carrier later, but at once when somebody asks.
    ip_batch('node', 'link set eth0 up', 'link show dev eth0')
    ip_batch('lan', 'link show dev node', f'link show dev {bridge_end}')
    ip_batch('node', f'link set {device} up', f'link show dev {device}',
             f'address add {fam.lan}5/{fam.length} dev {device}')


# --- IPsec ---

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
    with connected('host', inner) as sock:
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


# --- VRF, IPVS ---

@both
def vrf(wire, prefix):
    """VRF"""
    fam = family(prefix)
    with another_host(wire):
        ip_batch('node', 'link add red type vrf table 10', 'link set red up',
                 'link set eth0 master red')
        connect_node('eth0', fam=fam)
        netlink_in('node', f'nexthop add id 203 via {fam.gw} dev eth0 neigh {BOTH}')
        ip_batch('node', f'route add {prefix[1]} vrf red nhid 203',
                 f'route add {prefix[2]} nhid 203')
        with connected('node', prefix[1], 'red') as sock:
            yield expect_delivery(wire, sock, (MBOX, VMAC), ': bound socket', 'node')
            # Now the VRF device transmits: it looks the route up again.
            run_in('node', 'tc qdisc add dev red root pfifo')
            yield expect_delivery(wire, sock, (MBOX, VMAC), ': through a qdisc', 'node')
            run_in('node', 'tc qdisc delete dev red root')
        with connected('node', prefix[2]) as sock:
            yield expect_delivery(wire, sock, (MBOX, VMAC), ': leaked route', 'node')


@contextlib.contextmanager
def balanced(service, server):
    """Direct routing on host: what goes to service is sent to server, as it is."""
    run_in('host', f'ipvsadm -A -u {service}:{PORT} -s rr')
    try:
        run_in('host', f'ipvsadm -a -u {service}:{PORT} -r {server}:{PORT} -g')
        yield
    finally:
        run_in('host', f'ipvsadm -D -u {service}:{PORT}')


def ipvs(wire, prefix):
    """IPVS"""
    add_override(prefix[2], 204, BOTH)
    with balanced(prefix[1], prefix[2]):
        with connected('host', prefix[1]) as sock:
            yield expect_delivery(wire, sock, (MBOX, VMAC), ': gateway')
        ip(f'route replace {prefix[2]} via link {MBOX} dev eth0')
        with connected('host', prefix[1]) as sock:
            yield expect_delivery(wire, sock, (MBOX, HOST), ': via link')


def ipvs_director(wire, prefix):
    """IPVS: from another host"""
    nl(f'nexthop add id 205 via 192.0.2.9 dev eth0 neigh lladdr {GW} src-lladdr {VMAC}')
    ip(f'route add {prefix[2]} nhid 205')
    ip(f'address add {prefix[1]} dev eth0')
    ip_batch('mbox', f'route add {prefix[1]} via 192.0.2.2')
    with balanced(prefix[1], prefix[2]), connected('mbox', prefix[1]) as sock:
        yield expect_delivery(wire, sock, (GW, VMAC))
        # mbox is known, but it is not host that sends.
        nl('nexthop replace id 205 via 192.0.2.1 dev eth0 neigh preserve strict')
        yield expect_delivery(wire, sock, (GW, HOST), ', preserve')
    ip(f'address delete {prefix[1]} dev eth0')


# --- tunnels ---

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
    with connected('host', prefix[2]) as sock:
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
    with connected('host', prefix[2]) as sock:
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
        with connected('host', prefix[1]) as sock:
            forget(wire)
            sock.send(b'inside')
        frames = awaited(wire, remote, socket.IPPROTO_GRE)
        seen = {f'GRE to {remote}, inside it to {frame[14 + 20 + 4:][:6].hex(":")}'
                for frame in frames}
        yield Row(note, f'GRE to {remote}, inside it to {INNER}', ', '.join(seen) or 'no frame',
                  None)
    ip('link delete gretap7')


# --- a packet that something else takes over ---

@both
def nft_fwd(wire, prefix):
    """nft fwd"""
    fam = family(prefix)
    add_override(prefix, 233, BOTH)
    table = 'ip6' if fam is IPV6 else 'ip'
    rules = (f'table netdev out {{ chain out {{ type filter hook egress device eth0 priority 0; '
             f'ether daddr {MBOX} {table} daddr {prefix[1]} fwd {table} to {fam.gw} '
             f'device eth0; }}; }}')
    try:
        with inside('host'):
            nft(rules)
    except Failure as error:
        if 'Could not process rule' not in str(error):
            raise
        yield Row('', None, 'not checked: the kernel has no fwd expression', None)
        return
    # The first one waits for gw.
    for note in ', first', ', then':
        if note == ', first':
            forget_neighbours(fam.gw)
        with connected('host', prefix[1]) as sock:
            yield expect_delivery(wire, sock, (GW, HOST), note)
    with connected('host', prefix[2]) as sock:
        yield expect_delivery(wire, sock, (MBOX, VMAC), ', others')
    with inside('host'):
        nft('delete table netdev out')


# --- fragments, segments, path MTU ---

def fragment(fam):
    """The protocol of what is a part of a UDP packet."""
    return socket.IPPROTO_FRAGMENT if fam is IPV6 else socket.IPPROTO_UDP


@both
def fragments(wire, prefix):
    """fragments"""
    fam = family(prefix)
    add_override(prefix, 209, BOTH)
    with connected('host', prefix[1]) as sock:
        problem = deliver(wire, sock, 4000)
    frames = frames_to(wire, prefix[1], fragment(fam))
    yield expect_frames(frames, (MBOX, VMAC), count=3, problem=problem)


@contextlib.contextmanager
def segmentation_off(name):
    """Let the kernel cut UDP segments before a host's device gets them."""
    run_in(name, 'ethtool -K eth0 tx-udp-segmentation off')
    try:
        yield
    finally:
        run_in(name, 'ethtool -K eth0 tx-udp-segmentation on')


@both
def gso(wire, prefix):
    """GSO"""
    add_override(prefix, 210, BOTH)
    with connected('host', prefix[1]) as sock:
        sock.setsockopt(SOL_UDP, UDP_SEGMENT, 1000)
        problem = deliver(wire, sock, 1000, 10)
        yield expect_frames(frames_to(wire, prefix[1]), (MBOX, VMAC), ': left to the device',
                            problem=problem)
        with segmentation_off('host'):
            problem = deliver(wire, sock, 1000, 10)
        yield expect_frames(frames_to(wire, prefix[1]), (MBOX, VMAC), ': in software', 10, problem)


def refused(sock, size):
    """What a datagram of a size is refused with."""
    try:
        sock.send(bytes(size))
    except OSError as error:
        return errno.errorcode[error.errno]
    return 'not refused'


@both
def pmtu(wire, prefix):
    """PMTU"""
    fam = family(prefix)
    add_override(prefix, 211, BOTH)
    mtu_discover = MTU_DISCOVER[fam]
    ip_batch('gw', f'route add {prefix} via {fam.beyond}2 mtu 1300')
    with connected('host', prefix[1]) as sock:
        sock.setsockopt(*mtu_discover, IP_PMTUDISC_DO)
        sock.send(bytes(1400))
        if not select.select([sock], [], [], DEADLINE)[0]:
            raise Failure('gw did not answer')
        # It is the error that came in.
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        found = re.search('mtu [0-9]+', ip(f'route get {prefix[1]}'))
        yield Row(': exception', 'mtu 1300', found and found[0] or 'none', None)
        yield Row(': override kept', f'{prefix[1]} via {fam.gw} dev eth0 neigh {BOTH}',
                  nl(f'route get {prefix[1]}'), None)
        yield Row(': too big', 'EMSGSIZE', refused(sock, 1400), None)
        yield expect_delivery(wire, sock, (MBOX, VMAC), ': small enough')
        sock.setsockopt(*mtu_discover, IP_PMTUDISC_WANT)
        problem = deliver(wire, sock, 1400)
        yield expect_frames(frames_to(wire, prefix[1], fragment(fam)), (MBOX, VMAC),
                            ': fragments', 2, problem)
        nl(f'nexthop replace id {fam.first + 211} via {fam.gw} dev eth0 neigh src-lladdr {VMAC}')
        yield expect_delivery(wire, sock, (GW, VMAC), ': override replaced')
    ip_batch('gw', f'route delete {prefix} via {fam.beyond}2')


# --- lookups, and packets that agree ---

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
        with connected('host', address) as sock:
            yield expect_delivery(wire, sock, (GW, HOST), f'{note}, no mark')
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 212)
            yield expect_delivery(wire, sock, lladdrs, note)
    ip(f'{fam.option} rule delete fwmark 212 to {prefix} lookup 212')


@both
def host_forwards(wire, prefix):
    """host forwards"""
    fam = family(prefix)
    number, mbox = fam.first + 213, fam.mbox
    neigh = f'lladdr {GW} src-lladdr {VMAC}'
    # IPv6 does not say where the packet comes from.
    comes = f' from {mbox}' * (fam is IPV4)
    nl(f'nexthop add id {number} via {fam.mbox} dev eth0 neigh {neigh}')
    ip(f'route add {prefix[1]} nhid {number}')
    ip(f'route add {prefix[2]} via link {GW} dev eth0')
    ip_batch('mbox', f'route add {prefix} via {fam.host}')
    yield Row(': netlink.py', f'{prefix[1]}{comes} via {mbox} dev eth0 neigh {neigh}',
              nl(f'route get {prefix[1]} from {mbox} iif eth0'), None)
    line = ' '.join(ip(f'route get {prefix[2]} from {mbox} iif eth0').split())
    yield Row(': ip route get', f'{prefix[2]}{comes} via link {GW} dev eth0',
              line.partition(' cache')[0].partition(' metric ')[0], None)
    with connected('mbox', prefix[1]) as sock:
        yield expect_delivery(wire, sock, (GW, VMAC))


@both
def mbox_forwards(wire, prefix):
    """mbox forwards"""
    fam = family(prefix)
    ip(f'route add {prefix} via {fam.mbox}')
    # Nobody has the gateway's address.
    first = fam.first + 214
    for number, address, metrics in (first, prefix[1], ''), (first + 2, prefix[2], 'mtu 600'):
        netlink_in('mbox', f'nexthop add id {number} via {fam.lan}77 dev eth0 '
                           f'neigh lladdr {GW} src-lladdr {VMAC}')
        ip_batch('mbox', f'route add {address} nhid {number} {metrics}')
    with connected('host', prefix[1]) as sock:
        yield expect_delivery(wire, sock, (GW, VMAC), port='mbox')
        sock.setsockopt(SOL_UDP, UDP_SEGMENT, 1000)
        with segmentation_off('mbox'):
            problem = deliver(wire, sock, 1000, 10)
        yield expect_frames(frames_to(wire, prefix[1], port='mbox'), (GW, VMAC), ': GSO', 10,
                            problem)
    # IPv6 routers do not cut packets.
    if fam is IPV6:
        return
    with connected('host', prefix[2]) as sock:
        sock.setsockopt(*MTU_DISCOVER[IPV4], IP_PMTUDISC_DONT)
        sock.setsockopt(SOL_UDP, UDP_SEGMENT, 1000)
        problem = deliver(wire, sock, 1000, 10)
        yield expect_frames(frames_to(wire, prefix[2], port='mbox'), (GW, VMAC),
                            ': GSO, fragments', 20, problem)


# --- TCP ---

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
        forget(wire)
        problem = converse(from_here, there, prefix[1])
        yield expect_segments(wire, prefix[1], TCP_SYN | TCP_FIN, ': to server', problem)
        problem = converse(from_there[0], here, fam.host)
        yield expect_segments(wire, prefix[1], TCP_SYN | TCP_FIN, ': from server', problem)
        code = from_there[1].connect_ex((fam.host, PORT + 1))
        problem = None if code == errno.ECONNREFUSED else 'it was not refused'
        yield expect_segments(wire, prefix[2], TCP_RST, ': refused', problem)


# --- devices ---

def device_rows(wire, prefix, number, device, *commands, bridge_end='node'):
    """Rows for each kind of override on a device of node."""
    with another_host(wire, bridge_end):
        ip_batch('node', *commands)
        yield from override_rows(wire, prefix, number, device, bridge_end)


def override_rows(wire, prefix, number, device, bridge_end='node'):
    """Rows for each kind of override on a device of node that is there."""
    fam = family(prefix)
    connect_node(device, bridge_end, fam)
    ip_batch('node', f'nexthop add id {number} via {fam.gw} dev {device}',
             f'route add {prefix} nhid {number}')
    for neigh, lladdrs in ((f'lladdr {MBOX}', (MBOX, NODE)), (BOTH, (MBOX, VMAC)),
                           (f'src-lladdr {VMAC}', (GW, VMAC))):
        netlink_in('node', f'nexthop replace id {number} via {fam.gw} dev {device} neigh {neigh}')
        note = ' '.join(neigh.split()[::2])
        with connected('node', prefix[1]) as sock:
            yield expect_delivery(wire, sock, lladdrs, f': {note}', 'node')


@both
def vlan(wire, prefix):
    """VLAN"""
    # The bridge gets nothing without the tag.
    yield from device_rows(wire, prefix, 220, 'vlan5',
                           f'link add link eth0 name vlan5 address {NODE} type vlan id 5',
                           bridge_end='node.5')


@both
def vlan_in_software(wire, prefix):
    """soft VLAN"""
    with another_host(wire, 'node.5') as bridge_end:
        run_in('node', 'ethtool -K eth0 tx-vlan-hw-insert off')
        ip_batch('node', f'link add link eth0 name vlan5 address {NODE} '
                         'type vlan id 5 reorder_hdr off')
        yield from override_rows(wire, prefix, 221, 'vlan5', bridge_end)


@both
def macvlan(wire, prefix):
    """macvlan"""
    yield from device_rows(wire, prefix, 222, 'macvlan0',
                           f'link add link eth0 name macvlan0 address {NODE} '
                           'type macvlan mode bridge')


@both
def ipvlan(wire, prefix):
    """ipvlan"""
    # It has the address of what is below.
    yield from device_rows(wire, prefix, 223, 'ipvlan0', f'link set eth0 address {NODE}',
                           'link add link eth0 name ipvlan0 type ipvlan mode l2')


@both
def bridge_device(wire, prefix):
    """bridge"""
    yield from device_rows(wire, prefix, 224, 'br0', f'link add br0 address {NODE} type bridge',
                           'link set eth0 master br0')


@both
def bond(wire, prefix):
    """bond"""
    yield from device_rows(wire, prefix, 225, 'bond0',
                           f'link add bond0 address {NODE} type bond mode active-backup',
                           'link set eth0 master bond0')


@both
def team(wire, prefix):
    """team"""
    with another_host(wire):
        ip_batch('node', f'link add team0 address {NODE} type team')
        run_in('node', 'teamnl team0 setoption mode activebackup')
        # Who makes a team is to give its ports the address.
        ip_batch('node', f'link set eth0 address {NODE} master team0')
        with inside('node'):
            port = socket.if_nametoindex('eth0')
        run_in('node', f'teamnl team0 setoption activeport {port}')
        yield from override_rows(wire, prefix, 226, 'team0')


OWN_SOURCE = 'Device can only send from its own address'


def refused_devices(wire, _):
    """device"""
    mac, source = f'neigh lladdr {MBOX}', f'neigh src-lladdr {VMAC}'
    # note, what to make on node, the last of them its device; override, refusal
    kinds = (
        ('ipvlan L3', ('link eth0 name dev0 type ipvlan mode l3',), mac,
         'Device ignores link-layer addresses'),
        ('ipvlan L3, arp on', ('link eth0 name dev0 type ipvlan mode l3',), mac,
         'Device ignores link-layer addresses'),
        ('ipvlan L3S, arp on', ('link eth0 name dev0 type ipvlan mode l3s',), mac,
         'Device ignores link-layer addresses'),
        ('ipvlan L2', ('link eth0 name dev0 type ipvlan mode l2',), mac, 'not refused'),
        ('ipvlan L2, arp off', ('link eth0 name dev0 type ipvlan mode l2',), mac, 'not refused'),
        ('GRE, destination', ('name dev0 type gre local 192.0.2.5',), 'neigh lladdr c0:00:02:09',
         'not refused'),
        ('GRE, source', ('name dev0 type gre local 192.0.2.5',), 'neigh src-lladdr c0:00:02:09',
         OWN_SOURCE),
        ('VLAN, source', ('link eth0 name dev0 type vlan id 5',), source, 'not refused'),
        ('macsec, destination', ('link eth0 name dev0 type macsec',), mac, 'not refused'),
        ('macsec, source', ('link eth0 name dev0 type macsec',), source, OWN_SOURCE),
        ('macsec, preserve', ('link eth0 name dev0 type macsec',), 'neigh preserve', OWN_SOURCE),
        ('VLAN on macsec, src', ('link eth0 name below0 type macsec',
                                    'link below0 name dev0 type vlan id 5'), source, OWN_SOURCE),
        ('station, destination', ('link eth0 name dev0 type virt_wifi',), mac, 'not refused'),
        ('station, source', ('link eth0 name dev0 type virt_wifi',), source, OWN_SOURCE),
        ('VLAN on station, src', ('link eth0 name below0 type virt_wifi',
                                       'link below0 name dev0 type vlan id 5'), source,
         OWN_SOURCE))
    for note, links, neigh, expected in kinds:
        with another_host(wire):
            ip_batch('node', 'link set eth0 up')
            made = [refusal('node', f'link add {link}') for link in links]
            if made[0] == 'Unknown device type':
                yield Row(f': {note}', None, 'not checked: the kernel has no such device', None)
                continue
            # Whether it resolves neighbours, in either case, does not matter.
            devices = ('below0', 'dev0')[-len(links):]
            ip_batch('node', *(f'link set {device} up' for device in devices),
                     *(f'link set dev0 {word}' for word in ('arp on', 'arp off') if word in note))
            yield Row(f': {note}', expected,
                      refusal('node', f'nexthop add id 234 dev dev0 {neigh}'), None)


# --- what an override is not for ---

def expect_many(wire, prefix, number, address, lladdr):
    """The rows of a packet to more than one host, behind one to a single host."""
    fam = family(prefix)
    number += fam.first
    nl(f'{fam.option} nexthop add id {number} dev eth0 neigh {BOTH}')
    many = str(ip_network((address, 16 if address.is_multicast else 32), strict=False))
    # The routes of IPv6 multicast are there.
    many += ' table local' * (fam is IPV6)
    for destination in prefix, many:
        ip(f'route add {destination} nhid {number}')

    def unicast(note):
        with connected('host', prefix[1]) as sock:
            return expect_delivery(wire, sock, (MBOX, VMAC), note)
    # Their routes could share what the nexthop caches.
    yield unicast(': unicast before')
    with connected('host', address) as sock:
        sock.send(b'to whom it may concern')
    yield expect_frames(awaited(wire, address), (lladdr, HOST))
    yield unicast(': unicast behind')
    ip(f'route delete {many}')


@both
def multicast(wire, prefix):
    """multicast"""
    address, lladdr = {IPV4: ('239.1.2.3', '01:00:5e:01:02:03'),
                       IPV6: ('ff05::1:3', '33:33:00:01:00:03')}[family(prefix)]
    yield from expect_many(wire, prefix, 230, ip_address(address), lladdr)


def broadcast(wire, prefix):
    """broadcast"""
    yield from expect_many(wire, prefix, 231, ip_address('255.255.255.255'), 'ff:ff:ff:ff:ff:ff')


CASES = (xfrm_transport, xfrm_tunnel, vrf, ipvs, ipvs_director, gre, vxlan, gretap, nft_fwd,
         fragments, gso, pmtu, marked, host_forwards, mbox_forwards, tcp, vlan, vlan_in_software,
         macvlan, ipvlan, bridge_device, bond, team, refused_devices, multicast, broadcast)
