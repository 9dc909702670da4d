"""A transparent proxy on a bridge, haproxy, and whom its neighbours take it for."""
#
#   client              proxy                      router                      far
#   192.0.2.2           192.0.2.9                  192.0.2.1
#     | eth0       client | br0 | router        eth0 |   | eth1            eth0 |
#     +-------------------+--+--+--------------------+   +----------------------+
#                            | near                  198.51.100.1    198.51.100.2
#                       eth0 |
#                          near, 192.0.2.5
#
# near and far are servers.  client talks TCP to their addresses; proxy takes the
# frames of PORT out of the bridge, in both directions, and haproxy answers with
# the addresses of the servers and asks the servers with that of client.  Frames
# are captured where they arrive: on eth0 of client, near and router.

import collections
import contextlib
import errno
import json
import os
import socket
import struct
import subprocess
import tempfile

from lab import (DEADLINE, ETH_P_ALL, GW, HOST, MBOX, PORT, Failure, Row, inside, ip_batch,
                 netlink_here, nft)

# client, router and proxy have the addresses of host, gw and mbox.
CLIENT, ROUTER, PROXY, NEAR = HOST, GW, MBOX, '02:00:00:00:00:05'
CLIENT_IP, ROUTER_IP, PROXY_IP, NEAR_IP = '192.0.2.2', '192.0.2.1', '192.0.2.9', '192.0.2.5'
FAR_IP = '198.51.100.2'
NEIGHBOURS = {'client': (CLIENT, CLIENT_IP), 'router': (ROUTER, ROUTER_IP),
              'near': (NEAR, NEAR_IP)}
SERVERS = {'near': NEAR_IP, 'far': FAR_IP}

PROXY_PORT, CLOSED_PORT = 7008, 7009
IP_TRANSPARENT = 19     # <linux/in.h>
CONTENT = b''.join(b'line %d\n' % number for number in range(3000))

RULES = f'''
table bridge proxy {{
	chain prerouting {{
		type filter hook prerouting priority dstnat;
		tcp dport {PORT} ether daddr set {PROXY} meta pkttype set host
		tcp sport {PORT} ether daddr set {PROXY} meta pkttype set host
	}}
}}
table ip proxy {{
	chain prerouting {{
		type filter hook prerouting priority mangle;
		meta l4proto tcp socket transparent 1 meta mark set 1 accept
		iifname br0 tcp dport {PORT} tproxy to :{PROXY_PORT} meta mark set 1 accept
	}}
}}
'''
HAPROXY = '''
global
	log {log} format raw local0
defaults
	mode tcp
	log global
	log-format "%ci to %fi as %bi: %B bytes, %ts"
	timeout connect {seconds}s
	timeout client {seconds}s
	timeout server {seconds}s
listen proxy
	bind :{port} transparent
	source 0.0.0.0 usesrc clientip
	server original 0.0.0.0
'''

# ports: of source and destination; data: from the IP header on
Packet = collections.namedtuple('Packet', 'dst src ports data')
# to_*: the packets that arrived there; log: what haproxy says about the connection
Transfer = collections.namedtuple('Transfer', 'to_client to_server log problem')


# --- the hosts ---

def namespace(name):
    """The namespace of a host: lab has hosts as well."""
    return f'proxy-{name}'


@contextlib.contextmanager
def hosts():
    """The topology at the top of this file, new each time: nobody knows anybody."""
    names = ['proxy', 'far', *NEIGHBOURS]
    try:
        ip_batch(None, *(f'netns add {namespace(name)}' for name in names),
                 *(f'link add eth0 netns {namespace(name)} address {mac} type veth '
                   f'peer name {name} netns {namespace("proxy")}'
                   for name, (mac, _) in NEIGHBOURS.items()),
                 f'link add eth1 netns {namespace("router")} type veth '
                 f'peer name eth0 netns {namespace("far")}')
        for name, (_, address) in NEIGHBOURS.items():
            ip_batch(namespace(name), f'address add {address}/24 dev eth0', 'link set eth0 up')
        ip_batch(namespace('client'), f'route add default via {ROUTER_IP}')
        ip_batch(namespace('near'), f'route add default via {ROUTER_IP}')
        ip_batch(namespace('router'), 'address add 198.51.100.1/24 dev eth1', 'link set eth1 up')
        ip_batch(namespace('far'), f'address add {FAR_IP}/24 dev eth0', 'link set eth0 up',
                 'route add default via 198.51.100.1')
        with inside(namespace('router')):
            write_sysctl('net/ipv4/ip_forward', 1)
        set_up_proxy()
        yield
    finally:
        ip_batch(None, *(f'netns delete {namespace(name)}' for name in names))


def set_up_proxy():
    """The bridge, and the rules that take packets out of it."""
    ip_batch(namespace('proxy'), 'link set lo up', f'link add br0 address {PROXY} type bridge',
             *(f'link set {port} master br0 up' for port in NEIGHBOURS), 'link set br0 up',
             f'address add {PROXY_IP}/24 dev br0', f'route add default via {ROUTER_IP}',
             'rule add fwmark 1 lookup 100', 'route add local default dev lo table 100')
    with inside(namespace('proxy')):
        write_sysctl('net/bridge/bridge-nf-call-iptables', 0)
        nft(RULES)


