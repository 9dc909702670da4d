# shellcheck shell=bash disable=SC2034,SC2153
# What reads a patch rather than compiling it: sourced by check.

PATCH_CHECKS=(
"message          form of the commit message"
"checkpatch       checkpatch.pl --strict --codespell: 0 errors, 0 warnings, 0 checks"
"kernel-doc       kernel-doc -Wall -none on what is touched: nothing new"
"header-functions no function in a header that is not inline"
"source-inline    no 'inline' in a .c file"
"deprecated       no interface that networking does not take any more"
"maintainers      a section of MAINTAINERS covers each new file"
"selftest-lists   Makefile, config and .gitignore of the selftests: complete and sorted"
"ruff             ruff on what is touched"
"pylint           pylint on what is touched"
"yamllint         yamllint on what is touched"
"gcc              objects: gcc W=1 C=1; calls that nothing defines"
"kunit            KUnit passes, as soon as the series has tests"
)

# touched PATTERN...: the files that the patch adds or changes, or all since FROM;
# added: adds.
touched() {
	tree_git diff-tree -r --name-only --no-renames --diff-filter=AM \
		"${FROM:-$COMMIT^}" "$COMMIT" -- "$@"
}

added() {
	tree_git diff-tree -r --no-commit-id --name-only --no-renames --diff-filter=A \
		"$COMMIT" -- "$@"
}

# added_lines PATTERN...: FILE:LINE:TEXT of the lines that the patch adds.
added_lines() {
	tree_git diff-tree -p --no-commit-id --no-renames -U0 "$COMMIT" -- "$@" | awk '
		/^\+\+\+ / { file = substr($0, 7); next }
		/^@@ / { split($3, at, /[+,]/); line = at[2]; next }
		/^\+/ { print file ":" line++ ":" substr($0, 2) }'
}

# before_tree PATH...: what they were before the patch, in a folder of its own.
before_tree() {
	local tree=$WORK/before-tree path
	rm -rf "$tree"
	mkdir -p "$tree"
	for path; do
		! tree_git cat-file -e "$COMMIT^:$path" 2>/dev/null ||
			tree_git archive "$COMMIT^" -- "$path" | tar -x -C "$tree"
	done
	echo "$tree"
}

# new_remarks BEFORE AFTER: lines of AFTER that BEFORE does not have, wherever
# they have gone.
new_remarks() {
	LC_ALL=C comm -13 <(without_lines "$1") <(without_lines "$2")
}

# new_of_each LINTER PATTERN...: run LINTER FILE in the tree before and in the
# tree now, on each file that is touched; what is new is a finding.
new_of_each() {
	local linter=$1 file before files
	shift
	files=$(touched "$@")
	[ -n "$files" ] || nothing "touches none"
	# shellcheck disable=SC2046  # one folder a word
	before=$(before_tree $(dirname_of_each "$files") .pylintrc)
	while IFS= read -r file; do
		: >"$WORK/remarks-before"
		[ ! -f "$before/$file" ] ||
			(cd "$before" && "$linter" "$file") >"$WORK/remarks-before"
		(cd "$SOURCE" && "$linter" "$file") >"$WORK/remarks-after"
		new_remarks "$WORK/remarks-before" "$WORK/remarks-after" | findings ""
	done <<<"$files"
	echo "$(wc -l <<<"$files") files, nothing new"
}

dirname_of_each() {
	local file
	while IFS= read -r file; do
		dirname "$file"
	done <<<"$1" | sort -u
}

# The imperative has no ending; these verbs end like one.
IMPERATIVES='pass|address|process|express|compress|access|focus|discuss|miss|dismiss|bypass|suppress|embed|need|feed|speed|seed|shed|bring|string|ring'

