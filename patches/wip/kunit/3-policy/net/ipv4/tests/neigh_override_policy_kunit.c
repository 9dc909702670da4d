// SPDX-License-Identifier: GPL-2.0-or-later
/* KUnit tests of fallback, preserve, strict and the counters */

#include <linux/if_infiniband.h>
#include <linux/net.h>
#include <linux/rtnetlink.h>
#include <linux/udp.h>
#include <net/arp.h>
#include <net/ip.h>
#include <net/netlink.h>
#include <uapi/linux/neigh_override.h>
#include "neigh_override_test.h"

/* Fallback */

struct fallback_case {
	const char *desc;
	/* input */
	u8 via;
	u8 state;
	/* output as expected */
	bool valid;
	bool asks;		/* by ARP, with the first packet */
};

static const struct fallback_case fallback_cases[] = {
	{ "via4 without entry", NOV_ABSENT4, 0, false, true },
	{ "via4 NONE", NOV_VIA4, NUD_NONE, false, true },
	{ "via4 INCOMPLETE", NOV_VIA4, NUD_INCOMPLETE, false, false },
	{ "via4 FAILED", NOV_VIA4, NUD_FAILED, false, true },
	{ "via4 REACHABLE", NOV_VIA4, NUD_REACHABLE, true, false },
	{ "via4 STALE", NOV_VIA4, NUD_STALE, true, false },
	{ "via4 DELAY", NOV_VIA4, NUD_DELAY, true, false },
	{ "via4 PROBE", NOV_VIA4, NUD_PROBE, true, false },
	{ "via4 NOARP", NOV_VIA4, NUD_NOARP, true, false },
	{ "via4 PERMANENT", NOV_VIA4, NUD_PERMANENT, true, false },
	{ "via6 without entry", NOV_ABSENT6, 0, false, false },
	{ "via6 FAILED", NOV_VIA6, NUD_FAILED, false, false },
	{ "via6 STALE", NOV_VIA6, NUD_STALE, true, false },
};

KUNIT_ARRAY_PARAM_DESC(fallback, fallback_cases, desc);

static void make_fallback(struct kunit *test)
{
	const struct fallback_case *c = test->param_value;
	const struct nov_conf conf = {
		.gw_family = AF_INET,
		.via = c->via,
		.flags = NEIGH_OVERRIDE_F_FALLBACK | NEIGH_OVERRIDE_F_COUNTERS,
	};

	nov_make_route(test, &conf);
	if (c->via != NOV_ABSENT4 && c->via != NOV_ABSENT6)
		nov_set_state(test, c->via, c->state);
}

static void fallback_send(struct kunit *test)
{
	const struct fallback_case *c = test->param_value;
	u8 dst = c->valid ? c->via : NOV_GATEWAY4;
	struct nov_test *ctx = test->priv;
	struct nov_dev *priv = netdev_priv(ctx->dev);
	struct neighbour *n;
	int i;

	make_fallback(test);
	for (i = 0; i < 2; i++) {
		ip_output(&init_net, NULL, nov_packet(test, LL_MAX_HEADER));
		nov_expect_frame(test, dst, NOV_DEVICE);
		KUNIT_EXPECT_EQ(test, c->asks, priv->arps);
	}
	nov_expect_count(test, NEIGH_OVERRIDE_MIB_PKTS, 2);
	nov_expect_count(test, NEIGH_OVERRIDE_MIB_FALLBACK, c->valid ? 0 : 2);

	/* Asked for, while no packet waits */
	n = nov_neigh_of(test, c->via);
	if (!c->valid)
		KUNIT_EXPECT_EQ(test, n->nud_state, NUD_INCOMPLETE);
	KUNIT_EXPECT_TRUE(test, skb_queue_empty(&n->arp_queue));
	neigh_release(n);
}

