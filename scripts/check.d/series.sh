# shellcheck shell=bash disable=SC2034,SC2153
# What concerns the series as a whole: sourced by check.

SERIES_CHECKS=(
"exceptions       each line of scripts/check.d/exceptions is still needed"
"cover-letter     cover letter, at most 15 patches, base and tree named"
"b4               'b4 am' and 'b4 shazam' take it from a mailbox and make the branch"
"machine-code     ip_finish_output2(): without the option that of the base, with it a NOP more"
"sizes            struct rtable, struct fib_nh_common: growth and place (pahole)"
"uapi             headers_install; the UAPI header compiles alone as C and C++"
"ynl              ynl-regen.sh -f leaves the tree clean; the touched specs make C that compiles"
"docs             Sphinx has nothing to say about what the series touches"
"coccinelle       the kernel's semantic patches, on the series' own files"
"sparse           is there a sparse that takes this kernel?  'gcc' runs it"
"smatch           smatch on the series' own files"
"kunit            KUnit passes at every prefix from the patch on that adds it"
)

OVERRIDE_HEADER=include/uapi/linux/neigh_override.h

# A check that did not see every patch cannot tell.
check_exceptions() {
	local check type file reason
	[ -z "$differing" ] || nothing "not every patch was read"
	while read -r check type file reason; do
		selected "$check" || nothing "'$check' did not run"
		grep -qxF -- "$check $type $file $reason" "$WORK/exceptions.used" ||
			finding "no patch causes '$check $type $file' any more"
	done < <(grep -v '^#' "$REPO/scripts/check.d/exceptions")
	echo "all are needed"
}

