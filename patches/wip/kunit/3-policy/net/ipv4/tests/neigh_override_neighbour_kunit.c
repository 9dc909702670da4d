// SPDX-License-Identifier: GPL-2.0-or-later
/* KUnit tests of routes to a neighbour, and from a link-layer source */

#include <linux/if_infiniband.h>
#include <net/arp.h>
#include <net/ip.h>
#include "neigh_override_test.h"

static const struct nov_conf by_source = { .src = NOV_SOURCE };

static const struct nov_route_case neighbour_cases[] = {
	{ "src-lladdr", { .src = NOV_SOURCE },
	  NOV_DST, NOV_SOURCE, NOV_DST, false, .needs_packet = true },
	{ "src-lladdr, gateway4",
	  { .src = NOV_SOURCE, .gw_family = AF_INET },
	  NOV_GATEWAY4, NOV_SOURCE, NOV_GATEWAY4, true, .needs_packet = true },
	{ "src-lladdr, gateway6",
	  { .src = NOV_SOURCE, .gw_family = AF_INET6 },
	  NOV_GATEWAY6, NOV_SOURCE, NOV_GATEWAY6, true, .needs_packet = true },
	{ "via4", { .via = NOV_VIA4 },
	  NOV_VIA4, NOV_DEVICE, NOV_VIA4, true },
	{ "via6, gateway4", { .via = NOV_VIA6, .gw_family = AF_INET },
	  NOV_VIA6, NOV_DEVICE, NOV_VIA6, true },
	{ "via4 + src-lladdr, gateway4",
	  { .via = NOV_VIA4, .src = NOV_SOURCE, .gw_family = AF_INET },
	  NOV_VIA4, NOV_SOURCE, NOV_VIA4, true, .needs_packet = true },
	{ "via6 + src-lladdr", { .via = NOV_VIA6, .src = NOV_SOURCE },
	  NOV_VIA6, NOV_SOURCE, NOV_VIA6, true, .needs_packet = true },
	{ "lladdr + src-lladdr", { .lladdr = NOV_LLADDR, .src = NOV_SOURCE },
	  NOV_LLADDR, NOV_SOURCE, NOV_NOBODY, true },
	/* Never from whom it goes to */
	{ "src-lladdr of the gateway",
	  { .src = NOV_GATEWAY4, .gw_family = AF_INET },
	  NOV_GATEWAY4, NOV_DEVICE, NOV_GATEWAY4, true, .needs_packet = true },
	{ "via6 + its src-lladdr", { .via = NOV_VIA6, .src = NOV_VIA6 },
	  NOV_VIA6, NOV_DEVICE, NOV_VIA6, true, .needs_packet = true },
};

KUNIT_ARRAY_PARAM_DESC(neighbour, neighbour_cases, desc);

/* Waiting for a neighbour */

struct wait_case {
	const char *desc;
	/* input */
	struct nov_conf conf;
	u8 neigh;		/* that does not answer at first */
	u8 state;
	bool dead;		/* the route, before the neighbour answers */
	u8 answer;		/* the address that it has then */
	/* output as expected: 0 for a drop */
	u8 src;
	/* input */
	u8 addr_len;		/* of the device by then */
};

static const struct wait_case wait_cases[] = {
	{ "src-lladdr", { .src = NOV_SOURCE },
	  NOV_DST, NUD_NONE, false, NOV_OTHER, NOV_SOURCE },
	{ "src-lladdr, dead route", { .src = NOV_SOURCE },
	  NOV_DST, NUD_NONE, true, NOV_OTHER, NOV_SOURCE },
	{ "src-lladdr, failed", { .src = NOV_SOURCE },
	  NOV_DST, NUD_FAILED, false, NOV_OTHER, NOV_SOURCE },
	{ "src-lladdr, longer addresses", { .src = NOV_SOURCE },
	  NOV_DST, NUD_NONE, false, NOV_OTHER, 0, INFINIBAND_ALEN },
	{ "src-lladdr, answer is src-lladdr", { .src = NOV_SOURCE },
	  NOV_DST, NUD_NONE, false, NOV_SOURCE, NOV_DEVICE },
	{ "via4, gateway4", { .via = NOV_VIA4, .gw_family = AF_INET },
	  NOV_VIA4, NUD_NONE, false, NOV_OTHER, NOV_DEVICE },
	{ "via4, dead route", { .via = NOV_VIA4 },
	  NOV_VIA4, NUD_NONE, true, NOV_OTHER, NOV_DEVICE },
	{ "via4 + src-lladdr", { .via = NOV_VIA4, .src = NOV_SOURCE },
	  NOV_VIA4, NUD_INCOMPLETE, false, NOV_OTHER, NOV_SOURCE },
	{ "via6 + src-lladdr", { .via = NOV_VIA6, .src = NOV_SOURCE },
	  NOV_VIA6, NUD_NONE, false, NOV_OTHER, NOV_SOURCE },
};

KUNIT_ARRAY_PARAM_DESC(wait, wait_cases, desc);

