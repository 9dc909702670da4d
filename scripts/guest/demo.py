#!/usr/bin/python3
"""What per-route neighbour overrides do to the frames on the wire.

Run as root in a guest that can be thrown away: it makes network namespaces.
Exit status: 0 when every row of the table is ok.
"""
#
#   host                 mbox                 gw                     server
#   192.0.2.2            192.0.2.9            192.0.2.1
#   2001:db8::2          2001:db8::9          2001:db8::1
#     | eth0               | eth0          eth0 |   | eth1         eth0 |
#   ==+====================+====================+== +===================+==
#     ^                lan, a bridge              198.51.100.1    198.51.100.2
#     |                                                           203.0.113.0/24
#     frames are captured here, on the bridge's side of the cable
#
# Every host is a network namespace, and so is the bridge.  host sends UDP to
# server, each case to a prefix of its own.  gw is the gateway of host and of
# mbox; mbox, a middlebox, forwards what it gets to gw: whichever way a packet
# goes, it has to reach server.

import collections
import contextlib
import ctypes
import ipaddress
import os
import select
import socket
import struct
import subprocess
import sys
import textwrap
import time

import netlink

HOST, GW, MBOX = '02:00:00:00:00:02', '02:00:00:00:00:01', '02:00:00:00:00:09'
VMAC = '00:00:5e:00:01:07'
LEGEND = {'host': HOST, 'gw': GW, 'mbox': MBOX, 'virtual router': VMAC}

LIBC = ctypes.CDLL(None, use_errno=True)
PREFIXES = ipaddress.ip_network('203.0.113.0/24').subnets(new_prefix=29)
PORT = 7007
ETH_P_ALL = 3
DEADLINE = 3    # seconds that a packet may take

# name, link-layer address, number of its addresses on the LAN
LAN_HOSTS = (('host', HOST, 2), ('gw', GW, 1), ('mbox', MBOX, 9))
SYSCTLS = {
    # No duplicate address detection: it takes a second.
    'net/ipv6/conf/all/accept_dad': 0, 'net/ipv6/conf/default/accept_dad': 0,
    # gw and mbox forward; mbox does not tell host about the shorter way.
    'net/ipv4/ip_forward': 1,
    'net/ipv4/conf/all/send_redirects': 0, 'net/ipv4/conf/default/send_redirects': 0,
    # Spread by ports too, so that both legs are seen after a few packets.
    'net/ipv4/fib_multipath_hash_policy': 1,
}

# arp: the ARP packets that passed between sending and the frame
Frame = collections.namedtuple('Frame', 'dst src arp problem')
# expected, seen: (dst, src) or a text
Row = collections.namedtuple('Row', 'note expected seen problem')


class Failure(Exception):
    """A case can not go on."""


# --- the hosts ---

@contextlib.contextmanager
def inside(name):
    """Be in a network namespace for a while."""
    with open('/proc/self/ns/net', 'rb') as home, open(f'/run/netns/{name}', 'rb') as there:
        if LIBC.setns(there.fileno(), 0):
            raise OSError(ctypes.get_errno(), f'setns {name}')
        try:
            yield
        finally:
            LIBC.setns(home.fileno(), 0)


def ip_batch(name, *lines):
    """Run lines of 'ip' in a namespace."""
    command = ['ip', *(['-n', name] if name else []), '-batch', '-']
    done = subprocess.run(command, input='\n'.join(lines), text=True,
                          capture_output=True, check=False)
    if done.returncode:
        raise Failure(done.stderr.strip().partition('\n')[0])


def set_up():
    """The topology at the top of this file."""
    names = ['lan', 'server', *(name for name, _, _ in LAN_HOSTS)]
    ip_batch(None, *(f'netns add {name}' for name in names))
    for name in names:
        with inside(name):
            for key, value in SYSCTLS.items():
                with open(f'/proc/sys/{key}', 'w', encoding='ascii') as file:
                    file.write(str(value))

    ip_batch('lan', 'link add br0 type bridge', 'link set br0 up')
    for name, mac, number in LAN_HOSTS:
        ip_batch('lan', f'link add {name} address 02:00:00:00:01:{number:02} type veth '
                        f'peer name eth0 address {mac} netns {name}',
                 f'link set {name} master br0 up')
        ip_batch(name, f'address add 192.0.2.{number}/24 dev eth0',
                 f'address add 2001:db8::{number}/64 dev eth0', 'link set eth0 up')
    for name in 'host', 'mbox':
        ip_batch(name, 'route add default via 192.0.2.1')

    ip_batch('gw', 'link add eth1 address 02:00:00:00:02:01 type veth '
                   'peer name eth0 address 02:00:00:00:02:02 netns server',
             'address add 198.51.100.1/24 dev eth1', 'link set eth1 up')
    ip_batch('server', 'link set lo up', 'address add 198.51.100.2/24 dev eth0',
             'link set eth0 up', 'route add default via 198.51.100.1',
             'route add local 203.0.113.0/24 dev lo')
    ip_batch('gw', 'route add 203.0.113.0/24 via 198.51.100.2')


