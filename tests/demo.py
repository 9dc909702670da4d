#!/usr/bin/python3
"""What per-route neighbour overrides do to the frames on the wire.

usage: demo.py [--check] [CASE]...
       demo.py --list

CASE is a part of the table (link) or one case of it (link.plain, with IPv6
link.plain6); without any, everything that the kernel can do.  --check only
looks whether the cases are there, --list names them.

Run as root in a guest that can be thrown away: it makes network namespaces.
Exit status: 0 when no row of the table is a FAIL.
"""

import itertools
import re
import shutil
import sys
import textwrap

import bpf
import changes
import devices
import discovery
import fallback
import flowtable
import forwarding
from lab import (IPV4, IPV6, LEGEND, PREFIXES, PREFIXES6, Failure, Row, Wire, family, knows_ipv6,
                 set_up, sum_up)
import last_hop
import lifetime
import link
import output
import preserve
import proxy
import tracing
import tunnels

# lifetime is the last: it looks at what the others have left.
MODULES = (link, fallback, tracing, preserve, proxy, forwarding, output, discovery, tunnels,
           devices, bpf, flowtable, changes, last_hop, lifetime)


# What only some cases need: scripts/demo --all installs it.
PROGRAMS = {'haproxy': r'proxy\.(proxy_plain|proxy_preserve|owner_unknown)|last_hop\.proxied',
            'ebtables-legacy': r'last_hop\.proxied',
            'ipvsadm': r'\w+\.ipvs|last_hop\.balanced', 'teamnl': r'\w+\.team'}


# --- the table ---

def print_line(case, *cells):
    print('  '.join([f'{case:33}', *(f'{cell:17}' for cell in cells)]).rstrip())


def print_row(case, row):
    okay = row.expected == row.seen and not row.problem
    result = 'skipped' if row.expected is None else 'ok' if okay else 'FAIL'
    if isinstance(row.seen, str):
        print(f'{case + row.note:33}  {row.seen:74}  {result}')
    else:
        (dst, src), (seen_dst, seen_src) = row.expected, row.seen
        print_line(case + row.note, *(cell or '-' for cell in (dst, seen_dst, src, seen_src)),
                   result)
    reason = row.problem or f'expected: {row.expected}'
    if result == 'FAIL' and (row.problem or isinstance(row.seen, str)):
        print(textwrap.fill(reason, 110, initial_indent='    ', subsequent_indent='    '))
    sys.stdout.flush()
    return result


def name_of(case, prefix):
    """What CASE is."""
    return f'{case.__module__}.{case.__name__}' + ('6' if family(prefix) is IPV6 else '')


def run_case(case, wire, prefix):
    """The rows of a case; what goes wrong makes a row as well."""
    for program, names in PROGRAMS.items():
        if re.match(names, name_of(case, prefix)) and not shutil.which(program):
            yield Row('', None, f'not checked: there is no {program}', None)
            return
    try:
        yield from case(wire, prefix)
    except Exception as error:      # pylint: disable=broad-except
        reason = str(error) if isinstance(error, Failure) else repr(error)
        yield Row('', (None, None), (None, None), reason)


def all_cases():
    """(module, function, prefix) of each case, with each of its families."""
    free = {IPV4: iter(PREFIXES), IPV6: iter(PREFIXES6)}
    return [(module, case, next(free[fam])) for module in MODULES for case in module.CASES
            for fam in getattr(case, 'families', [IPV4])]


def chosen(names):
    """Those that are named, or all."""
    cases = all_cases()
    known = {}
    for module, case, prefix in cases:
        for name in module.__name__, name_of(case, prefix):
            known.setdefault(name, []).append((module, case, prefix))
    for name in names:
        if name not in known:
            parts = ' '.join(module.__name__ for module in MODULES)
            raise Failure(f'no such case: {name} (parts: {parts}; --list names the cases)')
    return [case for name in names for case in known[name]] or cases


def heading(module):
    """What the cases of a module show."""
    return module.__doc__.partition('\n')[0]


def print_list():
    lines = []
    for module, part in itertools.groupby(all_cases(), lambda case: case[0]):
        lines += [f'{module.__name__}: {heading(module)}',
                  *(f'  {name_of(case, prefix):33}{title(case, prefix)}'
                    for _, case, prefix in part)]
    # At once: whoever reads it may go away after a few lines.
    print('\n'.join(lines))


def title(case, prefix):
    """What the rows of a case begin with."""
    return case.__doc__ + ' IPv6' * (family(prefix) is IPV6)


def print_cases(cases, wire):
    """The rows of cases, with a line above those of each module; return their results."""
    for module, part in itertools.groupby(cases, lambda case: case[0]):
        print(f'\n{heading(module)}')
        for _, case, prefix in part:
            for row in run_case(case, wire, prefix):
                yield print_row(title(case, prefix), row)


def main(names):
    """Print the table; return the exit status."""
    if '--list' in names:
        print_list()
        return 0
    try:
        cases = chosen([name for name in names if name != '--check'])
        if '--check' in names:
            return 0
        set_up()
        wire = Wire()
        if not knows_ipv6():
            # Nor selectors
            cases = [case for case in cases if family(case[-1]) is IPV4 and case[0] is not last_hop]
    except (Failure, OSError) as error:
        print(f'demo.py: {error}', file=sys.stderr)
        return 1
    print('  '.join(f'{name} {address}' for name, address in LEGEND.items()), end='\n\n')
    print_line('case', 'destination', '', 'source')
    print_line('', 'expected', 'seen', 'expected', 'seen')
    return sum_up(list(print_cases(cases, wire)))


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
