"""BPF programs that ask for a route, and what they are told."""

import collections
import contextlib
import ctypes
import ipaddress
import os
import socket
import struct
import sys

from lab import (GW, HOST, IPV4, IPV6, LIBC, MBOX, VMAC, Failure, Frame, Row, add_override, both,
                 expect, family, forget, inside, ip, ip_batch, know, nobody, without_inet6)

# <linux/bpf.h>
BPF_PROG_LOAD, BPF_PROG_TEST_RUN, BPF_LINK_CREATE = 5, 10, 28
BPF_ATTR_SIZE = 128
SCHED_CLS, TCX_INGRESS, TCX_EGRESS = 3, 46, 47
STORE_BYTES, REDIRECT, LOAD_BYTES, FIB_LOOKUP, REDIRECT_NEIGH = 9, 23, 26, 69, 152
DIRECT, OUTPUT, SKIP_NEIGH, SRC = 1, 2, 4, 16
# BPF_FIB_LKUP_RET_*; UNSUPP_LWT makes programs leave a packet to the stack.
RESULTS = {0: 'success', 6: 'left to the stack', 7: 'no neighbour'}
TC_ACT_UNSPEC = -1
# struct bpf_fib_lookup, and where its fields are; struct bpf_redir_neigh
FIB_PARAMS = struct.Struct('=BBHHHII16s16sI6s6s')
IFINDEX, FIB_SRC, FIB_DST, SMAC, DMAC = 8, 16, 32, 52, 58
FIB_PARAMS_SIZE, REDIR_NEIGH_SIZE = 64, 20
# <asm/unistd_64.h>: User-mode Linux is x86-64 here.
SYS_BPF = 321

# Where the addresses are in a frame, and the time to live
ETH_SOURCE, ETH_HLEN = 6, 14
IP_SOURCE, IP_DESTINATION, IP_TTL = {IPV4: 26, IPV6: 22}, {IPV4: 30, IPV6: 38}, {IPV4: 22, IPV6: 21}

# Of a gateway that only mbox has, and that nobody is
NOBODY_MAC = '02:00:00:00:00:d3'


# --- programs ---

INSTRUCTION = struct.Struct('=BBhi')
CONTEXT = 'context'     # an argument of call()
KEPT_CONTEXT, STACK = 6, 10
# What the programs have on their stack
PARAMS = -FIB_PARAMS_SIZE
NEXTHOP = PARAMS - REDIR_NEIGH_SIZE - 4


def instruction(code, register=0, source=0, offset=0, value=0):
    return INSTRUCTION.pack(code, register | source << 4, offset, value)


def copy(register, source):
    """register = source"""
    return instruction(0xbf, register, source)


def load(register, source, offset):
    """register = *(u32 *)(source + offset)"""
    return instruction(0x61, register, source, offset)


def store(code, offset, value):
    """*(STACK + offset) = value"""
    return instruction(code, STACK, 0, offset, value)


def store_byte(offset, value):
    """*(u8 *)(STACK + offset) = value"""
    return store(0x72, offset, value)


def store_word(offset, value):
    """*(u32 *)(STACK + offset) = value"""
    return store(0x62, offset, value)


def clear(offset, size):
    """memset(STACK + offset, 0, size)"""
    return b''.join(store_word(offset + place, 0) for place in range(0, size, 4))


def call(function, *arguments):
    """Call a helper with CONTEXT, places on the stack (negative) and numbers."""
    code = b''
    for register, argument in enumerate(arguments, 1):
        if argument is CONTEXT:
            code += copy(register, KEPT_CONTEXT)
        elif argument < 0:
            code += copy(register, STACK) + instruction(0x07, register, value=argument)
        else:
            code += instruction(0xb7, register, value=argument)
    return code + instruction(0x85, value=function)


def leave(result=None):
    """Return a number, or what the last helper did."""
    return (b'' if result is None else instruction(0xb7, value=result)) + instruction(0x95)


