#!/usr/bin/python3
"""All mutants of what a diff adds, in one kernel: a number at run time says which one it is.

usage: mutants.py TREE DIFF REFUSED LIST >PATCH

DIFF was made with -U0.  LIST gets a line for each mutant: number, file, function, what is
changed, the line.  REFUSED has numbers that do not compile.
"""

import collections
import difflib
import itertools
import re
import sys
from pathlib import Path

from coverage_report import added_lines

TOKEN = re.compile(r'''(?P<skip>/\*.*?\*/|//[^\n]*|^[ \t]*\#(?:\\\n|[^\n])*|\s+)
    |"(?:\\.|[^"])*"|'(?:\\.|[^'])*'
    |[A-Za-z_]\w*|\d\w*|->|\+\+|--|&&|\|\||<<=|>>=|<<|>>|[-+*/%&|^=!<>]=|\.\.\.|.''',
                   re.S | re.M | re.X)
NUMBER = 'neigh_override_mutant'
TEST = f'#define nov_is(n) ({{ extern int {NUMBER}; {NUMBER} == (n); }})\n'
DEFINITION = f'''
#include <linux/moduleparam.h>
int {NUMBER};
core_param({NUMBER}, {NUMBER}, int, 0644);
'''
CONTROL = re.compile(r'if|for|while|switch|\w*for_each\w*')
ASSIGN = re.compile(r'[-+*/%&|^]?=|<<=|>>=')
CONSTANT = re.compile(r'(?!GFP_|NULL$|CONFIG_|EINVAL)[A-Z][A-Z0-9_]{2,}|\d\w*|true|false')
TYPE = 'const static struct enum union unsigned int bool long char void size_t BUILD_BUG_ON'.split()
# What binds less than +
LOOSER = '== != < > <= >= & | ^ << >>'.split()
WIDER = {'<': '<=', '<=': '<', '>': '>=', '>=': '>'}
COUNTED = {'nhc_neigh_override_get': 'nhc_neigh_override', 'neigh_override_get': ''}


