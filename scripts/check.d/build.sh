# shellcheck shell=bash disable=SC2034,SC2153
# What is compiled: sourced by check.

POSTING_CHECKS=(
"clang            objects: clang W=1"
"i386             objects: gcc W=1 for i386"
"off              objects: without CONFIG_IP_NEIGH_OVERRIDE"
"no-ipv6          objects: without CONFIG_IPV6"
"off-no-ipv6      objects: without either"
"no-multipath     objects: without CONFIG_IP_ROUTE_MULTIPATH"
"no-vrf           objects: without CONFIG_NET_VRF"
)

# NAME ARCH COMPILER CHECKER OPTIONS: a kernel with configs/x86_64.config, demo.config,
# check.config, demo-BASE.config and check-BASE.config, of which OPTIONS (a pattern of
# names) are left out.
VARIANTS=(
"gcc x86_64 gcc sparse -"
"clang x86_64 clang - -"
"i386 i386 gcc - CONFIG_(64BIT|INFINIBAND_QEDR)"
"off x86_64 gcc - CONFIG_IP_NEIGH_OVERRIDE.*"
"no-ipv6 x86_64 gcc - CONFIG_(IPV6.*|INET6_.*|IP_VS_IPV6|NF_TABLES_INET|BRIDGE_EBT_IP6|IP_NEIGH_OVERRIDE_KUNIT_TEST)"
"off-no-ipv6 x86_64 gcc - CONFIG_(IP_NEIGH_OVERRIDE.*|IPV6.*|INET6_.*|IP_VS_IPV6|NF_TABLES_INET|BRIDGE_EBT_IP6)"
"no-multipath x86_64 gcc - CONFIG_IP_ROUTE_MULTIPATH"
"no-vrf x86_64 gcc - CONFIG_NET_VRF"
)

# What a compiler sees of a patch
COMPILED=('*.[chS]' '*Kconfig*' '*Makefile*' '*Kbuild*' ':!tools' ':!Documentation')

# Does the series compile to the same from here on?
compiled_as_branch() {
	tree_git diff --quiet "$COMMIT" "$BRANCH" -- "${COMPILED[@]}"
}

# Whose warnings are errors, whatever was there before.
OWN_FILES='^(net/ipv4/(neigh_override|tests/)|include/(net|trace/events|uapi/linux)/neigh_override\.h)'

# Built in every configuration, with the series' own files, when a header of theirs changes.
CORE=(net/ipv4/{ip_output,route,fib_semantics,nexthop}.c)

# Who includes the headers that the series changes, besides what it changes: where
# what their inline functions are made of is there or not.
INCLUDING=" gcc clang i386 off no-ipv6 "
INCLUDERS=(
net/core/dst.c
net/core/lwt_bpf.c
net/ipv4/af_inet.c
net/ipv4/fib_trie.c
net/ipv4/icmp.c
net/ipv4/ip_forward.c
net/ipv4/ip_tunnel.c
net/ipv4/udp.c
net/ipv4/xfrm4_policy.c
net/ipv6/route.c
net/netfilter/ipvs/ip_vs_xmit.c
net/netfilter/nf_flow_table_core.c
net/sched/sch_teql.c
drivers/net/vrf.c
)

# The fields of a variant's line.
use_variant() {
	local entry
	for entry in "${VARIANTS[@]}"; do
		[ "${entry%% *}" = "$1" ] || continue
		read -r VARIANT ARCH COMPILER CHECKER LEFT_OUT <<<"$entry"
		OUT=$WORK/$VARIANT
		return 0
	done
	die "no such variant: $1"
}

variant_make() {
	local compiler=$COMPILER checker=()
	[ "$compiler" != clang ] || compiler=$CLANG
	! command -v ccache >/dev/null || compiler="ccache $compiler"
	[ "$CHECKER" != sparse ] || [ -z "${SPARSE:-}" ] || checker=(C=1 CHECK="$SPARSE")
	make -C "$SOURCE" ARCH="$ARCH" O="$OUT" CC="$compiler" W=1 "${checker[@]}" "$@"
}