@contextlib.contextmanager
def allowed_redirects(name, what):
    """Let a host send or accept ICMP redirects for a while."""
    files = [f'/proc/sys/net/ipv4/conf/{dev}/{what}' for dev in ('all', 'eth0')]

    def write(value):
        with inside(name):
            for path in files:
                with open(path, 'w', encoding='ascii') as file:
                    file.write(value)
    write('1')
    try:
        yield
    finally:
        write('0')


def ip(line):
    """Run a line of stock 'ip' on host; return what it prints."""
    done = subprocess.run(['ip', '-n', 'host', *line.split()], text=True,
                          capture_output=True, check=False)
    if done.returncode:
        raise Failure(f'ip {line}: {done.stderr.strip()}')
    return done.stdout


def nft(rules):
    """Run nft where we are."""
    done = subprocess.run(['nft', rules], text=True, capture_output=True, check=False)
    if done.returncode:
        raise Failure(f'nft: {done.stderr.strip()}')


def nl(line):
    """Run a line of netlink.py on host; return what it prints."""
    with inside('host'):
        try:
            return '\n'.join(netlink.run(line.split()))
        except netlink.KernelError as error:
            raise Failure(f'netlink.py {line}: {error}') from error


def netlink_here(_, line):
    """Run a line of netlink.py where we are."""
    return '\n'.join(netlink.run(line.split()))


# --- packets ---

def describe(data):
    """What a frame carries, as far as it matters here."""
    if data[12:14] == b'\x08\x06':
        if data[21] == 1:
            return 'ARP', 'request', socket.inet_ntoa(data[38:42])
        return 'ARP', 'reply', socket.inet_ntoa(data[28:32])
    if data[12:14] == b'\x08\x00' and data[23] == socket.IPPROTO_UDP:
        payload = 14 + 4 * (data[14] & 15) + 8
        return 'UDP', socket.inet_ntoa(data[30:34]), data[payload:]
    if data[12:14] == b'\x08\x00' and data[23] == socket.IPPROTO_ICMP and data[34] == 5:
        return 'redirect', socket.inet_ntoa(data[30:34]), socket.inet_ntoa(data[38:42])
    return None


class Wire:
    """Sends from host to server, and watches host's cable meanwhile."""

    def __init__(self):
        self.captures = {}
        for port in 'host', 'mbox':
            with inside('lan'):
                self.captures[port] = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
                self.captures[port].bind((port, ETH_P_ALL))
            self.captures[port].setblocking(False)
        with inside('server'):
            self.server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.server.bind(('0.0.0.0', PORT))
        self.server.setblocking(False)
        self.sent = 0
        self.passed = []    # what captured() found for the last datagram

    @staticmethod
    def flow(address):
        """A connected socket on host: it keeps its route as long as that is valid."""
        with inside('host'):
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.connect((str(address), PORT))
        return sock

    def send(self, address, behind=None):
        """Send one datagram from a new socket; return its Frame."""
        with self.flow(address) as sock:
            return self.send_on(sock, behind)

    def send_on(self, sock, behind=None):
        """Send one datagram; return its Frame on host's cable, or on the cable
        and with the destination that behind names."""
        self.sent += 1
        payload = b'datagram %d' % self.sent
        port, address = behind or ('host', sock.getpeername()[0])
        self.captured(port)
        sock.send(payload)
        problem = None if self.delivered(payload) else 'it did not reach server'

        # What has reached server has passed the capture before.
        self.passed = frames = self.captured(port)
        wanted = 'UDP', str(address), payload
        places = [place for place, (what, _, from_host) in enumerate(frames)
                  if what == wanted and from_host == (port == 'host')]
        if not places:
            return Frame(None, None, [], 'no frame on the wire')
        if len(places) > 1:
            problem = f'it was {len(places)} times on the wire'
        arp = [what for what, _, _ in frames[:places[0]] if what and what[0] == 'ARP']
        data = frames[places[0]][1]
        return Frame(data[0:6].hex(':'), data[6:12].hex(':'), arp, problem)

    def redirect(self, address, gateway):
        """Let gw tell host to use another gateway for an address."""
        # The header that comes back is host's, of a datagram to address.
        header = (bytes.fromhex('4500001c000000004011') + bytes(2) +
                  socket.inet_aton('192.0.2.2') + socket.inet_aton(str(address)))
        message = struct.pack('!BBH4s', 5, 1, 0, socket.inet_aton(gateway)) + header + bytes(8)
        checksum = sum(struct.unpack(f'!{len(message) // 2}H', message))
        checksum = (checksum & 0xffff) + (checksum >> 16)
        checksum = ~((checksum & 0xffff) + (checksum >> 16)) & 0xffff
        with inside('gw'):
            raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        with raw:
            self.captured('host')
            raw.sendto(message[:2] + struct.pack('!H', checksum) + message[4:], ('192.0.2.2', 0))

    def captured(self, port):
        """(what, frame, whether it came in there) of all that passed since last time."""
        frames = []
        with contextlib.suppress(BlockingIOError):
            while True:
                data, address = self.captures[port].recvfrom(2048)
                frames.append((describe(data), data, address[2] != socket.PACKET_OUTGOING))
        return frames

    def delivered(self, payload):
        """Wait for a datagram on server."""
        deadline = time.monotonic() + DEADLINE
        while select.select([self.server], [], [], max(0, deadline - time.monotonic()))[0]:
            if self.server.recv(2048) == payload:
                return True
        return False