check_message() {
	local subject body verb line
	subject=$(tree_git log -1 --format=%s "$COMMIT")
	body=$(tree_git log -1 --format=%b "$COMMIT")
	[ ${#subject} -le 75 ] || finding "the subject has ${#subject} columns: $subject"
	[[ $subject =~ ^[A-Za-z0-9/_:\ ,-]+:\ [^\ ] ]] || finding "no 'subsystem: ' prefix: $subject"
	[[ $subject != *. ]] || finding "the subject ends with a full stop: $subject"
	verb=${subject##*: }
	verb=${verb%% *}
	verb=${verb%,}
	[[ $verb =~ ^(${IMPERATIVES})$ || ! $verb =~ (s|ed|ing)$ ]] ||
		finding "not in the imperative: $subject"
	[[ $verb =~ ^[a-z] ]] || finding "does not begin with a verb: $subject"
	[ "$(wc -w <<<"$body")" -ge 20 ] || finding "the body explains nothing: $(wc -w <<<"$body") words"
	while IFS= read -r line; do
		[[ ${#line} -le 75 || $line == ' '* || $line == 'Fixes: '* ]] || finding "${#line} columns: $line"
	done <<<"$body"
	! grep -inE '^(signed-off|reviewed|acked|tested|change-id|co-developed)[a-z-]*:' <<<"$body" ||
		finding "has a tag that only people give"
	[ "$(tree_git log -1 --format='%an <%ae>' "$COMMIT")" = \
	  "$(tree_git log -1 --format='%an <%ae>' "$BRANCH")" ] || finding "another author than the last patch"
	echo "$subject"
}

# excepted CHECK TYPE FILE: is it in the table?  What matched is remembered.
excepted() {
	local check type file reason
	while read -r check type file reason; do
		[[ "$check $type" == "$1 $2" && $file == @(-|"$3") ]] || continue
		echo "$check $type $file $reason" >>"$WORK/exceptions.used"
		return 0
	done < <(grep -v '^#' "$REPO/scripts/check.d/exceptions")
	return 1
}

check_checkpatch() {
	local line file type count=0 status=0
	want codespell:codespell '/usr/lib/python3/dist-packages/ply/lex.py:python3-ply' \
		'/usr/lib/python3/dist-packages/git/__init__.py:python3-git'
	tree_git format-patch -q -1 --no-signature --stdout "$COMMIT" >"$WORK/checked.patch"
	(cd "$SOURCE" && /usr/bin/env PATH="/usr/bin:$PATH" scripts/checkpatch.pl --strict --codespell \
		--max-line-length=80 --no-signoff --show-types --terse --showfile --color=never \
		"$WORK/checked.patch") >"$WORK/checkpatch" 2>"$WORK/checkpatch.err" || status=$?
	cat "$WORK/checkpatch" "$WORK/checkpatch.err"
	findings "checkpatch.pl: " <"$WORK/checkpatch.err"
	tree_git diff-tree --check --no-commit-id -r "$COMMIT" | findings "git: " || true
	[[ $status = 0 && ! -s $WORK/checkpatch ]] ||
	grep -q '^total: [0-9]* errors, [0-9]* warnings, [0-9]* checks' "$WORK/checkpatch" ||
		finding "checkpatch.pl did not come to its end: status $status"
	while IFS= read -r line; do
		file=${line%%:*}
		type=$(sed -E 's/^.*: (ERROR|WARNING|CHECK):([A-Z_0-9]+): .*/\2/' <<<"$line")
		if excepted checkpatch "$type" "$file"; then
			count=$((count + 1))
		else
			finding "$line"
		fi
	done < <(grep -E ': (ERROR|WARNING|CHECK):' "$WORK/checkpatch")
	echo "0 errors, 0 warnings, 0 checks$([ $count = 0 ] || echo ", $count excepted")"
}

kernel_doc_of() {
	"$SOURCE/scripts/kernel-doc" -Wall -none "$1" 2>&1 | grep -v '^[0-9]* warnings' || true
}

check_kernel_doc() {
	new_of_each kernel_doc_of '*.c' '*.h'
}

# forbid FILES PATTERN [EXCEPT [SED]]: no line that is added, as SED leaves it.
forbid() {
	[ -n "$(touched "$1")" ] || nothing "touches no $1"
	added_lines "$1" | sed -E "${4:-}" | grep -E "$2" | grep -vE "${3:-^$}" | findings "" || true
	echo "none"
}

# Others are a second definition for the linker.
check_header_functions() {
	forbid '*.h' '^[^:]*:[0-9]+:static[[:space:]][^=;]*\([^=;]*$' \
		'\<(inline|__always_inline|__inline)\>|\\$'
}

check_source_inline() {
	forbid '*.c' '^[^:]*:[0-9]+:.*\<inline\>' '^[^:]*:[0-9]+:[[:space:]]*\*' \
		's|/\*.*(\*/)?||; s|//.*||; s|"[^"]*"||g'
}

check_deprecated() {
	forbid '*.[ch]' '\<(module_param(_named|_array)?|(dev|net|in_dev)_hold|dev_put|put_net|get_net|init_dummy_netdev|simple_strto[a-z]+|strcpy|strncpy|strlcpy|BUG|BUG_ON|in_interrupt|in_irq|prandom_u32|synchronize_net|printk)\(|^drivers/net/.*\<__free\('
}

MAINTAINERS_SECTION=$(head -n 1 "$REPO/MAINTAINERS.snippet")

check_maintainers() {
	local file files sections
	files=$(added)
	[ -n "$files" ] || nothing "adds no file"
	while IFS= read -r file; do
		# Of a folder that other tests will share
		[[ ${file##*/} != @(Makefile|.kunitconfig) ]] || continue
		sections=$(cd "$SOURCE" && scripts/get_maintainer.pl --sections --nogit --nogit-fallback \
			-f "$file" 2>&1) || true
		# Another section may name it, one that has its siblings.
		grep -qxF -- "$MAINTAINERS_SECTION" <<<"$sections" ||
			grep -qxF -- "F:	$file" "$SOURCE/MAINTAINERS" ||
			finding "$file: neither '$MAINTAINERS_SECTION' nor another section of MAINTAINERS has it"
	done <<<"$files"
	echo "$(wc -l <<<"$files") new files"
}

# The lists of a selftest Makefile, one 'LIST item' a line.
makefile_lists() {
	awk '
		/^[A-Z_]+[[:space:]]*[:+]?=/ { list = $1; sub(/[:+=].*/, "", list); sub(/^[^=]*=/, "") }
		list != "" {
			more = sub(/\\$/, "")
			sub(/#.*/, "")
			n = split($0, word, /[[:space:]]+/)
			for (i = 1; i <= n; i++)
				if (word[i] != "" && word[i] !~ /^\$/)
					print list, word[i]
			if (!more)
				list = ""
		}' "$1"
}

# What sort moves, and what is there twice.  Items without a directory come first.
selftest_list_disorder() {
	case $1 in
	*/Makefile) makefile_lists "$1" | awk '{ print $1, gsub("/", "/", $2), tolower($2) }' |
		LC_ALL=C sort -s -k1,1 ;;
	*/config) sed '/^#/d; /^$/d; /=/!p; s/=.*//; s/_//g' "$1" ;;
	esac >"$WORK/keys"
	LC_ALL=C sort -u "$WORK/keys" | diff "$WORK/keys" - | grep '^[<>]' || true
}

# How the tests' own files are kept differs from base to base; new ones are written as
# the newest has it.
judged_on_newest() {
	[ "$BASE" = "${ALL_BASES[0]}" ] || nothing "judged on ${ALL_BASES[0]}"
}

check_selftest_lists() {
	local file directory name
	judged_on_newest
	[ -n "$(touched 'tools/testing/selftests/**')" ] || nothing "touches no selftest"
	(new_of_each selftest_list_disorder 'tools/testing/selftests/**/Makefile' \
		'tools/testing/selftests/**/config') || [ $? = "$NOTHING" ]
	while IFS= read -r file; do
		directory=${file%/*} name=${file##*/}
		[ ! -f "$SOURCE/$directory/Makefile" ] ||
			makefile_lists "$SOURCE/$directory/Makefile" | cut -d' ' -f2 | grep -xF "${name%.c}" >/dev/null ||
			finding "$file is in no list of $directory/Makefile"
		[[ $name == *.c || $name == *_lib.py || -x $SOURCE/$file ]] || finding "$file is not executable"
		# test_progs takes all that is in its folders.
		[[ $name != *.c || $directory == */bpf/* ]] || grep -qxF "${name%.c}" "$SOURCE/$directory/.gitignore" ||
			finding "${name%.c} is not in $directory/.gitignore"
	done < <(added 'tools/testing/selftests/**/*.sh' 'tools/testing/selftests/**/*.py' \
		'tools/testing/selftests/**/*.c' | grep -v '\.bpf\.c$')
	[ -z "$(added 'tools/testing/selftests/net/*neigh_override*')" ] ||
		grep -qx CONFIG_IP_NEIGH_OVERRIDE=y "$SOURCE/tools/testing/selftests/net/config" ||
		finding "tools/testing/selftests/net/config lacks CONFIG_IP_NEIGH_OVERRIDE=y"
	echo "in order"
}

ruff_of() {
	"${RUFF[@]}" check --no-cache --output-format concise "$1" |
		grep -vE '^(All checks passed|Found [0-9]+ error|\[\*\]|No fixes)' || true
}

check_ruff() {
	judged_on_newest
	[ -n "$(touched '*.py')" ] || nothing "touches no Python"
	find_ruff >&2 || skip "no ruff: not packaged for this system, and none to be had"
	new_of_each ruff_of '*.py'
}

# In a tree without its own settings, pylint's: what it calls an error or a
# warning counts, convention and refactoring do not.
pylint_of() {
	local settings=(--disable=too-few-public-methods)	# a YNL family has none
	[ -f .pylintrc ] || settings=('--disable=C,R')
	/usr/bin/python3 -m pylint --score=n --persistent=n --jobs=1 \
		--msg-template='{path}:{line}: {msg_id} {symbol}: {msg}' "${settings[@]}" "$1" |
		grep -v '^\*\*\*' || true
}

check_pylint() {
	judged_on_newest
	[ -n "$(touched '*.py')" ] || nothing "touches no Python"
	want /usr/bin/pylint:pylint
	new_of_each pylint_of '*.py'
}

yamllint_of() {
	local file
	file=$(basename "$1")
	(cd "$(dirname "$1")" && yamllint -f parsable "$file") || [ $? = 1 ]
}

check_yamllint() {
	want yamllint:yamllint
	new_of_each yamllint_of '*.yaml' '*.yml'
}