/* Who asks the route is told what ip_output() does. */
static void fallback_asked(struct kunit *test)
{
	const struct fallback_case *c = test->param_value;
	struct nov_test *ctx = test->priv;
	u8 used = c->valid ? c->via : NOV_GATEWAY4;
	const __be32 daddr = NOV_DADDR;
	struct neighbour *n;
	struct sk_buff *skb;

	make_fallback(test);
	KUNIT_EXPECT_EQ(test, nhc_neigh_override_state(&ctx->nhc),
			c->valid ? c->state : -1);

	n = dst_neigh_lookup(&ctx->rt->dst, &daddr);
	nov_expect_neigh(test, n, used);
	skb = nov_packet(test, 0);
	n = dst_neigh_lookup_skb(&ctx->rt->dst, skb);
	consume_skb(skb);
	nov_expect_neigh(test, n, used);

	nov_take_confirmed(test, c->via);
	nov_take_confirmed(test, NOV_GATEWAY4);
	dst_confirm_neigh(&ctx->rt->dst, &daddr);
	KUNIT_EXPECT_EQ(test, c->valid, nov_take_confirmed(test, c->via));
	KUNIT_EXPECT_EQ(test, !c->valid,
			nov_take_confirmed(test, NOV_GATEWAY4));
}

/* What waits for the gateway goes there, even if the via is back by then. */
static void fallback_wait(struct kunit *test)
{
	const struct nov_conf conf = {
		.gw_family = AF_INET,
		.via = NOV_VIA4,
		.flags = NEIGH_OVERRIDE_F_FALLBACK,
	};

	nov_make_route(test, &conf);
	nov_set_state(test, NOV_VIA4, NUD_FAILED);
	nov_set_state(test, NOV_GATEWAY4, NUD_NONE);
	ip_output(&init_net, NULL, nov_packet(test, LL_MAX_HEADER));
	nov_expect_nothing(test);

	nov_answer(test, NOV_VIA4, NOV_VIA4);
	nov_answer(test, NOV_GATEWAY4, NOV_OTHER);
	nov_expect_frame(test, NOV_OTHER, NOV_DEVICE);
}

/* Preserve, for packets from NOV_SADDR */

struct owner_case {
	const char *desc;
	/* input */
	__be32 saddr;		/* another one */
	u8 lladdr, state;	/* of the entry of NOV_SADDR */
	u8 type;		/* of the route to it */
	u8 hop, hop_state;
	bool elsewhere;		/* by another device */
	bool is_input, no_socket;	/* not sent by this host */
	bool no_saddr;
	/* output as expected */
	u8 src, count;
};

#define PRESERVE	(NEIGH_OVERRIDE_F_PRESERVE | NEIGH_OVERRIDE_F_COUNTERS)
#define UNKNOWN		.src = NOV_DEVICE, .count = NEIGH_OVERRIDE_MIB_UNKNOWN
#define FORWARDED	.src = NOV_DEVICE, .count = NEIGH_OVERRIDE_MIB_FORWARDED
#define ROUTER4(nud)	.type = RTN_UNICAST, .hop = NOV_ROUTER4,	\
			.hop_state = nud

static const struct owner_case owner_cases[] = {
	{ "nothing known", UNKNOWN },
	{ "no address yet", .no_saddr = true, .src = NOV_DEVICE },
	{ "local address", htonl(INADDR_LOOPBACK), .src = NOV_DEVICE },
	{ "local route", .type = RTN_LOCAL, .src = NOV_DEVICE },
	{ "REACHABLE", 0, NOV_OWNER, NUD_REACHABLE, .src = NOV_OWNER },
	{ "STALE", 0, NOV_OWNER, NUD_STALE, .src = NOV_OWNER },
	{ "FAILED", 0, NOV_OWNER, NUD_FAILED, UNKNOWN },
	{ "multicast", 0, NOV_MULTICAST, NUD_REACHABLE, UNKNOWN },
	{ "same as destination", 0, NOV_GATEWAY4, NUD_STALE,
	  .src = NOV_DEVICE },
	{ "gateway4", ROUTER4(NUD_STALE), .src = NOV_ROUTER4 },
	{ "gateway4 FAILED", ROUTER4(NUD_FAILED), UNKNOWN },
	{ "gateway4 elsewhere", ROUTER4(NUD_STALE), .elsewhere = true,
	  UNKNOWN },
	{ "gateway6", .type = RTN_UNICAST, .hop = NOV_GATEWAY6,
	  .hop_state = NUD_STALE, .src = NOV_GATEWAY6 },
	{ "lladdr of the route", .type = RTN_UNICAST, .hop = NOV_LLADDR,
	  .src = NOV_LLADDR },
	{ "on-link route", .type = RTN_UNICAST, UNKNOWN },
	{ "broadcast route", .type = RTN_BROADCAST, UNKNOWN },
	{ "STALE, gateway4", 0, NOV_OWNER, NUD_STALE, ROUTER4(NUD_REACHABLE),
	  .src = NOV_OWNER },
	{ "FAILED, gateway4", 0, NOV_OWNER, NUD_FAILED,
	  ROUTER4(NUD_REACHABLE), .src = NOV_ROUTER4 },
	{ "input route", 0, NOV_OWNER, NUD_STALE, .is_input = true,
	  FORWARDED },
	{ "no socket", 0, NOV_OWNER, NUD_STALE, .no_socket = true,
	  FORWARDED },
};