check_cover_letter() {
	local letter=$PATCHES/0000-cover-letter.patch count=${#COMMITS[@]} file large=0 lines commit
	[ -s "$letter" ] || { finding "there is no patches/$BASE/0000-cover-letter.patch"; return; }
	[ "$count" -le 15 ] || finding "$count patches, netdev takes 15"
	grep -qE "^Subject: \[PATCH net-next 0*0/$count\] [^ ]" "$letter" ||
		finding "subject: $(grep -m1 '^Subject:' "$letter")"
	[ "$(sed -n 's/^base-commit: //p' "$letter")" = "$(tree_git rev-parse base)" ] ||
		finding "base-commit is not that of the tree"
	! grep -qF '*** ' "$letter" || finding "a placeholder of git's is left: $(grep -F '*** ' "$letter")"
	grep -qE "^ [0-9]+ files changed" "$letter" || finding "no diffstat"
	for file in "$PATCHES"/0*.patch; do
		grep -qE "^Subject: \[PATCH net-next [0-9]+/$count\]" "$file" ||
			finding "${file##*/}: $(grep -m1 '^Subject:' "$file")"
	done
	for commit in "${COMMITS[@]}"; do
		lines=$(tree_git diff-tree --no-commit-id --numstat -r "$commit" |
			awk '{ lines += $1 + $2 } END { print lines }')
		[ "$lines" -lt 150 ] || large=$((large + 1))
	done
	echo "$count patches, $((count - large)) of them under 150 lines"
}

# The patches as a mailbox: the letters get the ids that a mailer gives them, and
# each header in one line: the b4 of Debian 12 breaks off at one that is folded.
# It folds a From of more than 78 columns itself, hence the short one.
mailbox() {
	local file number=0
	for file in "$PATCHES"/0*.patch; do
		echo "From mboxrd@z Thu Jan  1 00:00:00 1970"
		echo "Message-Id: <$number.check@example.org>"
		[ "$number" = 0 ] || printf '%s: <0.check@example.org>\n' In-Reply-To References
		awk '
			NR == 1 { next }
			body { print; next }
			/^$/ { print header "\n"; body = 1; next }
			/^[ \t]/ { if (!from) { sub(/^[ \t]+/, " "); header = header $0 } next }
			header != "" { print header }
			{ header = /^From: / ? "From: check <check@example.org>" : $0; from = /^From: / }
			END { print "" }' "$file"
		number=$((number + 1))
	done
}

# A work tree without files, on the base.
empty_work_tree() {
	tree_git worktree remove --force --force "$1" >/dev/null 2>&1 || true
	rm -rf "$1"
	tree_git worktree prune
	tree_git worktree add -q -f --no-checkout --detach "$1" base
	tree_git -C "$1" read-tree base
}

# What b4 finds of the user's settings, network and cache is not used.
lonely_b4() {
	HOME=$WORK/b4-home XDG_CACHE_HOME=$WORK/b4-home XDG_DATA_HOME=$WORK/b4-home \
	GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=$WORK/b4-home/gitconfig \
	GIT_COMMITTER_NAME=check GIT_COMMITTER_EMAIL=check@example.org \
		timeout 120 b4 --offline-mode --no-interactive "$@" </dev/null
}

same_tree() {
	[ "$(tree_git -C "$1" rev-parse 'HEAD^{tree}')" = \
	  "$(tree_git rev-parse "$BRANCH^{tree}")" ] || finding "$2 makes another tree than the branch"
	[ "$(tree_git -C "$1" rev-list --count base..HEAD)" = ${#COMMITS[@]} ] ||
		finding "$2 makes $(tree_git -C "$1" rev-list --count base..HEAD) commits"
}

check_b4() {
	local tree=$WORK/b4-tree series
	want b4:b4
	rm -rf "$WORK/b4-home" "$WORK/b4-out"
	mkdir -p "$WORK/b4-home" "$WORK/b4-out"
	printf '[user]\n\tname = check\n\temail = check@example.org\n[safe]\n\tdirectory = *\n' \
		>"$WORK/b4-home/gitconfig"
	mailbox >"$WORK/b4-out/mailbox"
	empty_work_tree "$tree"
	(cd "$tree" && lonely_b4 am --no-cache -m "$WORK/b4-out/mailbox" -o "$WORK/b4-out" \
		-n series 0.check@example.org)
	series=$WORK/b4-out/series.mbx
	[ -s "$series" ] || { finding "b4 am wrote no $series"; return; }
	grep -q 'base-commit' "$WORK/b4-out/series.cover" || finding "b4 am lost the base"
	GIT_COMMITTER_NAME=check GIT_COMMITTER_EMAIL=check@example.org \
		tree_git -C "$tree" -c commit.gpgSign=false am -q --no-3way "$series"
	same_tree "$tree" "b4 am"
	empty_work_tree "$tree"
	(cd "$tree" && lonely_b4 shazam --no-cache -m "$WORK/b4-out/mailbox" 0.check@example.org)
	same_tree "$tree" "b4 shazam"
	tree_git worktree remove --force --force "$tree"
	echo "am and shazam: ${#COMMITS[@]} patches, the tree of the branch ($(b4 --version))"
}

check_machine_code() {
	local before off on object=net/ipv4/ip_output.o
	before=$(object_of "$(tree_git rev-parse base)" off $object)
	off=$(object_of "$COMMIT" off $object)
	on=$(object_of "$COMMIT" gcc $object)
	/usr/bin/python3 "$REPO/scripts/check.d/machine_code.py" ip_finish_output2 \
		neigh_override "$before" "$off" "$on"
}

# size_of OBJECT STRUCT, offset_of OBJECT STRUCT MEMBER: as pahole prints them.
size_of() {
	pahole -C "$2" "$1" | sed -nE 's|^.*/\* size: ([0-9]+),.*|\1|p'
}

offset_of() {
	pahole --expand_types -C "$2" "$1" |
		sed -nE "s|^.*[ *]$3;[[:space:]]*/\* +([0-9]+) .*|\1|p" | head -n 1
}

# size_is OBJECT STRUCT LEAST MOST
size_is() {
	local size
	size=$(size_of "$1" "$2")
	echo "struct $2: ${size:-unknown}"
	[[ ${size:-0} -ge $3 && ${size:-0} -le $4 ]] ||
		finding "struct $2 has ${size:-unknown} bytes in ${1##*/}, wanted $3 to $4"
}

check_sizes() {
	local before now pointer family
	want pahole:pahole
	before=$(object_of "$(tree_git rev-parse base)" gcc net/ipv4/route.o debug)
	now=$(object_of "$COMMIT" gcc net/ipv4/route.o debug)
	size_is "$before" rtable 176 176
	size_is "$before" fib_nh_common 72 72
	size_is "$now" rtable 176 184
	size_is "$now" fib_nh_common 80 80
	pahole -C rtable "$now"
	pointer=$(offset_of "$now" rtable rt_neigh_override)
	family=$(offset_of "$now" rtable rt_gw_family)
	[[ -n $pointer && -n $family && $((pointer / 64)) = $((family / 64)) ]] ||
		finding "rt_neigh_override (${pointer:-none}) and rt_gw_family (${family:-none}) are in two cache lines"
	echo "rtable $(size_of "$before" rtable) -> $(size_of "$now" rtable)," \
		"fib_nh_common $(size_of "$before" fib_nh_common) -> $(size_of "$now" fib_nh_common)," \
		"rt_neigh_override at $pointer beside rt_gw_family at $family"
}

# compiles_alone COMPILER OPTIONS: the installed header, and nothing before it.
compiles_alone() {
	echo "#include <linux/neigh_override.h>" |
		"$@" -Wall -Wextra -Werror -fsyntax-only -isystem /nonexistent \
			-I"$WORK/uapi/usr/include" - 2>&1 | findings "$1 $2 $3: " || true
}

check_uapi() {
	local header=$WORK/uapi/usr/include/linux/neigh_override.h
	want g++:g++ rsync:rsync
	rm -rf "$WORK/uapi/usr"
	make -s -C "$SOURCE" ARCH=x86_64 O="$WORK/uapi" INSTALL_HDR_PATH="$WORK/uapi/usr" \
		headers_install
	[ -s "$header" ] || { finding "headers_install exposes no linux/neigh_override.h"; return; }
	compiles_alone gcc -xc -std=c90
	compiles_alone gcc -xc -std=gnu11
	compiles_alone g++ -xc++ -std=c++11
	compiles_alone g++ -xc++ -std=c++20
	! gcc -fpreprocessed -dD -E -P "$header" 2>/dev/null |
		grep -E '__KERNEL__|CONFIG_|\<(u8|u16|u32|u64|bool)\>' ||
		finding "kernel words in the installed header"
	echo "C90, gnu11, C++11, C++20"
}

# What the tools make of the specs, by Debian's Python.
make_specs() {
	local spec name generated=$SOURCE/tools/net/ynl/generated made
	# Those of an older kernel make C of generic netlink only.
	# shellcheck disable=SC2016  # make's variable
	made=$(make -s -C "$generated" --eval='print-objects: ; @echo $(OBJS)' print-objects)
	/usr/bin/env PATH="/usr/bin:$PATH" "$SOURCE/tools/net/ynl/ynl-regen.sh" -f
	for spec in $1; do
		name=$(basename "$spec" .yaml)
		grep -qwF "$name-user.o" <<<"$made" || { echo "$name: no C made of it"; continue; }
		/usr/bin/env PATH="/usr/bin:$PATH" make -C "$generated" \
			"$name-user.h" "$name-user.c" "$name-user.o" 2>"$WORK/ynl.err" ||
			finding "$name: $(tail -n 1 "$WORK/ynl.err")"
		cat "$WORK/ynl.err"
		grep -E 'warning|error' "$WORK/ynl.err" | findings "$name: " || true
	done
	make -s -C "$generated" distclean >/dev/null
}

check_ynl() {
	local specs
	want /usr/bin/python3:python3 '/usr/lib/python3/dist-packages/yaml/__init__.py:python3-yaml' \
		'/usr/lib/python3/dist-packages/jsonschema/__init__.py:python3-jsonschema'
	specs=$(tree_git diff --name-only --diff-filter=d base "$BRANCH" -- 'Documentation/netlink/specs/')
	make_specs "$specs" >"$WORK/ynl.out"
	cat "$WORK/ynl.out"
	tree_git -C "$SOURCE" diff --stat
	tree_git -C "$SOURCE" diff --quiet ||
		tree_git -C "$SOURCE" diff --name-only | findings "ynl-regen.sh changes "
	echo "clean; C is made of $(grep -cE '\<CC .*-user\.o' "$WORK/ynl.out" || true)" \
		"of the $(wc -w <<<"$specs") touched specs, and compiles"
}

# The whole folder, for its references; but only what is said of the series'
# files counts.
check_docs() {
	local folders=networking touched log=$WORK/docs/sphinx.log
	want sphinx-build:python3-sphinx \
		'/usr/lib/python3/dist-packages/sphinx_rtd_theme/__init__.py:python3-sphinx-rtd-theme' \
		'/usr/lib/python3/dist-packages/yaml/__init__.py:python3-yaml' dot:graphviz
	[ ! -f "$SOURCE/Documentation/netlink/specs/index.rst" ] || folders+=" netlink/specs"
	mkdir -p "$WORK/docs"
	/usr/bin/env PATH="/usr/bin:$PATH" timeout 1200 make -C "$SOURCE" O="$WORK/docs" SPHINXDIRS="$folders" \
		SPHINXOPTS="-j$(nproc)" htmldocs >"$log" 2>&1 || finding "make htmldocs: $(tail -n 1 "$log")"
	tail -n 30 "$log"
	# Of an index, what is said of our page: it has entries outside of the folder.
	touched=$(tree_git diff --name-only base "$BRANCH" -- Documentation include net \
		':!*/index.rst'; echo neigh-override)
	grep -E 'WARNING|ERROR|[Ww]arning:|[Ee]rror:' "$log" | grep -F "${touched//.yaml/}" |
		findings "" || true
	[ -n "$(find "$WORK/docs/Documentation/output" -name ip-neigh-override.html -print -quit)" ] ||
		finding "no ip-neigh-override.html came out"
	echo "$folders: $(grep -cE 'WARNING|ERROR' "$log") remarks, none about the series' files"
}

own_sources() {
	tree_git ls-tree -r --name-only "$COMMIT" | grep -E "$OWN_FILES" | grep '\.c$'
}

check_coccinelle() {
	local cocci options ran=0 slow=0 said="" status files
	want spatch:coccinelle
	mapfile -t files < <(own_sources | sed "s|^|$SOURCE/|")
	while IFS= read -r cocci; do
		options=$(sed -nE 's|^// *Options: *||p' "$cocci")
		status=0
		# shellcheck disable=SC2086  # one word an option
		timeout 60 spatch -D report --no-show-diff --very-quiet --cocci-file "$cocci" $options \
			-I "$SOURCE/include" -I "$SOURCE/include/uapi" "${files[@]}" \
			>"$WORK/cocci.out" 2>"$WORK/cocci.err" || status=$?
		case $status in
		0) ran=$((ran + 1)) ;;
		124) slow=$((slow + 1)); echo "over 60 s: ${cocci#"$SOURCE/"}" ;;
		*) said+=" $(basename "$cocci" .cocci)"
			echo "${cocci#"$SOURCE/"}: status $status: $(tail -n 1 "$WORK/cocci.err")" ;;
		esac
		grep -F "$SOURCE/" "$WORK/cocci.out" | findings "$(basename "$cocci"): " || true
	done < <(grep -rlE '^virtual.*\<report\>' "$SOURCE/scripts/coccinelle" --include='*.cocci' | sort)
	[ "$ran" != 0 ] || finding "not one semantic patch ran"
	echo "$ran semantic patches on ${#files[@]} files; $slow took over 60 s;" \
		"not run by this spatch:${said:- none}"
}