class Source:   # pylint: disable=too-many-instance-attributes
    """A file and what can be changed in it."""

    def __init__(self, name, text, added):
        self.name, self.text, self.added, self.edits = name, text, added, []
        self.tokens = [match for match in TOKEN.finditer(text) if not match['skip']]
        self.words = [token[0] for token in self.tokens]
        self.match, self.within, self.bodies, self.function, stack = {}, [], set(), '', []
        for place, word in enumerate(self.words):
            self.within.append(stack[-1] if stack else None)
            if word in '([{':
                stack.append(place)
            elif word in ')]}':
                self.match[place] = stack.pop()
                self.match[self.match[place]] = place

    def line(self, place):
        """The number of the line of a token."""
        return self.text.count('\n', 0, self.tokens[place].start()) + 1

    def change(self, what, first, last, before, after):   # pylint: disable=too-many-arguments
        """A mutant of the tokens from first to last."""
        number = self.line(first)
        if number in self.added:
            self.edits.append((self.tokens[first].start(), self.tokens[last].end(), before, after,
                               number, self.function, what))

    def code(self, first, last):
        """Tokens as one line."""
        return re.sub(r'\s+', ' ', self.text[self.tokens[first].start():self.tokens[last].end()])

    def top(self, first, last, wanted):
        """Where these words are, outside of parentheses."""
        place, found = first, []
        while place <= last:
            if self.words[place] in '([{':
                place = self.match[place]
            elif wanted(self.words[place]):
                found.append(place)
            place += 1
        return found

    def parts(self, first, last, cuts):
        """What is between the cuts."""
        places = [first - 1, *cuts, last + 1]
        return [(begin + 1, end - 1) for begin, end in itertools.pairwise(places)
                if begin + 1 <= end - 1]

    def expression(self, first, last):   # pylint: disable=too-many-branches
        if first > last:
            return
        for wanted in (ASSIGN.fullmatch, ','.__eq__, '?:'.__contains__, '||'.__eq__, '&&'.__eq__):
            cuts = self.top(first, last, wanted)
            if not cuts:
                continue
            for begin, end in self.parts(first, last, cuts):
                operator = self.words[cuts[0]]
                if operator in ('&&', '||') and self.words[begin] != 'IS_ENABLED':
                    before = '(nov_is(%d) || (' if operator == '&&' else '(!nov_is(%d) && ('
                    self.change(f'{operator} operand {self.code(begin, end)}', begin, end,
                                before, '))')
                if operator == '?' and end == cuts[0] - 1:
                    if self.words[end + 2] == ':':
                        self.change(f'?: operand {self.code(begin, end)}', begin, end,
                                    '(nov_is(%d) ? 0 : (', '))')
                    else:
                        self.change('negated', begin, end, '(nov_is(%d) != !!(', '))')
                if not ASSIGN.fullmatch(operator) or begin > cuts[0]:
                    self.expression(begin, end)
            return
        for place in self.top(first, last, WIDER.__contains__):
            left, right = self.code(first, place - 1), self.code(place + 1, last)
            self.change(f'{self.words[place]} bound', first, last,
                        f'(nov_is(%d) ? {left} {WIDER[self.words[place]]} {right} : ', ')')
        terms = self.top(first, last, '+'.__eq__)
        if self.top(first, last, LOOSER.__contains__):
            terms = []
        for begin, end in self.parts(first, last, terms) if terms else []:
            self.change(f'+ operand {self.code(begin, end)}', begin, end,
                        '(nov_is(%d) ? 0 : (', '))')
        place = first
        while place <= last:
            self.primary(place)
            if self.words[place] in '([':
                if self.words[place - 1] not in ('sizeof', 'offsetof', 'IS_ENABLED'):
                    self.expression(place + 1, self.match[place] - 1)
                place = self.match[place]
            place += 1

    def primary(self, place):
        """Mutants of one word."""
        word, following = self.words[place], self.words[place + 1]
        if word in COUNTED and following == '(':
            end = self.match[place + 1]
            self.change('reference not taken', place, end,
                        f'(nov_is(%d) ? {COUNTED[word]}{self.code(place + 1, end)} : ', ')')
        elif (CONSTANT.fullmatch(word) and following != '(' and
              self.words[place - 1] not in ('.', '->')):
            self.change(f'constant {word}', place, place, '(',
                        f' {"^" if word in ("true", "false") else "+"} nov_is(%d))')

    # pylint: disable-next=too-many-branches,too-many-return-statements
    def statement(self, first, returns_bool):
        """Mutants of the statement that begins here, up to the next one."""
        words, last = self.words, first
        if words[first].startswith('endfor_'):     # a macro that ends a block
            return None
        if words[first] in ('if', 'while', 'switch') and words[first + 1] == '(':
            begin, end = first + 2, self.match[first + 1] - 1
            if words[first] == 'if':
                self.change('negated', begin, end, '(nov_is(%d) != !!(', '))')
            return self.expression(begin, end)
        if words[first] == 'for':
            return [self.expression(*part) for part in
                    self.parts(first + 2, self.match[first + 1] - 1, self.top(
                        first + 2, self.match[first + 1] - 1, ';'.__eq__))[1:2]]
        while words[last] != ';':
            if words[last] in ')]}':
                return None
            last = self.match[last] if words[last] in '([{' else last
            last += 1
        if words[first] == 'return':
            if words[last + 1] != '}' or self.match[last + 1] not in self.bodies:
                self.change('dropped', first, last, '{ if (nov_is(%d)) ; else ', ' }')
            if words[first + 1] == '-':
                self.change('no error', first + 1, last - 1, 'nov_is(%d) ? 0 : ', '')
                return None
            if returns_bool and words[first + 1] not in ('true', 'false'):
                self.change('negated', first + 1, last - 1, '(nov_is(%d) != !!(', '))')
            return self.expression(first + 1, last - 1)
        if words[first] in TYPE or re.match(r'\w', words[first + 1]) and words[first] != 'goto':
            return [self.expression(begin + 1, end) for cut in self.top(first, last, '='.__eq__)
                    for begin, end in [(cut, last - 1)] if '{' not in words[cut:last]]
        if words[first] not in ('case', 'default', 'else') and words[first + 1] != ':':
            self.change('dropped', first, last, '{ if (nov_is(%d)) ; else ', ' }')
            if words[first] not in ('goto', 'break', 'continue'):
                self.expression(first, last - 1)
        return None

    def is_start(self, place):
        before, opened = self.words[place - 1], self.within[place]
        if self.words[opened] != '{' or self.words[opened - 1] in ('=', ',', '('):
            return False
        if self.words[opened - 1] == ')' and opened not in self.bodies and not CONTROL.fullmatch(
                self.words[self.match[opened - 1] - 1]):
            return False
        if before == ')':
            return bool(CONTROL.fullmatch(self.words[self.match[place - 1] - 1]))
        if before == ':':
            return next(word for word in self.words[place - 2::-1] if word in ';{}?') != '?'
        return before in (';', '{', '}', 'else', 'do')

    def mutants(self):
        words, place, returns_bool = self.words, 0, False
        while place < len(words):
            if words[place] == '{' and words[place - 1] == ')' and re.match('[a-z]', words[
                    self.match[place - 1] - 1]):
                self.function, end = words[self.match[place - 1] - 1], self.match[place]
                head = words[max(self.match[place - 1] - 6, 0):self.match[place - 1]]
                returns_bool = 'bool' in head
                self.bodies.add(place)
                for inner in range(place + 1, end):
                    if self.is_start(inner) and re.match(r'[\w*+(-]', words[inner]):
                        self.statement(inner, returns_bool)
                place = end
            elif words[place] == '{':
                place = self.match[place]
            place += 1
        return self.edits

    def rewritten(self, numbers, refused):
        """The text with all mutants in it."""
        inserts = collections.defaultdict(list)
        for number, (start, end, before, after, *_) in zip(numbers, self.edits):
            if number not in refused:
                before, after = (part.replace('%d', str(number)) for part in (before, after))
                inserts[start].append((1, start - end, number, before))
                inserts[end].append((0, end - start, -number, after))
        text, done = [], 0
        for place in sorted(inserts):
            text += [self.text[done:place], *(one[-1] for one in sorted(inserts[place]))]
            done = place
        return TEST + ''.join(text) + self.text[done:]


def main(tree, diff, *files):
    refused, output = files
    refused = {int(number) for number in Path(refused).read_text('ascii').split()}
    count, lines = 1, []
    changed = []
    for name, added in sorted(added_lines(Path(diff).read_text('utf-8')).items()):
        text = (Path(tree) / name).read_text('utf-8')
        source = Source(name, text, added)
        numbers = range(count, count + len(source.mutants()))
        count = numbers.stop
        lines += ['\t'.join([str(number), name, str(edit[4]), edit[5], edit[6], added[edit[4]]])
                  for number, edit in zip(numbers, source.edits) if number not in refused]
        text = source.rewritten(numbers, refused)
        text += DEFINITION if name.endswith('/neigh_override.c') else ''
        changed.append((name, source.text, text))
    Path(output).write_text('\n'.join(lines) + '\n', 'utf-8')
    for name, old, new in changed:
        sys.stdout.writelines(difflib.unified_diff(
            old.splitlines(True), new.splitlines(True), f'a/{name}', f'b/{name}'))


if __name__ == '__main__':
    sys.exit(main(sys.argv[1], sys.argv[2], *sys.argv[3:]))