# --- cases ---

def expect(frame, dst, src=HOST, note=''):
    """The row of a frame."""
    return Row(note, (dst, src), (frame.dst, frame.src), frame.problem)


def expect_spread(wire, prefix, note, *legs):
    """A row for each of the legs that packets to a prefix are spread over."""
    seen = {}
    for address in [*prefix] * 4:
        frame = wire.send(address)
        if frame.problem or (frame.dst, frame.src) not in seen:
            seen[frame.dst, frame.src] = frame
        if frame.problem or address == prefix[-1] and seen.keys() >= {*legs}:
            break
    for number, leg in enumerate(legs, 1):
        frame = seen.pop(leg, Frame(None, None, [], 'no packet went this way'))
        yield expect(frame, *leg, f'{note} {number}')
    for frame in seen.values():
        yield expect(frame, None, None, f'{note} ?')


def add_override(prefix, number, neigh):
    """A route by a nexthop object that has the gateway and an override."""
    nl(f'nexthop add id {number} via 192.0.2.1 dev eth0 neigh {neigh}')
    ip(f'route add {prefix} nhid {number}')


def plain(wire, prefix):
    """plain route"""
    ip(f'route add {prefix} via 192.0.2.1')
    yield expect(wire.send(prefix[1]), GW)


def via_link(wire, prefix):
    """route via link"""
    ip(f'route add {prefix} via link {MBOX} dev eth0')
    yield expect(wire.send(prefix[1]), MBOX)


def multipath(wire, prefix):
    """multipath via link"""
    ip(f'route add {prefix} nexthop via link {MBOX} dev eth0 nexthop via link {GW} dev eth0')
    yield from expect_spread(wire, prefix, ': leg', (MBOX, HOST), (GW, HOST))


def neigh_via(wire, prefix):
    """neigh via"""
    add_override(prefix, 1, 'via 192.0.2.9')
    yield expect(wire.send(prefix[1]), MBOX)


def neigh_via6(wire, prefix):
    """neigh via inet6"""
    add_override(prefix, 2, 'via inet6 2001:db8::9')
    yield expect(wire.send(prefix[1]), MBOX)


def neigh_lladdr(wire, prefix):
    """neigh lladdr"""
    add_override(prefix, 3, f'lladdr {MBOX}')
    yield expect(wire.send(prefix[1]), MBOX)


def neigh_source(wire, prefix):
    """neigh src-lladdr"""
    add_override(prefix, 4, f'src-lladdr {VMAC}')
    yield expect(wire.send(prefix[1]), GW, VMAC)


def neigh_both(wire, prefix):
    """neigh lladdr src-lladdr"""
    add_override(prefix, 5, f'lladdr {MBOX} src-lladdr {VMAC}')
    yield expect(wire.send(prefix[1]), MBOX, VMAC)


def waited(wire, prefix):
    """a packet that waited for ARP"""
    add_override(prefix, 6, f'via 192.0.2.9 src-lladdr {VMAC}')
    ip('neigh flush to 192.0.2.9 dev eth0')
    frame = wire.send(prefix[1])
    arp = [what for _, what, address in frame.arp if address == '192.0.2.9']
    if not frame.problem and (arp[:1], arp[-1:]) != (['request'], ['reply']):
        frame = frame._replace(problem=f'no ARP exchange before it, but {frame.arp}')
    yield expect(frame, MBOX, VMAC)


