#!/usr/bin/python3
"""Say in which functions the instructions of one packet are.

usage: bench_profile.py SOCKET SYSTEM_MAP BEGIN [TRACE]

Debugs the kernel that scripts/boot --gdb SOCKET started, through the gdb remote
protocol: lets it run until tests/bench.c gives its mark, if BEGIN is where
that sends, then until the function BEGIN has been entered a few times, and steps
from there to the next entry.  Prints each function with the number of instructions in it, in the
order of their first call.  TRACE is a file for the address of every instruction.
"""

import bisect
import collections
import socket
import sys
import time

MARK, SENDMSG = '__x64_sys_syncfs', 'udp_sendmsg'
# Hex digits of the answer to 'g'
RIP = slice(16 * 16, 17 * 16)
SETTLED = 30    # packets that pass before the one that is looked at
LIMIT = 50000


class Debugger:
    """A connection to QEMU's gdb stub."""

    def __init__(self, path):
        self.sock = socket.socket(socket.AF_UNIX)
        deadline = time.monotonic() + 60
        while True:
            try:
                self.sock.connect(path)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        self.buffer = b''

    def ask(self, words):
        """Send a packet, return the answer."""
        data = words.encode()
        self.sock.sendall(b'$%s#%02x' % (data, sum(data) & 0xff))
        while True:
            while b'#' not in self.buffer or len(self.buffer) < self.buffer.index(b'#') + 3:
                more = self.sock.recv(1 << 16)
                if not more:
                    sys.exit('bench_profile.py: the kernel is gone')
                self.buffer += more
            end = self.buffer.index(b'#')
            packet, self.buffer = self.buffer[:end], self.buffer[end + 3:]
            self.sock.sendall(b'+')
            return packet.partition(b'$')[2].decode()

    def place(self):
        """The address of the next instruction."""
        return int.from_bytes(bytes.fromhex(self.ask('g')[RIP]), 'little')

    def run_to(self, address):
        """Run until an address."""
        self.ask(f'Z1,{address:x},1')
        self.ask('c')
        self.ask(f'z1,{address:x},1')
        if self.place() != address:
            sys.exit(f'bench_profile.py: stopped at {self.place():x}, not {address:x}')


def read_symbols(system_map):
    """(address, name) of the functions, in the order of addresses."""
    symbols = []
    with open(system_map, encoding='ascii') as file:
        for line in file:
            address, kind, name = line.split()
            if kind in 'tTwW' and not name.startswith('__pfx_'):
                symbols.append((int(address, 16), name))
    return sorted(symbols)


def step_through(debugger, mark, start):
    """The addresses of all instructions from one entry of a function to the next."""
    if mark:
        debugger.run_to(mark)
    for _ in range(SETTLED):
        debugger.run_to(start)
        debugger.ask('s')
    debugger.run_to(start)
    places = []
    place = start
    while not places or place != start:
        places.append(place)
        if len(places) > LIMIT:
            sys.exit(f'bench_profile.py: {start:x} is not entered again')
        debugger.ask('s')
        place = debugger.place()
    debugger.ask('D')
    return places


def main(path, system_map, begin, trace):
    """The command line."""
    symbols = read_symbols(system_map)
    addresses = [address for address, _ in symbols]
    of_name = {name: address for address, name in symbols}
    places = step_through(Debugger(path), of_name[MARK] if begin == SENDMSG else None,
                          of_name[begin])
    counts = collections.Counter()
    for place in places:
        counts[symbols[bisect.bisect(addresses, place) - 1][1]] += 1
    for name, count in counts.items():
        print(f'{count:6} {name}')
    print(f'{len(places):6} in all')
    if trace:
        with open(trace, 'w', encoding='ascii') as file:
            file.writelines(f'{place:x}\n' for place in places)


if __name__ == '__main__':
    if len(sys.argv) not in (4, 5):
        sys.exit(__doc__.strip())
    main(*sys.argv[1:4], sys.argv[4] if len(sys.argv) == 5 else None)