variant_compiler() {
	[ "$CHECKER" != sparse ] || find_sparse >&2 || true
	case $COMPILER in
	clang) find_clang >&2 || skip "no clang of version 17 or newer" ;;
	esac
}

variant_wanted() {
	local option
	{
		cat "$REPO"/configs/{x86_64,demo,check}.config
		# What only kernels of this base have
		cat "$REPO"/configs/{demo,check}-"$BASE".config 2>/dev/null || true
	} | grep -vE "^$LEFT_OUT="
	for option in CONFIG_64BIT CONFIG_IP_NEIGH_OVERRIDE CONFIG_IPV6 CONFIG_IP_ROUTE_MULTIPATH \
		CONFIG_NET_VRF; do
		! grep -qxE "$LEFT_OUT" <<<"$option" || echo "# $option is not set"
	done
}

# The programs that a kernel is built with are the same in every configuration:
# those of 'gcc' will do, once they are said to be made here.
seed_variant() {
	local first=$WORK/${VARIANTS[0]%% *}
	[[ ! -e $OUT && -d $first/scripts && -d $first/tools ]] || return 0
	mkdir -p "$OUT"
	cp -a "$first/scripts" "$first/tools" "$OUT"
	grep -rlZF --include='.*' "$first/" "$OUT" | xargs -0r sed -i "s|$first/|$OUT/|g"
}

# Again when a Kconfig file changes.  Before the end of the series, some of its options
# are not there.
configure_variant() {
	local missing
	seed_variant
	mkdir -p "$OUT"
	variant_wanted >"$OUT/.config.wanted"
	KCONFIG_CONFIG=$OUT/.config.new variant_make -s \
		KCONFIG_ALLCONFIG="$OUT/.config.wanted" allnoconfig
	missing=$(refused "$OUT/.config.wanted" "$OUT/.config.new")
	compiled_as_branch ||
		missing=$(grep -v '^CONFIG_[A-Z0-9_]*NEIGH_OVERRIDE' <<<"$missing") || true
	[ -z "$missing" ] || { findings 'the kernel does not take ' <<<"$missing"; return 1; }
	keep_config "$OUT/.config.new" "$OUT/.config"
}

own_sources() {
	tree_git ls-tree -r --name-only "$COMMIT" -- net include | grep -E "$OWN_FILES" | grep '\.c$'
}

# Sources to look at: with gcc all that the series changes (with --ends, only after the
# last patch of a posting), otherwise what changed since the last build, CORE and the
# series' own.  Before the series and after its last patch that is compiled, everything.
variant_sources() {
	local ends=
	[ "$PATCH" != before ] && ! compiled_as_branch || ends=1
	if [ -n "$ends" ] || [[ $VARIANT = gcc && (-z $only_ends || -n $last) ]]; then
		tree_git diff --name-only --diff-filter=d base "$BRANCH" -- 'net/*.c' 'drivers/*.c'
	else
		touched 'net/*.c' 'drivers/*.c'
		printf '%s\n' "${CORE[@]}"
		own_sources
	fi
	[[ -z $ends || $INCLUDING != *" $VARIANT "* ]] || printf '%s\n' "${INCLUDERS[@]}"
}