KUNIT_ARRAY_PARAM_DESC(owner, owner_cases, desc);

/* The device takes the route with it. */
static void add_owner_route(struct kunit *test, const struct owner_case *c)
{
	struct nov_test *ctx = test->priv;
	struct fib_config cfg = {
		.fc_dst = NOV_SADDR,
		.fc_dst_len = 32,
		.fc_oif = ctx->dev->ifindex,
		.fc_scope = c->type == RTN_LOCAL ? RT_SCOPE_HOST :
			    c->hop ? RT_SCOPE_UNIVERSE : RT_SCOPE_LINK,
		.fc_type = c->type,
		.fc_table = RT_TABLE_MAIN,
		.fc_nlflags = NLM_F_CREATE,
		.fc_nlinfo.nl_net = &init_net,
	};
	struct sk_buff *msg = nlmsg_new(NLMSG_DEFAULT_SIZE, GFP_KERNEL);
	int err;

	KUNIT_ASSERT_NOT_NULL(test, msg);
	if (c->elsewhere) {
		ctx->other_dev = nov_add_dev(test);
		cfg.fc_oif = ctx->other_dev->ifindex;
	}
	if (c->hop == NOV_LLADDR) {
		cfg.fc_via_lladdr = nov_put_via(test, msg, c->hop);
	} else if (c->hop) {
		cfg.fc_flags = RTNH_F_ONLINK;
		cfg.fc_gw_family = c->hop == NOV_ROUTER4 ? AF_INET : AF_INET6;
		cfg.fc_gw6 = nov_gw6;
		if (c->hop == NOV_ROUTER4)
			cfg.fc_gw4 = NOV_ROUTER;
	}
	rtnl_net_lock(&init_net);
	err = fib_table_insert(&init_net,
			       fib_new_table(&init_net, RT_TABLE_MAIN), &cfg,
			       NULL);
	rtnl_net_unlock(&init_net);
	kfree_skb(msg);
	KUNIT_ASSERT_EQ(test, 0, err);
}

static void add_entry(struct kunit *test, u8 who, u8 lladdr, u8 state)
{
	nov_add_neigh(test, who);
	nov_set_state(test, who, NUD_STALE);
	nov_answer(test, who, lladdr);
	nov_set_state(test, who, state);
}

/* A packet that this host sends */
static struct sk_buff *own_packet(struct kunit *test, struct socket **sock)
{
	struct sk_buff *skb = nov_packet(test, LL_MAX_HEADER);

	KUNIT_ASSERT_EQ(test, 0, sock_create_kern(&init_net, AF_INET,
						  SOCK_DGRAM, 0, sock));
	skb_set_owner_w(skb, (*sock)->sk);
	return skb;
}