def group(wire, prefix):
    """nexthop group"""
    nl(f'nexthop add id 7 via 192.0.2.1 dev eth0 neigh src-lladdr {VMAC}')
    nl(f'nexthop add id 8 dev eth0 neigh lladdr {MBOX}')
    ip('nexthop add id 9 group 7/8')
    ip(f'route add {prefix} nhid 9')
    yield from expect_spread(wire, prefix, ': member', (GW, VMAC), (MBOX, HOST))


def dead_gateway(wire, prefix):
    """dead gateways"""
    ip('neigh add 192.0.2.77 nud failed dev eth0')
    nl(f'nexthop add id 12 via 192.0.2.77 dev eth0 neigh lladdr {MBOX}')
    nl('nexthop add id 13 via 192.0.2.77 dev eth0 neigh via 192.0.2.1')
    ip('nexthop add id 14 group 12/13')
    ip(f'route add {prefix} nhid 14')
    yield from expect_spread(wire, prefix, ': member', (MBOX, HOST), (GW, HOST))


def dead_default(wire, prefix):
    """dead default gateway"""
    nl(f'nexthop add id 16 via 192.0.2.77 dev eth0 neigh lladdr {MBOX}')
    ip('nexthop add id 17 via 192.0.2.1 dev eth0')
    ip('route add default table 100 nhid 16')
    ip('route append default table 100 nhid 17')
    ip(f'rule add to {prefix} lookup 100')
    yield expect(wire.send(prefix[1]), MBOX)


def replaced(wire, prefix):
    """nexthop object"""
    add_override(prefix, 10, f'lladdr {MBOX}')
    with wire.flow(prefix[1]) as sock:
        yield expect(wire.send_on(sock), MBOX, HOST, ': added')
        nl(f'nexthop replace id 10 via 192.0.2.1 dev eth0 neigh lladdr {GW} src-lladdr {VMAC}')
        yield expect(wire.send_on(sock), GW, VMAC, ': replaced')
        nl('nexthop replace id 10 via 192.0.2.1 dev eth0')
        yield expect(wire.send_on(sock), GW, HOST, ': no override')


def deleted(wire, prefix):
    """route"""
    ip(f'route add {prefix} via link {MBOX} dev eth0')
    with wire.flow(prefix[1]) as sock:
        yield expect(wire.send_on(sock), MBOX, HOST, ': added')
        ip(f'route delete {prefix} via link {MBOX} dev eth0')
        yield expect(wire.send_on(sock), GW, HOST, ': deleted')


def redirect_sent(wire, prefix):
    """redirect by mbox"""
    ip(f'route add {prefix} via 192.0.2.9')
    ip_batch('mbox', f'route add {prefix} via 192.0.2.1 dev eth0')
    for note, route in ((': plain', 'via 192.0.2.1'), (': override', f'via link {GW}')):
        ip_batch('mbox', f'route replace {prefix} {route} dev eth0')
        with allowed_redirects('mbox', 'send_redirects'):
            frame = wire.send(prefix[1])
            redirects = [what for what, *_ in wire.passed if what and what[0] == 'redirect']
        if bool(redirects) != (note == ': plain'):
            frame = frame._replace(problem=f'redirects sent: {redirects}')
        yield expect(frame, MBOX, HOST, note)
    # What host was told about the plain route
    ip('route flush cache')


def redirect_received(wire, prefix):
    """redirect by gw"""
    nl(f'nexthop add id 18 via 192.0.2.1 dev eth0 neigh lladdr {GW}')
    ip(f'route add {prefix} nhid 18')
    ip(f'neigh replace 192.0.2.9 lladdr {MBOX} dev eth0')
    with allowed_redirects('host', 'accept_redirects'):
        yield expect(wire.send(prefix[1]), GW, HOST, ': before')
        wire.redirect(prefix[1], '192.0.2.9')
        frame = wire.send(prefix[1])
        seen = nl(f'route get {prefix[1]}')
        if 'via 192.0.2.9 ' not in seen:
            frame = frame._replace(problem=f'the gateway did not change: {seen}')
        yield expect(frame, GW, HOST, ': after')