static void send_noref(struct kunit *test)
{
	struct sk_buff *skb = nov_packet(test, LL_MAX_HEADER);
	struct dst_entry *dst = skb_dst(skb);

	skb_dst_drop(skb);
	rcu_read_lock();
	skb_dst_set_noref(skb, dst);
	ip_output(&init_net, NULL, skb);
	rcu_read_unlock();
}

/* A packet that waits needs a reference to its route. */
static void neighbour_wait(struct kunit *test)
{
	const struct wait_case *c = test->param_value;
	struct nov_test *ctx = test->priv;

	nov_make_route(test, &c->conf);
	nov_set_state(test, c->neigh, c->state);
	send_noref(test);
	nov_expect_nothing(test);

	if (c->dead)
		dst_dev_put(&ctx->rt->dst);
	ctx->dev->addr_len = c->addr_len ?: ETH_ALEN;
	nov_answer(test, c->neigh, c->answer);
	ctx->dev->addr_len = ETH_ALEN;
	if (c->src)
		nov_expect_frame(test, c->answer, c->src);
	else
		nov_expect_drop(test, SKB_DROP_REASON_NEIGH_HH_FILLFAIL);
}

/* Something else sends to the neighbour of the route: not from the override's
 * source, not even when it has to wait.
 */
static void neighbour_wait_unmarked(struct kunit *test)
{
	struct neighbour *n;
	struct sk_buff *skb;

	nov_make_route(test, &by_source);
	nov_set_state(test, NOV_DST, NUD_NONE);
	skb = nov_packet(test, LL_MAX_HEADER);
	n = nov_neigh_of(test, NOV_DST);
	neigh_output(n, skb, false);
	neigh_release(n);
	nov_expect_nothing(test);

	nov_answer(test, NOV_DST, NOV_OTHER);
	nov_expect_frame(test, NOV_OTHER, NOV_DEVICE);
}

/* A packet that does not wait needs none. */
static void neighbour_noref(struct kunit *test)
{
	static const u8 states[] = { NUD_REACHABLE, NUD_STALE, NUD_DELAY,
				     NUD_PROBE, NUD_NOARP, NUD_PERMANENT };
	struct nov_test *ctx = test->priv;
	struct nov_dev *priv = netdev_priv(ctx->dev);
	int i;

	nov_make_route(test, &by_source);
	for (i = 0; i < ARRAY_SIZE(states); i++) {
		nov_set_state(test, NOV_DST, states[i]);
		send_noref(test);
		nov_expect_frame(test, NOV_DST, NOV_SOURCE);
		KUNIT_EXPECT_TRUE_MSG(test, priv->noref, "state %x", states[i]);
	}
}

static void neighbour_noref_route_gone(struct kunit *test)
{
	struct nov_test *ctx = test->priv;
	struct sk_buff *skb;
	int err;

	nov_make_route(test, &by_source);
	nov_set_state(test, NOV_DST, NUD_NONE);
	skb = nov_packet(test, LL_MAX_HEADER);
	skb_dst_drop(skb);

	rcu_read_lock();
	skb_dst_set_noref(skb, &ctx->rt->dst);
	dst_release(&ctx->rt->dst);
	ctx->rt = NULL;
	err = ip_output(&init_net, NULL, skb);
	rcu_read_unlock();

	KUNIT_EXPECT_EQ(test, -EHOSTUNREACH, err);
	nov_expect_drop(test, SKB_DROP_REASON_IP_OUTNOROUTES);
}

/* The request for a packet that waits */

struct arp_case {
	const char *desc;
	/* input */
	struct nov_conf conf;
	/* output as expected */
	__be32 sip;
};

static const struct arp_case arp_cases[] = {
	{ "via4", { .via = NOV_VIA4 }, htonl(INADDR_LOOPBACK) },
	/* The device has no address. */
	{ "via4 + src-lladdr", { .via = NOV_VIA4, .src = NOV_SOURCE }, 0 },
};

KUNIT_ARRAY_PARAM_DESC(arp, arp_cases, desc);

/* The packet's source is local, but belongs to another link-layer address. */
static void neighbour_arp_announces(struct kunit *test)
{
	const struct arp_case *c = test->param_value;
	struct nov_test *ctx = test->priv;
	struct nov_dev *priv = netdev_priv(ctx->dev);
	struct sk_buff *skb;

	nov_make_route(test, &c->conf);
	nov_set_state(test, NOV_VIA4, NUD_NONE);
	skb = nov_packet(test, LL_MAX_HEADER);
	ip_hdr(skb)->saddr = htonl(INADDR_LOOPBACK);
	ip_output(&init_net, NULL, skb);

	KUNIT_ASSERT_EQ(test, 1, priv->arps);
	KUNIT_EXPECT_EQ(test, c->sip, priv->arp_sip);
	KUNIT_EXPECT_MEMEQ(test, priv->arp_sha, ctx->dev->dev_addr, ETH_ALEN);
}

