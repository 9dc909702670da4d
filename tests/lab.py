"""A LAN in network namespaces, and a watcher on its wire: what the cases share."""
#
#   host                 mbox                 gw                     server
#   192.0.2.2            192.0.2.9            192.0.2.1
#   2001:db8::2          2001:db8::9          2001:db8::1
#     | eth0               | eth0          eth0 |   | eth1         eth0 |
#   ==+====================+====================+== +===================+==
#     ^                lan, a bridge              198.51.100.1    198.51.100.2
#     |                                           2001:db8:ff::1  2001:db8:ff::2
#     |                                                         203.0.113.0/24,
#     |                                                       198.51.100.128/25,
#     |                                                       2001:db8:100::/56
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
import pathlib
import select
import socket
import subprocess
import time

HOST, GW, MBOX = '02:00:00:00:00:02', '02:00:00:00:00:01', '02:00:00:00:00:09'
VMAC = '00:00:5e:00:01:07'
LEGEND = {'host': HOST, 'gw': GW, 'mbox': MBOX, 'virtual router': VMAC}

# It knows overrides: scripts/iproute2 builds it.
IP = str(pathlib.Path(__file__).resolve().parents[1] / 'build/iproute2/ip/ip')
LIBC = ctypes.CDLL(None, use_errno=True)
# Behind server; each case has a part of them for itself, of each of its families.
NETWORKS = tuple(map(ipaddress.ip_network, ('203.0.113.0/24', '198.51.100.128/25')))
PREFIXES = tuple(prefix for network in NETWORKS for prefix in network.subnets(new_prefix=30))
NETWORK6 = ipaddress.ip_network('2001:db8:100::/56')
# As long as those of IPv4
PREFIXES6 = tuple(ipaddress.ip_network((NETWORK6[place << 64], 126)) for place in range(128))
KMEMLEAK, ALLOCINFO = '/sys/kernel/debug/kmemleak', '/proc/allocinfo'
PORT = 7007
ETH_P_ALL = 3
DEADLINE = 3    # seconds that a packet may take

# name, link-layer address, number of its addresses on the LAN
LAN_HOSTS = (('host', HOST, 2), ('gw', GW, 1), ('mbox', MBOX, 9))
SYSCTLS = {
    # No duplicate address detection: it takes a second.
    'net/ipv6/conf/all/accept_dad': 0, 'net/ipv6/conf/default/accept_dad': 0,
    # gw and mbox forward; mbox does not tell host about the shorter way.  That of IPv6 has no
    # link-local address, and so it is not told either.
    'net/ipv4/ip_forward': 1, 'net/ipv6/conf/all/forwarding': 1,
    'net/ipv4/conf/all/send_redirects': 0, 'net/ipv4/conf/default/send_redirects': 0,
    # Spread by ports too, so that both legs are seen after a few packets.
    'net/ipv4/fib_multipath_hash_policy': 1, 'net/ipv6/fib_multipath_hash_policy': 1,
}

# lan: what the addresses on the LAN begin with, beyond: those behind gw; first: what is
# added to the numbers of nexthop objects
Family = collections.namedtuple('Family', 'number option lan length beyond host gw mbox first')
IPV4 = Family(socket.AF_INET, '-4', '192.0.2.', 24, '198.51.100.',
              '192.0.2.2', '192.0.2.1', '192.0.2.9', 0)
IPV6 = Family(socket.AF_INET6, '-6', '2001:db8::', 64, '2001:db8:ff::',
              '2001:db8::2', '2001:db8::1', '2001:db8::9', 1000)
# <linux/in.h>, <linux/in6.h>
TRANSPARENT = {IPV4: (socket.IPPROTO_IP, 19), IPV6: (socket.IPPROTO_IPV6, 75)}

Frame = collections.namedtuple('Frame', 'dst src problem')
# expected, seen: (dst, src) or a text; expected is None: seen says why it was not checked
Row = collections.namedtuple('Row', 'note expected seen problem')


class Failure(Exception):
    """A case can not go on."""


# --- families ---

def family(address):
    """What the LAN has of the family of an address or a prefix."""
    return IPV6 if ':' in str(address) else IPV4


def both(case):
    """Mark a case that is for IPv6 as well."""
    case.families = IPV4, IPV6
    return case


def only6(case):
    """Mark a case that is for IPv6 only."""
    case.families = (IPV6,)
    return case


def without_inet6(fam, kinds):
    """Kinds of overrides by their notes: for IPv6 'via' says it all."""
    return [kind for kind in kinds if fam is IPV4 or 'inet6' not in kind[0]]


def knows_ipv6():
    """Whether this kernel has overrides of IPv6 routes: 6.12 has not."""
    route = f'{PREFIXES6[-1]} via link {MBOX} dev eth0'
    if refusal('host', f'route add {route}') == 'IPv6 does not support RTA_VIA attribute':
        return False
    ip(f'route delete {route}')
    return True


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