def bridge_dnat(wire, prefix):
    """DNAT on the bridge"""
    ip(f'route add {prefix} via 192.0.2.1')
    ip_batch('lan', 'address add 192.0.2.100/24 dev br0',
             f'route add {prefix} via link {MBOX} dev br0')
    rules = (f'table ip nat {{ chain pre {{ type nat hook prerouting priority -100; '
             f'ip daddr {prefix[1]} udp dport {PORT} dnat to {prefix[2]}; }}; }}')
    with inside('lan'):
        with open('/proc/sys/net/bridge/bridge-nf-call-iptables', 'w', encoding='ascii') as file:
            file.write('1')
        nft(rules)
    yield expect(wire.send(prefix[1], behind=('mbox', prefix[2])), MBOX, HOST)
    with inside('lan'):
        nft('flush ruleset')


def route_get(_, prefix):
    """ip route get"""
    ip(f'route add {prefix} via link {MBOX} dev eth0')
    expected = f'{prefix[1]} via link {MBOX} dev eth0'
    yield Row('', expected, ip(f'route get {prefix[1]}').partition(' src ')[0], None)


def netlink_get(_, prefix):
    """netlink.py"""
    add_override(prefix, 11, 'via 192.0.2.9')
    words = 'via 192.0.2.1 dev eth0 neigh via 192.0.2.9'
    yield Row(' route get', f'{prefix[1]} {words}', nl(f'route get {prefix[1]}'), None)
    yield Row(' nexthop show', f'id 11 {words}', nl('nexthop show id 11'), None)


def refused_by_hardware(_, prefix):
    """netdevsim"""
    # It programs the routes of the namespace that it is made in.
    with open('/sys/bus/netdevsim/new_device', 'w', encoding='ascii') as file:
        file.write('1 1')
    device, = os.listdir('/sys/bus/netdevsim/devices/netdevsim1/net')
    ip_batch(None, f'address add 192.0.2.2/24 dev {device}', f'link set {device} up')
    expected = 'netdevsim: Neighbour overrides are not supported'
    for note, command, line in (
            (' route', ip_batch, f'route add {prefix} via link {MBOX} dev {device}'),
            (' nexthop', netlink_here, f'nexthop add id 15 dev {device} neigh lladdr {MBOX}')):
        try:
            seen = command(None, line) or 'not refused'
        except (Failure, netlink.KernelError) as error:
            seen = str(error)
        yield Row(note, expected, expected if expected in seen else seen, None)


CASES = (plain, via_link, multipath, neigh_via, neigh_via6, neigh_lladdr, neigh_source,
         neigh_both, waited, group, dead_gateway, dead_default, replaced, deleted,
         redirect_sent, redirect_received, bridge_dnat, route_get, netlink_get, refused_by_hardware)


# --- the table ---

def print_line(case, *cells):
    """One line of the table."""
    print('  '.join([f'{case:28}', *(f'{cell:17}' for cell in cells)]).rstrip())


def print_row(case, row):
    """Print a row; return whether it is ok."""
    okay = row.expected == row.seen and not row.problem
    result = 'ok' if okay else 'FAIL'
    if isinstance(row.seen, str):
        print(f'{case + row.note:28}  {row.seen:74}  {result}')
    else:
        (dst, src), (seen_dst, seen_src) = row.expected, row.seen
        print_line(case + row.note, *(cell or '-' for cell in (dst, seen_dst, src, seen_src)),
                   result)
    reason = row.problem or f'expected: {row.expected}'
    if not okay and (row.problem or isinstance(row.seen, str)):
        print(textwrap.fill(reason, 110, initial_indent='    ', subsequent_indent='    '))
    sys.stdout.flush()
    return okay


def run_case(case, wire, prefix):
    """The rows of a case; what goes wrong makes a row as well."""
    try:
        yield from case(wire, prefix)
    except Exception as error:      # pylint: disable=broad-except
        reason = str(error) if isinstance(error, Failure) else repr(error)
        yield Row('', (None, None), (None, None), reason)


def main():
    """Print the table; return the exit status."""
    try:
        set_up()
        wire = Wire()
    except (Failure, OSError) as error:
        print(f'demo.py: cannot make the topology: {error}', file=sys.stderr)
        return 1
    print('  '.join(f'{name} {address}' for name, address in LEGEND.items()), end='\n\n')
    print_line('case', 'destination', '', 'source')
    print_line('', 'expected', 'seen', 'expected', 'seen')
    results = [print_row(case.__doc__, row) for case, prefix in zip(CASES, PREFIXES)
               for row in run_case(case, wire, prefix)]
    print(f'{results.count(True)} ok, {results.count(False)} FAIL')
    return 0 if all(results) else 1


if __name__ == '__main__':
    sys.exit(main())
