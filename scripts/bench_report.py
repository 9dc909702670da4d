#!/usr/bin/python3
"""Make a table of what scripts/bench measured, and hold it against the budgets.

usage: bench_report.py [--memory FILE] [--base BASE] [--command WORDS] [--all-budgets]
                       --output NAME --budgets FILE RUN=LOG...

Writes NAME.json and NAME.md; the sizes in the FILE of --memory go there too.  RUN is
unpatched, off or on; with 'retpoline-' before it the run is shown beside; 'scale' is a log
of bench_scale.py.  A line of the budgets is the run, the case, and the most that it may cost
over its reference; with --all-budgets there has to be a case for each of a kernel that ran.
The reference of a case is on the unpatched kernel, if that has it, else on the same; that of
an alternative always on the same.  Exit status 1: a budget is exceeded, the runs of a case
are not the same, or a case failed; each is printed.  The last line says how many budgets
were compared.
"""

import argparse
import json
import statistics
import sys

SPREAD_LIMIT = 1
# What is less is not a difference.
REPEATABLE = 0.3
PLACES = {'udp': 'local UDP', 'udp6': 'local IPv6 UDP', 'forward': 'forwarding'}
SCALE_LIMITS = {'distinct': 1.25, 'shared': 1.05}
# They hold for what has to be done for the routes, their nexthop objects included.
SCALE_LIMITED = {'load': ('load-nexthops', 'load-routes'), 'look up': ('lookup-churn',),
                 'dump': ('dump-nexthops', 'dump-routes')}
# A gateway and an override are more to parse and dump than a gateway: for information.
UNLIMITED = ('both',)
PHASES = ('load-nexthops', 'load-routes', 'dump-nexthops', 'dump-routes', 'lookup-churn',
          'delete-routes', 'delete-nexthops')


def read(path):
    """The JSON objects of a log, its other lines left out."""
    lines = []
    with open(path, encoding='utf-8', errors='replace') as file:
        for line in file:
            if line.startswith('{'):
                lines.append(json.loads(line))
    return lines


def summarise(lines):
    """A run: what is known of the kernel, and its cases."""
    run = {'cases': {}}
    for line in lines:
        if 'counted' in line:
            run |= line
            continue
        case = run['cases'].setdefault(line['case'], {
            'text': line['text'], 'reference': line['reference'],
            'alternative': line['alternative'], 'counts': []})
        if 'failed' in line:
            case['failed'] = line['failed']
            continue
        case.setdefault('tries', []).append(line['tries'])
        # Before the first round: the search for the least
        if line['round']:
            case['counts'].append(line['count'])
    # That search is of some cases only: the order is that of the rounds.
    order = [line['case'] for line in lines if line.get('round')]
    run['cases'] = {name: run['cases'][name] for name in (*order, *run['cases'])}
    for case in run['cases'].values():
        if case['counts']:
            case['median'] = statistics.median(case['counts'])
            case['spread'] = max(case['counts']) - min(case['counts'])
    return run


