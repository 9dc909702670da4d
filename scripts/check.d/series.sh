# shellcheck shell=bash disable=SC2034,SC2153
# What concerns the series as a whole: sourced by check.

SERIES_CHECKS=(
"exceptions       each line of scripts/check.d/exceptions is still needed"
"cover-letter     each posting has a cover letter; base and tree are named"
"size             limits of patches a posting and of added lines of code, without tests
                   and documents: a patch, the stack without repairs"
"machine-code     ip_finish_output2(), ip6_finish_output2(): without the option that of the base"
"sizes            struct rtable, rt6_info, fib_nh_common: growth and place (pahole)"
"uapi             headers_install; the UAPI header compiles alone as C and C++"
"ynl              ynl-regen.sh -f leaves the tree clean; the touched specs make C that compiles"
"docs             Sphinx has nothing to say about what the series touches"
"coccinelle       the kernel's semantic patches, on the series' own files"
"sparse           is there a sparse that takes this kernel?  'gcc' runs it"
)

POSTING_PATCHES=12
# About 200
PATCH_LINES=240
# Of the newest base
declare -A STACK_LINES=([3-policy]=2250 [4-fast]=2500 [5-ipv6]=3350 [6-selectors]=3820)

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
	local posting folder letter count prefix base file
	base=$(tree_git rev-parse base)
	for posting in "${POSTINGS[@]}"; do
		folder=$PATCHES/$posting letter=$PATCHES/$posting/0000-cover-letter.patch
		[ -s "$letter" ] || { finding "$posting has no cover letter"; continue; }
		count=$(grep -c "^$posting/" <<<"$(printf '%s\n' "${LABELS[@]}")")
		prefix='PATCH net-next'
		[[ $posting != 0-* ]] || prefix=PATCH
		grep -qE "^Subject: \[$prefix 0*0/$count\] [^ ]" "$letter" ||
			finding "$posting: $(grep -m1 '^Subject:' "$letter")"
		[ "$(sed -n 's/^base-commit: //p' "$letter")" = "$base" ] ||
			finding "$posting: base-commit is not '$base'"
		base=
		! grep -F '*** ' "$letter" || finding "$posting: a placeholder of git's is left"
		grep -qE "^ [0-9]+ files? changed" "$letter" || finding "$posting: no diffstat"
		for file in "$folder"/0*.patch; do
			grep -qE "^Subject: \[PATCH( [a-z]+(-next)?)? [0-9]+/$count\]" "$file" ||
				finding "${file#"$PATCHES/"}: $(grep -m1 '^Subject:' "$file")"
		done
	done
	echo "${#POSTINGS[@]} cover letters"
}

# added_code BEFORE AFTER: lines of code, without tests, documents and specs.
added_code() {
	tree_git diff --no-color "$1" "$2" -- '*.[ch]' ':!*/tests/*' ':!tools/testing' \
		':!Documentation' |
		grep -vE '^\+\+\+ |EXPORT_SYMBOL_IF_KUNIT|kunit/visibility' | grep -c '^+' || true
}

check_size() {
	local index posting end lines limit before=base said=""
	local -A patches
	for index in "${!COMMITS[@]}"; do
		posting=${LABELS[index]%/*}
		lines=$(added_code "${COMMITS[index]}^" "${COMMITS[index]}")
		[ "$lines" -le "$PATCH_LINES" ] ||
			finding "${LABELS[index]} adds $lines lines of code, more than $PATCH_LINES"
		patches[$posting]=$((${patches[$posting]:-0} + 1))
	done
	for posting in "${POSTINGS[@]}"; do
		[ "${patches[$posting]}" -le "$POSTING_PATCHES" ] ||
			finding "$posting has ${patches[$posting]} patches, more than $POSTING_PATCHES"
		end=$(posting_end "$posting")
		said+="$posting ${patches[$posting]} patches, $(added_code "$before" "$end") lines; "
		before=$end
		[ -n "${STACK_LINES[$posting]:-}" ] || continue
		lines=$(added_code posting/0-repairs "$end")
		limit=${STACK_LINES[$posting]}
		# Older bases lack helpers.
		[ "$BASE" = "${ALL_BASES[0]}" ] || limit=$((limit + 25))
		[ "$lines" -le "$limit" ] ||
			finding "1-link to $posting add $lines lines of code, more than $limit"
	done
	echo "${said}all: ${#COMMITS[@]} patches, $(added_code posting/0-repairs "$BRANCH") lines of code but for 0-repairs"
}

# code_of OBJECT FUNCTION: without addresses, which other functions move.
code_of() {
	objdump -dr --no-show-raw-insn "$1" |
		awk -v head="<$2>:" '$2 == head { on = 1; next } !NF { on = 0 } on' |
		sed -E 's/^\s*[0-9a-f]+:\s*//; s/\b[0-9a-f]+ <//'
}

check_machine_code() {
	local function object before off lines=0
	for function in ip_finish_output2:net/ipv4/ip_output ip6_finish_output2:net/ipv6/ip6_output; do
		object=${function#*:}.o
		! tree_git diff --quiet base "$COMMIT" -- "${function#*:}.c" || continue
		before=$(object_of "$(tree_git rev-parse base)" off "$object")
		off=$(object_of "$COMMIT" off "$object")
		code_of "$before" "${function%:*}" >"$WORK/code.before"
		code_of "$off" "${function%:*}" >"$WORK/code.off"
		[ -s "$WORK/code.off" ] || finding "no ${function%:*} in $off: not compiled, or inlined"
		diff -u "$WORK/code.before" "$WORK/code.off" ||
			finding "${function%:*} is not the same without the option"
		lines=$((lines + $(wc -l <"$WORK/code.off")))
	done
	echo "$lines lines of machine code are the same"
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
	size_is "$before" rt6_info 224 224
	size_is "$now" rt6_info 224 232
	pahole -C rtable "$now"
	pointer=$(offset_of "$now" rtable rt_neigh_override)
	family=$(offset_of "$now" rtable rt_gw_family)
	[[ -n $pointer && -n $family && $((pointer / 64)) = $((family / 64)) ]] ||
		finding "rt_neigh_override (${pointer:-none}) and rt_gw_family (${family:-none}) are in two cache lines"
	echo "rtable $(size_of "$before" rtable) -> $(size_of "$now" rtable)," \
		"fib_nh_common $(size_of "$before" fib_nh_common) -> $(size_of "$now" fib_nh_common)," \
		"rt6_info $(size_of "$before" rt6_info) -> $(size_of "$now" rt6_info)," \
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