static void send_preserve(struct kunit *test, u32 flags)
{
	const struct nov_conf conf = {
		.gw_family = AF_INET,
		.flags = PRESERVE | flags,
	};
	const struct owner_case *c = test->param_value;
	bool drop = flags && c->count == NEIGH_OVERRIDE_MIB_UNKNOWN;
	struct nov_test *ctx = test->priv;
	struct socket *sock;
	struct sk_buff *skb;
	int entries, err;

	if (c->lladdr)
		add_entry(test, NOV_OWNER, c->lladdr, c->state);
	if (c->hop_state)
		add_entry(test, c->hop, c->hop, c->hop_state);
	if (c->type)
		add_owner_route(test, c);
	nov_make_route(test, &conf);
	ctx->rt->rt_is_input = c->is_input;
	entries = atomic_read(&arp_tbl.entries);

	skb = own_packet(test, &sock);
	if (c->no_socket)
		skb_orphan(skb);
	if (c->saddr || c->no_saddr)
		ip_hdr(skb)->saddr = c->saddr;
	err = ip_output(&init_net, NULL, skb);

	KUNIT_EXPECT_EQ(test, drop ? -EPERM : 0, err);
	if (drop)
		nov_expect_drop(test, SKB_DROP_REASON_NEIGH_OVERRIDE_STRICT);
	else
		nov_expect_frame(test, NOV_GATEWAY4, c->src);
	nov_expect_count(test, NEIGH_OVERRIDE_MIB_PKTS, 1);
	nov_expect_count(test, NEIGH_OVERRIDE_MIB_FAILED, drop);
	nov_expect_count(test, NEIGH_OVERRIDE_MIB_UNKNOWN,
			 c->count == NEIGH_OVERRIDE_MIB_UNKNOWN);
	nov_expect_count(test, NEIGH_OVERRIDE_MIB_FORWARDED,
			 c->count == NEIGH_OVERRIDE_MIB_FORWARDED);
	/* Nobody was asked, nothing was learnt. */
	KUNIT_EXPECT_EQ(test, entries, atomic_read(&arp_tbl.entries));
	sock_release(sock);
}

static void preserve_send(struct kunit *test)
{
	send_preserve(test, 0);
}

static void preserve_strict(struct kunit *test)
{
	send_preserve(test, NEIGH_OVERRIDE_F_STRICT);
}

/* The owner is looked for again when a packet with one leaves. */

struct owner_wait_case {
	const char *desc;
	/* input */
	u32 flags;
	u8 state;		/* of the owner's entry by then */
	/* output as expected: 0 for a drop */
	u8 src;
};

static const struct owner_wait_case owner_wait_cases[] = {
	{ "lost", 0, NUD_FAILED, NOV_DEVICE },
	{ "known, strict", NEIGH_OVERRIDE_F_STRICT, NUD_STALE, NOV_OWNER },
	{ "lost, strict", NEIGH_OVERRIDE_F_STRICT, NUD_FAILED, 0 },
};

KUNIT_ARRAY_PARAM_DESC(owner_wait, owner_wait_cases, desc);

static void preserve_wait(struct kunit *test)
{
	const struct owner_wait_case *c = test->param_value;
	const struct nov_conf conf = { .flags = PRESERVE | c->flags };
	struct socket *sock;

	nov_make_route(test, &conf);
	add_entry(test, NOV_OWNER, NOV_OWNER, NUD_STALE);
	nov_set_state(test, NOV_DST, NUD_NONE);
	ip_output(&init_net, NULL, own_packet(test, &sock));
	nov_expect_nothing(test);

	nov_set_state(test, NOV_OWNER, c->state);
	nov_answer(test, NOV_DST, NOV_OTHER);
	if (c->src)
		nov_expect_frame(test, NOV_OTHER, c->src);
	else
		nov_expect_drop(test, SKB_DROP_REASON_NEIGH_OVERRIDE_STRICT);
	nov_expect_count(test, NEIGH_OVERRIDE_MIB_PKTS, 1);
	nov_expect_count(test, NEIGH_OVERRIDE_MIB_FAILED, !c->src);
	sock_release(sock);
}

/* Counters */

#define COUNTERS	.flags = NEIGH_OVERRIDE_F_COUNTERS