def write_sysctl(name, value):
    """Set a sysctl where we are."""
    with open(f'/proc/sys/{name}', 'w', encoding='ascii') as file:
        file.write(str(value))


def add_overrides(neigh):
    """Let all that proxy sends to its LAN and beyond go by an override."""
    with inside(namespace('proxy')):
        netlink_here(None, f'nexthop replace id 300 dev br0 neigh {neigh}')
        netlink_here(None, f'nexthop replace id 301 via {ROUTER_IP} dev br0 neigh {neigh}')
    ip_batch(namespace('proxy'), f'route replace 192.0.2.0/24 nhid 300 scope link src {PROXY_IP}',
             'route replace default nhid 301')


def stock(*command):
    """What a stock tool prints, where we are."""
    return subprocess.run(command, text=True, capture_output=True, check=True).stdout


def learned(*addresses):
    """The ports of the bridge that it has learned link-layer addresses on."""
    with inside(namespace('proxy')):
        entries = json.loads(stock('bridge', '-json', 'fdb', 'show', 'br', 'br0'))
    return ', '.join(sorted(f"{entry['mac']} on {entry['ifname']}" for entry in entries
                            if entry['mac'] in addresses))


def meet(*addresses):
    """Let proxy talk to others, as itself: it has valid neighbour entries then."""
    for address in addresses:
        with inside(namespace('proxy')):
            sock = socket.socket()
        with sock:
            sock.settimeout(DEADLINE)
            result = sock.connect_ex((address, CLOSED_PORT))
        if result != errno.ECONNREFUSED:
            raise Failure(f'proxy and {address}: {os.strerror(result)}')


# --- packets ---

def exchange(client, listener):
    """Let client fetch CONTENT; return what is wrong about it and the server's peer."""
    client.connect(listener.getsockname())
    # haproxy has accepted before it connects.
    connection, peer = listener.accept()
    with connection:
        connection.settimeout(DEADLINE)
        client.sendall(b'content, please')
        request = connection.recv(2048)
        connection.sendall(CONTENT)
    content = client.makefile('rb').read()
    if (peer[0], request, content) == (CLIENT_IP, b'content, please', CONTENT):
        return None, peer
    return f'{peer[0]} asked for {request}, {len(content)} bytes arrived', peer


class Watch:
    """Makes traffic, and sees what arrives."""

    def __init__(self, stack):
        self.captures = {}
        for name in NEIGHBOURS:
            with inside(namespace(name)):
                capture = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
                self.captures[name] = stack.enter_context(capture)
                capture.bind(('eth0', ETH_P_ALL))
            capture.setblocking(False)
        self.log = None     # haproxy's

    def arrived(self, name, source):
        """The packets of an IPv4 source that have arrived at a neighbour since last time."""
        packets = []
        with contextlib.suppress(BlockingIOError):
            while True:
                frame, address = self.captures[name].recvfrom(2048)
                data = frame[14:]
                if address[2] != socket.PACKET_OUTGOING and frame[12:14] == b'\x08\x00' and \
                   data[12:16] == socket.inet_aton(source):
                    ports = struct.unpack_from('!HH', data, 4 * (data[0] & 15))
                    packets.append(Packet(frame[0:6].hex(':'), frame[6:12].hex(':'), ports, data))
        return packets

    def transfer(self, server):
        """client fetches CONTENT from a server."""
        with inside(namespace(server)):
            listener = socket.create_server((SERVERS[server], PORT))
        with inside(namespace('client')):
            client = socket.socket()
        with listener, client:
            listener.settimeout(DEADLINE)
            client.settimeout(DEADLINE)
            problem, peer = exchange(client, listener)
            to_client, to_server = (PORT, client.getsockname()[1]), (peer[1], PORT)
        log = self.log.recv(2048).decode().strip()
        next_hop = server if server in NEIGHBOURS else 'router'
        return Transfer(
            [packet for packet in self.arrived('client', SERVERS[server])
             if packet.ports == to_client],
            [packet for packet in self.arrived(next_hop, CLIENT_IP) if packet.ports == to_server],
            log, problem)

    def emit(self, source, destination, neighbour):
        """proxy sends a datagram with a source of others; what of it arrived at a neighbour."""
        payload = f'{source} to {destination}'.encode()
        with inside(namespace('proxy')):
            foreign = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with foreign:
            foreign.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
            foreign.bind((source, 0))
            # The sender hears of a drop, as when netfilter drops.
            with contextlib.suppress(PermissionError):
                foreign.sendto(payload, (destination, PORT))
        # What was sent before has arrived by then.
        meet(destination)
        return [packet for packet in self.arrived(neighbour, source)
                if packet.data.endswith(payload)]