static const struct nov_change_case neighbour_change_cases[] = {
	{ "too little headroom", { .src = NOV_SOURCE }, ETH_HLEN - 1, ETH_ALEN,
	  .reason = SKB_DROP_REASON_NEIGH_HH_FILLFAIL },
	{ "longer addresses", { .src = NOV_SOURCE }, LL_MAX_HEADER,
	  INFINIBAND_ALEN, .reason = SKB_DROP_REASON_NEIGH_HH_FILLFAIL },
	{ "longer addresses of neighbours", { .via = NOV_VIA4 }, LL_MAX_HEADER,
	  INFINIBAND_ALEN },
	{ "no new neighbour", { .via = NOV_ABSENT4 }, LL_MAX_HEADER, ETH_ALEN,
	  .no_ip = true, .reason = SKB_DROP_REASON_NEIGH_CREATEFAIL },
};

KUNIT_ARRAY_PARAM_DESC(neighbour_change, neighbour_change_cases, desc);

/* What nexthop groups and default routes are chosen by */

struct state_case {
	const char *desc;
	/* input */
	struct nov_conf conf;
	u8 neigh;
	u8 state;
	/* output as expected */
	int nexthop;
};

static const struct state_case state_cases[] = {
	{ "no override", {}, .nexthop = -1 },
	{ "src-lladdr", { .src = NOV_SOURCE }, NOV_DST, NUD_FAILED, -1 },
	{ "lladdr", { .lladdr = NOV_LLADDR }, .nexthop = NUD_REACHABLE },
	{ "via4 without entry", { .via = NOV_ABSENT4 },
	  .nexthop = NUD_REACHABLE },
	{ "via4 INCOMPLETE", { .via = NOV_VIA4 }, NOV_VIA4, NUD_INCOMPLETE,
	  NUD_INCOMPLETE },
	{ "via4 STALE, gateway failed",
	  { .via = NOV_VIA4, .gw_family = AF_INET }, NOV_VIA4, NUD_STALE,
	  NUD_STALE },
	{ "via6 FAILED", { .via = NOV_VIA6 }, NOV_VIA6, NUD_FAILED,
	  NUD_FAILED },
};

KUNIT_ARRAY_PARAM_DESC(state, state_cases, desc);

static void neighbour_nexthop_state(struct kunit *test)
{
	const struct state_case *c = test->param_value;
	struct nov_test *ctx = test->priv;

	nov_make_nhc(test, &ctx->nhc, &c->conf);
	nov_set_state(test, NOV_GATEWAY4, NUD_FAILED);
	if (c->neigh)
		nov_set_state(test, c->neigh, c->state);
	KUNIT_EXPECT_EQ(test, c->nexthop, nhc_neigh_override_state(&ctx->nhc));
}

static const struct nov_pair_case neighbour_pair_cases[] = {
	{ "same src-lladdr", { .src = NOV_SOURCE }, { .src = NOV_SOURCE },
	  true },
	{ "other src-lladdr", { .src = NOV_SOURCE }, { .src = NOV_OTHER },
	  false },
	{ "src-lladdr, lladdr", { .src = NOV_OTHER }, { .lladdr = NOV_OTHER },
	  false },
	{ "same via4", { .via = NOV_VIA4 }, { .via = NOV_VIA4 }, true },
	{ "other via4", { .via = NOV_VIA4 }, { .via = NOV_ABSENT4 }, false },
	{ "via4, via6", { .via = NOV_VIA4 }, { .via = NOV_VIA6 }, false },
	{ "same via6", { .via = NOV_VIA6 }, { .via = NOV_VIA6 }, true },
	{ "other via6", { .via = NOV_VIA6 }, { .via = NOV_ABSENT6 }, false },
	{ "lladdr + src-lladdr, lladdr",
	  { .lladdr = NOV_LLADDR, .src = NOV_SOURCE },
	  { .lladdr = NOV_LLADDR }, false },
};

KUNIT_ARRAY_PARAM_DESC(neighbour_pair, neighbour_pair_cases, desc);

static struct kunit_case neighbour_test_cases[] = {
	KUNIT_CASE_PARAM(nov_test_send, neighbour_gen_params),
	KUNIT_CASE_PARAM(nov_test_neigh_lookup, neighbour_gen_params),
	KUNIT_CASE_PARAM(nov_test_confirm_neigh, neighbour_gen_params),
	KUNIT_CASE_PARAM(neighbour_wait, wait_gen_params),
	KUNIT_CASE(neighbour_wait_unmarked),
	KUNIT_CASE(neighbour_noref),
	KUNIT_CASE(neighbour_noref_route_gone),
	KUNIT_CASE_PARAM(neighbour_arp_announces, arp_gen_params),
	KUNIT_CASE_PARAM(nov_test_change, neighbour_change_gen_params),
	KUNIT_CASE_PARAM(neighbour_nexthop_state, state_gen_params),
	KUNIT_CASE_PARAM(nov_test_compare, neighbour_pair_gen_params),
	{}
};

static struct kunit_suite neighbour_suite = {
	.name		= "neigh_override_neighbour",
	.suite_init	= nov_suite_init,
	.init		= nov_init,
	.exit		= nov_exit,
	.test_cases	= neighbour_test_cases,
};

kunit_test_suite(neighbour_suite);
