"""Say in which functions the instructions of one packet are: gdb runs this.

SOCKET, SYSTEM_MAP and BEGIN are in the environment: where 'scripts/boot --gdb' waits, the
kernel's symbols, and the function that a packet begins in.  Lets the kernel run until
tests/bench.c gives its mark, if BEGIN is where that sends, then until BEGIN has been entered
a few times, and steps from there to the next entry.  Prints each function with the number of
instructions in it, in the order of their first call.
"""

import bisect
import collections
import os
import time

import gdb  # pylint: disable=import-error

MARK, SENDMSG = '__x64_sys_syncfs', 'udp_sendmsg'
SETTLED = 30    # packets that pass before the one that is looked at
LIMIT = 50000


def connect():
    """Debug the kernel as soon as it waits."""
    gdb.execute('set architecture i386:x86-64')
    deadline = time.monotonic() + 60
    while True:
        try:
            return gdb.execute(f'target remote {os.environ["SOCKET"]}')
        except gdb.error:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def run_to(address):
    gdb.execute(f'thbreak *{address:#x}', to_string=True)
    gdb.execute('continue', to_string=True)


def place():
    """The address of the next instruction."""
    return int(gdb.parse_and_eval('$pc')) & (1 << 64) - 1


def main():
    with open(os.environ['SYSTEM_MAP'], encoding='ascii') as file:
        symbols = sorted((int(address, 16), name) for address, kind, name in map(str.split, file)
                         if kind in 'tTwW' and not name.startswith('__pfx_'))
    addresses = [address for address, _ in symbols]
    of_name = {name: address for address, name in symbols}
    begin, counts = os.environ['BEGIN'], collections.Counter()
    connect()
    for name in [MARK] * (begin == SENDMSG) + [begin] * SETTLED:
        run_to(of_name[name])
    while not counts or place() != of_name[begin]:
        counts[symbols[bisect.bisect(addresses, place()) - 1][1]] += 1
        if counts.total() > LIMIT:
            raise gdb.GdbError(f'{begin} is not entered again')
        gdb.execute('stepi', to_string=True)
    gdb.execute('detach')
    for name, count in counts.items():
        print(f'{count:6} {name}')
    print(f'{counts.total():6} in all')


main()