def write(path, value):
    """Write a file of the kernel's, where we are."""
    with open(path, 'w', encoding='ascii') as file:
        file.write(f'{value}')


def run(*words, given=None):
    """Run a program where we are; return what it prints."""
    done = subprocess.run(words, input=given, text=True, capture_output=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or f'status {done.returncode}').partition('\n')[0]
        raise Failure(f'{" ".join(words)}: {said}')
    return done.stdout


def run_in(name, command):
    """Run a command in a namespace; return what it prints."""
    with inside(name):
        return run(*command.split())


def ip_in(name, line, *batch):
    """Run a line of 'ip' in a namespace, or where we are; return what it prints."""
    return run(IP, *(['-n', name] if name else []), *line.split(), given='\n'.join(batch))


def ip_batch(name, *lines):
    """Run lines of 'ip' in a namespace."""
    ip_in(name, '-batch -', *lines)


def set_sysctls(name):
    """Make a new host one of ours."""
    with inside(name):
        for key, value in SYSCTLS.items():
            write(f'/proc/sys/{key}', value)


def set_up():
    """The topology at the top of this file."""
    names = ['lan', 'server', *(name for name, _, _ in LAN_HOSTS)]
    ip_batch(None, *(f'netns add {name}' for name in names))
    for name in names:
        set_sysctls(name)

    ip_batch('lan', 'link add br0 type bridge', 'link set br0 up')
    for name, mac, number in LAN_HOSTS:
        ip_batch('lan', f'link add {name} address 02:00:00:00:01:{number:02} type veth '
                        f'peer name eth0 address {mac} netns {name}',
                 f'link set {name} master br0 up')
        ip_batch(name, f'address add 192.0.2.{number}/24 dev eth0',
                 f'address add 2001:db8::{number}/64 dev eth0', 'link set eth0 up')
    for name in 'host', 'mbox':
        ip_batch(name, 'route add default via 192.0.2.1', 'route add default via 2001:db8::1')

    ip_batch('gw', 'link add eth1 address 02:00:00:00:02:01 type veth '
                   'peer name eth0 address 02:00:00:00:02:02 netns server',
             'address add 198.51.100.1/24 dev eth1', 'address add 2001:db8:ff::1/64 dev eth1',
             'link set eth1 up')
    networks = *NETWORKS, NETWORK6
    ip_batch('server', 'link set lo up', 'address add 198.51.100.2/24 dev eth0',
             'address add 2001:db8:ff::2/64 dev eth0', 'link set eth0 up',
             'route add default via 198.51.100.1', 'route add default via 2001:db8:ff::1',
             *(f'route add local {network} dev lo' for network in networks))
    ip_batch('gw', *(f'route add {network} via {behind_gw(network)}' for network in networks))


def behind_gw(network):
    """The address by which gw reaches server."""
    return '2001:db8:ff::2' if family(network) is IPV6 else '198.51.100.2'


@contextlib.contextmanager
def sysctls(name, values):
    """Set sysctls of a host, {path below /proc/sys: value}, for a while."""
    def swap(values):
        before = {}
        with inside(name):
            for path, value in values.items():
                before[path] = pathlib.Path('/proc/sys', path).read_text(encoding='ascii')
                write(f'/proc/sys/{path}', value)
        return before

    before = swap(values)
    try:
        yield
    finally:
        swap(before)


def ip(line):
    """Run a line of 'ip' on host; return what it prints."""
    return ip_in('host', line)


def nobody(fam):
    """An address on the LAN that nobody has."""
    return f'{fam.lan}237'


def know(*addresses, state='reachable'):
    """Let host have valid neighbour entries."""
    for address in addresses:
        lladdr = GW if address == family(address).gw else MBOX
        ip(f'neigh replace {address} lladdr {lladdr} nud {state} dev eth0')


def forget(*addresses):
    """Let host have no neighbour entries, not even permanent ones."""
    # Host learns from whoever asks for it: let nobody be about to do so.
    for name in 'gw', 'mbox':
        ip_batch(name, *(f'neigh replace {address} lladdr {HOST} dev eth0 nud reachable'
                         for address in ('192.0.2.2', '2001:db8::2')))
    for address in addresses:
        ip(f'neigh flush to {address} dev eth0 nud all')


def refusal(name, line):
    """Why a line of 'ip' is refused in a namespace."""
    try:
        ip_batch(name, line)
    except Failure as error:
        return str(error).partition('-batch -: ')[2].removeprefix('Error: ').removesuffix('.')
    return 'not refused'


def wait_until(condition, what, seconds=20):
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise Failure(f'{what}: not within {seconds} s')
        time.sleep(0.1)
    return result


# --- memory ---