def unless(value, code):
    """Run code, which has to leave, if r0 is not value, 32 bits of it."""
    return instruction(0x16, offset=len(code) // INSTRUCTION.size, value=value) + code


def numbers(address):
    """An address as signed words of the stack, each with its place."""
    packed = ipaddress.ip_address(str(address)).packed
    return [(place, int.from_bytes(packed[place:place + 4], sys.byteorder, signed=True))
            for place in range(0, len(packed), 4)]


def asker(flags):
    """Looks up the parameters that are the packet's payload, puts the answer there."""
    return (copy(KEPT_CONTEXT, 1) +
            call(LOAD_BYTES, CONTEXT, ETH_HLEN, PARAMS, FIB_PARAMS_SIZE) +
            call(FIB_LOOKUP, CONTEXT, PARAMS, FIB_PARAMS_SIZE, flags) +
            copy(7, 0) +
            call(STORE_BYTES, CONTEXT, ETH_HLEN, PARAMS, FIB_PARAMS_SIZE, 0) +
            copy(0, 7) + leave())


def only_to(address):
    """The beginning of a program that leaves all other packets alone."""
    words = numbers(address)
    return (copy(KEPT_CONTEXT, 1) +
            call(LOAD_BYTES, CONTEXT, IP_DESTINATION[family(address)], PARAMS, 4 * len(words)) +
            b''.join(load(0, STACK, PARAMS + place) + unless(number, leave(TC_ACT_UNSPEC))
                     for place, number in words))


def forwarder(address, ifindex):
    """Forwards packets to an address by bpf_fib_lookup(), or else by bpf_redirect_neigh()."""
    fam, size = family(address), 4 * len(numbers(address))
    return (only_to(address) + clear(PARAMS, FIB_PARAMS_SIZE) +
            store_byte(PARAMS, fam.number) + store_word(PARAMS + IFINDEX, ifindex) +
            call(LOAD_BYTES, CONTEXT, IP_SOURCE[fam], PARAMS + FIB_SRC, size) +
            call(LOAD_BYTES, CONTEXT, IP_DESTINATION[fam], PARAMS + FIB_DST, size) +
            call(FIB_LOOKUP, CONTEXT, PARAMS, FIB_PARAMS_SIZE, 0) +
            unless(0, call(REDIRECT_NEIGH, ifindex, 0, 0, 0) + leave()) +
            call(STORE_BYTES, CONTEXT, 0, PARAMS + DMAC, 6, 0) +
            call(STORE_BYTES, CONTEXT, ETH_SOURCE, PARAMS + SMAC, 6, 0) +
            call(REDIRECT, ifindex, 0) + leave())


def neighbour_redirector(address, ifindex, nexthop=None):
    """Sends packets to an address by bpf_redirect_neigh()."""
    if not nexthop:
        return only_to(address) + call(REDIRECT_NEIGH, ifindex, 0, 0, 0) + leave()
    return (only_to(address) + clear(NEXTHOP, REDIR_NEIGH_SIZE) +
            store_word(NEXTHOP, family(nexthop).number) +
            b''.join(store_word(NEXTHOP + 4 + place, number)
                     for place, number in numbers(nexthop)) +
            call(REDIRECT_NEIGH, ifindex, NEXTHOP, REDIR_NEIGH_SIZE, 0) + leave())


def diverter(address, ifindex, nexthop):
    """Sends packets to an address that leave for mbox to another neighbour."""
    # Those that it has sent itself come by again.
    mbox = int.from_bytes(bytes.fromhex(MBOX.replace(':', ''))[2:], sys.byteorder, signed=True)
    for_mbox = (call(LOAD_BYTES, CONTEXT, 2, PARAMS, 4) + load(0, STACK, PARAMS) +
                unless(mbox, leave(TC_ACT_UNSPEC)))
    start = only_to(address)
    return start + for_mbox + neighbour_redirector(address, ifindex, nexthop)[len(start):]


# --- running them ---

def bpf(command, kind, *fields):
    """bpf(2): return its result and the fields."""
    # The kernel writes beyond what is asked for.
    attributes = ctypes.create_string_buffer(struct.pack(kind, *fields), BPF_ATTR_SIZE)
    result = LIBC.syscall(SYS_BPF, command, attributes, len(attributes))
    if result < 0:
        raise OSError(ctypes.get_errno(), f'bpf({command})')
    return result, struct.unpack_from(kind, attributes.raw)


@contextlib.contextmanager
def loaded(code, kind=SCHED_CLS):
    """A program, as a file descriptor."""
    log = ctypes.create_string_buffer(1 << 16)
    licence = ctypes.c_char_p(b'GPL')
    try:
        program, _ = bpf(BPF_PROG_LOAD, '=IIQQIIQ', kind, len(code) // INSTRUCTION.size,
                         ctypes.cast(code, ctypes.c_void_p).value,
                         ctypes.cast(licence, ctypes.c_void_p).value,
                         1, len(log), ctypes.addressof(log))
    except OSError as error:
        raise Failure(f'{error}: {log.value.decode()[-300:]}') from error
    try:
        yield program
    finally:
        os.close(program)


@contextlib.contextmanager
def attached(name, device, place, make, *arguments):
    """A program on a device; it is made for an address and eth0."""
    address, *rest = arguments
    with inside(name):
        code = make(address, socket.if_nametoindex('eth0'), *rest)
        with loaded(code) as program:
            link, _ = bpf(BPF_LINK_CREATE, '=4I', program, socket.if_nametoindex(device), place, 0)
    try:
        yield
    finally:
        os.close(link)


Answer = collections.namedtuple('Answer', 'result nexthop source dst src')


def ask(address, flags=0):
    """What bpf_fib_lookup() says about packets that come into host by eth0."""
    with inside('host'):
        question = bytes(ETH_HLEN) + FIB_PARAMS.pack(
            family(address).number, 0, 0, 0, 0, socket.if_nametoindex('eth0'), 0, bytes(16),
            address.packed, 0, bytes(6), bytes(6))
        data = ctypes.create_string_buffer(question, len(question))
        pointer = ctypes.addressof(data)
        with loaded(asker(flags)) as program:
            _, fields = bpf(BPF_PROG_TEST_RUN, '=4I2Q', program, 0, len(data), len(data),
                            pointer, pointer)
    number, *_, source, nexthop, _, smac, dmac = FIB_PARAMS.unpack_from(data.raw, ETH_HLEN)
    nexthop = ipaddress.ip_address(nexthop if number == socket.AF_INET6 else nexthop[:4])
    source = ipaddress.ip_address(source[:len(address.packed)])
    return Answer(RESULTS.get(fields[1], f'result {fields[1]}'), str(nexthop),
                  str(source), dmac.hex(':'), smac.hex(':'))


# --- the cases ---

LEFT = RESULTS[6]


def expect_answer(note, answer, expected):
    """The row of an answer: a text, or link-layer addresses and the address of the neighbour."""
    if isinstance(expected, str):
        seen = answer.result + f': {answer.nexthop}' * (answer.result == 'success')
        return Row(note, expected, seen, None)
    *lladdrs, nexthop = expected
    if answer.result != 'success':
        return Row(note, tuple(lladdrs), (None, None), f'the result is: {answer.result}')
    return Row(note, tuple(lladdrs), (answer.dst, answer.src), None if answer.nexthop == nexthop
               else f'the nexthop is {answer.nexthop}, not {nexthop}')


def expect_answers(note, address, told, skipped):
    """The rows of both answers, the second one without looking at the neighbour."""
    yield expect_answer(note, ask(address), told)
    yield expect_answer(f'{note}, skip', ask(address, SKIP_NEIGH), skipped)


def know_all():
    """Let host know the link-layer addresses of gw and mbox."""
    know(IPV4.gw, IPV4.mbox, IPV6.gw, IPV6.mbox)


def lookups(fam):
    """Note, gateway, override; what is told, also without looking at the neighbour.

    Where the gateway does not matter, it is one that nobody knows.
    """
    gw, mbox, unknown, away = fam.gw, fam.mbox, nobody(fam), f'{fam.lan}212'
    return without_inet6(fam, (
        (': plain', gw, '', (GW, HOST, gw), f'success: {gw}'),
        (': via', gw, f'neigh via {mbox}', (MBOX, HOST, mbox), f'success: {mbox}'),
        (': via inet6', gw, f'neigh via inet6 {IPV6.mbox}', (MBOX, HOST, IPV6.mbox),
         f'success: {IPV6.mbox}'),
        (': via nobody', gw, f'neigh via {away}', RESULTS[7], f'success: {away}'),
        # A program would send to it, from the device's address.
        (': nobody+source', gw, f'neigh via {away} src-lladdr {VMAC}', LEFT, LEFT),
        (': lladdr', unknown, f'neigh lladdr {MBOX}', (MBOX, HOST, unknown), LEFT),
        (': source', gw, f'neigh src-lladdr {VMAC}', (GW, VMAC, gw), LEFT),
        (': both', unknown, f'neigh lladdr {MBOX} src-lladdr {VMAC}', (MBOX, VMAC, unknown), LEFT),
        (': via+source', unknown, f'neigh via {mbox} src-lladdr {VMAC}', (MBOX, VMAC, mbox), LEFT),
        (': via the source', unknown, f'neigh via {mbox} src-lladdr {MBOX}', (MBOX, HOST, mbox),
         LEFT),
        (': preserve', gw, 'neigh preserve', LEFT, LEFT),
        (': lladdr+preserve', gw, f'neigh lladdr {MBOX} preserve', LEFT, LEFT)))


@both
def fib_lookup(_, prefix):
    """BPF lookup"""
    fam = family(prefix)
    know_all()
    ip(f'nexthop add id {fam.first + 320} via {fam.gw} dev eth0')
    ip(f'route add {prefix} nhid {fam.first + 320}')
    for note, gateway, neigh, *told in lookups(fam):
        ip(f'nexthop replace id {fam.first + 320} via {gateway} dev eth0 {neigh}')
        yield from expect_answers(note, prefix[1], *told)
    ip(f'route replace {prefix} via link {MBOX} dev eth0')
    # Its nexthop does not matter.
    yield from expect_answers(': via link', prefix[1], (MBOX, HOST, ask(prefix[1]).nexthop), LEFT)


@both
def fib_lookup_fallback(_, prefix):
    """BPF fallback"""
    know_all()
    away = f'{family(prefix).lan}213'
    add_override(prefix, 323, f'via {away} fallback')
    # While it is not valid, somebody has to ask for the neighbour: a packet.
    yield from expect_answers(': absent', prefix[1], LEFT, LEFT)
    ip(f'neigh replace {away} lladdr {MBOX} nud stale dev eth0')
    yield from expect_answers(': valid', prefix[1], (MBOX, HOST, away), f'success: {away}')
    ip(f'neigh replace {away} nud failed dev eth0')
    yield from expect_answers(': failed', prefix[1], LEFT, LEFT)


@both
def fib_lookup_flags(_, prefix):
    """BPF lookup"""
    fam = family(prefix)
    know_all()
    add_override(prefix, 324, f'via {fam.mbox} src-lladdr {VMAC}')
    none = '::' if fam is IPV6 else '0.0.0.0'
    for note, flags, source in ((': DIRECT', DIRECT, none), (': OUTPUT', OUTPUT, none),
                                (': SRC', SRC, fam.host)):
        answer = ask(prefix[1], flags)
        row = expect_answer(note, answer, (MBOX, VMAC, fam.mbox))
        if not row.problem and answer.source != source:
            row = row._replace(problem=f'the IP source is {answer.source}, not {source}')
        yield row


@contextlib.contextmanager
def mbox_route(prefix, *words):
    """Packets of host go to mbox, which has a nexthop for them."""
    fam = family(prefix)
    ip(f'route replace {prefix} via {fam.mbox}')
    ip_batch('mbox', f'neigh replace {nobody(fam)} lladdr {NOBODY_MAC} nud permanent dev eth0',
             f'neigh replace {fam.gw} lladdr {GW} nud reachable dev eth0',
             f'neigh replace {fam.host} lladdr {HOST} nud reachable dev eth0',
             f'neigh replace 2001:db8::1 lladdr {GW} nud reachable dev eth0')
    ip_batch('mbox', ' '.join(('nexthop add id 325', *words)), f'route add {prefix} nhid 325')
    try:
        yield
    finally:
        # The route goes with it.
        ip_batch('mbox', 'nexthop delete id 325', f'neigh delete {nobody(fam)} dev eth0')


def relayed(wire, address):
    """Send a datagram to mbox; return the Frame that its program made of it."""
    wire.captured('mbox')
    problem = wire.send(address).problem
    frames = [data for what, data, from_mbox in wire.captured('mbox')
              if from_mbox and what and what[:2] == ('UDP', str(address))]
    if len(frames) != 1:
        return Frame(None, None, f'mbox sent it {len(frames)} times')
    data, = frames
    if data[IP_TTL[family(address)]] != 64:
        problem = 'mbox itself forwarded it: its time to live is less'
    return Frame(data[0:6].hex(':'), data[6:12].hex(':'), problem)


def expect_relayed(wire, prefix, program, kinds):
    """Rows of packets that a program on mbox sends on: note, route, src; the program's gateway."""
    for note, gateway, neigh, src, *nexthop in without_inet6(family(prefix), kinds):
        with mbox_route(prefix, f'via {gateway} dev eth0', neigh), \
                attached('mbox', 'eth0', TCX_INGRESS, program, prefix[1], *nexthop):
            yield expect(relayed(wire, prefix[1]), GW, src, f': {note}')


def kinds_relayed(fam):
    """Those that both programs meet."""
    return (('plain', fam.gw, '', MBOX),
            ('via', nobody(fam), f'neigh via {fam.gw}', MBOX),
            ('preserve', fam.gw, 'neigh preserve strict', MBOX),
            ('lladdr', nobody(fam), f'neigh lladdr {GW}', MBOX),
            ('both', nobody(fam), f'neigh lladdr {GW} src-lladdr {VMAC}', VMAC))


@both
def fib_redirect(wire, prefix):
    """BPF forwarding"""
    yield from expect_relayed(wire, prefix, forwarder, kinds_relayed(family(prefix)))


@both
def redirect_neigh(wire, prefix):
    """BPF neighbour"""
    fam = family(prefix)
    yield from expect_relayed(wire, prefix, neighbour_redirector, (
        *kinds_relayed(fam), ('via inet6', nobody(fam), f'neigh via inet6 {IPV6.gw}', MBOX),
        ('to gw', fam.gw, f'neigh lladdr {NOBODY_MAC} src-lladdr {VMAC}', MBOX, fam.gw)))


@both
def redirect_neigh_egress(wire, prefix):
    """BPF egress"""
    fam = family(prefix)
    know_all()
    # The packets are on their way to another device.
    ip('link add bpf0 type dummy')
    ip('link set bpf0 up')
    number = fam.first + 326
    ip(f'route add {prefix} dev bpf0')
    ip(f'nexthop add id {number} via {fam.gw} dev eth0 neigh lladdr {MBOX} src-lladdr {VMAC}')
    # For IPv6 only routes of the same metric are chosen from by their device.
    ip(f'route append {prefix} nhid {number}' + ' metric 1' * (fam is IPV4))
    for note, nexthop, dst, src in ((': route', (), MBOX, VMAC),
                                    (': to gw', (fam.gw,), GW, HOST)):
        with attached('host', 'bpf0', TCX_EGRESS, neighbour_redirector, prefix[1], *nexthop):
            yield expect(wire.send(prefix[1]), dst, src, note)
    ip('link delete bpf0')


@both
def redirect_neigh_queued(wire, prefix):
    """BPF on eth0"""
    fam = family(prefix)
    know_all()
    add_override(prefix, 327, f'lladdr {MBOX} src-lladdr {VMAC}')
    with attached('host', 'eth0', TCX_EGRESS, diverter, prefix[1], fam.gw):
        yield expect(wire.send(prefix[1]), GW, HOST, ': to gw')
        # The packet waits, with a route that has an override.
        forget(fam.gw)
        yield expect(wire.send(prefix[1]), GW, HOST, ': to gw, waited')
        yield expect(wire.send(prefix[2]), MBOX, VMAC, ': others')


CASES = (fib_lookup, fib_lookup_fallback, fib_lookup_flags, fib_redirect, redirect_neigh,
         redirect_neigh_egress, redirect_neigh_queued)