class Report:
    """The runs and what there is to say about them."""

    def __init__(self, runs, budgets):
        self.runs = runs
        self.budgets = budgets
        self.compared = 0
        self.problems = []

    def median(self, run, name):
        """The figure of a case, or None."""
        return self.runs.get(run, {'cases': {}})['cases'].get(name, {}).get('median')

    def difference(self, run, name):
        """What a case costs over its reference, or None."""
        case = self.runs[run]['cases'][name]
        mode = run[:run.rfind('-') + 1]
        reference = None
        if not case['alternative']:
            reference = self.median(f'{mode}unpatched', case['reference'])
        if reference is None:
            reference = self.median(run, case['reference'])
        if reference is None or case.get('median') is None:
            return None
        return case['median'] - reference

    def check(self, every_budget):
        """Note what is wrong."""
        for run, what in self.runs.items():
            for name, case in what['cases'].items():
                if 'failed' in case:
                    self.problems.append(f'{run} {name}: {case["failed"]}')
                elif case['spread'] > SPREAD_LIMIT:
                    self.problems.append(f'{run} {name}: the runs differ by {case["spread"]:.2f}')
        for run, name, limit in self.budgets:
            if run not in self.runs:
                continue
            found = self.runs[run]['cases'].get(name)
            if not found and not every_budget:
                continue
            difference = self.difference(run, name) if found else None
            self.compared += difference is not None
            if difference is None:
                self.problems.append(f'{run} {name}: nothing to compare with its budget')
            elif difference > limit + REPEATABLE:
                self.problems.append(f'{run} {name}: {difference:+.1f} instructions a packet, '
                                     f'budget {limit:+g}')

    def rows(self, mode, where):
        """Text, figures of the three kernels, difference, budget, spread of each case."""
        limits = {(run, name): limit for run, name, limit in self.budgets}
        names = []
        for kernel in ('unpatched', 'off', 'on'):
            for name in self.runs.get(mode + kernel, {'cases': {}})['cases']:
                if name.startswith(where + '.') and name not in names:
                    names.append(name)
        # Those that are compared on the on kernel come last: alternatives.
        for name in names:
            run = [mode + kernel for kernel in ('unpatched', 'off', 'on')
                   if name in self.runs.get(mode + kernel, {'cases': {}})['cases']][-1]
            case = self.runs[run]['cases'][name]
            figures = [self.median(mode + kernel, name) for kernel in ('unpatched', 'off', 'on')]
            spreads = [self.runs[mode + kernel]['cases'][name].get('spread', 0)
                       for kernel in ('unpatched', 'off', 'on')
                       if name in self.runs.get(mode + kernel, {'cases': {}})['cases']]
            yield {'name': name, 'text': case['text'], 'alternative': case['alternative'],
                   'reference': case['reference'], 'figures': figures,
                   'difference': self.difference(run, name),
                   'budget': limits.get((run, name)), 'spread': max(spreads),
                   'failed': case.get('failed')}


def cell(value, form='.1f'):
    """A figure, or nothing."""
    return '' if value is None else format(value, form)


def table(rows):
    """Lines of a table: a head, rows."""
    lines = [('case', 'unpatched', 'option off', 'on', 'difference', 'budget', 'spread')]
    for row in rows:
        if row['failed']:
            lines.append((row['text'], *[''] * 5, f'failed: {row["failed"]}'))
            continue
        lines.append((row['text'], *map(cell, row['figures']), cell(row['difference'], '+.1f'),
                      cell(row['budget'], '+g'), cell(row['spread'], '.2f')))
    return lines


def plain(lines):
    """A table for a terminal."""
    widths = [max(len(line[i]) for line in lines if i < 6 or not line[6].startswith('failed'))
              for i in range(7)]
    return '\n'.join('  '.join((line[0].ljust(widths[0]),
                                *(line[i].rjust(widths[i]) for i in range(1, 7)))).rstrip()
                     for line in lines)


def markdown(lines):
    head, *rest = lines
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in
                     (head, ('---', *['---:'] * (len(head) - 1)), *rest))


def sections(report):
    """Title and table of each part."""
    for mode, title in (('', 'instructions a packet'),
                        ('retpoline-', 'instructions a packet, retpolines')):
        for where, place in PLACES.items():
            rows = list(report.rows(mode, where))
            for alternative in (False, True):
                part = [row for row in rows if row['alternative'] == alternative]
                if part:
                    what = ', alternatives on the kernel with the option' if alternative else ''
                    yield f'{place}: {title}{what}', table(part)