check_smatch() {
	local objects
	command -v smatch >/dev/null || skip "no smatch: Debian has no package of it"
	use_variant gcc
	configure_variant
	objects=$(own_sources | sed 's/\.c$/.o/')
	# shellcheck disable=SC2086  # one word an object
	variant_make C=2 CHECK="smatch -p=kernel" $objects 2>&1 |
		grep -E "(warn|error):" | findings "" || true
	echo "$(wc -w <<<"$objects") objects"
}

# A Kconfig file without its help texts.
without_help() {
	awk '/^[^ \t]/ { help = 0 } $1 == "help" { help = 1 } !help'
}

# What is compiled, told by one sum: patches that leave it alone need no run.
compiled_state() {
	{
		tree_git ls-tree -r "$1" |
			grep -vE '	(Documentation|tools|MAINTAINERS|samples|net/ipv4/Kconfig$)'
		tree_git show "$1:net/ipv4/Kconfig" | without_help
	} | sha256sum
}

kunit_at() {
	local summary out=$WORK/kunit log=$WORK/kunit/run-$1.log status=0
	check_out "$SOURCE" "${COMMITS[$1 - 1]}"
	mkdir -p "$out"
	rm -f "$out/test.log"
	"$SOURCE/tools/testing/kunit/kunit.py" run --build_dir="$out" --jobs="$(nproc)" \
		--kunitconfig="$REPO/kunit/neigh_override.kunitconfig" >"$log" 2>&1 </dev/null || status=$?
	summary=$(sed -n 's/^.*Testing complete\. //p' "$log" | tail -n 1)
	echo "patch $1: ${summary:-did not run, see $log}"
	[[ $status = 0 && $summary =~ passed:\ [1-9] ]] ||
		finding "patch $1: ${summary:-$(tail -n 1 "$log")}"
	[ -f "$out/test.log" ] || finding "patch $1: no kernel log"
	! splats "$out/test.log" || finding "patch $1: see $out/test.log"
	tree_git -C "$SOURCE" status --porcelain -uno | findings "patch $1 leaves changes: " || true
}