def unreferenced():
    """What kmemleak has found two times: it may have been on its way the first time."""
    for _ in range(2):
        write(KMEMLEAK, 'scan')
    return pathlib.Path(KMEMLEAK).read_text('ascii').split('unreferenced object ')[1:]


def allocated():
    """The lines of /proc/allocinfo of what the feature's files have not freed."""
    return [line for line in pathlib.Path(ALLOCINFO).read_text('ascii').splitlines()
            if 'neigh_override' in line and line.split()[:2] != ['0', '0']]


# --- packets ---

def describe(data):
    """What a frame carries, as far as it matters here."""
    if data[12:14] == b'\x08\x06' and data[21] == 1:
        return 'ARP', 'request', socket.inet_ntoa(data[38:42])
    if data[12:14] == b'\x08\x00' and data[23] == socket.IPPROTO_UDP:
        return 'UDP', socket.inet_ntoa(data[30:34]), data[14 + 4 * (data[14] & 15) + 8:]
    if data[12:14] == b'\x86\xdd' and data[20] == socket.IPPROTO_UDP:
        return 'UDP', socket.inet_ntop(socket.AF_INET6, data[38:54]), data[62:]
    return None


def flow(address, name='host', device=None, source=None, port=PORT):
    """A connected UDP socket of a host: it keeps its route as long as that is valid.

    It may be bound to a device, and have a source of others.
    """
    with inside(name):
        sock = socket.socket(family(address).number, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    if device:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
    if source:
        sock.setsockopt(*TRANSPARENT[family(address)], 1)
        sock.bind((source, 0))
    sock.connect((str(address), port))
    return sock


def capture(name, device):
    """A socket that sees the frames that pass a device of a host."""
    with inside(name):
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        sock.bind((device, ETH_P_ALL))
    sock.setblocking(False)
    return sock


def passed(sock):
    """(frame, whether it came in there) of all that passed since last time."""
    with contextlib.suppress(BlockingIOError):
        while True:
            data, address = sock.recvfrom(2048)
            yield data, address[2] != socket.PACKET_OUTGOING


class Wire:
    """Sends from host to server, and watches host's cable meanwhile."""

    def __init__(self):
        self.captures = {port: capture('lan', port) for port in ('host', 'mbox')}
        with inside('server'):
            # It gets IPv4 as well.
            self.server = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            self.server.bind(('::', PORT))
        self.server.setblocking(False)
        self.sent = 0
        self.passed = []    # what captured() found for the last datagram

    def forget(self):
        """Nothing that has passed until now matters."""
        for port in self.captures:
            self.captured(port)

    def send(self, address):
        """Send one datagram from a new socket; return its Frame."""
        with flow(address) as sock:
            return self.send_on(sock)

    def send_on(self, sock):
        """Send one datagram; return its Frame on host's cable."""
        self.sent += 1
        payload = b'datagram %d' % self.sent
        self.captured('host')
        sock.send(payload)
        problem = None if self.delivered(payload) else 'it did not reach server'

        # What has reached server has passed the capture before.
        self.passed = self.captured('host')
        wanted = 'UDP', sock.getpeername()[0], payload
        frames = [data for what, data, from_host in self.passed if from_host and what == wanted]
        if not frames:
            return Frame(None, None, 'no frame on the wire')
        if len(frames) > 1:
            problem = f'it was {len(frames)} times on the wire'
        return Frame(frames[0][0:6].hex(':'), frames[0][6:12].hex(':'), problem)

    def captured(self, port):
        """(what, frame, whether it came in there) of all that passed since last time."""
        return [(describe(data), data, came_in) for data, came_in in passed(self.captures[port])]

    def delivered(self, payload):
        """Wait for a datagram on server."""
        deadline = time.monotonic() + DEADLINE
        while select.select([self.server], [], [], max(0, deadline - time.monotonic()))[0]:
            if self.server.recv(1 << 16) == payload:
                return True
        return False


# --- rows ---

def expect(frame, dst, src=HOST, note=''):
    """The row of a frame."""
    return Row(note, (dst, src), (frame.dst, frame.src), frame.problem)


def add_override(prefix, number, neigh):
    """A route by a nexthop object that has the gateway and an override."""
    fam = family(prefix)
    ip(f'nexthop add id {fam.first + number} via {fam.gw} dev eth0 neigh {neigh}')
    ip(f'route add {prefix} nhid {fam.first + number}')


def stat(number, word, name='host'):
    """A counter of a nexthop."""
    shown = ip_in(name, f'-statistics nexthop show id {number}')
    words = shown.partition(' neigh stats: ')[2].split()
    return int(words[words.index(word) + 1])


def sum_up(results):
    """Print the last line of a table; return the exit status."""
    skipped = f', {results.count("skipped")} skipped' if 'skipped' in results else ''
    print(f'\n{results.count("ok")} ok, {results.count("FAIL")} FAIL{skipped}')
    return 1 if 'FAIL' in results else 0
