"""The tracepoint that tells what was chosen, and the reason of drops."""

import collections
import contextlib
import os
import re

from lab import (GW, HOST, IPV4, IPV6, MBOX, VMAC, Row, add_override, both, family, forget, ip,
                 know, nobody, without_inet6, write)
from traffic import ignored_sources, send_as, send_in_vain

TRACING = '/sys/kernel/tracing'
OVERRIDES = 'neigh_override/neigh_override'
CHOICE = re.compile(r'neigh_override: dev (\S+) saddr (\S+) daddr (\S+) nh (\S+) '
                    r'lladdr (\S+) \((\S+)\) src-lladdr (\S+) \((\S+)\)(| dropped)$')
NO_LLADDR = '00:00:00:00:00:00'
Choice = collections.namedtuple('Choice', 'dev saddr daddr nh lladdr why src src_why dropped')


# --- what the kernel traces ---

@contextlib.contextmanager
def traced(*events):
    """Trace events meanwhile; yields what returns the lines since the last time."""
    directory = f'{TRACING}/instances/choices'
    os.mkdir(directory)

    def lines():
        with open(f'{directory}/trace', 'r+', encoding='ascii') as file:
            found = [line.rstrip('\n') for line in file if line[:1] != '#']
        write(f'{directory}/trace', '')
        return found
    try:
        for event in events:
            write(f'{directory}/events/{event}/enable', 1)
        yield lines
    finally:
        os.rmdir(directory)


def choices(lines, address):
    """The choices for packets to an address, as traced."""
    found = [Choice(*(text.removeprefix('::ffff:') for text in match.groups()))
             for match in map(CHOICE.search, lines) if match]
    return [choice for choice in found if choice.daddr == str(address)]


def expect_choice(note, lines, frame, addresses, text):
    """The row of a choice: as traced, and as the frame."""
    source, destination = map(str, addresses)
    found = choices(lines, destination)
    if len(found) != 1:
        return Row(note, text, f'{len(found)} choices', None)
    choice, = found
    problem = frame and frame.problem
    if (choice.dev, choice.saddr) != ('eth0', source):
        problem = f'not from {source}: {choice}'
    elif frame and (choice.lladdr, choice.src) != (frame.dst, frame.src):
        problem = f'the frame: {frame}'
    return Row(note, text, f'{choice.nh} {choice.lladdr} ({choice.why}), '
                           f'{choice.src} ({choice.src_why}){choice.dropped}', problem)


def by_gw(fam, why='own'):
    """What a trace says of a packet that goes to the gateway."""
    return f'{fam.gw} {GW} ({why})'


BY_HOST = f'{HOST} (own)'


def no_address(fam):
    """What stands for the neighbour where there is none."""
    return '0.0.0.0' if fam is IPV4 else '::'


# --- the cases ---

def kinds_traced(fam):
    """Note, override, source; neighbour, its address (reason) and source (reason) as traced."""
    nowhere, by_mbox = f'{no_address(fam)} {MBOX} (lladdr)', f'{fam.mbox} {MBOX} (via)'
    far = f'{fam.beyond}77'
    return without_inet6(fam, (
        (': via', f'via {fam.mbox}', fam.host, f'{by_mbox}, {BY_HOST}'),
        (': via inet6', f'via inet6 {IPV6.mbox}', fam.host,
         f'{IPV6.mbox} {MBOX} (via), {BY_HOST}'),
        (': lladdr', f'lladdr {MBOX}', fam.host, f'{nowhere}, {BY_HOST}'),
        (': src-lladdr', f'src-lladdr {VMAC}', fam.host, f'{by_gw(fam)}, {VMAC} (lladdr)'),
        (': lladdr + src', f'lladdr {MBOX} src-lladdr {VMAC}', fam.host,
         f'{nowhere}, {VMAC} (lladdr)'),
        (': fallback', f'via {nobody(fam)} fallback', fam.host,
         f'{by_gw(fam, "fallback")}, {BY_HOST}'),
        (': preserve, host', 'preserve', fam.host, f'{by_gw(fam)}, {HOST} (local)'),
        (': preserve, on-link', 'preserve', fam.mbox, f'{by_gw(fam)}, {MBOX} (on-link)'),
        (': preserve, gateway', f'lladdr {MBOX} preserve', far, f'{nowhere}, {GW} (gateway)'),
        (': preserve, to itself', 'preserve', far, f'{by_gw(fam)}, {BY_HOST}'),
        (': preserve, unknown', 'preserve', nobody(fam), f'{by_gw(fam)}, {HOST} (unknown)')))


@both
def trace(wire, prefix):
    """trace"""
    fam = family(prefix)
    number = fam.first + 391
    know(fam.gw, fam.mbox, IPV6.mbox)
    ip(f'nexthop add id {number} via {fam.gw} dev eth0 neigh lladdr {MBOX}')
    ip(f'route add {prefix[1]} nhid {number}')
    ip(f'route add {prefix[2]} via link {MBOX} dev eth0')
    with traced(OVERRIDES) as lines, ignored_sources():
        for note, neigh, source, text in kinds_traced(fam):
            ip(f'nexthop replace id {number} via {fam.gw} dev eth0 neigh {neigh}')
            frame = send_as(wire, source, prefix[1])
            yield expect_choice(note, lines(), frame, (source, prefix[1]), text)
        frame = wire.send(prefix[2])
        yield expect_choice(': via link', lines(), frame, (fam.host, prefix[2]),
                            f'{no_address(fam)} {MBOX} (lladdr), {BY_HOST}')


@both
def trace_no_frame(wire, prefix):
    """trace"""
    fam = family(prefix)
    forget(fam.mbox)
    add_override(prefix[1], 392, f'via {fam.mbox}')
    add_override(prefix[2], 393, 'preserve strict')
    with traced(OVERRIDES) as lines:
        wire.send(prefix[1])
        yield expect_choice(': not resolved yet', lines(), None, (fam.host, prefix[1]),
                            f'{fam.mbox} {NO_LLADDR} (via), {BY_HOST}')
        passed = send_in_vain(wire, nobody(fam), prefix[2])
        row = expect_choice(': preserve strict', lines(), None, (nobody(fam), prefix[2]),
                            f'{no_address(fam)} {NO_LLADDR} (own), {HOST} (unknown) dropped')
        yield row._replace(problem=row.problem or passed and 'there is a frame' or None)


CASES = (trace, trace_no_frame)