# The objects, as far as this tree and this configuration have them.
variant_objects() {
	local file
	variant_sources | sort -u | while IFS= read -r file; do
		[ -f "$SOURCE/$file" ] || continue
		case $file in
		*neigh_override*) grep -qx CONFIG_IP_NEIGH_OVERRIDE=y "$OUT/.config" || continue ;;&
		*_last_hop.c) grep -qx CONFIG_IP_NEIGH_OVERRIDE_LAST_HOP=y "$OUT/.config" || continue ;;
		net/ipv4/tests/*) grep -qx CONFIG_IP_NEIGH_OVERRIDE_KUNIT_TEST=y "$OUT/.config" ||
				continue ;;&
		net/ipv6/*) grep -qx CONFIG_IPV6=y "$OUT/.config" || continue ;;
		drivers/net/vrf.c) grep -qx CONFIG_NET_VRF=y "$OUT/.config" || continue ;;
		drivers/infiniband/hw/qedr/*) grep -qx CONFIG_INFINIBAND_QEDR=y "$OUT/.config" || continue ;;
		drivers/net/ethernet/*|drivers/infiniband/*|net/smc/*)
			[[ $VARIANT == @(gcc|clang|i386) ]] || continue ;;
		esac
		echo "${file%.c}.o"
	done
}

# Sort what make printed by object: $OUT/remarks/OBJECT has the lines of the
# compiler and of sparse with 'warning:' or 'error:'; print the objects.
sort_remarks() {
	awk -v remarks="$OUT/remarks/" -v source="$SOURCE/" '
		/^  (CC|CHECK) / {
			object = $NF
			if (index(object, source) == 1)
				object = substr(object, length(source) + 1)
			sub(/\.c$/, ".o", object)
			gsub(/\//, "%", object)
			file = remarks object
			if (!(file in seen)) {
				seen[file] = 1
				printf "" >file
				print object
			}
			next
		}
		file != "" && /(warning|error): / {
			while ((at = index($0, source)) > 0)
				$0 = substr($0, 1, at - 1) substr($0, at + length(source))
			print >file
		}'
}

# The same remark wherever its line has gone.
without_lines() {
	sed -E 's/:[0-9]+(:[0-9]+)?([: ])/\2/' "$@" | LC_ALL=C sort
}

# compare_remarks OBJECT: were there fewer before?  An object that is new may
# have those that others had.
compare_remarks() {
	local now=$OUT/remarks/$1 before=$OUT/before/$1
	# Only the verifier calls kfuncs, so nothing declares them.
	grep -E "$OWN_FILES" "$now" | grep -vE "symbol 'bpf_\w+' was not declared" |
		findings "${1//%//}: of our own: " || true
	if [ -f "$before" ]; then
		[ "$(wc -l <"$now")" -gt "$(wc -l <"$before")" ] || return 0
		LC_ALL=C comm -23 <(without_lines "$now") <(without_lines "$before")
	else
		LC_ALL=C comm -23 <(without_lines "$now" | uniq) \
			<(find "$OUT/before" -type f -exec cat {} + | without_lines | uniq)
	fi | grep -vE "$OWN_FILES" | findings "${1//%//}: new: " || true
}

# Everything again whose remarks are not on record.
forget_unsorted() {
	[ ! -f "$OUT/unsorted" ] || { rm -rf "$OUT/remarks"; rm "$OUT/unsorted"; }
	mkdir -p "$OUT/remarks"
	local object
	while IFS= read -r object; do
		[ -f "$OUT/remarks/${object//\//%}" ] || rm -f "$OUT/$object"
	done <<<"$1"
}

needs_configuration() {
	[ ! -f "$OUT/built" ] || [ ! -f "$OUT/.config" ] ||
		[ -n "$(touched '*Kconfig*')" ]
}

# build_variant NAME: what changed FROM the commit that it was built at before.
build_variant() {
	local objects rebuilt object status=0 log
	use_variant "$1"
	variant_compiler
	if [ "$PATCH" = before ] || { [ -n "$only_ends" ] && [ "$VARIANT" != gcc ]; }; then
		rm -rf "$OUT/built" "$OUT/remarks"
	else
		FROM=$(cat "$OUT/built")
		[ -n "$(touched "${COMPILED[@]}")" ] || nothing "changes nothing that is compiled"
	fi
	! needs_configuration || configure_variant
	objects=$(variant_objects)
	forget_unsorted "$objects"
	rm -rf "$OUT/before"
	cp -a "$OUT/remarks" "$OUT/before"
	touch "$OUT/unsorted"
	log=$OUT/make-${PATCH//\//-}.log
	# shellcheck disable=SC2086  # one word an object
	variant_make -k -Otarget -j"$(nproc)" $objects >"$log" 2>&1 || status=$?
	rebuilt=$(sort_remarks <"$log" | grep -xF "${objects//\//%}") || true
	rm "$OUT/unsorted"
	echo "$COMMIT" >"$OUT/built"
	[ "$status" = 0 ] || grep -E 'error:|\*\*\*|Error [0-9]' "$log" |
		findings "" || finding "make: status $status, see $log"
	grep 'specified, but .* is not available' "$log" | findings "" || true
	[ "$PATCH" = before ] || for object in $rebuilt; do
		compare_remarks "$object"
	done
	[ "$VARIANT" != gcc ] || [ "$status" != 0 ] || undefined_symbols "$objects"
	echo "$(wc -w <<<"$rebuilt") objects built, $(count_remarks before "$rebuilt") warnings before," \
		"$(count_remarks remarks "$rebuilt") now$(variant_note)"
}

variant_note() {
	case $CHECKER-${SPARSE:-} in
	sparse-) echo "; without sparse: none that takes this kernel" ;;
	sparse-*) echo "; with sparse" ;;
	esac
}

# count_remarks FOLDER OBJECTS
count_remarks() {
	local object count=0
	for object in $2; do
		[ ! -f "$OUT/$1/$object" ] || count=$((count + $(wc -l <"$OUT/$1/$object")))
	done
	echo "$count"
}

# A prefix that compiles has to link, too: every function of ours that an object
# calls is defined by then, and exported when the caller can be a module.
undefined_symbols() {
	local object symbol defined
	defined=$(for object in $1; do nm "$OUT/$object" | awk 'NF == 3 { print $3 }'; done)
	for object in $1; do
		nm -u "$OUT/$object" | awk '$2 ~ /neigh_override/ { print $2 }' | while read -r symbol; do
			grep -qxF "$symbol" <<<"$defined" ||
				finding "$object calls $symbol, which nothing defines"
			[[ $object == net/@(core|ipv4|ipv6)/* ]] || grep -qxF "__export_symbol_$symbol" <<<"$defined" ||
				finding "$object calls $symbol, which is not exported"
		done
	done
}

check_sparse() {
	find_sparse >&2 || skip "no sparse that takes this kernel, nor its source to build one"
	echo "$("$SPARSE" --version 2>/dev/null || true), in 'gcc'"
}

# With the tests' own configuration.  What the branch has, scripts/kunit has built already.
check_kunit() {
	local out=$WORK/kunit log=$WORK/kunit/run.log summary status=0
	[ -f "$SOURCE/net/ipv4/tests/.kunitconfig" ] || nothing "has no KUnit tests yet"
	if compiled_as_branch; then
		verb kunit
		return
	fi
	[ -n "$(touched "${COMPILED[@]}")" ] || nothing "changes nothing that is compiled"
	use_uml_tmpdir
	mkdir -p "$out"
	rm -f "$out/test.log"
	"$SOURCE/tools/testing/kunit/kunit.py" run --build_dir="$out" --jobs="$(nproc)" \
		--kunitconfig="$SOURCE/net/ipv4/tests" >"$log" 2>&1 || status=$?
	summary=$(sed -n 's/^.*Testing complete\. //p' "$log" | tail -n 1)
	[[ $status = 0 && $summary =~ passed:\ [1-9] ]] ||
		finding "${summary:-$(tail -n 1 "$log")}, see $log"
	[ -f "$out/test.log" ] || finding "no kernel log"
	! splats "$out/test.log" || finding "see $out/test.log"
	tree_git -C "$SOURCE" status --porcelain -uno | findings "leaves changes: " || true
	echo "${summary:-did not run}"
}

# object_of COMMIT VARIANT OBJECT [debug]: build it there, and print where the
# copy is, or one with debugging information.
object_of() {
	local kept
	use_variant "$2"
	kept=$WORK/kept/$(tree_git rev-parse "$1")-$2${4:+-$4}-${3//\//%}
	if [ ! -f "$kept" ] || [ "$REPO/configs/check.config" -nt "$kept" ]; then
		(
			COMMIT=$1
			check_out "$SOURCE" "$1"
			configure_variant
			# Without sparse: what it remarks has to be asked for again.
			rm -f "$OUT/remarks/${3//\//%}"
			CHECKER=- variant_make -j"$(nproc)" "$3"
		) >&2 || die "cannot build $3 ($2) of $1"
		mkdir -p "$WORK/kept"
		if [ "${4:-}" = debug ]; then
			with_debug_info "$OUT" "$3" "$kept"
		else
			cp "$OUT/$3" "$kept"
		fi
	fi
	echo "$kept"
}