# The same is compiled as for the branch: scripts/kunit has it built already.
kunit_at_end() {
	local log=$WORK/kunit-end.log
	"$REPO/scripts/kunit" --base "$BASE" >"$log" 2>&1 </dev/null ||
		finding "patch $1: $(tail -n 1 "$log")"
	echo "patch $1: $(tail -n 1 "$log")"
}

check_kunit() {
	local number state last="" end ran=() same=()
	end=$(compiled_state "$BRANCH")
	use_uml_tmpdir
	for number in $(seq 1 ${#COMMITS[@]}); do
		tree_git cat-file -e "${COMMITS[number - 1]}:net/ipv4/tests/.kunitconfig" 2>/dev/null ||
			continue
		state=$(compiled_state "${COMMITS[number - 1]}")
		if [[ -n $differing && $state != "$end" ]]; then
			continue
		elif [ "$state" = "$last" ]; then
			same+=("$number")
		else
			if [ "$state" = "$end" ]; then
				kunit_at_end "$number"
			else
				kunit_at "$number"
			fi
			ran+=("$number")
		fi
		last=$state
	done
	check_out "$SOURCE" "$COMMIT"
	[ ${#ran[@]} -gt 0 ] || finding "no patch adds KUnit tests"
	echo "passed at patch ${ran[*]}${differing:+ (others left out)}$([ ${#same[@]} = 0 ] ||
		echo "; ${same[*]}: compiles the same as the one before")"
}
