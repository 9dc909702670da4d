// SPDX-License-Identifier: GPL-2.0-or-later
/* KUnit tests of routes to a link-layer address */

#include <linux/if_infiniband.h>
#include <linux/net.h>
#include <net/arp.h>
#include <net/ip.h>
#include "neigh_override_test.h"

static const struct nov_conf by_lladdr = { .lladdr = NOV_LLADDR };

static const struct nov_route_case link_cases[] = {
	{ "no override", {},
	  NOV_DST, NOV_DEVICE, NOV_DST, false },
	{ "no override, gateway4", { .gw_family = AF_INET },
	  NOV_GATEWAY4, NOV_DEVICE, NOV_GATEWAY4, true },
	{ "lladdr by RTA_VIA", { .lladdr = NOV_LLADDR, .rta_via = true },
	  NOV_LLADDR, NOV_DEVICE, NOV_NOBODY, true },
	{ "lladdr", { .lladdr = NOV_LLADDR },
	  NOV_LLADDR, NOV_DEVICE, NOV_NOBODY, true },
	{ "lladdr, gateway4", { .lladdr = NOV_LLADDR, .gw_family = AF_INET },
	  NOV_LLADDR, NOV_DEVICE, NOV_NOBODY, true },
	{ "lladdr, gateway6", { .lladdr = NOV_LLADDR, .gw_family = AF_INET6 },
	  NOV_LLADDR, NOV_DEVICE, NOV_NOBODY, true },
};

KUNIT_ARRAY_PARAM_DESC(link, link_cases, desc);

/* Nobody is asked for, no entry is made, no socket waits to confirm one. */
static void link_resolves_nothing(struct kunit *test)
{
	struct nov_test *ctx = test->priv;
	struct nov_dev *priv = netdev_priv(ctx->dev);
	const __be32 daddr = htonl(0xcb007163);		/* 203.0.113.99 */
	struct socket *sock;
	struct sk_buff *skb;

	KUNIT_ASSERT_EQ(test, 0, sock_create_kern(&init_net, AF_INET,
						  SOCK_DGRAM, 0, &sock));
	nov_make_route(test, &by_lladdr);
	skb = nov_packet(test, LL_MAX_HEADER);
	ip_hdr(skb)->daddr = daddr;
	skb_set_owner_w(skb, sock->sk);
	skb_set_dst_pending_confirm(skb, 1);
	WRITE_ONCE(sock->sk->sk_dst_pending_confirm, 1);
	ip_output(&init_net, NULL, skb);

	KUNIT_EXPECT_EQ(test, 1, skb_queue_len(&priv->frames));
	KUNIT_EXPECT_EQ(test, 0, priv->arps);
	KUNIT_EXPECT_EQ(test, 0, READ_ONCE(sock->sk->sk_dst_pending_confirm));
	nov_expect_neigh(test, neigh_lookup(&arp_tbl, &daddr, ctx->dev),
			 NOV_NOBODY);
	skb_queue_purge(&priv->frames);
	sock_release(sock);
}

static const struct nov_change_case link_change_cases[] = {
	{ "just enough headroom", { .lladdr = NOV_LLADDR },
	  ETH_HLEN, ETH_ALEN },
	{ "too little headroom", { .lladdr = NOV_LLADDR },
	  ETH_HLEN - 1, ETH_ALEN,
	  .reason = SKB_DROP_REASON_NEIGH_HH_FILLFAIL },
	{ "longer addresses", { .lladdr = NOV_LLADDR },
	  LL_MAX_HEADER, INFINIBAND_ALEN,
	  .reason = SKB_DROP_REASON_NEIGH_HH_FILLFAIL },
	{ "no addresses", { .lladdr = NOV_LLADDR }, LL_MAX_HEADER, 0,
	  .reason = SKB_DROP_REASON_NEIGH_HH_FILLFAIL },
	{ "no header", { .lladdr = NOV_LLADDR }, LL_MAX_HEADER, ETH_ALEN,
	  .no_header = true, .reason = SKB_DROP_REASON_NEIGH_HH_FILLFAIL },
};

KUNIT_ARRAY_PARAM_DESC(link_change, link_change_cases, desc);

static void link_blackhole_device(struct kunit *test)
{
	struct nov_test *ctx = test->priv;

	nov_make_route(test, &by_lladdr);
	dst_dev_put(&ctx->rt->dst);
	ip_output(&init_net, NULL, nov_packet(test, LL_MAX_HEADER));
	KUNIT_EXPECT_TRUE(test, ctx->dropped);
	ctx->dropped = false;
	nov_expect_nothing(test);
}

static const struct nov_pair_case link_pair_cases[] = {
	{ "none, none", {}, {}, true },
	{ "none, lladdr", {}, { .lladdr = NOV_LLADDR }, false },
	{ "lladdr, none", { .lladdr = NOV_LLADDR }, {}, false },
	{ "same lladdr", { .lladdr = NOV_LLADDR },
	  { .lladdr = NOV_LLADDR, .rta_via = true }, true },
	{ "other lladdr", { .lladdr = NOV_LLADDR },
	  { .lladdr = NOV_OTHER }, false },
};

KUNIT_ARRAY_PARAM_DESC(link_pair, link_pair_cases, desc);

/* A route keeps the override of a nexthop that is gone, and packets look for
 * it, until the last override goes.
 */
static void link_lifetime(struct kunit *test)
{
	struct nov_test *ctx = test->priv;

	KUNIT_EXPECT_FALSE(test, neigh_override_in_use());
	nov_make_nhc(test, &ctx->other, &by_lladdr);
	nov_make_route(test, &by_lladdr);
	KUNIT_EXPECT_EQ(test, 2,
			refcount_read(&ctx->nhc.nhc_neigh_override->refcnt));

	neigh_override_put(ctx->other.nhc_neigh_override);
	ctx->other.nhc_neigh_override = NULL;
	neigh_override_put(ctx->nhc.nhc_neigh_override);
	ctx->nhc.nhc_neigh_override = NULL;
	KUNIT_EXPECT_FALSE(test, nov_key_is_off());
	ip_output(&init_net, NULL, nov_packet(test, LL_MAX_HEADER));
	nov_expect_frame(test, NOV_LLADDR, NOV_DEVICE);

	dst_release(&ctx->rt->dst);
	ctx->rt = NULL;
	KUNIT_EXPECT_TRUE(test, nov_key_is_off());
}

static struct kunit_case link_test_cases[] = {
	KUNIT_CASE_PARAM(nov_test_send, link_gen_params),
	KUNIT_CASE_PARAM(nov_test_neigh_lookup, link_gen_params),
	KUNIT_CASE_PARAM(nov_test_confirm_neigh, link_gen_params),
	KUNIT_CASE(link_resolves_nothing),
	KUNIT_CASE_PARAM(nov_test_change, link_change_gen_params),
	KUNIT_CASE(link_blackhole_device),
	KUNIT_CASE_PARAM(nov_test_compare, link_pair_gen_params),
	KUNIT_CASE(link_lifetime),
	{}
};

static struct kunit_suite link_suite = {
	.name		= "neigh_override_link",
	.init		= nov_init,
	.exit		= nov_exit,
	.test_cases	= link_test_cases,
};

kunit_test_suite(link_suite);