def scale_row(line, base):
    """What one kind of nexthop costs over another; and what is too much."""
    nexthops, routes = line['nexthops'], line['routes']
    shared = nexthops != routes
    limit = SCALE_LIMITS['shared' if shared else 'distinct']
    ratios = {phase: line[phase] / base[phase] for phase in PHASES if phase in line}
    problems = []
    for what, phases in SCALE_LIMITED.items():
        sums = [sum(part.get(phase, 0) for phase in phases) for part in (line, base)]
        if sums[0] > limit * sums[1] and line['scale'] not in UNLIMITED:
            problems.append(f'scale {line["scale"]} {nexthops}/{routes}, {what}: '
                            f'{sums[0] / sums[1]:.3f} times, limit {limit}')
    unit = routes if shared or 'load-nexthops' not in line else nexthops
    memory = [f'{(part["memory-nexthops"] + part["memory-routes"]) / unit:.0f}'
              for part in (line, base)]
    return (str(nexthops), str(routes), line['scale'], line['reference'],
            *(cell(ratios.get(phase), '.3f') for phase in PHASES), ' / '.join(memory)), problems


def scale(lines):
    """Ratios of what was counted as a table; and what is too much."""
    rows, problems = [('nexthops', 'routes', 'kind', 'over', *PHASES, 'bytes')], []
    found = {(line['scale'], line['nexthops'], line['routes']): line for line in lines}
    for (kind, nexthops, routes), line in found.items():
        if kind != line['reference']:
            row, more = scale_row(line, found[line['reference'], nexthops, routes])
            rows.append(row)
            problems += more
    return rows, problems


def print_report(report, head, parts):
    """For a terminal."""
    print('\n'.join(head))
    for title, lines in parts:
        print(f'\n{title}')
        print(plain(lines) if len(lines[0]) == 7 else
              '\n'.join('  '.join(word.rjust(15) for word in line).rstrip() for line in lines))
    if report.problems:
        print()
    for problem in report.problems:
        print(f'problem: {problem}')
    print(f'\nbudgets: {report.compared} of {len(report.budgets)} budgets compared')


def write(options, report, head, parts, scaled):
    """For Documentation, and for programs."""
    with open(f'{options.output}.md', 'w', encoding='utf-8') as file:
        file.write(f'# Measured on {options.base}\n\nMade by `{options.command}`; '
                   'not edited.\n\n' + '\n'.join(f'- {line}' for line in head) + '\n')
        for title, lines in parts:
            file.write(f'\n## {title[0].upper()}{title[1:]}\n\n{markdown(lines)}\n')
        if options.memory:
            with open(options.memory, encoding='ascii') as text:
                file.write(f'\n## Bytes of slab objects\n\n```\n{text.read()}```\n')
    with open(f'{options.output}.json', 'w', encoding='utf-8') as file:
        json.dump({'command': options.command, 'base': options.base, 'runs': report.runs,
                   'scale': scaled, 'problems': report.problems}, file, indent=1)
        file.write('\n')


def read_budgets(path):
    """(run, case, limit) of each line."""
    with open(path, encoding='ascii') as file:
        lines = [line.partition('#')[0].split() for line in file]
    return [(words[0], words[1], float(words[2])) for words in lines if words]


def main():
    parser = argparse.ArgumentParser(
        usage=__doc__.split('usage: ')[1].split('\n\n')[0])
    for option in ('--memory', '--command', '--base'):
        parser.add_argument(option)
    parser.add_argument('--all-budgets', action='store_true')
    parser.add_argument('--output', required=True)
    parser.add_argument('--budgets', required=True)
    parser.add_argument('runs', nargs='+')
    options = parser.parse_args()

    logs = {run: read(path) for run, _, path in (word.partition('=') for word in options.runs)}
    scaled = logs.pop('scale', [])
    report = Report({run: summarise(lines) for run, lines in logs.items()},
                    read_budgets(options.budgets))
    report.check(options.all_budgets)
    head = [f'{run}: Linux {what["release"]}, spectre_v2: '
            f'{what["spectre_v2"]}; a loop of '
            f'{what["real"]} instructions counts as {what["counted"]}'
            for run, what in report.runs.items()]
    parts = list(sections(report))
    if scaled:
        rows, problems = scale(scaled)
        report.problems += problems
        parts.append(('scale: ratios of instructions, bytes a nexthop (or a shared route)', rows))
    print_report(report, head, parts)
    write(options, report, head, parts, scaled)
    return 1 if report.problems else 0


if __name__ == '__main__':
    sys.exit(main())