static const struct nov_change_case count_change_cases[] = {
	{ "no headroom", { .lladdr = NOV_LLADDR, COUNTERS }, 0, ETH_ALEN,
	  .reason = SKB_DROP_REASON_NEIGH_HH_FILLFAIL },
	{ "longer addresses", { .lladdr = NOV_LLADDR, COUNTERS },
	  LL_MAX_HEADER, INFINIBAND_ALEN,
	  .reason = SKB_DROP_REASON_NEIGH_HH_FILLFAIL },
	{ "no new neighbour", { .via = NOV_ABSENT4, COUNTERS },
	  LL_MAX_HEADER, ETH_ALEN, .no_ip = true,
	  .reason = SKB_DROP_REASON_NEIGH_CREATEFAIL },
};

KUNIT_ARRAY_PARAM_DESC(count_change, count_change_cases, desc);

/* As the packet that it is for IP, however many frames are sent for it */
static void count_gso(struct kunit *test)
{
	const struct nov_conf conf = { .lladdr = NOV_LLADDR, COUNTERS };
	struct udphdr *uh;
	const unsigned int len = sizeof(struct iphdr) + sizeof(*uh) + 24;
	struct nov_test *ctx = test->priv;
	struct nov_dev *priv = netdev_priv(ctx->dev);
	struct sk_buff *skb;

	nov_make_route(test, &conf);
	skb = nov_packet(test, LL_MAX_HEADER);
	skb_set_transport_header(skb, skb->len);
	uh = skb_put_zero(skb, len - skb->len);
	uh->len = htons(sizeof(*uh) + 24);
	ip_hdr(skb)->protocol = IPPROTO_UDP;
	ip_hdr(skb)->tot_len = htons(len);
	skb->ip_summed = CHECKSUM_PARTIAL;
	skb->csum_start = skb_transport_header(skb) - skb->head;
	skb->csum_offset = offsetof(struct udphdr, check);
	skb_shinfo(skb)->gso_type = SKB_GSO_UDP_L4;
	skb_shinfo(skb)->gso_size = 8;
	skb_shinfo(skb)->gso_segs = 3;
	ip_output(&init_net, NULL, skb);

	KUNIT_EXPECT_EQ(test, 3, skb_queue_len(&priv->frames));
	nov_expect_count(test, NEIGH_OVERRIDE_MIB_PKTS, 1);
	nov_expect_count(test, NEIGH_OVERRIDE_MIB_OCTETS, len);
}

static const struct nov_pair_case policy_pair_cases[] = {
	{ "same", { .src = NOV_SOURCE, COUNTERS },
	  { .src = NOV_SOURCE, COUNTERS }, true },
	{ "counters, none", { .src = NOV_SOURCE, COUNTERS },
	  { .src = NOV_SOURCE }, false },
	{ "fallback, none",
	  { .via = NOV_VIA4, .flags = NEIGH_OVERRIDE_F_FALLBACK },
	  { .via = NOV_VIA4 }, false },
	{ "preserve, strict", { .flags = NEIGH_OVERRIDE_F_PRESERVE },
	  { .flags = NEIGH_OVERRIDE_F_PRESERVE | NEIGH_OVERRIDE_F_STRICT },
	  false },
};

KUNIT_ARRAY_PARAM_DESC(policy_pair, policy_pair_cases, desc);

static struct kunit_case policy_test_cases[] = {
	KUNIT_CASE_PARAM(fallback_send, fallback_gen_params),
	KUNIT_CASE_PARAM(fallback_asked, fallback_gen_params),
	KUNIT_CASE(fallback_wait),
	KUNIT_CASE_PARAM(preserve_send, owner_gen_params),
	KUNIT_CASE_PARAM(preserve_strict, owner_gen_params),
	KUNIT_CASE_PARAM(preserve_wait, owner_wait_gen_params),
	KUNIT_CASE_PARAM(nov_test_change, count_change_gen_params),
	KUNIT_CASE(count_gso),
	KUNIT_CASE_PARAM(nov_test_compare, policy_pair_gen_params),
	{}
};

static struct kunit_suite policy_suite = {
	.name		= "neigh_override_policy",
	.suite_init	= nov_suite_init,
	.init		= nov_init,
	.exit		= nov_exit,
	.test_cases	= policy_test_cases,
};

kunit_test_suite(policy_suite);
