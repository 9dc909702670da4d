#!/usr/bin/python3
"""What gcov says about the lines that a diff adds.

usage: coverage_report.py BUILD... DIFF UNCOVERED

BUILD are build folders of kernels, with .gcda files, DIFF was made with -U0.  UNCOVERED names the
lines that nothing reaches, as 'FILE FUNCTION: TEXT', below a line '# REASON'.  Their branches do
not count, nor do those inside NL_SET_ERR_MSG(), as nobody asks without room for the answer, and
inside memcpy(), where the compiler copies by size.
"""

import collections
import json
import re
import subprocess
import sys
from pathlib import Path

WANTED = {'lines': 95, 'branches': 90}


def added_lines(diff):
    """{file: {number: text}} of what the diff adds."""
    added, lines, number = {}, {}, 0
    for line in diff.splitlines():
        if line.startswith('+++ '):
            lines = added.setdefault(line[6:], {})
        elif line.startswith('@@'):
            number = int(re.search(r'\+(\d+)', line)[1])
        elif line.startswith('+'):
            lines[number] = line[1:].strip()
            number += 1
    return {name: lines for name, lines in added.items() if name.endswith(('.c', '.h')) and lines}


def gcov(builds, names):
    """(file, line) of all objects, of the files of these names."""
    for data in (data for build in builds for data in Path(build).resolve().glob('**/*.gcda')):
        said = subprocess.run(['gcov', '--json-format', '--stdout', '--branch-probabilities', data],
                              check=True, capture_output=True).stdout
        for file in json.loads(said)['files']:
            name = next((name for name in names if file['file'].endswith('/' + name)), None)
            if name:
                yield from ((name, line) for line in file['lines'])


class Report:
    """Lines and branches that were reached, by file."""

    def __init__(self, builds, added, known):
        self.added, self.counts = added, collections.Counter()
        self.functions, branches = {}, collections.defaultdict(dict)
        for name, line in gcov(builds, added):
            number = line['line_number']
            if number not in added[name]:
                continue
            self.counts[name, number] += line['count']
            self.functions[name, number] = line.get('function_name', '-')
            # Of an inline function each object has a copy, and each its branches: any of them
            # counts, as far as they are alike.
            known, new = branches[name, number], [one['count'] > 0 for one in line['branches']]
            if (added[name][number].startswith(('NL_SET_ERR_MSG', 'memcpy(')) or
                    self.as_listed(name, number) in known):
                new = []
            known[len(new)] = [a or b for a, b in zip(known.get(len(new), new), new)]
        self.branches = {place: max(variants.values(), key=lambda taken: (sum(taken), -len(taken)))
                         for place, variants in branches.items()}

    def as_listed(self, name, number):
        """A line as it is in the list."""
        return f'{name} {self.functions[name, number]}: {self.added[name][number]}'

    def print_table(self):
        """Lines and branches of each file; return their percentages."""
        total = collections.Counter()
        for name in sorted(self.added):
            lines = [count > 0 for place, count in self.counts.items() if place[0] == name]
            taken = [one for place, some in self.branches.items() if place[0] == name
                     for one in some]
            total.update(lines=len(lines), reached=sum(lines), branches=len(taken),
                         taken=sum(taken))
            print(f'{name:42} {sum(lines):4} of {len(lines):4} lines '
                  f'{sum(taken):4} of {len(taken):4} branches' if lines else
                  f'{name:42} no code of it in this kernel')
        return {'lines': 100 * total['reached'] / total['lines'],
                'branches': 100 * total['taken'] / total['branches']}, total

    def uncovered(self):
        """{line as it is listed: number} of what nothing reaches."""
        return {self.as_listed(name, number): number
                for (name, number), count in sorted(self.counts.items()) if not count}


def listed(text):
    """The lines of the list; each needs a reason."""
    reason, lines = '', set()
    for line in filter(None, text.splitlines()):
        if line.startswith('#'):
            reason = line
        elif not reason:
            sys.exit(f'coverage: no reason for {line}')
        else:
            lines.add(line)
    return lines


def main(*builds, diff, uncovered):
    """Print the report; return the exit status."""
    known = listed(Path(uncovered).read_text('utf-8'))
    report = Report(builds, added_lines(Path(diff).read_text('utf-8')), known)
    reached, total = report.print_table()
    seen = report.uncovered()
    findings = [f'FAIL not reached, line {seen[line]}, and not listed: {line}'
                for line in seen if line not in known]
    findings += [f'FAIL reached or gone, but listed: {line}' for line in sorted(known - set(seen))]
    findings += [f'FAIL {reached[what]:.1f} % of the {what}, not {wanted} %'
                 for what, wanted in WANTED.items() if reached[what] < wanted]
    for finding in findings:
        print(finding)
    print(f"coverage: {total['reached']} of {total['lines']} lines ({reached['lines']:.1f} %), "
          f"{total['taken']} of {total['branches']} branches ({reached['branches']:.1f} %), "
          f'{len(seen)} lines listed, {len(findings)} findings')
    return bool(findings)


if __name__ == '__main__':
    sys.exit(main(*sys.argv[1:-2], diff=sys.argv[-2], uncovered=sys.argv[-1]))