@contextlib.contextmanager
def start_haproxy():
    """Run haproxy; yield the socket that gets a line for each connection that is over."""
    with tempfile.TemporaryDirectory() as directory, \
         socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(f'{directory}/log')
        log.settimeout(DEADLINE)
        with open(f'{directory}/haproxy.cfg', 'w', encoding='ascii') as file:
            file.write(HAPROXY.format(log=f'{directory}/log', port=PROXY_PORT, seconds=DEADLINE))
        # It says when it is ready, as a service does.
        with subprocess.Popen(['nsenter', f'--net=/run/netns/{namespace("proxy")}', 'haproxy',
                               '-Ws', '-db', '-q', '-f', f'{directory}/haproxy.cfg'],
                              env={**os.environ, 'NOTIFY_SOCKET': f'{directory}/log'}) as process:
            try:
                while b'READY=1' not in log.recv(2048):
                    pass
                yield log
            finally:
                process.terminate()


# --- rows ---

def expect(note, packets, dst, src, problem=None):
    """The row of packets that have the same addresses all of them."""
    seen = {(packet.dst, packet.src) for packet in packets}
    others = seen - {(dst, src)}
    return Row(note, (dst, src), (others or seen or {(None, None)}).pop(), problem)


def expect_transfer(watch, server, to_client, to_server):
    """The rows of a transfer, for each direction and of what haproxy says."""
    moved = watch.transfer(server)
    yield expect(f': {server} to client', moved.to_client, *to_client, moved.problem)
    yield expect(f': client to {server}', moved.to_server, *to_server, moved.problem)
    expected = f'{CLIENT_IP} to {SERVERS[server]} as {CLIENT_IP}: {len(CONTENT)} bytes, --'
    yield Row(f': log of {server}', expected, moved.log, None)


@contextlib.contextmanager
def watched():
    """New hosts, without haproxy."""
    with hosts(), contextlib.ExitStack() as stack:
        yield Watch(stack)


@contextlib.contextmanager
def proxied():
    """New hosts, with haproxy."""
    with watched() as watch, start_haproxy() as watch.log:
        yield watch


def proxy_plain(*_):
    """plain proxy"""
    with proxied() as watch:
        yield from expect_transfer(watch, 'near', (CLIENT, PROXY), (NEAR, PROXY))
        yield from expect_transfer(watch, 'far', (CLIENT, PROXY), (ROUTER, PROXY))


def proxy_preserve(*_):
    """proxy"""
    with proxied() as watch:
        add_overrides('preserve')
        meet(NEAR_IP, ROUTER_IP)
        yield from expect_transfer(watch, 'near', (CLIENT, NEAR), (NEAR, CLIENT))
        yield from expect_transfer(watch, 'far', (CLIENT, ROUTER), (ROUTER, CLIENT))
        yield Row(': fdb', f'{CLIENT} on client, {NEAR} on near', learned(CLIENT, NEAR), None)


def proxy_itself(*_):
    """proxy itself"""
    with watched() as watch:
        add_overrides('preserve strict')
        meet(CLIENT_IP, NEAR_IP, FAR_IP)
        for name, mac in (('client', CLIENT), ('near', NEAR), ('router', ROUTER)):
            yield expect(f': to {name}', watch.arrived(name, PROXY_IP), mac, PROXY)
        yield expect(': as near', watch.emit(NEAR_IP, CLIENT_IP, 'client'), CLIENT, NEAR)


def owner_unknown(*_):
    """server not known yet"""
    with proxied() as watch:
        add_overrides('preserve')
        moved = watch.transfer('near')
        # haproxy answers client first, and asks for near's address later.
        yield expect(': first', moved.to_client[:1], CLIENT, PROXY, moved.problem)
        yield expect(': then', moved.to_client[1:], CLIENT, NEAR)
        yield expect(': client', moved.to_server, NEAR, CLIENT)


def owner_missing(*_):
    """no owner"""
    with watched() as watch:
        ip_batch(namespace('proxy'), 'route add unreachable 203.0.113.0/24')
        sources = ('no entry', '192.0.2.77'), ('no route', '203.0.113.77')
        add_overrides('preserve')
        for note, source in sources:
            yield expect(f': {note}', watch.emit(source, CLIENT_IP, 'client'), CLIENT, PROXY)
        add_overrides('preserve strict counters')
        for note, source in sources:
            yield expect(f', strict: {note}', watch.emit(source, CLIENT_IP, 'client'), None, None)
        with inside(namespace('proxy')):
            words = netlink_here(None, 'nexthop show id 300 stats').split()
            neighbours = stock('ip', 'neigh', 'show', 'to', '192.0.2.77')
        yield Row(', strict: counted', 'unknown 2', f'unknown {words[words.index("unknown") + 1]}',
                  None)
        yield Row(': neighbour entry', 'none', neighbours.strip() or 'none', None)


def owner_next_hop(*_):
    """owner is router"""
    with watched() as watch:
        add_overrides('preserve')
        meet(ROUTER_IP)
        for note, destination, addresses in (('client', CLIENT_IP, (CLIENT, ROUTER)),
                                             ('router', FAR_IP, (ROUTER, PROXY))):
            yield expect(f': to {note}', watch.emit('198.51.100.77', destination, note), *addresses)


CASES = (proxy_plain, proxy_preserve, proxy_itself, owner_unknown, owner_missing, owner_next_hop)
